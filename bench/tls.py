"""How fast one association is under TLS on this machine's loopback, beside DCMTK and bare Python under TLS.

As `loopback.py`, with mutual TLS of the version and cipher that both ends prefer: TLS 1.3, AES-GCM. The
bare pair (`bare_tls.py`) reads the same large files and sends their bytes with nothing above TLS.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.certificates import make_papers
from tests.interop import peers

from bench import contenders, loopback, machine, process, sets, tables
from bench.contenders import DCMHAUL, DCMTK_NODELAY, Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.certificates import Papers

    from bench.contenders import Wire

HERE = Path(__file__).resolve().parent
FULL = {"large": 8, "ct": 3000, "small": 8000}
QUICK = loopback.QUICK
ROUNDS = 5
BARE = "plain TLS"

# What has to hold for large objects: (what, pair, compared with, at least).
GOALS = (
    ("large objects, against plain TLS", "ours-1", "bare", 0.9),
    ("large objects, against DCMTK, TCP_NODELAY=1", "ours-1", "dcmtk-nodelay", 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BarePair(Pair):
    """Two processes that speak nothing above TLS."""

    @property
    def title(self) -> str:
        return BARE

    def missing(self) -> list[str]:
        return []


def pairs(sizes: Mapping[str, int]) -> tuple[Pair, ...]:
    """Ours at two windows, DCMTK's, ours to DCMTK's, and bare Python for the large set."""
    large = {name: count for name, count in sizes.items() if name == "large"}
    return (
        Pair(key="ours-1", sender=DCMHAUL, receiver=DCMHAUL, counts=sizes),
        Pair(key="ours-16", sender=DCMHAUL, receiver=DCMHAUL, window=16, counts=sizes),
        Pair(key="dcmtk-nodelay", sender=DCMTK_NODELAY, receiver=DCMTK_NODELAY, counts=sizes),
        Pair(key="to-dcmtk", sender=DCMHAUL, receiver=DCMTK_NODELAY, counts=sizes),
        BarePair(key="bare", sender=BARE, receiver=BARE, counts=large),
    )


class Secured(loopback.Loopback):
    """A run that has the bare pair among the others."""

    def __init__(
        self, folder: Path, wire: Wire, papers: Papers, sizes: Mapping[str, int], rounds: int
    ) -> None:
        super().__init__(folder, wire, sizes, rounds, pairs(sizes))
        self._papers = papers

    def _once(self, name: str, pair: Pair) -> None:
        if not isinstance(pair, BarePair):
            super()._once(name, pair)
            return
        data, count = self.sets[name], pair.counts[name]
        series = self.results.setdefault(
            (name, pair.key), loopback.Series(count=count, dataset_bytes=data.dataset_bytes(count))
        )
        with self._bare_receiver() as server:
            send = partial(self._bare_send, server)
            empty = send(*self.tiny.shares(1, 1))
            before = process.cpu_seconds(server.process.pid)
            cost = send(*data.shares(1, count))
            receiver_cpu = process.cpu_seconds(server.process.pid) - before
        series.startup.append(empty.seconds)
        series.wall.append(cost.seconds)
        series.sender_cpu.append(max(0.0, cost.cpu_seconds - empty.cpu_seconds))
        series.receiver_cpu.append(receiver_cpu)

    def _bare(self, name: str) -> list[str]:
        papers = (*self._papers.pair(name), self._papers.path("ca.pem"))
        return [sys.executable, "-m", "bench.bare_tls", "--tls", *papers, *self.wire.own_options()]

    @contextmanager
    def _bare_receiver(self) -> Iterator[peers.Server]:
        port = peers.free_port()
        argv = [*self._bare("server"), "receive", str(port)]
        with peers.serve(BARE, argv, aet="", port=port, cwd=process.ROOT) as server:
            yield server

    def _bare_send(self, server: peers.Server, folder: Path) -> process.Cost:
        argv = [*self._bare("client"), "send", str(server.port), str(folder)]
        return process.run(argv, env=peers.environment())


def run(folder: Path, congestion: str, sizes: Mapping[str, int], rounds: int) -> loopback.Loopback:
    """The whole measurement, in a folder of its own."""
    papers = make_papers(folder)
    trust = ("+cf", papers.path("ca.pem"))
    wire = replace(
        loopback.choose_wire(congestion, folder),
        sender_tls=("+tls", *papers.pair("client"), *trust),
        receiver_tls=("+tls", *papers.pair("server"), *trust),
    )
    bench = Secured(folder, wire, papers, sizes, rounds)
    bench.verify()
    bench.run(0)
    return bench


def goal_rows(bench: loopback.Loopback) -> list[tuple[str, float | None, float]]:
    return [(title, bench.ratio("large", one, two), least) for title, one, two, least in GOALS]


def report(bench: loopback.Loopback, described: Mapping[str, str]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    counts = "; ".join(f"{len(data.files)} of {data.shape.title}" for data in bench.sets.values())
    goals = []
    for title, ratio, least in goal_rows(bench):
        measured = "not measured" if ratio is None else tables.short(ratio)
        met = "" if ratio is None else ("yes" if ratio >= least else "no")
        goals.append([title, measured, f"{least:g}", met])
    return (
        f"{about}.\n\nSets: {counts}. Mutual TLS, PDU {contenders.PDU}, one association, {bench.rounds} "
        "rounds, medians; receivers drop what they get. Subtracted from each time: the same sender's "
        f"median time for one tiny object.\n\n{loopback.result_table(bench)}\n\n"
        f"{tables.markdown(['ratio of medians', 'measured', 'asked for', 'met'], goals)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--congestion", default="cubic", help="of every socket (default: cubic)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="a moment's run; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    sizes, rounds = (QUICK, 1) if asked.quick else (FULL, asked.rounds)
    with sets.workspace() as folder:
        bench = run(folder, asked.congestion, sizes, rounds)
    described = machine.describe(bench.wire.congestion)
    text = report(bench, described)
    print("a moment's run: the figures mean nothing\n" * asked.quick + text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "tls", text)
        tables.write_json(
            asked.output / "results" / "tls.json",
            {
                "machine": dict(described),
                "pdu": contenders.PDU,
                "rounds": bench.rounds,
                "results": {
                    name: {
                        key: series.as_json()
                        for (of, key), series in bench.results.items()
                        if of == name
                    }
                    for name in bench.sets
                },
                "goals": [
                    {"goal": title, "ratio": ratio, "at_least": least}
                    for title, ratio, least in goal_rows(bench)
                ],
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
