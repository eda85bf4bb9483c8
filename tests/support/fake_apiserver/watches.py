"""Watches: streams of what the watch log says, and how a test ends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from copy import deepcopy
from dataclasses import dataclass, field

import httpx2

from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.kinds import Served
from tests.support.fake_apiserver.listing import shown
from tests.support.fake_apiserver.messages import Obj, Seen, expired
from tests.support.fake_apiserver.selectors import selects
from tests.support.fake_apiserver.storage import Change, Storage


@dataclass
class Watch:
    """An open watch: ``end`` it cleanly, with raw bytes first, or with an error."""

    seen: Seen
    served: Served
    namespace: str
    version: int  # the last one that it has told
    fate: list[bytes | Exception | None] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, *fate: bytes | Exception | None) -> None:
        self.fate = [*fate]
        self.wake.set()

    def end(self, *fate: bytes | Exception) -> None:
        self.send(*fate, None)

    def event(self, change: Change) -> bytes | None:
        """What it tells of a change, if anything."""
        if change.resource != self.served.resource:
            return None
        if self.namespace not in ("", change.object["metadata"].get("namespace", "")):
            return None
        selector = self.seen.query.get("labelSelector", "")
        matched = change.before is not None and selects(selector, change.before)
        matches = change.type != "DELETED" and selects(selector, change.object)
        if not matched and not matches:
            return None
        item = change.object
        if not matches and change.type != "DELETED":
            # A label went: told as a deletion, in the last state that still matched.
            assert change.before is not None
            item = deepcopy(change.before)
            item["metadata"]["resourceVersion"] = str(change.version)
        kind = "DELETED" if not matches else "MODIFIED" if matched else "ADDED"
        return _line(kind, shown(item, partial=self.seen.partial))


class Watches:
    """``open`` are those whose client is there."""

    def __init__(self, storage: Storage, behaviour: Behaviour) -> None:
        self._storage = storage
        self._behaviour = behaviour
        self.open: list[Watch] = []
        storage.listeners.append(self._wake)

    def start(self, served: Served, namespace: str, seen: Seen) -> httpx2.Response:
        watch = Watch(seen, served, namespace, int(seen.query["resourceVersion"]))
        if watch.version < self._storage.compacted:
            refusal = expired("too old resource version")
            if self._behaviour.expired_over_http:
                raise refusal
            watch.end(_line("ERROR", refusal.status))
        headers = {"Content-Type": "application/json"}
        return httpx2.Response(200, stream=_Stream(self._follow(watch)), headers=headers)

    def bookmark(self) -> None:
        """Send a bookmark to every watch that asked for them."""
        for watch in self.open:
            if watch.seen.query.get("allowWatchBookmarks"):
                watch.send(_line("BOOKMARK", {
                    "kind": watch.served.kind,
                    "apiVersion": watch.served.api_version,
                    "metadata": {
                        "resourceVersion": str(self._storage.version),
                        "creationTimestamp": None,
                    },
                }))  # fmt: skip

    def _wake(self, change: Change) -> None:
        for watch in self.open:
            watch.wake.set()

    async def _follow(self, watch: Watch) -> AsyncIterator[bytes]:
        self.open.append(watch)
        try:
            while True:
                fate, watch.fate = watch.fate, []
                for step in fate:
                    if step is None:
                        return
                    if isinstance(step, Exception):
                        raise step
                    yield step
                watch.wake.clear()
                for change in [c for c in self._storage.history if c.version > watch.version]:
                    watch.version = change.version
                    line = watch.event(change)
                    if line and not self._behaviour.muted:
                        yield line
                await _or_silence(watch)
        finally:
            self.open.remove(watch)


async def _or_silence(watch: Watch) -> None:
    """Wait for the next thing to tell as long as the client does."""
    try:
        async with asyncio.timeout(watch.seen.read_timeout):
            await watch.wake.wait()
    except TimeoutError:
        raise httpx2.ReadTimeout("silence") from None


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for line in self._lines:
            yield line

    async def aclose(self) -> None:
        await self._lines.aclose()  # type: ignore[attr-defined] # it is a generator


def _line(kind: str, item: Obj) -> bytes:
    event = {"type": kind, "object": item}
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"  # as Go writes it
