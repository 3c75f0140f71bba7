"""The items of A-ASSOCIATE-RQ and -AC as values (PS3.8 §9.3.2-9.3.3, Annex D; PS3.7 Annex D.3).

Decodes whatever is well formed, nonsense included: what a value means is said in negotiation.py.
A length that lies, or an item given twice that may come once, raises RemoteProtocolError(2, 6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.uids import IMPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ITEMS_MAX",
    "AsyncOperationsWindow",
    "ItemType",
    "PresentationContextAc",
    "PresentationContextRq",
    "RoleSelection",
    "SopClassCommonExtendedNegotiation",
    "SopClassExtendedNegotiation",
    "UnknownItem",
    "UserIdentityRq",
    "UserInformation",
    "encode_item",
    "malformed",
    "split_items",
]

ITEMS_MAX: Final = 4096
"""Items on one level (PDU, context, user information): bounds the objects that a PDU makes."""

_HEADER: Final = Struct(">BxH")  # item type, reserved, item length
_HEADER_SIZE: Final = _HEADER.size
_U16: Final = Struct(">H")
_U32: Final = Struct(">I")
_TWO_U16: Final = Struct(">HH")
_CONTEXT: Final = Struct(
    ">BxBx"
)  # context id, reserved, result/reason (reserved in the RQ), reserved


class ItemType:
    """Item types of PS3.8 §9.3.2-9.3.3 and PS3.7 Annex D.3, as plain numbers."""

    APPLICATION_CONTEXT: Final = 0x10
    PRESENTATION_CONTEXT_RQ: Final = 0x20
    PRESENTATION_CONTEXT_AC: Final = 0x21
    ABSTRACT_SYNTAX: Final = 0x30
    TRANSFER_SYNTAX: Final = 0x40
    USER_INFORMATION: Final = 0x50
    MAXIMUM_LENGTH: Final = 0x51
    IMPLEMENTATION_CLASS_UID: Final = 0x52
    ASYNC_OPERATIONS_WINDOW: Final = 0x53
    ROLE_SELECTION: Final = 0x54
    IMPLEMENTATION_VERSION_NAME: Final = 0x55
    SOP_CLASS_EXTENDED_NEGOTIATION: Final = 0x56
    SOP_CLASS_COMMON_EXTENDED_NEGOTIATION: Final = 0x57
    USER_IDENTITY_RQ: Final = 0x58
    USER_IDENTITY_AC: Final = 0x59


def malformed(text: str) -> RemoteProtocolError:
    """The fault of a PDU that cannot be decoded: provider abort, invalid PDU parameter value."""
    return RemoteProtocolError(text, source=2, reason=6)


def split_items(data: bytes, offset: int, where: str) -> Iterator[tuple[int, bytes]]:
    """Yields (item type, value) from `offset` to the end of `data`; `where` names it in an error.

    Each length is compared with what remains before anything is sliced (PS3.8 §9.3.1).
    """
    size = len(data)
    count = 0
    while offset < size:
        if size - offset < _HEADER_SIZE:
            raise malformed(f"{where} ends inside an item header at offset {offset} of {size}")
        item_type, length = _HEADER.unpack_from(data, offset)
        offset += _HEADER_SIZE
        if length > size - offset:
            raise malformed(
                f"item 0x{item_type:02x} in {where} declares {length} octets, "
                f"{size - offset} remain"
            )
        count += 1
        if count > ITEMS_MAX:
            raise malformed(f"more than {ITEMS_MAX} items in {where}")
        yield item_type, data[offset : offset + length]
        offset += length


def encode_item(item_type: int, value: bytes) -> bytes:
    """An item with its header; LocalProtocolError where the value is over 65535 octets."""
    if len(value) > 0xFFFF:
        raise LocalProtocolError(
            f"item 0x{item_type:02x} of {len(value)} octets, at most 65535 fit"
        )
    return _HEADER.pack(item_type, len(value)) + value


def _text(value: bytes) -> str:
    """A UID or a name: padding at the end goes, and no octet can make the decoding fail."""
    return value.rstrip(b"\0 ").decode("latin-1")


def _octets(text: str, what: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(
            f"{what} {text!r} has characters that no octet stands for"
        ) from exc


def _counted(value: bytes, what: str) -> bytes:
    if len(value) > 0xFFFF:
        raise LocalProtocolError(f"{what} of {len(value)} octets, at most 65535 fit")
    return _U16.pack(len(value)) + value


class _Field(NamedTuple):
    value: bytes
    end: int


def _read_counted(data: bytes, offset: int, what: str) -> _Field:
    """A field with its own two-byte length in front."""
    start = offset + 2
    if start > len(data):
        raise malformed(f"{what} has no length field at offset {offset} of {len(data)}")
    length = _U16.unpack_from(data, offset)[0]
    if length > len(data) - start:
        raise malformed(f"{what} declares {length} octets, {len(data) - start} remain")
    return _Field(data[start : start + length], start + length)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownItem:
    """An item of a type that we do not know: kept as it came, and without influence."""

    item_type: int
    data: bytes

    def encode(self) -> bytes:
        return encode_item(self.item_type, self.data)


def _encode_context(item_type: int, context_id: int, result: int, sub_items: bytes) -> bytes:
    if not 0 <= context_id <= 0xFF or not 0 <= result <= 0xFF:
        raise LocalProtocolError(f"context ID {context_id}, result {result}: each must be 0-255")
    return encode_item(item_type, _CONTEXT.pack(context_id, result) + sub_items)


def _syntax_item(item_type: int, uid: str) -> bytes:
    return encode_item(item_type, _octets(uid, "UID"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentationContextRq:
    """A proposed presentation context, item 0x20 (PS3.8 §9.3.2.2).

    The standard wants one abstract syntax. "" stands for none, and more than one lands in
    `further_abstract_syntaxes`, so that negotiation can refuse the request instead of aborting.
    """

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    further_abstract_syntaxes: tuple[str, ...] = ()
    unknown_items: tuple[UnknownItem, ...] = ()

    def encode(self) -> bytes:
        abstract = (self.abstract_syntax, *self.further_abstract_syntaxes)
        parts = [_syntax_item(ItemType.ABSTRACT_SYNTAX, uid) for uid in abstract if uid]
        parts += [_syntax_item(ItemType.TRANSFER_SYNTAX, uid) for uid in self.transfer_syntaxes]
        parts += [item.encode() for item in self.unknown_items]
        return _encode_context(
            ItemType.PRESENTATION_CONTEXT_RQ, self.context_id, 0, b"".join(parts)
        )

    @classmethod
    def decode(cls, value: bytes) -> PresentationContextRq:
        context_id, _ = _context_fields(value)
        abstract: list[str] = []
        transfer: list[str] = []
        unknown: list[UnknownItem] = []
        for item_type, data in split_items(value, _CONTEXT.size, "a presentation context item"):
            if item_type == ItemType.TRANSFER_SYNTAX:
                transfer.append(_text(data))
            elif item_type == ItemType.ABSTRACT_SYNTAX:
                abstract.append(_text(data))
            else:
                unknown.append(UnknownItem(item_type=item_type, data=data))
        return cls(
            context_id=context_id,
            abstract_syntax=abstract[0] if abstract else "",
            transfer_syntaxes=tuple(transfer),
            further_abstract_syntaxes=tuple(abstract[1:]),
            unknown_items=tuple(unknown),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentationContextAc:
    """The answer to a proposed presentation context, item 0x21 (PS3.8 §9.3.3.2).

    `transfer_syntax` is None where the result is not 0 (its item is not significant, and some peers
    leave it out), and where an accepting answer does not hold exactly one.
    """

    context_id: int
    result: int
    transfer_syntax: str | None
    unknown_items: tuple[UnknownItem, ...] = ()

    def encode(self) -> bytes:
        syntax = self.transfer_syntax
        if syntax is None:
            if self.result == 0:
                raise LocalProtocolError(f"context {self.context_id} accepted without a syntax")
            # The item shall be there, its value shall not be tested (PS3.8 Table 9-18).
            syntax = IMPLICIT_VR_LITTLE_ENDIAN
        parts = [_syntax_item(ItemType.TRANSFER_SYNTAX, syntax)]
        parts += [item.encode() for item in self.unknown_items]
        return _encode_context(
            ItemType.PRESENTATION_CONTEXT_AC, self.context_id, self.result, b"".join(parts)
        )

    @classmethod
    def decode(cls, value: bytes) -> PresentationContextAc:
        context_id, result = _context_fields(value)
        transfer: list[str] = []
        unknown: list[UnknownItem] = []
        if result == 0:
            for item_type, data in split_items(value, _CONTEXT.size, "a presentation context item"):
                if item_type == ItemType.TRANSFER_SYNTAX:
                    transfer.append(_text(data))
                else:
                    unknown.append(UnknownItem(item_type=item_type, data=data))
        return cls(
            context_id=context_id,
            result=result,
            transfer_syntax=transfer[0] if len(transfer) == 1 else None,
            unknown_items=tuple(unknown),
        )


def _context_fields(value: bytes) -> tuple[int, int]:
    if len(value) < _CONTEXT.size:
        raise malformed(
            f"presentation context item of {len(value)} octets, expected {_CONTEXT.size}"
        )
    context_id, result = _CONTEXT.unpack_from(value)
    return context_id, result


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncOperationsWindow:
    """Operations that the requestor may invoke and perform at once, item 0x53; 0 is unlimited.

    Both directions are seen from the requestor, in the RQ and in the AC (PS3.7 §D.3.3.3).
    """

    invoked: int
    performed: int

    def encode(self) -> bytes:
        if not 0 <= self.invoked <= 0xFFFF or not 0 <= self.performed <= 0xFFFF:
            raise LocalProtocolError(
                f"window {self.invoked}/{self.performed}: each must be 0-65535"
            )
        return encode_item(
            ItemType.ASYNC_OPERATIONS_WINDOW, _TWO_U16.pack(self.invoked, self.performed)
        )

    @classmethod
    def decode(cls, value: bytes) -> AsyncOperationsWindow:
        invoked, performed = _TWO_U16.unpack(_exactly(value, 4, "asynchronous operations window"))
        return cls(invoked=invoked, performed=performed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSelection:
    """Which roles the requestor takes for a SOP class, item 0x54 (PS3.7 §D.3.3.4)."""

    sop_class_uid: str
    scu: bool
    scp: bool

    def encode(self) -> bytes:
        uid = _counted(_octets(self.sop_class_uid, "UID"), "SOP class UID")
        return encode_item(ItemType.ROLE_SELECTION, uid + bytes((self.scu, self.scp)))

    @classmethod
    def decode(cls, value: bytes) -> RoleSelection:
        uid, end = _read_counted(value, 0, "SOP class UID of a role selection")
        scu, scp = _exactly(value[end:], 2, "role selection behind its UID")
        return cls(sop_class_uid=_text(uid), scu=scu != 0, scp=scp != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SopClassExtendedNegotiation:
    """Service-class application information of a SOP class, item 0x56 (PS3.7 §D.3.3.5)."""

    sop_class_uid: str
    information: bytes

    def encode(self) -> bytes:
        uid = _counted(_octets(self.sop_class_uid, "UID"), "SOP class UID")
        return encode_item(ItemType.SOP_CLASS_EXTENDED_NEGOTIATION, uid + self.information)

    @classmethod
    def decode(cls, value: bytes) -> SopClassExtendedNegotiation:
        uid, end = _read_counted(value, 0, "SOP class UID of an extended negotiation")
        return cls(sop_class_uid=_text(uid), information=value[end:])


@dataclass(frozen=True, slots=True, kw_only=True)
class SopClassCommonExtendedNegotiation:
    """The service class and related general classes of a SOP class, item 0x57 (PS3.7 §D.3.3.6).

    Fields behind the known ones belong to a later version of the item and are skipped.
    """

    sop_class_uid: str
    service_class_uid: str
    related: tuple[str, ...] = ()

    def encode(self) -> bytes:
        related = [_counted(_octets(uid, "UID"), "related class UID") for uid in self.related]
        value = (
            _counted(_octets(self.sop_class_uid, "UID"), "SOP class UID")
            + _counted(_octets(self.service_class_uid, "UID"), "service class UID")
            + _counted(b"".join(related), "list of related classes")
        )
        return encode_item(ItemType.SOP_CLASS_COMMON_EXTENDED_NEGOTIATION, value)

    @classmethod
    def decode(cls, value: bytes) -> SopClassCommonExtendedNegotiation:
        sop_class, end = _read_counted(value, 0, "SOP class UID of a common extended negotiation")
        service_class, end = _read_counted(value, end, "service class UID")
        listed, _ = _read_counted(value, end, "list of related classes")
        related: list[str] = []
        offset = 0
        while offset < len(listed):
            uid, offset = _read_counted(listed, offset, "related class UID")
            related.append(_text(uid))
        return cls(
            sop_class_uid=_text(sop_class),
            service_class_uid=_text(service_class),
            related=tuple(related),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UserIdentityRq:
    """Who the requestor says to be, item 0x58 (PS3.7 §D.3.3.7.1).

    identity_type: 1 user name, 2 user name and passcode, 3 Kerberos ticket, 4 SAML, 5 JWT. The two
    fields hold secrets, so they never appear in a repr.
    """

    identity_type: int
    response_requested: bool
    primary: bytes = field(repr=False)
    secondary: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        if not 0 <= self.identity_type <= 0xFF:
            raise LocalProtocolError(f"user identity type {self.identity_type}, must be 0-255")
        return encode_item(
            ItemType.USER_IDENTITY_RQ,
            bytes((self.identity_type, self.response_requested))
            + _counted(self.primary, "user identity")
            + _counted(self.secondary, "passcode"),
        )

    @classmethod
    def decode(cls, value: bytes) -> UserIdentityRq:
        if len(value) < 2:
            raise malformed(f"user identity item of {len(value)} octets")
        primary, end = _read_counted(value, 2, "user identity")
        secondary, end = _read_counted(value, end, "second field of the user identity")
        _exactly(value[end:], 0, "user identity item behind its fields")
        return cls(
            identity_type=value[0],
            response_requested=value[1] != 0,
            primary=primary,
            secondary=secondary,
        )


def _exactly(value: bytes, length: int, what: str) -> bytes:
    if len(value) != length:
        raise malformed(f"{what}: {len(value)} octets, expected {length}")
    return value


def _decode_maximum_length(value: bytes) -> int:
    length: int = _U32.unpack(_exactly(value, 4, "maximum length item"))[0]
    return length


def _decode_identity_response(value: bytes) -> bytes:
    response, end = _read_counted(value, 0, "user identity response")
    _exactly(value[end:], 0, "user identity response item behind its field")
    return response


_SINGLE: Final = {
    ItemType.MAXIMUM_LENGTH: ("max_length_received", _decode_maximum_length),
    ItemType.IMPLEMENTATION_CLASS_UID: ("implementation_class_uid", _text),
    ItemType.ASYNC_OPERATIONS_WINDOW: ("async_window", AsyncOperationsWindow.decode),
    ItemType.IMPLEMENTATION_VERSION_NAME: ("implementation_version_name", _text),
    ItemType.USER_IDENTITY_RQ: ("user_identity", UserIdentityRq.decode),
    ItemType.USER_IDENTITY_AC: ("user_identity_response", _decode_identity_response),
}
_REPEATED: Final = {
    ItemType.ROLE_SELECTION: ("roles", RoleSelection.decode),
    ItemType.SOP_CLASS_EXTENDED_NEGOTIATION: ("extended", SopClassExtendedNegotiation.decode),
    ItemType.SOP_CLASS_COMMON_EXTENDED_NEGOTIATION: (
        "common_extended",
        SopClassCommonExtendedNegotiation.decode,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInformation:
    """The user information item 0x50 with its sub-items; None and () where one did not come.

    max_length_received: octets of the variable field of a P-DATA-TF that its sender takes; 0 is
    unlimited (PS3.8 §D.1).
    """

    max_length_received: int | None = None
    implementation_class_uid: str | None = None
    implementation_version_name: str | None = None
    async_window: AsyncOperationsWindow | None = None
    roles: tuple[RoleSelection, ...] = ()
    extended: tuple[SopClassExtendedNegotiation, ...] = ()
    common_extended: tuple[SopClassCommonExtendedNegotiation, ...] = ()
    user_identity: UserIdentityRq | None = None
    user_identity_response: bytes | None = None
    unknown: tuple[UnknownItem, ...] = ()

    def encode(self) -> bytes:
        """The item, its sub-items in ascending order of type, unknown ones behind."""
        parts: list[bytes] = []
        if self.max_length_received is not None:
            if not 0 <= self.max_length_received <= 0xFFFFFFFF:
                raise LocalProtocolError(f"maximum length {self.max_length_received}")
            parts.append(encode_item(ItemType.MAXIMUM_LENGTH, _U32.pack(self.max_length_received)))
        if self.implementation_class_uid is not None:
            parts.append(
                _syntax_item(ItemType.IMPLEMENTATION_CLASS_UID, self.implementation_class_uid)
            )
        if self.async_window is not None:
            parts.append(self.async_window.encode())
        parts += [role.encode() for role in self.roles]
        if self.implementation_version_name is not None:
            version = _octets(self.implementation_version_name, "implementation version name")
            parts.append(encode_item(ItemType.IMPLEMENTATION_VERSION_NAME, version))
        parts += [item.encode() for item in self.extended]
        parts += [item.encode() for item in self.common_extended]
        if self.user_identity is not None:
            parts.append(self.user_identity.encode())
        if self.user_identity_response is not None:
            response = _counted(self.user_identity_response, "user identity response")
            parts.append(encode_item(ItemType.USER_IDENTITY_AC, response))
        parts += [item.encode() for item in self.unknown]
        return encode_item(ItemType.USER_INFORMATION, b"".join(parts))

    @classmethod
    def decode(cls, value: bytes) -> UserInformation:
        single: dict[str, Any] = {}
        repeated: dict[str, list[Any]] = {}
        for item_type, data in split_items(value, 0, "the user information item"):
            if item_type in _SINGLE:
                name, decode = _SINGLE[item_type]
                if name in single:
                    raise malformed(f"user information sub-item 0x{item_type:02x} came twice")
                single[name] = decode(data)
            elif item_type in _REPEATED:
                name, decode = _REPEATED[item_type]
                repeated.setdefault(name, []).append(decode(data))
            else:
                unknown = UnknownItem(item_type=item_type, data=data)
                repeated.setdefault("unknown", []).append(unknown)
        for name, values in repeated.items():
            single[name] = tuple(values)
        return cls(**single)
