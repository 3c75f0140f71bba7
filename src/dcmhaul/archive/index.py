"""What the archive holds: patients, studies, series, instances, and objects that were set aside.

It knows rows and columns, not files and not queries. Everything here runs on a database thread.
"""

from __future__ import annotations

import enum
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from dcmhaul.archive.attributes import (
    AVAILABLE_TRANSFER_SYNTAX_UID,
    BY_TAG,
    PATIENT_NAME,
    SPECIFIC_CHARACTER_SET,
    Level,
    at_level,
)
from dcmhaul.archive.matching import fold_name, normal_date, normal_time
from dcmhaul.archive.tables import CONFLICT, INSTANCE, PATIENT, SERIES, STUDY
from dcmhaul.archive.text import decode, terms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.engine.interfaces import DBAPICursor

    from dcmhaul.database import Database

__all__ = [
    "Added",
    "Addition",
    "Description",
    "Duplicates",
    "Index",
    "Object",
    "Place",
    "Totals",
    "describe",
    "folders",
    "names_in",
    "now",
    "totals",
]

# Rows of parents that the next instances will most likely belong to.
_KNOWN_PARENTS_MAX = 4096

_PATIENT_TAGS, _STUDY_TAGS, _SERIES_TAGS, _IMAGE_TAGS = (
    tuple(attribute.tag for attribute in at_level(level)) for level in Level
)


class Duplicates(enum.StrEnum):
    """What becomes of an object whose SOP Instance UID is held with other bytes.

    KEEP_FIRST: the first stays, this one is set aside. KEEP_BOTH: so too, and a retrieve gives out
    both. REPLACE: this one takes the place of the first, which goes when that is durable.
    """

    KEEP_FIRST = "keep-first"
    KEEP_BOTH = "keep-both"
    REPLACE = "replace"


class Added(enum.Enum):
    """What became of an object: stored; the same was there; another was there, and this one is
    aside, was aside already, has replaced it, or had been replaced by it."""

    STORED = "stored"
    SAME = "same"
    CONFLICT = "conflict"
    CONFLICT_KNOWN = "conflict known"
    REPLACED = "replaced"
    OUTDATED = "outdated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The attributes of one object by level, in the order of `at_level`; None where empty."""

    patient: tuple[str | None, ...]
    study: tuple[str | None, ...]
    series: tuple[str | None, ...]
    image: tuple[str | None, ...]
    patient_name_match: str | None
    character_set: str

    @property
    def study_instance_uid(self) -> str | None:
        return self.study[0]

    @property
    def series_instance_uid(self) -> str | None:
        return self.series[0]

    @property
    def sop_instance_uid(self) -> str | None:
        return self.image[0]

    @property
    def sop_class_uid(self) -> str | None:
        return self.image[1]


class Place(NamedTuple):
    """Where the store keeps an object file: a numbered folder and an opaque name."""

    folder: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object file: what it holds, and where it lies. received: microseconds since the epoch."""

    description: Description
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    place: Place
    dataset_offset: int
    length: int
    sha256: bytes
    received: int
    source_ae_title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How much there is; bytes are those of the datasets."""

    patients: int = 0
    studies: int = 0
    series: int = 0
    instances: int = 0
    bytes: int = 0
    conflicts: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{n: getattr(self, n) + getattr(other, n) for n in self.__slots__})

    def __sub__(self, other: Totals) -> Totals:
        return Totals(**{n: getattr(self, n) - getattr(other, n) for n in self.__slots__})


class Addition(NamedTuple):
    """What became of an object, and how much more there is than before.

    spare: object files that no row speaks of once this is committed.
    """

    added: Added
    gained: Totals
    spare: tuple[Place, ...] = ()


# -- from captured elements to text -------------------------------------------------------------


def describe(
    captured: Mapping[int, bytes], transfer_syntax_uid: str, *, big_endian: bool = False
) -> Description:
    """The attributes of an object from the raw values of its elements, by tag."""
    character_set = terms(captured.get(SPECIFIC_CHARACTER_SET, b""))
    texts: dict[int, str] = {}
    for tag, raw in captured.items():
        if not raw or tag == SPECIFIC_CHARACTER_SET:
            continue
        vr = BY_TAG[tag].vr
        if vr == "US":
            if len(raw) < 2:
                continue
            value = str(int.from_bytes(raw[:2], "big" if big_endian else "little"))
        else:
            value = decode(raw, character_set)
            if vr == "DA":
                value = normal_date(value)
            elif vr == "TM":
                value = normal_time(value)
        if value:
            texts[tag] = value
    texts[AVAILABLE_TRANSFER_SYNTAX_UID] = transfer_syntax_uid
    get = texts.get
    name = get(PATIENT_NAME)
    return Description(
        patient=tuple(map(get, _PATIENT_TAGS)),
        study=tuple(map(get, _STUDY_TAGS)),
        series=tuple(map(get, _SERIES_TAGS)),
        image=tuple(map(get, _IMAGE_TAGS)),
        patient_name_match=None if name is None else fold_name(name),
        character_set=character_set,
    )


def _patient_key(patient: tuple[str | None, ...]) -> str:
    """Patients are told apart by ID and its issuer; without an ID by name and date of birth."""
    patient_id, name, issuer, birth_date, *_ = (value or "" for value in patient)
    if patient_id:
        return f"{patient_id}\\{issuer}"
    return f"\\\\{name}\\{birth_date}"


# -- rows ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Parent:
    """A row of patient, study or series: its key, and which of its columns are still empty."""

    pk: int
    empty: set[str]


class _Parents:
    """The rows of one table, the latest in memory. The writer thread owns it."""

    def __init__(self, table: sa.Table, key: tuple[str, ...], compile_: Callable[..., str]) -> None:
        self.table = table
        self.columns = [c.name for c in table.columns]
        filled = [c for c in self.columns if c not in ("pk", *key)]
        self._fillable = filled
        where = sa.and_(*(table.c[k] == sa.bindparam(k) for k in key))
        self._select = compile_(sa.select(table.c.pk, *(table.c[c] for c in filled)).where(where))
        self._insert = compile_(table.insert())
        self._update = {
            c: compile_(
                table.update()
                .where(table.c.pk == sa.bindparam("pk_"))
                .values({c: sa.bindparam("value")})
            )
            for c in filled
        }
        self._known: OrderedDict[tuple[str | int, ...], _Parent] = OrderedDict()
        self.next_pk = 1

    def forget(self) -> None:
        self._known.clear()

    def obtain(
        self,
        cursor: DBAPICursor,
        key: tuple[str | int, ...],
        row: Callable[[int], tuple[str | int | None, ...]],
        *,
        renew: bool = False,
    ) -> tuple[int, bool]:
        """The pk of the row with this key, and whether it was made now, from `row(pk)`.

        A row that is there keeps what it has, unless `renew`; a value that it lacks is taken from
        `row`.
        """
        parent = self._known.get(key)
        if parent is None:
            cursor.execute(self._select, key)
            found = cursor.fetchone()
            if found is None:
                pk = self.next_pk
                values = row(pk)
                cursor.execute(self._insert, values)
                self.next_pk += 1
                self._remember(key, pk, dict(zip(self.columns, values, strict=True)))
                return pk, True
            parent = self._remember(
                key, found[0], dict(zip(self._fillable, found[1:], strict=True))
            )
        else:
            self._known.move_to_end(key)
        if renew or parent.empty:
            self._fill(
                cursor, parent, row(parent.pk), set(self._fillable) if renew else parent.empty
            )
        return parent.pk, False

    def _remember(
        self, key: tuple[str | int, ...], pk: int, values: Mapping[str, object]
    ) -> _Parent:
        parent = _Parent(pk, {c for c in self._fillable if values[c] is None})
        self._known[key] = parent
        if len(self._known) > _KNOWN_PARENTS_MAX:
            self._known.popitem(last=False)
        return parent

    def _fill(
        self,
        cursor: DBAPICursor,
        parent: _Parent,
        row: tuple[str | int | None, ...],
        columns: set[str],
    ) -> None:
        for column, value in zip(self.columns, row, strict=True):
            if value is not None and column in columns:
                cursor.execute(self._update[column], (value, parent.pk))
                parent.empty.discard(column)


class _Replaced(NamedTuple):
    """What an instance that was taken out leaves behind: its file, and its parents."""

    place: Place
    lost: Totals
    series_pk: int
    study_pk: int
    patient_pk: int


class _Replacing:
    """The statements that take an instance out. Seldom needed, so nothing of it is remembered."""

    def __init__(self, compile_: Callable[..., str]) -> None:
        joined = INSTANCE.join(SERIES, INSTANCE.c.series_pk == SERIES.c.pk).join(
            STUDY, SERIES.c.study_pk == STUDY.c.pk
        )
        columns = (INSTANCE.c.pk, INSTANCE.c.folder, INSTANCE.c.name, INSTANCE.c.length)
        self._select = compile_(
            sa.select(*columns, SERIES.c.pk, STUDY.c.pk, STUDY.c.patient_pk)
            .select_from(joined)
            .where(INSTANCE.c.sop_instance_uid == sa.bindparam("uid"))
        )
        self._delete = compile_(_delete(INSTANCE))
        self.delete_aside = compile_(_delete(CONFLICT))
        self._delete_empty = {
            name: compile_(_delete(table).where(~sa.exists().where(child == table.c.pk)))
            for name, table, child in (
                ("series", SERIES, INSTANCE.c.series_pk),
                ("studies", STUDY, SERIES.c.study_pk),
                ("patients", PATIENT, STUDY.c.patient_pk),
            )
        }

    def remove_instance(self, cursor: DBAPICursor, sop_instance_uid: str) -> _Replaced:
        cursor.execute(self._select, (sop_instance_uid,))
        pk, folder, name, length, *parents = cursor.fetchall()[0]
        cursor.execute(self._delete, (pk,))
        return _Replaced(Place(folder, name), Totals(instances=1, bytes=length), *parents)

    def remove_empty_parents(self, cursor: DBAPICursor, old: _Replaced) -> Totals:
        """Those of the instance's parents that hold nothing any more, from below."""
        removed = {}
        pks = {"series": old.series_pk, "studies": old.study_pk, "patients": old.patient_pk}
        for name, statement in self._delete_empty.items():
            cursor.execute(statement, (pks[name],))
            removed[name] = cursor.rowcount
        return Totals(**removed)


def _delete(table: sa.Table) -> sa.Delete:
    return table.delete().where(table.c.pk == sa.bindparam("pk_"))


class Index:
    """Adds objects, within transactions of the database's writer thread, and counts them."""

    def __init__(self, database: Database, duplicates: Duplicates = Duplicates.KEEP_FIRST) -> None:
        compile_ = database.compile
        self.duplicates = duplicates
        self._writer = database.writer
        self._rollbacks = -1
        self._patients = _Parents(PATIENT, ("patient_key",), compile_)
        self._studies = _Parents(STUDY, ("study_instance_uid",), compile_)
        self._series = _Parents(SERIES, ("study_pk", "series_instance_uid"), compile_)
        self._tables = (
            (PATIENT, self._patients),
            (STUDY, self._studies),
            (SERIES, self._series),
        )
        self._next_instance = 1
        self._next_conflict = 1
        held = sa.select(INSTANCE.c.sha256, INSTANCE.c.transfer_syntax_uid)
        self._select_held = compile_(held.where(INSTANCE.c.sop_instance_uid == sa.bindparam("uid")))
        aside = sa.select(
            CONFLICT.c.sha256,
            CONFLICT.c.transfer_syntax_uid,
            CONFLICT.c.pk,
            CONFLICT.c.folder,
            CONFLICT.c.name,
        )
        self._select_aside = compile_(
            aside.where(CONFLICT.c.sop_instance_uid == sa.bindparam("uid"))
        )
        self._insert_instance = compile_(INSTANCE.insert())
        self._insert_conflict = compile_(CONFLICT.insert())
        self._replacing = _Replacing(compile_)

    def add(self, connection: Connection, obj: Object, *, left_over: bool = False) -> Addition:
        """Adds one object, by the policy for duplicates.

        left_over: its file was found without a row. It was never acknowledged, or it is one that was
        replaced: so it replaces nothing. The object's description holds its study and series UID; the
        caller has seen to that.
        """
        if self._rollbacks != self._writer.rollbacks:
            self._reload(connection)
        # The driver's own cursor: beside these small statements SQLAlchemy's results cost ten times
        # as much as the database.
        cursor = connection.connection.cursor()
        try:
            return self._add(cursor, obj, left_over)
        finally:
            cursor.close()

    def _add(self, cursor: DBAPICursor, obj: Object, left_over: bool) -> Addition:
        digest = (obj.sha256, obj.transfer_syntax_uid)
        cursor.execute(self._select_held, (obj.sop_instance_uid,))
        held = cursor.fetchone()
        if held is None:
            return Addition(Added.STORED, self._add_instance(cursor, obj))
        if _same(held, digest):
            return Addition(Added.SAME, Totals(), (obj.place,))
        cursor.execute(self._select_aside, (obj.sop_instance_uid,))
        same_aside = [row for row in cursor.fetchall() if _same(row, digest)]
        if self.duplicates is Duplicates.REPLACE:
            if left_over:
                return Addition(Added.OUTDATED, Totals(), (obj.place,))
            return self._replace(cursor, obj, same_aside)
        if same_aside:
            return Addition(Added.CONFLICT_KNOWN, Totals(), (obj.place,))
        row = (
            self._next_conflict,
            obj.sop_instance_uid,
            obj.sop_class_uid,
            obj.transfer_syntax_uid,
            *_stored(obj),
        )
        cursor.execute(self._insert_conflict, row)
        self._next_conflict += 1
        return Addition(Added.CONFLICT, Totals(conflicts=1))

    def _replace(self, cursor: DBAPICursor, obj: Object, same_aside: Sequence[Any]) -> Addition:
        """The object instead of the one that is held; what it says of its parents is the latest."""
        old = self._replacing.remove_instance(cursor, obj.sop_instance_uid)
        gained = self._add_instance(cursor, obj, renew=True) - old.lost
        if (emptied := self._replacing.remove_empty_parents(cursor, old)) != Totals():
            gained -= emptied
            for _, parents in self._tables:
                parents.forget()
        spare = [old.place]
        for _, _, pk, folder, name in same_aside:
            cursor.execute(self._replacing.delete_aside, (pk,))
            gained -= Totals(conflicts=1)
            spare.append(Place(folder, name))
        return Addition(Added.REPLACED, gained, tuple(spare))

    def _add_instance(self, cursor: DBAPICursor, obj: Object, *, renew: bool = False) -> Totals:
        d = obj.description
        assert d.study_instance_uid is not None
        assert d.series_instance_uid is not None
        names = (d.patient_name_match, d.character_set)
        key = _patient_key(d.patient)
        patient_pk, new_patient = self._patients.obtain(
            cursor, (key,), lambda pk: (pk, key, *d.patient, *names), renew=renew
        )
        study_pk, new_study = self._studies.obtain(
            cursor,
            (d.study_instance_uid,),
            lambda pk: (pk, patient_pk, *d.patient, *d.study, *names),
            renew=renew,
        )
        series_pk, new_series = self._series.obtain(
            cursor,
            (study_pk, d.series_instance_uid),
            lambda pk: (pk, study_pk, *d.series, d.character_set),
            renew=renew,
        )
        # The command's UIDs, which the dataset agrees with as far as it has them.
        image = (obj.sop_instance_uid, obj.sop_class_uid, *d.image[2:])
        row = (self._next_instance, series_pk, *image, d.character_set, *_stored(obj))
        cursor.execute(self._insert_instance, row)
        self._next_instance += 1
        return Totals(
            patients=new_patient,
            studies=new_study,
            series=new_series,
            instances=1,
            bytes=obj.length,
        )

    def _reload(self, connection: Connection) -> None:
        """After an undone transaction what is remembered may not be there."""
        self._rollbacks = self._writer.rollbacks
        for table, parents in self._tables:
            parents.forget()
            parents.next_pk = _next_pk(connection, table)
        self._next_instance = _next_pk(connection, INSTANCE)
        self._next_conflict = _next_pk(connection, CONFLICT)


def totals(connection: Connection) -> Totals:
    """Counts everything; for the start, it reads whole tables."""

    def count(table: sa.Table) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()

    size = sa.select(sa.func.coalesce(sa.func.sum(INSTANCE.c.length), 0))
    return Totals(
        patients=count(PATIENT),
        studies=count(STUDY),
        series=count(SERIES),
        instances=count(INSTANCE),
        bytes=int(connection.execute(size).scalar_one()),
        conflicts=count(CONFLICT),
    )


def names_in(connection: Connection, folder: int) -> set[str]:
    """The names in a folder of the store that a row speaks of."""
    names: set[str] = set()
    for table in (INSTANCE, CONFLICT):
        names.update(
            connection.execute(sa.select(table.c.name).where(table.c.folder == folder)).scalars()
        )
    return names


def folders(connection: Connection) -> list[int]:
    """The folders of the store that a row speaks of."""
    found: set[int] = set()
    for table in (INSTANCE, CONFLICT):
        found.update(connection.execute(sa.select(table.c.folder).distinct()).scalars())
    return sorted(found)


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def _same(row: Any, digest: tuple[bytes, str]) -> bool:
    held, transfer_syntax_uid, *_ = row
    return (bytes(held), transfer_syntax_uid) == digest


def _stored(obj: Object) -> tuple[int, str, int, int, bytes, int, str]:
    return (
        obj.place.folder,
        obj.place.name,
        obj.dataset_offset,
        obj.length,
        obj.sha256,
        obj.received,
        obj.source_ae_title,
    )


def _next_pk(connection: Connection, table: sa.Table) -> int:
    last = connection.execute(sa.select(sa.func.max(table.c.pk))).scalar_one()
    return (last or 0) + 1
