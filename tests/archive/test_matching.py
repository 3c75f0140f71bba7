"""What each key of C-FIND accepts, by table, and against a naive matcher."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmhaul.archive.matching import (
    KEY_LENGTH_MAX,
    Between,
    Contains,
    InvalidKey,
    OneOf,
    Wildcard,
    fold_name,
    is_universal,
    make_matcher,
)


def naive(pattern: str, value: str) -> bool:
    """The definition, by recursion: `*` is any text, `?` one character."""

    @functools.cache
    def match(p: int, v: int) -> bool:
        if p == len(pattern):
            return v == len(value)
        if pattern[p] == "*":
            return match(p + 1, v) or (v < len(value) and match(p, v + 1))
        return v < len(value) and pattern[p] in ("?", value[v]) and match(p + 1, v + 1)

    return match(0, 0)


@given(st.text("ab?*", max_size=12), st.text("ab", max_size=14))
def test_wild_cards_against_the_definition(pattern: str, value: str) -> None:
    assert Wildcard(pattern).matches(value) == naive(pattern, value)


@given(st.text("ab?*^= ", min_size=1, max_size=12), st.text("aAb^= ", min_size=1, max_size=14))
def test_narrowing_never_leaves_out_what_matches(pattern: str, value: str) -> None:
    value = value.strip(" ")
    for vr in ("LO", "PN"):
        if is_universal(pattern):
            continue
        matcher = make_matcher(vr, pattern)
        if value and matcher.matches(value):
            narrowing = matcher.narrowing
            held = fold_name(value) if vr == "PN" else value
            if isinstance(narrowing, OneOf):
                assert value in narrowing.values
            elif isinstance(narrowing, Contains):
                assert narrowing.text in held


@pytest.mark.parametrize("pattern", ["*?" * 500_000, "a*" * 300 + "b", "*a?" * 1000, "?*" * 2000])
def test_patterns_that_make_others_backtrack(pattern: str) -> None:
    # No clock is needed: a matcher that backtracks here does not come back.
    assert not Wildcard(pattern).matches("a" * 1024 + "c")


@pytest.mark.parametrize("value", ["", "*", "**", " ", "\0", "* *"])
def test_universal(value: str) -> None:
    assert is_universal(value)


TABLE = [
    # Text: as it is written, alternatives by backslash.
    ("LO", "Chest", "Chest", True),
    ("LO", "chest", "Chest", False),
    ("LO", "Ch?st", "Chest", True),
    ("LO", "Ch?st", "Cheest", False),
    ("LO", "*es*", "Chest", True),
    ("LO", "es*", "Chest", False),
    ("CS", "CT\\MR", "MR", True),
    ("CS", "CT\\MR", "CR", False),
    ("CS", "C?", "CR", True),
    ("LT", "a\\b", "a\\b", True),
    ("LT", "a\\b", "a", False),
    ("AS", "061Y", "061Y", True),
    # UIDs: lists, and no wild cards.
    ("UI", "1.2\\1.3", "1.3", True),
    ("UI", "1.2\\1.3", "1.4", False),
    ("UI", "1.2*", "1.23", False),
    # Names: no case, by group, carets at the end do not count.
    ("PN", "doe^john", "Doe^John", True),
    ("PN", "DOE*", "Doe^John", True),
    ("PN", "Doe", "Doe^John", False),
    ("PN", "Doe^John^^", "Doe^John", True),
    ("PN", "Doe^John", "Doe^John^^^", True),
    ("PN", "Doe^*", "Doe", True),
    ("PN", "Doe ^ John", "Doe^John", True),
    ("PN", "Yamada^Tarou", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
    ("PN", "山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
    ("PN", "=山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
    ("PN", "山田*=", "Yamada^Tarou=山田^太郎=やまだ^たろう", False),
    ("PN", "Yamada*=田*", "Yamada^Tarou=山田^太郎", False),
    ("PN", "*äneas", "BUC^JÉRÔME ÄNEAS", True),
    ("PN", "ΠΑΠΑΔΟΣ*", "Παπαδοσα", True),
    # Numbers: by value.
    ("IS", "1", "01", True),
    ("IS", "1", "+1", True),
    ("IS", "1", "10", False),
    ("DS", "1.50", "1.5", True),
    ("US", "512", "512", True),
    ("IS", "nan", "nan", True),
    ("IS", "nan", "1", False),
    # Dates.
    ("DA", "20040119", "20040119", True),
    ("DA", "20040119", "20040120", False),
    ("DA", "2004.01.19", "20040119", True),
    ("DA", "20040119", "2004.01.19", True),
    ("DA", "20040101-20041231", "20040119", True),
    ("DA", "20040101-20041231", "20040101", True),
    ("DA", "20040101-20041231", "20041231", True),
    ("DA", "20040101-20041231", "20050101", False),
    ("DA", "20040101-", "20991231", True),
    ("DA", "-20040101", "20040102", False),
    ("DA", "-20040101", "19000101", True),
    ("DA", "20040101-", "unknown", False),
    ("DA", "2004*", "20040119", True),
    # Times: what is not said is any.
    ("TM", "1030", "103000", True),
    ("TM", "1030", "103059.999999", True),
    ("TM", "1030", "103100", False),
    ("TM", "10", "1045", True),
    ("TM", "103000", "1030", True),
    ("TM", "1030-1145", "114559.5", True),
    ("TM", "1030-1145", "1146", False),
    ("TM", "10:30:00", "103000", True),
    ("TM", "103000", "10:30:00", True),
    ("TM", "-08", "075959", True),
    ("TM", "08-", "075959", False),
    ("TM", "08-", "nonsense", False),
    ("TM", "235959.5", "235959.5", True),
    ("TM", "235959.5", "235959.51", True),
    # Date-times: a hyphen is a range or the sign of an offset.
    ("DT", "20040119", "20040119103000", True),
    ("DT", "2004-2005", "20050601", True),
    ("DT", "2004-2005", "20060101", False),
    ("DT", "2004-0500", "20040101", True),
    ("DT", "20040119100000+0100", "20040119090000+0000", True),
    ("DT", "20040119100000+0100", "20040119100000+0000", False),
    ("DT", "20040119100000-0500-20040119110000-0500", "20040119153000+0000", True),
    ("DT", "20040119100000-0500-20040119110000-0500", "20040119163000+0000", False),
    ("DT", "-2004", "20041231235959.999999", True),
    ("DT", "2004-", "20031231", False),
    ("DT", "200402", "20040229", True),
    ("DT", "2004", "not a time", False),
    ("DT", "2004", "20041399", False),
]


@pytest.mark.parametrize(("vr", "key", "value", "expected"), TABLE)
def test_table(vr: str, key: str, value: str, expected: bool) -> None:
    assert make_matcher(vr, key).matches(value) is expected


@pytest.mark.parametrize(
    ("vr", "key"),
    [
        ("DA", "-"),
        ("DA", "2004"),
        ("DA", "today"),
        ("DA", "20040101-20040201-20040301"),
        ("TM", "-"),
        ("TM", "1"),
        ("TM", "103"),
        ("DT", "-"),
        ("DT", "20"),
        ("DT", "9999-99999999"),
        ("LO", "x" * (KEY_LENGTH_MAX + 1)),
    ],
)
def test_keys_that_are_refused(vr: str, key: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        make_matcher(vr, key)
    assert key not in str(caught.value) or key == "-"


def test_long_uid_lists() -> None:
    uids = [f"1.2.{n}" for n in range(100_000)]
    matcher = make_matcher("UI", "\\".join(uids))
    assert matcher.matches("1.2.99999")
    assert not matcher.matches("1.3")
    assert isinstance(matcher.narrowing, OneOf)
    assert len(matcher.narrowing.values) == len(uids)


@given(st.text(max_size=20))
def test_folding_a_name_is_stable(text: str) -> None:
    assert fold_name(fold_name(text)) == fold_name(text)


def test_dates_narrow_to_a_span() -> None:
    assert make_matcher("DA", "20040101-").narrowing == Between("20040101", None)
    assert make_matcher("DA", "20040101").narrowing == Between("20040101", "20040101")
