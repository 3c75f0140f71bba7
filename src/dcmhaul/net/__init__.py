"""Trio moves the bytes: sockets, associations, the listener."""

from dcmhaul.net.association import Association, DatasetWriter, Incoming
from dcmhaul.net.credentials import secured
from dcmhaul.net.listener import serve_associations
from dcmhaul.net.requestor import open_association
from dcmhaul.net.types import (
    AcceptorLimits,
    AssociationStats,
    DatasetSink,
    DatasetSlices,
    FileRange,
    NullObserver,
    Observer,
    SocketOptions,
    Timeouts,
    TlsSession,
)

__all__ = [
    "AcceptorLimits",
    "Association",
    "AssociationStats",
    "DatasetSink",
    "DatasetSlices",
    "DatasetWriter",
    "FileRange",
    "Incoming",
    "NullObserver",
    "Observer",
    "SocketOptions",
    "Timeouts",
    "TlsSession",
    "open_association",
    "secured",
    "serve_associations",
]
