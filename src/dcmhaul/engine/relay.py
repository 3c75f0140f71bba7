"""A relay: what a C-GET brings from one association goes out on another, slice by slice.

No object is ever whole in memory, and none touches the disk. The source gets its answer after the
destination gave its own; what a destination said is reported once, whatever the source was told. It
keeps no ledger and decides no retry.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from dcmhaul import crash
from dcmhaul.engine.pool import ASSOCIATION_ERRORS
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import (
    AssociationAborted,
    CannotReencode,
    DcmhaulError,
    NoAcceptedContext,
    PeerTimeout,
    RemoteProtocolError,
    TransportError,
)
from dcmhaul.objects.canonical import ContentDigest, DatasetDigest
from dcmhaul.objects.instances import (
    IncomingInstance,
    SinkFactory,
    StorageSink,
    StoreRefused,
    StoreReply,
)
from dcmhaul.objects.reencode import UNCOMPRESSED, Reencoder
from dcmhaul.protocol.dimse import CStoreRq, CStoreRsp
from dcmhaul.services.provider import refuse_stray

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dcmhaul.net import Association, DatasetSlices, DatasetWriter, Incoming
    from dcmhaul.protocol.negotiation import AcceptedContext

__all__ = [
    "Destination",
    "FolderDestination",
    "PeerDestination",
    "Receiver",
    "RelayOutcome",
]

ANSWER_SECONDS: Final = 8.0
"""How long the source waits for the destination's answer; some SCPs give up after 10 s."""

DIGEST_THREAD_BYTES: Final = 65536
"""From this size on a piece is digested in a thread while it is sent: SHA-256 costs more than sending."""

OUT_OF_RESOURCES: Final = 0xA700
CLASS_NOT_SUPPORTED: Final = 0x0122


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOutcome:
    """What became of one instance at the destination.

    status: of its C-STORE-RSP; None where there was none, and then `error` says why. unknown: the whole
    instance had left, so that only the destination knows whether it holds it. length, sha256: of the
    dataset as it was received; content: of what it says, where that was asked for. seconds: from the
    first byte of the C-STORE-RQ to the answer.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    status: int | None
    error_comment: str = ""
    error: DcmhaulError | None = None
    unknown: bool = False
    length: int = 0
    sha256: bytes | None = None
    content: ContentDigest | None = None
    seconds: float = 0.0


class Receiver(Protocol):
    """One instance on its way to the destination.

    `write` any number of times, then `end`, then `answer`, which may run in another task; or `broken`
    where the source's message, or one of the calls before `answer`, broke off.
    """

    async def write(self, data: DatasetSlices) -> None: ...
    async def end(self) -> None: ...
    async def answer(self) -> StoreReply: ...
    async def broken(self) -> None: ...


class Destination(Protocol):
    """Where instances go: an association, or a folder."""

    @property
    def failure(self) -> DcmhaulError | None:
        """Why it takes nothing more, or None."""

    @property
    def failed(self) -> trio.Event:
        """Set together with `failure`."""

    def accepts(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool: ...
    async def settled(self) -> None:
        """Returns when every instance that it was given is reported."""

    def open(self, instance: IncomingInstance) -> Receiver:
        """StoreRefused where it cannot take this instance."""


# -- the destination is an association ----------------------------------------------------------------


class PeerDestination:
    """The C-STORE SCU of a relay. One task streams into it; its own task reads the responses.

    Invariant: a message ID is in `_unanswered` from before its C-STORE-RQ leaves until its response came
    or the association failed; each instance that was tried is reported exactly once.
    """

    def __init__(
        self,
        association: Association,
        report: Callable[[RelayOutcome], None],
        *,
        window: int,
        answer_seconds: float = ANSWER_SECONDS,
        content: bool = False,
        reencoded: Callable[[str, str], None] | None = None,
    ) -> None:
        self.association: Final = association
        self._reencoded = reencoded
        self.content: Final = content
        self.failure: DcmhaulError | None = None
        self.failed: Final = trio.Event()
        self.blameless = False
        """The failure is ours or the source's: a new association may be opened at once."""
        self._report = report
        self._window = max(1, min(window, association.agreement.window_invoked))
        self._answer_seconds = answer_seconds
        self._unanswered: dict[int, _Forward] = {}
        self._changed = trio.Event()
        self._wait_scope = trio.CancelScope()
        self._read_scope = trio.CancelScope()
        self._reading_ended = trio.Event()

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        association: Association,
        report: Callable[[RelayOutcome], None],
        *,
        window: int,
        answer_seconds: float = ANSWER_SECONDS,
        content: bool = False,
        reencoded: Callable[[str, str], None] | None = None,
    ) -> AsyncIterator[PeerDestination]:
        """Reads responses during the block; on a clean exit first waits for those that are due.

        content: digests what the instances say as well (`RelayOutcome.content`). reencoded: hears of the two
        syntaxes of each instance that leaves in another one than it came in; without it none does.
        """
        destination = cls(
            association,
            report,
            window=window,
            answer_seconds=answer_seconds,
            content=content,
            reencoded=reencoded,
        )
        async with flat_nursery() as nursery:
            nursery.start_soon(destination._read_responses)
            try:
                yield destination
                await destination.settled()
            finally:
                nursery.cancel_scope.cancel()
                destination._fail(
                    AssociationAborted(0, 0, "the transfer was broken off"), aborted=True
                )

    def context_for(self, sop_class_uid: str, transfer_syntax_uid: str) -> AcceptedContext | None:
        """Where such an instance leaves, as it is or re-encoded."""
        syntaxes: tuple[str, ...] = (transfer_syntax_uid,)
        if self._reencoded is not None and transfer_syntax_uid in UNCOMPRESSED:
            syntaxes += UNCOMPRESSED
        return self.association.agreement.context_for(sop_class_uid, syntaxes)

    def accepts(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        return self.context_for(sop_class_uid, transfer_syntax_uid) is not None

    def open(self, instance: IncomingInstance) -> _Forward:
        forward = _Forward(self, instance)
        if self.failure is not None:
            # Nothing was tried with it, so there is nothing to report.
            raise StoreRefused(
                StoreReply(status=OUT_OF_RESOURCES, error_comment="the destination was lost")
            )
        if not self.accepts(instance.sop_class_uid, instance.transfer_syntax_uid):
            error = NoAcceptedContext(
                f"{self.association.peer} accepted no context for {instance.sop_class_uid} in "
                f"{instance.transfer_syntax_uid}"
            )
            self._report(forward.outcome(error=error))
            raise StoreRefused(
                StoreReply(
                    status=CLASS_NOT_SUPPORTED, error_comment="no context at the destination"
                )
            )
        return forward

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _slot(self) -> None:
        """Waits for room in the window; raises the failure where there is one."""
        while self.failure is None and len(self._unanswered) >= self._window:
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure

    async def settled(self) -> None:
        """Returns when nothing is outstanding any more."""
        while self._unanswered and self.failure is None:
            await self._changed.wait()

    def _set_deadline(self) -> None:
        """The response that is due first has its time from the end of its request, or of the last one."""
        seconds = self.association.timeouts.dimse
        due = [f.due_from for f in self._unanswered.values() if f.due_from is not None]
        self._wait_scope.deadline = (
            min(due) + seconds if due and seconds is not None else float("inf")
        )

    async def _abort(self, writer: DatasetWriter | None) -> None:
        """A-ABORT from the task that streams; closing reads on, so our reader has to end before."""
        self._read_scope.cancel()
        with trio.CancelScope(shield=True):
            await self._reading_ended.wait()
        if writer is not None:
            await writer.aclose()

    async def _read_responses(self) -> None:
        try:
            with self._read_scope:
                await self._read_until_failure()
        finally:
            self._reading_ended.set()

    async def _read_until_failure(self) -> None:
        association = self.association
        try:
            while True:
                with trio.CancelScope() as self._wait_scope:
                    self._set_deadline()
                    incoming = await association.receive()
                if self._wait_scope.cancelled_caught:
                    raise PeerTimeout("C-STORE response", association.timeouts.dimse or 0.0)
                if incoming is None:
                    raise AssociationAborted(
                        0, 0, f"{association.peer} released the association during the transfer"
                    )
                await self._response(incoming)
        except ASSOCIATION_ERRORS as error:
            self._fail(error)

    async def _response(self, incoming: Incoming) -> None:
        association = self.association
        response = incoming.message
        if crash.armed:
            crash.passed("rsp.received")
        if not isinstance(response, CStoreRsp):
            await refuse_stray(association, incoming)
            return
        if response.has_dataset:
            await association.read_dataset(None)
        forward = self._unanswered.pop(response.message_id_being_responded_to, None)
        if forward is None:
            raise RemoteProtocolError(
                f"{association.peer} sent a CStoreRsp to no request of ours", source=0, reason=0
            )
        association.message_ids.give_back(response.message_id_being_responded_to)
        now = trio.current_time()
        for other in self._unanswered.values():
            if other.due_from is not None:
                other.due_from = now
        association.observer.operation(
            "C-STORE", "out", response.status, time.perf_counter() - forward.started, forward.length
        )
        forward.answered(
            StoreReply(
                status=response.status,
                error_comment=response.error_comment or "",
                offending=response.offending_element or (),
            )
        )
        self._wake()

    def _fail(self, error: DcmhaulError, *, aborted: bool = False) -> None:
        """The association is of no more use: what had left is unknown, the rest was not stored.

        aborted: by us, through no fault of the destination; `failure` then stays as it is.
        """
        if self.failure is None and not aborted:
            self.failure = error
            self.failed.set()
        for message_id, forward in list(self._unanswered.items()):
            # A message that is still being streamed ends, and reports, in the task that streams it.
            if forward.due_from is not None or aborted:
                del self._unanswered[message_id]
                forward.lost(error)
        self._wake()


class _Forward:
    """One instance between the two associations."""

    def __init__(self, destination: PeerDestination, instance: IncomingInstance) -> None:
        self.length = 0
        self.started = 0.0
        self.due_from: float | None = None
        self._destination = destination
        self._instance = instance
        self._digest = DatasetDigest(instance.transfer_syntax_uid, content=destination.content)
        self._writer: DatasetWriter | None = None
        self._reencoder: Reencoder | None = None
        self._message_id = 0
        self._error: DcmhaulError | None = None
        self._reported = False
        self._early: StoreReply | None = None
        """A response that came before the whole instance had left; it counts once that is done."""
        self._done = trio.Event()
        self._reply = StoreReply(status=OUT_OF_RESOURCES, error_comment="the destination was lost")

    def outcome(
        self,
        *,
        reply: StoreReply | None = None,
        error: DcmhaulError | None = None,
        unknown: bool = False,
    ) -> RelayOutcome:
        """What is reported of it; the digest covers what was received so far."""
        whole = self.due_from is not None
        return RelayOutcome(
            sop_class_uid=self._instance.sop_class_uid,
            sop_instance_uid=self._instance.sop_instance_uid,
            transfer_syntax_uid=self._instance.transfer_syntax_uid,
            status=reply.status if reply else None,
            error_comment=reply.error_comment if reply else "",
            error=error,
            unknown=unknown,
            length=self.length,
            sha256=self._digest.digest() if whole else None,
            content=self._digest.content() if whole else None,
            seconds=time.perf_counter() - self.started if self.started else 0.0,
        )

    async def _start(self) -> None:
        destination = self._destination
        association = destination.association
        await destination._slot()
        instance = self._instance
        context = destination.context_for(instance.sop_class_uid, instance.transfer_syntax_uid)
        assert context is not None  # open() refused it otherwise
        if context.transfer_syntax != instance.transfer_syntax_uid:
            assert destination._reencoded is not None
            self._reencoder = Reencoder(instance.transfer_syntax_uid, context.transfer_syntax)
            destination._reencoded(instance.transfer_syntax_uid, context.transfer_syntax)
        if crash.armed:
            crash.passed("send.before_cmd")
        self._message_id = association.next_message_id()
        self.started = time.perf_counter()
        destination._unanswered[self._message_id] = self
        self._writer = await association.open_dataset(
            context.context_id,
            CStoreRq(
                message_id=self._message_id,
                affected_sop_class_uid=instance.sop_class_uid,
                affected_sop_instance_uid=instance.sop_instance_uid,
            ),
        )

    async def write(self, data: DatasetSlices) -> None:
        """Forwards the next bytes; after a failure of the destination they are only drained."""
        if self._error is not None:
            return
        piece = data.copy_data()
        self.length += len(piece)
        if len(piece) < DIGEST_THREAD_BYTES:
            self._digest.update(piece)
            await self._send(piece)
            return
        async with flat_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self._digest.update, piece)
            await self._send(piece)

    async def _send(self, piece: bytes) -> None:
        try:
            if self._writer is None:
                await self._start()
            assert self._writer is not None
            if self._reencoder is None:
                await self._writer.write(piece)
            else:
                for made in self._reencoder.feed(piece):
                    await self._writer.write(made)
            self._check_destination()
        except (*ASSOCIATION_ERRORS, CannotReencode) as error:
            await self._broke(error)

    def _check_destination(self) -> None:
        """The kernel takes bytes for a peer that has closed its side, yet nobody reads an answer then."""
        if self._destination.failure is not None:
            raise self._destination.failure

    async def end(self) -> None:
        if self._error is not None:
            return
        try:
            if self._writer is None:
                await self._start()
            assert self._writer is not None
            for made in () if self._reencoder is None else self._reencoder.finish():
                await self._writer.write(made)
            # From here on the destination may have all of it, whatever happens.
            self.due_from = trio.current_time()
            await self._writer.finish()
            if crash.armed:
                crash.passed("send.all_sent")
            self._check_destination()
            self.due_from = trio.current_time()
            self._destination._set_deadline()
            if self._early is not None:
                self.answered(self._early)
        except (*ASSOCIATION_ERRORS, CannotReencode) as error:
            await self._broke(error)

    async def answer(self) -> StoreReply:
        """The destination's answer, or A700 where it takes too long; then the report comes later."""
        with trio.move_on_after(self._destination._answer_seconds):
            await self._done.wait()
            return self._reply
        return StoreReply(status=OUT_OF_RESOURCES, error_comment="the destination is slow")

    async def broken(self) -> None:
        """The source's message broke off: what was begun at the destination can only be aborted.

        So it is where we were stopped while its end left, and then the destination may have all of it.
        """
        destination = self._destination
        destination._unanswered.pop(self._message_id, None)
        error = AssociationAborted(0, 0, "the source was lost within an instance")
        self._report(self.outcome(error=error, unknown=self.due_from is not None))
        if self._writer is not None and self._error is None:
            destination.blameless = True
            destination._fail(error)
            await destination._abort(self._writer)

    async def _broke(self, error: DcmhaulError) -> None:
        """The destination failed within this instance."""
        self._error = error
        destination = self._destination
        destination._unanswered.pop(self._message_id, None)
        if self._writer is not None:  # else nothing was tried with it
            self._report(self.outcome(error=error, unknown=self.due_from is not None))
        if isinstance(error, CannotReencode):
            # It has failed alone, yet its message can only be aborted.
            destination.blameless = True
            error = AssociationAborted(0, 0, "an instance could not be re-encoded")
        destination._fail(error)
        self._done.set()
        await destination._abort(self._writer)

    def answered(self, reply: StoreReply) -> None:
        """The response came."""
        if self.due_from is None:
            self._early = reply
            return
        self._reply = reply
        self._report(self.outcome(reply=reply))
        self._done.set()

    def lost(self, error: DcmhaulError) -> None:
        """The association failed with the response outstanding."""
        self._report(self.outcome(error=error, unknown=self.due_from is not None))
        self._done.set()

    def _report(self, outcome: RelayOutcome) -> None:
        if not self._reported:
            self._reported = True
            self._destination._report(outcome)


# -- the destination is a folder ----------------------------------------------------------------------


class FolderDestination:
    """Instances go into the sinks that `sinks` makes; each is reported when its sink has committed."""

    def __init__(
        self,
        sinks: SinkFactory,
        report: Callable[[RelayOutcome], None],
        *,
        content: bool = False,
    ) -> None:
        self.content: Final = content
        self.failure: DcmhaulError | None = None
        self.failed: Final = trio.Event()
        self._sinks = sinks
        self._report_to = report
        self._unreported = 0
        self._idle = trio.Event()

    def accepts(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        return True

    async def settled(self) -> None:
        while self._unreported:
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    def open(self, instance: IncomingInstance) -> _Filing:
        self._unreported += 1
        try:
            sink = self._sinks(instance)
        except StoreRefused as refused:
            self._report(_filed(instance, refused.reply))
            raise
        return _Filing(instance, sink, self._report, content=self.content)

    def _report(self, outcome: RelayOutcome) -> None:
        self._unreported -= 1
        if not self._unreported:
            self._idle.set()
            self._idle = trio.Event()
        self._report_to(outcome)


def _filed(
    instance: IncomingInstance, reply: StoreReply, digest: DatasetDigest | None = None
) -> RelayOutcome:
    return RelayOutcome(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        status=reply.status,
        error_comment=reply.error_comment,
        length=digest.length if digest is not None else 0,
        sha256=digest.digest() if digest is not None else None,
        content=digest.content() if digest is not None else None,
    )


class _Filing:
    """One instance on its way into a sink."""

    def __init__(
        self,
        instance: IncomingInstance,
        sink: StorageSink | None,
        report: Callable[[RelayOutcome], None],
        *,
        content: bool,
    ) -> None:
        self._instance = instance
        self._sink = sink
        self._report = report
        self._digest = DatasetDigest(instance.transfer_syntax_uid, content=content)

    async def write(self, data: DatasetSlices) -> None:
        data.update(self._digest.update)
        if self._sink is not None:
            await self._sink.write(data)

    async def end(self) -> None:
        await trio.lowlevel.checkpoint()

    async def answer(self) -> StoreReply:
        reply = StoreReply(status=0)
        if self._sink is not None:
            try:
                reply = await self._sink.commit()
            except BaseException:
                self._drop("stopped while it was stored")
                raise
        self._report(_filed(self._instance, reply, self._digest))
        return reply

    async def broken(self) -> None:
        self._drop("the source was lost within an instance")

    def _drop(self, why: str) -> None:
        if self._sink is not None:
            self._sink.discard()
        self._report(
            RelayOutcome(
                sop_class_uid=self._instance.sop_class_uid,
                sop_instance_uid=self._instance.sop_instance_uid,
                transfer_syntax_uid=self._instance.transfer_syntax_uid,
                status=None,
                error=TransportError(why),
                length=self._digest.length,
            )
        )
