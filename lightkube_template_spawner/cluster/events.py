"""What Kubernetes says about objects while they start: one watch a namespace, open when needed.

Events carry no labels and are never listed whole (a namespace may hold tens of thousands): the
watch begins at "now" and each event is matched by the UID that it is about.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from lightkube_template_spawner.cluster.api import Api, Kind, error_from
from lightkube_template_spawner.cluster.retry import asked_pause
from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.errors import Unavailable

EVENTS = Kind("", "v1", "Event", "events", namespaced=True)
_NO_NODES = "involvedObject.kind!=Node"
_KEPT = 500  # what came before its object's UID was known is looked up here
_IDLE = 300.0  # events get no bookmarks; silence is normal


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as short as the spawn page shows it."""

    uid: str
    kind: str
    name: str
    type: str
    reason: str
    message: str
    time: str

    @property
    def is_routine(self) -> bool:
        """Whether it would only frighten: a server that is not up yet fails its startup probe."""
        return self.reason == "Unhealthy" and self.message.startswith("Startup probe failed")

    @classmethod
    def read(cls, item: dict[str, Any]) -> Event:
        """From the API's core/v1 form, tolerating what old clients leave out."""
        about = item.get("involvedObject") or {}
        time = item.get("lastTimestamp") or item.get("eventTime") or item.get("firstTimestamp")
        return cls(
            str(about.get("uid") or ""),
            str(about.get("kind") or ""),
            str(about.get("name") or ""),
            str(item.get("type") or "Normal"),
            str(item.get("reason") or ""),
            str(item.get("message") or "").strip(),
            str(time or (item.get("metadata") or {}).get("creationTimestamp") or ""),
        )


class EventFeed:
    """The events of one namespace, while somebody listens."""

    def __init__(
        self, api: Api, namespace: str, log: logging.Logger, timing: Timing = DEFAULT
    ) -> None:
        self._timing = timing
        self._api = api
        self._namespace = namespace
        self._log = log
        self._recent: deque[Event] = deque(maxlen=_KEPT)
        self._listeners: dict[Callable[[Event], None], Container[str]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._version = ""  # "": begin at "now"

    @contextmanager
    def listen(
        self, listener: Callable[[Event], None], uids: Container[str] = ()
    ) -> Iterator[EventFeed]:
        """Hear every event from now on; the watch ends a minute after the last listener left.

        An event that is about one of a listener's ``uids``, a set that may grow, is told to that
        listener only: a class that starts together must not hear all of each other's.
        """
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self._listeners[listener] = uids
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            self._listeners.pop(listener, None)
            if not self._listeners:
                self._closing = asyncio.get_running_loop().call_later(
                    self._timing.linger, self.close
                )

    def about(self, uid: str) -> list[Event]:
        """Recent events about an object whose UID has only now become known."""
        return [event for event in self._recent if event.uid == uid]

    def close(self) -> None:
        """End the watch."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._version = ""
        self._recent.clear()

    async def _run(self) -> None:
        minimum, maximum = self._timing.events
        pause = minimum
        while True:
            start, error = time.monotonic(), None
            try:
                if not self._version:
                    page = await self._api.call(
                        "GET", EVENTS.path(self._namespace), params={"limit": "1"}
                    )
                    self._version = page["metadata"]["resourceVersion"]
                await self._watch()
            except Unavailable as failure:
                error = failure  # what happens meanwhile is heard later: the position is kept
                self._log.debug("Events of %s: %s", self._namespace, error)
            except Exception as failure:  # noqa: BLE001
                # Events are told to the user, nothing depends on them: begin again at "now".
                self._log.debug("Events of %s: %r", self._namespace, failure)
                self._version = ""
            if time.monotonic() - start > maximum:
                pause = minimum
            await asyncio.sleep(max(pause, asked_pause(error)))
            pause = min(pause * 2, maximum)

    async def _watch(self) -> None:
        params = {
            "watch": "true",
            "resourceVersion": self._version,
            "fieldSelector": _NO_NODES,
            "timeoutSeconds": str(int(_IDLE)),
        }
        path = EVENTS.path(self._namespace)
        async with self._api.stream(
            path, params=params, accept="application/json", idle=_IDLE + 10
        ) as lines:
            async for line in lines:
                change = msgspec.json.decode(line, type=dict[str, Any]) if line else {}
                if change.get("type") == "ERROR":
                    raise error_from(change.get("object"), 500)
                if change.get("type") in ("ADDED", "MODIFIED"):
                    self._version = change["object"]["metadata"]["resourceVersion"]
                    self._tell(Event.read(change["object"]))

    def _tell(self, event: Event) -> None:
        self._recent.append(event)
        listeners = [listener for listener, uids in self._listeners.items() if event.uid in uids]
        for listener in listeners or tuple(self._listeners):
            listener(event)
