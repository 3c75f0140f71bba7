"""The archive as SCP of unified procedure steps: states, keys, subscriptions and events."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
import trio
from pydicom import Dataset

import dcmhaul
from dcmhaul import uids
from dcmhaul.archive import (
    MoveDestination,
    OutgoingMoves,
    subscriptions,
    unified_changes,
)
from dcmhaul.net import SocketOptions, Timeouts
from dcmhaul.services import unified
from dcmhaul.services.normalized import NormalizedAnswer, NormalizedScp
from dcmhaul.services.query import QueryModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dcmhaul import Association, NormalizedRequest, NormalizedResponse

PUSH, PULL, WATCH = uids.UNIFIED_STEP_PUSH, uids.UNIFIED_STEP_PULL, uids.UNIFIED_STEP_WATCH
CONTEXTS = (PUSH, PULL, WATCH, uids.UNIFIED_STEP_QUERY)
UID, KEY, OTHER_KEY = "1.2.3", "2.25.1", "2.25.2"
GLOBAL = uids.UNIFIED_STEP_SUBSCRIPTION


def item(**attributes: object) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


CODE = item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning="one")


def scheduled(**attributes: object) -> Dataset:
    made = item(
        TransactionUID="",
        ProcedureStepState="SCHEDULED",
        ScheduledProcedureStepPriority="MEDIUM",
        ProcedureStepLabel="Segment",
        ScheduledProcedureStepStartDateTime="20261124080000",
        InputReadinessState="READY",
        PatientName="Doe^Jo",
        PatientID="P1",
    )
    made.update(item(**attributes))
    return made


def finished() -> Dataset:
    return item(
        TransactionUID=KEY,
        UnifiedProcedureStepPerformedProcedureSequence=[
            item(
                PerformedWorkitemCodeSequence=[CODE],
                PerformedProcedureStepStartDateTime="20261124080000",
                PerformedProcedureStepEndDateTime="20261124081500",
                OutputInformationSequence=[],
            )
        ],
    )


class Watcher:
    """An AE that hears of events."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, Dataset]] = []
        self.services = [NormalizedScp([unified.event_class(self._report)])]
        self._more = trio.Event()

    async def _report(self, request: NormalizedRequest) -> NormalizedAnswer:
        assert request.dataset is not None
        assert request.type_id is not None
        self.heard.append((request.sop_instance_uid, request.type_id, request.dataset))
        self._more.set()
        return NormalizedAnswer()

    async def hear(self, count: int) -> list[tuple[str, int, Dataset]]:
        """The next events."""
        with trio.fail_after(10):
            while len(self.heard) < count:
                self._more = trio.Event()
                await self._more.wait()
        heard, self.heard = self.heard[:count], self.heard[count:]
        return heard

    async def states(self, count: int) -> list[tuple[str, str]]:
        """The same, which are state reports: the steps and their states."""
        heard = await self.hear(count)
        assert [kind for _, kind, _ in heard] == [unified.STATE_REPORT] * count
        return [(uid, str(told.ProcedureStepState)) for uid, _, told in heard]


@asynccontextmanager
async def serving(
    folder: Path,
    *known: dcmhaul.Peer,
    lines: list[str] | None = None,
    database_url: str | None = None,
) -> AsyncIterator[Association]:
    """An association with an archive that knows these AEs."""
    moves = OutgoingMoves(
        [
            MoveDestination(
                ae_title=str(peer.ae_title), host=peer.host, port=peer.port, options=SocketOptions()
            )
            for peer in known
        ],
        ae_title="ARCHIVE",
        timeouts=Timeouts(connect=2.0, dimse=5.0),
    )
    report = (lines if lines is not None else []).append
    async with (
        dcmhaul.open_archive(
            folder, ae_title="ARCHIVE", moves=moves, report=report, database_url=database_url
        ) as archive,
        dcmhaul.serve(archive.services(), ae_title="ARCHIVE") as peer,
        dcmhaul.open_association(peer, CONTEXTS, calling_ae_title="ME") as association,
    ):
        yield association


async def create(
    association: Association, attributes: Dataset | None = None, uid: str | None = UID
) -> NormalizedResponse:
    return await dcmhaul.n_create(association, PUSH, uid, attributes or scheduled())


async def set_(association: Association, changes: Dataset, uid: str = UID) -> NormalizedResponse:
    return await dcmhaul.n_set(association, PUSH, uid, changes, context=PULL)


async def held(association: Association, uid: str = UID) -> Dataset:
    response = await dcmhaul.n_get(association, PUSH, uid, context=WATCH)
    assert response.status == 0
    found = response.dataset()
    assert found is not None
    return found


async def in_state(association: Association, state: str) -> None:
    """Makes the step, and brings it there."""
    assert (await create(association)).status == 0
    if state == unified.SCHEDULED:
        return
    status = (await unified.change_state(association, UID, unified.IN_PROGRESS, KEY)).status
    assert status == 0
    if state != unified.IN_PROGRESS:
        assert (await set_(association, finished())).status == 0
        assert (await unified.change_state(association, UID, state, KEY)).status == 0


async def test_the_life_of_a_step(tmp_path: Path) -> None:
    async with serving(tmp_path) as association:
        response = await create(association, scheduled(), uid=None)
        assert response.status == 0
        uid = response.sop_instance_uid
        step = await held(association, uid)
        assert "TransactionUID" not in step
        assert (step.SOPInstanceUID, step.SOPClassUID) == (uid, PUSH)
        assert step.WorklistLabel == "DEFAULT"

        changed = item(ProcedureStepLabel="Other")
        assert (await set_(association, changed, uid)).status == 0
        claim = await unified.change_state(association, uid, unified.IN_PROGRESS, KEY)
        assert claim.status == 0
        assert (await set_(association, finished(), uid)).status == 0
        done = await unified.change_state(association, uid, unified.COMPLETED, KEY)
        assert done.status == 0
        step = await held(association, uid)
        assert step.ProcedureStepState == "COMPLETED"
        assert step.ProcedureStepLabel == "Other"
        assert "TransactionUID" not in step
        again = await unified.change_state(association, uid, unified.COMPLETED, KEY)
        assert again.status == 0xB306


@pytest.mark.parametrize(
    ("attributes", "status", "named"),
    [
        (scheduled(ProcedureStepState="IN PROGRESS"), 0xC309, 0x00741000),
        (item(PatientID="1"), 0x0120, 0x00741000),
        (item(ProcedureStepState="SCHEDULED"), 0x0120, 0x00741204),
        (scheduled(ProcedureStepLabel=""), 0x0121, 0x00741204),
    ],
)
async def test_what_cannot_be_created(
    tmp_path: Path, attributes: Dataset, status: int, named: int
) -> None:
    async with serving(tmp_path) as association:
        response = await create(association, attributes)
        assert response.status == status
        assert named in response.attributes


async def test_duplicate_unknown_and_well_known_instances(tmp_path: Path) -> None:
    async with serving(tmp_path) as association:
        assert (await create(association)).status == 0
        assert (await create(association)).status == 0x0111
        assert (await create(association, uid=GLOBAL)).status == 0x0117
        assert (await set_(association, item(PatientID="2"), "1.9")).status == 0xC307
        assert (await dcmhaul.n_get(association, PUSH, "1.9", context=PULL)).status == 0xC307
        claimed = await unified.change_state(association, "1.9", unified.IN_PROGRESS, KEY)
        assert claimed.status == 0xC307
        assert (await unified.request_cancel(association, "1.9")).status == 0xC307
        assert (await unified.unsubscribe(association, "ME", "1.9")).status == 0xC307


S, P, D, X = unified.SCHEDULED, unified.IN_PROGRESS, unified.COMPLETED, unified.CANCELED


@pytest.mark.parametrize(
    ("state", "wanted", "key", "status"),
    [
        (S, S, KEY, 0xC303),
        (S, P, "", 0xC301),
        (S, D, KEY, 0xC310),
        (S, D, "", 0xC301),
        (S, X, KEY, 0xC310),
        (P, P, KEY, 0xC302),
        (P, P, OTHER_KEY, 0xC302),
        (P, P, "", 0xC301),
        (P, D, KEY, 0xC304),
        (P, D, OTHER_KEY, 0xC301),
        (P, X, KEY, 0),
        (P, X, OTHER_KEY, 0xC301),
        (D, P, KEY, 0xC300),
        (D, D, KEY, 0xB306),
        (D, D, OTHER_KEY, 0xC301),
        (D, X, KEY, 0xC300),
        (X, D, KEY, 0xC300),
        (X, X, KEY, 0xB304),
        (X, S, KEY, 0xC303),
        (S, "PAUSED", KEY, 0x0115),
    ],
)
async def test_changes_of_state(
    tmp_path: Path, state: str, wanted: str, key: str, status: int
) -> None:
    async with serving(tmp_path) as association:
        await in_state(association, state)
        assert (await unified.change_state(association, UID, wanted, key)).status == status
        reached = wanted if status == 0 else state
        assert (await held(association)).ProcedureStepState == reached


@pytest.mark.parametrize(
    ("state", "key", "status"),
    [
        (S, "", 0),
        (S, KEY, 0xC310),
        (P, KEY, 0),
        (P, OTHER_KEY, 0xC301),
        (P, "", 0xC301),
        (D, KEY, 0xC300),
    ],
)
async def test_who_may_set(tmp_path: Path, state: str, key: str, status: int) -> None:
    async with serving(tmp_path) as association:
        await in_state(association, state)
        changes = item(ProcedureStepLabel="New")
        if key:
            changes.TransactionUID = key
        assert (await set_(association, changes)).status == status
        label = (await held(association)).ProcedureStepLabel
        assert label == ("Segment" if status else "New")


async def test_n_set_does_not_change_the_state(tmp_path: Path) -> None:
    async with serving(tmp_path) as association:
        assert (await create(association)).status == 0
        response = await set_(association, item(ProcedureStepState="COMPLETED"))
        assert (response.status, response.attributes) == (0x0105, (0x00741000,))


async def test_texts_of_two_character_sets_are_kept(tmp_path: Path) -> None:
    made = scheduled(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    changes = item(SpecificCharacterSet="ISO_IR 144", ProcedureStepLabel="Щит")
    async with serving(tmp_path) as association:
        assert (await create(association, made)).status == 0
        assert (await set_(association, changes)).status == 0
        step = await held(association)
        assert step.PatientName == "Müller^Jörg"
        assert step.ProcedureStepLabel == "Щит"


async def test_a_step_does_not_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unified_changes, "STEP_LENGTH_MAX", 1000)
    async with serving(tmp_path) as association:
        assert (await create(association)).status == 0
        assert (
            await set_(association, item(CommentsOnTheScheduledProcedureStep="x" * 400))
        ).status == 0
        changes = item(ReasonForCancellation="y" * 400)
        assert (await set_(association, changes)).status == 0x0213
        assert "ReasonForCancellation" not in await held(association)


async def test_a_step_survives_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as association:
        await in_state(association, unified.IN_PROGRESS)
    async with serving(tmp_path) as association:
        assert (await held(association)).ProcedureStepState == unified.IN_PROGRESS
        wrong = await unified.change_state(association, UID, unified.CANCELED, OTHER_KEY)
        assert wrong.status == 0xC301
        right = await unified.change_state(association, UID, unified.CANCELED, KEY)
        assert right.status == 0


@pytest.mark.parametrize(
    ("context", "action", "status"),
    [(PUSH, 1, 0x0123), (PULL, 2, 0x0123), (WATCH, 1, 0x0123), (WATCH, 9, 0x0123)],
)
async def test_actions_belong_to_classes(
    tmp_path: Path, context: str, action: int, status: int
) -> None:
    async with serving(tmp_path) as association:
        assert (await create(association)).status == 0
        response = await dcmhaul.n_action(association, PUSH, UID, action, item(), context=context)
        assert response.status == status


async def test_the_query_class_only_reads(tmp_path: Path) -> None:
    query = uids.UNIFIED_STEP_QUERY
    async with serving(tmp_path) as association:
        assert (await create(association)).status == 0
        assert (await dcmhaul.n_get(association, PUSH, UID, context=query)).status == 0
        acted = await dcmhaul.n_action(association, PUSH, UID, 1, item(), context=query)
        assert acted.status == 0x0211


# -- queries ------------------------------------------------------------------------------------


async def found(association: Association, keys: Dataset, model: QueryModel) -> list[Dataset]:
    async with dcmhaul.find(association, model, keys) as answers:
        responses = [response async for response in answers]
    assert responses[-1].status == 0
    return [response.dataset() for response in responses if response.pending]


@pytest.mark.parametrize(
    "model",
    [
        QueryModel.UNIFIED_STEP_PULL,
        QueryModel.UNIFIED_STEP_WATCH,
        QueryModel.UNIFIED_STEP_QUERY,
    ],
)
async def test_steps_are_found(
    tmp_path: Path, model: QueryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unified_changes, "_PAGE", 2)
    async with serving(tmp_path) as association:
        for number in range(5):
            made = scheduled(
                PatientID=f"P{number}",
                ScheduledWorkitemCodeSequence=[CODE],
                ScheduledProcedureStepStartDateTime=f"2026112{number}080000",
            )
            assert (await create(association, made, f"1.2.{number}")).status == 0
        claimed = await unified.change_state(association, "1.2.3", unified.IN_PROGRESS, KEY)
        assert claimed.status == 0
        keys = item(ProcedureStepState="SCHEDULED", PatientID="", TransactionUID="")
        steps = await found(association, keys, model)
        assert [step.PatientID for step in steps] == ["P0", "P1", "P2", "P4"]
        assert not any(step.get("TransactionUID") for step in steps)
        keys = item(ProcedureStepState="", PatientID="P[0]", SOPInstanceUID="")
        assert await found(association, keys, model) == []
        keys = item(PatientID="*", SOPInstanceUID="1.2.0\\1.2.3", ProcedureStepState="")
        steps = await found(association, keys, model)
        assert [step.ProcedureStepState for step in steps] == ["SCHEDULED", "IN PROGRESS"]
        keys = item(ScheduledProcedureStepStartDateTime="20261121-20261122", PatientID="")
        steps = await found(association, keys, model)
        assert [step.PatientID for step in steps] == ["P1", "P2"]
        keys = item(ScheduledWorkitemCodeSequence=[item(CodeValue="2")])
        assert await found(association, keys, model) == []
        keys = item(ScheduledWorkitemCodeSequence=[item(CodeValue="1", CodeMeaning="")])
        [first, *_] = await found(association, keys, model)
        assert first.ScheduledWorkitemCodeSequence[0].CodeMeaning == "one"


@pytest.mark.filterwarnings("ignore:Invalid value for VR DT")
async def test_a_query_that_cannot_be_understood(tmp_path: Path) -> None:
    keys = item(ScheduledProcedureStepStartDateTime="yesterday")
    async with serving(tmp_path) as association:
        async with dcmhaul.find(association, QueryModel.UNIFIED_STEP_PULL, keys) as answers:
            [response] = [response async for response in answers]
        assert response.status == 0xC000


# -- subscriptions and events -------------------------------------------------------------------


@asynccontextmanager
async def watched(
    folder: Path, *, database_url: str | None = None
) -> AsyncIterator[tuple[Association, Watcher]]:
    watcher = Watcher()
    async with (
        dcmhaul.serve(watcher.services, ae_title="WATCHER") as peer,
        serving(folder, peer, database_url=database_url) as association,
    ):
        yield association, watcher


async def test_events_of_one_step(tmp_path: Path) -> None:
    async with watched(tmp_path) as (association, watcher):
        assert (await create(association)).status == 0
        assert (await create(association, uid="1.2.4")).status == 0
        assert (await unified.subscribe(association, "WATCHER", UID)).status == 0
        assert await watcher.states(1) == [(UID, S)]
        await unified.change_state(association, "1.2.4", P, OTHER_KEY)
        await unified.change_state(association, UID, P, KEY)
        assert await watcher.states(1) == [(UID, P)]

        progress = item(
            TransactionUID=KEY,
            ProcedureStepProgressInformationSequence=[item(ProcedureStepProgress="50")],
        )
        assert (await set_(association, progress)).status == 0
        [(_, kind, told)] = await watcher.hear(1)
        assert kind == unified.PROGRESS_REPORT
        [now] = told.ProcedureStepProgressInformationSequence
        assert now.ProcedureStepProgress == 50

        assert (await set_(association, finished())).status == 0  # which is no event
        await unified.change_state(association, UID, D, KEY)
        assert await watcher.states(1) == [(UID, D)]
        assert (await unified.unsubscribe(association, "WATCHER", UID)).status == 0


async def test_events_of_what_was_changed_by_n_set(tmp_path: Path) -> None:
    performer = item(HumanPerformerCodeSequence=[CODE], HumanPerformerOrganization="here")
    async with watched(tmp_path) as (association, watcher):
        await unified.subscribe(association, "WATCHER")
        made = scheduled(InputReadinessState="INCOMPLETE", ScheduledStationNameCodeSequence=[CODE])
        assert (await create(association, made)).status == 0
        [(_, first, told), (_, second, assigned)] = await watcher.hear(2)
        assert (first, told.InputReadinessState) == (unified.STATE_REPORT, "INCOMPLETE")
        assert second == unified.ASSIGNED
        assert assigned.ScheduledStationNameCodeSequence[0].CodeValue == "1"

        await set_(association, item(InputReadinessState="READY"))
        [(_, kind, told)] = await watcher.hear(1)
        assert (kind, told.InputReadinessState) == (unified.STATE_REPORT, "READY")
        await set_(association, item(ScheduledHumanPerformersSequence=[performer]))
        [(_, kind, told)] = await watcher.hear(1)
        assert kind == unified.ASSIGNED
        assert told.HumanPerformerCodeSequence[0].CodeMeaning == "one"
        assert told.HumanPerformerOrganization == "here"


async def test_a_subscription_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unified_changes, "_PAGE", 2)
    async with watched(tmp_path) as (association, watcher):
        for number in range(3):
            await create(association, uid=f"1.2.{number}")
        assert (await unified.subscribe(association, "WATCHER")).status == 0
        await create(association, uid="1.2.9")
        assert await watcher.states(1) == [("1.2.9", S)]  # nothing of those that were there
        await unified.change_state(association, "1.2.0", P, KEY)
        assert await watcher.states(1) == [("1.2.0", P)]

        assert (await unified.subscribe(association, "WATCHER", deletion_lock=True)).status == 0
        states = await watcher.states(4)
        assert states == [("1.2.0", P), ("1.2.1", S), ("1.2.2", S), ("1.2.9", S)]

        assert (await unified.suspend(association, "WATCHER")).status == 0
        await create(association, uid="1.2.10")
        await unified.request_cancel(association, "1.2.1")
        assert await watcher.states(2) == [("1.2.1", P), ("1.2.1", X)]

        assert (await unified.unsubscribe(association, "WATCHER")).status == 0
        await unified.request_cancel(association, "1.2.2")
        await unified.subscribe(association, "WATCHER", "1.2.2")
        assert await watcher.states(1) == [("1.2.2", X)]


async def test_a_request_to_cancel(tmp_path: Path) -> None:
    reason = item(ReasonForCancellation="late", ContactDisplayName="Ann")
    async with watched(tmp_path) as (association, watcher):
        await create(association)
        await unified.change_state(association, UID, P, KEY)
        nobody = await unified.request_cancel(association, UID, reason)
        assert nobody.status == 0xC312
        await unified.subscribe(association, "WATCHER", UID)
        await watcher.states(1)
        asked = await unified.request_cancel(association, UID, reason, context=WATCH)
        assert asked.status == 0
        [(_, kind, told)] = await watcher.hear(1)
        assert kind == unified.CANCEL_REQUESTED
        assert (told.RequestingAE, told.ReasonForCancellation) == ("ME", "late")
        assert told.ContactDisplayName == "Ann"
        assert (await held(association)).ProcedureStepState == P  # its performer decides

        await set_(association, finished())
        await unified.change_state(association, UID, D, KEY)
        assert (await unified.request_cancel(association, UID)).status == 0xC311


async def test_what_nobody_has_begun_is_canceled_at_once(tmp_path: Path) -> None:
    async with watched(tmp_path) as (association, watcher):
        await create(association)
        await unified.subscribe(association, "WATCHER", UID)
        await unified.request_cancel(association, UID, item(ReasonForCancellation="late"))
        heard = await watcher.hear(3)
        assert [told.ProcedureStepState for _, _, told in heard] == [S, P, X]
        assert heard[2][2].ReasonForCancellation == "late"
        assert (await unified.request_cancel(association, UID)).status == 0xB304
        [progress] = (await held(association)).ProcedureStepProgressInformationSequence
        assert progress.ProcedureStepCancellationDateTime


async def test_an_instance_keeps_its_lock_under_a_subscription_to_all(tmp_path: Path) -> None:
    async with watched(tmp_path) as (association, _watcher):
        await create(association)
        await unified.subscribe(association, "WATCHER", UID, deletion_lock=True)
        await unified.subscribe(association, "WATCHER")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'index.db'}")
    with engine.connect() as connection:
        rows = connection.execute(sa.select(subscriptions.SUBSCRIPTION)).all()
    engine.dispose()
    assert {row.sop_instance_uid: row.locked for row in rows} == {UID: True, GLOBAL: False}


async def test_what_is_wrong_with_subscriptions(tmp_path: Path) -> None:
    async with watched(tmp_path) as (association, _watcher):
        await create(association)
        assert (await unified.subscribe(association, "STRANGER", UID)).status == 0xC308
        assert (await unified.subscribe(association, "WATCHER", "1.9")).status == 0xC307
        act = dcmhaul.n_action
        response = await act(association, PUSH, UID, 3, item(DeletionLock="TRUE"), context=WATCH)
        assert (response.status, response.attributes) == (0x0120, (0x00741234,))
        wrong = item(DeletionLock="MAYBE", ReceivingAE="WATCHER")
        response = await act(association, PUSH, UID, 3, wrong, context=WATCH)
        assert response.status == 0x0115
        response = await act(association, PUSH, UID, 5, item(ReceivingAE="WATCHER"), context=WATCH)
        assert response.status == 0xC314


async def test_subscriptions_survive_a_restart(tmp_path: Path) -> None:
    async with watched(tmp_path) as (association, _watcher):
        await unified.subscribe(association, "WATCHER")
    async with watched(tmp_path) as (association, watcher):
        await create(association)
        assert await watcher.states(1) == [(UID, S)]


async def test_events_wait_for_an_ae_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "RETRY_SECONDS", (0.01,) * 50)
    lines: list[str] = []
    watcher = Watcher()
    async with dcmhaul.serve(watcher.services, ae_title="WATCHER") as peer:
        pass
    async with serving(tmp_path, peer, lines=lines) as association:
        await unified.subscribe(association, "WATCHER")
        await create(association)
        await unified.change_state(association, UID, P, KEY)
        with trio.fail_after(5):
            while not lines:
                await trio.sleep(0.01)
        async with dcmhaul.serve(watcher.services, ae_title="WATCHER", port=peer.port):
            assert await watcher.states(2) == [(UID, S), (UID, P)]
    assert "events of procedure steps wait" in lines[0]


async def test_events_that_nobody_takes_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(subscriptions, "WAITING_MAX", 2)
    lines: list[str] = []
    async with dcmhaul.serve([], ae_title="WATCHER") as peer:
        pass
    async with serving(tmp_path, peer, lines=lines) as association:
        for number in range(3):
            await create(association, uid=f"1.2.{number}")
        await unified.subscribe(association, "WATCHER", deletion_lock=True)
        with trio.fail_after(5):
            while "dropped" not in "".join(lines[1:]):
                await trio.sleep(0.01)
    assert lines[0].startswith("WATCHER: more than 2 events wait")
    assert lines[-1] == "WATCHER took no event: 2 are dropped"


async def test_old_steps_are_forgotten_unless_they_are_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unified_changes, "KEPT_SECONDS", -10)
    async with watched(tmp_path) as (association, _watcher):
        for number in range(3):
            await create(association, uid=f"1.2.{number}")
        await unified.subscribe(association, "WATCHER", "1.2.1", deletion_lock=True)
        for number in range(2):
            await unified.request_cancel(association, f"1.2.{number}")
        await create(association, uid="1.2.3")
        gone = await dcmhaul.n_get(association, PUSH, "1.2.0", context=WATCH)
        assert gone.status == 0xC307
        assert (await held(association, "1.2.1")).ProcedureStepState == X
        assert (await held(association, "1.2.2")).ProcedureStepState == S
        await unified.unsubscribe(association, "WATCHER", "1.2.1")
        await create(association, uid="1.2.4")
        gone = await dcmhaul.n_get(association, PUSH, "1.2.1", context=WATCH)
        assert gone.status == 0xC307
