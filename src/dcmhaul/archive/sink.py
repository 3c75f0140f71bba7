"""One dataset on its way into the archive: in memory while it is small, else in a file without a name."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dcmhaul.archive.store import Intake, Refused
from dcmhaul.wire.part10 import encode_file_meta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dcmhaul.archive.index import Added, Place
    from dcmhaul.archive.scp import Archive
    from dcmhaul.net.types import DatasetSlices
    from dcmhaul.objects.instances import IncomingInstance, StoreReply
    from dcmhaul.objects.paths import TemporaryFile

__all__ = ["ArchiveSink", "Received", "file_meta"]

# A dataset of up to so many bytes gets its digest and its file when it is whole, in a thread: both take far
# longer than the copy, and making a file waits for the syncs of others.
HELD_SIZE_MAX = 1 << 20
# From here on what is to be durable goes to the disk past the page cache, which would cost more of the
# processor than all else together, and hold up other writers.
DIRECT_SIZE_MIN = 128 * 1024
_BLOCK_SIZE = 4096  # of memory, file and length: enough for every disk
_PIECES_A_WRITE = 1024  # IOV_MAX, as Linux and macOS have it
META_SIZE_MAX = 4096  # far above what group 0002 of ours can have
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
_thread = threading.local()


@dataclass(slots=True, kw_only=True, eq=False)
class Received:
    """A dataset that has arrived, as far as it has: in `file` behind `meta`, its group 0002, or as long as
    it is small in `held`, which `intake` has not seen. place: where it has its name, once it has one."""

    incoming: IncomingInstance
    intake: Intake
    meta: bytes
    held: list[bytes] = field(default_factory=list)
    file: TemporaryFile | None = None
    length: int = 0
    place: Place | None = None

    def examine(self) -> None:
        """Gives what is held to `intake`; Refused where it can be no dataset."""
        for piece in self.held:
            self.intake.feed(piece)

    def write_held(self, file: TemporaryFile, *, direct: bool = False) -> None:
        """Group 0002 and what is held to the beginning of the file, which then has all that came so far.

        direct: past the page cache where that pays and the file system can; it waits for the disk.
        """
        pieces = [self.meta, *self.held]
        if not (direct and self.length >= DIRECT_SIZE_MIN and _write_direct(file.fd, pieces)):
            _write_whole(file.fd, pieces)
        self.held.clear()


class ArchiveSink:
    """Takes one dataset into memory, or a large one into a nameless file; a StorageSink."""

    def __init__(self, archive: Archive, incoming: IncomingInstance) -> None:
        self.added: Added | None = None
        self._archive = archive
        meta = file_meta(incoming)
        self._offset = len(meta)
        self._received: Received | None = Received(
            incoming=incoming, intake=Intake(incoming.transfer_syntax_uid), meta=meta
        )
        self._held = 0
        self._reply: StoreReply | None = None

    async def write(self, data: DatasetSlices) -> None:
        """Digest, header walk and disk for the next bytes; after a failure the rest is let go."""
        received = self._received
        if received is None:
            return
        try:
            if received.file is None and not self._hold(data.data_length):
                self._spill(received)
            if received.file is None:
                received.held.append(data.copy_data())
            else:
                data.update(received.intake.feed)
                data.pwrite(received.file.fd, self._offset + received.length)
            received.length += data.data_length
        except Refused as refused:
            self._fail(refused.reply())
        except OSError as exc:
            self._fail(self._archive.failure(exc))

    async def commit(self) -> StoreReply:
        """Answers only when the object is durable, or will not be."""
        received, self._received = self._received, None
        if received is None:
            self._archive.count_refused()
            assert self._reply is not None
            return self._reply
        reply, self.added = await self._archive.keep(received, partial(self._let_go, received))
        return reply

    def discard(self) -> None:
        received, self._received = self._received, None
        if received is not None:
            self._let_go(received)

    def _hold(self, size: int) -> bool:
        """Whether the next bytes may stay in memory with those before."""
        if self._held + size > HELD_SIZE_MAX or not self._archive.hold(size):
            return False
        self._held += size
        return True

    def _spill(self, received: Received) -> None:
        """What was held so far goes to a file, and so does what follows."""
        received.examine()
        received.file = self._archive.create()
        received.write_held(received.file)
        self._release()

    def _release(self) -> None:
        self._archive.hold(-self._held)
        self._held = 0

    def _let_go(self, received: Received) -> None:
        self._release()
        if received.file is not None:
            received.file.close()

    def _fail(self, reply: StoreReply) -> None:
        self._reply = reply
        self.discard()


def _write_whole(fd: int, pieces: Sequence[bytes]) -> None:
    """All of them, to the beginning of the file."""
    done = 0
    for first in range(0, len(pieces), _PIECES_A_WRITE):
        left = [memoryview(piece) for piece in pieces[first : first + _PIECES_A_WRITE]]
        while left:
            written = os.pwritev(fd, left, done)
            done += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]


def _write_direct(fd: int, pieces: Sequence[bytes]) -> bool:
    """As `_write_whole`, past the page cache; False where the file system cannot, or took a part of it."""
    if not _O_DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _O_DIRECT)
    except OSError:
        return False
    try:
        with memoryview(_blocks()) as blocks:
            size = 0
            for piece in pieces:
                blocks[size : size + len(piece)] = piece
                size += len(piece)
            whole = -(-size // _BLOCK_SIZE) * _BLOCK_SIZE
            blocks[size:whole] = bytes(whole - size)
            written = os.pwrite(fd, blocks[:whole], 0)
        if written == whole:
            os.ftruncate(fd, size)
        return written == whole
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _blocks() -> mmap.mmap:
    """Memory on a page of its own, for one object of the thread that calls."""
    blocks: mmap.mmap | None = getattr(_thread, "blocks", None)
    if blocks is None:
        blocks = _thread.blocks = mmap.mmap(-1, HELD_SIZE_MAX + META_SIZE_MAX + _BLOCK_SIZE)
    return blocks


def file_meta(incoming: IncomingInstance) -> bytes:
    """Group 0002, as it stands before the dataset in the object's file."""
    return encode_file_meta(
        incoming.sop_class_uid,
        incoming.sop_instance_uid,
        incoming.transfer_syntax_uid,
        incoming.calling_ae_title,
    )
