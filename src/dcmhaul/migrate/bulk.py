"""The two writes that an instance costs, many rows in one statement; and what a study costs, made once.

The writer's thread shares the interpreter with the data plane. SQLite is stepped without it, and a step of
many rows hands it over once; a step a row does so for each, and waits for it as often.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from dcmhaul.migrate.tables import HELD_STATES, INSTANCE, STUDY, StudyState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

__all__ = [
    "BEGIN_STUDY",
    "CLOSE_STUDY",
    "COUNT_STUDY",
    "INVENTORY",
    "RESULT",
    "insert_instances",
    "update_instances",
]

INVENTORY: Final = (
    *("study_id", "sop_uid", "class_id", "ts_id", "series_id", "state", "locator", "updated"),
)
"""The columns of the first write, in the order of its rows."""
RESULT: Final = (
    *("state", "ts_id", "len", "sha256", "content", "coercible", "dst_status", "retryable"),
    *("comment", "updated", "study_id", "sop_uid"),
)
"""The columns of the second write, its key last. A `ts_id` that is None leaves what was listed."""

_OF_STUDY: Final = STUDY.c.id == sa.bindparam("b_study")
_HELD: Final = (
    INSTANCE.c.study_id == STUDY.c.id,
    INSTANCE.c.state.in_([int(state) for state in HELD_STATES]),
)
COUNT_STUDY: Final = (
    sa.update(STUDY)
    .where(_OF_STUDY)
    .values(
        n_src=sa.select(sa.func.count()).where(INSTANCE.c.study_id == STUDY.c.id).scalar_subquery()
    )
)
"""Parameter b_study, as of the others."""
BEGIN_STUDY: Final = (
    sa.update(STUDY)
    .where(_OF_STUDY)
    .values(state=int(StudyState.RUNNING), attempts=STUDY.c.attempts + sa.bindparam("b_attempts"))
)
"""b_attempts: 1 where a transfer begins."""
CLOSE_STUDY: Final = (
    sa.update(STUDY)
    .where(_OF_STUDY)
    .values(
        state=sa.bindparam("b_state"),
        comment=sa.bindparam("b_comment"),
        last_status=sa.bindparam("b_status"),
        n_dst=sa.select(sa.func.count()).where(*_HELD).scalar_subquery(),
        bytes=sa.select(sa.func.sum(INSTANCE.c.len)).where(*_HELD).scalar_subquery(),
    )
)
"""With what the destination holds of it."""

ROWS_A_STATEMENT: Final = 100
"""At 12 columns far below the 32766 parameters that SQLite takes."""
_UPDATES_FROM_VALUES: Final = sqlite3.sqlite_version_info >= (3, 33)


def insert_instances(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Inventory rows; what is known stays as it is."""
    if connection.dialect.name == "sqlite":
        _run_sqlite(connection, rows, _sqlite_insert(ROWS_A_STATEMENT), _sqlite_insert(1))
    elif rows:
        statement = postgresql.insert(INSTANCE).on_conflict_do_nothing()
        connection.execute(statement, [dict(zip(INVENTORY, row, strict=True)) for row in rows])


def update_instances(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Results; of two of one instance the later one counts."""
    rows = list({row[-2:]: row for row in rows}.values())
    if connection.dialect.name == "sqlite":
        many = _sqlite_update(ROWS_A_STATEMENT) if _UPDATES_FROM_VALUES else None
        _run_sqlite(connection, rows, many, _sqlite_update(1))
    elif rows:
        names = [f"b_{column}" for column in RESULT]
        connection.execute(_update(), [dict(zip(names, row, strict=True)) for row in rows])


def _run_sqlite(
    connection: Connection, rows: Sequence[tuple[Any, ...]], many: str | None, one: str
) -> None:
    done = 0
    if many is not None:
        for done in range(ROWS_A_STATEMENT, len(rows) + 1, ROWS_A_STATEMENT):
            page = rows[done - ROWS_A_STATEMENT : done]
            connection.exec_driver_sql(many, tuple(value for row in page for value in row))
    if rows[done:]:
        connection.exec_driver_sql(one, list(rows[done:]))


def _values(columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return ", ".join([row] * rows)


@cache
def _sqlite_insert(rows: int) -> str:
    return (
        f"INSERT INTO instance ({', '.join(INVENTORY)}) VALUES {_values(len(INVENTORY), rows)} "
        "ON CONFLICT DO NOTHING"
    )


@cache
def _sqlite_update(rows: int) -> str:
    *columns, study, instance = RESULT
    if rows == 1:
        values = ", ".join(
            f"{c} = coalesce(?, ts_id)" if c == "ts_id" else f"{c} = ?" for c in columns
        )
        return f"UPDATE instance SET {values} WHERE {study} = ? AND {instance} = ?"
    values = ", ".join(
        f"{c} = coalesce(v.column{place}, instance.ts_id)"
        if c == "ts_id"
        else f"{c} = v.column{place}"
        for place, c in enumerate(columns, 1)
    )
    return (
        f"UPDATE instance SET {values} FROM (VALUES {_values(len(RESULT), rows)}) AS v "
        f"WHERE instance.{study} = v.column{len(RESULT) - 1} "
        f"AND instance.{instance} = v.column{len(RESULT)}"
    )


@cache
def _update() -> sa.Update:
    values: dict[str, Any] = {c: sa.bindparam(f"b_{c}") for c in RESULT[:-2]}
    values["ts_id"] = sa.func.coalesce(sa.bindparam("b_ts_id", type_=sa.Integer), INSTANCE.c.ts_id)
    return (
        sa.update(INSTANCE)
        .where(
            INSTANCE.c.study_id == sa.bindparam("b_study_id"),
            INSTANCE.c.sop_uid == sa.bindparam("b_sop_uid"),
        )
        .values(values)
    )
