"""`migrate --verify`, `jobs` and `report` as a user types them, between folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dcmhaul.cli import main
from dcmhaul.objects.synth import write_studies
from tests.engine.ledgers import make_version_1

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("DCMHAUL_LEDGER", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.chdir(tmp_path)
    plan: dict[str, Any] = {"series": 1, "instances": 3, "seed": "t", "rows": 16, "columns": 16}
    write_studies(tmp_path / "old", studies=2, modality="CT", **plan)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout, stderr."""
    capsys.readouterr()
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def migrate(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[str], str]:
    return run(capsys, "migrate", "./old", "./new", "--job", "one", *more)


def test_a_digest_is_verified_and_a_finished_job_moves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, lines, _ = migrate(capsys, "--verify", "digest", "--json")
    summary = json.loads(lines[-1])
    assert (code, summary["instances"], summary["same_bytes"]) == (0, 6, 6)
    assert summary["verify"] == "digest:100"
    code, lines, said = migrate(capsys, "--verify", "digest")
    assert code == 0
    assert lines[-3:] == [
        "  0 instances moved, 0 B in 0.00 s (0.0 MiB/s, 0.0 instances/s)",
        "  6 already there",
        "  verified: digest:100 (6 same bytes)",
    ]
    path = min((tmp_path / "new").iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    code, lines, said = run(
        capsys, "migrate", "./old", "./new", "--job", "two", "--verify", "digest", "--json"
    )
    records = [json.loads(line) for line in lines]
    assert code == 11
    assert [r["result"] for r in records if r["type"] == "difference"] == ["differs"]
    assert f"differs: {path.stem}: the content differs: (7FE0,0010) PixelData" in said


def test_a_level_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = migrate(capsys, "--verify", "bytes")
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "verification is none, count, uids, digest or digest:P%" in said


def test_another_filter_under_the_name_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert migrate(capsys)[0] == 0
    code, lines, said = migrate(capsys, "-k", "PatientID=SECRET", "-k", "StudyDate=2020")
    assert (code, lines) == (2, [])
    assert len(said.splitlines()) == 1
    assert "filter was none, now StudyDate=2020 PatientID=...#" in said
    assert "SECRET" not in said
    code, _, said = run(capsys, "migrate", "./old", "./else", "--job", "one")
    assert code == 2
    assert "destination was" in said


def test_the_list_of_jobs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert migrate(capsys)[0] == 0
    code, lines, said = run(capsys, "jobs")
    assert (code, said) == (0, "")
    assert [line.split("\t")[:5] for line in lines] == [
        ["job", "state", "studies", "instances", "failed"],
        ["one", "done", "2/2", "6/6", "0"],
    ]
    code, lines, _ = run(capsys, "jobs", "--json")
    job, summary = map(json.loads, lines)
    assert (job["type"], job["job"], job["acknowledged"], job["verify"]) == (
        "job",
        "one",
        6,
        "uids",
    )
    assert (summary["type"], summary["jobs"], code) == ("summary", 1, 0)
    code, _, said = run(capsys, "jobs", "--ledger", f"sqlite:///{tmp_path}/none.db")
    assert code == 2
    assert "there is no database" in said


def test_a_ledger_of_an_earlier_version(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert migrate(capsys)[0] == 0
    make_version_1(f"sqlite:///{tmp_path}/ledger.db")
    for arguments in (["jobs"], ["migrate", "./old", "./new", "--job", "one"]):
        code, _, said = run(capsys, *arguments)
        assert code == 2
        assert "`dcmhaul jobs upgrade` brings it there, after a backup" in said
    code, lines, _ = run(capsys, "jobs", "upgrade")
    assert code == 0
    assert lines == [
        f"ledger upgraded from schema version 1 to 2; as it was: {tmp_path}/ledger.db.v1.bak"
    ]
    assert run(capsys, "jobs", "upgrade")[1] == ["the ledger has schema version 2: nothing to do"]
    assert migrate(capsys)[0] == 0


@pytest.mark.parametrize("form", ["html", "json", "csv", "md"])
def test_a_report_goes_where_it_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str
) -> None:
    assert migrate(capsys)[0] == 0
    code, lines, said = run(capsys, "report", "one", "-f", form)
    assert (code, said) == (0, "")
    code, told, _ = run(capsys, "report", "one", "-o", f"report.{form}")
    assert (code, told) == (
        0,
        [f"report.{form}: All 6 instances are at the destination; verified: uids"],
    )
    assert (tmp_path / f"report.{form}").read_text().splitlines() == lines
    assert not list(tmp_path.glob(".report*"))


def test_a_report_as_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert migrate(capsys)[0] == 0
    code, lines, _ = run(capsys, "report", "one", "--json")
    report, summary = map(json.loads, lines)
    assert (code, report["type"], report["acknowledged"]) == (0, "report", 6)
    assert (summary["type"], summary["complete"]) == ("summary", True)


def test_reports_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert migrate(capsys)[0] == 0
    for arguments, text in (
        (["two"], "there is no job 'two' in the ledger; `dcmhaul jobs` lists them"),
        (["one", "-f", "pdf"], "'pdf' is not one of"),
        (["one", "-o", "none/report.md"], "cannot write none/report.md"),
    ):
        code, _, said = run(capsys, "report", *arguments)
        assert code == 2
        assert text in said
        assert len(said.splitlines()) == 1
