"""Several objects under one SOP Instance UID at the source: each is forwarded, and none is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dcmhaul.archive import Duplicates
from dcmhaul.config import Peer
from dcmhaul.migrate import MigrateOptions
from tests.archive.made import encode, instance
from tests.archive.serving import AE_TITLE, serving
from tests.archive.test_archive import store
from tests.archive.test_duplicates import FIRST, SECOND, UID, given_out
from tests.engine.fake_archive import IMPLICIT, FakeArchive, Faults, make_instance
from tests.engine.test_migrate import job, run

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.migrate import MigrationSummary
    from tests.archive.serving import Served
    from tests.engine.fake_archive import FakeInstance

THIRD = instance(PatientComments="third")
OTHER = instance(1, 1, 2)


def between(tmp_path: Path, source: Served, destination: Served, **options: Any) -> MigrateOptions:
    ends = [Peer(host="127.0.0.1", port=s.port, ae_title=AE_TITLE) for s in (source, destination)]
    return MigrateOptions(
        source=ends[0],
        destination=ends[1],
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        job="job",
        **options,
    )


def conflicts(summary: MigrationSummary) -> list[tuple[str, str]]:
    """The UID that each stands under, and what the destination said."""
    return [
        (failure.locator.partition(" ")[0], failure.reason.rpartition("the destination ")[2])
        for failure in summary.failures
    ]


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize(
    ("policy", "given", "said"),
    [
        (Duplicates.KEEP_BOTH, [FIRST, SECOND, THIRD, OTHER], "answered 0x0000 Success"),
        (Duplicates.KEEP_FIRST, [FIRST, OTHER], "answered 0xC001"),
    ],
)
async def test_an_archive_that_keeps_both(
    tmp_path: Path, policy: Duplicates, given: list[Any], said: str, window: int
) -> None:
    async with (
        serving(tmp_path / "old", duplicates=Duplicates.KEEP_BOTH) as old,
        serving(tmp_path / "new", duplicates=policy) as new,
    ):
        for dataset in (FIRST, SECOND, THIRD, OTHER):
            await store(old.archive, dataset)
        options = between(tmp_path, old, new, window=window, verify="digest")
        summary = await run(options)
        assert sorted(await given_out(new.archive)) == sorted(encode(dataset) for dataset in given)
        # What the destination set aside is there, too.
        assert new.archive.statistics().holds.conflicts == 2
        assert (summary.instances, summary.failed, summary.exit_code) == (2, 2, 6)
        assert [uid for uid, _ in conflicts(summary)] == [UID, UID]
        assert all(text.startswith(said) for _, text in conflicts(summary))
        assert len({failure.locator for failure in summary.failures}) == 2
        assert summary.differing == 0
        again = await run(options)
        assert (again.instances, again.already, again.exit_code) == (0, 2, 6)
        assert conflicts(again) == conflicts(summary)


async def test_an_object_that_the_source_fails_to_send(tmp_path: Path) -> None:
    """Its syntax is not that of the first, which the source announces."""
    async with (
        serving(tmp_path / "old", duplicates=Duplicates.KEEP_BOTH) as old,
        serving(tmp_path / "new", duplicates=Duplicates.KEEP_BOTH) as new,
    ):
        await store(old.archive, FIRST)
        await store(old.archive, SECOND, transfer_syntax_uid=IMPLICIT)
        summary = await run(between(tmp_path, old, new))
        assert (summary.instances, summary.failed, summary.exit_code) == (1, 1, 6)
        (failure,) = summary.failures
        assert failure.locator == f"{UID} (not sent)"
        assert "failed to send another object" in failure.reason


class Generous(FakeArchive):
    """Gives out `also` behind what it has."""

    def __init__(self, instances: list[FakeInstance], also: list[FakeInstance]) -> None:
        super().__init__(instances)
        self.also = also

    async def _select(self, *arguments: Any) -> list[FakeInstance]:
        self.instances |= {f"also {n}": other for n, other in enumerate(self.also)}
        found = await super()._select(*arguments)
        self.instances = {u: i for u, i in self.instances.items() if u == i.sop_instance_uid}
        return found


A, B = make_instance(1, size=10), make_instance(1, size=20)


async def test_the_same_object_twice_is_no_conflict(tmp_path: Path) -> None:
    old, new = Generous([A], [A]), FakeArchive()
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (1, 0, 0)
    assert new.digests == old.digests
    assert new.received == [A.sop_instance_uid] * 2


@pytest.mark.parametrize("window", [1, 8])
async def test_a_second_object_does_not_stand_for_the_first(tmp_path: Path, window: int) -> None:
    """The destination refuses the first once, and takes the second."""
    old = Generous([A], [B])
    new = FakeArchive(faults=Faults(store=lambda _instance, n: 0xA700 if n == 1 else None))
    async with job(tmp_path, old, new, window=window) as options:
        summary = await run(options)
    # Asked for again, since the first was not taken; then both came again.
    assert len(new.received) == 4
    assert (summary.instances, summary.failed, summary.exit_code) == (1, 1, 6)
    assert conflicts(summary) == [(A.sop_instance_uid, "answered 0x0000 Success")]


async def test_an_answer_to_the_second_that_never_comes(tmp_path: Path) -> None:
    old = Generous([A], [B])
    new = FakeArchive(faults=Faults(store_abort=lambda n: n == 2))
    async with job(tmp_path, old, new, window=1) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (1, 1, 6)
    (failure,) = summary.failures
    assert B.sha256.hex()[:16] in failure.locator
    assert "abort" in failure.reason
