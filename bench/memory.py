"""How much memory a process holds while large objects pass, one or eight at once: sender, receivers, relay.

The figures are the highest resident size of each whole process, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import contenders, machine, process, sets, tables
from bench.contenders import DCMHAUL, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
MEBIBYTE = 1 << 20
# Objects at once, each on an association of its own -> their size, and what a process may hold.
CASES = {1: (2048, 100), 8: (256, 160)}
QUICK_MEBIBYTES = 32
MEBIBYTES_A_FRAME = 0.5  # 512 x 512 pixels of 16 bits

NO_CONGESTION = Wire(congestion=None, preload={})


@contextmanager
def archive(folder: Path, aet: str) -> Iterator[peers.Server]:
    """A running `dcmhaul archive` that keeps its objects in the folder."""
    port = peers.free_port()
    argv = [*process.dcmhaul(), "archive", "--dir", str(folder), "--port", str(port)]
    argv += ["--aet", aet, "--bind", peers.LOOPBACK]
    with peers.serve("dcmhaul archive", argv, aet=aet, port=port, folder=folder) as server:
        yield server


def send_and_discard(data: sets.DataSet, many: int) -> dict[str, int]:
    """Peak bytes of `send` and of `receive --discard`."""
    with contenders.receiver(DCMHAUL, NO_CONGESTION) as server:
        folders = data.shares(many, len(data.files))
        cost = contenders.send(DCMHAUL, NO_CONGESTION, server, *folders)
        return {
            "send": cost.peak_bytes,
            "receive --discard": process.peak_bytes(server.process.pid),
        }


def through_archives(data: sets.DataSet, many: int, folder: Path) -> dict[str, int]:
    """Peak bytes of an archive that stores, of `migrate`, and of the archive that it reads."""
    with ExitStack() as stack:
        old = stack.enter_context(archive(folder / "old", "OLD"))
        contenders.send(DCMHAUL, NO_CONGESTION, old, *data.shares(many, len(data.files)))
        stored = process.peak_bytes(old.process.pid)
        new = stack.enter_context(archive(folder / "new", "NEW"))
        argv = [*process.dcmhaul(), "migrate", old.address, new.address, "--json"]
        argv += ["--job", "memory", "--ledger", f"sqlite:///{folder / 'ledger.db'}"]
        argv += ["--associations", str(many)]
        cost = process.run(argv, env=peers.environment())
        summary = json.loads(cost.output.strip().splitlines()[-1])
        if summary["instances"] != many:
            raise process.BenchFailed(f"migrate moved {summary}, not {many} instances")
        return {
            "archive, storing": stored,
            "archive, serving C-GET": process.peak_bytes(old.process.pid),
            "migrate (relay)": cost.peak_bytes,
            "archive, stored from a relay": process.peak_bytes(new.process.pid),
        }


def measure(mebibytes: int, many: int) -> dict[str, int]:
    """Peak bytes, by process, while so many objects of that size pass at once."""
    shape = sets.Shape(
        title=f"{mebibytes} MiB multiframe",
        modality="CT",
        rows=512,
        columns=512,
        frames=int(mebibytes / MEBIBYTES_A_FRAME),
    )
    with sets.workspace() as folder:
        data = sets.make(folder, "huge", many, shape, studies=many)
        return send_and_discard(data, many) | through_archives(data, many, folder)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller objects; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    described = machine.describe(None)
    parts = ["; ".join(f"{key}: {value}" for key, value in described.items()) + "."]
    results = []
    for many, (full, limit) in CASES.items():
        mebibytes = QUICK_MEBIBYTES if asked.quick else full
        peaks = measure(mebibytes, many)
        rows = [
            [name, tables.short(peak / MEBIBYTE), "yes" if peak / MEBIBYTE < limit else "no"]
            for name, peak in peaks.items()
        ]
        objects = "One object" if many == 1 else f"{many} objects on as many associations, each"
        parts.append(f"{objects} of {mebibytes} MiB.")
        parts.append(tables.markdown(["process", "peak MiB", f"below {limit}"], rows))
        results.append({"objects": many, "object_mebibytes": mebibytes, "peak_bytes": peaks})
    text = "\n\n".join(parts)
    print(text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "memory", text)
        tables.write_json(
            asked.output / "results" / "memory.json", {"machine": described, "cases": results}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
