"""The data that benchmarks send: synthetic studies on tmpfs, parts of them by count, their digests."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.interop import peers

from bench import process

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one object of a set looks like; 16 bits a pixel."""

    title: str
    modality: str
    rows: int
    columns: int
    frames: int = 1


SHAPES = {
    "large": Shape(title="256 MiB multiframe", modality="CT", rows=512, columns=512, frames=512),
    "ct": Shape(title="512 KiB CT", modality="CT", rows=512, columns=512),
    "small": Shape(title="9 KiB objects", modality="MR", rows=64, columns=64),
}

# For a run that only shows that everything works.
QUICK_SHAPES = {
    "large": Shape(title="4 MiB multiframe", modality="CT", rows=512, columns=512, frames=8),
    "ct": SHAPES["ct"],
    "small": SHAPES["small"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Part-10 files of one shape, in one folder and nothing else in it."""

    name: str
    shape: Shape
    folder: Path
    files: tuple[Path, ...]

    def dataset_bytes(self, count: int) -> int:
        """Dataset bytes of the first `count` objects, group 0002 excluded."""
        return sum(_dataset_length(path) for path in self.files[:count])

    def part(self, count: int) -> Path:
        """A folder with the first `count` files, hard-linked."""
        folder = self.folder.with_name(f"{self.folder.name}-{count}")
        if not folder.exists():
            folder.mkdir()
            for path in self.files[:count]:
                os.link(path, folder / path.name)
        return folder

    def shares(self, parts: int, count: int) -> list[Path]:
        """`parts` folders with the first `count` files dealt out among them, hard-linked."""
        if parts == 1:
            return [self.folder if count == len(self.files) else self.part(count)]
        folders = [
            self.folder.with_name(f"{self.folder.name}-{count}-{part + 1}of{parts}")
            for part in range(parts)
        ]
        if not folders[0].exists():
            for folder in folders:
                folder.mkdir()
            for number, path in enumerate(self.files[:count]):
                os.link(path, folders[number % parts] / path.name)
        return folders


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder on tmpfs where there is one, removed afterwards."""
    parent = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="dcmhaul-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make(
    folder: Path,
    name: str,
    count: int,
    shape: Shape | None = None,
    *,
    seed: int = 1,
    studies: int = 1,
) -> DataSet:
    """Lets `dcmhaul synth` write `count` objects, as many in each study, and flattens them into one folder."""
    shape = shape or SHAPES[name]
    made, flat = folder / f"{name}-made", folder / name
    argv = [
        *process.dcmhaul(),
        "synth",
        str(made),
        "--seed",
        str(seed),
        "--modality",
        shape.modality,
    ]
    argv += ["--studies", str(studies), "--series", "1", "--instances", str(count // studies)]
    argv += ["--rows", str(shape.rows), "--columns", str(shape.columns)]
    argv += ["--frames", str(shape.frames)] if shape.frames > 1 else []
    process.run(argv, env=peers.environment())
    flat.mkdir()
    for number, path in enumerate(sorted(p for p in made.rglob("*") if p.is_file())):
        path.rename(flat / f"{number:06d}.dcm")
    shutil.rmtree(made)
    return DataSet(name=name, shape=shape, folder=flat, files=tuple(sorted(flat.iterdir())))


def digests(folder: Path) -> dict[str, str]:
    """SOP Instance UID -> SHA-256 of the dataset as it lies in the file, group 0002 excluded."""
    # Here and not above: a child's highest resident size begins at that of the process it came from.
    import pydicom

    found: dict[str, str] = {}
    for path in (p for p in folder.rglob("*") if p.is_file()):
        offset = _dataset_offset(path)
        uid = pydicom.filereader.read_file_meta_info(path).MediaStorageSOPInstanceUID
        digest = hashlib.sha256()
        with path.open("rb") as source:
            source.seek(offset)
            while piece := source.read(1 << 20):
                digest.update(piece)
        found[str(uid)] = digest.hexdigest()
    return found


def _dataset_offset(path: Path) -> int:
    """Where group 0002 ends: 132 bytes, its group length element (12 bytes), then that many."""
    with path.open("rb") as source:
        head = source.read(144)
    if head[128:132] != b"DICM" or head[132:136] != b"\x02\x00\x00\x00":
        raise process.BenchFailed(f"{path} has no group 0002 with a group length")
    return 144 + int.from_bytes(head[140:144], "little")


def _dataset_length(path: Path) -> int:
    return path.stat().st_size - _dataset_offset(path)
