"""Files and folders as a stream of instances, each given out once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.objects import sources
from dcmhaul.objects.part10 import FileInstance, open_instance
from dcmhaul.objects.sources import (
    FailedEntry,
    FileSource,
    SkippedEntry,
    candidates,
    open_entries,
)
from tests.datasets import FILES, TRUNCATED, element, part10, plain_dataset, real_files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """b, a/2, a/10, a/c/x, c/y (truncated), readme; and a link that leads back."""
    for name in ("b", "a/2", "a/10", "a/c/x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(part10(plain_dataset(f"1.2.{len(name)}")))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "y").write_bytes(part10(plain_dataset())[:-1])
    (tmp_path / "readme").write_text("nothing of interest")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "b")
    return tmp_path


def relative(found: list[str | SkippedEntry | FailedEntry], root: Path) -> list[str]:
    return [os.path.relpath(entry, root) for entry in found if isinstance(entry, str)]


def test_folders_give_their_files_sorted_then_their_subfolders(tree: Path) -> None:
    found = list(candidates([tree]))
    assert relative(found, tree) == ["b", "readme", "a/10", "a/2", "a/linked", "a/c/x", "c/y"]
    assert relative(list(candidates([tree], recursive=False)), tree) == ["b", "readme"]
    assert list(candidates([tree])) == found


def test_a_link_to_a_folder_is_told_and_not_followed(tree: Path) -> None:
    link = str(tree / "a" / "back")
    (skipped,) = (entry for entry in candidates([tree]) if not isinstance(entry, str))
    assert skipped == SkippedEntry(path=link, reason="a link to a folder, which is not followed")
    assert str(tree / "a" / "back" / "b") in list(candidates([link]))


def test_paths_come_in_the_order_given_and_files_as_they_are(tree: Path) -> None:
    found = list(candidates([tree / "readme", tree / "c", "no such file", tree / "readme"]))
    assert found[:2] == [str(tree / "readme"), str(tree / "c" / "y")]
    assert found[2:] == ["no such file", str(tree / "readme")]


def test_nothing_is_listed_ahead_of_time(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    real = os.scandir

    def noting(folder: str) -> os.ScandirIterator[str]:  # type: ignore[name-defined]
        listed.append(folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", noting)
    found = candidates([tree])
    assert listed == []
    next(found)
    assert listed == [str(tree)]


def test_a_folder_that_cannot_be_listed_has_failed_and_the_rest_goes_on(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def refusing(folder: str) -> os.ScandirIterator[str]:  # type: ignore[name-defined]
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(candidates([tree]))
    assert relative(found, tree) == ["b", "readme", "c/y"]
    (failed,) = (entry for entry in found if isinstance(entry, FailedEntry))
    assert failed.path == str(tree / "a")
    assert "cannot be listed: Permission denied" in str(failed.error)


def test_entries_are_what_they_prove_to_be(tree: Path) -> None:
    entries = list(open_entries([tree, "no such file"]))
    kinds = [type(entry).__name__ for entry in entries]
    assert kinds == [
        "FileInstance",
        "SkippedEntry",
        "FileInstance",
        "FileInstance",
        "FileInstance",
        "SkippedEntry",
        "FileInstance",
        "FailedEntry",
        "FailedEntry",
    ]
    skipped, truncated, missing = entries[1], entries[7], entries[8]
    assert isinstance(skipped, SkippedEntry)
    assert skipped.reason.startswith("not a DICOM file")
    assert isinstance(truncated, FailedEntry)
    assert "truncated" in str(truncated.error)
    assert isinstance(missing, FailedEntry)
    assert "cannot be opened" in str(missing.error)


async def test_a_source_gives_out_all_of_pydicoms_files_once() -> None:
    reported: list[SkippedEntry | FailedEntry] = []
    source = FileSource(candidates([FILES]), report=reported.append)
    taken: list[str] = []

    async def taker() -> None:
        while (instance := await source.take()) is not None:
            taken.append(instance.label)
            await trio.lowlevel.checkpoint()
            instance.close()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(taker)
    assert len(taken) == len(set(taken)) == source.opened
    assert source.opened > 140
    failed = {os.path.basename(e.path) for e in reported if isinstance(e, FailedEntry)}
    assert failed >= TRUNCATED
    assert source.failed == len(failed)
    assert source.skipped == len(reported) - len(failed)
    everything = {str(path) for path in FILES.rglob("*") if path.is_file()}
    assert {*taken, *(entry.path for entry in reported)} == everything
    assert {str(file.path) for file in real_files()} <= everything
    assert await source.take() is None


async def test_cold_files_are_opened_in_a_thread(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []

    def cold(path: str, *, nowait: bool = False) -> FileInstance:
        waits.append(nowait)
        if nowait:
            raise BlockingIOError
        return open_instance(path)

    monkeypatch.setattr(sources, "open_instance", cold)
    source = FileSource(candidates([tree / "a"], recursive=False))
    instance = await source.take()
    assert instance is not None
    assert instance.sop_instance_uid == "1.2.4"
    assert waits == [True, False]
    # A taker that is cancelled takes nothing from the others.
    with trio.CancelScope() as scope:
        scope.cancel()
        second = await source.take()
    assert second is not None
    assert second.path == str(tree / "a" / "2")


@pytest.mark.parametrize("cold", [False, True])
async def test_one_file_is_opened_ahead_and_nothing_is_lost(
    tree: Path, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: str, *, nowait: bool = False) -> FileInstance:
        if cold and nowait:
            raise BlockingIOError
        return open_instance(path)

    monkeypatch.setattr(sources, "open_instance", opened)
    before = len(os.listdir("/proc/self/fd"))
    reported: list[SkippedEntry | FailedEntry] = []
    source = FileSource(candidates([tree]), report=reported.append)
    paths = []
    source.look_ahead()
    while (instance := await source.take()) is not None:
        paths.append(os.path.relpath(instance.path, tree))
        instance.close()
        source.look_ahead()
        source.look_ahead()
        assert len(os.listdir("/proc/self/fd")) <= before + (not cold)
    assert paths == ["b", "a/10", "a/2", "a/linked", "a/c/x"]
    assert [type(entry) for entry in reported] == [SkippedEntry, SkippedEntry, FailedEntry]
    assert (source.opened, source.skipped, source.failed) == (5, 2, 1)


async def test_what_was_opened_ahead_and_not_taken_is_closed(tmp_path: Path) -> None:
    pixels = element(0x7FE00010, "OW", bytes(1 << 20))
    (tmp_path / "large").write_bytes(part10(plain_dataset(extra=pixels)))
    before = len(os.listdir("/proc/self/fd"))
    source = FileSource(candidates([tmp_path]))
    source.look_ahead()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_long_row_of_skipped_files_lets_other_tasks_run(tmp_path: Path) -> None:
    for n in range(200):
        (tmp_path / f"{n:03d}").write_text("nothing of interest")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    source = FileSource(candidates([tmp_path]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await source.take() is None
        nursery.cancel_scope.cancel()
    assert source.skipped == 200
    assert turns >= 3
