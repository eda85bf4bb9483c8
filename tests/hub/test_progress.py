"""Everybody who watches a start sees all of it, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.hub.progress import ProgressLog


async def read(log: ProgressLog) -> list[dict[str, Any]]:
    return [entry async for entry in log.read()]


def messages(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["message"] for entry in entries]


async def test_a_late_reader_gets_everything() -> None:
    log = ProgressLog()
    log.tell("one", 10)
    log.tell("two", 20)
    log.close()
    assert await read(log) == [
        {"progress": 10, "message": "one"},
        {"progress": 20, "message": "two"},
    ]
    assert messages(await read(log)) == ["one", "two"]


async def test_several_readers_get_everything_as_it_comes() -> None:
    log = ProgressLog()
    log.tell("before", 1)
    readers = [asyncio.create_task(read(log)) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(5):
        log.tell(str(number), 10)
        if number % 2:
            await asyncio.sleep(0)
    late = asyncio.create_task(read(log))
    log.close()
    expected = ["before", *"01234"]
    for reader in [*readers, late]:
        assert messages(await asyncio.wait_for(reader, 5)) == expected


async def test_a_slow_reader_misses_nothing() -> None:
    log = ProgressLog()
    log.tell("one", 1)
    seen = []
    async for entry in log.read():
        seen.append(entry["message"])
        if entry["message"] == "one":
            log.tell("two", 2)
            await asyncio.sleep(0)
            log.tell("three", 3)
            log.close()
    assert seen == ["one", "two", "three"]


async def test_each_step_may_run_in_a_task_of_its_own() -> None:
    log = ProgressLog()
    steps = log.read().__aiter__()
    waiting = asyncio.create_task(anext_of(steps))
    await asyncio.sleep(0)
    assert not waiting.done()
    log.tell("one", 1)
    assert (await waiting)["message"] == "one"
    last = asyncio.create_task(anext_of(steps))
    await asyncio.sleep(0)
    log.close()
    assert await last is None


async def anext_of(steps: AsyncIterator[dict[str, Any]]) -> Any:
    return await anext(steps, None)


async def test_a_reader_that_leaves_disturbs_nobody() -> None:
    log = ProgressLog()
    leaver = asyncio.create_task(read(log))
    stayer = asyncio.create_task(read(log))
    await asyncio.sleep(0)
    leaver.cancel()
    log.tell("one", 1)
    log.close()
    assert messages(await stayer) == ["one"]


async def test_after_the_end_nothing_is_added() -> None:
    log = ProgressLog()
    log.close()
    log.close()
    log.tell("late", 50)
    assert await read(log) == []


async def test_a_log_does_not_grow_for_ever() -> None:
    log = ProgressLog()
    for number in range(2000):
        log.tell(str(number), 50)
    log.close()
    assert len(await read(log)) == 500


@settings(deadline=None, max_examples=60, derandomize=True)
@given(told=st.lists(st.integers(-10, 200), max_size=60))
def test_the_percentage_only_grows_and_never_says_done(told: list[int]) -> None:
    log = ProgressLog()
    for percent in told:
        log.tell("x", percent)
    log.close()
    shown = [entry["progress"] for entry in asyncio.run(read(log))]
    assert len(shown) == len(told)
    assert all(0 < percent <= 95 for percent in shown)
    assert all(a < b or a == b == 95 for a, b in pairwise(shown))
