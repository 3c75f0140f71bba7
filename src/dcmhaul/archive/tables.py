"""The tables of the archive's index."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from dcmhaul.archive.attributes import Attribute, Level, at_level
from dcmhaul.database import DatabaseError
from dcmhaul.protocol import statuses
from dcmhaul.services.normalized import NormalizedRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Connection

    from dcmhaul.database import Database

__all__ = [
    "CONFLICT",
    "INSTANCE",
    "KEPT",
    "KIND",
    "METADATA",
    "PATIENT",
    "SCHEMA_VERSION",
    "SERIES",
    "STUDY",
    "add_kept",
    "keep",
    "primary_key",
]

T = TypeVar("T")

KIND = "archive"
SCHEMA_VERSION = 1
METADATA = sa.MetaData()
KEPT = sa.MetaData()
"""Tables of what else is kept beside the index, in no version of its schema: made where they are missing."""


def primary_key() -> sa.Column[int]:
    """`pk`, which the database counts."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column("pk", number, primary_key=True)


def _columns(attributes: Sequence[Attribute]) -> list[sa.Column[str]]:
    return [sa.Column(a.column, sa.Text) for a in attributes]


# `patient_key` tells patients apart. What is below holds the patient's attributes once more, as the
# first object of the study gave them: one Patient ID may come with several spellings of the name,
# and in the Study Root model they belong to the study.
PATIENT = sa.Table(
    "patient",
    METADATA,
    primary_key(),
    sa.Column("patient_key", sa.Text, nullable=False, unique=True),
    *_columns(at_level(Level.PATIENT)),
    sa.Column("patient_name_match", sa.Text),
    sa.Column("character_set", sa.Text, nullable=False),
)
STUDY = sa.Table(
    "study",
    METADATA,
    primary_key(),
    sa.Column("patient_pk", sa.ForeignKey("patient.pk"), nullable=False, index=True),
    *_columns(at_level(Level.PATIENT)),
    *_columns(at_level(Level.STUDY)),
    sa.Column("patient_name_match", sa.Text),
    sa.Column("character_set", sa.Text, nullable=False),
    sa.UniqueConstraint("study_instance_uid"),
    sa.Index("study_by_patient_id", "patient_id"),
    sa.Index("study_by_date", "study_date"),
    sa.Index("study_by_accession_number", "accession_number"),
)
SERIES = sa.Table(
    "series",
    METADATA,
    primary_key(),
    sa.Column("study_pk", sa.ForeignKey("study.pk"), nullable=False),
    *_columns(at_level(Level.SERIES)),
    sa.Column("character_set", sa.Text, nullable=False),
    sa.UniqueConstraint("study_pk", "series_instance_uid"),
    sa.Index("series_by_uid", "series_instance_uid"),
    sa.Index("series_by_modality", "study_pk", "modality"),
)
# `folder` and `name` say where the store keeps the object, `dataset_offset` where in that file its
# dataset begins. `length` and `sha256` are those of the dataset alone.
_STORED = (
    sa.Column("folder", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("dataset_offset", sa.Integer, nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
    sa.Column("source_ae_title", sa.Text, nullable=False),
)
INSTANCE = sa.Table(
    "instance",
    METADATA,
    primary_key(),
    sa.Column("series_pk", sa.ForeignKey("series.pk"), nullable=False),
    *_columns(at_level(Level.IMAGE)),
    sa.Column("character_set", sa.Text, nullable=False),
    *(column._copy() for column in _STORED),
    sa.UniqueConstraint("sop_instance_uid"),
    sa.UniqueConstraint("folder", "name"),
    sa.Index("instance_by_series", "series_pk", "sop_class_uid"),
)
# Objects that came under a SOP Instance UID which other bytes hold.
CONFLICT = sa.Table(
    "conflict",
    METADATA,
    primary_key(),
    sa.Column("sop_instance_uid", sa.Text, nullable=False, index=True),
    sa.Column("sop_class_uid", sa.Text, nullable=False),
    sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
    *(column._copy() for column in _STORED),
    sa.UniqueConstraint("folder", "name"),
)


async def add_kept(database: Database) -> None:
    """Makes the tables of KEPT where they are missing. Nothing is written where they are there."""

    def missing(connection: Connection) -> bool:
        return not KEPT.tables.keys() <= set(sa.inspect(connection).get_table_names())

    if await database.read(missing):
        await database.submit(KEPT.create_all)


async def keep(database: Database, write: Callable[[Connection], T], what: str) -> T:
    """What `write` returns, once its change of a kept table is durable.

    NormalizedRefused where it cannot be: 0213, with `what` in the comment.
    """
    try:
        return await database.submit(write)
    except DatabaseError as exc:
        raise NormalizedRefused(statuses.RESOURCE_LIMITATION, f"{what} cannot be kept") from exc
