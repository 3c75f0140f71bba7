"""One instance on its way out or in, and the contract of what takes it in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dcmhaul.net.types import DatasetSlices, FileRange
    from dcmhaul.objects.reencoded import DatasetStream

__all__ = [
    "NO_ANSWER",
    "PATIENCE_SECONDS",
    "BytesInMemory",
    "IncomingInstance",
    "MoveOriginator",
    "OutgoingInstance",
    "SinkFactory",
    "StorageSink",
    "StoreRefused",
    "StoreReply",
]


PATIENCE_SECONDS = 10.0
"""How long a finished message waits for the disk before it is answered; peers give up after 30 s."""


class OutgoingInstance(Protocol):
    """An instance that can be sent as it is: UIDs of the C-STORE-RQ, and the encoded dataset."""

    @property
    def label(self) -> str:
        """What names it to the user (a path): for messages only."""

    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def transfer_syntax_uid(self) -> str: ...
    @property
    def dataset(self) -> memoryview | bytes | FileRange | DatasetStream: ...
    @property
    def length(self) -> int:
        """Bytes of the dataset, group 0002 excluded."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class MoveOriginator:
    """The C-MOVE-RQ that a C-STORE-RQ belongs to: who sent it, and its Message ID (PS3.7 §9.3.1.1)."""

    ae_title: str
    message_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingInstance:
    """What is known of an instance before its dataset arrives.

    move_originator: who asked for it by a C-MOVE, where its C-STORE-RQ says so; optional (PS3.7 §9.1.1.1).
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    peer: str
    move_originator: MoveOriginator | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReply:
    """The status of the C-STORE-RSP (PS3.4 §B.2.3) and its Error Comment (0000,0902).

    offending: the tags of its Offending Element (0000,0901).
    """

    status: int
    error_comment: str = ""
    offending: tuple[int, ...] = ()


class BytesInMemory:
    """Bytes of a dataset as sinks take them; DatasetSlices of what no socket brought."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)

    @property
    def data_length(self) -> int:
        return len(self._data)

    def copy_data(self) -> bytes:
        return bytes(self._data)

    def update(self, consume: Callable[[memoryview], object]) -> None:
        consume(self._data)

    def pwrite(self, fd: int, offset: int) -> int:
        done = 0
        while done < len(self._data):
            done += os.pwrite(fd, self._data[done:], offset + done)
        return done


NO_ANSWER = StoreReply(status=0xA700, error_comment="cannot store: the disk does not answer")
"""The answer when the patience is at its end; the object may yet be stored, unacknowledged."""


class StoreRefused(Exception):
    """Raised by a SinkFactory: the dataset is drained, then the reply is sent."""

    def __init__(self, reply: StoreReply) -> None:
        super().__init__(f"status 0x{reply.status:04X}")
        self.reply = reply


class StorageSink(Protocol):
    """Takes one dataset. After the last write exactly one of `commit` and `discard` is called.

    A sink that cannot go on (a full disk) remembers it, takes the rest, and says so in `commit`. One with
    a true attribute `immediate` never waits in `commit`: it needs no task beside the one that reads.
    """

    async def write(self, data: DatasetSlices) -> None: ...
    async def commit(self) -> StoreReply:
        """Makes it as durable as the mode demands; only then returns, but after PATIENCE_SECONDS."""

    def discard(self) -> None:
        """Removes every trace; called where the message broke off."""


SinkFactory = Callable[[IncomingInstance], StorageSink | None]
"""Makes the sink of one instance; None means that its bytes are counted and dropped."""
