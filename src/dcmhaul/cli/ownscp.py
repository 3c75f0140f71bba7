"""The Storage SCP that `move +P` opens while it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from dcmhaul.cli.network import say_agreement, say_tls, socket_options
from dcmhaul.cli.server import server_timeouts
from dcmhaul.cli.tls import server_tls
from dcmhaul.engine.arrivals import SETTLE_SECONDS, StorageAssociations
from dcmhaul.net import AcceptorLimits, SocketOptions, Timeouts, serve_associations
from dcmhaul.objects.paths import SpaceWatch
from dcmhaul.services.move import OWN_SCP_SECONDS
from dcmhaul.services.provider import acceptor_policy
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dcmhaul.cli.network import CountingObserver
    from dcmhaul.cli.retrieving import Retrieval
    from dcmhaul.engine.arrivals import Arrivals, Delivery
    from dcmhaul.net import Association
    from dcmhaul.services.provider import Service
    from dcmhaul.services.retrieve import RetrieveResponse

__all__ = ["OwnScp"]

# After a stop, what is on its way may still arrive within this time.
LAST_DATASETS_SECONDS = 30.0


class OwnScp:
    """Open before the first C-MOVE-RQ, closed after all is settled. Answers any called title."""

    def __init__(
        self,
        retrieval: Retrieval,
        arrivals: Arrivals,
        *,
        ae_title: str,
        host: str,
        port: int,
        syntaxes: tuple[str, ...],
        folder: str | None,
    ) -> None:
        """ae_title: what is said. syntaxes: in order of preference. folder: None keeps nothing."""
        self.arrivals = arrivals
        self.port = port
        self._retrieval = retrieval
        self._session = retrieval.session
        self._network = retrieval.settings.network
        self._ae_title = ae_title
        self._host = host
        self._folder = folder
        extra = self._session.configuration.extra_storage_classes
        storage = StorageScp(arrivals, extra_classes=extra, transfer_syntaxes=syntaxes)
        self._services: list[Service] = [VerificationScp(), storage]
        self._associations = StorageAssociations()

    @asynccontextmanager
    async def listening(self, observer: CountingObserver) -> AsyncIterator[None]:
        """Serves during the block; ConfigurationError where the port cannot be had.

        After it, associations that are still open are aborted.
        """
        limits = AcceptorLimits()
        if self._folder is not None:
            space = SpaceWatch(self._folder, self._session.console.warn)
            limits = replace(limits, congested=lambda _rq: space.is_low())
        # Whatever comes was asked for: no title and no class is refused.
        policy = acceptor_policy(
            self._services,
            ae_title=None,
            pdu_length_max=self._network.pdu_length_announced,
            accept_any_storage=True,
        )
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(
                partial(
                    serve_associations,
                    self._handle,
                    policy,
                    host=self._host,
                    port=self.port,
                    limits=limits,
                    timeouts=self._timeouts(),
                    options=self._options(),
                    observer=observer,
                )
            )
            for host, self.port in addresses:
                shown = f"[{host}]" if ":" in host else host
                self._session.console.always(
                    f"listening on {shown}:{self.port} as {self._ae_title}"
                )
            yield
            nursery.cancel_scope.cancel()

    def _timeouts(self) -> Timeouts:
        # A peer may pause for as long as the C-MOVE itself may.
        seconds = self._network.timeouts.get("dimse", OWN_SCP_SECONDS)
        return replace(server_timeouts(self._network), idle=seconds)

    def _options(self) -> SocketOptions:
        """TLS as `receive` has it, or with the certificate that was typed for the C-MOVE."""
        flags = self._network.tls
        configured = self._session.configuration.receive_tls
        options = socket_options(self._network)
        if configured is None and flags.key_pair is None and not flags.anonymous:
            return options
        return replace(options, tls=server_tls(flags, configured, self._session.console.warn))

    async def _handle(self, association: Association) -> None:
        console = self._session.console
        agreement = association.agreement
        console.info(
            f"association from {agreement.calling_ae_title} at {association.peer} "
            f"to {agreement.called_ae_title}"
        )
        say_tls(self._session, association)
        say_agreement(self._session, self._network, agreement)
        await self._associations.serve(association, self._services)
        console.info(f"association from {association.peer} ended")

    async def settled(self, delivery: Delivery, response: RetrieveResponse) -> None:
        """Returns when what the C-MOVE was to bring is here, or is not waited for any more."""
        seconds = min(self._network.timeouts.get("dimse") or SETTLE_SECONDS, SETTLE_SECONDS)
        with trio.CancelScope() as waiting:
            self._retrieval.stop.on_request(waiting.cancel)
            await delivery.settled(response, seconds)

    async def close(self) -> None:
        """Lets what is on its way arrive, and ends the associations that their senders leave open."""
        await self.arrivals.all_ended(LAST_DATASETS_SECONDS)
        left = await self._associations.close()
        if left:
            self._session.console.info(f"{left} associations were left open by their senders")
        unasked = self.arrivals.unasked
        if unasked:
            kept = "nothing is kept" if self._folder is None else "they are kept too"
            self._session.console.warn(
                f"{unasked} instances arrived that no request of this run was for: {kept}"
            )
