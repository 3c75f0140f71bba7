"""What a start finds after a kill: leftovers go, unacknowledged objects are taken in, losses are
told.

It compares the store's folders with the index's rows, folder by folder, before anything is served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import sqlalchemy as sa
import trio

from dcmhaul.archive import index
from dcmhaul.archive.index import Added, Addition, Index, Object, Place
from dcmhaul.archive.store import Intake, Refused, Store, check_uids
from dcmhaul.archive.tables import CONFLICT, INSTANCE
from dcmhaul.errors import InstanceError, NotDicom
from dcmhaul.wire.part10 import parse_file_meta

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from dcmhaul.database import Database

__all__ = ["RecoveryReport", "recover"]

_UIDS_AT_ONCE = 500


@dataclass(slots=True, kw_only=True)
class RecoveryReport:
    """What was found at the start.

    temporaries: objects that were still arriving, and links without a row; removed. adopted: objects
    whole and named but without a row, never acknowledged; taken in now. duplicates: such objects that
    are held already, or whose UID is where the archive replaces; removed. set_aside: files that are no
    whole object; moved to quarantine/. missing: SOP Instance UIDs of rows whose file is gone, which must
    never be. gone: indexed files that lay elsewhere and are not there any more; their rows stay.
    """

    temporaries: int = 0
    adopted: int = 0
    duplicates: int = 0
    set_aside: int = 0
    missing: list[str] = field(default_factory=list)
    gone: int = 0

    def lines(self) -> list[str]:
        """One sentence for each thing that a person should know."""
        told = (
            (self.temporaries, "unfinished temporary file(s) removed"),
            (self.adopted, "object(s) adopted that had not been acknowledged"),
            (self.duplicates, "duplicate object file(s) removed"),
            (self.set_aside, "file(s) moved to quarantine/: no whole object"),
            (len(self.missing), "OBJECT(S) LOST: the index has them, their files are gone"),
            (self.gone, "file(s) that were indexed where they lay are gone; retrieving them fails"),
        )
        return [f"{count} {what}" for count, what in told if count]


async def recover(database: Database, store: Store, rows: Index) -> RecoveryReport:
    """Compares files with rows, and mends what can be mended."""
    report = RecoveryReport(temporaries=await trio.to_thread.run_sync(store.remove_temporaries))
    spoken_of = await database.read(index.folders)
    on_disk = await trio.to_thread.run_sync(store.folders)
    for folder in sorted({*spoken_of, *on_disk}):
        known = await database.read(partial(_names, folder))
        found = await trio.to_thread.run_sync(store.names, folder)
        if lost := sorted(known - found):
            report.missing += await database.read(partial(_uids, folder, lost))
        report.gone += len(known & await trio.to_thread.run_sync(store.broken_links, folder))
        for name in sorted(found - known):
            await _take_in(database, store, rows, Place(folder, name), report)
    return report


def _names(folder: int, connection: Connection) -> set[str]:
    return index.names_in(connection, folder)


def _uids(folder: int, names: list[str], connection: Connection) -> list[str]:
    found: list[str] = []
    for table in (INSTANCE, CONFLICT):
        for i in range(0, len(names), _UIDS_AT_ONCE):
            query = sa.select(table.c.sop_instance_uid).where(
                table.c.folder == folder, table.c.name.in_(names[i : i + _UIDS_AT_ONCE])
            )
            found.extend(connection.execute(query).scalars())
    return found


async def _take_in(
    database: Database, store: Store, rows: Index, place: Place, report: RecoveryReport
) -> None:
    """One file without a row: killed after it was named, before its row was committed."""
    if await trio.to_thread.run_sync(store.is_link, place):
        await trio.to_thread.run_sync(store.remove, place)
        report.temporaries += 1
        return
    try:
        obj = await trio.to_thread.run_sync(_read, store, place)
    except (InstanceError, Refused, OSError):
        await trio.to_thread.run_sync(store.set_aside, place)
        report.set_aside += 1
        return
    addition = await database.submit(partial(_add, rows, obj))
    if addition.added in (Added.STORED, Added.CONFLICT):
        report.adopted += 1
        return
    for spare in addition.spare:
        await trio.to_thread.run_sync(store.remove, spare)
    report.duplicates += 1


def _add(rows: Index, obj: Object, connection: Connection) -> Addition:
    return rows.add(connection, obj, left_over=True)


def _read(store: Store, place: Place) -> Object:
    """The object in a file, read to its end."""
    pieces = store.pieces(place, 0)
    head = next(pieces, b"")
    meta = parse_file_meta(head)
    if not meta.has_meta:
        raise NotDicom("an object file of the archive has group 0002")
    intake = Intake(meta.transfer_syntax_uid)
    length = len(head) - meta.dataset_offset
    intake.feed(head[meta.dataset_offset :])
    for piece in pieces:
        intake.feed(piece)
        length += len(piece)
    digest, description = intake.finish()
    check_uids(description, meta.sop_class_uid, meta.sop_instance_uid)
    return Object(
        description=description,
        sop_class_uid=meta.sop_class_uid,
        sop_instance_uid=meta.sop_instance_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        place=place,
        dataset_offset=meta.dataset_offset,
        length=length,
        sha256=digest,
        received=index.now(),
        source_ae_title=meta.source_ae_title,
    )
