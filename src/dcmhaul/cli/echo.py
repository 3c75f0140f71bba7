"""`dcmhaul echo`: is the peer there, and how fast does it answer."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.exits import Exit, for_status
from dcmhaul.cli.options import network_options, verb

if TYPE_CHECKING:
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer

__all__ = ["command"]

_EPILOG = """\b
Examples:
  dcmhaul echo PACS@10.1.2.3:104
  dcmhaul echo -aec PACS 10.1.2.3 104 --repeat 5
"""


@verb("echo", tool="echoscu", epilog=_EPILOG)
@network_options()
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many C-ECHOs, on one association.",
)
@click.option("--abort", is_flag=True, help="End with A-ABORT instead of A-RELEASE.")
@click.argument("peer", nargs=-1, metavar="PEER")
def command(
    session: Session, network: NetworkOptions, peer: tuple[str, ...], repeat: int, abort: bool
) -> None:
    """C-ECHO to PEER: AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml.

    Prints the status and the round trip of each.
    """
    import trio

    session.summary = {"echoes": 0, "failed": 0}
    found = session.only_peer(peer, network)
    trio.run(
        partial(_run, session, session.network(network, found), found, repeat=repeat, abort=abort)
    )


async def _run(
    session: Session, network: NetworkOptions, peer: Peer, *, repeat: int, abort: bool
) -> None:
    from dcmhaul import uids
    from dcmhaul.cli.network import open_peer
    from dcmhaul.cli.responses import response_text
    from dcmhaul.services.verification import request_echo
    from dcmhaul.wire.items import PresentationContextRq

    context = PresentationContextRq(
        context_id=1,
        abstract_syntax=uids.VERIFICATION,
        transfer_syntaxes=(uids.IMPLICIT_VR_LITTLE_ENDIAN,),
    )
    async with open_peer(session, network, peer, (context,)) as association:
        for _ in range(repeat):
            started = time.perf_counter()
            response = await request_echo(association)
            status = response.status
            milliseconds = (time.perf_counter() - started) * 1000
            session.begun = True
            code = for_status(status) or (Exit.PERMANENT if status else Exit.OK)
            session.code(code)
            session.summary["failed" if code else "echoes"] += 1
            text = response_text(
                status, "C-ECHO", response.offending_element or (), response.error_comment or ""
            )
            session.answer.line(f"{peer}: {text}, {milliseconds:.1f} ms")
            if code:
                session.console.error(f"dcmhaul {session.name}: {text}")
                session.errors.append(text)
            session.answer.record(
                {
                    "type": "echo",
                    "peer": str(peer),
                    "status": f"{status:04X}",
                    "milliseconds": round(milliseconds, 3),
                }
            )
        if abort:
            await association.abort()
