"""Object files: Part-10 files under opaque names, and what their datasets say on their way in.

The order of a store (data, name, folder, row, answer) is kept here and in `scp`: `publish` makes
the data durable and names the file; the folder's sync is for the caller to share. No byte of a peer
gets into a path: names are random, folders are numbered.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcmhaul import uids
from dcmhaul.archive.attributes import (
    CAPTURED_TAGS,
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
)
from dcmhaul.archive.index import Description, Place, describe
from dcmhaul.archive.text import TEXT_LENGTH_MAX
from dcmhaul.errors import UnreadableInstance
from dcmhaul.net.types import FileRange
from dcmhaul.objects.instances import StoreReply
from dcmhaul.objects.part10 import HELD_SIZE_MAX, OpenFile
from dcmhaul.objects.paths import Durability, Folder, TemporaryFile
from dcmhaul.wire._elements import ElementFault, ElementWalker
from dcmhaul.wire.part10 import is_deflated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dcmhaul.archive.query import Selected

__all__ = ["Intake", "OpenedInstance", "Refused", "Store", "StoredInstance", "check_uids"]

FOLDER_FILES_MAX = 4096
# Enough for the objects that can be between `publish` and the end of their commit.
OPEN_FOLDERS_MAX = 4
# Bytes of a deflated dataset that are looked at, so that no bomb goes off.
INFLATED_MAX = 262_144
# Far above the largest enhanced multiframe headers; it bounds what a peer can make us walk.
ELEMENTS_MAX = 1_000_000
SUFFIX = ".dcm"
# Replaced objects that are remembered for the retrieves that had selected them.
SUCCESSORS_MAX = 16_384


class Refused(Exception):
    """The dataset cannot be archived. status: of the C-STORE-RSP; the text: its Error Comment.

    offending: the tags of its Offending Element.
    """

    def __init__(self, status: int, comment: str, *offending: int) -> None:
        super().__init__(comment)
        self.status = status
        self.comment = comment
        self.offending = offending

    def reply(self) -> StoreReply:
        return StoreReply(status=self.status, error_comment=self.comment, offending=self.offending)


NOT_UNDERSTOOD = 0xC000  # PS3.4 §B.2.3: cannot understand
MISMATCH = 0xA900  # PS3.4 §B.2.3: the dataset does not match the SOP class


class Intake:
    """Digest and element headers of one dataset, fed in pieces of any size."""

    __slots__ = ("_big_endian", "_digest", "_inflate", "_inflated", "_syntax", "_walker", "feed")

    feed: Callable[[memoryview | bytes], None]

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._syntax = transfer_syntax_uid
        self._big_endian = transfer_syntax_uid == uids.EXPLICIT_VR_BIG_ENDIAN
        self._digest = hashlib.sha256()
        self._walker = ElementWalker(
            big_endian=self._big_endian,
            capture=CAPTURED_TAGS,
            capture_limit=4 * TEXT_LENGTH_MAX,
            elements_max=ELEMENTS_MAX,
        )
        self._inflate: zlib._Decompress | None = None
        self._inflated = 0
        self.feed = self._feed
        if is_deflated(transfer_syntax_uid):
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            self.feed = self._feed_deflated

    def _feed(self, data: memoryview | bytes) -> None:
        """Takes the next bytes; Refused where they cannot be a dataset."""
        self._digest.update(data)
        try:
            self._walker.feed(data)
        except ElementFault as fault:
            raise Refused(NOT_UNDERSTOOD, _comment(fault)) from fault

    def _feed_deflated(self, data: memoryview | bytes) -> None:
        self._digest.update(data)
        room = INFLATED_MAX - self._inflated
        if room <= 0 or self._inflate is None:
            return
        try:
            plain = self._inflate.decompress(data, room)
            self._inflated += len(plain)
            self._walker.feed(plain)
        except ElementFault as fault:
            raise Refused(NOT_UNDERSTOOD, _comment(fault)) from fault
        except zlib.error as exc:
            raise Refused(NOT_UNDERSTOOD, "the deflate stream is broken") from exc

    def finish(self) -> tuple[bytes, Description]:
        """The SHA-256 of the dataset and its attributes; Refused where it is not whole."""
        try:
            if self._inflate is None or self._inflate.eof:
                self._walker.finish()
            elif self._inflated < INFLATED_MAX:
                raise Refused(NOT_UNDERSTOOD, "truncated: the deflate stream has no end")
        except ElementFault as fault:
            raise Refused(NOT_UNDERSTOOD, _comment(fault)) from fault
        description = describe(self._walker.captured, self._syntax, big_endian=self._big_endian)
        return self._digest.digest(), description


def _comment(fault: ElementFault) -> str:
    return f"broken or truncated dataset, offset {fault.offset}"


def check_uids(description: Description, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Refused where the dataset contradicts the command, or does not say where it belongs."""
    if description.sop_instance_uid not in (None, sop_instance_uid):
        comment = "SOP Instance UID of the dataset is not that of the command"
        raise Refused(MISMATCH, comment, SOP_INSTANCE_UID)
    if description.sop_class_uid not in (None, sop_class_uid):
        comment = "SOP Class UID of the dataset is not that of the command"
        raise Refused(MISMATCH, comment, SOP_CLASS_UID)
    if not description.study_instance_uid:
        raise Refused(MISMATCH, "the dataset has no Study Instance UID", STUDY_INSTANCE_UID)
    if not description.series_instance_uid:
        raise Refused(MISMATCH, "the dataset has no Series Instance UID", SERIES_INSTANCE_UID)


@dataclass(slots=True, kw_only=True, eq=False)
class OpenedInstance:
    """An instance of the store that can be sent as it was received; an OutgoingInstance."""

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: memoryview | FileRange
    length: int
    _file: OpenFile | None = None

    @property
    def label(self) -> str:
        """The path, for messages."""
        return self.path

    def close(self) -> None:
        """Closes the descriptor of a large file; what is held in memory stays."""
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance of the store, its file not opened yet."""

    selected: Selected
    path: str
    successor: Callable[[str], StoredInstance | None]
    """Of a path: what replaced the object there, if anything did."""

    @property
    def sop_class_uid(self) -> str:
        return self.selected.sop_class_uid

    @property
    def sop_instance_uid(self) -> str:
        return self.selected.sop_instance_uid

    @property
    def transfer_syntax_uid(self) -> str:
        return self.selected.transfer_syntax_uid

    def open(self) -> OpenedInstance:
        """Opens the file, or that of the object which has replaced it since it was selected.

        UnreadableInstance where it is gone or is not as the index says.
        """
        known = self.selected
        try:
            file = OpenFile(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
            size = os.fstat(file.fd).st_size
            held = known.length <= HELD_SIZE_MAX
            data = os.pread(file.fd, known.length, known.dataset_offset) if held else b""
        except OSError as exc:
            newer = self.successor(self.path) if isinstance(exc, FileNotFoundError) else None
            if newer is not None:
                return newer.open()
            raise UnreadableInstance(f"an object file cannot be read: {exc.strerror}") from exc
        if size != known.dataset_offset + known.length or (held and len(data) != known.length):
            raise UnreadableInstance("an object file has not the length that the index says")
        dataset: memoryview | FileRange = memoryview(data)
        if held:
            file.close()
        else:
            dataset = FileRange(
                fd=file.fd, offset=known.dataset_offset, length=known.length, owner=file
            )
        return OpenedInstance(
            path=self.path,
            sop_class_uid=known.sop_class_uid,
            sop_instance_uid=known.sop_instance_uid,
            transfer_syntax_uid=known.transfer_syntax_uid,
            dataset=dataset,
            length=known.length,
            _file=None if held else file,
        )


class Store:
    """The object files of one archive, below `root`. Safe for several threads.

    objects/NNNNNN/<random>.dcm; a folder takes 4096 files, so that the files of one moment share
    one folder and its sync. A link among them leads to a file elsewhere, which is only read. tmp/
    holds what is being received where the system has no nameless files; quarantine/ what recovery
    could not make sense of.
    """

    def __init__(self, root: str | os.PathLike[str], durability: Durability) -> None:
        root = Path(root)
        self.root = root
        self._durable = durability is not Durability.NONE
        self._tmp = Folder(root / "tmp", mode=0o600, durable=self._durable)
        self._quarantine = Folder(root / "quarantine", mode=0o600, durable=self._durable)
        self._objects = Folder(root / "objects", mode=0o600, durable=self._durable)
        self._lock = threading.Lock()
        self._open: deque[Folder] = deque()
        self._successors: OrderedDict[str, Selected] = OrderedDict()
        numbers = self.folders()
        self._number = numbers[-1] if numbers else 0
        self._files = 0
        self._open_folder()

    def close(self) -> None:
        """Closes what it holds open; nothing may be on its way."""
        for folder in (self._tmp, self._quarantine, self._objects, *self._open):
            folder.close()

    def create(self) -> TemporaryFile:
        """A new file that nobody sees until `publish`; OSError as open(2) gives it."""
        return self._tmp.create_temporary()

    def publish(self, file: TemporaryFile) -> tuple[Place, Folder]:
        """Data to disk, then a name; blocks. The name is durable once the folder was synced.

        OSError is final for this file: the kernel forgets what it could not write.
        """
        if self._durable:
            file.sync()
        place, folder = self._take_place()
        file.link(place.name, folder)
        return place, folder

    def link(self, path: str) -> tuple[Place, Folder]:
        """A name for a file that lies elsewhere, by its absolute path; blocks. Durable as in `publish`."""
        place, folder = self._take_place()
        os.symlink(path, place.name, dir_fd=folder.fd)
        return place, folder

    def path(self, place: Place) -> str:
        return os.path.join(self._objects.path, f"{place.folder:06}", place.name)

    def instance(self, selected: Selected) -> StoredInstance:
        path = self.path(Place(selected.folder, selected.name))
        return StoredInstance(selected, path, self._successor)

    def replaced(self, old: Place, new: Selected) -> None:
        """`old` is about to be removed; who has selected it, and not opened it yet, gets `new`."""
        self._successors[self.path(old)] = new
        if len(self._successors) > SUCCESSORS_MAX:
            self._successors.popitem(last=False)

    def _successor(self, path: str) -> StoredInstance | None:
        newer = self._successors.get(path)
        return None if newer is None else self.instance(newer)

    def remove(self, place: Place) -> None:
        """Takes away a file that no row speaks of."""
        os.unlink(self.path(place))

    # -- recovery -------------------------------------------------------------------------------

    def targets(self) -> set[str]:
        """The paths that links of the store lead to."""
        return {
            os.readlink(os.path.join(folder, name))
            for number in self.folders()
            for folder in (os.path.join(self._objects.path, f"{number:06}"),)
            for name in self._links(folder)
        }

    def broken_links(self, number: int) -> set[str]:
        """The names in one folder that lead to no file."""
        folder = os.path.join(self._objects.path, f"{number:06}")
        return {
            name for name in self._links(folder) if not os.path.isfile(os.path.join(folder, name))
        }

    def is_link(self, place: Place) -> bool:
        """Whether the object lies elsewhere."""
        return os.path.islink(self.path(place))

    @staticmethod
    def _links(folder: str) -> list[str]:
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in entries if entry.is_symlink()]
        except FileNotFoundError:
            return []

    def folders(self) -> list[int]:
        """The numbers of the folders that exist."""
        return sorted(
            int(entry.name)
            for entry in os.scandir(self._objects.path)
            if entry.name.isdecimal() and entry.name.isascii() and entry.is_dir()
        )

    def names(self, folder: int) -> set[str]:
        """The names in one folder; empty where there is none."""
        try:
            return set(os.listdir(os.path.join(self._objects.path, f"{folder:06}")))
        except FileNotFoundError:
            return set()

    def remove_temporaries(self) -> int:
        """Removes what a killed process left behind; returns how many."""
        count = 0
        for name in os.listdir(self._tmp.path):
            self._tmp.unlink(name)
            count += 1
        return count

    def set_aside(self, place: Place) -> None:
        """Moves a file that is no whole object to quarantine/."""
        os.rename(self.path(place), place.name, dst_dir_fd=self._quarantine.fd)

    def pieces(self, place: Place, offset: int, size: int = 1 << 20) -> Iterator[bytes]:
        """The bytes of an object file from `offset`."""
        with open(self.path(place), "rb", buffering=0) as file:
            file.seek(offset)
            while piece := file.read(size):
                yield piece

    def _take_place(self) -> tuple[Place, Folder]:
        """A place that nobody has, and its folder."""
        with self._lock:
            if self._files >= FOLDER_FILES_MAX:
                self._number += 1  # also where it fails: the next try makes another one
                self._open_folder()
            self._files += 1
            return Place(self._number, secrets.token_hex(16) + SUFFIX), self._open[-1]

    def _open_folder(self) -> None:
        """Takes the folder of the current number into use, once its own name is durable."""
        path = os.path.join(self._objects.path, f"{self._number:06}")
        self._open.append(Folder(path, mode=0o600, durable=self._durable))
        self._files = len(self.names(self._number))
        if len(self._open) > OPEN_FOLDERS_MAX:
            self._open.popleft().close()
