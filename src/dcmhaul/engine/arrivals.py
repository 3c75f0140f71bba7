"""What C-MOVEs of ours bring to an SCP of ours: told apart, counted, and waited for.

A C-MOVE-RSP is a hint. Some peers answer before their sub-operations, some count none of them, some
send under another title. What arrived here is the truth. Must not send anything itself, nor judge
what a shortfall means.
"""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul.objects.instances import StoreRefused
from dcmhaul.objects.sinks import discard_instance
from dcmhaul.protocol import statuses
from dcmhaul.protocol.statuses import StatusCategory, category
from dcmhaul.services.provider import serve_services
from dcmhaul.services.retrieve import SignsOfLife
from dcmhaul.uids import EXPLICIT_VR_BIG_ENDIAN
from dcmhaul.wire._elements import ElementFault, ElementWalker
from dcmhaul.wire.part10 import clean_uid, is_deflated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dcmhaul.net import Association, DatasetSlices
    from dcmhaul.objects.instances import IncomingInstance, SinkFactory, StorageSink, StoreReply
    from dcmhaul.services.provider import Service
    from dcmhaul.services.retrieve import RetrieveResponse

__all__ = ["Arrivals", "Delivery", "StorageAssociations"]

SETTLE_SECONDS: Final = 30.0
"""How long a C-MOVE that was answered and has not brought everything may be quiet."""
GRACE_SECONDS: Final = 0.5
"""What senders get to release their associations when all is done; then we release them."""
CLOSE_SECONDS: Final = 5.0
"""What that release may take."""

_STUDY: Final = 0x0020000D
_MESSAGE_ID_MAX: Final = 0xFFFF


class Delivery:
    """What one C-MOVE brings, from before its request until nothing more is waited for.

    expected: SOP Instance UIDs, None where nobody could tell. studies: Study Instance UIDs of the
    request. arrived: what was stored (0000 or B0xx). refused: what was answered with a failure, and
    did not come again. receiving: datasets that are on their way.
    """

    def __init__(
        self, message_id: int, expected: frozenset[str] | None, studies: frozenset[str]
    ) -> None:
        self.message_id = message_id
        self.expected = expected
        self.studies = studies
        self.arrived: set[str] = set()
        self.refused: set[str] = set()
        self.receiving = 0
        self.signs = SignsOfLife()
        self._changed = trio.Event()

    @property
    def missing(self) -> list[str]:
        """Expected and not here, in order of UID; empty where nothing is known."""
        return sorted((self.expected or frozenset()) - self.arrived)

    def lacking(self, response: RetrieveResponse) -> int | None:
        """How many are still to come, if the response tells the truth; None where nobody knows."""
        told = max(response.failed or 0, len(response.failed_sop_instance_uids))
        failed = max(told, len(self.refused))
        if self.expected is not None:
            return max(0, len(self.expected - self.arrived) - failed)
        if response.promised is None:
            return None
        return max(
            0, response.promised - len(self.arrived) - (len(self.refused) if not told else 0)
        )

    async def settled(self, response: RetrieveResponse, seconds: float = SETTLE_SECONDS) -> None:
        """Returns when all is here, or after so long without a sign of what is not.

        response: the final one. After a failure, or a cancel, only what is on its way is waited for.
        """
        self.signs.touch()
        more = statuses.is_performed(response.status)
        while self.receiving or (more and self.lacking(response) != 0):
            left = self.signs.last + seconds - trio.current_time()
            if left <= 0:
                return
            with trio.move_on_after(left):
                await self._changed.wait()

    def began(self) -> None:
        """A dataset has begun to arrive that may be one of these."""
        self.receiving += 1
        self.signs.touch()

    def ended(self) -> None:
        """It has arrived, or has broken off, and was counted."""
        self.receiving -= 1
        self.signs.touch()
        self._changed.set()
        self._changed = trio.Event()

    def count(self, sop_instance_uid: str, status: int) -> None:
        if category(status) in (StatusCategory.SUCCESS, StatusCategory.WARNING):
            self.arrived.add(sop_instance_uid)
            self.refused.discard(sop_instance_uid)
        elif sop_instance_uid not in self.arrived:
            self.refused.add(sop_instance_uid)


class Arrivals:
    """A SinkFactory that finds for each instance the C-MOVE of ours to which it belongs.

    By Move Originator AE Title and Message ID (PS3.7 §9.1.1.1), which are optional; else by the
    expected SOP Instance UIDs; else by the study. What belongs to none is kept all the same.
    unasked: how many of those were stored. receiving: datasets that are on their way.
    """

    def __init__(self, sinks: SinkFactory | None, calling_ae_title: str) -> None:
        """sinks: None keeps nothing. calling_ae_title: under which our C-MOVEs go out."""
        self._sinks = sinks or discard_instance
        self._title = calling_ae_title
        self._running: dict[int, Delivery] = {}
        self._last = 0
        self.unasked = 0
        self.receiving = 0
        self._ended = trio.Event()

    def begin(
        self, expected: frozenset[str] | None = None, studies: Iterable[str] = ()
    ) -> Delivery:
        """A C-MOVE that is about to be sent under the delivery's message ID, which no other has."""
        while True:
            self._last = self._last % _MESSAGE_ID_MAX + 1
            if self._last not in self._running:
                break
        delivery = Delivery(self._last, expected, frozenset(studies))
        self._running[delivery.message_id] = delivery
        return delivery

    def end(self, delivery: Delivery) -> None:
        """What still comes for it is nobody's."""
        del self._running[delivery.message_id]

    @contextmanager
    def delivery(
        self,
        association: Association,
        expected: frozenset[str] | None = None,
        studies: Iterable[str] = (),
    ) -> Iterator[Delivery]:
        """`begin` and `end` around the C-MOVE that goes out next on this association."""
        delivery = self.begin(expected, studies)
        association.message_ids.continue_with(delivery.message_id)
        try:
            yield delivery
        finally:
            self.end(delivery)

    def began(self) -> None:
        """A dataset has begun to arrive."""
        self.receiving += 1

    def ended(self) -> None:
        """It has arrived, or has broken off."""
        self.receiving -= 1
        self._ended.set()
        self._ended = trio.Event()

    async def all_ended(self, seconds: float) -> None:
        """Returns when no dataset is on its way, at the latest after so long."""
        with trio.move_on_after(seconds):
            while self.receiving:
                await self._ended.wait()

    def __call__(self, incoming: IncomingInstance) -> StorageSink:
        """The sink of one instance; StoreRefused as the inner factory raises it."""
        candidates = self._candidates(incoming)
        try:
            sink = self._sinks(incoming)
        except StoreRefused as refused:
            for delivery in candidates[:1]:
                delivery.count(incoming.sop_instance_uid, refused.reply.status)
            raise
        return _ArrivingSink(self, incoming, sink or discard_instance(incoming), candidates)

    def _candidates(self, incoming: IncomingInstance) -> list[Delivery]:
        """The delivery of an instance; several where only its study can tell; none for a stranger."""
        originator = incoming.move_originator
        if originator is not None and originator.ae_title == self._title:
            named = self._running.get(originator.message_id)
            if named is not None:
                return [named]
        uid = incoming.sop_instance_uid
        running = self._running.values()
        expecting = [d for d in running if d.expected is not None and uid in d.expected]
        if expecting:
            # The same instance may be asked for twice (--repeat): who lacks it gets it.
            return [next((d for d in expecting if uid not in d.arrived), expecting[0])]
        return [d for d in running if d.expected is None]


class _ArrivingSink:
    """Hands everything to the inner sink; tells whose it is, and how it ended."""

    __slots__ = ("_arrivals", "_candidates", "_incoming", "_sink", "_study")

    def __init__(
        self,
        arrivals: Arrivals,
        incoming: IncomingInstance,
        sink: StorageSink,
        candidates: list[Delivery],
    ) -> None:
        self._arrivals = arrivals
        self._incoming = incoming
        self._sink = sink
        self._candidates = candidates
        self._study = _StudyOf(incoming.transfer_syntax_uid) if len(candidates) > 1 else None
        arrivals.began()
        for delivery in candidates:
            delivery.began()

    async def write(self, data: DatasetSlices) -> None:
        for delivery in self._candidates:
            delivery.signs.touch()
        if self._study is not None and not self._study.ended:
            data.update(self._study.feed)
        await self._sink.write(data)

    async def commit(self) -> StoreReply:
        try:
            reply = await self._sink.commit()
            owner = self._owner()
            if owner is not None:
                owner.count(self._incoming.sop_instance_uid, reply.status)
            elif category(reply.status) is not StatusCategory.FAILURE:
                self._arrivals.unasked += 1
            return reply
        finally:
            self._end()

    def discard(self) -> None:
        self._sink.discard()
        self._end()

    def _owner(self) -> Delivery | None:
        if self._study is None:
            return self._candidates[0] if self._candidates else None
        uid = self._study.uid
        return next((d for d in self._candidates if uid in d.studies), self._candidates[0])

    def _end(self) -> None:
        self._arrivals.ended()
        for delivery in self._candidates:
            delivery.ended()


class _StudyOf:
    """Reads the Study Instance UID out of the head of a dataset; empty where it cannot be read."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        self.ended = False
        big_endian = transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN
        self._walker = ElementWalker(big_endian=big_endian, capture=(_STUDY,), stop_above=_STUDY)
        deflated = is_deflated(transfer_syntax_uid)
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if deflated else None

    def feed(self, data: memoryview) -> None:
        if self.ended:
            return
        try:
            plain = data if self._inflater is None else self._inflater.decompress(data, len(data))
            self._walker.feed(plain)
        except (ElementFault, zlib.error):
            self.ended = True
        else:
            self.ended = self._walker.stopped

    @property
    def uid(self) -> str:
        return clean_uid(self._walker.captured.get(_STUDY, b""))


class StorageAssociations:
    """The associations on which instances arrive: served until their senders end them, or `close`."""

    def __init__(self) -> None:
        self._open: dict[Association, trio.CancelScope] = {}
        self._changed = trio.Event()

    async def serve(self, association: Association, services: Iterable[Service]) -> None:
        """Serves one association; released by us where `close` found it open."""
        scope = trio.CancelScope()
        self._open[association] = scope
        try:
            with scope:
                await serve_services(association, services)
            if scope.cancelled_caught:
                await association.release()
        finally:
            del self._open[association]
            self._changed.set()
            self._changed = trio.Event()

    async def close(self, grace: float = GRACE_SECONDS, seconds: float = CLOSE_SECONDS) -> int:
        """Waits a moment for the senders to release, then releases; returns how many it had to.

        Some senders never end an association: whoever waits for them waits for ever.
        """
        await self._wait_until_closed(grace)
        left = len(self._open)
        for scope in list(self._open.values()):
            scope.cancel()
        await self._wait_until_closed(seconds)
        return left

    async def _wait_until_closed(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while self._open:
                await self._changed.wait()
