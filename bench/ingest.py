"""How fast an archive takes a CT study that has to be on the disk before each answer.

`dcmhaul send` into `dcmhaul archive`, on one and on 8 associations, window 1, beside storescu into dcmqrscp
and beside a bare loop that writes and syncs the same files with as many threads. What is sent lies on
tmpfs, what is stored on the disk of `--folder`. dcmqrscp syncs nothing and is asked for no more; of several
associations it refuses, or mixes up, some objects, and is counted as if it had kept them all.
Rounds are interleaved; from each time that of the same senders for one tiny object each is subtracted.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import contenders, machine, process, sets, tables
from bench.contenders import DCMHAUL, DCMTK, DCMTK_NODELAY
from bench.loopback import choose_wire, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.contenders import Wire

HERE = Path(__file__).resolve().parent
AET = "BENCH"
ROUNDS = 7
SEED = 2026
BARE = "write, fsync"
COUNTS = {DCMHAUL: 1000, BARE: 1000, DCMTK_NODELAY: 1000, DCMTK: 60}
QUICK_COUNTS = dict.fromkeys(COUNTS, 8)
ASSOCIATIONS = (1, 8)
TITLES = {
    DCMHAUL: "dcmhaul send → dcmhaul archive",
    DCMTK: "storescu → dcmqrscp, as installed",
    DCMTK_NODELAY: "storescu → dcmqrscp, TCP_NODELAY=1",
    BARE: "bare loop: write, fsync",
}
# What has to hold: (compared with, its associations, ours, at least).
GOALS = ((DCMTK, 1, 1, 15.0), (DCMTK, 1, 8, 50.0), (BARE, 1, 1, 0.5), (BARE, 8, 8, 0.5))


@dataclass(slots=True, kw_only=True)
class Series:
    """Objects a second, a round, and the processor seconds of the receiver an object."""

    count: int
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@contextmanager
def serving(kind: str, wire: Wire, folder: Path) -> Iterator[peers.Server]:
    """An empty archive of that kind in the folder."""
    if kind == DCMHAUL:
        port = peers.free_port()
        argv = [*process.dcmhaul(), "archive", "--dir", str(folder), "--port", str(port)]
        argv += ["--aet", AET, "--bind", peers.LOOPBACK, *wire.own_options()]
        with peers.serve("dcmhaul archive", argv, aet=AET, port=port) as server:
            yield server
    else:
        nodelay = kind == DCMTK_NODELAY
        with peers.dcmqrscp(folder, aet=AET, nodelay=nodelay, env=wire.preload) as server:
            yield server


def write_and_sync(files: Sequence[Path], folder: Path, threads: int) -> float:
    """Seconds to copy the files, each synced before its thread takes the next one."""
    left: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for path in files:
        left.put(path)

    def work() -> None:
        while True:
            try:
                path = left.get_nowait()
            except queue.Empty:
                return
            data = path.read_bytes()
            fd = os.open(folder / path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begun


class Ingest:
    """One run. folder: on the disk that is to be measured."""

    def __init__(
        self,
        wire: Wire,
        data: sets.DataSet,
        tiny: sets.DataSet,
        folder: Path,
        counts: dict[str, int],
        rounds: int,
    ) -> None:
        self.wire = wire
        self.rounds = rounds
        self.data = data
        self.object_bytes = data.dataset_bytes(1)
        self._tiny = tiny
        self._folder = folder
        self.series = {
            (kind, many): Series(count=count)
            for kind, count in counts.items()
            for many in ASSOCIATIONS
            if self._usable(kind)
        }

    @staticmethod
    def _usable(kind: str) -> bool:
        tools = ("storescu", "dcmqrscp") if kind in (DCMTK, DCMTK_NODELAY) else ()
        missing = [tool for tool in tools if peers.find(tool) is None]
        if missing:
            say(f"left out: {TITLES[kind]}: not installed: {', '.join(missing)}")
        return not missing

    def verify(self) -> None:
        """Stores the set once, untimed, and compares the digests of what the archive keeps."""
        target = self._target()
        with serving(DCMHAUL, self.wire, target) as server:
            contenders.send(DCMHAUL, self.wire, server, *self.data.shares(8, len(self.data.files)))
            if sets.digests(target / "objects") != sets.digests(self.data.folder):
                raise process.BenchFailed("what the archive keeps is not what was sent")
        say(f"{len(self.data.files)} objects arrived byte for byte")

    def run(self) -> None:
        order = random.Random(SEED)
        for number in range(self.rounds):
            say(f"round {number + 1} of {self.rounds}")
            todo = list(self.series)
            order.shuffle(todo)
            for kind, many in todo:
                self._once(kind, many)

    def _target(self) -> Path:
        """A new folder on the disk. What the one before left to write is written first.

        None is removed before the end: ext4 passes by what was freed a moment ago, inode by inode, and so
        would charge the next one for it.
        """
        os.sync()
        return Path(tempfile.mkdtemp(dir=self._folder))

    def _once(self, kind: str, many: int) -> None:
        series = self.series[kind, many]
        target = self._target()
        if kind == BARE:
            seconds = write_and_sync(self.data.files[: series.count], target, many)
            series.rates.append(series.count / seconds)
            return
        with serving(kind, self.wire, target) as server:
            send = partial(contenders.send, kind, self.wire, server, halt=many == 1)
            empty = send(*self._tiny.shares(many, many))
            before = process.cpu_seconds(server.process.pid)
            cost = send(*self.data.shares(many, series.count))
            cpu = process.cpu_seconds(server.process.pid) - before
        series.rates.append(series.count / max(cost.seconds - empty.seconds, 1e-4))
        series.cpu.append(cpu / series.count)

    def ratio(self, kind: str, many: int, ours: int) -> float | None:
        """How many times as fast we are, each with so many associations; None where it was not measured."""
        other = self.series.get((kind, many))
        if other is None:
            return None
        return tables.median(self.series[DCMHAUL, ours].rates) / tables.median(other.rates)


def _unit(associations: int) -> str:
    return "one association" if associations == 1 else f"{associations} associations"


def report(bench: Ingest, described: dict[str, str], disk: str) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    size = bench.object_bytes / 1e6
    rows = []
    for many in ASSOCIATIONS:
        rows.append([f"**{_unit(many)}**", *[""] * 5])
        for (kind, of), series in bench.series.items():
            if of != many:
                continue
            rate = tables.median(series.rates)
            ratio = bench.ratio(kind, many, many)
            rows.append(
                [
                    TITLES[kind],
                    tables.short(rate),
                    tables.spread(series.rates),
                    tables.short(rate * size),
                    "" if ratio is None else tables.short(ratio),
                    tables.short(tables.median(series.cpu) * 1e6) if series.cpu else "",
                ]
            )
    header = ["", "objects/s", "lowest-highest", "MB/s", "ours is faster by", "CPU µs an object"]
    goals = [
        [
            f"{_unit(ours)}, against {_unit(many)} of {TITLES[kind]}",
            tables.short(ratio),
            f"{least:g}",
            "yes" if ratio >= least else "no",
        ]
        for kind, many, ours, least in GOALS
        if (ratio := bench.ratio(kind, many, ours)) is not None
    ]
    return (
        f"{about}; stored on: {disk}.\n\n{len(bench.data.files)} slices of {bench.data.shape.title}, window "
        f"1, PDU {contenders.PDU}; {bench.rounds} rounds, medians. Ours answers when object, name and index "
        "row are on the disk; dcmqrscp syncs nothing.\n\n"
        f"{tables.markdown(header, rows)}\n\n"
        f"{tables.markdown(['ratio of medians', 'measured', 'asked for', 'met'], goals)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--congestion", default="cubic", help="of every socket (default: cubic)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="a moment's run; nothing is written")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to be measured (default: where temporary files go)"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    counts, rounds = (QUICK_COUNTS, 1) if asked.quick else (COUNTS, asked.rounds)
    with (
        sets.workspace() as sources,
        tempfile.TemporaryDirectory(prefix="dcmhaul-bench-", dir=asked.folder) as disk,
    ):
        wire = choose_wire(asked.congestion, sources)
        data = sets.make(sources, "ct", max(counts.values()))
        tiny = sets.make(sources, "small", max(ASSOCIATIONS), seed=2)
        bench = Ingest(wire, data, tiny, Path(disk), counts, rounds)
        bench.verify()
        bench.run()
        kind = machine.filesystem(Path(disk))
    described = machine.describe(wire.congestion)
    text = report(bench, described, kind)
    print("a moment's run: the figures mean nothing\n" * asked.quick + text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "ingest", text)
        results = {
            f"{kind}, {many}": {
                "objects": series.count,
                "objects_per_second": series.rates,
                "receiver_cpu_seconds_an_object": series.cpu,
            }
            for (kind, many), series in bench.series.items()
        }
        goals = [
            {
                "associations": ours,
                "against": f"{kind}, {many}",
                "ratio": bench.ratio(kind, many, ours),
                "at_least": least,
            }
            for kind, many, ours, least in GOALS
        ]
        tables.write_json(
            asked.output / "results" / "ingest.json",
            {"machine": described, "filesystem": kind, "results": results, "goals": goals},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
