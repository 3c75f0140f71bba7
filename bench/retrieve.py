"""How fast a CT study comes by C-GET: our `get` from our archive, beside DCMTK's getscu from dcmqrscp.

Every pair retrieves synthetic 512 KiB slices in the same run and in turns: dropped, as the other benchmarks
have it, and into files on tmpfs, which nobody syncs. Times are those of the connection that carries the
C-GET, from connect to close, so that nobody's start-up is counted; `get` asks by C-FIND first what classes and
syntaxes to propose, and a column tells what it is with that. Pairs that stall get a study of fewer slices:
their rate is the same.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import contenders, machine, process, sets, tables
from bench.contenders import DCMTK, DCMTK_NODELAY
from bench.loopback import choose_wire, say
from bench.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.contenders import Wire

HERE = Path(__file__).resolve().parent
AET = "BENCH"
INSTANCES, FEW = 1000, 60
QUICK_INSTANCES, QUICK_FEW = 6, 3
ROUNDS = 7
SEED = 2026

GET = "dcmhaul get"
ARCHIVE = "dcmhaul archive"
TITLES = {
    GET: GET,
    ARCHIVE: ARCHIVE,
    DCMTK_NODELAY: "TCP_NODELAY=1",
    DCMTK: "as installed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Who retrieves from whom; `whole`: the study of all slices, not the one of few. kept: in files."""

    scu: str
    scp: str
    whole: bool = True
    kept: bool = False
    window: int = 1

    @property
    def title(self) -> str:
        scu = f"{GET} (window {self.window})" if self.scu == GET else f"getscu, {TITLES[self.scu]}"
        scp = ARCHIVE if self.scp == ARCHIVE else f"dcmqrscp, {TITLES[self.scp]}"
        return f"{scu} ← {scp}{', into files' if self.kept else ''}"


OURS = Pair(scu=GET, scp=ARCHIVE, window=16)
NODELAY = Pair(scu=DCMTK_NODELAY, scp=DCMTK_NODELAY)
INSTALLED = Pair(scu=DCMTK, scp=DCMTK, whole=False)
PAIRS = (
    OURS,
    replace(OURS, window=1),
    NODELAY,
    INSTALLED,
    Pair(scu=GET, scp=DCMTK),
    Pair(scu=DCMTK, scp=ARCHIVE),
    replace(OURS, kept=True),
    replace(OURS, kept=True, window=1),
    replace(NODELAY, kept=True),
    replace(INSTALLED, kept=True),
)
# What has to hold: our pair is so many times as fast.
GOALS = tuple(
    (replace(pair, kept=kept), least)
    for kept in (False, True)
    for pair, least in ((NODELAY, 3.0), (INSTALLED, 50.0))
)


Servers = dict[str, peers.Server]


@contextmanager
def serving(folder: Path, wire: Wire, studies: Sequence[sets.DataSet]) -> Iterator[Servers]:
    """Every SCP with both studies: ours has them where they lie, dcmqrscp by C-STORE."""
    with ExitStack() as stack:
        port = peers.free_port()
        argv = [*process.dcmhaul(), "archive", "--dir", str(folder / "store"), "--port", str(port)]
        argv += ["--aet", AET, "--bind", peers.LOOPBACK, *wire.own_options()]
        for data in studies:
            argv += ["--import", str(data.folder)]
        ours = peers.serve(ARCHIVE, argv, aet=AET, port=port, env=wire.preload)
        servers = {ARCHIVE: stack.enter_context(ours)}
        if peers.find("getscu") is None or peers.find("dcmqrscp") is None:
            say("left out: getscu and dcmqrscp: not installed")
        else:
            for kind in (DCMTK_NODELAY, DCMTK):
                nodelay = kind == DCMTK_NODELAY
                held = folder / ("nodelay" if nodelay else "installed")
                archive = peers.dcmqrscp(held, aet=AET, nodelay=nodelay, env=wire.preload)
                servers[kind] = stack.enter_context(archive)
                for data in studies:
                    contenders.send(contenders.DCMHAUL, wire, servers[kind], data.folder)
        yield servers


class Retrieve:
    """One run: objects a second of each round, by pair."""

    def __init__(
        self, folder: Path, wire: Wire, whole: sets.DataSet, few: sets.DataSet, rounds: int
    ) -> None:
        self.wire = wire
        self.rounds = rounds
        self.whole = whole
        self.rates: dict[Pair, list[float]] = {}
        self.whole_rates: dict[Pair, list[float]] = {}
        self._watch = Stopwatch(folder)
        self._target = folder / "retrieved"
        self._studies = {True: (whole, _study_uid(whole)), False: (few, _study_uid(few))}

    def run(self, servers: Servers) -> None:
        order = random.Random(SEED)
        pairs = [pair for pair in PAIRS if pair.scp in servers]
        pairs = [pair for pair in pairs if pair.scu == GET or DCMTK in servers]
        for number in range(self.rounds):
            say(f"round {number + 1} of {self.rounds}")
            order.shuffle(pairs)
            for pair in pairs:
                rate, whole = self._once(pair, servers[pair.scp])
                self.rates.setdefault(pair, []).append(rate)
                self.whole_rates.setdefault(pair, []).append(whole)

    def _once(self, pair: Pair, server: peers.Server) -> tuple[float, float]:
        """Objects a second of the C-GET's association, and of all that led to it."""
        data, study_uid = self._studies[pair.whole]
        count = len(data.files)
        self._target.mkdir()
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}"]
        options = ["-S", *keys, "-pdu", str(contenders.PDU)]
        into = ["-od", str(self._target)]
        if pair.scu == GET:
            into = [*into, "--durable", "none"] if pair.kept else ["--discard"]
            argv = [*process.dcmhaul(), "get", server.address, *options, *into, "--json"]
            argv += ["--window", str(pair.window)]
            argv += self.wire.own_options()
            env = peers.environment()
        else:
            argv = [peers.require("getscu"), "-aec", server.aet, *options]
            argv += into if pair.kept else ["--ignore"]
            argv += [server.host, str(server.port)]
            nodelay = pair.scu == DCMTK_NODELAY
            env = peers.environment(nodelay=nodelay, extra=self.wire.preload)
        cost = process.run(argv, env=self._watch.environment(env))
        seconds, whole = self._watch.seconds()
        arrived = sum(1 for _ in self._target.iterdir())
        shutil.rmtree(self._target)
        if pair.scu == GET:
            arrived = int(json.loads(cost.output.strip().splitlines()[-1])["instances"])
        elif not pair.kept:
            arrived = count  # getscu says nothing of them; its exit code was 0
        if arrived != count:
            raise process.BenchFailed(f"{pair.title}: {arrived} of {count}:\n{cost.output[-2000:]}")
        return count / seconds, count / whole

    def ratio(self, other: Pair) -> float | None:
        """How many times as fast our pair is; None where the other was not measured."""
        if other not in self.rates:
            return None
        ours = self.rates[replace(OURS, kept=other.kept)]
        return tables.median(ours) / tables.median(self.rates[other])


def _study_uid(data: sets.DataSet) -> str:
    import pydicom

    return str(pydicom.dcmread(data.files[0], stop_before_pixels=True).StudyInstanceUID)


def report(bench: Retrieve, described: Mapping[str, str]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    size = bench.whole.dataset_bytes(1) / 1e6
    rows = []
    for pair in PAIRS:
        if pair in bench.rates:
            rates = bench.rates[pair]
            rate, ratio = tables.median(rates), bench.ratio(pair)
            against = "" if ratio is None else tables.short(ratio)
            figures = tables.short(rate), tables.spread(rates), tables.short(rate * size)
            whole = tables.short(tables.median(bench.whole_rates[pair]))
            rows.append([pair.title, *figures, whole, against])
    goals = []
    for pair, least in GOALS:
        ratio = bench.ratio(pair)
        measured = "not measured" if ratio is None else tables.short(ratio)
        met = "" if ratio is None else ("yes" if ratio >= least else "no")
        goals.append([f"against {pair.title}", measured, f"{least:g}", met])
    header = ["", "objects/s", "lowest-highest", "MB/s", "with all before it", "ours is faster by"]
    return (
        f"{about}.\n\nA study of {len(bench.whole.files)} {bench.whole.shape.title} slices, one "
        f"association, PDU {contenders.PDU}, dropped or into files on tmpfs that nobody syncs; "
        f"{bench.rounds} rounds, medians."
        f"\n\n{tables.markdown(header, rows)}\n\n"
        f"{tables.markdown(['ratio of medians', 'measured', 'asked for', 'met'], goals)}"
    )


def as_json(bench: Retrieve, described: Mapping[str, str]) -> dict[str, Any]:
    return {
        "machine": dict(described),
        "instances": len(bench.whole.files),
        "dataset_bytes": bench.whole.dataset_bytes(len(bench.whole.files)),
        "pdu": contenders.PDU,
        "rounds": bench.rounds,
        "objects_per_second": {pair.title: rates for pair, rates in bench.rates.items()},
        "objects_per_second_with_all_before": {
            pair.title: rates for pair, rates in bench.whole_rates.items()
        },
        "goals": [
            {"against": pair.title, "ratio": bench.ratio(pair), "at_least": least}
            for pair, least in GOALS
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
    whole, few = (QUICK_INSTANCES, QUICK_FEW) if asked.quick else (INSTANCES, FEW)
    with sets.workspace() as folder:
        wire = choose_wire(asked.congestion, folder)
        studies = (
            sets.make(folder, "ct", whole),
            sets.make(folder, "few", few, sets.SHAPES["ct"], seed=2),
        )
        bench = Retrieve(folder, wire, *studies, 1 if asked.quick else asked.rounds)
        with serving(folder, wire, studies) as servers:
            bench.run(servers)
        described = machine.describe(wire.congestion)
        text = report(bench, described)
        print("a moment's run: the figures mean nothing\n" * asked.quick + text)
        if not asked.quick:
            tables.replace_marked(asked.output / "README.md", "retrieve", text)
            tables.write_json(asked.output / "results" / "retrieve.json", as_json(bench, described))
    return 0


if __name__ == "__main__":
    sys.exit(main())
