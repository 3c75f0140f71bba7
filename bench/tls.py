"""How fast one association is under TLS on this machine's loopback, beside DCMTK under TLS.

As `loopback.py`, with mutual TLS of the version and cipher that both ends prefer: TLS 1.3, AES-GCM.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.certificates import make_papers

from bench import contenders, loopback, machine, process, sets, tables
from bench.contenders import DCMHAUL, DCMTK_NODELAY, Pair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).resolve().parent
FULL = {"large": 8, "ct": 3000, "small": 8000}
QUICK = {"small": 5}
ROUNDS = 5


def pairs(sizes: Mapping[str, int]) -> tuple[Pair, ...]:
    """Ours at two windows, DCMTK's, and ours to DCMTK's."""
    return (
        Pair(key="ours-1", sender=DCMHAUL, receiver=DCMHAUL, counts=sizes),
        Pair(key="ours-16", sender=DCMHAUL, receiver=DCMHAUL, window=16, counts=sizes),
        Pair(key="dcmtk-nodelay", sender=DCMTK_NODELAY, receiver=DCMTK_NODELAY, counts=sizes),
        Pair(key="to-dcmtk", sender=DCMHAUL, receiver=DCMTK_NODELAY, counts=sizes),
    )


def run(folder: Path, congestion: str, sizes: Mapping[str, int], rounds: int) -> loopback.Loopback:
    """The whole measurement, in a folder of its own."""
    papers = make_papers(folder)
    trust = ("+cf", papers.path("ca.pem"))
    wire = replace(
        loopback.choose_wire(congestion, folder),
        sender_tls=("+tls", *papers.pair("client"), *trust),
        receiver_tls=("+tls", *papers.pair("server"), *trust),
    )
    bench = loopback.Loopback(folder, wire, sizes, rounds, pairs(sizes))
    bench.verify()
    bench.run(0)
    return bench


def report(bench: loopback.Loopback, described: Mapping[str, str]) -> str:
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    counts = "; ".join(f"{len(data.files)} of {data.shape.title}" for data in bench.sets.values())
    return (
        f"{about}.\n\nSets: {counts}. Mutual TLS, PDU {contenders.PDU}, one association, {bench.rounds} "
        "rounds, medians; receivers drop what they get. Subtracted from each time: the same sender's "
        f"median time for one tiny object.\n\n{loopback.result_table(bench)}"
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
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
