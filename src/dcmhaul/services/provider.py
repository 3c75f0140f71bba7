"""The SCP's loop: receives commands of one association and hands each to the service that knows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import trio

from dcmhaul.errors import AssociationAborted, DcmhaulError, PeerTimeout, RemoteProtocolError
from dcmhaul.net import Incoming
from dcmhaul.protocol.dimse import CCancelRq, DimseMessage, Request, response_to
from dcmhaul.protocol.negotiation import AcceptorPolicy, SupportedContext
from dcmhaul.protocol.statuses import DUPLICATE_INVOCATION, UNRECOGNIZED_OPERATION

if TYPE_CHECKING:
    from dcmhaul.net import Association

__all__ = [
    "Completion",
    "HeldRequest",
    "Service",
    "acceptor_policy",
    "answer",
    "refuse_stray",
    "serve_services",
    "serve_until",
]

_NOT_OFFERED = "this operation is not offered here"

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


_Routes = Mapping[tuple[type[DimseMessage], str], Service]


async def serve_services(association: Association, services: Iterable[Service]) -> None:
    """Serves one association until the peer releases it; idle for too long, we release it.

    Requests are read one after another. Where more than one may be outstanding, their completions run
    at the same time, never more than the window that was granted: the rest is not read (PS3.7 §D.3.3.3).
    """
    routes = _routes(association, list(services))
    window = association.agreement.window_performed
    if window <= 1:
        await _serve(association, routes, None)
        return
    try:
        async with trio.open_nursery() as nursery:
            await _serve(association, routes, _Outstanding(association, nursery, window))
    except BaseExceptionGroup as group:
        raise _sole(group) from group


def _routes(association: Association, services: list[Service]) -> _Routes:
    """Who answers which request on which abstract syntax (PS3.4: a class has its own operations).

    Where no service names the class (one that was accepted as some storage class), the kind of the
    request decides alone, and the service looks at the class itself.
    """
    routes: dict[tuple[type[DimseMessage], str], Service] = {}
    offers = [(service, service.contexts(), service.handles()) for service in services]
    for abstract_syntax in {c.abstract_syntax for c in association.agreement.accepted.values()}:
        named = any(abstract_syntax in contexts for _, contexts, _ in offers)
        for service, contexts, kinds in offers:
            for kind in kinds:
                if abstract_syntax in contexts or not named:
                    routes[kind, abstract_syntax] = service
    return routes


async def _serve(
    association: Association, routes: _Routes, outstanding: _Outstanding | None
) -> None:
    idle = association.timeouts.idle
    while True:
        try:
            if association.held:
                incoming: Incoming | None = association.held.pop(0)
            else:
                incoming = await association.receive(seconds=idle, phase="idle")
        except PeerTimeout as exc:
            if exc.phase != "idle":
                raise
            await association.release()
            return
        if incoming is None:
            return
        context, message = incoming
        handler = routes.get((type(message), context.abstract_syntax))
        if handler is None:
            await _refuse(association, incoming, UNRECOGNIZED_OPERATION)
        elif outstanding is None:
            completion = await handler.handle(association, incoming)
            if completion is not None:
                await completion()
        elif isinstance(message, Request) and message.message_id in outstanding.message_ids:
            await _refuse(association, incoming, DUPLICATE_INVOCATION)
        else:
            completion = await handler.handle(association, incoming)
            if completion is not None:
                assert isinstance(message, Request)  # nothing else is left to be answered
                await outstanding.start(message.message_id, completion)


class HeldRequest(Incoming):
    """A request that waits in `Association.held` for the end of another. identifier: its dataset, read."""

    identifier: bytes = b""


class _Outstanding:
    """The requests of one association that were read and are not answered yet."""

    def __init__(self, association: Association, nursery: trio.Nursery, window: int) -> None:
        self.message_ids: set[int] = set()
        self._association = association
        self._nursery = nursery
        self._slots = trio.Semaphore(window - 1)

    async def start(self, message_id: int, completion: Completion) -> None:
        """Returns when there is room for another one; this one runs, whatever happens meanwhile."""
        self.message_ids.add(message_id)
        # Before the wait: what is never started would never let go of its file.
        self._nursery.start_soon(self._complete, message_id, completion)
        await self._slots.acquire()

    async def _complete(self, message_id: int, completion: Completion) -> None:
        try:
            await completion()
            # The answer is queued: from the moment it leaves the peer may use the ID again.
            self.message_ids.discard(message_id)
            await self._association.flush()
        finally:
            self._slots.release()


async def answer(association: Association, incoming: Incoming, services: Iterable[Service]) -> None:
    """Answers one request that comes while something else is waited for; the response is queued."""
    message = incoming.message
    key = type(message), incoming.context.abstract_syntax
    handler = _routes(association, list(services)).get(key)
    if handler is None:
        await refuse_stray(association, incoming)
        return
    completion = await handler.handle(association, incoming)
    if completion is not None:
        await completion()


async def serve_until(
    association: Association, services: Iterable[Service], done: trio.Event
) -> None:
    """Answers what the peer asks until that has set `done`. AssociationAborted where it releases first."""
    offered = list(services)
    while not done.is_set():
        incoming = await association.receive(seconds=None)
        if incoming is None:
            raise AssociationAborted(0, 0, f"{association.peer} released the association")
        await answer(association, incoming, offered)
        await association.flush()


async def refuse_stray(association: Association, incoming: Incoming) -> None:
    """Answers 0211 to a request that comes while we wait for responses; what else comes is an error."""
    message = incoming.message
    if message.has_dataset:
        await association.read_dataset(None)
    if not isinstance(message, Request):
        raise RemoteProtocolError(
            f"{association.peer} sent a {type(message).__name__} to no request of ours",
            source=0,
            reason=0,
        )
    response = response_to(message, UNRECOGNIZED_OPERATION, _NOT_OFFERED)
    association.queue(incoming.context.context_id, response)


async def _refuse(association: Association, incoming: Incoming, status: int) -> None:
    context, message = incoming
    if message.has_dataset and not isinstance(incoming, HeldRequest):
        await association.read_dataset(None)
    if isinstance(message, CCancelRq):
        return  # it came too late, or for nothing: PS3.7 §9.3.2.3 knows no answer to it
    if not isinstance(message, Request):
        raise RemoteProtocolError(
            f"{type(message).__name__} to no request of ours (PS3.7 §6.3)", source=0, reason=0
        )
    comment = _NOT_OFFERED if status == UNRECOGNIZED_OPERATION else "the message ID is in use"
    association.queue(context.context_id, response_to(message, status, comment))


def _sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that ended an association; the group itself if there is any other in it.

    The reading task and the completions all fail when the connection goes, and mean the same.
    """
    ended, other = group.split((DcmhaulError, trio.Cancelled))
    if ended is None or other is not None:
        return group
    errors: list[BaseException] = [ended]
    while errors:
        error = errors.pop(0)
        if isinstance(error, BaseExceptionGroup):
            errors[:0] = error.exceptions
        elif isinstance(error, DcmhaulError):
            return error
    return group
