"""Keys as typed become an identifier that goes out as typed, in every uncompressed syntax."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dcmhaul.cli.keys import (
    Element,
    Identifier,
    Step,
    build_identifier,
    columns,
    dump_lines,
    encode_identifier,
    parse_key,
)
from dcmhaul.cli.queryfiles import read_query_file
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

PATIENT_NAME = 0x00100010
SPS = 0x00400100


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("0x0010,0x0010=HEAD EXP2", (Step(PATIENT_NAME),), "HEAD EXP2"),
        ("0010,0010=V", (Step(PATIENT_NAME),), "V"),
        ("(0010,0010)=V", (Step(PATIENT_NAME),), "V"),
        ("(0x0010,0x0010)=V", (Step(PATIENT_NAME),), "V"),
        ("10,10=V", (Step(PATIENT_NAME),), "V"),
        ("PatientName=V", (Step(PATIENT_NAME),), "V"),
        ("PatientName", (Step(PATIENT_NAME),), None),
        ("0010,0020=", (Step(0x00100020),), ""),
        ("PatientName=A=B=C", (Step(PATIENT_NAME),), "A=B=C"),
        ("PatientName=-v", (Step(PATIENT_NAME),), "-v"),
        ("0020,000d=1.2.3", (Step(0x0020000D),), "1.2.3"),
        ("0040,0100[0].0008,0060=CT", (Step(SPS, 0), Step(0x00080060)), "CT"),
        ("(0040,0100)[0].Modality=CT", (Step(SPS, 0), Step(0x00080060)), "CT"),
        (
            "ScheduledProcedureStepSequence[1].Modality=CT",
            (Step(SPS, 1), Step(0x00080060)),
            "CT",
        ),
        ("ScheduledProcedureStepSequence[0]", (Step(SPS, 0),), None),
        ("0x0009,0x1010=x", (Step(0x00091010),), "x"),
    ],
)
def test_forms_of_a_key(text: str, path: tuple[Step, ...], value: str | None) -> None:
    assert parse_key(text) == (path, value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=V",
        "PatientNam=V",
        "patientname=V",
        "0010=V",
        "0010,=V",
        "(0010,0010=V",
        "0010,0010)=V",
        "0010,00100=V",
        "0010;0010=V",
        "ScheduledProcedureStepSequence.Modality=CT",
        "ScheduledProcedureStepSequence[].Modality=CT",
        "ScheduledProcedureStepSequence[0]Modality=CT",
        "ScheduledProcedureStepSequence[0].=CT",
        "ScheduledProcedureStepSequence[999].Modality=CT",
    ],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_key(text)


@pytest.mark.parametrize(
    "key",
    [
        "PatientName[0].Modality=CT",
        "ScheduledProcedureStepSequence=CT",
        "ScheduledProcedureStepSequence[0]=CT",
        "Rows=many",
        "Rows=70000",
        "PixelData=abc",
    ],
)
def test_a_key_that_cannot_be_built(key: str) -> None:
    with pytest.raises(ConfigurationError):
        build_identifier([key])


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("Rows=99999999", "-k Rows: US takes whole numbers from 0 to 65535, not '99999999'"),
        (
            "PixelPaddingRangeLimit=x",
            "-k PixelPaddingRangeLimit: US takes whole numbers from 0 to 65535, not 'x'",
        ),
        (
            "ReferencePixelX0=2147483648",
            "-k ReferencePixelX0: SL takes whole numbers from -2147483648 to 2147483647, "
            "not '2147483648'",
        ),
        ("DimensionIndexPointer=12", "-k DimensionIndexPointer: AT takes tags gggg,eeee, not '12'"),
        ("RecommendedDisplayFrameRateInFloat=x", "FL takes numbers, not 'x'"),
        (
            "0010,00=x",
            "-k 0010,00 is the length of group 0010: UL takes whole numbers from 0 to 4294967295, "
            "not 'x'",
        ),
    ],
)
def test_what_a_value_may_be_is_said(key: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        build_identifier([key])


def decode(data: bytes, syntax: str) -> Dataset:
    if syntax == DEFLATED:
        import zlib

        data = zlib.decompressobj(wbits=-15).decompress(data)
    return read_dataset(BytesIO(data), syntax == IMPLICIT, syntax != BIG)


KEYS = [
    "PatientName=DOE*",
    "PatientID",
    "StudyDate=20150101-20191231",
    "StudyInstanceUID=1.2.3\\4.5",
    "ScheduledProcedureStepSequence[0].Modality=CT",
    "ScheduledProcedureStepSequence[0].ScheduledStationAETitle",
    "Rows=512",
    "0009,1010=PRIVATE",
    "FrameIncrementPointer=0018,1063",
    "SeriesNumber=1-5",
    "PatientAge=whatever",
]


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
def test_pydicom_reads_what_we_encode(syntax: str) -> None:
    encoded = encode_identifier(build_identifier(KEYS), syntax)
    assert len(encoded) % 2 == 0
    found = decode(encoded, syntax)
    assert list(found.keys()) == sorted(found.keys())
    assert found.PatientName == "DOE*"
    assert found.PatientID == ""
    assert found.StudyDate == "20150101-20191231"
    assert list(found.StudyInstanceUID) == ["1.2.3", "4.5"]
    assert found.ScheduledProcedureStepSequence[0].Modality == "CT"
    assert found.ScheduledProcedureStepSequence[0].ScheduledStationAETitle == ""
    assert found.Rows == 512
    assert found.FrameIncrementPointer == 0x00181063
    # IS and AS hold what their VR forbids: it goes out as typed.
    assert b"1-5 " in encoded or syntax == DEFLATED
    assert b"whatever" in encoded or syntax == DEFLATED
    assert b"PRIVATE\0" in encoded or syntax == DEFLATED


def test_the_last_of_equal_keys_holds() -> None:
    identifier = build_identifier(["PatientName=A", "PatientID=1", "PatientName=B"])
    assert identifier.text(PATIENT_NAME) == "B"


def test_text_beyond_ascii_names_its_character_set() -> None:
    found = decode(encode_identifier(build_identifier(["PatientName=Müller"]), EXPLICIT), EXPLICIT)
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.PatientName == "Müller"


def test_text_is_encoded_in_the_character_set_that_was_typed() -> None:
    keys = ["SpecificCharacterSet=ISO_IR 100", "PatientName=Müller", "RequestAttributesSequence[0]"]
    encoded = encode_identifier(build_identifier(keys), EXPLICIT)
    assert b"M\xfcller" in encoded
    assert decode(encoded, EXPLICIT).PatientName == "Müller"


def test_a_character_set_that_cannot_hold_the_text() -> None:
    identifier = build_identifier(["SpecificCharacterSet=ISO_IR 100", "PatientName=山田"])
    with pytest.raises(ConfigurationError, match="character set"):
        encode_identifier(identifier, EXPLICIT)


def test_columns_are_in_the_order_typed() -> None:
    identifier = build_identifier(
        [
            "0008,0052=STUDY",
            "StudyInstanceUID",
            "PatientName=A*",
            "ScheduledProcedureStepSequence[0].Modality",
            "0009,1010",
        ]
    )
    assert [name for name, _ in columns(identifier)] == [
        "StudyInstanceUID",
        "PatientName",
        "ScheduledProcedureStepSequence[0].Modality",
        "(0009,1010)",
    ]


def test_the_dump_is_in_dcmtks_layout() -> None:
    identifier = build_identifier(["Rows=5", "PatientName=A", "RequestAttributesSequence[0]"])
    assert list(dump_lines(identifier)) == [
        "(0010,0010) PN [A]                                      # PatientName",
        "(0028,0010) US 5                                        # Rows",
        "(0040,0275) SQ (Sequence #=1)                           # RequestAttributesSequence",
        "  (fffe,e000) na (Item #=0)",
        "  (fffe,e00d) na (ItemDelimitationItem)",
        "(fffe,e0dd) na (SequenceDelimitationItem)",
    ]


def query(character_set: str | None = None) -> Dataset:
    dataset = Dataset()
    if character_set is not None:
        dataset.SpecificCharacterSet = character_set
    dataset.QueryRetrieveLevel = "STUDY"
    dataset.PatientName = "DOE^J*"
    dataset.Rows = 7
    dataset.FrameIncrementPointer = 0x00181063
    item = Dataset()
    item.Modality = "CT"
    item.NumberOfFrames = None
    dataset.ScheduledProcedureStepSequence = Sequence([item])
    return dataset


@pytest.mark.parametrize(
    ("syntax", "meta"),
    [(syntax, meta) for syntax in (IMPLICIT, EXPLICIT, BIG) for meta in (True, False)],
)
def test_a_query_file_comes_through(tmp_path: Path, syntax: str, meta: bool) -> None:
    path = tmp_path / "query.dcm"
    dataset = query()
    if meta:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        dataset.save_as(path, enforce_file_format=False)
    else:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = syntax != BIG, syntax == IMPLICIT
        write_dataset(buffer, dataset)
        path.write_bytes(buffer.getvalue())
    identifier = build_identifier(["PatientName=SMITH", "PatientID"], read_query_file(str(path)))
    for out in (IMPLICIT, EXPLICIT, BIG):
        found = decode(encode_identifier(identifier, out), out)
        assert found.QueryRetrieveLevel == "STUDY"
        assert found.PatientName == "SMITH"
        assert found.PatientID == ""
        assert found.Rows == 7
        assert found.FrameIncrementPointer == 0x00181063
        assert found.ScheduledProcedureStepSequence[0].Modality == "CT"


def test_a_query_file_is_not_changed_by_its_keys(tmp_path: Path) -> None:
    base = build_identifier(["ScheduledProcedureStepSequence[0].Modality=CT"])
    build_identifier(["ScheduledProcedureStepSequence[0].Modality=MR"], base)
    items = base.elements[SPS].value
    assert isinstance(items, list)
    assert items[0].text(0x00080060) == "CT"


@pytest.mark.parametrize("content", [b"", b"this is not DICOM, whatever one does with it"])
def test_what_is_no_query_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.dcm"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="no query file: neither DICOM"):
        read_query_file(str(path))
    with pytest.raises(ConfigurationError, match="No such file"):
        read_query_file(str(tmp_path / "absent"))


def test_a_value_that_explicit_vr_cannot_hold() -> None:
    identifier = Identifier({0x0020000D: Element(0x0020000D, "UI", "1." * 40000)})
    with pytest.raises(ConfigurationError, match="longer than 65535"):
        encode_identifier(identifier, EXPLICIT)
    assert len(encode_identifier(identifier, IMPLICIT)) == 80008
