"""Latency buckets: every value is known to within the documented error, and adding is merging."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmhaul.wire._buckets import NANOSECONDS_MAX, RELATIVE_ERROR, SLOTS, Buckets

durations = st.integers(min_value=0, max_value=NANOSECONDS_MAX)
MANY = st.lists(durations, min_size=1, max_size=200)


def filled(values: list[int]) -> Buckets:
    buckets = Buckets()
    buckets.record_many(array("q", values))
    return buckets


def contents(values: list[int]) -> array[int]:
    storage = array("q", bytes(SLOTS * 8))
    Buckets(storage).record_many(array("q", values))
    return storage


@given(durations)
def test_one_value_is_known_to_within_the_error(value: int) -> None:
    buckets = Buckets()
    buckets.record(value)
    for q in (0.0, 0.5, 1.0):
        answer = buckets.quantile(q)
        assert answer is not None
        assert abs(answer - value) <= value * RELATIVE_ERROR
    assert buckets.count == 1
    assert buckets.total == value


@pytest.mark.parametrize("value", [0, 1, 31, 32, 33, 62, 63])
def test_small_values_are_exact(value: int) -> None:
    assert filled([value]).quantile(0.5) == value


@pytest.mark.parametrize("bit", range(5, 44))
def test_no_gap_and_no_overlap_at_a_power_of_two(bit: int) -> None:
    below, at = contents([2**bit - 1]), contents([2**bit])
    assert at.index(1) == below.index(1) + 1


@given(MANY, st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_one_of_the_values_within_the_error(values: list[int], q: float) -> None:
    answer = filled(values).quantile(q)
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert answer is not None
    assert abs(answer - exact) <= exact * RELATIVE_ERROR


@given(MANY)
def test_record_many_is_record_of_each(values: list[int]) -> None:
    storage = array("q", bytes(SLOTS * 8))
    one_by_one = Buckets(storage)
    for value in values:
        one_by_one.record(value)
    assert storage == contents(values)


@given(MANY, MANY)
def test_merge_of_two_is_one_of_both(first: list[int], second: list[int]) -> None:
    storage = array("q", bytes(SLOTS * 8))
    merged = Buckets(storage)
    merged.record_many(array("q", first))
    other = filled(second)
    merged.merge(other)
    assert storage == contents(first + second)
    assert other.count == len(second)
    summed = array("q", map(sum, zip(contents(first), contents(second), strict=True)))
    assert summed == storage  # plain addition of arrays is the same merge


@given(MANY, durations)
def test_count_at_most_never_counts_what_is_above(values: list[int], bound: int) -> None:
    found = filled(values).count_at_most(bound)
    assert found <= sum(value <= bound for value in values)
    assert found >= sum(value <= bound * (1 - 1 / 32) - 1 for value in values)


def test_count_at_most_of_everything() -> None:
    buckets = filled([0, 5, 10**6, 10**9])
    assert buckets.count_at_most(10**10) == 4
    assert buckets.count_at_most(63) == 2
    assert (
        filled([NANOSECONDS_MAX + 1]).count_at_most(2**62) == 0
    )  # the last bucket has no upper end


def test_values_out_of_range_are_clamped() -> None:
    buckets = filled([-1, NANOSECONDS_MAX + 1, 2**63 - 1])
    assert buckets.count == 3
    assert buckets.quantile(0.0) == 0
    top = buckets.quantile(1.0)
    assert top is not None
    assert abs(top - NANOSECONDS_MAX) <= NANOSECONDS_MAX * 2 * RELATIVE_ERROR
    with pytest.raises(OverflowError):
        buckets.record(2**63)


def test_a_negative_value_adds_nothing_to_the_sum() -> None:
    buckets = Buckets()
    buckets.record(-5)
    assert buckets.total == 0


def test_nothing_recorded_has_no_quantile() -> None:
    buckets = Buckets()
    assert buckets.quantile(0.5) is None
    buckets.record(7)
    buckets.clear()
    assert buckets.quantile(0.5) is None
    assert buckets.total == 0


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_its_range_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        filled([1]).quantile(q)


@pytest.mark.parametrize(
    ("q", "needed"), [(0.5, 20), (0.9, 100), (0.95, 200), (0.99, 1000), (0.999, 10_000)]
)
def test_a_tail_needs_samples(q: float, needed: int) -> None:
    buckets = filled([1] * (needed - 1))
    assert not buckets.has_tail(q)
    buckets.record(1)
    assert buckets.has_tail(q)
    assert not buckets.has_tail(1.0)


def test_buckets_are_a_part_of_a_larger_array() -> None:
    counters = array("q", bytes((SLOTS * 2 + 3) * 8))
    Buckets(memoryview(counters)[3 : 3 + SLOTS]).record(1000)
    second = Buckets(memoryview(counters)[3 + SLOTS :])
    second.record(10)
    second.record(20)
    assert sum(counters[:3]) == 0
    assert sum(counters[3 : 3 + SLOTS]) == 1 + 1000
    again = Buckets(memoryview(counters)[3 + SLOTS :])
    assert (again.count, again.total) == (2, 30)
    del again, second
    counters.append(0)  # nothing pins the array any more


def test_memory_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="buckets need"):
        Buckets(bytearray(SLOTS * 8 - 8))
    with pytest.raises(ValueError, match="aligned"):
        Buckets(memoryview(bytearray(SLOTS * 8 + 1))[1:])
    with pytest.raises(BufferError):
        Buckets(bytes(SLOTS * 8))
    with pytest.raises(ValueError, match="int64"):
        Buckets().record_many(array("d", [1.0]))
    with pytest.raises(ValueError, match="int64"):
        Buckets().record_many(array("i", [1]))
