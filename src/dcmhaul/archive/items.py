"""Worklist items and the identifiers that ask for them: trees of elements, matched and given out (PS3.4 §K).

Everything is held in Explicit VR Little Endian, values as they came; other syntaxes come from the
re-encoder, and what one key accepts from `matching`. It knows no file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dcmhaul import uids
from dcmhaul.archive.attributes import QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET
from dcmhaul.archive.identifier import InvalidIdentifier
from dcmhaul.archive.matching import InvalidKey, is_universal, make_matcher
from dcmhaul.archive.moments import combined_range
from dcmhaul.archive.text import decode, terms
from dcmhaul.errors import CannotReencode
from dcmhaul.objects.reencode import Reencoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dcmhaul.archive.matching import Matcher
    from dcmhaul.archive.moments import CombinedRange

__all__ = ["Element", "InvalidItem", "Tree", "WorklistQuery", "parse_item"]

_ELEMENTS_MAX: Final = 10_000
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_HEADER: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<I")
_LONG_VRS: Final = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
# Numbers in binary; they are matched as text.
_NUMBERS: Final = {
    "US": struct.Struct("<H"),
    "SS": struct.Struct("<h"),
    "UL": struct.Struct("<I"),
    "SL": struct.Struct("<i"),
    "FL": struct.Struct("<f"),
    "FD": struct.Struct("<d"),
}
_TEXT_VRS: Final = frozenset(
    "AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split()  # noqa: SIM905  read as one line
)
_START_DATE: Final = 0x00400002
_START_TIME: Final = 0x00400003


class InvalidItem(ValueError):
    """What cannot be read as a dataset; the text quotes no value."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element: the octets of its value, or the items of a sequence."""

    vr: str
    value: bytes
    items: tuple[Tree, ...] = ()


Tree = dict[int, Element]
"""A dataset or an item: elements by tag, ascending."""


def parse_item(data: bytes, transfer_syntax_uid: str, *, length_max: int) -> Tree:
    """A dataset in an uncompressed syntax as a tree. InvalidItem where it is none, or above `length_max`."""
    pieces: list[bytes] = []
    try:
        reencoder = Reencoder(transfer_syntax_uid, uids.EXPLICIT_VR_LITTLE_ENDIAN)
        for piece in reencoder.feed(data):
            pieces.append(piece)
            if reencoder.length > length_max:
                raise InvalidItem(f"more than {length_max} bytes")
        pieces.extend(reencoder.finish())
    except CannotReencode as exc:
        raise InvalidItem(str(exc)) from exc
    return _Parser(b"".join(pieces)).tree()


class _Parser:
    """Reads what the re-encoder gave out, which is well formed and has no defined lengths of sequences."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._count = 0

    def tree(self) -> Tree:
        """The elements up to the end of the item, or of all."""
        found: Tree = {}
        data = self._data
        while self._at < len(data):
            group, element, vr, length = _HEADER.unpack_from(data, self._at)
            self._at += 8
            tag = group << 16 | element
            if tag == _ITEM_END:
                break
            self._count += 1
            if self._count > _ELEMENTS_MAX:
                raise InvalidItem(f"more than {_ELEMENTS_MAX} elements")
            if vr in _LONG_VRS:
                (length,) = _LONG.unpack_from(data, self._at)
                self._at += 4
            if vr == b"SQ":
                found[tag] = Element("SQ", b"", self._items() if length else ())
                continue
            found[tag] = Element(vr.decode("ascii"), data[self._at : self._at + length])
            self._at += length
        return dict(sorted(found.items()))

    def _items(self) -> tuple[Tree, ...]:
        items: list[Tree] = []
        while True:
            group, element = struct.unpack_from("<HH", self._data, self._at)
            self._at += 8
            if group << 16 | element == _SEQUENCE_END:
                return tuple(items)
            items.append(self.tree())


# -- matching ---------------------------------------------------------------------------------------


def _texts(element: Element, character_set: str) -> list[str]:
    """The values of an element as text, those that are not empty."""
    numbers = _NUMBERS.get(element.vr)
    if numbers is not None:
        whole = len(element.value) // numbers.size * numbers.size
        return [str(value) for (value,) in numbers.iter_unpack(element.value[:whole])]
    if element.vr == "UI":
        text = element.value.decode("latin_1").strip("\0 ")
    else:
        text = decode(element.value, character_set)
    values = [text] if element.vr in ("LT", "ST", "UT", "UR") else text.split("\\")
    return [value for value in (value.strip(" \0") for value in values) if value]


def _character_set(tree: Tree, outer: str) -> str:
    own = tree.get(SPECIFIC_CHARACTER_SET)
    return outer if own is None else terms(own.value)


class _Keys:
    """The keys of one level of an identifier, ready to be compared."""

    def __init__(self, tree: Tree, character_set: str = "") -> None:
        character_set = _character_set(tree, character_set)
        self.requested: dict[int, tuple[str, _Keys | None]] = {}
        matchers: dict[int, Matcher] = {}
        self._sequences: list[tuple[int, _Keys]] = []
        for tag, element in tree.items():
            if tag in (SPECIFIC_CHARACTER_SET, QUERY_RETRIEVE_LEVEL):
                continue
            inner = None
            if element.items and element.items[0]:
                # PS3.4 §C.2.2.2.6: a key has one item.
                inner = _Keys(element.items[0], character_set)
                if inner.narrows:
                    self._sequences.append((tag, inner))
            elif element.vr != "SQ":
                matcher = _matcher(tag, element, character_set)
                if matcher is not None:
                    matchers[tag] = matcher
            self.requested[tag] = element.vr, inner
        self._combined: CombinedRange | None = None
        if _START_DATE in matchers and _START_TIME in matchers:
            # PS3.4 Table K.6-1: two ranges are one, from moment to moment.
            self._combined = combined_range(matchers[_START_DATE], matchers[_START_TIME])
            if self._combined is not None:
                del matchers[_START_DATE], matchers[_START_TIME]
        self._matchers = list(matchers.items())

    @property
    def narrows(self) -> bool:
        """Whether any key has a value."""
        return bool(self._matchers or self._sequences or self._combined)

    def match(self, tree: Tree, character_set: str = "") -> bool:
        """Whether a dataset or item meets every key."""
        character_set = _character_set(tree, character_set)
        for tag, matcher in self._matchers:
            element = tree.get(tag)
            if element is None or not any(map(matcher.matches, _texts(element, character_set))):
                return False
        if self._combined is not None:
            date, time = (
                _texts(tree[tag], character_set) if tag in tree else []
                for tag in (_START_DATE, _START_TIME)
            )
            if not self._combined.matches(
                *(values[0] if values else None for values in (date, time))
            ):
                return False
        return all(
            any(keys.match(item, character_set) for item in tree[tag].items)
            if tag in tree
            else False
            for tag, keys in self._sequences
        )

    def answer(self, tree: Tree) -> Iterator[bytes]:
        """The elements that were asked for, empty where the tree has none of them."""
        own = tree.get(SPECIFIC_CHARACTER_SET)
        if own is not None:
            yield from _encode_element(SPECIFIC_CHARACTER_SET, own)
        for tag, (vr, inner) in self.requested.items():
            element = tree.get(tag)
            if element is None:
                yield _head(tag, vr, 0)
            elif inner is None or element.vr != "SQ":
                yield from _encode_element(tag, element)
            else:
                yield from _encode_sequence(
                    tag, (b"".join(inner.answer(item)) for item in element.items)
                )


def _matcher(tag: int, element: Element, character_set: str) -> Matcher | None:
    """What a key accepts; None: everything, also where its VR has nothing that could be compared."""
    vr = element.vr
    if vr not in _TEXT_VRS and vr not in _NUMBERS:
        return None
    value = "\\".join(_texts(element, character_set))
    if is_universal(value):
        return None
    try:
        return make_matcher("DS" if vr in _NUMBERS else vr, value)
    except InvalidKey as exc:
        group, number = divmod(tag, 0x10000)
        raise InvalidIdentifier(f"({group:04X},{number:04X}): {exc}") from exc


class WorklistQuery:
    """One C-FIND of the worklist model; InvalidIdentifier where its identifier cannot be understood."""

    def __init__(self, data: bytes, transfer_syntax_uid: str, *, length_max: int) -> None:
        try:
            tree = parse_item(data, transfer_syntax_uid, length_max=length_max)
        except InvalidItem as exc:
            raise InvalidIdentifier(f"the identifier is broken: {exc}"[:64]) from exc
        self._tree = tree
        self._keys = _Keys(tree)
        self._transfer_syntax_uid = transfer_syntax_uid

    def responses(self, items: list[Tree]) -> list[bytes]:
        """The encoded responses for those of the items that match, in their order."""
        return [self._encode(item) for item in items if self._keys.match(item)]

    def single_value(self, tag: int) -> str | None:
        """The value of a key that is compared for equality (PS3.4 §C.2.2.2.1); None where it is not."""
        element = self._tree.get(tag)
        values = _texts(element, "") if element is not None else []
        return values[0] if len(values) == 1 and not set("*?") & set(values[0]) else None

    def _encode(self, item: Tree) -> bytes:
        data = b"".join(self._keys.answer(item))
        if self._transfer_syntax_uid == uids.EXPLICIT_VR_LITTLE_ENDIAN:
            return data
        reencoder = Reencoder(uids.EXPLICIT_VR_LITTLE_ENDIAN, self._transfer_syntax_uid)
        return b"".join([*reencoder.feed(data), *reencoder.finish()])


# -- encoding ---------------------------------------------------------------------------------------


def _head(tag: int, vr: str, length: int) -> bytes:
    name = vr.encode("ascii")
    if name in _LONG_VRS:
        return _HEADER.pack(tag >> 16, tag & 0xFFFF, name, 0) + _LONG.pack(length)
    return _HEADER.pack(tag >> 16, tag & 0xFFFF, name, length)


def _mark(tag: int, length: int) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def _encode_element(tag: int, element: Element) -> Iterator[bytes]:
    if element.vr == "SQ":
        yield from _encode_sequence(tag, map(_encode_tree, element.items))
    else:
        yield _head(tag, element.vr, len(element.value)) + element.value


def _encode_sequence(tag: int, items: Iterator[bytes]) -> Iterator[bytes]:
    yield _head(tag, "SQ", _UNDEFINED)
    for item in items:
        yield _mark(_ITEM, _UNDEFINED) + item + _mark(_ITEM_END, 0)
    yield _mark(_SEQUENCE_END, 0)


def _encode_tree(tree: Tree) -> bytes:
    return b"".join(piece for tag, one in tree.items() for piece in _encode_element(tag, one))
