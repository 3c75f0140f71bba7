"""The ledger: what a run records, and what it finds again after a crash."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
import trio

from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate import bulk, upgrades
from dcmhaul.migrate.ledger import open_ledger
from dcmhaul.migrate.plan import JobIdentity
from dcmhaul.migrate.tables import (
    CheckResult,
    Exclusion,
    InstanceResult,
    InstanceState,
    RunState,
    StudyListing,
    StudyState,
)
from dcmhaul.migrate.upgrades import reading_ledger, upgrade_ledger
from tests.engine.ledgers import (
    CT,
    IDENTITY,
    acknowledged,
    check_reading_beside,
    check_upgrade,
    columns,
    documented_queries,
    expected,
    make_version_1,
    one_study,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


async def test_a_run_is_found_again_with_its_state(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run = await ledger.open_run("job", IDENTITY, {"associations": 4})
        assert (run.state, run.resumed) == (RunState.LISTING, False)
        await ledger.set_run_state(run.id, RunState.DONE, {})
    async with open_ledger(url(tmp_path)) as ledger:
        again = await ledger.open_run("job", IDENTITY, {})
        assert (again.id, again.state, again.resumed) == (run.id, RunState.DONE, True)


async def test_another_job_under_the_name_is_refused_and_the_difference_named(
    tmp_path: Path,
) -> None:
    other = JobIdentity(
        source="OLD@a:104",
        destination="ELSE@c:104",
        filter_json='{"00080020":{"Value":["2015"],"vr":"DA"}}',
    )
    async with open_ledger(url(tmp_path)) as ledger:
        await ledger.open_run("job", IDENTITY, {})
        with pytest.raises(ConfigurationError) as raised:
            await ledger.open_run("job", other, {})
    text = str(raised.value)
    assert "destination was NEW@b:104, now ELSE@c:104" in text
    assert "filter was none, now StudyDate=2015" in text
    assert "source" not in text


async def test_what_was_recorded_is_durable_when_the_study_is_closed(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run_id, study_id = await one_study(ledger, ["9.1", "9.2", "9.3"])
        ledger.record(
            InstanceResult(
                study_id=study_id,
                sop_instance_uid="9.1",
                state=InstanceState.ACKED,
                transfer_syntax_uid="1.2.840.10008.1.2",
                length=100,
                sha256=b"\1" * 32,
                status=0xB000,
            )
        )
        ledger.record(
            InstanceResult(
                study_id=study_id,
                sop_instance_uid="9.2",
                state=InstanceState.FAILED,
                status=0xA700,
                retryable=True,
                comment="out of resources",
            )
        )
        await ledger.close_study(study_id, StudyState.PARTIAL, comment="1 failed")
        # Another process, without the ledger's code, sees the same.
        with sqlite3.connect(tmp_path / "ledger.db") as plain:
            rows = plain.execute(
                "SELECT sop_uid, state, len, dst_status FROM instance ORDER BY sop_uid"
            ).fetchall()
            study = plain.execute("SELECT state, n_src, n_dst, bytes FROM study").fetchone()
        assert rows == [
            ("9.1", InstanceState.ACKED, 100, 0xB000),
            ("9.2", InstanceState.FAILED, None, 0xA700),
            ("9.3", InstanceState.SEEN, None, None),
        ]
        assert study == (StudyState.PARTIAL, 3, 1, 100)
        totals = await ledger.totals(run_id)
        assert (totals.instances, totals.acked, totals.failed, totals.pending) == (3, 1, 1, 1)
        assert totals.failed_retryable == 1
        failures = await ledger.failures(run_id)
        assert [(f.study_instance_uid, f.sop_instance_uid, f.reason) for f in failures] == [
            ("1.1", "9.2", "out of resources")
        ]
        recorded = {row.expected.sop_instance_uid: row for row in await ledger.instances(study_id)}
        assert recorded["9.1"].expected.transfer_syntax_uid == "1.2.840.10008.1.2"
        assert recorded["9.3"].expected.sop_class_uid == CT


async def test_results_are_flushed_by_time_and_at_the_end(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run_id, study_id = await one_study(ledger, ["9.1", "9.2"])
        ledger.record(
            InstanceResult(
                study_id=study_id, sop_instance_uid="9.1", state=InstanceState.ACKED, length=1
            )
        )
        with trio.fail_after(10):
            while not (await ledger.totals(run_id)).acked:
                await trio.sleep(0.02)
        ledger.record(
            InstanceResult(
                study_id=study_id, sop_instance_uid="9.2", state=InstanceState.ACKED, length=1
            )
        )
    async with open_ledger(url(tmp_path)) as ledger:
        assert (await ledger.totals(run_id)).acked == 2


async def test_results_survive_the_cancellation_of_the_run(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_ledger(url(tmp_path)) as ledger:
            run_id, study_id = await one_study(ledger, ["9.1"])
            ledger.record(
                InstanceResult(
                    study_id=study_id, sop_instance_uid="9.1", state=InstanceState.ACKED, length=1
                )
            )
            scope.cancel()
            await trio.sleep_forever()
    async with open_ledger(url(tmp_path)) as ledger:
        assert (await ledger.totals(run_id)).acked == 1


async def test_a_study_is_never_closed_before_its_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer's flush has taken the rows and learns their syntax while the study is closed."""
    async with open_ledger(url(tmp_path)) as ledger:
        _, study_id = await one_study(ledger, ["9.1", "9.2"])
        learn = ledger._learn_uids
        closing = trio.Event()

        async def slow(wanted: set[str]) -> None:
            closing.set()
            await trio.sleep(0.3)
            await learn(wanted)

        monkeypatch.setattr(ledger, "_learn_uids", slow)
        ledger.record(acknowledged(study_id, "9.1"))
        with trio.fail_after(10):
            await closing.wait()
            ledger.record(acknowledged(study_id, "9.2"))
            await ledger.close_study(study_id, StudyState.DONE)
        with sqlite3.connect(tmp_path / "ledger.db") as plain:
            assert plain.execute("SELECT n_dst, bytes FROM study").fetchone() == (2, 200)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250])
async def test_rows_in_any_number(tmp_path: Path, count: int) -> None:
    """They go a hundred a statement, and what is left one by one."""
    uids = [f"9.{n}" for n in range(count)]
    async with open_ledger(url(tmp_path)) as ledger:
        run_id, study_id = await one_study(ledger, uids)
        assert len(await ledger.instances(study_id)) == count
        # Listed once more they stay as they are.
        await ledger.add_instances(study_id, [expected(uid) for uid in uids], running=True)
        for uid in uids:
            ledger.record(acknowledged(study_id, uid))
        # Of two results within one transaction the later one counts, and a syntax that is known stays.
        ledger.record(
            InstanceResult(
                study_id=study_id,
                sop_instance_uid=uids[-1],
                state=InstanceState.FAILED,
                retryable=True,
                comment="after all",
            )
        )
        await ledger.close_study(study_id, StudyState.PARTIAL)
        totals = await ledger.totals(run_id)
        assert (totals.acked, totals.failed, totals.failed_retryable) == (count - 1, 1, 1)
        rows = {row.expected.sop_instance_uid: row for row in await ledger.instances(study_id)}
        syntaxes = {row.expected.transfer_syntax_uid for row in rows.values()}
        assert syntaxes == ({"1.2.840.10008.1.2", ""} if count > 1 else {""})
        assert rows[uids[-1]].state is InstanceState.FAILED
        with sqlite3.connect(tmp_path / "ledger.db") as plain:
            study = plain.execute(
                "SELECT n_src, n_dst, bytes, state, attempts FROM study"
            ).fetchone()
        assert study == (count, count - 1, (count - 1) * 100 or None, StudyState.PARTIAL, 0)


async def test_rows_where_sqlite_cannot_update_from_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_UPDATES_FROM_VALUES", False)
    async with open_ledger(url(tmp_path)) as ledger:
        uids = [f"9.{n}" for n in range(150)]
        run_id, study_id = await one_study(ledger, uids)
        for uid in uids:
            ledger.record(acknowledged(study_id, uid))
        await ledger.flush()
        assert (await ledger.totals(run_id)).acked == 150


async def test_studies_that_are_closed_at_once_share_a_commit(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run_id, _ = await one_study(ledger, ["9.1"])
        uids = [f"1.2.{n}" for n in range(50)]
        await ledger.add_studies(run_id, [StudyListing(study_instance_uid=uid) for uid in uids])
        ids = await ledger.study_ids(run_id, uids)
        before = ledger._database.writer.statistics().commits
        async with trio.open_nursery() as nursery:
            for study_id in ids.values():
                nursery.start_soon(ledger.close_study, study_id, StudyState.DONE)
        assert ledger._database.writer.statistics().commits - before <= 3
        assert (await ledger.totals(run_id)).studies_done == 50


async def test_two_files_of_one_uid_are_told(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run = await ledger.open_run("job", IDENTITY, {})
        await ledger.add_studies(run.id, [StudyListing(study_instance_uid="1.1")])
        study_id = (await ledger.study_ids(run.id, ["1.1"]))["1.1"]
        first = [expected("9.1", locator="a.dcm"), expected("9.1", locator="b.dcm")]
        again = await ledger.add_instances(study_id, first, running=False)
        assert [i.locator for i in again] == ["b.dcm"]
        # The same folder walked once more is no duplicate.
        again = await ledger.add_instances(study_id, first[:1], running=False)
        assert again == []
        await ledger.add_exclusions(
            run.id,
            [
                Exclusion(locator="b.dcm", kind="conflict", reason="other bytes"),
                Exclusion(locator="notes.txt", kind="skipped", reason="not DICOM"),
            ],
        )
        totals = await ledger.totals(run.id)
        assert (totals.instances, totals.failed, totals.skipped) == (1, 1, 1)


async def test_missing_after_all_is_moved_again_by_a_later_run(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run_id, study_id = await one_study(ledger, ["9.1", "9.2"])
        for uid in ("9.1", "9.2"):
            ledger.record(
                InstanceResult(
                    study_id=study_id, sop_instance_uid=uid, state=InstanceState.ACKED, length=1
                )
            )
        await ledger.close_study(study_id, StudyState.DONE)
        await ledger.differs(study_id, ["9.2"], "not at the destination")
        states = {
            row.expected.sop_instance_uid: row.state for row in await ledger.instances(study_id)
        }
        assert states == {"9.1": InstanceState.ACKED, "9.2": InstanceState.SEEN}
        (study,) = await ledger.studies(run_id, [StudyState.DIFFERS])
        assert (study.listed, study.verified_level) == (True, None)


async def test_studies_come_in_pages(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run = await ledger.open_run("job", IDENTITY, {})
        await ledger.add_studies(
            run.id, [StudyListing(study_instance_uid=f"1.{n}") for n in range(5)]
        )
        # Adding them again changes nothing.
        await ledger.add_studies(run.id, [StudyListing(study_instance_uid="1.0")])
        seen: list[str] = []
        after = 0
        while page := await ledger.studies(run.id, [StudyState.SEEN], after=after, limit=2):
            seen += [study.study_instance_uid for study in page]
            after = page[-1].id
        assert seen == [f"1.{n}" for n in range(5)]


async def test_events_are_kept_as_json(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run = await ledger.open_run("job", IDENTITY, {})
        await ledger.event(run.id, "study.retry", study="1.1", attempts=2)
    with sqlite3.connect(tmp_path / "ledger.db") as plain:
        rows = plain.execute("SELECT kind, json FROM event ORDER BY id").fetchall()
    assert [row[0] for row in rows] == ["run.started", "study.retry"]
    assert json.loads(rows[1][1]) == {"attempts": 2, "study": "1.1"}


async def test_a_database_of_another_kind_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as plain:
        plain.execute("CREATE TABLE something (id INTEGER)")
    with pytest.raises(ConfigurationError, match="another program"):
        async with open_ledger(url(tmp_path)):
            pass


# -- versions, and readers beside a run -----------------------------------------------------------------


async def test_an_earlier_version_is_upgraded_after_a_backup(tmp_path: Path) -> None:
    backup = await check_upgrade(url(tmp_path))
    assert backup == f"{tmp_path}/ledger.db.v1.bak"
    assert (tmp_path / "ledger.db.v1.bak").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(backup) as plain:
        assert plain.execute("SELECT version FROM dcmhaul_schema").fetchone() == (1,)
        assert plain.execute("SELECT count(*) FROM instance").fetchone() == (2,)


async def test_another_version_is_refused_and_the_way_named(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)):
        with pytest.raises(ConfigurationError, match="another process is writing"):
            upgrade_ledger(url(tmp_path))
    make_version_1(url(tmp_path))
    with pytest.raises(ConfigurationError, match=r"version 1, .* needs 2; `dcmhaul jobs upgrade`"):
        async with open_ledger(url(tmp_path)):
            pass
    with (
        pytest.raises(ConfigurationError, match="jobs upgrade"),
        reading_ledger(url(tmp_path)),
    ):
        pass
    with sqlite3.connect(tmp_path / "ledger.db") as plain:
        plain.execute("UPDATE dcmhaul_schema SET version = 99")
    with pytest.raises(ConfigurationError, match="a newer dcmhaul made it"):
        async with open_ledger(url(tmp_path)):
            pass
    with pytest.raises(ConfigurationError, match="no way from it to 2"):
        upgrade_ledger(url(tmp_path))
    assert not list(tmp_path.glob("*.bak"))


async def test_an_upgrade_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_ledger(url(tmp_path)):
        pass
    make_version_1(url(tmp_path))

    def half(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE instance ADD COLUMN content BLOB")
        connection.exec_driver_sql("ALTER TABLE nothing ADD COLUMN content BLOB")

    monkeypatch.setattr(upgrades, "UPGRADES", {1: half})
    with pytest.raises(ConfigurationError, match="cannot upgrade"):
        upgrade_ledger(url(tmp_path))
    monkeypatch.undo()
    assert upgrade_ledger(url(tmp_path)).backup.endswith(".v1.2.bak")
    async with open_ledger(url(tmp_path)):
        pass


async def test_a_ledger_is_read_beside_the_run_that_writes_it(tmp_path: Path) -> None:
    await check_reading_beside(url(tmp_path))


@pytest.mark.parametrize("mode", [0o700, 0o500])
async def test_a_ledger_is_read_where_nobody_writes(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    async with open_ledger(url(folder)) as ledger:
        await one_study(ledger, ["9.1"])
    folder.chmod(mode)
    try:
        with reading_ledger(url(folder)) as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM instance").scalar_one() == 1
            with pytest.raises(sa.exc.OperationalError, match="readonly"):
                connection.exec_driver_sql("DELETE FROM instance")
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no database"), (b"", "is no ledger"), (b"text" * 2000, "cannot read")],
)
def test_what_is_no_ledger_is_not_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "ledger.db").write_bytes(content)
    with pytest.raises(ConfigurationError, match=message), reading_ledger(url(tmp_path)):
        pass


# -- its page -------------------------------------------------------------------------------------------


async def test_the_page_names_every_table_column_and_state(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)):
        pass
    page = (Path(__file__).resolve().parents[2] / "docs" / "ledger.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+) \|", page, re.MULTILINE)
    listed = {table: sorted(re.findall(r"`(\w+)`", names)) for table, names in rows}
    assert listed == {
        table: [name for name, _, _ in found] for table, found in columns(url(tmp_path)).items()
    }
    for column, states in (
        ("run.state", RunState),
        ("study.state", StudyState),
        ("instance.state", InstanceState),
        ("verification.result", CheckResult),
    ):
        (values,) = re.findall(rf"^\| `{column}` \| (.*) \|$", page, re.MULTILINE)
        assert re.findall(r"\b\d\b", values) == [str(int(state)) for state in states]


async def test_the_questions_of_the_page_have_answers(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        _, study_id = await one_study(ledger, ["9.1", "9.2"])
        ledger.record(acknowledged(study_id, "9.1"))
        await ledger.close_study(study_id, StudyState.DONE)
    with sqlite3.connect(tmp_path / "ledger.db") as plain:
        answers = [plain.execute(query).fetchall() for query in documented_queries()]
    assert len(answers) == 8
    assert answers[0] == [("job", 0, 1, 1, 2, 1)]
    assert answers[5] == [(CT, "1.2.840.10008.1.2", 1, 100)]
