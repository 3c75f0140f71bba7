"""kill -9 of a migration at any moment: the next run loses nothing and repeats nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.migrate.tables import InstanceState
from tests.engine.fake_archive import FakeArchive, Faults, make_instance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dcmhaul.config import Peer

STUDIES, INSTANCES = 4, 12


def command(tmp_path: Path, old: Peer, new: Peer, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "dcmhaul", "migrate", str(old), str(new)),
        *("--job", "killed", "--ledger", f"sqlite:///{tmp_path}/ledger.db"),
        *("--associations", "2", "--window", "4", *more),
    ]


async def run_and_kill(arguments: list[str], enough: Callable[[], bool]) -> int:
    """Runs it until `enough`, then kill -9; returns its exit code."""
    process = await trio.lowlevel.open_process(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        with trio.fail_after(60):
            while not enough() and process.poll() is None:
                await trio.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return await process.wait()
    finally:
        await process.stderr.aclose()


def acknowledged(tmp_path: Path) -> set[str]:
    """What the ledger holds as acknowledged, read without its code."""
    if not (tmp_path / "ledger.db").exists():
        return set()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as plain:
        try:
            rows = plain.execute(
                "SELECT sop_uid FROM instance WHERE state = ?", (InstanceState.ACKED,)
            )
            return {row[0] for row in rows}
        except sqlite3.OperationalError:  # killed before the tables were made
            return set()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 7, 20, 35, 47])
async def test_killed_and_run_again(tmp_path: Path, after: int) -> None:
    old = FakeArchive(
        [
            make_instance(number, study=f"1.2.3.{study}", size=20_000)
            for study in range(1, STUDIES + 1)
            for number in range(INSTANCES)
        ]
    )
    new = FakeArchive(faults=Faults(store_seconds=0.01))
    async with old.running("OLD") as source, new.running("NEW") as destination:
        line = command(tmp_path, source, destination)
        code = await run_and_kill(line, lambda: len(new.received) >= after and bool(old.finds))
        assert code == -signal.SIGKILL
        known = acknowledged(tmp_path)
        with trio.fail_after(5):
            while new.open:
                await trio.sleep(0.01)
        before = list(new.received)
        kept = set(new.stored)
        assert known <= kept

        with trio.fail_after(60):
            second = await trio.run_process(
                line, capture_stdout=True, capture_stderr=True, check=False
            )
        assert second.returncode == 0, second.stderr.decode()
        assert new.digests == old.digests
        # Neither what the ledger knew nor what the destination turned out to hold was sent again.
        assert not kept.intersection(new.received[len(before) :])
        assert known.isdisjoint(new.received[len(before) :])

        with trio.fail_after(60):
            third = await trio.run_process(line, capture_stdout=True, capture_stderr=True)
        assert third.returncode == 0
        assert len(new.stored) == STUDIES * INSTANCES
