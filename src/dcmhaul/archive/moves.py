"""The archive's outgoing moves: known destinations, associations shared by parallel moves, retries.

Destinations come from a table that the owner gives; nothing that a peer sends adds to it. An instance
is read when its turn comes, and never held as a whole but where it is small.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from dcmhaul import uids
from dcmhaul.engine.counters import OTHER, Family
from dcmhaul.engine.pool import (
    ASSOCIATION_ERRORS,
    AssociationPool,
    PoolExhausted,
    PoolPolicy,
    Wait,
    next_step,
)
from dcmhaul.engine.retry import RetryPolicy, Verdict, decide_error, decide_status
from dcmhaul.engine.scheduler import WorkQueue, flat_nursery
from dcmhaul.engine.sharing import FairShare
from dcmhaul.errors import (
    AssociationRejected,
    ConfigurationError,
    DcmhaulError,
    InstanceError,
    PeerTimeout,
    UnreadableInstance,
)
from dcmhaul.net.requestor import open_association
from dcmhaul.net.types import NullObserver, SocketOptions, Timeouts
from dcmhaul.protocol.negotiation import (
    PDU_LENGTH_DEFAULT,
    AssociationRequest,
    plan_contexts,
)
from dcmhaul.protocol.statuses import describe
from dcmhaul.services.identifiers import QUERY_SYNTAXES
from dcmhaul.services.retrieve import storage_roles
from dcmhaul.services.storage import StorageScu
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from dcmhaul.engine.sharing import Slot
    from dcmhaul.net import Association
    from dcmhaul.net.types import Observer
    from dcmhaul.objects.instances import OutgoingInstance
    from dcmhaul.services.move import MoveOrder
    from dcmhaul.services.storage import StoreOutcome
    from dcmhaul.services.suboperations import StoredInstance

__all__ = ["MoveDestination", "MovePolicy", "MoveStatistics", "OutgoingMoves"]

ASSOCIATIONS_MAX = 4
UNREADABLE = "an object file cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveDestination:
    """An AE that may be moved to.

    associations_max: at once, of all moves. associations_a_move: of one; more than one only where its
    owner said so, for some systems take the end of an association for the end of a study. node: its
    name in the metrics.
    """

    ae_title: str
    host: str
    port: int
    node: str = OTHER
    associations_max: int = ASSOCIATIONS_MAX
    associations_a_move: int = 1
    window: int = 1
    pdu_length_max: int = PDU_LENGTH_DEFAULT
    pdu_length_send_max: int = 0
    options: SocketOptions = field(default_factory=SocketOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovePolicy:
    """What a failure on the way to a destination means.

    patience_seconds: for how long a destination that cannot be reached, or breaks off again and again,
    is tried, while the requestor waits. attempts: how often one instance is sent, where the destination
    is out of resources or is lost under it.
    """

    patience_seconds: float = 10.0
    attempts: int = 3
    delay_seconds: float = 0.25
    delay_max_seconds: float = 4.0

    def pool(self, size: int) -> PoolPolicy:
        return PoolPolicy(
            size=size,
            patience_seconds=self.patience_seconds,
            delay_seconds=self.delay_seconds,
            delay_max_seconds=self.delay_max_seconds,
        )

    def retry(self) -> RetryPolicy:
        return RetryPolicy(
            attempts=self.attempts,
            refused_attempts=1,
            delay_seconds=self.delay_seconds,
            delay_max_seconds=self.delay_max_seconds,
        )


@dataclass(slots=True, kw_only=True)
class MoveStatistics:
    """Since the start: C-MOVEs that had something to send, and what became of their instances.

    retries: C-STORE requests that were made again.
    """

    moves: int = 0
    sent: int = 0
    failed: int = 0
    retries: int = 0


class OutgoingMoves:
    """Performs the sub-operations of every C-MOVE; a services.move.Mover."""

    def __init__(
        self,
        destinations: Iterable[MoveDestination] = (),
        *,
        ae_title: str,
        timeouts: Timeouts | None = None,
        observer: Callable[[str], Observer] = lambda _node: NullObserver(),
        policy: MovePolicy | None = None,
        report: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """observer: for the associations with a node. report: hears in a line why moves failed.

        ConfigurationError where two destinations have one title.
        """
        self.statistics = MoveStatistics()
        self.ae_title = ae_title
        self.timeouts = timeouts if timeouts is not None else Timeouts()
        self.observer = observer
        self.policy = policy if policy is not None else MovePolicy()
        self.report = report
        self._table: dict[str, tuple[MoveDestination, FairShare]] = {}
        for destination in destinations:
            title = destination.ae_title
            known = self._table.setdefault(
                title, (destination, FairShare(destination.associations_max))
            )
            if known[0] != destination:
                raise ConfigurationError(
                    f"two move destinations have the AE title {title}: {known[0].host}:"
                    f"{known[0].port} and {destination.host}:{destination.port}; a C-MOVE names "
                    "only the title"
                )

    def knows(self, ae_title: str) -> bool:
        return ae_title in self._table

    def destination(self, ae_title: str) -> MoveDestination | None:
        """The known AE of that title, None where there is none."""
        known = self._table.get(ae_title)
        return None if known is None else known[0]

    @asynccontextmanager
    async def reporting(self, ae_title: str, sop_class_uid: str) -> AsyncIterator[Association]:
        """An association to a known AE, on which we are the SCP of a class and report events.

        KeyError where the title is not known; what `open_association` raises.
        """
        destination, _ = self._table[ae_title]
        request = AssociationRequest(
            called_ae_title=destination.ae_title,
            calling_ae_title=self.ae_title,
            contexts=(
                PresentationContextRq(
                    context_id=1,
                    abstract_syntax=sop_class_uid,
                    transfer_syntaxes=QUERY_SYNTAXES[:2],
                ),
            ),
            roles=storage_roles([sop_class_uid]),
            pdu_length_max=destination.pdu_length_max,
            pdu_length_send_max=destination.pdu_length_send_max,
        )
        async with open_association(
            destination.host,
            destination.port,
            request,
            timeouts=self.timeouts,
            options=destination.options,
            observer=self.observer(destination.node),
        ) as association:
            yield association

    async def move(self, order: MoveOrder) -> str:
        """Sends what the order holds; as services.move.Mover says."""
        destination, share = self._table[order.destination_ae_title]
        counts = order.counts
        self.statistics.moves += 1
        outgoing = _Outgoing(self, order, destination, share)
        try:
            await outgoing.run()
        finally:
            self.statistics.sent += counts.completed + counts.warning
            self.statistics.failed += len(counts.failed)
        if counts.failed:
            self.report(
                f"C-MOVE to {destination.ae_title}: {len(counts.failed)} of "
                f"{len(order.instances)} instances failed: {outgoing.detail}"
            )
        return outgoing.comment

    def families(self) -> list[Family]:
        """What `statistics` counts beside the C-MOVEs themselves, for the Prometheus collector."""
        return [
            Family(
                name="retries",
                kind="counter",
                help="Requests that were made again after a failure",
                labels=("level",),
                samples=((("instance",), self.statistics.retries),),
            )
        ]


@dataclass(slots=True, eq=False)
class _SubOperation:
    instance: StoredInstance
    attempts: int = 0


@dataclass(slots=True, eq=False)
class _Turn:
    """One association, and the slot that it has."""

    association: Association
    slot: Slot
    used: bool = False


class _Outgoing:
    """One C-MOVE on its way to its destination.

    Invariant: each instance is taken by one worker at a time; it is put back, or ends in the counts.
    """

    def __init__(
        self,
        owner: OutgoingMoves,
        order: MoveOrder,
        destination: MoveDestination,
        share: FairShare,
    ) -> None:
        self._owner = owner
        self._order = order
        self._destination = destination
        self._share = share
        self._workers = min(destination.associations_a_move, destination.associations_max)
        self._pool = AssociationPool(
            destination.host,
            destination.port,
            policy=owner.policy.pool(self._workers),
            timeouts=owner.timeouts,
            options=destination.options,
            observer=owner.observer(destination.node),
        )
        self._window = destination.window
        self._retry = owner.policy.retry()
        self._queue: WorkQueue[_SubOperation] = WorkQueue(1)
        self._taken: dict[OutgoingInstance, _SubOperation] = {}
        self._opening: set[trio.CancelScope] = set()
        self.comment = ""
        """Why something failed, for the requestor; `detail` is for the log."""
        self.detail = ""

    async def run(self) -> None:
        """Sends all, over as many associations one after another as the contexts need."""
        for contexts, instances in _groups(self._order.instances):
            if self._order.stop.is_set():
                break
            await self._send(contexts, instances)

    async def _send(
        self, contexts: tuple[PresentationContextRq, ...], instances: Sequence[StoredInstance]
    ) -> None:
        destination = self._destination
        request = AssociationRequest(
            called_ae_title=destination.ae_title,
            calling_ae_title=self._owner.ae_title,
            contexts=contexts,
            window=destination.window,
            pdu_length_max=destination.pdu_length_max,
            pdu_length_send_max=destination.pdu_length_send_max,
        )
        self._queue = WorkQueue(1)
        self._queue.fill(map(_SubOperation, instances))
        async with flat_nursery() as nursery:
            nursery.start_soon(self._heed_stop)
            async with flat_nursery() as workers:
                for _ in range(min(self._workers, len(instances))):
                    workers.start_soon(self._work, request)
            nursery.cancel_scope.cancel()
        if not self._order.stop.is_set():
            # The destination was given up, so what nobody took has failed.
            for sub_operation in self._queue.drain():
                self._order.counts.fail(sub_operation.instance.sop_instance_uid)

    async def _heed_stop(self) -> None:
        await self._order.stop.wait()
        self._queue.close()
        self._open_no_more()

    def _open_no_more(self) -> None:
        """Who waits for an association has nothing in flight."""
        for opening in self._opening:
            opening.cancel()

    async def _work(self, request: AssociationRequest) -> None:
        """Opens associations while there is something to send. One that breaks is opened again, as long
        as the pool has patience with the destination."""
        while await self._queue.wait():
            opening = trio.CancelScope()
            self._opening.add(opening)
            try:
                with opening:
                    await self._back_off()
                    async with self._share.slot(self) as slot:
                        await self._associate(request, slot, opening)
            except PoolExhausted as exc:
                self._say(_reason(self._title, exc.cause), str(exc.cause))
                self._queue.close()
            except ASSOCIATION_ERRORS:
                # The pool has counted it, and says at the next turn whether to go on. From now on one
                # instance at a time: what breaks an association shall not cost others their attempts.
                self._window = 1
            except UnreadableInstance:
                pass  # a file shrank under its message, which could only be aborted; it was reported
            finally:
                self._opening.discard(opening)

    async def _back_off(self) -> None:
        """After a failure; without a slot, which another move may use meanwhile."""
        step = next_step(self._pool.health, trio.current_time(), self._pool.policy)
        if isinstance(step, Wait):
            await trio.sleep(step.seconds)

    async def _associate(
        self, request: AssociationRequest, slot: Slot, opening: trio.CancelScope
    ) -> None:
        """Sends over one association until nothing is ready, or the slot is somebody else's turn."""
        try:
            async with self._pool.association(request) as association:
                self._opening.discard(opening)
                scu = StorageScu(
                    association,
                    window=self._window,
                    priority=self._order.priority,
                    originator=self._order.originator,
                )
                await scu.run(partial(self._take, _Turn(association, slot)), self._answered)
        except AssociationRejected as exc:
            if exc.transient and self._share.open > 1:
                self._share.bears(self._share.open - 1)
            raise

    async def _take(self, turn: _Turn) -> OutgoingInstance | None:
        """The next instance that this association can send; None where it is to end."""
        # One at least is sent, or owners of slots would do nothing but hand them round.
        if turn.used and turn.slot.wanted():
            return None
        turn.used = True
        agreement = turn.association.agreement
        while (sub_operation := self._queue.take_nowait()) is not None:
            instance = sub_operation.instance
            syntaxes = (instance.transfer_syntax_uid,)
            if agreement.context_for(instance.sop_class_uid, syntaxes) is None:
                self._fail(
                    sub_operation,
                    f"{self._title} accepts no context for some of them",
                    f"no context for {uids.name(instance.sop_class_uid)} in {uids.name(*syntaxes)}",
                )
            else:
                try:
                    opened = instance.open()
                except (InstanceError, OSError) as exc:
                    self._fail(sub_operation, UNREADABLE, str(exc))
                else:
                    self._taken[opened] = sub_operation
                    return opened
            await trio.lowlevel.checkpoint()
        self._open_no_more()
        return None

    @property
    def _title(self) -> str:
        return self._destination.ae_title

    def _answered(self, outcome: StoreOutcome) -> None:
        """Each instance that was opened ends here, or is put back."""
        sub_operation = self._taken.pop(outcome.instance)
        outcome.instance.close()
        if outcome.sent:
            sub_operation.attempts += 1
        if outcome.status is not None:
            self._pool.worked()
        if not outcome.stored:
            delay = self._delay(outcome, sub_operation.attempts)
            if delay is not None:
                self._owner.statistics.retries += 1
                self._queue.put_back(sub_operation, delay)
                return
            self._blame(outcome)
        self._queue.settle()
        self._order.counts.ended(outcome)

    def _delay(self, outcome: StoreOutcome, attempts: int) -> float | None:
        """Seconds until the instance is sent again; None where that would not mend it."""
        if outcome.status is not None:
            decision = decide_status(outcome.status, attempts, self._retry)
            return decision.delay_seconds if decision.verdict is Verdict.RETRY else None
        assert outcome.error is not None  # without a status there is an error
        if outcome.sent and isinstance(outcome.error, InstanceError):
            return 0.0  # another one's file ended its association
        decision = decide_error(outcome.error, attempts, self._retry)
        # How long to wait before the next association is the pool's to say.
        return 0.0 if decision.verdict is Verdict.RETRY else None

    def _fail(self, sub_operation: _SubOperation, comment: str, detail: str) -> None:
        self._say(comment, detail)
        self._queue.settle()
        self._order.counts.fail(sub_operation.instance.sop_instance_uid)

    def _blame(self, outcome: StoreOutcome) -> None:
        if outcome.error is not None:
            self._say(_reason(self._title, outcome.error), str(outcome.error))
        elif outcome.status is not None:
            meaning = describe(outcome.status)
            self._say(f"{self._title}: {meaning}", f"it answered {meaning}")

    def _say(self, comment: str, detail: str) -> None:
        """The first reason stays: what follows is more of the same, as a rule."""
        if not self.comment:
            self.comment, self.detail = comment, detail


def _groups(
    instances: Sequence[StoredInstance],
) -> list[tuple[tuple[PresentationContextRq, ...], Sequence[StoredInstance]]]:
    """The contexts of each association that is needed, with the instances that it is for."""
    planned = plan_contexts((i.sop_class_uid, i.transfer_syntax_uid) for i in instances)
    if len(planned) <= 1:
        return [(contexts, instances) for contexts in planned]
    number = {
        (context.abstract_syntax, context.transfer_syntaxes[0]): place
        for place, contexts in enumerate(planned)
        for context in contexts
    }
    groups: list[list[StoredInstance]] = [[] for _ in planned]
    for instance in instances:
        groups[number[instance.sop_class_uid, instance.transfer_syntax_uid]].append(instance)
    return list(zip(planned, groups, strict=True))


def _reason(ae_title: str, error: DcmhaulError) -> str:
    """Why nothing came of it, in the 64 characters of an Error Comment, and without an address."""
    if isinstance(error, AssociationRejected):
        numbers = f"{error.result}/{error.source}/{error.reason}"
        return f"{ae_title} rejected the association ({numbers})"
    if isinstance(error, PeerTimeout):
        return f"{ae_title}: {error.phase} time-out after {error.seconds:g} s"
    if isinstance(error, InstanceError):
        return UNREADABLE
    return f"{ae_title} cannot be reached, or broke off"
