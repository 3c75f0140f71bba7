"""Cancels an operation at its Nth step, for N = 1, 2, 3 ... until it completes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

STEPS_MAX = 20_000


class CancelAt(trio.abc.Instrument):
    """Cancels `scope` before the Nth step that the armed task and those it started take together."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.count = 0
        self.scope = trio.CancelScope()
        self._tasks: set[trio.lowlevel.Task] = set()

    @property
    def cancelled(self) -> bool:
        """It came to the step."""
        return self.count >= self.step

    def arm(self) -> None:
        """The calling task is the one that is cancelled."""
        self._tasks.add(trio.lowlevel.current_task())

    def disarm(self) -> None:
        self._tasks.clear()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.parent_nursery is not None and task.parent_nursery.parent_task in self._tasks:
            self._tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task in self._tasks:
            self.count += 1
            if self.count == self.step:
                self.scope.cancel()


async def cancelled_at(step: int, operation: Callable[[], Awaitable[object]]) -> bool:
    """Runs `operation` and cancels it at that step; True where it completed before."""
    cancel = CancelAt(step)
    trio.lowlevel.add_instrument(cancel)
    try:
        cancel.arm()
        with cancel.scope:
            await operation()
        cancel.disarm()
    finally:
        trio.lowlevel.remove_instrument(cancel)
    return not cancel.cancelled


def steps(dense: int, stride: int) -> Iterator[int]:
    """Each step up to `dense`, then every `stride`-th: enough to meet every place of a loop."""
    yield from range(1, dense)
    yield from range(dense, STEPS_MAX, stride)


def descriptors() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))
