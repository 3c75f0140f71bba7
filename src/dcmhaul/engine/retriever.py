"""The source's half of a relay: a C-GET whose sub-operations feed a destination while they come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import crash
from dcmhaul.engine.retry import is_stored
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import LocalProtocolError
from dcmhaul.objects.instances import IncomingInstance, StoreRefused, StoreReply
from dcmhaul.protocol.dimse import CStoreRq, CStoreRsp
from dcmhaul.protocol.statuses import (
    CANCEL,
    CANNOT_UNDERSTAND,
    INVALID_SOP_INSTANCE,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
)
from dcmhaul.services.query import QueryModel
from dcmhaul.services.retrieve import CANCEL_SECONDS, GET_SECONDS, get
from dcmhaul.services.storage import crash_after_sending
from dcmhaul.uids import is_valid_uid

if TYPE_CHECKING:
    from collections.abc import Container

    from dcmhaul.engine.relay import Destination, Receiver
    from dcmhaul.net import Association, Incoming
    from dcmhaul.services.identifiers import GivenIdentifier
    from dcmhaul.services.provider import Completion

__all__ = ["GetResult", "Retriever"]

_STORED: Final = StoreReply(status=SUCCESS)


@dataclass(slots=True, kw_only=True)
class GetResult:
    """How a C-GET ended. status: of its last response; None where we aborted it (`aborted`).

    received: the SOP Instance UIDs of the sub-operations that came. unsent: those of them under which
    the source failed to send another object, as its list of failures says.
    """

    status: int | None = None
    error_comment: str = ""
    received: set[str] = field(default_factory=set)
    unsent: set[str] = field(default_factory=set)
    aborted: bool = False

    @property
    def cut_short(self) -> bool:
        """It ended before its end: nothing follows from what did not come."""
        return self.aborted or self.status == CANCEL


class Retriever:
    """The C-GET SCU of one source association, whose sub-operations go to a destination.

    One task calls `retrieve`, one request at a time. Sub-operations may be pipelined by the source as
    far as the window was granted; each is answered when its `Receiver` has an answer.
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
        identifier: GivenIdentifier,
        *,
        held: Container[str] = (),
        stop: trio.Event | None = None,
    ) -> GetResult:
        """One C-GET in the Study Root model (PS3.4 §C.4.3).

        held: instances that the destination has; they are answered 0000 and not forwarded. What comes
        again under the UID of one that came before within this C-GET may be another object: it is
        forwarded whatever is held, when those before it are answered. stop: asks the source to end
        early (C-CANCEL); what still comes is forwarded. A destination that fails
        ends it in the same way: what still comes is answered A700, and a source that does not heed
        the C-CANCEL is aborted.
        Raises NoAcceptedContext, and whatever ends the source's association.
        """
        result = GetResult()
        store = _Store(self._association, self._destination, held, result)
        cancel = trio.Event()
        cut_off = trio.CancelScope()

        async def cancel_when(event: trio.Event, *, bounded: bool) -> None:
            await event.wait()
            cancel.set()
            if bounded:
                cut_off.deadline = trio.current_time() + self._cancel_seconds

        async with flat_nursery() as watchers:
            if stop is not None:
                watchers.start_soon(lambda: cancel_when(stop, bounded=False))
            watchers.start_soon(lambda: cancel_when(self._destination.failed, bounded=True))
            with cut_off:
                response = await get(
                    self._association,
                    QueryModel.STUDY_ROOT,
                    identifier,
                    store,
                    cancel=cancel,
                    seconds=self._get_seconds,
                )
                result.status = response.status
                result.error_comment = response.error_comment
                failed = set(response.failed_sop_instance_uids)
                result.unsent = failed & result.received - store.refused
            if cut_off.cancelled_caught:
                result.aborted = True
                await self._association.abort()
            watchers.cancel_scope.cancel()
        return result


class _Store:
    """What `get` calls for each sub-operation."""

    def __init__(
        self,
        association: Association,
        destination: Destination,
        held: Container[str],
        result: GetResult,
    ) -> None:
        self._association = association
        self._destination = destination
        self.refused: set[str] = set()
        """What the source heard of a failure for, from the destination or from us."""
        self._held = held
        self._result = result

    async def __call__(self, association: Association, incoming: Incoming) -> Completion | None:
        """Streams the dataset to the destination; what is returned waits for the answer."""
        started = time.perf_counter()
        request = incoming.message
        assert isinstance(request, CStoreRq)  # get() dispatches by type
        reply = _refusal(incoming, request)
        receiver: Receiver | None = None
        if reply is None:
            uid = request.affected_sop_instance_uid
            again = uid in self._result.received
            self._result.received.add(uid)
            if uid in self._held and not again:
                reply = _STORED
            else:
                if again:
                    # A destination that works on several at once would take either for the first.
                    await self._destination.settled()
                try:
                    receiver = self._destination.open(self._instance(incoming, request))
                except StoreRefused as refused:
                    reply = refused.reply
        length = 0
        if request.has_dataset:
            length = await self._read(receiver)
            if receiver is not None and length > association.dataset_length_max:
                # The destination got a part of it, which must not end as if it were the whole.
                await receiver.broken()
                receiver = None
                reply = StoreReply(
                    status=OUT_OF_RESOURCES, error_comment="dataset above the size limit"
                )
        if receiver is None:
            await self._answer(incoming, request, reply or _STORED, started, length)
            return None
        try:
            await receiver.end()
        except BaseException:
            await receiver.broken()
            raise
        destined = receiver

        async def complete() -> None:
            await self._answer(incoming, request, await destined.answer(), started, length)

        return complete

    async def _read(self, receiver: Receiver | None) -> int:
        try:
            return await self._association.read_dataset(receiver)
        except BaseException:
            if receiver is not None:
                await receiver.broken()
            raise

    def _instance(self, incoming: Incoming, request: CStoreRq) -> IncomingInstance:
        agreement = self._association.agreement
        return IncomingInstance(
            sop_class_uid=request.affected_sop_class_uid,
            sop_instance_uid=request.affected_sop_instance_uid,
            transfer_syntax_uid=incoming.context.transfer_syntax,
            calling_ae_title=agreement.calling_ae_title,
            called_ae_title=agreement.called_ae_title,
            peer=self._association.peer,
        )

    async def _answer(
        self,
        incoming: Incoming,
        request: CStoreRq,
        reply: StoreReply,
        started: float,
        length: int,
    ) -> None:
        """B0xx is the destination's business: to the source the instance is delivered."""
        status = SUCCESS if is_stored(reply.status) else reply.status
        if status:
            self.refused.add(request.affected_sop_instance_uid)
        response = CStoreRsp(
            message_id_being_responded_to=request.message_id,
            status=status,
            affected_sop_class_uid=request.affected_sop_class_uid,
            affected_sop_instance_uid=request.affected_sop_instance_uid,
            offending_element=(reply.offending or None) if status else None,
            error_comment=(reply.error_comment or None) if status else None,
        )
        if crash.armed:
            crash.passed("rsp.before_send")
        try:
            self._association.queue(incoming.context.context_id, response)
        except LocalProtocolError:
            return  # the association has ended, and whoever receives on it raises why
        seconds = time.perf_counter() - started
        self._association.observer.operation("C-STORE", "in", status, seconds, length)
        if crash.armed:
            await crash_after_sending(self._association)


def _refusal(incoming: Incoming, request: CStoreRq) -> StoreReply | None:
    """What is wrong with the command itself; the dataset is drained and not looked at."""
    if not is_valid_uid(request.affected_sop_instance_uid):
        return StoreReply(
            status=INVALID_SOP_INSTANCE, error_comment="SOP Instance UID is not 1-64 of 0-9 and ."
        )
    if request.affected_sop_class_uid != incoming.context.abstract_syntax:
        return StoreReply(
            status=SOP_CLASS_NOT_SUPPORTED, error_comment="SOP Class is not that of the context"
        )
    if not request.has_dataset:
        return StoreReply(status=CANNOT_UNDERSTAND, error_comment="C-STORE-RQ without a dataset")
    return None
