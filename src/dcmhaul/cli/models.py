"""Query models, identifiers and matches, as find and get share them. Imports pydicom."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import warnings
from typing import TYPE_CHECKING, Any

from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue

from dcmhaul import uids
from dcmhaul.cli.completion import UNIQUE_KEYS
from dcmhaul.cli.dcmtk import preferred_syntaxes
from dcmhaul.cli.keys import NUMBER_VRS, build_identifier, dump_line
from dcmhaul.cli.queryfiles import read_query_file
from dcmhaul.services.query import QueryModel
from dcmhaul.wire._elements import ElementFault, ElementWalker
from dcmhaul.wire.items import PresentationContextRq, SopClassExtendedNegotiation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom.dataset import Dataset

    from dcmhaul.cli.keys import Identifier, Step

__all__ = [
    "MODELS",
    "PlainMatches",
    "cell",
    "extended",
    "identifiers_of",
    "json_object",
    "match_lines",
    "query_context",
    "quiet_pydicom",
    "relational",
    "unique_keys",
]

MODELS = {
    "worklist": QueryModel.WORKLIST,
    "patient": QueryModel.PATIENT_ROOT,
    "study": QueryModel.STUDY_ROOT,
    "psonly": QueryModel.PATIENT_STUDY_ONLY,
}

_SYNTAXES = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)


def quiet_pydicom() -> None:
    """What a peer answers is shown as it is; pydicom's remarks on it would only clutter stderr."""
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def identifiers_of(keys: Sequence[str], files: Sequence[str]) -> list[Identifier]:
    """One identifier a query file, each overridden by the keys; of the keys alone without a file."""
    if not files:
        return [build_identifier(keys)]
    return [build_identifier(keys, read_query_file(path)) for path in files]


def query_context(
    context_id: int, sop_class_uid: str, letters: tuple[str, ...]
) -> PresentationContextRq:
    """The context of a query or retrieve class; `-x?` gives the syntaxes and their order."""
    return PresentationContextRq(
        context_id=context_id,
        abstract_syntax=sop_class_uid,
        transfer_syntaxes=preferred_syntaxes(letters) or _SYNTAXES,
    )


def extended(sop_class_uid: str, information: bytes) -> tuple[SopClassExtendedNegotiation, ...]:
    """The item that proposes `information`; none where nothing is asked."""
    if not information:
        return ()
    return (SopClassExtendedNegotiation(sop_class_uid=sop_class_uid, information=information),)


def relational(sop_class_uid: str) -> SopClassExtendedNegotiation:
    """Relational queries or retrieval supported: the first byte is 1 (PS3.4 §C.5.1.1, §C.5.3.1)."""
    return SopClassExtendedNegotiation(sop_class_uid=sop_class_uid, information=b"\x01")


def json_object(dataset: Dataset) -> dict[str, Any]:
    """The match as a DICOM JSON object (PS3.18 Annex F); values that cannot be read are left out.

    Values that break the rules of their VR are kept: pydicom's suppress_invalid_tags drops them.
    """
    result: dict[str, Any] = {}
    for tag in sorted(dataset.keys()):
        with contextlib.suppress(Exception):
            result[f"{tag:08X}"] = dataset[tag].to_json_dict(None, 1024)
    return result


def cell(dataset: Dataset, path: tuple[Step, ...]) -> str:
    """The value at a path as text; several values are separated by backslashes."""
    for step in path[:-1]:
        element = dataset.get(step.tag)
        items = element.value if element is not None and element.VR == "SQ" else None
        if not items or len(items) <= (step.index or 0):
            return ""
        dataset = items[step.index or 0]
    tag = path[-1].tag
    if tag not in dataset:
        return ""
    try:
        element = dataset[tag]
        return _text(element.VR, element.value)
    except Exception:
        # Whatever pydicom cannot convert is shown as it came.
        raw = dataset.get_item(tag)
        value = getattr(raw, "value", b"") or b""
        return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value)


def _text(vr: str, value: Any) -> str:
    if value is None:
        return ""
    if vr == "SQ":
        return f"{len(value)} items"
    if isinstance(value, bytes):
        return value.hex() if vr != "UN" else value.decode("latin-1").strip(" \0")
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return str(value)
    # A person's name can be iterated too, though it is one value.
    if vr == "PN" and not isinstance(value, MultiValue):
        return str(value)
    return "\\".join(str(part) for part in value)


class PlainMatches:
    """Matches read from their bytes where that is simple: it takes a twentieth of the time that pydicom's
    datasets take, and a query may have many thousand matches.

    What it returns is what `cell` and `json_object` would return.
    """

    def __init__(self, paths: Sequence[tuple[Step, ...]]) -> None:
        self.paths = paths
        self._columns = [path[0].tag for path in paths]
        self._plain = all(len(path) == 1 for path in paths) and len(paths) <= _PLAIN_TAGS_MAX
        self._wanted = set(self._columns[:_PLAIN_TAGS_MAX])

    def cells(self, data: bytes, transfer_syntax: str) -> list[str] | None:
        """The cells of one match; None where they are for pydicom to tell, and to complain of."""
        walker = self._walked(data, transfer_syntax) if self._plain else None
        if walker is None:
            return None
        captured, vrs = walker.captured, walker.vrs
        cells: list[str] = []
        for tag in self._columns:
            text = _plain_text(tag, vrs.get(tag), captured.get(tag, b""))
            if text is None:
                return None
            cells.append(text)
        return cells

    def json_object(self, data: bytes, transfer_syntax: str) -> dict[str, Any] | None:
        """One match as a DICOM JSON object; None as above. Each match shows what the next will hold."""
        walker = self._walked(data, transfer_syntax)
        if walker is None:
            return None
        captured, vrs = walker.captured, walker.vrs
        if len(captured) < len(walker.elements):
            room = _PLAIN_TAGS_MAX - len(self._wanted)
            self._wanted.update(tag for tag, _, _ in walker.elements[:room])
            return None
        result: dict[str, Any] = {}
        for tag, value in captured.items():
            text = _plain_text(tag, vrs[tag], value)
            if text is None:
                return None
            vr = vrs[tag] or _dictionary_vr(tag)
            entry: dict[str, Any] = {"vr": vr}
            if text:
                parts = text.split("\\")
                if vr == "PN":
                    entry["Value"] = [{"Alphabetic": part} for part in parts]
                else:
                    entry["Value"] = [int(text)] if vr == "IS" else parts
            result[f"{tag:08X}"] = entry
        return result

    def _walked(self, data: bytes, transfer_syntax: str) -> ElementWalker | None:
        walker = ElementWalker(
            transfer_syntax != uids.IMPLICIT_VR_LITTLE_ENDIAN,
            big_endian=transfer_syntax == uids.EXPLICIT_VR_BIG_ENDIAN,
            capture=self._wanted,
            capture_limit=_PLAIN_LENGTH_MAX,
            elements_max=_PLAIN_ELEMENTS_MAX,
            record=True,
        )
        try:
            walker.feed(data)
            walker.finish()
        except ElementFault:
            return None
        wanted = self._wanted
        if sum(tag in wanted for tag, _, _ in walker.elements) != len(walker.captured):
            return None  # too long, a sequence, or there twice
        return walker


# Longer values, and datasets of more elements, are few.
_PLAIN_LENGTH_MAX = 4096
_PLAIN_ELEMENTS_MAX = 1000
_PLAIN_TAGS_MAX = 200
# Values that pydicom gives back as they are but for one octet of padding: no spaces around a value, no other
# character sets, no number that it would write another way.
_WORDS = rb"[!-<>-\[\]-~]+(?: [!-<>-\[\]-~]+)*"
_PLAIN = dict.fromkeys(
    ("AE", "AS", "CS", "DA", "DT", "LO", "PN", "SH", "TM"),
    re.compile(rb"(%b(?:\\%b)*) ?" % (_WORDS, _WORDS)),
)
_PLAIN["UI"] = re.compile(rb"([0-9.]+(?:\\[0-9.]+)*)\0?")
_PLAIN["IS"] = re.compile(rb"(0|[1-9][0-9]{0,8}) ?")


def _plain_text(tag: int, vr: str | None, value: bytes) -> str | None:
    """A value of a VR that is text, where it is nothing but that; None for every other."""
    pattern = _PLAIN.get(vr or _dictionary_vr(tag))
    if pattern is None:
        return None
    if not value:
        return ""
    found = pattern.fullmatch(value)
    return None if found is None else found[1].decode("ascii")


@functools.cache
def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def match_lines(dataset: Dataset, indent: str = "") -> Iterator[str]:
    """The dataset in DCMTK's layout, `(gggg,eeee) VR [value]`."""
    for tag in sorted(dataset.keys()):
        try:
            element = dataset[tag]
            vr, value = element.VR, element.value
        except Exception:
            vr, value = "??", dataset.get_item(tag).value
        if vr == "SQ":
            yield dump_line(indent, tag, "SQ", f"(Sequence #={len(value)})")
            for item in value:
                yield f"{indent}  (fffe,e000) na (Item #={len(item)})"
                yield from match_lines(item, indent + "    ")
                yield f"{indent}  (fffe,e00d) na (ItemDelimitationItem)"
            yield f"{indent}(fffe,e0dd) na (SequenceDelimitationItem)"
        else:
            text = _text(vr, value)
            yield dump_line(indent, tag, vr, text if vr in NUMBER_VRS else f"[{text}]")


def unique_keys(dataset: Dataset) -> dict[int, str]:
    """The unique keys that a match holds, by tag."""
    found = {}
    for tag in UNIQUE_KEYS.values():
        element = dataset.get(tag)
        if element is not None and element.value:
            found[tag] = str(element.value).strip(" \0")
    return found
