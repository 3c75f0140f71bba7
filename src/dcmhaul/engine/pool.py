"""Associations to one peer: opened when there is work, opened again after a loss, within bounds.

An association lives in the task that uses it, so a pool hands out context managers, never open
associations. What to do next is decided by pure functions; the pool acts.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from dcmhaul.errors import (
    AssociationAborted,
    AssociationRejected,
    ConnectionDropped,
    DcmhaulError,
    NoAcceptedContext,
    RemoteProtocolError,
    TransportError,
)
from dcmhaul.net import open_association
from dcmhaul.net.types import NullObserver, Observer, SocketOptions, Timeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from dcmhaul.net import Association
    from dcmhaul.protocol.negotiation import AssociationRequest

T = TypeVar("T")

__all__ = [
    "ASSOCIATION_ERRORS",
    "AssociationPool",
    "GiveUp",
    "Health",
    "Open",
    "PoolExhausted",
    "PoolPolicy",
    "SharedAssociations",
    "Wait",
    "WindowTrial",
    "after_break",
    "after_failure",
    "after_work",
    "next_step",
]

_log = logging.getLogger(__name__)

_CALL_ATTEMPTS = 2
# What has answered so many windows' worth of requests bears the window: later breaks have other causes.
EARLY_WINDOWS = 4
EARLY_BREAKS_MAX = 2

ASSOCIATION_ERRORS = (
    TransportError,
    AssociationRejected,
    AssociationAborted,
    RemoteProtocolError,
    NoAcceptedContext,
)
"""What may end an association through no fault of the item that was being worked on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """size: associations at once. failures_max: consecutive failures after which the peer is given
    up, as it is at once where it was never reached. patience_seconds: not while it can be tried again
    within so long after the first of them.
    """

    size: int = 4
    failures_max: int = 5
    patience_seconds: float = 0.0
    delay_seconds: float = 0.25
    delay_max_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is known of the peer: a value, so that each decision can be tested on its own."""

    limit: int
    """How many associations the peer seems to bear: the size, or less after a refusal."""
    failures: int = 0
    """Consecutive: reset by work that was done, not by an association that merely opened."""
    failing_since: float = 0.0
    """Of the first of them."""
    retry_at: float = 0.0
    reached: bool = False
    """True once an association was opened: a peer that was never reached is given up at once."""
    error: DcmhaulError | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Open:
    """An association may be opened now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing before `seconds` have passed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The peer is not tried again in this run."""

    error: DcmhaulError


class PoolExhausted(TransportError):
    """The peer was given up; `cause` is what it did last."""

    def __init__(self, cause: DcmhaulError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def next_step(health: Health, now: float, policy: PoolPolicy) -> Open | Wait | GiveUp:
    """What the next one that wants an association does."""
    if health.error is not None:
        error = health.error
        permanent = isinstance(error, NoAcceptedContext) or (
            isinstance(error, AssociationRejected) and not error.transient
        )
        hopeless = not health.reached or health.failures >= policy.failures_max
        again_at = max(now, health.retry_at)
        patient = again_at - health.failing_since < policy.patience_seconds
        if permanent or (hopeless and not patient):
            return GiveUp(error)
    return Wait(health.retry_at - now) if health.retry_at > now else Open()


def after_failure(
    health: Health, error: DcmhaulError, others_open: int, now: float, policy: PoolPolicy
) -> Health:
    """The health after an association failed while `others_open` more were open.

    A transient rejection while others are open says how many the peer bears (PS3.8 §9.3.4, result
    2); it is no failure of the peer.
    """
    if isinstance(error, AssociationRejected) and error.transient and others_open > 0:
        return replace(health, limit=max(1, min(health.limit, others_open)))
    failures = health.failures + 1
    delay = min(policy.delay_seconds * 2 ** min(failures - 1, 16), policy.delay_max_seconds)
    since = health.failing_since if health.failures else now
    return replace(
        health, failures=failures, failing_since=since, retry_at=now + delay, error=error
    )


def after_work(health: Health) -> Health:
    """The health after an association did something useful."""
    if not health.failures and health.error is None:
        return health
    return replace(health, failures=0, retry_at=0.0, error=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTrial:
    """How the peer has borne several outstanding requests so far.

    early_breaks: breaks in succession soon after the association had opened; last_at: when the last was.
    """

    early_breaks: int = 0
    last_at: float = -1.0


def after_break(
    trial: WindowTrial, *, outstanding: int, early: bool, opened_at: float, now: float
) -> WindowTrial:
    """The trial after an association with a window broke while `outstanding` requests had no answer.

    early: after few answers. Breaks at one time have one cause, and one may be a restart of the peer: only
    an association that was opened after the last break, and breaks early too, says more.
    """
    if outstanding < 2 or opened_at < trial.last_at:
        return trial
    if not early:
        return WindowTrial()
    return WindowTrial(early_breaks=trial.early_breaks + 1, last_at=now)


class AssociationPool:
    """At most `policy.size` associations to one peer; shared by the workers of one run.

    Invariant: `open` is the number of `association()` blocks that are entered; it never exceeds the
    limit that `health` allows at the moment of opening.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        policy: PoolPolicy,
        timeouts: Timeouts | None = None,
        options: SocketOptions | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.policy = policy
        self.health = Health(limit=policy.size)
        self.open = 0
        self.window_dropped = False
        """The peer cannot bear an asynchronous operations window, and is not asked for one any more."""
        self._window_trial = WindowTrial()
        self._waiting = 0
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._options = options if options is not None else SocketOptions()
        self._observer = observer if observer is not None else NullObserver()
        self._changed = trio.Event()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @property
    def contended(self) -> bool:
        """True while somebody waits for an association that the peer does not bear beside the others."""
        return self._waiting > 0

    def worked(self) -> None:
        """To be called when an association did something useful."""
        self.health = after_work(self.health)

    def failed(self, error: DcmhaulError) -> None:
        """To be called when an association of this pool failed and the error is not raised through
        it.
        """
        self.health = after_failure(
            self.health, error, max(0, self.open - 1), trio.current_time(), self.policy
        )
        self._wake()

    async def _turn(self) -> None:
        """Returns when an association may be opened; PoolExhausted where none may be any more."""
        while True:
            step = next_step(self.health, trio.current_time(), self.policy)
            if isinstance(step, GiveUp):
                raise PoolExhausted(step.error) from step.error
            if isinstance(step, Wait):
                await trio.sleep(step.seconds)
            elif self.open >= self.health.limit:
                self._waiting += 1
                try:
                    await self._changed.wait()
                finally:
                    self._waiting -= 1
            else:
                return

    @asynccontextmanager
    async def association(self, request: AssociationRequest) -> AsyncIterator[Association]:
        """One association for the block; waits while the peer bears no more.

        A clean exit releases it, an exception or a cancellation aborts it. An error of the
        association is counted and raised. PoolExhausted: the peer was given up.
        """
        await self._turn()
        self.open += 1
        try:
            async with self._opened(request) as association:
                if not self.health.reached:
                    self.health = replace(self.health, reached=True)
                opened_at = trio.current_time()
                try:
                    yield association
                except ASSOCIATION_ERRORS:
                    self._judge_window(association, opened_at)
                    raise
        except ASSOCIATION_ERRORS as error:
            self.failed(error)
            raise
        finally:
            self.open -= 1
            self._wake()

    def _judge_window(self, association: Association, opened_at: float) -> None:
        """After a break: whether it was the window that the peer did not bear."""
        window = association.agreement.window_invoked
        ids = association.message_ids
        if window > 1 and not self.window_dropped:
            self._window_trial = after_break(
                self._window_trial,
                outstanding=len(ids),
                early=ids.returned < EARLY_WINDOWS * window,
                opened_at=opened_at,
                now=trio.current_time(),
            )
            if self._window_trial.early_breaks >= EARLY_BREAKS_MAX:
                self.window_dropped = True
                _log.warning(
                    "%s: associations break while several requests are outstanding; from now on one "
                    "at a time is sent",
                    association.peer,
                )

    @asynccontextmanager
    async def _opened(self, request: AssociationRequest) -> AsyncIterator[Association]:
        """Opens it; without the window item where the peer cannot bear that.

        Some drop the connection at the item (seen at GE), others when they get what they had agreed to.
        """
        answered = False
        if request.window > 1 and not self.window_dropped:
            try:
                async with self._open(request) as association:
                    answered = True
                    yield association
                    return
            except ConnectionDropped:
                if answered:
                    raise
        async with self._open(replace(request, window=1)) as association:
            self.window_dropped = self.window_dropped or request.window > 1
            yield association

    def _open(self, request: AssociationRequest) -> AbstractAsyncContextManager[Association]:
        return open_association(
            self.host,
            self.port,
            request,
            timeouts=self._timeouts,
            options=self._options,
            observer=self._observer,
        )


class SharedAssociations:
    """Runs short operations (queries) of any task on a few associations.

    Each association is opened when an operation waits for it, and released after `idle_seconds` without
    one. An operation whose association was lost runs once more on a new one.
    """

    def __init__(
        self, pool: AssociationPool, request: AssociationRequest, *, idle_seconds: float = 5.0
    ) -> None:
        self._pool = pool
        self._request = request
        self._idle_seconds = idle_seconds
        self._send, self._receive = trio.open_memory_channel[_Call](0)

    async def serve(self) -> None:
        """Serves until `finish`, or until it is cancelled; as many associations as the pool is large."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._pool.policy.size):
                nursery.start_soon(self._serve_one)

    async def call(self, operation: Callable[[Association], Awaitable[T]]) -> T:
        """The result of `operation(association)`; raises what it raised, or PoolExhausted."""
        call = _Call(operation)
        try:
            await self._send.send(call)
            await call.done.wait()
        finally:
            call.abandoned = True
        if call.error is not None:
            raise call.error
        return cast("T", call.result)

    def finish(self) -> None:
        """There are no more calls: associations that are idle are released."""
        self._send.close()

    async def _serve_one(self) -> None:
        call = await self._next()
        while call is not None:
            try:
                async with self._pool.association(self._request) as association:
                    while call is not None:
                        await self._run(call, association)
                        call = None
                        with trio.move_on_after(self._idle_seconds):
                            call = await self._next()
            except ASSOCIATION_ERRORS as error:
                if call is not None and call.failed(error):
                    call = None
            if call is None:
                call = await self._next()

    async def _next(self) -> _Call | None:
        """What somebody waits for; None once there are no more calls."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return None

    async def _run(self, call: _Call, association: Association) -> None:
        """Raises only what ends the association; then the call is not done."""
        if call.abandoned:
            return
        try:
            call.result = await call.operation(association)
        except ASSOCIATION_ERRORS:
            raise
        except DcmhaulError as error:
            call.error = error
        call.done.set()
        self._pool.worked()


class _Call:
    """One operation that some task waits for."""

    def __init__(self, operation: Callable[[Association], Awaitable[Any]]) -> None:
        self.operation = operation
        self.done = trio.Event()
        self.result: Any = None
        self.error: DcmhaulError | None = None
        self.abandoned = False
        self.attempts = 0

    def failed(self, error: DcmhaulError) -> bool:
        """The association failed: True where the caller was told, False where it is tried again."""
        self.attempts += 1
        if isinstance(error, PoolExhausted) and isinstance(error.cause, NoAcceptedContext):
            error = error.cause  # what the peer cannot do is no matter of reaching it
        final = isinstance(error, (PoolExhausted, NoAcceptedContext, AssociationRejected))
        if not final and self.attempts < _CALL_ATTEMPTS:
            return False
        self.error = error
        self.done.set()
        return True
