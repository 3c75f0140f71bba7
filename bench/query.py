"""How fast the archive answers a study-level query of thousands of studies, to `find` and to DCMTK's findscu.

Both ask the same archive in the same run, in turns. Times are those of the connection, from connect to close,
so that nobody's start-up is counted; from each the same tool's median time for a query that one study matches
is subtracted. When the first match comes is measured from within, on an association that is open already.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio
from tests.interop import peers

from bench import machine, process, sets, tables
from bench.loopback import choose_wire, say
from bench.stopwatch import Stopwatch
from dcmhaul import uids
from dcmhaul.archive import open_archive
from dcmhaul.net import open_association
from dcmhaul.objects.paths import Durability
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.query import QueryModel, find
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.contenders import Wire

HERE = Path(__file__).resolve().parent
AET = "BENCH"
STUDIES, SERIES, INSTANCES = 5000, 2, 10
QUICK_STUDIES = 40
ROUNDS = 7
SEED = 2026
# What a work list of studies shows.
KEYS = (
    "StudyInstanceUID",
    "PatientName",
    "PatientID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyDescription",
    "ModalitiesInStudy",
    "NumberOfStudyRelatedInstances",
)

OURS = "dcmhaul find"
NODELAY = "findscu, TCP_NODELAY=1"
INSTALLED = "findscu as installed"

# What has to hold.
MATCHES_PER_SECOND = 5000
FIRST_SECONDS = 0.05
"""From the request to the first match."""


@contextmanager
def archive(folder: Path, wire: Wire, studies: int) -> Iterator[peers.Server]:
    """Our archive with synthetic studies of small objects, which it has indexed where they lie."""
    made, store, port = folder / "made", folder / "store", peers.free_port()
    argv = [*process.dcmhaul(), "synth", str(made), "--seed", "1", "--modality", "mix"]
    argv += ["--studies", str(studies), "--series", str(SERIES), "--instances", str(INSTANCES)]
    process.run([*argv, "--rows", "4", "--columns", "4"], env=peers.environment())

    async def index() -> None:
        async with open_archive(store, ae_title=AET, durability=Durability.NONE) as held:
            summary = await held.link_folder(made)
            if summary.stored != studies * SERIES * INSTANCES:
                raise process.BenchFailed(f"indexed {summary.stored} instances")

    trio.run(index)
    argv = [*process.dcmhaul(), "archive", "--dir", str(store), "--port", str(port), "--aet", AET]
    argv += ["--bind", peers.LOOPBACK, *wire.own_options()]
    with peers.serve("dcmhaul archive", argv, aet=AET, port=port, folder=store) as server:
        yield server


def ask(
    asking: str, wire: Wire, watch: Stopwatch, server: peers.Server, **keys: str
) -> tuple[float, int]:
    """One query by a process of its own: seconds of its connection, and the matches it printed."""
    typed = [f"{key}={keys[key]}" if key in keys else key for key in KEYS]
    options = [word for key in typed for word in ("-k", key)]
    if asking == OURS:
        argv = [*process.dcmhaul(), "find", server.address, "-S", *options, *wire.own_options()]
        cost = process.run(argv, env=watch.environment(peers.environment()))
        return watch.seconds()[0], cost.output.count("\n") - 1
    argv = [peers.require("findscu"), "-S", "-aec", server.aet, server.host, str(server.port)]
    argv += ["-k", "QueryRetrieveLevel=STUDY", *options]
    env = peers.environment(nodelay=asking == NODELAY, extra=wire.preload)
    cost = process.run(argv, env=watch.environment(env))
    return watch.seconds()[0], cost.output.count("(Pending)")


async def first_match(server: peers.Server, identifier: bytes) -> float:
    """Seconds from the request to the first match, on an association that is open."""
    model = QueryModel.STUDY_ROOT
    request = AssociationRequest(
        called_ae_title=server.aet,
        calling_ae_title="BENCH",
        contexts=(
            PresentationContextRq(
                context_id=1,
                abstract_syntax=model.find_uid,
                transfer_syntaxes=(uids.IMPLICIT_VR_LITTLE_ENDIAN,),
            ),
        ),
    )
    async with open_association(server.host, server.port, request) as association:
        begun = time.perf_counter()
        async with find(association, model, identifier) as responses:
            async for _ in responses:
                seconds = time.perf_counter() - begun
                break
            async for _ in responses:
                pass
    return seconds


def identifier() -> bytes:
    """The keys as an identifier in Implicit VR Little Endian."""
    from pydicom.datadict import tag_for_keyword

    values = {tag_for_keyword(key) or 0: b"" for key in KEYS} | {0x00080052: b"STUDY "}
    return b"".join(
        (tag >> 16).to_bytes(2, "little")
        + (tag & 0xFFFF).to_bytes(2, "little")
        + len(value).to_bytes(4, "little")
        + value
        for tag, value in sorted(values.items())
    )


class Query:
    """One run: the seconds of each round, by who asked."""

    def __init__(self, wire: Wire, watch: Stopwatch, studies: int, rounds: int) -> None:
        self.wire = wire
        self.watch = watch
        self.studies = studies
        self.rounds = rounds
        self.asking = [OURS]
        if peers.find("findscu") is not None:
            self.asking += [NODELAY, INSTALLED]
        else:
            say("left out: findscu: not installed")
        self.all: dict[str, list[float]] = {asking: [] for asking in self.asking}
        self.one: dict[str, list[float]] = {asking: [] for asking in self.asking}
        self.first: list[float] = []

    def run(self, server: peers.Server) -> None:
        order = random.Random(SEED)
        study = self._one_study(server)
        for number in range(self.rounds):
            say(f"round {number + 1} of {self.rounds}")
            todo = list(self.asking)
            order.shuffle(todo)
            for asking in todo:
                self.one[asking].append(self._timed(asking, server, 1, StudyInstanceUID=study))
                self.all[asking].append(self._timed(asking, server, self.studies))
            self.first.append(trio.run(first_match, server, identifier()))

    def _one_study(self, server: peers.Server) -> str:
        argv = [*process.dcmhaul(), "find", server.address, "-S", "-k", "StudyInstanceUID"]
        return process.run(argv, env=peers.environment()).output.split()[1]

    def _timed(self, asking: str, server: peers.Server, count: int, **keys: str) -> float:
        seconds, matches = ask(asking, self.wire, self.watch, server, **keys)
        if matches != count:
            raise process.BenchFailed(f"{asking} printed {matches} of {count} matches")
        return seconds

    def seconds(self, asking: str) -> list[float]:
        """From the request to the last response, a round: what the rest takes is taken off."""
        rest = tables.median(self.one[asking])
        return [max(seconds - rest, 1e-4) for seconds in self.all[asking]]

    def rate(self) -> float:
        """Matches a second, to `find`."""
        return self.studies / tables.median(self.seconds(OURS))

    def ratio(self, other: str) -> float | None:
        """How many times as fast `find` is; None where the other was not measured."""
        if other not in self.all:
            return None
        return tables.median(self.seconds(other)) / tables.median(self.seconds(OURS))


def goal_rows(bench: Query) -> list[tuple[str, float | None, str, bool]]:
    """What was measured, what was asked for, and whether it is met."""
    first = tables.median(bench.first)
    rows: list[tuple[str, float | None, str, bool]] = [
        ("matches/s to find", bench.rate(), "5,000", bench.rate() >= MATCHES_PER_SECOND),
        ("first match, ms after the request", 1000 * first, "50", first <= FIRST_SECONDS),
    ]
    for other in (NODELAY, INSTALLED):
        ratio = bench.ratio(other)
        rows.append((f"find against {other}", ratio, "1", ratio is not None and ratio >= 1))
    return rows


def report(bench: Query, described: Mapping[str, str]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    rows = []
    for asking in bench.asking:
        seconds = bench.seconds(asking)
        rate = [bench.studies / each for each in seconds]
        ratio = bench.ratio(asking)
        rows.append(
            [
                asking,
                tables.short(tables.median(seconds)),
                tables.short(tables.median(rate)),
                tables.spread(rate),
                "" if ratio is None else tables.short(1 / ratio),
                tables.short(tables.median(bench.one[asking])),
            ]
        )
    header = [
        "asks",
        "seconds",
        "matches/s",
        "lowest-highest",
        "against find",
        "a query with one match",
    ]
    goals = [
        [
            title,
            "not measured" if value is None else tables.short(value),
            least,
            "yes" if met else "no",
        ]
        for title, value, least, met in goal_rows(bench)
    ]
    instances = bench.studies * SERIES * INSTANCES
    return (
        f"{about}.\n\n{bench.studies} studies of {instances} instances in one archive; a study-level query "
        f"with {len(KEYS)} keys that all of them match, printed to a file. {bench.rounds} rounds, medians; the "
        "time of a query with one match is subtracted.\n\n"
        f"{tables.markdown(header, rows)}\n\n"
        f"{tables.markdown(['goal', 'measured', 'asked for', 'met'], goals)}"
    )


def as_json(bench: Query, described: Mapping[str, str]) -> dict[str, Any]:
    return {
        "machine": dict(described),
        "studies": bench.studies,
        "instances": bench.studies * SERIES * INSTANCES,
        "keys": KEYS,
        "rounds": bench.rounds,
        "connection_seconds": bench.all,
        "connection_seconds_of_one_match": bench.one,
        "first_match_seconds": bench.first,
        "goals": [
            {"goal": title, "measured": value, "asked_for": least, "met": met}
            for title, value, least, met in goal_rows(bench)
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
    studies, rounds = (QUICK_STUDIES, 1) if asked.quick else (STUDIES, asked.rounds)
    with sets.workspace() as folder:
        wire = choose_wire(asked.congestion, folder)
        bench = Query(wire, Stopwatch(folder), studies, rounds)
        with archive(folder, wire, studies) as server:
            bench.run(server)
    described = machine.describe(wire.congestion)
    text = report(bench, described)
    print("a moment's run: the figures mean nothing\n" * asked.quick + text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "query", text)
        tables.write_json(asked.output / "results" / "query.json", as_json(bench, described))
    return 0


if __name__ == "__main__":
    sys.exit(main())
