"""What the upper layer tells its user: the indications and confirmations of PS3.8 §7."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from dcmhaul.wire.pdu import AAssociateAc, AAssociateRj, AAssociateRq, PDataTf

__all__ = [
    "Aborted",
    "AssociationAccepted",
    "AssociationRejectedEvent",
    "AssociationRequested",
    "Event",
    "PDataReceived",
    "ProviderAborted",
    "ReleaseCollision",
    "ReleaseConfirmed",
    "ReleaseRequested",
    "Role",
    "TransportClosed",
]


class Role(Enum):
    """Who asked for the association. SCU and SCP are another matter: they hold per SOP class."""

    REQUESTOR = "requestor"
    ACCEPTOR = "acceptor"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRequested:
    """A-ASSOCIATE indication: the user must `accept` or `reject`."""

    rq: AAssociateRq


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationAccepted:
    """A-ASSOCIATE confirmation, accepted."""

    ac: AAssociateAc


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRejectedEvent:
    """A-ASSOCIATE confirmation, rejected; the transport is to be closed."""

    rj: AAssociateRj


@dataclass(frozen=True, slots=True, kw_only=True)
class PDataReceived:
    """P-DATA indication. The data plane moves P-DATA past the machine, without this event."""

    p_data: PDataTf


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequested:
    """A-RELEASE indication: the user may still send P-DATA, then must `respond_release`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseCollision:
    """A-RELEASE indication after our own request (AR-8).

    The requestor must `respond_release` now. The acceptor waits for `ReleaseConfirmed` first.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseConfirmed:
    """A-RELEASE confirmation. In Sta12 (a collision) the acceptor's user must still respond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """A-ABORT indication: the peer's service-user gave up (source 0)."""

    source: int
    reason: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAborted:
    """A-P-ABORT indication: the peer's provider (`local` False) or our own found a broken PDU.

    `source` and `reason` are the fields of the A-ABORT PDU that came or that we sent.
    """

    source: int
    reason: int
    local: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportClosed:
    """A-P-ABORT indication (AA-4): the transport went away under the association."""


Event: TypeAlias = (
    AssociationRequested
    | AssociationAccepted
    | AssociationRejectedEvent
    | PDataReceived
    | ReleaseRequested
    | ReleaseCollision
    | ReleaseConfirmed
    | Aborted
    | ProviderAborted
    | TransportClosed
)
