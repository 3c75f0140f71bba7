"""Ctrl-C and SIGTERM, once and twice, sent to the verbs as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.errors import AssociationAborted, TransportError
from dcmhaul.net import open_association
from dcmhaul.objects.synth import write_studies
from dcmhaul.protocol.dimse import CStoreRq
from tests.engine.fake_archive import FakeArchive, Faults, make_instance
from tests.net.moving_archive import Lies, MovingArchive
from tests.net.test_association import CT, request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dcmhaul.config import Peer

SIGNALS = [signal.SIGINT, signal.SIGTERM]
# "At once" is the time of an A-ABORT that the peer reads, and of a process that ends.
AT_ONCE_SECONDS = 8.0


class Running:
    """A verb as a process; what it prints is gathered while it runs."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.out = b""
        self.err = b""

    @property
    def summary(self) -> dict[str, Any]:
        """The last line, which is a summary however it ended."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        assert found["type"] == "summary"
        return found

    async def said(self, pattern: str) -> re.Match[bytes]:
        with trio.fail_after(30):
            while (match := re.search(pattern.encode(), self.err)) is None:
                await trio.sleep(0.01)
        return match

    async def gather(self) -> None:
        async def read(stream: Any, name: str) -> None:
            async for part in stream:
                setattr(self, name, getattr(self, name) + part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, self.process.stdout, "out")
            nursery.start_soon(read, self.process.stderr, "err")


async def run_verb(
    nursery: trio.Nursery, tmp_path: Path, *arguments: str | Path
) -> tuple[Running, trio.Event]:
    """Starts it; the event is set when it has ended and all it printed was read."""
    environment = {**os.environ, "DCMHAUL_LEDGER": f"sqlite:///{tmp_path}/ledger.db"}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "dcmhaul", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )
    running = Running(process)
    ended = trio.Event()

    async def gather() -> None:
        await running.gather()
        await process.wait()
        ended.set()

    nursery.start_soon(gather)
    return running, ended


async def interrupted(
    tmp_path: Path,
    arguments: Sequence[str | Path],
    enough: Callable[[], bool],
    number: int,
    times: int,
) -> Running:
    """Runs a verb until `enough`, sends the signal so many times, waits for its end."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            running, ended = await run_verb(nursery, tmp_path, *arguments)
            try:
                while not enough() and not ended.is_set():
                    await trio.sleep(0.005)
                assert not ended.is_set(), running.err.decode()
                running.process.send_signal(number)
                if times > 1:
                    await running.said("stopping")
                    running.process.send_signal(number)
                started = trio.current_time()
                await ended.wait()
                if times > 1:
                    assert trio.current_time() - started < AT_ONCE_SECONDS
            finally:
                running.process.kill()
    assert b"Traceback" not in running.err
    return running


def address(peer: Peer) -> str:
    return str(peer)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_send_once(tmp_path: Path, number: int) -> None:
    """What had left is answered, nothing more leaves, the associations are released."""
    write_studies(tmp_path / "out", 1, 2, 40, rows=8, columns=8)
    new = FakeArchive(faults=Faults(store_seconds=0.05))
    async with new.running("NEW") as peer:
        arguments: list[str | Path] = [
            "send",
            address(peer),
            tmp_path / "out",
            "--associations",
            "2",
        ]
        running = await interrupted(tmp_path, arguments, lambda: len(new.stored) >= 6, number, 1)
    assert running.process.returncode == 130
    summary = running.summary
    assert 6 <= summary["instances"] < 80
    assert summary["instances"] == len(new.stored) == len(new.received)
    assert summary["failed"] == 80 - summary["instances"]
    assert summary["exit_code"] == 130
    assert f"{summary['failed']} instances were not sent".encode() in running.err
    assert new.endings == ["released", "released"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_send_twice(tmp_path: Path, number: int) -> None:
    """The answers that are due are not waited for, and what came before counts."""
    write_studies(tmp_path / "out", 1, 2, 40, rows=8, columns=8)
    new = FakeArchive()
    new.faults.store = lambda _incoming, n: setattr(new.faults, "store_seconds", 60.0 * (n > 5))
    async with new.running("NEW") as peer:
        arguments: list[str | Path] = [
            "send",
            address(peer),
            tmp_path / "out",
            "--associations",
            "1",
        ]
        running = await interrupted(tmp_path, arguments, lambda: len(new.received) > 6, number, 2)
    assert running.process.returncode == 130
    assert running.summary["instances"] == len(new.stored)
    assert running.summary["instances"] + running.summary["failed"] == 80
    assert b"were not sent or not answered" in running.err


async def test_send_while_the_peer_is_not_answering_the_association(tmp_path: Path) -> None:
    """Nothing is in flight, so one signal is enough."""
    write_studies(tmp_path / "out", 1, 1, 2, rows=8, columns=8)
    connected = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        connected.set()
        async for _ in stream:
            pass

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        arguments: list[str | Path] = ["send", f"X@127.0.0.1:{port}", tmp_path / "out"]
        running = await interrupted(tmp_path, arguments, connected.is_set, signal.SIGINT, 1)
        nursery.cancel_scope.cancel()
    assert running.process.returncode == 130
    assert (running.summary["instances"], running.summary["failed"]) == (0, 2)


def slow_source(count: int, size: int = 1000) -> FakeArchive:
    """Twenty milliseconds an instance."""
    return FakeArchive(
        [make_instance(n, size=size) for n in range(count)],
        Faults(get_abort=lambda _n: bool(time.sleep(0.02))),  # type: ignore[func-returns-value]
    )


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_get(tmp_path: Path, number: int, times: int) -> None:
    """Once: a C-CANCEL, and what still came is kept. Twice: what is there is whole."""
    old = slow_source(200)
    folder = tmp_path / "got"
    async with old.running("OLD") as peer:
        arguments: list[str | Path] = [
            "get",
            address(peer),
            "-S",
            "-k",
            "StudyInstanceUID=1.2.3.1",
            "-od",
            folder,
        ]
        running = await interrupted(tmp_path, arguments, lambda: len(old.sent) >= 10, number, times)
        with trio.fail_after(10):
            while old.open:
                await trio.sleep(0.01)
    assert running.process.returncode == 130
    summary = running.summary
    files = list(folder.iterdir())
    assert summary["exit_code"] == 130
    assert len(old.sent) < 200
    if times == 1:
        # The archive opens the next one while it waits for the answer to the last.
        assert 9 <= summary["instances"] == len(files)
        assert len(old.sent) - 1 <= len(files) <= len(old.sent)
        assert set(old.endings) == {"released"}
    else:
        assert summary["instances"] <= len(files) <= summary["instances"] + 1
    for path in files:
        assert path.read_bytes().endswith(old.instances[path.name.removesuffix(".dcm")].dataset)


@pytest.mark.parametrize("times", [1, 2])
async def test_move(tmp_path: Path, times: int) -> None:
    """As get: once cancels and keeps what still comes, twice leaves what is there whole."""
    lies = Lies(sub_operation=lambda _number: time.sleep(0.02))
    old = MovingArchive([make_instance(n) for n in range(200)], lies)
    folder = tmp_path / "in"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        old.destinations["OURS"] = probe.getsockname()[1]
    async with old.running("OLD") as peer:
        arguments: list[str | Path] = [
            "move",
            address(peer),
            "-S",
            "-k",
            "StudyInstanceUID=1.2.3.1",
        ]
        arguments += ["-aet", "OURS", "+P", str(old.destinations["OURS"]), "-od", folder]
        running = await interrupted(
            tmp_path, arguments, lambda: len(old.sent) >= 10, signal.SIGINT, times
        )
    assert running.process.returncode == 130
    summary = running.summary
    files = list(folder.iterdir())
    assert summary["exit_code"] == 130
    assert len(old.sent) < 200
    if times == 1:
        assert 10 <= summary["instances"] == len(files) == len(old.sent)
        assert old.cancelled == 1
    else:
        assert summary["instances"] <= len(files) <= summary["instances"] + 1
    for path in files:
        assert path.read_bytes().endswith(old.instances[path.name.removesuffix(".dcm")].dataset)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_migrate(tmp_path: Path, number: int, times: int) -> None:
    """The next run completes the job, and repeats nothing that was acknowledged."""
    old = FakeArchive(
        [make_instance(n, study=f"1.2.3.{study}") for study in range(1, 5) for n in range(50)]
    )
    new = FakeArchive(faults=Faults(store_seconds=0.02))
    async with old.running("OLD") as source, new.running("NEW") as destination:
        arguments: list[str | Path] = [
            "migrate",
            address(source),
            address(destination),
            "--associations",
            "2",
        ]
        running = await interrupted(
            tmp_path, arguments, lambda: len(new.stored) >= 10, number, times
        )
        assert running.process.returncode == 130
        with trio.fail_after(10):
            while new.open or old.open:
                await trio.sleep(0.01)
        moved, kept = running.summary["instances"], set(new.stored)
        assert running.summary["exit_code"] == 130
        assert 10 <= len(kept) < 200
        if times == 1:
            assert moved == len(kept) == len(new.received)
            assert set(new.endings) == {"released"}
        before = len(new.received)
        with trio.fail_after(60):
            second = await trio.run_process(
                [sys.executable, "-m", "dcmhaul", *map(str, arguments), "--json"],
                env={**os.environ, "DCMHAUL_LEDGER": f"sqlite:///{tmp_path}/ledger.db"},
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert second.returncode == 0, second.stderr.decode()
        assert new.digests == old.digests
        assert not kept.intersection(new.received[before:])


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("verb", ["receive", "archive"])
async def test_servers_end_with_0_and_abort_what_is_half_sent(
    tmp_path: Path, verb: str, number: int
) -> None:
    store = tmp_path / "store"
    where: tuple[str | Path, ...] = ("0", "-od", store)
    if verb == "archive":
        where = ("--dir", store, "--port", "0", "--aet", "THERE")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            running, ended = await run_verb(nursery, tmp_path, verb, *where, "--bind", "127.0.0.1")
            try:
                port = int((await running.said(r"listening on 127\.0\.0\.1:(\d+)"))[1])
                with pytest.raises((AssociationAborted, TransportError)) as caught:
                    async with open_association("127.0.0.1", port, request()) as association:
                        rq = CStoreRq(
                            message_id=1, affected_sop_class_uid=CT, affected_sop_instance_uid="1.2"
                        )
                        writer = await association.open_dataset(1, rq)
                        await writer.write(bytes(100_000))
                        running.process.send_signal(number)
                        await association.receive()
                await ended.wait()
            finally:
                running.process.kill()
    assert isinstance(caught.value, AssociationAborted)
    assert running.process.returncode == 0
    assert running.summary["exit_code"] == 0
    assert running.summary["instances"] == 0
    assert b"Traceback" not in running.err
    left = [path for path in store.rglob("*") if path.is_file() and "index.db" not in path.name]
    assert [path for path in left if path.suffix == ".dcm" or path.parent.name == "tmp"] == []
