"""Query models, identifiers and matches, as find and get share them. Imports pydicom."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

from pydicom import config as pydicom_config
from pydicom.multival import MultiValue

from dcmhaul import uids
from dcmhaul.cli.completion import UNIQUE_KEYS
from dcmhaul.cli.dcmtk import preferred_syntaxes
from dcmhaul.cli.keys import NUMBER_VRS, build_identifier, dump_line
from dcmhaul.cli.queryfiles import read_query_file
from dcmhaul.services.query import QueryModel
from dcmhaul.wire.items import PresentationContextRq, SopClassExtendedNegotiation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom.dataset import Dataset

    from dcmhaul.cli.keys import Identifier, Step

__all__ = [
    "MODELS",
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
