"""What a receiver holds for very many associations at once, and whether each gets its share.

One client process opens them all on one `dcmhaul receive --discard`: idle, each in the middle of a C-STORE,
then each served. Then 64 send at once for a while, and few with large objects beside many with small ones.
Client and receiver have a processor each at best, and the shares are those of both together.
"""

from __future__ import annotations

import argparse
import math
import re
import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio
from tests.interop import peers

from bench import contenders, machine, process, sets, tables
from bench.loopback import choose_wire, say
from dcmhaul import uids
from dcmhaul.net import SocketOptions, Timeouts, open_association
from dcmhaul.protocol.dimse import CStoreRq, CStoreRsp, Priority
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.storage import StorageScu, StoreOutcome
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.contenders import Wire
    from dcmhaul.net import Association

HERE = Path(__file__).resolve().parent
KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20
CT = "1.2.840.10008.5.1.4.1.1.2"
OPENING = 32  # at once, below the backlog of a listener
SMALL, MEDIUM, LARGE = bytes(9 * KIBIBYTE), bytes(512 * KIBIBYTE), bytes(256 * MEBIBYTE)
HALF = bytes(2 * MEBIBYTE)
TIMEOUTS = Timeouts(progress=120.0)

IDLE_KIBIBYTES, BUSY_MEBIBYTES = 100, 2.5
LOWEST_SHARE, JAIN, SMALL_P99_SECONDS = 0.8, 0.95, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """crowd: associations that are open at once. senders: of them so many send at once, for seconds;
    large: so many of those send the large objects."""

    crowd: int
    senders: int
    large: int
    seconds: float


FULL = Size(crowd=1000, senders=64, large=8, seconds=8.0)
QUICK = Size(crowd=12, senders=4, large=1, seconds=0.5)


@dataclass(slots=True, kw_only=True)
class Memory:
    """An instance whose dataset is in memory; an OutgoingInstance."""

    sop_instance_uid: str
    dataset: bytes
    label: str = "memory"
    sop_class_uid: str = CT
    transfer_syntax_uid: str = uids.EXPLICIT_VR_LITTLE_ENDIAN

    @property
    def length(self) -> int:
        return len(self.dataset)

    def close(self) -> None:
        """There is nothing to close."""


@dataclass(slots=True, kw_only=True)
class Share:
    """What one association moved while it was counted."""

    dataset: bytes
    moved: int = 0
    seconds: list[float] = field(default_factory=list)


def request() -> AssociationRequest:
    context = PresentationContextRq(
        context_id=1, abstract_syntax=CT, transfer_syntaxes=(uids.EXPLICIT_VR_LITTLE_ENDIAN,)
    )
    return AssociationRequest(
        called_ae_title=contenders.AET, calling_ae_title="CROWD", contexts=(context,)
    )


@contextmanager
def receiver(wire: Wire, size: Size) -> Iterator[peers.Server]:
    """Room for all: one place in eight is kept for callers that it knows."""
    port = peers.free_port()
    argv = [*process.dcmhaul(), "receive", str(port), "-aet", contenders.AET, "--discard"]
    argv += ["--bind", peers.LOOPBACK, "--max-associations", str(size.crowd * 8 // 7 + 8)]
    argv += ["-ts", "120", *wire.own_options()]
    with peers.serve("dcmhaul receive", argv, aet=contenders.AET, port=port) as server:
        yield server


def resident(server: peers.Server, *, peak: bool = False) -> int:
    """Bytes of the process, now or at most."""
    if peak:
        return process.peak_bytes(server.process.pid)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    if found is None:
        raise process.BenchFailed("the kernel does not tell VmRSS")
    return int(found[1]) * KIBIBYTE


class Barrier:
    """Lets its tasks go on together."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._open = trio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._open.set()
        await self._open.wait()


@dataclass(slots=True, kw_only=True)
class Crowd:
    """What was measured of the receiver; bytes and seconds are of all associations together."""

    idle_bytes: int = 0
    busy_bytes: int = 0
    open_seconds: float = 0.0
    serve_seconds: float = 0.0
    served: int = 0


async def crowd(server: peers.Server, options: SocketOptions, size: Size) -> Crowd:
    """All open and idle; all within a message; each served; all released."""
    result = Crowd()
    before = resident(server)
    opening = trio.CapacityLimiter(OPENING)
    phases = [Barrier(size.crowd + 1) for _ in range(6)]

    async def one(number: int) -> None:
        async with opening:
            opened = open_association(
                server.host, server.port, request(), timeouts=TIMEOUTS, options=options
            )
            association = await opened.__aenter__()
        try:
            await phases[0].wait()
            await phases[1].wait()
            await busy(association, number, phases[2], phases[3])
            await phases[4].wait()
            await store(association, f"1.2.3.{number}.2", SMALL)
            result.served += 1
            await phases[5].wait()
        finally:
            await opened.__aexit__(None, None, None)

    async with trio.open_nursery() as nursery:
        started = time.perf_counter()
        for number in range(size.crowd):
            nursery.start_soon(one, number)
        await phases[0].wait()
        result.open_seconds = time.perf_counter() - started
        await trio.sleep(0.5)
        result.idle_bytes = resident(server) - before
        await phases[1].wait()
        await phases[2].wait()
        await trio.sleep(0.5)
        await phases[3].wait()
        await phases[4].wait()
        started = time.perf_counter()
        await phases[5].wait()
        result.serve_seconds = time.perf_counter() - started
    result.busy_bytes = resident(server, peak=True) - before
    return result


async def busy(association: Association, number: int, half: Barrier, go_on: Barrier) -> None:
    """One large object, of which all have sent the first half before any sends the second."""
    message_id = association.next_message_id()
    message = CStoreRq(
        message_id=message_id,
        affected_sop_class_uid=CT,
        affected_sop_instance_uid=f"1.2.3.{number}.1",
        priority=Priority.MEDIUM,
    )
    writer = await association.open_dataset(1, message)
    await writer.write(HALF)
    await half.wait()
    await go_on.wait()
    await writer.write(HALF)
    await writer.finish()
    incoming = await association.receive(seconds=120)
    if incoming is None or not isinstance(incoming.message, CStoreRsp) or incoming.message.status:
        raise process.BenchFailed(f"an object was not taken: {incoming}")
    association.message_ids.give_back(message_id)


async def store(association: Association, uid: str, dataset: bytes) -> None:
    instances = iter([Memory(sop_instance_uid=uid, dataset=dataset)])
    outcomes: list[StoreOutcome] = []

    async def take() -> Memory | None:
        return next(instances, None)

    await StorageScu(association).run(take, outcomes.append)
    if not all(outcome.stored for outcome in outcomes):
        raise process.BenchFailed(f"an object was not taken: {outcomes}")


async def together(
    server: peers.Server, options: SocketOptions, datasets: Sequence[bytes], seconds: float
) -> list[Share]:
    """One association for each of `datasets`, which sends it over and over for so long, window 1."""
    shares = [Share(dataset=dataset) for dataset in datasets]
    ready = Barrier(len(shares))

    async def one(number: int, share: Share) -> None:
        async with open_association(
            server.host, server.port, request(), timeouts=TIMEOUTS, options=options
        ) as association:
            await ready.wait()
            began = time.perf_counter()
            count = 0

            async def take() -> Memory | None:
                nonlocal count
                count += 1
                if time.perf_counter() - began >= seconds:
                    return None
                return Memory(sop_instance_uid=f"1.2.4.{number}.{count}", dataset=share.dataset)

            def report(outcome: StoreOutcome) -> None:
                if not outcome.stored:
                    raise process.BenchFailed(f"an object was not taken: {outcome}")
                # What ends after the others have stopped had more than its share.
                if time.perf_counter() - began < seconds:
                    share.moved += outcome.length
                    share.seconds.append(outcome.seconds)

            await StorageScu(association).run(take, report)

    async with trio.open_nursery() as nursery:
        for number, share in enumerate(shares):
            nursery.start_soon(one, number, share)
    return shares


def lowest(shares: Sequence[Share]) -> float:
    """The smallest share over the mean."""
    moved = [share.moved for share in shares]
    return min(moved) * len(moved) / max(sum(moved), 1)


def jain(shares: Sequence[Share]) -> float:
    """(sum x)^2 / (n sum x^2): 1 where all are alike, 1/n where one has everything."""
    moved = [share.moved for share in shares]
    return math.pow(sum(moved), 2) / max(len(moved) * sum(x * x for x in moved), 1)


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


@dataclass(slots=True, kw_only=True)
class Measured:
    crowd: Crowd
    alike: list[Share]
    mixed: list[Share]

    def mixed_small(self) -> list[Share]:
        return [share for share in self.mixed if share.dataset is SMALL]

    def mixed_large(self) -> list[Share]:
        return [share for share in self.mixed if share.dataset is LARGE]

    def small_seconds(self) -> list[float]:
        """Response times of all small objects beside the large ones."""
        return [seconds for share in self.mixed_small() for seconds in share.seconds]


def measure(wire: Wire, size: Size) -> Measured:
    options = SocketOptions(congestion=wire.congestion)
    say(f"{size.crowd} associations")
    with receiver(wire, size) as server:
        held = trio.run(crowd, server, options, size)
    if held.served != size.crowd:
        raise process.BenchFailed(f"{held.served} of {size.crowd} associations were served")
    say(f"{size.senders} that send at once")
    with receiver(wire, size) as server:
        alike = trio.run(together, server, options, [MEDIUM] * size.senders, size.seconds)
    say("large objects beside small ones")
    datasets = [LARGE] * size.large + [SMALL] * (size.senders - size.large)
    with receiver(wire, size) as server:
        mixed = trio.run(together, server, options, datasets, size.seconds)
    return Measured(crowd=held, alike=alike, mixed=mixed)


def figures(measured: Measured, size: Size) -> list[tuple[str, float, str, bool]]:
    """What was asked for: title, figure, bound in words, met."""
    idle = measured.crowd.idle_bytes / size.crowd / KIBIBYTE
    busy_each = measured.crowd.busy_bytes / size.crowd / MEBIBYTE
    alike, among = lowest(measured.alike), lowest(measured.mixed_small())
    evenness = jain(measured.alike)
    slow = percentile(measured.small_seconds(), 0.99)
    return [
        ("KiB resident an idle association", idle, f"< {IDLE_KIBIBYTES}", idle < IDLE_KIBIBYTES),
        (
            "MiB resident a busy association, at most",
            busy_each,
            f"< {BUSY_MEBIBYTES}",
            busy_each < BUSY_MEBIBYTES,
        ),
        ("CT: slowest over mean", alike, f"≥ {LOWEST_SHARE}", alike >= LOWEST_SHARE),
        ("CT: Jain's index", evenness, f"≥ {JAIN}", evenness >= JAIN),
        (
            "small beside large: slowest small over their mean",
            among,
            f"≥ {LOWEST_SHARE}",
            among >= LOWEST_SHARE,
        ),
        (
            "small beside large: seconds to the answer, 99 of 100",
            slow,
            f"< {SMALL_P99_SECONDS}",
            slow < SMALL_P99_SECONDS,
        ),
    ]


def report(measured: Measured, size: Size, described: dict[str, str]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    held = measured.crowd
    rows = [
        [title, tables.short(value), bound, "yes" if met else "no"]
        for title, value, bound, met in figures(measured, size)
    ]
    moved = sum(share.moved for share in measured.alike) / size.seconds / 1e6
    large = sum(share.moved for share in measured.mixed_large()) / size.seconds / 1e6
    small = len(measured.small_seconds()) / size.seconds
    middle = percentile(measured.small_seconds(), 0.5)
    return (
        f"{about}.\n\n{size.crowd} associations of one client on one receiver that drops what it gets: all "
        f"open after {tables.short(held.open_seconds)} s; each within a C-STORE of 4 MiB; one object of 9 KiB "
        f"stored on each in {tables.short(held.serve_seconds)} s. Then {size.senders} that send 512 KiB "
        f"objects for {size.seconds:g} s, window 1: {tables.short(moved)} MB/s. Then {size.large} with 256 MiB "
        f"objects, of which whole ones are counted ({tables.short(large)} MB/s), beside "
        f"{size.senders - size.large} with 9 KiB objects: {tables.short(small)} objects/s, "
        f"{tables.short(middle * 1000)} ms to the answer in the median.\n\n"
        f"{tables.markdown(['figure', 'measured', 'asked for', 'met'], rows)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--congestion", default="cubic", help="of every socket (default: cubic)")
    parser.add_argument("--quick", action="store_true", help="a moment's run; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    size = QUICK if asked.quick else FULL
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with sets.workspace() as folder:
        wire = choose_wire(asked.congestion, folder)
        measured = measure(wire, size)
    described = machine.describe(wire.congestion)
    text = report(measured, size, described)
    print("a moment's run: the figures mean nothing\n" * asked.quick + text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "crowd", text)
        goals = [
            {"goal": title, "measured": value, "asked": bound, "met": met}
            for title, value, bound, met in figures(measured, size)
        ]
        tables.write_json(
            asked.output / "results" / "crowd.json",
            {
                "machine": described,
                "associations": size.crowd,
                "open_seconds": measured.crowd.open_seconds,
                "serve_seconds": measured.crowd.serve_seconds,
                "bytes_moved_each": [share.moved for share in measured.alike],
                "bytes_moved_each_mixed": [share.moved for share in measured.mixed],
                "goals": goals,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
