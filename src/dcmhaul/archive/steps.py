"""The archive as SCP of Modality Performed Procedure Steps (PS3.4 Annex F): it keeps them and their rules."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

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
    give_attributes,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from sqlalchemy.engine import Connection

    from dcmhaul.database import Database
    from dcmhaul.services.normalized import NormalizedRequest

__all__ = ["ProcedureSteps"]

IN_PROGRESS: Final = "IN PROGRESS"
FINAL: Final = ("COMPLETED", "DISCONTINUED")
NO_LONGER_UPDATED: Final = 0xA710
"""Error ID beside 0110 (PS3.4 §F.7.2.2.2)."""

_STATUS: Final = 0x00400252
_SCHEDULED_STEPS: Final = 0x00400270
_STUDY_INSTANCE_UID: Final = 0x0020000D
# Type 1 at N-CREATE (PS3.4 Table F.7.2-1), and not to be changed by N-SET.
_REQUIRED: Final = (
    0x00080060,  # Modality
    0x00400241,  # Performed Station AE Title
    0x00400244,  # Performed Procedure Step Start Date
    0x00400245,  # Performed Procedure Step Start Time
    0x00400253,  # Performed Procedure Step ID
    _SCHEDULED_STEPS,
)
# What a final state needs (PS3.4 Table F.7.2-1, 3F.7-1): only strict archives insist.
_REQUIRED_AT_END: Final = (0x00400250, 0x00400251, 0x00400340)

_STEP: Final = sa.Table(
    "procedure_step",
    KEPT,
    primary_key(),
    sa.Column("sop_instance_uid", sa.Text, nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("ae_title", sa.Text, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False),
)


class ProcedureSteps:
    """N-CREATE, N-SET and N-GET of the steps of one archive, each change durable before it is answered."""

    def __init__(self, database: Database, *, strict: bool) -> None:
        self._database = database
        self._strict = strict
        self.sop_classes = (
            SopClass(
                uid=uids.MODALITY_PERFORMED_PROCEDURE_STEP,
                operations={"N-CREATE": self._create, "N-SET": self._set},
                dataset_length_max=STEP_LENGTH_MAX,
            ),
            SopClass(
                uid=uids.MODALITY_PERFORMED_PROCEDURE_STEP_RETRIEVE,
                operations={"N-GET": self._get},
            ),
        )

    async def _create(self, request: NormalizedRequest) -> NormalizedAnswer:
        attributes = _dataset(request)
        check_present(attributes, (*_REQUIRED, _STATUS))
        if _status(attributes) != IN_PROGRESS:
            raise NormalizedRefused(
                statuses.INVALID_ATTRIBUTE_VALUE,
                f"a new step is {IN_PROGRESS}",
                attributes=(_STATUS,),
            )
        for item in attributes[_SCHEDULED_STEPS].value:
            check_present(item, (_STUDY_INSTANCE_UID,))
        uid = request.sop_instance_uid or uids.new_uid()
        write = partial(_insert, uid, attributes, request.calling_ae_title)
        await keep(self._database, write, "the step")
        return NormalizedAnswer(sop_instance_uid=uid)

    async def _set(self, request: NormalizedRequest) -> NormalizedAnswer:
        changes = _dataset(request)
        if fixed := tuple(tag for tag in _REQUIRED if tag in changes):
            raise NormalizedRefused(
                statuses.NO_SUCH_ATTRIBUTE, "only N-CREATE sets these", attributes=fixed
            )
        if _STATUS in changes and _status(changes) not in (IN_PROGRESS, *FINAL):
            raise NormalizedRefused(
                statuses.INVALID_ATTRIBUTE_VALUE, "no status of a step", attributes=(_STATUS,)
            )
        write = partial(_update, request.sop_instance_uid, changes, strict=self._strict)
        await keep(self._database, write, "the step")
        return NormalizedAnswer()

    async def _get(self, request: NormalizedRequest) -> NormalizedAnswer:
        held = await self._database.read(partial(_read, request.sop_instance_uid))
        return give_attributes(held, request.attributes)


def _dataset(request: NormalizedRequest) -> Dataset:
    if request.dataset is None:
        raise NormalizedRefused(statuses.MISSING_ATTRIBUTE, "no attributes", attributes=_REQUIRED)
    return request.dataset


def _status(attributes: Dataset) -> str:
    return str(attributes[_STATUS].value or "").strip()


def _find(uid: str, connection: Connection) -> sa.Row[Any]:
    found = connection.execute(sa.select(_STEP).where(_STEP.c.sop_instance_uid == uid)).first()
    if found is None:
        raise NormalizedRefused(statuses.NO_SUCH_SOP_INSTANCE, "no such performed procedure step")
    return found


def _read(uid: str, connection: Connection) -> Dataset:
    from pydicom.dataset import Dataset

    return Dataset.from_json(json.loads(_find(uid, connection).attributes))


def _values(attributes: Dataset) -> dict[str, object]:
    return {
        "status": _status(attributes),
        "attributes": json.dumps(attributes.to_json_dict(), ensure_ascii=False),
        "changed": int(time.time()),
    }


def _insert(uid: str, attributes: Dataset, ae_title: str, connection: Connection) -> None:
    known = sa.select(_STEP.c.pk).where(_STEP.c.sop_instance_uid == uid)
    if connection.execute(known).first() is not None:
        raise NormalizedRefused(statuses.DUPLICATE_SOP_INSTANCE, "this step is known already")
    connection.execute(
        _STEP.insert(),
        {"sop_instance_uid": uid, "ae_title": ae_title, **_values(attributes)},
    )


def _update(uid: str, changes: Dataset, connection: Connection, *, strict: bool) -> None:
    if _find(uid, connection).status in FINAL:
        raise NormalizedRefused(
            statuses.PROCESSING_FAILURE,
            "the step may no longer be updated",
            error_id=NO_LONGER_UPDATED,
            attributes=(_STATUS,),
        )
    attributes = _read(uid, connection)
    attributes.update(changes)
    if strict and _status(attributes) in FINAL:
        check_present(attributes, _REQUIRED_AT_END)
    connection.execute(
        _STEP.update().where(_STEP.c.sop_instance_uid == uid).values(**_values(attributes))
    )
