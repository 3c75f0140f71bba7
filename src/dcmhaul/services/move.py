"""C-MOVE (PS3.4 §C.4.2) in both roles: one AE asks, another sends to a third, or back, on other associations.

The SCP sends nothing itself: a Mover does, which knows the destinations.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.objects.instances import MoveOriginator
from dcmhaul.protocol import statuses
from dcmhaul.protocol.dimse import CMoveRq, CMoveRsp, DimseMessage, Priority, response_to
from dcmhaul.protocol.negotiation import SupportedContext, is_valid_ae_title
from dcmhaul.services.extended import RETRIEVE_SUPPORTED
from dcmhaul.services.identifiers import QUERY_SYNTAXES, QueryRefused, encoded
from dcmhaul.services.provider import refuse_stray
from dcmhaul.services.query import CancelWatch, QueryModel, context_for_model
from dcmhaul.services.retrieve import CANCEL_SECONDS, RetrieveScu, sole_error
from dcmhaul.services.suboperations import (
    PENDING_SECONDS,
    EncodedSelection,
    Selection,
    Selector,
    StoredInstance,
    SubOperations,
    answer_beside,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dcmhaul.net import Association, Incoming
    from dcmhaul.protocol.negotiation import AcceptedContext
    from dcmhaul.services.identifiers import GivenIdentifier
    from dcmhaul.services.retrieve import RetrieveResponse, SignsOfLife

__all__ = [
    "OWN_SCP_SECONDS",
    "THIRD_PARTY_SECONDS",
    "MoveOrder",
    "MoveScp",
    "Mover",
    "move",
]

OWN_SCP_SECONDS: Final = 600.0
"""How long a C-MOVE to an SCP of ours may go without a response, and without anything that arrives."""
THIRD_PARTY_SECONDS: Final = 3600.0
"""The same where only responses are seen: pending ones are optional (PS3.4 §C.4.2.2.1)."""

STOP_SECONDS: Final = 10.0
"""How long the sub-operations that a C-CANCEL finds outstanding may take to end; then they are aborted."""


# -- the SCU ------------------------------------------------------------------------------------


async def move(
    association: Association,
    model: QueryModel,
    identifier: GivenIdentifier,
    destination_ae_title: str,
    *,
    priority: int = Priority.MEDIUM,
    on_pending: Callable[[RetrieveResponse], None] | None = None,
    cancel: trio.Event | None = None,
    cancel_seconds: float | None = CANCEL_SECONDS,
    seconds: float | None = THIRD_PARTY_SECONDS,
    signs: SignsOfLife | None = None,
) -> RetrieveResponse:
    """One C-MOVE to the AE that the peer knows by that title; returns the final response.

    identifier: a dataset, bytes in the context's transfer syntax, or what encodes it. on_pending hears of each
    pending response, and may set `cancel`: once set, a C-CANCEL goes out. A peer that has not ended
    after `cancel_seconds` ignores it: PeerTimeout, and leaving the association then aborts it.
    seconds: without a response, and without a sign of life in `signs`, which whoever sees the
    sub-operations arrive touches; then PeerTimeout. What the final response says is a hint: some
    peers send it before their sub-operations, or count none of them.
    Raises NoAcceptedContext, PeerTimeout, AssociationAborted, RemoteProtocolError, TransportError.
    """
    context = context_for_model(association, model.move_uid)
    started = time.perf_counter()
    scu = RetrieveScu(association, context, "C-MOVE", seconds=seconds, signs=signs)
    request = CMoveRq(
        message_id=scu.message_id,
        affected_sop_class_uid=model.move_uid,
        move_destination=destination_ae_title,
        priority=priority,
    )
    await association.send(
        context.context_id, request, encoded(identifier, context.transfer_syntax)
    )
    async with scu.cancelled_by(cancel, cancel_seconds):
        response = await _final_response(scu, on_pending)
    scu.ended(response, started)
    return response


async def _final_response(
    scu: RetrieveScu, on_pending: Callable[[RetrieveResponse], None] | None
) -> RetrieveResponse:
    while True:
        incoming = await scu.receive()
        if not isinstance(incoming.message, CMoveRsp):
            await refuse_stray(scu.association, incoming)
            continue
        response = await scu.response(incoming)
        if not response.pending:
            return response
        if on_pending is not None:
            on_pending(response)


# -- the SCP ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOrder:
    """What one C-MOVE asks a Mover for.

    counts: where each instance ends, once. stop: set when the requestor has cancelled.
    """

    destination_ae_title: str
    originator: MoveOriginator
    priority: int
    instances: Sequence[StoredInstance]
    counts: SubOperations
    stop: trio.Event


class Mover(Protocol):
    """Sends instances to the destinations of a table; nothing that a peer sends adds to that table."""

    def knows(self, ae_title: str) -> bool: ...
    async def move(self, order: MoveOrder) -> str:
        """Returns when all have ended and every association for them is released.

        Once `order.stop` is set it begins no more, and those are counted nowhere. What it returns is
        the Error Comment on what failed, or "". Cancelled, it aborts its associations.
        """


class MoveScp:
    """Answers C-MOVE by having `mover` send what `select` names, and tells meanwhile how far it is.

    encoded: `select` is an EncodedSelection, not a Selection. relational: as GetScp has it.
    """

    def __init__(
        self,
        select: Selection | EncodedSelection,
        mover: Mover,
        *,
        encoded: bool = False,
        models: Iterable[QueryModel] = (QueryModel.PATIENT_ROOT, QueryModel.STUDY_ROOT),
        relational: bool = False,
    ) -> None:
        classes = {model.move_uid: model for model in models}
        self._selector = Selector(select, classes, encoded=encoded)
        self._mover = mover
        self._contexts = dict.fromkeys(
            classes,
            SupportedContext(
                transfer_syntaxes=QUERY_SYNTAXES,
                extended=RETRIEVE_SUPPORTED if relational else b"",
            ),
        )

    def contexts(self) -> Mapping[str, SupportedContext]:
        return self._contexts

    def handles(self) -> tuple[type[DimseMessage], ...]:
        return (CMoveRq,)

    async def handle(self, association: Association, incoming: Incoming) -> None:
        """Reads the identifier, has the sub-operations performed; the final response is queued."""
        started = time.perf_counter()
        context, request = incoming
        assert isinstance(request, CMoveRq)  # the provider dispatches by type
        length = 0
        try:
            asked = await self._selector.read(association, incoming)
            if not self._mover.knows(request.move_destination):
                raise _unknown_destination(request.move_destination)
            selected = await self._selector.select(association, *asked)
        except QueryRefused as refused:
            status = refused.status
            response = response_to(request, status, refused.comment, refused.offending)
            association.queue(context.context_id, response)
        else:
            moving = _Moving(association, context, request, selected, self._mover)
            status = await moving.run()
            length = moving.order.counts.length
        seconds = time.perf_counter() - started
        association.observer.operation("C-MOVE", "in", status, seconds, length)


def _unknown_destination(ae_title: str) -> QueryRefused:
    named = f" {ae_title}" if is_valid_ae_title(ae_title) else ""
    return QueryRefused(
        statuses.MOVE_DESTINATION_UNKNOWN, f"no move destination{named} is configured"
    )


class _Moving:
    """One C-MOVE while others perform it: the requestor is listened to, and told how far it is.

    Whoever queues a response flushes it without a checkpoint between, so that nothing waits in the queue
    when the listening is ended: a flush that is cut short would break the association.
    """

    def __init__(
        self,
        association: Association,
        context: AcceptedContext,
        request: CMoveRq,
        selected: Sequence[StoredInstance],
        mover: Mover,
    ) -> None:
        known = request.priority in Priority.__members__.values()
        self.order = MoveOrder(
            destination_ae_title=request.move_destination,
            originator=MoveOriginator(association.agreement.calling_ae_title, request.message_id),
            priority=request.priority if known else Priority.MEDIUM,
            instances=selected,
            counts=SubOperations(association, context, request, len(selected)),
            stop=trio.Event(),
        )
        self._association = association
        self._mover = mover
        self._watch = CancelWatch(association, request.message_id)
        self._performed = trio.Event()
        self._performing = trio.CancelScope()
        self._listening = trio.CancelScope()

    async def run(self) -> int:
        """Returns when it is performed, the final response queued; its status.

        Raises what ends the requestor's association; then nothing goes on.
        """
        comment = ""
        counts = self.order.counts
        if self.order.instances:
            # At once, for it says how many there are.
            counts.respond(statuses.PENDING)
            await self._association.flush()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen)
                    nursery.start_soon(self._tell)
                    with self._performing:
                        comment = await self._mover.move(self.order)
                    self._performed.set()
                    self._listening.cancel()
            except BaseExceptionGroup as group:
                raise sole_error(group) from None
        status = counts.final_status(cancelled=self._watch.cancelled)
        counts.respond(status, comment if counts.failed else "")
        return status

    async def _listen(self) -> None:
        association = self._association
        while not self._performed.is_set():
            with trio.CancelScope() as self._listening:
                incoming = await association.receive()
            if self._listening.cancelled_caught:
                return
            if incoming is None:
                raise RemoteProtocolError(
                    "A-RELEASE-RQ before the C-MOVE was answered (PS3.7 §7.2)", source=0, reason=0
                )
            await answer_beside(association, incoming, self._watch, "C-MOVE")
            await association.flush()
            if self._watch.cancelled and not self.order.stop.is_set():
                self.order.stop.set()
                self._performing.deadline = trio.current_time() + STOP_SECONDS

    async def _tell(self) -> None:
        """A pending response a second."""
        while True:
            with trio.move_on_after(PENDING_SECONDS):
                await self._performed.wait()
                return
            try:
                self.order.counts.respond(statuses.PENDING)
            except LocalProtocolError:
                return  # the association is ending, and whoever listens raises why
            await self._association.flush()
