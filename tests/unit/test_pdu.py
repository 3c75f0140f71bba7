"""The seven PDUs: one case list both ways, the reference codec, pynetdicom's bytes, broken input."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pynetdicom import pdu as peer_pdu
from pynetdicom import pdu_primitives as peer
from pynetdicom.presentation import PresentationContext

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.wire.items import (
    AsyncOperationsWindow,
    PresentationContextAc,
    PresentationContextRq,
    RoleSelection,
    SopClassCommonExtendedNegotiation,
    SopClassExtendedNegotiation,
    UnknownItem,
    UserIdentityRq,
    UserInformation,
)
from dcmhaul.wire.pdu import (
    ASSOCIATE_LENGTH_MAX,
    AAbort,
    AAssociateAc,
    AAssociateRj,
    AAssociateRq,
    AbortReason,
    AReleaseRp,
    AReleaseRq,
    PDataTf,
    Pdu,
    PduType,
    Pdv,
    decode_pdu,
    describe_abort,
    describe_rejection,
)
from tests.reference import codec, strategies
from tests.reference.codec import item

TITLES = "414e592d534350" + "20" * 9 + "4d45" + "20" * 14 + "00" * 32
APPLICATION_CONTEXT = "10000015 312e322e3834302e31303030382e332e312e312e31"
CASES: list[tuple[Pdu, str]] = [
    (
        AAssociateRq(
            called_ae_title="ANY-SCP",
            calling_ae_title="ME",
            presentation_contexts=(
                PresentationContextRq(
                    context_id=1,
                    abstract_syntax="1.2.840.10008.1.1",
                    transfer_syntaxes=("1.2.840.10008.1.2",),
                ),
            ),
            user_information=UserInformation(max_length_received=131072),
            unknown_items=(UnknownItem(item_type=0x99, data=b"?"),),
        ),
        "0100 000000a0 0001 0000" + TITLES + APPLICATION_CONTEXT + "2000002e 01000000"
        "30000011 312e322e3834302e31303030382e312e31"
        "40000011 312e322e3834302e31303030382e312e32"
        "50000008 51000004 00020000"
        "99000001 3f",
    ),
    (
        AAssociateAc(
            called_ae_title="ANY-SCP",
            calling_ae_title="ME",
            presentation_contexts=(
                PresentationContextAc(context_id=1, result=0, transfer_syntax="1.2"),
                PresentationContextAc(context_id=3, result=3, transfer_syntax=None),
            ),
            user_information=UserInformation(),
        ),
        "0200 0000008d 0001 0000" + TITLES + APPLICATION_CONTEXT + "2100000b 01000000"
        "40000003 312e32"
        "21000019 03000300 40000011 312e322e3834302e31303030382e312e32"
        "50000000",
    ),
    (AAssociateRj(result=1, source=1, reason=7), "0300 00000004 00 01 01 07"),
    (
        PDataTf(pdvs=(Pdv(context_id=1, is_command=True, is_last=True, fragment=b"\1\2"),)),
        "0400 00000008 00000004 01 03 0102",
    ),
    (
        PDataTf(
            pdvs=(
                Pdv(context_id=255, is_command=False, is_last=False, fragment=b""),
                Pdv(context_id=255, is_command=False, is_last=True, fragment=b"abc"),
            )
        ),
        "0400 0000000f 00000002 ff 00 00000005 ff 02 616263",
    ),
    (AReleaseRq(), "0500 00000004 00000000"),
    (AReleaseRp(), "0600 00000004 00000000"),
    (AAbort(source=2, reason=6), "0700 00000004 0000 02 06"),
]


def decode(octets: bytes) -> Pdu:
    [(pdu_type, body)] = codec.split_pdus(octets)
    return decode_pdu(pdu_type, body)


def plain(pdu: Pdu) -> dict[str, Any]:
    """A PDU as the reference codec gives it."""
    names = {
        AAssociateRq: 1,
        AAssociateAc: 2,
        AAssociateRj: 3,
        PDataTf: 4,
        AReleaseRq: 5,
        AReleaseRp: 6,
        AAbort: 7,
    }

    def lists(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: lists(field) for name, field in value.items()}
        return [lists(element) for element in value] if isinstance(value, tuple) else value

    return {"pdu": codec.NAMES[names[type(pdu)]], **lists(asdict(pdu))}


@pytest.mark.parametrize(
    ("pdu", "text"), CASES, ids=[f"{type(pdu).__name__}-{i}" for i, (pdu, _) in enumerate(CASES)]
)
def test_case_both_ways(pdu: Pdu, text: str) -> None:
    octets = bytes.fromhex(text)
    assert pdu.encode().hex(" ") == octets.hex(" ")
    assert decode(octets) == pdu


@given(strategies.pdus)
@settings(deadline=None)
def test_round_trip_and_reference(pdu: Pdu) -> None:
    octets = pdu.encode()
    assert decode(octets) == pdu
    assert octets == codec.encode_pdu(plain(pdu))
    [(pdu_type, body)] = codec.split_pdus(octets)
    assert codec.decode_pdu(pdu_type, body) == plain(pdu)


def verdict(decoder: Any, pdu_type: int, body: bytes) -> object:
    """What a decoder makes of it: the fields, or source and reason of the abort."""
    try:
        pdu = decoder(pdu_type, body)
    except (codec.Malformed, RemoteProtocolError) as exc:
        return exc.source, exc.reason
    return pdu if isinstance(pdu, dict) else plain(pdu)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[int, bytes]:
    """A PDU with a few octets changed, and perhaps cut or extended."""
    octets = bytearray(draw(strategies.pdus).encode())
    places = st.integers(6, len(octets) - 1)
    for _ in range(draw(st.integers(0, 3))):
        octets[draw(places)] = draw(strategies.u8)
    body = bytes(octets[6 : draw(places | st.just(len(octets)))])
    return octets[0], body + draw(st.just(b"") | st.binary(max_size=6))


@given(damaged() | st.tuples(strategies.u8, st.binary(max_size=120)))
@example((4, b""))
@example((4, b"\0\0\0\1\1"))
@settings(deadline=None, max_examples=300)
def test_any_octets_give_a_value_or_the_abort_of_the_reference(pdu: tuple[int, bytes]) -> None:
    expected = verdict(codec.decode_pdu, *pdu)
    assert verdict(decode_pdu, *pdu) == expected
    assert isinstance(expected, dict) or expected in ((2, 6), (2, 1))


FIXED = bytes(68)
REPEATED_CONTEXT = item(0x10, b"1.2") * 2
REPEATED_INFORMATION = item(0x50, b"") * 2
P_DATA = [b"", b"\0", bytes(5), bytes(6), b"\0\0\0\0\1\3", b"\0\0\0\1\1\3", b"\0\0\0\3\1\3"]
P_DATA += [b"\xff\xff\xff\xff\1\3", b"\0\0\0\2\1\3\0", b"\0\0\0\4\1\3ab" + bytes(5)]


@pytest.mark.parametrize(
    ("pdu_type", "body"),
    [
        *[(pdu_type, bytes(67)) for pdu_type in (1, 2)],
        *[(pdu_type, FIXED + b"\x10\0\0") for pdu_type in (1, 2)],
        *[(pdu_type, FIXED + b"\x10\0\0\1") for pdu_type in (1, 2)],
        *[(pdu_type, FIXED + b"\x50\0\0\5\x51\0\0\4a") for pdu_type in (1, 2)],
        *[(pdu_type, FIXED + REPEATED_CONTEXT) for pdu_type in (1, 2)],
        *[(pdu_type, FIXED + REPEATED_INFORMATION) for pdu_type in (1, 2)],
        *[(pdu_type, bytes(ASSOCIATE_LENGTH_MAX + 1)) for pdu_type in (1, 2)],
        *[(pdu_type, FIXED + item(0x99, b"") * 4097) for pdu_type in (1, 2)],
        (1, FIXED + item(0x20, bytes.fromhex("01000000") + b"\x40\0\xff\xff" * 16000)),
        *[(pdu_type, bytes(size)) for pdu_type in (3, 5, 6, 7) for size in (0, 3, 5, 6)],
        *[(4, body) for body in P_DATA],
    ],
)
def test_malformed_is_an_invalid_parameter(pdu_type: int, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_pdu(pdu_type, body)
    assert (caught.value.source, caught.value.reason) == (2, 6)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pdu_type", [0, 8, 0x16, 0x47, 0x53, 0xFF])
def test_an_unknown_type_is_unrecognized(pdu_type: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_pdu(pdu_type, bytes(4))
    assert (caught.value.source, caught.value.reason) == (2, 1)


@pytest.mark.parametrize("pdu_class", [AAssociateRq, AAssociateAc])
def test_fields_without_items_are_decoded(pdu_class: Any) -> None:
    """Whether that is acceptable, negotiation says."""
    pdu = pdu_class.decode(b"\xff\xff" + b"\xff" * 2 + b"\0\x80 x" + b" " * 28 + b"\xff" * 32)
    assert pdu.protocol_version == 0xFFFF
    assert pdu.called_ae_title == "\0\x80 x"
    assert pdu.calling_ae_title == ""
    assert pdu.application_context == ""
    assert pdu.presentation_contexts == ()
    assert pdu.user_information == UserInformation()


def test_items_may_come_in_any_order() -> None:
    items = [
        item(0x50, item(0x51, bytes(4))),
        item(0x99, b"?"),
        item(0x20, bytes.fromhex("03000000") + item(0x40, b"1.4") + item(0x30, b"1.2")),
        item(0x10, b"1.3 "),
    ]
    first = AAssociateRq.decode(FIXED + b"".join(items))
    assert AAssociateRq.decode(FIXED + b"".join(reversed(items))) == first
    assert first.application_context == "1.3"
    assert first.presentation_contexts == (
        PresentationContextRq(context_id=3, abstract_syntax="1.2", transfer_syntaxes=("1.4",)),
    )


def test_a_context_item_of_the_other_direction_is_unknown() -> None:
    context = bytes.fromhex("01000000") + item(0x40, b"1.2")
    assert AAssociateRq.decode(FIXED + item(0x21, context)).presentation_contexts == ()
    assert AAssociateAc.decode(FIXED + item(0x20, context)).presentation_contexts == ()


def test_reserved_bits_of_the_message_control_header_are_ignored() -> None:
    for control in range(256):
        [pdv] = PDataTf.decode(bytes((0, 0, 0, 2, 1, control))).pdvs
        assert (pdv.is_command, pdv.is_last) == (control & 1 == 1, control & 2 == 2)


def request(**changes: Any) -> AAssociateRq:
    fields: dict[str, Any] = {
        "called_ae_title": "A",
        "calling_ae_title": "B",
        "presentation_contexts": (),
        "user_information": UserInformation(),
    }
    return AAssociateRq(**{**fields, **changes})


@pytest.mark.parametrize(
    "pdu",
    [
        request(called_ae_title="A" * 17),
        request(calling_ae_title="Ł"),
        request(application_context="Ł"),
        request(application_context="1" * 65536),
        request(protocol_version=65536),
        PDataTf(pdvs=()),
        PDataTf(pdvs=(Pdv(context_id=256, is_command=True, is_last=True, fragment=b""),)),
        AAbort(source=0, reason=256),
        AAbort(source=-1, reason=0),
        AAssociateRj(result=256, source=1, reason=1),
    ],
    ids=lambda pdu: type(pdu).__name__,
)
def test_what_cannot_be_encoded_is_a_local_fault(pdu: Pdu) -> None:
    with pytest.raises(LocalProtocolError):
        pdu.encode()


def test_rejections_and_aborts_are_described() -> None:
    text = describe_rejection(1, 1, 7)
    assert "permanently" in text
    assert "called AE title" in text
    assert "1/1/7" in text
    assert "congestion" in describe_rejection(2, 3, 1)
    assert "unknown" in describe_rejection(9, 9, 9)
    assert describe_abort(0, 0) == "aborted by the application (0/0)"
    assert describe_abort(1, 0) == "aborted by an unknown source (1/0)"
    assert "unknown reason" in describe_abort(2, 3)
    texts = {describe_abort(2, reason) for reason in AbortReason}
    assert len(texts) == len(AbortReason)
    assert "invalid PDU parameter value" in describe_abort(2, 6)


def test_types_are_those_of_the_reference() -> None:
    assert {member.name.replace("_", "-"): member.value for member in PduType} == codec.TYPES


# -- against pynetdicom


def peer_user_information(*items: Any) -> list[Any]:
    """Its items are sent in the order given, so ours is given: ascending."""
    length = peer.MaximumLengthNotification()
    length.maximum_length_received = 131072
    implementation = peer.ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.3.4"
    return [length, implementation, *items]


def peer_items() -> list[Any]:
    window = peer.AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = 16
    window.maximum_number_operations_performed = 1
    role = peer.SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = "1.2.840.10008.5.1.4.1.1.2"
    role.scu_role = False
    role.scp_role = True
    version = peer.ImplementationVersionNameNotification()
    version.implementation_version_name = "PEER_1"
    extended = peer.SOPClassExtendedNegotiation()
    extended.sop_class_uid = "1.2.840.10008.5.1.4.1.2.2.1"
    extended.service_class_application_information = b"\1\1\0"
    common = peer.SOPClassCommonExtendedNegotiation()
    common.sop_class_uid = "1.2.3"
    common.service_class_uid = "1.2.4"
    common.related_general_sop_class_identification = ["1.2.5", "1.2.66"]
    identity = peer.UserIdentityNegotiation()
    identity.user_identity_type = 2
    identity.positive_response_requested = True
    identity.primary_field = b"user"
    identity.secondary_field = b"secret"
    return [window, role, version, extended, common, identity]


OUR_INFORMATION = {
    "max_length_received": 131072,
    "implementation_class_uid": "1.2.3.4",
}


def peer_associate(**fields: Any) -> peer.A_ASSOCIATE:
    primitive = peer.A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title = "CALLING"
    primitive.called_ae_title = "CALLED"
    for name, value in fields.items():
        setattr(primitive, name, value)
    return primitive


def test_pynetdicom_requests_the_same_octets() -> None:
    ours = AAssociateRq(
        called_ae_title="CALLED",
        calling_ae_title="CALLING",
        presentation_contexts=(
            PresentationContextRq(
                context_id=1,
                abstract_syntax="1.2.840.10008.1.1",
                transfer_syntaxes=("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"),
            ),
            PresentationContextRq(
                context_id=3,
                abstract_syntax="1.2.840.10008.5.1.4.1.1.2",
                transfer_syntaxes=("1.2.840.10008.1.2.4.70",),
            ),
        ),
        user_information=UserInformation(
            **OUR_INFORMATION,  # type: ignore[arg-type]
            async_window=AsyncOperationsWindow(invoked=16, performed=1),
            roles=(RoleSelection(sop_class_uid="1.2.840.10008.5.1.4.1.1.2", scu=False, scp=True),),
            implementation_version_name="PEER_1",
            extended=(
                SopClassExtendedNegotiation(
                    sop_class_uid="1.2.840.10008.5.1.4.1.2.2.1", information=b"\1\1\0"
                ),
            ),
            common_extended=(
                SopClassCommonExtendedNegotiation(
                    sop_class_uid="1.2.3", service_class_uid="1.2.4", related=("1.2.5", "1.2.66")
                ),
            ),
            user_identity=UserIdentityRq(
                identity_type=2, response_requested=True, primary=b"user", secondary=b"secret"
            ),
        ),
    )
    contexts = []
    for context in ours.presentation_contexts:
        theirs = PresentationContext()
        theirs.context_id = context.context_id
        theirs.abstract_syntax = context.abstract_syntax
        theirs.transfer_syntax = list(context.transfer_syntaxes)
        contexts.append(theirs)
    pdu = peer_pdu.A_ASSOCIATE_RQ()
    pdu.from_primitive(
        peer_associate(
            user_information=peer_user_information(*peer_items()),
            presentation_context_definition_list=contexts,
        )
    )
    assert pdu.encode().hex(" ") == ours.encode().hex(" ")
    assert decode(pdu.encode()) == ours


def test_pynetdicom_accepts_with_the_same_octets() -> None:
    ours = AAssociateAc(
        called_ae_title="CALLED",
        calling_ae_title="CALLING",
        presentation_contexts=(
            PresentationContextAc(context_id=1, result=0, transfer_syntax="1.2.840.10008.1.2.1"),
        ),
        user_information=UserInformation(
            **OUR_INFORMATION,  # type: ignore[arg-type]
            user_identity_response=b"welcome",
        ),
    )
    context = PresentationContext()
    context.context_id = 1
    context.result = 0
    context.transfer_syntax = ["1.2.840.10008.1.2.1"]
    response = peer.UserIdentityNegotiation()
    response.server_response = b"welcome"
    pdu = peer_pdu.A_ASSOCIATE_AC()
    pdu.from_primitive(
        peer_associate(
            result=0,
            result_source=1,
            user_information=peer_user_information(response),
            presentation_context_definition_results_list=[context],
        )
    )
    assert pdu.encode().hex(" ") == ours.encode().hex(" ")
    assert decode(pdu.encode()) == ours


def test_pynetdicom_encodes_the_short_pdus_alike() -> None:
    rejection = peer_pdu.A_ASSOCIATE_RJ()
    rejection.result, rejection.source, rejection.reason_diagnostic = 2, 3, 1
    abort = peer_pdu.A_ABORT_RQ()
    abort.source, abort.reason_diagnostic = 2, 5
    data = peer_pdu.P_DATA_TF()
    primitive = peer.P_DATA()
    values: Any = [[1, b"\3command"], [1, b"\2dataset"]]
    primitive.presentation_data_value_list = values
    data.from_primitive(primitive)
    assert rejection.encode() == AAssociateRj(result=2, source=3, reason=1).encode()
    assert abort.encode() == AAbort(source=2, reason=5).encode()
    assert peer_pdu.A_RELEASE_RQ().encode() == AReleaseRq().encode()
    assert peer_pdu.A_RELEASE_RP().encode() == AReleaseRp().encode()
    pdvs = (
        Pdv(context_id=1, is_command=True, is_last=True, fragment=b"command"),
        Pdv(context_id=1, is_command=False, is_last=True, fragment=b"dataset"),
    )
    assert data.encode() == PDataTf(pdvs=pdvs).encode()
