"""Command sets as bytes: group 0000, implicit VR little endian, one table (PS3.7 §6.3.1, Annex E).

Knows elements, not messages: which of them a message must hold is said in protocol/dimse.py.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, Final, cast

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.wire import _commands

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "COMMAND_SET_LENGTH_MAX",
    "ELEMENTS",
    "CommandLayout",
    "CommandSet",
    "CommandValue",
    "decode_command_set",
    "encode_command_set",
]

CommandValue = str | int | tuple[int, ...]
"""UI, AE, LO: str. US, UL: int. AT: tuple of tags, each 0xggggeeee."""

CommandSet = dict[str, CommandValue]

COMMAND_SET_LENGTH_MAX: Final = 64 * 1024
"""Octets of one command set, from any peer; real ones stay below 1 KiB."""

# Every element of PS3.7 Table E.1-1 that is not retired, by its number in group 0000.
ELEMENTS: Final[Mapping[str, tuple[int, str]]] = {
    "CommandGroupLength": (0x0000, "UL"),
    "AffectedSOPClassUID": (0x0002, "UI"),
    "RequestedSOPClassUID": (0x0003, "UI"),
    "CommandField": (0x0100, "US"),
    "MessageID": (0x0110, "US"),
    "MessageIDBeingRespondedTo": (0x0120, "US"),
    "MoveDestination": (0x0600, "AE"),
    "Priority": (0x0700, "US"),
    "CommandDataSetType": (0x0800, "US"),
    "Status": (0x0900, "US"),
    "OffendingElement": (0x0901, "AT"),
    "ErrorComment": (0x0902, "LO"),
    "ErrorID": (0x0903, "US"),
    "AffectedSOPInstanceUID": (0x1000, "UI"),
    "RequestedSOPInstanceUID": (0x1001, "UI"),
    "EventTypeID": (0x1002, "US"),
    "AttributeIdentifierList": (0x1005, "AT"),
    "ActionTypeID": (0x1008, "US"),
    "NumberOfRemainingSuboperations": (0x1020, "US"),
    "NumberOfCompletedSuboperations": (0x1021, "US"),
    "NumberOfFailedSuboperations": (0x1022, "US"),
    "NumberOfWarningSuboperations": (0x1023, "US"),
    "MoveOriginatorApplicationEntityTitle": (0x1030, "AE"),
    "MoveOriginatorMessageID": (0x1031, "US"),
}

_TAG_AND_LENGTH: Final = Struct("<II")  # group in the low half, element in the high half; length
_HEADER_SIZE: Final = _TAG_AND_LENGTH.size
_US_ELEMENT: Final = Struct("<IIH")
_UL_ELEMENT: Final = Struct("<III")
_UL: Final = Struct("<I")
_TAG: Final = Struct("<HH")

# What the two loops branch on, most frequent first.
_KIND_US: Final = 0
_KIND_UI: Final = 1
_KIND_TEXT: Final = 2
_KIND_AT: Final = 3
_KIND_UL: Final = 4
_KINDS: Final = {
    "US": _KIND_US,
    "UI": _KIND_UI,
    "AE": _KIND_TEXT,
    "LO": _KIND_TEXT,
    "AT": _KIND_AT,
    "UL": _KIND_UL,
}
_DECODE: Final = {
    element << 16: (keyword, _KINDS[vr]) for keyword, (element, vr) in ELEMENTS.items()
}
for _keyword, (_element, _vr) in ELEMENTS.items():
    _commands.define(_element, _keyword, _vr)

_ENCODE: Final = {keyword: (tag, kind) for tag, (keyword, kind) in _DECODE.items() if tag}


def encode_command_set(values: Mapping[str, CommandValue | None]) -> bytes:
    """The command set with these elements, CommandGroupLength first and ascending (PS3.7 §6.3.1).

    None leaves an element out. Text is padded to an even length: NUL for UIDs, else a space.
    Characters outside latin-1 become "?", so that a comment can never stop a response.
    Raises LocalProtocolError on an unknown keyword or a value that its VR cannot hold.
    """
    parts = [b""]  # the group length takes the first place when the others are known
    last = 0
    pack_us = _US_ELEMENT.pack
    pack_header = _TAG_AND_LENGTH.pack
    keyword = ""
    value: Any = None
    try:
        for keyword, value in values.items():
            if value is None:
                continue
            tag, kind = _ENCODE[keyword]
            if tag < last:
                return encode_command_set(
                    {key: values[key] for key in sorted(values, key=_ENCODE.__getitem__)}
                )
            last = tag
            if kind == _KIND_US:
                parts.append(pack_us(tag, 2, value))
                continue
            if kind == _KIND_AT:
                raw = b"".join([_TAG.pack(at >> 16, at & 0xFFFF) for at in value])
            else:
                raw = value.encode("latin-1", "replace")
                if len(raw) & 1:
                    raw += b"\0" if kind == _KIND_UI else b" "
            parts.append(pack_header(tag, len(raw)))
            parts.append(raw)
    except (KeyError, AttributeError, TypeError, struct_error) as exc:
        raise LocalProtocolError(f"command element {keyword} cannot hold {value!r}") from exc
    parts[0] = _UL_ELEMENT.pack(0, 4, sum(map(len, parts)))
    return b"".join(parts)


class CommandLayout:
    """The elements of one kind of message, so that only the values are looked at each time."""

    __slots__ = ("_elements", "_keywords")

    def __init__(self, keywords: Iterable[str]) -> None:
        self._keywords = tuple(sorted(keywords, key=ELEMENTS.__getitem__))
        self._elements = tuple(ELEMENTS[keyword][0] for keyword in self._keywords)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords in ascending order of their tags: the order of `encode`'s values."""
        return self._keywords

    def encode(self, values: tuple[CommandValue | None, ...]) -> bytes:
        """As `encode_command_set`, with a value, or None, for each of `keywords`."""
        try:
            regular = _commands.encode(self._elements, values)
        except OverflowError:  # a number above 64 bits: the slow path says of which element
            regular = None
        if regular is not None:
            return regular
        return encode_command_set(dict(zip(self._keywords, values, strict=True)))


def decode_command_set(data: bytes) -> CommandSet:
    """The known elements of a command set by keyword; of unknown ones only the lengths are checked.

    Numbers with an empty value count as absent. CommandGroupLength is not compared with the real
    length, since peers exist that count it wrongly and nothing depends on it.
    Raises RemoteProtocolError (abort of the service-user) on: an element outside group 0000, a
    repeated one, an odd length, a value past the end, a number of the wrong size.
    """
    regular = _commands.decode(data)
    if regular is not None:
        return cast("CommandSet", regular)
    values: CommandSet = {}
    size = len(data)
    headers_end = size - _HEADER_SIZE
    offset = 0
    last = -1
    ascending = True
    unpack_header = _TAG_AND_LENGTH.unpack_from
    known = _DECODE
    while offset <= headers_end:
        tag, length = unpack_header(data, offset)
        start = offset + _HEADER_SIZE
        end = start + length
        if end > size or length & 1 or tag & 0xFFFF:
            raise _header_fault(tag, length, offset, size)
        if tag <= last:
            ascending = False
        last = tag
        offset = end
        if tag not in known:
            continue
        keyword, kind = known[tag]
        if kind == _KIND_US:
            if length == 2:
                values[keyword] = data[start] | data[start + 1] << 8
            elif length:
                raise _value_fault(keyword, length)
        elif kind == _KIND_UI:
            values[keyword] = data[start:end].rstrip(b"\0 ").decode("latin-1")
        elif kind == _KIND_TEXT:
            values[keyword] = data[start:end].strip(b"\0 ").decode("latin-1")
        elif kind == _KIND_AT:
            if length & 3:
                raise _value_fault(keyword, length)
            values[keyword] = tuple(
                [group << 16 | element for group, element in _TAG.iter_unpack(data[start:end])]
            )
        elif length == 4:
            values[keyword] = _UL.unpack_from(data, start)[0]
        elif length:
            raise _value_fault(keyword, length)
    if offset != size:
        raise RemoteProtocolError(
            f"command set ends inside an element header, at offset {offset} of {size}",
            source=0,
            reason=0,
        )
    if not ascending:
        _refuse_repeated(data)
    return values


def _refuse_repeated(data: bytes) -> None:
    """Elements out of order are tolerated, repeated ones are not. The lengths hold already."""
    seen: set[int] = set()
    offset = 0
    while offset < len(data):
        tag, length = _TAG_AND_LENGTH.unpack_from(data, offset)
        if tag in seen:
            raise RemoteProtocolError(
                f"command element (0000,{tag >> 16:04x}) repeated at offset {offset}",
                source=0,
                reason=0,
            )
        seen.add(tag)
        offset += _HEADER_SIZE + length


def _header_fault(tag: int, length: int, offset: int, size: int) -> RemoteProtocolError:
    group, element = tag & 0xFFFF, tag >> 16
    if group:
        text = f"expected group 0000 in a command set, got {group:04x} at offset {offset}"
    elif length & 1:
        text = (
            f"command element (0000,{element:04x}) at offset {offset} has the odd length {length}"
        )
    else:
        text = (
            f"command element (0000,{element:04x}) at offset {offset} declares {length} octets, "
            f"past the end of the set at {size}"
        )
    return RemoteProtocolError(text, source=0, reason=0)


def _value_fault(keyword: str, length: int) -> RemoteProtocolError:
    vr = ELEMENTS[keyword][1]
    return RemoteProtocolError(
        f"command element {keyword} has {length} octets, which VR {vr} does not allow",
        source=0,
        reason=0,
    )
