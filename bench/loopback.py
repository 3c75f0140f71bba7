"""How fast one association is on this machine's loopback, beside DCMTK, pynetdicom and plain TCP.

Every pair sends the same sets from tmpfs in the same run: rounds are interleaved, so that drift hits
all alike, and medians are compared. Times are whole processes; from each the same sender's median time
for one tiny object, measured in the same run, is subtracted, so that start-up is not counted for
anybody. Every socket has the same congestion control.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import congestion, contenders, machine, process, sets, tables
from bench.contenders import DCMHAUL, Pair, Wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).resolve().parent
# Long enough that DCMTK with TCP_NODELAY=1 takes 3 seconds for each on a machine of 2026.
FULL = {"large": 16, "ct": 6000, "small": 15000}
QUICK = {"large": 1, "ct": 3, "small": 8}
ROUNDS = 7
IPERF_SECONDS = 3
SEED = 2026

# What has to hold: (what, set, pair, compared with, at least).
GOALS = (
    ("large objects", "large", "ours-1", "dcmtk-nodelay", 4.0),
    ("large objects, PDU 16384", "large", "ours-16384", "dcmtk-nodelay-16384", 1.8),
    ("CT", "ct", "ours-1", "dcmtk-nodelay", 1.8),
    ("CT, window 16", "ct", "ours-16", "dcmtk-nodelay", 3.0),
    ("small objects", "small", "ours-1", "dcmtk-nodelay", 1.3),
    ("small objects, window 16", "small", "ours-16", "dcmtk-nodelay", 6.0),
    ("small objects, 8 associations", "small", "ours-8", "dcmtk-nodelay-8", 2.5),
    ("CT to an as-installed storescp", "ct", "to-dcmtk", "dcmtk", 60.0),
    ("small objects to an as-installed storescp", "small", "to-dcmtk", "dcmtk", 150.0),
    ("CT from an as-installed storescu", "ct", "from-dcmtk", "dcmtk", 40.0),
    ("small objects from an as-installed storescu", "small", "from-dcmtk", "dcmtk", 100.0),
    ("large objects to pynetdicom", "large", "to-pynetdicom", "pynetdicom", 1.0),
    ("large objects from pynetdicom", "large", "from-pynetdicom", "pynetdicom", 1.0),
    ("CT to pynetdicom", "ct", "to-pynetdicom", "pynetdicom", 1.0),
    ("CT from pynetdicom", "ct", "from-pynetdicom", "pynetdicom", 1.0),
    ("small objects to pynetdicom", "small", "to-pynetdicom", "pynetdicom", 10.0),
    ("small objects from pynetdicom", "small", "from-pynetdicom", "pynetdicom", 10.0),
)
AGAINST = {
    "dcmtk-nodelay": "DCMTK, TCP_NODELAY=1",
    "dcmtk-nodelay-8": "8 storescu and storescp --fork, TCP_NODELAY=1",
    "dcmtk-nodelay-16384": "DCMTK, TCP_NODELAY=1, PDU 16384",
    "dcmtk": "DCMTK as installed, both ends",
    "pynetdicom": "pynetdicom, both ends",
}
# Of the plain TCP stream that the kernel sends from a file.
SHARE_OF_SENDFILE = 0.75
# Processor seconds a byte of DCMTK with TCP_NODELAY=1, both ends, over ours.
CPU_RATIO = 2.0


@dataclass(slots=True, kw_only=True)
class Series:
    """One pair on one set over all rounds: wall seconds, start-up seconds, CPU seconds of both ends."""

    count: int
    dataset_bytes: int
    wall: list[float] = field(default_factory=list)
    startup: list[float] = field(default_factory=list)
    sender_cpu: list[float] = field(default_factory=list)
    receiver_cpu: list[float] = field(default_factory=list)

    def seconds(self) -> list[float]:
        """Each round's time without the start-up; never less than a tenth of a millisecond."""
        startup = tables.median(self.startup)
        return [max(wall - startup, 1e-4) for wall in self.wall]

    def rates(self) -> list[float]:
        """Objects a second, a round."""
        return [self.count / seconds for seconds in self.seconds()]

    def busy(self) -> tuple[float, float]:
        """The share of the time in which sender and receiver had a processor."""
        seconds = tables.median(self.seconds())
        return (
            tables.median(self.sender_cpu) / seconds,
            tables.median(self.receiver_cpu) / seconds,
        )

    def cpu_a_byte(self) -> float:
        """Processor seconds of both ends."""
        both = tables.median(self.sender_cpu) + tables.median(self.receiver_cpu)
        return both / self.dataset_bytes

    def as_json(self) -> dict[str, Any]:
        return {
            "objects": self.count,
            "dataset_bytes": self.dataset_bytes,
            "wall_seconds": self.wall,
            "startup_seconds": self.startup,
            "sender_cpu_seconds": self.sender_cpu,
            "receiver_cpu_seconds": self.receiver_cpu,
            "objects_per_second": tables.median(self.rates()),
            "mb_per_second": tables.median(self.rates()) * self.dataset_bytes / self.count / 1e6,
        }


Results = dict[tuple[str, str], Series]


class Loopback:
    """One run under one congestion control. `sizes` says how many objects each set has.

    pairs: None takes all of `contenders`. `run(0)` leaves iperf3 out.
    """

    def __init__(
        self,
        folder: Path,
        wire: Wire,
        sizes: Mapping[str, int],
        rounds: int,
        pairs: Sequence[Pair] | None = None,
    ) -> None:
        self.wire = wire
        self.rounds = rounds
        self.folder = folder
        self.sets = {
            name: sets.make(
                folder, name, count, sets.QUICK_SHAPES[name] if sizes is QUICK else None
            )
            for name, count in sizes.items()
        }
        self.tiny = self.sets["small"]
        wanted = contenders.pairs(sizes) if pairs is None else pairs
        self.pairs = [pair for pair in wanted if self._usable(pair)]
        self.results: Results = {}
        self.iperf: dict[str, list[float]] = {}

    @staticmethod
    def _usable(pair: Pair) -> bool:
        missing = pair.missing()
        if missing:
            say(f"left out: {pair.title}: not installed: {', '.join(missing)}")
        return not missing

    def verify(self) -> None:
        """Sends each set once, untimed, into files, and compares the digests of every dataset."""
        for name, data in self.sets.items():
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                target = Path(scratch)
                with contenders.receiver(DCMHAUL, self.wire, target) as server:
                    contenders.send(DCMHAUL, self.wire, server, data.folder, window=16)
                if sets.digests(target) != sets.digests(data.folder):
                    raise process.BenchFailed(f"set {name}: what arrived is not what was sent")
            say(f"set {name}: {len(data.files)} objects arrived byte for byte")

    def run(self, iperf_seconds: int) -> None:
        order = random.Random(SEED)
        for number in range(self.rounds):
            say(f"round {number + 1} of {self.rounds}")
            todo = [(name, pair) for pair in self.pairs for name in pair.counts]
            order.shuffle(todo)
            self._iperf(iperf_seconds)
            for name, pair in todo:
                self._once(name, pair)

    def _iperf(self, seconds: int) -> None:
        if not seconds or peers.find("iperf3") is None:
            return
        for name, sendfile in (("iperf3", False), ("iperf3 -Z", True)):
            rate = contenders.iperf3(self.wire, seconds, sendfile=sendfile)
            self.iperf.setdefault(name, []).append(rate)

    def _once(self, name: str, pair: Pair) -> None:
        data, count = self.sets[name], pair.counts[name]
        folders = data.shares(pair.associations, count)
        tiny = self.tiny.shares(pair.associations, pair.associations)
        send = partial(contenders.send, pair.sender, self.wire, window=pair.window, pdu=pair.pdu)
        series = self.results.get((name, pair.key))
        if series is None:
            series = Series(count=count, dataset_bytes=data.dataset_bytes(count))
            self.results[name, pair.key] = series
        with contenders.receiver(
            pair.receiver, self.wire, associations=pair.associations, pdu=pair.pdu
        ) as server:
            empty = send(server, *tiny)
            before = process.cpu_seconds(server.process.pid)
            cost = send(server, *folders)
            receiver_cpu = process.cpu_seconds(server.process.pid) - before
        series.startup.append(empty.seconds)
        series.wall.append(cost.seconds)
        series.sender_cpu.append(max(0.0, cost.cpu_seconds - empty.cpu_seconds))
        series.receiver_cpu.append(receiver_cpu)

    def ratio(self, name: str, key: str, other: str) -> float | None:
        """Median of the one over median of the other; None where one was not measured."""
        one, two = self.results.get((name, key)), self.results.get((name, other))
        if one is None or two is None:
            return None
        return tables.median(one.rates()) / tables.median(two.rates())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def result_table(bench: Loopback) -> str:
    header = [
        "",
        "objects/s",
        "lowest-highest",
        "MB/s",
        "against DCMTK NODELAY",
        "CPU s/GB, both ends",
        "busy",
    ]
    rows: list[list[str]] = []
    for name, data in bench.sets.items():
        rows.append([f"**{data.shape.title}**", *[""] * (len(header) - 1)])
        for pair in bench.pairs:
            series = bench.results.get((name, pair.key))
            if series is None:
                continue
            rate = tables.median(series.rates())
            ratio = bench.ratio(name, pair.key, "dcmtk-nodelay")
            cpu = tables.median(series.sender_cpu), tables.median(series.receiver_cpu)
            gigabytes = series.dataset_bytes / 1e9
            rows.append(
                [
                    pair.title,
                    tables.short(rate),
                    tables.spread(series.rates()),
                    tables.short(rate * series.dataset_bytes / series.count / 1e6),
                    "" if ratio is None else tables.short(ratio),
                    " + ".join(tables.short(seconds / gigabytes) for seconds in cpu),
                    " + ".join(f"{share:.0%}" for share in series.busy()),
                ]
            )
    if bench.iperf:
        rows.append(["**plain TCP**", *[""] * (len(header) - 1)])
    for name, rates in bench.iperf.items():
        megabytes = [rate / 1e6 for rate in rates]
        median, spread = tables.short(tables.median(megabytes)), tables.spread(megabytes)
        rows.append([f"{name} (MB/s)", "", spread, median, "", "", ""])
    return tables.markdown(header, rows)


def goal_rows(bench: Loopback) -> list[tuple[str, float | None, float]]:
    rows = [
        (f"{title}, against {AGAINST[other]}", bench.ratio(name, key, other), least)
        for title, name, key, other, least in GOALS
    ]
    ours, theirs = (bench.results.get(("large", key)) for key in ("ours-1", "dcmtk-nodelay"))
    sendfile = bench.iperf.get("iperf3 -Z")
    if ours is not None and sendfile:
        rate = tables.median(ours.rates()) * ours.dataset_bytes / ours.count
        share = rate / tables.median(sendfile)
        rows.insert(1, ("large objects, against iperf3 -Z", share, SHARE_OF_SENDFILE))
    if ours is not None and theirs is not None:
        saved = theirs.cpu_a_byte() / max(ours.cpu_a_byte(), 1e-15)
        title = "large objects, processor time of DCMTK, TCP_NODELAY=1, over ours, both ends"
        rows.append((title, saved, CPU_RATIO))
    return rows


def goal_table(bench: Loopback) -> str:
    rows = [
        [
            title,
            "not measured" if ratio is None else tables.short(ratio),
            f"{least:g}",
            "" if ratio is None else ("yes" if ratio >= least else "no"),
        ]
        for title, ratio, least in goal_rows(bench)
    ]
    return tables.markdown(["ratio of medians", "measured", "asked for", "met"], rows)


def report(bench: Loopback, described: Mapping[str, str]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    sizes = "; ".join(f"{len(data.files)} of {data.shape.title}" for data in bench.sets.values())
    return (
        f"{about}.\n\nSets: {sizes}; slow pairs send fewer. PDU {contenders.PDU} and one association where "
        f"nothing else is said, {bench.rounds} rounds, medians; receivers drop what they get. Subtracted "
        "from each time: the same sender's median time for one tiny object an association.\n\n"
        f"{result_table(bench)}\n\n{goal_table(bench)}"
    )


def as_json(bench: Loopback, described: Mapping[str, str]) -> dict[str, Any]:
    return {
        "machine": dict(described),
        "pdu": contenders.PDU,
        "rounds": bench.rounds,
        "results": {
            name: {
                key: series.as_json() for (of, key), series in bench.results.items() if of == name
            }
            for name in bench.sets
        },
        "iperf3_bytes_per_second": bench.iperf,
        "goals": [
            {"goal": title, "ratio": ratio, "at_least": least}
            for title, ratio, least in goal_rows(bench)
        ],
    }


def choose_wire(name: str, folder: Path) -> Wire:
    if name == "kernel":
        return Wire(congestion=None, preload={})
    if not congestion.usable(name):
        sys.exit(
            f"this kernel or user cannot set the congestion control {name!r}: see --congestion"
        )
    return Wire(congestion=name, preload=congestion.preload(folder, name))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--congestion",
        action="append",
        help="one table under this congestion control; repeatable; 'kernel' leaves the default "
        "(default: cubic)",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of each set that is sent"
    )
    parser.add_argument("--quick", action="store_true", help="a moment's run; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    process.end_on_sigterm()
    sizes = QUICK if asked.quick else {n: max(1, int(c * asked.scale)) for n, c in FULL.items()}
    rounds, seconds = (1, 1) if asked.quick else (asked.rounds, IPERF_SECONDS)
    for name in asked.congestion or ["cubic"]:
        with sets.workspace() as folder:
            wire = choose_wire(name, folder)
            bench = Loopback(folder, wire, sizes, rounds)
            bench.verify()
            bench.run(seconds)
        described = machine.describe(wire.congestion)
        text = report(bench, described)
        print("a moment's run: the figures mean nothing\n" * asked.quick + text)
        if not asked.quick:
            tables.replace_marked(asked.output / "README.md", f"loopback {name}", text)
            results = asked.output / "results" / f"loopback-{name}.json"
            tables.write_json(results, as_json(bench, described))
    return 0


if __name__ == "__main__":
    sys.exit(main())
