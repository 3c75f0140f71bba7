"""Digests of a dataset while it passes by: of its bytes, of its content, and of each element.

The content is what no re-encoding changes: elements and their values, whatever the VRs, the byte
order and the lengths. Nothing is decoded and nothing is kept; pixel data pass like all other bytes.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from dcmhaul import uids
from dcmhaul.wire._canonical import Canonicaliser, ElementClasses
from dcmhaul.wire._elements import ElementFault
from dcmhaul.wire.part10 import is_deflated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

__all__ = ["COERCIBLE", "ContentDigest", "DatasetDigest", "ElementDigests"]

COERCIBLE: Final = {
    0x00080001: "Length to End (retired)",
    0x00080054: "Retrieve AE Title",
    0x00080056: "Instance Availability",
    0x00081190: "Retrieve URL",
    0x00201200: "Number of Patient Related Studies",
    0x00201202: "Number of Patient Related Series",
    0x00201204: "Number of Patient Related Instances",
    0x00201206: "Number of Study Related Series",
    0x00201208: "Number of Study Related Instances",
    0x00201209: "Number of Series Related Instances",
    0x00880130: "Storage Media File-set ID",
    0x00880140: "Storage Media File-set UID",
    0x04000561: "Original Attributes Sequence",
}
"""What an archive may set of its own accord (PS3.4 §B.4.1.3 asks it to record what it coerces): where
an object is kept, and that it was changed. A difference here is named and is no failure. Nothing of
the patient, the study or the image is among them.
"""

_INFLATED_MAX: Final = 512 << 20
_INFLATE_RATIO_MAX: Final = 200
_INFLATE_STEP: Final = 1 << 18

_BINARY, _TEXT, _SEQUENCE = 1, 2, 3
_TEXT_VRS: Final = frozenset(  # PS3.5 §6.2
    (
        *("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT"),
        *("PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"),
    )
)


@cache
def _dictionary() -> ElementClasses:
    """pydicom's data dictionary, as far as the walk needs it. It is read once, at first use."""
    from pydicom._dicom_dict import DicomDictionary, RepeatersDictionary

    def known(vr: str) -> int:
        if vr == "SQ":
            return _SEQUENCE
        return _TEXT if vr in _TEXT_VRS else _BINARY

    classes = {int(tag): known(entry[0]) for tag, entry in DicomDictionary.items()}
    for mask, entry in RepeatersDictionary.items():
        if mask[:4] in ("50xx", "60xx") and "x" not in mask[4:]:
            classes[int(mask.replace("x", "0"), 16)] = known(entry[0])
    return ElementClasses(classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentDigest:
    """SHA-256 of the canonical content, and of the coercible elements, which are no part of it."""

    content: bytes
    coercible: bytes


class _Plain:
    """Gives on a dataset as it is before deflation, within bounds (PS3.5 §A.5)."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._inflater = (
            zlib.decompressobj(-zlib.MAX_WBITS) if is_deflated(transfer_syntax_uid) else None
        )
        self._taken = 0
        self._given = 0

    def pieces(self, data: Buffer) -> Iterator[Buffer]:
        """ValueError where the stream is broken, or a bomb."""
        inflater = self._inflater
        if inflater is None:
            yield data
            return
        self._taken += memoryview(data).nbytes
        while not inflater.eof:
            try:
                plain = inflater.decompress(data, _INFLATE_STEP)
            except zlib.error as error:
                raise ValueError("broken deflate stream") from error
            self._given += len(plain)
            if self._given > min(_INFLATED_MAX, _INFLATE_STEP + _INFLATE_RATIO_MAX * self._taken):
                raise ValueError("the deflated dataset inflates too much")
            if plain:
                yield plain
            data = inflater.unconsumed_tail
            if not data and len(plain) < _INFLATE_STEP:
                return


def _canonicaliser(transfer_syntax_uid: str, apart: Any = ()) -> Canonicaliser:
    # Two capitals at the first VR decide, whatever the syntax says; the byte order is the syntax's.
    return Canonicaliser(
        _dictionary(),
        big_endian=transfer_syntax_uid == uids.EXPLICIT_VR_BIG_ENDIAN,
        apart=apart,
    )


class DatasetDigest:
    """SHA-256 of a dataset as it travelled and, with `content`, of what it says.

    `update` takes consecutive bytes, from one thread at a time.
    """

    def __init__(self, transfer_syntax_uid: str, *, content: bool) -> None:
        self.length = 0
        self._bytes = hashlib.sha256()
        self._walk: Canonicaliser | None = None
        if content:
            self._walk = _canonicaliser(transfer_syntax_uid, COERCIBLE)
            self._plain = _Plain(transfer_syntax_uid)
            self._content = hashlib.sha256()
            self._coercible = hashlib.sha256()

    def update(self, data: Buffer) -> None:
        self._bytes.update(data)
        self.length += memoryview(data).nbytes
        if self._walk is None:
            return
        try:
            for piece in self._plain.pieces(data):
                self._content.update(self._walk.feed(piece))
            self._coercible.update(self._walk.take_apart())
        except ValueError:  # an ElementFault is one
            self._walk = None

    def digest(self) -> bytes:
        """SHA-256 of the bytes so far."""
        return self._bytes.digest()

    def content(self) -> ContentDigest | None:
        """Of the whole dataset; None where it was not asked for, or no dataset was recognised."""
        if self._walk is None:
            return None
        try:
            self._walk.finish()
        except ElementFault:
            return None
        # What the end of the data settled.
        self._content.update(self._walk.feed(b""))
        self._coercible.update(self._walk.take_apart())
        return ContentDigest(content=self._content.digest(), coercible=self._coercible.digest())


class ElementDigests:
    """A digest of the content of each element at depth 0, the coercible ones too: to name what differs."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        self.broken = False
        self._walk = _canonicaliser(transfer_syntax_uid)
        self._plain = _Plain(transfer_syntax_uid)
        self._tags: dict[int, Any] = {}

    def update(self, data: Buffer) -> None:
        if self.broken:
            return
        try:
            for plain in self._plain.pieces(data):
                for tag, piece in self._walk.feed_elements(plain):
                    digest = self._tags.get(tag)
                    if digest is None:
                        digest = self._tags[tag] = hashlib.blake2b(digest_size=16)
                    digest.update(piece)
        except ValueError:
            self.broken = True

    def digests(self) -> dict[int, bytes] | None:
        """By tag; None where the bytes are no dataset."""
        if not self.broken:
            try:
                self._walk.finish()
            except ElementFault:
                self.broken = True
        if self.broken:
            return None
        for tag, piece in self._walk.feed_elements(b""):
            self._tags.setdefault(tag, hashlib.blake2b(digest_size=16)).update(piece)
        return {tag: digest.digest() for tag, digest in self._tags.items()}
