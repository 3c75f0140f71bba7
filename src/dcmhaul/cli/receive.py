"""`dcmhaul receive`: a Storage SCP that fills a folder, or keeps nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.dcmtk import accepted_syntaxes
from dcmhaul.cli.options import (
    chosen_durability,
    durable_option,
    metrics_option,
    network_options,
    prefer_option,
    server_options,
    verb,
)
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from dcmhaul.cli.server import Server
    from dcmhaul.cli.session import NetworkOptions, Session

__all__ = ["command"]

_EPILOG = """\b
Any called title is answered, and every transfer syntax is accepted; +x= +xe
+xb +xs +xy +xv ... say which one is preferred where a context offers several,
+xi accepts implicit VR little endian alone. SIGINT and SIGTERM end it with
exit code 0. Port 0 takes a free port and prints it.

\b
Examples:
  dcmhaul receive 11112 -od ./incoming
  dcmhaul receive 11112 --discard --bind 127.0.0.1
"""


@verb("receive", tool="storescp", epilog=_EPILOG)
@click.option(
    "-od", "--output-directory", "folder", default=".", metavar="DIR", help="Where [default: .]."
)
@click.option("--discard", "--ignore", "discard", is_flag=True, help="Receive, keep nothing.")
@durable_option
@click.option(
    "-pm",
    "--promiscuous",
    "--accept-any",
    "accept_any",
    is_flag=True,
    help="Accept unknown SOP classes too.",
)
@click.option("+xa", "--accept-all", is_flag=True, expose_value=False, help="Always so.")
@click.option("-B", "--normal", is_flag=True, expose_value=False, help="The same as +B.")
@click.option(
    "+B", "--bit-preserving", is_flag=True, expose_value=False, help="As received; always so."
)
@server_options
@network_options(
    called=False, connects=False, awaited="Release an association that is idle [default: 60"
)
@metrics_option
@prefer_option
@click.argument("port", required=False, metavar="PORT")
def command(
    session: Session,
    network: NetworkOptions,
    port: str | None,
    folder: str,
    discard: bool,
    durable: str | None,
    accept_any: bool,
    prefer: tuple[str, ...],
    bind: str,
    allow: tuple[str, ...],
    associations_max: int,
    metrics: str | None,
) -> None:
    """Storage SCP on PORT: one Part-10 file an instance, named by its SOP Instance UID."""
    configuration = session.configuration
    if port is None and configuration.receive_port is None:
        raise ConfigurationError("receive needs a PORT to listen on")
    if network.calling_ae_title is None and configuration.receive_ae_title is not None:
        network = replace(network, calling_ae_title=configuration.receive_ae_title)
    mode = chosen_durability(durable, discard=discard)

    import trio

    from dcmhaul.cli.server import Server, listening_port

    server = Server(
        session,
        session.network(network),
        port=listening_port(port or str(configuration.receive_port)),
        bind=bind,
        allow=allow,
        associations_max=associations_max,
        metrics=metrics,
        any_called_title=True,
        durability=mode,
        accept_any=accept_any,
        tls=configuration.receive_tls,
    )
    serve = partial(
        _serve,
        server,
        folder=None if discard else folder,
        durable=mode,
        syntaxes=accepted_syntaxes(prefer),
        extra_classes=configuration.extra_storage_classes,
    )
    trio.run(serve)


async def _serve(
    server: Server,
    *,
    folder: str | None,
    durable: str,
    syntaxes: tuple[str, ...],
    extra_classes: tuple[str, ...],
) -> None:
    from dcmhaul.services.storage import StorageScp
    from dcmhaul.services.verification import VerificationScp

    storage = partial(StorageScp, extra_classes=extra_classes, transfer_syntaxes=syntaxes)
    if folder is None:
        await server.serve([VerificationScp(), storage(None)])
        return
    from dcmhaul.objects.paths import Durability
    from dcmhaul.objects.sinks import FolderSinks

    try:
        sinks = FolderSinks(folder, durable=Durability(durable), report=server.session.console.warn)
    except OSError as error:
        raise ConfigurationError(f"-od {folder}: {error.strerror}") from error
    with sinks:
        await server.serve([VerificationScp(), storage(sinks)], folder=folder)
