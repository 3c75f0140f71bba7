"""The archive as SCP of Storage Commitment: it looks at the bytes on its disk, and tells what it found.

A request is in the database before it is answered, and stays there until its result was delivered: on the
association of the request where the requestor is no node that is known, else on one of our own, again and
again, after a restart too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
import trio

from dcmhaul import uids
from dcmhaul.archive.index import Place
from dcmhaul.archive.tables import INSTANCE, KEPT, keep, primary_key
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import DcmhaulError
from dcmhaul.objects.paths import sync_data
from dcmhaul.protocol import statuses
from dcmhaul.protocol.statuses import describe
from dcmhaul.services.commitment import (
    INSTANCE_UID,
    REQUEST,
    read_references,
    transaction_result,
    transaction_uid,
)
from dcmhaul.services.normalized import (
    NormalizedAnswer,
    NormalizedRefused,
    NormalizedScp,
    SopClass,
    n_event_report,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydicom.dataset import Dataset
    from sqlalchemy.engine import Connection

    from dcmhaul.archive.moves import OutgoingMoves
    from dcmhaul.archive.store import Store
    from dcmhaul.database import Database
    from dcmhaul.net import Association
    from dcmhaul.services.commitment import Reference
    from dcmhaul.services.normalized import NormalizedRequest

__all__ = ["CommitmentScp"]

_LOG: Final = logging.getLogger(__name__)

DUPLICATE_TRANSACTION: Final = 0x0131
"""Failure Reason (PS3.3 §C.14.1.1)."""
RETRY_SECONDS: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 900.0)
"""Waits before a result is told again; the last one repeats."""
KEPT_SECONDS: Final = 7 * 24 * 3600
"""A result that could not be delivered for so long is given up."""
OPEN_MAX: Final = 1000
"""Requests that wait for their results; more are answered 0213."""
_READ_BYTES: Final = 1 << 20
_UIDS_AT_ONCE: Final = 500

_COMMITMENT: Final = sa.Table(
    "commitment",
    KEPT,
    primary_key(),
    sa.Column("transaction_uid", sa.Text, nullable=False, unique=True),
    sa.Column("ae_title", sa.Text, nullable=False),
    sa.Column("sop_references", sa.Text, nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
    sa.Column("delivered", sa.BigInteger),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A request whose result is to be delivered. duplicate: its Transaction UID is that of another."""

    transaction_uid: str
    ae_title: str
    references: tuple[Reference, ...]
    received: int
    duplicate: bool = False


class CommitmentScp:
    """Takes requests, checks, and delivers results; `run` is to run beside what serves."""

    def __init__(
        self,
        database: Database,
        store: Store,
        moves: OutgoingMoves,
        *,
        durable: bool,
        report: Callable[[str], None],
    ) -> None:
        """durable: what the store holds was synced when it was stored; else a check does so."""
        self._database = database
        self._store = store
        self._moves = moves
        self._durable = durable
        self._report = report
        self._waiting: dict[str, _Open] = {}
        self._wake = trio.Event()
        self._begun: set[str] = set()
        self._telling: dict[Association, list[_Open]] = {}
        self.sop_class = SopClass(
            uid=uids.STORAGE_COMMITMENT_PUSH,
            operations={"N-ACTION": self._requested},
            well_known=INSTANCE_UID,
        )

    async def open(self) -> None:
        """Reads what an earlier run has left."""
        for found in await self._database.read(_undelivered):
            self._waiting[found.transaction_uid] = found

    # -- requests -------------------------------------------------------------------------------

    async def _requested(self, request: NormalizedRequest) -> NormalizedAnswer:
        if request.type_id != REQUEST:
            raise NormalizedRefused(statuses.NO_SUCH_ACTION_TYPE, "the action type is 1")
        if len(self._waiting) >= OPEN_MAX:
            raise NormalizedRefused(statuses.RESOURCE_LIMITATION, "too many requests are open")
        asked = _Open(
            transaction_uid=transaction_uid(request.dataset),
            ae_title=request.calling_ae_title,
            references=tuple(read_references(request.dataset)),
            received=int(time.time()),
        )
        kept = await keep(self._database, partial(_keep, asked), "the request")
        if not kept:
            # Told at once, on the association that the repeated UID came on, and to nobody else.
            asked = replace(asked, duplicate=True)
        else:
            self._waiting[asked.transaction_uid] = asked
        if asked.duplicate or self._moves.destination(asked.ae_title) is None:
            return NormalizedAnswer(afterwards=partial(self._tell_here, request.association, asked))
        self._wake.set()
        return NormalizedAnswer()

    async def _tell_here(self, association: Association, asked: _Open) -> None:
        """The result on the association of the request: where else its requestor is, nobody has said.

        What is requested while one is told waits for its turn.
        """
        turns = self._telling.get(association)
        if turns is not None:
            turns.append(asked)
            return
        self._telling[association] = turns = [asked]
        services = [NormalizedScp([self.sop_class])]
        try:
            while turns:
                asked = turns[0]
                response = await n_event_report(
                    association,
                    uids.STORAGE_COMMITMENT_PUSH,
                    INSTANCE_UID,
                    *await self._result(asked),
                    services=services,
                )
                if response.status == statuses.SUCCESS and not asked.duplicate:
                    await self._delivered(asked)
                del turns[0]
        finally:
            del self._telling[association]

    # -- checks ---------------------------------------------------------------------------------

    async def _result(self, asked: _Open) -> tuple[int, Dataset]:
        if asked.duplicate:
            outcomes = [(reference, DUPLICATE_TRANSACTION) for reference in asked.references]
        else:
            outcomes = await self._check(asked.references)
        return transaction_result(asked.transaction_uid, outcomes, self._moves.ae_title)

    async def _check(self, references: Sequence[Reference]) -> list[tuple[Reference, int]]:
        """What each is worth: 0 where its bytes on the disk have the digest that they were stored with."""
        outcomes: list[tuple[Reference, int]] = []
        for start in range(0, len(references), _UIDS_AT_ONCE):
            some = references[start : start + _UIDS_AT_ONCE]
            rows = await self._database.read(partial(_rows, [uid for _, uid in some]))
            for reference in some:
                sop_class, uid = reference
                row = rows.get(uid)
                if row is None:
                    reason = statuses.NO_SUCH_SOP_INSTANCE
                elif row.sop_class_uid != sop_class:
                    reason = statuses.CLASS_INSTANCE_CONFLICT
                else:
                    path = self._store.path(Place(row.folder, row.name))
                    whole = await trio.to_thread.run_sync(_is_whole, path, row, not self._durable)
                    reason = 0 if whole else statuses.PROCESSING_FAILURE
                    if not whole:
                        self._report(f"{path} has not the bytes that were stored: not committed")
                outcomes.append((reference, reason))
        return outcomes

    # -- results --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Delivers results to known nodes for ever, each as often as it takes."""
        async with flat_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                for uid, asked in self._waiting.items():
                    if uid not in self._begun and self._moves.destination(asked.ae_title):
                        self._begun.add(uid)
                        nursery.start_soon(self._deliver, asked)
                await self._wake.wait()

    async def _deliver(self, asked: _Open) -> None:
        """Ends when it was taken, or given up."""
        attempts = 0
        while True:
            try:
                await self._tell(asked)
            except (DcmhaulError, OSError) as error:
                if time.time() - asked.received > KEPT_SECONDS:
                    self._report(f"{asked.ae_title} never took the result of a storage commitment")
                    await self._delivered(asked)
                    return
                if attempts == 0:
                    self._report(
                        f"{asked.ae_title}: the result of a storage commitment waits: {error}"
                    )
            else:
                return
            await trio.sleep(RETRY_SECONDS[min(attempts, len(RETRY_SECONDS) - 1)])
            attempts += 1

    async def _tell(self, asked: _Open) -> None:
        """The result, on an association of our own. DcmhaulError where it was not taken."""
        result = await self._result(asked)
        async with self._moves.reporting(
            asked.ae_title, uids.STORAGE_COMMITMENT_PUSH
        ) as association:
            response = await n_event_report(
                association, uids.STORAGE_COMMITMENT_PUSH, INSTANCE_UID, *result
            )
        if response.status != statuses.SUCCESS:
            raise DcmhaulError(f"it answered {describe(response.status, 'N-EVENT-REPORT')}")
        await self._delivered(asked)

    async def _delivered(self, asked: _Open) -> None:
        """Its row stays for a while, so that its Transaction UID is not used again."""
        self._waiting.pop(asked.transaction_uid, None)
        self._begun.discard(asked.transaction_uid)
        await self._database.submit(partial(_close, asked.transaction_uid))


def _is_whole(path: str, row: sa.Row[Any], sync: bool) -> bool:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            file.seek(row.dataset_offset)
            length = 0
            while data := file.read(_READ_BYTES):
                digest.update(data)
                length += len(data)
            if sync:
                sync_data(file.fileno())
    except OSError as error:
        _LOG.warning("%s: %s", path, os.strerror(error.errno or 0))
        return False
    return bool(length == row.length and digest.digest() == row.sha256)


def _rows(instance_uids: list[str], connection: Connection) -> dict[str, sa.Row[Any]]:
    columns = (
        INSTANCE.c.sop_instance_uid,
        INSTANCE.c.sop_class_uid,
        INSTANCE.c.folder,
        INSTANCE.c.name,
        INSTANCE.c.dataset_offset,
        INSTANCE.c.length,
        INSTANCE.c.sha256,
    )
    statement: sa.Select[Any] = sa.select(*columns)
    found = connection.execute(statement.where(INSTANCE.c.sop_instance_uid.in_(instance_uids)))
    return {row.sop_instance_uid: row for row in found}


def _keep(asked: _Open, connection: Connection) -> bool:
    """False where the Transaction UID is known, unless this is the same request once more."""
    old = int(time.time()) - KEPT_SECONDS
    connection.execute(_COMMITMENT.delete().where(_COMMITMENT.c.received < old))
    references = json.dumps(asked.references)
    known = connection.execute(
        sa.select(_COMMITMENT).where(_COMMITMENT.c.transaction_uid == asked.transaction_uid)
    ).first()
    if known is not None:
        same = known.ae_title == asked.ae_title and known.sop_references == references
        return same and known.delivered is None
    connection.execute(
        _COMMITMENT.insert(),
        {
            "transaction_uid": asked.transaction_uid,
            "ae_title": asked.ae_title,
            "sop_references": references,
            "received": asked.received,
        },
    )
    return True


def _close(transaction: str, connection: Connection) -> None:
    connection.execute(
        _COMMITMENT.update()
        .where(_COMMITMENT.c.transaction_uid == transaction)
        .values(delivered=int(time.time()))
    )


def _undelivered(connection: Connection) -> list[_Open]:
    rows = connection.execute(
        sa.select(_COMMITMENT).where(_COMMITMENT.c.delivered.is_(None)).order_by(_COMMITMENT.c.pk)
    )
    return [
        _Open(
            transaction_uid=row.transaction_uid,
            ae_title=row.ae_title,
            references=tuple((sop_class, uid) for sop_class, uid in json.loads(row.sop_references)),
            received=row.received,
        )
        for row in rows
    ]
