"""What a hostile peer sends, built octet by octet; nothing here is encoded by the package itself."""

from __future__ import annotations

import zlib
from typing import Any

from tests.reference.codec import big, counted, encode_command, item, little

__all__ = [
    "APPLICATION_CONTEXT",
    "BIG_ENDIAN",
    "CT",
    "DATASET",
    "DEFLATED",
    "EXPLICIT",
    "IMPLICIT",
    "MR",
    "REJECTED_CLASS",
    "VERIFICATION",
    "abort",
    "associate_rq",
    "big",
    "command_pdu",
    "context",
    "counted",
    "data_pdu",
    "dataset_of",
    "element",
    "encoded",
    "echo_rq",
    "item",
    "little",
    "p_data",
    "pdu",
    "pdv",
    "reject",
    "release_rp",
    "release_rq",
    "store_rq",
    "title",
    "user_information",
]

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
REJECTED_CLASS = "1.2.3.4.5"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

APPLICATION_CONTEXT = item(0x10, b"1.2.840.10008.3.1.1.1")


def pdu(pdu_type: int, body: bytes) -> bytes:
    return bytes([pdu_type, 0]) + big(len(body), 4) + body


def abort(source: int, reason: int) -> bytes:
    return pdu(7, bytes([0, 0, source, reason]))


def reject(result: int, source: int, reason: int) -> bytes:
    return pdu(3, bytes([0, result, source, reason]))


release_rq = pdu(5, bytes(4))
release_rp = pdu(6, bytes(4))


# -- A-ASSOCIATE-RQ


def title(octets: bytes) -> bytes:
    return (octets + b" " * 16)[:16]


def context(context_id: int, abstract: list[str], transfer: list[str]) -> bytes:
    sub_items = [item(0x30, uid.encode()) for uid in abstract]
    sub_items += [item(0x40, uid.encode()) for uid in transfer]
    return item(0x20, bytes([context_id, 0, 0, 0]) + b"".join(sub_items))


def user_information(*sub_items: bytes, length: int = 16384) -> bytes:
    return item(0x50, item(0x51, big(length, 4)) + item(0x52, b"1.2.3") + b"".join(sub_items))


CONTEXTS = (
    context(1, [CT], [EXPLICIT])
    + context(3, [VERIFICATION], [IMPLICIT])
    + context(5, [REJECTED_CLASS], [IMPLICIT])
    + context(7, [MR], [IMPLICIT])
)


def associate_rq(
    *,
    version: int = 1,
    called: bytes = b"OURS",
    calling: bytes = b"PEER",
    application_context: bytes = APPLICATION_CONTEXT,
    contexts: bytes = CONTEXTS,
    user: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    """A request that the target of these tests accepts, but for what is said."""
    fields = big(version, 2) + bytes(2) + title(called) + title(calling) + bytes(32)
    user = user_information() if user is None else user
    return pdu(1, fields + application_context + contexts + user + more)


# -- P-DATA-TF


def pdv(context_id: int, control: int, fragment: bytes) -> bytes:
    """control: bit 0 command, bit 1 last fragment."""
    return big(len(fragment) + 2, 4) + bytes([context_id, control]) + fragment


def p_data(*pdvs: bytes) -> bytes:
    return pdu(4, b"".join(pdvs))


def command_pdu(context_id: int, command: bytes) -> bytes:
    return p_data(pdv(context_id, 3, command))


def data_pdu(context_id: int, dataset: bytes) -> bytes:
    return p_data(pdv(context_id, 2, dataset))


def element(tag: int, vr: str, value: bytes) -> bytes:
    """One element in explicit VR little endian (PS3.5 §7.1.2)."""
    header = little(tag >> 16, 2) + little(tag & 0xFFFF, 2) + vr.encode()
    if vr in ("OB", "SQ", "UN"):
        return header + bytes(2) + little(len(value), 4) + value
    return header + little(len(value), 2) + value


# What an archive needs to place an object; the UIDs of class and instance are in the command alone.
DATASET = (
    element(0x00100010, "PN", b"A^B ")
    + element(0x0020000D, "UI", b"1.2.3\0")
    + element(0x0020000E, "UI", b"1.2.3.1\0")
)


def dataset_of(size: int) -> bytes:
    """The same with as many octets behind it as are missing."""
    return DATASET + element(0x7FE00010, "OB", bytes(size - len(DATASET) - 12))


def encoded(sop_class: str, instance: str, syntax: str) -> bytes:
    """A small dataset with these UIDs, in implicit VR, explicit VR, big endian or deflated."""
    values = [
        (0x00080016, "UI", sop_class.encode()),
        (0x00080018, "UI", instance.encode()),
        (0x00100010, "PN", b"A^B "),
        (0x0020000D, "UI", b"1.2.3"),
        (0x0020000E, "UI", b"1.2.3.1"),
    ]
    put = big if syntax == BIG_ENDIAN else little
    data = b""
    for tag, vr, value in values:
        value += bytes(len(value) % 2)
        data += put(tag >> 16, 2) + put(tag & 0xFFFF, 2)
        data += put(len(value), 4) if syntax == IMPLICIT else vr.encode() + put(len(value), 2)
        data += value
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = packer.compress(data) + packer.flush()
        data += bytes(len(data) % 2)
    return data


def echo_rq(message_id: int = 1, **changes: Any) -> bytes:
    return encode_command(
        {
            "AffectedSOPClassUID": VERIFICATION,
            "CommandField": 0x0030,
            "MessageID": message_id,
            "CommandDataSetType": 0x0101,
            **changes,
        }
    )


def store_rq(message_id: int = 1, instance: str = "1.2.3", **changes: Any) -> bytes:
    return encode_command(
        {
            "AffectedSOPClassUID": CT,
            "CommandField": 0x0001,
            "MessageID": message_id,
            "Priority": 0,
            "CommandDataSetType": 1,
            "AffectedSOPInstanceUID": instance,
            **changes,
        }
    )
