"""Dates together with their times (PS3.4 §C.2.2.2.1.3, §C.2.2.2.5.4): combined ranges, time zones.

Pure: it knows rows of text by the place of an attribute in them, and no database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from dcmhaul.archive.matching import (
    Between,
    DateTimeRange,
    Range,
    normal_time,
    parse_date_time,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dcmhaul.archive.matching import Matcher, Narrowing

__all__ = [
    "PAIRS",
    "TIMEZONE_OFFSET_FROM_UTC",
    "ADJUSTED",
    "Adjusted",
    "Adjustment",
    "CombinedRange",
    "combined_range",
    "parse_offset",
]

TIMEZONE_OFFSET_FROM_UTC = 0x00080201

_BIRTH = (0x00100030, 0x00100032)
# Date and time of one moment, by tag.
PAIRS = (
    (0x00080012, 0x00080013),  # instance creation
    (0x00080020, 0x00080030),  # study
    (0x00080021, 0x00080031),  # series
    (0x00080022, 0x00080032),  # acquisition
    (0x00080023, 0x00080033),  # content
    (0x00400244, 0x00400245),  # performed procedure step start
    _BIRTH,
)
# What a time zone applies to. Nobody's birthday depends on where it is asked for.
_ZONED = tuple(pair for pair in PAIRS if pair != _BIRTH)
_DATE_TIMES = frozenset((0x0008002A,))
ADJUSTED = _DATE_TIMES.union(*_ZONED)

_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})", re.ASCII)
# Two zones are 26 hours apart at most.
_DAYS_APART = timedelta(days=2)


def parse_offset(text: str) -> timezone | None:
    """`+0100` as a time zone (PS3.3 §C.12.1.1); None for what is none between -1200 and +1400."""
    found = _OFFSET.fullmatch(text)
    if found is None:
        return None
    sign, hours, minutes = found.groups()
    delta = timedelta(hours=int(hours), minutes=int(minutes))
    if int(minutes) > 59 or delta > timedelta(hours=12 if sign == "-" else 14):
        return None
    return timezone(-delta if sign == "-" else delta)


# -- a range of dates and one of times ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CombinedRange:
    """low <= date and time <= high as 20 digits, YYYYMMDDHHMMSSFFFFFF; None is open.

    Without a time, any moment of its day counts.
    """

    low: str | None
    high: str | None

    def matches(self, date: str | None, time: str | None) -> bool:
        """Whether a stored date and time are within."""
        day = Range.date_start(date or "")
        if day is None:
            return False
        moment = Range.time_start(time) if time else None
        if self.low is not None and day + (moment or "999999999999") < self.low:
            return False
        return self.high is None or day + (moment or "000000000000") <= self.high


def combined_range(date: Matcher, time: Matcher) -> CombinedRange | None:
    """Both keys as one range; None where they are not ranges of the same form."""
    if not (isinstance(date, Range) and isinstance(time, Range) and date.ranged and time.ranged):
        return None
    if (date.low is None, date.high is None) != (time.low is None, time.high is None):
        return None
    return CombinedRange(
        None if date.low is None else date.low + str(time.low),
        None if date.high is None else date.high + str(time.high),
    )


# -- time zones ---------------------------------------------------------------------------------


class Adjusted:
    """A key for values that are adjusted to `zone` after they were read: SQL may leave out less."""

    __slots__ = ("_matcher", "matches", "narrowing")

    def __init__(self, matcher: Matcher, zone: timezone) -> None:
        if isinstance(matcher, DateTimeRange):
            matcher = matcher.in_zone(zone)
        self._matcher = matcher
        self.matches = matcher.matches
        self.narrowing: Narrowing = None
        if isinstance(matcher.narrowing, Between):
            low, high = matcher.narrowing.low, matcher.narrowing.high
            self.narrowing = Between(_days(low, -_DAYS_APART), _days(high, _DAYS_APART))


def _days(date: str | None, later: timedelta) -> str | None:
    """The date so many days later; open where there is no such date."""
    try:
        return _digits(datetime.strptime(date or "", "%Y%m%d") + later)
    except (ValueError, OverflowError):
        return None


def _digits(moment: datetime) -> str:
    return moment.date().isoformat().replace("-", "")


class Adjustment:
    """Turns the dates and times of rows into those of one time zone.

    at: where an attribute is in a row. A row's own zone is its Timezone Offset From UTC, else that of
    this machine. A date without a time, and a time without a date, stay as they are.
    """

    def __init__(self, zone: timezone, at: Mapping[int, int]) -> None:
        self._zone = zone
        self._pairs = [(at[date], at[time]) for date, time in _ZONED if date in at and time in at]
        self._date_times = [at[tag] for tag in _DATE_TIMES if tag in at]
        self._own = at[TIMEZONE_OFFSET_FROM_UTC]

    @staticmethod
    def needed(tags: Iterable[int]) -> set[int]:
        """The attributes that must be in a row for these to be adjusted; empty where none is."""
        needed: set[int] = set()
        asked = set(tags)
        for pair in _ZONED:
            if asked & set(pair):
                needed.update(pair)
        if needed or asked & _DATE_TIMES:
            needed.add(TIMEZONE_OFFSET_FROM_UTC)
        return needed

    def row(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """The same row in the other zone."""
        values = list(row)
        own = parse_offset(values[self._own] or "")
        for date, time in self._pairs:
            if values[date] and values[time]:
                values[date], values[time] = _moved(values[date], values[time], own, self._zone)
        for index in self._date_times:
            if values[index]:
                values[index] = _with_offset(values[index], own)
        return tuple(values)


def _moved(date: str, time: str, own: timezone | None, zone: timezone) -> tuple[str, str]:
    """A date and a time in another zone, to the minute or as exact as they were."""
    digits = Range.time_start(time)
    day = Range.date_start(date)
    if digits is None or day is None:
        return date, time
    try:
        # A leap second is the last one of its minute here.
        seconds = min(digits[4:6], "59")
        moment = datetime.strptime(day + digits[:4] + seconds + digits[6:], "%Y%m%d%H%M%S%f")
        moment = (moment.replace(tzinfo=own) if own else moment.astimezone()).astimezone(zone)
    except (ValueError, OverflowError, OSError):
        return date, time
    whole, point, fraction = normal_time(time).partition(".")
    text = moment.strftime("%H%M%S")[: max(len(whole), 4)]
    return _digits(moment), text + point + fraction


def _with_offset(value: str, own: timezone | None) -> str:
    """A DT value that says its offset from UTC itself."""
    span = parse_date_time(value)
    if span is None or span.offset:
        return value
    try:
        moment = span.low.replace(tzinfo=own)
        return value + (moment if own else moment.astimezone()).strftime("%z")[:5]
    except (ValueError, OverflowError, OSError):
        return value
