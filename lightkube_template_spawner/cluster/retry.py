"""Going on while the API server gives no usable answer, until the time of whoever waits is up.

``deadline`` sets the time. What the API server last said to requests that were still being repeated
then is the message of its ``TimeoutError``: the user's next page is to tell it.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import anyio

from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.errors import Forbidden, Unavailable

T = TypeVar("T")

_LONGEST_ASKED = 30.0  # a server that says when to come back is obeyed up to this
_SILENT = "the API server did not answer in time"

# For how many seconds an answer is worth another try; None: as long as there is time.
Limit = Callable[[str], float | None]

# Requests under way, each with the last that was said to it.
_words: ContextVar[dict[object, str] | None] = ContextVar("words", default=None)
_limit: ContextVar[Limit] = ContextVar("limit", default=lambda _: None)


@contextmanager
def deadline(seconds: float, limit: Limit | None = None) -> Iterator[None]:
    """Give everything inside so much time, and some answers less.

    Raises:
        TimeoutError: it is up; the message is empty, or what the API server last said.
    """
    outer, inner = _words.get(), dict[object, str]()
    words_token, limit_token = _words.set(inner), _limit.set(limit or _limit.get())
    try:
        with anyio.move_on_after(seconds) as scope:
            yield
    finally:
        _words.reset(words_token)
        _limit.reset(limit_token)
        if outer is not None:
            outer.update(inner)  # the outer time may be the one that was up
    if scope.cancelled_caught:
        raise TimeoutError("; ".join(sorted({*inner.values()})))


async def retry(
    operation: Callable[[], Awaitable[T]], log: logging.Logger, timing: Timing = DEFAULT
) -> T:
    """Repeat an idempotent request until there is a usable answer, or the caller's time is up.

    Raises:
        ClusterError: an answer that another try would not change.
    """
    words = _words.get()
    words = {} if words is None else words
    request = object()
    words[request] = _SILENT  # stays there when we are cancelled
    delay, silence = timing.retry[0], -math.inf
    bounded = anyio.current_effective_deadline() < math.inf
    last = math.inf if bounded else anyio.current_time() + timing.unbounded
    limit_start: float | None = None  # since when the answer is one of those that get less time
    while True:
        try:
            answer = await operation()
        except (Unavailable, Forbidden) as error:
            now, worth = anyio.current_time(), _limit.get()(str(error))
            if isinstance(error, Unavailable):
                silence = now
            elif now - silence < timing.recovering:
                delay = timing.retry[0]
            else:
                del words[request]
                raise
            words[request] = str(error)
            pause = max(asked_pause(error), delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
            limit_start = None if worth is None else limit_start or now
            if now + pause > min(last, (limit_start or last) + (worth or 0.0)):
                del words[request]
                raise
            log.info("Trying again in %.1f s: %s", pause, error)
        except Exception:
            del words[request]
            raise
        else:
            del words[request]
            return answer
        await anyio.sleep(pause)
        delay = min(delay * 2, timing.retry[1])


def asked_pause(error: Exception | None) -> float:
    """The pause that the API server asked for, spread so that not all come back at once; else 0."""
    pause = error.retry_after if isinstance(error, Unavailable) else None
    return min(pause or 0.0, _LONGEST_ASKED) * random.uniform(1, 1.25)  # noqa: S311 - jitter
