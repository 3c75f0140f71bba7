"""One association as a task sees it: messages in, messages out, and an end that the peer understands.

The state table is in protocol, the bytes are in transport; here they meet trio. Who decodes what a message
means is above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from dcmhaul import crash
from dcmhaul.errors import (
    AssociationAborted,
    LocalProtocolError,
    PeerTimeout,
    RemoteProtocolError,
    TransportError,
)
from dcmhaul.net._sockio import SliceView, read_ahead
from dcmhaul.net.types import FileRange
from dcmhaul.protocol.dimse import DimseMessage, MessageIds, decode_message
from dcmhaul.protocol.events import (
    Aborted,
    Event,
    ProviderAborted,
    ReleaseCollision,
    ReleaseConfirmed,
    ReleaseRequested,
    Role,
)
from dcmhaul.protocol.states import State
from dcmhaul.wire._frames import COMMAND, DATA, NEED_DATA, PDU
from dcmhaul.wire.pdu import PDU_HEADER_SIZE, AAbort, PduType, describe_abort

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from dcmhaul.net.transport import Transport
    from dcmhaul.net.types import AssociationStats, DatasetSink, DatasetSlices, Observer, Timeouts
    from dcmhaul.protocol.negotiation import AcceptedContext, Agreement
    from dcmhaul.protocol.upper_layer import UpperLayer

__all__ = ["DATASET_LENGTH_MAX", "Association", "DatasetWriter", "Incoming"]

DATASET_LENGTH_MAX: Final = 16 * 1024**3
"""Bytes of one dataset that are taken; above it is drained."""
OVERLONG_DRAIN_BYTES: Final = 64 * 1024**2
"""Bytes over the limit after which a dataset that does not end is aborted."""
READ_AHEAD_BYTES: Final = 8 * 1024**2
"""What a thread brings into the page cache at a time."""
ABORT_SECONDS: Final = 2.0
"""For how long an A-ABORT of ours may take to leave, and the peer to close."""


class Incoming(NamedTuple):
    """A command and the context that it came on. If it has a dataset, read that before the next receive."""

    context: AcceptedContext
    message: DimseMessage


class Association:
    """An established association. Made by `open_association` and `serve_associations` only.

    One task receives; any task may queue and flush, and what is queued leaves in that order. A send
    that breaks off poisons the association: it can only be aborted then.
    """

    def __init__(
        self,
        transport: Transport,
        upper_layer: UpperLayer,
        agreement: Agreement,
        peer: str,
        timeouts: Timeouts,
        observer: Observer,
    ) -> None:
        self.role: Final = upper_layer.role
        self.agreement: Final = agreement
        self.peer: Final = peer
        self.timeouts: Final = timeouts
        self.observer: Final = observer
        self.tls: Final = transport.tls
        self.message_ids: Final = MessageIds()
        self.dataset_length_max = DATASET_LENGTH_MAX
        self._transport = transport
        self._upper = upper_layer
        self._reader = transport.reader
        self._queue = transport.queue
        self._slices = SliceView(transport.reader)
        self._send_lock = trio.StrictFIFOLock()
        self._in_dataset = False
        self._pushed_back: Incoming | None = None
        self.held: list[Incoming] = []
        """Requests that wait for the end of the one before; who holds them has read their datasets."""
        self._writer: DatasetWriter | None = None
        self._deferred: list[tuple[int, DimseMessage, bytes | memoryview | FileRange | None]] = []
        self._ended = False
        self._reader.set_contexts(list(agreement.accepted))
        self._reader.accept_p_data(True)

    @property
    def ended(self) -> bool:
        """True once it was released, aborted or lost."""
        return self._ended

    def stats(self) -> AssociationStats:
        """The counts so far; a live object."""
        stats = self._transport.stats
        stats.pdus_in = self._reader.pdus_received
        stats.bytes_in = self._reader.dataset_bytes_received
        stats.odd_fragments_in = self._reader.odd_fragments
        stats.oversized_pdus_in = self._reader.oversized_pdus
        stats.pdus_out = self._queue.pdus_sent
        stats.bytes_out = self._queue.dataset_bytes_sent
        return stats

    # -- receiving ----------------------------------------------------------------------------

    def has_buffered(self) -> bool:
        """True while bytes that arrived are not looked at yet: the peer is ahead of us."""
        return self._reader.buffered > 0

    async def receive(
        self, *, seconds: float | None = None, phase: str = "idle"
    ) -> Incoming | None:
        """The next command; None after the peer asked for release, which is then answered.

        Waits `seconds` (None: for ever) for its first byte; PeerTimeout(phase) names that deadline.
        Raises AssociationAborted, TransportError where the connection is lost, RemoteProtocolError
        after aborting a peer that broke the protocol.
        """
        if self._pushed_back is not None:
            incoming, self._pushed_back = self._pushed_back, None
            return incoming
        if self._in_dataset:
            raise LocalProtocolError("receive() before the dataset of the last message was read")
        while True:
            code = self._next()
            if code == COMMAND:
                return self._command()
            if code == NEED_DATA:
                await self._more(seconds, phase)
            elif await self._control_pdu():
                return None

    def receive_nowait(self) -> Incoming | None:
        """A command that arrived already, or None. It reads the socket once and never waits.

        Whoever asks is in the midst of an operation, so a release by the peer raises, as an abort.
        """
        if self._pushed_back is not None:
            incoming, self._pushed_back = self._pushed_back, None
            return incoming
        if self._in_dataset:
            raise LocalProtocolError("receive() before the dataset of the last message was read")
        code = self._next()
        if code == NEED_DATA and self._transport.receive_nowait() > 0:
            code = self._next()
        if code == COMMAND:
            return self._command()
        if code == NEED_DATA:
            return None
        event = self._received_pdu()
        if isinstance(event, ReleaseRequested):
            raise RemoteProtocolError(
                "A-RELEASE-RQ before the operation was answered (PS3.7 §7.2)", source=0, reason=0
            )
        raise self._ended_by(event)

    def push_back(self, incoming: Incoming) -> None:
        """The next receive returns `incoming` again; it is the last message, its dataset unread."""
        if self._pushed_back is not None:
            raise LocalProtocolError("push_back() of a second message")
        self._pushed_back = incoming

    async def read_dataset(self, sink: DatasetSink | None) -> int:
        """Streams the dataset of the last command into `sink` (None: drops it); returns its bytes.

        Over `dataset_length_max` the sink gets no more, and the number returned is above it.
        """
        if not self._in_dataset:
            raise LocalProtocolError("read_dataset() without a dataset")
        total = 0
        if sink is None:
            self._reader.skip_dataset()
        reader = self._reader
        slices = self._slices
        while True:
            code = self._next()
            if code == DATA:
                if crash.armed:
                    _crash_receiving(total, last=reader.data_last)
                total += reader.data_length
                last = reader.data_last
                if total > self.dataset_length_max:
                    self._check_overlong(total)
                elif sink is not None and reader.data_length:
                    await sink.write(slices)
                if last:
                    self._in_dataset = False
                    return total
            elif code == NEED_DATA:
                await self._more(self.timeouts.progress, "progress")
            else:
                await self._control_pdu()

    async def read_dataset_bytes(self, limit: int) -> bytes | None:
        """The dataset of the last command, where it has at most `limit` bytes; else it is drained: None."""
        collector = _Collector(limit)
        length = await self.read_dataset(collector)
        return b"".join(collector.parts) if length <= limit else None

    def _next(self) -> int:
        try:
            return self._reader.next()
        except RemoteProtocolError as exc:
            self._upper.received_fault(exc)
            raise

    def _command(self) -> Incoming:
        reader = self._reader
        context = self.agreement.accepted[reader.context_id]
        try:
            message = decode_message(reader.command)
        except RemoteProtocolError as exc:
            self._upper.received_fault(exc)
            raise
        self._in_dataset = message.has_dataset
        reader.expect_dataset(message.has_dataset)
        return Incoming(context, message)

    async def _more(self, seconds: float | None, phase: str) -> None:
        """Brings more bytes in; before that, what is queued goes out, for the peer may wait for it."""
        if self._queue.pending and self._writer is None and not self._send_lock.locked():
            await self.flush()
        in_message = self._in_dataset or self._reader.message_incomplete
        if in_message:
            seconds, phase = self.timeouts.progress, "progress"
        if not await self._transport.receive(seconds, phase, in_message=in_message):
            self._end_of_stream()

    def _end_of_stream(self) -> None:
        self._upper.transport_closed()
        self._ended = True
        raise TransportError(f"{self.peer}: the peer closed the connection without a release")

    def _received_pdu(self) -> Event | None:
        event = self._upper.received_pdu(self._reader.pdu_type, self._reader.pdu_body)
        self._reader.accept_p_data(self._upper.p_data_receivable)
        return event

    async def _control_pdu(self) -> bool:
        """Acts on a PDU that is not P-DATA-TF; True after a release by the peer."""
        event = self._received_pdu()
        if isinstance(event, ReleaseRequested):
            if self._reader.message_incomplete or self._in_dataset:
                # Legal for the upper layer (AR-2), not for the message that it leaves unfinished.
                raise RemoteProtocolError(
                    "A-RELEASE-RQ within a message (PS3.8 Annex E)", source=0, reason=0
                )
            await self.flush()
            self._upper.respond_release()
            await self._send_output()
            self._ended = True
            return True
        raise self._ended_by(event)

    def _ended_by(self, event: Event | None) -> Exception:
        """What is raised for an event that ends the association."""
        if isinstance(event, Aborted | ProviderAborted):
            if isinstance(event, ProviderAborted) and event.local:
                return RemoteProtocolError(
                    f"{self.peer}: PDU type 0x{self._reader.pdu_type:02X} is out of place or broken "
                    "(PS3.8 §9.2)",
                    source=event.source,
                    reason=event.reason,
                )
            self._ended = True
            self.observer.association_aborted(self.role, "peer", event.source, event.reason)
            return AssociationAborted(
                event.source,
                event.reason,
                f"{self.peer}: the association was {describe_abort(event.source, event.reason)}",
            )
        return LocalProtocolError(f"unexpected {type(event).__name__}")

    def _check_overlong(self, total: int) -> None:
        self._reader.skip_dataset()
        if total > self.dataset_length_max + OVERLONG_DRAIN_BYTES:
            raise self._violation(
                f"a dataset of more than {self.dataset_length_max} bytes that does not end"
            )

    def _violation(self, text: str) -> RemoteProtocolError:
        """The peer broke PS3.7: the error to raise, with the upper layer told."""
        error = RemoteProtocolError(text, source=0, reason=0)
        self._upper.received_fault(error)
        return error

    # -- sending --------------------------------------------------------------------------------

    def queue(
        self,
        context_id: int,
        message: DimseMessage,
        dataset: bytes | memoryview | FileRange | None = None,
    ) -> None:
        """Appends a message; nothing leaves before `flush`, or before the next receive that waits.

        `dataset` is not copied: memory is exported, a file range is kept open, until it is sent.
        """
        self._upper.check_p_data()
        if self._writer is not None:
            self._deferred.append((context_id, message, dataset))
            return
        queue = self._queue
        queue.add_command(context_id, message.encode())
        if dataset is None:
            return
        if isinstance(dataset, FileRange):
            queue.add_file(
                context_id, dataset.fd, dataset.offset, dataset.length, True, dataset.owner
            )
        else:
            queue.add_data(context_id, dataset, True)

    async def flush(self) -> None:
        """Sends what is queued. Other tasks' flushes take turns."""
        if self._writer is not None:
            return  # the writer's own flush sends; what others queued waits for the end of its message
        await self._locked_flush()

    async def send(
        self,
        context_id: int,
        message: DimseMessage,
        dataset: bytes | memoryview | FileRange | None = None,
    ) -> None:
        """`queue` and `flush`; a file range that is not in the page cache is read ahead by a thread."""
        if not (isinstance(dataset, FileRange) and dataset.cold):
            self.queue(context_id, message, dataset)
            await self.flush()
            return
        writer = await self.open_dataset(context_id, message)
        try:
            await writer.write_file(dataset)
            await writer.finish()
        finally:
            await writer.aclose()

    async def open_dataset(self, context_id: int, message: DimseMessage) -> DatasetWriter:
        """Begins a message whose dataset is streamed; no other message is sent until it is finished.

        TransportError where the association ended while it waited for its turn.
        """
        self._upper.check_p_data()
        await self._send_lock.acquire()
        try:
            if not self._upper.p_data_sendable:
                raise TransportError(
                    f"{self.peer}: the association ended before a message could begin"
                )
            self._queue.add_command(context_id, message.encode())
        except BaseException:
            self._send_lock.release()
            raise
        self._writer = DatasetWriter(self, context_id)
        return self._writer

    async def _locked_flush(self) -> None:
        lock = self._send_lock
        try:
            lock.acquire_nowait()
        except trio.WouldBlock:
            await lock.acquire()
        try:
            await self._flush_transport()
        finally:
            lock.release()

    async def _flush_transport(self) -> None:
        try:
            await self._transport.flush(self.timeouts.progress)
        except BaseException as exc:
            # Cancelled too: a part of a PDU may be out, so nothing but an abort may follow. Now, for
            # whoever hears of this may close the files.
            self._upper.poison(exc)
            self._queue.cut()
            if isinstance(exc, TransportError) and not isinstance(exc, PeerTimeout):
                raise await self._explain(exc) from exc
            raise

    async def _explain(self, lost: TransportError) -> Exception:
        """The A-ABORT that the peer sent before it closed, if it can still be read, else `lost`."""
        if self._transport.receiving or self._reader.slices_out:
            return lost  # another task is reading
        try:
            while self._transport.receive_nowait() > 0:
                pass
            while (code := self._reader.next()) == DATA:
                pass
            if code == PDU and self._reader.pdu_type == PduType.A_ABORT:
                return self._ended_by(self._received_pdu())
        except (TransportError, RemoteProtocolError, LocalProtocolError):
            pass  # what else it sent explains nothing
        return lost

    async def _send_output(self) -> None:
        for pdu in self._upper.take_output():
            self._queue.add_bytes(pdu)
        await self._locked_flush()

    def next_message_id(self) -> int:
        """A message ID that no outstanding request has; `message_ids.give_back` frees it."""
        return self.message_ids.take()

    # -- the end ----------------------------------------------------------------------------------

    async def release(self) -> None:
        """A-RELEASE: asks, waits for the answer, closes. Responses that still come are dropped.

        A peer that does not answer in time, or breaks off, is closed without an error: everything
        that mattered was answered before.
        """
        if self._ended:
            await self.close(self.timeouts.artim)
            return
        if self._upper.poisoned is not None or self._upper.state is not State.DATA_TRANSFER:
            await self.abort()  # it was broken before, by either side
            return
        try:
            await self.flush()
            self._upper.request_release()
            await self._send_output()
            with trio.fail_after(self.timeouts.release or float("inf")):
                await self._await_release()
        except (trio.TooSlowError, TransportError, AssociationAborted, RemoteProtocolError):
            await self.abort()
            return
        self._ended = True
        await self.close(ABORT_SECONDS)

    async def _await_release(self) -> None:
        reader = self._reader
        while True:
            code = self._next()
            if code == NEED_DATA:
                if not await self._transport.receive(None, "release", in_message=False):
                    self._upper.transport_closed()
                    return
            elif code == COMMAND:
                reader.expect_dataset(decode_message(reader.command).has_dataset, True)
            elif code != DATA:
                event = self._received_pdu()
                if isinstance(event, ReleaseCollision):
                    if self.role is Role.REQUESTOR:
                        self._upper.respond_release()
                        await self._send_output()
                elif isinstance(event, ReleaseConfirmed):
                    if self._upper.state is State.COLLISION_ACCEPTOR_RESPONDING:
                        self._upper.respond_release()
                        await self._send_output()
                    return
                else:
                    raise self._ended_by(event)

    async def abort(self) -> None:
        """A-ABORT, as the state asks for it, and close. Bounded in time, also when cancelled."""
        with trio.CancelScope(shield=True):
            output = self._upper.take_output()
            if not output and self._upper.abortable and not self._ended:
                self._upper.abort()
                output = self._upper.take_output()
            self._ended = True
            if output:
                self._queue.cut()
                for pdu in output:
                    self._count_abort(pdu)
                    self._queue.add_bytes(pdu)
                with trio.move_on_after(ABORT_SECONDS):
                    try:
                        await self._transport.flush(ABORT_SECONDS)
                    except (TransportError, EOFError):
                        # The peer is gone; or the file of the PDU that is half out has no more bytes.
                        # Made-up ones would be data, and so would an A-ABORT in their place: closing says it.
                        pass
            await self.close(ABORT_SECONDS)

    def _count_abort(self, pdu: bytes) -> None:
        """Here and nowhere else, so that an A-ABORT of ours is counted once, whatever led to it."""
        if pdu[0] == PduType.A_ABORT:
            abort = AAbort.decode(pdu[PDU_HEADER_SIZE:])
            self.observer.association_aborted(self.role, "local", abort.source, abort.reason)

    async def close(self, drain_seconds: float) -> None:
        """Closes the socket, in an order that does not destroy what the peer has yet to read."""
        self._ended = True
        transport = self._transport
        if not transport.closed:
            transport.shutdown_send()
            try:
                await transport.drain(drain_seconds)
            finally:
                transport.close()


class DatasetWriter:
    """Streams the dataset of one message. Success is said by `finish`; `aclose` without it aborts."""

    __slots__ = ("_association", "_carry", "_context_id", "_finished")

    def __init__(self, association: Association, context_id: int) -> None:
        self._association = association
        self._context_id = context_id
        self._carry = b""
        self._finished = False

    async def write(self, data: Buffer) -> None:
        """Sends the next bytes; returns when the kernel has taken them.

        Fragments are even (PS3.8 Annex E), so an odd last byte waits for the next call.
        """
        view = memoryview(self._carry + bytes(data) if self._carry else data)
        if len(view) % 2:
            self._carry = bytes(view[-1:])
            view = view[:-1]
        elif self._carry:
            self._carry = b""
        if len(view):
            self._association._queue.add_data(self._context_id, view, False)
            await self._association._flush_transport()
            if crash.armed:
                crash.passed("send.mid_dataset")

    async def write_file(self, part: FileRange) -> None:
        """Sends a whole file range as the whole dataset, read ahead by a thread."""
        association = self._association
        queue = association._queue
        step = READ_AHEAD_BYTES // queue.fragment_size_max * queue.fragment_size_max
        step = step or READ_AHEAD_BYTES  # even, and a fragment may be shorter than the peer allows
        sent = 0
        while True:
            length = min(step, part.length - sent)
            try:
                read = await trio.to_thread.run_sync(
                    read_ahead, part.fd, part.offset + sent, length
                )
            except OSError as exc:
                raise EOFError(f"the file cannot be read ({exc.strerror})") from exc
            if read < length:
                # Before a PDU begins that could not be completed.
                raise EOFError("the file became shorter while it was sent")
            last = sent + length == part.length
            queue.add_file(self._context_id, part.fd, part.offset + sent, length, last, part.owner)
            await association._flush_transport()
            sent += length
            if last:
                self._finished = True
                return

    async def finish(self) -> None:
        """Ends the dataset and the message; then what others queued meanwhile may leave."""
        association = self._association
        if not self._finished:
            association._queue.add_data(self._context_id, self._carry, True)
            self._finished = True
            await association._flush_transport()
        self._end()
        if association._queue.pending:
            await association.flush()

    async def aclose(self) -> None:
        """Nothing after `finish`; before it the message cannot be taken back, so A-ABORT."""
        if self._association._writer is self:
            self._end()
            await self._association.abort()

    def _end(self) -> None:
        association = self._association
        association._writer = None
        association._send_lock.release()
        deferred, association._deferred = association._deferred, []
        if not association._ended and association._upper.p_data_sendable:
            for context_id, message, dataset in deferred:
                association.queue(context_id, message, dataset)


def _crash_receiving(received: int, *, last: bool) -> None:
    """The points within a dataset, before the next bytes are handed on."""
    if not received:
        crash.passed("recv.first_pdv")
    elif not last:
        crash.passed("recv.mid")
    if last:
        crash.passed("recv.last_pdv")


class _Collector:
    """A sink that keeps up to `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.parts: list[bytes] = []
        self._limit = limit
        self._length = 0

    async def write(self, data: DatasetSlices) -> None:
        self._length += data.data_length
        if self._length <= self._limit:
            self.parts.append(data.copy_data())
        else:
            self.parts.clear()
