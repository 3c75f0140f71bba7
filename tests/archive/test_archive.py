"""The archive itself: bytes come back, 0000 is durable, duplicates, recovery, hostile objects."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from dcmhaul import uids
from dcmhaul.archive import Archive, open_archive
from dcmhaul.archive import scp as scp_module
from dcmhaul.archive import store as store_module
from dcmhaul.archive.store import Intake, Refused
from dcmhaul.errors import ConfigurationError, UnreadableInstance
from dcmhaul.objects.instances import BytesInMemory, IncomingInstance, StoreRefused, StoreReply
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.paths import Durability, Folder
from dcmhaul.services.identifiers import EncodedIdentifier, QueryRefused
from dcmhaul.services.query import QueryModel
from tests.archive.made import CT, decode, encode, instance, pieces, real_files
from tests.archive.test_query import query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pydicom.dataset import Dataset
    from sqlalchemy.engine import Connection

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
STUDY = QueryModel.STUDY_ROOT


def incoming(dataset: Dataset | None = None, **fields: str) -> IncomingInstance:
    known: dict[str, Any] = {
        "sop_class_uid": CT if dataset is None else str(dataset.SOPClassUID),
        "sop_instance_uid": "1.2.3" if dataset is None else str(dataset.SOPInstanceUID),
        "transfer_syntax_uid": EXPLICIT,
        "calling_ae_title": "TESTER",
        "called_ae_title": "HELD",
        "peer": "127.0.0.1:1",
    }
    return IncomingInstance(**(known | fields))


async def store_bytes(
    archive: Archive, about: IncomingInstance, data: bytes, size: int = 1 << 20
) -> StoreReply:
    sink = archive.sink(about)
    for piece in pieces(data, size):
        await sink.write(BytesInMemory(piece))
    return await sink.commit()


async def store(archive: Archive, dataset: Dataset, **fields: str) -> StoreReply:
    about = incoming(dataset, **fields)
    return await store_bytes(archive, about, encode(dataset, about.transfer_syntax_uid))


async def find(archive: Archive, level: str, **keys: object) -> list[Dataset]:
    identifier = EncodedIdentifier(data=encode(query(level, **keys)), transfer_syntax=EXPLICIT)
    return [decode(match) async for match in archive.find(STUDY, identifier, "TESTER")]


async def contents(archive: Archive, **keys: object) -> dict[str, tuple[str, bytes]]:
    """SOP Instance UID -> transfer syntax and dataset, of what a retrieve would give out."""
    data = encode(query("STUDY", **(keys or {"PatientID": "?*"})))
    identifier = EncodedIdentifier(data=data, transfer_syntax=EXPLICIT)
    found = {}
    for stored in await archive.select(STUDY, identifier, "TESTER"):
        opened = stored.open()
        dataset = opened.dataset
        if isinstance(dataset, memoryview):
            held = bytes(dataset)
        else:
            held = os.pread(dataset.fd, dataset.length, dataset.offset)
        found[stored.sop_instance_uid] = (opened.transfer_syntax_uid, held)
        opened.close()
    return found


def files(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "objects").rglob("*") if p.is_file())


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[Archive]:
    async with open_archive(folder / "archive", **options) as archive:
        yield archive


async def test_the_real_files_come_back_byte_by_byte(tmp_path: Path) -> None:
    paths = real_files()
    expected = {}
    for path in paths:
        source = open_instance(path)
        dataset = source.dataset
        data = (
            bytes(dataset)
            if isinstance(dataset, memoryview)
            else os.pread(dataset.fd, dataset.length, dataset.offset)
        )
        expected[source.sop_instance_uid] = (source.transfer_syntax_uid, data)
        source.close()
    assert len(expected) >= 116
    async with opened(tmp_path) as archive:
        summary = await archive.import_files(paths)
        assert (summary.stored, summary.failed, summary.skipped) == (len(paths), [], [])
        found: dict[str, tuple[str, bytes]] = {}
        for study in await find(archive, "STUDY", StudyInstanceUID=""):
            found |= await contents(archive, StudyInstanceUID=study.StudyInstanceUID)
        assert found == expected
        assert archive.statistics().holds.instances == len(expected)
        again = await archive.import_files(paths)
        assert (again.stored, again.duplicates) == (0, len(paths))
    assert len(files(tmp_path / "archive")) == len(paths)
    async with opened(tmp_path) as archive:
        assert archive.recovery.lines() == []
        assert archive.statistics().holds.instances == len(expected)


@pytest.mark.parametrize("size", [1 << 20, 1000])
@pytest.mark.parametrize("pixels", [100, 40_000, 200_000])
async def test_what_arrives_by_pieces_is_whole_in_memory_or_on_disk(
    tmp_path: Path, pixels: int, size: int
) -> None:
    dataset = instance(PixelData=bytes(range(250)) * (pixels // 250))
    data = encode(dataset)
    async with opened(tmp_path) as archive:
        reply = await store_bytes(archive, incoming(dataset), data, size)
        assert reply.status == 0
        assert (await contents(archive))[dataset.SOPInstanceUID] == (EXPLICIT, data)
        assert archive._held == 0


async def test_memory_for_small_objects_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = [instance(SOPInstanceUID=f"1.2.{n}", PixelData=bytes(3000)) for n in range(4)]
    monkeypatch.setattr(scp_module, "HELD_TOTAL_MAX", 2 * len(encode(datasets[0])) + 100)
    async with opened(tmp_path) as archive:
        sinks = [archive.sink(incoming(dataset)) for dataset in datasets]
        before = len(os.listdir("/proc/self/fd"))
        for sink, dataset in zip(sinks, datasets, strict=True):
            await sink.write(BytesInMemory(encode(dataset)))
        assert len(os.listdir("/proc/self/fd")) == before + 2
        assert archive._held == 2 * len(encode(datasets[0]))
        sinks.pop().discard()
        sinks.pop(0).discard()
        for sink in sinks:
            assert (await sink.commit()).status == 0
        assert (set(await contents(archive)), archive._held) == ({"1.2.1", "1.2.2"}, 0)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not DICOM")
    data = encode(instance())
    (tmp_path / "short").write_bytes(bytes(128) + b"DICM" + data[:-1])
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(data)
    other.write_bytes(encode(instance(PatientName="Another")))
    async with opened(tmp_path) as archive:
        summary = await archive.import_files(
            [tmp_path / "text", tmp_path / "short", tmp_path / "absent"]
        )
        assert [path for path, _ in summary.skipped] == [str(tmp_path / "text")]
        assert sorted(path for path, _ in summary.failed) == [
            str(tmp_path / "absent"),
            str(tmp_path / "short"),
        ]
        assert (await archive.import_files([one])).stored == 1
        assert (await archive.import_files([other])).conflicts == [str(other)]


@pytest.mark.parametrize("durability", list(Durability))
async def test_every_durability_stores_and_reopens(tmp_path: Path, durability: Durability) -> None:
    dataset = instance()
    async with opened(tmp_path, durability=durability) as archive:
        assert (await store(archive, dataset)).status == 0
    async with opened(tmp_path, durability=durability) as archive:
        assert (await contents(archive))["1.2.3.1.1.1"] == (EXPLICIT, encode(dataset))


async def test_the_file_of_an_object(tmp_path: Path) -> None:
    dataset = instance()
    async with opened(tmp_path) as archive:
        await store(archive, dataset)
    (path,) = files(tmp_path / "archive")
    assert path.stat().st_mode & 0o777 == 0o600
    raw = path.read_bytes()
    assert raw[:132] == bytes(128) + b"DICM"
    assert raw.endswith(encode(dataset))
    read = open_instance(path)
    assert read.sop_instance_uid == "1.2.3.1.1.1"
    # Nothing of the object is in its name.
    assert re.fullmatch("[0-9a-f]{32}", path.stem)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_any_split(tmp_path: Path, size: int) -> None:
    dataset = instance()
    data = encode(dataset)
    async with opened(tmp_path) as archive:
        assert (await store_bytes(archive, incoming(dataset), data, size)).status == 0
        assert (await contents(archive))["1.2.3.1.1.1"] == (EXPLICIT, data)


@pytest.mark.parametrize(
    "syntax",
    [
        uids.IMPLICIT_VR_LITTLE_ENDIAN,
        uids.EXPLICIT_VR_BIG_ENDIAN,
        uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    ],
)
async def test_syntaxes(tmp_path: Path, syntax: str) -> None:
    dataset = instance(SpecificCharacterSet="ISO_IR 100", PatientName="Müller")
    data = encode(dataset, EXPLICIT if "1.99" in syntax else syntax)
    if "1.99" in syntax:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflate.compress(data) + deflate.flush()
    about = incoming(dataset, transfer_syntax_uid=syntax)
    async with opened(tmp_path) as archive:
        assert await store_bytes(archive, about, data, 11) == StoreReply(status=0)
        assert await contents(archive) == {"1.2.3.1.1.1": (syntax, data)}
        (image,) = await find(
            archive, "IMAGE", PatientName="MÜLLER", SpecificCharacterSet="ISO_IR 192", Rows=None
        )
        assert image.Rows == 4
        assert image.PatientName == "Müller"


# -- duplicates ---------------------------------------------------------------------------------


async def test_the_same_bytes_again(tmp_path: Path) -> None:
    dataset = instance()
    async with opened(tmp_path) as archive:
        assert (await store(archive, dataset)).status == 0
        before = files(tmp_path / "archive")
        changed = [p.stat().st_mtime_ns for p in before]
        assert (await store(archive, dataset)).status == 0
        assert files(tmp_path / "archive") == before
        assert [p.stat().st_mtime_ns for p in before] == changed
        statistics = archive.statistics()
        assert (statistics.stored, statistics.duplicates) == (1, 1)


async def test_other_bytes_under_a_known_uid(tmp_path: Path) -> None:
    first, second = instance(), instance(PatientName="Another")
    async with opened(tmp_path) as archive:
        await store(archive, first)
        for _ in range(2):
            reply = await store(archive, second)
            assert reply.status >> 12 == 0xC
            assert 0 < len(reply.error_comment) <= 64
        assert await contents(archive) == {"1.2.3.1.1.1": (EXPLICIT, encode(first))}
        # Kept aside, once.
        held = files(tmp_path / "archive")
        assert len(held) == 2
        assert any(p.read_bytes().endswith(encode(second)) for p in held)
        assert archive.statistics().conflicts == 2
        assert archive.statistics().holds.conflicts == 1
    async with opened(tmp_path) as archive:
        assert archive.recovery.lines() == []


async def test_one_uid_twenty_times_at_once(tmp_path: Path) -> None:
    datasets = [instance(), instance(PatientName="Another")]
    replies: list[int] = []

    async with opened(tmp_path) as archive:

        async def one(n: int) -> None:
            replies.append((await store(archive, datasets[n % 2])).status)

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(one, n)
        assert set(replies) == {0, 0xC001}
        assert replies.count(0) == 10
        assert len(await find(archive, "IMAGE", SOPInstanceUID="1.2.3.1.1.1")) == 1
        assert len(files(tmp_path / "archive")) == 2


# -- the order of a store -----------------------------------------------------------------------


async def test_objects_of_one_moment_share_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    started = threading.Event()
    syncs = []
    real_sync = Folder.sync

    def sync(self: Folder, *, shared: bool = True) -> None:
        started.set()
        assert gate.wait(20)
        syncs.append(self.path)
        real_sync(self, shared=shared)

    async with opened(tmp_path) as archive:
        monkeypatch.setattr(Folder, "sync", sync)
        before = archive.statistics().writer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store, archive, instance(1))
            await trio.to_thread.run_sync(started.wait, 20)
            for n in range(2, 41):
                nursery.start_soon(store, archive, instance(n))
            with trio.fail_after(20):
                while len(files(tmp_path / "archive")) < 40:
                    await trio.sleep(0.01)
            gate.set()
        after = archive.statistics().writer
        assert after.jobs - before.jobs == 40
        # The first alone, then what had gathered; stragglers may make one more.
        assert after.commits - before.commits <= 4
        assert len(syncs) == after.commits - before.commits
        monkeypatch.setattr(Folder, "sync", real_sync)


async def test_the_order_is_data_name_folder_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    async with opened(tmp_path) as archive:
        for module, name in ((os, "fdatasync"), (os, "link"), (os, "fsync")):
            real = getattr(module, name)

            def spy(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
                seen.append(name)
                return real(*args, **kwargs)

            monkeypatch.setattr(module, name, spy)
        real_add = archive._rows.add

        def add(*args: Any) -> Any:
            seen.append("row")
            return real_add(*args)

        monkeypatch.setattr(archive._rows, "add", add)
        reply = await store(archive, instance())
        seen.append(f"{reply.status:04X}")
    assert seen[:5] == ["fdatasync", "link", "fsync", "row", "0000"]


FAULTS = [
    ("fdatasync", errno.EIO),
    ("fdatasync", errno.ENOSPC),
    ("link", errno.ENOSPC),
    ("link", errno.EROFS),
    ("fsync", errno.EIO),
    ("pwritev", errno.ENOSPC),
    ("pwritev", errno.EDQUOT),
    ("open", errno.EMFILE),
]


@pytest.mark.parametrize(("call", "code"), FAULTS)
async def test_a_failing_disk_never_ends_in_0000(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    async with opened(tmp_path) as archive:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                reply = await store(archive, instance(1))
            except StoreRefused as refused:
                reply = refused.reply
        assert reply.status == 0xA700
        assert os.strerror(code) in reply.error_comment
        assert await find(archive, "STUDY", StudyInstanceUID="") == []
        # The next one is none the worse for it.
        assert (await store(archive, instance(2))).status == 0
        assert archive.statistics().refused == 1
    async with opened(tmp_path) as archive:
        assert archive.recovery.missing == []
        assert "1.2.3.2.1.1" in await contents(archive)


async def test_a_full_index_never_ends_in_0000(tmp_path: Path) -> None:
    async with opened(tmp_path) as archive:

        def limit(pages: int) -> Callable[[Connection], object]:
            return lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar()

        await archive._database.submit(limit(1))
        reply = StoreReply(status=0)
        count = 0
        while reply.status == 0 and count < 200:
            count += 1
            reply = await store(archive, instance(count, StudyDescription="x" * 900))
        assert reply.status == 0xA700
        assert reply.error_comment == "cannot store: the index cannot be written"
        assert archive.statistics().stored == count - 1
        await archive._database.submit(limit(1_000_000))
        assert (await store(archive, instance(count))).status == 0
        assert len(await contents(archive)) == count
    async with opened(tmp_path) as archive:
        # The object that was refused had its name already: it was sent again, so it is a conflict's
        # or a duplicate's file now.
        assert archive.recovery.missing == []
        assert len(await contents(archive)) == count


# -- what cannot be archived --------------------------------------------------------------------


@pytest.mark.parametrize(
    "uid", ["/etc/cron.d/x", "../../x", "..%00", "", "1" * 65, "1.2\0", "1.2\r\n", "\uff11.2", "a"]
)
async def test_hostile_instance_uids(tmp_path: Path, uid: str) -> None:
    async with opened(tmp_path) as archive:
        with pytest.raises(StoreRefused) as refused:
            archive.sink(incoming(sop_instance_uid=uid))
        assert refused.value.reply.status == 0x0117
    assert files(tmp_path / "archive") == []


@pytest.mark.parametrize(
    ("dataset", "fields", "offending"),
    [
        (instance(StudyInstanceUID=None), {}, 0x0020000D),
        (instance(SeriesInstanceUID=""), {}, 0x0020000E),
        (instance(), {"sop_instance_uid": "1.9"}, 0x00080018),
        (instance(), {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}, 0x00080016),
    ],
)
async def test_datasets_that_say_something_else(
    tmp_path: Path, dataset: Dataset, fields: dict[str, str], offending: int
) -> None:
    async with opened(tmp_path) as archive:
        reply = await store(archive, dataset, **fields)
        assert (reply.status, reply.offending) == (0xA900, (offending,))
        assert 0 < len(reply.error_comment) <= 64
        assert archive.statistics().refused == 1
    assert files(tmp_path / "archive") == []


def undefined_nesting(depth: int) -> bytes:
    return b"\x40\x00\x75\xa0SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * depth


BROKEN = [
    encode(instance())[:-1],
    encode(instance())[:-12],
    encode(instance()) + b"\x10",
    encode(instance())[:-16] + b"\xf0\xff\xff\xff" + encode(instance())[-8:],
    undefined_nesting(100),
    b"\xfe\xff\x0d\xe0\0\0\0\0",
    b"",
    b"\x08\x00\x01\x00CS\x00\x00" * 1_000_001,
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
async def test_broken_datasets(tmp_path: Path, data: bytes) -> None:
    async with opened(tmp_path) as archive:
        reply = await store_bytes(archive, incoming(instance()), data, 1 << 16)
        assert reply.status >> 12 == 0xC or reply.status == 0xA900
        assert 0 < len(reply.error_comment) <= 64
        assert (await store(archive, instance(2))).status == 0
    assert len(files(tmp_path / "archive")) == 1


async def test_names_are_nothing_but_text(tmp_path: Path) -> None:
    dataset = instance(
        StudyInstanceUID="../../..",
        SeriesInstanceUID="..",
        PatientName="/; rm -rf $(x)'\"--^\\x",
        PatientID="'; DROP TABLE study; --",
    )
    async with opened(tmp_path) as archive:
        assert (await store(archive, dataset)).status == 0
        (study,) = await find(archive, "STUDY", PatientID="'; DROP TABLE study; --")
        assert study.StudyInstanceUID == "../../.."
        assert len(await contents(archive, PatientID="'; DROP TABLE study; --")) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive"]
    assert len(files(tmp_path / "archive")) == 1


def test_a_deflate_bomb_is_not_inflated() -> None:
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    head = encode(instance())[:-20]
    bomb = deflate.compress(head + b"\xe0\x7f\x10\x00OB\0\0\0\0\0\x10")
    for _ in range(256):
        bomb += deflate.compress(bytes(1 << 20))
    bomb += deflate.flush()
    intake = Intake(uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
    for piece in pieces(bomb, 4096):
        intake.feed(piece)
    _, description = intake.finish()
    assert description.sop_instance_uid == "1.2.3.1.1.1"
    assert intake._inflated == store_module.INFLATED_MAX


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x01\x02\x03\x04", b""])
def test_a_broken_deflate_stream(data: bytes) -> None:
    intake = Intake(uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
    with pytest.raises(Refused):
        intake.feed(data)
        intake.finish()


async def test_a_message_that_breaks_off(tmp_path: Path) -> None:
    async with opened(tmp_path) as archive:
        sink = archive.sink(incoming(instance()))
        await sink.write(BytesInMemory(encode(instance())[:50]))
        sink.discard()
        sink.discard()
        assert archive.statistics().holds.instances == 0
    assert list((tmp_path / "archive" / "tmp").iterdir()) == []


async def test_queries_that_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as archive:
        for data, status, *offending in (
            (encode(query("NOWHERE")), 0xA900, 0x00080052),
            (b"nonsense", 0xC000),
            (encode(query("STUDY", StudyDate="-")), 0xC000, 0x00080020),
        ):
            identifier = EncodedIdentifier(data=data, transfer_syntax=EXPLICIT)
            with pytest.raises(QueryRefused) as refused:
                [m async for m in archive.find(STUDY, identifier, "")]
            assert refused.value.status == status
            assert refused.value.offending == tuple(offending)
            with pytest.raises(QueryRefused):
                await archive.select(STUDY, identifier, "")


async def test_strict(tmp_path: Path) -> None:
    async with opened(tmp_path, strict=True) as archive:
        await store(archive, instance())
        with pytest.raises(QueryRefused):
            await find(archive, "IMAGE", SOPInstanceUID="")
        assert len(await find(archive, "STUDY", StudyInstanceUID="")) == 1


# -- recovery -----------------------------------------------------------------------------------


def rows_forgotten(folder: Path, uid: str) -> None:
    """As after a kill between the folder's sync and the COMMIT."""
    import sqlite3

    connection = sqlite3.connect(folder / "index.db")
    connection.execute("DELETE FROM instance WHERE sop_instance_uid = ?", (uid,))
    connection.commit()
    connection.close()


async def test_an_object_without_a_row_is_adopted(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    dataset = instance(SpecificCharacterSet="ISO_IR 100", PatientName="Müller")
    async with opened(tmp_path) as archive:
        await store(archive, dataset)
        await store(archive, instance(2))
    rows_forgotten(folder, "1.2.3.1.1.1")
    async with opened(tmp_path) as archive:
        assert archive.recovery.adopted == 1
        found = await contents(archive)
        assert found["1.2.3.1.1.1"] == (EXPLICIT, encode(dataset))
        assert len(found) == 2
        assert len(archive.recovery.lines()) == 1
    async with opened(tmp_path) as archive:
        assert archive.recovery.lines() == []


async def test_an_object_that_is_held_already_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with opened(tmp_path) as archive:
        await store(archive, instance())
    (path,) = files(folder)
    (path.parent / ("0" * 32 + ".dcm")).write_bytes(path.read_bytes())
    async with opened(tmp_path) as archive:
        assert archive.recovery.duplicates == 1
    assert files(folder) == [path]


async def test_what_is_no_whole_object_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with opened(tmp_path) as archive:
        await store(archive, instance())
    (path,) = files(folder)
    raw = path.read_bytes()
    for n, data in enumerate((raw[:-1], raw[:200], b"", b"text", raw[-40:])):
        (path.parent / f"{n}.dcm").write_bytes(data)
    (path.parent / "folder").mkdir()
    async with opened(tmp_path) as archive:
        assert archive.recovery.set_aside == 6
        assert len(await contents(archive)) == 1
    assert files(folder) == [path]
    assert len(list((folder / "quarantine").iterdir())) == 6


async def test_a_row_without_its_file_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with opened(tmp_path) as archive:
        await store(archive, instance())
    files(folder)[0].unlink()
    async with opened(tmp_path) as archive:
        assert archive.recovery.missing == ["1.2.3.1.1.1"]
        assert "LOST" in archive.recovery.lines()[0]
        (stored,) = await archive.select(
            STUDY,
            EncodedIdentifier(
                data=encode(query("STUDY", StudyInstanceUID="1.2.3.1")), transfer_syntax=EXPLICIT
            ),
            "",
        )
        with pytest.raises(UnreadableInstance):
            stored.open()


async def test_a_file_that_became_shorter_is_not_given_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as archive:
        await store(archive, instance())
        await store(archive, instance(2, PatientComments="x" * 200, PixelData=bytes(70_000)))
        for path in files(tmp_path / "archive"):
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - 2)
        for study in ("1.2.3.1", "1.2.3.2"):
            with pytest.raises(UnreadableInstance):
                await contents(archive, StudyInstanceUID=study)


async def test_temporaries_are_removed(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / "archive" / "tmp" / ".dcmhaul-1-x.tmp").write_bytes(b"half")
    async with opened(tmp_path) as archive:
        assert archive.recovery.temporaries == 1
    assert list((tmp_path / "archive" / "tmp").iterdir()) == []


async def test_folders_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FOLDER_FILES_MAX", 3)
    async with opened(tmp_path) as archive:
        for n in range(7):
            await store(archive, instance(n))
    async with opened(tmp_path) as archive:
        for n in range(7, 20):
            await store(archive, instance(n))
        assert len(await contents(archive)) == 20
        assert archive.recovery.lines() == []
    held = files(tmp_path / "archive")
    assert len({p.parent for p in held}) == 7


async def test_one_process(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(ConfigurationError, match="another process"):
            async with opened(tmp_path):
                pass


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot make the folder"):
        async with open_archive(tmp_path / "file" / "archive"):
            pass


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    async with opened(tmp_path) as archive:
        await store(archive, instance())
        await store(archive, instance())
        await store(archive, instance(PatientName="Another"))
        await store(archive, instance(StudyInstanceUID=None))
        before = os.listdir("/proc/self/fd")
        for n in range(3, 20):
            await store(archive, instance(n))
            await store(archive, instance(n))
            await store_bytes(archive, incoming(instance()), b"broken")
            await contents(archive, StudyInstanceUID=f"1.2.3.{n}")
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


async def test_a_cancelled_store_leaves_all_or_nothing(tmp_path: Path) -> None:
    data = encode(instance(PixelData=bytes(5000)))
    for n in range(1, 30):
        async with opened(tmp_path / str(n)) as archive:
            sink = archive.sink(incoming(instance()))
            with trio.CancelScope() as scope:
                for i, piece in enumerate(pieces(data, 500)):
                    if i == n:
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
                    await sink.write(BytesInMemory(piece))
                if n > 15:
                    scope.cancel()
                await sink.commit()
            sink.discard()
            held = files(tmp_path / str(n) / "archive")
            assert len(held) == archive.statistics().holds.instances
        async with opened(tmp_path / str(n)) as archive:
            assert archive.recovery.lines() == []
        if n > 15:
            break


WITHOUT_PYDICOM = """
import sys
sys.modules["pydicom"] = None
import trio
from dcmhaul.archive import open_archive
from dcmhaul.services.identifiers import EncodedIdentifier
from dcmhaul.services.query import QueryModel

async def main():
    async with open_archive(sys.argv[1]) as archive:
        assert (await archive.import_files([sys.argv[2]])).stored == 1
        key = b"\\x20\\0\\x0d\\0\\0\\0\\0\\0"
        identifier = EncodedIdentifier(data=key, transfer_syntax="1.2.840.10008.1.2")
        assert len([m async for m in archive.find(QueryModel.STUDY_ROOT, identifier, "")]) == 1

trio.run(main)
"""


def test_neither_storing_nor_finding_needs_pydicom(tmp_path: Path) -> None:
    path = real_files()[0]
    subprocess.run(
        [sys.executable, "-c", WITHOUT_PYDICOM, tmp_path / "archive", path], check=True, timeout=60
    )
