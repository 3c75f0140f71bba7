"""Dates with their times: ranges that are one range, and what time zones make of them."""

from __future__ import annotations

import time
from datetime import UTC, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from dcmhaul.archive.matching import Between, make_matcher
from dcmhaul.archive.moments import (
    TIMEZONE_OFFSET_FROM_UTC,
    Adjusted,
    Adjustment,
    combined_range,
    parse_offset,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

STUDY_DATE, STUDY_TIME, ACQUISITION_DATE_TIME = 0x00080020, 0x00080030, 0x0008002A
TOKYO = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("+0100", 60),
        ("-0330", -210),
        ("+0000", 0),
        ("-0000", 0),
        ("+1400", 840),
        ("-1200", -720),
        ("+1401", None),
        ("-1230", None),
        ("+0160", None),
        ("0100", None),
        ("+1", None),
        ("", None),
        ("+01:00", None),
    ],
)
def test_offsets(text: str, minutes: int | None) -> None:
    expected = None if minutes is None else timezone(timedelta(minutes=minutes))
    assert parse_offset(text) == expected


def both(date: str, time: str) -> bool:
    return combined_range(make_matcher("DA", date), make_matcher("TM", time)) is not None


def test_only_ranges_of_one_form_are_combined() -> None:
    assert both("20060705-20060707", "1000-1800")
    assert both("20060705-", "1000-")
    assert both("-20060705", "-1000")
    assert not both("20060705-20060707", "-1800")
    assert not both("20060705-", "1000-1800")
    assert not both("20060705", "1000-1800")
    assert not both("20060705-20060707", "1000")
    assert not both("2006*", "10*")


@pytest.mark.parametrize(
    ("date", "time", "inside"),
    [
        ("20060705", "1000", True),
        ("20060705", "095959.999999", False),
        ("20060706", "0300", True),
        ("20060707", "180059.5", True),
        ("20060707", "1801", False),
        ("20060708", "1200", False),
        # Without a time the day itself counts; a time that is none says as much.
        ("20060705", None, True),
        ("20060707", "", True),
        ("20060708", None, False),
        ("20060706", "nonsense", True),
        (None, "1200", False),
        ("nonsense", "1200", False),
    ],
)
def test_a_combined_range(date: str | None, time: str | None, inside: bool) -> None:
    found = combined_range(make_matcher("DA", "20060705-20060707"), make_matcher("TM", "1000-1800"))
    assert found is not None
    assert found.matches(date, time) is inside


def test_a_combined_range_may_be_open() -> None:
    since = combined_range(make_matcher("DA", "20060705-"), make_matcher("TM", "1000-"))
    until = combined_range(make_matcher("DA", "-20060705"), make_matcher("TM", "-1000"))
    assert since is not None
    assert until is not None
    assert since.matches("20300101", "0000")
    assert not since.matches("20060705", "0900")
    assert until.matches("19000101", "2300")
    assert not until.matches("20060705", "1100")


def test_sql_may_leave_out_less_before_an_adjustment() -> None:
    def narrowing(vr: str, key: str) -> object:
        return Adjusted(make_matcher(vr, key), TOKYO).narrowing

    assert narrowing("DA", "20240101-20240301") == Between("20231230", "20240303")
    assert narrowing("DA", "20240101-") == Between("20231230", None)
    assert narrowing("DA", "00010101-99991231") == Between(None, None)
    assert narrowing("DA", "2024*") is None
    assert narrowing("TM", "1000-1100") is None


AT = {
    STUDY_DATE: 0,
    STUDY_TIME: 1,
    TIMEZONE_OFFSET_FROM_UTC: 2,
    ACQUISITION_DATE_TIME: 3,
}


@pytest.mark.parametrize(
    ("date", "time", "own", "expected"),
    [
        ("20240101", "1800", "+0100", ("20240102", "0200")),
        ("20240101", "180000.123", "+0100", ("20240102", "020000.123")),
        ("20240101", "18", "+0530", ("20240101", "2130")),
        ("20240101", "235960", "+0000", ("20240102", "085959")),
        ("20240101", "0300", "+0900", ("20240101", "0300")),
        ("2024.01.01", "18:00:00", "+0100", ("20240102", "020000")),
        ("20240101", None, "+0100", ("20240101", None)),
        (None, "1800", "+0100", (None, "1800")),
        ("20240101", "nonsense", "+0100", ("20240101", "nonsense")),
        ("nonsense", "1800", "+0100", ("nonsense", "1800")),
        ("20240231", "1800", "+0100", ("20240231", "1800")),
        ("99991231", "2300", "+0000", ("99991231", "2300")),
        ("00010203", "0000", "+0900", ("00010203", "0000")),
    ],
)
def test_adjusted_dates_and_times(
    date: str | None, time: str | None, own: str, expected: tuple[str | None, str | None]
) -> None:
    row = Adjustment(TOKYO, AT).row((date, time, own, None))
    assert row == (*expected, own, None)


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize("own", ["", None, "nonsense"])
def test_what_names_no_zone_is_of_this_machine(own: str | None) -> None:
    adjustment = Adjustment(UTC, AT)
    assert adjustment.row(("20240101", "2000", own, None))[:2] == ("20240102", "0100")
    assert adjustment.row(("20240701", "2000", own, None))[:2] == ("20240702", "0000")
    assert adjustment.row((None, None, own, "202407012000"))[3] == "202407012000-0400"


def test_a_date_time_says_its_offset() -> None:
    adjustment = Adjustment(TOKYO, AT)
    for value, expected in (
        ("20240101120000", "20240101120000+0100"),
        ("20240101120000-0500", "20240101120000-0500"),
        ("2024", "2024+0100"),
        ("nonsense", "nonsense"),
    ):
        assert adjustment.row((None, None, "+0100", value))[3] == expected


def test_a_date_time_key_is_of_the_zone() -> None:
    key = Adjusted(make_matcher("DT", "20240101200000-20240101210000"), TOKYO)
    assert key.matches("20240101120000+0100")
    assert not key.matches("20240101200000+0100")
    named = Adjusted(make_matcher("DT", "20240101200000+0000"), TOKYO)
    assert named.matches("20240101200000+0000")
    since = Adjusted(make_matcher("DT", "20240101200000-"), TOKYO)
    assert since.matches("20240101110000+0000")
    assert not since.matches("20240101105959+0000")


def test_what_an_adjustment_needs() -> None:
    zone = TIMEZONE_OFFSET_FROM_UTC
    assert Adjustment.needed([STUDY_DATE]) == {STUDY_DATE, STUDY_TIME, zone}
    assert Adjustment.needed([ACQUISITION_DATE_TIME]) == {zone}
    # A birthday is the same everywhere.
    assert Adjustment.needed([0x00100030, 0x00100020]) == set()
