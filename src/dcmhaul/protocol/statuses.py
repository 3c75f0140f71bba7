"""DIMSE statuses: their category, name and meaning (PS3.7 Annex C, and PS3.4 for each service)."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = [
    "ATTRIBUTE_LIST_ERROR",
    "CANCEL",
    "CANNOT_UNDERSTAND",
    "CLASS_INSTANCE_CONFLICT",
    "COERCION",
    "DATASET_MISMATCH",
    "DUPLICATE_INVOCATION",
    "DUPLICATE_SOP_INSTANCE",
    "INVALID_ARGUMENT_VALUE",
    "INVALID_ATTRIBUTE_VALUE",
    "INVALID_SOP_INSTANCE",
    "MISSING_ATTRIBUTE",
    "MISSING_ATTRIBUTE_VALUE",
    "MISTYPED_ARGUMENT",
    "MOVE_DESTINATION_UNKNOWN",
    "NOT_AUTHORIZED",
    "NO_SUCH_ACTION_TYPE",
    "NO_SUCH_ATTRIBUTE",
    "NO_SUCH_EVENT_TYPE",
    "NO_SUCH_SOP_CLASS",
    "NO_SUCH_SOP_INSTANCE",
    "OPTIONAL_ATTRIBUTES_NOT_SUPPORTED",
    "OUT_OF_RESOURCES",
    "PENDING",
    "PENDING_OPTIONAL_KEYS",
    "PROCESSING_FAILURE",
    "RESOURCE_LIMITATION",
    "SOP_CLASS_NOT_SUPPORTED",
    "SUCCESS",
    "UNABLE_TO_COUNT_MATCHES",
    "UNABLE_TO_PERFORM_SUBOPERATIONS",
    "UNRECOGNIZED_OPERATION",
    "StatusCategory",
    "category",
    "describe",
    "is_performed",
]

SUCCESS: Final = 0x0000
OPTIONAL_ATTRIBUTES_NOT_SUPPORTED: Final = 0x0001
ATTRIBUTE_LIST_ERROR: Final = 0x0107
NO_SUCH_ATTRIBUTE: Final = 0x0105
INVALID_ATTRIBUTE_VALUE: Final = 0x0106
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_SOP_INSTANCE: Final = 0x0111
NO_SUCH_SOP_INSTANCE: Final = 0x0112
NO_SUCH_EVENT_TYPE: Final = 0x0113
INVALID_ARGUMENT_VALUE: Final = 0x0115
INVALID_SOP_INSTANCE: Final = 0x0117
NO_SUCH_SOP_CLASS: Final = 0x0118
CLASS_INSTANCE_CONFLICT: Final = 0x0119
MISSING_ATTRIBUTE: Final = 0x0120
MISSING_ATTRIBUTE_VALUE: Final = 0x0121
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NO_SUCH_ACTION_TYPE: Final = 0x0123
NOT_AUTHORIZED: Final = 0x0124
DUPLICATE_INVOCATION: Final = 0x0210
UNRECOGNIZED_OPERATION: Final = 0x0211
MISTYPED_ARGUMENT: Final = 0x0212
RESOURCE_LIMITATION: Final = 0x0213
OUT_OF_RESOURCES: Final = 0xA700
UNABLE_TO_COUNT_MATCHES: Final = 0xA701
UNABLE_TO_PERFORM_SUBOPERATIONS: Final = 0xA702
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
DATASET_MISMATCH: Final = 0xA900
COERCION: Final = 0xB000
CANNOT_UNDERSTAND: Final = 0xC000
CANCEL: Final = 0xFE00
PENDING: Final = 0xFF00
PENDING_OPTIONAL_KEYS: Final = 0xFF01


class StatusCategory(Enum):
    """What a status means for the operation (PS3.7 §C.1 to §C.5)."""

    SUCCESS = "success"
    WARNING = "warning"
    PENDING = "pending"
    CANCEL = "cancel"
    FAILURE = "failure"


# PS3.7 Annex C: every service may answer these.
_GENERAL: Final = {
    0x0000: "Success",
    0x0001: "Requested optional attributes are not supported",
    0x0105: "No such attribute",
    0x0106: "Invalid attribute value",
    0x0107: "Attribute list error: some attributes were not recognized",
    0x0110: "Processing failure",
    0x0111: "Duplicate SOP instance",
    0x0112: "No such SOP instance",
    0x0113: "No such event type",
    0x0114: "No such argument",
    0x0115: "Invalid argument value",
    0x0116: "Attribute value out of range",
    0x0117: "Invalid SOP instance: its UID breaks the rules for UIDs",
    0x0118: "No such SOP class",
    0x0119: "Class-instance conflict: the instance is not of that class",
    0x0120: "Missing attribute",
    0x0121: "Missing attribute value",
    0x0122: "Refused: SOP class not supported",
    0x0123: "No such action type",
    0x0124: "Refused: not authorized",
    0x0210: "Duplicate invocation: that message ID is in use",
    0x0211: "Unrecognized operation",
    0x0212: "Mistyped argument",
    0x0213: "Resource limitation",
    0xFE00: "Cancelled",
    0xFF00: "Pending",
}

# Of each service: (first, last, meaning), the narrow ranges first.
_Ranges = tuple[tuple[int, int, str], ...]

_STORE: Final[_Ranges] = (  # PS3.4 Table B.2-1
    (0xB000, 0xB000, "Warning: coercion of data elements"),
    (0xB006, 0xB006, "Warning: elements discarded"),
    (0xB007, 0xB007, "Warning: data set does not match SOP class"),
    (0xA700, 0xA7FF, "Refused: out of resources"),
    (0xA900, 0xA9FF, "Error: data set does not match SOP class"),
    (0xC000, 0xCFFF, "Error: cannot understand"),
)
_FIND: Final[_Ranges] = (  # PS3.4 Table C.4-1, K.4-1
    (0xFF01, 0xFF01, "Pending: one or more optional keys were not supported"),
    (0xFE00, 0xFE00, "Cancel: matching ended after a cancel request"),
    (0xA700, 0xA700, "Refused: out of resources"),
    (0xA900, 0xA900, "Error: identifier does not match SOP class"),
    (0xC000, 0xCFFF, "Failed: unable to process"),
)
_GET: Final[_Ranges] = (  # PS3.4 Table C.4-3
    (0xFF00, 0xFF00, "Pending: sub-operations are continuing"),
    (0xFE00, 0xFE00, "Cancel: sub-operations ended after a cancel request"),
    (0xB000, 0xB000, "Warning: sub-operations complete, one or more failed or gave warnings"),
    (0xA701, 0xA701, "Refused: out of resources, unable to calculate number of matches"),
    (0xA702, 0xA702, "Refused: out of resources, unable to perform sub-operations"),
    (0xA700, 0xA700, "Refused: out of resources"),
    (0xA900, 0xA900, "Error: identifier does not match SOP class"),
    (0xC000, 0xCFFF, "Failed: unable to process"),
)
_MOVE: Final[_Ranges] = (  # PS3.4 Table C.4-2
    (0xA801, 0xA801, "Refused: move destination unknown"),
    *_GET,
)
_PROCEDURE_STEP: Final[_Ranges] = (  # PS3.4 §F.7.2, §F.8.2
    (0x0110, 0x0110, "Processing failure: performed procedure step may no longer be updated"),
    (0x0001, 0x0001, "Requested optional attributes are not supported"),
)
_UNIFIED_STEP: Final[_Ranges] = (  # PS3.4 Annex CC.2
    (0xB300, 0xB300, "Warning: created with modifications"),
    (0xB301, 0xB301, "Warning: deletion lock not granted"),
    (0xB304, 0xB304, "Warning: already in the requested state of CANCELED"),
    (0xB305, 0xB305, "Warning: coerced invalid values to valid values"),
    (0xB306, 0xB306, "Warning: already in the requested state of COMPLETED"),
    (0xC300, 0xC300, "Failed: the step may no longer be updated"),
    (0xC301, 0xC301, "Failed: the correct transaction UID was not provided"),
    (0xC302, 0xC302, "Failed: the step is already IN PROGRESS"),
    (0xC303, 0xC303, "Failed: only N-CREATE makes a step SCHEDULED"),
    (0xC304, 0xC304, "Failed: final state requirements are not met"),
    (0xC307, 0xC307, "Failed: no such unified procedure step"),
    (0xC308, 0xC308, "Failed: the receiving AE title is unknown"),
    (0xC309, 0xC309, "Failed: the state of a new step must be SCHEDULED"),
    (0xC310, 0xC310, "Failed: the step is not yet IN PROGRESS"),
    (0xC311, 0xC311, "Failed: the step is already COMPLETED"),
    (0xC312, 0xC312, "Failed: the performer cannot be contacted"),
    (0xC313, 0xC313, "Failed: the performer chooses not to cancel"),
    (0xC314, 0xC314, "Failed: the action is not appropriate for the instance"),
    (0xC315, 0xC315, "Failed: event reports are not supported"),
)
_COMMITMENT: Final[_Ranges] = (  # failure reasons of PS3.3 §C.14.1.1
    (0x0110, 0x0110, "Processing failure"),
    (0x0112, 0x0112, "No such object instance"),
    (0x0119, 0x0119, "Class-instance conflict: the instance is not of that class"),
    (0x0122, 0x0122, "Referenced SOP class not supported"),
    (0x0131, 0x0131, "Duplicate transaction UID"),
    (0x0213, 0x0213, "Resource limitation"),
)

_SERVICES: Final[dict[str, _Ranges]] = {
    "C-STORE": _STORE,
    "C-FIND": _FIND,
    "C-GET": _GET,
    "C-MOVE": _MOVE,
    "MPPS": _PROCEDURE_STEP,
    "UPS": _UNIFIED_STEP,
    "STORAGE-COMMITMENT": _COMMITMENT,
}

# Ranges of warnings: the storage service takes all of B0xx for "stored", the retrieve services know
# one warning alone, and what is not DIMSE-C follows PS3.7 §C.3.
_WARNINGS: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "C-STORE": ((0xB000, 0xB0FF),),
    "C-FIND": (),
    "C-GET": ((0xB000, 0xB000),),
    "C-MOVE": ((0xB000, 0xB000),),
    "C-ECHO": (),
}
_WARNINGS_ELSEWHERE: Final = (
    (0x0001, 0x0001),
    (0x0107, 0x0107),
    (0x0116, 0x0116),
    (0xB000, 0xBFFF),
)
_PENDING_SERVICES: Final = frozenset({"C-FIND", "C-GET", "C-MOVE"})


def category(status: int, service: str = "C-STORE") -> StatusCategory:
    """The category of `status` in `service`: "C-STORE", "C-FIND", "N-SET", "MPPS", "UPS" ...

    What the service does not define is a failure: a pending C-STORE as well as an unlisted warning.
    """
    if status == SUCCESS:
        return StatusCategory.SUCCESS
    if service in _PENDING_SERVICES:
        if status == PENDING or (status == PENDING_OPTIONAL_KEYS and service == "C-FIND"):
            return StatusCategory.PENDING
        if status == CANCEL:
            return StatusCategory.CANCEL
    for first, last in _WARNINGS.get(service, _WARNINGS_ELSEWHERE):
        if first <= status <= last:
            return StatusCategory.WARNING
    return StatusCategory.FAILURE


def is_performed(status: int) -> bool:
    """Whether the final status of a C-GET or C-MOVE says that every sub-operation was tried: 0000 or B0xx."""
    return status == SUCCESS or status & 0xFF00 == COERCION


def describe(status: int, service: str = "C-STORE") -> str:
    """One line: the status in hexadecimal and what it means in `service`. Holds no peer text."""
    return f"0x{status:04X} {_meaning(status, service)}"


def _meaning(status: int, service: str) -> str:
    for first, last, meaning in _SERVICES.get(service, ()):
        if first <= status <= last:
            return meaning
    if status in _GENERAL:
        return _GENERAL[status]
    if status == 0xFFFF:
        return "no status, or one that no service defines"
    return f"a status that {service} does not define"
