"""`dcmhaul jobs`: what the ledger knows of migrations, and how far each is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dcmhaul.cli.options import ledger_option, ledger_url, verb
from dcmhaul.cli.output import Rows, format_bytes

if TYPE_CHECKING:
    from dcmhaul.cli.session import Session
    from dcmhaul.migrate.account import JobRow

__all__ = ["command"]

_COLUMNS = (
    *("job", "state", "studies", "instances", "failed", "moved", "verify"),
    *("started", "ended", "source", "destination"),
)

_EPILOG = """\b
Studies and instances are those done of those known. A job may be running
meanwhile. `dcmhaul report JOB` says what failed, and why. `jobs upgrade` brings
a ledger of an earlier dcmhaul to the schema of this one, after a backup.

\b
Examples:
  dcmhaul jobs
  dcmhaul jobs --json --ledger sqlite:///jobs.db
"""


@verb("jobs", epilog=_EPILOG)
@ledger_option
@click.argument("action", required=False, type=click.Choice(["upgrade"]))
def command(session: Session, ledger: str | None, action: str | None) -> None:
    """List the migrations of a ledger: what ran, and how far it is."""
    url = ledger_url(session, ledger)
    if action == "upgrade":
        _upgrade(session, url)
    else:
        _list(session, url)


def _list(session: Session, url: str) -> None:
    from dcmhaul.migrate.account import list_jobs
    from dcmhaul.migrate.upgrades import reading_ledger

    with reading_ledger(url) as connection:
        jobs = list_jobs(connection)
    session.summary = {"jobs": len(jobs)}
    rows = Rows(session.answer, _COLUMNS)
    for job in jobs:
        rows.add(_cells(job))
        session.answer.record(_record(job))
    rows.finish()


def _cells(job: JobRow) -> list[str]:
    from dcmhaul.migrate.account import moment

    totals = job.totals
    return [
        job.name,
        job.state,
        f"{totals.studies_done}/{totals.studies}",
        f"{job.held}/{totals.instances}",
        str(totals.failed + totals.studies_failed),
        format_bytes(job.bytes),
        job.verify,
        moment(job.started),
        moment(job.ended),
        job.source,
        job.destination,
    ]


def _record(job: JobRow) -> dict[str, object]:
    from dcmhaul.migrate.account import moment

    totals = job.totals
    return {
        "type": "job",
        "job": job.name,
        "state": job.state,
        "source": job.source,
        "destination": job.destination,
        "filter": job.filter,
        "verify": job.verify,
        "studies": totals.studies,
        "studies_done": totals.studies_done,
        "instances": totals.instances,
        "acknowledged": totals.acked,
        "already": totals.present,
        "failed": totals.failed + totals.studies_failed,
        "failed_retryable": totals.failed_retryable + totals.studies_failed,
        "pending": totals.pending,
        "skipped": totals.skipped,
        "differing": totals.differing,
        "bytes": job.bytes,
        "started": moment(job.started),
        "ended": moment(job.ended),
    }


def _upgrade(session: Session, url: str) -> None:
    from dcmhaul.migrate.upgrades import upgrade_ledger

    done = upgrade_ledger(url)
    session.summary = {
        "schema_version_before": done.found,
        "schema_version": done.version,
        "backup": done.backup,
    }
    if done.backup:
        text = (
            f"ledger upgraded from schema version {done.found} to {done.version}; "
            f"as it was: {done.backup}"
        )
    else:
        text = f"the ledger has schema version {done.version}: nothing to do"
    session.summary_text = lambda: text
