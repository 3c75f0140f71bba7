"""Ledgers as earlier versions made them, and what every database must do with them."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
import trio

from dcmhaul.database import _engine, _parse_url
from dcmhaul.engine.planning import ExpectedInstance
from dcmhaul.migrate.account import list_jobs
from dcmhaul.migrate.ledger import Ledger, open_ledger
from dcmhaul.migrate.plan import JobIdentity
from dcmhaul.migrate.tables import (
    CheckResult,
    CheckRow,
    InstanceResult,
    InstanceState,
    StudyListing,
    StudyState,
)
from dcmhaul.migrate.upgrades import reading_ledger, upgrade_ledger
from dcmhaul.objects.canonical import ContentDigest

IDENTITY = JobIdentity(source="OLD@a:104", destination="NEW@b:104", filter_json="{}")
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"


def expected(uid: str, *, series: str = "2.1", locator: str = "") -> ExpectedInstance:
    return ExpectedInstance(
        sop_instance_uid=uid, sop_class_uid=CT, series_instance_uid=series, locator=locator
    )


async def one_study(ledger: Ledger, instances: list[str]) -> tuple[int, int]:
    """A run and a study that is RUNNING."""
    run = await ledger.open_run("job", IDENTITY, {})
    await ledger.add_studies(run.id, [StudyListing(study_instance_uid="1.1", n_expected=3)])
    study_id = (await ledger.study_ids(run.id, ["1.1"]))["1.1"]
    await ledger.add_instances(study_id, [expected(uid) for uid in instances], running=True)
    return run.id, study_id


def acknowledged(study_id: int, uid: str) -> InstanceResult:
    return InstanceResult(
        study_id=study_id,
        sop_instance_uid=uid,
        state=InstanceState.ACKED,
        transfer_syntax_uid=IMPLICIT,
        length=100,
        sha256=b"\1" * 32,
        content=ContentDigest(content=b"\2" * 32, coercible=b"\3" * 32),
    )


def make_version_1(url: str) -> None:
    """Turns a ledger into what the first version made: no contents, no verification."""
    engine = _engine(_parse_url(url), begin="BEGIN IMMEDIATE", synchronous=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE verification")
        for column in ("content", "coercible"):
            connection.exec_driver_sql(f"ALTER TABLE instance DROP COLUMN {column}")
        connection.exec_driver_sql("UPDATE dcmhaul_schema SET version = 1")
    engine.dispose()


def documented_queries() -> list[str]:
    """The SQL of docs/ledger.md."""
    page = Path(__file__).resolve().parents[2] / "docs" / "ledger.md"
    return re.findall(r"```sql\n(.*?);\n```", page.read_text(), re.DOTALL)


def columns(url: str) -> dict[str, list[tuple[str, str, bool]]]:
    """Name, type and nullability of every column, by table."""
    engine = _engine(_parse_url(url), begin="BEGIN", synchronous=True)
    inspector = sa.inspect(engine)
    found = {
        table: sorted(
            (column["name"], str(column["type"]), bool(column["nullable"]))
            for column in inspector.get_columns(table)
        )
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return found


async def check_upgrade(url: str) -> str:
    """A ledger of version 1 with a study in it goes on in this version; returns its backup."""
    async with open_ledger(url) as ledger:
        _, study_id = await one_study(ledger, ["9.1", "9.2"])
        ledger.record(acknowledged(study_id, "9.1"))
        await ledger.close_study(study_id, StudyState.PARTIAL)
    made = columns(url)
    await trio.to_thread.run_sync(make_version_1, url)
    assert columns(url) != made
    done = await trio.to_thread.run_sync(upgrade_ledger, url)
    assert (done.found, done.version) == (1, 2)
    assert columns(url) == made
    async with open_ledger(url) as ledger:
        run_id, study_id = await one_study(ledger, ["9.1", "9.2"])
        assert (await ledger.totals(run_id)).acked == 1
        (row,) = await ledger.digests(study_id)
        assert (row.sha256, row.content, row.checked) == (b"\1" * 32, None, None)
        ledger.record(acknowledged(study_id, "9.2"))
        await ledger.flush()
        await ledger.record_checks(
            study_id, [CheckRow(sop_instance_uid="9.2", result=CheckResult.SAME_CONTENT)]
        )
        rows = {row.sop_instance_uid: row for row in await ledger.digests(study_id)}
        assert rows["9.2"].checked is CheckResult.SAME_CONTENT
        assert rows["9.2"].content == ContentDigest(content=b"\2" * 32, coercible=b"\3" * 32)
    again = await trio.to_thread.run_sync(upgrade_ledger, url)
    assert (again.found, again.backup) == (2, "")
    return done.backup


async def check_reading_beside(url: str) -> None:
    """What is committed is seen while the run goes on, and what the run writes meanwhile is not."""

    def read() -> tuple[int, int, int]:
        with reading_ledger(url) as connection:
            (job,) = list_jobs(connection)
            before = job.totals.acked
            trio.from_thread.run(more)
            (again,) = list_jobs(connection)
        return before, again.totals.acked, job.totals.instances

    async with open_ledger(url) as ledger:
        _, study_id = await one_study(ledger, ["9.1", "9.2"])
        ledger.record(acknowledged(study_id, "9.1"))
        await ledger.flush()

        async def more() -> None:
            ledger.record(acknowledged(study_id, "9.2"))
            await ledger.flush()

        assert await trio.to_thread.run_sync(read) == (1, 1, 2)
        with reading_ledger(url) as connection:
            assert list_jobs(connection)[0].totals.acked == 2
