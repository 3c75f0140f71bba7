"""The ledger in PostgreSQL does what it does in SQLite."""

from __future__ import annotations

import pytest

from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate import MigrateOptions, migrate
from dcmhaul.migrate.account import read_account, read_items
from dcmhaul.migrate.ledger import open_ledger
from dcmhaul.migrate.upgrades import reading_ledger
from tests.engine.fake_archive import FakeArchive, make_instance
from tests.engine.ledgers import check_reading_beside, check_upgrade, documented_queries


async def test_an_earlier_version_is_upgraded_after_a_backup(postgresql_url: str) -> None:
    assert await check_upgrade(postgresql_url) == "dcmhaul_ledger_v1"


async def test_it_is_read_beside_the_run_that_writes_it(postgresql_url: str) -> None:
    await check_reading_beside(postgresql_url)
    async with open_ledger(postgresql_url):
        with pytest.raises(ConfigurationError, match="another process is writing"):
            async with open_ledger(postgresql_url):
                pass


async def test_a_migration_and_its_account(postgresql_url: str) -> None:
    instances = [make_instance(n, study=f"1.2.3.{n % 2}") for n in range(6)]
    old, new = FakeArchive(instances), FakeArchive()
    bad = instances[1].sop_instance_uid
    new.faults.store = lambda i, _n: 0xC123 if i.sop_instance_uid == bad else None
    async with old.running("OLD") as source, new.running("NEW") as destination:
        options = MigrateOptions(
            source=source,
            destination=destination,
            ledger_url=postgresql_url,
            job="job",
            verify="digest",
        )
        summary = await migrate(options)
        assert (summary.instances, summary.failed, summary.same_bytes) == (5, 1, 5)
        new.faults.store = lambda _i, _n: None
        again = await migrate(options)
        assert (again.instances, again.already, again.exit_code) == (1, 5, 0)
        finished = await migrate(options)
        assert (finished.instances, finished.already, finished.exit_code) == (0, 6, 0)
    with reading_ledger(postgresql_url) as connection:
        account = read_account(connection, "job")
        assert account.job.state == "done"
        assert (account.job.totals.acked, account.job.totals.same_bytes) == (6, 6)
        assert [run.instances for run in account.invocations] == [5, 1, 0]
        assert list(read_items(connection, account.job.id)) == []
        for query in documented_queries():
            connection.exec_driver_sql(query).all()
