"""A ledger of another schema version, and one that is only read.

Numbered functions bring it from one version to the next; each is kept as it was.
They name tables and columns in text: what `tables` says now is not what stood there then.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dcmhaul.database import SchemaMismatch
from dcmhaul.database_upkeep import Upgraded, reading, upgrade_database
from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate.tables import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import Connection

__all__ = ["UPGRADES", "reading_ledger", "upgrade_ledger", "with_hint"]


def _from_1(connection: Connection) -> None:
    """Version 2 records what a dataset says, and what came of reading it back."""
    sqlite = connection.dialect.name == "sqlite"
    octets = "BLOB" if sqlite else "BYTEA"
    identity = "INTEGER" if sqlite else "BIGINT"
    connection.exec_driver_sql(f"ALTER TABLE instance ADD COLUMN content {octets}")
    connection.exec_driver_sql(f"ALTER TABLE instance ADD COLUMN coercible {octets}")
    connection.exec_driver_sql(
        f"""CREATE TABLE verification (
            study_id {identity} NOT NULL REFERENCES study (id),
            sop_uid TEXT NOT NULL,
            result SMALLINT NOT NULL,
            ts_id INTEGER NOT NULL,
            len BIGINT,
            sha256 {octets},
            content {octets},
            differences TEXT,
            updated BIGINT NOT NULL,
            PRIMARY KEY (study_id, sop_uid)
        ){" WITHOUT ROWID" if sqlite else ""}"""
    )


UPGRADES: Mapping[int, Callable[[Connection], None]] = {1: _from_1}
"""From which version -> what leads to the next one."""


def with_hint(error: SchemaMismatch) -> str:
    """The error's text, and what to do about it."""
    if error.found < error.needed:
        return f"{error}; `dcmhaul jobs upgrade` brings it there, after a backup"
    return f"{error}; a newer dcmhaul made it"


def upgrade_ledger(url: str) -> Upgraded:
    """Brings a ledger to this program's schema version. Blocks; as `upgrade_database`."""
    return upgrade_database(url, kind="ledger", version=SCHEMA_VERSION, steps=UPGRADES)


@contextmanager
def reading_ledger(url: str) -> Iterator[Connection]:
    """A ledger as it is now, beside the run that writes it. Blocks; as `reading`."""
    try:
        with reading(url, kind="ledger", version=SCHEMA_VERSION) as connection:
            yield connection
    except SchemaMismatch as error:
        raise ConfigurationError(with_hint(error)) from error
