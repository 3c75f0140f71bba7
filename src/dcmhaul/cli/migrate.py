"""`dcmhaul migrate`: studies from one archive or folder to another, each instance accounted for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcmhaul.cli.options import (
    key_options,
    ledger_option,
    ledger_url,
    metrics_option,
    network_options,
    own_scp_options,
    verb,
)
from dcmhaul.cli.output import (
    Progress,
    format_bytes,
    format_seconds,
    process_seconds,
    show_progress,
)
from dcmhaul.cli.tls import peer_tls
from dcmhaul.config import DEFAULT_AE_TITLE, Peer, parse_peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.engine.scheduler import StopRequest
    from dcmhaul.migrate.plan import MigrateOptions
    from dcmhaul.migrate.report import MigrationSummary
    from dcmhaul.migrate.report import Progress as MigrationProgress

__all__ = ["command", "finish_migration", "show_migration", "side_of", "study_filter"]

ALIKE_MAX = 5
"""Failures for one reason that are told one by one."""

_EPILOG = """\b
SRC and DST are each AET@HOST:PORT, a node of dcmhaul.toml, or a folder, which
contains a / (./old). Keys select studies: StudyDate, PatientID,
ModalitiesInStudy and the like. Instances are relayed in memory; what arrived
stands in the ledger. The same command again resumes the job, or, where it is
finished, moves nothing. Ctrl-C once finishes what is in flight, twice stops at
once; nothing is lost either way.

\b
Examples:
  dcmhaul migrate OLD@10.1.2.3:104 NEW@10.1.2.4:104 -k StudyDate=20240101-
  dcmhaul migrate old ./backup --job backup --verify digest:10%
  dcmhaul migrate old new --verify digest +P 11112 -aet OURS
"""


@verb("migrate", epilog=_EPILOG)
@key_options
@click.option("--job", metavar="NAME", help="Its name in the ledger; else one is made.")
@click.option(
    "--associations",
    type=click.IntRange(1, 128),
    default=4,
    show_default=True,
    help="Transfers at once.",
)
@click.option(
    "--window",
    type=click.IntRange(1, 32),
    default=8,
    show_default=True,
    help="Unanswered C-STOREs on each, where the peer grants it.",
)
@click.option(
    "--via",
    type=click.Choice(["get"]),
    expose_value=False,
    help="How instances leave SRC: get, C-GET relayed into C-STORE.",
)
@click.option(
    "--verify",
    metavar="LEVEL",
    default="uids",
    show_default=True,
    help="What DST must hold at the end: none, count, uids, or digest[:P%]: the UIDs, and what P % "
    "[100] of the instances say, read back.",
)
@click.option(
    "--reencode",
    is_flag=True,
    help="Send what DST takes in another uncompressed transfer syntax alone in that one.",
)
@ledger_option
@own_scp_options
@click.option("--dry-run", is_flag=True, help="Plan only: nothing is moved, nothing is kept.")
@network_options(called=False, send=True)
@metrics_option
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
def command(
    session: Session,
    network: NetworkOptions,
    source: str,
    destination: str,
    keys: tuple[str, ...],
    job: str | None,
    associations: int,
    window: int,
    verify: str,
    reencode: bool,
    ledger: str | None,
    port: str | None,
    bind: str | None,
    dry_run: bool,
    metrics: str | None,
) -> None:
    """Move studies from SRC to DST over parallel associations, and verify that they arrived."""
    import trio

    from dcmhaul.cli.models import quiet_pydicom
    from dcmhaul.cli.network import socket_options, timeouts
    from dcmhaul.cli.ownscp import read_back_options
    from dcmhaul.migrate.plan import MigrateOptions, parse_verification

    session.summary = {"instances": 0, "failed": 0, "skipped": 0, "bytes": 0}
    level, percent = parse_verification(verify)
    quiet_pydicom()
    network = session.network(network)
    sides = [side_of(session, network, text) for text in (source, destination)]
    for side in sides:
        node = session.configuration.nodes.get(side.name or "") if isinstance(side, Peer) else None
        if node is not None and node.associations_max is not None:
            associations = min(associations, node.associations_max)
    options = MigrateOptions(
        source=sides[0],
        destination=sides[1],
        ledger_url=ledger_url(session, ledger),
        filter=study_filter(keys),
        job=job,
        associations=associations,
        window=window,
        verify=level,
        verify_percent=percent,
        reencode=reencode,
        dry_run=dry_run,
        calling_ae_title=network.calling_ae_title or DEFAULT_AE_TITLE,
        pdu_length_max=network.pdu_length_announced,
        pdu_length_send_max=network.pdu_length_send_max or 0,
        timeouts=timeouts(network),
        socket_options=socket_options(network),
        receive=read_back_options(
            session, network, port, bind, "" if level == "digest" else "--verify digest"
        ),
    )
    trio.run(partial(_run, session, options, metrics))


def side_of(session: Session, network: NetworkOptions, text: str) -> Peer | Path:
    """SRC or DST. An address holds no slash, a folder always one; so neither is taken for the other.

    TLS flags are for both peers; what is one peer's alone stands in its node.
    """
    if "/" in text and not re.search(r"@[^/@]+:[0-9]+$", text):
        return Path(text)
    peer = parse_peer(text, session.configuration)
    return replace(peer, tls=peer_tls(network.tls, peer.tls))


def study_filter(keys: tuple[str, ...]) -> Any:
    """The keys as a dataset, every value as typed."""
    from dcmhaul.cli.keys import build_identifier, encode_identifier
    from dcmhaul.services.identifiers import decode_identifier
    from dcmhaul.uids import EXPLICIT_VR_LITTLE_ENDIAN

    encoded = encode_identifier(build_identifier(keys), EXPLICIT_VR_LITTLE_ENDIAN)
    return decode_identifier(encoded, EXPLICIT_VR_LITTLE_ENDIAN)


async def _run(session: Session, options: MigrateOptions, metrics: str | None) -> None:
    from dcmhaul.cli.network import counting
    from dcmhaul.engine.scheduler import StopRequest
    from dcmhaul.migrate.run import migrate

    stop = StopRequest()
    with counting(session, metrics, None) as observer:
        summary = await show_migration(
            session,
            stop,
            lambda progress: migrate(options, progress=progress, observer=observer, stop=stop),
        )
    finish_migration(session, summary)


async def show_migration(
    session: Session,
    stop: StopRequest,
    run: Callable[[Callable[[MigrationProgress], None]], Awaitable[MigrationSummary]],
) -> MigrationSummary:
    """Runs `run(progress)` with its progress shown; Ctrl-C stops it gently, a second one at once."""
    import trio

    from dcmhaul.cli.stopping import stopping

    seen: list[MigrationProgress] = []

    def progress(now: MigrationProgress) -> None:
        seen[:] = [now]
        if now.notice:
            session.console.warn(now.notice)

    def look() -> Progress | None:
        if not seen:
            return None
        now = seen[0]
        return Progress(
            done=now.instances + now.already + now.failed,
            total=now.instances_expected or None,
            byte_count=now.bytes,
            failed=now.failed,
            note=f"{now.studies_done}/{now.studies} studies",
        )

    async with stopping(session, stop), trio.open_nursery() as nursery:
        nursery.start_soon(show_progress, session, look)
        summary = await run(progress)
        nursery.cancel_scope.cancel()
    return summary


def finish_migration(session: Session, summary: MigrationSummary) -> None:
    """The summary, the failures, the exit code."""
    fields = summary.as_dict()
    del fields["failures"], fields["differences"], fields["exit_code"]
    if not fields["error"]:
        del fields["error"]
    fields["seconds"] = round(summary.seconds, 6)
    fields["wall_seconds"] = round(process_seconds(), 3)
    session.summary = fields
    session.summary_text = partial(_text, summary)
    session.code(summary.exit_code)
    _say_failures(session, summary)
    for failure in summary.failures:
        session.answer.record(
            {
                "type": "failed",
                "study_instance_uid": failure.study_instance_uid,
                "sop_instance_uid": failure.sop_instance_uid,
                "path": failure.locator,
                "status": None if failure.status is None else f"{failure.status:04X}",
                "retryable": failure.retryable,
                "error": failure.reason,
            }
        )
    for found in summary.differences:
        say = session.console.info if found.result == "coerced" else session.console.error
        say(f"{found.result}: {found}")
        session.answer.record({"type": "difference", **asdict(found)})
    if summary.error:
        session.console.error(f"dcmhaul {session.name}: {summary.error}")


def _say_failures(session: Session, summary: MigrationSummary) -> None:
    """A line a failure; where many failed for one reason, a line for all of them."""
    counts = Counter(failure.reason for failure in summary.failures)
    least = "at least " if summary.failed > len(summary.failures) else ""
    for failure in summary.failures:
        count = counts.get(failure.reason, 0)
        if count > ALIKE_MAX:
            del counts[failure.reason]
            session.console.error(
                f"failed: {least}{count} instances: {failure.reason} "
                f"(dcmhaul report {summary.job} -f csv lists them)"
            )
        elif count:
            session.console.error(f"failed: {failure}")


def _text(summary: MigrationSummary) -> str:
    lines = [
        f"job {summary.job}: {summary.studies_done} of {summary.studies} studies done",
        f"  {summary.instances} instances moved, {format_bytes(summary.bytes)} in "
        f"{format_seconds(summary.seconds)} ({summary.mib_per_s:.1f} MiB/s, "
        f"{summary.instances_per_s:.1f} instances/s)",
    ]
    counts = [
        (summary.already, "already there"),
        (summary.failed, "failed"),
        (summary.skipped, "skipped"),
        (summary.pending, "not moved yet"),
        (summary.differing, "studies that differ"),
        (summary.unverified, "studies that could not be verified"),
    ]
    rest = ", ".join(f"{count} {word}" for count, word in counts if count)
    if rest:
        lines.append(f"  {rest}")
    if summary.verify != "none" and not summary.dry_run:
        whole = summary.studies_done == summary.studies > 0 and not summary.unverified
        word = "verified" if whole and not summary.differing else "verification"
        lines.append(f"  {word}: {summary.verify}{_read_back(summary)}")
    return "\n".join(lines)


def _read_back(summary: MigrationSummary) -> str:
    """What came of the instances that were read back, such as ` (8 same bytes, 2 coerced)`."""
    counts = [
        (summary.same_bytes, "same bytes"),
        (summary.same_content, "same content"),
        (summary.coerced, "coerced"),
        (summary.altered, "differ"),
        (summary.not_read, "not read"),
    ]
    text = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f" ({text})" if text else ""
