"""The content of a dataset: the same however it is encoded, another where anything is said otherwise."""

from __future__ import annotations

import struct
import warnings
import zlib
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.charset import convert_encodings
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dcmhaul.objects import canonical
from dcmhaul.objects.canonical import COERCIBLE, ContentDigest, DatasetDigest, ElementDigests
from dcmhaul.wire._canonical import Canonicaliser, ElementClasses
from dcmhaul.wire._elements import ElementFault
from tests.datasets import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    RealFile,
    element,
    header,
    item,
    plain_dataset,
    real_files,
    sequence,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

REAL = [file for file in real_files() if file.path.name != "DICOMDIR-nooffset"]
CLASSES = ElementClasses(
    {0x00100010: 2, 0x00200013: 2, 0x00280010: 1, 0x00081140: 3, 0x60003000: 1, 0x7FE00010: 1}
)
PRIVATE = 0x00091001


def content(data: bytes, syntax: str = EXPLICIT, step: int = 0) -> ContentDigest | None:
    digest = DatasetDigest(syntax, content=True)
    for i in range(0, len(data), step or max(1, len(data))):
        digest.update(data[i : i + (step or len(data))])
    return digest.content()


def canonical_bytes(data: bytes, *, explicit: bool | None = None, big: bool = False) -> bytes:
    walk = Canonicaliser(CLASSES, explicit, big_endian=big)
    out = walk.feed(data)
    walk.finish()
    return out + walk.feed(b"")


def differing(first: bytes, second: bytes, syntax: str = EXPLICIT) -> set[int]:
    both = []
    for data in (first, second):
        digests = ElementDigests(syntax)
        digests.update(data)
        found = digests.digests()
        assert found is not None
        both.append(found)
    return {tag for tag in both[0].keys() | both[1].keys() if both[0].get(tag) != both[1].get(tag)}


def encoded_again(file: RealFile, *, implicit: bool) -> bytes:
    """By pydicom, every element decoded, so that lengths and VRs are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(file.path, force=True)
        dataset.walk(lambda _dataset, _element: None)
        out = DicomBytesIO()
        out.is_implicit_VR = implicit
        out.is_little_endian = True
        character_set = dataset.get("SpecificCharacterSet", "ISO_IR 6") or "ISO_IR 6"
        write_dataset(out, dataset, convert_encodings(character_set))
    return bytes(out.getvalue())


@cache
def readable() -> tuple[RealFile, ...]:
    """Little endian: pydicom does not turn the bytes of OW when it changes the order."""
    return tuple(
        file
        for file in REAL
        if file.syntax != BIG_ENDIAN and content(file.dataset, file.syntax) is not None
    )


def test_most_real_files_have_a_content() -> None:
    assert len(readable()) > 120


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.filterwarnings("ignore")
def test_real_files_encoded_again_say_the_same(implicit: bool) -> None:
    syntax = IMPLICIT if implicit else EXPLICIT
    compared = 0
    for file in readable():
        try:
            again = encoded_again(file, implicit=implicit)
        except Exception:  # what pydicom cannot write says nothing of us
            continue
        assert content(again, syntax) == content(file.dataset, file.syntax), file.path.name
        compared += again != file.dataset
    assert compared > 15


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_it_does_not_matter_how_the_bytes_are_cut(step: int) -> None:
    for name in ("CT_small.dcm", "rtplan.dcm", "JPEG2000.dcm", "MR_small_bigendian.dcm"):
        [file] = [f for f in REAL if f.path.name == name]
        assert content(file.dataset, file.syntax, step) == content(file.dataset, file.syntax)


def test_the_byte_order_leaves_no_trace() -> None:
    # The pixels of both were made by another toolkit than ours and pydicom's.
    [little] = [f for f in REAL if f.path.name == "MR_small.dcm"]
    [big] = [f for f in REAL if f.path.name == "MR_small_bigendian.dcm"]
    assert content(little.dataset, little.syntax) == content(big.dataset, big.syntax)


@given(
    st.lists(st.binary(min_size=0, max_size=12), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_big_endian_numbers_in_any_cut(values: list[bytes], step: int) -> None:
    vrs = ["US", "UL", "FD", "OB", "OW", "SV"]
    little = big = b""
    for number, value in enumerate(values):
        vr, unit = vrs[number % 6], [2, 4, 8, 1, 2, 8][number % 6]
        value = value[: len(value) // unit * unit]
        turned = b"".join(value[i : i + unit][::-1] for i in range(0, len(value), unit))
        little += element(0x00280010 + number, vr, value)
        big += element(0x00280010 + number, vr, turned, big=True)
    assert content(big, BIG_ENDIAN, step) == content(little, EXPLICIT)


def test_a_broken_number_in_big_endian_stays_as_it_is() -> None:
    value = canonical_bytes(element(0x00280010, "US", b"\1\2\3", big=True), explicit=True, big=True)
    assert value.startswith(b"\2\1\3")


# -- the same -----------------------------------------------------------------------------------

SAME = [
    (element(0x00100010, "PN", b"Doe^J "), element(0x00100010, "PN", b"Doe^J")),
    (element(0x00100010, "PN", b"Doe^J \0 "), element(0x00100010, None, b"Doe^J ")),
    (element(0x00100010, "UN", b"Doe^J "), element(0x00100010, "PN", b"Doe^J ")),
    (
        element(0x00100000, "UL", struct.pack("<I", 14)) + element(0x00100010, "PN", b"AB"),
        element(0x00100010, "PN", b"AB"),
    ),
    (
        element(0x00100010, "PN", b"AB"),
        element(0x00100010, "PN", b"AB") + element(0xFFFCFFFC, "OB", bytes(30)),
    ),
    (element(0x00081140, "SQ", b""), sequence(0x00081140, "SQ")),
    (element(0x00081140, "SQ", b""), element(0x00081140, None, b"")),
    (
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AB"))),
        element(0x00081140, "SQ", element(ITEM, None, element(0x00100010, "PN", b"AB"))),
    ),
    (
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AB")), item()),
        element(
            0x00081140,
            None,
            element(ITEM, None, element(0x00100010, None, b"AB ")) + element(ITEM, None, b""),
        ),
    ),
    (  # a sequence that its writer knew nothing of
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AB"))),
        element(0x00081140, "UN", element(ITEM, None, element(0x00100010, None, b"AB"))),
    ),
    (  # and of undefined length
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AB"))),
        sequence(0x00081140, "UN", item(element(0x00100010, None, b"AB"))),
    ),
    (  # a private one, whose VR implicit form does not carry
        sequence(PRIVATE, "SQ", item(element(0x00100010, "PN", b"AB"))),
        element(PRIVATE, None, element(ITEM, None, element(0x00100010, None, b"AB"))),
    ),
    (
        sequence(PRIVATE, "SQ", item(element(0x00100010, "PN", b"AB"))),
        element(PRIVATE, "UN", item(element(0x00100010, "PN", b"AB"))),
    ),
    (element(PRIVATE, "LO", b"AB12CD34"), element(PRIVATE, None, b"AB12CD34")),
    (element(0x00090010, "LO", b"CREATOR "), element(0x00090010, None, b"CREATOR\0")),
    (element(0x60023000, "OB", b"ABCD"), element(0x60023000, None, b"ABCD")),
    (  # the offset table is a matter of lengths
        sequence(0x7FE00010, "OB", element(ITEM, None, b""), element(ITEM, None, b"FRAG")),
        sequence(0x7FE00010, "OB", element(ITEM, None, bytes(4)), element(ITEM, None, b"FRAG")),
    ),
]


@pytest.mark.parametrize(("first", "second"), SAME)
@pytest.mark.parametrize("step", [0, 1, 5])
def test_the_same_content(first: bytes, second: bytes, step: int) -> None:
    one = content(first)
    assert one is not None
    assert content(second, step=step) == one


# -- another ------------------------------------------------------------------------------------

OTHER = [
    (element(0x00100010, "PN", b"AB"), element(0x00100010, "PN", b"AC")),
    (element(0x00100010, "PN", b"AB"), element(0x00100010, "PN", b"")),
    (element(0x00100010, "PN", b" AB "), element(0x00100010, "PN", b"AB")),
    (element(0x00100010, "PN", b"AB"), element(0x00100020, "LO", b"AB")),
    (element(0x00100010, "PN", b""), b""),
    (element(0x00280010, "US", b"A "), element(0x00280010, "US", b"A\0")),
    (element(0x00280010, "US", b"\0\0"), element(0x00280010, "US", b"")),
    (element(PRIVATE, "LO", b"AB"), element(PRIVATE, "LO", b"A ")),
    (
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AB"))),
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AC"))),
    ),
    (sequence(0x00081140, "SQ", item()), sequence(0x00081140, "SQ", item(), item())),
    (
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AB")), item()),
        sequence(0x00081140, "SQ", item(), item(element(0x00100010, "PN", b"AB"))),
    ),
    (
        sequence(0x00081140, "SQ", item()) + element(0x00100010, "PN", b"AB"),
        sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"AB"))),
    ),
    (
        sequence(0x7FE00010, "OB", element(ITEM, None, b""), element(ITEM, None, b"FRAG")),
        sequence(0x7FE00010, "OB", element(ITEM, None, b""), element(ITEM, None, b"FRAH")),
    ),
    (
        sequence(0x7FE00010, "OB", element(ITEM, None, b""), element(ITEM, None, b"FRAG")),
        element(0x7FE00010, "OB", b"FRAG"),
    ),
]


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_another_content(first: bytes, second: bytes) -> None:
    one, two = content(first), content(second)
    assert one is not None
    assert two is not None
    assert one.content != two.content
    assert differing(first, second)


def test_one_changed_byte_of_a_real_file_is_seen_and_its_element_named() -> None:
    [file] = [f for f in REAL if f.path.name == "CT_small.dcm"]
    data = file.dataset
    at = data.index(b"CompressedSamples^CT1")
    changed = data[:at] + b"X" + data[at + 1 :]
    assert content(changed) != content(data)
    assert differing(data, changed) == {0x00100010}
    pixels = data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]
    assert differing(data, pixels) == {0x7FE00010}
    assert content(pixels) != content(data)


def test_where_an_object_is_kept_is_no_part_of_what_it_says() -> None:
    base = plain_dataset()
    moved = element(0x00080016, "UI", b"1.2\0") + element(0x00080054, "AE", b"NEWPACS ")
    other = element(0x00080016, "UI", b"1.2\0") + element(0x00080054, "AE", b"OLD ")
    one, two, none = content(moved), content(other), content(moved[:12])
    assert one is not None
    assert two is not None
    assert none is not None
    assert one.content == two.content == none.content
    assert len({one.coercible, two.coercible, none.coercible}) == 3
    assert differing(moved, other) == {0x00080054}
    assert all(isinstance(tag, int) and text for tag, text in COERCIBLE.items())
    assert content(base) != content(moved)


def test_a_coercible_element_within_a_sequence_counts() -> None:
    def nested(value: bytes) -> bytes:
        return sequence(0x00081140, "SQ", item(element(0x00080054, "AE", value)))

    assert content(nested(b"AB")) != content(nested(b"AC"))


# -- deflated -----------------------------------------------------------------------------------


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("step", [0, 1, 100])
def test_a_deflated_dataset_says_what_it_said_before(step: int) -> None:
    data = plain_dataset(extra=element(0x7FE00010, "OW", bytes(range(256)) * 4000))
    packed = deflated(data) + b"\0"
    assert content(packed, DEFLATED, step) == content(data)


def test_a_bomb_and_a_broken_stream_have_no_content() -> None:
    bomb = deflated(element(0x7FE00010, "OW", bytes(120_000_000)))
    assert content(bomb, DEFLATED) is None
    assert content(b"\xff" * 100, DEFLATED) is None
    digests = ElementDigests(DEFLATED)
    digests.update(b"\xff" * 100)
    digests.update(b"more")
    assert digests.digests() is None


# -- what is no dataset -------------------------------------------------------------------------

BROKEN = [
    b"\x08\x00\x16",
    element(0x00100010, "PN", b"AB")[:-1],
    header(0x00081140, "SQ", UNDEFINED),
    header(0x00081140, "SQ", UNDEFINED) + element(0x00100010, "PN", b"AB"),
    sequence(0x00081140, "SQ", header(ITEM, None, 4) + element(0x00100010, "PN", b"AB")),
    element(0x00081140, "SQ", header(ITEM, None, 8) + b"1234"),
    element(0x00081140, "SQ", b"1234"),
    element(0x00081140, "SQ", element(SEQUENCE_END, None, b"")),
    element(0x00081140, "SQ", element(ITEM, None, element(ITEM_END, None, b""))),
    element(ITEM_END, None, b"") + bytes(4),
    header(0x00100010, "PN", 2) + b"AB" + header(SEQUENCE_END, None, 0),
    header(0x00100020, "UT", UNDEFINED),
    sequence(0x7FE00010, "OB", header(ITEM, None, UNDEFINED)),
    header(0x00081140, "SQ", 10)
    + header(ITEM, None, UNDEFINED)
    + b"\x10\x00\x10\x00PN\x08\x00" * 2,
    b"".join(
        header(0x00081140, "SQ", UNDEFINED) + header(ITEM, None, UNDEFINED) for _ in range(65)
    ),
]


@pytest.mark.parametrize("data", BROKEN)
def test_what_is_no_dataset_has_no_content(data: bytes) -> None:
    assert content(data) is None
    assert content(data, step=1) is None
    digests = ElementDigests(EXPLICIT)
    digests.update(data)
    assert digests.digests() is None


def test_a_fault_stays() -> None:
    walk = Canonicaliser(CLASSES)
    with pytest.raises(ElementFault, match="delimiter") as first:
        walk.feed(element(ITEM_END, None, b""))
    assert first.value.offset == 0
    for again in (lambda: walk.feed(b""), walk.finish, lambda: walk.feed_elements(b"")):
        with pytest.raises(ElementFault, match="delimiter"):
            again()


@given(
    st.binary(max_size=200), st.integers(1, 20), st.sampled_from([None, True, False]), st.booleans()
)
def test_any_bytes_give_the_same_result_in_any_cut(
    data: bytes, step: int, explicit: bool | None, big: bool
) -> None:
    def run(pieces: Iterable[bytes]) -> tuple[bytes, str]:
        walk = Canonicaliser(CLASSES, explicit, big_endian=big)
        out = b""
        try:
            for piece in pieces:
                out += walk.feed(piece)
            walk.finish()
        except ElementFault as fault:
            return b"", str(fault)
        return out + walk.feed(b""), ""

    assert run([data]) == run(data[i : i + step] for i in range(0, len(data), step))


# -- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1000, 65_000])
def test_a_run_of_spaces_above_the_limit_is_content(step: int) -> None:
    def text(spaces: int) -> bytes:
        return element(0x0040A160, "UT", b"AB" + b" " * spaces)

    assert content(text(60_000), step=step) == content(text(0))
    assert content(text(70_000), step=step) == content(text(70_000))
    assert content(text(70_000), step=step) != content(text(0))


def test_no_value_is_kept() -> None:
    walk = Canonicaliser(CLASSES)
    size = 1 << 16
    out = len(walk.feed(header(0x7FE00010, "OB", 1000 * size)))
    for _ in range(1000):
        given_on = len(walk.feed(bytes(size)))
        assert given_on >= size
        out += given_on
    walk.finish()
    assert out == 1000 * size + 13


def test_only_the_three_classes_are_taken() -> None:
    with pytest.raises(ValueError, match="1, 2 or 3"):
        ElementClasses({1: 4})


def test_the_dictionary_knows_the_repeating_groups() -> None:
    dictionary = canonical._dictionary()
    walk = Canonicaliser(dictionary, True)
    walk.feed(element(0x60020022, "LO", b"OVERLAY "))
    walk.finish()
    again = Canonicaliser(dictionary, False)
    assert again.feed(element(0x60020022, None, b"OVERLAY")).startswith(b"OVERLAY")


def test_pieces_carry_the_tag_of_the_outermost_element() -> None:
    data = (
        element(0x00100010, "PN", b"AB  ")
        + sequence(0x00081140, "SQ", item(element(0x00100010, "PN", b"CD")))
        + element(0x7FE00010, "OB", b"1234")
    )
    walk = Canonicaliser(CLASSES)
    pieces: list[tuple[int, bytes]] = []
    for i in range(0, len(data), 3):
        pieces += walk.feed_elements(data[i : i + 3])
    walk.finish()
    assert b"".join(piece for _, piece in pieces) == canonical_bytes(data)
    assert list(dict.fromkeys(tag for tag, _ in pieces)) == [0x00100010, 0x00081140, 0x7FE00010]
