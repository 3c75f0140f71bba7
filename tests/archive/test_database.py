"""The writer thread: results after the COMMIT, shared commits, failures that stay alone."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from dcmhaul.database import Database, DatabaseError, open_database
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Connection

METADATA = sa.MetaData()
THING = sa.Table(
    "thing",
    METADATA,
    sa.Column("pk", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, unique=True),
)


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/x.db"


def rows(folder: Path) -> list[str]:
    """What another process would see now."""
    connection = sqlite3.connect(folder / "x.db")
    try:
        return [name for (name,) in connection.execute("SELECT name FROM thing ORDER BY pk")]
    finally:
        connection.close()


def insert(connection: Connection, name: str) -> None:
    connection.exec_driver_sql("INSERT INTO thing (name) VALUES (?)", (name,))


async def test_a_result_comes_after_the_commit(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test") as database:

        def work(connection: Connection) -> int:
            insert(connection, "a")
            assert rows(tmp_path) == []
            return 7

        assert await database.submit(work) == 7
        assert rows(tmp_path) == ["a"]
        assert await database.read(
            lambda c: c.execute(sa.select(THING.c.name)).scalars().all()
        ) == ["a"]


async def test_full_sync_and_a_write_ahead_log(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test") as database:

        def pragmas(connection: Connection) -> list[object]:
            return [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout")
            ]

        assert await database.submit(pragmas) == ["wal", 2, 30_000]


class Hold:
    """A job that keeps the writer thread until `gate` opens, so that a test can fill a batch."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.gate = threading.Event()

    def __call__(self, _connection: Connection) -> None:
        self.started.set()
        assert self.gate.wait(10)

    async def begin(self, nursery: trio.Nursery, database: Database) -> None:
        nursery.start_soon(database.submit, self)
        assert await trio.to_thread.run_sync(self.started.wait, 10)


async def test_jobs_that_wait_share_a_commit(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test") as database:
        hold = Hold()
        calls = []

        def barrier() -> None:
            calls.append(1)

        async def add(name: str) -> None:
            await database.submit(lambda c: insert(c, name), after=(barrier,))

        async with trio.open_nursery() as nursery:
            await hold.begin(nursery, database)
            for n in range(100):
                nursery.start_soon(add, f"{n:03}")
            await trio.testing.wait_all_tasks_blocked()
            hold.gate.set()
        # One for the job that held the thread, then 64 and 36.
        assert database.writer.statistics().commits == 3
        assert database.writer.statistics().jobs == 101
        assert len(calls) == 2
        assert len(rows(tmp_path)) == 100


async def test_a_job_that_fails_is_undone_alone(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test") as database:
        hold = Hold()
        failures: list[tuple[str, bool]] = []

        async def add(name: str) -> None:
            try:
                await database.submit(lambda c: insert(c, name))
            except DatabaseError as exc:
                failures.append((name, isinstance(exc.__cause__, sa.exc.IntegrityError)))

        async with trio.open_nursery() as nursery:
            await hold.begin(nursery, database)
            for name in ("a", "b", "a", "c"):
                nursery.start_soon(add, name)
            await trio.testing.wait_all_tasks_blocked()
            hold.gate.set()
        assert failures == [("a", True)]
        assert sorted(rows(tmp_path)) == ["a", "b", "c"]
        assert database.writer.rollbacks == 2


async def test_a_failed_barrier_keeps_its_jobs_out(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test") as database:

        def barrier() -> None:
            raise OSError(5, "Input/output error")

        with pytest.raises(OSError, match="Input/output"):
            await database.submit(lambda c: insert(c, "a"), after=(barrier,))
        await database.submit(lambda c: insert(c, "b"))
        assert rows(tmp_path) == ["b"]


async def test_a_failed_commit_fails_every_job_of_the_batch(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test") as database:
        connection = database.writer._connection
        assert connection is not None

        def fail(_connection: Connection) -> None:
            raise OSError(28, "No space left on device")

        sa.event.listen(connection, "commit", fail)
        with pytest.raises(DatabaseError, match=r"COMMIT failed.*No space"):
            await database.submit(lambda c: insert(c, "a"))
        sa.event.remove(connection, "commit", fail)
        await database.submit(lambda c: insert(c, "b"))
        assert rows(tmp_path) == ["b"]


async def test_a_read_cannot_write(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test") as database:
        with pytest.raises(DatabaseError, match="readonly"):
            await database.read(lambda c: insert(c, "a"))


async def test_what_was_submitted_is_committed_when_the_block_is_cancelled(tmp_path: Path) -> None:
    gate = threading.Event()

    def late(connection: Connection) -> None:
        gate.wait(10)
        insert(connection, "late")

    with trio.CancelScope() as scope:
        async with (
            open_database(url(tmp_path), METADATA, 1, kind="test") as database,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(database.submit, late)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            gate.set()
    assert rows(tmp_path) == ["late"]


async def test_one_writing_process(tmp_path: Path) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test"):
        with pytest.raises(ConfigurationError, match="another process is writing"):
            async with open_database(url(tmp_path), METADATA, 1, kind="test"):
                pass
    async with open_database(url(tmp_path), METADATA, 1, kind="test"):
        pass
    assert (tmp_path / "x.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("version", "kind", "message"),
    [
        (2, "test", "schema version 1, this dcmhaul needs 2"),
        (1, "ledger", "of kind test, not ledger"),
    ],
)
async def test_only_the_exact_schema(tmp_path: Path, version: int, kind: str, message: str) -> None:
    async with open_database(url(tmp_path), METADATA, 1, kind="test"):
        pass
    with pytest.raises(ConfigurationError, match=message):
        async with open_database(url(tmp_path), METADATA, version, kind=kind):
            pass


async def test_a_file_of_another_program(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute("CREATE TABLE other (a)")
    connection.close()
    with pytest.raises(ConfigurationError, match="another program"):
        async with open_database(url(tmp_path), METADATA, 1, kind="test"):
            pass


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database at all, " * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        async with open_database(url(tmp_path), METADATA, 1, kind="test"):
            pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nonsense", "named by a URL"),
        ("sqlite://", "must be a file"),
        ("mysql://host/x", "SQLite or PostgreSQL"),
        ("sqlite:////nonexistent/folder/x.db", "cannot open the database"),
    ],
)
async def test_urls_that_cannot_be_used(given: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        async with open_database(given, METADATA, 1, kind="test"):
            pass
