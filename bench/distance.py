"""How much of the local rate is left over a long line, by associations and window.

`dcmhaul send` to `dcmhaul receive --discard` through a relay of our own (`relay_line.py`), which hands every
byte on half a round trip after it came. Rounds are interleaved and medians compared, with those of the
same relay without delay, for it costs something itself. From each time the same sender's time for one tiny
object an association over the same line is subtracted, so that start-up is not counted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import contenders, loopback, machine, process, sets, tables
from bench.contenders import DCMHAUL
from bench.loopback import choose_wire, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.contenders import Wire

HERE = Path(__file__).resolve().parent
# Long enough that the fastest setting takes 2 seconds without delay on a machine of 2026.
FULL = {"ct": 10000, "small": 40000}
QUICK = {"ct": 8, "small": 8}
# What is limited by the round trip sends as much as that lets through in this time.
WAITING_SECONDS = 4
VERIFIED = 400
ROUNDS = 5
SEED = 2026

ROUND_TRIPS_MS = (0, 20, 80)
ASSOCIATIONS_AND_WINDOWS = ((1, 1), (1, 16), (4, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One set over one line; window: on each association."""

    name: str
    round_trip_ms: int
    associations: int
    window: int

    @property
    def title(self) -> str:
        return f"{self.round_trip_ms} ms, {self.associations}x{self.window}"

    def allowed(self) -> float | None:
        """Objects a second, for no more than the windows are under way at once; None: any number."""
        if not self.round_trip_ms:
            return None
        return self.associations * self.window * 1000 / self.round_trip_ms

    def count(self, full: int) -> int:
        """How many objects of a set of `full` it sends, so that slow settings end as soon as others."""
        allowed = self.allowed()
        if allowed is not None:
            return max(2 * self.associations, min(full, round(allowed * WAITING_SECONDS)))
        return full if self.window > 1 else full // 2


SETTINGS = tuple(
    Setting(name=name, round_trip_ms=round_trip, associations=associations, window=window)
    for name, round_trip, (associations, window) in product(
        FULL, ROUND_TRIPS_MS, ASSOCIATIONS_AND_WINDOWS
    )
)
CT, SMALL, SMALL_FAR = (
    Setting(name=name, round_trip_ms=round_trip, associations=4, window=16)
    for name, round_trip in (("ct", 20), ("small", 20), ("small", 80))
)


def local(setting: Setting) -> Setting:
    return replace(setting, round_trip_ms=0)


def one_by_one(setting: Setting) -> Setting:
    return replace(setting, associations=1, window=1)


# What has to hold: (what, setting, compared with, at least).
GOALS = (
    ("CT, 20 ms, 4x16, against the same at 0 ms", CT, local(CT), 0.9),
    ("small objects, 20 ms, 4x16, against 1x1", SMALL, one_by_one(SMALL), 40.0),
    ("small objects, 80 ms, 4x16, against 1x1", SMALL_FAR, one_by_one(SMALL_FAR), 40.0),
)


@dataclass(slots=True, kw_only=True)
class Series(loopback.Series):
    """One setting over all rounds; relay_cpu: CPU seconds, as those of both ends."""

    associations: int
    relay_cpu: list[float] = field(default_factory=list)

    def rates(self) -> list[float]:
        """Without as many objects as the start-up has: over a line each has a round trip in it."""
        count = self.count - self.associations
        return [count / seconds for seconds in self.seconds()]

    def shares(self) -> list[float]:
        """Of the time in which sender, relay and receiver had a processor."""
        seconds = tables.median(self.seconds())
        of_all = (self.sender_cpu, self.relay_cpu, self.receiver_cpu)
        return [tables.median(cpu) / seconds for cpu in of_all]

    def as_json(self) -> dict[str, Any]:
        return {**loopback.Series.as_json(self), "relay_cpu_seconds": self.relay_cpu}


@contextmanager
def relayed(wire: Wire, server: peers.Server, round_trip_ms: int) -> Iterator[peers.Server]:
    """The server at the other end of such a line."""
    port = peers.free_port()
    argv = [sys.executable, "-m", "bench.relay_line", str(port), str(server.port)]
    argv += [str(round_trip_ms), *wire.own_options()]
    relay = peers.serve("relay", argv, aet=server.aet, port=port, cwd=process.ROOT)
    with relay as far:
        yield far


class Distance:
    """One run. sizes: how many objects each set has."""

    def __init__(self, folder: Path, wire: Wire, sizes: Mapping[str, int], rounds: int) -> None:
        self.wire = wire
        self.rounds = rounds
        self.folder = folder
        self.sets = {name: sets.make(folder, name, count) for name, count in sizes.items()}
        self.results: dict[Setting, Series] = {}

    def verify(self) -> None:
        """Sends a part of each set over a line, untimed, into files, and compares all digests."""
        for data in self.sets.values():
            folders = data.shares(4, min(VERIFIED, len(data.files)))
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                target = Path(scratch)
                with (
                    contenders.receiver(DCMHAUL, self.wire, target) as server,
                    relayed(self.wire, server, ROUND_TRIPS_MS[1]) as far,
                ):
                    contenders.send(DCMHAUL, self.wire, far, *folders, window=16)
                sent = {uid: digest for one in folders for uid, digest in sets.digests(one).items()}
                if sets.digests(target) != sent:
                    raise process.BenchFailed("what arrived over the line is not what was sent")
            say(f"{len(sent)} {data.shape.title} arrived over the line byte for byte")

    def run(self) -> None:
        order = random.Random(SEED)
        with ExitStack() as stack:
            server = stack.enter_context(contenders.receiver(DCMHAUL, self.wire))
            lines = {
                round_trip: stack.enter_context(relayed(self.wire, server, round_trip))
                for round_trip in ROUND_TRIPS_MS
            }
            for number in range(self.rounds):
                say(f"round {number + 1} of {self.rounds}")
                todo = list(SETTINGS)
                order.shuffle(todo)
                for setting in todo:
                    self._once(setting, lines[setting.round_trip_ms], server)

    def _once(self, setting: Setting, far: peers.Server, server: peers.Server) -> None:
        many, data = setting.associations, self.sets[setting.name]
        count = setting.count(len(data.files))
        series = self.results.setdefault(
            setting, Series(count=count, dataset_bytes=data.dataset_bytes(count), associations=many)
        )
        folders = data.shares(many, count)
        send = partial(contenders.send, DCMHAUL, self.wire, far, window=setting.window)
        empty = send(*self.sets["small"].shares(many, many))
        ends = far.process.pid, server.process.pid
        before = [process.cpu_seconds(pid) for pid in ends]
        cost = send(*folders)
        relay_cpu, receiver_cpu = (
            process.cpu_seconds(pid) - since for pid, since in zip(ends, before, strict=True)
        )
        series.startup.append(empty.seconds)
        series.wall.append(cost.seconds)
        series.sender_cpu.append(max(0.0, cost.cpu_seconds - empty.cpu_seconds))
        series.relay_cpu.append(relay_cpu)
        series.receiver_cpu.append(receiver_cpu)

    def ratio(self, setting: Setting, other: Setting) -> float:
        """Median of the one over median of the other."""
        one, two = (tables.median(self.results[of].rates()) for of in (setting, other))
        return one / two

    def share_of_possible(self, setting: Setting) -> float:
        """Of the local rate, or of what the windows allow where that is less."""
        rate, near = (tables.median(self.results[of].rates()) for of in (setting, local(setting)))
        return rate / min(near, setting.allowed() or near)


def result_table(bench: Distance) -> str:
    header = [
        "round trip, associations x window",
        "objects/s",
        "lowest-highest",
        "MB/s",
        "of 0 ms",
        "of what is possible",
        "against 1x1",
        "the windows allow",
        "busy: sender + relay + receiver",
    ]
    rows: list[list[str]] = []
    for name, data in bench.sets.items():
        rows.append([f"**{data.shape.title}**", *[""] * (len(header) - 1)])
        for setting in (setting for setting in SETTINGS if setting.name == name):
            series, allowed = bench.results[setting], setting.allowed()
            rate = tables.median(series.rates())
            rows.append(
                [
                    setting.title,
                    tables.short(rate),
                    tables.spread(series.rates()),
                    tables.short(rate * series.dataset_bytes / series.count / 1e6),
                    tables.short(bench.ratio(setting, local(setting))),
                    tables.short(bench.share_of_possible(setting)),
                    tables.short(bench.ratio(setting, one_by_one(setting))),
                    "" if allowed is None else tables.short(allowed),
                    " + ".join(f"{share:.0%}" for share in series.shares()),
                ]
            )
    return tables.markdown(header, rows)


def goal_rows(bench: Distance) -> list[tuple[str, float, float]]:
    return [(title, bench.ratio(one, two), least) for title, one, two, least in GOALS]


def report(bench: Distance, described: Mapping[str, str]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    sizes = "; ".join(f"{len(data.files)} of {data.shape.title}" for data in bench.sets.values())
    goals = [
        [title, tables.short(ratio), f"{least:g}", "yes" if ratio >= least else "no"]
        for title, ratio, least in goal_rows(bench)
    ]
    return (
        f"{about}.\n\nSets: {sizes}; settings that the round trip slows down send fewer. PDU "
        f"{contenders.PDU}, {bench.rounds} rounds, medians; the receiver drops what it gets. Subtracted "
        "from each time: the same sender's median time for one tiny object an association over the same "
        "line. Sender, relay and receiver share the processors. What is possible: the local rate, or as many "
        f"objects a round trip as the windows hold, whichever is less.\n\n{result_table(bench)}\n\n"
        f"{tables.markdown(['ratio of medians', 'measured', 'asked for', 'met'], goals)}"
    )


def as_json(bench: Distance, described: Mapping[str, str]) -> dict[str, Any]:
    return {
        "machine": dict(described),
        "pdu": contenders.PDU,
        "rounds": bench.rounds,
        "results": {
            name: {
                setting.title: series.as_json()
                for setting, series in bench.results.items()
                if setting.name == name
            }
            for name in bench.sets
        },
        "goals": [
            {"goal": title, "ratio": ratio, "at_least": least}
            for title, ratio, least in goal_rows(bench)
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--congestion", default="cubic", help="'kernel' leaves the default")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="a moment's run; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    sizes, rounds = (QUICK, 1) if asked.quick else (FULL, asked.rounds)
    with sets.workspace() as folder:
        wire = choose_wire(asked.congestion, folder)
        bench = Distance(folder, wire, sizes, rounds)
        bench.verify()
        bench.run()
    described = machine.describe(wire.congestion)
    text = report(bench, described)
    print("a moment's run: the figures mean nothing\n" * asked.quick + text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "distance", text)
        tables.write_json(asked.output / "results" / "distance.json", as_json(bench, described))
    return 0


if __name__ == "__main__":
    sys.exit(main())
