"""`dcmhaul demo`: two archives on this machine, real files, and a migration between them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.options import metrics_option, verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from dcmhaul.cli.session import Session
    from dcmhaul.migrate.report import MigrationSummary, Progress

__all__ = ["command"]

_EPILOG = """\b
Example:
  dcmhaul demo
"""


@verb("demo", epilog=_EPILOG)
@click.option(
    "-o", "--output", "folder", metavar="DIR", help="For the report [default: a temporary folder]."
)
@click.option(
    "--associations", type=click.IntRange(1, 128), default=4, show_default=True, help="At once."
)
@click.option(
    "--window", type=click.IntRange(1, 32), default=8, show_default=True, help="On each of them."
)
@metrics_option
def command(
    session: Session, folder: str | None, associations: int, window: int, metrics: str | None
) -> None:
    """Start two embedded archives, fill the first, migrate it to the second, compare both.

    Everything happens on this machine, over real associations; only the report stays behind.
    """
    import trio

    from dcmhaul.cli.models import quiet_pydicom

    session.summary = {"instances": 0, "failed": 0, "skipped": 0, "bytes": 0, "verified": False}
    quiet_pydicom()
    report = Path(folder) if folder is not None else None
    trio.run(partial(_run, session, report, associations, window, metrics))


async def _run(
    session: Session, report: Path | None, associations: int, window: int, metrics: str | None
) -> None:
    from dcmhaul.cli.migrate import finish_migration, show_migration
    from dcmhaul.cli.network import counting
    from dcmhaul.demo import DemoResult, run_demo
    from dcmhaul.engine.scheduler import StopRequest

    stop = StopRequest()
    results: list[DemoResult] = []
    with counting(session, metrics, None) as observer:

        async def demonstrate(progress: Callable[[Progress], None]) -> MigrationSummary:
            results.append(
                await run_demo(
                    progress=progress,
                    say=session.console.warn,
                    report_folder=report,
                    observer=observer,
                    stop=stop,
                    associations=associations,
                    window=window,
                )
            )
            return results[0].summary

        summary = await show_migration(session, stop, demonstrate)
    [result] = results
    finish_migration(session, summary)
    session.code(result.exit_code)
    session.summary |= {
        "verified": result.verified,
        "instances_at_both_ends": result.instances,
        "differences": len(result.differences),
        "report": str(result.report),
    }
    for uid in result.differences:
        session.console.error(f"differs: {uid}")
    told = session.summary_text

    def text() -> str:
        verdict = "hold the same" if result.verified else "DIFFER"
        moved = told() if told is not None else ""
        return (
            f"{moved}\nboth archives {verdict}: {result.instances} instances, compared by UID, "
            f"syntax and SHA-256\nreport: {result.report / 'report.html'}"
        )

    session.summary_text = text
