"""The archive as SCP of Storage Commitment: what it checks, whom it tells, and when."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import pytest
import trio
from pydicom import Dataset

import dcmhaul
from dcmhaul import uids
from dcmhaul.archive import MoveDestination, OutgoingMoves, commitments
from dcmhaul.net import SocketOptions, Timeouts
from dcmhaul.objects.paths import Durability
from dcmhaul.services.commitment import INSTANCE_UID, Commitments, request_commitment
from dcmhaul.services.normalized import (
    NormalizedAnswer,
    NormalizedScp,
    SopClass,
    n_action,
    n_event_report,
)
from dcmhaul.services.provider import serve_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dcmhaul.services.commitment import Reference
    from dcmhaul.services.normalized import NormalizedRequest

COMMITMENT = uids.STORAGE_COMMITMENT_PUSH
IMAGES = [
    Path(pydicom.data.__file__).parent / "test_files" / name
    for name in ("CT_small.dcm", "MR_small.dcm")
]


def reference(path: Path) -> Reference:
    found = pydicom.dcmread(path)
    return str(found.SOPClassUID), str(found.SOPInstanceUID)


HELD = [reference(path) for path in IMAGES]


@asynccontextmanager
async def serving(
    folder: Path, *known: dcmhaul.Peer, durability: Durability = Durability.BATCH
) -> AsyncIterator[tuple[dcmhaul.Archive, dcmhaul.Peer]]:
    destinations = [
        MoveDestination(
            ae_title=str(peer.ae_title), host=peer.host, port=peer.port, options=SocketOptions()
        )
        for peer in known
    ]
    moves = OutgoingMoves(destinations, ae_title="ARCHIVE", timeouts=Timeouts(dimse=5.0))
    async with dcmhaul.open_archive(
        folder, ae_title="ARCHIVE", moves=moves, durability=durability
    ) as archive:
        await archive.import_files(IMAGES)
        async with dcmhaul.serve(archive.services(), ae_title="ARCHIVE") as peer:
            yield archive, peer


async def asked(
    peer: dcmhaul.Peer, references: list[Reference], title: str = "ME"
) -> dict[str, int]:
    """The outcomes, which come on the association of the request."""
    mine = Commitments()
    services = [NormalizedScp([mine.sop_class])]
    transaction = mine.begin(references)
    async with dcmhaul.open_association(peer, [COMMITMENT], calling_ae_title=title) as association:
        assert (await request_commitment(association, transaction, services)).status == 0
        with trio.fail_after(10):
            await serve_until(association, services, transaction.done)
    return transaction.outcomes


@pytest.mark.parametrize("durability", [Durability.BATCH, Durability.NONE])
async def test_what_is_held_is_committed(tmp_path: Path, durability: Durability) -> None:
    async with serving(tmp_path, durability=durability) as (_, peer):
        assert await asked(peer, HELD) == {uid: 0 for _, uid in HELD}


async def test_each_failure_has_its_reason(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, peer):
        for path in tmp_path.rglob("*.dcm"):
            if path.read_bytes().endswith(IMAGES[1].read_bytes()[-1000:]):
                with path.open("r+b") as file:
                    file.seek(-5, 2)
                    file.write(b"rot")
        (sop_class, uid), (_, rotten) = HELD
        outcomes = await asked(peer, [(sop_class, "1.2.3"), *HELD, (HELD[1][0], uid)])
    # The instance is named twice, once with a class that is not its own: the worse statement counts.
    assert outcomes == {"1.2.3": 0x0112, uid: 0x0119, rotten: 0x0110}


async def test_a_file_that_is_gone_or_longer_is_not_committed(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, peer):
        first, second = tmp_path.rglob("*.dcm")
        first.unlink()
        with second.open("ab") as file:
            file.write(b"\0\0")
        assert set((await asked(peer, HELD)).values()) == {0x0110}


async def test_many_requests_on_one_association(tmp_path: Path) -> None:
    """The next one is read while a result is told."""
    mine = Commitments()
    services = [NormalizedScp([mine.sop_class])]
    transactions = [mine.begin(HELD) for _ in range(5)]
    async with (
        serving(tmp_path) as (_, peer),
        dcmhaul.open_association(peer, [COMMITMENT]) as association,
    ):
        for transaction in transactions:
            assert (await request_commitment(association, transaction, services)).status == 0
        for transaction in transactions:
            with trio.fail_after(10):
                await serve_until(association, services, transaction.done)
    assert all(not transaction.open for transaction in transactions)


def information(uid: str, references: list[Reference]) -> Dataset:
    made = Dataset()
    made.TransactionUID = uid
    made.ReferencedSOPSequence = []
    for sop_class, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = instance
        made.ReferencedSOPSequence.append(item)
    return made


def changed(**values: Any) -> Dataset:
    made = information("1.2.3", HELD)
    for name, value in values.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("kind", "dataset", "status"),
    [
        (2, changed(), 0x0123),
        (1, None, 0x0120),
        (1, changed(TransactionUID=None), 0x0120),
        (1, changed(ReferencedSOPSequence=None), 0x0120),
        (1, changed(ReferencedSOPSequence=[]), 0x0121),
        (1, changed(ReferencedSOPSequence=[Dataset()]), 0x0106),
    ],
)
async def test_a_request_that_is_none(
    kind: int, dataset: Dataset | None, status: int, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path) as (_, peer),
        dcmhaul.open_association(peer, [COMMITMENT]) as association,
    ):
        response = await n_action(association, COMMITMENT, INSTANCE_UID, kind, dataset)
        assert response.status == status
        unknown = await n_action(association, COMMITMENT, "1.2.3", 1, changed())
        assert unknown.status == 0x0112


async def test_a_transaction_uid_that_is_used_again(tmp_path: Path) -> None:
    told: list[tuple[int | None, Dataset | None]] = []
    enough = trio.Event()

    async def reported(request: NormalizedRequest) -> NormalizedAnswer:
        told.append((request.type_id, request.dataset))
        enough.set()
        return NormalizedAnswer()

    events = SopClass(uid=COMMITMENT, operations={"N-EVENT-REPORT": reported})
    services = [NormalizedScp([events])]
    async with (
        serving(tmp_path) as (_, peer),
        dcmhaul.open_association(peer, [COMMITMENT]) as association,
    ):
        for references in (HELD, HELD[:1]):
            enough = trio.Event()
            sent = information("1.2.3", references)
            await n_action(association, COMMITMENT, INSTANCE_UID, 1, sent, services=services)
            await serve_until(association, services, enough)
    (first, _), (second, dataset) = told
    assert (first, second) == (1, 2)
    assert dataset is not None
    assert [item.FailureReason for item in dataset.FailedSOPSequence] == [0x0131]
    assert "ReferencedSOPSequence" not in dataset


# -- on associations of our own


class Known:
    """A node that takes results, or refuses the first few."""

    def __init__(self, refused: int = 0) -> None:
        self.commitments = Commitments()
        self.refused = refused
        self.roles: list[tuple[bool, bool]] = []

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[dcmhaul.Peer]:
        own = self.commitments.sop_class
        perform = own.operations["N-EVENT-REPORT"]

        async def reported(request: NormalizedRequest) -> NormalizedAnswer:
            self.roles.append(request.association.agreement.roles_for(COMMITMENT))
            if self.refused:
                self.refused -= 1
                return NormalizedAnswer(status=0x0213)
            return await perform(request)

        offered = SopClass(uid=COMMITMENT, operations={"N-EVENT-REPORT": reported}, from_scp=True)
        async with dcmhaul.serve([NormalizedScp([offered])], ae_title="ME", port=port) as peer:
            yield peer


async def requested(peer: dcmhaul.Peer, mine: Commitments) -> Any:
    transaction = mine.begin(HELD)
    async with dcmhaul.open_association(peer, [COMMITMENT], calling_ae_title="ME") as association:
        assert (await request_commitment(association, transaction)).status == 0
    return transaction


async def test_a_known_node_is_told_on_an_association_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitments, "RETRY_SECONDS", (0.01,))
    known = Known(refused=2)
    async with known.serving() as me, serving(tmp_path, me) as (_, peer):
        transaction = await requested(peer, known.commitments)
        with trio.fail_after(10):
            await transaction.done.wait()
    assert transaction.outcomes == {uid: 0 for _, uid in HELD}
    assert known.roles == [(False, True)] * 3


async def test_a_result_that_could_not_be_told_survives_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known()
    async with known.serving() as me:
        pass
    async with serving(tmp_path, me) as (_, peer):
        transaction = await requested(peer, known.commitments)
    assert not transaction.done.is_set()
    async with known.serving(me.port), serving(tmp_path, me):
        with trio.fail_after(10):
            await transaction.done.wait()
    assert not transaction.open
    # Told once, and not at the next start again.
    async with known.serving(me.port), serving(tmp_path, me):
        await trio.sleep(0.1)
    assert len(known.roles) == 1


async def test_a_requestor_that_leaves_and_is_unknown_can_be_told_later(tmp_path: Path) -> None:
    known = Known()
    async with serving(tmp_path) as (_, peer):
        transaction = await requested(peer, known.commitments)
    async with known.serving() as me, serving(tmp_path, me):
        with trio.fail_after(10):
            await transaction.done.wait()


async def test_what_nobody_takes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitments, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(commitments, "KEPT_SECONDS", -1)
    known = Known(refused=1)
    async with known.serving() as me, serving(tmp_path, me) as (_, peer):
        await requested(peer, known.commitments)
        with trio.fail_after(10):
            while known.refused:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
    assert len(known.roles) == 1


async def test_too_many_open_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commitments, "OPEN_MAX", 0)
    async with (
        serving(tmp_path) as (_, peer),
        dcmhaul.open_association(peer, [COMMITMENT]) as association,
    ):
        response = await request_commitment(association, Commitments().begin(HELD))
    assert response.status == 0x0213


# -- the SCU's side


async def event(mine: Commitments, kind: int, dataset: Dataset | None) -> int:
    """The status that an event gets."""
    async with (
        dcmhaul.serve([NormalizedScp([mine.sop_class])]) as peer,
        dcmhaul.open_association(peer, receive=[COMMITMENT], propose=()) as association,
    ):
        response = await n_event_report(association, COMMITMENT, INSTANCE_UID, kind, dataset)
    return response.status


async def test_events_that_are_none_of_ours() -> None:
    mine = Commitments()
    transaction = mine.begin(HELD)
    assert await event(mine, 3, information(transaction.uid, HELD)) == 0x0113
    assert await event(mine, 1, information("1.2.3", HELD)) == 0x0115
    assert await event(mine, 1, None) == 0x0120
    assert not transaction.done.is_set()
    # Instances that were not asked for change nothing; what is left out is not committed.
    told = information(transaction.uid, [HELD[0], ("1.2.3", "1.2.4")])
    assert await event(mine, 1, told) == 0
    assert transaction.outcomes == {HELD[0][1]: 0}
    assert transaction.open == [HELD[1][1]]
    # A second event of the same transaction is answered and changes nothing.
    assert await event(mine, 1, information(transaction.uid, HELD)) == 0
    assert transaction.open == [HELD[1][1]]


async def test_a_failure_without_a_reason_is_a_failure() -> None:
    mine = Commitments()
    transaction = mine.begin(HELD)
    told = information(transaction.uid, HELD[:1])
    told.FailedSOPSequence = information("1.2", HELD).ReferencedSOPSequence
    assert await event(mine, 2, told) == 0
    assert transaction.outcomes == {uid: 0x0110 for _, uid in HELD}
