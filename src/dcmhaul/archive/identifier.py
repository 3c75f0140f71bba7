"""Identifiers of C-FIND and C-GET: read from their bytes, completed, and answered in bytes.

A response is encoded straight from a row of text; no dataset object is built for it. It knows no
database.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dcmhaul import uids
from dcmhaul.archive.attributes import (
    BY_TAG,
    QUERY_RETRIEVE_LEVEL,
    SPECIFIC_CHARACTER_SET,
    UNIQUE_KEYS,
    Attribute,
    Level,
)
from dcmhaul.archive.matching import InvalidKey, Matcher, is_universal, make_matcher
from dcmhaul.archive.moments import TIMEZONE_OFFSET_FROM_UTC, parse_offset
from dcmhaul.archive.names import FuzzyName
from dcmhaul.archive.text import UTF8, clean, codec_of, decode, terms
from dcmhaul.wire._elements import ElementFault, ElementWalker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timezone

__all__ = [
    "Field",
    "Identifier",
    "InvalidIdentifier",
    "MismatchedIdentifier",
    "ResponseEncoder",
    "parse_identifier",
]

# A list of 100 000 UIDs is 6.5 MB; the service bounds the identifier as a whole.
_VALUE_MAX = 64 << 20
_ELEMENTS_MAX = 10_000
_CAPTURE = frozenset(BY_TAG) | {QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET}
_LONG_VRS = frozenset(
    ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
)


class InvalidIdentifier(ValueError):
    """The identifier cannot be understood; the text names the rule, never a value.

    offending: the tags of the elements that break it, or are missing.
    """

    def __init__(self, text: str, *offending: int) -> None:
        super().__init__(text)
        self.offending = offending


class MismatchedIdentifier(InvalidIdentifier):
    """It is sound, and yet none of its SOP class: its level, or its unique keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identifier:
    """What was asked.

    level: as given, None without one. keys: value by tag of the attributes that the index knows, ""
    for return keys. requested: tag and VR (None in implicit VR) of everything that was named,
    ascending.
    """

    level: Level | None
    keys: Mapping[int, str]
    requested: tuple[tuple[int, str | None], ...]

    def value(self, tag: int) -> str | None:
        """The value of a key where it has one that is not universal."""
        value = self.keys.get(tag)
        return None if value is None or is_universal(value) else value

    def complete_level(self, top: Level) -> Level:
        """The level given; without one the lowest whose unique key has a value, else `top`."""
        if self.level is not None:
            return self.level
        for level in reversed(Level):
            if level >= top and self.value(UNIQUE_KEYS[level]) is not None:
                return level
        return top

    def check_strictly(self, top: Level, *, relational: bool) -> None:
        """MismatchedIdentifier where PS3.4 §C.4.1.2.1 and §C.4.3.1.3 ask for a level or key."""
        if self.level is None:
            raise MismatchedIdentifier("Query/Retrieve Level is missing", QUERY_RETRIEVE_LEVEL)
        if relational:
            return
        for level in Level:
            key = UNIQUE_KEYS[level]
            if top <= level < self.level and self.value(key) is None:
                raise MismatchedIdentifier("a unique key above the level has no value", key)

    def matcher(self, attribute: Attribute, *, fuzzy: bool = False) -> Matcher | None:
        """What the key accepts, a person's name also by its meaning if `fuzzy`; None: everything."""
        value = self.value(attribute.tag)
        if value is None:
            return None
        try:
            matcher = make_matcher(attribute.vr, value)
        except InvalidKey as exc:
            group, element = divmod(attribute.tag, 0x10000)
            text = f"({group:04X},{element:04X}): {exc}"
            raise InvalidIdentifier(text, attribute.tag) from exc
        if fuzzy and attribute.vr == "PN":
            return FuzzyName(value.split("\\"), matcher)
        return matcher

    def zone(self) -> timezone | None:
        """The time zone that dates and times are asked for in; None where none is named."""
        value = self.value(TIMEZONE_OFFSET_FROM_UTC)
        if value is None:
            return None
        zone = parse_offset(value)
        if zone is None:
            text = "(0008,0201) is no offset from UTC (&ZZXX)"
            raise InvalidIdentifier(text, TIMEZONE_OFFSET_FROM_UTC)
        return zone


def parse_identifier(data: bytes, levels: Sequence[Level], transfer_syntax_uid: str) -> Identifier:
    """Reads an identifier in an uncompressed syntax; `levels` are those of the model.

    Raises InvalidIdentifier for bytes that are no dataset, MismatchedIdentifier for a level the model
    has not.
    """
    big_endian = transfer_syntax_uid == uids.EXPLICIT_VR_BIG_ENDIAN
    walker = ElementWalker(
        big_endian=big_endian,
        capture=_CAPTURE,
        capture_limit=_VALUE_MAX,
        elements_max=_ELEMENTS_MAX,
        record=True,
    )
    try:
        walker.feed(data)
        walker.finish()
    except ElementFault as fault:
        raise InvalidIdentifier(f"the identifier is broken at offset {fault.offset}") from fault
    captured = walker.captured
    character_set = terms(captured.get(SPECIFIC_CHARACTER_SET, b""))
    requested = {
        tag: vr
        for tag, vr, _ in walker.elements
        # Group lengths are no attributes; below stands what no identifier may hold.
        if tag & 0xFFFF and tag > SPECIFIC_CHARACTER_SET
    }
    if SPECIFIC_CHARACTER_SET in captured:
        requested[SPECIFIC_CHARACTER_SET] = "CS"
    keys = {}
    for tag in requested:
        if tag in BY_TAG:
            if tag not in captured:
                # Of undefined length, so a sequence: no attribute of the index is one.
                raise InvalidIdentifier("a sequence where a value was expected", tag)
            keys[tag] = _text(BY_TAG[tag], captured[tag], character_set, big_endian)
    return Identifier(
        level=_level(captured.get(QUERY_RETRIEVE_LEVEL, b""), levels),
        keys=keys,
        requested=tuple(sorted(requested.items())),
    )


def _text(attribute: Attribute, raw: bytes, character_set: str, big_endian: bool) -> str:
    if attribute.vr == "US":
        order: Literal["little", "big"] = "big" if big_endian else "little"
        return str(int.from_bytes(raw[:2], order)) if len(raw) >= 2 else ""
    if attribute.vr == "UI" or len(raw) > 1024:
        # Lists of UIDs are longer than what `decode` keeps.
        return raw.decode("latin_1").strip(" \0")
    return decode(raw, character_set)


def _level(raw: bytes, levels: Sequence[Level]) -> Level | None:
    name = clean(raw.decode("latin_1")).upper()
    if not name:
        return None
    for level in levels:
        if level.name == name:
            return level
    raise MismatchedIdentifier("Query/Retrieve Level is none of this model", QUERY_RETRIEVE_LEVEL)


# -- responses ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One element of a response: a constant, or the text at `index` of a row (None: empty)."""

    tag: int
    vr: str
    index: int | None = None
    constant: str = ""


class ResponseEncoder:
    """Encodes rows of text as datasets with these fields, in an uncompressed transfer syntax.

    character_sets: at which index of the row the character set of a text is, by the text's index.
    carried: the index of the one that stands in every response; None: only where text needs one.
    A text goes out in the character set that it came in where that is one set, else in UTF-8.
    """

    def __init__(
        self,
        fields: Iterable[Field],
        *,
        transfer_syntax_uid: str,
        character_sets: Mapping[int, int],
        carried: int | None,
    ) -> None:
        big_endian = transfer_syntax_uid == uids.EXPLICIT_VR_BIG_ENDIAN
        self._explicit = explicit = transfer_syntax_uid != uids.IMPLICIT_VR_LITTLE_ENDIAN
        self._order: Literal["little", "big"] = "big" if big_endian else "little"
        self._tag = struct.Struct(">HH" if big_endian else "<HH")
        self._character_sets = character_sets
        self._carried = carried
        self._length_size = 2 if explicit else 4
        self._fields = [
            (self._head(field.tag, field.vr), self._constant(field), field.index, field.vr)
            for field in sorted(fields, key=lambda field: field.tag)
        ]

    def encode(self, row: Sequence[str | None]) -> bytes:
        """The dataset of one response."""
        try:
            carried = "" if self._carried is None else row[self._carried] or ""
            return self._encode(row, "ascii", carried)
        except UnicodeEncodeError:
            pass
        sets = {
            row[of] or ""
            for index, of in self._character_sets.items()
            if not (row[index] or "").isascii()
        }
        if len(sets) == 1:
            character_set = sets.pop()
            codec = codec_of(character_set)
            if codec is not None:
                try:
                    return self._encode(row, codec, character_set)
                except UnicodeEncodeError:
                    pass
        return self._encode(row, "utf_8", UTF8)

    def _encode(self, row: Sequence[str | None], codec: str, character_set: str) -> bytes:
        size = self._length_size
        order = self._order
        parts: list[bytes] = []
        append = parts.append
        if character_set or self._carried is not None:
            append(self._head(SPECIFIC_CHARACTER_SET, "CS"))
            append(self._value(character_set.encode("ascii"), "CS"))
        for head, constant, index, vr in self._fields:
            if index is None or not (text := row[index]):
                append(constant)
                continue
            if vr == "US":
                value = min(int(text), 0xFFFF).to_bytes(2, order)
            else:
                value = text.encode(codec)
                if len(value) & 1:
                    value += b"\0" if vr == "UI" else b" "
            append(head)
            append(len(value).to_bytes(size, order))
            append(value)
        return b"".join(parts)

    def _head(self, tag: int, vr: str) -> bytes:
        head = self._tag.pack(tag >> 16, tag & 0xFFFF)
        return head + vr.encode("ascii") if self._explicit else head

    def _value(self, value: bytes, vr: str) -> bytes:
        if len(value) & 1:
            value += b"\0" if vr == "UI" else b" "
        return len(value).to_bytes(self._length_size, self._order) + value

    def _constant(self, field: Field) -> bytes:
        """The whole element as it is where the row has no text for it."""
        head = self._head(field.tag, field.vr)
        if self._explicit and field.vr in _LONG_VRS:
            return head + b"\0" * 6
        return head + self._value(field.constant.encode("ascii"), field.vr)
