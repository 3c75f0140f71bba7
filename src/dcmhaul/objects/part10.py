"""A Part-10 file as an instance that can be sent as it is: its UIDs, and where its dataset lies.

Must not look into values beyond the few UIDs, and must not change a byte.
"""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass, field

from dcmhaul.errors import NotDicom, UnreadableInstance
from dcmhaul.net.types import FileRange
from dcmhaul.uids import EXPLICIT_VR_BIG_ENDIAN, MEDIA_STORAGE_DIRECTORY, is_valid_uid
from dcmhaul.wire._elements import ElementFault, ElementWalker, glance, probe
from dcmhaul.wire.part10 import (
    FileMeta,
    actual_syntax,
    clean_uid,
    is_deflated,
    parse_file_meta,
)

__all__ = ["HELD_SIZE_MAX", "FileInstance", "OpenFile", "glance_at", "open_instance"]

HELD_SIZE_MAX = 65536
"""Files of up to this many bytes are held in memory and their descriptor is closed at once."""

_FIRST_READ = 16384  # bytes; group 0002 and all elements before the pixels of most files
_PIECE_MIN = 4096  # bytes read after a jump: the headers that follow a value are few
_PIECE_MAX = 65536
_META_MAX = 1 << 20  # bytes in which group 0002 of a file must end
_INLINE_READS_MAX = 16  # further reads that a caller who must not wait will make
_INFLATED_MAX = 262144  # bytes of a deflated dataset that are looked at
_PADDED_SIZE_MAX = 64 << 20  # bytes of a large file that are read to add one

_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_STUDY_INSTANCE = 0x0020000D
_SERIES_INSTANCE = 0x0020000E
_FIRST_DIRECTORY_RECORD = 0x00041200
_CAPTURE = (_SOP_CLASS, _SOP_INSTANCE, _STUDY_INSTANCE, _SERIES_INSTANCE, _FIRST_DIRECTORY_RECORD)

# O_NONBLOCK: a FIFO among the files must not hold us; it means nothing to a regular file.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  # Linux only


class OpenFile:
    """Owns a descriptor: it is closed by `close`, or with the last reference."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Closes the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


# Group 0002 and the first elements of the dataset; one page less one would save nothing.
_GLANCE_SIZE = 4096
# Devices whose file systems know no RWF_NOWAIT (tmpfs): what they hold is always warm.
_always_warm: set[int] = set()


@dataclass(slots=True, kw_only=True, eq=False)
class FileInstance:
    """One file that was found sendable; an OutgoingInstance.

    dataset: the encoded dataset, a view of held bytes or a range of the open file. length: its
    bytes. study_instance_uid, series_instance_uid: "" where the dataset has none.
    """

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    dataset: memoryview | FileRange
    length: int
    _file: OpenFile | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The path, for messages."""
        return self.path

    def close(self) -> None:
        """Closes the descriptor of a large file; what is held in memory stays."""
        if self._file is not None:
            self._file.close()


def _read_start(fd: int, device: int, length: int, nowait: bool) -> tuple[bytearray, bool]:
    """The first `length` bytes, and whether they had to come from the disk."""
    buffer = bytearray(length)
    got = 0
    cold = False
    if _NOWAIT is not None and device not in _always_warm:
        try:
            got = os.preadv(fd, [buffer], 0, _NOWAIT)
            cold = got < length
        except BlockingIOError:
            cold = True
        except OSError:
            _always_warm.add(device)
        if cold and nowait:
            raise BlockingIOError
    with memoryview(buffer) as view:
        while got < length:
            read = os.preadv(fd, [view[got:]], got)
            if not read:
                raise UnreadableInstance("the file became shorter while it was read")
            got += read
    return buffer, cold


def _is_cold(fd: int, device: int, offset: int, length: int) -> bool:
    """Whether the middle or the end of a range would have to be read from the disk."""
    if _NOWAIT is None or device in _always_warm:
        return False
    byte = bytearray(1)
    try:
        for position in (offset + length // 2, offset + length - 1):
            os.preadv(fd, [byte], position, _NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        _always_warm.add(device)
    return False


def _walk(fd: int, walker: ElementWalker, position: int, size: int, nowait: bool) -> None:
    """Walks on from `position` of the file to its end.

    Raises ElementFault where anything is broken or runs past the end of the file.
    """
    piece_size = _PIECE_MIN
    reads = 0
    while position < size:
        skip = walker.skip
        if skip:
            if skip > size - position:
                raise ElementFault(walker.position, "a value runs past the end of the file")
            walker.jump(skip)
            position += skip
            piece_size = _PIECE_MIN
        else:
            piece_size = min(piece_size * 4, _PIECE_MAX)
        if nowait and reads == _INLINE_READS_MAX:
            raise BlockingIOError
        reads += 1
        piece = os.pread(fd, min(piece_size, size - position), position)
        if not piece and position < size:
            raise UnreadableInstance("the file became shorter while it was read")
        walker.feed(piece)
        position += len(piece)
    walker.finish()


def _walk_deflated(walker: ElementWalker, compressed: bytes | memoryview, whole: bool) -> None:
    """Walks the beginning of a deflated dataset, bounded, so that no bomb goes off."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(compressed, _INFLATED_MAX)
    except zlib.error as error:
        raise UnreadableInstance(f"broken deflate stream: {error}") from error
    walker.feed(plain)
    if inflater.eof:
        walker.finish()
    elif whole and not inflater.unconsumed_tail and len(plain) < _INFLATED_MAX:
        raise UnreadableInstance("truncated: the deflate stream has no end")


def _parse_meta(fd: int, device: int, head: bytearray, size: int) -> tuple[FileMeta, bytearray]:
    """Group 0002, and the bytes from which it was read: more of them where it is very long."""
    if len(head) == size:
        return parse_file_meta(head), head
    try:
        meta = parse_file_meta(head)
        if meta.dataset_offset < len(head):
            return meta, head
    except UnreadableInstance:
        pass  # it may only go on beyond these bytes
    head, _cold = _read_start(fd, device, min(size, _META_MAX), nowait=False)
    return parse_file_meta(head), head


def _examine(fd: int, head: bytearray, size: int, meta: FileMeta, nowait: bool) -> dict[int, bytes]:
    """The captured UIDs of the dataset, once it is known to be whole."""
    syntax = meta.transfer_syntax_uid
    walker = ElementWalker(capture=_CAPTURE, big_endian=syntax == EXPLICIT_VR_BIG_ENDIAN)
    view = memoryview(head)[meta.dataset_offset :]
    try:
        if is_deflated(syntax):
            if len(head) < size:
                view = memoryview(os.pread(fd, _INFLATED_MAX, meta.dataset_offset))
            _walk_deflated(walker, view, meta.dataset_offset + len(view) == size)
        else:
            walker.feed(view)
            # Nothing but this UID tells a bare dataset from any other bytes, so it must come early.
            if not meta.has_meta and _SOP_INSTANCE not in walker.captured:
                raise NotDicom("not a DICOM file: no preamble, and no SOP Instance UID")
            _walk(fd, walker, len(head), size, nowait)
    except ElementFault as fault:
        known = walker.captured
        if meta.has_meta or (_SOP_CLASS in known and _SOP_INSTANCE in known):
            raise UnreadableInstance(f"truncated or broken dataset: {fault}") from fault
        raise NotDicom("not a DICOM file: no preamble, and no dataset that can be read") from fault
    return walker.captured


def _uids(meta: FileMeta, captured: dict[int, bytes]) -> tuple[str, str]:
    """SOP class and instance for the command: the dataset's, else those of group 0002."""
    sop_class = clean_uid(captured.get(_SOP_CLASS, b"")) or meta.sop_class_uid
    sop_instance = clean_uid(captured.get(_SOP_INSTANCE, b"")) or meta.sop_instance_uid
    if sop_class == MEDIA_STORAGE_DIRECTORY or _FIRST_DIRECTORY_RECORD in captured:
        raise NotDicom("a DICOMDIR, which is no instance")
    if not meta.has_meta and not (sop_class and sop_instance):
        raise NotDicom("not a DICOM file: no preamble, and not both UIDs in the dataset")
    for value, what in ((sop_class, "SOP Class UID"), (sop_instance, "SOP Instance UID")):
        if not value:
            raise UnreadableInstance(f"no {what}, neither in the dataset nor in group 0002")
        if not is_valid_uid(value):
            raise UnreadableInstance(f"its {what} is not 1 to 64 digits and dots (PS3.5 §9.1)")
    if not is_valid_uid(meta.transfer_syntax_uid):
        raise UnreadableInstance("its Transfer Syntax UID is not 1 to 64 digits and dots")
    return sop_class, sop_instance


def _regular(
    path: str, head: bytearray, found: tuple[str, bool, int, str, str, str, str]
) -> FileInstance:
    """A small file with nothing odd about it, which one pass has seen whole."""
    syntax, explicit, offset, sop_class, sop_instance, study, series = found
    if sop_class == MEDIA_STORAGE_DIRECTORY:
        raise NotDicom("a DICOMDIR, which is no instance")
    return FileInstance(
        path=path,
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        study_instance_uid=study,
        series_instance_uid=series,
        transfer_syntax_uid=actual_syntax(syntax, explicit),
        dataset=memoryview(head)[offset:].toreadonly(),
        length=len(head) - offset,
    )


def _padded(fd: int, device: int, head: bytearray, size: int) -> bytearray:
    """The file with the NUL that a deflated dataset of odd length is to end with (PS3.5 §A.5)."""
    if len(head) < size:
        if size > _PADDED_SIZE_MAX:
            raise UnreadableInstance("a deflated dataset of odd length is too large to be padded")
        head, _cold = _read_start(fd, device, size, nowait=False)
    return head + b"\0"


def _open(path: str, fd: int, nowait: bool) -> tuple[FileInstance, bool]:
    """The instance behind `fd`, and whether it keeps the descriptor."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise NotDicom("not a regular file")
    size = status.st_size
    held = size <= HELD_SIZE_MAX
    head, cold = _read_start(fd, status.st_dev, size if held else _FIRST_READ, nowait)
    if held and (regular := probe(head)) is not None:
        return _regular(path, head, regular), False
    meta, head = _parse_meta(fd, status.st_dev, head, size)
    offset = meta.dataset_offset
    captured = _examine(fd, head, size, meta, nowait)
    sop_class, sop_instance = _uids(meta, captured)
    length = size - offset
    if length == 0:
        raise UnreadableInstance("there is no dataset after group 0002")
    # A message cannot have an odd length (PS3.8 Annex E), and this syntax says how to pad.
    if length % 2 and is_deflated(meta.transfer_syntax_uid):
        head = _padded(fd, status.st_dev, head, size)
        held = True
        length += 1
    file = None
    dataset: memoryview | FileRange
    if held:
        dataset = memoryview(head)[offset:].toreadonly()
    else:
        file = OpenFile(fd)
        dataset = FileRange(
            fd=fd,
            offset=offset,
            length=length,
            owner=file,
            cold=cold or _is_cold(fd, status.st_dev, offset, length),
        )
    instance = FileInstance(
        path=path,
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        study_instance_uid=clean_uid(captured.get(_STUDY_INSTANCE, b"")),
        series_instance_uid=clean_uid(captured.get(_SERIES_INSTANCE, b"")),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        dataset=dataset,
        length=length,
        _file=file,
    )
    return instance, not held


def open_instance(path: str | os.PathLike[str], *, nowait: bool = False) -> FileInstance:
    """Opens a file for sending, and checks by its element headers that it is whole.

    nowait: BlockingIOError where that would wait for the disk, or would take many reads.
    Raises NotDicom for what is to be skipped (no DICOM, a DICOMDIR, no regular file) and
    UnreadableInstance for DICOM that is truncated, broken, without UIDs or cannot be read.
    A deflated dataset is judged by its first 256 KiB, and held in memory where it needs a NUL to be
    of even length.
    """
    text = os.fspath(path)
    try:
        fd = os.open(text, _OPEN_FLAGS)
    except OSError as error:
        raise UnreadableInstance(f"cannot be opened: {error.strerror}") from error
    kept = False
    try:
        instance, kept = _open(text, fd, nowait)
        return instance
    except BlockingIOError:
        raise
    except OSError as error:
        raise UnreadableInstance(f"cannot be read: {error.strerror}") from error
    finally:
        if not kept:
            os.close(fd)


def glance_at(path: str) -> tuple[str, str] | None:
    """SOP class and transfer syntax of a regular file from its first bytes; None for every other.

    A quarter of what `open_instance` costs, and no promise that the rest of the file is whole.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except OSError:
        return None
    try:
        head = os.pread(fd, _GLANCE_SIZE, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    found = glance(head)
    if found is None:
        return None
    syntax, explicit, sop_class = found
    return sop_class, actual_syntax(syntax, explicit)
