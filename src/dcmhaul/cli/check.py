"""`dcmhaul check`: what one archive or folder holds and the other does not."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import click

from dcmhaul.cli.options import (
    key_options,
    metrics_option,
    network_options,
    own_scp_options,
    verb,
)

if TYPE_CHECKING:
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.migrate.check import CheckLevel, CheckLine, CheckOptions

__all__ = ["command"]

_EPILOG = """\b
One line an object that differs, its UID behind a symbol:
  =  the same (with --all)          -  missing at SRC     +  missing at DST
  *  differs: the number of its instances, or with --digest its content
  !  could not be compared
Exit code 0, 11 with a difference, 5 with any error. -v says in what they differ.
SRC and DST are each AET@HOST:PORT, a node of dcmhaul.toml, or a folder, which
contains a / (./old). Nothing is moved. Counts at level STUDY are those that the
peers state; where these differ or are missing, the instances are counted.

\b
Examples:
  dcmhaul check OLD@10.1.2.3:104 NEW@10.1.2.4:104 -k StudyDate=2024
  dcmhaul check old ./backup --digest --json
  dcmhaul check old new --digest +P 11112 -aet OURS
"""


@verb("check", epilog=_EPILOG)
@key_options
@click.option(
    "--level",
    type=click.Choice(["STUDY", "SERIES", "IMAGE"], case_sensitive=False),
    default="IMAGE",
    show_default=True,
    help="What a line stands for.",
)
@click.option("--all", "everything", is_flag=True, help="Print what is the same, too.")
@click.option("--digest", is_flag=True, help="Read every instance from both ends, and compare.")
@own_scp_options
@network_options(called=False)
@metrics_option
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
def command(
    session: Session,
    network: NetworkOptions,
    source: str,
    destination: str,
    keys: tuple[str, ...],
    level: str,
    everything: bool,
    digest: bool,
    port: str | None,
    bind: str | None,
    metrics: str | None,
) -> None:
    """Compare what SRC and DST hold, study by study."""
    import trio

    from dcmhaul.cli.migrate import side_of, study_filter
    from dcmhaul.cli.models import quiet_pydicom
    from dcmhaul.cli.network import socket_options, timeouts
    from dcmhaul.cli.ownscp import read_back_options
    from dcmhaul.config import DEFAULT_AE_TITLE
    from dcmhaul.migrate.check import CheckOptions

    session.summary = {"studies": 0}
    quiet_pydicom()
    network = session.network(network)
    options = CheckOptions(
        source=side_of(session, network, source),
        destination=side_of(session, network, destination),
        filter=study_filter(keys),
        level=cast("CheckLevel", level.upper()),
        digest=digest,
        calling_ae_title=network.calling_ae_title or DEFAULT_AE_TITLE,
        pdu_length_max=network.pdu_length_announced,
        timeouts=timeouts(network),
        socket_options=socket_options(network),
        receive=read_back_options(session, network, port, bind, "" if digest else "--digest"),
    )
    trio.run(partial(_run, session, options, everything, metrics))


async def _run(
    session: Session, options: CheckOptions, everything: bool, metrics: str | None
) -> None:
    from dcmhaul.cli.console import printable
    from dcmhaul.cli.network import counting
    from dcmhaul.migrate.check import check

    def say(line: CheckLine) -> None:
        session.begun = True
        if line.symbol == "=" and not everything:
            return
        session.answer.line(f"{line.symbol} {printable(line.uid)}")
        session.answer.record(
            {
                "type": "check",
                "symbol": line.symbol,
                "level": options.level,
                "uid": line.uid,
                "study_instance_uid": line.study_instance_uid,
                "note": line.note,
            }
        )
        if line.note:
            tell = session.console.error if line.symbol == "!" else session.console.info
            tell(f"{line.symbol} {line.uid}: {line.note}")

    with counting(session, metrics, None) as observer:
        summary = await check(options, say, observer=observer)
    counts = summary.counts
    session.summary = {
        "studies": summary.studies,
        "level": options.level,
        "same": counts["="],
        "missing_at_source": counts["-"],
        "missing_at_destination": counts["+"],
        "differing": counts["*"],
        "errors": counts["!"],
    }
    session.code(summary.exit_code)
    # stdout has the lines alone.
    session.console.warn(
        f"{summary.studies} studies: {counts['=']} same, {counts['-']} missing at SRC, "
        f"{counts['+']} missing at DST, {counts['*']} differ, {counts['!']} errors"
    )
