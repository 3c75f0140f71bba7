"""The exit codes of the command line: one table for errors and statuses, and which code wins."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from dcmhaul.errors import (
    AssociationAborted,
    DcmhaulError,
    PeerTimeout,
    RemoteProtocolError,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Exit", "for_error", "for_status", "worst"]


class Exit(IntEnum):
    """They hold under the DCMTK names too."""

    OK = 0
    OTHER = 1
    USAGE = 2
    UNREACHABLE = 3
    NOTHING_MATCHED = 4
    RETRYABLE = 5
    PERMANENT = 6
    BREAKER = 7
    BUDGET = 8
    WINDOW_CLOSED = 10
    DIFFERENCE = 11
    THRESHOLD = 99
    INTERRUPTED = 130


# Of several codes the first in this order is the process's. A fault of our own (1) hides behind
# nothing but an interruption.
_PRECEDENCE = (
    Exit.INTERRUPTED,
    Exit.OTHER,
    Exit.USAGE,
    Exit.UNREACHABLE,
    Exit.BREAKER,
    Exit.DIFFERENCE,
    Exit.PERMANENT,
    Exit.RETRYABLE,
    Exit.BUDGET,
    Exit.WINDOW_CLOSED,
    Exit.THRESHOLD,
    Exit.NOTHING_MATCHED,
)

# The deadlines that pass before an association exists: the peer was not reached.
_REACHING = frozenset({"connect", "TLS handshake", "association"})


def worst(codes: Iterable[int]) -> Exit:
    """The exit code of a run in which all of these occurred."""
    seen = {Exit(code) for code in codes}
    return next((code for code in _PRECEDENCE if code in seen), Exit.OK)


def for_error(error: BaseException, *, begun: bool = False) -> Exit:
    """The exit code of an error; `begun`: the peer had already answered a request of this run."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, PeerTimeout):
        reached = begun or error.phase not in _REACHING
        return Exit.RETRYABLE if reached else Exit.UNREACHABLE
    if isinstance(error, (TransportError, AssociationAborted, RemoteProtocolError)):
        return Exit.RETRYABLE if begun else Exit.UNREACHABLE
    if isinstance(error, DcmhaulError):
        return Exit(error.exit_code)
    return Exit.OTHER


def for_status(status: int) -> Exit:
    """The exit code of a final DIMSE status (PS3.7 Annex C, PS3.4); a warning B0xx is a success.

    A7xx (out of resources) may be mended by a retry; FE00 is here a cancel that nobody asked for.
    """
    if status == 0x0000 or status & 0xFF00 == 0xB000:
        return Exit.OK
    if status & 0xFF00 == 0xA700 or status == 0xFE00:
        return Exit.RETRYABLE
    return Exit.PERMANENT
