"""Files that are indexed where they lie: found and given out, and never touched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul import uids
from dcmhaul.archive.index import Duplicates
from dcmhaul.archive.linking import FILES_AT_ONCE
from dcmhaul.errors import ConfigurationError, InstanceError
from dcmhaul.wire.part10 import encode_file_meta
from tests.archive.made import CT, encode, instance
from tests.archive.test_archive import contents, find, opened, store

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataset import Dataset

    from dcmhaul.archive import Archive

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
DEFLATED = "1.2.840.10008.1.2.1.99"


def write(path: Path, dataset: Dataset, *, syntax: str = EXPLICIT, data: bytes = b"") -> bytes:
    """A Part-10 file with the dataset, or with `data` under its UIDs; returns the dataset's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data or encode(dataset)
    path.write_bytes(encode_file_meta(CT, str(dataset.SOPInstanceUID), syntax) + data)
    return data


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of each file below."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def links(folder: Path) -> list[str]:
    """Where the links of an archive in `folder` lead to."""
    return sorted(os.readlink(path) for path in (folder / "objects").rglob("*.dcm"))


async def held(archive: Archive, study: str = "1.2.3.1") -> dict[str, bytes]:
    return {
        uid: data for uid, (_, data) in (await contents(archive, StudyInstanceUID=study)).items()
    }


async def test_files_are_given_out_from_where_they_lie(tmp_path: Path) -> None:
    files = tmp_path / "files"
    small = write(files / "a" / "small", instance(1, 1, 1))
    bare = encode(instance(1, 1, 2))
    (files / "bare").write_bytes(bare)
    large = write(files / "b" / "c" / "large", instance(1, 2, 1, PixelData=bytes(200_000)))
    before = state(files)
    async with opened(tmp_path) as archive:
        summary = await archive.link_folder(files)
        assert (summary.stored, summary.duplicates, summary.failed) == (3, 0, [])
        expected = {"1.2.3.1.1.1": small, "1.2.3.1.1.2": bare, "1.2.3.1.2.1": large}
        assert await held(archive) == expected
        holds = archive.statistics().holds
        assert (holds.studies, holds.series, holds.instances) == (1, 2, 3)
        assert archive.statistics().stored == 0
    assert links(tmp_path / "archive") == sorted(before)
    # The next start, and the next import.
    async with opened(tmp_path) as archive:
        assert archive.recovery.lines() == []
        write(files / "new", instance(1, 1, 3))
        summary = await archive.link_folder(str(files))
        assert (summary.stored, summary.duplicates) == (1, 3)
        assert len(await held(archive)) == 4
    (files / "new").unlink()
    assert state(files) == before


async def test_more_files_than_a_batch(tmp_path: Path) -> None:
    count = 2 * FILES_AT_ONCE + 1
    for number in range(count):
        write(tmp_path / "files" / f"{number:04}", instance(1, 1, number))
    async with opened(tmp_path) as archive:
        assert (await archive.link_folder(tmp_path / "files")).stored == count
        assert len(await find(archive, "IMAGE", SOPInstanceUID="")) == count


async def test_what_cannot_be_indexed_is_told_and_stops_nothing(tmp_path: Path) -> None:
    files = tmp_path / "files"
    whole = write(files / "whole", instance(1, 1, 1))
    (files / "text").write_text("no DICOM at all")
    (files / "cut").write_bytes((files / "whole").read_bytes()[:-3])
    write(files / "nowhere", instance(1, 1, 2, StudyInstanceUID=None))
    import zlib

    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = deflate.compress(encode(instance(1, 1, 3))) + deflate.flush()
    write(
        files / "even",
        instance(1, 1, 3),
        syntax=DEFLATED,
        data=deflated + b"\0" * (len(deflated) % 2),
    )
    write(
        files / "odd",
        instance(1, 1, 4),
        syntax=DEFLATED,
        data=deflated + b"\0" * (1 - len(deflated) % 2),
    )
    (files / "link").symlink_to(tmp_path)
    async with opened(tmp_path) as archive:
        summary = await archive.link_folder(files)
        failed = {os.path.basename(path): reason for path, reason in summary.failed}
        assert failed.keys() == {"cut", "nowhere", "odd"}
        assert "odd length" in failed["odd"]
        assert "Study Instance UID" in failed["nowhere"]
        skipped = {os.path.basename(path) for path, _ in summary.skipped}
        assert skipped == {"text", "link"}
        assert summary.stored == 2
        assert (await held(archive))["1.2.3.1.1.1"] == whole


@pytest.mark.parametrize("policy", list(Duplicates))
async def test_the_policy_for_duplicates_never_touches_a_file(
    tmp_path: Path, policy: Duplicates
) -> None:
    files = tmp_path / "files"
    first = write(files / "1", instance(1))
    write(files / "2", instance(1))
    other = write(files / "3", instance(1, PatientName="Other"))
    before = state(files)
    async with opened(tmp_path, duplicates=policy) as archive:
        summary = await archive.link_folder(files)
        assert summary.duplicates == 1
        replaces = policy is Duplicates.REPLACE
        assert summary.stored == (2 if replaces else 1)
        assert summary.conflicts == ([] if replaces else [str(files / "3")])
        # Of several objects under one UID `held` keeps the last.
        given = first if policy is Duplicates.KEEP_FIRST else other
        assert (await held(archive))["1.2.3.1.1.1"] == given
        # An object that comes over the network has the same policy, and a file of its own.
        reply = await store(archive, instance(1, PatientName="Third"))
        assert reply.status == (0xC001 if policy is Duplicates.KEEP_FIRST else 0)
    assert state(files) == before


async def test_files_that_are_gone_are_told_and_fail(tmp_path: Path) -> None:
    files = tmp_path / "files"
    for number in range(3):
        write(files / str(number), instance(1, 1, number))
    async with opened(tmp_path) as archive:
        await archive.link_folder(files)
    (files / "0").unlink()
    (files / "1").write_bytes(b"something else")
    async with opened(tmp_path) as archive:
        assert archive.recovery.lines() == [
            "1 file(s) that were indexed where they lay are gone; retrieving them fails"
        ]
        assert len(await find(archive, "IMAGE", SOPInstanceUID="")) == 3
        with pytest.raises(InstanceError, match="cannot be read"):
            await held(archive)
        (files / "0").write_bytes((files / "2").read_bytes() + b"longer")
        with pytest.raises(InstanceError, match="not the length"):
            await held(archive)


async def test_a_link_without_a_row_is_removed_alone(tmp_path: Path) -> None:
    file = tmp_path / "files" / "1"
    data = write(file, instance(1))
    async with opened(tmp_path):
        pass
    (tmp_path / "archive" / "objects" / "000000" / "left.dcm").symlink_to(file)
    async with opened(tmp_path) as archive:
        assert archive.recovery.lines() == ["1 unfinished temporary file(s) removed"]
        assert await find(archive, "STUDY", StudyInstanceUID="") == []
    assert links(tmp_path / "archive") == []
    assert file.read_bytes().endswith(data)


@pytest.mark.parametrize("folder", ["missing", "file", ".", "archive", "archive/objects"])
async def test_folders_that_are_none_or_the_archives_own(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    async with opened(tmp_path) as archive:
        with pytest.raises(ConfigurationError, match=r"no folder|within each other"):
            await archive.link_folder(tmp_path / folder)


async def test_a_cancelled_import_leaves_nothing_that_the_next_start_does_not_settle(
    tmp_path: Path,
) -> None:
    files = tmp_path / "files"
    for number in range(3):
        write(files / str(number), instance(1, 1, number))
    before = state(files)
    async with opened(tmp_path) as archive:
        with trio.CancelScope() as scope:
            scope.cancel()
            await archive.link_folder(files)
        assert scope.cancelled_caught
    async with opened(tmp_path) as archive:
        summary = await archive.link_folder(files)
        assert summary.stored + summary.duplicates == 3
        assert len(await held(archive)) == 3
    assert state(files) == before
