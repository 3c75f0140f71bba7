"""The walk over element headers: against pydicom, in any split, and on bytes that are no dataset."""

from __future__ import annotations

import io
import itertools
import random
import struct
from typing import Any

import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement

from dcmhaul.wire._elements import ElementFault, ElementWalker, glance, probe
from dcmhaul.wire.part10 import actual_syntax, clean_uid, parse_file_meta
from tests.datasets import (
    BIG_ENDIAN,
    DEFLATED,
    FILES,
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

# pydicom warns of what is odd in some of its own files, and calls struct with bytes formats.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::BytesWarning"),
]

REAL = [file for file in real_files() if file.syntax != DEFLATED]
WHOLE = [file for file in REAL if file.path.name not in TRUNCATED]
CAPTURE = (0x00080016, 0x00080018, 0x00100010, 0x0020000D)

NESTED = (
    element(0x00080005, "CS", b"ISO_IR 100")
    + sequence(
        0x00081115,
        "SQ",
        item(element(0x0020000E, "UI", b"1.2\0"), sequence(0x00081199, "SQ", item())),
        element(ITEM, None, element(0x00080018, "UI", b"1.3\0")),
    )
    + element(0x00100010, "PN", b"")
    + element(0x00400275, "SQ", element(ITEM, None, b"12345678"))
    + sequence(0x7FE00010, "OB", element(ITEM, None, b""), element(ITEM, None, b"\xff\xd8" * 9))
)


def walk(data: bytes, cuts: list[int] | None = None, **options: Any) -> ElementWalker:
    """Feeds `data`, cut at the offsets given, without finishing."""
    walker = ElementWalker(**options)
    edges = [0, *(cuts or []), len(data)]
    for start, end in itertools.pairwise(edges):
        walker.feed(data[start:end])
    return walker


def state(walker: ElementWalker) -> tuple[Any, ...]:
    return (
        walker.position,
        walker.elements,
        walker.captured,
        walker.vrs,
        walker.skip,
        walker.depth,
        walker.stopped,
        walker.explicit,
    )


def outcome(data: bytes, cuts: list[int], **options: Any) -> object:
    """What a walk ends with: its state, or the text of its fault, which names the offset."""
    walker = ElementWalker(**options)
    edges = [0, *cuts, len(data)]
    try:
        for start, end in itertools.pairwise(edges):
            walker.feed(data[start:end])
        walker.finish()
    except ElementFault as fault:
        return str(fault)
    return state(walker)


def pydicom_elements(file: RealFile) -> list[tuple[int, int | None]]:
    """Tag and length field of each top-level element; None where pydicom has not kept the length."""
    dataset = pydicom.dcmread(file.path, force=True)
    found: list[tuple[int, int | None]] = []
    for tag in sorted(dataset.keys()):
        raw: Any = dataset.get_item(tag)
        if isinstance(raw, RawDataElement):
            found.append((int(tag), raw.length))
        else:
            found.append((int(tag), UNDEFINED if raw.is_undefined_length else None))
    return found


def test_there_are_enough_real_files() -> None:
    assert len(WHOLE) > 140


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.path.name)
def test_real_files_have_the_elements_that_pydicom_finds(file: RealFile) -> None:
    data = file.dataset
    walker = walk(data, big_endian=file.syntax == BIG_ENDIAN, record=True, capture=CAPTURE)
    walker.finish()
    expected = pydicom_elements(file)
    assert [tag for tag, _vr, _length in walker.elements] == [tag for tag, _length in expected]
    for (tag, _vr, length), (_tag, known) in zip(walker.elements, expected, strict=True):
        assert known is None or length == known, hex(tag)
    assert walker.position == len(data)
    dataset = pydicom.dcmread(file.path, force=True)
    for tag in CAPTURE:
        raw: Any = dataset.get_item(tag) if tag in dataset else None
        if isinstance(raw, RawDataElement) and raw.length <= 1024:
            assert walker.captured[tag] == (raw.value or b"")


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.path.name)
def test_real_files_give_the_same_in_any_split(file: RealFile) -> None:
    data = file.dataset
    options: dict[str, Any] = {
        "big_endian": file.syntax == BIG_ENDIAN,
        "record": True,
        "capture": CAPTURE,
    }
    whole = state(walk(data, **options))
    rng = random.Random(len(data))
    if len(data) < 200_000:
        assert state(walk(data, list(range(1, len(data))), **options)) == whole
    for _ in range(5):
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 200)))
        assert state(walk(data, cuts, **options)) == whole


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.path.name)
def test_jumping_over_values_gives_the_same_as_feeding_them(file: RealFile) -> None:
    data = file.dataset
    options: dict[str, Any] = {
        "big_endian": file.syntax == BIG_ENDIAN,
        "record": True,
        "capture": CAPTURE,
    }
    walker = ElementWalker(**options)
    offset = fed = 0
    while offset < len(data):
        if walker.skip:
            offset += walker.skip
            walker.jump(walker.skip)
            continue
        piece = data[offset : offset + 12]
        walker.feed(piece)
        offset += len(piece)
        fed += len(piece)
    walker.finish()
    assert offset == len(data)
    assert state(walker) == state(walk(data, **options))
    assert fed <= len(data)


@pytest.mark.parametrize("name", sorted(TRUNCATED))
def test_truncated_real_files_are_faults(name: str) -> None:
    (file,) = (file for file in REAL if file.path.name == name)
    with pytest.raises(ElementFault, match="ends within"):
        walk(file.dataset).finish()


def boundaries(data: bytes, elements: list[bytes]) -> set[int]:
    """The offsets between `elements`, which make up `data`."""
    assert b"".join(elements) == data
    found = {0}
    for encoded in elements:
        found.add(max(found) + len(encoded))
    return found


def test_a_cut_at_any_byte_is_a_fault_or_a_clean_prefix() -> None:
    elements = [
        element(0x00080005, "CS", b"ISO_IR 100"),
        sequence(0x00081115, "SQ", item(element(0x0020000E, "UI", b"1.2\0")), item()),
        element(0x00100010, "PN", b""),
        element(0x00400275, "SQ", element(ITEM, None, b"12345678")),
        sequence(0x7FE00010, "OB", element(ITEM, None, b""), element(ITEM, None, b"\xff\xd8" * 9)),
    ]
    data = b"".join(elements)
    clean = boundaries(data, elements)
    for length in range(len(data) + 1):
        walker = walk(data[:length], record=True)
        if length in clean:
            walker.finish()
            assert walker.position == length
        else:
            with pytest.raises(ElementFault):
                walker.finish()


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "nested_priv_SQ.dcm", "priv_SQ.dcm", "UN_sequence.dcm", "rtplan.dcm"]
)
def test_real_files_cut_at_any_byte(name: str) -> None:
    """What finishes without a fault is a prefix that pydicom reads in the same way."""
    (file,) = (file for file in WHOLE if file.path.name == name)
    data = file.dataset[:4096]
    full = walk(file.dataset, record=True).elements
    finished = 0
    for length in range(len(data)):
        walker = walk(data[:length], record=True)
        try:
            walker.finish()
        except ElementFault:
            continue
        finished += 1
        assert walker.elements == full[: len(walker.elements)]
        assert walker.position == length
        if length:
            again = pydicom.filereader.read_dataset(
                io.BytesIO(data[:length]), not walker.explicit, True
            )
            assert sorted(map(int, again.keys())) == [tag for tag, _, _ in walker.elements]
    assert finished <= len(full) + 1


def test_nested_levels_and_captured_values() -> None:
    walker = walk(NESTED, record=True, capture=(0x00080005, 0x00100010, 0x0020000E))
    walker.finish()
    assert walker.elements == [
        (0x00080005, "CS", 10),
        (0x00081115, "SQ", UNDEFINED),
        (0x00100010, "PN", 0),
        (0x00400275, "SQ", 16),
        (0x7FE00010, "OB", UNDEFINED),
    ]
    # The Series Instance UID within the sequence is not the dataset's.
    assert walker.captured == {0x00080005: b"ISO_IR 100", 0x00100010: b""}
    assert walker.vrs == {0x00080005: "CS", 0x00100010: "PN"}
    assert walker.explicit is True


def test_a_captured_value_may_straddle_many_feeds_and_is_limited() -> None:
    data = element(0x00100010, "PN", b"x" * 64) + element(0x00100020, "LO", b"y" * 66)
    options: dict[str, Any] = {"capture": (0x00100010, 0x00100020), "capture_limit": 64}
    for walker in (walk(data, **options), walk(data, list(range(len(data))), **options)):
        walker.finish()
        assert walker.captured == {0x00100010: b"x" * 64}


def test_a_value_that_is_captured_cannot_be_jumped_over() -> None:
    data = element(0x00100010, "PN", b"x" * 64)
    walker = walk(data[:20], capture=(0x00100010,))
    assert walker.skip == 0
    with pytest.raises(ValueError, match="cannot jump"):
        walker.jump(1)
    walker = walk(data[:20])
    assert walker.skip == 52
    with pytest.raises(ValueError, match="cannot jump"):
        walker.jump(53)
    with pytest.raises(ValueError, match="cannot jump"):
        walker.jump(-1)
    walker.jump(52)
    walker.finish()
    assert walker.position == len(data)


def test_of_a_repeated_tag_the_first_value_is_kept() -> None:
    data = element(0x00100020, "LO", b"AB") + element(0x00100020, "LO", b"CD")
    assert walk(data, capture=(0x00100020,)).captured == {0x00100020: b"AB"}


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("vrs", [False, True])
def test_the_form_is_told_by_the_first_vr(vrs: bool, big: bool) -> None:
    data = element(0x00080018, "UI" if vrs else None, b"1.2\0", big=big)
    walker = walk(data, big_endian=big, capture=(0x00080018,))
    walker.finish()
    assert walker.explicit is vrs
    assert walker.captured == {0x00080018: b"1.2\0"}
    assert ElementWalker().explicit is None


def test_big_endian_sequences() -> None:
    data = sequence(
        0x00081115,
        "SQ",
        item(element(0x00081150, "UI", b"1.2\0", big=True), big=True),
        element(ITEM, None, b"1234", big=True),
        big=True,
    ) + element(0x00280010, "US", b"\2\0", big=True)
    walker = walk(data, big_endian=True, record=True)
    walker.finish()
    assert walker.elements == [(0x00081115, "SQ", UNDEFINED), (0x00280010, "US", 2)]


def test_un_of_undefined_length_holds_implicit_items() -> None:
    """PS3.5 §6.2.2; encoders that kept the explicit form within are understood, too."""
    implicit = item(element(0x00081150, None, b"1.2\0"), sequence(0x00081199, None, item()))
    explicit = item(element(0x00081150, "UI", b"1.2\0"), element(0x00081155, "UI", b"1.3\0"))
    for content in (implicit, explicit):
        data = (
            element(0x00080005, "CS", b"")
            + sequence(0x00091001, "UN", content, content)
            + element(0x00100020, "LO", b"AB")
        )
        walker = walk(data, record=True)
        walker.finish()
        assert [tag for tag, _, _ in walker.elements] == [0x00080005, 0x00091001, 0x00100020]


def test_an_element_without_vr_within_an_explicit_dataset() -> None:
    data = (
        element(0x00080005, "CS", b"AB")
        + element(0x00091001, None, b"1234")
        + element(0x00100020, "LO", b"CD")
    )
    walker = walk(data, record=True)
    walker.finish()
    assert walker.elements == [
        (0x00080005, "CS", 2),
        (0x00091001, None, 4),
        (0x00100020, "LO", 2),
    ]


def test_an_unknown_vr_has_the_long_header_unless_its_length_stands_there() -> None:
    long = struct.pack("<HH2sHI", 0x0009, 0x1001, b"ZZ", 0, 4) + b"1234"
    short = struct.pack("<HH2sH", 0x0009, 0x1002, b"ZZ", 6) + b"123456"
    data = element(0x00080005, "CS", b"AB") + long + short + element(0x00100020, "LO", b"CD")
    walker = walk(data, record=True)
    walker.finish()
    assert walker.elements[1:3] == [(0x00091001, "ZZ", 4), (0x00091002, "ZZ", 6)]


def test_the_walk_stops_before_a_tag_outside_the_bounds() -> None:
    before = element(0x00020010, "UI", b"1.2\0")
    for after in (element(0x00080005, "CS", b"AB"), element(0x00010001, None, b"AB")):
        data = before + after
        for cut in range(len(data)):
            walker = walk(data, [cut], stop_below=0x00020000, stop_above=0x0002FFFF, record=True)
            assert walker.stopped
            assert walker.position == len(before)
            assert walker.elements == [(0x00020010, "UI", 4)]
            walker.feed(b"anything")
            walker.finish()
            assert walker.position == len(before)


def test_bounds_do_not_look_into_sequences() -> None:
    data = sequence(0x00081115, "SQ", item(element(0x0020000E, "UI", b"1.2\0")))
    walker = walk(data + data, stop_above=0x00090000)
    walker.finish()
    assert not walker.stopped


# -- bytes that are no dataset ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text", "offset"),
    [
        (header(ITEM, None, 0), "outside a sequence", 0),
        (element(0x00080005, "CS", b"AB") + header(ITEM_END, None, 0), "outside a sequence", 10),
        (header(SEQUENCE_END, None, 0), "outside a sequence", 0),
        (header(0x00081115, "SQ", UNDEFINED) + element(0x00080005, "CS", b""), "expected", 12),
        (header(0x00081115, "SQ", UNDEFINED) + header(ITEM_END, None, 0), "expected", 12),
        (
            header(0x00081115, "SQ", UNDEFINED)
            + header(ITEM, None, UNDEFINED)
            + header(SEQUENCE_END, None, 0),
            "outside a sequence",
            20,
        ),
        (header(0x00080005, "UT", UNDEFINED), "undefined length", 0),
        (
            header(0x7FE00010, "OB", UNDEFINED) + header(ITEM, None, UNDEFINED),
            "fragment of undefined",
            12,
        ),
        (header(0x7FE00010, "OB", 0xFFFFFFFE) + b"1234", "within an element", 16),
        (header(0x00080005, None, 0xFFFFFFFE), "within an element", 8),
        (header(0x00081115, "SQ", UNDEFINED), "delimiter is missing", 12),
        (header(0x00081115, "SQ", UNDEFINED) + header(ITEM, None, 9), "within an element", 20),
        (b"\x08\0\x05", "within an element", 0),
    ],
)
def test_faults_name_the_cause_and_the_offset(data: bytes, text: str, offset: int) -> None:
    for cuts in ([], list(range(1, len(data)))):
        walker = ElementWalker()
        with pytest.raises(ElementFault, match=text) as caught:
            for start, end in itertools.pairwise([0, *cuts, len(data)]):
                walker.feed(data[start:end])
            walker.finish()
        assert caught.value.offset == offset
        with pytest.raises(ElementFault, match=text):
            walker.feed(b"")
        with pytest.raises(ElementFault, match=text):
            walker.finish()


@pytest.mark.parametrize("vr", [None, "SQ"])
def test_sequences_may_be_nested_64_deep_and_no_deeper(vr: str | None) -> None:
    level = header(0x00081115, vr, UNDEFINED) + header(ITEM, None, UNDEFINED)
    end = header(ITEM_END, None, 0) + header(SEQUENCE_END, None, 0)
    first = element(0x00080005, "CS" if vr else None, b"AB")
    walker = walk(first + level * 64)
    assert walker.depth == 64
    walker.feed(end * 64)
    walker.finish()
    for count in (65, 100_000):
        with pytest.raises(ElementFault, match="nested too deeply") as caught:
            walk(first + level * count)
        assert caught.value.offset == len(first) + 64 * len(level)
    with pytest.raises(ElementFault, match="nested too deeply"):
        walk(first + level * 3, depth_max=2)


def test_closed_sequences_do_not_count_as_depth() -> None:
    walk(sequence(0x00081115, "SQ", item()) * 1000).finish()


def test_the_number_of_elements_can_be_limited() -> None:
    data = element(0x00080005, "CS", b"") * 100
    walk(data, elements_max=100).finish()
    with pytest.raises(ElementFault, match="too many elements") as caught:
        walk(data, elements_max=99)
    assert caught.value.offset == 99 * 8
    items = sequence(0x00081115, "SQ", *[element(ITEM, None, b"")] * 1000)
    with pytest.raises(ElementFault, match="too many elements"):
        walk(items, elements_max=500)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="depth_max"):
        ElementWalker(depth_max=65)
    with pytest.raises(ValueError, match="256 tags"):
        ElementWalker(capture=range(257))
    with pytest.raises(OverflowError):
        ElementWalker(capture=(1 << 33,))
    with pytest.raises(TypeError):
        ElementWalker().feed("text")  # type: ignore[arg-type]


def test_init_again_begins_anew() -> None:
    walker = walk(header(0x00081115, "SQ", UNDEFINED), capture=(1, 2, 3))
    walker.__init__(capture=(0x00100020,))
    walker.feed(element(0x00100020, "LO", b"AB"))
    walker.finish()
    assert walker.captured == {0x00100020: b"AB"}


@given(
    data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=20), big=st.booleans()
)
@example(data=NESTED, cuts=list(range(0, 200, 3)), big=False)
def test_any_bytes_give_the_same_result_or_fault_in_any_split(
    data: bytes, cuts: list[int], big: bool
) -> None:
    options: dict[str, Any] = {
        "capture": CAPTURE,
        "record": True,
        "big_endian": big,
        "capture_limit": 8,
    }
    assert outcome(data, sorted(cuts), **options) == outcome(data, [], **options)


@given(
    seed=st.binary(min_size=1, max_size=40),
    flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8),
    cuts=st.lists(st.integers(0, 300), max_size=10),
)
def test_mutated_datasets_give_the_same_result_or_fault_in_any_split(
    seed: bytes, flips: list[tuple[int, int]], cuts: list[int]
) -> None:
    data = bytearray(NESTED + plain_dataset(extra=seed))
    for position, value in flips:
        data[position % len(data)] = value
    options: dict[str, Any] = {"capture": CAPTURE, "record": True}
    assert outcome(bytes(data), sorted(cuts), **options) == outcome(bytes(data), [], **options)


def test_probe_agrees_with_the_long_way_on_every_file() -> None:
    """Where the one pass says anything, it says what group 0002 and the walk say."""
    said = 0
    for file in real_files():
        data = file.path.read_bytes()
        found = probe(data)
        if found is None:
            continue
        said += 1
        syntax, explicit, offset, sop_class, sop_instance, study, series = found
        assert glance(data) == (syntax, explicit, sop_class)
        assert glance(data[:4096]) == (syntax, explicit, sop_class)
        meta = parse_file_meta(data)
        assert meta.dataset_offset == offset
        assert meta.transfer_syntax_uid == actual_syntax(syntax, explicit)
        walker = ElementWalker(capture=[0x00080016, 0x00080018, 0x0020000D, 0x0020000E])
        walker.feed(data[offset:])
        walker.finish()
        assert [clean_uid(walker.captured[tag]) for tag in sorted(walker.captured)] == [
            sop_class,
            sop_instance,
            study,
            series,
        ]
    assert said > 80


def test_probe_says_nothing_of_a_truncated_file() -> None:
    data = (FILES / "CT_small.dcm").read_bytes()
    assert probe(data) is not None
    for length in range(0, len(data), 7):
        cut = probe(data[:length])
        # A cut between two elements leaves a shorter dataset, which is whole.
        if cut is not None:
            walk(data[cut[2] : length]).finish()


def test_glance_says_nothing_before_the_class() -> None:
    data = (FILES / "CT_small.dcm").read_bytes()
    known = glance(data)
    assert known is not None
    first = next(length for length in range(len(data)) if glance(data[:length]) is not None)
    assert glance(data[:first]) == known
    assert all(glance(data[:length]) is None for length in range(first))


@pytest.mark.parametrize("name", ["DICOMDIR", "image_dfl.dcm", "ExplVR_BigEnd.dcm", "README.txt"])
def test_glance_leaves_what_is_odd_to_the_walker(name: str) -> None:
    (path,) = [p for p in FILES.rglob(name) if p.parent.name in {"test_files", "dicomdirtests"}][:1]
    assert glance(path.read_bytes()) is None


@pytest.mark.parametrize("syntax", [DEFLATED, BIG_ENDIAN])
def test_glance_leaves_what_only_claims_such_a_syntax_to_the_walker(syntax: str) -> None:
    assert glance(part10(plain_dataset())) is not None
    assert glance(part10(plain_dataset(), syntax)) is None


@given(st.binary(max_size=300))
def test_probe_takes_any_bytes(data: bytes) -> None:
    for head in (b"", bytes(128) + b"DICM", bytes(128) + b"DICM\2\0\0\0UL\4\0\0\0\0\0"):
        probe(head + data)
        glance(head + data)
