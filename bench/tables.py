"""Numbers as people read them: medians with their spread, Markdown tables, marked parts of a page."""

from __future__ import annotations

import json
import re
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Lowest and highest, which few rounds say better than a deviation."""
    return f"{short(min(values))}-{short(max(values))}"


def short(value: float) -> str:
    """Three significant digits, never in exponents."""
    if value == 0:
        return "0"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)])]
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def replace_marked(page: Path, name: str, text: str) -> None:
    """Puts the text between `<!-- name -->` and `<!-- /name -->`; adds the markers where none are."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text() if page.exists() else ""
    block = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    new, found = pattern.subn(lambda _: block, old, count=1)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(new if found else f"{old.rstrip()}\n\n{block}\n")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
