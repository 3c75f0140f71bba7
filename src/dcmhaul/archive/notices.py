"""The archive as SCP of Instance Availability Notifications (PS3.4 Annex R): it checks and keeps them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from dcmhaul import uids
from dcmhaul.archive.tables import KEPT, keep, primary_key
from dcmhaul.protocol import statuses
from dcmhaul.services.normalized import (
    STEP_LENGTH_MAX,
    NormalizedAnswer,
    NormalizedRefused,
    SopClass,
    check_present,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from sqlalchemy.engine import Connection

    from dcmhaul.database import Database
    from dcmhaul.services.normalized import NormalizedRequest

__all__ = ["AvailabilityNotices", "Notice"]

AVAILABILITIES: Final = ("ONLINE", "NEARLINE", "OFFLINE", "UNAVAILABLE")

_STUDY: Final = 0x0020000D
_SERIES_SEQUENCE: Final = 0x00081115
_SERIES: Final = 0x0020000E
_SOP_SEQUENCE: Final = 0x00081199
_AVAILABILITY: Final = 0x00080056
_INSTANCE: Final = (0x00081150, 0x00081155, _AVAILABILITY, 0x00080054)

_NOTICE: Final = sa.Table(
    "availability_notice",
    KEPT,
    primary_key(),
    sa.Column("sop_instance_uid", sa.Text, nullable=False, unique=True),
    sa.Column("ae_title", sa.Text, nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One notification. ae_title: whose. received: s since 1970."""

    sop_instance_uid: str
    ae_title: str
    received: int
    attributes: Dataset


class AvailabilityNotices:
    """N-CREATE of notifications, each durable before it is answered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.sop_class = SopClass(
            uid=uids.INSTANCE_AVAILABILITY_NOTIFICATION,
            operations={"N-CREATE": self._create},
            dataset_length_max=STEP_LENGTH_MAX,
        )

    async def read(self, *, after: int = 0, count: int = 1000) -> list[tuple[int, Notice]]:
        """The notifications in the order that they came, each with its number; after: that number."""
        return await self._database.read(partial(_read, after, count))

    async def _create(self, request: NormalizedRequest) -> NormalizedAnswer:
        attributes = request.dataset
        if attributes is None:
            raise NormalizedRefused(
                statuses.MISSING_ATTRIBUTE, "no attributes", attributes=(_STUDY,)
            )
        _check(attributes)
        uid = request.sop_instance_uid or uids.new_uid()
        row = {
            "sop_instance_uid": uid,
            "ae_title": request.calling_ae_title,
            "received": int(time.time()),
            "attributes": json.dumps(attributes.to_json_dict(), ensure_ascii=False),
        }
        await keep(self._database, partial(_insert, row), "the notification")
        return NormalizedAnswer(sop_instance_uid=uid)


def _check(attributes: Dataset) -> None:
    """Its attributes of type 1 (PS3.4 Table R.3.2-1)."""
    check_present(attributes, (_STUDY, _SERIES_SEQUENCE))
    for series in attributes[_SERIES_SEQUENCE].value:
        check_present(series, (_SERIES, _SOP_SEQUENCE))
        for instance in series[_SOP_SEQUENCE].value:
            check_present(instance, _INSTANCE)
            if instance[_AVAILABILITY].value not in AVAILABILITIES:
                raise NormalizedRefused(
                    statuses.INVALID_ATTRIBUTE_VALUE,
                    f"Instance Availability is one of {', '.join(AVAILABILITIES)}"[:64],
                    attributes=(_AVAILABILITY,),
                )


def _insert(row: dict[str, object], connection: Connection) -> None:
    known = sa.select(_NOTICE.c.pk).where(_NOTICE.c.sop_instance_uid == row["sop_instance_uid"])
    if connection.execute(known).first() is not None:
        raise NormalizedRefused(
            statuses.DUPLICATE_SOP_INSTANCE, "this notification is known already"
        )
    connection.execute(_NOTICE.insert(), row)


def _read(after: int, count: int, connection: Connection) -> list[tuple[int, Notice]]:
    from pydicom.dataset import Dataset

    statement = sa.select(_NOTICE).where(_NOTICE.c.pk > after).order_by(_NOTICE.c.pk)
    return [
        (
            row.pk,
            Notice(
                sop_instance_uid=row.sop_instance_uid,
                ae_title=row.ae_title,
                received=row.received,
                attributes=Dataset.from_json(json.loads(row.attributes)),
            ),
        )
        for row in connection.execute(statement.limit(count))
    ]
