"""`check` as a user types it: its lines, its exit codes, its NDJSON."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from dcmhaul.cli import main
from dcmhaul.objects.synth import write_studies

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    plan: dict[str, Any] = {"series": 1, "instances": 3, "seed": "t", "rows": 16, "columns": 16}
    write_studies(tmp_path / "old", studies=2, modality="CT", **plan)
    shutil.copytree(tmp_path / "old", tmp_path / "new")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout, stderr."""
    capsys.readouterr()
    code = main(["check", "./old", "./new", *arguments])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "new").rglob("*") if path.is_file())


def uid_of(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    """By check itself: what is missing when the file is away."""
    moved = path.rename(path.parents[3] / "away")
    _, (line,), _ = run(capsys)
    moved.rename(path)
    return line.removeprefix("+ ")


def test_nothing_is_printed_where_nothing_differs(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, said = run(capsys)
    assert (code, lines) == (0, [])
    assert said == ("2 studies: 6 same, 0 missing at SRC, 0 missing at DST, 0 differ, 0 errors\n")
    assert run(capsys, "-q")[2] == ""


def test_all_prints_what_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "--all")
    assert (code, len(lines)) == (0, 6)
    assert {line[:2] for line in lines} == {"= "}
    assert len(run(capsys, "--all", "--level", "study")[1]) == 2
    assert len(run(capsys, "--all", "--level", "SERIES")[1]) == 2


def test_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files(tmp_path)[0].unlink()
    code, (line,), _ = run(capsys)
    assert (code, line[:2]) == (11, "+ ")
    code, lines, said = run(capsys, "--level", "STUDY", "-v")
    assert (code, lines[0][:2], len(lines)) == (11, "* ", 1)
    assert "3 instances at SRC, 2 at DST" in said
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "old").mkdir()
    code, lines, _ = run(capsys)
    assert (code, len(lines), {line[:2] for line in lines}) == (11, 5, {"- "})


def test_a_content_that_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = files(tmp_path)[0]
    uid = uid_of(capsys, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    assert run(capsys)[0] == 0
    code, lines, said = run(capsys, "--digest", "-v")
    assert (code, lines) == (11, [f"* {uid}"])
    assert "(7FE0,0010) PixelData" in said
    code, lines, _ = run(capsys, "--digest", "--json")
    record, summary = map(json.loads, lines)
    assert record["type"] == "check"
    assert (record["symbol"], record["level"], record["uid"]) == ("*", "IMAGE", uid)
    assert record["note"] == "the content differs: (7FE0,0010) PixelData"
    assert (summary["type"], summary["differing"], summary["same"]) == ("summary", 1, 5)
    assert (summary["exit_code"], code) == (11, 11)


def test_an_error_is_5(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files(tmp_path)[0].unlink()
    (tmp_path / "new" / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    code, lines, said = run(capsys)
    assert code == 5
    assert [line[:2] for line in sorted(lines)] == ["! ", "+ "]
    assert "! cut.dcm: DST: " in said


def test_what_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["--digest", "--level", "STUDY"], "contents are compared at level IMAGE"),
        (["-k", "Modality=CT"], "for a modality use ModalitiesInStudy"),
        (["--level", "PATIENT"], "'PATIENT' is not one of"),
    ):
        code, lines, said = run(capsys, *arguments)
        assert (code, lines) == (2, [])
        assert text in said
    capsys.readouterr()
    assert main(["check", "./old", "NEW@127.0.0.1:1"]) == 3
