"""`dcmhaul mpps`: tells a peer of a performed procedure step, as a modality does (PS3.4 Annex F)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import key_options, network_options, verb
from dcmhaul.config import DEFAULT_AE_TITLE
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association
    from dcmhaul.services.normalized import NormalizedResponse

__all__ = ["command"]

_STATES = ("in-progress", "completed", "discontinued")

_EPILOG = """\b
A step is made (N-CREATE) as IN PROGRESS from the attributes of the first of PATHs,
files or folders, and of -k; then it is brought to --status (N-SET) with the series
and instances that PATHs hold. --instance goes on with a step that is there.
The step's SOP Instance UID goes to stdout.

\b
Examples:
  dcmhaul mpps RIS@10.1.2.3:104 ./study
  dcmhaul mpps RIS@10.1.2.3:104 ./study --status in-progress
  dcmhaul mpps RIS@10.1.2.3:104 --instance 1.2.3 --status discontinued
"""


@verb("mpps", epilog=_EPILOG)
@network_options()
@click.option(
    "--status",
    "state",
    type=click.Choice(_STATES),
    default="completed",
    show_default=True,
    help="How the step ends, if it does.",
)
@click.option("--instance", metavar="UID", help="A step that was made before.")
@key_options
@click.argument("words", nargs=-1, metavar="PEER [PATH...]")
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    state: str,
    instance: str | None,
    keys: tuple[str, ...],
) -> None:
    """Modality performed procedure step at PEER.

    PEER is AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml.
    """
    import trio

    from dcmhaul import uids
    from dcmhaul.cli.keys import build_identifier
    from dcmhaul.cli.models import quiet_pydicom
    from dcmhaul.cli.send import check_paths

    quiet_pydicom()
    peer, paths = session.split_peer(words, network)
    if instance is not None and not uids.is_valid_uid(instance):
        raise ConfigurationError(f"--instance {instance}: expected a UID")
    if instance is None or paths:
        check_paths(session, paths, folders=True)
    step = _Step(session, state, instance, build_identifier(keys))
    trio.run(partial(step.run, session.network(network, peer), peer, paths))


class _Step:
    """One run: reads what was performed, tells it."""

    def __init__(
        self, session: Session, state: str, instance: str | None, keys: Identifier
    ) -> None:
        self.session = session
        self.state = state.upper().replace("-", " ")
        self.instance = instance
        self.keys = keys

    async def run(self, network: NetworkOptions, peer: Peer, paths: Sequence[str]) -> None:
        """The one or two requests. What fails is told, and nothing follows it."""
        import trio

        from dcmhaul import uids
        from dcmhaul.cli.keys import build_identifier
        from dcmhaul.cli.models import query_context
        from dcmhaul.cli.network import open_peer

        performed = await trio.to_thread.run_sync(self._performed, paths)
        if self.instance is None and not performed:
            self.session.code(Exit.NOTHING_MATCHED)
            self.session.console.error("dcmhaul mpps: no DICOM instance in these paths")
            return
        contexts = (query_context(1, uids.MODALITY_PERFORMED_PROCEDURE_STEP, ()),)
        async with open_peer(self.session, network, peer, contexts) as association:
            title = network.calling_ae_title or DEFAULT_AE_TITLE
            if self.instance is None:
                made = _created(performed[0], title)
                if not await self._create(association, made):
                    return
                # What was typed is in the step now; much of it could not be set once more.
                self.keys = build_identifier(())
            if self.state != "IN PROGRESS":
                await self._end(association, performed)

    def _performed(self, paths: Sequence[str]) -> list[Dataset]:
        """The headers of the instances."""
        import pydicom

        from dcmhaul.objects.part10 import FileInstance
        from dcmhaul.objects.sources import SkippedEntry, open_entries

        found: list[Dataset] = []
        for entry in open_entries(paths):
            if isinstance(entry, FileInstance):
                entry.close()
                found.append(pydicom.dcmread(entry.path, stop_before_pixels=True, force=True))
            elif isinstance(entry, SkippedEntry):
                self.session.console.warn(f"skipped: {entry.path}: {entry.reason}")
            else:
                self.session.code(Exit.PERMANENT)
                self.session.console.error(f"failed: {entry.path}: {entry.error}")
        return found

    async def _create(self, association: Association, made: Dataset) -> bool:
        from dcmhaul import uids
        from dcmhaul.services.normalized import n_create

        uid = uids.new_uid()
        response = await n_create(
            association,
            uids.MODALITY_PERFORMED_PROCEDURE_STEP,
            uid,
            self._with_keys(made),
        )
        self.instance = response.sop_instance_uid or uid
        return self._tell("N-CREATE", response, "IN PROGRESS")

    async def _end(self, association: Association, performed: Sequence[Dataset]) -> None:
        from dcmhaul import uids
        from dcmhaul.services.normalized import n_set

        assert self.instance is not None  # it was typed, or made just now
        response = await n_set(
            association,
            uids.MODALITY_PERFORMED_PROCEDURE_STEP,
            self.instance,
            self._with_keys(_ended(performed, self.state)),
        )
        self._tell("N-SET", response, self.state)

    def _with_keys(self, made: Dataset) -> Dataset:
        """What was typed stands above what was read."""
        from dcmhaul.cli.keys import as_dataset

        made.update(as_dataset(self.keys))
        return made

    def _tell(self, operation: str, response: NormalizedResponse, state: str) -> bool:
        """Whether it was done."""
        from dcmhaul.cli.responses import normalized_text
        from dcmhaul.protocol.statuses import StatusCategory, category

        session = self.session
        session.begun = True
        text = normalized_text(response, "MPPS")
        session.console.info(f"{operation}-RSP: {text}")
        done = category(response.status, operation) is not StatusCategory.FAILURE
        session.answer.record(
            {
                "type": "step",
                "operation": operation,
                "sop_instance_uid": self.instance,
                "status": f"{response.status:04X}",
                "state": state,
            }
        )
        if done:
            session.answer.line(f"{self.instance}\t{state}")
            return True
        session.refuse(response.status, text, operation)
        return False


def _created(first: Dataset, ae_title: str) -> Dataset:
    """What the N-CREATE of a modality holds (PS3.4 Table F.7.2-1); empty where it is not known."""
    from pydicom.dataset import Dataset

    scheduled = Dataset()
    for keyword in ("StudyInstanceUID", "AccessionNumber", "StudyID"):
        setattr(scheduled, keyword, first.get(keyword, ""))
    scheduled.ReferencedStudySequence = []
    for keyword in (
        "RequestedProcedureID",
        "RequestedProcedureDescription",
        "ScheduledProcedureStepID",
        "ScheduledProcedureStepDescription",
    ):
        setattr(scheduled, keyword, "")
    scheduled.ScheduledProtocolCodeSequence = []
    made = Dataset()
    if "SpecificCharacterSet" in first:
        made.SpecificCharacterSet = first.SpecificCharacterSet
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID"):
        setattr(made, keyword, first.get(keyword, ""))
    made.ReferencedPatientSequence = []
    made.ScheduledStepAttributesSequence = [scheduled]
    made.PerformedProcedureStepID = str(first.get("StudyID", "") or "1")[:16]
    made.PerformedStationAETitle = ae_title
    made.PerformedStationName = ""
    made.PerformedLocation = ""
    made.PerformedProcedureStepStartDate = str(first.get("StudyDate", "") or _now("%Y%m%d"))
    made.PerformedProcedureStepStartTime = str(first.get("StudyTime", "") or _now("%H%M%S"))
    made.PerformedProcedureStepEndDate = ""
    made.PerformedProcedureStepEndTime = ""
    made.PerformedProcedureStepStatus = "IN PROGRESS"
    made.PerformedProcedureStepDescription = ""
    made.PerformedProcedureTypeDescription = ""
    made.ProcedureCodeSequence = []
    made.Modality = first.get("Modality", "") or "OT"
    made.PerformedProtocolCodeSequence = []
    made.PerformedSeriesSequence = []
    return made


def _ended(performed: Sequence[Dataset], state: str) -> Dataset:
    """What the N-SET holds that ends a step: the series with their instances."""
    from pydicom.dataset import Dataset

    ended = Dataset()
    ended.PerformedProcedureStepStatus = state
    ended.PerformedProcedureStepEndDate = _now("%Y%m%d")
    ended.PerformedProcedureStepEndTime = _now("%H%M%S")
    series: dict[str, Dataset] = {}
    for instance in performed:
        uid = str(instance.get("SeriesInstanceUID", ""))
        if uid not in series:
            series[uid] = made = Dataset()
            made.SeriesInstanceUID = uid
            for keyword in ("SeriesDescription", "PerformingPhysicianName", "OperatorsName"):
                setattr(made, keyword, instance.get(keyword, ""))
            made.ProtocolName = instance.get("ProtocolName", "") or "unknown"
            made.RetrieveAETitle = ""
            made.ReferencedImageSequence = []
            made.ReferencedNonImageCompositeSOPInstanceSequence = []
        item = Dataset()
        item.ReferencedSOPClassUID = instance.get("SOPClassUID", "")
        item.ReferencedSOPInstanceUID = instance.get("SOPInstanceUID", "")
        series[uid].ReferencedImageSequence.append(item)
    if series:
        ended.PerformedSeriesSequence = list(series.values())
    return ended


def _now(layout: str) -> str:
    return time.strftime(layout)
