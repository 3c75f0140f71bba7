"""How long a command takes that does almost nothing: `--version`, and `echo` to a running archive.

Whole processes, from start to exit; beside them the bare interpreter and DCMTK's echoscu.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import contenders, machine, process, tables
from bench.contenders import DCMHAUL
from bench.memory import NO_CONGESTION

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
ROUNDS = 21
LIMITS_SECONDS = {"dcmhaul --version": 0.15, "dcmhaul echo": 0.5}


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each command, all commands once a round."""
    with contenders.receiver(DCMHAUL, NO_CONGESTION) as server:
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "dcmhaul --version": [*process.dcmhaul(), "--version"],
            "dcmhaul echo": [*process.dcmhaul(), "echo", server.address],
        }
        if peers.find("echoscu"):
            called = ["-aec", server.aet, server.host, str(server.port)]
            commands["echoscu"] = [peers.require("echoscu"), *called]
        found: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(process.run(command, env=peers.environment()).seconds)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    found = measure(1 if asked.quick else ROUNDS)
    rows = []
    for name, seconds in found.items():
        middle, limit = tables.median(seconds), LIMITS_SECONDS.get(name)
        met = "" if limit is None else ("yes" if middle <= limit else "no")
        asked_for = "" if limit is None else f"{limit:g}"
        rows.append([name, f"{middle:.3f}", tables.spread(seconds), asked_for, met])
    described = machine.describe(None)
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    header = ["command", "median seconds", "lowest-highest", "asked for", "met"]
    text = f"{about}.\n\n{tables.markdown(header, rows)}"
    print(text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "startup", text)
        result = {"machine": described, "seconds": found}
        tables.write_json(asked.output / "results" / "startup.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
