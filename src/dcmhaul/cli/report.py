"""`dcmhaul report`: what a job did and what it could not do, from its ledger alone."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from dcmhaul.cli.options import ledger_option, ledger_url, verb
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dcmhaul.cli.session import Session
    from dcmhaul.migrate.account import JobAccount
    from dcmhaul.migrate.rendering import ReportFormat

__all__ = ["command"]

_FORMATS = ("html", "json", "csv", "md")

_EPILOG = """\b
html is one file without scripts that needs nothing else; csv has a line for each
instance that did not arrive or differs. The job may be running meanwhile.
Reports hold UIDs, the paths of a folder source and the answers of peers, and
no other data of patients.

\b
Examples:
  dcmhaul report ctmr
  dcmhaul report ctmr -o ctmr.html
  dcmhaul report ctmr -f csv -o open.csv
"""


@verb("report", epilog=_EPILOG)
@ledger_option
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help="Its form [default: what FILE ends in, else md].",
)
@click.option("-o", "--output", metavar="FILE", help="Where it goes [default: -, stdout].")
@click.argument("job", metavar="JOB")
def command(
    session: Session, ledger: str | None, form: str | None, output: str | None, job: str
) -> None:
    """Say what was moved, what failed and why, and what was verified."""
    from dcmhaul.migrate.rendering import verdict, write_report
    from dcmhaul.migrate.upgrades import reading_ledger

    if output == "-":
        output = None
    chosen = cast("ReportFormat", form or _by_suffix(output) or "md")
    with reading_ledger(ledger_url(session, ledger)) as connection:

        def write(stream: TextIO) -> JobAccount:
            return write_report(connection, job, chosen, stream)

        if output is not None:
            account = _to_file(Path(output), write)
        elif session.answer.json_lines:
            # NDJSON: the report in one line, whatever its form would be otherwise.
            chosen = "json"
            text = io.StringIO()
            account = write(text)
            session.answer.record(json.loads(text.getvalue()))
        else:
            account = write(sys.stdout)
            sys.stdout.flush()
    complete, text_verdict = verdict(account)
    session.summary = {
        "job": job,
        "format": chosen,
        "path": output or "",
        "complete": complete,
        "verdict": text_verdict,
    }
    if output is not None:
        session.summary_text = lambda: f"{output}: {text_verdict}"


def _by_suffix(output: str | None) -> str | None:
    suffix = Path(output or "").suffix.lower().lstrip(".")
    return suffix if suffix in _FORMATS else None


def _to_file(path: Path, write: Callable[[TextIO], JobAccount]) -> JobAccount:
    """Under a temporary name first: who looks at the old report does not see half of the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            account = write(stream)
        temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return account
