"""What lies on the disk after a kill, read without a line of dcmhaul: sqlite3, hashlib, and no more.

By hand: python -m tests.engine.torture.evidence LEDGER SOURCE DESTINATION compares a job's ledger with two
archive folders, prints what does not agree, and ends with 1 if there is anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ArchiveEvidence", "LedgerEvidence", "digest_of", "whole_files"]

# As the ledger's tables document them.
ACKNOWLEDGED, PRESENT = 1, 2
STUDY_DONE, RUN_DONE = 2, 2
FINAL = {1: "ACKED", 2: "IDENTICAL_PRESENT", 3: "EXCLUDED", 4: "CONFLICT"}


class Broken(AssertionError):
    """A file that is visible and not whole."""


def digest_of(path: Path) -> str:
    """SHA-256 of the dataset of a Part-10 file: what follows group 0002, whose length it states."""
    data = path.read_bytes()
    if data[128:132] != b"DICM" or any(data[:128]) or data[132:138] != b"\2\0\0\0UL":
        raise Broken(f"{path} is no Part-10 file with a preamble of zeros")
    start = 144 + int.from_bytes(data[140:144], "little")
    return hashlib.sha256(data[start:]).hexdigest()


def whole_files(folder: Path, known: dict[str, str]) -> dict[Path, str]:
    """Each file below `folder` and the UID of what it holds. known: UID by digest; Broken otherwise."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest = digest_of(path)
        if digest not in known:
            raise Broken(f"{path} ({path.stat().st_size} bytes) is visible and not whole")
        found[path] = known[digest]
    return found


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy with its log, so that looking at it changes nothing of what the next start finds."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        shutil.copy(path, copy)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(f"{path}-wal", f"{copy}-wal")
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            yield connection


def _rows(path: Path, query: str) -> list[tuple[object, ...]]:
    if not path.exists():
        return []
    with _database(path) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # killed before the tables were made
                return []
            raise


@dataclass(slots=True)
class ArchiveEvidence:
    """One archive's folder. rows: digest by UID as the index states it; files: path of each row."""

    folder: Path
    rows: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    conflicts: int = 0

    @classmethod
    def of(cls, folder: Path) -> ArchiveEvidence:
        self = cls(folder)
        index = folder / "index.db"
        query = "SELECT sop_instance_uid, sha256, folder, name FROM instance"
        for uid, sha256, number, name in _rows(index, query):
            assert isinstance(sha256, bytes)
            self.rows[str(uid)] = sha256.hex()
            self.files[str(uid)] = folder / "objects" / f"{number:06}" / str(name)
        self.conflicts = len(_rows(index, "SELECT 1 FROM conflict"))
        return self

    def problems(self) -> list[str]:
        """Rows whose file is gone, or holds other bytes than the row says."""
        found = []
        for uid, path in self.files.items():
            if not path.exists():
                found.append(f"{uid}: the index has it, {path} is gone")
            elif digest_of(path) != self.rows[uid]:
                found.append(f"{uid}: {path} holds other bytes than the index says")
        return found


@dataclass(slots=True)
class LedgerEvidence:
    """One job's ledger. states: of each instance; digests: of those that were relayed."""

    states: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    studies: Counter[int] = field(default_factory=Counter)
    run_state: int | None = None
    twice: int = 0

    @classmethod
    def of(cls, path: Path) -> LedgerEvidence:
        self = cls()
        for uid, state, sha256 in _rows(path, "SELECT sop_uid, state, sha256 FROM instance"):
            self.twice += str(uid) in self.states
            assert isinstance(state, int)
            self.states[str(uid)] = state
            if isinstance(sha256, bytes):
                self.digests[str(uid)] = sha256.hex()
        for (state,) in _rows(path, "SELECT state FROM study"):
            assert isinstance(state, int)
            self.studies[state] += 1
        for (state,) in _rows(path, "SELECT state FROM run"):
            assert isinstance(state, int)
            self.run_state = state
        return self

    def acknowledged(self) -> set[str]:
        return {uid for uid, state in self.states.items() if state == ACKNOWLEDGED}

    def held(self) -> set[str]:
        return {uid for uid, state in self.states.items() if state in (ACKNOWLEDGED, PRESENT)}


def compare(ledger: LedgerEvidence, old: ArchiveEvidence, new: ArchiveEvidence) -> list[str]:
    """What a finished job's ledger and the two archives do not agree on."""
    found = [*old.problems(), *new.problems()]
    if ledger.run_state != RUN_DONE or set(ledger.studies) - {STUDY_DONE}:
        found.append(f"the run is not done: state {ledger.run_state}, studies {ledger.studies}")
    if ledger.twice:
        found.append(f"{ledger.twice} instances stand in the ledger twice")
    if new.conflicts:
        found.append(f"{new.conflicts} conflicts at the destination")
    for uid in sorted({*old.rows, *new.rows, *ledger.states}):
        state = ledger.states.get(uid)
        if old.rows.get(uid) != new.rows.get(uid):
            found.append(f"{uid}: source {old.rows.get(uid)}, destination {new.rows.get(uid)}")
        if state not in (ACKNOWLEDGED, PRESENT):
            found.append(f"{uid}: the ledger says {FINAL.get(state or 0, state)}")
        if ledger.digests.get(uid, new.rows.get(uid)) != new.rows.get(uid):
            found.append(f"{uid}: the ledger's digest is not the destination's")
    return found


def main(arguments: list[str]) -> int:
    ledger, old, new = map(Path, arguments)
    found = compare(LedgerEvidence.of(ledger), ArchiveEvidence.of(old), ArchiveEvidence.of(new))
    print("\n".join(found) or "ledger, source and destination agree")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
