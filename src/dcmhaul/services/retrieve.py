"""Retrieve (PS3.4 §C.4.3): C-GET in both roles, and what C-MOVE shares with it; services/move.py has the rest.

The sub-operations of a C-GET are C-STOREs of services/storage.py.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import uids
from dcmhaul.errors import (
    AssociationAborted,
    InstanceError,
    LocalProtocolError,
    PeerTimeout,
    RemoteProtocolError,
)
from dcmhaul.protocol import statuses
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CGetRq,
    CGetRsp,
    CMoveRsp,
    CStoreRq,
    DimseMessage,
    Priority,
    response_to,
)
from dcmhaul.protocol.negotiation import SupportedContext
from dcmhaul.services.extended import RETRIEVE_SUPPORTED
from dcmhaul.services.identifiers import (
    IDENTIFIER_LENGTH_MAX,
    QUERY_SYNTAXES,
    GivenIdentifier,
    QueryRefused,
    decode_uid_list,
    encoded,
)
from dcmhaul.services.provider import refuse_stray
from dcmhaul.services.query import (
    CANCEL_SECONDS,
    CancelWatch,
    QueryModel,
    context_for_model,
)
from dcmhaul.services.storage import StorageScu, StoreOutcome
from dcmhaul.services.suboperations import (
    PENDING_SECONDS,
    EncodedSelection,
    Selection,
    Selector,
    StoredInstance,
    SubOperations,
    answer_beside,
)
from dcmhaul.wire.items import RoleSelection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from dcmhaul.net import Association, Incoming
    from dcmhaul.objects.instances import OutgoingInstance
    from dcmhaul.protocol.negotiation import AcceptedContext
    from dcmhaul.services.provider import Completion

__all__ = [
    "CANCEL_SECONDS",
    "GET_SECONDS",
    "GetScp",
    "RetrieveResponse",
    "RetrieveScu",
    "SignsOfLife",
    "StoreHandler",
    "get",
    "sole_error",
    "storage_roles",
]

GET_SECONDS: Final = 600.0
"""How long a C-GET may go without a sign of life: a response, or a sub-operation that reaches us."""

StoreHandler = Callable[["Association", "Incoming"], "Awaitable[Completion | None]"]
"""`StorageScp.handle`, or what does the same: reads the dataset, answers, or returns what will."""


def storage_roles(sop_class_uids: Iterable[str]) -> tuple[RoleSelection, ...]:
    """The role items with which a requestor becomes the SCP of the sub-operations (PS3.7 §D.3.3.4)."""
    return tuple(
        RoleSelection(sop_class_uid=uid, scu=False, scp=True)
        for uid in dict.fromkeys(sop_class_uids)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveResponse:
    """One C-GET-RSP or C-MOVE-RSP. Numbers that did not come are None; what came is the receiver's to count."""

    status: int
    remaining: int | None = None
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None
    failed_sop_instance_uids: tuple[str, ...] = ()
    offending: tuple[int, ...] = ()
    error_comment: str = ""

    @property
    def pending(self) -> bool:
        return self.status in (statuses.PENDING, statuses.PENDING_OPTIONAL_KEYS)

    @property
    def promised(self) -> int | None:
        """How many instances the peer counts as sent, or as remaining; None where it counts none.

        What it lists as failed, and does not count so, it left among the remaining ones.
        """
        if self.completed is None and self.warning is None:
            return None
        uncounted = max(0, len(self.failed_sop_instance_uids) - (self.failed or 0))
        remaining = max(0, (self.remaining or 0) - uncounted)
        return (self.completed or 0) + (self.warning or 0) + remaining


# -- the SCU ------------------------------------------------------------------------------------


async def get(
    association: Association,
    model: QueryModel,
    identifier: GivenIdentifier,
    store: StoreHandler,
    *,
    priority: int = Priority.MEDIUM,
    on_pending: Callable[[RetrieveResponse], None] | None = None,
    cancel: trio.Event | None = None,
    cancel_seconds: float | None = None,
    seconds: float | None = GET_SECONDS,
) -> RetrieveResponse:
    """One C-GET; its sub-operations go to `store` while it runs. Returns the final response.

    identifier: a dataset, bytes in the context's transfer syntax, or what encodes it. cancel: once set, a
    C-CANCEL goes out, and what still comes is stored; a peer that sends more after `cancel_seconds`
    ignores it: PeerTimeout. seconds: without any sign of life.
    Raises NoAcceptedContext, PeerTimeout, AssociationAborted, RemoteProtocolError, TransportError.
    """
    context = context_for_model(association, model.get_uid)
    started = time.perf_counter()
    scu = RetrieveScu(association, context, "C-GET", seconds=seconds)
    request = CGetRq(
        message_id=scu.message_id, affected_sop_class_uid=model.get_uid, priority=priority
    )
    await association.send(
        context.context_id, request, encoded(identifier, context.transfer_syntax)
    )
    async with scu.cancelled_by(cancel, cancel_seconds):
        response = await _Get(scu, store, on_pending).run()
    scu.ended(response, started)
    return response


class SignsOfLife:
    """When a retrieve last showed that it goes on, beside its responses: whoever sees it, touches it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = trio.current_time()

    def touch(self) -> None:
        self.last = trio.current_time()


class RetrieveScu:
    """What C-GET and C-MOVE share as SCUs: the message ID, C-CANCEL, responses, and how long to wait.

    One task receives, within `cancelled_by`; `ended` closes it.
    """

    def __init__(
        self,
        association: Association,
        context: AcceptedContext,
        service: str,
        *,
        seconds: float | None,
        signs: SignsOfLife | None = None,
    ) -> None:
        """seconds: without a message of the peer, and without a sign of life where there are any."""
        self.association = association
        self.message_id = association.next_message_id()
        self._context_id = context.context_id
        self._service = service
        self._seconds = seconds
        self._signs = signs
        self._receiving = False
        self._cancelled = False
        self._ignored: PeerTimeout | None = None
        self._overdue: PeerTimeout | None = None
        self._until = 0.0

    async def receive(self) -> Incoming:
        """The next message of the peer, whatever it is.

        Without a sign of life for too long the peer is asked to end it, and has a little time to do so.
        PeerTimeout names the service where nothing came, and "C-CANCEL" where one was ignored.
        """
        association = self.association
        left = self._seconds
        while True:
            if self._ignored is not None:
                raise self._ignored
            if self._overdue is not None:
                left = self._until - trio.current_time()
                if left <= 0:
                    raise self._overdue
            self._receiving = True
            try:
                incoming = await association.receive(seconds=left, phase=self._service)
            except PeerTimeout as exc:
                if exc.phase != self._service or self._seconds is None:
                    raise
                if self._overdue is not None:
                    continue
                left = 0.0
                if self._signs is not None:
                    left = self._signs.last + self._seconds - trio.current_time()
                if left <= 0:
                    await self._end_overdue(self._seconds)
                continue
            finally:
                self._receiving = False
            if incoming is None:
                raise AssociationAborted(
                    0, 0, f"{association.peer} released the association within a {self._service}"
                )
            return incoming

    async def _end_overdue(self, seconds: float) -> None:
        """The deadline has passed: a C-CANCEL, unless there was one; the PeerTimeout is raised later."""
        self._overdue = PeerTimeout(self._service, seconds)
        if not self._cancelled:
            self._until = trio.current_time() + min(CANCEL_SECONDS, seconds)
            await self._send_cancel()

    async def response(self, incoming: Incoming) -> RetrieveResponse:
        """The response that came last, its dataset read; RemoteProtocolError where it is none of ours.

        PeerTimeout where it ends, without success, what was overdue.
        """
        association = self.association
        message = incoming.message
        assert isinstance(message, CGetRsp | CMoveRsp)  # the callers look at the type
        if message.message_id_being_responded_to != self.message_id:
            raise RemoteProtocolError(
                f"{association.peer} sent a {type(message).__name__} to no request of ours",
                source=0,
                reason=0,
            )
        listed: tuple[str, ...] = ()
        if message.has_dataset:
            # The list is a hint. One too long to keep says no less than the counts do.
            data = await association.read_dataset_bytes(IDENTIFIER_LENGTH_MAX)
            listed = decode_uid_list(data or b"", incoming.context.transfer_syntax)
        response = RetrieveResponse(
            status=message.status,
            remaining=message.number_of_remaining_suboperations,
            completed=message.number_of_completed_suboperations,
            failed=message.number_of_failed_suboperations,
            warning=message.number_of_warning_suboperations,
            failed_sop_instance_uids=listed,
            offending=message.offending_element or (),
            error_comment=message.error_comment or "",
        )
        if self._overdue is not None and not response.pending and response.status:
            raise self._overdue
        return response

    def ended(self, response: RetrieveResponse, started: float) -> None:
        """The final response has come; started: by time.perf_counter."""
        association = self.association
        association.message_ids.give_back(self.message_id)
        seconds = time.perf_counter() - started
        association.observer.operation(self._service, "out", response.status, seconds, 0)

    @asynccontextmanager
    async def cancelled_by(
        self, event: trio.Event | None, seconds: float | None
    ) -> AsyncIterator[None]:
        """During the block, sends a C-CANCEL when `event` is set.

        seconds: after it the peer may finish the sub-operation that it is at, and no more.
        """
        if event is None:
            yield
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel, event, seconds)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise sole_error(group) from None

    async def _cancel(self, event: trio.Event, seconds: float | None) -> None:
        await event.wait()
        if self._cancelled or not await self._send_cancel() or seconds is None:
            return
        await trio.sleep(seconds)
        hint = f"{self.association.peer} goes on with the {self._service} all the same"
        self._ignored = PeerTimeout("C-CANCEL", seconds, hint)
        if self._receiving:
            raise self._ignored

    async def _send_cancel(self) -> bool:
        """False where the association is ending: its reader raises why."""
        self._cancelled = True
        request = CCancelRq(message_id_being_responded_to=self.message_id)
        try:
            self.association.queue(self._context_id, request)
        except LocalProtocolError:
            return False
        # The final response may come meanwhile; a send that it cut short would break the association.
        with trio.CancelScope(shield=True):
            await self.association.flush()
        return True


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What the caller of one operation is to see: the first error that is not a mere cancellation."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((e for e in leaves if not isinstance(e, trio.Cancelled)), leaves[0])


class _Get:
    """The SCU's side of one C-GET: stores what comes, until the final response."""

    def __init__(
        self,
        scu: RetrieveScu,
        store: StoreHandler,
        on_pending: Callable[[RetrieveResponse], None] | None,
    ) -> None:
        self._scu = scu
        self._association = scu.association
        self._store = store
        self._on_pending = on_pending

    async def run(self) -> RetrieveResponse:
        window = self._association.agreement.window_performed
        if window <= 1:
            return await self._receive_all(None, trio.Semaphore(0))
        try:
            async with trio.open_nursery() as nursery:
                return await self._receive_all(nursery, trio.Semaphore(window - 1))
        except BaseExceptionGroup as group:
            raise sole_error(group) from None

    async def _receive_all(
        self, nursery: trio.Nursery | None, slots: trio.Semaphore
    ) -> RetrieveResponse:
        association = self._association
        while True:
            incoming = await self._scu.receive()
            message = incoming.message
            if isinstance(message, CStoreRq):
                completion = await self._store(association, incoming)
                if completion is None:
                    continue
                if nursery is None:
                    await completion()
                    continue
                # What the window allows runs at once; the rest is not read. It is started before the
                # wait, for what is never started would never let go of its file.
                nursery.start_soon(self._complete, completion, slots)
                await slots.acquire()
            elif isinstance(message, CGetRsp):
                response = await self._scu.response(incoming)
                if not response.pending:
                    return response
                if self._on_pending is not None:
                    self._on_pending(response)
            else:
                await refuse_stray(association, incoming)

    async def _complete(self, completion: Completion, slots: trio.Semaphore) -> None:
        try:
            await completion()
            await self._association.flush()
        finally:
            slots.release()


# -- the SCP ------------------------------------------------------------------------------------


class GetScp:
    """Answers C-GET by sending what `select` names, on the same association.

    An instance for which there is no context, or no SCP role of the requestor, counts as failed.
    encoded: `select` is an EncodedSelection, not a Selection. relational: it needs no unique keys above
    the level, and says so where it is asked (PS3.4 §C.5.3).
    """

    def __init__(
        self,
        select: Selection | EncodedSelection,
        *,
        encoded: bool = False,
        models: Iterable[QueryModel] = (QueryModel.PATIENT_ROOT, QueryModel.STUDY_ROOT),
        extra_classes: Iterable[str] = (),
        transfer_syntaxes: tuple[str, ...] = (),
        relational: bool = False,
    ) -> None:
        classes = {model.get_uid: model for model in models}
        self._selector = Selector(select, classes, encoded=encoded)
        storage = SupportedContext(transfer_syntaxes=transfer_syntaxes, accept_scp_role=True)
        self._contexts = {
            **dict.fromkeys((*uids.STORAGE_SOP_CLASSES, *extra_classes), storage),
            **dict.fromkeys(
                classes,
                SupportedContext(
                    transfer_syntaxes=QUERY_SYNTAXES,
                    extended=RETRIEVE_SUPPORTED if relational else b"",
                ),
            ),
        }

    def contexts(self) -> Mapping[str, SupportedContext]:
        return self._contexts

    def handles(self) -> tuple[type[DimseMessage], ...]:
        return (CGetRq,)

    async def handle(self, association: Association, incoming: Incoming) -> None:
        """Reads the identifier, performs the sub-operations; the final response is queued."""
        started = time.perf_counter()
        context, request = incoming
        assert isinstance(request, CGetRq)  # the provider dispatches by type
        length = 0
        try:
            asked = await self._selector.read(association, incoming)
            selected = await self._selector.select(association, *asked)
        except QueryRefused as refused:
            status = refused.status
            response = response_to(request, status, refused.comment, refused.offending)
            association.queue(context.context_id, response)
        else:
            sending = _Sending(association, context, request, selected)
            status = await sending.run()
            length = sending.counts.length
        seconds = time.perf_counter() - started
        association.observer.operation("C-GET", "in", status, seconds, length)


class _Sending:
    """The sub-operations of one C-GET, on the association that it came on."""

    def __init__(
        self,
        association: Association,
        context: AcceptedContext,
        request: CGetRq,
        selected: Sequence[StoredInstance],
    ) -> None:
        self.counts = SubOperations(association, context, request, len(selected))
        self._association = association
        self._selected = iter(selected)
        self._ahead: OutgoingInstance | None = None
        self._watch = CancelWatch(association, request.message_id)
        self._said = time.perf_counter()

    async def run(self) -> int:
        """Performs them and queues the final response; returns its status."""
        scu = StorageScu(self._association, on_other=self._other)
        try:
            await scu.run(self._take, self._report, self._look_ahead)
        finally:
            if self._ahead is not None:
                self._ahead.close()
        # With nothing outstanding, a C-CANCEL may still have come for instances that failed at once.
        await self._watch.poll()
        status = self.counts.final_status(cancelled=self._watch.cancelled)
        self.counts.respond(status)
        return status

    async def _take(self) -> OutgoingInstance | None:
        """The next instance that can be sent; None at the end, and after a C-CANCEL."""
        while not self._watch.cancelled:
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                return ahead
            stored = next(self._selected, None)
            if stored is None:
                return None
            self._ahead = self._open(stored)
            if self._ahead is None:
                await trio.lowlevel.checkpoint()
        return None

    def _look_ahead(self) -> None:
        """Opens the next one while the peer is busy with what it has."""
        if self._ahead is None and (stored := next(self._selected, None)) is not None:
            self._ahead = self._open(stored)

    def _open(self, stored: StoredInstance) -> OutgoingInstance | None:
        """None, and counted as failed, where the peer takes none of its class, or the file is gone."""
        if self._association.agreement.roles_for(stored.sop_class_uid)[1]:
            with suppress(InstanceError, OSError):
                return stored.open()
        self.counts.fail(stored.sop_instance_uid)
        return None

    def _report(self, outcome: StoreOutcome) -> None:
        outcome.instance.close()
        self.counts.ended(outcome)
        now = time.perf_counter()
        if now - self._said >= PENDING_SECONDS and outcome.error is None:
            self._said = now
            self.counts.respond(statuses.PENDING)

    async def _other(self, incoming: Incoming) -> None:
        await answer_beside(self._association, incoming, self._watch, "C-GET")
