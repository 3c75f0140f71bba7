"""Paths from UIDs, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from dcmhaul.objects.paths import Folder, SpaceWatch, instance_name, instance_path, make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOSTILE = [
    "",
    "/etc/cron.d/x",
    "../../x",
    "../../../etc/pwn",
    "/etc/pwn",
    "1.2.3\0/../..",
    ".",
    "..",
    "a" * 65,
    "1" * 65,
    "1.2\r\nX",
    "..\\..\\x",
    "%00",
    "1.2/3",
    "~",
    "1.2\n",
    "\u0661.\u0662",
]


@pytest.mark.parametrize("uid", HOSTILE)
def test_only_digits_and_dots_get_into_a_path(uid: str) -> None:
    with pytest.raises(ValueError, match="digits and dots") as caught:
        instance_path("/store", uid)
    assert not uid or uid not in str(caught.value)


@pytest.mark.parametrize("uid", ["1.2.3", "..1", "1..", "1" * 64])
def test_a_name_stays_in_its_folder(uid: str) -> None:
    for copy in (0, 1, 999):
        path = instance_path("/store", uid, copy)
        assert os.path.normpath(path) == path
        assert os.path.dirname(path) == "/store"
        assert len(os.path.basename(path)) < 255
    assert instance_name("1.2.3") == "1.2.3.dcm"
    assert instance_name("1.2.3", 2) == "1.2.3.2.dcm"


@pytest.fixture(params=["nameless", "named", "no hard links"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    """A folder on a system with O_TMPFILE, without it, and on one that cannot link either."""
    if request.param == "no hard links":

        def unsupported(*_arguments: object, **_named: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "link", unsupported)
    made = Folder(tmp_path / "a" / "b")
    if request.param != "nameless":
        made._nameless = False
    with made:
        yield made


def visible(folder: Folder) -> list[str]:
    return sorted(name for name in os.listdir(folder.path) if not name.startswith(".dcmhaul-"))


def test_a_file_appears_only_when_it_is_linked(folder: Folder) -> None:
    file = folder.create_temporary()
    os.write(file.fd, b"data")
    assert visible(folder) == []
    file.link("1.2.dcm")
    assert os.listdir(folder.path) == ["1.2.dcm"]
    os.write(file.fd, b" more")
    file.close()
    file.close()
    fd = folder.open("1.2.dcm")
    assert os.read(fd, 100) == b"data more"
    os.close(fd)
    folder.unlink("1.2.dcm")
    assert os.listdir(folder.path) == []


def test_without_a_link_nothing_is_left(folder: Folder) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = folder.create_temporary()
    os.write(file.fd, b"data")
    file.close()
    assert os.listdir(folder.path) == []
    forgotten = folder.create_temporary()
    del forgotten
    assert os.listdir(folder.path) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_replaces_nothing(folder: Folder) -> None:
    first, second = folder.create_temporary(), folder.create_temporary()
    os.write(first.fd, b"first")
    os.write(second.fd, b"second")
    first.link("1.2.dcm")
    with pytest.raises(FileExistsError):
        second.link("1.2.dcm")
    second.link("1.2.1.dcm")
    first.close()
    second.close()
    assert sorted(os.listdir(folder.path)) == ["1.2.1.dcm", "1.2.dcm"]
    with open(instance_path(folder.path, "1.2"), "rb") as file:
        assert file.read() == b"first"


def test_a_file_may_be_linked_into_another_folder(folder: Folder, tmp_path: Path) -> None:
    with Folder(tmp_path / "other") as other:
        file = folder.create_temporary()
        file.link("1.dcm", other)
        file.close()
        assert os.listdir(folder.path) == []
        assert os.listdir(other.path) == ["1.dcm"]


def test_permissions_follow_mode_and_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        for mode, nameless in [(0o666, True), (0o666, False), (0o600, True), (0o600, False)]:
            with Folder(tmp_path, mode=mode) as folder:
                folder._nameless = folder._nameless and nameless
                file = folder.create_temporary()
                file.link("1.dcm")
                file.close()
                found = stat.S_IMODE(os.stat(tmp_path / "1.dcm").st_mode)
                assert found == mode & ~0o027
                folder.unlink("1.dcm")
    finally:
        os.umask(old)


def test_a_file_system_without_nameless_files_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def without(path: str, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *rest, **named)

    with Folder(tmp_path) as folder:
        monkeypatch.setattr(os, "open", without)
        file = folder.create_temporary()
        assert [name[:9] for name in os.listdir(tmp_path)] == [".dcmhaul-"]
        file.link("1.dcm")
        file.close()
        assert os.listdir(tmp_path) == ["1.dcm"]


def test_a_full_disk_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_named: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Folder(tmp_path) as folder:
        monkeypatch.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left"):
            folder.create_temporary()


def run_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_that_wait_together_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = threading.Event()
    gathered = threading.Event()
    calls: list[int] = []

    def slow(fd: int) -> None:
        calls.append(fd)
        running.set()
        assert gathered.wait(10)

    monkeypatch.setattr(os, "fsync", slow)
    with Folder(tmp_path, durable=False) as folder:
        first = threading.Thread(target=folder.sync)
        first.start()
        assert running.wait(10)
        # These came too late for the fsync that runs, so one more serves them all.
        late = [threading.Thread(target=folder.sync) for _ in range(10)]
        for thread in late:
            thread.start()
        while folder._syncs._gathering.waiting < len(late):
            threading.Event().wait(0.001)
        gathered.set()
        for thread in [first, *late]:
            thread.join()
        assert calls == [folder.fd, folder.fd]
        folder.sync(shared=False)
        assert len(calls) == 3


def test_a_failed_sync_is_an_error_for_each_that_shared_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    errors: list[int | None] = []

    def work() -> None:
        try:
            shared.sync()
        except OSError as error:
            errors.append(error.errno)

    with Folder(tmp_path) as shared:
        monkeypatch.setattr(os, "fsync", broken)
        run_threads(8, work)
        assert errors == [errno.EIO] * 8
        monkeypatch.undo()
        errors.clear()
        run_threads(8, work)
        assert errors == []


def test_a_directory_that_cannot_be_synced_counts_as_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_fd: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    with Folder(tmp_path) as folder:
        folder.sync()
        folder.sync(shared=False)


def test_a_folder_is_closed_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.close()
    folder.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        folder.create_temporary()


def test_folders_that_are_made_have_durable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def noting(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", noting)
    make_folder(tmp_path / "a" / "b", mode=0o700)
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    synced.clear()
    make_folder(tmp_path / "a" / "b")  # by one that was killed before it could sync, perhaps
    assert synced == [str(tmp_path / "a")]
    synced.clear()
    make_folder(tmp_path / "c", durable=False)
    assert synced == []


def test_a_nearly_full_file_system_is_told_at_each_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    watch = SpaceWatch(tmp_path, told.append)
    found = {"free": 300 << 20, "size": 1 << 40}

    def statvfs(_path: object) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=found["free"], f_frsize=1, f_blocks=found["size"])

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert not watch.is_low()
    found["free"] = 200 << 20
    assert watch.is_low()
    assert watch.is_low()
    found["size"] = 1 << 30  # a small one: a fiftieth is enough
    assert not watch.is_low()
    assert [line.partition(":")[0] for line in told] == [f"200 MiB are free for {tmp_path}"] * 2
    assert "rejected" in told[0]

    def refuse(_path: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "statvfs", refuse)
    assert not watch.is_low()
