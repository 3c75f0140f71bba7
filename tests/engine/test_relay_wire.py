"""The relay between two scripted peers: what goes over the wire on either side, octet by octet."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.engine.relay import PeerDestination, RelayOutcome
from dcmhaul.engine.retriever import GetResult, Retriever
from dcmhaul.errors import DcmhaulError
from dcmhaul.migrate.plan import MigrateOptions
from dcmhaul.migrate.transfer import get_request, store_request
from dcmhaul.net import Association, Timeouts, open_association
from tests.hostile.octets import CT, EXPLICIT, abort, command_pdu, p_data, pdv, store_rq
from tests.hostile.scripted_scp import ScriptedScp, response, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PAIRS = ((CT, EXPLICIT),)
PATIENCE_SECONDS = 20.0
# Where the request for a C-GET stands in our proposal, and where the one pair does.
GET, STORE = 1, 3


def cut(dataset: bytes, size: int, *, empty_last: bool = False) -> bytes:
    """The dataset in P-DATA-TFs of one fragment each, the last one marked."""
    parts = [dataset[i : i + size] for i in range(0, len(dataset), size)] or [b""]
    if empty_last:
        parts.append(b"")
    return b"".join(
        p_data(pdv(STORE, 2 * (number == len(parts)), part)) for number, part in enumerate(parts, 1)
    )


class Source(ScriptedScp):
    """Answers a C-GET with C-STOREs, all at once, and ends it when the last one was answered.

    `tail` follows them in place of that: the connection then ends as it says.
    """

    def __init__(self, stores: list[bytes], *, window: int = 8, tail: bytes | None = None) -> None:
        super().__init__(self._answer, window=window)
        self.stores = stores
        self.tail = tail
        self.statuses: list[int] = []
        """What it was told of its instances."""

    def _answer(self, _n: int, command: dict[str, Any]) -> bytes:
        if command["CommandField"] == 0x0010:
            self._get = command
            return b"".join(self.stores) + (self.tail or b"")
        if command["CommandField"] != 0x8001:
            return b""  # a C-CANCEL, which it does not heed
        self.statuses.append(command["Status"])
        if len(self.statuses) < len(self.stores) or self.tail is not None:
            return b""
        return response(self._get)


def stored(number: int, dataset: bytes) -> bytes:
    return command_pdu(STORE, store_rq(number, f"1.2.3.{number}")) + dataset


class Pair:
    """Both associations, and what was reported."""

    def __init__(self, incoming: Association, destination: PeerDestination) -> None:
        self.incoming = incoming
        self.destination = destination
        self.outcomes: list[RelayOutcome] = []

    async def get(self) -> GetResult:
        with trio.fail_after(PATIENCE_SECONDS):
            return await Retriever(self.incoming, self.destination).retrieve(b"")


@asynccontextmanager
async def relay(
    source: ScriptedScp,
    destination: ScriptedScp,
    *,
    window: int = 8,
    answer_seconds: float = 8.0,
    timeouts: Timeouts | None = None,
) -> AsyncIterator[Pair]:
    options = MigrateOptions(source=None, destination=None, ledger_url="", window=window)  # type: ignore[arg-type]
    outcomes: list[RelayOutcome] = []
    async with (
        running(source),
        running(destination),
        open_association(
            "127.0.0.1",
            destination.port,
            store_request("NEW", options, PAIRS),
            timeouts=timeouts or Timeouts(),
        ) as outgoing,
        PeerDestination.started(
            outgoing, outcomes.append, window=window, answer_seconds=answer_seconds
        ) as forwarding,
        open_association("127.0.0.1", source.port, get_request("OLD", options, PAIRS)) as incoming,
    ):
        pair = Pair(incoming, forwarding)
        pair.outcomes = outcomes
        yield pair


def accepting(status: Callable[[int], int | None] = lambda _n: 0) -> Callable[..., bytes]:
    """Answers every C-STORE with the status for its number; None leaves it unanswered."""

    def answer(n: int, command: dict[str, Any]) -> bytes:
        found = status(n)
        return b"" if found is None else response(command, Status=found)

    return answer


async def ending(scp: ScriptedScp) -> tuple[int, ...]:
    """How its one association ended."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not scp.ends:
            await trio.sleep(0.005)
    [end] = scp.ends
    return end


# -- fragments are cut anew


@pytest.mark.parametrize("length", [8, 9, 64, 4097, 16384, 0], ids=lambda n: f"to {n}")
@pytest.mark.parametrize("size", [1, 2, 7, 1000, 131_066], ids=lambda n: f"from {n}")
@pytest.mark.parametrize("empty_last", [False, True], ids=["", "empty last"])
async def test_fragments_are_cut_to_the_destinations_pdu(
    size: int, length: int, empty_last: bool
) -> None:
    """Even ones, never above its maximum, whatever the source's were; the octets are the same."""
    count = min(20_000, size * 400)
    datasets = [bytes(i % 251 for i in range(n)) for n in (count, 2, 0, count // 2 * 2 + 2)]
    source = Source(
        [stored(n, cut(data, size, empty_last=empty_last)) for n, data in enumerate(datasets, 1)]
    )
    destination = ScriptedScp(accepting(), length=length, window=8)
    async with relay(source, destination) as pair:
        result = await pair.get()
    assert (result.status, source.statuses) == (0, [0] * 4)
    assert [bytes(data) for data in destination.datasets] == datasets
    if length:
        assert destination.longest_pdu <= length
    assert [o.status for o in pair.outcomes] == [0] * 4
    assert [o.length for o in pair.outcomes] == [len(data) for data in datasets]
    assert sum(n % 2 for n in destination.fragments) == sum(len(d) % 2 for d in datasets)


@pytest.mark.parametrize("size", [1, 3, 999, 16_000])
async def test_an_odd_dataset_stays_as_it_is(size: int) -> None:
    """It is against PS3.5, and yet not ours to change: one odd fragment, the last."""
    dataset = bytes(n % 256 for n in range(5001))
    source = Source([stored(1, cut(dataset, size))])
    destination = ScriptedScp(accepting(), length=1024)
    async with relay(source, destination) as pair:
        await pair.get()
    assert bytes(destination.datasets[0]) == dataset
    assert [n % 2 for n in destination.fragments] == [0] * (len(destination.fragments) - 1) + [1]


# -- what the source hears


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        *((0x0000, 0x0000), (0xB000, 0x0000), (0xB006, 0x0000), (0xB007, 0x0000)),
        *((0xA700, 0xA700), (0xA7FF, 0xA7FF), (0xA900, 0xA900), (0xC123, 0xC123)),
        *((0x0122, 0x0122), (0x0124, 0x0124), (0xB123, 0xB123), (0xFF00, 0xFF00)),
    ],
    ids=lambda status: f"{status:04X}",
)
async def test_the_source_hears_what_the_destination_said(said: int, heard: int) -> None:
    """A warning is the destination's business: to the source the instance is delivered."""
    source = Source([stored(n, cut(bytes(100), 50)) for n in (1, 2)])
    destination = ScriptedScp(accepting(lambda n: said if n == 1 else 0), window=8)
    async with relay(source, destination) as pair:
        await pair.get()
    assert source.statuses == [heard, 0]
    assert [outcome.status for outcome in pair.outcomes] == [said, 0]


# -- answers that come early, late, or not at all


@pytest.mark.parametrize("status", [0x0000, 0xA700])
async def test_a_response_before_the_dataset_has_ended_counts_when_it_has(status: int) -> None:
    source = Source([stored(n, cut(bytes(200_000), 16_000)) for n in (1, 2)])
    destination = ScriptedScp(early=lambda _n, rq: response(rq, Status=status), window=8)
    async with relay(source, destination) as pair:
        await pair.get()
    assert [len(data) for data in destination.datasets] == [200_000, 200_000]
    assert source.statuses == [status, status]
    assert [(o.status, o.length) for o in pair.outcomes] == [(status, 200_000)] * 2
    assert all(outcome.sha256 for outcome in pair.outcomes)


async def test_a_success_that_came_early_is_none_when_the_source_is_lost() -> None:
    half = p_data(pdv(STORE, 0, bytes(16_000)))
    source = Source([stored(1, half)], tail=abort(0, 0))
    destination = ScriptedScp(early=lambda _n, rq: response(rq), window=8)
    async with relay(source, destination) as pair:
        with pytest.raises(DcmhaulError):
            await pair.get()
    assert [(o.status, o.unknown) for o in pair.outcomes] == [(None, False)]


async def test_an_answer_after_the_sources_release_is_final_all_the_same() -> None:
    """The source was told A700 in time and has gone; the destination took it."""
    source = Source([stored(n, cut(bytes(100), 50)) for n in (1, 2, 3)])
    late: list[bytes] = []

    def answer(_n: int, command: dict[str, Any]) -> bytes:
        late.append(response(command))
        return b"".join(late) if len(late) == 4 else b""

    destination = ScriptedScp(answer, window=8)
    async with relay(source, destination, answer_seconds=0.05) as pair:
        await pair.get()
        assert source.statuses == [0xA700] * 3
        await pair.incoming.release()
        assert pair.outcomes == []
        # A fourth one makes the destination say all.
        again = pair.destination.open(pair_instance("1.2.3.4"))
        await again.end()
        await pair.destination.settled()
        assert (await again.answer()).status == 0
    assert [(o.sop_instance_uid, o.status) for o in pair.outcomes] == [
        (f"1.2.3.{n}", 0) for n in (1, 2, 3, 4)
    ]


def pair_instance(uid: str) -> Any:
    from dcmhaul.objects.instances import IncomingInstance

    return IncomingInstance(
        sop_class_uid=CT,
        sop_instance_uid=uid,
        transfer_syntax_uid=EXPLICIT,
        calling_ae_title="",
        called_ae_title="",
        peer="",
    )


async def test_answers_that_never_come_are_unknown_and_the_destination_is_aborted() -> None:
    source = Source([stored(n, cut(bytes(100), 50)) for n in range(1, 6)])
    destination = ScriptedScp(accepting(lambda n: 0 if n <= 2 else None), window=8)
    timeouts = Timeouts(dimse=0.3, release=0.2)
    async with relay(source, destination, answer_seconds=0.1, timeouts=timeouts) as pair:
        await pair.get()
        with trio.fail_after(5):
            await pair.destination.failed.wait()
    assert [o.status for o in pair.outcomes] == [0, 0, None, None, None]
    assert [o.unknown for o in pair.outcomes] == [False, False, True, True, True]
    assert source.statuses[2:] == [0xA700] * (len(source.statuses) - 2)


# -- an end that is lost


@pytest.mark.parametrize("tail", [abort(0, 0), abort(2, 1), b"\x53\0\0\0\0\2\0\0"], ids=bytes.hex)
async def test_a_source_lost_within_an_instance(tail: bytes) -> None:
    """The half of it goes nowhere; what is unanswered at the destination is unknown; it sees an A-ABORT."""
    half = p_data(pdv(STORE, 0, bytes(16_000)))
    source = Source(
        [stored(1, cut(bytes(100), 50)), stored(2, cut(bytes(100), 50)), stored(3, half)], tail=tail
    )
    destination = ScriptedScp(accepting(lambda n: 0 if n == 1 else None), window=8)
    async with relay(source, destination) as pair:
        with pytest.raises(DcmhaulError):
            await pair.get()
        assert pair.destination.blameless
        assert await ending(destination) == (7, 0, 0)
    states = {o.sop_instance_uid[-1]: (o.status, o.unknown) for o in pair.outcomes}
    assert states["1"] in ((0, False), (None, True))  # its answer may have come in time
    assert states["2"] == (None, True)
    assert states["3"] == (None, False)
    assert len(destination.datasets) == 3


async def test_a_destination_that_aborts_with_answers_outstanding() -> None:
    """The source is told A700 of what it sends from then on, and is asked to end early."""
    source = Source([stored(n, cut(bytes(100), 50)) for n in range(1, 9)], window=2)

    def answer(n: int, command: dict[str, Any]) -> bytes:
        return abort(0, 0) if n == 3 else response(command) if n == 1 else b""

    destination = ScriptedScp(answer, window=8)
    async with relay(source, destination, window=8) as pair:
        await pair.get()
    states = {o.sop_instance_uid[-1]: (o.status, o.unknown) for o in pair.outcomes}
    assert states["1"] == (0, False)
    assert states["2"] == (None, True)
    assert states["3"] == (None, True)
    assert not any(unknown for uid, (_, unknown) in states.items() if uid > "4")
    assert source.statuses[0] == 0
    assert set(source.statuses[1:]) == {0xA700}
    assert [c["CommandField"] for c in source.commands].count(0x0FFF) == 1
