"""The C-GET SCU that feeds a destination while it receives: the source's half of a relay."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import (
    LocalProtocolError,
    NoAcceptedContext,
    RemoteProtocolError,
    TransportError,
)
from dcmhaul.objects.instances import IncomingInstance, StoreRefused, StoreReply
from dcmhaul.protocol.dimse import CCancelRq, CGetRq, CGetRsp, CStoreRq, CStoreRsp
from dcmhaul.uids import STUDY_ROOT_GET, is_valid_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from dcmhaul.engine.relay import Destination, Receiver
    from dcmhaul.net import Association, Incoming

__all__ = ["CANCELLED", "GetResult", "Retriever"]

CANCEL_SECONDS: Final = 20.0
"""How long a source may go on after a C-CANCEL before it is aborted; some ignore it."""
GET_SECONDS: Final = 600.0
"""A C-GET without any sign of life: no pending response and no sub-operation."""

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
INVALID_INSTANCE_UID: Final = 0x0117
CLASS_NOT_SUPPORTED: Final = 0x0122
DATASET_MISSING: Final = 0xC000
CANCELLED: Final = 0xFE00

_STORED: Final = StoreReply(status=SUCCESS)


@dataclass(slots=True, kw_only=True)
class GetResult:
    """How a C-GET ended. status: of its last response, None where there was none (`aborted`)."""

    status: int | None = None
    error_comment: str = ""
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None
    received: set[str] = field(default_factory=set)
    """SOP Instance UIDs of the sub-operations that came."""
    aborted: bool = False


class Retriever:
    """The C-GET SCU of one source association, whose sub-operations go to a destination.

    One task calls `retrieve`, one request at a time. Sub-operations may be pipelined by the source as far
    as the window was granted; each is answered when its `Receiver` has an answer.
    """

    def __init__(
        self,
        association: Association,
        destination: Destination,
        *,
        get_seconds: float | None = GET_SECONDS,
        cancel_seconds: float = CANCEL_SECONDS,
    ) -> None:
        self._association = association
        self._destination = destination
        self._get_seconds = get_seconds
        self._cancel_seconds = cancel_seconds

    async def retrieve(
        self,
        identifier: Callable[[str], bytes],
        *,
        held: Container[str] = (),
        stop: trio.Event | None = None,
    ) -> GetResult:
        """One C-GET (PS3.4 §C.4.3). `identifier` encodes it in a transfer syntax.

        held: instances that the destination has; they are answered 0000 and not forwarded. stop: asks
        the source to end early (C-CANCEL); what still comes is forwarded. A destination that fails ends
        it in the same way, and what still comes is answered A700.
        Raises NoAcceptedContext, and whatever ends the source's association.
        """
        association = self._association
        context = association.agreement.context_for(STUDY_ROOT_GET)
        if context is None:
            raise NoAcceptedContext(
                f"{association.peer} accepted no context for C-GET (Study Root)"
            )
        operation = _GetOperation(
            association=association,
            destination=self._destination,
            context_id=context.context_id,
            message_id=association.next_message_id(),
            held=held,
            get_seconds=self._get_seconds,
            cancel_seconds=self._cancel_seconds,
        )
        await association.send(
            context.context_id,
            CGetRq(
                message_id=operation.message_id,
                affected_sop_class_uid=STUDY_ROOT_GET,
                has_dataset=True,
            ),
            identifier(context.transfer_syntax),
        )
        return await operation.run(stop)


@dataclass(slots=True, kw_only=True)
class _GetOperation:
    """One C-GET that was asked for."""

    association: Association
    destination: Destination
    context_id: int
    message_id: int
    held: Container[str]
    get_seconds: float | None
    cancel_seconds: float
    result: GetResult = field(default_factory=GetResult)
    cancelled: bool = False
    cut_off: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self, stop: trio.Event | None) -> GetResult:
        async with flat_nursery() as watchers:
            if stop is not None:
                watchers.start_soon(self._cancel_when, stop, False)
            watchers.start_soon(self._cancel_when, self.destination.failed, True)
            with self.cut_off:
                async with flat_nursery() as answers:
                    await self._receive_all(answers)
            if self.cut_off.cancelled_caught:
                self.result.aborted = True
                await self.association.abort()
            watchers.cancel_scope.cancel()
        self.association.message_ids.give_back(self.message_id)
        return self.result

    async def _cancel_when(self, event: trio.Event, bounded: bool) -> None:
        await event.wait()
        if bounded:
            # Nothing that still comes is of use, and some sources do not heed a C-CANCEL.
            self.cut_off.deadline = trio.current_time() + self.cancel_seconds
        if self.cancelled:
            return
        self.cancelled = True
        try:
            self.association.queue(
                self.context_id, CCancelRq(message_id_being_responded_to=self.message_id)
            )
        except LocalProtocolError:
            return  # the association has ended: whoever found out raises why
        await self.association.flush()

    async def _receive_all(self, answers: trio.Nursery) -> None:
        association = self.association
        while True:
            incoming = await association.receive(seconds=self.get_seconds, phase="C-GET")
            if incoming is None:
                raise TransportError(f"{association.peer} released the association within a C-GET")
            message = incoming.message
            if isinstance(message, CStoreRq):
                await self._sub_operation(incoming, message, answers)
                continue
            if message.has_dataset:
                await association.read_dataset(None)  # the Failed SOP Instance UID List
            if not isinstance(message, CGetRsp):
                raise RemoteProtocolError(
                    f"{association.peer} sent a {type(message).__name__} within a C-GET",
                    source=0,
                    reason=0,
                )
            if message.status not in (0xFF00, 0xFF01):
                self._finish(message)
                return

    def _finish(self, response: CGetRsp) -> None:
        result = self.result
        result.status = response.status
        result.error_comment = response.error_comment or ""
        result.completed = response.number_of_completed_suboperations
        result.failed = response.number_of_failed_suboperations
        result.warning = response.number_of_warning_suboperations

    async def _sub_operation(
        self, incoming: Incoming, request: CStoreRq, answers: trio.Nursery
    ) -> None:
        association = self.association
        started = time.perf_counter()
        reply = _refusal(incoming, request)
        receiver: Receiver | None = None
        if reply is None:
            self.result.received.add(request.affected_sop_instance_uid)
            if request.affected_sop_instance_uid in self.held:
                reply = _STORED
            else:
                reply, receiver = self._open(incoming, request)
        length = 0
        if request.has_dataset:
            try:
                length = await association.read_dataset(receiver)
                if receiver is not None and length > association.dataset_length_max:
                    # The destination has got a part: it must not end as if it were whole.
                    await receiver.broken()
                    receiver = None
                    reply = StoreReply(status=OUT_OF_RESOURCES, error_comment="too large")
            except BaseException:
                if receiver is not None:
                    await receiver.broken()
                raise
        if receiver is None:
            self._answer(incoming, request, reply or _STORED, started, length)
            return
        await receiver.end()
        answers.start_soon(self._answer_later, incoming, request, receiver, started, length)

    def _open(
        self, incoming: Incoming, request: CStoreRq
    ) -> tuple[StoreReply | None, Receiver | None]:
        agreement = self.association.agreement
        instance = IncomingInstance(
            sop_class_uid=request.affected_sop_class_uid,
            sop_instance_uid=request.affected_sop_instance_uid,
            transfer_syntax_uid=incoming.context.transfer_syntax,
            calling_ae_title=agreement.calling_ae_title,
            called_ae_title=agreement.called_ae_title,
            peer=self.association.peer,
        )
        try:
            return None, self.destination.open(instance)
        except StoreRefused as refused:
            return refused.reply, None

    async def _answer_later(
        self,
        incoming: Incoming,
        request: CStoreRq,
        receiver: Receiver,
        started: float,
        length: int,
    ) -> None:
        reply = await receiver.answer()
        try:
            self._answer(incoming, request, reply, started, length)
        except LocalProtocolError:
            return  # the association has ended: whoever found out raises why
        await self.association.flush()

    def _answer(
        self,
        incoming: Incoming,
        request: CStoreRq,
        reply: StoreReply,
        started: float,
        length: int,
    ) -> None:
        """B0xx is the destination's business: to the source the instance is delivered."""
        status = SUCCESS if reply.status >> 12 == 0xB else reply.status
        self.association.queue(
            incoming.context.context_id,
            CStoreRsp(
                message_id_being_responded_to=request.message_id,
                status=status,
                affected_sop_class_uid=request.affected_sop_class_uid,
                affected_sop_instance_uid=request.affected_sop_instance_uid,
                error_comment=reply.error_comment or None if status else None,
            ),
        )
        self.association.observer.operation(
            "C-STORE", "in", status, time.perf_counter() - started, length
        )


def _refusal(incoming: Incoming, request: CStoreRq) -> StoreReply | None:
    """What is wrong with the command itself; the dataset is drained and not looked at."""
    if not is_valid_uid(request.affected_sop_instance_uid):
        return StoreReply(
            status=INVALID_INSTANCE_UID, error_comment="SOP Instance UID is not 1-64 of 0-9 and ."
        )
    if request.affected_sop_class_uid != incoming.context.abstract_syntax:
        return StoreReply(
            status=CLASS_NOT_SUPPORTED, error_comment="SOP Class is not that of the context"
        )
    if not request.has_dataset:
        return StoreReply(status=DATASET_MISSING, error_comment="C-STORE-RQ without a dataset")
    return None
