"""The hierarchical query over the index (PS3.4 §C.4.1): an identifier becomes statements and rows.

First the keys of all rows that may match are read, in one short transaction; the rows themselves
follow in pages, so that a long answer begins at once and holds no transaction open while a slow
peer reads it. SQL narrows, with bound parameters alone; `matching` decides. It runs on database
threads.
"""

from __future__ import annotations

import enum
from array import array
from collections import defaultdict
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from dcmhaul.archive.attributes import (
    ATTRIBUTES,
    AVAILABLE_TRANSFER_SYNTAX_UID,
    BY_TAG,
    INSTANCE_AVAILABILITY,
    MODALITIES_IN_STUDY,
    NUMBER_OF_PATIENT_RELATED_INSTANCES,
    NUMBER_OF_PATIENT_RELATED_SERIES,
    NUMBER_OF_PATIENT_RELATED_STUDIES,
    NUMBER_OF_SERIES_RELATED_INSTANCES,
    NUMBER_OF_STUDY_RELATED_INSTANCES,
    NUMBER_OF_STUDY_RELATED_SERIES,
    PATIENT_NAME,
    QUERY_RETRIEVE_LEVEL,
    RETRIEVE_AE_TITLE,
    SOP_CLASSES_IN_STUDY,
    SPECIFIC_CHARACTER_SET,
    UNIQUE_KEYS,
    Attribute,
    Level,
)
from dcmhaul.archive.identifier import (
    Field,
    Identifier,
    InvalidIdentifier,
    MismatchedIdentifier,
    ResponseEncoder,
    parse_identifier,
)
from dcmhaul.archive.matching import Between, Contains, Matcher, Narrowing, OneOf
from dcmhaul.archive.moments import (
    ADJUSTED,
    PAIRS,
    TIMEZONE_OFFSET_FROM_UTC,
    Adjusted,
    Adjustment,
    CombinedRange,
    combined_range,
)
from dcmhaul.archive.tables import CONFLICT, INSTANCE, PATIENT, SERIES, STUDY
from dcmhaul.services.extended import BASELINE, FindOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timezone

    from sqlalchemy.engine import Connection

__all__ = ["FindQuery", "Root", "Selected", "SelectQuery"]

# Values in one IN list; SQLite takes 32 766 parameters in a statement.
VALUES_MAX = 500
TABLES = {Level.PATIENT: PATIENT, Level.STUDY: STUDY, Level.SERIES: SERIES, Level.IMAGE: INSTANCE}


class Root(enum.Enum):
    """The information models (PS3.4 §C.6), with the levels that each has."""

    PATIENT = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE)
    STUDY = (Level.STUDY, Level.SERIES, Level.IMAGE)
    PATIENT_STUDY_ONLY = (Level.PATIENT, Level.STUDY)

    @property
    def top(self) -> Level:
        return Level(self.value[0])

    def accepted(self, *, strict: bool) -> tuple[Level, ...]:
        """The levels that identifiers may name. Orthanc has whole patients moved by the Study Root."""
        root = Root.PATIENT if self is Root.STUDY and not strict else self
        return tuple(Level(level) for level in root.value)


@dataclass(frozen=True, slots=True)
class Key:
    """A key with a value: its attribute and what it accepts."""

    attribute: Attribute
    matcher: Matcher


def column_of(attribute: Attribute, level: Level) -> sa.Column[Any]:
    """Where a query at `level` finds an attribute of that level or one above.

    Below the PATIENT level the patient's attributes are read from the study, which has them as its
    own objects gave them.
    """
    table = TABLES[attribute.level]
    if attribute.level is Level.PATIENT and level > Level.PATIENT:
        table = STUDY
    return table.c[attribute.column or ""]


def joined(tables: Iterable[sa.Table], level: Level) -> sa.FromClause:
    """The level's table, joined upwards as far as `tables` ask for."""
    wanted = set(tables)
    source: sa.FromClause = TABLES[level]
    if level is Level.IMAGE and wanted & {SERIES, STUDY}:
        source = source.join(SERIES, INSTANCE.c.series_pk == SERIES.c.pk)
    if level >= Level.SERIES and STUDY in wanted:
        source = source.join(STUDY, SERIES.c.study_pk == STUDY.c.pk)
    return source


def _narrow(column: sa.ColumnElement[Any], narrowing: Narrowing) -> sa.ColumnElement[bool] | None:
    match narrowing:
        case OneOf(values):
            return column.in_(values) if len(values) <= VALUES_MAX else None
        case Contains(text):
            return column.contains(text, autoescape=True)
        case Between(low, high):
            ends = [column >= low] if low is not None else []
            if high is not None:
                ends.append(column <= high)
            return sa.and_(*ends)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is asked of a row. combined: tags of date and time, and the range of both together.

    zone: dates and times are those of this time zone; None: as they are.
    """

    keys: Sequence[Key]
    combined: Sequence[tuple[int, int, CombinedRange]] = ()
    zone: timezone | None = None

    def upto(self, level: Level) -> Conditions:
        """Those on attributes of `level` and above."""
        return Conditions(
            keys=[key for key in self.keys if key.attribute.level <= level],
            combined=[pair for pair in self.combined if BY_TAG[pair[0]].level <= level],
            zone=self.zone,
        )


class Selection:
    """The rows of one level that meet a set of keys."""

    def __init__(self, level: Level, keys: Sequence[Key]) -> None:
        self.level = level
        self.table = TABLES[level]
        self._keys = keys

    def pks(self, connection: Connection) -> array[int]:
        """The primary keys of a superset of what matches, ascending."""
        rows = self.rows(connection, (self.table.c.pk,))
        return array("q", sorted(pk for (pk,) in rows))

    def rows(self, connection: Connection, columns: Sequence[sa.Column[Any]]) -> list[Any]:
        """These columns of the same rows, in no order."""
        conditions: list[sa.ColumnElement[bool]] = []
        tables = {self.table, *(column.table for column in columns)}
        long: tuple[sa.Column[Any], tuple[str, ...]] | None = None
        for key in self._keys:
            narrowing = key.matcher.narrowing
            if key.attribute.column is None:
                conditions.extend(_counted_condition(key))
                tables.add(STUDY)
                continue
            column = column_of(key.attribute, self.level)
            if key.attribute.tag == PATIENT_NAME:
                # The narrowing of a name speaks of its folded form.
                column = column.table.c.patient_name_match
            if key.attribute.multiple and isinstance(narrowing, OneOf):
                narrowing = None
            if isinstance(narrowing, OneOf) and len(narrowing.values) > VALUES_MAX:
                if long is None or len(long[1]) < len(narrowing.values):
                    long = (column, narrowing.values)
                    tables.add(column.table)
                continue
            condition = _narrow(column, narrowing)
            if condition is not None:
                conditions.append(condition)
                tables.add(column.table)
        query = sa.select(*columns).select_from(joined(tables, self.level)).where(*conditions)
        if long is None:
            return list(connection.execute(query))
        column, values = long
        found: list[Any] = []
        for i in range(0, len(values), VALUES_MAX):
            found.extend(connection.execute(query.where(column.in_(values[i : i + VALUES_MAX]))))
        return found


def _counted_condition(key: Key) -> list[sa.ColumnElement[bool]]:
    narrowing = key.matcher.narrowing
    if key.attribute.tag == MODALITIES_IN_STUDY:
        column: sa.Column[Any] = SERIES.c.modality
        query = sa.select(SERIES.c.study_pk)
    else:
        column = INSTANCE.c.sop_class_uid
        query = sa.select(SERIES.c.study_pk).join(INSTANCE, INSTANCE.c.series_pk == SERIES.c.pk)
    condition = _narrow(column, narrowing)
    return [] if condition is None else [STUDY.c.pk.in_(query.where(condition))]


class Pages:
    """Reads rows by primary key: chosen columns, counts beside them, only those that match.

    A row is a tuple of text, None where empty; `at` says where an attribute is in it, the index of
    a column or of a count.
    """

    def __init__(self, level: Level, conditions: Conditions, tags: Iterable[int]) -> None:
        self.level = level
        keys = conditions.keys
        wanted = {key.attribute.tag: key.attribute for key in keys}
        wanted |= {
            tag: BY_TAG[tag] for date, time, _ in conditions.combined for tag in (date, time)
        }
        wanted |= {tag: BY_TAG[tag] for tag in tags if BY_TAG[tag].level <= level}
        adjusted = Adjustment.needed(wanted) if conditions.zone is not None else set()
        wanted |= {tag: BY_TAG[tag] for tag in sorted(adjusted)}
        columns: list[sa.Column[Any]] = [TABLES[level].c.pk]
        self.parents: dict[Level, int] = {}
        for parent, column in (
            (Level.PATIENT, PATIENT.c.pk if level is Level.PATIENT else STUDY.c.patient_pk),
            (Level.STUDY, STUDY.c.pk),
            (Level.SERIES, SERIES.c.pk),
        ):
            if parent <= level:
                self.parents[parent] = len(columns)
                columns.append(column)
        self._sets: dict[sa.Table, int] = {}
        for table in (PATIENT,) if level is Level.PATIENT else (STUDY, SERIES, INSTANCE):
            if table is PATIENT or any(TABLES[up] is table for up in Level if up <= level):
                self._sets[table] = len(columns)
                columns.append(table.c.character_set)
        self.at: dict[int, int] = {}
        self.character_sets: dict[int, int] = {}
        for tag, attribute in wanted.items():
            if attribute.column is not None:
                column = column_of(attribute, level)
                self.at[tag] = len(columns)
                self.character_sets[len(columns)] = self._sets[column.table]
                columns.append(column)
        self._counts = [a for a in wanted.values() if a.column is None]
        for i, attribute in enumerate(self._counts):
            self.at[attribute.tag] = len(columns) + i
        self._query = sa.select(*columns).select_from(
            joined((column.table for column in columns), level)
        )
        self._matchers = [
            (self.at[key.attribute.tag], key.attribute.multiple, key.matcher)
            for key in keys
            if key.attribute.multiple or not _decided(key.matcher.narrowing)
        ]
        self._combined = [
            (self.at[date], self.at[time], both) for date, time, both in conditions.combined
        ]
        self._adjustment: Adjustment | None = None
        if conditions.zone is not None and adjusted:
            self._adjustment = Adjustment(conditions.zone, self.at)

    @property
    def decided(self) -> bool:
        """Whether every row that SQL finds matches."""
        return not (self._matchers or self._combined)

    @property
    def character_set(self) -> int:
        """The index of the character set of the level's own row."""
        return max(self._sets.values())

    def rows(self, connection: Connection, pks: Sequence[int]) -> list[tuple[Any, ...]]:
        """The matching rows among these, by ascending key."""
        table = TABLES[self.level]
        query = self._query.where(table.c.pk.in_(list(pks)))
        rows: list[tuple[Any, ...]] = [tuple(row) for row in connection.execute(query)]
        rows.sort(key=itemgetter(0))
        if self._counts:
            counts = _Counts(connection, rows, self.parents)
            columns = [counts.of(attribute) for attribute in self._counts]
            rows = [row + tuple(c(row) for c in columns) for row in rows]
        if self._adjustment is not None:
            rows = list(map(self._adjustment.row, rows))
        for index, multiple, matcher in self._matchers:
            matches = matcher.matches
            if multiple:
                rows = [
                    row
                    for row in rows
                    if row[index] and any(matches(v.strip()) for v in row[index].split("\\"))
                ]
            else:
                rows = [row for row in rows if row[index] and matches(row[index])]
        for date, time, both in self._combined:
            rows = [row for row in rows if both.matches(row[date], row[time])]
        return rows


def _decided(narrowing: Narrowing) -> bool:
    """Whether SQL has already compared with every value."""
    return isinstance(narrowing, OneOf) and len(narrowing.values) <= VALUES_MAX


class _Counts:
    """The attributes that are counted, for one page of rows."""

    def __init__(
        self,
        connection: Connection,
        rows: Sequence[tuple[Any, ...]],
        parents: dict[Level, int],
    ) -> None:
        self._connection = connection
        self._rows = rows
        self._parents = parents

    def of(self, attribute: Attribute) -> Any:
        """A function from a row to the attribute's text."""
        index = self._parents[attribute.level]
        pks = sorted({row[index] for row in self._rows})
        texts = _COUNTERS[attribute.tag](self._connection, pks)
        default = "0" if attribute.vr == "IS" else None
        return lambda row: texts.get(row[index], default)


def _count(
    connection: Connection, query: sa.Select[Any], column: sa.Column[Any], pks: list[int]
) -> dict[int, str]:
    query = query.where(column.in_(pks)).group_by(column)
    return {pk: str(n) for pk, n in connection.execute(query)}


def _distinct(
    connection: Connection, query: sa.Select[Any], column: sa.Column[Any], pks: list[int]
) -> dict[int, str]:
    values: defaultdict[int, set[str]] = defaultdict(set)
    for pk, value in connection.execute(query.where(column.in_(pks)).distinct()):
        if value:
            values[pk].add(value)
    return {pk: "\\".join(sorted(found)) for pk, found in values.items()}


def _counters() -> dict[int, Any]:
    number = sa.func.count()
    with_series = STUDY.join(SERIES, SERIES.c.study_pk == STUDY.c.pk)
    with_instances = with_series.join(INSTANCE, INSTANCE.c.series_pk == SERIES.c.pk)
    series_instances = SERIES.join(INSTANCE, INSTANCE.c.series_pk == SERIES.c.pk)
    of_patient, of_study, of_series = STUDY.c.patient_pk, SERIES.c.study_pk, INSTANCE.c.series_pk
    rows: dict[int, tuple[Any, sa.Select[Any], sa.Column[Any]]] = {
        NUMBER_OF_PATIENT_RELATED_STUDIES: (_count, sa.select(of_patient, number), of_patient),
        NUMBER_OF_PATIENT_RELATED_SERIES: (
            _count,
            sa.select(of_patient, number).select_from(with_series),
            of_patient,
        ),
        NUMBER_OF_PATIENT_RELATED_INSTANCES: (
            _count,
            sa.select(of_patient, number).select_from(with_instances),
            of_patient,
        ),
        NUMBER_OF_STUDY_RELATED_SERIES: (_count, sa.select(of_study, number), of_study),
        NUMBER_OF_STUDY_RELATED_INSTANCES: (
            _count,
            sa.select(of_study, number).select_from(series_instances),
            of_study,
        ),
        NUMBER_OF_SERIES_RELATED_INSTANCES: (_count, sa.select(of_series, number), of_series),
        MODALITIES_IN_STUDY: (_distinct, sa.select(of_study, SERIES.c.modality), of_study),
        SOP_CLASSES_IN_STUDY: (
            _distinct,
            sa.select(of_study, INSTANCE.c.sop_class_uid).select_from(series_instances),
            of_study,
        ),
    }
    return {
        tag: lambda connection, pks, how=how, query=query, column=column: how(
            connection, query, column, pks
        )
        for tag, (how, query, column) in rows.items()
    }


_COUNTERS = _counters()
_MATCHED_COUNTS = (MODALITIES_IN_STUDY, SOP_CLASSES_IN_STUDY)


def _conditions(
    identifier: Identifier, attributes: Iterable[Attribute], options: FindOptions = BASELINE
) -> Conditions:
    """What the identifier's keys ask, as far as they are keys of `attributes`."""
    matchers: dict[int, Matcher] = {}
    for attribute in attributes:
        if attribute.column is None and attribute.tag not in _MATCHED_COUNTS:
            continue  # numbers are asked for, not matched (PS3.4 §C.3.4)
        if options.timezone and attribute.tag == TIMEZONE_OFFSET_FROM_UTC:
            continue  # it says what the others mean (PS3.4 §C.2.2.2)
        matcher = identifier.matcher(attribute, fuzzy=options.fuzzy)
        if matcher is not None:
            matchers[attribute.tag] = matcher
    combined: list[tuple[int, int, CombinedRange]] = []
    for date, time in PAIRS if options.date_time else ():
        if date in matchers and time in matchers:
            both = combined_range(matchers[date], matchers[time])
            if both is not None:
                combined.append((date, time, both))
                del matchers[time]  # the dates alone still narrow
    zone = identifier.zone() if options.timezone else None
    if zone is not None:
        for tag in ADJUSTED & matchers.keys():
            matchers[tag] = Adjusted(matchers[tag], zone)
    return Conditions(
        keys=[Key(BY_TAG[tag], matcher) for tag, matcher in matchers.items()],
        combined=combined,
        zone=zone,
    )


class _Below:
    """The rows of one level that have something below them which meets all keys (PS3.4 §C.4.1.3.2.1)."""

    def __init__(self, level: Level, conditions: Conditions) -> None:
        self._level = level
        deepest = max(key.attribute.level for key in conditions.keys)
        self._selection = Selection(deepest, conditions.keys)
        self._pages = Pages(deepest, conditions, ())

    def pks(self, connection: Connection) -> array[int]:
        """Their primary keys, ascending."""
        below = self._selection.pks(connection)
        parent = self._pages.parents[self._level]
        found: set[int] = set()
        for i in range(0, len(below), VALUES_MAX):
            rows = self._pages.rows(connection, below[i : i + VALUES_MAX])
            found.update(row[parent] for row in rows)
        return array("q", sorted(found))


class FindQuery:
    """One C-FIND: `pks` once, then `page` for parts of them.

    Raises InvalidIdentifier where it cannot be answered. A key that the index does not hold, or of
    a level below, comes back empty; it narrows nothing unless relational queries were agreed to.
    """

    def __init__(
        self,
        data: bytes,
        root: Root,
        *,
        transfer_syntax_uid: str,
        ae_title: str,
        strict: bool = False,
        options: FindOptions = BASELINE,
    ) -> None:
        identifier = parse_identifier(data, root.accepted(strict=strict), transfer_syntax_uid)
        if strict:
            identifier.check_strictly(root.top, relational=options.relational)
        self.level = level = identifier.complete_level(root.top)
        lowest = root.value[-1] if options.relational else level
        asked = _conditions(identifier, (a for a in ATTRIBUTES if a.level <= lowest), options)
        conditions = asked.upto(level)
        self._selection: Selection | _Below = Selection(level, conditions.keys)
        if len(conditions.keys) < len(asked.keys):
            self._selection = _Below(level, asked)
        unique = [UNIQUE_KEYS[up] for up in Level if min(root.top, level) <= up <= level]
        returned = dict(identifier.requested) | {tag: BY_TAG[tag].vr for tag in unique}
        constants = {QUERY_RETRIEVE_LEVEL: level.name, RETRIEVE_AE_TITLE: ae_title}
        if conditions.zone is not None:
            constants[TIMEZONE_OFFSET_FROM_UTC] = identifier.keys[TIMEZONE_OFFSET_FROM_UTC]
        self._pages = Pages(
            level, conditions, [tag for tag in returned if tag in BY_TAG and tag not in constants]
        )
        returned |= {QUERY_RETRIEVE_LEVEL: "CS", RETRIEVE_AE_TITLE: "AE"}
        if INSTANCE_AVAILABILITY in returned:
            constants[INSTANCE_AVAILABILITY] = "ONLINE"
        carried = returned.pop(SPECIFIC_CHARACTER_SET, None) is not None
        self._encoder = ResponseEncoder(
            [
                Field(
                    tag=tag,
                    vr=BY_TAG[tag].vr if tag in BY_TAG else vr or "UN",
                    index=None if tag in constants else self._pages.at.get(tag),
                    constant=constants.get(tag, ""),
                )
                for tag, vr in returned.items()
            ],
            transfer_syntax_uid=transfer_syntax_uid,
            character_sets=self._pages.character_sets,
            carried=self._pages.character_set if carried else None,
        )

    def pks(self, connection: Connection) -> array[int]:
        """The rows that may match."""
        return self._selection.pks(connection)

    def page(self, connection: Connection, pks: Sequence[int]) -> list[bytes]:
        """The encoded responses for those of `pks` that match."""
        encode = self._encoder.encode
        return [encode(row) for row in self._pages.rows(connection, pks)]


@dataclass(frozen=True, slots=True)
class Selected:
    """One instance that a retrieve selects; the fields are the index's columns."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    folder: int
    name: str
    dataset_offset: int
    length: int


class SelectQuery:
    """The instances of one C-GET or C-MOVE.

    Where the level's unique key has a value, the unique keys select and other keys are nothing but
    words. Without one every key that has a value narrows, as archives do for clients that name a
    patient only; `strict` refuses such identifiers, and those without the unique keys above unless
    `relational`. Nothing at all selects nothing:
    InvalidIdentifier. aside: objects that were set aside under the UID of one that is selected follow
    it.
    """

    def __init__(
        self,
        data: bytes,
        root: Root,
        *,
        transfer_syntax_uid: str,
        strict: bool = False,
        relational: bool = False,
        aside: bool = False,
    ) -> None:
        self._aside = aside
        identifier = parse_identifier(data, root.accepted(strict=strict), transfer_syntax_uid)
        if strict:
            identifier.check_strictly(root.top, relational=relational)
        level = identifier.complete_level(root.top)
        if identifier.value(UNIQUE_KEYS[level]) is not None:
            top = min(root.top, level)
            unique = [BY_TAG[UNIQUE_KEYS[up]] for up in Level if top <= up <= level]
            conditions = _conditions(identifier, unique)
        elif strict:
            text = "the unique key of the level has no value"
            raise MismatchedIdentifier(text, UNIQUE_KEYS[level])
        else:
            conditions = _conditions(identifier, ATTRIBUTES)
        if not conditions.keys:
            text = "no key has a value: the whole archive is not given out"
            raise InvalidIdentifier(text, UNIQUE_KEYS[level])
        self._selection = Selection(Level.IMAGE, conditions.keys)
        self._pages = Pages(
            Level.IMAGE,
            conditions,
            (
                UNIQUE_KEYS[Level.IMAGE],
                0x00080016,
                AVAILABLE_TRANSFER_SYNTAX_UID,
            ),
        )

    def run(self, connection: Connection) -> list[Selected]:
        """All of them, by study, series and order of arrival."""
        columns = [INSTANCE.c[name] for name in Selected.__slots__]
        if self._pages.decided:
            order = (SERIES.c.study_pk, SERIES.c.pk, INSTANCE.c.pk)
            rows = self._selection.rows(connection, (*order, *columns))
            rows.sort(key=itemgetter(0, 1, 2))
            selected = [Selected(*rest) for _, _, _, *rest in rows]
        else:
            selected = self._matching(connection, columns)
        return self._with_aside(connection, selected) if self._aside else selected

    def _matching(
        self, connection: Connection, columns: Sequence[sa.Column[Any]]
    ) -> list[Selected]:
        """The same where values must be looked at."""
        pks = self._selection.pks(connection)
        found: list[tuple[int, int, int]] = []
        for i in range(0, len(pks), VALUES_MAX):
            rows = self._pages.rows(connection, pks[i : i + VALUES_MAX])
            found.extend((row[2], row[3], row[0]) for row in rows)
        found.sort()
        selected: list[Selected] = []
        for i in range(0, len(found), VALUES_MAX):
            part = [pk for _, _, pk in found[i : i + VALUES_MAX]]
            query = sa.select(INSTANCE.c.pk, *columns).where(INSTANCE.c.pk.in_(part))
            by_pk = {pk: Selected(*rest) for pk, *rest in connection.execute(query)}
            selected.extend(by_pk[pk] for pk in part if pk in by_pk)
        return selected

    def _with_aside(self, connection: Connection, selected: list[Selected]) -> list[Selected]:
        columns = [CONFLICT.c[name] for name in Selected.__slots__]
        others: defaultdict[str, list[Selected]] = defaultdict(list)
        for i in range(0, len(selected), VALUES_MAX):
            uids = [instance.sop_instance_uid for instance in selected[i : i + VALUES_MAX]]
            query = sa.select(*columns).where(CONFLICT.c.sop_instance_uid.in_(uids))
            for row in connection.execute(query.order_by(CONFLICT.c.pk)):
                others[row.sop_instance_uid].append(Selected(*row))
        return [
            given
            for first in selected
            for given in (first, *others.get(first.sop_instance_uid, ()))
        ]
