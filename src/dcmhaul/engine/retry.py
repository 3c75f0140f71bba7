"""What a failure means for the next step: try again, ask the destination first, or give up.

Pure: no clock, no network. Callers wait and act.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dcmhaul.errors import (
    AssociationAborted,
    AssociationRejected,
    ConfigurationError,
    DcmhaulError,
    InstanceError,
    NoAcceptedContext,
    RemoteProtocolError,
    TransportError,
)
from dcmhaul.protocol.statuses import StatusCategory, category

__all__ = ["Decision", "RetryPolicy", "Verdict", "decide_error", "decide_status", "is_stored"]

# PS3.7 Annex C: refused for a cause that passes (resource limitation, mistyped traffic does not).
_RESOURCE_LIMITATION = 0x0213


class Verdict(Enum):
    """What to do with an instance, a study or an association after a failure."""

    RETRY = "retry"
    ASK = "ask"
    """The request was outstanding: only the destination knows whether it holds the instance."""
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict, how long to wait before it is acted on, and whether a later run may mend it."""

    verdict: Verdict
    delay_seconds: float = 0.0
    retryable: bool = True
    brake: bool = False
    """True where the peer as a whole is under pressure, not this one instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and how patiently. Delays double from `delay_seconds` up to
    `delay_max_seconds`.
    """

    attempts: int = 3
    refused_attempts: int = 2
    """For A9xx and Cxxx: the answer rarely changes."""
    delay_seconds: float = 0.5
    delay_max_seconds: float = 30.0

    def delay(self, attempts: int) -> float:
        """Seconds to wait after `attempts` failures (1 or more)."""
        exponent = min(max(attempts, 1) - 1, 16)
        return float(min(self.delay_seconds * 2**exponent, self.delay_max_seconds))


def is_stored(status: int) -> bool:
    """True where a C-STORE-RSP says that the peer holds the instance: 0000 or B0xx (PS3.4 §B.2.3)."""
    return category(status, "C-STORE") in (StatusCategory.SUCCESS, StatusCategory.WARNING)


def decide_status(status: int, attempts: int, policy: RetryPolicy) -> Decision:
    """What follows a C-STORE-RSP that is not a success, after `attempts` tries of this instance."""
    if 0xA700 <= status <= 0xA7FF or status == _RESOURCE_LIMITATION:
        if attempts < policy.attempts:
            return Decision(verdict=Verdict.RETRY, delay_seconds=policy.delay(attempts), brake=True)
        return Decision(verdict=Verdict.GIVE_UP, retryable=True, brake=True)
    if 0xA900 <= status <= 0xA9FF or 0xC000 <= status <= 0xCFFF:
        if attempts < policy.refused_attempts:
            return Decision(
                verdict=Verdict.RETRY, delay_seconds=policy.delay(attempts), retryable=False
            )
        return Decision(verdict=Verdict.GIVE_UP, retryable=False)
    # 0122 SOP class not supported, 0117 invalid UID, 0124 not authorised: the same answer every
    # time.
    return Decision(verdict=Verdict.GIVE_UP, retryable=False)


def decide_error(error: DcmhaulError, attempts: int, policy: RetryPolicy) -> Decision:
    """What follows an error that ended an attempt, after `attempts` tries.

    Where a request was outstanding the caller asks the destination before it acts on a RETRY.
    """
    if isinstance(error, AssociationRejected) and not error.transient:
        return Decision(verdict=Verdict.GIVE_UP, retryable=False)
    if isinstance(error, (NoAcceptedContext, ConfigurationError, InstanceError)):
        return Decision(verdict=Verdict.GIVE_UP, retryable=False)
    if isinstance(
        error, (TransportError, AssociationAborted, AssociationRejected, RemoteProtocolError)
    ):
        if attempts < policy.attempts:
            return Decision(
                verdict=Verdict.RETRY,
                delay_seconds=policy.delay(attempts),
                brake=isinstance(error, AssociationRejected),
            )
        return Decision(verdict=Verdict.GIVE_UP, retryable=True)
    return Decision(verdict=Verdict.GIVE_UP, retryable=False)
