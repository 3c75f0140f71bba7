"""Query (PS3.4 Annexes C, K and CC): C-FIND in both roles, for every model that has it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import trio

from dcmhaul import uids
from dcmhaul.errors import AssociationAborted, NoAcceptedContext, PeerTimeout, RemoteProtocolError
from dcmhaul.protocol import statuses
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CFindRq,
    CFindRsp,
    DimseMessage,
    Priority,
    Request,
    response_to,
)
from dcmhaul.protocol.negotiation import SupportedContext
from dcmhaul.services.extended import BASELINE, FindOptions
from dcmhaul.services.identifiers import (
    IDENTIFIER_LENGTH_MAX,
    QUERY_SYNTAXES,
    EncodedIdentifier,
    GivenIdentifier,
    QueryRefused,
    decode_identifier,
    encode_identifier,
    encoded,
)
from dcmhaul.services.provider import HeldRequest, refuse_stray

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom.dataset import Dataset

    from dcmhaul.net import Association, Incoming
    from dcmhaul.protocol.negotiation import AcceptedContext

__all__ = [
    "CANCEL_SECONDS",
    "CancelWatch",
    "EncodedAnswer",
    "FindAnswer",
    "FindResponse",
    "FindScp",
    "QueryModel",
    "QueryRefused",
    "context_for_model",
    "find",
    "read_encoded_identifier",
    "read_identifier",
    "unable_to_process",
]

_LOG: Final = logging.getLogger(__name__)

CANCEL_SECONDS: Final = 20.0
"""How long a peer may go on after a C-CANCEL before it is aborted; some ignore it."""

# Matches gather before they leave in one system call; the peer's C-CANCEL is looked for as often.
FLUSH_BYTES: Final = 32 * 1024
FLUSH_SECONDS: Final = 0.1
# pydicom encodes for a quarter of a millisecond a match; other associations get their turn between.
CHECKPOINT_MATCHES: Final = 16
# pydicom works for milliseconds on an identifier of this size; a thread then keeps others going.
_THREAD_LENGTH: Final = 64 * 1024


class QueryModel(Enum):
    """An information model, with its SOP classes: find, get, move ("" where there is none)."""

    PATIENT_ROOT = (uids.PATIENT_ROOT_FIND, uids.PATIENT_ROOT_GET, uids.PATIENT_ROOT_MOVE)
    STUDY_ROOT = (uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_GET, uids.STUDY_ROOT_MOVE)
    PATIENT_STUDY_ONLY = (
        uids.PATIENT_STUDY_ONLY_FIND,
        uids.PATIENT_STUDY_ONLY_GET,
        uids.PATIENT_STUDY_ONLY_MOVE,
    )
    WORKLIST = (uids.MODALITY_WORKLIST_FIND, "", "")
    UNIFIED_STEP_PULL = (uids.UNIFIED_STEP_PULL, "", "")
    UNIFIED_STEP_WATCH = (uids.UNIFIED_STEP_WATCH, "", "")
    UNIFIED_STEP_QUERY = (uids.UNIFIED_STEP_QUERY, "", "")

    @property
    def find_uid(self) -> str:
        return self.value[0]

    @property
    def get_uid(self) -> str:
        return self.value[1]

    @property
    def move_uid(self) -> str:
        return self.value[2]


def context_for_model(association: Association, abstract_syntax: str) -> AcceptedContext:
    """The context of a query or retrieve class; NoAcceptedContext where the peer accepted none."""
    context = association.agreement.context_for(abstract_syntax)
    if context is None:
        raise NoAcceptedContext(
            f"{association.peer} accepted no context for {uids.name(abstract_syntax)}"
        )
    return context


# -- the SCU ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FindResponse:
    """One C-FIND-RSP. Pending ones (FF00, FF01) hold a match, encoded in `transfer_syntax`.

    offending: the tags that the peer objects to.
    """

    status: int
    identifier: bytes | None
    transfer_syntax: str
    error_comment: str = ""
    offending: tuple[int, ...] = ()

    @property
    def pending(self) -> bool:
        return self.status in (statuses.PENDING, statuses.PENDING_OPTIONAL_KEYS)

    def dataset(self) -> Dataset:
        """The match, by pydicom. ValueError where there is none, or it cannot be decoded."""
        if self.identifier is None:
            raise ValueError("a response without an identifier")
        return decode_identifier(self.identifier, self.transfer_syntax)


@asynccontextmanager
async def find(
    association: Association,
    model: QueryModel,
    identifier: GivenIdentifier,
    *,
    priority: int = Priority.MEDIUM,
    cancel_after: int | None = None,
) -> AsyncIterator[AsyncIterator[FindResponse]]:
    """One C-FIND (PS3.7 §9.1.2): `async with find(...) as responses: async for response in responses`.

    The last response is the final one, whatever its status. identifier: a dataset, bytes in the
    context's transfer syntax, or what encodes it. cancel_after: sends a C-CANCEL after so many matches; what
    still comes is given out too, for CANCEL_SECONDS, then PeerTimeout. A block that is left early
    cancels and drops the rest.
    Raises NoAcceptedContext, PeerTimeout, AssociationAborted, RemoteProtocolError, TransportError.
    """
    operation = _Find(association, model, cancel_after)
    await operation.request(identifier, priority)
    responses = operation.responses()
    async with aclosing(responses):
        yield responses
        if not operation.ended:
            await operation.cancel()
            async for _ in responses:
                pass


class _Find:
    def __init__(
        self, association: Association, model: QueryModel, cancel_after: int | None
    ) -> None:
        self.ended = False
        self._association = association
        self._context = context_for_model(association, model.find_uid)
        self._class_uid = model.find_uid
        self._cancel_after = cancel_after
        self._cancelled = False
        self._until = math.inf
        self._message_id = 0

    async def request(self, identifier: GivenIdentifier, priority: int) -> None:
        context = self._context
        self._message_id = self._association.next_message_id()
        request = CFindRq(
            message_id=self._message_id,
            affected_sop_class_uid=self._class_uid,
            priority=priority,
        )
        await self._association.send(
            context.context_id, request, encoded(identifier, context.transfer_syntax)
        )

    async def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._until = trio.current_time() + CANCEL_SECONDS
            await self._association.send(
                self._context.context_id,
                CCancelRq(message_id_being_responded_to=self._message_id),
            )

    async def responses(self) -> AsyncGenerator[FindResponse, None]:
        started = time.perf_counter()
        matches = length = 0
        while True:
            response = await self._next()
            length += len(response.identifier or b"")
            if not response.pending:
                break
            matches += 1
            yield response
            if matches == self._cancel_after:
                await self.cancel()
        self.ended = True
        self._association.message_ids.give_back(self._message_id)
        seconds = time.perf_counter() - started
        self._association.observer.operation("C-FIND", "out", response.status, seconds, length)
        yield response

    async def _receive(self) -> Incoming | None:
        """What comes next; PeerTimeout in time, also where a peer goes on for ever after a C-CANCEL."""
        association = self._association
        seconds = association.timeouts.dimse
        left = self._until - trio.current_time()
        if left == math.inf:
            return await association.receive(seconds=seconds, phase="C-FIND response")
        if seconds is not None and seconds < left:
            return await association.receive(seconds=seconds, phase="C-FIND response")
        if left > 0:
            with trio.move_on_after(left):
                return await association.receive(seconds=None, phase="C-CANCEL")
        hint = f"{association.peer} goes on with the C-FIND all the same"
        raise PeerTimeout("C-CANCEL", CANCEL_SECONDS, hint)

    async def _next(self) -> FindResponse:
        association = self._association
        while True:
            incoming = await self._receive()
            if incoming is None:
                raise AssociationAborted(
                    0, 0, f"{association.peer} released the association instead of answering C-FIND"
                )
            message = incoming.message
            if isinstance(message, CFindRsp):
                break
            await refuse_stray(association, incoming)
        if message.message_id_being_responded_to != self._message_id:
            raise RemoteProtocolError(
                f"{association.peer} sent a CFindRsp to no request of ours", source=0, reason=0
            )
        identifier = None
        if message.has_dataset:
            identifier = await association.read_dataset_bytes(IDENTIFIER_LENGTH_MAX)
            if identifier is None:
                raise RemoteProtocolError(
                    f"{association.peer} sent a match of more than {IDENTIFIER_LENGTH_MAX} bytes",
                    source=0,
                    reason=0,
                )
        return FindResponse(
            status=message.status,
            identifier=identifier,
            transfer_syntax=incoming.context.transfer_syntax,
            error_comment=message.error_comment or "",
            offending=message.offending_element or (),
        )


# -- the SCP ------------------------------------------------------------------------------------

FindAnswer = Callable[["QueryModel", "Dataset", str], "AsyncIterable[Dataset] | Iterable[Dataset]"]
"""Model, identifier, calling AE title -> the matches. May raise QueryRefused, also half way."""

EncodedAnswer = Callable[["QueryModel", EncodedIdentifier, str], "AsyncIterable[bytes]"]
"""The same for those who need no pydicom: the matches are encoded as the identifier is."""


class CancelWatch:
    """Whether the peer cancelled a request of its own that is being answered; it never waits."""

    __slots__ = ("_association", "_held", "cancelled", "message_id")

    def __init__(self, association: Association, message_id: int) -> None:
        self.cancelled = False
        self._association = association
        self.message_id = message_id
        self._held = False

    async def poll(self) -> bool:
        """Looks at what has arrived. A further request is left for later, and ends the looking."""
        while not (self.cancelled or self._held):
            incoming = self._association.receive_nowait()
            if incoming is None:
                break
            if isinstance(incoming.message, CCancelRq):
                await self.note(incoming)
            else:
                self._held = True
                self._association.push_back(incoming)
        return self.cancelled

    async def note(self, incoming: Incoming) -> None:
        """A C-CANCEL-RQ: for this request, or for one that is held, which then ends before it began.

        For any other it came too late, or for nothing.
        """
        message = incoming.message
        if message.has_dataset:
            await self._association.read_dataset(None)
        assert isinstance(message, CCancelRq)  # the callers look at the type
        message_id = message.message_id_being_responded_to
        if message_id == self.message_id:
            self.cancelled = True
            return
        for held in self._association.held:
            if isinstance(held.message, Request) and held.message.message_id == message_id:
                self._association.held.remove(held)
                response = response_to(held.message, statuses.CANCEL)
                self._association.queue(held.context.context_id, response)
                return


async def read_identifier(association: Association, incoming: Incoming) -> Dataset:
    """The identifier of a request for a query or retrieve; QueryRefused where it is none."""
    found = await read_encoded_identifier(association, incoming)
    data, syntax = found.data, found.transfer_syntax
    try:
        if len(data) > _THREAD_LENGTH:
            return await trio.to_thread.run_sync(decode_identifier, data, syntax)
        return decode_identifier(data, syntax)
    except ValueError as exc:
        raise QueryRefused(statuses.CANNOT_UNDERSTAND, str(exc)) from exc


async def read_encoded_identifier(
    association: Association, incoming: Incoming
) -> EncodedIdentifier:
    """The bytes of an identifier, not looked into; QueryRefused where there are none."""
    context, message = incoming
    data = None
    if isinstance(incoming, HeldRequest):
        data = incoming.identifier
    elif message.has_dataset:
        data = await association.read_dataset_bytes(IDENTIFIER_LENGTH_MAX)
    if getattr(message, "affected_sop_class_uid", None) != context.abstract_syntax:
        raise QueryRefused(statuses.SOP_CLASS_NOT_SUPPORTED, "SOP Class is not that of the context")
    if not message.has_dataset:
        raise QueryRefused(statuses.DATASET_MISMATCH, "no identifier")
    if data is None:
        raise QueryRefused(
            statuses.CANNOT_UNDERSTAND, f"identifier above {IDENTIFIER_LENGTH_MAX} bytes"
        )
    return EncodedIdentifier(
        data=data,
        transfer_syntax=context.transfer_syntax,
        extended=association.agreement.extended.get(context.abstract_syntax, b""),
        called_ae_title=association.agreement.called_ae_title,
    )


def unable_to_process(error: Exception) -> QueryRefused:
    """The final response to an error of ours. The log gets where it was, for its text may quote keys."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
    _LOG.error("%s at %s while a query or retrieve was answered", type(error).__name__, where)
    return QueryRefused(statuses.CANNOT_UNDERSTAND, f"unable to process ({type(error).__name__})")


class FindScp:
    """Answers C-FIND with what `answer` finds, as it finds it.

    encoded: `answer` is an EncodedAnswer, not a FindAnswer. options: what it may be agreed to do.
    matches_max: after so many the final response is A700 and names the limit; None is no limit.
    """

    def __init__(
        self,
        answer: FindAnswer | EncodedAnswer,
        *,
        encoded: bool = False,
        models: Iterable[QueryModel] = (QueryModel.PATIENT_ROOT, QueryModel.STUDY_ROOT),
        matches_max: int | None = None,
        options: FindOptions = BASELINE,
    ) -> None:
        self._answer: Callable[..., Any] = answer
        self._read = read_encoded_identifier if encoded else read_identifier
        self._models = {model.find_uid: model for model in models}
        self._matches_max = matches_max
        self._extended = options.encode()

    def contexts(self) -> Mapping[str, SupportedContext]:
        return dict.fromkeys(
            self._models,
            SupportedContext(transfer_syntaxes=QUERY_SYNTAXES, extended=self._extended),
        )

    def handles(self) -> tuple[type[DimseMessage], ...]:
        return (CFindRq,)

    async def handle(self, association: Association, incoming: Incoming) -> None:
        """Reads the identifier, streams the matches; the final response is queued."""
        started = time.perf_counter()
        context, request = incoming
        assert isinstance(request, CFindRq)  # the provider dispatches by type
        comment = ""
        offending: tuple[int, ...] = ()
        stream = _MatchStream(association, context, request)
        try:
            model = self._models.get(context.abstract_syntax)
            identifier = await self._read(association, incoming)
            if model is None:
                raise QueryRefused(statuses.SOP_CLASS_NOT_SUPPORTED, "no such model here")
            status = await self._send_matches(stream, model, identifier)
        except QueryRefused as refused:
            status, comment, offending = refused.status, refused.comment, refused.offending
        response = response_to(request, status, comment, offending)
        association.queue(context.context_id, response)
        seconds = time.perf_counter() - started
        association.observer.operation("C-FIND", "in", status, seconds, stream.length)

    async def _send_matches(
        self, stream: _MatchStream, model: QueryModel, identifier: Dataset | EncodedIdentifier
    ) -> int:
        calling = stream.association.agreement.calling_ae_title
        async with aclosing(_guarded(self._answer, model, identifier, calling)) as matches:
            async for match in matches:
                if stream.count == self._matches_max:
                    raise QueryRefused(
                        statuses.OUT_OF_RESOURCES, f"more matches than the limit {stream.count}"
                    )
                if await stream.send(match):
                    return statuses.CANCEL
        return statuses.CANCEL if await stream.watch.poll() else statuses.SUCCESS


async def _guarded(
    answer: Callable[..., Any],
    model: QueryModel,
    identifier: Dataset | EncodedIdentifier,
    calling: str,
) -> AsyncGenerator[Dataset | bytes, None]:
    """The matches; an error of what finds them becomes QueryRefused, so that the peer gets an answer."""
    try:
        matches = answer(model, identifier, calling)
        if isinstance(matches, AsyncGenerator):
            async with aclosing(matches):
                async for match in matches:
                    yield match
        elif isinstance(matches, AsyncIterable):
            async for match in matches:
                yield match
        else:
            for match in matches:
                yield match
    except QueryRefused:
        raise
    except Exception as exc:
        raise unable_to_process(exc) from exc


class _MatchStream:
    """Pending responses of one C-FIND on their way out."""

    def __init__(
        self, association: Association, context: AcceptedContext, request: CFindRq
    ) -> None:
        self.association = association
        self.watch = CancelWatch(association, request.message_id)
        self.count = 0
        self.length = 0
        self._context = context
        self._pending = CFindRsp(
            message_id_being_responded_to=request.message_id,
            status=statuses.PENDING,
            affected_sop_class_uid=request.affected_sop_class_uid,
            has_dataset=True,
        )
        self._queued = 0
        self._flushed = 0.0

    async def send(self, match: Dataset | bytes) -> bool:
        """Queues one match. True where the peer has cancelled."""
        if isinstance(match, bytes):
            data = match
        else:
            try:
                data = encode_identifier(match, self._context.transfer_syntax)
            except ValueError as exc:
                raise QueryRefused(statuses.CANNOT_UNDERSTAND, str(exc)) from exc
        self.association.queue(self._context.context_id, self._pending, data)
        self.count += 1
        self.length += len(data)
        self._queued += len(data)
        now = time.perf_counter()
        # The first one leaves at once: somebody waits for it.
        if self._queued < FLUSH_BYTES and now - self._flushed < FLUSH_SECONDS:
            if self.count % CHECKPOINT_MATCHES == 0:
                await trio.lowlevel.checkpoint()
            return False
        self._queued, self._flushed = 0, now
        await self.association.flush()
        await trio.lowlevel.checkpoint()
        return await self.watch.poll()
