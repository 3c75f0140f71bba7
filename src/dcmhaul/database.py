"""The database under the archive's index and the ledger: one writer thread with group commit.

SQLAlchemy 2 Core on SQLite or PostgreSQL. It knows no table but its own `dcmhaul_schema`, and never
runs a statement on trio's thread: whatever takes a `Connection` runs in a worker thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import sqlalchemy as sa
import trio
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from dcmhaul import crash
from dcmhaul.errors import ConfigurationError, DcmhaulError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.engine import URL

__all__ = [
    "CommitFailed",
    "Database",
    "DatabaseError",
    "Prepared",
    "Writer",
    "WriterStatistics",
    "open_database",
]

T = TypeVar("T")
Prepared = tuple["Callable[[Connection], T]", tuple["Callable[[], None]", ...]]
"""A function for the writer thread, and the calls that must have succeeded before."""

BATCH_JOBS_MAX = 64
QUEUED_JOBS_MAX = 1024
# Functions that prepare jobs at once: the syncs of several share the journal's work.
PREPARERS = 8
READERS_MAX = 8
BUSY_TIMEOUT_MS = 30_000
CHECKPOINT_SECONDS = 5.0
# A checkpoint that restarts the log waits for readers; it must not hold the writer up for them.
CHECKPOINT_BUSY_MS = 50

SCHEMA = sa.Table(
    "dcmhaul_schema",
    sa.MetaData(),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)


class SchemaMismatch(ConfigurationError):
    """A database of another schema version than this program's; `found` is its own."""

    def __init__(self, shown: str, found: int, needed: int) -> None:
        super().__init__(f"{shown} has schema version {found}, this dcmhaul needs {needed}")
        self.found = found
        self.needed = needed


class DatabaseError(DcmhaulError):
    """The database refused: nothing of the transaction counts. The cause is the driver's error."""


class CommitFailed(DatabaseError):
    """The COMMIT was not confirmed: its rows do not count now, yet the next start may find them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStatistics:
    """commits: transactions made durable. jobs: functions in them. rollbacks: transactions undone.

    commit_seconds: time spent in these transactions, their barriers included.
    """

    commits: int
    jobs: int
    rollbacks: int
    commit_seconds: float


class _Job:
    """One submitted function and, after its batch, what came of it."""

    __slots__ = ("after", "done", "error", "function", "prepare", "result", "settle")

    def __init__(
        self,
        function: Callable[[Connection], Any],
        after: tuple[Callable[[], None], ...],
        prepare: Callable[[], Prepared[Any]] | None = None,
        settle: Callable[[Any, Exception | None], None] | None = None,
    ) -> None:
        self.function = function
        self.after = after
        self.prepare = prepare
        self.settle = settle
        self.done = trio.Event()
        self.result: Any = None
        self.error: Exception | None = None

    def over(self) -> None:
        """On trio's thread, once."""
        if self.settle is not None:
            # A function may have had a result in a transaction that then failed.
            self.settle(self.result if self.error is None else None, self.error)
        self.done.set()


class Writer:
    """The only writer of the database: functions run one after another, several in one transaction.

    A batch is whatever was waiting when the last one ended, at most `batch_jobs`: nobody waits for
    company, and under load the batches fill by themselves. One function that fails is undone alone;
    the others of its batch then run a second time, so a function must not change anything but the
    database. `rollbacks` counts up at each undoing, for owners of caches that mirror the database.
    """

    def __init__(self, engine: Engine, *, batch_jobs: int, queued_jobs: int) -> None:
        self._engine = engine
        self._refusals = (SQLAlchemyError, engine.dialect.loaded_dbapi.Error)
        self._batch_jobs = batch_jobs
        self._connection: Connection | None = None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unprepared: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._preparers: list[threading.Thread] = []
        self._room = trio.Semaphore(queued_jobs)
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._serve, name="dcmhaul database", daemon=True)
        self._commits = 0
        self._jobs = 0
        self._seconds = 0.0
        self._checkpointed = time.monotonic()
        self.rollbacks = 0

    async def submit(
        self, function: Callable[[Connection], T], *, after: tuple[Callable[[], None], ...] = ()
    ) -> T:
        """Runs `function(connection)` on the writer thread; returns its result after the COMMIT.

        `after`: hashable calls without arguments that must have succeeded before the transaction
        begins (syncs of folders); equal ones of one batch are called once. Raises what `function`
        or a call of `after` raised; DatabaseError where the database refused a statement,
        CommitFailed where it was the COMMIT. Cancelled while waiting: the function may or may not
        have run.
        """
        job = _Job(function, after)
        await self._await(job, self._queue)
        if job.error is not None:
            raise job.error
        return cast("T", job.result)

    async def submit_prepared(
        self,
        prepare: Callable[[], Prepared[T]],
        settle: Callable[[T | None, Exception | None], None],
        *,
        inline: bool = False,
    ) -> None:
        """As `submit` of what `prepare()` returns: a function, and what must have succeeded before.

        `prepare` runs in a thread, beside others; from there its job goes to the writer thread
        without a turn of the event loop. inline: it runs in this one, since it waits for no disk.
        settle: gets the result or the error, exactly once, on trio's thread, also where whoever called
        this was cancelled while it waited.
        """
        job = _Job(_nothing, (), prepare, settle)
        if inline:
            try:
                job.function, job.after = prepare()
            except Exception as exc:
                job.error = exc
                job.over()
            else:
                await self._await(job, self._queue)
            return
        while len(self._preparers) < PREPARERS:
            thread = threading.Thread(target=self._prepare_all, name="dcmhaul prepare", daemon=True)
            thread.start()
            self._preparers.append(thread)
        await self._await(job, self._unprepared)

    async def _await(self, job: _Job, to: queue.SimpleQueue[_Job | None]) -> None:
        try:
            await self._room.acquire()
        except trio.Cancelled:
            job.error = DatabaseError("the database is too slow: nothing was begun")
            job.over()
            raise
        try:
            to.put(job)
            await job.done.wait()
        finally:
            self._room.release()

    def statistics(self) -> WriterStatistics:
        return WriterStatistics(
            commits=self._commits,
            jobs=self._jobs,
            rollbacks=self.rollbacks,
            commit_seconds=self._seconds,
        )

    async def _start(self) -> None:
        self._connection = await trio.to_thread.run_sync(self._engine.connect)
        self._thread.start()

    async def _stop(self) -> None:
        """What was submitted is committed first."""
        for _ in self._preparers:
            self._unprepared.put(None)
        for thread in self._preparers:
            await trio.to_thread.run_sync(thread.join)
        self._queue.put(None)
        await trio.to_thread.run_sync(self._thread.join)

    def _prepare_all(self) -> None:
        """In a thread of its own: until None comes."""
        while (job := self._unprepared.get()) is not None:
            assert job.prepare is not None
            try:
                job.function, job.after = job.prepare()
            except Exception as exc:
                job.error = exc
                self._token.run_sync_soon(job.over)
            else:
                self._queue.put(job)

    # What follows runs in the writer thread.

    def _serve(self) -> None:
        last = False
        while not last:
            first = self._queue.get()
            if first is None:
                break
            batch = [first]
            with contextlib.suppress(queue.Empty):
                while len(batch) < self._batch_jobs:
                    job = self._queue.get_nowait()
                    if job is None:
                        last = True
                        break
                    batch.append(job)
            try:
                self._run_batch(batch)
            except Exception as exc:
                _fail(batch, exc, "the writer failed")
            self._token.run_sync_soon(_report, batch)
        self._close()

    def _run_batch(self, batch: list[_Job]) -> None:
        started = time.monotonic()
        ready = _pass_barriers(batch)
        if ready and not self._transact(ready):
            for job in ready:
                self._transact([job])
        self._seconds += time.monotonic() - started
        if started - self._checkpointed >= CHECKPOINT_SECONDS:
            self._checkpointed = started
            self._checkpoint("RESTART")

    def _transact(self, jobs: list[_Job]) -> bool:
        """One transaction; False where several jobs were undone because one of them failed."""
        connection = self._connection
        assert connection is not None
        for job in jobs:
            job.error = None
        try:
            transaction = connection.begin()
        except Exception as exc:
            _fail(jobs, exc, "cannot begin a transaction")
            return True
        try:
            for job in jobs:
                job.result = job.function(connection)
        except Exception as exc:
            self._undo(transaction)
            if len(jobs) > 1:
                return False
            if isinstance(exc, self._refusals):
                _fail(jobs, exc, "the database refused")
            else:
                jobs[0].error = exc
            return True
        if crash.armed:
            crash.passed("db.before_commit")
        try:
            transaction.commit()
        except Exception as exc:
            # Whatever the cause, nothing of it counts: no second try on pages the kernel may have
            # lost.
            self._undo(transaction)
            _fail(jobs, exc, "the COMMIT failed", CommitFailed)
            return True
        if crash.armed:
            crash.passed("db.after_commit")
        self._commits += 1
        self._jobs += len(jobs)
        return True

    def _undo(self, transaction: sa.RootTransaction) -> None:
        self.rollbacks += 1
        with contextlib.suppress(SQLAlchemyError):
            transaction.rollback()
        # After a COMMIT that failed that does nothing, yet the driver may still be inside.
        assert self._connection is not None
        with contextlib.suppress(*self._refusals):
            self._connection.connection.rollback()

    def _checkpoint(self, mode: str) -> None:
        """Lets SQLite start its log anew; passive checkpoints starve under steady readers."""
        if self._engine.dialect.name != "sqlite" or self._connection is None:
            return
        raw = self._connection.connection.dbapi_connection
        if raw is None:
            return
        cursor = raw.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout={CHECKPOINT_BUSY_MS}")
            # A checkpoint that finds readers in its way does what it can; the next one goes on.
            with contextlib.suppress(self._engine.dialect.loaded_dbapi.Error):
                cursor.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        finally:
            cursor.close()

    def _close(self) -> None:
        self._checkpoint("TRUNCATE")
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _nothing(_connection: Connection) -> None:
    """Stands where the function of a job is not known yet."""


def _report(batch: list[_Job]) -> None:
    for job in batch:
        job.over()


def _pass_barriers(batch: list[_Job]) -> list[_Job]:
    """Calls each distinct barrier once; a job whose barrier failed is out, with that error."""
    outcome: dict[Callable[[], None], Exception | None] = {}
    ready = []
    for job in batch:
        for barrier in job.after:
            if barrier not in outcome:
                try:
                    barrier()
                    outcome[barrier] = None
                except Exception as exc:
                    outcome[barrier] = exc
            if outcome[barrier] is not None:
                job.error = outcome[barrier]
        if job.error is None:
            ready.append(job)
    return ready


def _fail(
    jobs: list[_Job], cause: Exception, what: str, kind: type[DatabaseError] = DatabaseError
) -> None:
    for job in jobs:
        error = kind(f"{what}: {_first_line(cause)}")
        error.__cause__ = cause
        job.error = error


def _first_line(exc: BaseException) -> str:
    """The driver's own words, without SQLAlchemy's copy of the statement and its parameters."""
    return str(getattr(exc, "orig", None) or exc).partition("\n")[0]


class Database:
    """An open database: `writer` for transactions, `read` for queries in threads of their own."""

    def __init__(
        self, *, url: URL, kind: str, version: int, writer: Writer, readers: Engine
    ) -> None:
        self.url = url
        self.kind = kind
        self.version = version
        self.writer = writer
        self._readers = readers
        self._limiter = trio.CapacityLimiter(READERS_MAX)

    async def submit(
        self, function: Callable[[Connection], T], *, after: tuple[Callable[[], None], ...] = ()
    ) -> T:
        """As `Writer.submit`."""
        return await self.writer.submit(function, after=after)

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Runs `function(connection)` in a thread on a connection that cannot write; returns its
        result.

        It sees what was committed before. Keep it short: an open read holds SQLite's log back, so
        long answers are read in pages. Raises what the function raises, the database's errors as
        DatabaseError.
        """
        return await trio.to_thread.run_sync(
            functools.partial(self._read, function), limiter=self._limiter
        )

    def compile(self, statement: sa.Executable) -> str:
        """The statement as text with positional parameters, for `exec_driver_sql` with tuples.

        For hot paths: the parameters go in the order in which the statement names them.
        """
        return str(cast("sa.ClauseElement", statement).compile(self._readers))

    def _read(self, function: Callable[[Connection], T]) -> T:
        try:
            with self._readers.connect() as connection, connection.begin():
                return function(connection)
        except (SQLAlchemyError, self._readers.dialect.loaded_dbapi.Error) as exc:
            raise DatabaseError(f"the database refused: {_first_line(exc)}") from exc


@contextlib.asynccontextmanager
async def open_database(
    url: str,
    metadata: sa.MetaData,
    version: int,
    *,
    kind: str,
    batch_jobs: int = BATCH_JOBS_MAX,
    queued_jobs: int = QUEUED_JOBS_MAX,
    synchronous: bool = True,
) -> AsyncIterator[Database]:
    """Opens `url` for this one writing process, and makes the tables of `metadata` where it is
    empty.

    url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://...`. kind: what the
    database is for ("archive", "ledger"); one of another kind, of another version than exactly
    `version`, or one that another process writes is refused with ConfigurationError. batch_jobs:
    jobs in one transaction. synchronous: False gives up durability against power loss (throw-away
    runs only). On leaving, what was submitted is committed first, unless the block was cancelled.
    """
    parsed = _parse_url(url)
    async with contextlib.AsyncExitStack() as stack:
        lock = await trio.to_thread.run_sync(_lock, parsed)
        stack.callback(lock.close)
        writing = _engine(parsed, begin="BEGIN IMMEDIATE", synchronous=synchronous)
        reading = _engine(parsed, begin="BEGIN", synchronous=synchronous)
        stack.callback(writing.dispose)
        stack.callback(reading.dispose)
        if parsed.get_backend_name() == "postgresql":
            event.listen(writing, "begin", lambda connection: _hold_lock(connection, kind))
        writer = Writer(writing, batch_jobs=batch_jobs, queued_jobs=queued_jobs)
        try:
            await trio.to_thread.run_sync(_prepare, writing, metadata, kind, version)
            await writer._start()
        except (SQLAlchemyError, OSError) as exc:
            shown = parsed.render_as_string(hide_password=True)
            raise ConfigurationError(
                f"cannot open the database {shown}: {_first_line(exc)}"
            ) from exc
        try:
            yield Database(url=parsed, kind=kind, version=version, writer=writer, readers=reading)
        finally:
            with trio.CancelScope(shield=True):
                await writer._stop()


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise ConfigurationError(
            "a database is named by a URL such as sqlite:///jobs.db or postgresql://host/name"
        ) from exc
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        # Plain postgresql:// would choose psycopg2, which is not what the extra installs.
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigurationError(f"databases are SQLite or PostgreSQL, not {backend}")
    if parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("the database must be a file, as in sqlite:///jobs.db")
    return parsed


def _engine(url: URL, *, begin: str, synchronous: bool) -> Engine:
    try:
        if url.get_backend_name() == "postgresql":
            # Positional parameters, so that `compile` gives the same form everywhere.
            return sa.create_engine(
                url, pool_size=READERS_MAX, pool_pre_ping=True, paramstyle="format"
            )
        engine = sa.create_engine(url, pool_size=READERS_MAX)
    except ImportError as exc:
        raise ConfigurationError(
            "PostgreSQL needs the psycopg driver: pip install 'dcmhaul[postgres]'"
        ) from exc
    read_only = begin == "BEGIN"

    def connect(raw: Any, _record: object) -> None:
        # The driver begins no transaction of its own: `begin` below says which kind it is. A read
        # that turned into a write would be answered BUSY in spite of the time-out, hence IMMEDIATE.
        raw.isolation_level = None
        cursor = raw.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if synchronous else 'OFF'}")
        cursor.execute("PRAGMA foreign_keys=ON")
        if read_only:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin_transaction)
    return engine


class _Lock:
    """Held by the one process that writes: a lock file for SQLite, an advisory lock in
    PostgreSQL."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.session: Connection | None = None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self.session is not None:
            # The lock lives as long as the server's session, so the pool must not keep it.
            self.session.invalidate()
            self.session.close()
            self.session = None


def _lock(url: URL) -> _Lock:
    if url.get_backend_name() != "sqlite":
        return _Lock(None)
    path = Path(str(url.database))
    try:
        # The index and the ledger hold names of patients: nobody else may read them. SQLite gives
        # its log files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigurationError(f"cannot open the database {path}: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise ConfigurationError(f"another process is writing the database {path}") from exc
    return _Lock(descriptor)


def _prepare(engine: Engine, metadata: sa.MetaData, kind: str, version: int) -> None:
    """Makes the tables where there are none; refuses what is not exactly this kind and version."""
    with engine.begin() as connection:
        tables = sa.inspect(connection).get_table_names()
        if SCHEMA.name not in tables:
            clash = (
                tables if engine.dialect.name == "sqlite" else set(tables) & set(metadata.tables)
            )
            if clash:
                raise ConfigurationError(f"{_shown(engine)} holds tables of another program")
            SCHEMA.create(connection)
            metadata.create_all(connection)
            connection.execute(SCHEMA.insert(), {"kind": kind, "version": version})
            return
        found = connection.execute(sa.select(SCHEMA.c.kind, SCHEMA.c.version)).one()
        if found.kind != kind:
            raise ConfigurationError(
                f"{_shown(engine)} is a database of kind {found.kind}, not {kind}"
            )
        if found.version != version:
            raise SchemaMismatch(_shown(engine), found.version, version)


def _advisory_lock(engine: Engine, kind: str) -> Connection:
    session = engine.connect()
    try:
        _hold_lock(session, kind)
    except ConfigurationError:
        session.close()
        raise
    session.rollback()
    return session


def _hold_lock(connection: Connection, kind: str) -> None:
    """The session's own lock, which ends with it: a new one after a lost connection takes it anew."""
    if connection.info.get("dcmhaul lock"):
        return
    taken = sa.select(sa.func.pg_try_advisory_lock(sa.func.hashtext(f"dcmhaul {kind}")))
    if not connection.execute(taken).scalar_one():
        shown = _shown(connection.engine)
        raise ConfigurationError(f"another process is writing the database {shown}")
    connection.info["dcmhaul lock"] = True


def _shown(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)
