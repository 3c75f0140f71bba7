"""A-ASSOCIATE items: one case list both ways, lying lengths, what is tolerated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.wire.items import (
    ITEMS_MAX,
    AsyncOperationsWindow,
    PresentationContextAc,
    PresentationContextRq,
    RoleSelection,
    SopClassCommonExtendedNegotiation,
    SopClassExtendedNegotiation,
    UnknownItem,
    UserIdentityRq,
    UserInformation,
    encode_item,
)
from tests.reference import strategies
from tests.reference.codec import counted, item

# Item with its header in hex, and its value. `decode` takes what follows the four-byte header.
CASES: list[tuple[Any, str]] = [
    (
        PresentationContextRq(
            context_id=1, abstract_syntax="1.2", transfer_syntaxes=("1.3", "1.4.5")
        ),
        "2000001b 01000000 30000003 312e32 40000003 312e33 40000005 312e342e35",
    ),
    (
        PresentationContextRq(context_id=255, abstract_syntax="", transfer_syntaxes=()),
        "20000004 ff000000",
    ),
    (
        PresentationContextRq(
            context_id=2,
            abstract_syntax="1",
            further_abstract_syntaxes=("2",),
            transfer_syntaxes=("3",),
            unknown_items=(UnknownItem(item_type=0x99, data=b"ab"),),
        ),
        "20000019 02000000 30000001 31 30000001 32 40000001 33 99000002 6162",
    ),
    (
        PresentationContextAc(context_id=1, result=0, transfer_syntax="1.3"),
        "2100000b 01000000 40000003 312e33",
    ),
    (
        PresentationContextAc(
            context_id=3,
            result=0,
            transfer_syntax="1.3",
            unknown_items=(UnknownItem(item_type=0x30, data=b""),),
        ),
        "2100000f 03000000 40000003 312e33 30000000",
    ),
    (
        PresentationContextAc(context_id=5, result=4, transfer_syntax=None),
        "21000019 05000400 40000011 312e322e3834302e31303030382e312e32",
    ),
    (AsyncOperationsWindow(invoked=0, performed=65535), "53000004 0000 ffff"),
    (RoleSelection(sop_class_uid="1.2", scu=False, scp=True), "54000007 0003 312e32 00 01"),
    (
        SopClassExtendedNegotiation(sop_class_uid="1.2", information=b"\1\0\1"),
        "56000008 0003 312e32 010001",
    ),
    (
        SopClassCommonExtendedNegotiation(
            sop_class_uid="1.2", service_class_uid="1.3", related=("1", "2.2")
        ),
        "57000014 0003 312e32 0003 312e33 0008 0001 31 0003 322e32",
    ),
    (
        SopClassCommonExtendedNegotiation(sop_class_uid="1", service_class_uid="2"),
        "57000008 0001 31 0001 32 0000",
    ),
    (
        UserIdentityRq(
            identity_type=2, response_requested=True, primary=b"me", secondary=b"secret"
        ),
        "5800000e 02 01 0002 6d65 0006 736563726574",
    ),
    (
        UserInformation(
            max_length_received=16384,
            implementation_class_uid="1.2",
            implementation_version_name="V 1",
            async_window=AsyncOperationsWindow(invoked=8, performed=1),
            roles=(RoleSelection(sop_class_uid="1", scu=True, scp=False),),
            extended=(SopClassExtendedNegotiation(sop_class_uid="1", information=b""),),
            common_extended=(
                SopClassCommonExtendedNegotiation(sop_class_uid="1", service_class_uid="2"),
            ),
            user_identity=UserIdentityRq(identity_type=1, response_requested=False, primary=b"u"),
            user_identity_response=b"ok",
            unknown=(UnknownItem(item_type=0x60, data=b"\xff"),),
        ),
        "50000052"
        "51000004 00004000"
        "52000003 312e32"
        "53000004 0008 0001"
        "54000005 0001 31 01 00"
        "55000003 562031"
        "56000003 0001 31"
        "57000008 0001 31 0001 32 0000"
        "58000007 01 00 0001 75 0000"
        "59000004 0002 6f6b"
        "60000001 ff",
    ),
    (UserInformation(), "50000000"),
    (UnknownItem(item_type=0x99, data=b"\0\1"), "99000002 0001"),
]


@pytest.mark.parametrize(("value", "text"), CASES, ids=[text[:8] for _, text in CASES])
def test_case_both_ways(value: Any, text: str) -> None:
    octets = bytes.fromhex(text)
    assert value.encode().hex(" ") == octets.hex(" ")
    if not isinstance(value, UnknownItem):
        assert type(value).decode(octets[4:]) == value


@given(
    strategies.contexts_rq
    | strategies.contexts_ac
    | strategies.roles
    | strategies.extended
    | strategies.common_extended
    | strategies.user_identities
    | strategies.user_information
)
@settings(deadline=None)
def test_round_trip(value: Any) -> None:
    assert type(value).decode(value.encode()[4:]) == value


CONTEXT = bytes.fromhex("01000000")
MALFORMED: list[tuple[str, Any, bytes]] = [
    ("context without its four octets", PresentationContextRq, b"\1\0\0"),
    ("answer without its four octets", PresentationContextAc, b""),
    ("sub-item header cut", PresentationContextRq, CONTEXT + b"\x30\0\0"),
    ("sub-item overruns", PresentationContextRq, CONTEXT + b"\x40\0\0\x04123"),
    ("sub-item declares 65535", PresentationContextRq, CONTEXT + b"\x40\0\xff\xff" * 100),
    ("answer's sub-item overruns", PresentationContextAc, CONTEXT + b"\x40\0\0\x041.2"),
    ("window of three", AsyncOperationsWindow, bytes(3)),
    ("window of five", AsyncOperationsWindow, bytes(5)),
    ("role without a length", RoleSelection, b"\0"),
    ("role UID overruns", RoleSelection, b"\xff\xff\1\1"),
    ("role UID takes the roles", RoleSelection, b"\0\x021\1\1"),
    ("role without roles", RoleSelection, counted(b"1.2")),
    ("role with more behind", RoleSelection, counted(b"1.2") + b"\1\1\0"),
    ("extended UID overruns", SopClassExtendedNegotiation, b"\0\x041.2"),
    ("common UID missing", SopClassCommonExtendedNegotiation, counted(b"1")),
    ("common list missing", SopClassCommonExtendedNegotiation, counted(b"1") * 2),
    ("related overruns", SopClassCommonExtendedNegotiation, counted(b"1") * 2 + b"\0\3\0\5\0"),
    ("related cut", SopClassCommonExtendedNegotiation, counted(b"1") * 2 + counted(b"\0")),
    ("identity of one octet", UserIdentityRq, b"\1"),
    ("identity overruns", UserIdentityRq, b"\1\0\xff\xffme"),
    ("identity without second field", UserIdentityRq, b"\1\0" + counted(b"me")),
    ("second field overruns", UserIdentityRq, b"\2\0" + counted(b"me") + b"\0\7secret"),
    ("identity with more behind", UserIdentityRq, b"\2\0" + counted(b"") * 2 + b"\0"),
    ("maximum length of 0", UserInformation, item(0x51, b"")),
    ("maximum length of 3", UserInformation, item(0x51, bytes(3))),
    ("maximum length of 65535", UserInformation, b"\x51\0\xff\xff"),
    ("response overruns", UserInformation, item(0x59, b"\0\1")),
    ("response with more behind", UserInformation, item(0x59, counted(b"a") + b"b")),
    *[
        (f"sub-item {kind:02x} twice", UserInformation, item(kind, value) * 2)
        for kind, value in (
            (0x51, bytes(4)),
            (0x52, b"1.2"),
            (0x53, bytes(4)),
            (0x55, b"V"),
            (0x58, b"\1\0" + counted(b"") * 2),
            (0x59, counted(b"")),
        )
    ],
    ("too many sub-items", UserInformation, item(0x99, b"") * (ITEMS_MAX + 1)),
    ("too many syntaxes", PresentationContextRq, CONTEXT + item(0x40, b"") * (ITEMS_MAX + 1)),
]


@pytest.mark.parametrize(
    ("decoder", "value"),
    [(decoder, value) for _, decoder, value in MALFORMED],
    ids=[name for name, _, _ in MALFORMED],
)
def test_malformed_is_an_invalid_parameter(decoder: Any, value: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.decode(value)
    assert (caught.value.source, caught.value.reason) == (2, 6)
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(sorted({decoder for _, decoder, _ in MALFORMED}, key=lambda cls: cls.__name__)),
    st.binary(max_size=60),
)
@settings(deadline=None)
def test_any_octets_give_a_value_or_a_fault(decoder: Any, octets: bytes) -> None:
    try:
        value = decoder.decode(octets)
    except RemoteProtocolError as exc:
        assert (exc.source, exc.reason) == (2, 6)  # noqa: PT017 - a value is as good an end
    else:
        assert isinstance(value, decoder)


@pytest.mark.parametrize("padding", [b"\0", b" ", b"\0\0", b" \0"])
def test_padding_of_uids_and_names_is_not_significant(padding: bytes) -> None:
    context = CONTEXT + item(0x30, b"1.2" + padding) + item(0x40, b"1.3" + padding)
    assert PresentationContextRq.decode(context) == PresentationContextRq(
        context_id=1, abstract_syntax="1.2", transfer_syntaxes=("1.3",)
    )
    assert UserInformation.decode(item(0x55, b"V" + padding)).implementation_version_name == "V"
    role = RoleSelection.decode(counted(b"1.2" + padding) + b"\0\7")
    assert role == RoleSelection(sop_class_uid="1.2", scu=False, scp=True)


@pytest.mark.parametrize(
    "sub_items",
    [b"", item(0x40, b"1.2") * 2, item(0x30, b"1.2"), item(0x40, b"1") + item(0x40, b"2")],
)
def test_acceptance_without_exactly_one_syntax_has_none(sub_items: bytes) -> None:
    assert PresentationContextAc.decode(CONTEXT + sub_items).transfer_syntax is None


@pytest.mark.parametrize("sub_items", [b"", b"\x40\0\xff\xff", item(0x40, b"1.2")])
@pytest.mark.parametrize("result", [1, 2, 3, 4, 7, 255])
def test_nothing_is_read_of_a_rejected_context(result: int, sub_items: bytes) -> None:
    value = bytes((9, 0, result, 0)) + sub_items
    assert PresentationContextAc.decode(value) == PresentationContextAc(
        context_id=9, result=result, transfer_syntax=None
    )


def test_later_versions_of_the_common_extended_item_may_add_fields() -> None:
    value = counted(b"1") + counted(b"2") + counted(b"") + b"later"
    assert SopClassCommonExtendedNegotiation.decode(value) == SopClassCommonExtendedNegotiation(
        sop_class_uid="1", service_class_uid="2"
    )


def test_sub_items_may_come_in_any_order() -> None:
    items = [item(0x55, b"V"), item(0x99, b"x"), item(0x52, b"1.2"), item(0x51, bytes(4))]
    expected = UserInformation(
        max_length_received=0,
        implementation_class_uid="1.2",
        implementation_version_name="V",
        unknown=(UnknownItem(item_type=0x99, data=b"x"),),
    )
    assert UserInformation.decode(b"".join(items)) == expected
    assert UserInformation.decode(b"".join(reversed(items))) == expected


def test_a_user_identity_does_not_print_its_secrets() -> None:
    identity = UserIdentityRq(
        identity_type=2, response_requested=False, primary=b"alice", secondary=b"passcode"
    )
    text = repr(UserInformation(user_identity=identity))
    assert "alice" not in text
    assert "passcode" not in text


@pytest.mark.parametrize(
    "value",
    [
        UnknownItem(item_type=0x99, data=bytes(65536)),
        UserInformation(unknown=(UnknownItem(item_type=0x99, data=bytes(65535)),)),
        UserInformation(user_identity_response=bytes(65536)),
        UserInformation(max_length_received=1 << 32),
        UserInformation(max_length_received=-1),
        UserInformation(implementation_version_name="Ł"),
        AsyncOperationsWindow(invoked=65536, performed=0),
        AsyncOperationsWindow(invoked=0, performed=-1),
        PresentationContextRq(context_id=256, abstract_syntax="1", transfer_syntaxes=()),
        PresentationContextRq(context_id=1, abstract_syntax="Ł", transfer_syntaxes=()),
        PresentationContextAc(context_id=1, result=256, transfer_syntax="1"),
        PresentationContextAc(context_id=1, result=0, transfer_syntax=None),
        RoleSelection(sop_class_uid="1" * 65536, scu=True, scp=True),
        UserIdentityRq(identity_type=256, response_requested=False, primary=b""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_encoded_is_a_local_fault(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        value.encode()


def test_the_largest_item_is_encoded() -> None:
    assert encode_item(0x99, bytes(65535)) == b"\x99\0\xff\xff" + bytes(65535)
