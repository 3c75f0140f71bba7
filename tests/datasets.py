"""Hand-made encoded elements, and the real files that come with pydicom."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pydicom.data
from pydicom.filereader import _read_file_meta_info, read_preamble

UNDEFINED = 0xFFFFFFFF
LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"

FILES = Path(pydicom.data.__file__).parent / "test_files"
TRUNCATED = {"MR_truncated.dcm", "rtplan_truncated.dcm"}


def header(tag: int, vr: str | None, length: int, *, big: bool = False) -> bytes:
    """An element header; `vr` None is the implicit form, also that of items and delimiters."""
    order = ">" if big else "<"
    start = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if vr is None:
        return start + struct.pack(f"{order}I", length)
    if vr in LONG_VRS:
        return start + vr.encode() + b"\0\0" + struct.pack(f"{order}I", length)
    return start + vr.encode() + struct.pack(f"{order}H", length)


def element(tag: int, vr: str | None, value: bytes, *, big: bool = False) -> bytes:
    return header(tag, vr, len(value), big=big) + value


def item(*content: bytes, big: bool = False) -> bytes:
    """An item of undefined length."""
    return (
        header(ITEM, None, UNDEFINED, big=big)
        + b"".join(content)
        + header(ITEM_END, None, 0, big=big)
    )


def sequence(tag: int, vr: str | None, *items: bytes, big: bool = False) -> bytes:
    """A sequence, or an encapsulated value, of undefined length."""
    return (
        header(tag, vr, UNDEFINED, big=big)
        + b"".join(items)
        + header(SEQUENCE_END, None, 0, big=big)
    )


def uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def plain_dataset(sop_instance: str = "1.2.3.4", *, vrs: bool = True, extra: bytes = b"") -> bytes:
    """A small dataset with its UIDs, explicit or implicit little endian; `extra` comes last."""

    def one(tag: int, vr: str, value: bytes) -> bytes:
        return element(tag, vr if vrs else None, value)

    return (
        one(0x00080016, "UI", uid(CT_CLASS))
        + one(0x00080018, "UI", uid(sop_instance))
        + one(0x00100020, "LO", b"ID12")
        + one(0x0020000D, "UI", uid("1.2.3"))
        + one(0x0020000E, "UI", uid("1.2.3.9"))
        + extra
    )


def meta_group(
    syntax: str = EXPLICIT, sop_instance: str = "1.2.3.4", sop_class: str = CT_CLASS
) -> bytes:
    """Group 0002 with a right group length, without preamble."""
    body = element(0x00020001, "OB", b"\0\1")
    for tag, value in ((0x00020002, sop_class), (0x00020003, sop_instance), (0x00020010, syntax)):
        if value:
            body += element(tag, "UI", uid(value))
    return element(0x00020000, "UL", struct.pack("<I", len(body))) + body


def part10(dataset: bytes, syntax: str = EXPLICIT, sop_instance: str = "1.2.3.4") -> bytes:
    return bytes(128) + b"DICM" + meta_group(syntax, sop_instance) + dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class RealFile:
    """A Part-10 file of pydicom's, with what pydicom says of its frame."""

    path: Path
    syntax: str
    dataset_offset: int

    @property
    def dataset(self) -> bytes:
        return self.path.read_bytes()[self.dataset_offset :]


def real_files() -> list[RealFile]:
    """All Part-10 files of pydicom's, those that are truncated and those that are DICOMDIR too."""
    found = []
    for path in sorted(FILES.rglob("*")):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
            file.seek(0)
            read_preamble(file, False)
            meta = _read_file_meta_info(file)
            syntax = str(meta.get("TransferSyntaxUID", IMPLICIT))
            found.append(RealFile(path=path, syntax=syntax, dataset_offset=file.tell()))
    return found
