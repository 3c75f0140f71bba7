"""Every exception that leaves a layer of dcmhaul, with the exit code that the command line gives it."""

from __future__ import annotations

__all__ = [
    "AssociationAborted",
    "AssociationRejected",
    "CannotReencode",
    "ConfigurationError",
    "ConnectionDropped",
    "DcmhaulError",
    "InstanceError",
    "LocalProtocolError",
    "NoAcceptedContext",
    "NotDicom",
    "PeerTimeout",
    "ProtocolError",
    "RemoteProtocolError",
    "TlsError",
    "TransportError",
    "UnreadableInstance",
]


class DcmhaulError(Exception):
    """Base of all; its text is one line: what was expected, what came, what to do."""

    exit_code: int = 1


class ConfigurationError(DcmhaulError):
    """A command line, a configuration file or an environment variable that cannot be used."""

    exit_code = 2


class ProtocolError(DcmhaulError):
    """Abstract: somebody broke PS3.7 or PS3.8. Raise one of the two children, which say who."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError(
                "ProtocolError is abstract: raise LocalProtocolError or RemoteProtocolError"
            )
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """Our own code asked for what the state of the association does not allow: a bug on our side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the standard does not allow.

    `source` and `reason` are the fields of the A-ABORT that answers it (PS3.8 §9.3.8): source 0 is the
    service-user (reason always 0), source 2 the service-provider.
    """

    exit_code = 5

    def __init__(self, message: str, *, source: int = 2, reason: int = 0) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason


class TransportError(DcmhaulError):
    """The TCP connection could not be made, or was lost."""

    exit_code = 3


class ConnectionDropped(TransportError):
    """The peer closed the connection instead of answering the A-ASSOCIATE-RQ."""


class TlsError(TransportError):
    """TLS was refused by one of both sides, or broke; or only one of them speaks it."""


class PeerTimeout(TransportError):
    """The peer let a deadline pass; `phase` names the timer that fired."""

    def __init__(self, phase: str, seconds: float, hint: str = "") -> None:
        super().__init__(
            f"no progress for {seconds:g} s ({phase} time-out){': ' + hint if hint else ''}"
        )
        self.phase = phase
        self.seconds = seconds


class AssociationRejected(DcmhaulError):
    """The peer answered with A-ASSOCIATE-RJ (PS3.8 §9.3.4)."""

    exit_code = 3

    def __init__(self, result: int, source: int, reason: int, message: str) -> None:
        super().__init__(message)
        self.result = result
        self.source = source
        self.reason = reason

    @property
    def transient(self) -> bool:
        """True where the peer says that a later try may succeed (result 2)."""
        return self.result == 2


class AssociationAborted(DcmhaulError):
    """The association ended by A-ABORT, the peer's or (after a RemoteProtocolError) ours."""

    exit_code = 3

    def __init__(self, source: int, reason: int, message: str) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason


class NoAcceptedContext(DcmhaulError):
    """The peer accepted no presentation context that the operation could use."""

    exit_code = 3


class InstanceError(DcmhaulError):
    """A file or a folder entry that cannot travel; the text names the cause, never patient data."""

    exit_code = 6


class NotDicom(InstanceError):
    """The file is not DICOM at all, or is a DICOMDIR: it is skipped, not failed."""


class UnreadableInstance(InstanceError):
    """The file is DICOM, yet truncated, unreadable or without its UIDs: it has failed."""


class CannotReencode(InstanceError):
    """The instance is sound as far as it was read, and cannot be said in the transfer syntax that is needed."""
