"""The seven PDUs as values, and their bytes (PS3.8 §9.3).

P-DATA-TF stands here for completeness and tests: a live association moves it through the extension.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.uids import APPLICATION_CONTEXT
from dcmhaul.wire.items import (
    ItemType,
    PresentationContextAc,
    PresentationContextRq,
    UnknownItem,
    UserInformation,
    encode_item,
    malformed,
    split_items,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AE_TITLE_SIZE",
    "ASSOCIATE_LENGTH_MAX",
    "FIXED_PDU_LENGTH",
    "PDU_HEADER_SIZE",
    "PDV_HEADER_SIZE",
    "AAbort",
    "AAssociateAc",
    "AAssociateRj",
    "AAssociateRq",
    "AReleaseRp",
    "AReleaseRq",
    "AbortReason",
    "AbortSource",
    "PDataTf",
    "Pdu",
    "PduType",
    "Pdv",
    "decode_pdu",
    "describe_abort",
    "describe_rejection",
]

PDU_HEADER_SIZE: Final = 6
"""Octets before the variable field: type, reserved, four of length."""
PDV_HEADER_SIZE: Final = 6
"""Octets before a fragment: four of length, context ID, message control header."""
ASSOCIATE_LENGTH_MAX: Final = 1024 * 1024
"""Octets of the variable field of an A-ASSOCIATE-RQ or -AC that is read at all."""
FIXED_PDU_LENGTH: Final = 4
"""Octets of the variable field of A-ASSOCIATE-RJ, A-RELEASE-RQ, A-RELEASE-RP and A-ABORT."""
AE_TITLE_SIZE: Final = 16

_PDU_HEADER: Final = Struct(">BxI")
_PDV_HEADER: Final = Struct(">IBB")
_PDV_LENGTH_MIN: Final = 2  # context ID and message control header, no fragment
_FIXED: Final = Struct(">BxIxBBB")
_ASSOCIATE: Final = Struct(">H2x16s16s32x")  # protocol version, called, calling (PS3.8 Table 9-11)

assert _ASSOCIATE.size == 68
assert _PDV_HEADER.size == PDV_HEADER_SIZE
assert _FIXED.size == PDU_HEADER_SIZE + FIXED_PDU_LENGTH


class PduType(IntEnum):
    """First octet of a PDU (PS3.8 §9.3.1)."""

    A_ASSOCIATE_RQ = 1
    A_ASSOCIATE_AC = 2
    A_ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    A_RELEASE_RQ = 5
    A_RELEASE_RP = 6
    A_ABORT = 7


class AbortSource(IntEnum):
    """Source of an A-ABORT (PS3.8 Table 9-26); 1 is reserved."""

    USER = 0
    PROVIDER = 2


class AbortReason(IntEnum):
    """Reason of an A-ABORT whose source is the service-provider (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PDU_PARAMETER = 4
    UNEXPECTED_PDU_PARAMETER = 5
    INVALID_PDU_PARAMETER_VALUE = 6


# PS3.8 Table 9-21: (source, reason) -> its meaning.
_REJECT_REASONS: Final = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
_REJECT_RESULTS: Final = {1: "permanently", 2: "for now"}
_REJECT_SOURCES: Final = {1: "the application", 2: "the provider (ACSE)", 3: "the provider"}


def describe_rejection(result: int, source: int, reason: int) -> str:
    """One clause on an A-ASSOCIATE-RJ, its three numbers included."""
    how = _REJECT_RESULTS.get(result, "with an unknown result")
    who = _REJECT_SOURCES.get(source, "an unknown source")
    why = _REJECT_REASONS.get((source, reason), "unknown reason")
    return f"rejected {how} by {who}: {why} ({result}/{source}/{reason})"


def describe_abort(source: int, reason: int) -> str:
    """One clause on an A-ABORT, its two numbers included."""
    if source == AbortSource.USER:
        return f"aborted by the application ({source}/{reason})"
    if source != AbortSource.PROVIDER:
        return f"aborted by an unknown source ({source}/{reason})"
    try:
        why = AbortReason(reason).name.lower().replace("_", " ").replace("pdu", "PDU")
    except ValueError:
        why = "unknown reason"
    return f"aborted by the provider: {why} ({source}/{reason})"


def _encode_ae_title(title: str) -> bytes:
    try:
        octets = title.encode("latin-1")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"AE title {title!r} has characters outside latin-1") from exc
    if len(octets) > AE_TITLE_SIZE:
        raise LocalProtocolError(f"AE title {title!r} has {len(octets)} characters, at most 16 fit")
    return octets.ljust(AE_TITLE_SIZE)


def _decode_ae_title(octets: bytes) -> str:
    """Spaces at both ends are not significant (PS3.8 Table 9-11); everything else stays."""
    return octets.decode("latin-1").strip(" ")


def _encode_associate(
    pdu_type: PduType,
    pdu: AAssociateRq | AAssociateAc,
    contexts: Sequence[PresentationContextRq | PresentationContextAc],
) -> bytes:
    if not 0 <= pdu.protocol_version <= 0xFFFF:
        raise LocalProtocolError(f"protocol version {pdu.protocol_version}, must be 0-65535")
    fields = _ASSOCIATE.pack(
        pdu.protocol_version,
        _encode_ae_title(pdu.called_ae_title),
        _encode_ae_title(pdu.calling_ae_title),
    )
    try:
        application_context = pdu.application_context.encode("latin-1")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"application context {pdu.application_context!r}") from exc
    body = b"".join(
        [
            fields,
            encode_item(ItemType.APPLICATION_CONTEXT, application_context),
            *[context.encode() for context in contexts],
            pdu.user_information.encode(),
            *[item.encode() for item in pdu.unknown_items],
        ]
    )
    return _PDU_HEADER.pack(pdu_type, len(body)) + body


def _decode_associate(body: bytes, context_type: int, decode_context: Any, name: str) -> Any:
    """The fields of both A-ASSOCIATE PDUs by name. Items may come in any order (PS3.8 §9.3.1)."""
    if len(body) < _ASSOCIATE.size:
        raise malformed(f"{name} of {len(body)} octets, expected at least {_ASSOCIATE.size}")
    if len(body) > ASSOCIATE_LENGTH_MAX:
        raise malformed(f"{name} of {len(body)} octets, at most {ASSOCIATE_LENGTH_MAX} are read")
    protocol_version, called, calling = _ASSOCIATE.unpack_from(body)
    application_context: str | None = None
    user_information: UserInformation | None = None
    contexts: list[Any] = []
    unknown: list[UnknownItem] = []
    for item_type, value in split_items(body, _ASSOCIATE.size, name):
        if item_type == context_type:
            contexts.append(decode_context(value))
        elif item_type == ItemType.APPLICATION_CONTEXT:
            if application_context is not None:
                raise malformed(f"two application context items in {name}")
            application_context = value.rstrip(b"\0 ").decode("latin-1")
        elif item_type == ItemType.USER_INFORMATION:
            if user_information is not None:
                raise malformed(f"two user information items in {name}")
            user_information = UserInformation.decode(value)
        else:
            unknown.append(UnknownItem(item_type=item_type, data=value))
    return {
        "protocol_version": protocol_version,
        "called_ae_title": _decode_ae_title(called),
        "calling_ae_title": _decode_ae_title(calling),
        "application_context": application_context or "",
        "presentation_contexts": tuple(contexts),
        "user_information": user_information or UserInformation(),
        "unknown_items": tuple(unknown),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class AAssociateRq:
    """A-ASSOCIATE-RQ (PS3.8 §9.3.2). AE titles without padding, at most 16 latin-1 characters.

    `application_context` is "" where its item did not come; bit 0 of `protocol_version` stands for
    version 1.
    """

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[PresentationContextRq, ...]
    user_information: UserInformation
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1
    unknown_items: tuple[UnknownItem, ...] = ()

    def encode(self) -> bytes:
        return _encode_associate(PduType.A_ASSOCIATE_RQ, self, self.presentation_contexts)

    @classmethod
    def decode(cls, body: bytes) -> AAssociateRq:
        return cls(
            **_decode_associate(
                body,
                ItemType.PRESENTATION_CONTEXT_RQ,
                PresentationContextRq.decode,
                "A-ASSOCIATE-RQ",
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AAssociateAc:
    """A-ASSOCIATE-AC (PS3.8 §9.3.3). The two titles are sent as received and mean nothing here."""

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[PresentationContextAc, ...]
    user_information: UserInformation
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1
    unknown_items: tuple[UnknownItem, ...] = ()

    def encode(self) -> bytes:
        return _encode_associate(PduType.A_ASSOCIATE_AC, self, self.presentation_contexts)

    @classmethod
    def decode(cls, body: bytes) -> AAssociateAc:
        return cls(
            **_decode_associate(
                body,
                ItemType.PRESENTATION_CONTEXT_AC,
                PresentationContextAc.decode,
                "A-ASSOCIATE-AC",
            )
        )


def _encode_fixed(pdu_type: PduType, first: int, second: int, third: int) -> bytes:
    """The four PDUs whose variable field is a reserved octet and three more."""
    if not (0 <= first <= 0xFF and 0 <= second <= 0xFF and 0 <= third <= 0xFF):
        raise LocalProtocolError(f"fields {first}, {second}, {third}: each must be 0-255")
    return _FIXED.pack(pdu_type, FIXED_PDU_LENGTH, first, second, third)


def _decode_fixed(body: bytes, name: str) -> tuple[int, int, int]:
    if len(body) != FIXED_PDU_LENGTH:
        raise malformed(f"{name} of {len(body)} octets, expected {FIXED_PDU_LENGTH}")
    return body[1], body[2], body[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class AAssociateRj:
    """A-ASSOCIATE-RJ (PS3.8 §9.3.4). Peers send pairs that the standard does not know: numbers."""

    result: int
    source: int
    reason: int

    def encode(self) -> bytes:
        return _encode_fixed(PduType.A_ASSOCIATE_RJ, self.result, self.source, self.reason)

    @classmethod
    def decode(cls, body: bytes) -> AAssociateRj:
        result, source, reason = _decode_fixed(body, "A-ASSOCIATE-RJ")
        return cls(result=result, source=source, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pdv:
    """A presentation data value (PS3.8 §9.3.5.1, Annex E.2); its length field is fragment + 2."""

    context_id: int
    is_command: bool
    is_last: bool
    fragment: bytes

    def encode(self) -> bytes:
        if not 0 <= self.context_id <= 0xFF:
            raise LocalProtocolError(f"context ID {self.context_id}, must be 0-255")
        control = self.is_command | self.is_last << 1
        return _PDV_HEADER.pack(len(self.fragment) + 2, self.context_id, control) + self.fragment


@dataclass(frozen=True, slots=True, kw_only=True)
class PDataTf:
    """P-DATA-TF (PS3.8 §9.3.5): one or more PDVs, all of one message."""

    pdvs: tuple[Pdv, ...]

    def encode(self) -> bytes:
        if not self.pdvs:
            raise LocalProtocolError("a P-DATA-TF needs at least one PDV")
        body = b"".join([pdv.encode() for pdv in self.pdvs])
        return _PDU_HEADER.pack(PduType.P_DATA_TF, len(body)) + body

    @classmethod
    def decode(cls, body: bytes) -> PDataTf:
        """Bits 2-7 of the message control header are ignored (PS3.8 §E.2)."""
        pdvs: list[Pdv] = []
        offset = 0
        size = len(body)
        while offset < size or not pdvs:
            if size - offset < PDV_HEADER_SIZE:
                raise malformed(f"P-DATA-TF ends inside a PDV header at offset {offset} of {size}")
            length, context_id, control = _PDV_HEADER.unpack_from(body, offset)
            start = offset + PDV_HEADER_SIZE
            if length < _PDV_LENGTH_MIN or length - _PDV_LENGTH_MIN > size - start:
                raise malformed(f"PDV length {length} at offset {offset} of a P-DATA-TF of {size}")
            offset = start + length - _PDV_LENGTH_MIN
            pdvs.append(
                Pdv(
                    context_id=context_id,
                    is_command=control & 1 != 0,
                    is_last=control & 2 != 0,
                    fragment=body[start:offset],
                )
            )
        return cls(pdvs=tuple(pdvs))


@dataclass(frozen=True, slots=True, kw_only=True)
class AReleaseRq:
    """A-RELEASE-RQ (PS3.8 §9.3.6)."""

    def encode(self) -> bytes:
        return _encode_fixed(PduType.A_RELEASE_RQ, 0, 0, 0)

    @classmethod
    def decode(cls, body: bytes) -> AReleaseRq:
        _decode_fixed(body, "A-RELEASE-RQ")
        return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class AReleaseRp:
    """A-RELEASE-RP (PS3.8 §9.3.7)."""

    def encode(self) -> bytes:
        return _encode_fixed(PduType.A_RELEASE_RP, 0, 0, 0)

    @classmethod
    def decode(cls, body: bytes) -> AReleaseRp:
        _decode_fixed(body, "A-RELEASE-RP")
        return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class AAbort:
    """A-ABORT (PS3.8 §9.3.8): AbortSource and, for a provider, AbortReason, as plain numbers."""

    source: int
    reason: int

    def encode(self) -> bytes:
        return _encode_fixed(PduType.A_ABORT, 0, self.source, self.reason)

    @classmethod
    def decode(cls, body: bytes) -> AAbort:
        _, source, reason = _decode_fixed(body, "A-ABORT")
        return cls(source=source, reason=reason)


Pdu = AAssociateRq | AAssociateAc | AAssociateRj | PDataTf | AReleaseRq | AReleaseRp | AAbort

_CLASSES: Final[dict[int, Any]] = {
    PduType.A_ASSOCIATE_RQ: AAssociateRq,
    PduType.A_ASSOCIATE_AC: AAssociateAc,
    PduType.A_ASSOCIATE_RJ: AAssociateRj,
    PduType.P_DATA_TF: PDataTf,
    PduType.A_RELEASE_RQ: AReleaseRq,
    PduType.A_RELEASE_RP: AReleaseRp,
    PduType.A_ABORT: AAbort,
}


def decode_pdu(pdu_type: int, body: bytes) -> Pdu:
    """The PDU of this type with this variable field (what follows the six octets of the header).

    Raises RemoteProtocolError: (2, 1) on an unknown type, (2, 6) on a body that cannot be decoded.
    """
    cls = _CLASSES.get(pdu_type)
    if cls is None:
        raise RemoteProtocolError(
            f"PDU type 0x{pdu_type:02x} does not exist",
            source=AbortSource.PROVIDER,
            reason=AbortReason.UNRECOGNIZED_PDU,
        )
    pdu: Pdu = cls.decode(body)
    return pdu
