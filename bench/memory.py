"""How much memory a process holds while one large object passes: sender, receivers, relay.

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
LIMIT_MEBIBYTES = 150
OBJECT_MEBIBYTES = 2048
QUICK_MEBIBYTES = 64
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


def send_and_discard(data: sets.DataSet) -> dict[str, int]:
    """Peak bytes of `send` and of `receive --discard`."""
    with contenders.receiver(DCMHAUL, NO_CONGESTION) as server:
        cost = contenders.send(DCMHAUL, NO_CONGESTION, server, data.folder)
        return {
            "send": cost.peak_bytes,
            "receive --discard": process.peak_bytes(server.process.pid),
        }


def through_archives(data: sets.DataSet, folder: Path) -> dict[str, int]:
    """Peak bytes of an archive that stores, of `migrate`, and of the archive that it reads."""
    with ExitStack() as stack:
        old = stack.enter_context(archive(folder / "old", "OLD"))
        contenders.send(DCMHAUL, NO_CONGESTION, old, data.folder)
        stored = process.peak_bytes(old.process.pid)
        new = stack.enter_context(archive(folder / "new", "NEW"))
        argv = [*process.dcmhaul(), "migrate", old.address, new.address, "--json"]
        argv += ["--job", "memory", "--ledger", f"sqlite:///{folder / 'ledger.db'}"]
        cost = process.run(argv, env=peers.environment())
        summary = json.loads(cost.output.strip().splitlines()[-1])
        if summary["instances"] != 1:
            raise process.BenchFailed(f"migrate moved {summary}, not one instance")
        return {
            "archive, storing": stored,
            "archive, serving C-GET": process.peak_bytes(old.process.pid),
            "migrate (relay)": cost.peak_bytes,
            "archive, stored from a relay": process.peak_bytes(new.process.pid),
        }


def measure(mebibytes: int) -> dict[str, int]:
    shape = sets.Shape(
        title=f"{mebibytes} MiB multiframe",
        modality="CT",
        rows=512,
        columns=512,
        frames=int(mebibytes / MEBIBYTES_A_FRAME),
    )
    with sets.workspace() as folder:
        data = sets.make(folder, "huge", 1, shape)
        return send_and_discard(data) | through_archives(data, folder)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller object; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    mebibytes = QUICK_MEBIBYTES if asked.quick else OBJECT_MEBIBYTES
    peaks = measure(mebibytes)
    rows = [
        [name, tables.short(peak / MEBIBYTE), "yes" if peak / MEBIBYTE < LIMIT_MEBIBYTES else "no"]
        for name, peak in peaks.items()
    ]
    described = machine.describe(None)
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    table = tables.markdown(["process", "peak MiB", f"below {LIMIT_MEBIBYTES}"], rows)
    text = f"{about}.\n\nOne object of {mebibytes} MiB.\n\n{table}"
    print(text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "memory", text)
        result = {"machine": described, "object_mebibytes": mebibytes, "peak_bytes": peaks}
        tables.write_json(asked.output / "results" / "memory.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
