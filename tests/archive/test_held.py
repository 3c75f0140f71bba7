"""How an object that was held in memory gets into its file: past the page cache, or as any other."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Any

import pytest

from dcmhaul.archive import sink
from dcmhaul.archive.sink import DIRECT_SIZE_MIN, HELD_SIZE_MAX, Received
from dcmhaul.archive.store import Intake
from dcmhaul.objects.instances import IncomingInstance
from dcmhaul.objects.paths import Folder
from dcmhaul.uids import EXPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INCOMING = IncomingInstance(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="1.2.3",
    transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
    calling_ae_title="SENDER",
    called_ae_title="ARCHIVE",
    peer="",
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Folder(tmp_path) as folder:
        yield folder


def written(folder: Folder, length: int, *, direct: bool = True) -> tuple[bytes, bytes]:
    """What is in the file, and what ought to be."""
    data = os.urandom(length)
    meta = sink.file_meta(INCOMING)
    cuts = [data[start : start + 100_001] for start in range(0, length, 100_001)]
    received = Received(
        incoming=INCOMING,
        intake=Intake(EXPLICIT_VR_LITTLE_ENDIAN),
        meta=meta,
        held=cuts,
        length=length,
    )
    file = folder.create_temporary()
    received.write_held(file, direct=direct)
    assert received.held == []
    flags = fcntl.fcntl(file.fd, fcntl.F_GETFL)
    assert not flags & getattr(os, "O_DIRECT", 0)  # whoever reads it needs no aligned memory
    size = os.fstat(file.fd).st_size
    found = os.pread(file.fd, size + 1, 0)
    file.close()
    return found, meta + data


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("more", [0, 1, 4095, 4096, HELD_SIZE_MAX - DIRECT_SIZE_MIN])
def test_the_file_has_every_byte_and_no_more(folder: Folder, more: int, direct: bool) -> None:
    found, expected = written(folder, DIRECT_SIZE_MIN + more, direct=direct)
    assert found == expected


def test_small_ones_take_the_page_cache(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "_write_direct", lambda *_: pytest.fail("past the page cache"))
    found, expected = written(folder, DIRECT_SIZE_MIN - 1)
    assert found == expected


@pytest.mark.parametrize("where", ["no system", "the flag", "the write", "a part"])
def test_where_the_page_cache_cannot_be_passed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    whole, flag = os.pwrite, fcntl.fcntl

    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def without(fd: int, command: int, value: int = 0) -> int:
        wants = command == fcntl.F_SETFL and value & os.O_DIRECT
        return refuse() if wants else flag(fd, command, value)

    if where == "no system":
        monkeypatch.setattr(sink, "_O_DIRECT", 0)
    elif where == "the flag":
        monkeypatch.setattr(fcntl, "fcntl", without)
    elif where == "the write":
        monkeypatch.setattr(os, "pwrite", refuse)
    else:
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:8192], at))
    found, expected = written(folder, DIRECT_SIZE_MIN + 77)
    assert found == expected


def test_a_disk_that_is_full_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        written(folder, DIRECT_SIZE_MIN)
