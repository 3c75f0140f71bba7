"""Query files: DICOM files with or without meta, and dumps in the layout of DCMTK's dcmdump.

Values go out byte for byte as the file holds them; what is wrong in a dump is said with its line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcmhaul.cli.keys import (
    NUMBER_VRS,
    SPECIFIC_CHARACTER_SET,
    Element,
    Identifier,
    typed_value,
    vr_of,
)
from dcmhaul.errors import ConfigurationError
from dcmhaul.uids import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN
from dcmhaul.wire._elements import ElementFault, ElementWalker
from dcmhaul.wire.part10 import is_deflated, parse_file_meta

if TYPE_CHECKING:
    from typing import NoReturn

    from pydicom.dataset import Dataset

__all__ = ["read_query_file"]

_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD

_TAG = rb"\(([0-9A-Fa-f]{4}),([0-9A-Fa-f]{4})\)"
_IS_DUMP = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s*#[^\n]*\n|\s)*" + _TAG)
_IS_JSON = re.compile(rb"\s*[\[{]")
_LINE = re.compile(_TAG + rb"\s*(?:([A-Z]{2}|[a-z]{2}|\?\?|-)(?=\s|$))?\s*(.*)")
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{2}(?:\\[0-9A-Fa-f]{2})*")


def read_query_file(path: str) -> Identifier:
    """The dataset of a DICOM file, a dump, or a DICOM JSON object, as an identifier; `-` is stdin."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    if _IS_DUMP.match(data):
        return _Dump(path).parse(data)
    if _IS_JSON.match(data):
        return _read_json(path, data)
    return _read_dicom(path, data)


# -- DICOM


def _read_dicom(path: str, data: bytes) -> Identifier:
    from io import BytesIO

    from pydicom import dcmread

    try:
        _check_whole(path, data)
        identifier = _from_dataset(dcmread(BytesIO(data), force=True))
        # With `force` anything is read as elements; what is no query shows in its tags.
        if not identifier.elements or not all(map(_is_known, identifier.elements)):
            raise ValueError("tags that DICOM does not know")
    except ConfigurationError:
        raise
    except Exception as error:
        # pydicom raises many kinds; whichever it is, this file is no query.
        raise ConfigurationError(
            f"{path}: no query file: neither DICOM, whose elements are keys, nor a dump of it "
            f"({type(error).__name__})"
        ) from error
    return identifier


def _read_json(path: str, data: bytes) -> Identifier:
    """One object of PS3.18 Annex F, also alone in a list, as `find --json` and DICOMweb give it."""
    import json
    from io import BytesIO

    from pydicom import Dataset, dcmread

    from dcmhaul.services.identifiers import encode_identifier

    try:
        found = json.loads(data)
        [found] = found if isinstance(found, list) else [found]
        dataset = Dataset.from_json(found)
        if not data.isascii() and "SpecificCharacterSet" not in dataset:
            dataset.SpecificCharacterSet = "ISO_IR 192"
        encoded = encode_identifier(dataset, EXPLICIT_VR_LITTLE_ENDIAN)
        return _from_dataset(dcmread(BytesIO(encoded), force=True))
    except Exception as error:
        # pydicom raises many kinds, and their texts quote values.
        raise ConfigurationError(
            f"{path}: no DICOM JSON object (PS3.18 Annex F) ({type(error).__name__})"
        ) from error


def _check_whole(path: str, data: bytes) -> None:
    """ConfigurationError where the last element is cut: pydicom takes what is there of it."""
    meta = parse_file_meta(data)
    if is_deflated(meta.transfer_syntax_uid):
        return
    walker = ElementWalker(big_endian=meta.transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN)
    try:
        walker.feed(memoryview(data)[meta.dataset_offset :])
        walker.finish()
    except ElementFault as fault:
        if meta.has_meta:
            raise ConfigurationError(
                f"{path}: no query file: truncated or broken at byte "
                f"{meta.dataset_offset + fault.offset} of {len(data)}"
            ) from fault
        raise


def _is_known(tag: int) -> bool:
    from pydicom.datadict import dictionary_has_tag

    return bool(tag >> 16 & 1) or dictionary_has_tag(tag)


def _from_dataset(dataset: Dataset) -> Identifier:
    identifier = Identifier()
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag.group == 2:
            continue
        raw = dataset.get_item(tag)
        vr = str(raw.VR or vr_of(tag))[:2]
        value: bytes | tuple[int | float, ...] | list[Identifier]
        if vr == "SQ":
            value = [_from_dataset(item) for item in dataset[tag].value]
        elif vr in NUMBER_VRS:
            converted = dataset[tag].value
            several = converted if isinstance(converted, MutableSequence) else [converted]
            numbers = [number for number in several if number is not None and number != ""]
            if vr == "AT":
                numbers = [half for number in numbers for half in divmod(int(number), 1 << 16)]
            value = tuple(numbers)
        else:
            value = raw.value or b""
        identifier.elements[int(tag)] = Element(int(tag), vr, value)
    return identifier


# -- dumps


class _Dump:
    """Reads one dump. Invariant: `items` is one longer than `sequences` within an item, else as long."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = 0
        self.items = [Identifier()]
        self.sequences: list[list[Identifier]] = []
        self.begun: list[Identifier] | None = None
        """The sequence of the last line, which has no item yet."""

    def parse(self, data: bytes) -> Identifier:
        root = self.items[0]
        for self.number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
            text = line.strip()
            if text and not text.startswith(b"#"):
                self._line(text)
        if self.sequences:
            self._fail(
                "the end of the file, where (fffe,e00d) ends an item, (fffe,e0dd) a sequence"
            )
        if SPECIFIC_CHARACTER_SET not in root.elements:
            _as_utf8(root)
        return root

    def _fail(self, came: str) -> NoReturn:
        raise ConfigurationError(f"{self.path}: line {self.number}: {came}")

    def _line(self, text: bytes) -> None:
        from pydicom.valuerep import STANDARD_VR

        match = _LINE.fullmatch(text)
        if match is None:
            self._fail("expected (gggg,eeee) VR [value], as dcmdump prints it")
        tag = int(match[1] + match[2], 16)
        if tag in (_ITEM, _ITEM_END, _SEQUENCE_END):
            self._structure(tag)
            return
        if len(self.items) == len(self.sequences):
            self._fail("an element where an item, (fffe,e000), or the end of its sequence is due")
        self.begun = None
        if tag & 0xFFFF == 0 or tag >> 16 == 2:
            return
        vr = (match[3] or b"").decode()
        if vr.isupper() and vr not in STANDARD_VR:
            self._fail(f"{vr} is no VR; a value stands in [ ]")
        vr = vr if vr in STANDARD_VR else vr_of(tag)
        element = Element(tag, vr, [])
        self.items[-1].elements[tag] = element
        if vr == "SQ":
            assert isinstance(element.value, list)  # as made above
            self.begun = element.value
        else:
            element.value = self._value(vr, match[4])

    def _structure(self, tag: int) -> None:
        within = len(self.items) > len(self.sequences)
        begun, self.begun = self.begun, None
        if tag == _ITEM and (begun is not None or not within):
            if begun is not None:
                self.sequences.append(begun)
            self.items.append(Identifier())
            self.sequences[-1].append(self.items[-1])
        elif tag == _ITEM_END and within and self.sequences:
            self.items.pop()
        elif tag == _SEQUENCE_END and begun is not None:
            pass
        elif tag == _SEQUENCE_END and self.sequences:
            if within:
                self.items.pop()
            self.sequences.pop()
        else:
            self._fail("an item or the end of one outside a sequence")

    def _value(self, vr: str, text: bytes) -> str | bytes | tuple[int | float, ...]:
        if text.startswith(b"["):
            value, closed, _ = text[1:].rpartition(b"]")
            if not closed:
                self._fail("the value has no ] at its end; dcmdump +L prints long values whole")
        else:
            value = text.partition(b"#")[0].strip()
            if value.startswith(b"(") and vr != "AT":
                value = b""  # (no value available)
            elif value.startswith(b"="):
                return self._named_uid(vr, value[1:].decode("latin-1"))
        if vr in ("OB", "UN") and _HEXADECIMAL.fullmatch(value):
            return bytes.fromhex(value.replace(b"\\", b"").decode())
        typed = typed_value(f"{self.path}: line {self.number}", vr, value.decode("latin-1"))
        return value if isinstance(typed, str) and not value.isascii() else typed

    def _named_uid(self, vr: str, name: str) -> str:
        from pydicom import uid

        # What dcmdump prints is, for storage classes, pydicom's name of the constant.
        named = getattr(uid, name, None) if vr == "UI" else None
        if not isinstance(named, uid.UID):
            self._fail(f"={name} names no UID that is known; type its digits in [ ]")
        return str(named)


def _as_utf8(identifier: Identifier) -> None:
    """What no character set explains is a terminal's text: UTF-8, where it is that."""
    for element in identifier.elements.values():
        if isinstance(element.value, list):
            for item in element.value:
                _as_utf8(item)
        elif isinstance(element.value, bytes) and element.vr not in ("OB", "UN"):
            try:
                element.value = element.value.decode("utf-8")
            except UnicodeDecodeError:
                continue
