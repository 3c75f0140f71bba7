"""The demonstration proves what it says, and leaves only its report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dcmhaul import demo
from dcmhaul.objects.synth import SynthPlan

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.migrate import Progress


@pytest.mark.slow
async def test_the_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SynthPlan(studies=2, series=1, instances=3, modality="CT", seed="t", rows=64, columns=64)
    monkeypatch.setattr(demo, "SYNTHETIC", (plan,))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    told: list[Progress] = []
    lines: list[str] = []
    result = await demo.run_demo(
        progress=told.append, say=lines.append, report_folder=tmp_path / "report"
    )
    assert result.verified
    assert result.exit_code == 0
    assert result.instances == result.summary.instances > 100
    assert told[-1].phase == "done"
    assert len(lines) == 4
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["verified"] is True
    assert record["instances_at_both_ends"] == result.instances
    assert (
        f"| instances moved | {result.instances} |"
        in (tmp_path / "report" / "report.md").read_text()
    )
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"All {result.instances} instances are at the destination; verified: digest:100" in page
    assert list((tmp_path / "temporary").iterdir()) == []


async def test_a_difference_is_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SynthPlan(studies=1, series=1, instances=2, modality="CT", seed="t", rows=16, columns=16)
    monkeypatch.setattr(demo, "SYNTHETIC", (plan,))
    monkeypatch.setattr(demo, "_real_files", list)
    digests = demo._digests

    def altered(folder: Path) -> dict[str, tuple[str, bytes]]:
        found = digests(folder)
        if folder.name == "new":
            uid, (syntax, _digest) = found.popitem()
            found[uid] = (syntax, b"other")
        return found

    monkeypatch.setattr(demo, "_digests", altered)
    result = await demo.run_demo(report_folder=tmp_path)
    assert result.summary.exit_code == 0
    assert len(result.differences) == 1
    assert not result.verified
    assert result.exit_code == 11
    assert "DIFFER" in (tmp_path / "report.md").read_text()
