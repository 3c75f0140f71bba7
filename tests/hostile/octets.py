"""What a hostile peer sends, built octet by octet; nothing here is encoded by the package itself."""

from __future__ import annotations

from typing import Any

from tests.reference.codec import big, counted, encode_command, item, little

__all__ = [
    "APPLICATION_CONTEXT",
    "CT",
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
