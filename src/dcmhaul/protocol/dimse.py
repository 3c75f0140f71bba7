"""DIMSE messages as values (PS3.7 §9.3, §10.3): each command set, encoded and decoded by one table.

A message here is the command alone. Its dataset is a stream that travels beside it; `has_dataset`
says whether there is one. What a message means is the business of services/.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, dataclass_transform

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.wire.command import CommandLayout, decode_command_set

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ERROR_COMMENT_LENGTH_MAX",
    "MESSAGE_TYPES",
    "STATUS_MISSING",
    "CCancelRq",
    "CEchoRq",
    "CEchoRsp",
    "CFindRq",
    "CFindRsp",
    "CGetRq",
    "CGetRsp",
    "CMoveRq",
    "CMoveRsp",
    "CStoreRq",
    "CStoreRsp",
    "DimseMessage",
    "MessageIds",
    "NActionRq",
    "NActionRsp",
    "NCreateRq",
    "NCreateRsp",
    "NDeleteRq",
    "NDeleteRsp",
    "NEventReportRq",
    "NEventReportRsp",
    "NGetRq",
    "NGetRsp",
    "NSetRq",
    "NSetRsp",
    "Priority",
    "Request",
    "Response",
    "decode_message",
    "response_to",
]

STATUS_MISSING: Final = 0xFFFF
"""Stands for the status of a response that came without one. No service defines it: a failure."""

ERROR_COMMENT_LENGTH_MAX: Final = 64  # VR LO (PS3.5 §6.2)

_MESSAGE_ID_MAX: Final = 0xFFFF

# CommandDataSetType (PS3.7 Table E.1-1): 0101 means none, any other value means that one follows.
_NO_DATASET: Final = 0x0101
_DATASET: Final = 0x0001


_T = TypeVar("_T")


class Priority(IntEnum):
    """PS3.7 Table 9.3-1."""

    MEDIUM = 0
    HIGH = 1
    LOW = 2


# The one table: field of a message -> keyword of its element. wire/command.py has tag and VR.
_KEYWORDS: Final[dict[str, str]] = {
    "affected_sop_class_uid": "AffectedSOPClassUID",
    "requested_sop_class_uid": "RequestedSOPClassUID",
    "message_id": "MessageID",
    "message_id_being_responded_to": "MessageIDBeingRespondedTo",
    "move_destination": "MoveDestination",
    "priority": "Priority",
    "status": "Status",
    "offending_element": "OffendingElement",
    "error_comment": "ErrorComment",
    "error_id": "ErrorID",
    "affected_sop_instance_uid": "AffectedSOPInstanceUID",
    "requested_sop_instance_uid": "RequestedSOPInstanceUID",
    "event_type_id": "EventTypeID",
    "attribute_identifier_list": "AttributeIdentifierList",
    "action_type_id": "ActionTypeID",
    "number_of_remaining_suboperations": "NumberOfRemainingSuboperations",
    "number_of_completed_suboperations": "NumberOfCompletedSuboperations",
    "number_of_failed_suboperations": "NumberOfFailedSuboperations",
    "number_of_warning_suboperations": "NumberOfWarningSuboperations",
    "move_originator_application_entity_title": "MoveOriginatorApplicationEntityTitle",
    "move_originator_message_id": "MoveOriginatorMessageID",
}

# What a peer may leave out without the message being broken. Services answer an empty UID with its
# own status (0117, 0122), which says more than an abort; a missing status is a failure (row above).
_LENIENT: Final[dict[str, Any]] = {
    "affected_sop_class_uid": "",
    "requested_sop_class_uid": "",
    "affected_sop_instance_uid": "",
    "requested_sop_instance_uid": "",
    "move_destination": "",
    "event_type_id": 0,
    "action_type_id": 0,
    "status": STATUS_MISSING,
}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _message(cls: type[_T]) -> type[_T]:
    """A frozen dataclass to the type checker, a plain one at run time: two are made for each instance
    moved, and object.__setattr__ for each field would cost a third of all that Python does for it."""
    return dataclass(slots=True, kw_only=True, unsafe_hash=True)(cls)


@_message
class DimseMessage:
    """A command set. A field that is None is not in it; UIDs are strings without padding."""

    command_field: ClassVar[int]
    # Filled in below, in ascending order of tags: keywords, and what reads their values.
    _layout: ClassVar[CommandLayout]
    _values: ClassVar[attrgetter[tuple[Any, ...]]]

    has_dataset: bool = False

    @property
    def _dataset_type(self) -> int:
        return _DATASET if self.has_dataset else _NO_DATASET

    def encode(self) -> bytes:
        """The command set, CommandGroupLength first. LocalProtocolError if a value cannot fit."""
        return self._layout.encode(self._values(self))


@_message
class Request(DimseMessage):
    message_id: int


@_message
class Response(DimseMessage):
    message_id_being_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    offending_element: tuple[int, ...] | None = None
    error_comment: str | None = None

    @property
    def _short_comment(self) -> str | None:
        """An LO holds 64 characters, so that no comment can make a response illegal."""
        return self.error_comment[:ERROR_COMMENT_LENGTH_MAX] if self.error_comment else None


# -- DIMSE-C (PS3.7 §9.3)


@_message
class CStoreRq(Request):
    command_field = 0x0001
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    priority: int = Priority.MEDIUM
    move_originator_application_entity_title: str | None = None
    move_originator_message_id: int | None = None
    has_dataset: bool = True


@_message
class CStoreRsp(Response):
    command_field = 0x8001
    affected_sop_instance_uid: str | None = None


@_message
class CFindRq(Request):
    command_field = 0x0020
    affected_sop_class_uid: str
    priority: int = Priority.MEDIUM
    has_dataset: bool = True


@_message
class CFindRsp(Response):
    """Has a dataset, the identifier, where it is pending (FF00, FF01)."""

    command_field = 0x8020


@_message
class CGetRq(Request):
    command_field = 0x0010
    affected_sop_class_uid: str
    priority: int = Priority.MEDIUM
    has_dataset: bool = True


@_message
class _RetrieveRsp(Response):
    """A final one has a dataset, the Failed SOP Instance UID List, where something failed."""

    number_of_remaining_suboperations: int | None = None
    number_of_completed_suboperations: int | None = None
    number_of_failed_suboperations: int | None = None
    number_of_warning_suboperations: int | None = None


@_message
class CGetRsp(_RetrieveRsp):
    command_field = 0x8010


@_message
class CMoveRq(Request):
    command_field = 0x0021
    affected_sop_class_uid: str
    move_destination: str
    priority: int = Priority.MEDIUM
    has_dataset: bool = True


@_message
class CMoveRsp(_RetrieveRsp):
    command_field = 0x8021


@_message
class CEchoRq(Request):
    command_field = 0x0030
    affected_sop_class_uid: str


@_message
class CEchoRsp(Response):
    command_field = 0x8030


@_message
class CCancelRq(DimseMessage):
    """Has no answer of its own: the operation that it names ends with FE00 (PS3.7 §9.3.2.3)."""

    command_field = 0x0FFF
    message_id_being_responded_to: int


# -- DIMSE-N (PS3.7 §10.3)


@_message
class NormalizedRsp(Response):
    """What the six have in common; the lists and IDs belong to failures (PS3.7 Annex C)."""

    affected_sop_instance_uid: str | None = None
    error_id: int | None = None
    attribute_identifier_list: tuple[int, ...] | None = None


@_message
class NEventReportRq(Request):
    command_field = 0x0100
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    event_type_id: int


@_message
class NEventReportRsp(NormalizedRsp):
    command_field = 0x8100
    event_type_id: int | None = None


@_message
class NGetRq(Request):
    command_field = 0x0110
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    attribute_identifier_list: tuple[int, ...] | None = None


@_message
class NGetRsp(NormalizedRsp):
    command_field = 0x8110


@_message
class NSetRq(Request):
    command_field = 0x0120
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    has_dataset: bool = True


@_message
class NSetRsp(NormalizedRsp):
    command_field = 0x8120


@_message
class NActionRq(Request):
    command_field = 0x0130
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    action_type_id: int


@_message
class NActionRsp(NormalizedRsp):
    command_field = 0x8130
    action_type_id: int | None = None


@_message
class NCreateRq(Request):
    command_field = 0x0140
    affected_sop_class_uid: str
    affected_sop_instance_uid: str | None = None
    has_dataset: bool = True


@_message
class NCreateRsp(NormalizedRsp):
    command_field = 0x8140


@_message
class NDeleteRq(Request):
    command_field = 0x0150
    requested_sop_class_uid: str
    requested_sop_instance_uid: str


@_message
class NDeleteRsp(NormalizedRsp):
    command_field = 0x8150


MESSAGE_TYPES: Final[tuple[type[DimseMessage], ...]] = (
    CStoreRq,
    CStoreRsp,
    CGetRq,
    CGetRsp,
    CFindRq,
    CFindRsp,
    CMoveRq,
    CMoveRsp,
    CEchoRq,
    CEchoRsp,
    CCancelRq,
    NEventReportRq,
    NEventReportRsp,
    NGetRq,
    NGetRsp,
    NSetRq,
    NSetRsp,
    NActionRq,
    NActionRsp,
    NCreateRq,
    NCreateRsp,
    NDeleteRq,
    NDeleteRsp,
)

_RESPONSE_BIT: Final = 0x8000


@dataclass(frozen=True, slots=True, kw_only=True)
class _DecodingPlan:
    message: type[DimseMessage]
    fields: Mapping[str, str]
    """Field name by keyword, of each element that the message knows."""
    lenient: dict[str, Any]
    required: frozenset[str]
    """Keywords without which the message is broken."""


def _prepare(message: type[DimseMessage]) -> _DecodingPlan:
    """Gives the class its encoding plan and returns its decoding plan."""
    own = {field.name: field for field in fields(message) if field.name != "has_dataset"}
    sources = {_KEYWORDS[name]: name for name in own}
    known = dict(sources)
    if "ErrorComment" in sources:
        sources["ErrorComment"] = "_short_comment"
    sources |= {"CommandField": "command_field", "CommandDataSetType": "_dataset_type"}
    message._layout = CommandLayout(sources)
    message._values = attrgetter(*(sources[keyword] for keyword in message._layout.keywords))
    required = {name for name, field in own.items() if field.default is MISSING}
    return _DecodingPlan(
        message=message,
        fields=known,
        lenient={name: _LENIENT[name] for name in sorted(required & _LENIENT.keys())},
        required=frozenset(_KEYWORDS[name] for name in required - _LENIENT.keys()),
    )


_PLANS: Final = {message.command_field: _prepare(message) for message in MESSAGE_TYPES}


def decode_message(command: bytes) -> DimseMessage:
    """The message of a whole command set; elements that its kind does not have are left out.

    Raises RemoteProtocolError (abort of the service-user) on a broken command set, an unknown
    CommandField, or where CommandField, CommandDataSetType or the message ID is missing.
    """
    values = decode_command_set(command)
    try:
        command_field = values["CommandField"]
        has_dataset = values["CommandDataSetType"] != _NO_DATASET
        plan = _PLANS[command_field]  # type: ignore[index]  # US is an int, by wire/command.py
    except KeyError as exc:
        raise _broken(values) from exc
    names = plan.fields
    arguments: dict[str, Any] = plan.lenient | {
        names[keyword]: value for keyword, value in values.items() if keyword in names
    }
    if missing := plan.required - values.keys():
        raise RemoteProtocolError(
            f"{plan.message.__name__} without {min(missing)} (PS3.7 §9.3, §10.3)",
            source=0,
            reason=0,
        )
    return plan.message(has_dataset=has_dataset, **arguments)


def _broken(values: Mapping[str, Any]) -> RemoteProtocolError:
    for keyword in ("CommandField", "CommandDataSetType"):
        if keyword not in values:
            return RemoteProtocolError(
                f"command set without {keyword} (PS3.7 Annex E)", source=0, reason=0
            )
    return RemoteProtocolError(
        f"unknown CommandField 0x{values['CommandField']:04X} (PS3.7 §E.1)", source=0, reason=0
    )


def response_to(
    request: Request, status: int, error_comment: str = "", offending: tuple[int, ...] = ()
) -> Response:
    """The response to `request` without a dataset, repeating its UIDs (PS3.7 §9.1, §10.1).

    For refusals, and for whatever has no more to say. The comment must hold no patient data.
    offending: tags for Offending Element (0000,0901).
    """
    plan = _PLANS[request.command_field | _RESPONSE_BIT]
    arguments: dict[str, Any] = {
        "message_id_being_responded_to": request.message_id,
        "status": status,
        "offending_element": offending or None,
        "error_comment": error_comment or None,
    }
    known = set(plan.fields.values())
    for part in ("sop_class_uid", "sop_instance_uid"):
        uid = getattr(request, f"affected_{part}", "") or getattr(request, f"requested_{part}", "")
        if uid and f"affected_{part}" in known:
            arguments[f"affected_{part}"] = uid
    for name in known & {"event_type_id", "action_type_id"}:
        arguments[name] = getattr(request, name)
    response = plan.message(**arguments)
    assert isinstance(response, Response)  # the bit is set in responses alone
    return response


class MessageIds:
    """Message IDs of the requests of one association: 1 to 65535, never one that is outstanding."""

    __slots__ = ("_last", "_outstanding", "returned")

    def __init__(self) -> None:
        self.returned = 0
        """How many operations are over."""
        self._last = 0
        self._outstanding: set[int] = set()

    def __contains__(self, message_id: int) -> bool:
        return message_id in self._outstanding

    def __len__(self) -> int:
        return len(self._outstanding)

    def take(self) -> int:
        """The next free ID, outstanding from now on. LocalProtocolError when all are."""
        if len(self._outstanding) >= _MESSAGE_ID_MAX:
            raise LocalProtocolError(f"all {_MESSAGE_ID_MAX} message IDs are outstanding")
        while True:
            self._last = self._last % _MESSAGE_ID_MAX + 1
            if self._last not in self._outstanding:
                self._outstanding.add(self._last)
                return self._last

    def continue_with(self, message_id: int) -> None:
        """The next ID is this one, where it is free; for IDs that are to differ between associations."""
        self._last = message_id - 1

    def give_back(self, message_id: int) -> bool:
        """The operation is over. False where the ID was not outstanding."""
        if message_id not in self._outstanding:
            return False
        self._outstanding.remove(message_id)
        self.returned += 1
        return True
