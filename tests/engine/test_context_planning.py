"""Which contexts a migration proposes, and what becomes of the instances that none of them carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dcmhaul import uids
from dcmhaul.engine.planning import COMMON_STORAGE_CLASSES
from dcmhaul.engine.retry import RetryPolicy
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
from tests.engine.test_migrate import job, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STUDY = "1.2.3.1"
PRIVATE = "1.3.6.1.4.1.99999.1.1"
# pydicom, with which the fake archive answers, has its doubts about some of the classes here.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
# Storage classes that nobody would guess.
RARE = [uid for uid in uids.STORAGE_SOP_CLASSES if uid not in COMMON_STORAGE_CLASSES]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcmhaul.migrate.run.RetryPolicy", lambda: RetryPolicy(delay_seconds=0.001))


def storage_pairs(archive: FakeArchive) -> list[set[tuple[str, str]]]:
    """The storage contexts of each association that had any."""
    queries = {uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_GET}
    found = [{pair for pair in agreed if pair[0] not in queries} for agreed in archive.agreed]
    return [pairs for pairs in found if pairs]


async def test_more_pairs_than_one_association_holds(tmp_path: Path) -> None:
    """Each class and syntax has a context of its own, over as many associations as that takes."""
    pairs = [(uid, syntax) for uid in RARE[:100] for syntax in (EXPLICIT, IMPLICIT)]
    instances = [
        make_instance(n, sop_class=uid, syntax=syntax, size=10)
        for n, (uid, syntax) in enumerate(pairs)
    ]
    old, new = FakeArchive(instances), FakeArchive()
    async with job(tmp_path, old, new, associations=1) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (200, 0, 0)
    assert new.digests == old.digests
    assert sorted(new.received) == sorted(old.instances)
    assert max(map(len, old.agreed)) <= 128
    assert set().union(*storage_pairs(new)) == set(pairs)


async def test_the_source_is_offered_what_the_destination_took(tmp_path: Path) -> None:
    instances = [
        *[make_instance(n, sop_class=CT) for n in range(3)],
        *[make_instance(n, sop_class=MR, syntax=IMPLICIT) for n in range(3, 5)],
        *[make_instance(n, sop_class=CT, syntax=JPEG2000) for n in range(5, 7)],
    ]
    old = FakeArchive(instances)
    new = FakeArchive(faults=Faults(classes=(CT,), syntaxes=(EXPLICIT, IMPLICIT)))
    async with job(tmp_path, old, new, associations=1) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (3, 4, 6)
    assert {failure.sop_instance_uid for failure in summary.failures} == {
        i.sop_instance_uid for i in instances[3:]
    }
    assert all("accepted no presentation context" in f.reason for f in summary.failures)
    for pairs in storage_pairs(old):
        assert pairs == {(CT, EXPLICIT)}
    assert len(old.sent) == 3


@pytest.mark.parametrize("taken", [True, False])
async def test_private_classes(tmp_path: Path, taken: bool) -> None:
    instances = [make_instance(0), make_instance(1, sop_class=PRIVATE)]
    old = FakeArchive(instances, Faults(any_class=True))
    new = FakeArchive(faults=Faults(any_class=taken))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    if taken:
        assert (summary.instances, summary.exit_code) == (2, 0)
        assert new.digests == old.digests
        return
    assert (summary.instances, summary.failed, summary.exit_code) == (1, 1, 6)
    assert PRIVATE in summary.failures[0].reason


async def test_a_private_class_that_the_source_does_not_send(tmp_path: Path) -> None:
    old = FakeArchive([make_instance(0), make_instance(1, sop_class=PRIVATE)])
    new = FakeArchive(faults=Faults(any_class=True))
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (1, 1, 6)
    assert summary.failures[0].reason.startswith("the source accepted no presentation context")


LIES: dict[str, Callable[[str], str | None]] = {
    "none": lambda _uid: None,
    "all the same": lambda _uid: CT,
    "swapped": lambda uid: MR if uid == CT else CT,
    "empty": lambda _uid: "",
    "no UID": lambda _uid: "CT Image",
    "a query class": lambda _uid: uids.STUDY_ROOT_FIND,
}


@pytest.mark.parametrize("announced", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("syntax", [True, False], ids=["", "no syntax"])
async def test_a_source_that_lies_about_its_classes(
    tmp_path: Path, announced: Callable[[str], str | None], syntax: bool
) -> None:
    """What did not come is asked for on other associations, in other classes, until it comes."""
    instances = [
        make_instance(0, sop_class=CT, series=f"{STUDY}.1"),
        make_instance(1, sop_class=MR, series=f"{STUDY}.2"),
        make_instance(2, sop_class=RARE[-1], series=f"{STUDY}.3"),
        make_instance(3, sop_class=RARE[50], series=f"{STUDY}.3", syntax=IMPLICIT),
    ]
    old = FakeArchive(instances, Faults(announce_class=announced, announce_syntax=syntax))
    new = FakeArchive()
    async with job(tmp_path, old, new, associations=1) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (4, 0, 0)
    assert new.digests == old.digests
    assert sorted(new.stored) == sorted(old.instances)


async def test_a_source_that_lies_about_its_syntaxes(tmp_path: Path) -> None:
    class Lying(FakeArchive):
        def _find(self, *arguments: Any) -> Any:
            for match in super()._find(*arguments):
                if "AvailableTransferSyntaxUID" in match:
                    match.AvailableTransferSyntaxUID = EXPLICIT
                yield match

    old = Lying([make_instance(0, syntax=IMPLICIT), make_instance(1, syntax=JPEG2000)])
    new = FakeArchive()
    async with job(tmp_path, old, new) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (2, 0, 0)
    assert new.digests == old.digests


async def test_what_no_context_carries_is_named(tmp_path: Path) -> None:
    """A class that nobody knows, under a name that is another's: tried in every class, then failed."""
    lost: list[FakeInstance] = [make_instance(1, sop_class=PRIVATE)]
    old = FakeArchive([make_instance(0), *lost], Faults(announce_class=lambda _uid: CT))
    new = FakeArchive()
    async with job(tmp_path, old, new, associations=1) as options:
        summary = await run(options)
    assert (summary.instances, summary.failed, summary.exit_code) == (1, 1, 5)
    (failure,) = summary.failures
    assert failure.sop_instance_uid == lost[0].sop_instance_uid
    assert "did not send it" in failure.reason
    assert old.requests.count("IMAGE") <= 12
