"""`dcmhaul synth`: synthetic studies, the same for the same seed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.options import verb
from dcmhaul.cli.output import format_bytes, process_seconds
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from dcmhaul.cli.session import Session

__all__ = ["command"]

_EPILOG = """\b
Examples:
  dcmhaul synth ./studies --studies 10 --series 2 --instances 50 --modality CT
  dcmhaul synth ./big --modality US --frames 512 --rows 1024 --columns 512
"""

_MODALITIES = ["CT", "MR", "CR", "US", "mix"]


_count = partial(click.option, type=click.IntRange(1), default=1, show_default=True, metavar="N")


@verb("synth", epilog=_EPILOG)
@_count("--studies", help="Studies, each of a patient of its own.")
@_count("--series", help="Series a study.")
@_count("--instances", help="Instances a series.")
@click.option(
    "--modality",
    type=click.Choice(_MODALITIES, case_sensitive=False),
    default="CT",
    show_default=True,
    help="What the instances are; mix takes each in turn.",
)
@click.option("--seed", default="0", show_default=True, metavar="S", help="Same seed, same bytes.")
@click.option("--rows", type=click.IntRange(1, 65535), metavar="N", help="Instead of the usual.")
@click.option("--columns", type=click.IntRange(1, 65535), metavar="N", help="Instead of the usual.")
@click.option("--frames", type=click.IntRange(1), metavar="N", help="Multi-frame instances.")
@click.argument("folder", metavar="DIR")
def command(
    session: Session,
    folder: str,
    studies: int,
    series: int,
    instances: int,
    modality: str,
    seed: str,
    rows: int | None,
    columns: int | None,
    frames: int | None,
) -> None:
    """Write synthetic studies below DIR: Part-10 files in a folder a series.

    No patient is behind them; equal arguments give equal bytes.
    """
    from dcmhaul.objects.synth import write_studies

    session.summary = {"instances": 0, "bytes": 0}
    if not folder:
        raise ConfigurationError("synth takes the folder to write below, not ''")
    try:
        files, length = write_studies(
            folder,
            studies,
            series,
            instances,
            modality,
            seed,
            rows=rows,
            columns=columns,
            frames=frames,
        )
    except OSError as error:
        raise ConfigurationError(f"{error.filename or folder}: {error.strerror}") from error
    session.summary = {
        "instances": files,
        "bytes": length,
        "wall_seconds": round(process_seconds(), 3),
    }
    session.summary_text = lambda: f"{files} instances written, {format_bytes(length)}"
