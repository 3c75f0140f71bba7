"""Group 0002: read from whatever stands before a dataset, and written as pydicom reads it."""

from __future__ import annotations

import io
import struct

import pydicom
import pytest
from pydicom.filereader import read_file_meta_info

from dcmhaul import uids
from dcmhaul.errors import NotDicom, UnreadableInstance
from dcmhaul.wire.part10 import (
    clean_uid,
    detect_transfer_syntax,
    encode_file_meta,
    is_deflated,
    parse_file_meta,
)
from tests.datasets import (
    BIG_ENDIAN,
    CT_CLASS,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    RealFile,
    element,
    meta_group,
    part10,
    plain_dataset,
    real_files,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::BytesWarning"),
]
JPEG = "1.2.840.10008.1.2.4.50"


@pytest.mark.parametrize("file", real_files(), ids=lambda file: file.path.name)
def test_real_files_have_the_meta_that_pydicom_reads(file: RealFile) -> None:
    meta = parse_file_meta(file.path.read_bytes()[:65536])
    expected = read_file_meta_info(file.path)
    assert meta.has_meta
    assert meta.dataset_offset == file.dataset_offset
    assert meta.sop_class_uid == expected.get("MediaStorageSOPClassUID", "")
    assert meta.sop_instance_uid == expected.get("MediaStorageSOPInstanceUID", "")
    assert meta.transfer_syntax_uid == file.syntax
    assert meta.source_ae_title == expected.get("SourceApplicationEntityTitle", "")


def test_what_is_written_is_read_by_pydicom() -> None:
    head = encode_file_meta(CT_CLASS, "1.2.3", JPEG, "MODALITY_1")
    assert head[:132] == bytes(128) + b"DICM"
    dataset = pydicom.dcmread(io.BytesIO(head + plain_dataset("1.2.3")))
    meta = dataset.file_meta
    assert meta.FileMetaInformationGroupLength == len(head) - 144
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.MediaStorageSOPClassUID == CT_CLASS
    assert meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert meta.TransferSyntaxUID == JPEG
    assert meta.ImplementationClassUID == uids.IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == uids.IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "MODALITY_1"
    assert dataset.SOPInstanceUID == "1.2.3"


@pytest.mark.parametrize("title", ["", "A", "SIXTEEN_CHARS_AE", "SEVENTEEN_CHARS_A", "\xe4\u20ac"])
@pytest.mark.parametrize("instance", ["1", "1.2", "9" * 64])
def test_what_is_written_is_read_again(title: str, instance: str) -> None:
    head = encode_file_meta(CT_CLASS, instance, JPEG, title)
    assert len(head) % 2 == 0
    meta = parse_file_meta(head + plain_dataset())
    assert (meta.sop_class_uid, meta.sop_instance_uid) == (CT_CLASS, instance)
    assert meta.transfer_syntax_uid == JPEG
    assert meta.source_ae_title == title[:16].encode("ascii", "replace").decode()
    assert meta.dataset_offset == len(head)


def test_a_preamble_that_holds_a_program_is_never_written() -> None:
    assert encode_file_meta(CT_CLASS, "1.2", EXPLICIT)[:128] == bytes(128)


@pytest.mark.parametrize(
    "start", [bytes(128) + b"DICM", b"MZ" + bytes(126) + b"DICM", b"DICM", b""]
)
def test_preambles_other_and_missing(start: bytes) -> None:
    meta = parse_file_meta(start + meta_group() + plain_dataset())
    assert meta.has_meta
    assert meta.dataset_offset == len(start + meta_group())
    assert meta.sop_instance_uid == "1.2.3.4"


@pytest.mark.parametrize("length", [0, 1, 10_000, 0xFFFFFFFF])
def test_a_wrong_group_length_is_not_believed(length: int) -> None:
    group = meta_group()
    wrong = element(0x00020000, "UL", struct.pack("<I", length)) + group[12:]
    meta = parse_file_meta(bytes(128) + b"DICM" + wrong + plain_dataset())
    assert meta.dataset_offset == 132 + len(group)
    missing = parse_file_meta(bytes(128) + b"DICM" + group[12:] + plain_dataset())
    assert missing.dataset_offset == 132 + len(group) - 12


def test_a_meta_group_in_implicit_form_is_understood() -> None:
    group = element(0x00020002, None, b"1.2\0") + element(0x00020010, None, b"1.2.840.10008.1.2\0")
    meta = parse_file_meta(bytes(128) + b"DICM" + group + plain_dataset(vrs=False))
    assert (meta.sop_class_uid, meta.transfer_syntax_uid) == ("1.2", IMPLICIT)


@pytest.mark.parametrize("named", [IMPLICIT, EXPLICIT, ""])
@pytest.mark.parametrize("vrs", [False, True])
def test_the_form_of_the_dataset_wins_over_its_label(named: str, vrs: bool) -> None:
    group = meta_group(named)
    meta = parse_file_meta(bytes(128) + b"DICM" + group + plain_dataset(vrs=vrs))
    assert meta.transfer_syntax_uid == (EXPLICIT if vrs else IMPLICIT)


@pytest.mark.parametrize("named", [JPEG, BIG_ENDIAN, DEFLATED, "1.2.3.999"])
def test_other_labels_are_kept(named: str) -> None:
    assert parse_file_meta(part10(plain_dataset(vrs=False), named)).transfer_syntax_uid == named
    assert is_deflated(named) is (named == DEFLATED)


def test_bare_datasets() -> None:
    big = element(0x00080016, "UI", b"1.2\0", big=True)
    for data, syntax in [
        (plain_dataset(), EXPLICIT),
        (plain_dataset(vrs=False), IMPLICIT),
        (big, BIG_ENDIAN),
    ]:
        meta = parse_file_meta(data)
        assert not meta.has_meta
        assert meta.dataset_offset == 0
        assert meta.transfer_syntax_uid == syntax == detect_transfer_syntax(data[:8])


def test_a_dataset_may_begin_with_group_0001() -> None:
    data = element(0x00010001, "OB", b"12") + plain_dataset()
    assert parse_file_meta(part10(data)).dataset_offset == 132 + len(meta_group())


@pytest.mark.parametrize("length", range(8))
def test_fewer_than_8_bytes_are_not_dicom(length: int) -> None:
    with pytest.raises(NotDicom):
        parse_file_meta(bytes(length))


def test_a_meta_group_cut_at_any_byte_is_unreadable_or_shorter() -> None:
    whole = bytes(128) + b"DICM" + meta_group()
    for length in range(132, len(whole)):
        try:
            meta = parse_file_meta(whole[:length])
        except UnreadableInstance:
            continue
        assert meta.dataset_offset == length


@pytest.mark.parametrize("value", [b"1.2\0", b"1.2 ", b" 1.2", b"1.2\0\0 "])
def test_uids_lose_their_padding(value: bytes) -> None:
    assert clean_uid(value) == "1.2"


def test_memoryviews_and_bytearrays_are_taken() -> None:
    data = part10(plain_dataset())
    assert parse_file_meta(bytearray(data)) == parse_file_meta(memoryview(data))
