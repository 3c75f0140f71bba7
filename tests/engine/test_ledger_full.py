"""A ledger whose disk is full: one line that names it, and the next run goes on where it ended."""

from __future__ import annotations

import resource
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
from sqlalchemy import event

from dcmhaul import database
from dcmhaul.migrate.ledger import LedgerFailed, open_ledger
from dcmhaul.migrate.tables import InstanceState
from tests.engine.fake_archive import FakeArchive, make_instance
from tests.engine.test_migrate import job, run

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from dcmhaul.config import Peer

STUDIES, INSTANCES = 3, 150


def source() -> FakeArchive:
    return FakeArchive(
        [
            make_instance(number, study=f"1.2.3.{study}", size=10)
            for study in range(1, STUDIES + 1)
            for number in range(INSTANCES)
        ]
    )


def acknowledged(tmp_path: Path) -> int:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as plain:
        rows = plain.execute(
            "SELECT count(*) FROM instance WHERE state = ?", (InstanceState.ACKED,)
        )
        return int(rows.fetchone()[0])


# SQLite itself says "full": while instances are listed, and while answers are recorded.
@pytest.mark.parametrize("more", [0, 2, 4])
async def test_a_full_disk_under_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    real = database._engine
    async with open_ledger(f"sqlite:///{tmp_path}/ledger.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as plain:
        pages = plain.execute("PRAGMA page_count").fetchone()[0] + more

    def engine(url: Any, *, begin: str, synchronous: bool) -> Any:
        made = real(url, begin=begin, synchronous=synchronous)
        if begin == "BEGIN IMMEDIATE":
            event.listen(
                made, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count={pages}")
            )
        return made

    old, new = source(), FakeArchive()
    async with job(tmp_path, old, new) as options:
        with monkeypatch.context() as patch:
            patch.setattr(database, "_engine", engine)
            with pytest.raises(LedgerFailed, match="database or disk is full") as raised:
                await run(options)
        assert raised.value.exit_code == 1
        assert options.ledger_url in str(raised.value)
        assert "run the job again" in str(raised.value)
        # Whatever was acknowledged and did not get into the ledger is asked for, not sent again.
        assert acknowledged(tmp_path) <= len(new.stored)
        sent = len(new.received)
        summary = await run(options)
        assert (summary.failed, summary.exit_code) == (0, 0)
        assert summary.instances + summary.already == STUDIES * INSTANCES
    assert new.digests == old.digests
    assert len(new.stored) == STUDIES * INSTANCES
    assert len(new.received) - sent == summary.instances


async def test_a_ledger_that_may_not_grow_ends_the_process_with_one_line(tmp_path: Path) -> None:
    """The system refuses to write, as a full disk or a quota does."""
    old, new = source(), FakeArchive()

    def command(old: Peer, new: Peer) -> list[str]:
        return [
            *(sys.executable, "-m", "dcmhaul", "migrate", str(old), str(new), "--json"),
            *("--job", "full", "--ledger", f"sqlite:///{tmp_path}/ledger.db"),
        ]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))

    async def process(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(60):
            return await trio.run_process(
                arguments, capture_stdout=True, capture_stderr=True, check=False, **options
            )

    async with old.running("OLD") as source_peer, new.running("NEW") as destination:
        arguments = command(source_peer, destination)
        ended = await process(arguments, preexec_fn=limit)
        lines = ended.stderr.decode().splitlines()
        assert ended.returncode == 1, lines
        (line,) = [text for text in lines if "ledger" in text]
        assert line.startswith("dcmhaul migrate: the ledger sqlite:///")
        assert "disk I/O error" in line
        assert b'"exit_code":1,' in ended.stdout
        assert not any("Traceback" in text for text in lines)
        assert len(new.stored)
        assert (await process(arguments)).returncode == 0
    assert new.digests == old.digests
    assert len(new.stored) == STUDIES * INSTANCES
