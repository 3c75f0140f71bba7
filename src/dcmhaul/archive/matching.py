"""Attribute matching of C-FIND (PS3.4 §C.2.2.2): what one key accepts, in linear time.

Pure: it knows no database. A matcher also says by `narrowing` what a database may leave out
beforehand; that is always a superset, and `matches` alone decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Protocol

from dcmhaul.archive.text import fold

__all__ = [
    "Between",
    "Contains",
    "DateTimeRange",
    "InvalidKey",
    "Matcher",
    "Narrowing",
    "OneOf",
    "Range",
    "Span",
    "Wildcard",
    "fold_name",
    "is_universal",
    "make_matcher",
    "normal_date",
    "normal_time",
    "parse_date_time",
]


# Far above what any VR but UI, which takes lists, allows for a value.
KEY_LENGTH_MAX = 4096


class InvalidKey(ValueError):
    """The value of a key is none that its VR allows; the text names the rule, not the value."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """The value equals one of these."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contains:
    """The value holds this text, anywhere, in any case."""

    text: str


@dataclass(frozen=True, slots=True)
class Between:
    """low <= value <= high, compared as text; None is open."""

    low: str | None
    high: str | None


Narrowing = OneOf | Contains | Between | None


class Matcher(Protocol):
    """What one key with a value accepts."""

    @property
    def narrowing(self) -> Narrowing: ...
    def matches(self, value: str) -> bool:
        """Whether one non-empty value of the attribute is accepted."""


def is_universal(value: str) -> bool:
    """A key without a value, or of asterisks alone, matches everything (PS3.4 §C.2.2.2.3)."""
    return not value.strip("* \0")


# -- wild cards ---------------------------------------------------------------------------------


class Wildcard:
    """`*` is any text, `?` one character (PS3.4 §C.2.2.2.4). Time is linear in the value.

    The pattern is cut at its asterisks. The first piece is compared at the beginning and the last
    at the end; each piece between takes the leftmost place that it fits, which can only help the
    next ones.
    """

    __slots__ = ("_first", "_last", "_length_min", "_middle", "_open")

    def __init__(self, pattern: str) -> None:
        first, *rest = pattern.split("*")
        self._open = bool(rest)
        self._first = first
        self._last = rest.pop() if rest else ""
        self._middle = [_Piece(piece) for piece in rest if piece]
        self._length_min = len(pattern) - pattern.count("*")

    def matches(self, value: str) -> bool:
        length = len(value)
        if length < self._length_min or (not self._open and length != self._length_min):
            return False
        if not _equal(self._first, value, 0):
            return False
        if not self._open:
            return True
        end = length - len(self._last)
        if not _equal(self._last, value, end):
            return False
        position = len(self._first)
        for piece in self._middle:
            position = piece.end_in(value, position, end)
            if position < 0:
                return False
        return position <= end

    def literals(self) -> list[str]:
        """The runs of plain characters, in their order."""
        pieces = [self._first, *(piece.text for piece in self._middle), self._last]
        return [run for piece in pieces for run in piece.split("?") if run]


def _equal(piece: str, value: str, offset: int) -> bool:
    if "?" not in piece:
        return value.startswith(piece, offset)
    return all(
        p in ("?", v) for p, v in zip(piece, value[offset : offset + len(piece)], strict=True)
    )


class _Piece:
    """Text without asterisks, to be found as far left as possible."""

    __slots__ = ("_any", "_found", "_masks", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._masks: dict[str, int] = {}
        self._any = 0
        self._found = 1 << (len(text) - 1)
        if "?" in text:
            for i, character in enumerate(text):
                if character == "?":
                    self._any |= 1 << i
            for i, character in enumerate(text):
                if character != "?":
                    self._masks[character] = self._masks.get(character, self._any) | 1 << i

    def end_in(self, value: str, start: int, stop: int) -> int:
        """Where the leftmost occurrence within start to stop ends; -1 without one."""
        if not self._any:
            at = value.find(self.text, start, stop)
            return -1 if at < 0 else at + len(self.text)
        # Shift-and: bit i says that the first i + 1 characters fit up to here.
        state = 0
        for i in range(start, stop):
            state = ((state << 1) | 1) & self._masks.get(value[i], self._any)
            if state & self._found:
                return i + 1
        return -1


# -- text ---------------------------------------------------------------------------------------


class _Text:
    """Single values and wild cards of a string VR; several values are alternatives."""

    __slots__ = ("_exact", "_patterns", "narrowing")

    def __init__(self, values: list[str], *, wild: bool) -> None:
        patterns = [v for v in values if wild and ("*" in v or "?" in v)]
        self._exact = frozenset(values) - frozenset(patterns)
        self._patterns = [Wildcard(pattern) for pattern in patterns]
        self.narrowing: Narrowing = None
        if not patterns:
            self.narrowing = OneOf(tuple(sorted(self._exact)))
        elif len(values) == 1:
            self.narrowing = _longest(self._patterns[0].literals())

    def matches(self, value: str) -> bool:
        return value in self._exact or any(p.matches(value) for p in self._patterns)


def _longest(literals: list[str]) -> Narrowing:
    """The text that leaves out most; short patterns only, a database need not search for more."""
    text = max(literals, key=len, default="")
    return Contains(text) if 0 < len(text) <= 64 else None


_PN_COMPONENTS = 5


def fold_name(text: str) -> str:
    """A name for comparing: folded, no spaces at its delimiters, no carets at a group's end."""
    text = fold(text)
    if "^" not in text:
        return text.strip(" ") if "=" not in text else _trim_groups(text)
    return _trim_groups(text)


def _trim_groups(text: str) -> str:
    return "=".join(
        "^".join(component.strip(" ") for component in group.split("^")).rstrip("^")
        for group in text.split("=")
    )


class _Name:
    """Person names: without regard to case, and by component group (PS3.5 §6.2.1).

    A key without `=` may match any group; with `=`, each group that it names must match its own.
    """

    __slots__ = ("_alternatives", "narrowing")

    def __init__(self, values: list[str]) -> None:
        self._alternatives = [
            [Wildcard(group) for group in fold_name(value).split("=")] for value in values
        ]
        self.narrowing: Narrowing = None
        if len(values) == 1:
            self.narrowing = _longest(
                [
                    # A caret at the end of a name may be absent from the value.
                    part
                    for pattern in self._alternatives[0]
                    for run in pattern.literals()
                    for part in run.split("^")
                ]
            )

    def matches(self, value: str) -> bool:
        groups = fold_name(value).split("=")
        return any(self._accepts(patterns, groups) for patterns in self._alternatives)

    @staticmethod
    def _accepts(patterns: list[Wildcard], groups: list[str]) -> bool:
        if len(patterns) == 1:
            return any(_matches_name(patterns[0], group) for group in groups)
        groups = groups + [""] * (len(patterns) - len(groups))
        return all(
            _matches_name(pattern, group)
            for pattern, group in zip(patterns, groups, strict=False)
            if pattern.literals()
        )


def _matches_name(pattern: Wildcard, group: str) -> bool:
    if pattern.matches(group):
        return True
    missing = _PN_COMPONENTS - 1 - group.count("^")
    return missing > 0 and bool(group) and pattern.matches(group + "^" * missing)


class _Number:
    """Integers and decimals, by value: 1, 01 and +1 are the same."""

    __slots__ = ("_numbers", "_texts", "narrowing")

    def __init__(self, values: list[str]) -> None:
        self._texts = frozenset(values)
        self._numbers = frozenset(n for n in map(_number, values) if n is not None)
        self.narrowing: Narrowing = None

    def matches(self, value: str) -> bool:
        return value in self._texts or _number(value) in self._numbers


def _number(text: str) -> float | None:
    try:
        # Forms of Python's own (1_0, nan) are no DICOM numbers, and equal only themselves.
        return float(text) if text.isascii() and not text.strip("0123456789+-.eE ") else None
    except ValueError:
        return None


# -- dates and times ----------------------------------------------------------------------------

_DATE = re.compile(r"\d{8}", re.ASCII)
_OLD_DATE = re.compile(r"(\d{4})\.(\d{2})\.(\d{2})", re.ASCII)
_TIME = re.compile(r"\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?", re.ASCII)
_DAY_BEGINS = "000000000000"
_DAY_ENDS = "235959999999"
_DATE_TIME = re.compile(
    r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?(?:\.(\d{1,6}))?([+-]\d{4})?", re.ASCII
)


def normal_date(text: str) -> str:
    """YYYYMMDD, also of the retired form YYYY.MM.DD (PS3.5 §6.2); anything else as it is."""
    old = _OLD_DATE.fullmatch(text)
    return "".join(old.groups()) if old else text


def normal_time(text: str) -> str:
    """HHMMSS.FFFFFF as it is, of the retired form HH:MM:SS.FFFFFF without the colons."""
    return text.replace(":", "") if ":" in text else text


class Range:
    """Dates and times: a single value is the span of its precision, a range goes to its end.

    low, high: 8 digits of a date, 12 of a time; None is open. ranged: the key was a range.
    """

    __slots__ = ("_start", "high", "low", "narrowing", "ranged")

    def __init__(self, low: str | None, high: str | None, *, time: bool, ranged: bool) -> None:
        self._start = self.time_start if time else self.date_start
        self.low = low
        self.high = high
        self.ranged = ranged
        self.narrowing: Narrowing = None if time else Between(low, high)

    def matches(self, value: str) -> bool:
        start = self._start(value)
        if start is None:
            return False
        if self.low is not None and start < self.low:
            return False
        return self.high is None or start <= self.high

    @staticmethod
    def date_start(value: str) -> str | None:
        """A date as 8 digits; None for what is none."""
        value = normal_date(value)
        return value if _DATE.fullmatch(value) else None

    @staticmethod
    def time_start(value: str) -> str | None:
        """The first moment of a time as 12 digits; None for what is none."""
        value = normal_time(value)
        return _pad_time(value, _DAY_BEGINS) if _TIME.fullmatch(value) else None


def _pad_time(value: str, filler: str) -> str:
    """12 digits that compare as text; those that are missing come from `filler`."""
    digits = value.replace(".", "")
    return digits + filler[len(digits) :]


def _range_ends(value: str, one: re.Pattern[str], what: str) -> tuple[str | None, str | None]:
    """The two ends of `a`, `a-`, `-b` or `a-b`."""
    low, hyphen, high = (part.strip() for part in value.partition("-"))
    if not hyphen:
        high = low
    if not (low or high) or any(end and not one.fullmatch(end) for end in (low, high)):
        raise InvalidKey(f"neither a {what} nor a range of two")
    return low or None, high or None


def _date_matcher(value: str) -> Matcher:
    if "-" not in value:
        value = normal_date(value)
    low, high = _range_ends(_OLD_DATE.sub(r"\1\2\3", value), _DATE, "date (YYYYMMDD)")
    return Range(low, high, time=False, ranged="-" in value)


def _time_matcher(value: str) -> Matcher:
    low, high = _range_ends(normal_time(value), _TIME, "time (HHMMSS.FFFFFF)")
    return Range(
        None if low is None else _pad_time(low, _DAY_BEGINS),
        None if high is None else _pad_time(high, _DAY_ENDS),
        time=True,
        ranged="-" in value,
    )


@dataclass(frozen=True, slots=True)
class Span:
    """The moments that a DT value may mean; `offset`: whether it named its offset from UTC."""

    low: datetime
    high: datetime
    offset: bool

    def in_zone(self, zone: timezone) -> Span:
        """The same digits as moments of `zone`, unless an offset was named."""
        if self.offset:
            return self
        return Span(self.low.replace(tzinfo=zone), self.high.replace(tzinfo=zone), offset=True)


def parse_date_time(text: str) -> Span | None:
    """The moments of a DT value (PS3.5 §6.2); None for what is none."""
    found = _DATE_TIME.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = found.groups()
    if fraction and not second:
        return None
    try:
        zone = UTC
        if offset:
            delta = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:]))
            zone = timezone(-delta if offset[0] == "-" else delta)
            if not timedelta(hours=-12) <= zone.utcoffset(None) <= timedelta(hours=14):
                return None
        low = datetime(
            int(year),
            int(month or 1),
            int(day or 1),
            int(hour or 0),
            int(minute or 0),
            # A leap second (60) is the last moment of its minute here.
            min(int(second or 0), 59),
            int((fraction or "0").ljust(6, "0")),
            tzinfo=zone,
        )
        return Span(low, low + _precision(found), offset is not None)
    except (ValueError, OverflowError):
        return None


def _precision(found: re.Match[str]) -> timedelta:
    """How far the last moment that the value may mean is from the first."""
    year, month, day, hour, minute, second, fraction, _ = found.groups()
    if fraction:
        return timedelta(microseconds=10 ** (6 - len(fraction)) - 1)
    if second:
        span = timedelta(seconds=1)
    elif minute:
        span = timedelta(minutes=1)
    elif hour:
        span = timedelta(hours=1)
    elif day:
        span = timedelta(days=1)
    elif month:
        first = datetime(int(year), int(month), 1)
        span = (first + timedelta(days=31)).replace(day=1) - first
    else:
        span = datetime(int(year) + 1, 1, 1) - datetime(int(year), 1, 1)
    return span - timedelta(microseconds=1)


class DateTimeRange:
    """DT: offsets from UTC count where both sides name one, else the local digits are compared."""

    __slots__ = ("_high", "_low", "narrowing")

    def __init__(self, low: Span | None, high: Span | None) -> None:
        self._low = low
        self._high = high
        self.narrowing: Narrowing = None

    def in_zone(self, zone: timezone) -> DateTimeRange:
        """The same where an end that names no offset is a moment of `zone`."""
        return DateTimeRange(
            None if self._low is None else self._low.in_zone(zone),
            None if self._high is None else self._high.in_zone(zone),
        )

    def matches(self, value: str) -> bool:
        span = parse_date_time(value)
        if span is None:
            return False
        if self._low is not None and _before(span.low, self._low.low, span, self._low):
            return False
        return self._high is None or not _before(self._high.high, span.low, self._high, span)


def _before(a: datetime, b: datetime, of_a: Span, of_b: Span) -> bool:
    if of_a.offset and of_b.offset:
        return a < b
    return a.replace(tzinfo=None) < b.replace(tzinfo=None)


def _date_time_matcher(value: str) -> Matcher:
    single = parse_date_time(value)
    if single is not None:
        return DateTimeRange(single, single)
    # A hyphen may also begin an offset, so each one is tried as the range's.
    for hyphen in (i for i, character in enumerate(value) if character == "-"):
        low_text, high_text = value[:hyphen].strip(), value[hyphen + 1 :].strip()
        low = parse_date_time(low_text) if low_text else None
        high = parse_date_time(high_text) if high_text else None
        if (low or not low_text) and (high or not high_text) and (low or high):
            return DateTimeRange(low, high)
    raise InvalidKey("neither a date-time (YYYYMMDDHHMMSS.FFFFFF&ZZXX) nor a range of two")


# -- by VR --------------------------------------------------------------------------------------

_RANGES = {"DA": _date_matcher, "TM": _time_matcher, "DT": _date_time_matcher}


def make_matcher(vr: str, value: str) -> Matcher:
    """What a key of this VR with this non-universal value accepts; InvalidKey where it is none."""
    if vr != "UI" and len(value) > KEY_LENGTH_MAX:
        raise InvalidKey(f"longer than {KEY_LENGTH_MAX} characters")
    if vr in _RANGES and "*" not in value and "?" not in value:
        return _RANGES[vr](value)
    if vr == "LT":  # a backslash is an ordinary character (PS3.5 §6.2)
        return _Text([value], wild=True)
    values = [v for v in (part.strip(" ") for part in value.split("\\")) if v] or [""]
    if vr == "UI":
        return _Text(values, wild=False)
    if vr in ("IS", "DS", "US"):
        return _Number(values)
    if vr == "PN":
        return _Name(values)
    return _Text(values, wild=True)
