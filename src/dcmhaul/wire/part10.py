"""Group 0002 of a Part-10 file (PS3.10 §7.1): read from a prefix of the file, and written.

Must not open files, and must not read beyond group 0002.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dcmhaul.errors import NotDicom, UnreadableInstance
from dcmhaul.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from dcmhaul.wire._elements import ElementFault, ElementWalker

__all__ = [
    "PREAMBLE_SIZE",
    "FileMeta",
    "actual_syntax",
    "clean_uid",
    "detect_transfer_syntax",
    "encode_file_meta",
    "is_deflated",
    "parse_file_meta",
]

PREAMBLE_SIZE = 128
_MAGIC = b"DICM"
_SOP_CLASS = 0x00020002
_SOP_INSTANCE = 0x00020003
_TRANSFER_SYNTAX = 0x00020010
_SOURCE_AE_TITLE = 0x00020016
_CAPTURE = (_SOP_CLASS, _SOP_INSTANCE, _TRANSFER_SYNTAX, _SOURCE_AE_TITLE)


@dataclass(slots=True, kw_only=True)
class FileMeta:
    """What group 0002 says; a value that is absent is "".

    dataset_offset: bytes before the dataset. has_meta: False for a bare dataset without preamble
    and group 0002. transfer_syntax_uid: where group 0002 has none, found from the first element.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae_title: str
    dataset_offset: int
    has_meta: bool


def clean_uid(value: bytes) -> str:
    """A UI value without its padding; NUL is the standard's (PS3.5 §6.2), spaces are met too."""
    return value.strip(b"\0 ").decode("latin-1")


def detect_transfer_syntax(head: bytes | bytearray | memoryview) -> str:
    """The uncompressed transfer syntax in which a dataset with this beginning is encoded.

    head: at least the first 8 bytes. Two capitals where an explicit VR stands mean explicit.
    Big endian is told by the group number of the first element, which is below 0100.
    """
    if len(head) < 8:
        return IMPLICIT_VR_LITTLE_ENDIAN
    if not (0x41 <= head[4] <= 0x5A and 0x41 <= head[5] <= 0x5A):
        return IMPLICIT_VR_LITTLE_ENDIAN
    if head[0] == 0 and head[1] != 0:
        return EXPLICIT_VR_BIG_ENDIAN
    return EXPLICIT_VR_LITTLE_ENDIAN


def actual_syntax(named: str, explicit: bool) -> str:
    """The named syntax, unless the dataset is plainly in the other uncompressed form.

    Writers that label implicit data as explicit, or the reverse, are common enough; a receiver
    that believed the label could not read such an object.
    """
    if named in (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN):
        return EXPLICIT_VR_LITTLE_ENDIAN if explicit else IMPLICIT_VR_LITTLE_ENDIAN
    return named


def _syntax_of(named: str, head: memoryview) -> str:
    if not named:
        return detect_transfer_syntax(head)
    if len(head) < 8:
        return named
    return actual_syntax(named, 0x41 <= head[4] <= 0x5A and 0x41 <= head[5] <= 0x5A)


def _meta_offset(view: memoryview) -> int | None:
    """Where group 0002 begins, or None for a bare dataset; missing preambles are tolerated."""
    head = bytes(view[: PREAMBLE_SIZE + 4])
    if head[PREAMBLE_SIZE:] == _MAGIC:
        return PREAMBLE_SIZE + 4
    if head[:4] == _MAGIC:
        return 4
    if head[:2] == b"\x02\x00":
        return 0
    return None


def parse_file_meta(prefix: bytes | bytearray | memoryview) -> FileMeta:
    """Reads preamble and group 0002 from the first bytes of a file.

    The group length is not believed: group 0002 ends where another group begins. Where
    `dataset_offset` equals the length of `prefix`, the group may go on in a longer prefix.
    Raises NotDicom for fewer than 8 bytes, UnreadableInstance for a group 0002 that is broken or
    ends within an element.
    """
    view = memoryview(prefix)
    if len(view) < 8:
        raise NotDicom("not a DICOM file: too short")
    start = _meta_offset(view)
    if start is None:
        return FileMeta(
            sop_class_uid="",
            sop_instance_uid="",
            transfer_syntax_uid=detect_transfer_syntax(view[:8]),
            source_ae_title="",
            dataset_offset=0,
            has_meta=False,
        )
    walker = ElementWalker(capture=_CAPTURE, stop_below=0x00020000, stop_above=0x0002FFFF)
    try:
        walker.feed(view[start:])
        walker.finish()
    except ElementFault as fault:
        raise UnreadableInstance(f"broken file meta information: {fault}") from fault
    captured = walker.captured
    offset = start + walker.position
    syntax = clean_uid(captured.get(_TRANSFER_SYNTAX, b""))
    return FileMeta(
        sop_class_uid=clean_uid(captured.get(_SOP_CLASS, b"")),
        sop_instance_uid=clean_uid(captured.get(_SOP_INSTANCE, b"")),
        transfer_syntax_uid=_syntax_of(syntax, view[offset : offset + 8]),
        source_ae_title=captured.get(_SOURCE_AE_TITLE, b"").decode("latin-1").strip("\0 "),
        dataset_offset=offset,
        has_meta=True,
    )


def is_deflated(transfer_syntax_uid: str) -> bool:
    """True where the whole dataset is one raw deflate stream (PS3.5 §A.5)."""
    return transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN


def _short(element: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


_VERSION = struct.pack("<HH2sHI", 2, 1, b"OB", 0, 2) + b"\0\1"
_IMPLEMENTATION = _short(0x12, b"UI", IMPLEMENTATION_CLASS_UID.encode()) + _short(
    0x13, b"SH", IMPLEMENTATION_VERSION_NAME.encode()
)


def encode_file_meta(
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    source_ae_title: str = "",
) -> bytes:
    """128 zero bytes, `DICM` and group 0002: what stands before a dataset in a Part-10 file.

    source_ae_title: the calling AE title of the association that brought the instance, or "".
    """
    body = (
        _VERSION
        + _short(0x02, b"UI", sop_class_uid.encode("ascii", "replace"))
        + _short(0x03, b"UI", sop_instance_uid.encode("ascii", "replace"))
        + _short(0x10, b"UI", transfer_syntax_uid.encode("ascii", "replace"))
        + _IMPLEMENTATION
    )
    if source_ae_title:
        body += _short(0x16, b"AE", source_ae_title.encode("ascii", "replace")[:16])
    # Zeros, because a preamble can make the file an executable (CVE-2019-11687).
    return bytes(PREAMBLE_SIZE) + _MAGIC + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body
