"""Command sets: one case list in both directions, the reference codec, pynetdicom, broken input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom._dicom_dict import DicomDictionary
from pynetdicom import dimse_messages, dimse_primitives

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.wire import command
from dcmhaul.wire.command import (
    ELEMENTS,
    CommandLayout,
    decode_command_set,
    encode_command_set,
)
from tests.reference import codec
from tests.reference.codec import command_element as element
from tests.reference.strategies import command_sets

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = {
    "C-ECHO-RQ": (
        {
            "AffectedSOPClassUID": "1.2.840.10008.1.1",
            "CommandField": 0x0030,
            "MessageID": 7,
            "CommandDataSetType": 0x0101,
        },
        "00000000 04000000 38000000"
        "00000200 12000000 312e322e3834302e31303030382e312e3100"
        "00000001 02000000 3000"
        "00001001 02000000 0700"
        "00000008 02000000 0101",
    ),
    "C-STORE-RSP with a failure": (
        {
            "AffectedSOPClassUID": "1.2",
            "CommandField": 0x8001,
            "MessageIDBeingRespondedTo": 0xFFFF,
            "CommandDataSetType": 0x0101,
            "Status": 0xA700,
            "OffendingElement": (0x00080018, 0x7FE00010),
            "ErrorComment": "full",
            "AffectedSOPInstanceUID": "1.2.3.4",
        },
        "00000000 04000000 60000000"
        "00000200 04000000 312e3200"
        "00000001 02000000 0180"
        "00002001 02000000 ffff"
        "00000008 02000000 0101"
        "00000009 02000000 00a7"
        "00000109 08000000 08001800 e07f1000"
        "00000209 04000000 66756c6c"
        "00000010 08000000 312e322e332e3400",
    ),
    "C-MOVE-RQ": (
        {
            "AffectedSOPClassUID": "1.22",
            "CommandField": 0x0021,
            "MessageID": 1,
            "MoveDestination": "DST",
            "Priority": 2,
            "CommandDataSetType": 1,
        },
        "00000000 04000000 40000000"
        "00000200 04000000 312e3232"
        "00000001 02000000 2100"
        "00001001 02000000 0100"
        "00000006 04000000 44535420"
        "00000007 02000000 0200"
        "00000008 02000000 0100",
    ),
    "nothing": ({}, "00000000 04000000 00000000"),
}
BROKEN = {
    "wrong group": element(0x0100, b"\x01\0", group=8),
    "odd length": element(0x0002, b"1.2"),
    "past the end": element(0x0002, b"1.2\0")[:-1],
    "length of all ones": bytes.fromhex("00000200 ffffffff"),
    "explicit VR": bytes.fromhex("00000000") + b"UL\x04\0" + bytes(4),
    "ends inside a header": element(0x0110, b"\x01\0") + b"\0\0\x20",
    "repeated": element(0x0110, b"\x01\0") * 2,
    "repeated, not side by side": element(0x0110, b"\1\0")
    + element(0x0700, b"\0\0")
    + element(0x0110, b"\1\0"),
    "unknown one repeated": element(0x0850, b"\x01\0") * 2,
    "US of four octets": element(0x0110, bytes(4)),
    "UL of two octets": element(0x0000, bytes(2)),
    "AT of six octets": element(0x0901, bytes(6)),
}


def known(values: dict[str, Any]) -> dict[str, Any]:
    return {keyword: value for keyword, value in values.items() if keyword != "CommandGroupLength"}


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in values.items()}


def decode_slowly(octets: bytes) -> dict[str, Any]:
    """Without the extension, which declines all but regular sets."""
    with patch.object(command, "_commands", SimpleNamespace(decode=lambda _: None)):
        return decode_command_set(octets)


def verdict(decode: Callable[[bytes], dict[str, Any]], octets: bytes) -> object:
    """The values, or source and reason of the abort."""
    try:
        return plain(decode(octets))
    except (codec.Malformed, RemoteProtocolError) as exc:
        return exc.source, exc.reason


@pytest.mark.parametrize(("values", "text"), CASES.values(), ids=CASES.keys())
def test_case_both_ways(values: dict[str, Any], text: str) -> None:
    octets = bytes.fromhex(text)
    assert encode_command_set(values) == octets
    decoded = decode_command_set(octets)
    assert decoded.pop("CommandGroupLength") == len(octets) - 12
    assert decoded == values


def test_table_equals_the_elements_that_pydicom_calls_current() -> None:
    current = {
        keyword: (tag, vr)
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items()
        if tag < 0x10000 and not retired
    }
    assert dict(ELEMENTS) == current


@given(command_sets)
@settings(deadline=None)
def test_round_trip_and_reference(values: dict[str, Any]) -> None:
    octets = encode_command_set(values)
    assert known(decode_command_set(octets)) == values
    assert octets == codec.encode_command(plain(values))
    assert codec.decode_command(octets) == plain(decode_command_set(octets))
    assert decode_slowly(octets) == decode_command_set(octets)


@given(command_sets)
@settings(deadline=None)
def test_a_layout_encodes_the_same(values: dict[str, Any]) -> None:
    layout = CommandLayout(values)
    assert set(layout.keywords) == set(values)
    ordered = tuple(values[keyword] for keyword in layout.keywords)
    assert layout.encode(ordered) == encode_command_set(values)
    blank = tuple(None for _ in values)
    assert layout.encode(blank) == encode_command_set({})


@given(st.binary(max_size=80) | st.lists(st.sampled_from(list(BROKEN.values()))).map(b"".join))
@example(b"")
@settings(deadline=None)
def test_any_octets_give_values_or_a_user_abort(octets: bytes) -> None:
    expected = verdict(codec.decode_command, octets)
    assert verdict(decode_command_set, octets) == expected
    assert verdict(decode_slowly, octets) == expected
    assert isinstance(expected, dict) or expected == (0, 0)


@given(command_sets.flatmap(lambda values: st.permutations(list(values.items()))))
@settings(deadline=None)
def test_order_of_the_mapping_does_not_matter(items: list[tuple[str, Any]]) -> None:
    assert encode_command_set(dict(items)) == codec.encode_command(plain(dict(items)))


@pytest.mark.parametrize("octets", BROKEN.values(), ids=BROKEN.keys())
def test_broken_set_is_a_user_abort(octets: bytes) -> None:
    for prefix in (b"", element(0x0002, b"1.2\0")):
        if prefix and octets.startswith(prefix[:4]):
            continue
        with pytest.raises(RemoteProtocolError) as caught:
            decode_command_set(prefix + octets)
        assert (caught.value.source, caught.value.reason) == (0, 0)


def test_a_layout_falls_back_where_a_value_is_not_regular() -> None:
    values: dict[str, Any] = {
        "Status": 0xA900,
        "OffendingElement": (0x00080018,),
        "ErrorComment": "über",
    }
    layout = CommandLayout(values)
    assert layout.encode(tuple(values.values())) == encode_command_set(values)


def test_elements_out_of_order_are_tolerated() -> None:
    octets = element(0x0700, b"\2\0") + element(0x0110, b"\1\0") + element(0x0002, b"1.2\0")
    assert decode_command_set(octets) == {
        "Priority": 2,
        "MessageID": 1,
        "AffectedSOPClassUID": "1.2",
    }


def test_unknown_elements_are_skipped_and_empty_numbers_count_as_absent() -> None:
    octets = (
        element(0x0000, b"")
        + element(0x0001, bytes(4))
        + element(0x0110, b"")
        + element(0x0902, b"")
        + element(0x5010, b"ID")
    )
    assert decode_command_set(octets) == {"ErrorComment": ""}


def test_none_is_left_out_and_foreign_characters_are_replaced() -> None:
    octets = encode_command_set({"MessageID": None, "ErrorComment": "Łódź", "Priority": None})
    assert known(decode_command_set(octets)) == {"ErrorComment": "?ód?"}


@pytest.mark.parametrize(
    "values",
    [
        {"PatientName": "x"},
        {"CommandGroupLength": 4},
        {"Status": 0, "Unheard": 1, "MessageID": 2},
        {"MessageID": 65536},
        {"MessageID": -1},
        {"MessageID": 1 << 64},
        {"MessageID": -1 << 64},
        {"MessageID": "1"},
        {"AffectedSOPClassUID": 12},
        {"ErrorComment": b"bytes"},
        {"OffendingElement": 0x00080018},
        {"OffendingElement": (1 << 32,)},
        {"OffendingElement": "0008,0018"},
    ],
    ids=str,
)
def test_what_cannot_be_encoded_is_a_local_fault(values: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        encode_command_set(values)
    if all(keyword in ELEMENTS for keyword in values):
        layout = CommandLayout(values)
        with pytest.raises(LocalProtocolError):
            layout.encode(tuple(values[keyword] for keyword in layout.keywords))


def peer_message(message: str, **values: Any) -> bytes:
    """The command set that pynetdicom sends for a message with these values."""
    primitive_type, _, kind = message.rpartition("_")
    primitive = getattr(dimse_primitives, primitive_type)()
    for keyword, value in values.items():
        setattr(primitive, keyword, value)
    if kind == "RSP":
        primitive.MessageIDBeingRespondedTo = 5
    else:
        primitive.MessageID = 5
    dimse = getattr(dimse_messages, message)()
    dimse.primitive_to_message(primitive)
    fragments = [
        value[1:]
        for p_data in dimse.encode_msg(1, 16384)
        for _, value in p_data.presentation_data_value_list
        if value[0] & 1
    ]
    return b"".join(fragments)


COMMON = {"AffectedSOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}
PEER_CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("C_ECHO_RQ", 0x0030, {}),
    ("C_STORE_RQ", 0x0001, {"Priority": 2, "AffectedSOPInstanceUID": "1.2.3"}),
    ("C_STORE_RSP", 0x8001, {"Status": 0xB000, "AffectedSOPInstanceUID": "1.2.34"}),
    ("C_FIND_RSP", 0x8020, {"Status": 0xA900, "ErrorComment": "no level"}),
    ("C_MOVE_RQ", 0x0021, {"Priority": 0, "MoveDestination": "ELSEWHERE"}),
    (
        "C_GET_RSP",
        0x8010,
        {
            "Status": 0xFF00,
            "NumberOfRemainingSuboperations": 3,
            "NumberOfCompletedSuboperations": 2,
            "NumberOfFailedSuboperations": 0,
            "NumberOfWarningSuboperations": 1,
        },
    ),
]


@pytest.mark.parametrize(
    ("message", "field", "values"), PEER_CASES, ids=[case[0] for case in PEER_CASES]
)
def test_pynetdicom_encodes_the_same(message: str, field: int, values: dict[str, Any]) -> None:
    number = "MessageIDBeingRespondedTo" if message.endswith("RSP") else "MessageID"
    ours = {**COMMON, **values, "CommandField": field, number: 5, "CommandDataSetType": 0x0101}
    assert encode_command_set(ours) == peer_message(message, **COMMON, **values)
