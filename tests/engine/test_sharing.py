"""Slots shared by owners that want more than there are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio
import trio.testing

from dcmhaul.engine.sharing import SLICE_SECONDS, FairShare

if TYPE_CHECKING:
    from dcmhaul.engine.sharing import Slot


class Holders:
    """Tasks that hold a slot each, until they are told to give it back."""

    def __init__(self, share: FairShare, nursery: trio.Nursery) -> None:
        self.share = share
        self.held: Counter[str] = Counter()
        self.slots: dict[str, list[tuple[Slot, trio.Event]]] = {}
        self._nursery = nursery

    async def want(self, owner: str, count: int = 1) -> None:
        for _ in range(count):
            self._nursery.start_soon(self._hold, owner)
            await trio.testing.wait_all_tasks_blocked()

    async def _hold(self, owner: str) -> None:
        async with self.share.slot(owner) as slot:
            self.held[owner] += 1
            done = trio.Event()
            self.slots.setdefault(owner, []).append((slot, done))
            await done.wait()
            self.held[owner] -= 1

    async def give_back(self, owner: str) -> None:
        self.slots[owner].pop(0)[1].set()
        await trio.testing.wait_all_tasks_blocked()

    def wanted(self, owner: str) -> bool:
        return self.slots[owner][0][0].wanted()


async def test_never_more_than_there_are_and_no_slot_stays_free() -> None:
    share = FairShare(3)
    async with trio.open_nursery() as nursery:
        holders = Holders(share, nursery)
        await holders.want("a", 5)
        assert (holders.held["a"], share.open) == (3, 3)
        await holders.give_back("a")
        assert (holders.held["a"], share.open) == (3, 3)
        for _ in range(4):
            await holders.give_back("a")
        assert share.open == 0


async def test_the_next_slot_goes_to_who_has_fewest() -> None:
    share = FairShare(4)
    async with trio.open_nursery() as nursery:
        holders = Holders(share, nursery)
        await holders.want("a", 8)
        await holders.want("b", 4)
        await holders.want("c", 1)
        assert holders.held == Counter(a=4)
        for _ in range(2):
            assert holders.wanted("a")
            await holders.give_back("a")
        assert +holders.held == Counter(a=2, b=1, c=1)
        # b wants more, and a has but one more than b.
        assert not holders.wanted("a")
        await holders.give_back("c")
        assert +holders.held == Counter(a=2, b=2)
        assert not holders.wanted("a")
        nursery.cancel_scope.cancel()
    assert share.open == 0


async def test_one_slot_goes_round(autojump_clock: trio.testing.MockClock) -> None:
    share = FairShare(1)
    async with trio.open_nursery() as nursery:
        holders = Holders(share, nursery)
        await holders.want("a", 1)
        assert not holders.wanted("a")  # nobody waits
        await trio.sleep(10 * SLICE_SECONDS)
        await holders.want("b", 1)
        assert holders.wanted("a")  # long enough
        await holders.want("a", 1)
        await holders.give_back("a")
        assert +holders.held == Counter(b=1)
        assert not holders.wanted("b")
        await trio.sleep(SLICE_SECONDS)
        assert holders.wanted("b")
        await holders.give_back("b")
        assert +holders.held == Counter(a=1)
        await holders.give_back("a")


async def test_what_the_peer_bears_is_forgotten_when_nobody_holds_any() -> None:
    share = FairShare(4)
    async with trio.open_nursery() as nursery:
        holders = Holders(share, nursery)
        await holders.want("a", 4)
        share.bears(2)
        await holders.give_back("a")
        await holders.want("b", 1)
        assert +holders.held == Counter(a=3)
        await holders.give_back("a")
        await holders.give_back("a")
        assert +holders.held == Counter(a=1, b=1)
        await holders.give_back("a")
        await holders.give_back("b")
        share.bears(0)
        await holders.want("a", 4)
        # Nothing was held when it was said, so one is, and the rest waits for that.
        assert +holders.held == Counter(a=1)
        await holders.give_back("a")
        assert +holders.held == Counter(a=3)
        nursery.cancel_scope.cancel()


async def test_who_gives_up_waiting_takes_nothing_away() -> None:
    share = FairShare(1)
    async with trio.open_nursery() as nursery:
        holders = Holders(share, nursery)
        await holders.want("a", 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with share.slot("b"):
                raise AssertionError("there is none")
        await holders.give_back("a")
        await holders.want("c", 1)
        assert +holders.held == Counter(c=1)
        await holders.give_back("c")
