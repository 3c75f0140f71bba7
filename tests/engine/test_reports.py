"""Reports: every form says the same, from the ledger alone, and nothing that came from a peer has force."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom import Dataset

from dcmhaul.errors import ConfigurationError, DcmhaulError
from dcmhaul.migrate import MigrateOptions, MigrationSummary, migrate, rendering
from dcmhaul.migrate.ledger import open_ledger
from dcmhaul.migrate.rendering import ReportFormat, write_report
from dcmhaul.migrate.tables import (
    CheckResult,
    CheckRow,
    Exclusion,
    InstanceResult,
    InstanceState,
    StudyState,
)
from dcmhaul.migrate.upgrades import reading_ledger
from tests.engine.fake_archive import FakeArchive, Faults, make_instance
from tests.engine.ledgers import acknowledged, one_study
from tests.engine.test_migrate_folders import write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOSTILE = '=1+1<script>alert("x")</script>|`a`\x1b[31m\n# b'


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def report(tmp_path: Path, form: ReportFormat, job: str = "job") -> str:
    out = io.StringIO()
    with reading_ledger(url(tmp_path)) as connection:
        write_report(connection, job, form, out)
    return out.getvalue()


def as_json(tmp_path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(report(tmp_path, "json"))
    return loaded


def as_csv(tmp_path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report(tmp_path, "csv"))))


class Texts(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@asynccontextmanager
async def job(
    tmp_path: Path, source: FakeArchive, destination: FakeArchive, **options: Any
) -> AsyncIterator[MigrateOptions]:
    async with source.running("OLD") as old, destination.running("NEW") as new:
        yield MigrateOptions(
            source=old, destination=new, ledger_url=url(tmp_path), job="job", **options
        )


async def run(options: MigrateOptions) -> MigrationSummary:
    with trio.fail_after(60):
        return await migrate(options)


async def test_every_form_says_the_same(tmp_path: Path) -> None:
    instances = [make_instance(n, study=f"1.2.3.{n % 2}") for n in range(8)]
    bad, busy = instances[1].sop_instance_uid, instances[2].sop_instance_uid
    old, new = FakeArchive(instances), FakeArchive(instances[7:])
    new.faults.store = lambda i, _n: {bad: 0xC123, busy: 0xA700}.get(i.sop_instance_uid)
    async with job(tmp_path, old, new) as options:
        first = await run(options)
        assert (first.failed, first.failed_retryable, first.exit_code) == (2, 1, 6)
        data = as_json(tmp_path)
        assert not data["complete"]
        assert data["verdict"] == "Not complete: 2 failed"
        assert (data["instances"], data["acknowledged"], data["already"]) == (8, 5, 1)
        assert (data["failed"], data["failed_retryable"], data["pending"]) == (2, 1, 0)
        assert [(r["status"], r["retryable"], r["count"]) for r in data["reasons"]] == [
            ("A700", True, 1),
            ("C123", False, 1),
        ]
        assert [(i["what"], i["sop_instance_uid"]) for i in data["items"]] == [
            ("failed", busy),
            ("failed", bad),
        ]
        assert [row["sop_instance_uid"] for row in as_csv(tmp_path)] == [busy, bad]
        assert [row["retryable"] for row in as_csv(tmp_path)] == ["yes", "no"]
        page = Texts(report(tmp_path, "html"))
        text = report(tmp_path, "md")
        for uid in (bad, busy):
            assert uid in page.text
            assert uid in text
        assert "Not complete: 2 failed" in page.text
        new.faults.store = lambda _i, _n: None
        second = await run(options)
        assert second.exit_code == 0
    data = as_json(tmp_path)
    assert (data["complete"], data["state"], data["items"]) == (True, "done", [])
    assert [start["instances"] for start in data["starts"]] == [5, 2]
    assert [start["exit_code"] for start in data["starts"]] == [6, 0]
    assert data["bytes"] == sum(i.length for i in instances[:7])
    assert data["seconds"] == pytest.approx(first.seconds + second.seconds, abs=1e-5)
    assert as_csv(tmp_path) == []
    assert data["verification"]["studies"] == {"uids": 2}


async def test_what_a_verification_found(tmp_path: Path) -> None:
    old, new = FakeArchive([make_instance(n) for n in range(3)]), FakeArchive()
    new.faults.withhold = frozenset({make_instance(1).sop_instance_uid})
    async with job(tmp_path, old, new, verify="digest") as options:
        assert (await run(options)).exit_code == 11
        data = as_json(tmp_path)
        assert data["verification"] | {"studies": {}} == {
            "asked": "digest:100",
            "studies": {},
            "unverified": 0,
            "differing": 1,
            "same_bytes": 2,
            "same_content": 0,
            "coerced": 0,
            "altered": 0,
            "not_read": 1,
        }
        assert [item["what"] for item in data["items"]] == ["not read"]
        assert "1 studies that differ" in report(tmp_path, "md")


async def test_a_destination_that_cannot_be_read_back_is_named(tmp_path: Path) -> None:
    old, new = FakeArchive([make_instance(1)]), FakeArchive(faults=Faults(no_get=True))
    async with job(tmp_path, old, new, verify="digest") as options:
        assert (await run(options)).exit_code == 11
    data = as_json(tmp_path)
    assert data["verdict"] == "Not complete: 1 studies not verified as asked"
    assert [decision["what"] for decision in data["decisions"]] == ["destination.unreadable"]
    assert "destination.unreadable" in report(tmp_path, "html")


async def test_a_job_that_matched_nothing(tmp_path: Path) -> None:
    async with job(tmp_path, FakeArchive(), FakeArchive()) as options:
        assert (await run(options)).exit_code == 4
    data = as_json(tmp_path)
    assert (data["complete"], data["verdict"]) == (
        True,
        "No study matched: there was nothing to move",
    )


async def test_a_start_that_reached_nobody_has_an_end(tmp_path: Path) -> None:
    async with job(tmp_path, FakeArchive([make_instance(1)]), FakeArchive()) as options:
        pass  # both are gone
    with pytest.raises(DcmhaulError):
        await run(options)
    data = as_json(tmp_path)
    (start,) = data["starts"]
    assert (start["exit_code"], start["instances"]) == (3, 0)
    assert "no connection" in start["error"]
    assert data["verdict"] == "Not complete: the job is not finished (inventory)"


async def test_files_that_are_no_instances(tmp_path: Path) -> None:
    write(tmp_path / "old", [make_instance(1), make_instance(2)])
    (tmp_path / "old" / "notes.txt").write_text("no DICOM")
    (tmp_path / "old" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM")
    options = MigrateOptions(
        source=tmp_path / "old", destination=tmp_path / "new", ledger_url=url(tmp_path), job="job"
    )
    assert (await run(options)).failed == 1
    data = as_json(tmp_path)
    assert data["skipped"] == 1
    assert {exclusion["kind"] for exclusion in data["exclusions"]} == {"skipped", "failed"}
    assert [(row["what"], row["path"]) for row in as_csv(tmp_path)] == [("failed", "broken.dcm")]


async def hostile_ledger(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)) as ledger:
        run_id, study_id = await one_study(ledger, ["9.1", "9.2", "9.3"])
        ledger.record(acknowledged(study_id, "9.1"))
        ledger.record(
            InstanceResult(
                study_id=study_id,
                sop_instance_uid="9.2",
                state=InstanceState.FAILED,
                status=0xC000,
                retryable=False,
                comment=HOSTILE,
            )
        )
        await ledger.close_study(study_id, StudyState.PARTIAL)
        await ledger.record_checks(
            study_id,
            [CheckRow(sop_instance_uid="9.1", result=CheckResult.DIFFERS, differences=HOSTILE)],
        )
        await ledger.add_exclusions(
            run_id, [Exclusion(locator=HOSTILE, kind="conflict", reason=HOSTILE)]
        )
        await ledger.event(run_id, "destination.mute", reason=HOSTILE)


async def test_nothing_from_a_peer_has_force(tmp_path: Path) -> None:
    await hostile_ledger(tmp_path)
    source = report(tmp_path, "html")
    page = Texts(source)
    assert not page.tags & {"script", "img", "link", "iframe", "a", "form"}
    assert page.links == []
    assert not re.search(r"https?:|url\(|@import", source)
    assert '<script>alert("x")</script>' in page.text  # as text
    text = report(tmp_path, "md")
    assert "<script>" not in text.replace("\\<", "")
    assert not re.search(r"^# b", text, re.MULTILINE)
    assert not re.search(r"(?<!\\)\|`a", text)
    for form in ("html", "md", "csv"):
        assert "\x1b" not in report(tmp_path, form)
    rows = as_csv(tmp_path)
    assert len(report(tmp_path, "csv").splitlines()) == len(rows) + 1
    assert [row["what"] for row in rows] == ["failed", "pending", "conflict", "differs"]
    assert all(not cell.startswith("=") for row in rows for cell in row.values())
    data = as_json(tmp_path)
    assert data["items"][0]["reason"] == HOSTILE


async def test_a_page_lists_some_and_says_that_there_are_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hostile_ledger(tmp_path)
    monkeypatch.setattr(rendering, "ITEMS_SHOWN_MAX", 2)
    assert "The first 2; `-f csv` lists all." in report(tmp_path, "html")
    assert len(as_csv(tmp_path)) == len(as_json(tmp_path)["items"]) == 4


async def test_no_data_of_patients(tmp_path: Path) -> None:
    keys = Dataset()
    keys.PatientName = "DOE^JANE"
    keys.PatientID = "4711"
    keys.AccessionNumber = "ACC-9"
    keys.StudyDate = "20200101"
    async with job(
        tmp_path, FakeArchive([make_instance(1)]), FakeArchive(), filter=keys
    ) as options:
        await run(options)
    for form in rendering.FORMATS:
        text = report(tmp_path, form)
        assert not re.search("DOE|JANE|4711|ACC-9", text)
    assert "StudyDate=20200101" in report(tmp_path, "html")


async def test_a_job_that_there_is_not(tmp_path: Path) -> None:
    async with open_ledger(url(tmp_path)):
        pass
    with pytest.raises(ConfigurationError, match="there is no job 'job' in the ledger"):
        report(tmp_path, "md")
