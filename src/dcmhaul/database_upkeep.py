"""A database beside the process that writes it: read without a lock, and brought to a newer schema."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from dcmhaul.database import (
    BUSY_TIMEOUT_MS,
    SCHEMA,
    DatabaseError,
    SchemaMismatch,
    _advisory_lock,
    _engine,
    _first_line,
    _lock,
    _parse_url,
)
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import URL, Connection, Engine

__all__ = ["Upgraded", "reading", "upgrade_database"]


@contextlib.contextmanager
def reading(url: str, *, kind: str, version: int) -> Iterator[Connection]:
    """One transaction that cannot write, on what was committed when it began.

    Neither the lock of the writing process nor any other is taken: a run goes on meanwhile. Blocks;
    what is read holds SQLite's log back until the block ends. ConfigurationError: there is no such
    database, or it is of another kind or version.
    """
    parsed = _parse_url(url)
    try:
        engine, connection = _connect(parsed)
        try:
            _check(connection, parsed, kind, version)
            yield connection
        finally:
            connection.close()
            engine.dispose()
    except SQLAlchemyError as exc:
        raise DatabaseError(f"the database refused: {_first_line(exc)}") from exc


def _connect(url: URL) -> tuple[Engine, Connection]:
    if url.get_backend_name() != "sqlite":
        engine = _engine(url, begin="BEGIN", synchronous=True)
        try:
            connection = engine.connect().execution_options(
                postgresql_readonly=True, isolation_level="REPEATABLE READ"
            )
        except SQLAlchemyError as exc:
            shown = url.render_as_string(hide_password=True)
            raise ConfigurationError(f"cannot open {shown}: {_first_line(exc)}") from exc
        return engine, connection
    path = Path(str(url.database))
    if not path.is_file():
        raise ConfigurationError(f"there is no database {path}")
    # A database with a log needs a file beside it even to be read. Where the folder takes none, nobody
    # writes there either; without a log the file alone is the whole truth.
    log = Path(f"{path}-wal")
    alone = not (log.exists() and log.stat().st_size)
    last: SQLAlchemyError | None = None
    for mode in ("mode=ro", "immutable=1") if alone else ("mode=ro",):
        engine = _read_only(path, mode)
        connection = engine.connect()
        try:
            connection.execute(sa.text("SELECT count(*) FROM sqlite_master")).scalar_one()
        except SQLAlchemyError as exc:
            connection.close()
            engine.dispose()
            last = exc
        else:
            return engine, connection
    assert last is not None
    raise ConfigurationError(f"cannot read the database {path}: {_first_line(last)}") from last


def _read_only(path: Path, mode: str) -> Engine:
    def connect() -> sqlite3.Connection:
        raw = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, check_same_thread=False)
        raw.isolation_level = None
        raw.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        raw.execute("PRAGMA query_only=ON")
        return raw

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _check(connection: Connection, url: URL, kind: str, version: int) -> None:
    shown = url.render_as_string(hide_password=True)
    if SCHEMA.name not in sa.inspect(connection).get_table_names():
        raise ConfigurationError(f"{shown} is no {kind} of dcmhaul")
    found = connection.execute(sa.select(SCHEMA.c.kind, SCHEMA.c.version)).one()
    if found.kind != kind:
        raise ConfigurationError(f"{shown} is a database of kind {found.kind}, not {kind}")
    if found.version != version:
        raise SchemaMismatch(shown, found.version, version)


# -- upgrades -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded:
    """found: the version that was there. backup: where it is kept; "" where nothing was to do."""

    found: int
    version: int
    backup: str = ""


def upgrade_database(
    url: str, *, kind: str, version: int, steps: Mapping[int, Callable[[Connection], None]]
) -> Upgraded:
    """Brings a database from any earlier version to `version`, in one transaction. Blocks.

    steps: from which version -> what leads to the next. A copy is made before: for SQLite a file
    beside it, in PostgreSQL a schema of its own. ConfigurationError: another process writes it, it is of
    another kind, or newer.
    """
    parsed = _parse_url(url)
    shown = parsed.render_as_string(hide_password=True)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and not Path(str(parsed.database)).is_file():
        raise ConfigurationError(f"there is no database {parsed.database}")
    lock = _lock(parsed)
    try:
        engine = _engine(parsed, begin="BEGIN IMMEDIATE", synchronous=True)
        try:
            if not sqlite:
                lock.session = _advisory_lock(engine, kind)
            return _upgrade(engine, parsed, kind, version, steps)
        except SQLAlchemyError as exc:
            raise ConfigurationError(f"cannot upgrade {shown}: {_first_line(exc)}") from exc
        finally:
            engine.dispose()
    finally:
        lock.close()


def _upgrade(
    engine: Engine,
    url: URL,
    kind: str,
    version: int,
    steps: Mapping[int, Callable[[Connection], None]],
) -> Upgraded:
    with engine.connect() as connection:
        with contextlib.suppress(SchemaMismatch):
            _check(connection, url, kind, version)
        found = int(connection.execute(sa.select(SCHEMA.c.version)).scalar_one())
    if found == version:
        return Upgraded(found=found, version=version)
    if found > version or any(number not in steps for number in range(found, version)):
        shown = url.render_as_string(hide_password=True)
        raise ConfigurationError(
            f"{shown} has schema version {found}, and there is no way from it to {version}"
        )
    backup = _copy_file(url, found) if engine.dialect.name == "sqlite" else ""
    with engine.begin() as connection:
        if not backup:
            backup = _copy_tables(connection, kind, found)
        for number in range(found, version):
            steps[number](connection)
        connection.execute(SCHEMA.update().values(version=version))
    return Upgraded(found=found, version=version, backup=backup)


def _copy_file(url: URL, found: int) -> str:
    path = str(url.database)
    copy, number = f"{path}.v{found}.bak", 1
    while True:
        try:
            os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            break
        except FileExistsError:
            number += 1
            copy = f"{path}.v{found}.{number}.bak"
        except OSError as exc:
            raise ConfigurationError(f"cannot make the copy {copy}: {exc.strerror}") from exc
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    return copy


def _copy_tables(connection: Connection, kind: str, found: int) -> str:
    inspector = sa.inspect(connection)
    taken = set(inspector.get_schema_names())
    name, number = f"dcmhaul_{kind}_v{found}", 1
    while name in taken:
        number += 1
        name = f"dcmhaul_{kind}_v{found}_{number}"
    quoted: Any = connection.dialect.identifier_preparer.quote
    connection.exec_driver_sql(f"CREATE SCHEMA {quoted(name)}")
    for table in inspector.get_table_names():
        connection.exec_driver_sql(
            f"CREATE TABLE {quoted(name)}.{quoted(table)} AS TABLE {quoted(table)}"
        )
    return name
