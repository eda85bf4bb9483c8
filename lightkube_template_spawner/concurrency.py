"""Doing one thing to many items side by side, with plain errors instead of exception groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

Item = TypeVar("Item")
Result = TypeVar("Result")


async def gather(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item]
) -> list[Result]:
    """Results in the order of ``items``.

    The others still finish when one fails, so that what was done is known; then the first error is
    raised.
    """
    arguments = list(items)
    results: dict[int, Result] = {}
    errors: dict[int, Exception] = {}

    async def one(index: int, item: Item) -> None:
        try:
            results[index] = await function(item)
        except Exception as error:  # noqa: BLE001 - raised below
            errors[index] = error

    async with anyio.create_task_group() as group:
        for index, item in enumerate(arguments):
            group.start_soon(one, index, item)
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(arguments))]
