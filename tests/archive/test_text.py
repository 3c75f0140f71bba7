"""Character sets: ours against pydicom's, and nothing that cannot be read."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom.charset
import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmhaul.archive import text

FOLDER = Path(pydicom.data.__file__).parent / "charset_files"
# These two hold their name in a sequence, where the index does not look.
CHARSET_FILES = [p for p in sorted(FOLDER.glob("*.dcm")) if "SQEncoding" not in p.name]


@pytest.mark.parametrize("path", CHARSET_FILES, ids=lambda path: path.stem)
def test_real_files_as_pydicom_reads_them(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        element = dataset.get_item("PatientName")
        assert element is not None
        expected = str(dataset.PatientName)
        given_set = dataset.get_item("SpecificCharacterSet")
    raw = b"" if given_set is None or given_set.value is None else given_set.value
    if not isinstance(raw, bytes):
        raw = (raw if isinstance(raw, str) else "\\".join(raw)).encode()
    value = element.value if isinstance(element.value, bytes) else element.value.original_string
    # pydicom leaves out a group without characters at the end.
    assert text.decode(value, text.terms(raw)).rstrip("=") == expected


ONE_SET = [
    ("ISO_IR 100", "Äneas^Rüdiger"),
    ("ISO_IR 101", "Wałęsa"),
    ("ISO_IR 126", "Διονυσιος"),
    ("ISO_IR 127", "قباني^لنزار"),
    ("ISO_IR 138", "שרון^דבורה"),
    ("ISO_IR 144", "Люксембург"),
    ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
    ("ISO 2022 IR 100", "Äneas"),
    ("", "Müller"),
]


@pytest.mark.parametrize(("character_set", "name"), ONE_SET)
def test_one_set_can_be_written(character_set: str, name: str) -> None:
    codec = text.codec_of(character_set)
    assert codec is not None
    assert text.decode(name.encode(codec), character_set) == name


@pytest.mark.parametrize("character_set", ["\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87"])
def test_code_extensions_are_not_written(character_set: str) -> None:
    assert text.codec_of(character_set) is None


@given(st.binary(max_size=40), st.sampled_from(["", "ISO_IR 192", "ISO_IR 13", "nonsense", "\\"]))
def test_any_bytes_are_read(value: bytes, character_set: str) -> None:
    decoded = text.decode(value, character_set)
    assert "\0" not in decoded
    assert "\x1b" not in decoded
    decoded.encode("utf_8")


@given(st.binary(max_size=40))
def test_what_the_set_cannot_explain_comes_back_as_it_was(value: bytes) -> None:
    value = value.replace(b"\0", b"").replace(b"\x1b", b"").strip(b" ")
    for character_set in ("", "unknown"):
        codec = text.codec_of(character_set)
        assert codec is not None
        assert text.decode(value, character_set).encode(codec) == value


@given(st.text(max_size=30))
def test_folding_keeps_the_length(value: str) -> None:
    assert len(text.fold(value)) == len(value)


def test_terms_of_a_character_set() -> None:
    assert text.terms(b"ISO_IR 100 ") == "ISO_IR 100"
    assert text.terms(b"\\ISO 2022 IR 87\0") == "\\ISO 2022 IR 87"
    assert text.terms(b"\xff\x00") == ""
