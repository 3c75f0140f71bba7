"""Where datasets go: one whole file each, once, durable before the answer; or none at all."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from typing import TYPE_CHECKING

import pydicom
import pytest
import trio

from dcmhaul.objects.instances import IncomingInstance, StoreRefused, StoreReply
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.paths import Durability
from dcmhaul.objects.sinks import DigestSink, FolderSink, FolderSinks, discard_instance
from tests.datasets import CT_CLASS, EXPLICIT, plain_dataset
from tests.unit.test_paths import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODES = list(Durability)


class Slices:
    """A DatasetSlices over given bytes; `error` is what writing them to a file gives."""

    def __init__(self, data: bytes, error: OSError | None = None) -> None:
        self._data = data
        self._error = error

    @property
    def data_length(self) -> int:
        return len(self._data)

    def copy_data(self) -> bytes:
        return self._data

    def update(self, consume: Callable[[memoryview], object]) -> None:
        consume(memoryview(self._data)[:3])
        consume(memoryview(self._data)[3:])

    def pwrite(self, fd: int, offset: int) -> int:
        if self._error is not None:
            raise self._error
        return os.pwrite(fd, self._data, offset)


def incoming(uid: str = "1.2.3.4", syntax: str = EXPLICIT) -> IncomingInstance:
    return IncomingInstance(
        sop_class_uid=CT_CLASS,
        sop_instance_uid=uid,
        transfer_syntax_uid=syntax,
        calling_ae_title="SENDER",
        called_ae_title="US",
        peer="127.0.0.1:1",
    )


async def store(
    sinks: FolderSinks, data: bytes, uid: str = "1.2.3.4", syntax: str = EXPLICIT
) -> StoreReply:
    sink = sinks(incoming(uid, syntax))
    for start in range(0, len(data), 40):
        await sink.write(Slices(data[start : start + 40]))
    return await sink.commit()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("mode", MODES)
async def test_an_instance_becomes_one_part_10_file(tmp_path: Path, mode: Durability) -> None:
    data = plain_dataset("1.2.3.4")
    folder = tmp_path / "new" / "folder"
    with FolderSinks(folder, durable=mode) as sinks:
        before = descriptors()
        assert await store(sinks, data) == StoreReply(status=0)
        assert descriptors() == before
        assert (sinks.stored, sinks.duplicates, sinks.other_bytes) == (1, 0, 0)
    assert names(folder) == ["1.2.3.4.dcm"]
    dataset = pydicom.dcmread(folder / "1.2.3.4.dcm")
    assert dataset.SOPInstanceUID == "1.2.3.4"
    assert dataset.file_meta.SourceApplicationEntityTitle == "SENDER"
    instance = open_instance(folder / "1.2.3.4.dcm")
    assert isinstance(instance.dataset, memoryview)
    assert bytes(instance.dataset) == data


@pytest.mark.parametrize("mode", MODES)
async def test_equal_bytes_are_kept_once_and_others_beside_them(
    tmp_path: Path, mode: Durability
) -> None:
    first = plain_dataset("1.2.3.4", extra=b"")
    second = first.replace(b"ID12", b"ID13")
    third = plain_dataset("1.2.3.4", vrs=False)
    with FolderSinks(tmp_path, durable=mode) as sinks:
        for data in (first, first, second, second, first):
            assert (await store(sinks, data)).status == 0
        assert names(tmp_path) == ["1.2.3.4.1.dcm", "1.2.3.4.dcm"]
        assert (await store(sinks, third, syntax="1.2.840.10008.1.2")).status == 0
        assert names(tmp_path) == ["1.2.3.4.1.dcm", "1.2.3.4.2.dcm", "1.2.3.4.dcm"]
        assert (sinks.stored, sinks.duplicates, sinks.other_bytes) == (3, 3, 2)
    for name, data in (("1.2.3.4.dcm", first), ("1.2.3.4.1.dcm", second), ("1.2.3.4.2.dcm", third)):
        dataset = open_instance(tmp_path / name).dataset
        assert isinstance(dataset, memoryview)
        assert bytes(dataset) == data


async def test_the_same_bytes_in_another_syntax_are_another_object(tmp_path: Path) -> None:
    data = plain_dataset()
    with FolderSinks(tmp_path) as sinks:
        await store(sinks, data, syntax="1.2.840.10008.1.2.4.50")
        await store(sinks, data, syntax="1.2.840.10008.1.2.4.51")
    assert names(tmp_path) == ["1.2.3.4.1.dcm", "1.2.3.4.dcm"]


@pytest.mark.parametrize("mode", MODES)
async def test_what_already_lies_there_is_never_replaced(tmp_path: Path, mode: Durability) -> None:
    (tmp_path / "1.2.3.4.dcm").write_bytes(b"other")
    (tmp_path / "1.2.3.4.1.dcm").symlink_to(tmp_path / "dangling")
    with FolderSinks(tmp_path, durable=mode) as sinks:
        assert (await store(sinks, plain_dataset())).status == 0
    assert names(tmp_path) == ["1.2.3.4.1.dcm", "1.2.3.4.2.dcm", "1.2.3.4.dcm"]
    assert (tmp_path / "1.2.3.4.dcm").read_bytes() == b"other"
    assert not (tmp_path / "dangling").exists()


@pytest.mark.parametrize("mode", MODES)
async def test_one_uid_many_times_at_once(tmp_path: Path, mode: Durability) -> None:
    same = plain_dataset("1.2.3.4")
    other = same.replace(b"ID12", b"ID99")
    replies: list[StoreReply] = []

    async def one(data: bytes) -> None:
        replies.append(await store(sinks, data))

    with FolderSinks(tmp_path, durable=mode) as sinks:
        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(one, other if n % 4 == 0 else same)
        assert (sinks.stored, sinks.duplicates, sinks.other_bytes) == (2, 38, 1)
    assert [reply.status for reply in replies] == [0] * 40
    assert names(tmp_path) == ["1.2.3.4.1.dcm", "1.2.3.4.dcm"]
    found = {bytes(open_instance(tmp_path / name).dataset) for name in names(tmp_path)}  # type: ignore[arg-type]
    assert found == {same, other}


@pytest.mark.parametrize("uid", HOSTILE)
def test_what_is_no_uid_is_refused_before_anything_is_made(tmp_path: Path, uid: str) -> None:
    with FolderSinks(tmp_path) as sinks, pytest.raises(StoreRefused) as caught:
        sinks(incoming(uid))
    assert caught.value.reply.status == 0x0117
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("good", [0, 1, 3])
async def test_a_write_that_fails_is_said_at_the_commit(
    tmp_path: Path, code: int, good: int
) -> None:
    with FolderSinks(tmp_path) as sinks:
        before = descriptors()
        sink = sinks(incoming())
        for _ in range(good):
            await sink.write(Slices(b"12345678"))
        await sink.write(Slices(b"12345678", OSError(code, os.strerror(code))))
        assert descriptors() == before
        await sink.write(Slices(b"12345678"))
        reply = await sink.commit()
        assert reply.status == 0xA700
        assert os.strerror(code)[:20] in reply.error_comment
        assert len(reply.error_comment) <= 64
        assert names(tmp_path) == []
        assert (await store(sinks, plain_dataset())).status == 0


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC, errno.ENOMEM])
async def test_a_temporary_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def failing(*_arguments: object, **_named: object) -> int:
        raise OSError(code, os.strerror(code))

    with FolderSinks(tmp_path) as sinks:
        monkeypatch.setattr(os, "open", failing)
        assert (await store(sinks, plain_dataset())).status == 0xA700
        monkeypatch.undo()
        assert names(tmp_path) == []
        assert (await store(sinks, plain_dataset())).status == 0


@pytest.mark.parametrize("call", ["fdatasync", "fsync", "link"])
@pytest.mark.parametrize("mode", [Durability.EACH, Durability.BATCH])
async def test_a_sync_that_fails_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, mode: Durability
) -> None:
    """The answer is A700, nothing is left, and the file is not synced a second time."""
    calls = 0

    def failing(*_arguments: object, **_named: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.EIO, "Input/output error")

    with FolderSinks(tmp_path, durable=mode) as sinks:
        before = descriptors()
        monkeypatch.setattr(os, call, failing)
        reply = await store(sinks, plain_dataset())
        monkeypatch.undo()
        assert reply == StoreReply(status=0xA700, error_comment="cannot store: Input/output error")
        assert calls == 1
        assert names(tmp_path) == []
        assert descriptors() == before
        assert sinks.stored == 0
        assert (await store(sinks, plain_dataset())).status == 0
    assert names(tmp_path) == ["1.2.3.4.dcm"]


@pytest.mark.parametrize("mode", MODES)
async def test_data_then_name_then_folder_are_made_durable_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Durability
) -> None:
    order: list[str] = []
    threads: set[int] = set()
    for name in ("fdatasync", "link", "fsync"):
        real = getattr(os, name)

        def noting(
            *arguments: object,
            _real: Callable[..., None] = real,
            _name: str = name,
            **named: object,
        ) -> None:
            order.append(_name)
            threads.add(threading.get_ident())
            _real(*arguments, **named)

        monkeypatch.setattr(os, name, noting)
    with FolderSinks(tmp_path, durable=mode) as sinks:
        # The folder's own name is durable before anything is taken.
        assert order == ([] if mode is Durability.NONE else ["fsync"])
        order.clear()
        threads.clear()
        assert (await store(sinks, plain_dataset())).status == 0
        first = order.copy()
        order.clear()
        assert (await store(sinks, plain_dataset())).status == 0
    if mode is Durability.NONE:
        assert first == ["link"]
        assert order == ["link"]
    else:
        assert first == ["fdatasync", "link", "fsync"]
        # What is there already may have been written by somebody else, and be durable nowhere yet.
        assert order == ["fdatasync", "fsync"]
        assert threading.get_ident() not in threads


@pytest.mark.parametrize("written", [0, 1, 5])
async def test_discard_leaves_nothing(tmp_path: Path, written: int) -> None:
    with FolderSinks(tmp_path) as sinks:
        before = descriptors()
        sink = sinks(incoming())
        for _ in range(written):
            await sink.write(Slices(b"12345678"))
        assert names(tmp_path) == []
        sink.discard()
        sink.discard()
        assert names(tmp_path) == []
        assert descriptors() == before


async def test_a_sink_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    with FolderSinks(tmp_path) as sinks:
        before = descriptors()
        sink: FolderSink | None = sinks(incoming())
        assert sink is not None
        await sink.write(Slices(b"12345678"))
        sink = None
        assert names(tmp_path) == []
        assert descriptors() == before


@pytest.mark.parametrize("mode", MODES)
async def test_a_commit_that_is_cancelled_leaves_all_or_nothing(
    tmp_path: Path, mode: Durability
) -> None:
    data = plain_dataset()
    with FolderSinks(tmp_path, durable=mode) as sinks:
        before = descriptors()
        with trio.CancelScope() as scope:
            scope.cancel()
            await store(sinks, data)
        assert descriptors() == before
        for name in names(tmp_path):
            assert bytes(open_instance(tmp_path / name).dataset) == data  # type: ignore[arg-type]


async def test_an_empty_dataset_is_not_stored(tmp_path: Path) -> None:
    with FolderSinks(tmp_path) as sinks:
        assert (await store(sinks, b"")).status == 0xC000
    assert names(tmp_path) == []


async def test_an_object_of_another_uid_is_refused_by_its_element(tmp_path: Path) -> None:
    with FolderSinks(tmp_path) as sinks:
        reply = await store(sinks, plain_dataset("1.2.3.5"), uid="1.2.3.4")
    assert (reply.status, reply.offending) == (0xA900, (0x00080018,))
    assert names(tmp_path) == []


async def test_objects_without_end_under_one_uid_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmhaul.objects.sinks._COPIES_MAX", 2)
    with FolderSinks(tmp_path) as sinks:
        for n in range(3):
            assert (await store(sinks, b"%08d" % n)).status == 0
        reply = await store(sinks, b"%08d" % 3)
    assert reply.status == 0xA700
    assert "different objects" in reply.error_comment
    assert len(names(tmp_path)) == 3


async def test_the_digest_is_that_of_the_dataset() -> None:
    data = plain_dataset()
    found: list[tuple[str, str, int]] = []
    sink = DigestSink(
        incoming(), lambda one, digest, n: found.append((one.sop_instance_uid, digest, n))
    )
    await sink.write(Slices(data[:50]))
    await sink.write(Slices(data[50:]))
    assert found == []
    assert (await sink.commit()).status == 0
    assert found == [("1.2.3.4", hashlib.sha256(data).hexdigest(), len(data))]
    sink.discard()


async def test_what_is_discarded_is_counted() -> None:
    sink = discard_instance(incoming())
    await sink.write(Slices(b"1234"))
    await sink.write(Slices(b"12"))
    assert sink.length == 6
    assert (await sink.commit()).status == 0
    sink.discard()
