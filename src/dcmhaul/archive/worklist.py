"""The archive's modality worklist: items from a folder of files and from calls, found by C-FIND (PS3.4 §K).

The files are read and nothing else: they are whoever's system writes them. No peer names a path; a
called AE title is compared with the names that the folder has.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import uids
from dcmhaul.archive.identifier import InvalidIdentifier
from dcmhaul.archive.items import InvalidItem, WorklistQuery, parse_item
from dcmhaul.errors import ConfigurationError, InstanceError
from dcmhaul.protocol import statuses
from dcmhaul.services.identifiers import IDENTIFIER_LENGTH_MAX, QueryRefused, encode_identifier
from dcmhaul.wire.part10 import parse_file_meta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from pydicom.dataset import Dataset

    from dcmhaul.archive.items import Tree
    from dcmhaul.services.identifiers import EncodedIdentifier
    from dcmhaul.services.query import QueryModel

__all__ = ["FILES_MAX", "HELD_MAX", "ITEM_LENGTH_MAX", "Worklist", "read_query"]

ITEM_LENGTH_MAX: Final = 1 << 20
"""Bytes of one item; those in use have one or two thousand."""
FILES_MAX: Final = 50_000
"""Files of one folder that are looked at."""
HELD_MAX: Final = 16 << 20
"""Bytes of files whose items are kept from query to query; what is beyond is read for each."""

_SUFFIX: Final = ".wl"
_LOCK_NAME: Final = "lockfile"
_LOCK_TRIES: Final = 20
_LOCK_WAIT: Final = 0.05  # seconds between two of them
_PAGE: Final = (
    128  # items that a thread compares before the task that waits for it may be cancelled
)
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hold us


@dataclass(slots=True, frozen=True, kw_only=True)
class _Known:
    """What is known of one file as it was when it had this stamp.

    item: where it is kept, of `size` bytes; sound: whether the file holds one.
    """

    stamp: tuple[int, int, int]
    item: Tree | None = None
    sound: bool = False
    size: int = 0


@dataclass(slots=True)
class _Folder:
    """One folder of files: what is kept of them, by name, and of which one a line was said."""

    known: dict[str, _Known] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)


async def read_query(identifier: EncodedIdentifier) -> WorklistQuery:
    """What a C-FIND for items asks; QueryRefused where that cannot be understood."""
    read = partial(
        WorklistQuery,
        identifier.data,
        identifier.transfer_syntax,
        length_max=2 * IDENTIFIER_LENGTH_MAX,
    )
    try:
        return await trio.to_thread.run_sync(read)
    except InvalidIdentifier as exc:
        raise QueryRefused(statuses.CANNOT_UNDERSTAND, str(exc)[:64]) from exc


class Worklist:
    """Items by file and by call. The folder is looked at anew for each query; items of files that have
    not changed are kept.

    folder: `*.wl` files, or folders of them, each named like the called AE title that it serves, as
    DCMTK's wlmscpfs has it. A title without a folder of its own is served from `folder` itself.
    report: gets one line for each file that cannot be read, each time that it changes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        report: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._root = None if folder is None else os.fspath(folder)
        if self._root is not None and not os.path.isdir(self._root):
            raise ConfigurationError(f"no such folder: {self._root or repr('')}")
        self._report = report
        self._folders: dict[str, _Folder] = {}
        self._held = 0
        self._given: dict[str, tuple[str | None, Tree]] = {}
        self._turn = trio.Lock()

    # -- items by call --------------------------------------------------------------------------

    def put(self, name: str, item: Dataset | bytes, *, ae_title: str | None = None) -> None:
        """Adds an item, or replaces the one of that name. ae_title: the called title that it is for.

        item: a dataset, or one in Explicit VR Little Endian. ValueError where it cannot be one.
        """
        syntax = uids.EXPLICIT_VR_LITTLE_ENDIAN
        data = item if isinstance(item, bytes) else encode_identifier(item, syntax)
        self._given[name] = ae_title, parse_item(data, syntax, length_max=ITEM_LENGTH_MAX)

    def remove(self, name: str) -> None:
        """Takes an item of `put` away; KeyError where there is none of that name."""
        del self._given[name]

    # -- answering ------------------------------------------------------------------------------

    async def find(
        self, _model: QueryModel, identifier: EncodedIdentifier, _calling_ae_title: str
    ) -> AsyncGenerator[bytes, None]:
        """The encoded matches of a C-FIND; an EncodedAnswer."""
        query = await read_query(identifier)
        called = identifier.called_ae_title
        found: list[Tree | str] = [
            item for title, item in self._given.values() if title in (None, called)
        ]
        found += await self._look(called)
        for start in range(0, len(found), _PAGE):
            page = found[start : start + _PAGE]
            for match in await trio.to_thread.run_sync(_responses, query, page):
                yield match

    async def count(self, called_ae_title: str) -> int:
        """How many files there are for a called title that hold an item; a line for each that holds none."""
        return len(await self._look(called_ae_title))

    async def _look(self, called_ae_title: str) -> list[Tree | str]:
        """What there is in files for a called title: items that are kept, and paths of the others.

        Reads what is new. QueryRefused where the folder cannot be listed.
        """
        if self._root is None:
            return []
        async with self._turn:
            try:
                return await trio.to_thread.run_sync(self._listed, self._root, called_ae_title)
            except OSError as exc:
                self._report(f"worklist {self._root}: {exc.strerror}")
                raise QueryRefused(
                    statuses.OUT_OF_RESOURCES, "the worklist cannot be read"
                ) from exc

    def _listed(self, root: str, called: str) -> list[Tree | str]:
        """The same; blocks. Nothing else changes what is known."""
        with os.scandir(root) as entries:
            served = any(entry.name == called and entry.is_dir() for entry in entries)
        path = os.path.join(root, called) if served else root
        folder = self._folders.setdefault(path, _Folder())
        known = folder.known
        with _locked(path, 1 if known else _LOCK_TRIES) as quiet:
            # Where somebody writes, what was there before is the last whole list.
            if quiet or not known:
                with os.scandir(path) as entries:
                    names = [e.name for e in entries if e.name.lower().endswith(_SUFFIX)]
                names.sort()
                many = len(names) > FILES_MAX
                self._say(folder, path, "", f"more than {FILES_MAX} files" if many else "")
                del names[FILES_MAX:]
                for name in known.keys() - set(names):
                    self._forget(folder, name)
                for name in names:
                    self._examine(folder, path, name)
        return [
            os.path.join(path, name) if one.item is None else one.item
            for name, one in sorted(known.items())
            if one.sound
        ]

    def _forget(self, folder: _Folder, name: str) -> None:
        known = folder.known.pop(name, None)
        if known is not None:
            self._held -= known.size

    def _examine(self, folder: _Folder, path: str, name: str) -> None:
        """Reads a file that is not known as it is now."""
        known = folder.known.get(name)
        whole = os.path.join(path, name)
        try:
            status = os.stat(whole)
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if known is not None and known.stamp == stamp:
                return
            item = _read(whole, status)
        except FileNotFoundError:
            self._forget(folder, name)  # it went after the list was made
            return
        except OSError as exc:
            self._forget(folder, name)
            self._say(folder, path, name, f"cannot be read: {exc.strerror}")
            return
        except (InvalidItem, InstanceError) as exc:
            self._forget(folder, name)
            folder.known[name] = _Known(stamp=stamp)
            folder.said.discard(name)
            self._say(folder, path, name, str(exc))
            return
        self._forget(folder, name)
        self._say(folder, path, name, "")
        size = status.st_size
        if self._held + size > HELD_MAX:
            folder.known[name] = _Known(stamp=stamp, sound=True)
        else:
            folder.known[name] = _Known(stamp=stamp, sound=True, item=item, size=size)
            self._held += size

    def _say(self, folder: _Folder, path: str, name: str, text: str) -> None:
        """One line, once, until there is none to be said."""
        if not text:
            folder.said.discard(name)
        elif name not in folder.said:
            folder.said.add(name)
            self._report(f"worklist {os.path.join(path, name).rstrip('/')}: {text}")


def _responses(query: WorklistQuery, page: list[Tree | str]) -> list[bytes]:
    """The responses of one page of files; one that is broken by now is told when it is looked at again."""
    items = []
    for one in page:
        if isinstance(one, str):
            with contextlib.suppress(OSError, InvalidItem, InstanceError):
                items.append(_read(one, os.stat(one)))
        else:
            items.append(one)
    return query.responses(items)


@contextlib.contextmanager
def _locked(folder: str, tries: int) -> Iterator[bool]:
    """Holds the lock that writers of a worklist take, shared; False where it is not to be had.

    Writers that know DCMTK's convention lock the file `lockfile` for as long as they change anything.
    """
    try:
        fd = os.open(os.path.join(folder, _LOCK_NAME), _OPEN_FLAGS)
    except OSError:
        yield True  # no such convention here
        return
    try:
        quiet = False
        for left in reversed(range(tries)):
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                quiet = True
                break
            except OSError:
                if left:
                    time.sleep(_LOCK_WAIT)
        yield quiet
    finally:
        os.close(fd)


def _read(path: str, status: os.stat_result) -> Tree:
    """The item of a file; InvalidItem or an InstanceError where it is none, OSError as open(2) gives it."""
    if not stat.S_ISREG(status.st_mode):
        raise InvalidItem("no regular file")
    if status.st_size > ITEM_LENGTH_MAX:
        raise InvalidItem(f"{status.st_size} bytes, and an item has {ITEM_LENGTH_MAX} at most")
    fd = os.open(path, _OPEN_FLAGS)
    try:
        data = os.read(fd, ITEM_LENGTH_MAX + 1)
    finally:
        os.close(fd)
    meta = parse_file_meta(data)
    return parse_item(
        data[meta.dataset_offset :], meta.transfer_syntax_uid, length_max=ITEM_LENGTH_MAX
    )
