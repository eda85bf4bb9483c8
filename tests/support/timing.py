"""A whole hub's pauses in milliseconds, and a test's own wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightkube_template_spawner.cluster.timing import Timing

QUICK = Timing(
    retry=(0.001, 0.001),
    watch=(0.02, 0.08),
    events=(0.01, 0.01),
    linger=0.01,
    confirm=0.01,
    sight=0.02,
)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what has no event of its own."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
