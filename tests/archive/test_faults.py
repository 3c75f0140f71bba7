"""Disks that refuse, fill up or hang, under the archive and under a folder that receives."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.net import AcceptorLimits, Association, serve_associations
from dcmhaul.objects import instances
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.paths import Durability, Folder, SpaceWatch
from dcmhaul.objects.sinks import FolderSinks
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.storage import StorageScp, proposes_storage
from dcmhaul.services.verification import VerificationScp, echo
from dcmhaul.wire.part10 import encode_file_meta
from tests.archive.made import CT, encode, instance
from tests.archive.serving import AE_TITLE, Served, send, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dcmhaul.services.provider import Service

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
SIZES = (500, 90_000)  # held in memory until it is whole, and on disk from the beginning


@dataclass
class Receiver:
    """A listener whose folder is on a disk with faults."""

    folder: Path
    served: Any

    async def send(self, *paths: Path, window: int = 1) -> list[int | None]:
        return [outcome.status for outcome in await send(self.served, paths, window=window)]

    def held(self) -> dict[str, bytes]:
        """What a start after a crash would find: dataset bytes by UID. No other file is there."""
        found = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            if path.name.startswith(("index.db", ".")):
                assert not path.name.endswith(".tmp"), path
                continue
            opened = open_instance(path)
            data = opened.dataset
            if not isinstance(data, memoryview):
                data = memoryview(os.pread(data.fd, data.length, data.offset))
            found[opened.sop_instance_uid] = bytes(data)
            opened.close()
        return found


@dataclass
class Bare:
    """What `send` needs to know of a listener."""

    port: int
    associate: Any = field(default=None)

    def __post_init__(self) -> None:
        self.associate = lambda *args, **named: Served.associate(self, *args, **named)  # type: ignore[arg-type]


@asynccontextmanager
async def receiving(
    folder: Path, durability: Durability, limits: AcceptorLimits | None = None
) -> AsyncIterator[Receiver]:
    """As `receive -od` does it."""
    with FolderSinks(folder, durable=durability) as sinks:
        services: list[Service] = [VerificationScp(), StorageScp(sinks)]
        policy = acceptor_policy(services, ae_title=AE_TITLE)

        async def handler(association: Association) -> None:
            await serve_services(association, services)

        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
                await serve_associations(
                    handler, policy, host="127.0.0.1", limits=limits, task_status=task_status
                )

            ((_, port),) = await nursery.start(serve)
            yield Receiver(folder, Bare(port))
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def archiving(folder: Path, durability: Durability) -> AsyncIterator[Receiver]:
    async with serving(folder, durability=durability) as served:
        yield Receiver(folder, served)
        assert served.archive._held == 0


KINDS = {"archive": archiving, "receive": receiving}


def write(folder: Path, number: int, size: int) -> Path:
    dataset = instance(number, PixelData=bytes(size))
    path = folder / f"sent-{number}"
    path.write_bytes(encode_file_meta(CT, dataset.SOPInstanceUID, EXPLICIT) + encode(dataset))
    return path


def data_of(path: Path) -> dict[str, bytes]:
    opened = open_instance(path)
    try:
        uid = opened.sop_instance_uid
    finally:
        opened.close()
    raw = path.read_bytes()
    return {uid: raw[len(encode_file_meta(CT, uid, EXPLICIT)) :]}


class FaultyOs:
    """The `os` of a module, in which one call fails."""

    def __init__(self, call: str, code: int) -> None:
        self._call = call
        self._code = code
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        if name != self._call:
            return getattr(os, name)

        def fail(*_arguments: object, **_named: object) -> None:
            self.failed += 1
            raise OSError(self._code, os.strerror(self._code))

        return fail


FAULTS = [
    ("open", errno.EMFILE),
    ("open", errno.ENFILE),
    ("open", errno.EROFS),
    ("open", errno.ENOSPC),
    ("open", errno.ENOMEM),
    ("fdatasync", errno.EIO),
    ("fdatasync", errno.ENOSPC),
    ("fdatasync", errno.EDQUOT),
    ("link", errno.EIO),
    ("link", errno.ENOSPC),
    ("link", errno.EDQUOT),
    ("link", errno.EROFS),
    ("fsync", errno.EIO),
    ("fsync", errno.ENOSPC),
]


@contextlib.contextmanager
def faulty(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> Iterator[FaultyOs]:
    """Within the block the call fails in every module that files objects."""
    shim = FaultyOs(call, code)
    with monkeypatch.context() as patch:
        for module in ("objects.paths", "objects.sinks", "archive.store", "archive.sink"):
            patch.setattr(f"dcmhaul.{module}.os", shim)
        yield shim


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("call", "code"), FAULTS)
async def test_a_call_that_fails_is_a700_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str, code: int
) -> None:
    before, *refused = paths = [write(tmp_path, n, SIZES[n % 2]) for n in range(1, 6)]
    async with KINDS[kind](tmp_path / "held", Durability.BATCH) as receiver:
        assert await receiver.send(before) == [0]
        descriptors = len(os.listdir("/proc/self/fd"))
        with faulty(monkeypatch, call, code) as shim:
            outcomes = await send(receiver.served, refused, window=4)
            assert [outcome.status for outcome in outcomes] == [0xA700] * 4
            assert shim.failed
        for outcome in outcomes:
            assert os.strerror(code)[:40] in outcome.error_comment
        assert receiver.held() == data_of(before)
        await settled(descriptors)
        # The disk works again, and so does the listener.
        assert await receiver.send(*paths) == [0] * 5
    expected = {uid: data for path in paths for uid, data in data_of(path).items()}
    assert receiver.held() == expected
    async with KINDS[kind](tmp_path / "held", Durability.BATCH) as receiver:
        assert receiver.held() == expected


async def settled(descriptors: int) -> None:
    """Associations close a little after their ends."""
    with trio.fail_after(5):
        while len(os.listdir("/proc/self/fd")) > descriptors:
            await trio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_folders_and_renames_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    """Without nameless files and hard links, as on FAT and some network file systems."""
    paths = [write(tmp_path, n, SIZES[n % 2]) for n in range(1, 5)]
    monkeypatch.setattr("dcmhaul.objects.paths._O_TMPFILE", 0)
    monkeypatch.setattr("dcmhaul.archive.store.FOLDER_FILES_MAX", 1)
    with faulty(monkeypatch, "link", errno.EPERM):
        async with KINDS[kind](tmp_path / "held", Durability.BATCH) as receiver:
            assert await receiver.send(paths[0]) == [0]
            calls = ["rename", "makedirs"] if kind == "archive" else ["rename"]
            for call in calls:
                shim = FaultyOs("link", errno.EPERM)
                real = getattr(os, call)

                def fail(*_arguments: object, **_named: object) -> None:
                    raise OSError(code, os.strerror(code))

                setattr(shim, call, fail)
                with monkeypatch.context() as patch:
                    patch.setattr("dcmhaul.objects.paths.os", shim)
                    assert await receiver.send(*paths[1:]) == [0xA700] * 3
                    assert getattr(os, call) is real
                assert receiver.held() == data_of(paths[0])
            assert await receiver.send(*paths) == [0] * 4
        assert len(receiver.held()) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("durability", [Durability.EACH, Durability.BATCH])
async def test_a_disk_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, durability: Durability
) -> None:
    paths = [write(tmp_path, n, SIZES[n % 2]) for n in range(1, 13)]
    gate = threading.Event()
    real = Folder.sync

    def hang(self: Folder, *, shared: bool = True) -> None:
        assert gate.wait(30)
        real(self, shared=shared)

    monkeypatch.setattr(instances, "PATIENCE_SECONDS", 0.3)
    async with KINDS[kind](tmp_path / "held", durability) as receiver:
        descriptors = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "sync", hang)
            with trio.fail_after(5):
                outcomes = await send(receiver.served, paths, window=len(paths))
                assert [outcome.status for outcome in outcomes] == [0xA700] * len(paths)
                assert "does not answer" in outcomes[0].error_comment
                verification = [(uids.VERIFICATION, EXPLICIT)]
                async with receiver.served.associate(verification) as association:
                    assert await echo(association) == 0
            gate.set()
        monkeypatch.setattr(instances, "PATIENCE_SECONDS", 20)
        # What was on its way may be there by now, though nobody was told; none is there twice.
        assert await receiver.send(*paths) == [0] * len(paths)
        await settled(descriptors)
    assert receiver.held() == {uid: data for path in paths for uid, data in data_of(path).items()}
    files = [p for p in (tmp_path / "held").rglob("*") if p.is_file() and "index" not in p.name]
    assert len(files) == len(paths)


# -- a disk that is really full -----------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [50_000, 300_000])
async def test_a_full_disk(tmp_path: Path, small_disk: Path, kind: str, size: int) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    paths = [write(tmp_path, n, size) for n in range(1, 6_000_000 // size)]
    held = small_disk / "held"
    async with KINDS[kind](held, Durability.BATCH) as receiver:
        outcomes = await send(receiver.served, paths, window=8)
        assert {outcome.status for outcome in outcomes} == {0, 0xA700}
        assert {outcome.error_comment for outcome in outcomes if outcome.status} <= {
            "cannot store: No space left on device",
            "cannot store: the index cannot be written",
        }
        told = {o.instance.sop_instance_uid for o in outcomes if o.status == 0}
        acknowledged = [path for path in paths if data_of(path).keys() <= told]
        for path in acknowledged:
            assert data_of(path).items() <= receiver.held().items()
        if kind == "archive":
            assert receiver.served.archive.statistics().holds.instances == len(acknowledged)
        ballast.unlink()
        more = [p for p in paths if p not in acknowledged][:4]
        assert await receiver.send(*more) == [0] * 4
    expected = {uid: data for path in (*acknowledged, *more) for uid, data in data_of(path).items()}
    assert receiver.held() == expected
    async with KINDS[kind](held, Durability.BATCH) as receiver:
        assert receiver.held() == expected
        if kind == "archive":
            assert receiver.served.archive.recovery.lines() == []


async def test_a_nearly_full_disk_takes_no_senders(tmp_path: Path, small_disk: Path) -> None:
    told: list[str] = []
    watch = SpaceWatch(small_disk, told.append)
    limits = AcceptorLimits(congested=lambda rq: proposes_storage(rq) and watch.is_low())
    path = write(tmp_path, 1, 500)
    ballast = small_disk / "ballast"
    async with receiving(small_disk / "held", Durability.BATCH, limits) as receiver:
        assert await receiver.send(path) == [0]
        ballast.write_bytes(bytes((6 << 20) - (100 << 10)))
        with pytest.raises(Exception, match=r"[Cc]ongestion"):
            await receiver.send(path)
        # Who does not want to store is served, and so is a retrieve that receives.
        for wanted in ([(uids.VERIFICATION, EXPLICIT)], [(CT, EXPLICIT)]):
            async with receiver.served.associate(wanted, get_classes=[CT]):
                pass
        ballast.unlink()
        assert await receiver.send(path) == [0]
    assert len(told) == 2
