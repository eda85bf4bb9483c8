"""Requests go on until the caller's time is up, in measured steps, and the reason is told."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import anyio
import pytest

from lightkube_template_spawner.cluster.retry import asked_pause, deadline, retry
from lightkube_template_spawner.cluster.timing import Timing
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import (
    ClusterError,
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
)

log = logging.getLogger("test")
DOWN = Unavailable("the API server did not answer: refused")


class Flaky:
    """Fails with the errors given, one a try, the last for ever; None is success."""

    def __init__(self, *errors: ClusterError | None) -> None:
        self.errors = list(errors)
        self.tries: list[float] = []

    async def __call__(self) -> str:
        self.tries.append(anyio.current_time())
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        if error is not None:
            raise error
        return "done"


QUICK = Timing(retry=(0.001, 0.004))


async def test_it_goes_on_for_as_long_as_the_caller_does() -> None:
    flaky = Flaky(*[DOWN] * 40, None)
    with deadline(10):
        assert await retry(flaky, log, QUICK) == "done"
    assert len(flaky.tries) == 41


@pytest.mark.parametrize("kind", [Conflict, Invalid, NotFound, Expired])
async def test_an_answer_ends_it(kind: type[ClusterError]) -> None:
    flaky = Flaky(DOWN, kind("no"))
    with deadline(10), pytest.raises(kind):
        await retry(flaky, log, QUICK)
    assert len(flaky.tries) == 2


async def test_a_server_that_is_back_may_not_know_our_rights_yet() -> None:
    """Seen: for up to a second after its start it answers 403 to accounts with every right."""
    flaky = Flaky(DOWN, *[Forbidden("no")] * 5, None)
    assert await retry(flaky, log, QUICK) == "done"
    flaky = Flaky(DOWN, Forbidden("no"))
    with deadline(10), pytest.raises(Forbidden):
        await retry(flaky, log, replace(QUICK, recovering=0.05))
    assert len(flaky.tries) > 2
    flaky = Flaky(Forbidden("no"))
    with pytest.raises(Forbidden):
        await retry(flaky, log, QUICK)
    assert len(flaky.tries) == 1


async def test_the_last_words_are_told_when_the_time_is_up() -> None:
    with pytest.raises(TimeoutError, match="did not answer: refused"), deadline(0.05):
        await retry(Flaky(Unavailable("first"), DOWN), log, QUICK)


@pytest.mark.parametrize("within_another", [False, True])
async def test_a_request_without_any_answer_is_told(within_another: bool) -> None:
    async def hang() -> None:
        await anyio.sleep_forever()

    async def ask() -> None:
        if within_another:
            with deadline(9):
                await retry(hang, log, QUICK)
        await retry(hang, log, QUICK)

    with pytest.raises(TimeoutError, match="did not answer in time"), deadline(0.05):
        await ask()


async def test_only_what_was_not_answered_is_told() -> None:
    """Side by side, as a start's objects are: one was answered, one refused, one never."""

    async def one(operation: Callable[[], Awaitable[Any]]) -> None:
        await retry(operation, log, QUICK)

    async def refused(operation: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(Conflict):
            await retry(operation, log, QUICK)

    async def ask() -> None:
        with deadline(0.05):
            await gather(one, [Flaky(Unavailable("once"), None)])
            await gather(refused, [Flaky(Unavailable("before"), Conflict("no"))])
            await gather(one, [Flaky(DOWN)])

    with pytest.raises(TimeoutError) as caught:
        await ask()
    assert str(caught.value) == str(DOWN)


async def test_time_that_is_up_for_another_reason_has_no_words() -> None:
    async def ask() -> None:
        with deadline(0.01):
            await retry(Flaky(None), log, QUICK)
            await anyio.sleep_forever()

    with pytest.raises(TimeoutError, match=r"^$"):
        await ask()


async def test_without_a_deadline_it_ends_too() -> None:
    with pytest.raises(Unavailable, match="refused"):
        await retry(Flaky(DOWN), log, replace(QUICK, unbounded=0.05))


async def test_pauses_grow_and_are_never_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty tries are a minute and more; none comes later than four seconds after the last."""
    clock = [0.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(anyio, "sleep", sleep)
    monkeypatch.setattr(anyio, "current_time", lambda: clock[0])
    flaky = Flaky(*[DOWN] * 30, None)
    await retry(flaky, log, Timing(unbounded=1000))
    pauses = [later - earlier for earlier, later in pairwise(flaky.tries)]
    assert 0.25 <= pauses[0] <= 0.5
    assert max(pauses) <= 4
    assert sum(pauses) > 60


@pytest.mark.parametrize(("asked", "least", "most"), [(None, 0, 0), (0, 0, 0), (7, 7, 8.75),
                                                      (3600, 30, 37.5)])  # fmt: skip
def test_a_server_that_says_when_is_obeyed(asked: float | None, least: float, most: float) -> None:
    assert least <= asked_pause(Unavailable("later", retry_after=asked)) <= most
    assert asked_pause(Forbidden("no", retry_after=9)) == 0
    assert asked_pause(None) == 0


# -- answers that get less time -------------------------------------------------------------------

WEBHOOK = Unavailable("failed calling webhook", code=500)


async def test_an_answer_may_be_worth_less_than_the_callers_time() -> None:
    flaky = Flaky(WEBHOOK)
    with pytest.raises(Unavailable, match="webhook"):  # noqa: SIM117
        with deadline(60, lambda said: 0.05 if "webhook" in said else None):
            await retry(flaky, log, QUICK)
    assert len(flaky.tries) > 1


async def test_its_time_begins_with_its_first() -> None:
    flaky = Flaky(*[DOWN] * 40, WEBHOOK, DOWN, WEBHOOK, None)
    with deadline(60, lambda said: 0.04 if "webhook" in said else None):
        assert await retry(flaky, log, QUICK) == "done"


async def test_an_inner_time_keeps_the_outer_limit() -> None:
    with pytest.raises(Unavailable), deadline(60, lambda _: 0.02), deadline(50):
        await retry(Flaky(DOWN), log, QUICK)
    with deadline(60):
        assert await retry(Flaky(DOWN, DOWN, None), log, QUICK) == "done"
