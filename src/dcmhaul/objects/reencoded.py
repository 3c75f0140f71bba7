"""An instance that leaves in another transfer syntax than it has: an OutgoingInstance made of another.

Its dataset is made while it is sent. Before that its headers are walked once, so that what cannot
be said in the other syntax is known before a message begins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcmhaul.errors import CannotReencode
from dcmhaul.net.types import FileRange
from dcmhaul.objects.reencode import Reencoder
from dcmhaul.wire.part10 import is_deflated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dcmhaul.objects.instances import OutgoingInstance

__all__ = ["DatasetStream", "ReencodedInstance", "reencode_instance"]

_PIECE_SIZE = 1 << 18  # octets of the source that are read at once
_LOOK_SIZE = 1 << 14  # the same where only headers are looked at


class DatasetStream:
    """A dataset that is made while it is sent; length: its octets so far.

    What it is made of must not change meanwhile: EOFError where that shows.
    """

    def __init__(
        self, dataset: memoryview | bytes | FileRange, source: str, target: str, *, signed: bool
    ) -> None:
        self.length = 0
        self._dataset = dataset
        self._source = source
        self._target = target
        self._signed = signed

    def chunks(self) -> Iterator[bytes]:
        """Its octets in order, from the beginning; blocks on the disk."""
        self.length = 0
        reencoder = Reencoder(self._source, self._target, signed=self._signed)
        try:
            for piece in _pieces(self._dataset):
                yield from map(self._counted, reencoder.feed(piece))
            yield from map(self._counted, reencoder.finish())
        except (CannotReencode, OSError) as exc:
            raise EOFError(f"the file changed while it was sent ({exc})") from exc

    def _counted(self, chunk: bytes) -> bytes:
        self.length += len(chunk)
        return chunk


@dataclass(slots=True, kw_only=True, eq=False)
class ReencodedInstance:
    """`original`, which it closes, with its dataset in `transfer_syntax_uid`.

    length: octets of the dataset; of a stream that is deflated, those that have left.
    """

    original: OutgoingInstance
    transfer_syntax_uid: str
    dataset: memoryview | bytes | FileRange | DatasetStream
    _length: int | None

    @property
    def label(self) -> str:
        return self.original.label

    @property
    def sop_class_uid(self) -> str:
        return self.original.sop_class_uid

    @property
    def sop_instance_uid(self) -> str:
        return self.original.sop_instance_uid

    @property
    def length(self) -> int:
        if self._length is not None:
            return self._length
        return self.dataset.length if isinstance(self.dataset, DatasetStream) else 0

    def close(self) -> None:
        self.original.close()


def reencode_instance(instance: OutgoingInstance, target: str) -> ReencodedInstance:
    """The instance in another uncompressed syntax. Blocks on the disk while headers are looked at.

    Small ones are made at once, in memory; all others while they are sent.
    Raises CannotReencode where it is compressed, broken, or says what the target cannot.
    """
    source = instance.transfer_syntax_uid
    dataset = instance.dataset
    if isinstance(dataset, DatasetStream):
        raise CannotReencode("it was re-encoded before")
    if not (isinstance(dataset, FileRange) or is_deflated(source)):
        reencoder = Reencoder(source, target, signed=_look(dataset, source, target).signed)
        data = b"".join([*reencoder.feed(dataset), *reencoder.finish()])
        return ReencodedInstance(
            original=instance, transfer_syntax_uid=target, dataset=data, _length=len(data)
        )
    try:
        seen = _look(dataset, source, target)
    except OSError as exc:
        raise CannotReencode(f"cannot be read: {exc.strerror}") from exc
    return ReencodedInstance(
        original=instance,
        transfer_syntax_uid=target,
        dataset=DatasetStream(dataset, source, target, signed=seen.signed),
        _length=None if is_deflated(target) else seen.length,
    )


def _look(dataset: memoryview | bytes | FileRange, source: str, target: str) -> Reencoder:
    """Walks all headers, past the values where they can be passed over."""
    # What would be deflated need not be: its length is not known before anyway.
    reencoder = Reencoder(source, target, looking=True)
    length = dataset.length if isinstance(dataset, FileRange) else len(dataset)
    at = 0
    while at < length:
        skip = min(reencoder.skip, length - at)
        if skip:
            reencoder.jump(skip)
        else:
            skip = min(_LOOK_SIZE, length - at)
            for _ in reencoder.feed(_read(dataset, at, skip)):
                pass
        at += skip
    for _ in reencoder.finish():
        pass
    return reencoder


def _pieces(dataset: memoryview | bytes | FileRange) -> Iterator[bytes | memoryview]:
    length = dataset.length if isinstance(dataset, FileRange) else len(dataset)
    for at in range(0, length, _PIECE_SIZE):
        yield _read(dataset, at, min(_PIECE_SIZE, length - at))


def _read(dataset: memoryview | bytes | FileRange, at: int, length: int) -> bytes | memoryview:
    if not isinstance(dataset, FileRange):
        return memoryview(dataset)[at : at + length]
    data = os.pread(dataset.fd, length, dataset.offset + at)
    if len(data) < length:
        raise CannotReencode("the file became shorter while it was read")
    return data
