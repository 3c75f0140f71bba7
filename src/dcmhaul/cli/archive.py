"""`dcmhaul archive`: the embedded archive as a server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from dcmhaul.cli.console import printable
from dcmhaul.cli.options import metrics_option, network_options, server_options, verb
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dcmhaul.archive import Archive, MoveDestination
    from dcmhaul.cli.server import Server
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer

__all__ = ["command"]

_EPILOG = """\b
Objects lie below DIR under names of the archive's own; the
index is DIR/index.db unless --database names another.

\b
The same bytes under a known SOP Instance UID are answered 0000 and not
written again. Other bytes, by --duplicates:
  keep-first  the first stays, the others are set aside; answered C001
  keep-both   set aside too, but answered 0000; C-GET gives out both
  replace     they take the place of the first; answered 0000
Each such object is told in a line.

\b
It answers the title of --aet and those of --alias, all with the same contents,
and no other. What it sends and answers names --aet.

\b
A C-MOVE goes to the titles of the --peer options and of the nodes of
dcmhaul.toml, and to no other: A801. An instance that the destination has no room
for, or under which it is lost, is sent again; a destination that cannot be
reached is tried for some ten seconds, then A702. One association a move, four
to a destination; a node's max_associations is both.

\b
--import indexes files without copying them: they are read, and never changed,
moved or removed; --duplicates holds for them, too. A file that has gone since is
told at the start, and then in the answer to whoever retrieves it.

\b
--worklist answers modality worklist queries from files, which are read anew when
they change: DIR/AET/*.wl as for DCMTK's wlmscpfs, else DIR/*.wl. A file that
holds no item is told in a line, and the others are served.

\b
SIGINT and SIGTERM end it with exit code 0. Port 0 takes a free port and
prints it.

\b
Example:
  dcmhaul archive --dir ./store --port 11112 --aet ARCHIVE
  dcmhaul archive --dir ./store --port 11112 --peer VIEWER@10.1.2.3:104
"""


@verb("archive", epilog=_EPILOG)
@click.option("--dir", "folder", required=True, metavar="DIR", help="Where it keeps everything.")
@click.option("--port", required=True, metavar="PORT", help="Where it listens.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="PEER",
    help="A C-MOVE destination: AET@HOST:PORT, or a node; repeatable.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="AET",
    help="A further called title that it answers; repeatable.",
)
@click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="DIR",
    help="Index the files below DIR where they lie, first of all; repeatable.",
)
@click.option(
    "--worklist",
    metavar="DIR",
    help="Worklist items: the *.wl of DIR, or of its folder named like the called title.",
)
@click.option("--database", metavar="URL", help="SQLAlchemy URL of the index.")
@click.option(
    "--durable",
    type=click.Choice(["each", "batch", "none"]),
    default="batch",
    show_default=True,
    help="0000 after each object's own sync, after one shared by several, or without.",
)
@click.option(
    "--duplicates",
    type=click.Choice(["keep-first", "keep-both", "replace"]),
    default="keep-first",
    show_default=True,
    help="Other bytes under a SOP Instance UID that is held.",
)
@click.option("--strict", is_flag=True, help="Queries must name level and unique keys, else A900.")
@click.option("-pm", "--accept-any", "accept_any", is_flag=True, help="Take unknown SOP classes.")
@server_options
@network_options(
    called=False, connects=False, awaited="Release an association that is idle [default: 60"
)
@metrics_option
def command(
    session: Session,
    network: NetworkOptions,
    folder: str,
    port: str,
    peers: tuple[str, ...],
    aliases: tuple[str, ...],
    imports: tuple[str, ...],
    worklist: str | None,
    database: str | None,
    durable: str,
    duplicates: str,
    strict: bool,
    accept_any: bool,
    bind: str,
    allow: tuple[str, ...],
    associations_max: int,
    metrics: str | None,
) -> None:
    """The embedded archive: takes C-ECHO, C-STORE, C-FIND, C-GET and C-MOVE."""
    import trio

    from dcmhaul.cli.server import Server, listening_port

    if not folder:
        raise ConfigurationError("--dir takes the folder that keeps everything, not ''")
    server = Server(
        session,
        session.network(network),
        port=listening_port(port),
        bind=bind,
        allow=allow,
        associations_max=associations_max,
        metrics=metrics,
        any_called_title=False,
        durability=durable,
        accept_any=accept_any,
        aliases=aliases,
    )
    trio.run(
        partial(
            _serve,
            server,
            folder=folder,
            destinations=_destinations(session, network, peers),
            imports=imports,
            worklist=worklist,
            database=database,
            durable=durable,
            duplicates=duplicates,
            strict=strict,
        )
    )


def _destinations(
    session: Session, network: NetworkOptions, named: Iterable[str]
) -> list[MoveDestination]:
    """Where a C-MOVE may send to: `--peer`, and nodes whose title none of those has.

    A C-MOVE names a title and no more, so a title that several nodes share is none unless one is named.
    """
    from dcmhaul.config import parse_peer

    configuration = session.configuration
    chosen: dict[str, Peer] = {}
    for text in named:
        peer = parse_peer(text, configuration)
        assert peer.ae_title is not None  # `--peer` has no form without one
        known = chosen.setdefault(peer.ae_title, peer)
        if known.address != peer.address:
            raise ConfigurationError(
                f"--peer: {known} and {peer} have one AE title, and a C-MOVE names nothing else"
            )
    shared: dict[str, list[Peer]] = {}
    for node in configuration.nodes.values():
        shared.setdefault(node.ae_title, []).append(node.peer)
    for title, peers in shared.items():
        if title in chosen:
            continue
        if len({peer.address for peer in peers}) == 1:
            chosen[title] = peers[0]
        else:
            names = ", ".join(str(peer.name) for peer in peers)
            session.console.warn(
                f"{title} is no C-MOVE destination: the nodes {names} share that title; "
                "name one by --peer"
            )
    for peer in chosen.values():
        session.console.info(f"C-MOVE destination {peer}")
    return [_destination(session, network, peer) for peer in chosen.values()]


def _destination(session: Session, network: NetworkOptions, peer: Peer) -> MoveDestination:
    from dcmhaul.archive import MoveDestination
    from dcmhaul.cli.network import socket_options

    settings = session.network(network, peer)
    node = session.configuration.nodes.get(peer.name or "")
    fields: dict[str, Any] = {}
    if node is not None:
        fields["node"] = node.name
        if node.associations_max is not None:
            fields["associations_max"] = fields["associations_a_move"] = node.associations_max
        if node.window is not None:
            fields["window"] = node.window[0]
    return MoveDestination(
        ae_title=peer.ae_title or "",
        host=peer.host,
        port=peer.port,
        pdu_length_max=settings.pdu_length_announced,
        pdu_length_send_max=settings.pdu_length_send_max or 0,
        options=socket_options(settings, peer),
        **fields,
    )


async def _import(session: Session, archive: Archive, folder: str) -> None:
    """Indexes a folder, and says what became of its files."""
    console = session.console
    summary = await archive.link_folder(folder)
    for path, reason in summary.failed:
        console.warn(f"failed: {printable(path)}: {reason}")
    for path, reason in summary.skipped:
        console.info(f"skipped: {printable(path)}: {reason}")
    for path in summary.conflicts:
        console.warn(f"other bytes under a SOP Instance UID that is held: {printable(path)}")
    console.always(
        f"import {printable(folder)}: {summary.stored} indexed, {summary.duplicates} there already, "
        f"{len(summary.conflicts)} conflicts, {len(summary.skipped)} skipped, "
        f"{len(summary.failed)} failed"
    )


async def _serve(
    server: Server,
    *,
    folder: str,
    destinations: list[MoveDestination],
    imports: tuple[str, ...],
    worklist: str | None,
    database: str | None,
    durable: str,
    duplicates: str,
    strict: bool,
) -> None:
    from dcmhaul.archive import Duplicates, OutgoingMoves, Worklist, open_archive
    from dcmhaul.net import Timeouts
    from dcmhaul.objects.paths import Durability

    session = server.session
    moves = OutgoingMoves(
        destinations,
        ae_title=server.ae_title,
        timeouts=Timeouts(**session.configuration.timeouts),  # type: ignore[arg-type]
        observer=server.observer_for,
        report=session.console.warn,
    )
    items = Worklist(worklist, report=session.console.warn)
    async with open_archive(
        folder,
        ae_title=server.ae_title,
        database_url=database,
        durability=Durability(durable),
        duplicates=Duplicates(duplicates),
        strict=strict,
        report=session.console.warn,
        moves=moves,
        worklist=items,
    ) as archive:
        for line in archive.recovery.lines():
            session.console.warn(f"recovery: {line}")
        for indexed in imports:
            await _import(session, archive, indexed)
        if worklist is not None:
            found = await items.count(server.ae_title)
            session.console.info(f"worklist {printable(worklist)}: {found} items")
        holds = archive.statistics().holds
        session.console.info(f"holds {holds.studies} studies, {holds.instances} instances")
        await server.serve(
            archive.services(extra_classes=session.configuration.extra_storage_classes),
            folder=folder,
            counted=archive,
        )
        session.console.always(server.tally.text())
        came = archive.statistics()
        session.summary |= server.tally.fields() | {
            "duplicates": came.duplicates,
            "conflicts": came.conflicts,
            "replaced": came.replaced,
            "moves": came.moves.moves,
            "sub_operations": came.moves.sent,
            "sub_operations_failed": came.moves.failed,
        }
