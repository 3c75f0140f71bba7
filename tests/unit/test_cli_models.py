"""Matches as `find` prints them."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from dcmhaul import uids
from dcmhaul.cli.keys import Step
from dcmhaul.cli.models import PlainMatches, cell, json_object, quiet_pydicom
from dcmhaul.services.identifiers import decode_identifier


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydicom.config.settings._reading_validation_mode", None)
    quiet_pydicom()


def test_values_that_break_the_rules_of_their_vr_stay_in_json() -> None:
    raw = b"".join(
        (
            b"\x08\x00\x20\x00DA\x06\x00hello ",
            b"\x08\x00\x60\x00CS\x16\x00longer than 16 letters",
            b"\x10\x00\x10\x00PN\x08\x00A^B\x1b[31m",
            b"\x20\x00\x0d\x00UI\x04\x001.x\x00",
        )
    )
    assert json_object(dcmread(BytesIO(raw), force=True)) == {
        "00080020": {"vr": "DA", "Value": ["hello"]},
        "00080060": {"vr": "CS", "Value": ["longer than 16 letters"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B\x1b[31m"}]},
        "0020000D": {"vr": "UI", "Value": ["1.x"]},
    }


# -- matches read without datasets --------------------------------------------------------------

TAGS = {
    0x00080005: "CS",
    0x00080020: "DA",
    0x0008002A: "DT",
    0x00080030: "TM",
    0x00080052: "CS",
    0x00080054: "AE",
    0x00080061: "CS",
    0x00081030: "LO",
    0x00100010: "PN",
    0x00100020: "LO",
    0x00101010: "AS",
    0x00101030: "DS",
    0x00104000: "LT",
    0x0020000D: "UI",
    0x00201208: "IS",
    0x00280010: "US",
    0x00091001: "LO",
}
VALUES = st.one_of(
    st.binary(max_size=12),
    st.text("AB1^=\\ .*0-é\0", max_size=12).map(lambda text: text.encode("latin_1")),
    st.from_regex(rb"[0-9A-Z^]{1,8}( [A-Z]{1,5})?(\\[A-Z]{1,4})?", fullmatch=True),
    st.from_regex(rb"[0-9]{1,6}(\.[0-9]{1,3})?", fullmatch=True),
)


def match(elements: dict[int, bytes], *, implicit: bool) -> bytes:
    """A dataset with these values, made even as their VRs have it."""
    parts = []
    for tag, value in sorted(elements.items()):
        if len(value) % 2:
            value += b"\0" if TAGS[tag] == "UI" else b" "
        parts.append(tag.to_bytes(4, "big")[1::-1] + tag.to_bytes(4, "big")[:1:-1])
        if implicit:
            parts.append(len(value).to_bytes(4, "little"))
        else:
            parts.append(TAGS[tag].encode() + len(value).to_bytes(2, "little"))
        parts.append(value)
    return b"".join(parts)


@pytest.mark.filterwarnings("ignore")
@given(st.dictionaries(st.sampled_from(sorted(TAGS)), VALUES), st.booleans())
def test_plain_matches_are_what_pydicom_makes_of_them(
    elements: dict[int, bytes], implicit: bool
) -> None:
    data = match(elements, implicit=implicit)
    syntax = uids.IMPLICIT_VR_LITTLE_ENDIAN if implicit else uids.EXPLICIT_VR_LITTLE_ENDIAN
    paths = [(Step(tag),) for tag in TAGS if tag != 0x00080005]
    plain = PlainMatches(paths)
    cells = plain.cells(data, syntax)
    if cells is not None:
        dataset = decode_identifier(data, syntax)
        assert cells == [cell(dataset, path) for path in paths]
    plain.json_object(data, syntax)
    found = plain.json_object(data, syntax)
    if found is not None:
        assert found == json_object(decode_identifier(data, syntax))


ANSWER = {
    0x00080020: b"20240102",
    0x00080052: b"STUDY",
    0x00080061: b"CT\\MR",
    0x00100010: b"Doe^Jane Mary",
    0x00100020: b"",
    0x0020000D: b"1.2.840.1",
    0x00201208: b"20",
}


@pytest.mark.parametrize("implicit", [False, True])
def test_what_archives_answer_is_plain(implicit: bool) -> None:
    data = match(ANSWER, implicit=implicit)
    syntax = uids.IMPLICIT_VR_LITTLE_ENDIAN if implicit else uids.EXPLICIT_VR_LITTLE_ENDIAN
    plain = PlainMatches([(Step(0x00100010),), (Step(0x00080061),), (Step(0x00100030),)])
    assert plain.cells(data, syntax) == ["Doe^Jane Mary", "CT\\MR", ""]
    assert plain.json_object(data, syntax) is None  # not all of its tags are known yet
    found = plain.json_object(data, syntax)
    assert found is not None
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane Mary"}]}
    assert found["00100020"] == {"vr": "LO"}
    assert found["00201208"] == {"vr": "IS", "Value": [20]}


def test_what_is_not_plain() -> None:
    explicit = uids.EXPLICIT_VR_LITTLE_ENDIAN
    data = match(ANSWER, implicit=False)
    many = PlainMatches([(Step(tag),) for tag in range(0x00100000, 0x00100400)])
    assert many.cells(data, explicit) is None
    nested = PlainMatches([(Step(0x00400100, 0), Step(0x00080060))])
    assert nested.cells(data, explicit) is None
    plain = PlainMatches([(Step(0x00100010),)])
    assert plain.cells(data[:-1], explicit) is None
    assert plain.cells(match({0x00100010: b"Yamada=\x1b$B"}, implicit=False), explicit) is None
    assert plain.cells(data + match({0x00100010: b"Again"}, implicit=False), explicit) is None
    assert plain.cells(match({0x00100010: b"A" * 5000}, implicit=False), explicit) is None
