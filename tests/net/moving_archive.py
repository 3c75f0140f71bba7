"""An archive whose C-MOVE lies on demand: the peer of the tests of `move`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from dcmhaul import uids
from dcmhaul.net import Timeouts, open_association
from dcmhaul.objects.instances import MoveOriginator
from dcmhaul.protocol.dimse import CCancelRq, CMoveRq, CMoveRsp
from dcmhaul.protocol.negotiation import AssociationRequest, SupportedContext
from dcmhaul.services.identifiers import encode_uid_list
from dcmhaul.services.query import read_identifier
from dcmhaul.services.storage import StorageScu
from dcmhaul.wire.items import PresentationContextRq
from tests.engine.fake_archive import CT, EXPLICIT, FakeArchive, FakeInstance, _selected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from dcmhaul.config import Peer
    from dcmhaul.net import Association, Incoming
    from dcmhaul.services.provider import Service
    from dcmhaul.services.storage import StoreOutcome


@dataclass(kw_only=True)
class Lies:
    """What the C-MOVE does beside its duty.

    early: the final response leaves before the first sub-operation. never: no response at all. withheld: not
    sent, and not counted as failed. failing: not sent, and listed as failed. counts: what the final
    response says, None for the truth. refusal: a final status at once. originator: whether the
    C-STORE-RQs name it. title: of the sub-operations' association. lingers: it is never released.
    more: instances that nobody asked for. pending: whether there are pending responses. rendezvous: so
    many C-MOVEs wait for each other before they send.
    """

    early: bool = False
    never: bool = False
    withheld: frozenset[str] = frozenset()
    failing: tuple[str, ...] = ()
    counts: dict[str, int] | None = None
    refusal: tuple[int, str] | None = None
    originator: bool = True
    title: str = ""
    lingers: bool = False
    more: Sequence[FakeInstance] = ()
    pending: bool = True
    rendezvous: int = 1
    sub_operation: Callable[[int], None] = field(default=lambda _number: None)
    """Called before each, with its number, from 1."""


class MovingArchive(FakeArchive):
    """destinations: title -> port of this machine."""

    def __init__(self, instances: Sequence[FakeInstance], lies: Lies | None = None) -> None:
        super().__init__(instances)
        self.lies = lies or Lies()
        self.destinations: dict[str, int] = {}
        self.orders: list[tuple[str, int]] = []
        """Of each C-MOVE-RQ, the destination and the message ID."""
        self.cancelled = 0
        self.lingering: list[str] = []
        """How associations that were left open have ended."""
        self.met = trio.Event()

    def services(self) -> list[Service]:
        return [*super().services(), _MoveScp(self)]

    @asynccontextmanager
    async def running(self, title: str, timeouts: Timeouts | None = None) -> AsyncIterator[Peer]:
        async with super().running(title, timeouts) as peer, trio.open_nursery() as nursery:
            self.nursery = nursery
            yield peer
            nursery.cancel_scope.cancel()


class _MoveScp:
    def __init__(self, archive: MovingArchive) -> None:
        self._archive = archive

    def contexts(self) -> Mapping[str, SupportedContext]:
        return dict.fromkeys((uids.STUDY_ROOT_MOVE, uids.PATIENT_ROOT_MOVE), SupportedContext())

    def handles(self) -> tuple[type[CMoveRq], ...]:
        return (CMoveRq,)

    async def handle(self, association: Association, incoming: Incoming) -> None:
        request = incoming.message
        assert isinstance(request, CMoveRq)
        identifier = await read_identifier(association, incoming)
        archive = self._archive
        archive.orders.append((request.move_destination, request.message_id))
        chosen = [i for i in archive.instances.values() if _selected(identifier, i)]
        await _Moving(archive, association, incoming, chosen).run()


class _Moving:
    def __init__(
        self,
        archive: MovingArchive,
        association: Association,
        incoming: Incoming,
        chosen: list[FakeInstance],
    ) -> None:
        assert isinstance(incoming.message, CMoveRq)
        self.archive = archive
        self.lies = archive.lies
        self.association = association
        self.context_id = incoming.context.context_id
        self.request = incoming.message
        kept_back = self.lies.withheld | set(self.lies.failing)
        self.left = [i for i in chosen if i.sop_instance_uid not in kept_back]
        self.total = len(self.left)
        self.done = 0
        self.refused: list[str] = [
            uid for uid in self.lies.failing if any(i.sop_instance_uid == uid for i in chosen)
        ]
        self.stopped = False

    async def respond(self, status: int, comment: str, counts: dict[str, int]) -> None:
        final = status != 0xFF00
        listed = encode_uid_list(self.refused, EXPLICIT)[0] if final and self.refused else None
        response = CMoveRsp(
            message_id_being_responded_to=self.request.message_id,
            status=status,
            error_comment=comment or None,
            has_dataset=listed is not None,
            number_of_remaining_suboperations=counts.get("remaining"),
            number_of_completed_suboperations=counts.get("completed"),
            number_of_failed_suboperations=counts.get("failed"),
            number_of_warning_suboperations=counts.get("warning"),
        )
        self.association.queue(self.context_id, response, listed)
        await self.association.flush()

    async def final(self, done: int) -> None:
        counts = {"completed": done, "failed": len(self.refused), "warning": 0}
        if self.lies.counts is not None:
            counts = self.lies.counts
        status = 0xFE00 if self.stopped else 0xB000 if self.refused else 0x0000
        await self.respond(status, "", counts)

    async def run(self) -> None:
        archive, lies = self.archive, self.lies
        if lies.never:
            await trio.sleep_forever()
        port = archive.destinations.get(self.request.move_destination)
        if lies.refusal is not None or port is None:
            await self.respond(*(lies.refusal or (0xA801, "")), {})
            return
        if len(archive.orders) >= lies.rendezvous:
            archive.met.set()
        with trio.fail_after(10):
            await archive.met.wait()
        if lies.early:
            await self.final(self.total)
        await archive.nursery.start(self.send, port)
        if not lies.early:
            await self.final(self.done)

    async def send(self, port: int, task_status: trio.TaskStatus[None]) -> None:
        """Started when all is sent; goes on where the association lingers."""
        lies = self.lies
        context = PresentationContextRq(
            context_id=1, abstract_syntax=CT, transfer_syntaxes=(EXPLICIT,)
        )
        rq = AssociationRequest(
            called_ae_title=self.request.move_destination,
            calling_ae_title=lies.title or "FAKE",
            contexts=(context,),
        )
        title = self.association.agreement.calling_ae_title
        originator = MoveOriginator(title, self.request.message_id) if lies.originator else None
        async with open_association("127.0.0.1", port, rq) as storage:
            await StorageScu(storage, originator=originator).run(self.take, self.report)
            self.left = list(lies.more)
            if lies.more:
                await StorageScu(storage).run(self.take, self.report)
            if lies.lingers:
                task_status.started()
                assert await storage.receive() is None
                self.archive.lingering.append("released")
        if not lies.lingers:
            task_status.started()

    async def take(self) -> FakeInstance | None:
        if not self.lies.early:
            await self.listen()
        if self.stopped or not self.left:
            return None
        if self.lies.pending and not self.lies.early:
            counts = {"remaining": len(self.left), "completed": self.done, "failed": 0}
            await self.respond(0xFF00, "", counts)
        self.lies.sub_operation(self.done + 1)
        return self.left.pop(0)

    def report(self, outcome: StoreOutcome) -> None:
        if outcome.stored:
            self.done += 1
            self.archive.sent.append(outcome.instance.sop_instance_uid)
        else:
            self.refused.append(outcome.instance.sop_instance_uid)

    async def listen(self) -> None:
        """A C-CANCEL may have come."""
        await trio.lowlevel.checkpoint()
        incoming = self.association.receive_nowait()
        if incoming is not None:
            assert isinstance(incoming.message, CCancelRq)
            self.archive.cancelled += 1
            self.stopped = True
