"""A disk or a destination that stalls holds the source up; the memory of the process between does not grow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.net import Association, open_association
from dcmhaul.objects.synth import write_studies
from dcmhaul.protocol.negotiation import AssociationRequest, plan_contexts
from dcmhaul.services.storage import StorageScu, StoreOutcome
from tests.engine.fake_archive import CT, EXPLICIT, FakeArchive, make_instance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

MIB = 1024 * 1024
OBJECT_BYTES = 24 * MIB
OBJECTS = 8
# What associations may hold between them: their slabs, and a piece for each on its way out.
GROWTH_MAX = 48 * MIB
STALL_SECONDS = 1.5

# Runs the command line in a process in which no sync comes back before a file turns up.
BLOCKED_DISK = """
import os, sys, time
def blocked(real):
    def sync(fd):
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.02)
        real(fd)
    return sync
os.fsync, os.fdatasync = blocked(os.fsync), blocked(os.fdatasync)
from dcmhaul.cli import main
sys.exit(main(sys.argv[2:]))
"""


def resident(pid: int) -> int:
    """Bytes of memory that the process holds."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def stalled(progress: Callable[[], int]) -> int:
    """Waits until something has come and nothing more comes; returns how much."""
    seen, since = -1, trio.current_time()
    with trio.fail_after(40):
        while seen <= 0 or trio.current_time() - since < STALL_SECONDS:
            now = progress()
            if now != seen:
                seen, since = now, trio.current_time()
            await trio.sleep(0.02)
    return seen


@asynccontextmanager
async def process(tmp_path: Path, *command: str | Path) -> AsyncIterator[trio.Process]:
    """Runs during the block; its stderr is a file `err`."""
    with open(tmp_path / "err", "wb") as err:
        running = await trio.lowlevel.open_process(
            [sys.executable, *map(str, command)],
            stdout=subprocess.DEVNULL,
            stderr=err,
            env={**os.environ, "DCMHAUL_LEDGER": f"sqlite:///{tmp_path}/ledger.db"},
        )
    try:
        yield running
    finally:
        running.kill()
        await running.wait()


class Gate(FakeArchive):
    """An archive whose storage reads nothing while the gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    def _sink(self, incoming: Any) -> Any:
        sink = super()._sink(incoming)
        write = sink.write

        async def when_open(data: Any) -> None:
            await self.gate.wait()
            await write(data)

        sink.write = when_open  # type: ignore[method-assign]
        return sink


@pytest.mark.slow
async def test_a_stalled_destination_of_a_migration(tmp_path: Path) -> None:
    old = FakeArchive(
        [
            make_instance(n, study=f"1.2.3.{study}", size=OBJECT_BYTES)
            for study in (1, 2)
            for n in range(OBJECTS // 2)
        ]
    )
    new = Gate()
    async with old.running("OLD") as source, new.running("NEW") as destination:
        line = ("migrate", str(source), str(destination), "--associations", "2", "--window", "8")
        async with process(tmp_path, "-m", "dcmhaul", *line) as running:
            with trio.fail_after(40):
                while not old.requests:
                    await trio.sleep(0.01)
            before = resident(running.pid)
            await stalled(lambda: len(old.sent) + len(new.received))
            assert len(old.sent) < OBJECTS
            assert resident(running.pid) - before < GROWTH_MAX
            new.gate.set()
            with trio.fail_after(60):
                assert await running.wait() == 0, (tmp_path / "err").read_text()
    assert new.digests == old.digests


@asynccontextmanager
async def associated(port: int, window: int) -> AsyncIterator[Association]:
    request = AssociationRequest(
        called_ae_title="DCMHAUL",
        calling_ae_title="HERE",
        contexts=plan_contexts([(CT, EXPLICIT)])[0],
        window=window,
    )
    async with open_association("127.0.0.1", port, request) as association:
        yield association


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("verb", ["receive", "archive"])
async def test_a_stalled_disk_of_a_server(tmp_path: Path, verb: str, window: int) -> None:
    """What has arrived waits in files; no more than the window is read, and 0000 waits for the disk."""
    objects = [make_instance(n, size=OBJECT_BYTES) for n in range(OBJECTS)]
    folder = tmp_path / "store"
    folder.mkdir()
    go = tmp_path / "go"
    go.touch()  # while it opens its folder, or its index
    where: tuple[str | Path, ...] = ("0", "-od", folder)
    if verb == "archive":
        where = ("--dir", folder, "--port", "0")
    line = ("-c", BLOCKED_DISK, go, verb, *where, "--bind", "127.0.0.1")
    async with process(tmp_path, *line) as running:
        with trio.fail_after(30):
            while not (found := re.search(r"127\.0\.0\.1:(\d+)", (tmp_path / "err").read_text())):
                await trio.sleep(0.02)
        go.unlink()
        before = resident(running.pid)
        outcomes: list[StoreOutcome] = []
        waiting = iter(objects)

        async def take() -> Any:
            return next(waiting, None)

        async with associated(int(found[1]), window) as association, trio.open_nursery() as nursery:
            nursery.start_soon(StorageScu(association).run, take, outcomes.append)
            sent = await stalled(lambda: association.stats().bytes_out)
            assert outcomes == []
            assert sent < OBJECTS * OBJECT_BYTES
            assert resident(running.pid) - before < GROWTH_MAX
            go.touch()
            with trio.fail_after(60):
                while len(outcomes) < OBJECTS:
                    await trio.sleep(0.02)
    assert [outcome.status for outcome in outcomes] == [0] * OBJECTS


@pytest.mark.slow
async def test_a_stalled_disk_of_get(tmp_path: Path) -> None:
    old = FakeArchive([make_instance(n, size=OBJECT_BYTES) for n in range(OBJECTS)])
    folder, go = tmp_path / "got", tmp_path / "go"
    go.touch()  # while it opens its folder
    async with old.running("OLD") as source:
        keys = ("-S", "-k", "StudyInstanceUID=1.2.3.1", "-od", folder)
        line = ("-c", BLOCKED_DISK, go, "get", str(source), *keys)
        async with process(tmp_path, *line) as running:
            with trio.fail_after(30):
                while not old.requests:
                    await trio.sleep(0.001)
            go.unlink()
            before = resident(running.pid)
            sent = await stalled(lambda: len(old.sent))
            assert sent < OBJECTS
            assert resident(running.pid) - before < GROWTH_MAX
            go.touch()
            with trio.fail_after(60):
                assert await running.wait() == 0, (tmp_path / "err").read_text()
    assert len(list(folder.iterdir())) == OBJECTS


@pytest.mark.slow
async def test_a_stalled_destination_of_send(tmp_path: Path) -> None:
    write_studies(tmp_path / "out", 1, 1, OBJECTS, rows=3000, columns=3000)
    new = Gate()
    async with new.running("NEW") as peer:
        line = ("-m", "dcmhaul", "send", str(peer), tmp_path / "out", "--window", "8")
        async with process(tmp_path, *line) as running:
            with trio.fail_after(30):
                while not new.open:
                    await trio.sleep(0.01)
            before = resident(running.pid)
            await stalled(lambda: len(new.received))
            assert resident(running.pid) - before < GROWTH_MAX
            new.gate.set()
            with trio.fail_after(60):
                assert await running.wait() == 0, (tmp_path / "err").read_text()
    assert len(new.stored) == OBJECTS
