"""Query keys, turned into an identifier that goes out byte for byte as typed.

Values of text are encoded here and not by pydicom, which refuses what looks wrong: a query is the
user's, and the peer decides.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dcmhaul.errors import ConfigurationError
from dcmhaul.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom.dataset import Dataset

__all__ = [
    "NUMBER_VRS",
    "QUERY_RETRIEVE_LEVEL",
    "SPECIFIC_CHARACTER_SET",
    "Element",
    "Identifier",
    "Step",
    "as_dataset",
    "build_identifier",
    "columns",
    "dump_line",
    "dump_lines",
    "encode_identifier",
    "parse_key",
    "typed_value",
    "vr_of",
]

SPECIFIC_CHARACTER_SET = 0x00080005
QUERY_RETRIEVE_LEVEL = 0x00080052

# Items that a path may reach; more is a slip of the fingers, not a query.
ITEM_INDEX_MAX = 255

NUMBER_VRS = {
    "US": "H",
    "UL": "I",
    "UV": "Q",
    "SS": "h",
    "SL": "i",
    "SV": "q",
    "FL": "f",
    "FD": "d",
}
NUMBER_VRS["AT"] = "HH"
_LONG_LENGTH = frozenset(
    {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
)
_CHARACTER_SET_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_BYTES_ONLY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})

_STEP = re.compile(
    r"""(?: \( (?P<group1>[0-9a-f]{1,4}) , (?P<element1>[0-9a-f]{1,4}) \)
          | (?:0x)?(?P<group2>[0-9a-f]{1,4}) , (?:0x)?(?P<element2>[0-9a-f]{1,4})
          | \( 0x(?P<group3>[0-9a-f]{1,4}) , 0x(?P<element3>[0-9a-f]{1,4}) \)
          | (?P<keyword>[a-z][a-z0-9]*) )
        (?: \[ (?P<index>[0-9]{1,4}) \] )?""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a path: a tag, and the item where the path goes on below it."""

    tag: int
    index: int | None = None


@dataclass(slots=True)
class Element:
    """One element. value: text still to encode, bytes as they are, numbers, or a sequence's items."""

    tag: int
    vr: str
    value: str | bytes | tuple[int | float, ...] | list[Identifier]

    @property
    def text(self) -> str:
        """The value for comparisons: without padding; empty for what is no text."""
        if isinstance(self.value, bytes):
            return self.value.decode("latin-1").strip(" \0")
        return self.value.strip(" \0") if isinstance(self.value, str) else ""


@dataclass(slots=True)
class Identifier:
    """The elements of a query, in the order typed; encoding sorts them."""

    elements: dict[int, Element] = field(default_factory=dict)

    def put(self, tag: int, value: str, vr: str) -> None:
        self.elements[tag] = Element(tag, vr, value)

    def text(self, tag: int) -> str:
        """The value of a text element without padding; empty where it is absent."""
        element = self.elements.get(tag)
        return element.text if element is not None else ""

    def copy(self) -> Identifier:
        """A copy whose top level can be changed alone."""
        return Identifier(dict(self.elements))


def _tag_of(step: str, match: re.Match[str]) -> int:
    keyword = match["keyword"]
    if keyword is None:
        for number in "123":
            group, element = match["group" + number], match["element" + number]
            if group is not None:
                return int(group, 16) << 16 | int(element, 16)
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ConfigurationError(
            f"-k {step}: no attribute of the DICOM dictionary has this keyword (case counts)"
        )
    return int(tag)


def parse_key(text: str) -> tuple[tuple[Step, ...], str | None]:
    """The path and the value of one `-k`; the value is None where no `=` was typed.

    Forms: `0x0010,0x0010=V`, `0010,0010=V`, `(0010,0010)=V`, `PatientName=V`, and paths such as
    `0040,0100[0].0008,0060=CT`. ConfigurationError says what is wrong.
    """
    path, equals, value = text.partition("=")
    steps: list[Step] = []
    position = 0
    while True:
        match = _STEP.match(path, position)
        if match is None:
            raise ConfigurationError(
                f"-k {path}: a key is gggg,eeee or a dictionary keyword; [N]. stands between the "
                "steps of a path"
            )
        index = int(match["index"]) if match["index"] is not None else None
        if index is not None and index > ITEM_INDEX_MAX:
            raise ConfigurationError(f"-k {path}: item {index} is beyond {ITEM_INDEX_MAX}")
        steps.append(Step(_tag_of(match[0], match), index))
        position = match.end()
        if position == len(path):
            break
        if path[position] != "." or index is None:
            raise ConfigurationError(
                f"-k {path}: after {path[:position]} stands [N]. and the next step, = or nothing"
            )
        position += 1
    return tuple(steps), value if equals else None


def vr_of(tag: int) -> str:
    from pydicom.datadict import dictionary_VR

    if tag & 0xFFFF == 0:
        return "UL"
    try:
        vr = str(dictionary_VR(tag))
    except KeyError:
        return "UN"
    # "US or SS" and its like: a query knows no pixel representation; the unsigned one is usual.
    return vr[:2]


def typed_value(where: str, vr: str, value: str) -> str | bytes | tuple[int | float, ...]:
    """What a typed value is in its VR; ConfigurationError with the place `where` it was typed."""
    if vr in NUMBER_VRS:
        if not value:
            return ()
        try:
            return _numbers(vr, value)
        except (ValueError, struct.error, OverflowError):
            raise ConfigurationError(f"{where}: {vr} takes {_takes(vr)}, not {value!r}") from None
    if vr in _BYTES_ONLY and value:
        raise ConfigurationError(f"{where}: a value of {vr} is bytes and cannot be typed")
    return value


def _takes(vr: str) -> str:
    """What may be typed as a value of a binary VR."""
    if vr == "AT":
        return "tags gggg,eeee"
    if vr in ("FL", "FD"):
        return "numbers"
    bits = 8 * struct.calcsize("<" + NUMBER_VRS[vr])
    low, high = (0, 2**bits - 1) if vr[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return f"whole numbers from {low} to {high}"


def _numbers(vr: str, value: str) -> tuple[int | float, ...]:
    parts = value.split("\\")
    numbers: tuple[int | float, ...]
    if vr in ("FL", "FD"):
        numbers = tuple(float(part) for part in parts)
    elif vr == "AT":
        flat = [int(half, 16) for part in parts for half in part.strip("()").split(",")]
        if len(flat) != 2 * len(parts):
            raise ValueError("a tag is gggg,eeee")
        numbers = tuple(flat)
    else:
        numbers = tuple(int(part, 0) for part in parts)
    struct.pack(f"<{len(numbers)}{NUMBER_VRS[vr][0]}", *numbers)
    return numbers


def _put(identifier: Identifier, steps: Sequence[Step], value: str | None, typed: str) -> None:
    """Sets one key, making the sequences and items on its path."""
    for step in steps[:-1]:
        identifier = _item(identifier, step, typed)
    last = steps[-1]
    vr = vr_of(last.tag)
    if vr == "SQ" or last.index is not None:
        if value:
            raise ConfigurationError(f"-k {typed}: a sequence has items, not a value")
        if last.index is None:
            identifier.elements.setdefault(last.tag, Element(last.tag, "SQ", []))
        else:
            _item(identifier, last, typed)
        return
    # What is typed again takes the place of what was there, in a query file or an earlier key.
    identifier.elements.pop(last.tag, None)
    where = f"-k {typed}"
    if not last.tag & 0xFFFF:
        where += f" is the length of group {last.tag >> 16:04X}"
    identifier.elements[last.tag] = Element(last.tag, vr, typed_value(where, vr, value or ""))


def _item(identifier: Identifier, step: Step, typed: str) -> Identifier:
    if vr_of(step.tag) not in ("SQ", "UN"):
        raise ConfigurationError(f"-k {typed}: {step.tag:08X} is no sequence and has no items")
    element = identifier.elements.setdefault(step.tag, Element(step.tag, "SQ", []))
    if not isinstance(element.value, list):
        raise ConfigurationError(f"-k {typed}: {step.tag:08X} is no sequence and has no items")
    index = step.index or 0
    while len(element.value) <= index:
        element.value.append(Identifier())
    return element.value[index]


def build_identifier(keys: Sequence[str], base: Identifier | None = None) -> Identifier:
    """The identifier of the keys as typed, over a query file's; the last of equal keys holds."""
    identifier = _deep_copy(base) if base is not None else Identifier()
    for key in keys:
        steps, value = parse_key(key)
        _put(identifier, steps, value, key.partition("=")[0])
    return identifier


def _deep_copy(identifier: Identifier) -> Identifier:
    copied = Identifier()
    for tag, element in identifier.elements.items():
        value = element.value
        if isinstance(value, list):
            value = [_deep_copy(item) for item in value]
        copied.elements[tag] = Element(tag, element.vr, value)
    return copied


def _is_ascii(identifier: Identifier) -> bool:
    for element in identifier.elements.values():
        if isinstance(element.value, str) and not element.value.isascii():
            return False
        if isinstance(element.value, list) and not all(map(_is_ascii, element.value)):
            return False
    return True


def as_dataset(identifier: Identifier) -> Dataset:
    """The same for pydicom."""
    from dcmhaul.services.identifiers import decode_identifier

    encoded = encode_identifier(identifier, EXPLICIT_VR_LITTLE_ENDIAN)
    return decode_identifier(encoded, EXPLICIT_VR_LITTLE_ENDIAN)


def encode_identifier(identifier: Identifier, transfer_syntax_uid: str) -> bytes:
    """The identifier as a dataset in that syntax (PS3.5 §7.1, Annex A).

    Typed text beyond ASCII travels in the identifier's Specific Character Set, or where it names
    none as UTF-8, which is then said in it (ISO_IR 192).
    """
    if SPECIFIC_CHARACTER_SET not in identifier.elements and not _is_ascii(identifier):
        identifier = identifier.copy()
        identifier.put(SPECIFIC_CHARACTER_SET, "ISO_IR 192", "CS")
    explicit = transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN
    order = ">" if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else "<"
    encoded = _encode(identifier, explicit, order, identifier.text(SPECIFIC_CHARACTER_SET))
    if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        encoded = deflate.compress(encoded) + deflate.flush()
        encoded += b"\0" * (len(encoded) % 2)
    return encoded


def _encode(identifier: Identifier, explicit: bool, order: str, character_set: str) -> bytes:
    character_set = identifier.text(SPECIFIC_CHARACTER_SET) or character_set
    parts: list[bytes] = []
    for tag in sorted(identifier.elements):
        element = identifier.elements[tag]
        value = _encode_value(element, explicit, order, character_set)
        head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
        if not explicit:
            head += struct.pack(f"{order}I", len(value))
        elif element.vr in _LONG_LENGTH:
            head += element.vr.encode("ascii") + struct.pack(f"{order}HI", 0, len(value))
        else:
            if len(value) > 0xFFFF:
                raise ConfigurationError(f"the value of {tag:08X} is longer than 65535 bytes")
            head += element.vr.encode("ascii") + struct.pack(f"{order}H", len(value))
        parts += (head, value)
    return b"".join(parts)


def _encode_value(element: Element, explicit: bool, order: str, character_set: str) -> bytes:
    value = element.value
    if isinstance(value, list):
        items = [_encode(item, explicit, order, character_set) for item in value]
        # Item (FFFE,E000) of defined length; it has no VR in any syntax (PS3.5 §7.5).
        return b"".join(
            struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(item)) + item for item in items
        )
    if isinstance(value, tuple):
        return struct.pack(f"{order}{len(value)}{NUMBER_VRS[element.vr][0]}", *value)
    if isinstance(value, str):
        value = _encode_text(value, element.vr, character_set)
    if len(value) % 2:
        value += b"\0" if element.vr in ("UI", "UN") or element.vr in _BYTES_ONLY else b" "
    return value


def _encode_text(text: str, vr: str, character_set: str) -> bytes:
    if text.isascii():
        return text.encode("ascii")
    if vr not in _CHARACTER_SET_VRS:
        # The standard leaves nothing but ASCII here; as typed means its UTF-8.
        return text.encode("utf-8", "surrogateescape")
    from pydicom.charset import convert_encodings, encode_string

    try:
        with warnings.catch_warnings():
            # pydicom would warn and send question marks.
            warnings.simplefilter("error")
            return encode_string(text, convert_encodings(character_set.split("\\")))
    except (LookupError, ValueError, UserWarning) as error:
        raise ConfigurationError(
            f"a key cannot be written in the character set {character_set!r}"
        ) from error


def columns(identifier: Identifier) -> list[tuple[str, tuple[Step, ...]]]:
    """Name and path of each key that a match answers, in the order typed."""
    return [
        (name, path)
        for name, path in _leaves(identifier, (), "")
        if path[0].tag not in (SPECIFIC_CHARACTER_SET, QUERY_RETRIEVE_LEVEL)
    ]


def _leaves(
    identifier: Identifier, above: tuple[Step, ...], prefix: str
) -> Iterator[tuple[str, tuple[Step, ...]]]:
    from pydicom.datadict import keyword_for_tag

    for tag, element in identifier.elements.items():
        name = prefix + (keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})")
        if isinstance(element.value, list) and any(item.elements for item in element.value):
            for index, item in enumerate(element.value):
                yield from _leaves(item, (*above, Step(tag, index)), f"{name}[{index}].")
        else:
            yield name, (*above, Step(tag))


def dump_lines(identifier: Identifier, indent: str = "") -> Iterator[str]:
    """The identifier in DCMTK's layout, which a query file may have."""
    for tag in sorted(identifier.elements):
        element = identifier.elements[tag]
        value = element.value
        if isinstance(value, list):
            yield dump_line(indent, tag, "SQ", f"(Sequence #={len(value)})")
            for item in value:
                yield f"{indent}  (fffe,e000) na (Item #={len(item.elements)})"
                yield from dump_lines(item, indent + "    ")
                yield f"{indent}  (fffe,e00d) na (ItemDelimitationItem)"
            yield f"{indent}(fffe,e0dd) na (SequenceDelimitationItem)"
        elif element.vr == "AT" and isinstance(value, tuple):
            halves = [f"{number:04x}" for number in value]
            text = "\\".join(f"({g},{e})" for g, e in zip(halves[::2], halves[1::2], strict=True))
            yield dump_line(indent, tag, "AT", text)
        elif isinstance(value, tuple):
            yield dump_line(indent, tag, element.vr, "\\".join(str(number) for number in value))
        else:
            yield dump_line(indent, tag, element.vr, f"[{element.text}]")


def dump_line(indent: str, tag: int, vr: str, value: str) -> str:
    """One element as dcmdump prints it: `(gggg,eeee) VR [value]`, and at the end its keyword."""
    from pydicom.datadict import keyword_for_tag

    if value in ("", "[]"):
        value = "(no value available)"
    keyword = keyword_for_tag(tag) or "Unknown Tag & Data"
    return f"{indent}({tag >> 16:04x},{tag & 0xFFFF:04x}) {vr} {value:<40} # {keyword}"
