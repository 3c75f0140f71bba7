"""The report of a job as HTML, JSON, CSV or Markdown, from its account; no view knows more than another.

UIDs, paths of a folder source and the words of peers are all that may tell of a patient.
"""

from __future__ import annotations

import csv
import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast, get_args

from dcmhaul._version import __version__
from dcmhaul.migrate.account import JobAccount, moment, read_account, read_items
from dcmhaul.observe.page import Page, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.engine import Connection

    from dcmhaul.migrate.account import Item

__all__ = ["FORMATS", "ReportFormat", "verdict", "write_report"]

ReportFormat = Literal["html", "json", "csv", "md"]
FORMATS: Final = get_args(ReportFormat)

ITEMS_SHOWN_MAX: Final = 1000
"""Single items in a page for readers; JSON and CSV hold all of them."""
SCHEMA: Final = 1
"""Of the JSON report; it grows where a field changes its meaning."""

_COLUMNS: Final = (
    *("what", "study_instance_uid", "sop_instance_uid", "path"),
    *("status", "retryable", "reason"),
)


def write_report(connection: Connection, job: str, form: ReportFormat, out: TextIO) -> JobAccount:
    """Writes the report of the job; its account is returned. ConfigurationError: no such job.

    Items are written while they are read: a report of millions needs no memory for them.
    """
    account = read_account(connection, job)
    items = read_items(connection, account.job.id)
    if form == "json":
        _write_json(account, items, out)
    elif form == "csv":
        _write_csv(items, out)
    else:
        shown = list(islice(items, ITEMS_SHOWN_MAX))
        more = next(items, None) is not None
        out.write((_html if form == "html" else _markdown)(account, shown, more))
    return account


# -- what is said ---------------------------------------------------------------------------------------


def verdict(account: JobAccount) -> tuple[bool, str]:
    """Whether all is well, and that in a sentence."""
    job, totals = account.job, account.job.totals
    bad = [
        f"{count} {word}"
        for count, word in (
            (totals.failed + totals.studies_failed, "failed"),
            (totals.pending, "not moved yet"),
            (account.studies_pending, "studies not finished"),
            (totals.differing, "studies that differ"),
            (account.studies_unverified, "studies not verified as asked"),
        )
        if count
    ]
    if job.state != "done" and not bad:
        bad = [f"the job is not finished ({job.state})"]
    if bad:
        return False, f"Not complete: {', '.join(bad)}"
    if not totals.studies:
        return True, "No study matched: there was nothing to move"
    if job.verify in ("", "none"):
        return True, f"All {job.held} instances were acknowledged; nothing was verified"
    return True, f"All {job.held} instances are at the destination; verified: {job.verify}"


def _facts(account: JobAccount) -> list[tuple[str, object]]:
    job, totals = account.job, account.job.totals
    return [
        ("source", job.source),
        ("destination", job.destination),
        ("filter", job.filter),
        ("state", job.state),
        ("first started", moment(job.started)),
        ("ended", moment(job.ended) or "not yet"),
        ("studies", f"{totals.studies_done} of {totals.studies} done"),
        ("studies left out by the filter", account.studies_excluded),
        ("instances", totals.instances),
        ("acknowledged", totals.acked),
        ("there before", totals.present),
        ("failed", totals.failed + totals.studies_failed),
        ("of these a retry may mend", totals.failed_retryable + totals.studies_failed),
        ("not moved yet", totals.pending),
        ("files skipped", totals.skipped),
        ("bytes moved", job.bytes),
        ("transfer", f"{account.seconds:.1f} s"),
        (
            "throughput",
            f"{account.mib_per_s:.1f} MiB/s, {account.instances_per_s:.1f} instances/s",
        ),
        ("options", ", ".join(f"{k}={v}" for k, v in sorted(job.options.items()))),
        ("job made by", f"dcmhaul {job.tool_version}"),
    ]


def _verification(account: JobAccount) -> list[tuple[str, object]]:
    totals = account.job.totals
    facts: list[tuple[str, object]] = [
        (f"studies verified: {level}", count) for level, count in account.verified_levels
    ]
    facts.append(("studies that differ", totals.differing))
    facts.append(("studies not verified as asked", account.studies_unverified))
    facts += [
        ("instances read back, same bytes", totals.same_bytes),
        ("same content, encoded otherwise", totals.same_content),
        ("coerced", totals.coerced),
        ("different", totals.altered),
        ("not given back", totals.not_read),
    ]
    return facts


Table = tuple[str, str, "Sequence[str]", "list[tuple[Any, ...]]"]
"""Heading, explanation, columns, rows."""


def _tables(account: JobAccount, items: Sequence[Item], more: bool) -> list[Table]:
    """What stands in the pages for readers; what has no row is left out."""
    listed = "" if not more else f"The first {len(items)}; `-f csv` lists all."
    tables: list[Table] = [
        (
            "Failures by reason",
            "",
            ("instances", "status", "retry may help", "reason"),
            [
                (r.count, _status(r.status), "yes" if r.retryable else "no", r.reason)
                for r in account.reasons
            ],
        ),
        (
            "Files that are no instances, or conflict",
            "",
            ("files", "kind", "reason"),
            [(count, kind, reason) for kind, reason, count in account.exclusions],
        ),
        (
            "By modality",
            "",
            ("modality", "studies", "instances", "bytes"),
            [
                (plain(m.modality.replace("\\", " ")) or "-", m.studies, m.instances, m.bytes)
                for m in account.modalities
            ],
        ),
        (
            "Starts",
            "A start without an end was killed, or is running.",
            ("started", "ended", "verify", "instances", "bytes", "seconds", "exit", "error"),
            [
                (
                    moment(r.started),
                    moment(r.ended) or "-",
                    r.verify,
                    r.instances,
                    r.bytes,
                    round(r.seconds, 1),
                    "-" if r.exit_code is None else str(r.exit_code),
                    r.error,
                )
                for r in account.invocations
            ],
        ),
        (
            "Decisions",
            "",
            ("when", "what", "details"),
            [
                (moment(d.moment), d.kind, ", ".join(f"{k}={v}" for k, v in d.details.items()))
                for d in account.decisions
            ],
        ),
        (
            "One by one",
            listed,
            ("what", "study", "instance", "path", "status", "retry may help", "reason"),
            [
                (
                    i.what,
                    i.study_instance_uid,
                    i.sop_instance_uid,
                    i.path,
                    _status(i.status),
                    "yes" if i.retryable else "no",
                    i.reason,
                )
                for i in items
            ],
        ),
    ]
    return [table for table in tables if table[3]]


def _status(status: int | None) -> str:
    return "" if status is None else f"{status:04X}"


# -- for readers ----------------------------------------------------------------------------------------


def _html(account: JobAccount, items: Sequence[Item], more: bool) -> str:
    job, totals = account.job, account.job.totals
    page = Page(f"Migration {job.name}")
    good, text = verdict(account)
    page.verdict(text, good=good)
    page.bar(
        [
            ("good", "acknowledged", totals.acked),
            ("fair", "there before", totals.present),
            ("bad", "failed", totals.failed),
            ("open", "not moved yet", totals.pending),
        ]
    )
    page.facts(_facts(account))
    page.heading("Verification")
    page.facts(_verification(account))
    for heading, explanation, columns, rows in _tables(account, items, more):
        page.heading(heading)
        if explanation:
            page.paragraph(explanation)
        page.table(columns, rows)
    page.paragraph(f"Made by dcmhaul {__version__} from the ledger alone.")
    return page.html()


def _markdown(account: JobAccount, items: Sequence[Item], more: bool) -> str:
    lines = [f"# Migration {_cell(account.job.name)}", "", f"{verdict(account)[1]}.", ""]
    lines += _markdown_table(("", ""), _facts(account))
    lines += ["", "## Verification", ""]
    lines += _markdown_table(("", ""), _verification(account))
    for heading, explanation, columns, rows in _tables(account, items, more):
        lines += ["", f"## {heading}", ""]
        if explanation:
            lines += [explanation, ""]
        lines += _markdown_table(columns, rows)
    return "\n".join(lines) + "\n"


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    rows = list(rows)
    numbers = [
        all(isinstance(row[place], (int, float)) for row in rows) for place in range(len(columns))
    ]
    return [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---:' if number else '---' for number in numbers)} |",
        *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows),
    ]


def _cell(value: object) -> str:
    """Text that stays text: no markup, no HTML and no end of the cell in it."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", plain(str(value)))


# -- for programs ---------------------------------------------------------------------------------------


def _write_json(account: JobAccount, items: Iterable[Item], out: TextIO) -> None:
    """One object; `items` comes last, an item a line."""
    head = json.dumps(_record(account), indent=2)
    out.write(f'{head[: head.rindex("}")].rstrip()},\n  "items": [')
    for number, item in enumerate(items):
        out.write(",\n    " if number else "\n    ")
        out.write(json.dumps(_item(item)))
    out.write("\n  ]\n}\n")


def _item(item: Item) -> dict[str, object]:
    return {
        "what": item.what,
        "study_instance_uid": item.study_instance_uid,
        "sop_instance_uid": item.sop_instance_uid,
        "path": item.path,
        "status": _status(item.status) or None,
        "retryable": item.retryable,
        "reason": item.reason,
    }


def _record(account: JobAccount) -> dict[str, object]:
    job, totals = account.job, account.job.totals
    good, text = verdict(account)
    return {
        "type": "report",
        "schema": SCHEMA,
        "dcmhaul": __version__,
        "job": job.name,
        "complete": good,
        "verdict": text,
        "source": job.source,
        "destination": job.destination,
        "filter": job.filter,
        "options": job.options,
        "made_by": job.tool_version,
        "state": job.state,
        "started": moment(job.started),
        "ended": moment(job.ended) or None,
        "studies": totals.studies,
        "studies_done": totals.studies_done,
        "studies_excluded": account.studies_excluded,
        "studies_pending": account.studies_pending,
        "instances": totals.instances,
        "acknowledged": totals.acked,
        "already": totals.present,
        "failed": totals.failed + totals.studies_failed,
        "failed_retryable": totals.failed_retryable + totals.studies_failed,
        "pending": totals.pending,
        "skipped": totals.skipped,
        "bytes": job.bytes,
        "seconds": round(account.seconds, 6),
        "mib_per_s": round(account.mib_per_s, 3),
        "instances_per_s": round(account.instances_per_s, 3),
        "verification": {
            "asked": job.verify,
            "studies": dict(account.verified_levels),
            "unverified": account.studies_unverified,
            "differing": totals.differing,
            "same_bytes": totals.same_bytes,
            "same_content": totals.same_content,
            "coerced": totals.coerced,
            "altered": totals.altered,
            "not_read": totals.not_read,
        },
        **_lists(account),
    }


def _lists(account: JobAccount) -> dict[str, object]:
    return {
        "reasons": [
            {
                "count": r.count,
                "status": _status(r.status) or None,
                "retryable": r.retryable,
                "reason": r.reason,
            }
            for r in account.reasons
        ],
        "exclusions": [
            {"count": count, "kind": kind, "reason": reason}
            for kind, reason, count in account.exclusions
        ],
        "modalities": [
            {
                "modality": m.modality,
                "studies": m.studies,
                "instances": m.instances,
                "bytes": m.bytes,
            }
            for m in account.modalities
        ],
        "starts": [
            {
                "started": moment(r.started),
                "ended": moment(r.ended) or None,
                "version": r.version,
                "verify": r.verify,
                "instances": r.instances,
                "bytes": r.bytes,
                "seconds": r.seconds,
                "exit_code": r.exit_code,
                "error": r.error,
            }
            for r in account.invocations
        ],
        "decisions": [
            {"when": moment(d.moment), "what": d.kind, **d.details} for d in account.decisions
        ],
    }


def _write_csv(items: Iterable[Item], out: TextIO) -> None:
    """A header and one line an item."""
    write: Callable[[Iterable[object]], object] = csv.writer(out, lineterminator="\n").writerow
    write(_COLUMNS)
    for item in items:
        record = _item(item)
        write(_csv_cell(record[column]) for column in _COLUMNS)


def _csv_cell(value: object) -> str:
    """Text that no spreadsheet takes for a formula: peers choose their words, and files their names."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = plain(cast("str", value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
