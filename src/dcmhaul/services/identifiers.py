"""Identifiers of queries and retrieves as bytes, and the refusals that speak of them.

pydicom is imported when the first identifier is looked into, not before.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from dcmhaul import uids
from dcmhaul.wire._elements import ElementFault, ElementWalker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom.dataset import Dataset

__all__ = [
    "IDENTIFIER_LENGTH_MAX",
    "QUERY_SYNTAXES",
    "EncodeIdentifier",
    "GivenIdentifier",
    "EncodedIdentifier",
    "QueryRefused",
    "decode_identifier",
    "decode_uid_list",
    "encode_identifier",
    "encoded",
    "encode_uid_list",
]

IDENTIFIER_LENGTH_MAX: Final = 1024 * 1024
"""Octets of an identifier that are taken, in either role."""
_ELEMENTS_MAX: Final = 4096
_DEPTH_MAX: Final = 64

QUERY_SYNTAXES: Final = (
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
)
"""What an SCP takes for identifiers, in its order of preference."""

EncodeIdentifier = Callable[[str], bytes]
"""Encodes an identifier in the transfer syntax that it is given."""

GivenIdentifier: TypeAlias = "Dataset | bytes | EncodeIdentifier"
"""What a caller asks with: a dataset, bytes in the context's transfer syntax, or what encodes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedIdentifier:
    """An identifier as it came, for those who read it without pydicom. Nothing in it is checked.

    extended: what was agreed for its SOP class by extended negotiation, as services/extended.py has it.
    called_ae_title: the title that the association was opened to.
    """

    data: bytes
    transfer_syntax: str
    extended: bytes = b""
    called_ae_title: str = ""


_FAILED_SOP_INSTANCE_UID_LIST: Final = 0x00080058
_SHORT_VALUE_LENGTH_MAX: Final = 0xFFFE  # a two-octet length, even (PS3.5 §7.1.2)


class QueryRefused(Exception):
    """Raised by what answers a query or selects for a retrieve: the final response, as it will be.

    The comment goes to the peer, so it holds no patient data. offending: the tags of the elements that
    are to blame (PS3.4 §C.4.1.1.4).
    """

    def __init__(self, status: int, comment: str, offending: tuple[int, ...] = ()) -> None:
        super().__init__(f"status 0x{status:04X}: {comment}")
        self.status = status
        self.comment = comment
        self.offending = offending


def _layout(transfer_syntax: str) -> tuple[bool, bool]:
    """(explicit VR, big endian); the syntaxes of identifiers are never compressed."""
    if transfer_syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN:
        return False, False
    if transfer_syntax in (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_BIG_ENDIAN):
        return True, transfer_syntax == uids.EXPLICIT_VR_BIG_ENDIAN
    raise ValueError(f"no transfer syntax for identifiers: {uids.name(transfer_syntax)}")


def decode_identifier(
    data: bytes, transfer_syntax: str, *, elements_max: int = _ELEMENTS_MAX
) -> Dataset:
    """The identifier, its values still raw; ValueError with a reason that quotes no value.

    The headers are walked first, so that pydicom only sees what is well formed, not too deep and not
    made of countless elements.
    """
    explicit, big_endian = _layout(transfer_syntax)
    walker = ElementWalker(
        explicit, big_endian=big_endian, depth_max=_DEPTH_MAX, elements_max=elements_max
    )
    try:
        walker.feed(data)
        walker.finish()
    except ElementFault as exc:
        raise ValueError(f"identifier: {exc}") from exc

    from io import BytesIO

    from pydicom.filereader import read_dataset

    try:
        return read_dataset(BytesIO(data), not explicit, not big_endian, bytelength=len(data))
    except Exception as exc:  # pydicom's parser raises many kinds, and their texts quote values
        raise ValueError(f"identifier cannot be decoded ({type(exc).__name__})") from None


def encode_identifier(dataset: Dataset, transfer_syntax: str) -> bytes:
    """The identifier in this transfer syntax, elements in order. ValueError where a value is unfit."""
    from pydicom.charset import convert_encodings
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    explicit, big_endian = _layout(transfer_syntax)
    out = DicomBytesIO()
    out.is_implicit_VR = not explicit
    out.is_little_endian = not big_endian
    try:
        encodings = convert_encodings(dataset.get("SpecificCharacterSet", "ISO_IR 6"))
        write_dataset(out, dataset, encodings)
    except Exception as exc:  # as above: the texts quote values
        raise ValueError(f"identifier cannot be encoded ({type(exc).__name__})") from None
    return out.getvalue()


def encoded(identifier: GivenIdentifier, transfer_syntax: str) -> bytes:
    """What an SCU was given to ask, in the context's transfer syntax; bytes are taken to be in it."""
    if isinstance(identifier, bytes):
        return identifier
    if callable(identifier):
        return identifier(transfer_syntax)
    return encode_identifier(identifier, transfer_syntax)


def encode_uid_list(instance_uids: Iterable[str], transfer_syntax: str) -> tuple[bytes, int]:
    """A Failed SOP Instance UID List (0008,0058) as a dataset, and how many UIDs it holds.

    Explicit VR gives the value two octets of length, which hold about a thousand UIDs.
    """
    explicit, big_endian = _layout(transfer_syntax)
    held = list(instance_uids)
    value = "\\".join(held)
    if explicit:
        while len(value) > _SHORT_VALUE_LENGTH_MAX:
            cut = value.rfind("\\", 0, _SHORT_VALUE_LENGTH_MAX + 1)
            value = value[:cut]
        count = value.count("\\") + 1
    else:
        count = len(held)
    octets = value.encode("ascii", "replace")
    octets += b"\0" * (len(octets) % 2)
    order = ">" if big_endian else "<"
    group, element = divmod(_FAILED_SOP_INSTANCE_UID_LIST, 0x10000)
    if explicit:
        header = struct.pack(f"{order}HH2sH", group, element, b"UI", len(octets))
    else:
        header = struct.pack("<HHI", group, element, len(octets))
    return header + octets, count


def decode_uid_list(data: bytes, transfer_syntax: str) -> tuple[str, ...]:
    """The Failed SOP Instance UID List of a response; () where it holds none that can be read."""
    explicit, big_endian = _layout(transfer_syntax)
    walker = ElementWalker(
        explicit,
        big_endian=big_endian,
        capture=(_FAILED_SOP_INSTANCE_UID_LIST,),
        capture_limit=IDENTIFIER_LENGTH_MAX,
    )
    try:
        walker.feed(data)
        walker.finish()
    except ElementFault:
        return ()
    value = walker.captured.get(_FAILED_SOP_INSTANCE_UID_LIST, b"")
    listed = value.decode("latin-1").split("\\")
    return tuple(uid for uid in (entry.strip("\0 ") for entry in listed) if uid)
