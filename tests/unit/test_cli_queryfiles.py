"""Dumps as query files: what dcmdump prints and people write, and what is wrong with its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dcmhaul.cli.keys import Identifier, build_identifier, dump_lines, encode_identifier
from dcmhaul.cli.queryfiles import read_query_file
from dcmhaul.errors import ConfigurationError
from tests.archive.made import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

IMPLICIT = "1.2.840.10008.1.2"

NESTED = """
# Dicom-Meta-Information-Header
(0002,0010) UI =LittleEndianExplicit                    #  20, 1 TransferSyntaxUID

# Dicom-Data-Set
# Used TransferSyntax: Little Endian Explicit
(0008,0000) UL 100
(0008,0005) CS [ISO_IR 100]                             #  10, 1 SpecificCharacterSet
(0008,1150) UI =CTImageStorage                          #  26, 1 ReferencedSOPClassUID
(0010,0010) PN [DOE*]                                   #   4, 1 PatientName
(0018,0050) DS (no value available)                     #   0, 0 SliceThickness
(0018,9073) FD 1.5
(0020,9165) AT (0018,9074)\\(0018,9075)                  #   8, 2 DimensionIndexPointer
(0028,0010) US 5\\6                                      #   4, 2 Rows
(0009,1001) OB 00\\ff
(0032,1064) SQ (Sequence with explicit length #=0)      #   0, 1 RequestedProcedureCodeSequence
(fffe,e0dd) na (SequenceDelimitationItem for re-encod.) #   0, 0 SequenceDelimitationItem
(0040,0100) SQ (Sequence with explicit length #=2)      #  26, 1 ScheduledProcedureStepSequence
  (fffe,e000) na (Item with explicit length #=2)          #  18, 1 Item
    (0008,0060) CS [CT]                                     #   2, 1 Modality
    (0040,0008) SQ
      (fffe,e000) na
        (0008,0100) SH [A#]B]
      (fffe,e00d) na
    (fffe,e0dd) na
  (fffe,e00d) na (ItemDelimitationItem for re-encoding)   #   0, 0 ItemDelimitationItem
  (fffe,e000) -
    (0040,0001) AE  AA32\\AA33   # no brackets
(fffe,e0dd) -
(0020,1208)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "query.dump"


def parsed(path: Path, content: str | bytes) -> Identifier:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_query_file(str(path))


def test_what_dcmdump_prints_and_people_write(path: Path) -> None:
    found = parsed(path, NESTED)
    typed = build_identifier(
        [
            "SpecificCharacterSet=ISO_IR 100",
            "ReferencedSOPClassUID=1.2.840.10008.5.1.4.1.1.2",
            "PatientName=DOE*",
            "SliceThickness",
            "(0018,9073)=1.5",
            "DimensionIndexPointer=(0018,9074)\\(0018,9075)",
            "Rows=5\\6",
            "RequestedProcedureCodeSequence",
            "ScheduledProcedureStepSequence[0].Modality=CT",
            "ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence[0].CodeValue=A#]B",
            "ScheduledProcedureStepSequence[1].ScheduledStationAETitle=AA32\\AA33",
            "NumberOfStudyRelatedInstances",
        ]
    )
    private = found.elements.pop(0x00091001)
    assert (private.vr, private.value) == ("OB", b"\x00\xff")
    assert encode_identifier(found, IMPLICIT) == encode_identifier(typed, IMPLICIT)
    again = parsed(path, "\n".join(dump_lines(typed)))
    assert encode_identifier(again, IMPLICIT) == encode_identifier(typed, IMPLICIT)


def test_keys_override_a_dump(path: Path) -> None:
    found = build_identifier(["PatientName=SMITH"], parsed(path, "(0010,0010) PN [DOE]"))
    assert found.text(0x00100010) == "SMITH"


def test_text_beyond_ascii(path: Path) -> None:
    """In the character set that the dump names its bytes go out as they are; else it is UTF-8."""
    named = parsed(path, b"(0008,0005) CS [ISO_IR 100]\n(0010,0010) PN [M\xfcller]\n")
    assert b"M\xfcller" in encode_identifier(named, IMPLICIT)
    sequence = (
        "(0040,0100) SQ\n(fffe,e000) na\n(0040,0006) PN [Bär]\n(fffe,e00d) na\n(fffe,e0dd) na"
    )
    unnamed = encode_identifier(
        parsed(path, f"\ufeff(0010,0010) PN [Müller]\n{sequence}"), IMPLICIT
    )
    assert "Müller".encode() in unnamed
    assert "Bär".encode() in unnamed
    assert b"ISO_IR 192" in unnamed
    neither = encode_identifier(parsed(path, b"(0010,0010) PN [M\xfcller]"), IMPLICIT)
    assert b"M\xfcller" in neither
    assert b"ISO_IR" not in neither


@pytest.mark.parametrize(
    ("lines", "number", "said"),
    [
        ("(0010,0010) PN [A]\nPatientID LO [B]", 2, r"expected \(gggg,eeee\) VR \[value\]"),
        ("\n# x\n(0010,0010) PX [A]", 3, "PX is no VR"),
        ("(0010,0010) PN [A", 1, r"no \] at its end; dcmdump \+L"),
        ("(0028,0010) US [many]", 1, "US takes whole numbers from 0 to 65535, not 'many'"),
        ("(7fe0,0010) OW 0000\\0001", 1, "a value of OW is bytes"),
        ("(0008,1150) UI =NoSuchStorage", 1, "=NoSuchStorage names no UID"),
        ("(0010,0010) PN =SMITH", 1, "names no UID"),
        ("(fffe,e000) na", 1, "outside a sequence"),
        ("(0040,0100) SQ\n(fffe,e00d) na", 2, "outside a sequence"),
        ("(0010,0010) PN [A]\n(fffe,e0dd) na", 2, "outside a sequence"),
        (
            "(0040,0100) SQ\n(fffe,e000) na\n(fffe,e00d) na\n(0010,0010) PN",
            4,
            "an element where an item",
        ),
        ("(0040,0100) SQ\n(fffe,e000) na\n(0008,0060) CS", 3, "the end of the file"),
    ],
)
def test_what_is_wrong_in_a_dump(path: Path, lines: str, number: int, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"query.dump: line {number}: .*{said}"):
        parsed(path, lines)


@pytest.mark.parametrize("length", [3000, 5001, 39_000])
def test_a_dicom_file_that_is_cut_is_no_query(tmp_path: Path, length: int) -> None:
    """Within a value, or within the head of an element."""
    whole = (FOLDER / "CT_small.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[:length])
    with pytest.raises(ConfigurationError, match=f"truncated or broken at byte .* of {length}"):
        read_query_file(str(path))
    path.write_bytes(whole)
    assert read_query_file(str(path)).elements
