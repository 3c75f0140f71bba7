"""Storage (PS3.4 Annex B): C-STORE in both roles, also for the sub-operations of a retrieve."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import crash, uids
from dcmhaul.errors import (
    AssociationAborted,
    DcmhaulError,
    InstanceError,
    NoAcceptedContext,
    RemoteProtocolError,
    UnreadableInstance,
)
from dcmhaul.net import FileRange
from dcmhaul.objects.instances import (
    IncomingInstance,
    MoveOriginator,
    OutgoingInstance,
    SinkFactory,
    StorageSink,
    StoreRefused,
    StoreReply,
)
from dcmhaul.objects.reencode import UNCOMPRESSED
from dcmhaul.objects.reencoded import DatasetStream
from dcmhaul.protocol.dimse import CStoreRq, CStoreRsp, DimseMessage, Priority
from dcmhaul.protocol.negotiation import SupportedContext
from dcmhaul.services.provider import refuse_stray

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dcmhaul.net import Association, Incoming
    from dcmhaul.protocol.negotiation import AcceptedContext
    from dcmhaul.services.provider import Completion
    from dcmhaul.wire.pdu import AAssociateRq

__all__ = [
    "Reencode",
    "StorageScp",
    "StorageScu",
    "StoreOutcome",
    "crash_after_sending",
    "proposes_storage",
]

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
INVALID_INSTANCE_UID: Final = 0x0117  # PS3.7 §C.5.8
CLASS_NOT_SUPPORTED: Final = 0x0122  # PS3.7 §C.5.21
DATASET_MISSING: Final = 0xC000

# What gathers of small objects before it leaves in one system call: bytes, and parts of the window. With
# the whole window in one call, peer and sender would wait for each other in turns.
BATCH_BYTES: Final = 262_144
BATCHES_A_WINDOW: Final = 2


# -- the SCP ------------------------------------------------------------------------------------


class StorageScp:
    """Takes instances into the sinks that `sinks` makes; None drops them and answers 0000.

    Every Storage SOP class of PS3.6 is accepted in every transfer syntax, and `extra_classes`; more is
    up to the policy's `accept_any_storage`.
    """

    def __init__(
        self,
        sinks: SinkFactory | None,
        *,
        extra_classes: Iterable[str] = (),
        transfer_syntaxes: tuple[str, ...] = (),
    ) -> None:
        self._sinks = sinks
        context = SupportedContext(transfer_syntaxes=transfer_syntaxes)
        self._contexts = dict.fromkeys((*uids.STORAGE_SOP_CLASSES, *extra_classes), context)

    def contexts(self) -> Mapping[str, SupportedContext]:
        return self._contexts

    def handles(self) -> tuple[type[DimseMessage], ...]:
        return (CStoreRq,)

    async def handle(self, association: Association, incoming: Incoming) -> Completion | None:
        """Reads one C-STORE-RQ with its dataset. The answer is queued here, or by the completion."""
        started = time.perf_counter()
        context, request = incoming
        assert isinstance(request, CStoreRq)  # the provider dispatches by type
        reply = _refusal(context, request)
        sink: StorageSink | None = None
        if reply is None and self._sinks is not None:
            agreement = association.agreement
            try:
                sink = self._sinks(
                    IncomingInstance(
                        sop_class_uid=request.affected_sop_class_uid,
                        sop_instance_uid=request.affected_sop_instance_uid,
                        transfer_syntax_uid=context.transfer_syntax,
                        calling_ae_title=agreement.calling_ae_title,
                        called_ae_title=agreement.called_ae_title,
                        peer=association.peer,
                        move_originator=_move_originator(request),
                    )
                )
            except StoreRefused as exc:
                reply = exc.reply
        length = 0
        if request.has_dataset:
            try:
                length = await association.read_dataset(sink)
            except BaseException:
                if sink is not None:
                    sink.discard()
                raise
            if length > association.dataset_length_max and reply is None:
                reply = StoreReply(
                    status=OUT_OF_RESOURCES, error_comment="dataset above the size limit"
                )
        if reply is not None and sink is not None:
            sink.discard()
        if reply is None and sink is not None:
            if getattr(sink, "immediate", False):
                await _commit(association, incoming, sink, length, started)
                return None
            return partial(_commit, association, incoming, sink, length, started)
        await _answer(association, incoming, reply or _STORED, length, started)
        return None


_STORED: Final = StoreReply(status=SUCCESS)


async def _commit(
    association: Association,
    incoming: Incoming,
    sink: StorageSink,
    length: int,
    started: float,
) -> None:
    await _answer(association, incoming, await sink.commit(), length, started)


async def _answer(
    association: Association,
    incoming: Incoming,
    reply: StoreReply,
    length: int,
    started: float,
) -> None:
    context, request = incoming
    assert isinstance(request, CStoreRq)
    if crash.armed:
        crash.passed("rsp.before_send")
    association.queue(
        context.context_id,
        CStoreRsp(
            message_id_being_responded_to=request.message_id,
            status=reply.status,
            affected_sop_class_uid=request.affected_sop_class_uid,
            affected_sop_instance_uid=request.affected_sop_instance_uid,
            offending_element=reply.offending or None,
            error_comment=reply.error_comment or None,
        ),
    )
    seconds = time.perf_counter() - started
    association.observer.operation("C-STORE", "in", reply.status, seconds, length)
    if crash.armed:
        await crash_after_sending(association)


async def crash_after_sending(association: Association) -> None:
    """The point after a response has left; answers otherwise leave together, a little later."""
    await association.flush()
    crash.passed("rsp.after_send")


def _refusal(context: AcceptedContext, request: CStoreRq) -> StoreReply | None:
    """What is wrong with the command itself: the dataset is drained and never looked at."""
    if not uids.is_valid_uid(request.affected_sop_instance_uid):
        return StoreReply(
            status=INVALID_INSTANCE_UID, error_comment="SOP Instance UID is not 1-64 of 0-9 and ."
        )
    if request.affected_sop_class_uid != context.abstract_syntax:
        return StoreReply(
            status=CLASS_NOT_SUPPORTED, error_comment="SOP Class is not that of the context"
        )
    if not request.has_dataset:
        return StoreReply(status=DATASET_MISSING, error_comment="C-STORE-RQ without a dataset")
    return None


def _move_originator(request: CStoreRq) -> MoveOriginator | None:
    """Both fields or none: one alone identifies no C-MOVE."""
    ae_title = request.move_originator_application_entity_title
    message_id = request.move_originator_message_id
    if ae_title is None or message_id is None:
        return None
    return MoveOriginator(ae_title, message_id)


def proposes_storage(rq: AAssociateRq, extra_classes: Iterable[str] = ()) -> bool:
    """Whether the requestor wants to store; not where it is the SCP alone, as for a C-GET (PS3.7 §D.3.3.4)."""
    receives = {role.sop_class_uid for role in rq.user_information.roles if not role.scu}
    classes = {context.abstract_syntax for context in rq.presentation_contexts} - receives
    return not classes.isdisjoint((*uids.STORAGE_SOP_CLASSES, *extra_classes))


# -- the SCU ------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class StoreOutcome:
    """How one instance ended. Without a status there is an error.

    sent: whether its C-STORE-RQ left. An error then means that the outcome is unknown, not failed.
    offending: the tags that the peer objects to.
    """

    instance: OutgoingInstance
    status: int | None
    error: DcmhaulError | None
    error_comment: str
    sent: bool
    seconds: float
    length: int
    offending: tuple[int, ...] = ()

    @property
    def stored(self) -> bool:
        """0000, or one of the B0xx warnings, with which the instance is stored (PS3.4 §B.2.3)."""
        return self.status is not None and (self.status == SUCCESS or self.status >> 8 == 0xB0)


Reencode = Callable[["OutgoingInstance", str], Awaitable["OutgoingInstance"]]
"""An instance in another transfer syntax; NoAcceptedContext or an InstanceError where it cannot be.

The new one closes the old one.
"""


class _Outstanding:
    __slots__ = ("instance", "started")

    def __init__(self, instance: OutgoingInstance, started: float) -> None:
        self.instance = instance
        self.started = started


class StorageScu:
    """Sends instances on one association, up to the negotiated window of them unanswered."""

    def __init__(
        self,
        association: Association,
        *,
        window: int | None = None,
        on_other: Callable[[Incoming], Awaitable[None]] | None = None,
        priority: int = Priority.MEDIUM,
        originator: MoveOriginator | None = None,
        reencode: Reencode | None = None,
    ) -> None:
        """`on_other` gets what is no C-STORE-RSP, dataset unread; without it that is an error.

        reencode: asked for each instance whose own transfer syntax the peer did not accept for its class,
        where it accepted an uncompressed one.

        originator: of the C-MOVE that the instances are the sub-operations of.
        """
        granted = association.agreement.window_invoked
        self._priority = priority
        self._originator_title = originator.ae_title if originator is not None else None
        self._originator_id = originator.message_id if originator is not None else None
        self._on_other = on_other
        self._reencode = reencode
        self._association = association
        self._window = granted if window is None else min(window, granted)
        self._batch = max(1, self._window // BATCHES_A_WINDOW)
        self._contexts: dict[tuple[str, str], AcceptedContext | None] = {}
        self._outstanding: dict[int, _Outstanding] = {}

    async def run(
        self,
        take: Callable[[], Awaitable[OutgoingInstance | None]],
        report: Callable[[StoreOutcome], None],
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Sends what `take` gives until it gives None; `report` hears of each, and closes nothing.

        `meanwhile` is called before each wait for responses, while the peer is busy.

        Where the association breaks, every unanswered instance is reported with the error (its outcome
        is unknown), then the error is raised; instances not taken yet are untouched. Cancelled, it closes
        the unanswered ones itself.
        """
        association = self._association
        outstanding = self._outstanding
        exhausted = False
        try:
            while True:
                queued = count = 0
                while not exhausted and len(outstanding) < self._window:
                    instance = await take()
                    if instance is None:
                        exhausted = True
                        break
                    queued += await self._begin(instance, report)
                    count += 1
                    if queued >= BATCH_BYTES or count >= self._batch:
                        await association.flush()
                        queued = count = 0
                if queued:
                    await association.flush()
                    if crash.armed:
                        crash.passed("send.all_sent")
                if not outstanding:
                    if exhausted:
                        return
                    continue
                if meanwhile is not None and not exhausted:
                    meanwhile()
                await self._take_response(report)
                while association.has_buffered() and outstanding:
                    await self._take_response(report)
        except EOFError as exc:
            raise self._unreadable(str(exc), report) from exc
        except DcmhaulError as exc:
            self._give_up(exc, report)
            raise
        except BaseException:
            # Cancelled: nobody hears of them, so nobody else closes them.
            for pending in outstanding.values():
                pending.instance.close()
            raise

    def _context(self, instance: OutgoingInstance) -> AcceptedContext | None:
        key = (instance.sop_class_uid, instance.transfer_syntax_uid)
        try:
            return self._contexts[key]
        except KeyError:
            context = self._association.agreement.context_for(key[0], (key[1],))
            self._contexts[key] = context
            return context

    async def _begin(
        self, instance: OutgoingInstance, report: Callable[[StoreOutcome], None]
    ) -> int:
        """Queues one instance; returns its bytes, 0 where it left at once or cannot leave."""
        association = self._association
        context = self._context(instance)
        if context is None:
            try:
                instance, context = await self._reencoded(instance)
            except (NoAcceptedContext, InstanceError) as error:
                report(_failure(instance, error))
                return 0
        if crash.armed:
            crash.passed("send.before_cmd")
        message_id = association.next_message_id()
        request = CStoreRq(
            message_id=message_id,
            affected_sop_class_uid=instance.sop_class_uid,
            affected_sop_instance_uid=instance.sop_instance_uid,
            priority=self._priority,
            move_originator_application_entity_title=self._originator_title,
            move_originator_message_id=self._originator_id,
        )
        self._outstanding[message_id] = _Outstanding(instance, time.perf_counter())
        dataset = instance.dataset
        if isinstance(dataset, FileRange):
            await association.send(context.context_id, request, dataset)
            if crash.armed:
                crash.passed("send.all_sent")
            return 0
        if isinstance(dataset, DatasetStream):
            await self._stream(context, request, dataset)
            return 0
        association.queue(context.context_id, request, dataset)
        return instance.length

    async def _reencoded(
        self, instance: OutgoingInstance
    ) -> tuple[OutgoingInstance, AcceptedContext]:
        """The instance in a syntax that the peer accepted; NoAcceptedContext or InstanceError without one."""
        association = self._association
        if self._reencode is not None:
            context = association.agreement.context_for(instance.sop_class_uid, UNCOMPRESSED)
            if context is not None:
                return await self._reencode(instance, context.transfer_syntax), context
        raise NoAcceptedContext(
            f"{association.peer} accepted no context for {uids.name(instance.sop_class_uid)} "
            f"in {uids.name(instance.transfer_syntax_uid)}"
        )

    async def _stream(
        self, context: AcceptedContext, request: CStoreRq, dataset: DatasetStream
    ) -> None:
        """Sends a dataset that is made meanwhile, a piece at a time."""
        writer = await self._association.open_dataset(context.context_id, request)
        try:
            chunks = dataset.chunks()
            while (chunk := await trio.to_thread.run_sync(next, chunks, None)) is not None:
                await writer.write(chunk)
            await writer.finish()
        finally:
            await writer.aclose()
        if crash.armed:
            crash.passed("send.all_sent")

    async def _take_response(self, report: Callable[[StoreOutcome], None]) -> None:
        association = self._association
        incoming = await association.receive(
            seconds=association.timeouts.dimse, phase="C-STORE response"
        )
        if incoming is None:
            raise AssociationAborted(
                0, 0, f"{association.peer} released the association before it had answered"
            )
        response = incoming.message
        if crash.armed and isinstance(response, CStoreRsp):
            crash.passed("rsp.received")
        if self._on_other is not None and not isinstance(response, CStoreRsp):
            await self._on_other(incoming)
            return
        if not isinstance(response, CStoreRsp):
            await refuse_stray(association, incoming)
            return
        if response.has_dataset:
            await association.read_dataset(None)  # what breaks here leaves its instance outstanding
        pending = self._outstanding.pop(response.message_id_being_responded_to, None)
        if pending is None:
            raise RemoteProtocolError(
                f"{association.peer} sent a CStoreRsp to no request of ours", source=0, reason=0
            )
        association.message_ids.give_back(response.message_id_being_responded_to)
        seconds = time.perf_counter() - pending.started
        length = pending.instance.length
        association.observer.operation("C-STORE", "out", response.status, seconds, length)
        report(
            StoreOutcome(
                instance=pending.instance,
                status=response.status,
                error=None,
                error_comment=response.error_comment or "",
                offending=response.offending_element or (),
                sent=True,
                seconds=seconds,
                length=length,
            )
        )

    def _give_up(self, error: DcmhaulError, report: Callable[[StoreOutcome], None]) -> None:
        now = time.perf_counter()
        for pending in self._outstanding.values():
            report(_failure(pending.instance, error, sent=True, seconds=now - pending.started))
        self._outstanding.clear()

    def _unreadable(self, cause: str, report: Callable[[StoreOutcome], None]) -> UnreadableInstance:
        """The file of the last request ended early: that one has failed, the others are unknown."""
        _, last = self._outstanding.popitem()
        error = UnreadableInstance(f"{last.instance.label}: {cause}")
        report(_failure(last.instance, error))
        self._give_up(error, report)
        return error


def _failure(
    instance: OutgoingInstance, error: DcmhaulError, *, sent: bool = False, seconds: float = 0.0
) -> StoreOutcome:
    return StoreOutcome(
        instance=instance,
        status=None,
        error=error,
        error_comment="",
        sent=sent,
        seconds=seconds,
        length=instance.length,
    )
