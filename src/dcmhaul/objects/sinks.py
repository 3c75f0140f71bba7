"""Where received datasets go: a folder of Part-10 files, a digest, or nowhere.

Must not speak to an association, and must not make a path itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import zlib
from enum import Enum
from typing import TYPE_CHECKING, Final, Self

import trio

from dcmhaul.errors import InstanceError
from dcmhaul.objects import instances
from dcmhaul.objects.instances import NO_ANSWER, IncomingInstance, StoreRefused, StoreReply
from dcmhaul.objects.paths import (
    Durability,
    Folder,
    TemporaryFile,
    Trouble,
    instance_name,
    sync_data,
)
from dcmhaul.uids import EXPLICIT_VR_BIG_ENDIAN, is_valid_uid
from dcmhaul.wire._elements import ElementFault, ElementWalker
from dcmhaul.wire.part10 import clean_uid, encode_file_meta, is_deflated, parse_file_meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from dcmhaul.net.types import DatasetSlices

__all__ = ["DigestSink", "DiscardSink", "FolderSink", "FolderSinks", "discard_instance"]

# Statuses of a C-STORE-RSP (PS3.4 §B.2.3, PS3.7 §C.5.8).
_SUCCESS: Final = 0x0000
_INVALID_UID: Final = 0x0117
_OUT_OF_RESOURCES: Final = 0xA700
_MISMATCH: Final = 0xA900
_CANNOT_UNDERSTAND: Final = 0xC000

_STORED: Final = StoreReply(status=_SUCCESS)
_COPIES_MAX: Final = 999
_META_READ: Final = 65536  # bytes in which group 0002 of a file to compare with must end
_COMPARE_READ: Final = 1 << 20
_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_INFLATED_MAX: Final = 65536  # bytes of a deflated dataset in which its UIDs must come
_THREADS: Final = 8  # more of them gain nothing: the disk orders their syncs


class _Outcome(Enum):
    STORED = "stored"
    DUPLICATE = "duplicate"
    OTHER_BYTES = "other bytes"


def _start_of(fd: int) -> tuple[str, int, int]:
    """Transfer syntax, dataset offset and size of a Part-10 file."""
    size = os.fstat(fd).st_size
    meta = parse_file_meta(os.pread(fd, _META_READ, 0))
    return meta.transfer_syntax_uid, meta.dataset_offset, size


def _same_dataset(first: int, second: int) -> bool:
    """Whether two files hold the same dataset in the same syntax; group 0002 may differ."""
    try:
        syntax, offset, size = _start_of(first)
        other_syntax, other_offset, other_size = _start_of(second)
    except InstanceError:
        return False
    length = size - offset
    if syntax != other_syntax or length != other_size - other_offset:
        return False
    done = 0
    while done < length:
        piece = os.pread(first, min(_COMPARE_READ, length - done), offset + done)
        if not piece or piece != os.pread(second, len(piece), other_offset + done):
            return False
        done += len(piece)
    return True


def _unreported(_line: str) -> None:
    """Stands where nobody asked for the lines."""


class FolderSinks:
    """A SinkFactory: each instance becomes one Part-10 file, `<SOP Instance UID>.dcm`.

    Equal datasets under one UID are kept once; other bytes become `<UID>.1.dcm` and so on. No other
    file is left in the folder. stored, duplicates, other_bytes: how the commits went so far;
    `stored` counts files, those with other bytes too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable: Durability = Durability.BATCH,
        report: Callable[[str], None] = _unreported,
    ) -> None:
        """report: gets a line when the folder begins to take nothing, and when it takes again."""
        self.folder = Folder(path, durable=durable is not Durability.NONE)
        self.durable = durable
        self.trouble = Trouble(path, report)
        self.stored = 0
        self.duplicates = 0
        self.other_bytes = 0
        self.limiter = trio.CapacityLimiter(_THREADS)

    def __call__(self, incoming: IncomingInstance) -> FolderSink:
        if not is_valid_uid(incoming.sop_instance_uid):
            raise StoreRefused(
                StoreReply(status=_INVALID_UID, error_comment="SOP Instance UID is no UID")
            )
        return FolderSink(self, incoming)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the folder; sinks that are not committed yet must have been discarded."""
        self.folder.close()

    def failure(self, error: OSError | None) -> StoreReply:
        """What is answered after an error, or where there was no answer at all."""
        reply = NO_ANSWER
        if error is not None:
            comment = f"cannot store: {error.strerror}"[:64]
            reply = StoreReply(status=_OUT_OF_RESOURCES, error_comment=comment)
        self.trouble.failed(reply.error_comment)
        return reply

    def count(self, outcome: _Outcome) -> None:
        self.trouble.worked()
        if outcome is _Outcome.DUPLICATE:
            self.duplicates += 1
            return
        self.stored += 1
        if outcome is _Outcome.OTHER_BYTES:
            self.other_bytes += 1


class _Claims:
    """Compares the UIDs at the head of a dataset with those of its command.

    What cannot be read, or does not name them, contradicts nothing: the bytes are kept as they came.
    """

    __slots__ = ("_incoming", "_inflater", "_walker", "ended")

    def __init__(self, incoming: IncomingInstance) -> None:
        self.ended = False
        """No more bytes are needed."""
        self._incoming = incoming
        syntax = incoming.transfer_syntax_uid
        self._walker = ElementWalker(
            big_endian=syntax == EXPLICIT_VR_BIG_ENDIAN,
            capture=(_SOP_CLASS, _SOP_INSTANCE),
            stop_above=_SOP_INSTANCE,
        )
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if is_deflated(syntax) else None

    def feed(self, data: memoryview) -> None:
        """Takes the next bytes of the dataset."""
        if self.ended:
            return
        try:
            if self._inflater is None:
                self._walker.feed(data)
            else:
                self._walker.feed(self._inflater.decompress(data, _INFLATED_MAX))
                self.ended = self._walker.position >= _INFLATED_MAX
        except (ElementFault, zlib.error):
            self.ended = True
        else:
            self.ended = self.ended or self._walker.stopped

    def refusal(self) -> StoreReply | None:
        """A900 where the dataset names another class or instance (PS3.4 §B.2.3)."""
        captured = self._walker.captured
        for tag, told, what in (
            (_SOP_CLASS, self._incoming.sop_class_uid, "SOP Class UID"),
            (_SOP_INSTANCE, self._incoming.sop_instance_uid, "SOP Instance UID"),
        ):
            if clean_uid(captured.get(tag, b"")) not in ("", told):
                comment = f"{what} of the dataset is not that of the command"
                return StoreReply(status=_MISMATCH, error_comment=comment, offending=(tag,))
        return None


class FolderSink:
    """One dataset on its way into a file; nothing is visible before `commit`."""

    __slots__ = ("_claims", "_file", "_incoming", "_offset", "_owner", "_refusal")

    def __init__(self, owner: FolderSinks, incoming: IncomingInstance) -> None:
        self._owner = owner
        self._incoming = incoming
        self._claims = _Claims(incoming)
        self._file: TemporaryFile | None = None
        self._offset = 0
        self._refusal: StoreReply | None = None

    async def write(self, data: DatasetSlices) -> None:
        """Appends; after the first error everything is dropped, and `commit` says so."""
        if self._refusal is not None:
            return
        if not self._claims.ended:
            data.update(self._claims.feed)
            self._refusal = self._claims.refusal()
            if self._refusal is not None:
                self.discard()
                return
        try:
            file = self._file or self._begin()
            self._offset += data.pwrite(file.fd, self._offset)
        except OSError as error:
            self._refusal = self._owner.failure(error)
            self.discard()

    def _begin(self) -> TemporaryFile:
        incoming = self._incoming
        self._file = self._owner.folder.create_temporary()
        meta = encode_file_meta(
            incoming.sop_class_uid,
            incoming.sop_instance_uid,
            incoming.transfer_syntax_uid,
            incoming.calling_ae_title,
        )
        while self._offset < len(meta):
            self._offset += os.pwrite(self._file.fd, meta[self._offset :], self._offset)
        return self._file

    async def commit(self) -> StoreReply:
        """Makes the file appear, durable as the mode demands; A700 where that fails."""
        if self._refusal is not None:
            return self._refusal
        if self._file is None:
            return StoreReply(status=_CANNOT_UNDERSTAND, error_comment="the dataset is empty")
        try:
            outcome = self._settle_at_once(self._file) or await self._settle_in_thread(self._file)
        except OSError as error:
            return self._owner.failure(error)
        finally:
            self.discard()
        if outcome is None:
            return self._owner.failure(None)
        self._owner.count(outcome)
        return _STORED

    async def _settle_in_thread(self, file: TemporaryFile) -> _Outcome | None:
        """None where the disk does not answer in time; the thread that waits for it has the file then."""
        turns = itertools.count()

        def settle() -> _Outcome | None:
            if next(turns):  # nobody waits any more, and the file is closed
                return None
            try:
                return self._settle(file)
            finally:
                file.close()

        # Once the file has a name its folder is to be synced: a cancellation waits for that.
        patience = trio.current_time() + instances.PATIENCE_SECONDS
        with trio.CancelScope(shield=True, deadline=patience):
            return await trio.to_thread.run_sync(
                settle, limiter=self._owner.limiter, abandon_on_cancel=True
            )
        if next(turns):
            self._file = None
        return None

    def discard(self) -> None:
        """Closes the file; without a commit before it nothing remains."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _settle_at_once(self, file: TemporaryFile) -> _Outcome | None:
        """Without durability one link is all; an existing file is compared in a thread."""
        if self._owner.durable is not Durability.NONE:
            return None
        try:
            file.link(instance_name(self._incoming.sop_instance_uid))
        except FileExistsError:
            return None
        return _Outcome.STORED

    def _settle(self, file: TemporaryFile) -> _Outcome:
        """Data first, then the name, then the folder: in a thread, for each step may block."""
        folder = self._owner.folder
        durable = self._owner.durable
        outcome, name = self._place(file, durable is not Durability.NONE)
        if durable is not Durability.NONE:
            try:
                folder.sync(shared=durable is Durability.BATCH)
            except OSError:
                # What may not be durable must not look stored when the sender tries again.
                if outcome is not _Outcome.DUPLICATE:
                    with contextlib.suppress(OSError):
                        folder.unlink(name)
                raise
        return outcome

    def _place(self, file: TemporaryFile, durable: bool) -> tuple[_Outcome, str]:
        """Links the file under the first name that is free, unless its bytes are there already."""
        folder = self._owner.folder
        synced = not durable
        for copy in range(_COPIES_MAX + 1):
            name = instance_name(self._incoming.sop_instance_uid, copy)
            # A second try, for the name may be taken between a look at it and the link.
            for _attempt in range(2):
                try:
                    existing = folder.open(name)
                except FileNotFoundError:
                    if not synced:
                        file.sync()
                        synced = True
                    try:
                        file.link(name)
                    except FileExistsError:
                        continue
                    return (_Outcome.OTHER_BYTES if copy else _Outcome.STORED), name
                try:
                    if _same_dataset(existing, file.fd):
                        if durable:
                            sync_data(existing)
                        return _Outcome.DUPLICATE, name
                finally:
                    os.close(existing)
                break
        raise OSError(0, f"more than {_COPIES_MAX} different objects under one UID")


class DiscardSink:
    """Counts the bytes and drops them."""

    __slots__ = ("length",)
    immediate = True

    def __init__(self) -> None:
        self.length = 0

    async def write(self, data: DatasetSlices) -> None:
        self.length += data.data_length

    async def commit(self) -> StoreReply:
        return _STORED

    def discard(self) -> None:
        """There is nothing to remove."""


def discard_instance(_incoming: IncomingInstance) -> DiscardSink:
    """A SinkFactory whose sinks keep nothing."""
    return DiscardSink()


class DigestSink:
    """Takes the SHA-256 of a dataset as it was received; group 0002 is no part of it.

    record: called by `commit` with the instance, the hexadecimal digest and the number of bytes.
    """

    __slots__ = ("_hash", "_incoming", "_record", "length")

    def __init__(
        self,
        incoming: IncomingInstance,
        record: Callable[[IncomingInstance, str, int], None],
    ) -> None:
        self._incoming = incoming
        self._record = record
        self._hash = hashlib.sha256()
        self.length = 0

    async def write(self, data: DatasetSlices) -> None:
        data.update(self._hash.update)
        self.length += data.data_length

    async def commit(self) -> StoreReply:
        self._record(self._incoming, self._hash.hexdigest(), self.length)
        return _STORED

    def discard(self) -> None:
        """There is nothing to remove."""
