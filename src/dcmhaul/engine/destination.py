"""The Storage SCP that is ours while C-MOVEs of ours name it as their Move Destination.

It serves whoever calls and whatever is stored; what arrives is for the sinks of its Arrivals.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from dcmhaul.engine.arrivals import StorageAssociations
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.net import AcceptorLimits, SocketOptions, Timeouts, serve_associations
from dcmhaul.services.move import OWN_SCP_SECONDS
from dcmhaul.services.provider import acceptor_policy
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dcmhaul.engine.arrivals import Arrivals
    from dcmhaul.net import Association, Observer
    from dcmhaul.services.provider import Service

__all__ = ["MoveDestination", "ReceiveOptions"]

LAST_DATASETS_SECONDS = 30.0
"""After a stop, what is on its way may still arrive within this time."""


def _say_nothing(*_: object) -> None:
    """Where nobody wants to hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveOptions:
    """Where peers reach our SCP, and how it listens.

    port: 0 takes a free one. listening: hears the address and the port once it does. idle_seconds: how
    long a sender may be silent between messages, as long as the C-MOVE itself may.
    """

    port: int
    host: str = "0.0.0.0"
    transfer_syntaxes: tuple[str, ...] = ()
    extra_classes: tuple[str, ...] = ()
    pdu_length_max: int = 131072
    timeouts: Timeouts = field(default_factory=Timeouts)
    idle_seconds: float | None = OWN_SCP_SECONDS
    socket_options: SocketOptions = field(default_factory=SocketOptions)
    limits: AcceptorLimits = field(default_factory=AcceptorLimits)
    listening: Callable[[str, int], None] = _say_nothing


class MoveDestination:
    """Open before the first C-MOVE-RQ, closed after all is settled. Answers any called title."""

    def __init__(
        self,
        arrivals: Arrivals,
        options: ReceiveOptions,
        *,
        opened: Callable[[Association], None] = _say_nothing,
        ended: Callable[[Association], None] = _say_nothing,
    ) -> None:
        """opened, ended: hear of each association on which instances may arrive."""
        self.arrivals = arrivals
        self.port = options.port
        self._options = options
        self._opened = opened
        self._ended = ended
        storage = StorageScp(
            arrivals,
            extra_classes=options.extra_classes,
            transfer_syntaxes=options.transfer_syntaxes,
        )
        self._services: list[Service] = [VerificationScp(), storage]
        self._associations = StorageAssociations()

    @asynccontextmanager
    async def serving(self, observer: Observer) -> AsyncIterator[None]:
        """Serves during the block; ConfigurationError where the port cannot be had.

        After it, associations that are still open are aborted.
        """
        options = self._options
        # Whatever comes was asked for: no title and no class is refused.
        policy = acceptor_policy(
            self._services,
            ae_title=None,
            pdu_length_max=options.pdu_length_max,
            accept_any_storage=True,
        )
        async with flat_nursery() as nursery:
            addresses = await nursery.start(
                partial(
                    serve_associations,
                    self._handle,
                    policy,
                    host=options.host,
                    port=self.port,
                    limits=options.limits,
                    timeouts=replace(options.timeouts, idle=options.idle_seconds),
                    options=options.socket_options,
                    observer=observer,
                )
            )
            for host, self.port in addresses:
                options.listening(host, self.port)
            yield
            nursery.cancel_scope.cancel()

    async def _handle(self, association: Association) -> None:
        self._opened(association)
        await self._associations.serve(association, self._services)
        self._ended(association)

    async def close(self) -> int:
        """Lets what is on its way arrive; how many associations their senders left open, which it ends."""
        await self.arrivals.all_ended(LAST_DATASETS_SECONDS)
        return await self._associations.close()
