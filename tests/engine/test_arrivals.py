"""Which C-MOVE an instance belongs to, how many are still to come, and how long that is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.engine.arrivals import Arrivals, Delivery
from dcmhaul.objects.instances import (
    BytesInMemory,
    IncomingInstance,
    MoveOriginator,
    StoreRefused,
    StoreReply,
)
from dcmhaul.services.retrieve import RetrieveResponse
from tests.engine.fake_archive import CT, EXPLICIT, make_instance

if TYPE_CHECKING:
    from dcmhaul.net import DatasetSlices
    from tests.engine.fake_archive import FakeInstance

OURS = "OURS"
DONE = RetrieveResponse(status=0x0000)


def incoming(instance: FakeInstance, originator: MoveOriginator | None = None) -> IncomingInstance:
    return IncomingInstance(
        sop_class_uid=CT,
        sop_instance_uid=instance.sop_instance_uid,
        transfer_syntax_uid=EXPLICIT,
        calling_ae_title="PEER",
        called_ae_title=OURS,
        peer="127.0.0.1:1",
        move_originator=originator,
    )


async def arrive(
    arrivals: Arrivals, instance: FakeInstance, originator: MoveOriginator | None = None
) -> None:
    sink = arrivals(incoming(instance, originator))
    await sink.write(BytesInMemory(instance.dataset))
    await sink.commit()


def uids(*instances: FakeInstance) -> frozenset[str]:
    return frozenset(i.sop_instance_uid for i in instances)


ONE, TWO = make_instance(1, study="1.2.3.1"), make_instance(1, study="1.2.3.2")


async def test_the_originator_tells_whatever_was_expected() -> None:
    arrivals = Arrivals(None, OURS)
    first, second = arrivals.begin(uids(ONE)), arrivals.begin(uids(TWO))
    await arrive(arrivals, ONE, MoveOriginator(OURS, second.message_id))
    assert (first.arrived, second.arrived) == (set(), set(uids(ONE)))
    assert second.missing == [TWO.sop_instance_uid]


@pytest.mark.parametrize(
    "originator", [None, MoveOriginator("ELSE", 1), MoveOriginator(OURS, 999)], ids=str
)
async def test_without_a_right_originator_the_expected_uids_tell(
    originator: MoveOriginator | None,
) -> None:
    arrivals = Arrivals(None, OURS)
    first, second = arrivals.begin(uids(ONE)), arrivals.begin(uids(TWO))
    await arrive(arrivals, TWO, originator)
    assert (first.arrived, second.arrived) == (set(), set(uids(TWO)))


async def test_the_same_instance_for_two_requests_goes_to_who_lacks_it() -> None:
    arrivals = Arrivals(None, OURS)
    first, second = arrivals.begin(uids(ONE)), arrivals.begin(uids(ONE))
    await arrive(arrivals, ONE)
    await arrive(arrivals, ONE)
    assert first.arrived == second.arrived == set(uids(ONE))


@pytest.mark.parametrize("garbage", [False, True])
async def test_without_either_the_study_tells(garbage: bool) -> None:
    arrivals = Arrivals(None, OURS)
    first = arrivals.begin(studies=["1.2.3.1"])
    second = arrivals.begin(studies=["1.2.3.2"])
    instance: Any = TWO
    if garbage:
        instance = make_instance(1, study="1.2.3.2", size=1)
        object.__setattr__(instance, "dataset", b"\xff" * 64)
    await arrive(arrivals, instance)
    owner = first if garbage else second
    assert owner.arrived == set(uids(TWO))
    assert arrivals.unasked == 0


async def test_what_belongs_to_no_request_is_counted_apart() -> None:
    arrivals = Arrivals(None, OURS)
    delivery = arrivals.begin(uids(ONE))
    await arrive(arrivals, TWO)
    assert (delivery.arrived, arrivals.unasked) == (set(), 1)
    arrivals.end(delivery)
    await arrive(arrivals, ONE, MoveOriginator(OURS, delivery.message_id))
    assert arrivals.unasked == 2


async def test_message_ids_differ_and_come_round() -> None:
    arrivals = Arrivals(None, OURS)
    kept = arrivals.begin()
    arrivals._last = 0xFFFF
    assert arrivals.begin().message_id == kept.message_id + 1


async def test_a_refused_instance_is_no_arrival_until_it_comes_again() -> None:
    replies = [StoreReply(status=0xA700), StoreReply(status=0xB000)]

    class Sink:
        async def write(self, data: DatasetSlices) -> None:
            pass

        async def commit(self) -> StoreReply:
            return replies.pop(0)

        def discard(self) -> None:
            pass

    arrivals = Arrivals(lambda _incoming: Sink(), OURS)
    delivery = arrivals.begin(uids(ONE))
    await arrive(arrivals, ONE)
    assert (delivery.refused, delivery.arrived) == (set(uids(ONE)), set())
    assert delivery.lacking(DONE) == 0
    await arrive(arrivals, ONE)
    assert (delivery.refused, delivery.arrived) == (set(), set(uids(ONE)))


async def test_what_the_folder_does_not_take_is_refused_too() -> None:
    def refuse(_incoming: IncomingInstance) -> Any:
        raise StoreRefused(StoreReply(status=0x0117))

    arrivals = Arrivals(refuse, OURS)
    delivery = arrivals.begin(uids(ONE))
    with pytest.raises(StoreRefused):
        arrivals(incoming(ONE))
    assert delivery.refused == set(uids(ONE))
    assert delivery.receiving == arrivals.receiving == 0


@pytest.mark.parametrize(
    ("expected", "arrived", "refused", "response", "lacking"),
    [
        (4, 4, 0, {}, 0),
        (4, 3, 0, {}, 1),
        (4, 3, 0, {"failed": 1}, 0),
        (4, 1, 0, {"failed_sop_instance_uids": ("1", "2")}, 1),
        (4, 3, 1, {"failed": 1}, 0),  # what we refused is what the peer counts as failed
        (4, 3, 1, {"failed": 0}, 0),
        (4, 4, 0, {"completed": 9}, 0),
        (4, 5, 0, {}, 0),
        (None, 2, 0, {}, None),
        (None, 2, 0, {"completed": 2}, 0),
        (None, 2, 0, {"completed": 3, "warning": 1}, 2),
        (None, 2, 0, {"completed": 1}, 0),
        (None, 2, 1, {"completed": 3}, 0),
        (None, 2, 1, {"completed": 2, "failed": 1}, 0),
    ],
)
async def test_how_many_are_still_to_come(
    expected: int | None, arrived: int, refused: int, response: dict[str, Any], lacking: int | None
) -> None:
    names = None if expected is None else frozenset(f"1.{n}" for n in range(expected))
    delivery = Delivery(1, names, frozenset())
    for n in range(arrived):
        delivery.count(f"1.{n}", 0)
    for n in range(arrived, arrived + refused):
        delivery.count(f"1.{n}", 0xA700)
    assert delivery.lacking(RetrieveResponse(status=0, **response)) == lacking


# -- waiting ------------------------------------------------------------------------------------


async def test_what_is_here_is_not_waited_for(autojump_clock: object) -> None:
    arrivals = Arrivals(None, OURS)
    delivery = arrivals.begin(uids(ONE))
    await arrive(arrivals, ONE)
    started = trio.current_time()
    await delivery.settled(DONE)
    # After a failure, nothing is.
    await arrivals.begin(uids(TWO)).settled(RetrieveResponse(status=0xA702))
    await arrivals.begin(uids(TWO)).settled(RetrieveResponse(status=0xFE00, remaining=1))
    assert trio.current_time() == started


async def test_each_arrival_prolongs_the_wait(autojump_clock: object) -> None:
    arrivals = Arrivals(None, OURS)
    instances = [make_instance(n) for n in range(3)]
    delivery = arrivals.begin(uids(*instances))
    started = trio.current_time()

    async def send() -> None:
        for instance in instances[:2]:
            await trio.sleep(8)
            await arrive(arrivals, instance)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await delivery.settled(DONE, 10)
    assert len(delivery.arrived) == 2
    assert trio.current_time() - started == 26


async def test_a_dataset_on_its_way_prolongs_it_and_may_break_off(autojump_clock: object) -> None:
    arrivals = Arrivals(None, OURS)
    delivery = arrivals.begin()
    started = trio.current_time()

    async def send() -> None:
        sink = arrivals(incoming(ONE))
        for _ in range(5):
            await trio.sleep(8)
            await sink.write(BytesInMemory(b"x"))
        sink.discard()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await delivery.settled(RetrieveResponse(status=0xFE00), 10)
        await arrivals.all_ended(1)
    assert trio.current_time() - started == 40
    assert (delivery.arrived, delivery.refused, delivery.receiving) == (set(), set(), 0)
