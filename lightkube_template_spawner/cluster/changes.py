"""Who waits for what: told of each change of one owner's objects, instead of looking again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Changes:
    """Tells whoever waits for one owner's objects that one of them changed."""

    def __init__(self) -> None:
        self._callbacks: dict[str, set[Callable[[], None]]] = {}

    def subscribe(self, owner: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after every change of this owner's objects; returns the way out."""
        self._callbacks.setdefault(owner, set()).add(callback)

        def unsubscribe() -> None:
            callbacks = self._callbacks.get(owner, set())
            callbacks.discard(callback)
            if not callbacks:
                self._callbacks.pop(owner, None)

        return unsubscribe

    def notify(self, owner: str) -> None:
        """Something of this owner changed."""
        for callback in tuple(self._callbacks.get(owner, ())):
            callback()

    async def wait_until(self, owner: str, predicate: Callable[[], T | None]) -> T:
        """Wait until ``predicate`` gives something else than None; it reads stores only."""
        change = asyncio.Event()
        unsubscribe = self.subscribe(owner, change.set)
        try:
            while (value := predicate()) is None:
                await change.wait()
                change.clear()
            return value
        finally:
            unsubscribe()
