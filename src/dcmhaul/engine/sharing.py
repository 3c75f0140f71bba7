"""A number of slots shared by whoever wants them: the next one goes to who holds fewest.

It knows neither associations nor peers; whoever holds a slot asks now and then whether to give it back.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

__all__ = ["FairShare", "Slot"]

SLICE_SECONDS: Final = 2.0
"""For how long a slot is kept while somebody with fewer, yet only one fewer, waits for it."""


class FairShare:
    """At most `size` slots at once, among any number of owners.

    Invariant: nobody waits while a slot is free.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._limit = size
        self._held: Counter[Hashable] = Counter()
        self._waiting: list[_Waiter] = []

    @property
    def open(self) -> int:
        """Slots that are held."""
        return self._held.total()

    def bears(self, count: int) -> None:
        """No more than so many (but one) are to be held; forgotten when none is."""
        self._limit = max(1, min(self._limit, count))

    @asynccontextmanager
    async def slot(self, owner: Hashable) -> AsyncIterator[Slot]:
        """A slot for the block, when there is one."""
        waiter = _Waiter(owner)
        self._waiting.append(waiter)
        self._grant()
        try:
            await waiter.granted.wait()
            yield Slot(self, owner, trio.current_time())
        finally:
            self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        if not waiter.granted.is_set():
            self._waiting.remove(waiter)
            return
        self._held[waiter.owner] -= 1
        if not self._held[waiter.owner]:
            del self._held[waiter.owner]
        if not self._held:
            self._limit = self._size
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.open < self._limit:
            # The first of those with fewest: min keeps the order in which they came.
            waiter = min(self._waiting, key=lambda waiting: self._held[waiting.owner])
            self._waiting.remove(waiter)
            self._held[waiter.owner] += 1
            waiter.granted.set()

    def _wanted(self, slot: Slot) -> bool:
        if not self._waiting:
            return False
        fewest = min(self._held[waiting.owner] for waiting in self._waiting)
        mine = self._held[slot.owner]
        # One fewer for us and one more for them is an even share at once, or only the other way round.
        turn = SLICE_SECONDS if fewest + 1 == mine else 0.0
        return fewest < mine and trio.current_time() - slot.since >= turn


@dataclass(slots=True, eq=False)
class _Waiter:
    owner: Hashable
    granted: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot, held since a moment of trio's clock."""

    share: FairShare
    owner: Hashable
    since: float

    def wanted(self) -> bool:
        """True where somebody waits who should have it, so that it is to be given back soon."""
        return self.share._wanted(self)
