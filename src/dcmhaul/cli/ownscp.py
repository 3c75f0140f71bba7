"""The Storage SCP that `move +P`, `migrate +P` and `check +P` open while they run."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from dcmhaul.cli.network import say_agreement, say_tls, socket_options
from dcmhaul.cli.server import listening_port, server_timeouts
from dcmhaul.cli.tls import server_tls
from dcmhaul.config import DEFAULT_AE_TITLE
from dcmhaul.engine.arrivals import SETTLE_SECONDS
from dcmhaul.engine.destination import MoveDestination, ReceiveOptions
from dcmhaul.errors import ConfigurationError
from dcmhaul.net import AcceptorLimits, SocketOptions
from dcmhaul.objects.paths import SpaceWatch
from dcmhaul.services.move import OWN_SCP_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dcmhaul.cli.network import CountingObserver
    from dcmhaul.cli.retrieving import Retrieval
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.engine.arrivals import Arrivals, Delivery
    from dcmhaul.net import Association
    from dcmhaul.services.retrieve import RetrieveResponse

__all__ = ["OwnScp", "read_back_options", "receive_options"]


def receive_options(
    session: Session, network: NetworkOptions, port: str, bind: str | None, ae_title: str
) -> ReceiveOptions:
    """Where our SCP listens, as typed. ae_title: what is said, for any is answered."""

    def listening(host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        session.console.always(f"listening on {shown}:{port} as {ae_title}")

    return ReceiveOptions(
        port=listening_port(port),
        host=(bind or "0.0.0.0").strip("[]"),
        extra_classes=session.configuration.extra_storage_classes,
        pdu_length_max=network.pdu_length_announced,
        timeouts=server_timeouts(network),
        # A peer may pause for as long as the C-MOVE itself may.
        idle_seconds=network.timeouts.get("dimse", OWN_SCP_SECONDS),
        socket_options=_socket_options(session, network),
        listening=listening,
    )


def read_back_options(
    session: Session, network: NetworkOptions, port: str | None, bind: str | None, needed: str
) -> ReceiveOptions | None:
    """The same for what is read back; None where no port was typed.

    needed: the option without which nothing is, "" where it was typed.
    """
    if not port:
        if bind:
            raise ConfigurationError("--bind is about what arrives here: give +P PORT too")
        return None
    if needed:
        raise ConfigurationError(f"+P is for contents that are read back: give {needed} too")
    title = network.calling_ae_title or DEFAULT_AE_TITLE
    return receive_options(session, network, port, bind, title)


def _socket_options(session: Session, network: NetworkOptions) -> SocketOptions:
    """TLS as `receive` has it, or with the certificate that was typed for the C-MOVE."""
    flags = network.tls
    configured = session.configuration.receive_tls
    options = socket_options(network)
    if configured is None and flags.key_pair is None and not flags.anonymous:
        return options
    return replace(options, tls=server_tls(flags, configured, session.console.warn))


class OwnScp:
    """Our SCP under `move`: says under `-v` what happens there, and at the end what was odd."""

    def __init__(
        self,
        retrieval: Retrieval,
        arrivals: Arrivals,
        options: ReceiveOptions,
        *,
        folder: str | None,
    ) -> None:
        """folder: None keeps nothing."""
        self.arrivals = arrivals
        self._retrieval = retrieval
        self._session = retrieval.session
        self._network = retrieval.settings.network
        self._folder = folder
        if folder is not None:
            space = SpaceWatch(folder, self._session.console.warn)
            limits = AcceptorLimits(congested=lambda _rq: space.is_low())
            options = replace(options, limits=limits)
        self._destination = MoveDestination(
            arrivals, options, opened=self._say_opened, ended=self._say_ended
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._destination.port

    @asynccontextmanager
    async def listening(self, observer: CountingObserver) -> AsyncIterator[None]:
        """Serves during the block; ConfigurationError where the port cannot be had.

        After it, associations that are still open are aborted.
        """
        async with self._destination.serving(observer):
            yield

    def _say_opened(self, association: Association) -> None:
        agreement = association.agreement
        self._session.console.info(
            f"association from {agreement.calling_ae_title} at {association.peer} "
            f"to {agreement.called_ae_title}"
        )
        say_tls(self._session, association)
        say_agreement(self._session, self._network, agreement)

    def _say_ended(self, association: Association) -> None:
        self._session.console.info(f"association from {association.peer} ended")

    async def settled(self, delivery: Delivery, response: RetrieveResponse) -> None:
        """Returns when what the C-MOVE was to bring is here, or is not waited for any more."""
        seconds = min(self._network.timeouts.get("dimse") or SETTLE_SECONDS, SETTLE_SECONDS)
        with trio.CancelScope() as waiting:
            self._retrieval.stop.on_request(waiting.cancel)
            await delivery.settled(response, seconds)

    async def close(self) -> None:
        """Lets what is on its way arrive, and ends the associations that their senders leave open."""
        left = await self._destination.close()
        if left:
            self._session.console.info(f"{left} associations were left open by their senders")
        unasked = self.arrivals.unasked
        if unasked:
            kept = "nothing is kept" if self._folder is None else "they are kept too"
            self._session.console.warn(
                f"{unasked} instances arrived that no request of this run was for: {kept}"
            )
