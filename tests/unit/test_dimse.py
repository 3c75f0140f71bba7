"""DIMSE messages: one table, both directions; compared with pydicom's dictionary and pynetdicom's bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pynetdicom import dimse_messages, dimse_primitives

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.protocol import dimse
from dcmhaul.protocol.dimse import MESSAGE_TYPES, CStoreRq, CStoreRsp, MessageIds, decode_message
from dcmhaul.wire.command import ELEMENTS, decode_command_set, encode_command_set

UIDS = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
US = st.integers(0, 0xFFFF)
TEXT = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9 ]{0,10}[A-Za-z0-9])?", fullmatch=True)
TAGS = st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=4).map(tuple)

# Command fields of PS3.7 Table E.1-1.
FIELDS = {
    "CStoreRq": 0x0001,
    "CStoreRsp": 0x8001,
    "CGetRq": 0x0010,
    "CGetRsp": 0x8010,
    "CFindRq": 0x0020,
    "CFindRsp": 0x8020,
    "CMoveRq": 0x0021,
    "CMoveRsp": 0x8021,
    "CEchoRq": 0x0030,
    "CEchoRsp": 0x8030,
    "CCancelRq": 0x0FFF,
    "NEventReportRq": 0x0100,
    "NEventReportRsp": 0x8100,
    "NGetRq": 0x0110,
    "NGetRsp": 0x8110,
    "NSetRq": 0x0120,
    "NSetRsp": 0x8120,
    "NActionRq": 0x0130,
    "NActionRsp": 0x8130,
    "NCreateRq": 0x0140,
    "NCreateRsp": 0x8140,
    "NDeleteRq": 0x0150,
    "NDeleteRsp": 0x8150,
}


def values_of(name: str) -> st.SearchStrategy[Any]:
    if name == "has_dataset":
        return st.booleans()
    if name.endswith("_uid"):
        return UIDS
    if name in {"offending_element", "attribute_identifier_list"}:
        return TAGS
    if name in {"error_comment", "move_destination", "move_originator_application_entity_title"}:
        return TEXT
    return US


@st.composite
def messages(draw: st.DrawFn) -> dimse.DimseMessage:
    kind = draw(st.sampled_from(MESSAGE_TYPES))
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING or draw(st.booleans()):
            arguments[field.name] = draw(values_of(field.name))
    return kind(**arguments)


def rsp(**changes: Any) -> CStoreRsp:
    arguments: dict[str, Any] = {
        "message_id_being_responded_to": 7,
        "status": 0,
        "affected_sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "affected_sop_instance_uid": "1.2.3",
    }
    return CStoreRsp(**(arguments | changes))


def rq(**changes: Any) -> CStoreRq:
    arguments: dict[str, Any] = {
        "message_id": 7,
        "affected_sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "affected_sop_instance_uid": "1.2.3",
    }
    return CStoreRq(**(arguments | changes))


def test_command_fields() -> None:
    assert {kind.__name__: kind.command_field for kind in MESSAGE_TYPES} == FIELDS


def test_every_field_has_its_element() -> None:
    for kind in MESSAGE_TYPES:
        for field in dataclasses.fields(kind):
            if field.name != "has_dataset":
                keyword = dimse._KEYWORDS[field.name]
                assert keyword.lower() == field.name.replace("_", "")
                assert tag_for_keyword(keyword) == ELEMENTS[keyword][0]


@given(messages())
def test_round_trip(message: dimse.DimseMessage) -> None:
    assert decode_message(message.encode()) == message


@given(messages())
def test_the_command_set_is_ascending_and_says_its_length(message: dimse.DimseMessage) -> None:
    data = message.encode()
    assert struct.unpack_from("<HHII", data) == (0, 0, 4, len(data) - 12)
    offset, tags = 0, []
    while offset < len(data):
        group, element, length = struct.unpack_from("<HHI", data, offset)
        assert group == 0
        assert length % 2 == 0
        tags.append(element)
        assert keyword_for_tag(element)
        offset += 8 + length
    assert tags == sorted(set(tags))
    assert offset == len(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_message(data)


@pytest.mark.parametrize(
    "message",
    [
        rq(move_originator_application_entity_title="MOVER", move_originator_message_id=9),
        rq(move_originator_message_id=9),
        rq(has_dataset=False),
        rsp(error_comment="disk full"),
        rsp(offending_element=(0x00100010,)),
        rsp(affected_sop_class_uid=None),
        rsp(affected_sop_instance_uid=None),
        rsp(has_dataset=True),
        rq(affected_sop_class_uid="", affected_sop_instance_uid=""),
    ],
)
def test_unusual_store_messages(message: CStoreRq | CStoreRsp) -> None:
    assert decode_message(message.encode()) == message


@pytest.mark.parametrize("message", [rq(message_id=70000), rsp(status=-1)])
def test_a_number_that_does_not_fit(message: CStoreRq | CStoreRsp) -> None:
    with pytest.raises(LocalProtocolError, match=r"70000|-1"):
        message.encode()


# -- what a peer may leave out, and what not


def without(message: dimse.DimseMessage, keyword: str) -> bytes:
    values = dict(decode_command_set(message.encode()))
    del values["CommandGroupLength"]
    del values[keyword]
    return encode_command_set(values)


@pytest.mark.parametrize("keyword", ["CommandField", "CommandDataSetType", "MessageID"])
def test_what_every_request_needs(keyword: str) -> None:
    with pytest.raises(RemoteProtocolError, match=keyword) as caught:
        decode_message(without(rq(), keyword))
    assert (caught.value.source, caught.value.reason) == (0, 0)


def test_a_response_needs_the_message_id_of_its_request() -> None:
    with pytest.raises(RemoteProtocolError, match="MessageIDBeingRespondedTo"):
        decode_message(without(rsp(), "MessageIDBeingRespondedTo"))


def test_an_unknown_command_field() -> None:
    data = encode_command_set({"CommandField": 0x7777, "CommandDataSetType": 0x0101})
    with pytest.raises(RemoteProtocolError, match="0x7777"):
        decode_message(data)


def test_absent_uids_are_empty_so_that_a_service_can_answer() -> None:
    assert decode_message(without(rq(), "AffectedSOPInstanceUID")) == rq(
        affected_sop_instance_uid=""
    )
    assert decode_message(without(rq(), "AffectedSOPClassUID")) == rq(affected_sop_class_uid="")


def test_an_absent_status_is_no_success() -> None:
    message = decode_message(without(rsp(), "Status"))
    assert isinstance(message, CStoreRsp)
    assert message.status == dimse.STATUS_MISSING


@pytest.mark.parametrize("dataset_type", [0x0000, 0x0001, 0x0102, 0xFFFF])
def test_any_dataset_type_but_0101_promises_a_dataset(dataset_type: int) -> None:
    values = dict(decode_command_set(rq().encode())) | {"CommandDataSetType": dataset_type}
    del values["CommandGroupLength"]
    assert decode_message(encode_command_set(values)).has_dataset


def test_an_error_comment_is_cut_to_an_lo() -> None:
    message = decode_message(rsp(status=0xA700, error_comment="x" * 100).encode())
    assert message == rsp(status=0xA700, error_comment="x" * 64)


def test_an_empty_error_comment_is_left_out() -> None:
    assert decode_message(rsp(error_comment="").encode()) == rsp()


# -- response_to

UID_REQUESTS = [kind for kind in MESSAGE_TYPES if issubclass(kind, dimse.Request)]


@pytest.mark.parametrize("kind", UID_REQUESTS)
def test_each_request_has_its_response(kind: type[dimse.Request]) -> None:
    arguments: dict[str, Any] = {"message_id": 11}
    for field in dataclasses.fields(kind):
        if field.name.endswith("_class_uid"):
            arguments[field.name] = "1.2"
        elif field.name.endswith("_instance_uid"):
            arguments[field.name] = "1.2.3"
        elif field.default is dataclasses.MISSING:
            arguments.setdefault(field.name, 1)
    request = kind(**arguments)
    response = dimse.response_to(request, 0x0211, "no")
    assert response.command_field == kind.command_field | 0x8000
    assert response.message_id_being_responded_to == 11
    assert response.status == 0x0211
    assert response.error_comment == "no"
    assert response.affected_sop_class_uid == "1.2"
    assert not response.has_dataset
    if "affected_sop_instance_uid" in {field.name for field in dataclasses.fields(response)}:
        assert response.affected_sop_instance_uid == "1.2.3"  # type: ignore[attr-defined]


def test_a_response_repeats_no_empty_uid() -> None:
    response = dimse.response_to(rq(affected_sop_instance_uid=""), 0x0117)
    assert response == CStoreRsp(
        message_id_being_responded_to=7,
        status=0x0117,
        affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    )


# -- message IDs


def test_message_ids_count_from_one_and_skip_what_is_outstanding() -> None:
    ids = MessageIds()
    assert [ids.take() for _ in range(3)] == [1, 2, 3]
    assert ids.give_back(2)
    assert not ids.give_back(2)
    assert 2 not in ids
    assert 3 in ids
    assert len(ids) == 2
    for expected in range(4, 65536):
        assert ids.take() == expected
    assert ids.take() == 2
    with pytest.raises(LocalProtocolError, match="65535"):
        ids.take()
    ids.give_back(65535)
    assert ids.take() == 65535


def test_message_ids_continue_with_the_one_that_is_named_or_the_next_free() -> None:
    ids = MessageIds()
    ids.continue_with(7)
    assert [ids.take(), ids.take()] == [7, 8]
    ids.continue_with(7)
    assert ids.take() == 9
    ids.continue_with(65535)
    assert [ids.take(), ids.take()] == [65535, 1]


# -- pynetdicom's encoding is another witness


def pynetdicom_bytes(message: Any, primitive: Any) -> bytes:
    from pynetdicom.dsutils import encode

    message.primitive_to_message(primitive)
    encoded = encode(message.command_set, is_implicit_vr=True, is_little_endian=True)
    assert encoded is not None
    return encoded


def test_a_store_request_of_pynetdicom() -> None:
    primitive = dimse_primitives.C_STORE()
    primitive.MessageID = 12
    primitive.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    primitive.AffectedSOPInstanceUID = "1.2.3.4"
    primitive.Priority = 2
    primitive.DataSet = BytesIO(b"\x08\x00\x05\x00\x00\x00\x00\x00")
    data = pynetdicom_bytes(dimse_messages.C_STORE_RQ(), primitive)
    expected = CStoreRq(
        message_id=12,
        affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.7",
        affected_sop_instance_uid="1.2.3.4",
        priority=dimse.Priority.LOW,
    )
    assert decode_message(data) == expected
    assert expected.encode() == data


def test_a_get_response_of_pynetdicom() -> None:
    primitive = dimse_primitives.C_GET()
    primitive.MessageIDBeingRespondedTo = 3
    primitive.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.2.2.3"
    primitive.Status = 0xFF00
    primitive.NumberOfRemainingSuboperations = 1
    primitive.NumberOfCompletedSuboperations = 2
    primitive.NumberOfFailedSuboperations = 3
    primitive.NumberOfWarningSuboperations = 4
    data = pynetdicom_bytes(dimse_messages.C_GET_RSP(), primitive)
    expected = dimse.CGetRsp(
        message_id_being_responded_to=3,
        affected_sop_class_uid="1.2.840.10008.5.1.4.1.2.2.3",
        status=0xFF00,
        number_of_remaining_suboperations=1,
        number_of_completed_suboperations=2,
        number_of_failed_suboperations=3,
        number_of_warning_suboperations=4,
    )
    assert decode_message(data) == expected
    assert expected.encode() == data
