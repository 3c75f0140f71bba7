"""`--verify digest`: what is read back from the destination, and what is said of it."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate import MigrateOptions, MigrationSummary, Progress, migrate
from dcmhaul.migrate.plan import is_sampled, parse_verification, satisfies
from dcmhaul.migrate.verification import Verifier
from dcmhaul.migrate.verify import CannotBeAsked
from dcmhaul.services.identifiers import decode_identifier, encode_identifier
from tests.engine.fake_archive import (
    EXPLICIT,
    IMPLICIT,
    JPEG2000,
    MR,
    FakeArchive,
    FakeInstance,
    Faults,
    make_instance,
)
from tests.engine.test_migrate_folders import write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def some(studies: int = 2, instances: int = 4) -> list[FakeInstance]:
    return [
        make_instance(number, study=f"1.2.3.{study}")
        for study in range(1, studies + 1)
        for number in range(instances)
    ]


def changed(change: Callable[[Any], None], syntax: str = EXPLICIT) -> Callable[..., FakeInstance]:
    """An archive that keeps something else than it got."""

    def rewrite(instance: FakeInstance) -> FakeInstance:
        dataset = decode_identifier(instance.dataset, instance.transfer_syntax_uid)
        change(dataset)
        return replace(
            instance,
            transfer_syntax_uid=syntax,
            dataset=encode_identifier(dataset, syntax),
        )

    return rewrite


def nothing(_dataset: Any) -> None: ...


def retrieve_title(dataset: Any) -> None:
    dataset.RetrieveAETitle = "NEW"


def other_patient(dataset: Any) -> None:
    dataset.PatientID = "OTHER"


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
            **{"verify": "digest"} | options,
        )


async def run(options: MigrateOptions, **arguments: Any) -> MigrationSummary:
    with trio.fail_after(60):
        return await migrate(options, **arguments)


def results(summary: MigrationSummary) -> tuple[int, int, int, int, int]:
    return (
        summary.same_bytes,
        summary.same_content,
        summary.coerced,
        summary.altered,
        summary.not_read,
    )


async def test_everything_is_read_back_once(tmp_path: Path) -> None:
    instances = [
        *some(),
        make_instance(20, study="1.2.3.2", sop_class=MR, syntax=IMPLICIT, series="1.2.3.2.7"),
        make_instance(21, study="1.2.3.2", syntax=JPEG2000, size=300_000),
    ]
    old, new = FakeArchive(instances), FakeArchive()
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
        assert (summary.instances, summary.exit_code) == (10, 0)
        assert results(summary) == (10, 0, 0, 0, 0)
        assert sorted(new.sent) == sorted(old.instances)
        again = await run(options)
        assert (again.instances, again.already, again.exit_code) == (0, 10, 0)
        assert results(again) == (10, 0, 0, 0, 0)
        # A weaker level holds as well; nothing is asked again.
        finds = new.finds.total()
        assert (await run(replace(options, verify="uids"))).exit_code == 0
        assert new.finds.total() == finds
        assert len(new.sent) == len(old.sent) == 10
    with sqlite3.connect(tmp_path / "ledger.db") as plain:
        rows = dict(plain.execute("SELECT sop_uid, sha256 FROM instance").fetchall())
        levels = plain.execute("SELECT DISTINCT verified_level FROM study").fetchall()
    assert rows == old.digests
    assert levels == [("digest:100",)]


@pytest.mark.parametrize(
    ("rewrite", "expected", "said"),
    [
        (changed(nothing, IMPLICIT), (0, 4, 0, 0, 0), None),
        (changed(retrieve_title), (0, 0, 4, 0, 0), "(0008,0054) Retrieve AE Title"),
        (changed(retrieve_title, IMPLICIT), (0, 0, 4, 0, 0), "(0008,0054) Retrieve AE Title"),
        (changed(other_patient), (0, 0, 0, 4, 0), "the content differs: (0010,0020) PatientID"),
        (
            changed(other_patient, IMPLICIT),
            (0, 0, 0, 4, 0),
            "Explicit VR Little Endian became Implicit VR Little Endian: the content differs: "
            "(0010,0020) PatientID",
        ),
    ],
    ids=["re-encoded", "coerced", "both", "altered", "altered and re-encoded"],
)
async def test_what_the_destination_made_of_it(
    tmp_path: Path,
    rewrite: Callable[[FakeInstance], FakeInstance],
    expected: tuple[int, ...],
    said: str | None,
) -> None:
    old, new = FakeArchive(some(1)), FakeArchive(faults=Faults(rewrite=rewrite))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
        assert results(summary) == expected
        assert {found.differences for found in summary.differences} == ({said} if said else set())
        altered = expected[3]
        assert summary.exit_code == (11 if altered else 0)
        assert summary.differing == (1 if altered else 0)
        # What differs is compared again, and never moved again: a person decides.
        again = await run(options)
        assert (again.instances, again.exit_code) == (0, summary.exit_code)
        assert results(again) == expected
        assert len(new.received) == 4


async def test_a_sample_is_the_same_in_every_run(tmp_path: Path) -> None:
    instances = some(2, 20)
    old, new = FakeArchive(instances), FakeArchive()
    sampled = {i.sop_instance_uid for i in instances if is_sampled(i.sop_instance_uid, 30)}
    assert 0 < len(sampled) < 30
    async with job(tmp_path, old, new, verify_percent=30.0) as options:
        summary = await run(options)
        assert (summary.same_bytes, summary.exit_code) == (len(sampled), 0)
        assert set(new.sent) == sampled
        whole = await run(replace(options, verify_percent=100.0))
        assert (whole.instances, whole.same_bytes, whole.exit_code) == (0, 40, 0)
        # What was compared before is not read again.
        assert sorted(new.sent) == sorted(new.instances)


async def test_what_the_destination_had_is_compared_with_the_source(tmp_path: Path) -> None:
    instances = some(1)
    there = changed(other_patient)(instances[0])
    old, new = FakeArchive(instances), FakeArchive([there, *instances[1:2]])
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.already) == (2, 2)
    assert results(summary) == (3, 0, 0, 1, 0)
    (found,) = summary.differences
    assert found.sop_instance_uid == there.sop_instance_uid
    assert summary.exit_code == 11


async def test_after_a_run_that_kept_no_content_digests(tmp_path: Path) -> None:
    old, new = FakeArchive(some(1)), FakeArchive(faults=Faults())
    async with job(tmp_path, old, new, verify="uids") as options:
        await run(options)
        sent = len(old.sent)
        summary = await run(replace(options, verify="digest"))
        assert results(summary) == (4, 0, 0, 0, 0)
        # The bytes are the same as on the way: the source was not asked again.
        assert len(old.sent) == sent


async def test_what_is_listed_and_not_given_back(tmp_path: Path) -> None:
    old, new = FakeArchive(some(1)), FakeArchive()
    kept = some(1)[1].sop_instance_uid
    new.faults.withhold = frozenset({kept})
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
        assert results(summary) == (3, 0, 0, 0, 1)
        assert (summary.differing, summary.exit_code) == (1, 11)
        assert str(summary.differences[0]) == f"{kept}: the destination did not give it back"
        new.faults.withhold = frozenset()
        again = await run(options)
        assert results(again) == (4, 0, 0, 0, 0)
        assert (again.instances, again.differing, again.exit_code) == (0, 0, 0)


async def test_a_destination_that_cannot_be_read_back(tmp_path: Path) -> None:
    old, new = FakeArchive(some(2)), FakeArchive(faults=Faults(no_get=True))
    told: list[Progress] = []
    async with job(tmp_path, old, new) as options:
        summary = await run(options, progress=told.append)
        assert new.digests == old.digests
        assert (summary.unverified, summary.differing, summary.exit_code) == (2, 0, 11)
        notices = [told.notice for told in told if "cannot be read back" in told.notice]
        assert len(notices) == 1
        # The UIDs were compared all the same.
        assert (await run(replace(options, verify="uids"))).exit_code == 0


async def test_an_association_that_is_lost_while_reading_back(tmp_path: Path) -> None:
    lost: list[int] = []

    def once(number: int) -> bool:
        if number == 3 and not lost:
            lost.append(number)
            return True
        return False

    old, new = FakeArchive(some(1)), FakeArchive(faults=Faults(get_abort=once))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert lost
    assert results(summary) == (4, 0, 0, 0, 0)
    assert summary.exit_code == 0


@pytest.mark.parametrize("ends", ["peer-folder", "folder-peer", "folder-folder"])
async def test_folders_are_read_from_disk(tmp_path: Path, ends: str) -> None:
    source, _, destination = ends.partition("-")
    instances = some(2)
    old, new = FakeArchive(instances), FakeArchive()
    write(tmp_path / "old", instances)
    async with job(tmp_path, old, new) as options:
        if source == "folder":
            options = replace(options, source=tmp_path / "old")
        if destination == "folder":
            options = replace(options, destination=tmp_path / "new")
        summary = await run(options)
        assert results(summary) == (8, 0, 0, 0, 0)
        assert (summary.instances, summary.exit_code) == (8, 0)
        if destination == "folder":
            path = tmp_path / "new" / f"{instances[0].sop_instance_uid}.dcm"
            data = bytearray(path.read_bytes())
            data[-2] ^= 1  # in the last element
            path.write_bytes(data)
            again = await run(replace(options, job="again"))
            assert (again.instances, again.exit_code) == (0, 11)
            assert results(again) == (7, 0, 0, 1, 0)
            assert "(0020,000E) SeriesInstanceUID" in again.differences[0].differences


# -- levels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("none", ("none", 100.0)),
        ("count", ("count", 100.0)),
        ("uids", ("uids", 100.0)),
        ("digest", ("digest", 100.0)),
        ("digest:5%", ("digest", 5.0)),
        ("digest:0.1%", ("digest", 0.1)),
        ("digest:25", ("digest", 25.0)),
    ],
)
def test_levels_as_typed(text: str, parsed: tuple[str, float]) -> None:
    assert parse_verification(text) == parsed


@pytest.mark.parametrize("text", ["", "commit", "digest:", "digest:0%", "digest:101%", "uids:5%"])
def test_levels_that_there_are_not(text: str) -> None:
    with pytest.raises(ConfigurationError, match="verification is none, count, uids"):
        parse_verification(text)


@pytest.mark.parametrize(
    ("recorded", "asked", "enough"),
    [
        ("uids", "uids", True),
        ("uids", "count", True),
        ("count", "uids", False),
        ("digest:1", "uids", True),
        ("uids", "digest:1", False),
        ("digest:10", "digest:10", True),
        ("digest:10", "digest:100", False),
        ("digest:100", "digest:10", True),
        ("count", "none", True),
    ],
)
def test_a_level_that_holds_may_be_enough(recorded: str, asked: str, enough: bool) -> None:
    assert satisfies(recorded, asked) is enough


async def test_a_destination_that_cannot_be_asked_is_said_once() -> None:
    """Also where several studies ask at the same time."""
    said: list[str] = []

    class Mute:
        async def held(self, *_: object) -> set[str]:
            await trio.lowlevel.checkpoint()
            raise CannotBeAsked("it refused")

        def notice(self, text: str) -> None:
            said.append(text)

        async def event(self, _run: int, kind: str, **_details: str) -> None:
            said.append(kind)

    mute: Any = Mute()
    work: Any = SimpleNamespace(study_instance_uid="1.2", expected={})
    verifier = Verifier(
        MigrateOptions(source=Path("a"), destination=Path("b"), ledger_url="sqlite://"),
        ledger=mute,
        tracker=mute,
        holdings=mute,
        source=mute,
        destination=mute,
    )
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(verifier.held, work)
    assert said == [
        "the destination cannot be asked what it holds: it refused",
        "destination.mute",
    ]
