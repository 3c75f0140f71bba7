"""Where instances to be sent come from: files and folders, opened one by one as they are asked for.

Must not know to whom they go, and must not hold more of them open than were taken, and one ahead.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul.errors import InstanceError, NotDicom, UnreadableInstance
from dcmhaul.objects.part10 import FileInstance, open_instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["FailedEntry", "FileSource", "SkippedEntry", "candidates", "open_entries", "open_entry"]

# Files that are passed over in one go before other tasks get their turn.
_CHECKPOINT_EVERY: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedEntry:
    """A file that is no DICOM instance: one line for the user, and no failure."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEntry:
    """A file or folder that ought to have been sent and cannot be."""

    path: str
    error: InstanceError


def _entries_of(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Files, subfolders, and links to folders, each sorted by name."""
    files: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_symlink() and entry.is_dir():
                links.append(entry.path)
            else:
                files.append(entry.path)
    return sorted(files), sorted(folders), sorted(links)


def candidates(
    paths: Iterable[str | os.PathLike[str]], *, recursive: bool = True
) -> Iterator[str | SkippedEntry | FailedEntry]:
    """The files that `paths` stand for, lazily: files as they are, folders with their content.

    The files of a folder come sorted by name, then its subfolders if `recursive`. A link to a folder
    is a SkippedEntry, for it may lead back to where we came from; one among `paths` is followed. A folder
    that cannot be listed is a FailedEntry. Nothing is opened, so nothing is known of the files yet.
    """
    for path in paths:
        text = os.fspath(path)
        if not os.path.isdir(text):
            yield text
            continue
        pending = [text]
        while pending:
            folder = pending.pop()
            try:
                files, folders, links = _entries_of(folder)
            except OSError as error:
                cause = UnreadableInstance(f"the folder cannot be listed: {error.strerror}")
                yield FailedEntry(path=folder, error=cause)
                continue
            yield from files
            if recursive:
                for link in links:
                    yield SkippedEntry(
                        path=link, reason="a link to a folder, which is not followed"
                    )
                pending.extend(reversed(folders))


def open_entry(path: str, *, nowait: bool = False) -> FileInstance | SkippedEntry | FailedEntry:
    """What a file proves to be. nowait: BlockingIOError where that would wait for the disk."""
    try:
        return open_instance(path, nowait=nowait)
    except NotDicom as error:
        return SkippedEntry(path=path, reason=str(error))
    except InstanceError as error:
        return FailedEntry(path=path, error=error)


def open_entries(
    paths: Iterable[str | os.PathLike[str]], *, recursive: bool = True
) -> Iterator[FileInstance | SkippedEntry | FailedEntry]:
    """Every candidate as what it proved to be. The caller closes the instances. Blocks on disks."""
    for candidate in candidates(paths, recursive=recursive):
        if isinstance(candidate, SkippedEntry | FailedEntry):
            yield candidate
        else:
            yield open_entry(candidate, nowait=False)


class FileSource:
    """Gives out the instances of the files that were found, each once, to any number of takers.

    found: what `candidates` gives, or a list of files. report: hears of what is skipped or failed.
    opened, skipped, failed: counts so far. Files whose first bytes are in the page cache are opened
    where the taker runs, others in a thread.
    """

    def __init__(
        self,
        found: Iterable[str | SkippedEntry | FailedEntry],
        *,
        report: Callable[[SkippedEntry | FailedEntry], None] | None = None,
    ) -> None:
        self._candidates = iter(found)
        self._ahead: str | FileInstance | SkippedEntry | FailedEntry | None = None
        self._report = report
        self.opened = 0
        self.skipped = 0
        self.failed = 0

    async def take(self) -> FileInstance | None:
        """The next instance, which the taker closes; None once there is no more."""
        passed = 0
        while (candidate := self._next()) is not None:
            passed += 1
            if not isinstance(candidate, str):
                entry: FileInstance | SkippedEntry | FailedEntry = candidate
            else:
                try:
                    entry = open_entry(candidate, nowait=True)
                except BlockingIOError:
                    # Shielded: a candidate that one taker gave up on would be lost to the others.
                    with trio.CancelScope(shield=True):
                        entry = await trio.to_thread.run_sync(_opened_in_thread, candidate)
            if isinstance(entry, FileInstance):
                self.opened += 1
                return entry
            if isinstance(entry, SkippedEntry):
                self.skipped += 1
            else:
                self.failed += 1
            if self._report is not None:
                self._report(entry)
            if passed % _CHECKPOINT_EVERY == 0:
                await trio.lowlevel.checkpoint()
        return None

    def look_ahead(self) -> None:
        """Opens the next file, if that waits for no disk: for a taker that waits for its peer anyway."""
        if self._ahead is not None:
            return
        self._ahead = candidate = self._next()
        if isinstance(candidate, str):
            with contextlib.suppress(BlockingIOError):
                self._ahead = open_entry(candidate, nowait=True)

    def close(self) -> None:
        """Nothing more will be taken."""
        if isinstance(self._ahead, FileInstance):
            self._ahead.close()
        self._ahead = None

    def _next(self) -> str | FileInstance | SkippedEntry | FailedEntry | None:
        ahead, self._ahead = self._ahead, None
        return ahead if ahead is not None else next(self._candidates, None)


def _opened_in_thread(path: str) -> FileInstance | SkippedEntry | FailedEntry:
    return open_entry(path, nowait=False)
