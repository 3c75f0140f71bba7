"""Hands work to a fixed number of workers through a bounded queue, and stops them: gently, or at once.

It knows neither associations nor instances. What a worker does with an item, and what a failure
means for it, is the caller's.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from dcmhaul import crash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

__all__ = ["StopRequest", "WorkQueue", "flat_nursery", "run_stage", "unwrapped"]

T = TypeVar("T")


class StopRequest:
    """Asked once: finish what is in flight, start nothing new. Asked twice: stop now.

    `cancel_scope` is entered by the run; the second request cancels it. Safe to call from the
    thread of the event loop only.
    """

    def __init__(self) -> None:
        self.cancel_scope = trio.CancelScope()
        self.event = trio.Event()
        """Set by the first request."""
        self._listeners: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        return self.event.is_set()

    def request(self) -> None:
        """First call: gentle. Second call: cancels."""
        if self.requested:
            self.cancel_scope.cancel()
            return
        self.event.set()
        if crash.armed:
            crash.passed("shutdown.draining")
        for listener in self._listeners:
            listener()

    def on_request(self, listener: Callable[[], None]) -> None:
        """Calls `listener` at the first request, or now where it was made already."""
        if self.requested:
            listener()
        else:
            self._listeners.append(listener)


class WorkQueue(Generic[T]):
    """A bounded queue whose items are settled one by one.

    An item that was taken is either `settle`d or `put_back`; `take` answers None only when the
    feeder is done and nothing is queued, delayed or taken (so a retry is never missed), or after
    `close`.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a queue holds at least one item, not {capacity}")
        self._capacity = capacity
        self._ready: deque[T] = deque()
        self._delayed: list[tuple[float, int, T]] = []
        self._sequence = 0
        self._taken = 0
        self._feeding = True
        self._closed = False
        self._signal = trio.Event()

    @property
    def outstanding(self) -> int:
        """Items that were taken and not yet settled."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Items that nobody has taken yet."""
        return len(self._ready) + len(self._delayed)

    def _wake(self) -> None:
        self._signal.set()
        self._signal = trio.Event()

    async def put(self, item: T) -> bool:
        """Waits for room; False where the queue was closed, so that the feeder ends."""
        await trio.lowlevel.checkpoint()
        while not self._closed and len(self._ready) >= self._capacity:
            await self._signal.wait()
        if self._closed:
            return False
        self._ready.append(item)
        self._wake()
        return True

    def fill(self, items: Iterable[T]) -> None:
        """All the items there will be, whatever the capacity."""
        self._ready.extend(items)
        self.finish_feeding()

    def finish_feeding(self) -> None:
        """The feeder has no more items."""
        self._feeding = False
        self._wake()

    def close(self) -> None:
        """Hands out nothing more; what was taken may still be settled."""
        self._closed = True
        self._wake()

    def settle(self) -> None:
        """One item that was taken is done with."""
        self._taken -= 1
        self._wake()

    def put_back(self, item: T, delay_seconds: float = 0.0) -> None:
        """An item that was taken is to be taken again, not before `delay_seconds` have passed."""
        self._taken -= 1
        if delay_seconds > 0:
            self._sequence += 1
            due = trio.current_time() + delay_seconds
            self._delayed.append((due, self._sequence, item))
            self._delayed.sort()
        else:
            self._ready.appendleft(item)
        self._wake()

    def _promote(self, now: float) -> float | None:
        """Moves due items to the front; returns when the next one is due."""
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.appendleft(self._delayed.pop(0)[2])
        return self._delayed[0][0] if self._delayed else None

    def drain(self) -> list[T]:
        """Hands over all that nobody has taken, delayed items too; they are not to be settled."""
        waiting = [*self._ready, *(item for _, _, item in self._delayed)]
        self._ready.clear()
        self._delayed.clear()
        self._wake()
        return waiting

    def take_nowait(self) -> T | None:
        """An item that is ready now, or None."""
        self._promote(trio.current_time())
        if self._closed or not self._ready:
            return None
        self._taken += 1
        item = self._ready.popleft()
        self._wake()
        return item

    @property
    def exhausted(self) -> bool:
        """True where `take` would answer None."""
        return self._closed or (
            not self._feeding and not self._ready and not self._delayed and self._taken == 0
        )

    async def take(self) -> T | None:
        """The next item, or None when there will never be one."""
        while await self.wait():
            if (item := self.take_nowait()) is not None:
                return item
        return None

    async def wait(self) -> bool:
        """True as soon as an item may be taken; False when there will never be one."""
        await trio.lowlevel.checkpoint()
        while not self.exhausted:
            due = self._promote(trio.current_time())
            if self._ready:
                return True
            with trio.move_on_at(due if due is not None else float("inf")):
                await self._signal.wait()
        return False


async def run_stage(
    queue: WorkQueue[T],
    feed: Callable[[WorkQueue[T]], Awaitable[None]],
    work: Callable[[WorkQueue[T]], Awaitable[None]],
    *,
    workers: int,
    stop: StopRequest,
) -> None:
    """Feeds `queue` and runs `workers` times `work` on it until it is exhausted or a stop is asked for.

    The first exception of a worker or of the feeder cancels the others and is raised.
    """
    stop.on_request(queue.close)

    async def feeder() -> None:
        try:
            await feed(queue)
        finally:
            queue.finish_feeding()

    async with flat_nursery() as nursery:
        nursery.start_soon(feeder)
        for _ in range(workers):
            nursery.start_soon(work, queue)


def unwrapped(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception that a group stands for: cancellations that it caused aside."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    real = [error for error in leaves if not isinstance(error, trio.Cancelled)]
    for error in real:
        # Our own bugs and Ctrl-C come before what the network did.
        if not isinstance(error, Exception):
            return error
    return real[0] if real else group


@asynccontextmanager
async def flat_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose failure is the first exception itself, not a group of one."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error = unwrapped(group)
        if error is group:
            raise
        raise error from error.__cause__
