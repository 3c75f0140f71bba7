"""Who hears of which unified procedure steps of the archive, and how they are told (PS3.4 §CC.2.3, §CC.2.4).

Subscriptions are in the database. Events are told in their order to each AE, on associations of our own;
what an AE does not take for too long is dropped, and a line says so: the steps themselves tell their state.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
import trio

from dcmhaul import uids
from dcmhaul.archive.tables import KEPT, primary_key
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import DcmhaulError
from dcmhaul.services.normalized import n_event_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydicom.dataset import Dataset
    from sqlalchemy.engine import Connection

    from dcmhaul.archive.moves import OutgoingMoves

__all__ = [
    "SUBSCRIPTION",
    "Event",
    "EventReporter",
    "add_step",
    "subscribe",
    "subscribers",
    "suspend",
    "unsubscribe",
]

_LOG: Final = logging.getLogger(__name__)

RETRY_SECONDS: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Waits before events are told again; after the last one they are dropped."""
WAITING_MAX: Final = 10_000
"""Events that wait for one AE; the oldest are dropped."""
LINGER_SECONDS: Final = 1.0
"""How long an association stays open for the next event."""

GLOBAL: Final = uids.UNIFIED_STEP_SUBSCRIPTION


# An AE, and a step or all that are to come. locked: the step stays for as long as this row does.
SUBSCRIPTION: Final = sa.Table(
    "unified_subscription",
    KEPT,
    primary_key(),
    sa.Column("sop_instance_uid", sa.Text, nullable=False),
    sa.Column("ae_title", sa.Text, nullable=False),
    sa.Column("locked", sa.Boolean, nullable=False),
    sa.UniqueConstraint("sop_instance_uid", "ae_title"),
    sa.Index("unified_subscription_by_ae", "ae_title"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One N-EVENT-REPORT."""

    sop_instance_uid: str
    type_id: int
    information: Dataset


# -- subscriptions ------------------------------------------------------------------------------


def _of(ae_title: str, uid: str) -> sa.ColumnElement[bool]:
    return (SUBSCRIPTION.c.sop_instance_uid == uid) & (SUBSCRIPTION.c.ae_title == ae_title)


def _put(connection: Connection, uid: str, ae_title: str, *, locked: bool) -> None:
    connection.execute(SUBSCRIPTION.delete().where(_of(ae_title, uid)))
    connection.execute(
        SUBSCRIPTION.insert(), {"sop_instance_uid": uid, "ae_title": ae_title, "locked": locked}
    )


def subscribe(
    connection: Connection,
    ae_title: str,
    uid: str,
    existing: sa.Select[tuple[str]],
    *,
    locked: bool,
) -> None:
    """As Table CC.2.3-2 has it. existing: selects the UIDs of the steps that there are."""
    if uid == GLOBAL:
        mine = SUBSCRIPTION.c.ae_title == ae_title
        missing = existing
        if locked:
            connection.execute(SUBSCRIPTION.delete().where(mine))
        else:
            # A subscription to all takes no lock off: what was said of one step counts more.
            known = sa.select(SUBSCRIPTION.c.sop_instance_uid).where(mine)
            missing = existing.where(existing.selected_columns[0].not_in(known))
        columns = ("sop_instance_uid", "ae_title", "locked")
        rows = missing.add_columns(sa.literal(ae_title), sa.literal(locked, sa.Boolean))
        connection.execute(SUBSCRIPTION.insert().from_select(columns, rows))
    _put(connection, uid, ae_title, locked=locked)


def unsubscribe(connection: Connection, ae_title: str, uid: str) -> None:
    """From one step, or from everything."""
    which = SUBSCRIPTION.c.ae_title == ae_title if uid == GLOBAL else _of(ae_title, uid)
    connection.execute(SUBSCRIPTION.delete().where(which))


def suspend(connection: Connection, ae_title: str) -> None:
    """From steps that are to come; those that are there are still heard of."""
    connection.execute(SUBSCRIPTION.delete().where(_of(ae_title, GLOBAL)))


def add_step(connection: Connection, uid: str) -> list[str]:
    """Whoever subscribed to all hears of a new step too; their titles."""
    rows = connection.execute(
        sa.select(SUBSCRIPTION).where(SUBSCRIPTION.c.sop_instance_uid == GLOBAL)
    ).all()
    for row in rows:
        _put(connection, uid, row.ae_title, locked=row.locked)
    return [row.ae_title for row in rows]


def subscribers(connection: Connection, uid: str) -> list[str]:
    """The titles of those that hear of a step."""
    found = sa.select(SUBSCRIPTION.c.ae_title).where(SUBSCRIPTION.c.sop_instance_uid == uid)
    return list(connection.scalars(found.order_by(SUBSCRIPTION.c.pk)))


# -- events -------------------------------------------------------------------------------------


class EventReporter:
    """Tells events to known AEs; `run` is to run beside what serves."""

    def __init__(self, moves: OutgoingMoves, report: Callable[[str], None]) -> None:
        self._moves = moves
        self._report = report
        self._waiting: dict[str, deque[Event]] = {}
        self._more: dict[str, trio.Event] = {}
        self._wake = trio.Event()

    def knows(self, ae_title: str) -> bool:
        """Whether events can be told to that AE."""
        return self._moves.destination(ae_title) is not None

    def tell(self, ae_titles: Iterable[str], events: Iterable[Event]) -> None:
        """Queues events for each of these AEs."""
        told = list(events)
        for title in ae_titles:
            if not self.knows(title):
                continue  # it was known when it subscribed, before a restart
            waiting = self._waiting.setdefault(title, deque())
            waiting.extend(told)
            if len(waiting) > WAITING_MAX:
                self._report(
                    f"{title}: more than {WAITING_MAX} events wait; the oldest are dropped"
                )
                while len(waiting) > WAITING_MAX:
                    waiting.popleft()
            if title in self._more:
                self._more[title].set()
        self._wake.set()

    async def run(self) -> None:
        """Delivers for ever, to each AE in a task of its own while there is something for it."""
        async with flat_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                for title in self._waiting.keys() - self._more.keys():
                    self._more[title] = trio.Event()
                    nursery.start_soon(self._serve, title)
                await self._wake.wait()

    async def _serve(self, title: str) -> None:
        """Ends when nothing is left, or was given up."""
        waiting = self._waiting[title]
        attempts = 0
        try:
            while waiting:
                before = len(waiting)
                try:
                    await self._deliver(title, waiting)
                    attempts = 0
                except (DcmhaulError, OSError) as error:
                    if not waiting:
                        return  # all was told; only the release has failed
                    if len(waiting) < before:
                        attempts = 0
                    if attempts == 0:
                        self._report(f"{title}: events of procedure steps wait: {error}")
                    if attempts == len(RETRY_SECONDS):
                        self._report(f"{title} took no event: {len(waiting)} are dropped")
                        waiting.clear()
                        return
                    await trio.sleep(RETRY_SECONDS[attempts])
                    attempts += 1
        finally:
            del self._waiting[title], self._more[title]

    async def _deliver(self, title: str, waiting: deque[Event]) -> None:
        """What waits, on one association, until nothing came for a moment."""
        async with self._moves.reporting(title, uids.UNIFIED_STEP_EVENT) as association:
            while waiting:
                event = waiting[0]
                response = await n_event_report(
                    association,
                    uids.UNIFIED_STEP_PUSH,
                    event.sop_instance_uid,
                    event.type_id,
                    event.information,
                    context=uids.UNIFIED_STEP_EVENT,
                )
                if response.status:
                    # It has heard of it; that it cannot use it is its own affair.
                    _LOG.info("%s answered 0x%04X to an event", title, response.status)
                if waiting and waiting[0] is event:
                    waiting.popleft()
                if not waiting:
                    self._more[title] = trio.Event()
                    with trio.move_on_after(LINGER_SECONDS):
                        await self._more[title].wait()
