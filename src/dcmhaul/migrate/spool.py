"""What two ends list, on disk while they are compared: millions of UIDs take no memory."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from dcmhaul.engine.planning import ExpectedInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import TypeVar

    from dcmhaul.migrate.inventory import FolderFinding
    from dcmhaul.migrate.tables import StudyListing

    T = TypeVar("T")

__all__ = ["SpooledStudy", "StudySpool"]

_TABLES = """
CREATE TABLE study (uid TEXT NOT NULL, end INTEGER NOT NULL, n INTEGER, PRIMARY KEY (uid, end))
    WITHOUT ROWID;
CREATE TABLE modality (end INTEGER NOT NULL, study TEXT NOT NULL, modality TEXT NOT NULL,
    PRIMARY KEY (end, study, modality)) WITHOUT ROWID;
CREATE TABLE instance (end INTEGER NOT NULL, study TEXT NOT NULL, sop TEXT NOT NULL,
    series TEXT NOT NULL, class TEXT NOT NULL, syntax TEXT NOT NULL, path TEXT NOT NULL,
    PRIMARY KEY (end, study, sop)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledStudy:
    """A study that at least one end listed. listed, counts: by end, 0 the source, 1 the destination.

    counts: as the end states them, a hint; None where it states none.
    """

    uid: str
    listed: tuple[bool, bool]
    counts: tuple[int | None, int | None]


class StudySpool:
    """A throw-away database in `folder`; calls may come from any task, each runs in a thread."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / "spool.db", isolation_level=None, check_same_thread=False
        )
        self._connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _TABLES)

    def close(self) -> None:
        self._connection.close()

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def locked() -> T:
            with self._lock:
                self._connection.execute("BEGIN")
                try:
                    return work(self._connection)
                finally:
                    self._connection.execute("COMMIT")

        return await trio.to_thread.run_sync(locked)

    async def _insert(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            # Closed within the lock: a cursor that is collected later resets the statement, which the
            # connection keeps and another thread may be running by then.
            with closing(connection.executemany(statement, rows)):
                pass

        await self._run(work)

    async def add_studies(self, end: int, studies: Iterable[StudyListing]) -> None:
        """What a peer listed; a study that it repeats counts once."""
        rows = [(study.study_instance_uid, end, study.n_expected) for study in studies]
        await self._insert("INSERT OR IGNORE INTO study VALUES (?, ?, ?)", rows)

    async def add_instances(self, end: int, found: Iterable[FolderFinding]) -> None:
        """What lies in a folder; of two files under one UID the first counts."""
        rows = [
            (
                end,
                finding.study_instance_uid,
                finding.instance.sop_instance_uid,
                finding.instance.series_instance_uid,
                finding.instance.sop_class_uid,
                finding.instance.transfer_syntax_uid,
                finding.instance.locator,
            )
            for finding in found
        ]
        await self._insert("INSERT OR IGNORE INTO instance VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    async def add_modalities(self, end: int, found: Iterable[FolderFinding]) -> None:
        """Studies that a filter selects, but for their modalities, which are known at the end."""
        rows = [(end, finding.study_instance_uid, finding.modality) for finding in found]
        await self._insert("INSERT OR IGNORE INTO modality VALUES (?, ?, ?)", rows)

    async def list_folder(self, end: int, wants: Callable[[str], bool] | None) -> None:
        """Makes studies of the instances. wants: by the modalities of a selected study; None wants all."""
        counts = "SELECT count(*) FROM instance WHERE end = ? AND study = ?"

        def work(connection: sqlite3.Connection) -> None:
            if wants is None:
                connection.execute(
                    "INSERT INTO study SELECT study, end, count(*) FROM instance WHERE end = ? "
                    "GROUP BY study",
                    (end,),
                )
                return
            selected = connection.execute(
                "SELECT study, group_concat(modality, '\\') FROM modality WHERE end = ? GROUP BY study",
                (end,),
            )
            for study, modalities in selected:
                if wants(modalities):
                    (count,) = connection.execute(counts, (end, study)).fetchone()
                    connection.execute("INSERT INTO study VALUES (?, ?, ?)", (study, end, count))

        await self._run(work)

    async def instances(self, end: int, study_uid: str) -> dict[str, ExpectedInstance]:
        """What a folder holds of a study, by SOP Instance UID."""
        rows = await self._run(
            lambda connection: connection.execute(
                "SELECT sop, class, series, syntax, path FROM instance WHERE end = ? AND study = ?",
                (end, study_uid),
            ).fetchall()
        )
        return {
            sop: ExpectedInstance(
                sop_instance_uid=sop,
                sop_class_uid=sop_class,
                series_instance_uid=series,
                transfer_syntax_uid=syntax,
                locator=path,
            )
            for sop, sop_class, series, syntax, path in rows
        }

    async def studies(self, after: str, limit: int) -> list[SpooledStudy]:
        """The next page, by UID."""
        rows = await self._run(
            lambda connection: connection.execute(
                "SELECT uid, max(end = 0), max(end = 1), max(CASE end WHEN 0 THEN n END), "
                "max(CASE end WHEN 1 THEN n END) FROM study WHERE uid > ? GROUP BY uid "
                "ORDER BY uid LIMIT ?",
                (after, limit),
            ).fetchall()
        )
        return [
            SpooledStudy(
                uid=uid,
                listed=(bool(at_source), bool(at_destination)),
                counts=(source, destination),
            )
            for uid, at_source, at_destination, source, destination in rows
        ]
