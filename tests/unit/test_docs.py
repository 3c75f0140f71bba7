"""The pages that users read: every local link leads somewhere, every metric is listed."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from dcmhaul.cli import ALIASES, _load
from dcmhaul.cli.arguments import normalise
from dcmhaul.cli.dcmtk import TOOL_FLAGS
from dcmhaul.engine.counters import Counters
from dcmhaul.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(("tool", "verb"), ALIASES.items())
def test_the_flags_of_dcmtk_in_their_page_are_those_taken(tool: str, verb: str) -> None:
    rows = re.findall(
        r"^\| `?(\w+)`? \|.*\| `(.*)` \|$", (ROOT / "docs/dcmtk.md").read_text(), re.MULTILINE
    )
    listed = {flag for name, flags in rows if name in ("all", tool) for flag in flags.split()}
    values = _load(verb).values()
    taken = set()
    for flag in TOOL_FLAGS[tool] - {"--version"}:
        with contextlib.suppress(ConfigurationError):
            normalise([flag, *["1"] * values.get(flag, 0)], values, tool=tool)
            # Of two spellings the short one; of a letter, the letters.
            taken.add(re.sub(r"^([-+]x)[^a]$", r"\1?", flag) if flag not in listed else flag)
    assert listed == {flag for flag in taken if flag[:2] != "--" or flag in listed}


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


def test_every_test_named_by_the_page_of_peers_exists() -> None:
    lines = (ROOT / "docs/interop.md").read_text().splitlines()
    last = [line.strip("| ").split(" | ")[-1] for line in lines if line.startswith("| ")]
    rows = [cell for cell in last if cell.strip("-") and cell != "tests"]
    assert len(rows) > 40
    for row in rows:
        named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named, f"no test is named by {row}"
        path, name = named.groups()
        source = (ROOT / path).read_text()
        assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), (
            f"{path} has no {name}"
        )
