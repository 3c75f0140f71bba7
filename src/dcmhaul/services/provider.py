"""The SCP's loop: receives commands of one association and hands each to the service that knows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from dcmhaul.errors import PeerTimeout, RemoteProtocolError
from dcmhaul.protocol.dimse import CCancelRq, DimseMessage, Request, response_to
from dcmhaul.protocol.negotiation import AcceptorPolicy, SupportedContext

if TYPE_CHECKING:
    from dcmhaul.net import Association, Incoming

__all__ = ["Completion", "Service", "acceptor_policy", "serve_services"]

UNRECOGNIZED_OPERATION: Final = 0x0211  # PS3.7 §C.5.26

Completion = Callable[[], Awaitable[None]]
"""What is left to do for a request once its dataset was read: make it durable, answer it."""


class Service(Protocol):
    """One PS3.4 service in the SCP's role. It holds no state of an association."""

    def contexts(self) -> Mapping[str, SupportedContext]:
        """The abstract syntaxes that it accepts."""

    def handles(self) -> tuple[type[DimseMessage], ...]:
        """The requests that it answers."""

    async def handle(self, association: Association, incoming: Incoming) -> Completion | None:
        """Reads the dataset, if there is one, and queues the answer, or returns what does so."""


def acceptor_policy(services: Iterable[Service], **fields: Any) -> AcceptorPolicy:
    """The policy that accepts the contexts of `services`; `fields` are its other fields."""
    supported: dict[str, SupportedContext] = {}
    for service in services:
        for abstract_syntax, context in service.contexts().items():
            known = supported.get(abstract_syntax)
            if known is not None and context.accept_scp_role != known.accept_scp_role:
                # A storage class that one service takes in, and another sends by C-GET.
                context = replace(context, accept_scp_role=True)
            supported[abstract_syntax] = context
    return AcceptorPolicy(supported=supported, **fields)


async def serve_services(association: Association, services: Iterable[Service]) -> None:
    """Serves one association until the peer releases it; idle for too long, we release it.

    Requests are read one after another. Where more than one may be outstanding, their completions run
    at the same time, never more than the window that was granted: the rest is not read (PS3.7 §D.3.3.3).
    """
    handlers = {kind: service for service in services for kind in service.handles()}
    window = association.agreement.window_performed
    if window <= 1:
        await _serve(association, handlers, None, None)
        return
    async with trio.open_nursery() as nursery:
        await _serve(association, handlers, nursery, trio.Semaphore(window))


async def _serve(
    association: Association,
    handlers: Mapping[type[DimseMessage], Service],
    nursery: trio.Nursery | None,
    slots: trio.Semaphore | None,
) -> None:
    idle = association.timeouts.idle
    while True:
        try:
            incoming = await association.receive(seconds=idle, phase="idle")
        except PeerTimeout as exc:
            if exc.phase != "idle":
                raise
            await association.release()
            return
        if incoming is None:
            return
        handler = handlers.get(type(incoming.message))
        if handler is None:
            await _refuse(association, incoming)
            continue
        completion = await handler.handle(association, incoming)
        if completion is None:
            continue
        if nursery is None or slots is None:
            await completion()
            continue
        await slots.acquire()
        nursery.start_soon(_complete, association, completion, slots)


async def _complete(
    association: Association, completion: Completion, slots: trio.Semaphore
) -> None:
    try:
        await completion()
        await association.flush()
    finally:
        slots.release()


async def _refuse(association: Association, incoming: Incoming) -> None:
    context, message = incoming
    if message.has_dataset:
        await association.read_dataset(None)
    if isinstance(message, CCancelRq):
        return  # it came too late, or for nothing: PS3.7 §9.3.2.3 knows no answer to it
    if not isinstance(message, Request):
        raise RemoteProtocolError(
            f"{type(message).__name__} to no request of ours (PS3.7 §6.3)", source=0, reason=0
        )
    association.queue(context.context_id, response_to(message, UNRECOGNIZED_OPERATION))
