"""bench/compare.py says what changed between two runs, and no more."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bench import compare

if TYPE_CHECKING:
    from pathlib import Path


def run(factor: float, seed: int, rounds: int = 7) -> dict[str, Any]:
    """A run whose rounds scatter by 5 %."""
    drawn = np.random.default_rng(seed).normal(1.0, 0.05, (2, rounds))
    return {
        "machine": {"kernel": "6", "date": str(seed)},
        "results": {"ct": {"seconds": list(drawn[0] * factor), "objects": 5}},
        "cases": [{"title": "one", "rates": list(drawn[1] / factor)}, {"ok": [True] * 7}],
    }


def test_what_is_compared() -> None:
    names = [name for name, _ in compare.rounds(run(1.0, 1))]
    assert names == ["results / ct / seconds", "cases / one / rates"]
    assert list(compare.rounds({"few": [1.0, 2.0], "zero": [0, 1, 2], "text": ["a"] * 3})) == []


def test_a_run_beside_itself_has_no_difference() -> None:
    wrong = 0
    for seed in range(40):
        found = compare.changes(run(1.0, seed), run(1.0, 1000 + seed))
        wrong += sum(change.beyond_noise for change in found)
    assert wrong <= 12  # of 80: medians of seven rounds are coarse


def test_a_fifth_more_is_found_in_its_direction() -> None:
    verdicts = [
        change.verdict
        for seed in range(20)
        for change in compare.changes(run(1.0, seed), run(1.2, 1000 + seed))
    ]
    assert verdicts.count("worse") >= 38
    assert "better" not in verdicts
    [seconds, rates] = compare.changes(run(1.2, 1), run(1.0, 2))
    assert (seconds.verdict, rates.verdict) == ("better", "better")
    assert seconds.ratio < 1 < rates.ratio


def printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
    compare.main()
    return capsys.readouterr().out.splitlines()


def test_the_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = run(1.0, 1), run(2.0, 2)
    after["machine"]["kernel"] = "7"
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, value in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(value))
    kernel, first, second, last = printed(capsys, monkeypatch, *paths)
    assert kernel == "kernel differs: 6, then 7"
    assert first.startswith("worse: results / ct / seconds: x ")
    assert second.startswith("worse: cases / one / rates: x ")
    assert last == "2 compared, 2 beyond noise"
    assert printed(capsys, monkeypatch, paths[0], paths[0]) == ["2 compared, 0 beyond noise"]
    same = printed(capsys, monkeypatch, paths[0], paths[0], "--all")
    assert [line.split(":")[0] for line in same[:2]] == ["no difference"] * 2


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_files_that_are_no_runs(
    tmp_path: Path,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        printed(capsys, monkeypatch, path, path)
    assert isinstance(ended.value.code, str)
