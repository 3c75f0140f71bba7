"""Datasets in another transfer syntax: made-up ones octet for octet, pydicom's files value for value."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmhaul.errors import CannotReencode
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.reencode import DEPTH_MAX, UNCOMPRESSED, Reencoder
from dcmhaul.objects.reencoded import DatasetStream, reencode_instance
from tests.archive.made import decode
from tests.datasets import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    TRUNCATED,
    UNDEFINED,
    RealFile,
    element,
    header,
    item,
    part10,
    plain_dataset,
    real_files,
    sequence,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataset import Dataset

UNITS = {"AT": 2, "OW": 2, "SS": 2, "US": 2, "FL": 4, "UL": 4, "SL": 4, "FD": 8, "UV": 8}


def reencode(data: bytes, source: str, target: str, size: int = 1 << 20) -> bytes:
    reencoder = Reencoder(source, target)
    out = [piece for i in range(0, len(data), size) for piece in reencoder.feed(data[i : i + size])]
    return b"".join([*out, *reencoder.finish()])


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    data = deflater.compress(data) + deflater.flush()
    return data + b"\0" * (len(data) % 2)


def inflate(data: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(data)


# -- made-up datasets, octet for octet --------------------------------------------------------------

# Tag, VR of the dictionary, octets of little endian. A sequence has a list of items, each a tree.
PUBLIC = [
    (0x00080005, "CS"),
    (0x00100010, "PN"),
    (0x00200032, "DS"),
    (0x00280010, "US"),
    (0x00186020, "SL"),
    (0x00189073, "FD"),
    (0x00280009, "AT"),
    (0x00720067, "OF"),
    (0x7FE00010, "OW"),
]
SEQUENCES = [0x00081115, 0x00400275, 0x52009230]

values = st.binary(max_size=24).map(lambda value: value[: len(value) // 8 * 8])
plain = st.tuples(st.sampled_from(PUBLIC), values).map(lambda drawn: (*drawn[0], drawn[1]))
trees: st.SearchStrategy[list[Any]] = st.recursive(
    st.lists(plain, max_size=4),
    lambda inner: st.lists(
        plain
        | st.tuples(
            st.sampled_from(SEQUENCES),
            st.just("SQ"),
            st.lists(inner, max_size=3),
            st.booleans(),
            st.booleans(),
        ),
        max_size=4,
    ),
    max_leaves=12,
)


def written(tree: list[Any], syntax: str, *, lengths: bool) -> bytes:
    """A tree's octets; lengths: sequences and items are of defined length where the tree says so."""
    big = syntax == BIG_ENDIAN
    explicit = syntax != IMPLICIT
    out = []
    for tag, vr, content, *defined in tree:
        told = vr if explicit else None
        if vr != "SQ":
            unit = {**UNITS, "OF": 4}.get(vr, 1)
            if big and unit > 1:
                content = b"".join(
                    content[i : i + unit][::-1] for i in range(0, len(content), unit)
                )
            out.append(element(tag, told, content, big=big))
            continue
        of_sequence, of_items = defined
        items = [written(inner, syntax, lengths=lengths) for inner in content]
        if lengths and of_items:
            body = b"".join(element(ITEM, None, one, big=big) for one in items)
        else:
            body = b"".join(item(one, big=big) for one in items)
        if (lengths and of_sequence) or not body:
            # Nothing in it needs no delimiter; that is how it is given out, too.
            out.append(
                header(tag, told, len(body), big=big) + body
                if lengths and of_sequence
                else header(tag, told, UNDEFINED, big=big) + header(SEQUENCE_END, None, 0, big=big)
            )
        else:
            out.append(sequence(tag, told, body, big=big))
    return b"".join(out)


def expected(tree: list[Any], syntax: str) -> bytes:
    """As written without lengths, but for empty sequences that had one of 0."""
    big = syntax == BIG_ENDIAN
    out = b""
    for one in tree:
        if one[1] == "SQ" and not one[2] and one[3]:
            out += header(one[0], None if syntax == IMPLICIT else "SQ", 0, big=big)
        elif one[1] == "SQ":
            items = b"".join(item(expected(inner, syntax), big=big) for inner in one[2])
            out += sequence(one[0], None if syntax == IMPLICIT else "SQ", items, big=big)
        else:
            out += written([one], syntax, lengths=False)
    return out


@given(
    tree=trees,
    source=st.sampled_from([IMPLICIT, EXPLICIT, BIG_ENDIAN]),
    target=st.sampled_from([IMPLICIT, EXPLICIT, BIG_ENDIAN]),
    size=st.integers(1, 64),
)
def test_nested_datasets(tree: list[Any], source: str, target: str, size: int) -> None:
    # The first element tells implicit from explicit, as in files; here it is always the same.
    tree = [(0x00080008, "CS", b"ORIGINAL"), *tree]
    data = written(tree, source, lengths=True)
    assert reencode(data, source, target, size) == expected(tree, target)
    if source == EXPLICIT:
        assert reencode(deflate(data), DEFLATED, target, size) == expected(tree, target)


def test_deflated_both_ways() -> None:
    data = plain_dataset()
    out = reencode(data, EXPLICIT, DEFLATED)
    assert len(out) % 2 == 0
    assert inflate(out) == data
    assert reencode(out, DEFLATED, IMPLICIT, 3) == plain_dataset(vrs=False)


def test_the_deflated_is_not_held_whole() -> None:
    """What inflates a thousandfold is given out a piece at a time."""
    bomb = deflate(plain_dataset() + header(0x7FE00010, "OW", 64 << 20) + bytes(64 << 20))
    reencoder = Reencoder(DEFLATED, BIG_ENDIAN)
    pieces = [len(piece) for piece in reencoder.feed(bomb)]
    assert max(pieces) <= 1 << 19
    assert sum(pieces) > 64 << 20


@pytest.mark.parametrize("target", [EXPLICIT, BIG_ENDIAN])
def test_what_no_dictionary_knows_becomes_un(target: str) -> None:
    big = target == BIG_ENDIAN
    data = (
        element(0x00080008, None, b"ORIGINAL")
        + element(0x00090010, None, b"ACME")
        + element(0x00091001, None, b"\1\2\3\4")
        + sequence(0x00091002, None, item(element(0x00100020, None, b"ID")))
        + element(0x00100099, None, b"?!")
    )
    assert reencode(data, IMPLICIT, target) == (
        element(0x00080008, "CS", b"ORIGINAL", big=big)
        + element(0x00090010, "LO", b"ACME", big=big)
        + element(0x00091001, "UN", b"\1\2\3\4", big=big)
        + sequence(
            0x00091002, "SQ", item(element(0x00100020, "LO", b"ID", big=big), big=big), big=big
        )
        + element(0x00100099, "UN", b"?!", big=big)
    )


def test_an_unknown_vr_becomes_un() -> None:
    data = element(0x00080008, "CS", b"AB") + struct.pack(
        "<HH2sxxI4s", 0x0009, 0x1001, b"ZZ", 4, b"1234"
    )
    assert reencode(data, EXPLICIT, EXPLICIT) == element(0x00080008, "CS", b"AB") + element(
        0x00091001, "UN", b"1234"
    )


def test_an_un_of_undefined_length_is_implicit_little_endian_within() -> None:
    """PS3.5 §6.2.2, whatever is around it."""
    inner = item(element(0x00280010, None, b"\x10\0"))
    for big, source in ((False, EXPLICIT), (True, BIG_ENDIAN)):
        start = element(0x00080008, "CS", b"AB", big=big)
        data = start + header(0x00091002, "UN", UNDEFINED, big=big) + inner
        data += header(SEQUENCE_END, None, 0) + element(0x00280011, "US", b"\0\0", big=big)
        assert reencode(data, source, EXPLICIT) == (
            element(0x00080008, "CS", b"AB")
            + sequence(0x00091002, "SQ", item(element(0x00280010, "US", b"\x10\0")))
            + element(0x00280011, "US", b"\0\0")
        )


def test_a_long_value_of_a_short_vr_becomes_un() -> None:
    text = b"1\\" * 40_000
    start = element(0x00080008, None, b"AB")
    out = reencode(start + element(0x00283006, None, text), IMPLICIT, EXPLICIT)
    assert out[10:] == element(0x00283006, "OW", text)
    out = reencode(start + element(0x00200032, None, text), IMPLICIT, EXPLICIT)
    assert out[10:] == element(0x00200032, "UN", text)
    out = reencode(start + element(0x00200032, None, text), IMPLICIT, BIG_ENDIAN)
    assert out[10:] == element(0x00200032, "UN", text, big=True)
    assert reencode(out, BIG_ENDIAN, IMPLICIT) == start + element(0x00200032, None, text)
    # Numbers, whose byte order nobody could tell under an UN.
    numbers = start + element(0x00280010, None, text)
    assert reencode(numbers, IMPLICIT, EXPLICIT)[10:] == element(0x00280010, "UN", text)
    with pytest.raises(CannotReencode, match="VR US above 65534 octets, which becomes UN"):
        reencode(numbers, IMPLICIT, BIG_ENDIAN)


@pytest.mark.parametrize(("representation", "vr"), [(0, "US"), (1, "SS")])
def test_pixel_representation_tells_us_from_ss(representation: int, vr: str) -> None:
    data = (
        element(0x00280103, None, struct.pack("<H", representation))
        + element(0x00280106, None, b"\1\0")
        + sequence(0x00289145, None, item(element(0x00280106, None, b"\2\0")))
    )
    out = reencode(element(0x00080008, None, b"AB") + data, IMPLICIT, EXPLICIT)
    assert out[10:] == (
        element(0x00280103, "US", struct.pack("<H", representation))
        + element(0x00280106, vr, b"\1\0")
        + sequence(0x00289145, "SQ", item(element(0x00280106, vr, b"\2\0")))
    )


def test_group_lengths_are_left_out_and_odd_lengths_made_even() -> None:
    data = element(0x00080000, "UL", b"\0\0\0\0") + element(0x00080008, "CS", b"ODD")
    data += element(0x0020000D, "UI", b"1.2") + element(0x00280010, "US", b"\0\1")
    assert reencode(data, EXPLICIT, IMPLICIT) == (
        element(0x00080008, None, b"ODD ")
        + element(0x0020000D, None, b"1.2\0")
        + element(0x00280010, None, b"\0\1")
    )


FAULTS = {
    "ends within an element": element(0x00080008, "CS", b"AB")[:-1],
    "ends within an element or a sequence": header(0x00081115, "SQ", UNDEFINED),
    "an encapsulated value": sequence(0x7FE00010, "OB", element(ITEM, None, b"")),
    "runs past the sequence": header(0x00081115, "SQ", 10) + element(ITEM, None, b"12345678"),
    "was expected in a sequence": header(0x00081115, "SQ", UNDEFINED)
    + element(0x00080008, None, b""),
    "outside a sequence": header(ITEM_END, None, 0),
    "no multiple of 2 octets": element(0x00280010, "US", b"123"),
    "nested too deeply": (header(0x00081115, "SQ", UNDEFINED) + header(ITEM, None, UNDEFINED))
    * (DEPTH_MAX + 1),
}


@pytest.mark.parametrize("text", FAULTS)
def test_what_cannot_be_said_is_a_fault(text: str) -> None:
    with pytest.raises(CannotReencode, match=text):
        reencode(element(0x00080008, "CS", b"AB") + FAULTS[text], EXPLICIT, BIG_ENDIAN)


def test_faults_of_deflated_and_compressed_datasets() -> None:
    with pytest.raises(CannotReencode, match="the deflate stream has no end"):
        reencode(deflate(plain_dataset())[:-9], DEFLATED, IMPLICIT)
    with pytest.raises(CannotReencode, match="broken deflate stream"):
        reencode(b"\xff" * 20, DEFLATED, IMPLICIT)
    with pytest.raises(CannotReencode, match="RLE Lossless is no uncompressed transfer syntax"):
        Reencoder("1.2.840.10008.1.2.5", IMPLICIT)


# -- pydicom's files, value for value ---------------------------------------------------------------

FILES = [
    file
    for file in real_files()
    if file.syntax in UNCOMPRESSED
    and file.path.name not in TRUNCATED
    and not file.path.name.startswith("DICOMDIR")
]


def parsed(data: bytes, syntax: str) -> Dataset:
    if syntax == DEFLATED:
        data, syntax = inflate(data), EXPLICIT
    return decode(data, syntax)


def plainly(dataset: Dataset, *, big: bool) -> list[tuple[Any, ...]]:
    """The elements without what a syntax may change: words in memory, UN and its kin, group lengths."""
    found: list[tuple[Any, ...]] = []
    for one in dataset:
        if not one.tag.element:
            continue
        if one.VR == "SQ":
            found.append((one.tag, [plainly(inner, big=big) for inner in one.value]))
        elif one.VR == "OW" and big:
            swapped = bytearray(one.value)
            swapped[::2], swapped[1::2] = one.value[1::2], one.value[::2]
            found.append((one.tag, bytes(swapped)))
        elif one.VR in ("US", "SS", "UN") and one.tag.is_private:
            found.append((one.tag,))
        else:
            found.append((one.tag, one.value))
    return found


@pytest.mark.parametrize("target", UNCOMPRESSED)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path.name)
def test_pydicom_finds_the_same_values(file: RealFile, target: str) -> None:
    source = file.syntax
    out = reencode(file.dataset, source, target)
    assert reencode(file.dataset, source, target, 999) == out or target == DEFLATED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = plainly(parsed(file.dataset, source), big=source == BIG_ENDIAN)
        after = plainly(parsed(out, target), big=target == BIG_ENDIAN)
    told = {(one[0]): one for one in before}
    for one in after:
        # A private value whose VR implicit VR does not carry is bytes, and may be read as such.
        if one != told[one[0]]:
            assert one[0].is_private, one[0]
            assert IMPLICIT in (source, target), one[0]
    assert [one[0] for one in before] == [one[0] for one in after]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path.name)
def test_there_and_back_is_the_same(file: RealFile) -> None:
    same = reencode(file.dataset, file.syntax, EXPLICIT)
    for target in (BIG_ENDIAN, DEFLATED):
        there = reencode(same, EXPLICIT, target)
        assert reencode(there, target, EXPLICIT) == same


# -- instances ---------------------------------------------------------------------------------------


def large_file(path: Path, length: int) -> Path:
    """A file with so many octets of pixels, sparse on the disk."""
    head = part10(plain_dataset() + header(0x7FE00010, "OW", length))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + length)
    return path


@pytest.mark.parametrize("target", [IMPLICIT, BIG_ENDIAN])
def test_a_large_instance_is_never_in_memory(tmp_path: Path, target: str) -> None:
    length = 128 << 20
    instance = open_instance(large_file(tmp_path / "large.dcm", length))
    reencoded = reencode_instance(instance, target)
    assert isinstance(reencoded.dataset, DatasetStream)
    tracemalloc.start()
    try:
        given = sum(len(chunk) for chunk in reencoded.dataset.chunks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        reencoded.close()
    assert given == reencoded.length > length
    assert peak < 4 << 20


def test_a_small_instance_is_made_at_once(tmp_path: Path) -> None:
    path = tmp_path / "small.dcm"
    path.write_bytes(part10(plain_dataset()))
    reencoded = reencode_instance(open_instance(path), IMPLICIT)
    assert reencoded.dataset == plain_dataset(vrs=False)
    assert reencoded.length == len(plain_dataset(vrs=False))
    assert (reencoded.label, reencoded.sop_instance_uid) == (str(path), "1.2.3.4")


def test_a_deflated_instance_tells_its_length_when_it_is_made(tmp_path: Path) -> None:
    instance = open_instance(large_file(tmp_path / "large.dcm", 1 << 20))
    reencoded = reencode_instance(instance, DEFLATED)
    assert isinstance(reencoded.dataset, DatasetStream)
    data = b"".join(reencoded.dataset.chunks())
    assert 0 < reencoded.length == len(data) < 1 << 16
    assert len(inflate(data)) == instance.length
    reencoded.close()


def test_a_file_that_shrinks_meanwhile_is_the_end_of_its_stream(tmp_path: Path) -> None:
    path = large_file(tmp_path / "large.dcm", 1 << 20)
    reencoded = reencode_instance(open_instance(path), IMPLICIT)
    assert isinstance(reencoded.dataset, DatasetStream)
    chunks = reencoded.dataset.chunks()
    next(chunks)
    with path.open("r+b") as file:
        file.truncate(1 << 19)
    with pytest.raises(EOFError, match="became shorter"):
        list(chunks)
    reencoded.close()
