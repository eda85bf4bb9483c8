"""Many at once: results in order, all finished, one plain error."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from lightkube_template_spawner.concurrency import gather


async def test_results_are_in_the_order_of_the_items_not_of_the_answers() -> None:
    async def later(item: int) -> int:
        for _ in range(5 - item):
            await anyio.lowlevel.checkpoint()
        return item * 10

    assert await gather(later, iter(range(5))) == [0, 10, 20, 30, 40]


async def test_nothing_to_do_is_no_result() -> None:
    async def never(item: int) -> int:
        raise AssertionError(item)

    assert await gather(never, []) == []


async def test_all_run_side_by_side() -> None:
    arrived = 0
    everybody = anyio.Event()

    async def meet(item: int) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 3:
            everybody.set()
        await everybody.wait()

    with anyio.fail_after(5):
        await gather(meet, range(3))


async def test_the_others_finish_then_the_first_error_is_raised_as_it_is() -> None:
    finished = []

    async def one(item: int) -> None:
        if item == 1:
            await anyio.lowlevel.checkpoint()
            raise ValueError("one")
        if item == 2:
            raise KeyError("two")
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        finished.append(item)

    with pytest.raises(ValueError, match=r"^one$"):
        await gather(one, range(5))
    assert finished == [0, 3, 4]


async def test_equal_items_are_done_each() -> None:
    done = []

    async def one(item: str) -> str:
        done.append(item)
        return item

    assert await gather(one, ["a", "a"]) == ["a", "a"]
    assert done == ["a", "a"]


async def test_a_cancel_ends_all_at_once() -> None:
    ended = []

    async def wait(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(item)

    with anyio.move_on_after(0.01) as scope:
        await gather(wait, range(3))
    assert scope.cancelled_caught
    assert sorted(ended) == [0, 1, 2]
