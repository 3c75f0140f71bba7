"""Folders as source and destination of a migration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom import Dataset

from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate import MigrateOptions, MigrationSummary, Progress, migrate
from dcmhaul.migrate.inventory import dataset_digest
from dcmhaul.objects.part10 import FileInstance
from dcmhaul.objects.sources import open_entries
from dcmhaul.wire.part10 import encode_file_meta
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
    from collections.abc import Iterable
    from pathlib import Path


def write(folder: Path, instances: Iterable[FakeInstance]) -> None:
    for number, instance in enumerate(instances):
        path = folder / instance.study / f"{number:04d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = encode_file_meta(
            instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid, "T"
        )
        path.write_bytes(meta + instance.dataset)


def digests(folder: Path) -> dict[str, bytes]:
    found = {}
    for entry in open_entries([folder]):
        if isinstance(entry, FileInstance):
            found[entry.sop_instance_uid] = dataset_digest(entry)
            entry.close()
    return found


def kinds() -> list[FakeInstance]:
    return [
        *(make_instance(n, study="1.2.3.1", size=500) for n in range(10)),
        *(make_instance(n, study="1.2.3.2", size=200_000) for n in range(3)),
        make_instance(1, study="1.2.3.3", sop_class=MR, syntax=IMPLICIT),
        make_instance(2, study="1.2.3.3", syntax=JPEG2000, date="20210101"),
    ]


async def run(options: MigrateOptions, **arguments: Any) -> MigrationSummary:
    with trio.fail_after(60):
        return await migrate(options, **arguments)


def options(tmp_path: Path, source: Any, destination: Any, **more: Any) -> MigrateOptions:
    return MigrateOptions(
        source=source,
        destination=destination,
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        job="job",
        **more,
    )


async def test_from_a_folder_to_a_peer_and_again(tmp_path: Path) -> None:
    instances = kinds()
    write(tmp_path / "old", instances)
    new = FakeArchive()
    async with new.running("NEW") as peer:
        asked = options(tmp_path, tmp_path / "old", peer)
        summary = await run(asked)
        assert new.digests == {i.sop_instance_uid: i.sha256 for i in instances}
        assert (summary.studies, summary.instances, summary.failed) == (3, 15, 0)
        assert summary.bytes == sum(i.length for i in instances)
        assert summary.exit_code == 0
        again = await run(asked)
    assert (again.instances, again.already, again.exit_code) == (0, 15, 0)
    assert len(new.received) == 15


async def test_the_files_that_are_no_instances_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    instances = [make_instance(n) for n in range(3)]
    write(folder, instances)
    (folder / "notes.txt").write_text("not DICOM")
    whole = (folder / "1.2.3.1" / "0000.dcm").read_bytes()
    (folder / "truncated.dcm").write_bytes(whole[:-10])
    (folder / "twice.dcm").write_bytes(whole)
    assert whole.count(bytes(1000)) == 1
    (folder / "z").mkdir()
    (folder / "z" / "other.dcm").write_bytes(whole.replace(bytes(1000), bytes(999) + b"\1"))
    new = FakeArchive()
    told: list[Progress] = []
    async with new.running("NEW") as peer:
        asked = options(tmp_path, folder, peer)
        summary = await run(asked, progress=told.append)
        again = await run(asked)
    assert sorted(new.received) == sorted(i.sop_instance_uid for i in instances)
    assert (summary.instances, summary.skipped, summary.failed) == (3, 2, 2)
    assert summary.exit_code == 6
    reasons = {failure.locator: failure.reason for failure in summary.failures}
    assert reasons.keys() == {"truncated.dcm", "z/other.dcm"}
    assert "another object under the SOP Instance UID" in reasons["z/other.dcm"]
    assert "notes.txt" in "".join(progress.notice for progress in told)
    # A job with such files is finished all the same, and says it again.
    assert (again.instances, again.already, again.failed, again.exit_code) == (0, 3, 2, 6)


async def test_the_filter_is_matched_against_the_files(tmp_path: Path) -> None:
    write(tmp_path / "old", kinds())
    keys = Dataset()
    keys.StudyDate = "20210101-"
    new = FakeArchive()
    async with new.running("NEW") as peer:
        summary = await run(options(tmp_path, tmp_path / "old", peer, filter=keys))
        assert (summary.studies, summary.instances) == (1, 1)
        other = Dataset()
        other.ModalitiesInStudy = "US"
        nothing = await run(
            replace(options(tmp_path, tmp_path / "old", peer, filter=other), job="other")
        )
    assert (nothing.instances, nothing.exit_code) == (0, 4)


async def test_what_the_destination_does_not_take(tmp_path: Path) -> None:
    write(tmp_path / "old", kinds())
    new = FakeArchive(faults=Faults(classes=(CT,), syntaxes=(EXPLICIT,)))
    async with new.running("NEW") as peer:
        summary = await run(options(tmp_path, tmp_path / "old", peer))
    assert (summary.instances, summary.failed, summary.exit_code) == (13, 2, 6)
    assert all("accepted no context" in failure.reason for failure in summary.failures)


async def test_a_destination_that_breaks_off(tmp_path: Path) -> None:
    instances = kinds()
    write(tmp_path / "old", instances)
    new = FakeArchive(faults=Faults(store_abort=lambda n: n in (4, 9)))
    async with new.running("NEW") as peer:
        summary = await run(options(tmp_path, tmp_path / "old", peer, associations=2))
    assert new.digests == {i.sop_instance_uid: i.sha256 for i in instances}
    assert (summary.instances + summary.already, summary.failed) == (15, 0)


async def test_more_kinds_than_one_association_can_propose(tmp_path: Path) -> None:
    from dcmhaul.uids import STORAGE_SOP_CLASSES

    classes = list(STORAGE_SOP_CLASSES)[:140]
    write(
        tmp_path / "old",
        [make_instance(n, sop_class=sop_class, size=10) for n, sop_class in enumerate(classes)],
    )
    new = FakeArchive()
    async with new.running("NEW") as peer:
        summary = await run(options(tmp_path, tmp_path / "old", peer, associations=2))
    assert (summary.instances, summary.failed, summary.exit_code) == (140, 0, 0)


async def test_from_a_peer_to_a_folder_and_again(tmp_path: Path) -> None:
    old = FakeArchive(kinds())
    async with old.running("OLD") as peer:
        asked = options(tmp_path, peer, tmp_path / "new")
        summary = await run(asked)
        assert digests(tmp_path / "new") == old.digests
        assert (summary.studies, summary.instances, summary.exit_code) == (3, 15, 0)
        names = {path.name for path in (tmp_path / "new").iterdir()}
        assert names == {f"{uid}.dcm" for uid in old.instances}
        again = await run(asked)
    assert (again.instances, again.already, again.exit_code) == (0, 15, 0)
    assert len(old.sent) == 15


async def test_what_lies_in_the_folder_is_not_fetched(tmp_path: Path) -> None:
    instances = kinds()
    write(tmp_path / "new", instances[:4])
    old = FakeArchive(instances)
    async with old.running("OLD") as peer:
        summary = await run(options(tmp_path, peer, tmp_path / "new"))
    assert (summary.instances, summary.already, summary.exit_code) == (11, 4, 0)
    assert digests(tmp_path / "new") == old.digests


async def test_from_a_folder_to_a_folder(tmp_path: Path) -> None:
    instances = kinds()
    write(tmp_path / "old", instances)
    asked = options(tmp_path, tmp_path / "old", tmp_path / "new")
    summary = await run(asked)
    assert (summary.studies, summary.instances, summary.exit_code) == (3, 15, 0)
    assert digests(tmp_path / "new") == {i.sop_instance_uid: i.sha256 for i in instances}
    again = await run(asked)
    assert (again.instances, again.already, again.exit_code) == (0, 15, 0)


async def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        await run(options(tmp_path, tmp_path / "absent", tmp_path / "new"))


async def test_a_source_that_was_empty_is_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    asked = replace(options(tmp_path, tmp_path / "old", tmp_path / "new"), job=None)
    told: list[Progress] = []
    empty = await run(asked, progress=told.append)
    assert (empty.studies, empty.exit_code) == (0, 4)
    assert f"job {empty.job}" in [progress.notice for progress in told]
    again = await run(asked)
    assert (again.studies, again.exit_code) == (0, 4)
    write(tmp_path / "old", kinds())
    filled = await run(asked)
    assert (filled.studies, filled.instances, filled.exit_code) == (3, 15, 0)
    finished = await run(asked)
    assert (finished.instances, finished.already, finished.exit_code) == (0, 15, 0)
