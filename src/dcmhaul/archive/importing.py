"""Local Part-10 files into an archive, through the same sinks as what a peer sends."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from dcmhaul.archive.index import Added
from dcmhaul.errors import DcmhaulError, NotDicom
from dcmhaul.net.types import FileRange
from dcmhaul.objects.instances import BytesInMemory, IncomingInstance, StoreRefused
from dcmhaul.objects.part10 import FileInstance, open_instance

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dcmhaul.archive.scp import Archive
    from dcmhaul.objects.instances import StoreReply

__all__ = ["ImportSummary", "import_files"]

IMPORTS_AT_ONCE = 8
IMPORT_PIECE = 1 << 20


@dataclass(slots=True, kw_only=True)
class ImportSummary:
    """What became of imported files; skipped and failed: path and reason."""

    stored: int
    duplicates: int
    conflicts: list[str]
    skipped: list[tuple[str, str]]
    failed: list[tuple[str, str]]


async def import_files(
    archive: Archive, paths: Iterable[str | os.PathLike[str]], source_ae_title: str
) -> ImportSummary:
    """As `Archive.import_files`."""
    summary = ImportSummary(stored=0, duplicates=0, conflicts=[], skipped=[], failed=[])
    waiting = iter(paths)
    async with trio.open_nursery() as nursery:
        for _ in range(IMPORTS_AT_ONCE):
            nursery.start_soon(_import_all, archive, waiting, source_ae_title, summary)
    return summary


async def _import_all(
    archive: Archive,
    waiting: Iterable[str | os.PathLike[str]],
    source_ae_title: str,
    summary: ImportSummary,
) -> None:
    for path in waiting:
        text = os.fspath(path)
        try:
            reply, added = await _import_one(archive, text, source_ae_title)
        except NotDicom as exc:
            summary.skipped.append((text, str(exc)))
        except StoreRefused as exc:
            summary.failed.append((text, exc.reply.error_comment))
        except (DcmhaulError, OSError) as exc:
            summary.failed.append((text, str(exc)))
        else:
            if added is None:
                summary.failed.append((text, reply.error_comment))
            elif added is Added.SAME:
                summary.duplicates += 1
            elif added in (Added.CONFLICT, Added.CONFLICT_KNOWN):
                summary.conflicts.append(text)
            else:
                summary.stored += 1


async def _import_one(
    archive: Archive, path: str, source_ae_title: str
) -> tuple[StoreReply, Added | None]:
    instance = await trio.to_thread.run_sync(open_instance, path)
    sink = None
    try:
        sink = archive.sink(
            IncomingInstance(
                sop_class_uid=instance.sop_class_uid,
                sop_instance_uid=instance.sop_instance_uid,
                transfer_syntax_uid=instance.transfer_syntax_uid,
                calling_ae_title=source_ae_title,
                called_ae_title=archive.ae_title,
                peer="",
            )
        )
        offset = 0
        while offset < instance.length:
            piece = await trio.to_thread.run_sync(_piece, instance, offset)
            await sink.write(piece)
            offset += piece.data_length
        return await sink.commit(), sink.added
    finally:
        if sink is not None:
            sink.discard()
        instance.close()


def _piece(instance: FileInstance, offset: int) -> BytesInMemory:
    dataset = instance.dataset
    if not isinstance(dataset, FileRange):
        return BytesInMemory(dataset[offset : offset + IMPORT_PIECE])
    size = min(IMPORT_PIECE, dataset.length - offset)
    data = os.pread(dataset.fd, size, dataset.offset + offset)
    if not data:
        raise OSError(5, "the file became shorter while it was read")
    return BytesInMemory(data)
