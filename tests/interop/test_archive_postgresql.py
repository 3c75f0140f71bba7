"""The archive's index in PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul import uids
from dcmhaul.archive import open_archive, unified_changes
from dcmhaul.errors import ConfigurationError
from dcmhaul.services import unified
from dcmhaul.services.query import QueryModel
from tests.archive import test_unified
from tests.archive.made import instance, real_files
from tests.archive.serving import serving
from tests.archive.test_archive import contents, store
from tests.archive.test_query import values

if TYPE_CHECKING:
    from pathlib import Path

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN


async def test_stores_finds_and_gives_out(tmp_path: Path, postgresql_url: str) -> None:
    paths = real_files()
    folder = tmp_path / "a"
    async with serving(folder, database_url=postgresql_url) as served:
        archive = served.archive
        assert (await archive.import_files(paths)).stored == len(paths)
        name = "Müller^Jürgen"
        one = instance(SpecificCharacterSet="ISO_IR 100", PatientName=name)
        assert (await store(archive, one)).status == 0
        assert (await store(archive, one)).status == 0
        assert (await store(archive, instance(PatientName="Other"))).status == 0xC001
        found, status = await served.find(
            "STUDY",
            SpecificCharacterSet="ISO_IR 192",
            PatientName="MÜLLER*",
            StudyDate="20240101-20241231",
            ModalitiesInStudy="CT",
            NumberOfStudyRelatedInstances="",
        )
        assert status == 0
        assert values(found, "PatientName") == [name]
        assert values(found, "NumberOfStudyRelatedInstances") == ["1"]
        assert list(await contents(archive, StudyInstanceUID="1.2.3.1")) == ["1.2.3.1.1.1"]
        with pytest.raises(ConfigurationError, match="another process"):
            async with open_archive(tmp_path / "b", database_url=postgresql_url):
                pass
    async with open_archive(folder, database_url=postgresql_url) as archive:
        assert archive.recovery.lines() == []
        assert archive.statistics().holds.instances == len(paths) + 1


async def test_procedure_steps_and_who_hears_of_them(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unified_changes, "KEPT_SECONDS", -10)
    async with test_unified.watched(tmp_path, database_url=postgresql_url) as (scu, watcher):
        for number in range(3):
            await test_unified.create(scu, uid=f"1.2.{number}")
        assert (await test_unified.create(scu, uid="1.2.0")).status == 0x0111
        assert (await unified.subscribe(scu, "WATCHER", "1.2.1", deletion_lock=True)).status == 0
        assert (await unified.subscribe(scu, "WATCHER")).status == 0
        assert await watcher.states(1) == [("1.2.1", "SCHEDULED")]
        for number in range(2):
            await unified.request_cancel(scu, f"1.2.{number}")
        assert len(await watcher.states(4)) == 4
        await test_unified.create(scu, uid="1.2.9")  # which forgets what ended and is not locked
        keys = test_unified.item(ProcedureStepState="", SOPInstanceUID="")
        model = QueryModel.UNIFIED_STEP_PULL
        found = await test_unified.found(scu, keys, model)
        assert [step.SOPInstanceUID for step in found] == ["1.2.1", "1.2.2", "1.2.9"]


async def test_a_job_that_fails_is_undone_alone(tmp_path: Path, postgresql_url: str) -> None:
    async with open_archive(tmp_path / "a", database_url=postgresql_url) as archive:
        database = archive._database
        with pytest.raises(Exception, match="division by zero"):
            await database.submit(lambda c: c.exec_driver_sql("SELECT 1/0"))
        assert (await store(archive, instance())).status == 0


async def test_a_server_that_drops_its_connections(tmp_path: Path, postgresql_url: str) -> None:
    """As at its restart: what was under way is A700, the next one is stored, and the lock is held again."""
    async with serving(tmp_path / "a", database_url=postgresql_url) as served:
        archive = served.archive
        assert (await store(archive, instance(1))).status == 0
        await trio.to_thread.run_sync(drop_connections, postgresql_url)
        reply = await store(archive, instance(2))
        assert reply.status == 0xA700
        assert reply.error_comment == "cannot store: the index cannot be written"
        assert (await store(archive, instance(2))).status == 0
        found, status = await served.find("STUDY", PatientID="")
        assert (sorted(values(found, "PatientID")), status) == (["ID1", "ID2"], 0)
        with pytest.raises(ConfigurationError, match="another process"):
            async with open_archive(tmp_path / "b", database_url=postgresql_url):
                pass
    async with open_archive(tmp_path / "a", database_url=postgresql_url) as archive:
        assert archive.recovery.missing == []
        assert len(await contents(archive)) == 2


def drop_connections(url: str) -> None:
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
