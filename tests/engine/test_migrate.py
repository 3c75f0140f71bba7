"""Migrations between archives in memory: what arrives, what is recorded, what a second run does."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom import Dataset

from dcmhaul.errors import ConfigurationError, DcmhaulError
from dcmhaul.migrate import MigrateOptions, MigrationSummary, Progress, StopRequest, migrate
from tests.engine.fake_archive import (
    CT,
    EXPLICIT,
    IMPLICIT,
    JPEG2000,
    MR,
    FakeArchive,
    FakeInstance,
    Faults,
    make_instance,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dcmhaul.objects.instances import IncomingInstance


def some_studies(studies: int = 3, instances: int = 4, **arguments: Any) -> list[FakeInstance]:
    return [
        make_instance(number, study=f"1.2.3.{study}", **arguments)
        for study in range(1, studies + 1)
        for number in range(instances)
    ]


@asynccontextmanager
async def job(
    tmp_path: Path, source: FakeArchive, destination: FakeArchive, **options: Any
) -> AsyncIterator[MigrateOptions]:
    async with source.running("OLD") as old, destination.running("NEW") as new:
        yield MigrateOptions(
            source=old,
            destination=new,
            ledger_url=f"sqlite:///{tmp_path}/ledger.db",
            job="job",
            **options,
        )


async def run(options: MigrateOptions, **arguments: Any) -> MigrationSummary:
    with trio.fail_after(60):
        return await migrate(options, **arguments)


async def test_everything_arrives_once_and_a_second_run_moves_nothing(tmp_path: Path) -> None:
    instances = [
        *some_studies(),
        make_instance(20, study="1.2.3.2", sop_class=MR, syntax=IMPLICIT, series="1.2.3.2.7"),
        make_instance(21, study="1.2.3.3", syntax=JPEG2000, size=300_000),
    ]
    old, new = FakeArchive(instances), FakeArchive()
    async with job(tmp_path, old, new) as options:
        told: list[Progress] = []
        summary = await run(options, progress=told.append)
        assert new.digests == old.digests
        assert sorted(new.received) == sorted(old.instances)
        assert (summary.instances, summary.already, summary.failed) == (14, 0, 0)
        assert (summary.studies, summary.studies_done, summary.pending) == (3, 3, 0)
        assert summary.bytes == sum(i.length for i in instances)
        assert summary.exit_code == 0
        assert (told[-1].phase, told[-1].instances, told[-1].studies_done) == ("done", 14, 3)
        assert set(old.endings) == set(new.endings) == {"released"}

        again = await run(options)
        assert (again.instances, again.already, again.failed) == (0, 14, 0)
        assert again.exit_code == 0
        assert len(new.received) == 14
        assert len(old.sent) == 14


async def test_only_what_is_missing_is_moved(tmp_path: Path) -> None:
    instances = some_studies(studies=2)
    old, new = FakeArchive(instances), FakeArchive(instances[:3])
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert new.digests == old.digests
    assert (summary.instances, summary.already) == (5, 3)
    assert sorted(new.received) == sorted(i.sop_instance_uid for i in instances[3:])
    # The one that was missing of the first study came by itself, the second study as a whole.
    assert sorted(old.requests) == ["IMAGE", "STUDY"]


@pytest.mark.parametrize(
    "faults",
    [
        Faults(strict=True),
        Faults(announce_syntax=False),
        Faults(study_twice=True),
    ],
    ids=["strict", "no syntax", "studies twice"],
)
async def test_sources_that_answer_otherwise(tmp_path: Path, faults: Faults) -> None:
    instances = [*some_studies(studies=2), make_instance(9, study="1.2.3.1", series="1.2.3.1.8")]
    old, new = FakeArchive(instances, faults), FakeArchive()
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert new.digests == old.digests
    assert (summary.studies, summary.instances, summary.exit_code) == (2, 9, 0)


async def test_the_filter_selects_studies(tmp_path: Path) -> None:
    instances = some_studies(studies=1) + some_studies(studies=1, date="20210101")
    other = [make_instance(n, study="1.2.3.77", date="20210101") for n in range(2)]
    old, new = FakeArchive(instances[:4] + other), FakeArchive()
    keys = Dataset()
    keys.StudyDate = "20210101"
    async with job(tmp_path, old, new, filter=keys) as options:
        summary = await run(options)
        assert sorted(new.instances) == sorted(i.sop_instance_uid for i in other)
        assert summary.instances == 2
        changed = Dataset()
        changed.StudyDate = "20200101"
        with pytest.raises(ConfigurationError, match=r"filter was StudyDate=20210101, now"):
            await run(replace(options, filter=changed))


async def test_nothing_matched(tmp_path: Path) -> None:
    keys = Dataset()
    keys.StudyDate = "19990101"
    async with job(tmp_path, FakeArchive(some_studies()), FakeArchive(), filter=keys) as options:
        summary = await run(options)
    assert (summary.studies, summary.exit_code) == (0, 4)


async def test_a_key_below_study_level_is_refused(tmp_path: Path) -> None:
    keys = Dataset()
    keys.Modality = "CT"
    async with job(tmp_path, FakeArchive(), FakeArchive(), filter=keys) as options:
        with pytest.raises(ConfigurationError, match="ModalitiesInStudy"):
            await run(options)


async def test_a_dry_run_moves_nothing_and_keeps_no_job(tmp_path: Path) -> None:
    instances = some_studies()
    old, new = FakeArchive(instances), FakeArchive(instances[:2])
    async with job(tmp_path, old, new, dry_run=True) as options:
        summary = await run(options)
    assert (summary.studies, summary.pending, summary.already) == (3, 10, 2)
    assert summary.exit_code == 0
    assert new.received == []
    assert not (tmp_path / "ledger.db").exists()


# -- destinations that refuse ---------------------------------------------------------------------------


async def test_a_refusal_that_passes_is_tried_again(tmp_path: Path) -> None:
    seen: set[str] = set()

    def once(instance: Any, _number: int) -> int | None:
        if instance.sop_instance_uid in seen:
            return None
        seen.add(instance.sop_instance_uid)
        return 0xA700

    old, new = FakeArchive(some_studies(1, 3)), FakeArchive(faults=Faults(store=once))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert new.digests == old.digests
    assert len(new.received) == 6
    assert (summary.instances, summary.failed, summary.exit_code) == (3, 0, 0)


async def test_a_refusal_that_stays_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    instances = some_studies(2, 3)
    bad = instances[1].sop_instance_uid

    def refuse(instance: Any, _number: int) -> int | None:
        return 0xC123 if instance.sop_instance_uid == bad else None

    old, new = FakeArchive(instances), FakeArchive(faults=Faults(store=refuse))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
        assert (summary.instances, summary.failed, summary.failed_retryable) == (5, 1, 0)
        assert summary.exit_code == 6
        (failure,) = summary.failures
        assert failure.sop_instance_uid == bad
        assert failure.status == 0xC123
        assert "0xC123" in failure.reason
        assert new.received.count(bad) == 2

        # The next run tries it again, and only it.
        new.faults.store = lambda _instance, _number: None
        new.received.clear()
        again = await run(options)
        assert new.received == [bad]
        assert (again.instances, again.already, again.failed, again.exit_code) == (1, 5, 0, 0)


async def test_a_warning_is_stored(tmp_path: Path) -> None:
    old = FakeArchive(some_studies(1, 2))
    new = FakeArchive(faults=Faults(store=lambda _instance, _number: 0xB000))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.exit_code) == (2, 0)
    assert len(new.received) == 2


async def test_a_class_that_the_destination_does_not_take_is_a_failure(tmp_path: Path) -> None:
    instances = [*some_studies(1, 2), make_instance(9, study="1.2.3.1", sop_class=MR)]
    old, new = FakeArchive(instances), FakeArchive(faults=Faults(classes=(CT,)))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (2, 1, 6)
    assert "no presentation context" in summary.failures[0].reason
    assert old.sent.count(instances[2].sop_instance_uid) == 0


async def test_a_syntax_that_the_destination_does_not_take_is_a_failure(tmp_path: Path) -> None:
    instances = [*some_studies(1, 2), make_instance(9, study="1.2.3.1", syntax=JPEG2000)]
    old = FakeArchive(instances)
    new = FakeArchive(faults=Faults(syntaxes=(EXPLICIT, IMPLICIT)))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (2, 1, 6)
    assert "JPEG 2000" in summary.failures[0].reason


async def test_what_the_source_does_not_send_is_a_failure(tmp_path: Path) -> None:
    instances = some_studies(1, 3)
    missing = instances[0].sop_instance_uid
    old, new = FakeArchive(instances, Faults(withhold=frozenset({missing}))), FakeArchive()
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (2, 1, 5)
    assert "the source did not send it" in summary.failures[0].reason


# -- associations that break ----------------------------------------------------------------------------


async def test_a_source_that_aborts_now_and_then(tmp_path: Path) -> None:
    old = FakeArchive(some_studies(3, 6), Faults(get_abort=lambda n: n in (2, 9)))
    new = FakeArchive()
    async with job(tmp_path, old, new, associations=2) as options:
        summary = await run(options)
    assert new.digests == old.digests
    assert (summary.instances + summary.already, summary.failed) == (18, 0)
    # What the destination had answered is not sent again.
    assert sorted(new.received) == sorted(old.instances)


async def test_a_destination_that_aborts_within_an_object(tmp_path: Path) -> None:
    old = FakeArchive(some_studies(2, 5, size=200_000))
    new = FakeArchive(faults=Faults(store_cut={3: 100_000}))
    async with job(tmp_path, old, new, associations=2, pdu_length_max=16384) as options:
        summary = await run(options)
    assert new.digests == old.digests
    assert (summary.instances + summary.already, summary.failed) == (10, 0)


async def test_an_answer_that_is_lost_is_settled_by_asking(tmp_path: Path) -> None:
    # The destination keeps the instance and dies before it says so.
    old = FakeArchive(some_studies(1, 5))
    new = FakeArchive(faults=Faults(store_abort=lambda n: n == 3))
    async with job(tmp_path, old, new, associations=1, window=1) as options:
        summary = await run(options)
    assert new.digests == old.digests
    assert sorted(new.stored) == sorted(old.instances)
    assert (summary.instances, summary.already, summary.failed) == (4, 1, 0)


async def test_an_instance_that_kills_every_association_is_given_up(tmp_path: Path) -> None:
    instances = some_studies(2, 4)
    bad = instances[2].sop_instance_uid
    old = FakeArchive(instances)
    new = FakeArchive()
    new.faults.store_abort = lambda n: new.received[n - 1] == bad
    new.faults.store = lambda instance, _n: 0xA700 if instance.sop_instance_uid == bad else None
    async with job(tmp_path, old, new, associations=1, window=1) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (7, 1, 5)
    assert [failure.sop_instance_uid for failure in summary.failures] == [bad]
    assert new.received.count(bad) == 3


async def test_a_peer_that_is_not_there(tmp_path: Path) -> None:
    old = FakeArchive(some_studies(1, 1))
    async with job(tmp_path, old, FakeArchive()) as options:
        gone = replace(options.destination, port=1)  # type: ignore[type-var]
        with pytest.raises(DcmhaulError) as raised:
            await run(replace(options, destination=gone))
    assert raised.value.exit_code == 3


async def test_a_destination_without_find_is_written_to_and_not_verified(tmp_path: Path) -> None:
    old, new = FakeArchive(some_studies(2, 2)), FakeArchive(faults=Faults(no_find=True))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
        assert new.digests == old.digests
        assert (summary.instances, summary.unverified, summary.exit_code) == (4, 2, 11)
        relaxed = await run(replace(options, verify="none"))
        assert (relaxed.instances, relaxed.already, relaxed.exit_code) == (0, 4, 0)


async def test_what_was_acknowledged_and_is_not_there_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmhaul.migrate.run.VERIFY_DELAYS", (0.01,))
    instances = some_studies(2, 3)
    lost = instances[0].sop_instance_uid
    old, new = FakeArchive(instances), FakeArchive(faults=Faults(hidden={lost}))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
        assert (summary.instances, summary.differing, summary.exit_code) == (6, 1, 11)
        # A later run moves it again.
        new.faults.hidden.clear()
        del new.instances[lost]
        new.received.clear()
        again = await run(options)
        assert new.received == [lost]
        assert (again.instances, again.differing, again.exit_code) == (1, 0, 0)


# -- stopping -------------------------------------------------------------------------------------------


async def test_a_stop_finishes_what_is_in_flight_and_the_next_run_goes_on(tmp_path: Path) -> None:
    old = FakeArchive(some_studies(4, 25))
    stop = StopRequest()

    def after_ten(_instance: IncomingInstance, number: int) -> None:
        if number == 10:
            stop.request()

    new = FakeArchive(faults=Faults(store=after_ten))
    async with job(tmp_path, old, new, associations=2) as options:
        summary = await run(options, stop=stop)
        assert summary.interrupted
        assert summary.exit_code == 130
        assert 10 <= summary.instances < 100
        # Everything that left was answered and recorded.
        assert len(new.received) == len(new.stored) == summary.instances
        again = await run(options)
    assert again.exit_code == 0
    assert again.instances + again.already == 100
    assert new.digests == old.digests
    assert sorted(new.received) == sorted(old.instances)


async def test_a_second_stop_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    old = FakeArchive(some_studies(3, 80))
    stop = StopRequest()

    def twice(_instance: IncomingInstance, number: int) -> None:
        if number in (10, 11):
            stop.request()

    new = FakeArchive(faults=Faults(store=twice))
    async with job(tmp_path, old, new, associations=2) as options:
        summary = await run(options, stop=stop)
        assert summary.exit_code == 130
        assert summary.instances < 240
        again = await run(options)
    assert again.exit_code == 0
    assert new.digests == old.digests
    # What was in flight may have been kept, but nothing that was acknowledged is sent again.
    assert again.instances + again.already == 240
    assert again.already >= summary.instances
