"""What `receive` and `archive` share: they listen, say so, count, and end at a signal with exit code 0."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import trio

from dcmhaul import crash
from dcmhaul.cli.console import Level, logged
from dcmhaul.cli.network import (
    CountingObserver,
    counting,
    say_agreement,
    say_tls,
    socket_options,
    timeouts,
)
from dcmhaul.cli.output import Progress, TransferCount, show_progress
from dcmhaul.cli.tls import server_tls
from dcmhaul.config import DEFAULT_AE_TITLE, ae_title, port_number
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import ConfigurationError
from dcmhaul.net import AcceptorLimits, NullObserver, Timeouts, serve_associations
from dcmhaul.objects.paths import SpaceWatch
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.storage import proposes_storage
from dcmhaul.services.verification import VerificationScp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Node, TlsSettings
    from dcmhaul.engine.counters import NodeObserver
    from dcmhaul.net import Association, AssociationStats, Observer
    from dcmhaul.observe.collector import CounterSource
    from dcmhaul.protocol.events import Role
    from dcmhaul.services.provider import Service

__all__ = ["Server", "allowed_callers", "listening_port", "listening_scp"]


# Of so many associations one is kept for callers that the configuration names.
RESERVED_PART = 8

_PROMISES = {
    "each": "0000 is answered after the object's own syncs",
    "batch": "0000 is answered after syncs that several objects share",
    "none": "0000 says that the bytes arrived; a crash of the system may lose them",
}


@asynccontextmanager
async def listening_scp(
    session: Session,
    network: NetworkOptions,
    services: Iterable[Service],
    port: str,
    bind: str | None,
) -> AsyncIterator[None]:
    """Serves these, and C-ECHO, to any called title during the block; says where. Then all is aborted."""
    offered: list[Service] = [*services, VerificationScp()]
    options = socket_options(network)
    configured = session.configuration.receive_tls
    if configured is not None or network.tls.key_pair is not None:
        context = server_tls(network.tls, configured, session.console.warn)
        options = replace(options, tls=context)
    async with flat_nursery() as nursery:
        addresses = await nursery.start(
            partial(
                serve_associations,
                lambda association: serve_services(association, offered),
                acceptor_policy(offered, ae_title=None),
                host=(bind or "0.0.0.0").strip("[]"),
                port=listening_port(port),
                timeouts=server_timeouts(network),
                options=options,
            )
        )
        title = network.calling_ae_title or DEFAULT_AE_TITLE
        for host, number in addresses:
            shown = f"[{host}]" if ":" in host else host
            session.console.always(f"listening on {shown}:{number} as {title}")
        yield
        nursery.cancel_scope.cancel()


def listening_port(text: str) -> int:
    """A port to listen on; 0 takes a free one."""
    return 0 if text == "0" else port_number(text)


def server_timeouts(network: NetworkOptions) -> Timeouts:
    """For an acceptor `-ta` limits the wait for the A-ASSOCIATE-RQ, `-td` that for the next message."""
    found = timeouts(network)
    if found.association is not None and "association" in network.timeouts:
        found = replace(found, artim=found.association)
    return replace(found, idle=found.dimse) if "dimse" in network.timeouts else found


def allowed_callers(allow: Sequence[str]) -> tuple[str, ...]:
    """`--allow AET[@HOST]` as the acceptor compares it: a host's name stands for its addresses."""
    callers: list[str] = []
    for text in allow:
        title, at, host = text.rpartition("@")
        if not at:
            callers.append(ae_title(text))
            continue
        title = ae_title(title)
        try:
            found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigurationError(f"--allow {text}: {host} cannot be resolved") from error
        callers += dict.fromkeys(f"{title}@{address[4][0]}" for address in found)
    return tuple(callers)


def known_callers(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Configured nodes as the acceptor compares them; one named by its address must call from there."""
    callers = []
    for node in nodes:
        try:
            callers.append(f"{node.ae_title}@{ip_address(node.host)}")
        except ValueError:
            callers.append(node.ae_title)
    return tuple(callers)


class Tally(CountingObserver):
    """Also counts the associations that were accepted, and what was asked on them."""

    def __init__(self, session: Session, count: TransferCount) -> None:
        super().__init__(session, count, NullObserver())
        self.associations = 0
        self.operations: Counter[str] = Counter()

    def within(self, inner: Observer) -> Tally:
        """The same, which tells everything to `inner` as well."""
        self._inner = inner
        return self

    def association_opened(
        self, role: Role, peer: str, live: Callable[[], AssociationStats]
    ) -> None:
        self.associations += 1
        super().association_opened(role, peer, live)

    def operation(
        self, operation: str, direction: str, status: int, seconds: float, dataset_bytes: int
    ) -> None:
        if direction == "in":
            self.operations[operation] += 1
        super().operation(operation, direction, status, seconds, dataset_bytes)

    def fields(self) -> dict[str, Any]:
        """For the summary: `associations`, and the number of `operations` by their name."""
        return {"associations": self.associations, "operations": dict(self.operations)}

    def text(self) -> str:
        """Such as `served 3 associations: C-ECHO 1, C-FIND 2`."""
        asked = ", ".join(f"{name} {count}" for name, count in sorted(self.operations.items()))
        return f"served {self.associations} associations: {asked or 'nothing asked'}"


class Server:
    """Serves until SIGINT or SIGTERM."""

    def __init__(
        self,
        session: Session,
        network: NetworkOptions,
        *,
        port: int,
        bind: str,
        allow: Sequence[str],
        associations_max: int,
        metrics: str | None,
        any_called_title: bool,
        durability: str,
        accept_any: bool = False,
        aliases: Sequence[str] = (),
        tls: TlsSettings | None = None,
    ) -> None:
        """tls: what the configuration says of it, for the flags to change. aliases: further called titles."""
        self.session = session
        self.network = network
        context = server_tls(network.tls, tls, session.console.warn)
        self._options = replace(socket_options(network), tls=context)
        self.ae_title = network.calling_ae_title or DEFAULT_AE_TITLE
        self._port = port
        self._bind = bind.strip("[]")
        callers = known_callers(session.configuration.nodes.values())
        self._limits = AcceptorLimits(
            associations=associations_max,
            associations_per_host=associations_max,
            reserved=associations_max // RESERVED_PART if callers else 0,
            known_callers=callers,
        )
        self._metrics = metrics
        self._durability = durability
        self._policy_fields = {
            "ae_title": None if any_called_title else self.ae_title,
            "aliases": tuple(map(ae_title, aliases)),
            "allowed_callers": allowed_callers(allow),
            "pdu_length_max": network.pdu_length_announced,
            "accept_any_storage": accept_any,
        }
        self.count = TransferCount()
        self.tally = Tally(session, self.count)
        self._observer: NodeObserver | None = None
        session.summary_fields = self.count.fields

    def observer_for(self, node: str) -> Observer:
        """Counts the associations that we open with a node, while the server serves."""
        inner = NullObserver() if self._observer is None else self._observer.of(node)
        return CountingObserver(self.session, self.count, inner)

    async def serve(
        self,
        services: Sequence[Service],
        *,
        folder: str | None = None,
        counted: CounterSource | None = None,
    ) -> None:
        """Listens, prints where, and returns at a signal; open associations are then aborted.

        folder: where it stores; when there is little room, senders are rejected. counted: what else
        `--metrics` tells.
        """
        limits = self._limits
        if folder is not None:
            space = SpaceWatch(folder, self.session.console.warn)
            extra = self.session.configuration.extra_storage_classes
            limits = replace(
                limits, congested=lambda rq: proposes_storage(rq, extra) and space.is_low()
            )
        policy = acceptor_policy(services, **self._policy_fields)
        with (
            counting(self.session, self._metrics, None, self._durability, counted) as observer,
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
            logged(self.session.console),
        ):
            self._observer = observer
            async with trio.open_nursery() as nursery:
                addresses = await nursery.start(
                    partial(
                        serve_associations,
                        partial(self._handle, services),
                        policy,
                        host=self._bind,
                        port=self._port,
                        limits=limits,
                        timeouts=server_timeouts(self.network),
                        options=self._options,
                        observer=self.tally.within(observer or NullObserver()),
                    )
                )
                self.session.summary_text = partial(self.count.text, "received")
                for host, port in addresses:
                    shown = f"[{host}]" if ":" in host else host
                    self.session.console.always(f"listening on {shown}:{port} as {self.ae_title}")
                self._say_durability()
                nursery.start_soon(show_progress, self.session, self._look)
                async for _ in signals:
                    if crash.armed:
                        crash.passed("shutdown.draining")
                    nursery.cancel_scope.cancel()
                    break

    def _say_durability(self) -> None:
        """Under `-v`; without durability unasked, where objects are kept at all."""
        say = self.session.console.info
        if self._durability == "none" and self.session.name == "archive":
            say = self.session.console.warn
        say(f"durability {self._durability}: {_PROMISES[self._durability]}")

    async def _handle(self, services: Sequence[Service], association: Association) -> None:
        console = self.session.console
        agreement = association.agreement
        if console.level >= Level.INFO:
            console.info(
                f"association from {agreement.calling_ae_title} at {association.peer} "
                f"to {agreement.called_ae_title}"
            )
        say_tls(self.session, association)
        say_agreement(self.session, self.network, agreement)
        await serve_services(association, services)
        console.info(f"association from {association.peer} ended")

    def _look(self) -> Progress | None:
        count = self.count
        if not count.instances and not count.failed:
            return None
        return Progress(
            done=count.instances, total=None, byte_count=count.byte_count, failed=count.failed
        )
