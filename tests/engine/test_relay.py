"""The relay alone: answers that come late, ends that break, bytes that are not held."""

from __future__ import annotations

import hashlib
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.engine.planning import GetRequest, retrieve_identifier
from dcmhaul.engine.relay import PeerDestination, RelayOutcome
from dcmhaul.engine.retriever import Retriever
from dcmhaul.errors import NoAcceptedContext, TransportError
from dcmhaul.migrate.plan import MigrateOptions
from dcmhaul.migrate.transfer import get_request, store_request
from dcmhaul.net import Timeouts, open_association
from dcmhaul.objects.instances import BytesInMemory, IncomingInstance
from dcmhaul.services.identifiers import encode_identifier
from tests.engine.fake_archive import (
    CT,
    EXPLICIT,
    FakeArchive,
    FakeInstance,
    Faults,
    make_instance,
)
from tests.net.test_association import request
from tests.net.test_broken_sends import accept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dcmhaul.net import Association

STUDY = "1.2.3.1"
PAIRS = ((CT, EXPLICIT),)
IDENTIFIER = partial(encode_identifier, retrieve_identifier(GetRequest(study_instance_uid=STUDY)))


def instances(count: int, size: int = 1000) -> list[FakeInstance]:
    return [make_instance(n, study=STUDY, size=size) for n in range(count)]


class Relay:
    """Both associations, and what was reported."""

    def __init__(self, source: Association, destination: PeerDestination) -> None:
        self.source = source
        self.destination = destination
        self.outcomes: list[RelayOutcome] = []

    @property
    def statuses(self) -> list[int | None]:
        return [outcome.status for outcome in self.outcomes]


@asynccontextmanager
async def relay(
    old: FakeArchive,
    new: FakeArchive,
    *,
    window: int = 8,
    answer_seconds: float = 8.0,
    timeouts: Timeouts | None = None,
) -> AsyncIterator[Relay]:
    async with old.running("OLD") as source, new.running("NEW") as destination:
        options = MigrateOptions(
            source=source, destination=destination, ledger_url="", window=window
        )
        outcomes: list[RelayOutcome] = []
        async with open_association(
            destination.host,
            destination.port,
            store_request("NEW", options, PAIRS),
            timeouts=timeouts,
        ) as outgoing:
            async with (
                PeerDestination.started(
                    outgoing, outcomes.append, window=window, answer_seconds=answer_seconds
                ) as forwarding,
                open_association(
                    source.host, source.port, get_request("OLD", options, PAIRS)
                ) as incoming,
            ):
                pair = Relay(incoming, forwarding)
                pair.outcomes = outcomes
                yield pair


async def get(pair: Relay, **arguments: Any) -> Any:
    with trio.fail_after(30):
        return await Retriever(pair.source, pair.destination).retrieve(IDENTIFIER, **arguments)


@pytest.mark.parametrize("size", [0, 1, 1000, 131_060, 500_001])
async def test_bytes_digests_and_order(size: int) -> None:
    old, new = FakeArchive(instances(5, size)), FakeArchive()
    async with relay(old, new) as pair:
        result = await get(pair)
        assert result.status == 0
        assert result.received == set(old.instances)
    assert new.digests == old.digests
    assert new.received == list(old.instances)
    assert [(o.sop_instance_uid, o.sha256, o.length, o.status) for o in pair.outcomes] == [
        (i.sop_instance_uid, hashlib.sha256(i.dataset).digest(), i.length, 0)
        for i in old.instances.values()
    ]


@pytest.mark.parametrize("window", [1, 2, 8])
async def test_the_window_bounds_what_is_unanswered(window: int) -> None:
    old, new = FakeArchive(instances(20)), FakeArchive(faults=Faults(store_seconds=0.005))
    most = 0

    async with relay(old, new, window=window) as pair:
        forwarding = pair.destination

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(forwarding._unanswered))
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await get(pair)
            nursery.cancel_scope.cancel()
    assert most <= window
    if window > 1:
        assert most > 1  # our own archives pipeline sub-operations
    assert new.digests == old.digests


async def test_the_destination_decides_what_the_source_hears() -> None:
    answers = {0: None, 1: 0xB000, 2: 0xA700, 3: 0xC001}
    old = FakeArchive(instances(4))
    new = FakeArchive(faults=Faults(store=lambda _instance, n: answers[n - 1]))
    async with relay(old, new, window=1) as pair:
        result = await get(pair)
    assert pair.statuses == [0, 0xB000, 0xA700, 0xC001]
    # Two of four failed, as far as the source knows.
    assert result.status == 0xB000


async def test_a_late_answer_is_a700_to_the_source_and_final_for_us() -> None:
    old, new = FakeArchive(instances(3)), FakeArchive(faults=Faults(store_seconds=0.2))
    async with relay(old, new, answer_seconds=0.02) as pair:
        result = await get(pair)
        assert result.status == 0xA702  # nothing was completed, as the source sees it
        await pair.destination.settled()
        assert pair.statuses == [0, 0, 0]
    assert new.digests == old.digests


async def test_what_the_destination_holds_is_not_forwarded() -> None:
    old, new = FakeArchive(instances(4)), FakeArchive()
    held = {f"{STUDY}.9.1", f"{STUDY}.9.2"}
    async with relay(old, new) as pair:
        result = await get(pair, held=held)
        assert result.status == 0
    assert set(new.received) == set(old.instances) - held


async def test_what_comes_again_within_a_get_is_forwarded_whatever_is_held() -> None:
    """It may be another object under the UID, and what the destination has is the first."""
    first, other = make_instance(0, study=STUDY, size=10), make_instance(0, study=STUDY, size=20)
    old, new = FakeArchive([first]), FakeArchive()
    old.instances["other"] = other
    async with relay(old, new) as pair:
        result = await get(pair, held={first.sop_instance_uid})
        assert (result.status, result.unsent) == (0, set())
        assert [outcome.sha256 for outcome in pair.outcomes] == [other.sha256]


async def test_a_destination_that_dies_within_an_object() -> None:
    # Large enough that it cannot have left entirely when the destination dies.
    old = FakeArchive(instances(8, size=30_000_000))
    new = FakeArchive(faults=Faults(store_cut={3: 150_000}))
    async with relay(old, new, window=1) as pair:
        result = await get(pair)
        assert pair.destination.failure is not None
        # The source was asked to end early; its association is as good as before.
        assert result.cut_short
        assert not pair.source.ended
        assert len(result.received) < 8
    # The instance that broke was not stored, and nothing was tried with those after it.
    assert pair.statuses == [0, 0, None]
    assert pair.outcomes[2].error is not None
    assert not pair.outcomes[2].unknown
    assert set(new.stored) == set(list(old.instances)[:2])


async def test_an_answer_that_never_came_is_unknown() -> None:
    old = FakeArchive(instances(5))
    new = FakeArchive(faults=Faults(store_abort=lambda n: n == 2))
    async with relay(old, new, window=1) as pair:
        await get(pair)
    assert pair.statuses[:2] == [0, None]
    assert pair.outcomes[1].unknown
    assert not any(outcome.unknown for outcome in pair.outcomes[2:])


@pytest.mark.parametrize("whole", [False, True])
async def test_a_destination_that_closes_its_side_is_not_waited_for(whole: bool) -> None:
    """As one does that was killed behind a proxy: what is still sent to it is taken by the kernel."""
    [instance] = instances(1, size=100_000)
    outcomes: list[RelayOutcome] = []
    with trio.fail_after(5), socket.create_server(("127.0.0.1", 0)) as listener:

        async def forward() -> None:
            port = listener.getsockname()[1]
            with pytest.raises(TransportError):
                async with (
                    open_association("127.0.0.1", port, request()) as association,
                    PeerDestination.started(association, outcomes.append, window=2) as destination,
                ):
                    forward = destination.open(_incoming(instance))
                    await forward.write(BytesInMemory(instance.dataset[:50_000]))
                    sock.shutdown(socket.SHUT_WR)
                    await destination.failed.wait()
                    if not whole:
                        await forward.write(BytesInMemory(instance.dataset[50_000:]))
                    await forward.end()
                    assert (await forward.answer()).status == 0xA700
                    assert len(outcomes) == 1
                    raise destination.failure or AssertionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward)
            sock, _ = await trio.to_thread.run_sync(listener.accept)
            accept(sock)
            while await trio.to_thread.run_sync(sock.recv, 1 << 20):
                pass
            sock.close()
    # The whole of it may have got there.
    assert [(o.status, o.unknown) for o in outcomes] == [(None, whole)]


async def test_a_destination_that_does_not_answer_in_time() -> None:
    old = FakeArchive(instances(2))
    new = FakeArchive(faults=Faults(store_seconds=60))
    async with relay(
        old, new, window=1, answer_seconds=0.1, timeouts=Timeouts(dimse=0.3, release=0.2)
    ) as pair:
        await get(pair)
        with trio.fail_after(5):
            await pair.destination.failed.wait()
    assert "time-out" in str(pair.destination.failure)
    assert pair.outcomes[0].unknown


async def test_a_source_that_is_lost_leaves_no_half_object() -> None:
    big = instances(1, size=20_000_000)
    new = FakeArchive()
    async with relay(FakeArchive(big), new, window=1) as pair:
        with pytest.raises(Exception, match="cut"):
            receiver = pair.destination.open(_incoming(big[0]))
            await receiver.write(BytesInMemory(b"x" * 10_000))
            await receiver.broken()
            raise RuntimeError("cut")
        assert pair.destination.blameless
        assert pair.destination.association.ended
    assert new.stored == []
    assert [(o.status, o.unknown) for o in pair.outcomes] == [(None, False)]


async def test_a_stop_ends_the_retrieve_early_and_keeps_what_came() -> None:
    old, new = FakeArchive(instances(200)), FakeArchive(faults=Faults(store_seconds=0.002))
    stop = trio.Event()
    async with relay(old, new, window=2) as pair:
        async with trio.open_nursery() as nursery:

            async def soon() -> None:
                while len(new.stored) < 5:
                    await trio.sleep(0.001)
                stop.set()

            nursery.start_soon(soon)
            result = await get(pair, stop=stop)
        assert result.cut_short
        await pair.destination.settled()
    assert 5 <= len(new.stored) < 200
    assert len(new.stored) == len(new.received) == len(pair.outcomes)


async def test_a_stalled_destination_stalls_the_source() -> None:
    """Back-pressure: what the relay has read is no more than what fits on the way."""
    size = 30_000_000
    old, new = FakeArchive(instances(1, size=size)), FakeArchive()
    gate = trio.Event()
    original = new._sink

    def stalling(incoming: Any) -> Any:
        sink = original(incoming)
        write = sink.write

        async def wait_first(data: Any) -> None:
            await gate.wait()
            await write(data)

        sink.write = wait_first  # type: ignore[method-assign]
        return sink

    new._sink = stalling  # type: ignore[method-assign]
    async with relay(old, new, window=1) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(get, pair)
        seen = -1
        with trio.fail_after(20):
            while pair.source.stats().bytes_in != seen or seen <= 0:
                seen = pair.source.stats().bytes_in
                await trio.sleep(0.3)
        assert 0 < seen < size
        gate.set()
    assert new.digests == old.digests


async def test_a_source_without_c_get_is_named() -> None:
    old, new = FakeArchive(instances(1)), FakeArchive()
    old.services = lambda: [s for s in FakeArchive.services(old) if "Get" not in type(s).__name__]  # type: ignore[method-assign]
    async with relay(old, new) as pair:
        with pytest.raises(NoAcceptedContext, match=uids.name(uids.STUDY_ROOT_GET)):
            await get(pair)


def _incoming(instance: FakeInstance) -> Any:
    return IncomingInstance(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        calling_ae_title="",
        called_ae_title="",
        peer="",
    )
