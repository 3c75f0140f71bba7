"""C-MOVE from the archive over real sockets: what arrives where, and every way in which it does not."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from dcmhaul import uids
from dcmhaul.archive import MoveDestination, MovePolicy, OutgoingMoves
from dcmhaul.archive import moves as moves_module
from dcmhaul.errors import ConfigurationError
from dcmhaul.net import AcceptorLimits, Association, Timeouts, serve_associations
from dcmhaul.objects.instances import IncomingInstance, MoveOriginator, StoreReply
from dcmhaul.protocol.dimse import CMoveRq, CMoveRsp, CStoreRq
from dcmhaul.protocol.negotiation import SupportedContext
from dcmhaul.services.move import move
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.query import QueryModel
from dcmhaul.services.storage import StorageScp
from dcmhaul.wire.part10 import encode_file_meta
from tests.archive.made import CT, encode, instance, real_files
from tests.archive.serving import AE_TITLE, Served, serving
from tests.archive.test_archive import contents
from tests.archive.test_query import query
from tests.interop.peers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from pydicom.dataset import Dataset

    from dcmhaul.net import DatasetSlices
    from dcmhaul.services.retrieve import RetrieveResponse

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
STUDY_MOVE = QueryModel.STUDY_ROOT.move_uid
MR = "1.2.840.10008.5.1.4.1.1.4"
HASTY = MovePolicy(patience_seconds=0.05, delay_seconds=0.005, delay_max_seconds=0.01)
"""Gives up soon, and waits for nothing long."""
PATIENT = MovePolicy(patience_seconds=30.0, delay_seconds=0.005, delay_max_seconds=0.01)


@dataclass(kw_only=True)
class Receiver:
    """A Storage SCP that remembers what came, and answers what `reply` says."""

    reply: Callable[[IncomingInstance], Awaitable[int]] | None = None
    serve: Callable[[Association], Awaitable[None]] | None = None
    arrived: list[IncomingInstance] = field(default_factory=list)
    data: dict[str, bytes] = field(default_factory=dict)
    begun: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    associations: int = 0
    open: int = 0
    most: int = 0
    broken: int = 0

    @property
    def instances(self) -> list[str]:
        return sorted(self.data)

    @asynccontextmanager
    async def listening(
        self, services: Iterable[StorageScp] = (), limits: AcceptorLimits | None = None
    ) -> AsyncIterator[int]:
        """Yields the port."""
        served = list(services) or [StorageScp(self._sink)]

        async def handle(association: Association) -> None:
            self.associations += 1
            self.open += 1
            self.most = max(self.most, self.open)
            try:
                if self.serve is not None:
                    await self.serve(association)
                else:
                    await serve_services(association, served)
            except BaseException:
                self.broken += 1
                raise
            finally:
                self.open -= 1
                self.ended.set()

        async with trio.open_nursery() as nursery:
            ((_, port),) = await nursery.start(
                partial(
                    serve_associations,
                    handle,
                    acceptor_policy(served, ae_title=None),
                    host="127.0.0.1",
                    limits=limits,
                )
            )
            yield port
            nursery.cancel_scope.cancel()

    def _sink(self, incoming: IncomingInstance) -> _Sink:
        self.begun.set()
        return _Sink(self, incoming)


class _Sink:
    def __init__(self, receiver: Receiver, incoming: IncomingInstance) -> None:
        self._receiver = receiver
        self._incoming = incoming
        self._parts: list[bytes] = []

    async def write(self, data: DatasetSlices) -> None:
        self._parts.append(data.copy_data())

    async def commit(self) -> StoreReply:
        receiver, incoming = self._receiver, self._incoming
        receiver.arrived.append(incoming)
        status = 0 if receiver.reply is None else await receiver.reply(incoming)
        if status >> 12 in (0x0, 0xB):
            receiver.data[incoming.sop_instance_uid] = b"".join(self._parts)
        return StoreReply(status=status)

    def discard(self) -> None:
        pass


def third(port: int, **fields: Any) -> MoveDestination:
    return MoveDestination(ae_title="THIRD", host="127.0.0.1", port=port, **fields)


def outgoing(
    *destinations: MoveDestination, policy: MovePolicy = HASTY, **fields: Any
) -> OutgoingMoves:
    return OutgoingMoves(destinations, ae_title=AE_TITLE, policy=policy, **fields)


def write(folder: Path, dataset: Dataset) -> Path:
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    head = encode_file_meta(dataset.SOPClassUID, dataset.SOPInstanceUID, EXPLICIT)
    path.write_bytes(head + encode(dataset))
    return path


def study(number: int, count: int) -> list[Dataset]:
    return [instance(number, 1, n) for n in range(1, count + 1)]


@asynccontextmanager
async def archive(
    tmp_path: Path, moves: OutgoingMoves, datasets: Iterable[Dataset], **options: Any
) -> AsyncIterator[Served]:
    """An archive that holds the datasets."""
    folder = tmp_path / "files"
    folder.mkdir()
    paths = [write(folder, dataset) for dataset in datasets]
    async with serving(tmp_path / "a", moves=moves, **options) as served:
        await served.archive.import_files(paths)
        yield served


async def moved(
    served: Served,
    *,
    destination: str = "THIRD",
    calling: str = "TESTER",
    uid: str | list[str] = "1.2.3.1",
    level: str = "STUDY",
    **options: Any,
) -> RetrieveResponse:
    async with served.associate([(STUDY_MOVE, EXPLICIT)], calling_ae_title=calling) as association:
        identifier = encode(query(level, StudyInstanceUID=uid))
        with trio.fail_after(30):
            return await move(
                association, QueryModel.STUDY_ROOT, identifier, destination, **options
            )


def counted(response: RetrieveResponse) -> tuple[int, int | None, int | None, int | None]:
    return response.status, response.completed, response.failed, response.warning


# -- what arrives -----------------------------------------------------------------------------------


async def test_a_study_arrives_and_every_association_is_released_before_the_last_word(
    tmp_path: Path,
) -> None:
    receiver = Receiver()
    datasets = study(1, 5)
    async with receiver.listening() as port:
        moves = outgoing(third(port))
        async with archive(tmp_path, moves, [*datasets, *study(2, 3)]) as served:
            response = await moved(served)
            assert receiver.open == 0
    assert counted(response) == (0x0000, 5, 0, 0)
    assert receiver.data == {d.SOPInstanceUID: encode(d) for d in datasets}
    assert (receiver.associations, receiver.broken) == (1, 0)
    assert {i.move_originator for i in receiver.arrived} == {MoveOriginator("TESTER", 1)}
    assert {(i.calling_ae_title, i.called_ae_title) for i in receiver.arrived} == {
        (AE_TITLE, "THIRD")
    }
    statistics = moves.statistics
    assert (statistics.moves, statistics.sent, statistics.failed) == (1, 5, 0)


@pytest.mark.parametrize("window", [1, 8])
async def test_the_real_files_are_moved_byte_by_byte(tmp_path: Path, window: int) -> None:
    """Every class and syntax that pydicom ships, large objects and small ones."""
    receiver = Receiver()
    async with (
        receiver.listening() as port,
        serving(tmp_path / "a", moves=outgoing(third(port, window=window))) as served,
    ):
        await served.archive.import_files(real_files())
        studies, _ = await served.find("STUDY", StudyInstanceUID="")
        wanted = [found.StudyInstanceUID for found in studies]
        held = await contents(served.archive, StudyInstanceUID=wanted)
        response = await moved(served, uid=wanted)
    assert counted(response) == (0x0000, len(held), 0, 0)
    assert receiver.data == {uid: data for uid, (_, data) in held.items()}


async def test_more_classes_than_an_association_has_contexts(tmp_path: Path) -> None:
    receiver = Receiver()
    classes = list(uids.STORAGE_SOP_CLASSES)[:130]
    datasets = [instance(1, 1, n, SOPClassUID=uid) for n, uid in enumerate(classes, 1)]
    async with (
        receiver.listening() as port,
        archive(tmp_path, outgoing(third(port)), datasets) as served,
    ):
        response = await moved(served)
    assert counted(response) == (0x0000, 130, 0, 0)
    assert len(receiver.data) == 130
    assert (receiver.associations, receiver.most) == (2, 1)


async def test_an_archive_can_move_to_itself(tmp_path: Path) -> None:
    port = free_port()
    itself = MoveDestination(ae_title=AE_TITLE, host="127.0.0.1", port=port)
    async with archive(tmp_path, outgoing(itself), study(1, 3), port=port) as served:
        response = await moved(served, destination=AE_TITLE)
        assert served.archive.statistics().duplicates == 3
    assert counted(response) == (0x0000, 3, 0, 0)


async def test_several_associations_share_a_move_where_the_owner_said_so(tmp_path: Path) -> None:
    together = trio.Event()

    async def reply(_incoming: IncomingInstance) -> int:
        if receiver.open == 3:
            together.set()
        await together.wait()
        return 0

    receiver = Receiver(reply=reply)
    async with receiver.listening() as port:
        destination = third(port, associations_max=3, associations_a_move=3)
        async with archive(tmp_path, outgoing(destination), study(1, 9)) as served:
            response = await moved(served)
    assert counted(response) == (0x0000, 9, 0, 0)
    assert receiver.most == 3
    assert Counter(i.sop_instance_uid for i in receiver.arrived).most_common(1)[0][1] == 1


async def test_parallel_moves_share_the_associations_and_keep_their_originators(
    tmp_path: Path,
) -> None:
    receiver = Receiver()
    titles = {f"ASKS{n}": f"1.2.3.{n}" for n in range(1, 7)}
    responses: list[RetrieveResponse] = []
    async with receiver.listening() as port:
        moves = outgoing(third(port, associations_max=2))
        datasets = [dataset for n in range(1, 7) for dataset in study(n, 5)]
        async with archive(tmp_path, moves, datasets) as served:

            async def ask(title: str, uid: str) -> None:
                responses.append(await moved(served, calling=title, uid=uid))

            async with trio.open_nursery() as nursery:
                for title, uid in titles.items():
                    nursery.start_soon(ask, title, uid)
    assert [counted(r) for r in responses] == [(0x0000, 5, 0, 0)] * 6
    assert receiver.most <= 2
    assert len(receiver.data) == 30
    for incoming in receiver.arrived:
        assert incoming.move_originator is not None
        asked = titles[incoming.move_originator.ae_title]
        assert incoming.sop_instance_uid.startswith(f"{asked}.")
    assert moves.statistics.moves == 6


async def test_a_small_move_does_not_wait_for_the_end_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmhaul.engine.sharing.SLICE_SECONDS", 0.0)
    held_up: list[int] = []

    async def reply(incoming: IncomingInstance) -> int:
        if len(receiver.arrived) == 3:
            large_begun.set()
            await small_asked.wait()
        if incoming.sop_instance_uid == "1.2.3.1.1.200":
            held_up.append(len(small_answers))
        return 0

    receiver = Receiver(reply=reply)
    large_begun, small_asked = trio.Event(), trio.Event()
    small_answers: list[RetrieveResponse] = []
    async with receiver.listening() as port:
        moves = outgoing(third(port, associations_max=1))
        async with archive(tmp_path, moves, [*study(1, 200), *study(2, 2)]) as served:

            async def ask_small() -> None:
                await large_begun.wait()
                small_answers.append(
                    await moved(served, uid="1.2.3.2", on_pending=lambda _: small_asked.set())
                )

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_small)
                large = await moved(served)
    assert counted(large) == (0x0000, 200, 0, 0)
    assert counted(small_answers[0]) == (0x0000, 2, 0, 0)
    assert held_up == [1]  # when the last of the large one came
    assert receiver.most == 1


# -- what does not ----------------------------------------------------------------------------------


async def test_an_ae_that_no_table_knows(tmp_path: Path) -> None:
    async with archive(tmp_path, outgoing(third(1)), study(1, 1)) as served:
        response = await moved(served, destination="STRANGER")
    assert response.status == 0xA801
    assert response.error_comment == "no move destination STRANGER is configured"
    async with serving(tmp_path / "none") as served:
        assert (await moved(served)).status == 0xA801


async def test_nothing_listens_at_the_destination(tmp_path: Path) -> None:
    lines: list[str] = []
    moves = outgoing(third(free_port()), report=lines.append)
    async with archive(tmp_path, moves, study(1, 3)) as served:
        response = await moved(served)
    assert counted(response) == (0xA702, 0, 3, 0)
    assert sorted(response.failed_sop_instance_uids) == [
        "1.2.3.1.1.1",
        "1.2.3.1.1.2",
        "1.2.3.1.1.3",
    ]
    assert response.error_comment == "THIRD cannot be reached, or broke off"
    assert moves.statistics.failed == 3
    [line] = lines
    assert "3 of 3 instances failed: 127.0.0.1" in line
    assert "Connection refused" in line


async def test_a_destination_that_comes_up_in_time(tmp_path: Path) -> None:
    port = free_port()
    receiver = Receiver()
    asked = trio.Event()
    async with archive(tmp_path, outgoing(third(port), policy=PATIENT), study(1, 2)) as served:

        async def come_up(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await asked.wait()
            policy = acceptor_policy([StorageScp(receiver._sink)], ae_title=None)

            async def handle(association: Association) -> None:
                await serve_services(association, [StorageScp(receiver._sink)])

            await serve_associations(handle, policy, host="127.0.0.1", port=port)

        async with trio.open_nursery() as nursery:
            await nursery.start(come_up)
            response = await moved(served, on_pending=lambda _: asked.set())
            nursery.cancel_scope.cancel()
    assert counted(response) == (0x0000, 2, 0, 0)


async def test_a_destination_that_rejects_us(tmp_path: Path) -> None:
    receiver = Receiver()
    services = [StorageScp(None)]

    async def refuse(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
        await serve_associations(
            partial(serve_services, services=services),
            acceptor_policy(services, ae_title="SOMEBODY"),
            host="127.0.0.1",
            task_status=task_status,
        )

    async with trio.open_nursery() as nursery:
        ((_, port),) = await nursery.start(refuse)
        moves = outgoing(third(port), policy=PATIENT)
        async with archive(tmp_path, moves, study(1, 2)) as served:
            response = await moved(served)
        nursery.cancel_scope.cancel()
    assert counted(response) == (0xA702, 0, 2, 0)
    assert response.error_comment == "THIRD rejected the association (1/1/7)"
    assert not receiver.arrived


@pytest.mark.parametrize("kind", ["mute", "closing"])
async def test_a_destination_that_is_no_dicom_port(tmp_path: Path, kind: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        if kind == "mute":
            await trio.sleep_forever()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        moves = outgoing(third(port), timeouts=Timeouts(association=0.03))
        async with archive(tmp_path, moves, study(1, 2)) as served:
            response = await moved(served)
        nursery.cancel_scope.cancel()
    assert counted(response) == (0xA702, 0, 2, 0)
    expected = {
        "mute": "THIRD: association time-out after 0.03 s",
        "closing": "THIRD cannot be reached, or broke off",
    }
    assert response.error_comment == expected[kind]


class OnlyCt(StorageScp):
    """Takes CT images and nothing else."""

    def contexts(self) -> dict[str, SupportedContext]:
        return {CT: SupportedContext()}


@pytest.mark.parametrize(("cts", "status"), [(2, 0xB000), (0, 0xA702)])
async def test_classes_that_the_destination_does_not_take(
    tmp_path: Path, cts: int, status: int
) -> None:
    receiver = Receiver()
    others = [instance(1, 2, n, SOPClassUID=MR) for n in (1, 2, 3)]
    async with receiver.listening([OnlyCt(receiver._sink)]) as port:
        moves = outgoing(third(port))
        async with archive(tmp_path, moves, [*study(1, cts), *others]) as served:
            response = await moved(served)
    assert counted(response) == (status, cts, 3, 0)
    assert sorted(response.failed_sop_instance_uids) == [d.SOPInstanceUID for d in others]
    assert response.error_comment == "THIRD accepts no context for some of them"
    assert len(receiver.instances) == cts
    assert receiver.broken == 0


async def test_instances_that_the_archive_cannot_read_any_more(tmp_path: Path) -> None:
    receiver = Receiver()
    async with (
        receiver.listening() as port,
        archive(tmp_path, outgoing(third(port)), study(1, 3)) as served,
    ):
        gone, cut, _ = sorted((tmp_path / "a" / "objects").rglob("*.dcm"))
        gone.unlink()
        cut.write_bytes(b"")
        response = await moved(served)
    assert counted(response) == (0xB000, 1, 2, 0)
    assert response.error_comment == "an object file cannot be read"
    assert set(response.failed_sop_instance_uids).isdisjoint(receiver.data)


# -- what is tried again ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "outcome", "tries"),
    [
        ([0xA700, 0xA7FF, 0x0000], (0x0000, 2, 0, 0), 4),
        ([0xA700] * 3, (0xB000, 1, 1, 0), 4),
        ([0xC000], (0xB000, 1, 1, 0), 2),
        ([0xA900], (0xB000, 1, 1, 0), 2),
        ([0x0122], (0xB000, 1, 1, 0), 2),
        ([0xB000], (0xB000, 1, 0, 1), 2),
    ],
)
async def test_what_a_status_of_the_destination_means(
    tmp_path: Path, statuses: list[int], outcome: tuple[int, ...], tries: int
) -> None:
    answers = iter(statuses)

    async def reply(incoming: IncomingInstance) -> int:
        await trio.lowlevel.checkpoint()
        return next(answers) if incoming.sop_instance_uid == "1.2.3.1.1.1" else 0

    receiver = Receiver(reply=reply)
    async with receiver.listening() as port:
        moves = outgoing(third(port), policy=PATIENT)
        async with archive(tmp_path, moves, study(1, 2)) as served:
            response = await moved(served)
    assert counted(response) == outcome
    assert len(receiver.arrived) == tries
    assert moves.statistics.retries == tries - 2
    failed = ("1.2.3.1.1.1",) if outcome[2] else ()
    assert response.failed_sop_instance_uids == failed
    assert bool(response.error_comment) is bool(failed)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("window", [1, 4])
async def test_a_destination_that_aborts_on_the_way(
    tmp_path: Path, always: bool, window: int
) -> None:
    aborts = 0

    async def reply(incoming: IncomingInstance) -> int:
        nonlocal aborts
        if incoming.sop_instance_uid == "1.2.3.1.1.3" and (always or not aborts):
            aborts += 1
            raise ConnectionAbortedError
        await trio.lowlevel.checkpoint()
        return 0

    receiver = Receiver(reply=reply)

    async def serve(association: Association) -> None:
        try:
            await serve_services(association, [StorageScp(receiver._sink)])
        except* ConnectionAbortedError:
            receiver.broken += 1
            await association.abort()

    receiver.serve = serve
    async with receiver.listening() as port:
        moves = outgoing(third(port, window=window), policy=PATIENT)
        async with archive(tmp_path, moves, study(1, 5)) as served:
            response = await moved(served)
    failed = int(always)
    assert response.failed == failed
    assert response.completed == 5 - failed
    assert response.status == (0xB000 if always else 0x0000)
    assert aborts == (3 if always else 1)
    assert len(receiver.data) == 5 - failed


def mute(receiver: Receiver) -> None:
    """Lets it read everything, and answer nothing."""

    async def serve(association: Association) -> None:
        while (incoming := await association.receive()) is not None:
            await association.read_dataset(None)
            assert isinstance(incoming.message, CStoreRq)
            receiver.begun.set()

    receiver.serve = serve


async def test_a_destination_that_never_answers(tmp_path: Path) -> None:
    receiver = Receiver()
    mute(receiver)
    async with receiver.listening() as port:
        moves = outgoing(third(port), timeouts=Timeouts(dimse=0.02))
        async with archive(tmp_path, moves, study(1, 2)) as served:
            response = await moved(served)
    assert counted(response) == (0xA702, 0, 2, 0)
    assert response.error_comment == "THIRD: C-STORE response time-out after 0.02 s"
    assert receiver.broken == receiver.associations >= 3


async def test_a_destination_that_bears_fewer_associations_than_we_thought(
    tmp_path: Path,
) -> None:
    both = trio.Event()

    async def reply(_incoming: IncomingInstance) -> int:
        # Nothing goes on before somebody was turned away.
        await both.wait()
        return 0

    receiver = Receiver(reply=reply)
    limits = AcceptorLimits(associations=1, congested=lambda _rq: both.set() or False)

    async with receiver.listening(limits=limits) as port:
        destination = third(port, associations_max=3, associations_a_move=3)
        moves = outgoing(destination, policy=PATIENT)
        async with archive(tmp_path, moves, study(1, 6)) as served:
            response = await moved(served)
    assert counted(response) == (0x0000, 6, 0, 0)
    assert receiver.most == 1
    assert len(receiver.arrived) == 6


# -- what is stopped --------------------------------------------------------------------------------


async def test_a_cancel_lets_the_instance_end_that_was_begun(tmp_path: Path) -> None:
    cancel = trio.Event()

    async def reply(_incoming: IncomingInstance) -> int:
        if len(receiver.arrived) == 2:
            cancel.set()
            await stopped.wait()
        return 0

    receiver = Receiver(reply=reply)
    async with receiver.listening() as port:
        moves = outgoing(third(port))
        stopped = trio.Event()
        close = moves_module._Outgoing._open_no_more
        with pytest.MonkeyPatch.context() as patch:

            def closing(self: Any) -> None:
                stopped.set()
                close(self)

            patch.setattr(moves_module._Outgoing, "_open_no_more", closing)
            async with archive(tmp_path, moves, study(1, 50)) as served:
                response = await moved(served, cancel=cancel)
    assert counted(response) == (0xFE00, 2, 0, 0)
    assert response.remaining == 48
    assert (receiver.open, receiver.broken) == (0, 0)
    assert len(receiver.data) == 2


async def test_two_moves_on_one_association_are_performed_one_after_the_other(
    tmp_path: Path,
) -> None:
    receiver = Receiver()
    async with receiver.listening() as port:
        moves = outgoing(third(port))
        async with (
            archive(tmp_path, moves, [*study(1, 3), *study(2, 4)]) as served,
            served.associate([(STUDY_MOVE, EXPLICIT)], window=2) as association,
        ):
            for number in (1, 2):
                rq = CMoveRq(
                    message_id=number, affected_sop_class_uid=STUDY_MOVE, move_destination="THIRD"
                )
                identifier = encode(query("STUDY", StudyInstanceUID=f"1.2.3.{number}"))
                association.queue(1, rq, identifier)
            await association.flush()
            ended: list[CMoveRsp] = []
            while len(ended) < 2:
                incoming = await association.receive()
                assert incoming is not None
                response = incoming.message
                assert isinstance(response, CMoveRsp)
                if response.status != 0xFF00:
                    ended.append(response)
    told = [(r.message_id_being_responded_to, r.status) for r in ended]
    assert told == [(1, 0x0000), (2, 0x0000)]
    assert [r.number_of_completed_suboperations for r in ended] == [3, 4]
    assert [i.move_originator and i.move_originator.message_id for i in receiver.arrived] == [
        *[1] * 3,
        *[2] * 4,
    ]


@pytest.mark.parametrize("window", [1, 4])
async def test_a_cancel_at_each_instance_of_a_study(tmp_path: Path, window: int) -> None:
    """Whenever it comes, what is counted as completed is what was stored, and the rest remains."""
    cancel = trio.Event()
    at = 0

    async def reply(_incoming: IncomingInstance) -> int:
        if len(receiver.arrived) == at:
            cancel.set()
            await trio.testing.wait_all_tasks_blocked(0.002)
        return 0

    receiver = Receiver(reply=reply)
    async with receiver.listening() as port:
        moves = outgoing(third(port, window=window))
        async with archive(tmp_path, moves, study(1, 8)) as served:
            for at in range(1, 10):
                cancel = trio.Event()
                receiver.arrived.clear()
                receiver.data.clear()
                response = await moved(served, cancel=cancel)
                done = len(receiver.data)
                assert counted(response) == (response.status, done, 0, 0)
                assert len(receiver.arrived) == done >= min(at, 8)
                left = response.remaining if response.status == 0xFE00 else 0
                assert (left, receiver.open, receiver.broken) == (8 - done, 0, 0)
            assert response.status == 0x0000


@pytest.mark.parametrize("listens", [True, False])
async def test_a_cancel_while_nothing_is_under_way(tmp_path: Path, listens: bool) -> None:
    """The destination has no room, or cannot be reached: there is nothing to wait for."""
    cancel = trio.Event()
    turned_away = trio.Event()
    limits = AcceptorLimits(associations=1, congested=lambda _rq: turned_away.set() or True)
    receiver = Receiver()
    async with receiver.listening(limits=limits) as port:
        destination = third(port if listens else free_port())
        moves = outgoing(destination, policy=MovePolicy(patience_seconds=60, delay_seconds=60))
        async with archive(tmp_path, moves, study(1, 4)) as served, trio.open_nursery() as nursery:

            async def cancel_it() -> None:
                if listens:
                    await turned_away.wait()
                cancel.set()

            nursery.start_soon(cancel_it)
            response = await moved(served, cancel=cancel)
    assert counted(response) == (0xFE00, 0, 0, 0)
    assert response.remaining == 4


async def test_a_move_stops_when_its_requestor_is_lost(tmp_path: Path) -> None:
    receiver = Receiver()
    mute(receiver)
    async with receiver.listening() as port:
        moves = outgoing(third(port))
        async with archive(tmp_path, moves, study(1, 20)) as served:
            async with served.associate([(STUDY_MOVE, EXPLICIT)]) as association:
                rq = CMoveRq(
                    message_id=1, affected_sop_class_uid=STUDY_MOVE, move_destination="THIRD"
                )
                identifier = encode(query("STUDY", StudyInstanceUID="1.2.3.1"))
                await association.send(1, rq, identifier)
                await receiver.begun.wait()
                # Returns when the archive has closed, and that it does when nothing goes on any more.
                await association.abort()
            with trio.fail_after(10):
                await receiver.ended.wait()
            assert (receiver.open, receiver.broken) == (0, 1)
            assert moves.statistics.sent == 0
            receiver.serve = None
            response = await moved(served)
    assert counted(response) == (0x0000, 20, 0, 0)
    assert len(receiver.data) == 20


def test_two_destinations_cannot_have_one_title() -> None:
    outgoing(third(104), third(104))
    with pytest.raises(ConfigurationError, match="two move destinations have the AE title THIRD"):
        outgoing(third(104), third(105))


@pytest.mark.parametrize(
    ("data", "status"), [(b"\x08\x00\x52\x00CS\xff\xff", 0xC000), (b"", 0xA900)]
)
async def test_identifiers_that_are_none(tmp_path: Path, data: bytes, status: int) -> None:
    async with (
        serving(tmp_path / "a", moves=outgoing(third(1)), strict=True) as served,
        served.associate([(STUDY_MOVE, EXPLICIT)]) as association,
    ):
        response = await move(association, QueryModel.STUDY_ROOT, data, "THIRD")
    assert response.status == status
