"""An acceptor under attack: real sockets, one assertion function for every row of the catalogue.

The acceptor stores as `receive -od` does, or as `archive`. It, a healthy association beside the hostile
one, and the attacker run in one process, so that an exception anywhere in the acceptor fails the test. No
row waits for a clock but those about ARTIM, which run on trio's.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import trio
from trio.testing import MockClock

from dcmhaul.archive import open_archive
from dcmhaul.net import AcceptorLimits, NullObserver, Timeouts, open_association, serve_associations
from dcmhaul.objects.instances import BytesInMemory, IncomingInstance
from dcmhaul.objects.paths import Durability
from dcmhaul.objects.sinks import FolderSinks
from dcmhaul.protocol.events import Role
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.provider import Service, acceptor_policy, serve_services
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp, echo
from dcmhaul.wire.items import PresentationContextRq
from tests.hostile import octets
from tests.reference import codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from dcmhaul.net import Association, AssociationStats
    from dcmhaul.objects.instances import SinkFactory

Kind = Literal["receive", "archive"]
Accepting: TypeAlias = "Callable[..., AbstractAsyncContextManager[Target]]"

# How long a peer that is to be answered at once may be kept waiting before the test gives up.
PATIENCE_SECONDS = 20.0
RSS_MARGIN = 8 * 1024 * 1024


class Recorder(NullObserver):
    """Keeps what the acceptor counts."""

    def __init__(self) -> None:
        self.aborted: list[tuple[str, int, int]] = []
        self.rejected: list[tuple[int, int, int]] = []
        self.operations: list[tuple[str, int, int]] = []
        self.odd_fragments = 0
        self.oversized_pdus = 0

    def association_closed(
        self, role: Role, stats: AssociationStats, live: Callable[[], AssociationStats]
    ) -> None:
        self.odd_fragments += stats.odd_fragments_in
        self.oversized_pdus += stats.oversized_pdus_in

    def association_rejected(self, role: Role, result: int, source: int, reason: int) -> None:
        assert role is Role.ACCEPTOR
        self.rejected.append((result, source, reason))

    def association_aborted(self, role: Role, origin: str, source: int, reason: int) -> None:
        assert role is Role.ACCEPTOR
        self.aborted.append((origin, source, reason))

    def operation(
        self, operation: str, direction: str, status: int, seconds: float, dataset_bytes: int
    ) -> None:
        self.operations.append((operation, status, dataset_bytes))


@dataclass(frozen=True)
class Resources:
    """What the process holds."""

    rss: int
    descriptors: int
    tasks: int

    @classmethod
    def now(cls) -> Resources:
        with open("/proc/self/statm", encoding="ascii") as statm:
            resident = int(statm.read().split()[1])
        return cls(
            rss=resident * os.sysconf("SC_PAGE_SIZE"),
            descriptors=len(os.listdir("/proc/self/fd")),
            tasks=trio.lowlevel.current_statistics().tasks_living,
        )


class Peer:
    """The attacker's end of a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_pdu(self) -> tuple[int, bytes]:
        with trio.fail_after(PATIENCE_SECONDS):
            header = await self.exactly(6)
            return header[0], await self.exactly(int.from_bytes(header[2:], "big"))

    async def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await self.stream.receive_some(count - len(data))
            assert part, f"the stream ended after {data.hex(' ')}"
            data += part
        return data

    async def associate(self, request: bytes | None = None) -> dict[str, Any]:
        await self.send(octets.associate_rq() if request is None else request)
        pdu_type, body = await self.read_pdu()
        fields = codec.decode_pdu(pdu_type, body)
        assert fields["pdu"] == "A-ASSOCIATE-AC", fields
        return fields

    async def response(self) -> dict[str, Any]:
        """The next command set, which must fill a P-DATA-TF of its own."""
        pdu_type, body = await self.read_pdu()
        fields = codec.decode_pdu(pdu_type, body)
        assert fields["pdu"] == "P-DATA-TF", fields
        [value] = fields["pdvs"]
        assert (value["is_command"], value["is_last"]) == (True, True)
        return codec.decode_command(value["fragment"])

    async def store(self, command: bytes, *pdus: bytes, context_id: int = 1) -> int:
        await self.send(octets.command_pdu(context_id, command) + b"".join(pdus))
        status: int = (await self.response())["Status"]
        return status

    async def read_to_end(self, seconds: float = PATIENCE_SECONDS) -> bytes:
        """Everything until the end of the stream. A reset is an error: it may eat our last PDU."""
        data = b""
        with trio.fail_after(seconds):
            async for part in self.stream:
                data += part
        return data

    async def flood(self, chunk: bytes, times: int) -> bytes:
        """Sends `chunk` until that is done or the acceptor answers; what it answered until the end."""
        answer = b""

        async def send() -> None:
            try:
                for _ in range(times):
                    await self.send(chunk)
            except trio.BrokenResourceError:
                pass  # it has closed

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                answer = await self.read_to_end()
                nursery.cancel_scope.cancel()
        return answer


@dataclass
class Target:
    """The acceptor, with a healthy association open on it."""

    port: int
    root: Path
    kind: Kind
    healthy: Association
    observer: Recorder
    before: Resources
    stored: dict[str, bytes] = field(default_factory=dict)
    """What was answered with 0000: datasets by SOP Instance UID."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Peer]:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            yield Peer(stream)

    async def assert_unharmed(self) -> None:
        """Nothing of the attack remains, and the association beside it still works."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                now = Resources.now()
                if (now.descriptors, now.tasks) == (self.before.descriptors, self.before.tasks):
                    break
                await trio.sleep(0.01)
            assert now.rss - self.before.rss < RSS_MARGIN
            assert await echo(self.healthy) == 0x0000
        self.assert_files()

    def assert_files(self) -> None:
        """Exactly the instances that were answered with 0000, and no file anywhere else."""
        assert [path.name for path in self.root.iterdir()] == ["store"]
        store = self.root / "store"
        if self.kind == "receive":
            assert {p.name for p in store.rglob("*")} == {f"{uid}.dcm" for uid in self.stored}
            for uid, dataset in self.stored.items():
                assert (store / f"{uid}.dcm").read_bytes().endswith(dataset)
            return
        # The names of an archive are its own: as many objects as were acknowledged, with their bytes.
        assert {path.name for path in store.iterdir() if path.is_dir()} == {
            *("objects", "quarantine", "tmp")
        }
        assert list((store / "tmp").iterdir()) == []
        assert list((store / "quarantine").iterdir()) == []
        objects = [path.read_bytes() for path in (store / "objects").rglob("*.dcm")]
        expected = [octets.DATASET, *self.stored.values()]
        assert len(objects) == len(expected)
        for dataset in expected:
            assert any(content.endswith(dataset) for content in objects)


async def expect(
    target: Target,
    peer: Peer,
    *pdus: bytes,
    aborted: tuple[int, int] | None = None,
    rejected: tuple[int, int, int] | None = None,
    answer: bytes | None = None,
) -> None:
    """The one assertion: these PDUs and then the end, counted, and nobody else disturbed."""
    if answer is None:
        answer = await peer.read_to_end()
    assert answer.hex(" ") == b"".join(pdus).hex(" ")
    await peer.stream.aclose()
    await target.assert_unharmed()
    if aborted is not None:
        assert target.observer.aborted == [("local", *aborted)]
    if rejected is not None:
        assert target.observer.rejected == [rejected]
    if aborted is None and rejected is None:
        assert not [event for event in target.observer.aborted if event[0] == "local"]
        assert target.observer.rejected == []


async def expect_abort(
    target: Target, peer: Peer, source: int, reason: int, answer: bytes | None = None
) -> None:
    await expect(
        target, peer, octets.abort(source, reason), aborted=(source, reason), answer=answer
    )


async def expect_reject(target: Target, peer: Peer, result: int, source: int, reason: int) -> None:
    await expect(
        target,
        peer,
        octets.reject(result, source, reason),
        rejected=(result, source, reason),
    )


async def expect_release(target: Target, peer: Peer) -> None:
    """The association is in order still: it is released, as any other."""
    await peer.send(octets.release_rq)
    await expect(target, peer, octets.release_rp)


async def expect_refused_instance(
    target: Target, peer: Peer, dataset: bytes = octets.DATASET
) -> None:
    """An instance that was refused takes nothing with it: the next one is stored."""
    assert await peer.store(octets.store_rq(99, "1.2.99"), octets.data_pdu(1, dataset)) == 0x0000
    target.stored["1.2.99"] = dataset
    await expect_release(target, peer)


@contextmanager
def standing_clock() -> Iterator[None]:
    """trio's own clock does not jump during the block: a thread may be at work while every task waits.

    An archive answers A700 where its disk takes ten seconds, so a jump during a commit is one.
    """
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, MockClock):
        yield
        return
    threshold, clock.autojump_threshold = clock.autojump_threshold, float("inf")
    try:
        yield
    finally:
        clock.autojump_threshold = threshold


@asynccontextmanager
async def storing(
    kind: Kind, store: Path, sinks: SinkFactory | None
) -> AsyncIterator[list[Service]]:
    """The services of `receive -od`, or of an archive that holds one instance already."""
    if kind == "receive":
        with FolderSinks(store, durable=Durability.NONE) as folder:
            yield [VerificationScp(), StorageScp(sinks or folder)]
        return
    async with open_archive(store, durability=Durability.NONE) as archive:
        # From the first write on the index has as many descriptors as it will have.
        sink = archive.sink(
            IncomingInstance(
                sop_class_uid=octets.CT,
                sop_instance_uid="1.2.3.999",
                transfer_syntax_uid=octets.EXPLICIT,
                calling_ae_title="PEER",
                called_ae_title="OURS",
                peer="",
            )
        )
        await sink.write(BytesInMemory(octets.DATASET))
        assert (await sink.commit()).status == 0x0000
        yield archive.services()


@asynccontextmanager
async def target(
    root: Path,
    kind: Kind = "receive",
    *,
    limits: AcceptorLimits | None = None,
    timeouts: Timeouts | None = None,
    sinks: SinkFactory | None = None,
    **policy: Any,
) -> AsyncIterator[Target]:
    """An acceptor OURS for the caller PEER, which stores into `root`/store."""
    store = root / "store"
    store.mkdir()
    observer = Recorder()
    timeouts = timeouts or Timeouts(idle=None)
    request = AssociationRequest(
        called_ae_title="OURS",
        calling_ae_title="PEER",
        contexts=(
            PresentationContextRq(
                context_id=1,
                abstract_syntax=octets.VERIFICATION,
                transfer_syntaxes=(octets.IMPLICIT,),
            ),
        ),
    )
    async with AsyncExitStack() as stack:
        with standing_clock():
            services = await stack.enter_async_context(storing(kind, store, sinks))
        fields = {"ae_title": "OURS", "allowed_callers": ("PEER",), **policy}
        async with trio.open_nursery() as nursery:
            [(_, port)] = await nursery.start(
                partial(
                    serve_associations,
                    partial(serve_services, services=services),
                    acceptor_policy(services, **fields),
                    host="127.0.0.1",
                    limits=limits,
                    timeouts=timeouts,
                    observer=observer,
                )
            )
            async with open_association("127.0.0.1", port, request, timeouts=timeouts) as healthy:
                assert await echo(healthy) == 0x0000
                yield Target(port, root, kind, healthy, observer, Resources.now())
            nursery.cancel_scope.cancel()
