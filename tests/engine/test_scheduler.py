"""The queue, the stages and the stop of the engine's scheduler."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dcmhaul.engine.scheduler import StopRequest, WorkQueue, flat_nursery, run_stage


async def feed(queue: WorkQueue[int], count: int) -> None:
    for number in range(count):
        if not await queue.put(number):
            return


async def test_every_item_is_worked_on_once_and_never_more_than_the_queue_holds_waits() -> None:
    queue: WorkQueue[int] = WorkQueue(3)
    done: list[int] = []
    waiting: list[int] = []

    async def work(queue: WorkQueue[int]) -> None:
        while (item := await queue.take()) is not None:
            waiting.append(queue.waiting)
            await trio.lowlevel.checkpoint()
            done.append(item)
            queue.settle()

    await run_stage(queue, lambda q: feed(q, 50), work, workers=4, stop=StopRequest())
    assert sorted(done) == list(range(50))
    assert max(waiting) <= 3
    assert queue.exhausted


async def test_what_is_put_back_comes_again_although_the_feeder_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue: WorkQueue[int] = WorkQueue(1)
    tries: list[tuple[int, float]] = []

    async def work(queue: WorkQueue[int]) -> None:
        while (item := await queue.take()) is not None:
            tries.append((item, trio.current_time()))
            if len(tries) < 4:
                queue.put_back(item, delay_seconds=10)
            else:
                queue.settle()

    start = trio.current_time()
    await run_stage(queue, lambda q: feed(q, 1), work, workers=3, stop=StopRequest())
    assert [item for item, _ in tries] == [0, 0, 0, 0]
    assert [round(at - start) for _, at in tries] == [0, 10, 20, 30]


async def test_a_stop_lets_the_taken_items_finish() -> None:
    queue: WorkQueue[int] = WorkQueue(2)
    stop = StopRequest()
    done: list[int] = []

    async def work(queue: WorkQueue[int]) -> None:
        while (item := await queue.take()) is not None:
            if item == 5:
                stop.request()
            await trio.lowlevel.checkpoint()
            done.append(item)
            queue.settle()

    await run_stage(queue, lambda q: feed(q, 1000), work, workers=2, stop=stop)
    assert 5 in done
    assert len(done) < 10
    assert queue.outstanding == 0


async def test_a_second_stop_cancels() -> None:
    stop = StopRequest()
    heard: list[bool] = []
    stop.on_request(lambda: heard.append(True))
    with stop.cancel_scope:
        stop.request()
        await trio.lowlevel.checkpoint()
        assert heard == [True]
        stop.request()
        await trio.sleep_forever()
    assert stop.cancel_scope.cancelled_caught
    assert heard == [True]


async def test_a_failing_worker_ends_the_stage_with_its_own_error() -> None:
    queue: WorkQueue[int] = WorkQueue(2)

    async def work(queue: WorkQueue[int]) -> None:
        if await queue.take() == 1:
            raise ValueError("one")
        await trio.sleep_forever()

    with pytest.raises(ValueError, match="one"):
        await run_stage(queue, lambda q: feed(q, 10), work, workers=3, stop=StopRequest())


async def test_a_take_that_is_given_up_loses_nothing() -> None:
    queue: WorkQueue[int] = WorkQueue(1)
    with trio.move_on_after(0):
        await queue.take()
    await queue.put(1)
    assert queue.take_nowait() == 1
    assert queue.take_nowait() is None


async def test_a_closed_queue_refuses_its_feeder() -> None:
    queue: WorkQueue[int] = WorkQueue(1)
    assert await queue.put(1)
    async with trio.open_nursery() as nursery:
        answers: list[bool] = []

        async def put() -> None:
            answers.append(await queue.put(2))

        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        queue.close()
    assert answers == [False]
    assert await queue.take() is None


async def test_one_error_comes_out_as_itself() -> None:
    async def fail(text: str) -> None:
        raise OSError(text)

    with pytest.raises(OSError, match="first"):
        async with flat_nursery() as nursery:
            nursery.start_soon(fail, "first")
            await trio.sleep_forever()


async def test_what_a_queue_was_filled_with_is_all_there_will_be(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue: WorkQueue[int] = WorkQueue(1)
    queue.fill(range(3))
    assert await queue.wait()
    assert [queue.take_nowait(), queue.take_nowait()] == [0, 1]
    queue.put_back(0, delay_seconds=5)
    queue.settle()
    assert (queue.waiting, queue.take_nowait(), queue.take_nowait()) == (2, 2, None)
    started = trio.current_time()
    assert await queue.wait()
    assert trio.current_time() - started == pytest.approx(5)
    assert queue.take_nowait() == 0
    queue.put_back(2, delay_seconds=60)
    assert queue.drain() == [2]
    queue.settle()
    assert not await queue.wait()


async def test_a_wait_ends_when_the_queue_is_closed() -> None:
    queue: WorkQueue[int] = WorkQueue(1)
    answers: list[bool] = []

    async def wait() -> None:
        answers.append(await queue.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        queue.close()
    assert answers == [False]
