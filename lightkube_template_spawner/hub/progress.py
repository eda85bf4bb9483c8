"""What the spawn page shows of one start: kept, so that several and late readers get all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

_KEPT = 500
_ALMOST = 95


class ProgressLog:
    """Messages of one start, in order, with a percentage that only grows."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self._percent = 0
        self.closed = False
        self._change = asyncio.Event()

    def tell(self, message: str, percent: int) -> None:
        """Add a message; each one beyond ``percent`` comes a little closer to the end."""
        if self.closed or len(self._entries) >= _KEPT:
            return
        advance = self._percent + max(1, (_ALMOST - self._percent) // 10)
        self._percent = min(_ALMOST, max(percent, advance))
        self._entries.append({"progress": self._percent, "message": message})
        self._wake()

    def close(self) -> None:
        """The start has ended, one way or the other; readers finish."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        event, self._change = self._change, asyncio.Event()
        event.set()

    async def read(self) -> AsyncIterator[dict[str, Any]]:
        """All messages from the first on, then the new ones as they come.

        No cancel scope spans a ``yield``: the hub runs each step in a task of its own.
        """
        position = 0
        while True:
            event = self._change
            while position < len(self._entries):
                yield self._entries[position]
                position += 1
            if self.closed:
                return
            await event.wait()
