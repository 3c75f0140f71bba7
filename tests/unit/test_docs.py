"""The pages that users read: every local link leads somewhere, every metric is listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dcmhaul.engine.counters import Counters

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_metric_is_in_its_page() -> None:
    listed = set(
        re.findall(r"^\| `dcmhaul_(\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    )
    counted = {
        f"{family.name}_total" if family.kind == "counter" else family.name
        for family in Counters().families()
    }
    # The archive's own, which the tests of --metrics look at.
    assert listed == {*counted, "archive_objects_total", "retries_total"}
