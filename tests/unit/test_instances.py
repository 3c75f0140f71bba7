"""Files opened for sending: what is an instance, what is skipped, what has failed."""

from __future__ import annotations

import hashlib
import os
import zlib
from typing import TYPE_CHECKING

import pydicom
import pytest

from dcmhaul.errors import NotDicom, UnreadableInstance
from dcmhaul.net.types import FileRange
from dcmhaul.objects import part10 as module
from dcmhaul.objects.part10 import HELD_SIZE_MAX, open_instance
from tests.datasets import (
    BIG_ENDIAN,
    CT_CLASS,
    DEFLATED,
    EXPLICIT,
    FILES,
    IMPLICIT,
    ITEM,
    TRUNCATED,
    UNDEFINED,
    RealFile,
    element,
    header,
    item,
    meta_group,
    part10,
    plain_dataset,
    real_files,
    sequence,
    uid,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Writer = Callable[[bytes], Path]

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::BytesWarning"),
]
DICOMDIRS = {file.path for file in real_files() if "DICOMDIR" in file.path.name}
NO_CLASS = {"empty_charset_LEI.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm"}
SENDABLE = [
    file
    for file in real_files()
    if file.path not in DICOMDIRS and file.path.name not in TRUNCATED | NO_CLASS
]
NO_DICOM = [path for path in sorted(FILES.rglob("*")) if path.suffix in {".txt", ".dump", ".json"}]


def contents(dataset: memoryview | FileRange) -> bytes:
    if isinstance(dataset, FileRange):
        return os.pread(dataset.fd, dataset.length, dataset.offset)
    return bytes(dataset)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def one(data: bytes) -> Path:
        path = tmp_path / "one.dcm"
        path.write_bytes(data)
        return path

    return one


@pytest.mark.parametrize("file", SENDABLE, ids=lambda file: file.path.name)
def test_real_files_are_sent_as_they_are(file: RealFile) -> None:
    before = descriptors()
    instance = open_instance(file.path)
    expected = pydicom.dcmread(file.path, stop_before_pixels=True)
    meta = expected.file_meta
    assert instance.sop_class_uid == (
        expected.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    )
    assert instance.sop_instance_uid == (
        expected.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID")
    )
    assert instance.study_instance_uid == expected.get("StudyInstanceUID", "")
    assert instance.series_instance_uid == expected.get("SeriesInstanceUID", "")
    assert instance.transfer_syntax_uid == file.syntax
    padding = b"\0" * (len(file.dataset) % 2 if file.syntax == DEFLATED else 0)
    assert contents(instance.dataset) == file.dataset + padding
    assert instance.length == len(file.dataset + padding)
    assert instance.label == instance.path == str(file.path)
    held = file.path.stat().st_size <= HELD_SIZE_MAX
    assert isinstance(instance.dataset, memoryview) is held
    assert descriptors() == before + (not held)
    instance.close()
    instance.close()
    assert descriptors() == before


@pytest.mark.parametrize("path", sorted(DICOMDIRS), ids=lambda path: path.name)
def test_a_dicomdir_is_skipped(path: Path) -> None:
    with pytest.raises(NotDicom, match="DICOMDIR"):
        open_instance(path)


@pytest.mark.parametrize("path", NO_DICOM, ids=lambda path: path.name)
def test_other_files_are_skipped(path: Path) -> None:
    with pytest.raises(NotDicom):
        open_instance(path)


@pytest.mark.parametrize("name", sorted(TRUNCATED))
def test_truncated_files_have_failed(name: str) -> None:
    with pytest.raises(UnreadableInstance, match="truncated"):
        open_instance(FILES / name)


@pytest.mark.parametrize("name", sorted(NO_CLASS))
def test_files_without_a_class_have_failed(name: str) -> None:
    with pytest.raises(UnreadableInstance, match="no SOP Class UID"):
        open_instance(FILES / name)


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("ExplVR_LitEndNoMeta.dcm", EXPLICIT),
        ("ExplVR_BigEndNoMeta.dcm", BIG_ENDIAN),
        ("rtstruct.dcm", IMPLICIT),
    ],
)
def test_bare_datasets_with_both_uids_are_sent(name: str, syntax: str) -> None:
    instance = open_instance(FILES / name)
    expected = pydicom.dcmread(FILES / name, force=True)
    assert instance.transfer_syntax_uid == syntax
    assert instance.sop_instance_uid == expected.SOPInstanceUID
    assert contents(instance.dataset) == (FILES / name).read_bytes()


def test_the_datasets_uids_win_over_those_of_the_meta_group(write: Writer) -> None:
    instance = open_instance(write(part10(plain_dataset("1.2.3.4"), sop_instance="9.9.9")))
    assert instance.sop_instance_uid == "1.2.3.4"
    alone = element(0x00100020, "LO", b"AB")
    instance = open_instance(write(part10(alone, sop_instance="9.9.9")))
    assert (instance.sop_class_uid, instance.sop_instance_uid) == (CT_CLASS, "9.9.9")


def test_a_file_cut_at_any_byte_is_never_sent_with_a_part_missing(write: Writer) -> None:
    elements = [
        element(0x00080016, "UI", uid(CT_CLASS)),
        element(0x00080018, "UI", uid("1.2.3.4")),
        element(0x00100020, "LO", b""),
        sequence(0x00081115, "SQ", item(element(0x00081150, "UI", b"1.2\0")), item()),
        sequence(0x7FE00010, "OB", element(ITEM, None, b""), element(ITEM, None, b"\xff" * 20)),
    ]
    group = bytes(128) + b"DICM" + meta_group()
    whole = group + b"".join(elements)
    clean = {len(group) + sum(map(len, elements[:n])) for n in range(1, len(elements) + 1)}
    for length in range(len(whole) + 1):
        path = write(whole[:length])
        if length in clean:
            assert open_instance(path).length == length - len(group)
        elif length >= len(group):
            with pytest.raises(UnreadableInstance):
                open_instance(path)
        else:
            with pytest.raises((NotDicom, UnreadableInstance)):
                open_instance(path)


def big_dataset(length: int = 100_000) -> bytes:
    return plain_dataset(extra=element(0x7FE00010, "OW", bytes(range(250)) * (length // 250)))


def test_large_files_are_ranges_of_an_open_file(write: Writer) -> None:
    data = part10(big_dataset())
    before = descriptors()
    instance = open_instance(write(data))
    assert isinstance(instance.dataset, FileRange)
    assert contents(instance.dataset) == big_dataset()
    assert descriptors() == before + 1
    kept = instance.dataset
    del instance
    assert os.pread(kept.fd, 4, kept.offset) == big_dataset()[:4]
    del kept
    assert descriptors() == before


@pytest.mark.parametrize("missing", [1, 2, 50_000, 99_000])
def test_large_files_that_are_truncated_have_failed(write: Writer, missing: int) -> None:
    before = descriptors()
    with pytest.raises(UnreadableInstance, match="truncated or broken dataset"):
        open_instance(write(part10(big_dataset())[:-missing]))
    assert descriptors() == before


def test_large_encapsulated_files(write: Writer) -> None:
    fragments = [element(ITEM, None, bytes(3000)) for _ in range(200)]
    dataset = plain_dataset(extra=sequence(0x7FE00010, "OB", element(ITEM, None, b""), *fragments))
    path = write(part10(dataset, "1.2.840.10008.1.2.4.50"))
    assert open_instance(path).length == len(dataset)
    with pytest.raises(BlockingIOError):
        open_instance(path, nowait=True)
    path = write(part10(dataset[:-8], "1.2.840.10008.1.2.4.50"))
    with pytest.raises(UnreadableInstance, match="delimiter is missing"):
        open_instance(path)


def test_many_small_elements_in_a_large_file(write: Writer) -> None:
    many = b"".join(element(0x00400000 + n, "LO", b"12345678") for n in range(10_000))
    dataset = plain_dataset(extra=many)
    assert open_instance(write(part10(dataset))).length == len(dataset)
    with pytest.raises(UnreadableInstance):
        open_instance(write(part10(dataset[:-3])))


def test_a_meta_group_longer_than_the_first_read(write: Writer) -> None:
    group = meta_group() + element(0x00020102, "OB", bytes(60_000))
    data = bytes(128) + b"DICM" + group + big_dataset()
    instance = open_instance(write(data))
    assert instance.length == len(big_dataset())
    with pytest.raises(UnreadableInstance, match="meta information"):
        open_instance(write(bytes(128) + b"DICM" + group[:-4]))


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def test_deflated_datasets(write: Writer) -> None:
    packed = deflate(plain_dataset("1.2.3.4"))
    instance = open_instance(write(part10(packed, DEFLATED, "9.9")))
    assert instance.sop_instance_uid == "1.2.3.4"
    assert contents(instance.dataset) == packed + b"\0" * (len(packed) % 2)
    for cut in range(1, len(packed)):
        with pytest.raises(UnreadableInstance):
            open_instance(write(part10(packed[:cut], DEFLATED)))
    with pytest.raises(UnreadableInstance, match="deflate"):
        open_instance(write(part10(b"\xff" * 50, DEFLATED)))
    with pytest.raises(UnreadableInstance, match="truncated or broken"):
        open_instance(write(part10(deflate(plain_dataset()[:-1]), DEFLATED)))


@pytest.mark.parametrize("noise", [70_001, 70_002])
def test_large_deflated_datasets_of_odd_length_are_padded(
    write: Writer, noise: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = hashlib.shake_256(b"noise").digest(noise * 2)
    packed = deflate(plain_dataset(extra=element(0x7FE00010, "OW", pixels)))
    odd, even = (packed, packed + b"\0") if len(packed) % 2 else (packed + b"\0", packed)
    instance = open_instance(write(part10(odd, DEFLATED)))
    assert contents(instance.dataset) == odd + b"\0"
    assert instance.length == len(odd) + 1
    instance = open_instance(write(part10(even, DEFLATED)))
    assert isinstance(instance.dataset, FileRange)
    assert contents(instance.dataset) == even
    monkeypatch.setattr(module, "_PADDED_SIZE_MAX", 70_000)
    with pytest.raises(UnreadableInstance, match="too large to be padded"):
        open_instance(write(part10(odd, DEFLATED)))


def test_a_deflate_bomb_does_not_go_off(write: Writer) -> None:
    length = 300_000_000
    start = plain_dataset() + header(0x7FE00010, "OW", length)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(start)
    packed += b"".join(packer.compress(bytes(1_000_000)) for _ in range(300)) + packer.flush()
    instance = open_instance(write(part10(packed, DEFLATED)))
    assert instance.sop_instance_uid == "1.2.3.4"
    assert instance.length == len(packed) + len(packed) % 2


@pytest.mark.parametrize("size", [0, 1, 7, 100, 132, 70_000])
def test_zeros_are_no_dicom(write: Writer, size: int) -> None:
    with pytest.raises(NotDicom):
        open_instance(write(bytes(size)))


def test_a_meta_group_without_dataset_has_failed(write: Writer) -> None:
    with pytest.raises(UnreadableInstance, match="no dataset"):
        open_instance(write(part10(b"")))


def test_uids_that_are_none_have_failed(write: Writer) -> None:
    for sop_instance in ("../../etc/x", "1.2.a", "1" * 65):
        with pytest.raises(UnreadableInstance, match="digits and dots") as caught:
            open_instance(write(part10(plain_dataset(sop_instance))))
        assert sop_instance not in str(caught.value)
    with pytest.raises(UnreadableInstance, match="Transfer Syntax"):
        open_instance(write(part10(plain_dataset(), "1.2.x")))


def test_a_bare_dataset_that_breaks_after_its_uids_has_failed(write: Writer) -> None:
    with pytest.raises(UnreadableInstance, match="truncated"):
        open_instance(write(plain_dataset()[:-1]))
    with pytest.raises(NotDicom):
        open_instance(write(plain_dataset()[:30]))


def test_broken_sequences_have_failed(write: Writer) -> None:
    for extra in (
        header(0x00400275, "SQ", UNDEFINED) + b"\x08\0\x05\0CS\0\0",
        (header(0x00400275, "SQ", UNDEFINED) + header(ITEM, None, UNDEFINED)) * 1000,
    ):
        with pytest.raises(UnreadableInstance, match="broken"):
            open_instance(write(part10(plain_dataset(extra=extra))))


def test_what_is_no_regular_file_is_skipped(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/null"):
        with pytest.raises(NotDicom, match="regular"):
            open_instance(path)


def test_what_cannot_be_opened_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableInstance, match="cannot be opened: No such file"):
        open_instance(tmp_path / "none")
    path = tmp_path / "one"
    path.write_bytes(part10(plain_dataset()))

    def failing(*_arguments: object) -> int:
        raise OSError(5, "Input/output error")

    before = descriptors()
    monkeypatch.setattr(module, "_read_start", failing)
    with pytest.raises(UnreadableInstance, match="cannot be read: Input/output error"):
        open_instance(path)
    assert descriptors() == before


def test_files_that_are_not_in_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def cold(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", cold)
    monkeypatch.setattr(module, "_always_warm", set())
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(part10(plain_dataset()))
    large.write_bytes(part10(big_dataset()))
    before = descriptors()
    for path in (small, large):
        with pytest.raises(BlockingIOError):
            open_instance(path, nowait=True)
    assert descriptors() == before
    assert contents(open_instance(small).dataset) == plain_dataset()
    dataset = open_instance(large).dataset
    assert isinstance(dataset, FileRange)
    assert dataset.cold
    monkeypatch.undo()
    dataset = open_instance(large, nowait=True).dataset
    assert isinstance(dataset, FileRange)


def test_file_systems_without_nowait_count_as_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv
    asked = []

    def unsupported(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            asked.append(fd)
            raise OSError(95, "Operation not supported")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", unsupported)
    monkeypatch.setattr(module, "_always_warm", set())
    path = tmp_path / "large"
    path.write_bytes(part10(big_dataset()))
    dataset = open_instance(path, nowait=True).dataset
    assert isinstance(dataset, FileRange)
    assert not dataset.cold
    times = len(asked)
    open_instance(path, nowait=True)
    assert len(asked) == times  # that nothing there is ever cold is known by now
    monkeypatch.setattr(module, "_NOWAIT", None)
    assert open_instance(path, nowait=True).length == len(big_dataset())
