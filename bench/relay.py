"""How fast `migrate` moves CT studies from one archive to another, every object durable and in the ledger.

On 8 associations, beside what it is made of: `send` on 8 associations to a `receive` whose files are as
durable, and to the archive that `migrate` stores in. The source lies on tmpfs, what is stored and the ledger
on the disk of `--folder`. Rounds are interleaved; from each time that of the same command for the smallest
set, measured in the same run, is subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import contenders, machine, process, sets, tables
from bench.contenders import DCMHAUL
from bench.loopback import choose_wire, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.contenders import Wire

HERE = Path(__file__).resolve().parent
AET = "BENCH"
ASSOCIATIONS, WINDOW = 8, 8
STUDIES, INSTANCES = 40, 1000
QUICK_STUDIES, QUICK_INSTANCES = 2, 8
ROUNDS = 7
SEED = 2026
LEAST = 0.5

MIGRATE = "archive → migrate → archive"
RECEIVE = "send → receive -od"
ARCHIVE = "send → archive"
TITLES = (MIGRATE, RECEIVE, ARCHIVE)


@contextmanager
def archive(folder: Path, wire: Wire, source: Path | None = None) -> Iterator[peers.Server]:
    """A `dcmhaul archive`; with the instances of `source` where they lie."""
    port = peers.free_port()
    argv = [*process.dcmhaul(), "archive", "--dir", str(folder), "--port", str(port)]
    argv += ["--aet", AET, "--bind", peers.LOOPBACK, *wire.own_options()]
    argv += ["--import", str(source)] if source is not None else []
    with peers.serve("dcmhaul archive", argv, aet=AET, port=port) as server:
        yield server


class Relay:
    """One run: objects a second of each round. folder: on the disk that is to be measured."""

    def __init__(self, wire: Wire, folder: Path, data: sets.DataSet, tiny: sets.DataSet) -> None:
        self.wire = wire
        self.object_bytes = data.dataset_bytes(1)
        self.rates: dict[str, list[float]] = {title: [] for title in TITLES}
        self._folder = folder
        self._data = data
        self._tiny = tiny

    def run(self, old: peers.Server, empty: peers.Server, rounds: int) -> None:
        """old: holds the set; empty: holds the smallest one."""
        todo: dict[str, Callable[[], tuple[float, float]]] = {
            MIGRATE: partial(self._migrate, old, empty),
            RECEIVE: partial(self._send, keep=False),
            ARCHIVE: partial(self._send, keep=True),
        }
        order = random.Random(SEED)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            titles = list(todo)
            order.shuffle(titles)
            for title in titles:
                seconds, least = todo[title]()
                self.rates[title].append(len(self._data.files) / max(seconds - least, 1e-4))

    def _target(self) -> Path:
        """A new folder on the disk; none is removed before the end, as in `ingest.py`."""
        os.sync()
        return Path(tempfile.mkdtemp(dir=self._folder))

    def _migrate(self, old: peers.Server, empty: peers.Server) -> tuple[float, float]:
        target = self._target()
        with archive(target / "new", self.wire) as new:
            least = self._job(empty, new, target / "empty.db", 1)
            return self._job(old, new, target / "ledger.db", len(self._data.files)), least

    def _job(self, old: peers.Server, new: peers.Server, ledger: Path, count: int) -> float:
        argv = [*process.dcmhaul(), "migrate", old.address, new.address, "--json", "--job", "bench"]
        argv += ["--ledger", f"sqlite:///{ledger}", "--associations", str(ASSOCIATIONS)]
        argv += ["--window", str(WINDOW), *self.wire.own_options()]
        cost = process.run(argv, env=peers.environment())
        summary = json.loads(cost.output.strip().splitlines()[-1])
        if summary["instances"] != count:
            raise process.BenchFailed(f"migrate moved {summary}, not {count} instances")
        return cost.seconds

    def _send(self, *, keep: bool) -> tuple[float, float]:
        target = self._target()
        serving = (
            archive(target, self.wire)
            if keep
            else contenders.receiver(DCMHAUL, self.wire, target / "files")
        )
        with serving as server:
            send = partial(contenders.send, DCMHAUL, self.wire, server, window=WINDOW)
            least = send(self._tiny.folder).seconds
            return send(*self._data.shares(ASSOCIATIONS, len(self._data.files))).seconds, least

    def ratio(self) -> float:
        return tables.median(self.rates[MIGRATE]) / tables.median(self.rates[RECEIVE])


def measure(congestion: str, where: Path | None, *, quick: bool, rounds: int) -> tuple[Relay, str]:
    """The run, and the type of the filesystem that was measured."""
    studies, instances = (QUICK_STUDIES, QUICK_INSTANCES) if quick else (STUDIES, INSTANCES)
    with (
        sets.workspace() as sources,
        tempfile.TemporaryDirectory(prefix="dcmhaul-bench-", dir=where) as disk,
    ):
        wire = choose_wire(congestion, sources)
        data = sets.make(sources, "ct", instances, studies=studies)
        tiny = sets.make(sources, "small", 1, seed=2)
        bench = Relay(wire, Path(disk), data, tiny)
        with (
            archive(sources / "old", wire, data.folder) as old,
            archive(sources / "empty", wire, tiny.folder) as empty,
        ):
            bench.run(old, empty, rounds)
        return bench, machine.filesystem(Path(disk))


def report(bench: Relay, described: dict[str, str], disk: str, rounds: int) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    rows = [
        [
            title,
            tables.short(tables.median(rates)),
            tables.spread(rates),
            tables.short(tables.median(rates) * bench.object_bytes / 1e6),
        ]
        for title, rates in bench.rates.items()
    ]
    ratio = bench.ratio()
    goal = [[f"{MIGRATE}, against {RECEIVE}", tables.short(ratio), f"{LEAST:g}"]]
    goal[0].append("yes" if ratio >= LEAST else "no")
    return (
        f"{about}; stored on: {disk}.\n\n{INSTANCES} slices of 512 KiB in {STUDIES} studies, {ASSOCIATIONS} "
        f"associations, window {WINDOW}, PDU {contenders.PDU}; {rounds} rounds, medians.\n\n"
        f"{tables.markdown(['', 'objects/s', 'lowest-highest', 'MB/s'], rows)}\n\n"
        f"{tables.markdown(['ratio of medians', 'measured', 'asked for', 'met'], goal)}"
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
    rounds = 1 if asked.quick else asked.rounds
    bench, disk = measure(asked.congestion, asked.folder, quick=asked.quick, rounds=rounds)
    described = machine.describe(bench.wire.congestion)
    text = report(bench, described, disk, rounds)
    print("a moment's run: the figures mean nothing\n" * asked.quick + text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "relay", text)
        tables.write_json(
            asked.output / "results" / "relay.json",
            {
                "machine": described,
                "filesystem": disk,
                "objects_per_second": bench.rates,
                "goals": [{"ratio": bench.ratio(), "at_least": LEAST}],
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
