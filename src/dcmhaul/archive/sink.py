"""One dataset on its way into the archive: in memory while it is small, else in a file without a name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dcmhaul.archive.store import Intake, Refused
from dcmhaul.wire.part10 import encode_file_meta

if TYPE_CHECKING:
    from dcmhaul.archive.index import Added, Place
    from dcmhaul.archive.scp import Archive
    from dcmhaul.net.types import DatasetSlices
    from dcmhaul.objects.instances import IncomingInstance, StoreReply
    from dcmhaul.objects.paths import TemporaryFile

__all__ = ["ArchiveSink", "Received", "file_meta", "write_whole"]

# A dataset of up to so many bytes gets its file when it is whole: making a file waits for the syncs
# of others, so that is for a thread.
HELD_SIZE_MAX = 64 * 1024


@dataclass(slots=True, kw_only=True, eq=False)
class Received:
    """A dataset that has arrived, as far as it has: in `file`, or as long as it is small in `held`,
    in either case behind group 0002. place: where it has its name, once it has one."""

    incoming: IncomingInstance
    intake: Intake
    held: list[bytes]
    file: TemporaryFile | None = None
    length: int = 0
    place: Place | None = None


class ArchiveSink:
    """Takes one dataset into memory, or a large one into a nameless file; a StorageSink."""

    def __init__(self, archive: Archive, incoming: IncomingInstance) -> None:
        self.added: Added | None = None
        self._archive = archive
        meta = file_meta(incoming)
        self._offset = len(meta)
        self._received: Received | None = Received(
            incoming=incoming, intake=Intake(incoming.transfer_syntax_uid), held=[meta]
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
                piece = data.copy_data()
                received.intake.feed(piece)
                received.held.append(piece)
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
        received.file = self._archive.create()
        write_whole(received.file.fd, b"".join(received.held))
        received.held.clear()
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


def write_whole(fd: int, data: bytes) -> None:
    """All of it, to the beginning of the file."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:] if done else data, done)


def file_meta(incoming: IncomingInstance) -> bytes:
    """Group 0002, as it stands before the dataset in the object's file."""
    return encode_file_meta(
        incoming.sop_class_uid,
        incoming.sop_instance_uid,
        incoming.transfer_syntax_uid,
        incoming.calling_ae_title,
    )
