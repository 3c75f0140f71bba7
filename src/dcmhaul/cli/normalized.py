"""`dcmhaul n-create`, `n-set`, `n-get`, `n-action`, `n-delete`, `n-event-report`: any DIMSE-N request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import key_options, network_options, propose_option, verb
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.options import Verb
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association
    from dcmhaul.services.normalized import NormalizedResponse

__all__ = ["commands"]

_EPILOG = """\b
-k builds the dataset, or changes that of --dataset: a DICOM JSON object (PS3.18
Annex F), a DICOM file or a dump; - is stdin. SOP classes are UIDs or keywords.
The response's status and dataset go to stdout.

\b
Example:
  dcmhaul {example}
"""
_COMMITMENT = "--class StorageCommitmentPushModel --instance 1.2.840.10008.1.20.1.1"
_STEP = "--class ModalityPerformedProcedureStep --instance 1.2.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    operation: str
    sop_class_uid: str
    sop_instance_uid: str
    context: str
    type_id: int
    dataset: Identifier | None

    async def invoke(self, association: Association) -> NormalizedResponse:
        from dcmhaul.cli.keys import encode_identifier
        from dcmhaul.services import normalized

        names = (self.sop_class_uid, self.sop_instance_uid)
        data = None if self.dataset is None else partial(encode_identifier, self.dataset)
        context = self.context
        match self.operation:
            case "N-CREATE":
                return await normalized.n_create(
                    association, names[0], names[1] or None, data, context=context
                )
            case "N-SET":
                return await normalized.n_set(association, *names, data or b"", context=context)
            case "N-GET":
                tags = self.dataset.elements if self.dataset is not None else ()
                return await normalized.n_get(association, *names, tags, context=context)
            case "N-ACTION":
                return await normalized.n_action(
                    association, *names, self.type_id, data, context=context
                )
            case "N-DELETE":
                return await normalized.n_delete(association, *names, context=context)
            case _:
                return await normalized.n_event_report(
                    association, *names, self.type_id, data, context=context
                )


def _uid(text: str, option: str) -> str:
    """A UID as it is typed, or of a SOP class by its keyword."""
    from dcmhaul.uids import is_valid_uid

    if is_valid_uid(text):
        return text
    from pydicom._uid_dict import UID_dictionary

    for uid, (*_, keyword) in UID_dictionary.items():
        if keyword == text:
            return uid
    raise ConfigurationError(f"{option} {text}: expected a UID, or a SOP class by its keyword")


def _define(
    operation: str,
    text: str,
    example: str,
    *,
    instance: bool = True,
    typed: bool = False,
    dataset: bool = True,
) -> Verb:
    """The verb of one operation. instance: it needs one. typed: of an event or action type."""
    name = operation.lower()
    options: list[Callable[[Callable[..., None]], Callable[..., None]]] = [
        network_options(),
        click.option("--class", "sop_class", required=True, metavar="UID", help="SOP class."),
        click.option(
            "--instance",
            required=instance,
            default="",
            metavar="UID",
            help="SOP instance." if instance else "SOP instance [default: the peer chooses].",
        ),
        click.option(
            "--context", metavar="UID", help="Abstract syntax to negotiate [default: --class]."
        ),
    ]
    if typed:
        options.append(
            click.option(
                "--type",
                "type_id",
                required=True,
                type=click.IntRange(0, 0xFFFF),
                help="Type of the event."
                if operation == "N-EVENT-REPORT"
                else "Type of the action.",
            )
        )
    if dataset:
        options.append(
            click.option("--dataset", metavar="FILE", help="What goes with the request.")
        )
    if dataset or operation == "N-GET":
        options.append(key_options)
    options += [propose_option, click.argument("peer", nargs=-1, metavar="PEER")]

    def command(
        session: Session, network: NetworkOptions, peer: tuple[str, ...], **given: Any
    ) -> None:
        import trio

        from dcmhaul.cli.models import quiet_pydicom

        quiet_pydicom()
        found = session.only_peer(peer, network)
        sop_class = _uid(given["sop_class"], "--class")
        request = _Request(
            operation=operation,
            sop_class_uid=sop_class,
            sop_instance_uid=given["instance"] and _uid(given["instance"], "--instance"),
            context=_uid(given["context"], "--context") if given["context"] else sop_class,
            type_id=given.get("type_id", 0),
            dataset=_dataset(operation, given.get("dataset"), given.get("keys", ())),
        )
        run = partial(_run, session, session.network(network, found), found, request)
        trio.run(partial(run, given["propose"]))

    command.__doc__ = text
    for option in reversed(options):
        command = option(command)
    return verb(name, epilog=_EPILOG.format(example=f"{name} PACS@10.1.2.3:104 {example}"))(command)


def _dataset(operation: str, path: str | None, keys: tuple[str, ...]) -> Identifier | None:
    from dcmhaul.cli.keys import build_identifier
    from dcmhaul.cli.queryfiles import read_query_file

    base = read_query_file(path) if path is not None else None
    if base is None and not keys:
        if operation == "N-SET":
            raise ConfigurationError("n-set needs what is to be set: -k or --dataset")
        return None
    return build_identifier(keys, base)


async def _run(
    session: Session,
    network: NetworkOptions,
    peer: Peer,
    request: _Request,
    propose: tuple[str, ...],
) -> None:
    from dcmhaul import uids
    from dcmhaul.cli.keys import dump_lines
    from dcmhaul.cli.models import query_context
    from dcmhaul.cli.network import open_peer
    from dcmhaul.services.retrieve import storage_roles

    reports = request.operation == "N-EVENT-REPORT"
    roles = storage_roles([request.context]) if reports else ()
    contexts = (query_context(1, request.context, propose),)
    async with open_peer(session, network, peer, contexts, roles=roles) as association:
        if reports and not association.agreement.roles_for(request.context)[1]:
            session.console.warn(
                f"warning: {association.peer} did not say that we may be the SCP of "
                f"{uids.name(request.context)}; the event is reported all the same"
            )
        session.console.info(
            f"{request.operation}-RQ: {uids.name(request.sop_class_uid)}, "
            f"instance {request.sop_instance_uid or 'of the peer'}"
        )
        if request.dataset is not None:
            session.console.debug_lines(dump_lines(request.dataset))
        response = await request.invoke(association)
        session.begun = True
        _show(session, peer, request, response)


def _show(session: Session, peer: Peer, request: _Request, response: NormalizedResponse) -> None:
    from dcmhaul.cli.models import json_object, match_lines
    from dcmhaul.cli.responses import normalized_text
    from dcmhaul.protocol.statuses import StatusCategory, category

    text = normalized_text(response, request.operation)
    session.answer.line(f"{peer}: {text}")
    if response.sop_instance_uid not in ("", request.sop_instance_uid):
        session.answer.line(f"instance {response.sop_instance_uid}")
    try:
        dataset = response.dataset()
    except ValueError as error:
        dataset = None
        session.code(Exit.PERMANENT)
        session.console.error(f"dcmhaul {session.name}: the response's dataset: {error}")
    if dataset is not None and not session.answer.json_lines:
        for line in match_lines(dataset):
            session.answer.line(line)
    session.answer.record(
        {
            "type": "response",
            "operation": request.operation,
            "status": f"{response.status:04X}",
            "sop_class_uid": response.sop_class_uid or request.sop_class_uid,
            "sop_instance_uid": response.sop_instance_uid or request.sop_instance_uid,
            "error_comment": response.error_comment,
            "dataset": None if dataset is None else json_object(dataset),
        }
    )
    if category(response.status, request.operation) is StatusCategory.FAILURE:
        session.refuse(response.status, text)


commands = {
    command.name: command
    for command in (
        _define(
            "N-CREATE",
            "N-CREATE: makes a SOP instance at PEER.",
            f"{_STEP} --dataset step.json",
            instance=False,
        ),
        _define(
            "N-SET",
            "N-SET: changes attributes of a SOP instance at PEER.",
            f"{_STEP} -k PerformedProcedureStepStatus=COMPLETED",
        ),
        _define(
            "N-GET",
            "N-GET: asks PEER for attributes of a SOP instance, those of -k, or all.",
            "--class ModalityPerformedProcedureStepRetrieve --instance 1.2.3 -k PerformedStationAETitle",
            dataset=False,
        ),
        _define(
            "N-ACTION",
            "N-ACTION: has PEER do something with a SOP instance.",
            f"{_COMMITMENT} --type 1 --dataset references.json",
            typed=True,
        ),
        _define(
            "N-DELETE",
            "N-DELETE: deletes a SOP instance at PEER.",
            "--class BasicFilmSession --instance 1.2.3",
            dataset=False,
        ),
        _define(
            "N-EVENT-REPORT",
            "N-EVENT-REPORT: tells PEER of an event, in the role of the SCP.",
            f"{_COMMITMENT} --type 1 --dataset result.json",
            typed=True,
        ),
    )
}
"""By the verb's name."""
