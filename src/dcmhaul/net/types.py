"""The values that net exchanges with the layers above: limits, options, slices, file ranges, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from dcmhaul.protocol.events import Role
    from dcmhaul.wire.pdu import AAssociateRq

__all__ = [
    "AcceptorLimits",
    "AssociationStats",
    "DatasetSink",
    "DatasetSlices",
    "FileRange",
    "NullObserver",
    "Observer",
    "SocketOptions",
    "Timeouts",
    "TlsSession",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Deadlines in seconds; None switches one off. Each error names the one that fired.

    connect: TCP, and the same again for the TLS handshake. association: A-ASSOCIATE answer. artim: PS3.8
    §9.1.5, absolute, with the handshake. dimse: a response. progress: bytes must move inside a message.
    release: A-RELEASE-RP. idle: between messages (acceptor).
    """

    connect: float | None = 10.0
    association: float | None = 30.0
    artim: float = 30.0
    dimse: float | None = 60.0
    progress: float | None = 30.0
    release: float | None = 10.0
    idle: float | None = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """What is set on each socket beside TCP_NODELAY and TCP_QUICKACK, which are always on.

    congestion: the name of a congestion control of the kernel, or None for its default. tls: what
    `credentials` made for this side, or None for plain TCP.
    """

    congestion: str | None = None
    tls: ssl.SSLContext | None = None


class TlsSession(NamedTuple):
    """What TLS agreed on. peer: the subject of the peer's certificate, "" where none was checked."""

    version: str
    cipher: str
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptorLimits:
    """How many associations a listener serves at once; above that A-ASSOCIATE-RJ 2/3/1.

    reserved: of `associations`, those that only `known_callers` (`AET` or `AET@ADDRESS`) get. congested:
    asked of each A-ASSOCIATE-RQ; True is A-ASSOCIATE-RJ 2/3/1 as well.
    """

    associations: int = 100
    associations_per_host: int = 100
    reserved: int = 0
    known_callers: tuple[str, ...] = ()
    congested: Callable[[AAssociateRq], bool] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """`length` bytes of the open file `fd` from `offset`; `owner` keeps the descriptor open until sent.

    cold: the first bytes were not in the page cache, so a thread reads ahead before the kernel sends.
    """

    fd: int
    offset: int
    length: int
    owner: object
    cold: bool = False


@runtime_checkable
class DatasetSlices(Protocol):
    """Bytes of a dataset where they arrived. Valid only during the call that was given them."""

    @property
    def data_length(self) -> int:
        """How many bytes there are."""

    def copy_data(self) -> bytes:
        """One copy of all of them."""

    def update(self, consume: Callable[[memoryview], object]) -> None:
        """Calls `consume` with each contiguous piece; the view is released afterwards."""

    def pwrite(self, fd: int, offset: int) -> int:
        """Writes all of them to `fd` at `offset` without the GIL; OSError where that fails."""


class DatasetSink(Protocol):
    """Where the dataset of one message goes."""

    async def write(self, data: DatasetSlices) -> None:
        """Takes the next bytes; blocking here stops the peer (back-pressure)."""


@dataclass(slots=True, kw_only=True)
class AssociationStats:
    """Plain counts of one association; dataset bytes are without PDU and PDV headers.

    odd_fragments_in, oversized_pdus_in: what the peer did against PS3.8 (Annex E, §D.1) and we took.
    """

    pdus_in: int = 0
    pdus_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    receive_calls: int = 0
    send_calls: int = 0
    wakeups: int = 0
    odd_fragments_in: int = 0
    oversized_pdus_in: int = 0


class Observer(Protocol):
    """What an association tells its owner; each call is cheap, synchronous and never raises.

    live: gives the running statistics of an open association, at any time and from any thread
    (`association.stats`). Each `association_opened` is followed by one `association_closed` with
    the same `live`, and the final statistics.
    """

    def association_opened(
        self, role: Role, peer: str, live: Callable[[], AssociationStats]
    ) -> None: ...
    def association_closed(
        self, role: Role, stats: AssociationStats, live: Callable[[], AssociationStats]
    ) -> None: ...
    def association_rejected(self, role: Role, result: int, source: int, reason: int) -> None: ...
    def association_aborted(self, role: Role, origin: str, source: int, reason: int) -> None: ...
    def operation(
        self, operation: str, direction: str, status: int, seconds: float, dataset_bytes: int
    ) -> None: ...


class NullObserver:
    """Counts nothing."""

    def association_opened(
        self, role: Role, peer: str, live: Callable[[], AssociationStats]
    ) -> None:
        pass

    def association_closed(
        self, role: Role, stats: AssociationStats, live: Callable[[], AssociationStats]
    ) -> None:
        pass

    def association_rejected(self, role: Role, result: int, source: int, reason: int) -> None:
        pass

    def association_aborted(self, role: Role, origin: str, source: int, reason: int) -> None:
        pass

    def operation(
        self, operation: str, direction: str, status: int, seconds: float, dataset_bytes: int
    ) -> None:
        pass
