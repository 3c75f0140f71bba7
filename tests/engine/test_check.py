"""`check`: UID sets of two ends, peers or folders, at every level."""

from __future__ import annotations

import tracemalloc
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom import Dataset

from dcmhaul.engine.planning import ExpectedInstance
from dcmhaul.errors import ConfigurationError, DcmhaulError
from dcmhaul.migrate import check as check_module
from dcmhaul.migrate.check import CheckLine, CheckOptions, CheckSummary, check
from dcmhaul.migrate.inventory import FolderFinding, QueryFailed
from dcmhaul.migrate.spool import StudySpool
from dcmhaul.migrate.tables import StudyListing
from tests.engine.fake_archive import (
    EXPLICIT,
    IMPLICIT,
    FakeArchive,
    FakeInstance,
    Faults,
    make_instance,
)
from tests.engine.test_migrate_folders import write
from tests.engine.test_verification import changed, nothing, other_patient, retrieve_title

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def some(studies: int = 3, instances: int = 4) -> list[FakeInstance]:
    return [
        make_instance(number, study=f"1.2.3.{study}", series=f"1.2.3.{study}.{number % 2}")
        for study in range(1, studies + 1)
        for number in range(instances)
    ]


@asynccontextmanager
async def two(
    source: FakeArchive, destination: FakeArchive, **options: Any
) -> AsyncIterator[CheckOptions]:
    async with source.running("OLD") as old, destination.running("NEW") as new:
        yield CheckOptions(source=old, destination=new, **options)


async def run(options: CheckOptions) -> tuple[list[str], list[CheckLine], CheckSummary]:
    lines: list[CheckLine] = []
    with trio.fail_after(60):
        summary = await check(options, lines.append)
    return sorted(f"{line.symbol} {line.uid}" for line in lines), lines, summary


def differing(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("=")]


@pytest.fixture(params=["peers", "folders", "peer and folder"])
def kinds(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def compare(
    kinds: str, tmp_path: Path, left: list[FakeInstance], right: list[FakeInstance], **options: Any
) -> tuple[list[str], list[CheckLine], CheckSummary]:
    """The same comparison between ends of these kinds."""
    async with two(FakeArchive(left), FakeArchive(right), **options) as both:
        if kinds == "folders":
            write(tmp_path / "left", left)
            both = replace(both, source=tmp_path / "left")
        if kinds != "peers":
            write(tmp_path / "right", right)
            both = replace(both, destination=tmp_path / "right")
        return await run(both)


async def test_the_same(tmp_path: Path, kinds: str) -> None:
    lines, _, summary = await compare(kinds, tmp_path, some(), some())
    assert lines == [f"= {i.sop_instance_uid}" for i in sorted(some(), key=uid_of)]
    assert (summary.studies, summary.exit_code) == (3, 0)


def uid_of(instance: FakeInstance) -> str:
    return instance.sop_instance_uid


async def test_each_symbol_at_each_level(tmp_path: Path, kinds: str) -> None:
    every = some(4)
    # Study 1 alike; 2 lacks an instance at DST; 3 is at SRC alone; 4 at DST alone.
    left, right = every[:12], [*every[:4], *every[5:8], *every[12:]]
    lines, _, summary = await compare(kinds, tmp_path, left, right)
    assert differing(lines) == sorted(
        [f"+ {i.sop_instance_uid}" for i in (every[4], *every[8:12])]
        + [f"- {i.sop_instance_uid}" for i in every[12:]]
    )
    assert (summary.counts["="], summary.studies, summary.exit_code) == (7, 4, 11)
    lines, found, summary = await compare(kinds, tmp_path / "s", left, right, level="STUDY")
    assert lines == ["* 1.2.3.2", "+ 1.2.3.3", "- 1.2.3.4", "= 1.2.3.1"]
    assert {line.note for line in found} == {"", "4 instances at SRC, 3 at DST"}
    assert summary.exit_code == 11
    lines, found, summary = await compare(kinds, tmp_path / "r", left, right, level="SERIES")
    assert lines == [
        *("* 1.2.3.2.0", "+ 1.2.3.3.0", "+ 1.2.3.3.1", "- 1.2.3.4.0", "- 1.2.3.4.1"),
        *("= 1.2.3.1.0", "= 1.2.3.1.1", "= 1.2.3.2.1"),
    ]
    assert {line.study_instance_uid for line in found} == {f"1.2.3.{n}" for n in range(1, 5)}


async def test_the_filter_selects_studies(tmp_path: Path, kinds: str) -> None:
    left = [*some(1), make_instance(9, study="1.2.3.7", date="20210101")]
    keys = Dataset()
    keys.StudyDate = "20210101"
    lines, _, summary = await compare(kinds, tmp_path, left, some(1), filter=keys)
    assert lines == ["+ 1.2.3.7.9.9"]
    assert (summary.studies, summary.exit_code) == (1, 11)


async def test_an_end_that_lists_a_study_under_other_values(tmp_path: Path) -> None:
    """Its date was changed: the filter does not find it there, and yet nothing is missing."""
    left = [make_instance(n, date="20210101") for n in range(2)]
    right = [replace(i, date="20220101") for i in left]
    keys = Dataset()
    keys.StudyDate = "20210101"
    async with two(FakeArchive(left), FakeArchive(right), filter=keys) as options:
        for level in ("IMAGE", "SERIES", "STUDY"):
            _, _, summary = await run(replace(options, level=level))
            assert summary.exit_code == 0


async def test_modalities_of_a_folder_are_those_of_its_study(tmp_path: Path) -> None:
    write(tmp_path / "left", some(2))
    (tmp_path / "right").mkdir()
    options = CheckOptions(source=tmp_path / "left", destination=tmp_path / "right")
    for modality, count in (("CT", 8), ("MR", 0)):
        keys = Dataset()
        keys.ModalitiesInStudy = modality
        lines, _, _ = await run(replace(options, filter=keys))
        assert len(lines) == count


# -- contents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "syntax", "symbol"),
    [
        (nothing, IMPLICIT, "="),
        (retrieve_title, EXPLICIT, "="),
        (other_patient, EXPLICIT, "*"),
    ],
    ids=["re-encoded", "coerced", "altered"],
)
async def test_contents(tmp_path: Path, kinds: str, change: Any, syntax: str, symbol: str) -> None:
    left = some(1)
    right = [*left[:3], changed(change, syntax)(left[3])]
    lines, found, summary = await compare(kinds, tmp_path, left, right, digest=True)
    assert lines == sorted(
        [*(f"= {i.sop_instance_uid}" for i in left[:3]), f"{symbol} {left[3].sop_instance_uid}"]
    )
    notes = {line.note for line in found if line.symbol == "*"}
    assert notes == ({"the content differs: (0010,0020) PatientID"} if symbol == "*" else set())
    assert summary.exit_code == (11 if symbol == "*" else 0)


async def test_what_is_listed_and_not_given(tmp_path: Path) -> None:
    held = some(1)[0].sop_instance_uid
    new = FakeArchive(some(1), Faults(withhold=frozenset({held})))
    async with two(FakeArchive(some(1)), new, digest=True) as options:
        lines, found, summary = await run(options)
    assert differing(lines) == [f"! {held}"]
    assert "DST lists it and does not give it" in {line.note for line in found}
    assert summary.exit_code == 5


async def test_an_end_without_get(tmp_path: Path) -> None:
    new = FakeArchive(some(2), Faults(no_get=True))
    async with two(FakeArchive(some(2)), new, digest=True) as options:
        lines, _, summary = await run(options)
    assert lines == ["! 1.2.3.1", "! 1.2.3.2"]
    assert summary.exit_code == 5


async def test_contents_are_of_images(tmp_path: Path) -> None:
    options = CheckOptions(source=tmp_path, destination=tmp_path, level="SERIES", digest=True)
    with pytest.raises(ConfigurationError, match="contents are compared at level IMAGE"):
        await run(options)


# -- errors ---------------------------------------------------------------------------------------------


async def test_an_error_outranks_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = check_module._PeerEnd._ask

    async def sometimes(self: Any, study_uid: str, hint: int | None) -> Any:
        if study_uid == "1.2.3.2" and self._number == 1:
            raise QueryFailed("peer", "IMAGE", 0xA700, "busy")
        return await ask(self, study_uid, hint)

    monkeypatch.setattr(check_module._PeerEnd, "_ask", sometimes)
    async with two(FakeArchive(some(3)), FakeArchive(some(1))) as options:
        lines, found, summary = await run(options)
    assert [line for line in lines if line.startswith("!")] == ["! 1.2.3.2"]
    assert (summary.counts["+"], summary.exit_code) == (4, 5)
    (note,) = [line.note for line in found if line.symbol == "!"]
    assert "0xA700: busy" in note


async def test_an_end_that_does_not_list_its_studies(tmp_path: Path) -> None:
    refusing = FakeArchive(some(1), Faults(find_status=0xA700))
    async with two(FakeArchive(some(1)), refusing) as options:
        with pytest.raises(QueryFailed, match="0xA700"):
            await run(options)
    async with two(FakeArchive(some(1)), FakeArchive(faults=Faults(no_find=True))) as options:
        with pytest.raises(DcmhaulError, match="context"):
            await run(options)


async def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    for name in ("left", "right"):
        write(tmp_path / name, some(1))
    (tmp_path / "left" / "notes.txt").write_text("no DICOM")
    (tmp_path / "left" / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    lines, found, summary = await run(
        CheckOptions(source=tmp_path / "left", destination=tmp_path / "right")
    )
    assert differing(lines) == ["! cut.dcm"]
    assert found[0].note.startswith("SRC: ")
    assert summary.exit_code == 5


async def test_a_folder_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no folder"):
        await run(CheckOptions(source=tmp_path, destination=tmp_path / "none"))


async def test_a_source_that_wants_every_higher_key(tmp_path: Path) -> None:
    old, new = FakeArchive(some(2), Faults(strict=True)), FakeArchive(some(1))
    async with two(old, new) as options:
        lines, _, summary = await run(options)
    assert differing(lines) == [f"+ {i.sop_instance_uid}" for i in some(2)[4:]]
    assert summary.counts["="] == 4


async def test_counts_that_an_end_states_wrongly_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumberOfStudyRelatedInstances is a hint: where the two differ, the instances decide."""
    find = FakeArchive._find

    def wrong(self: FakeArchive, model: Any, identifier: Dataset, calling: str) -> Any:
        for match in find(self, model, identifier, calling):
            if "NumberOfStudyRelatedInstances" in match and self is old:
                match.NumberOfStudyRelatedInstances = 2
            yield match

    monkeypatch.setattr(FakeArchive, "_find", wrong)
    old = FakeArchive(some(1))
    async with two(old, FakeArchive(some(1)), level="STUDY") as options:
        lines, _, summary = await run(options)
    assert (lines, summary.exit_code) == (["= 1.2.3.1"], 0)


# -- the spool ------------------------------------------------------------------------------------------


async def test_millions_of_studies_take_no_memory(tmp_path: Path) -> None:
    spool = StudySpool(tmp_path)
    count = 20_000
    tracemalloc.start()
    try:
        for end in (0, 1):
            for start in range(0, count, 500):
                await spool.add_studies(
                    end,
                    [
                        StudyListing(study_instance_uid=f"1.2.{n}", n_expected=n % 7)
                        for n in range(start, start + 500)
                        if end == 0 or n % 10
                    ],
                )
        seen, after = 0, ""
        while page := await spool.studies(after, 200):
            seen += len(page)
            after = page[-1].uid
            for study in page:
                number = int(study.uid.rpartition(".")[2])
                assert study.listed == (True, bool(number % 10))
                assert study.counts[0] == number % 7
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        spool.close()
    assert seen == count
    assert peak < 2 << 20


async def test_several_tasks_fill_the_spool_at_once(tmp_path: Path) -> None:
    spool = StudySpool(tmp_path)

    async def fill(end: int) -> None:
        for page in range(150):
            await spool.add_studies(
                end,
                [
                    StudyListing(study_instance_uid=f"1.2.{page}.{n}", n_expected=1)
                    for n in range(20)
                ],
            )

    async with trio.open_nursery() as nursery:
        for end in (0, 1, 0, 1):
            nursery.start_soon(fill, end)
    seen, after = 0, ""
    while page := await spool.studies(after, 500):
        assert all(study.listed == (True, True) for study in page)
        seen, after = seen + len(page), page[-1].uid
    spool.close()
    assert seen == 150 * 20


async def test_of_two_files_of_one_uid_the_first_counts(tmp_path: Path) -> None:
    spool = StudySpool(tmp_path)
    for path in ("a.dcm", "b.dcm"):
        instance = ExpectedInstance(
            sop_instance_uid="9.1", sop_class_uid="1", series_instance_uid="2", locator=path
        )
        found = FolderFinding(study_instance_uid="1", modality="", date="", instance=instance)
        await spool.add_instances(0, [found])
    await spool.list_folder(0, None)
    assert [i.locator for i in (await spool.instances(0, "1")).values()] == ["a.dcm"]
    (study,) = await spool.studies("", 10)
    assert (study.listed, study.counts) == ((True, False), (1, None))
    spool.close()
