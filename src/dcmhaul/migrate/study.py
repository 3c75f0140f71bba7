"""One study on its way: what is still open, what became of the rest, and what comes next.

Pure: outcomes are folded in, results for the ledger come out. Nothing here waits or asks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from dcmhaul import uids
from dcmhaul.engine.planning import WIDE_PASSES, ExpectedInstance, carried, context_passes
from dcmhaul.engine.retry import RetryPolicy, Verdict, decide_error, decide_status, is_stored
from dcmhaul.errors import DcmhaulError, TransportError
from dcmhaul.migrate.tables import (
    FINAL_STATES,
    HELD_STATES,
    Exclusion,
    InstanceResult,
    InstanceRow,
    InstanceState,
    StudyState,
)
from dcmhaul.protocol.statuses import COERCION, UNABLE_TO_PERFORM_SUBOPERATIONS, describe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from dcmhaul.engine.relay import RelayOutcome
    from dcmhaul.engine.retriever import GetResult

__all__ = ["Next", "StudyWork", "another_object", "make_work", "unsent_object"]


class Next(Enum):
    """What a study needs."""

    CLOSE = "close"
    TRANSFER = "transfer"
    ASK = "ask"
    """Something left without an answer: the destination says whether it holds it."""


@dataclass(slots=True, kw_only=True)
class StudyWork:
    """The state of one study during a run.

    Invariant: each expected instance is in exactly one of `open`, `held` and `failed`; `unknown` is a
    part of `open`. losses: associations lost in a row without one instance acknowledged.
    """

    id: int
    study_instance_uid: str
    expected: dict[str, ExpectedInstance]
    policy: RetryPolicy
    open: set[str]
    held: set[str]
    failed: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    attempts: Counter[str] = field(default_factory=Counter)
    undelivered: Counter[str] = field(default_factory=Counter)
    """How often a C-GET ran to its end and did not bring it."""
    losses: int = 0
    visits: int = 0
    delay_seconds: float = 0.0
    """How long the peers are left in peace before the next visit."""
    reasons: dict[str, tuple[int | None, bool, str]] = field(default_factory=dict)
    """Of an open instance that failed before: status, retryable, text."""
    extra: list[ExpectedInstance] = field(default_factory=list)
    """Instances that came and were not in the inventory: rows for them are due."""
    extra_results: list[InstanceResult] = field(default_factory=list)
    """Of those: to be recorded once there are rows."""
    last_status: int | None = None
    _doomed: set[str] = field(default_factory=set)
    """Unknown, and given up unless the destination turns out to hold them."""
    in_flight: int = 0
    """Folder sources: instances of this visit that are not settled yet."""

    @property
    def next(self) -> Next:
        """What has to be done now."""
        if not self.open:
            return Next.CLOSE
        return Next.ASK if self.unknown else Next.TRANSFER

    @property
    def closing_state(self) -> StudyState:
        """The state with which the study is closed."""
        return StudyState.PARTIAL if self.failed else StudyState.DONE

    def contexts(self) -> list[tuple[tuple[str, str], ...]]:
        """The (class, syntax) pairs that the open instances need, an association an item.

        A syntax that the source announced and that brought nothing is doubted: then the common ones
        are proposed too. Where these bring nothing either, the class is doubted as well.
        """
        if (wide := self._wide_pass()) is not None:
            return [WIDE_PASSES[wide]]
        classes: Counter[str] = Counter()
        announced: dict[str, list[str]] = {}
        doubted: set[str] = set()
        for uid in self.open:
            if self._is_doubtful(uid):
                continue  # its turn comes when the others are done
            instance = self.expected[uid]
            classes[instance.sop_class_uid] += 1
            if instance.transfer_syntax_uid:
                announced.setdefault(instance.sop_class_uid, []).append(
                    instance.transfer_syntax_uid
                )
            else:
                doubted.add(instance.sop_class_uid)
            if self.attempts[uid]:
                doubted.add(instance.sop_class_uid)
        return context_passes(classes, announced, doubted)

    def covered(self, pairs: Collection[tuple[str, str]]) -> set[str]:
        """The open instances that may come in one of `pairs`."""
        if self._wide_pass() is not None:
            return set(self.open)
        return {uid for uid in self.carried(self.open, pairs) if not self._is_doubtful(uid)}

    def carried(self, asked: Iterable[str], pairs: Collection[tuple[str, str]]) -> set[str]:
        """Those that one of the pairs carries; a class or syntax that is not known may be any."""
        asked = set(asked)
        doubtful = {uid for uid in asked if self._is_doubtful(uid)}
        found = carried((self.expected[uid] for uid in asked - doubtful), pairs)
        return found | doubtful if pairs else found

    def _is_doubtful(self, uid: str) -> bool:
        """What the source said of its class and syntax has proved of no use."""
        return self.undelivered[uid] >= self.policy.refused_attempts

    def _wide_pass(self) -> int | None:
        """Which of WIDE_PASSES is next, where every open instance is doubtful."""
        least = min((self.undelivered[uid] for uid in self.open), default=0)
        if least < self.policy.refused_attempts:
            return None
        return min(least - self.policy.refused_attempts, len(WIDE_PASSES) - 1)

    # -- folding ------------------------------------------------------------------------------------

    def present(self, found: Collection[str]) -> list[InstanceResult]:
        """The destination was asked and holds `found`: open ones among them are settled."""
        results = []
        for uid in sorted(self.open.intersection(found)):
            self._hold(uid)
            results.append(
                InstanceResult(
                    study_id=self.id,
                    sop_instance_uid=uid,
                    state=InstanceState.IDENTICAL_PRESENT,
                )
            )
        # What was unknown and is not there was never stored; some of it was tried often enough.
        self.unknown.clear()
        results += [self._fail(uid) for uid in sorted(self._doomed & self.open)]
        self._doomed.clear()
        return results

    def fold(self, outcome: RelayOutcome) -> InstanceResult | None:
        """What became of one instance; a result where that is final for this run."""
        uid = outcome.sop_instance_uid
        if uid in self.held:
            return None
        if outcome.status is not None and is_stored(outcome.status):
            return self._stored(outcome)
        if uid not in self.expected:
            self._add(outcome)
        self.open.add(uid)
        self.failed.discard(uid)
        self.attempts[uid] += 1
        if outcome.status is not None:
            self.last_status = outcome.status
            decision = decide_status(outcome.status, self.attempts[uid], self.policy)
            text = describe(outcome.status, "C-STORE")
            if outcome.error_comment:
                text += f": {outcome.error_comment}"
        else:
            error = outcome.error or TransportError("no answer")
            decision = decide_error(error, self.attempts[uid], self.policy)
            text = str(error)
            if outcome.unknown:
                self.unknown.add(uid)
        self.delay_seconds = max(self.delay_seconds, decision.delay_seconds)
        self.reasons[uid] = (outcome.status, decision.retryable, text)
        # Of an instance whose answer was lost nothing is known: asking comes before giving up.
        if decision.verdict is Verdict.GIVE_UP:
            if uid not in self.unknown:
                return self._fail(uid, outcome.length)
            self._doomed.add(uid)
        return None

    def not_delivered(self, asked: Iterable[str], result: GetResult) -> list[InstanceResult]:
        """After a C-GET that ran to its end: what was asked for and did not come.

        A source that tried and failed may have lacked a context: it is asked in others.
        """
        tries = self.policy.refused_attempts
        if result.status in (COERCION, UNABLE_TO_PERFORM_SUBOPERATIONS):
            tries += len(WIDE_PASSES)
        results = []
        for uid in sorted(set(asked) & self.open - self.unknown - result.received):
            self.attempts[uid] += 1
            self.undelivered[uid] += 1
            status = "no status" if result.status is None else f"0x{result.status:04X}"
            text = f"the source did not send it (its C-GET ended with {status})"
            if result.error_comment:
                text += f": {result.error_comment}"
            self.reasons[uid] = (None, True, text)
            if self.undelivered[uid] >= tries:
                results.append(self._fail(uid))
        return results

    def no_context(self, asked: Iterable[str], where: str) -> list[InstanceResult]:
        """An end (`where`) accepted no context that could carry these."""
        results = []
        for uid in sorted(set(asked) & self.open - self.unknown):
            if self._is_doubtful(uid):
                self.undelivered[uid] += 1
                if self.undelivered[uid] >= self.policy.refused_attempts + len(WIDE_PASSES):
                    results.append(self._fail(uid))
                continue
            self.reasons[uid] = (
                None,
                False,
                f"{where} accepted no presentation context for {_kind(self.expected[uid])}",
            )
            results.append(self._fail(uid))
        return results

    def lost(self, error: DcmhaulError) -> list[InstanceResult]:
        """An association was lost; too often in a row, and what is open is given up for this run."""
        self.losses += 1
        self.delay_seconds = max(self.delay_seconds, self.policy.delay(self.losses))
        for uid in self.open:
            self.reasons.setdefault(uid, (None, True, str(error)))
        if self.losses < self.policy.attempts or self.unknown:
            return []
        return self.give_up(str(error))

    def give_up(self, text: str) -> list[InstanceResult]:
        """Everything open fails, with the reason it had before where it had one."""
        results = []
        for uid in sorted(self.open):
            self.reasons.setdefault(uid, (None, True, text))
            results.append(self._fail(uid))
        return results

    def _stored(self, outcome: RelayOutcome) -> InstanceResult:
        uid = outcome.sop_instance_uid
        if uid not in self.expected:
            self._add(outcome)
        self._hold(uid)
        self.losses = 0
        return InstanceResult(
            study_id=self.id,
            sop_instance_uid=uid,
            state=InstanceState.ACKED,
            transfer_syntax_uid=outcome.transfer_syntax_uid,
            length=outcome.length,
            sha256=outcome.sha256,
            content=outcome.content,
            status=outcome.status,
            comment=outcome.error_comment or None,
        )

    def _add(self, outcome: RelayOutcome) -> None:
        instance = ExpectedInstance(
            sop_instance_uid=outcome.sop_instance_uid,
            sop_class_uid=outcome.sop_class_uid,
            series_instance_uid="",
            transfer_syntax_uid=outcome.transfer_syntax_uid,
        )
        self.expected[outcome.sop_instance_uid] = instance
        self.extra.append(instance)

    def _hold(self, uid: str) -> None:
        self.open.discard(uid)
        self.unknown.discard(uid)
        self.failed.discard(uid)
        self.held.add(uid)

    def _fail(self, uid: str, length: int | None = None) -> InstanceResult:
        self.open.discard(uid)
        self.unknown.discard(uid)
        self.failed.add(uid)
        status, retryable, text = self.reasons[uid]
        return InstanceResult(
            study_id=self.id,
            sop_instance_uid=uid,
            state=InstanceState.FAILED,
            length=length or None,
            status=status,
            retryable=retryable,
            comment=text,
        )


def _kind(instance: ExpectedInstance) -> str:
    """Class and syntax in words."""
    syntax = instance.transfer_syntax_uid
    within = f" in {uids.name(syntax)}" if syntax else ""
    return (uids.name(instance.sop_class_uid) or "an unnamed SOP class") + within


def another_object(outcome: RelayOutcome) -> Exclusion:
    """What is told of an object that came under the UID of another, which has the instance's row."""
    if outcome.status is not None:
        said = f"the destination answered {describe(outcome.status, 'C-STORE')}"
        if outcome.error_comment:
            said += f": {outcome.error_comment}"
    else:
        said = str(outcome.error or "no answer")
    digest = f"sha256 {outcome.sha256.hex()[:16]}" if outcome.sha256 else "not whole"
    return Exclusion(
        locator=f"{outcome.sop_instance_uid} ({digest})",
        kind="conflict",
        reason=f"another object under this SOP Instance UID: {said}",
    )


def unsent_object(sop_instance_uid: str) -> Exclusion:
    """The same of one that the source had, and failed to send."""
    return Exclusion(
        locator=f"{sop_instance_uid} (not sent)",
        kind="conflict",
        reason="the source failed to send another object under this SOP Instance UID",
    )


def make_work(
    study_id: int,
    study_instance_uid: str,
    rows: Iterable[InstanceRow],
    policy: RetryPolicy,
) -> StudyWork:
    """The work that the ledger's rows leave: what has no final state, and what failed before."""
    expected: dict[str, ExpectedInstance] = {}
    open_uids: set[str] = set()
    held: set[str] = set()
    for row in rows:
        uid = row.expected.sop_instance_uid
        if row.state in HELD_STATES:
            held.add(uid)
        elif row.state not in FINAL_STATES:
            open_uids.add(uid)
        else:
            continue  # excluded, or for a person to decide
        expected[uid] = row.expected
    return StudyWork(
        id=study_id,
        study_instance_uid=study_instance_uid,
        expected=expected,
        policy=policy,
        open=open_uids,
        held=held,
    )
