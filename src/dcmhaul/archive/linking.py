"""Local files that are indexed where they lie: the store gets a link to each, and never writes to them.

A link is all that the archive owns of such an object: whatever it removes or sets aside is the link.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import trio

from dcmhaul.archive import index
from dcmhaul.archive.importing import ImportSummary
from dcmhaul.archive.index import Added, Object, Totals
from dcmhaul.archive.store import Intake, Refused, check_uids
from dcmhaul.errors import ConfigurationError, NotDicom, UnreadableInstance
from dcmhaul.net.types import FileRange
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.sources import FailedEntry, SkippedEntry, candidates
from dcmhaul.wire.part10 import is_deflated

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from dcmhaul.archive.index import Addition, Description, Index
    from dcmhaul.archive.store import Store
    from dcmhaul.database import Database
    from dcmhaul.objects.part10 import FileInstance
    from dcmhaul.objects.paths import Folder

__all__ = ["link_folder"]

# Files that share a trip to a thread, a sync and a transaction.
FILES_AT_ONCE = 128
PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linked:
    """A file that has its link, and no row yet."""

    path: str
    obj: Object
    folder: Folder


async def link_folder(
    database: Database, store: Store, rows: Index, folder: str | os.PathLike[str]
) -> tuple[ImportSummary, Totals]:
    """Indexes the instances below `folder`; what became of them, and how much more there is now.

    A file that has a link already is not read again, and counts as a duplicate. One that cannot be
    taken stops nothing. ConfigurationError where the folder is none, or where it and the archive's lie
    within each other. After an error of the database the next start removes links without rows.
    """
    root = await trio.to_thread.run_sync(_root, store, folder)
    linking = _Linking(store, root, await trio.to_thread.run_sync(store.targets))
    gained = Totals()
    while linked := await trio.to_thread.run_sync(linking.next_batch):
        additions = await database.submit(
            partial(_add_all, rows, [file.obj for file in linked]),
            after=tuple({file.folder.sync for file in linked}),
        )
        await trio.to_thread.run_sync(linking.settle, linked, additions)
        for addition in additions:
            gained += addition.gained
    return linking.summary, gained


def _root(store: Store, folder: str | os.PathLike[str]) -> str:
    if not os.path.isdir(folder):
        raise ConfigurationError(f"{os.fspath(folder)} is no folder that could be indexed")
    root, own = os.path.realpath(folder), os.path.realpath(store.root)
    if os.path.commonpath((root, own)) in (root, own):
        raise ConfigurationError(f"{root} and the folder of the archive lie within each other")
    return root


def _add_all(rows: Index, objects: Sequence[Object], connection: Connection) -> list[Addition]:
    return [rows.add(connection, obj) for obj in objects]


class _Linking:
    """One walk through a folder. Everything here blocks; one thread at a time calls it."""

    def __init__(self, store: Store, root: str, known: Container[str]) -> None:
        self.summary = ImportSummary(stored=0, duplicates=0, conflicts=[], skipped=[], failed=[])
        self._store = store
        self._known = known
        self._found = candidates([root])

    def next_batch(self) -> list[_Linked]:
        """The next files, linked; empty at the end."""
        linked: list[_Linked] = []
        while not linked and (batch := list(islice(self._paths(), FILES_AT_ONCE))):
            linked.extend(filter(None, map(self._link, batch)))
        return linked

    def settle(self, linked: Sequence[_Linked], additions: Sequence[Addition]) -> None:
        """Counts what the index made of them, and removes links that are of no use."""
        for file, addition in zip(linked, additions, strict=True):
            if addition.added is Added.SAME:
                self.summary.duplicates += 1
            elif addition.added in (Added.CONFLICT, Added.CONFLICT_KNOWN):
                self.summary.conflicts.append(file.path)
            else:
                self.summary.stored += 1
            for place in addition.spare:
                self._store.remove(place)

    def _paths(self) -> Iterator[str]:
        for found in self._found:
            if isinstance(found, SkippedEntry):
                self.summary.skipped.append((found.path, found.reason))
            elif isinstance(found, FailedEntry):
                self.summary.failed.append((found.path, str(found.error)))
            elif found in self._known:
                self.summary.duplicates += 1
            else:
                yield found

    def _link(self, path: str) -> _Linked | None:
        try:
            instance = open_instance(path)
            try:
                digest, description, offset = _read(instance)
            finally:
                instance.close()
            place, folder = self._store.link(path)
        except NotDicom as exc:
            self.summary.skipped.append((path, str(exc)))
        except OSError as exc:
            self.summary.failed.append((path, exc.strerror or "cannot be read"))
        except (UnreadableInstance, Refused) as exc:
            self.summary.failed.append((path, str(exc)))
        else:
            obj = Object(
                description=description,
                sop_class_uid=instance.sop_class_uid,
                sop_instance_uid=instance.sop_instance_uid,
                transfer_syntax_uid=instance.transfer_syntax_uid,
                place=place,
                dataset_offset=offset,
                length=instance.length,
                sha256=digest,
                received=index.now(),
                source_ae_title="",
            )
            return _Linked(path=path, obj=obj, folder=folder)
        return None


def _read(instance: FileInstance) -> tuple[bytes, Description, int]:
    """The digest and the attributes of the dataset, and where it begins in the file."""
    size = os.stat(instance.path).st_size
    if is_deflated(instance.transfer_syntax_uid) and size % 2:
        raise UnreadableInstance("a deflated dataset of odd length cannot be sent as it lies")
    intake = Intake(instance.transfer_syntax_uid)
    dataset = instance.dataset
    if isinstance(dataset, FileRange):
        done = 0
        while done < dataset.length:
            piece = os.pread(dataset.fd, min(PIECE, dataset.length - done), dataset.offset + done)
            if not piece:
                raise UnreadableInstance("the file became shorter while it was read")
            intake.feed(piece)
            done += len(piece)
    else:
        intake.feed(dataset)
    digest, description = intake.finish()
    check_uids(description, instance.sop_class_uid, instance.sop_instance_uid)
    return digest, description, size - instance.length
