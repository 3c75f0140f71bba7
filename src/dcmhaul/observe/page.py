"""One self-contained HTML page: no script, no other file, and every text escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Page", "plain"]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff;max-width:72rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin:2rem 0 .4rem}
p{margin:.3rem 0}.note{color:#5a6675}
table{border-collapse:collapse;width:100%;margin:.4rem 0}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #dde3ea;vertical-align:top;
overflow-wrap:anywhere}
th{font-weight:600;color:#5a6675;white-space:nowrap}td.n,th.n{text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}
.facts th{width:14rem;white-space:normal}
.bar{display:flex;height:1.2rem;border-radius:.3rem;overflow:hidden;background:#eef1f5;margin:.6rem 0}
.bar span{display:block}.good{background:#2f855a}.fair{background:#68a67d}.bad{background:#c53030}
.open{background:#cbd5e0}.verdict{font-weight:600;padding:.4rem .7rem;border-radius:.3rem;color:#fff;
display:inline-block}
@media print{body{margin:0;max-width:none}}
@media(prefers-color-scheme:dark){body{background:#161b22;color:#dde3ea}th,.note{color:#94a1b2}
th,td{border-color:#303a47}.bar{background:#262f3a}.open{background:#4a5568}}
"""


def plain(text: str) -> str:
    """The text in one line: control characters, which a peer may have sent, are written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(value: object) -> str:
    return escape(plain(str(value)), quote=True)


class Page:
    """Parts are added from top to bottom; `html` is the whole page. Numbers are set to the right."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = [f"<h1>{_text(title)}</h1>"]

    def verdict(self, text: str, *, good: bool) -> None:
        self._parts.append(f'<p class="verdict {"good" if good else "bad"}">{_text(text)}</p>')

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{_text(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f'<p class="note">{_text(text)}</p>')

    def facts(self, pairs: Iterable[tuple[str, object]]) -> None:
        """A table of names and values."""
        rows = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in pairs)
        self._parts.append(f'<table class="facts">{rows}</table>')

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        body: list[str] = []
        numbers: set[int] = set()
        for row in rows:
            cells = []
            for place, cell in enumerate(row):
                number = isinstance(cell, (int, float))
                if number:
                    numbers.add(place)
                cells.append(f"<td{' class=n' * number}>{_text(cell)}</td>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        head = "".join(
            f"<th{' class=n' * (place in numbers)}>{_text(column)}</th>"
            for place, column in enumerate(columns)
        )
        self._parts.append(
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        )

    def bar(self, parts: Sequence[tuple[str, str, int]]) -> None:
        """Shares of a whole: class (good, fair, bad, open), what it is, how many."""
        whole = sum(count for _, _, count in parts)
        if not whole:
            return
        spans = "".join(
            f'<span class="{kind}" style="width:{100 * count / whole:.4f}%" '
            f'title="{_text(f"{count} {name}")}"></span>'
            for kind, name, count in parts
            if count
        )
        self._parts.append(f'<div class="bar">{spans}</div>')

    def html(self) -> str:
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_text(self._title)}</title><style>{_STYLE}</style></head>\n<body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )
