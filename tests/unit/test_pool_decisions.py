"""What a pool does next, and what a failure means: pure decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dcmhaul.engine.pool import (
    GiveUp,
    Health,
    Open,
    PoolPolicy,
    Wait,
    WindowTrial,
    after_break,
    after_failure,
    after_work,
    next_step,
)
from dcmhaul.engine.retry import RetryPolicy, Verdict, decide_error, decide_status, is_stored
from dcmhaul.errors import (
    AssociationAborted,
    AssociationRejected,
    DcmhaulError,
    NoAcceptedContext,
    TransportError,
    UnreadableInstance,
)

POLICY = PoolPolicy(size=4, failures_max=3, delay_seconds=1.0, delay_max_seconds=3.0)
REACHED = Health(limit=4, reached=True)
LOST = TransportError("lost")


def test_delays_double_up_to_their_maximum_and_then_the_peer_is_given_up() -> None:
    health = REACHED
    assert next_step(health, 100.0, POLICY) == Open()
    health = after_failure(health, LOST, 0, 100.0, POLICY)
    assert next_step(health, 100.0, POLICY) == Wait(1.0)
    assert next_step(health, 101.0, POLICY) == Open()
    health = after_failure(health, LOST, 0, 101.0, POLICY)
    assert next_step(health, 101.0, POLICY) == Wait(2.0)
    health = after_failure(health, LOST, 0, 103.0, POLICY)
    assert next_step(health, 200.0, POLICY) == GiveUp(LOST)


def test_work_that_was_done_starts_the_count_anew_and_opening_does_not() -> None:
    health = after_failure(after_failure(REACHED, LOST, 0, 0.0, POLICY), LOST, 0, 0.0, POLICY)
    assert health.failures == 2
    health = after_failure(after_work(health), LOST, 0, 9.0, POLICY)
    assert (health.failures, next_step(health, 9.0, POLICY)) == (1, Wait(1.0))


def test_a_peer_that_was_never_reached_is_given_up_at_once() -> None:
    health = after_failure(Health(limit=4), LOST, 0, 0.0, POLICY)
    assert next_step(health, 99.0, POLICY) == GiveUp(LOST)


@pytest.mark.parametrize(
    "error", [AssociationRejected(1, 1, 7, "unknown title"), NoAcceptedContext("none")]
)
def test_what_will_not_change_is_not_tried_again(error: DcmhaulError) -> None:
    assert next_step(after_failure(REACHED, error, 0, 0.0, POLICY), 99.0, POLICY) == GiveUp(error)


def test_a_transient_rejection_beside_others_says_how_many_the_peer_bears() -> None:
    congestion = AssociationRejected(2, 3, 1, "congestion")
    health = after_failure(REACHED, congestion, 2, 0.0, POLICY)
    assert health == replace(REACHED, limit=2)
    assert next_step(health, 0.0, POLICY) == Open()
    # Alone it is a failure like any other.
    alone = after_failure(REACHED, congestion, 0, 0.0, POLICY)
    assert (alone.limit, alone.failures) == (4, 1)
    assert next_step(alone, 0.0, POLICY) == Wait(1.0)


@pytest.mark.parametrize(
    ("status", "stored"),
    [
        (0, True),
        (0xB000, True),
        (0xB007, True),
        (0xB0FF, True),
        (0xB100, False),
        (0x0107, False),
        (0xFF00, False),
        (0xA700, False),
        (0xC000, False),
        (0x0122, False),
        (0xFE00, False),
        (0xFFFF, False),
    ],
)
def test_which_statuses_mean_stored(status: int, stored: bool) -> None:
    assert is_stored(status) is stored


RETRY = RetryPolicy(attempts=3, refused_attempts=2, delay_seconds=1.0, delay_max_seconds=3.0)


@pytest.mark.parametrize(
    ("status", "attempts", "verdict", "retryable", "delay"),
    [
        (0xA700, 1, Verdict.RETRY, True, 1.0),
        (0xA7FF, 2, Verdict.RETRY, True, 2.0),
        (0xA700, 3, Verdict.GIVE_UP, True, 0.0),
        (0xA900, 1, Verdict.RETRY, False, 1.0),
        (0xC123, 2, Verdict.GIVE_UP, False, 0.0),
        (0x0122, 1, Verdict.GIVE_UP, False, 0.0),
        (0x0117, 1, Verdict.GIVE_UP, False, 0.0),
    ],
)
def test_statuses(
    status: int, attempts: int, verdict: Verdict, retryable: bool, delay: float
) -> None:
    decision = decide_status(status, attempts, RETRY)
    assert (decision.verdict, decision.retryable, decision.delay_seconds) == (
        verdict,
        retryable,
        delay,
    )


@pytest.mark.parametrize(
    ("error", "attempts", "verdict", "retryable"),
    [
        (LOST, 1, Verdict.RETRY, True),
        (LOST, 3, Verdict.GIVE_UP, True),
        (AssociationAborted(0, 0, "gone"), 2, Verdict.RETRY, True),
        (AssociationRejected(2, 3, 1, "congestion"), 1, Verdict.RETRY, True),
        (AssociationRejected(1, 1, 3, "who are you"), 1, Verdict.GIVE_UP, False),
        (NoAcceptedContext("none"), 1, Verdict.GIVE_UP, False),
        (UnreadableInstance("truncated"), 1, Verdict.GIVE_UP, False),
        (DcmhaulError("anything"), 1, Verdict.GIVE_UP, False),
    ],
)
def test_errors(error: DcmhaulError, attempts: int, verdict: Verdict, retryable: bool) -> None:
    decision = decide_error(error, attempts, RETRY)
    assert (decision.verdict, decision.retryable) == (verdict, retryable)


def test_delays_stay_under_their_maximum() -> None:
    assert [RETRY.delay(n) for n in (1, 2, 3, 99)] == [1.0, 2.0, 3.0, 3.0]


def test_patience_tries_again_for_a_time_whether_the_peer_was_reached_or_not() -> None:
    policy = PoolPolicy(failures_max=2, delay_seconds=1.0, patience_seconds=5.0)
    for health in (Health(limit=4), REACHED):
        health = after_failure(health, LOST, 0, 10.0, policy)
        health = after_failure(health, LOST, 0, 12.0, policy)
        assert next_step(health, 12.0, policy) == Wait(2.0)
        assert next_step(health, 14.9, policy) == Open()
        assert next_step(health, 15.0, policy) == GiveUp(LOST)
        # A wait after which it would be too late is none.
        assert next_step(after_failure(health, LOST, 0, 14.0, policy), 14.0, policy) == GiveUp(LOST)
    # Fewer failures than that are no reason to give up a peer that was reached, however old they are.
    assert next_step(after_failure(REACHED, LOST, 0, 0.0, policy), 99.0, policy) == Open()


def test_patience_begins_anew_after_work_and_changes_nothing_for_what_is_permanent() -> None:
    policy = PoolPolicy(failures_max=1, delay_seconds=1.0, patience_seconds=5.0)
    health = after_failure(REACHED, LOST, 0, 0.0, policy)
    health = after_failure(after_work(health), LOST, 0, 100.0, policy)
    assert next_step(health, 104.0, policy) == Open()
    rejected = AssociationRejected(1, 1, 7, "unknown title")
    assert next_step(after_failure(REACHED, rejected, 0, 0.0, policy), 0.0, policy) == GiveUp(
        rejected
    )


def test_only_early_breaks_in_succession_speak_against_the_window() -> None:
    def broke(trial: WindowTrial, at: float, *, early: bool = True, outstanding: int = 4) -> int:
        after = after_break(trial, outstanding=outstanding, early=early, opened_at=at - 1, now=at)
        return after.early_breaks

    once = WindowTrial(early_breaks=1, last_at=10.0)
    assert broke(WindowTrial(), 10.0) == 1
    assert broke(once, 12.0) == 2
    # Opened before the last break: both have one cause.
    assert broke(once, 10.5) == 1
    # One request was outstanding, so it was not the window.
    assert broke(once, 12.0, outstanding=1) == 1
    # Whoever answered a good many bears it.
    assert broke(once, 12.0, early=False) == 0
