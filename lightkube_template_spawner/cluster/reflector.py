"""List then watch one kind under a selector, for the whole hub: the store that polls read.

Never ends by itself: every failure is followed by a resume, or by a new list when the position in
the change stream is lost. A list replaces the store and reports what vanished meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import msgspec

from lightkube_template_spawner.cluster.api import METADATA, METADATA_LIST, Api, Kind, error_from
from lightkube_template_spawner.cluster.changes import Changes
from lightkube_template_spawner.cluster.live import Key, Live, sharing
from lightkube_template_spawner.cluster.retry import asked_pause
from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.errors import (
    ClusterError,
    Expired,
    Forbidden,
    NotFound,
    Unavailable,
)
from lightkube_template_spawner.objects.identity import OWNER

_PAGE = "500"
_IDLE = 90.0  # bookmarks come each minute or so; longer silence is a dead connection
_REFUSED = 30.0  # the longest pause where only an administrator can change the answer
_WATCH_SECONDS = (290, 590)
_HOT = 5.0  # a watch that ends sooner is not opened again at once


class _Event(msgspec.Struct):
    type: str
    object: dict[str, msgspec.Raw]


class _List(msgspec.Struct):
    metadata: dict[str, Any]
    items: list[dict[str, msgspec.Raw]] | None = None


# Who owns what in which store, of all stores of a hub: asked for one owner at every poll.
Owners = dict[str, dict["Reflector", dict[Key, Live]]]


class Reflector:
    """The store of one kind in one namespace (None: all of them), under one label selector.

    ``full`` keeps objects whole, not only their metadata. Of what a watch of all namespaces sees,
    only that in ``namespaces`` is shown. ``on_gone`` is called with each object that goes.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str | None,
        *,
        selector: str,
        changes: Changes,
        owners: Owners,
        log: logging.Logger,
        full: bool,
        timing: Timing = DEFAULT,
        namespaces: set[str] | None = None,
        on_gone: Callable[[Live], None] = lambda _: None,
        idle: float = _IDLE,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.full = full
        self._namespaces = namespaces
        self.error: ClusterError | None = None
        self.watching = False  # whether changes come in at present
        self._api = api
        self._selector = selector
        self._changes = changes
        self._owners = owners
        self._log = log
        self._on_gone = on_gone
        self._timing = timing
        self._idle = idle
        self._store: dict[Key, Live] = {}
        self._latest: Live | None = None
        self._version: str | None = None
        self._synced = False
        self._listed = -math.inf
        self._silence = -math.inf  # when the API server last gave no usable answer
        self._event_count = 0  # events of the watch at hand
        self._attempt = asyncio.Event()  # set, and replaced, after each attempt to list
        self._hurry = asyncio.Event()
        self._scope = anyio.CancelScope()
        self._end: ClusterError | None = None  # why it was closed

    def get(self, namespace: str, name: str) -> Live | None:
        """The object, as far as the store knows."""
        return self._store.get((namespace, name)) if self._shows(namespace) else None

    def of_owner(self, owner: str) -> Iterator[Live]:
        """This owner's objects."""
        for live in self._owners.get(owner, {}).get(self, {}).values():
            if self._shows(live.meta.namespace):
                yield live

    def _shows(self, namespace: str) -> bool:
        return self._namespaces is None or namespace in self._namespaces

    def __len__(self) -> int:
        return len(self._store)

    @property
    def synced(self) -> bool:
        """Whether a list has ever come through."""
        return self._synced

    @property
    def frozen(self) -> bool:
        """Whether the API server no longer lets us see what changes: a right was taken away."""
        return isinstance(self.error, Forbidden)

    def sees(self, namespace: str) -> bool:
        """Whether it is open and may tell what changes there; it may be away for a while."""
        return self._end is None and not self.frozen and self._shows(namespace)

    async def sync(self) -> None:
        """Wait for the first list, or, where a right was taken away, for the next answer.

        Raises:
            Forbidden, NotFound: the API server refuses it; waiting would not help.
        """
        if not self._synced or self.frozen:
            self._hurry.set()
        while not self._synced or self.frozen:
            if self._end is None:
                await self._attempt.wait()
            if self._end is not None:
                raise self._end
            if isinstance(self.error, Forbidden | NotFound):
                raise self.error

    def close(self, why: ClusterError | None = None) -> None:
        """End the watch and drop what the store knew; without a reason, its namespace is gone."""
        self._end = why or NotFound(f"namespace {self.namespace!r} is gone", code=404)
        self.error = self._end
        for live in list(self._store.values()):
            self._forget(live)
        self._attempted()
        self._scope.cancel()

    async def run(self) -> None:
        """Keep the store true until cancelled or closed."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        delay = self._timing.watch[0]
        while True:
            start, resumed, self._event_count = time.monotonic(), self._version is not None, 0
            self.error = await self._once()
            lasted = time.monotonic() - start > _HOT
            expired = resumed and isinstance(self.error, Expired) and self._listed < start - _HOT
            recovering = isinstance(self.error, Unavailable) and self.error.code == 403
            if lasted or expired or recovering or self._event_count:
                delay = self._timing.watch[0]
            if expired or (lasted and self.error is None):
                continue
            jitter = delay * random.uniform(0.5, 1.0)  # noqa: S311
            await self._pause(max(jitter, asked_pause(self.error)))
            refused = isinstance(self.error, Forbidden | NotFound)
            delay = min(delay * 2, _REFUSED if refused else self._timing.watch[1])

    async def _once(self) -> ClusterError | None:
        """Watch until it ends, and how it did."""
        try:
            await self._watch()
        except Expired as error:
            return self._lost(error)
        except ClusterError as error:
            return self._failed(error)
        except (msgspec.MsgspecError, KeyError) as error:
            # A truncated line or an answer of another shape: the position cannot be trusted.
            return self._lost(ClusterError(f"unusable answer for {self.kind}: {error}"))
        except Exception as error:  # noqa: BLE001
            # A store that died in silence would freeze the hub's view for ever.
            self._log.exception("Watching %s failed; listing again", self.kind)
            return self._lost(ClusterError(f"watching {self.kind} failed: {error!r}"))
        return None

    @property
    def recovering(self) -> bool:
        """Whether the API server has just come back: it may not know our rights yet."""
        return time.monotonic() - self._silence < self._timing.recovering

    async def _pause(self, seconds: float) -> None:
        """Back off, unless a start is waiting for the first list."""
        self._hurry.clear()
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            return
        await asyncio.sleep(
            self._timing.watch[0] / 4
        )  # many may hurry us: still no faster than this

    def _lost(self, error: ClusterError) -> ClusterError:
        self._version = None
        return self._failed(error)

    def _failed(self, error: ClusterError) -> ClusterError:
        if isinstance(error, Unavailable):
            self._silence = time.monotonic()
        elif isinstance(error, Forbidden) and self.recovering:
            error = Unavailable(str(error), code=error.code)
        level = logging.DEBUG if isinstance(error, Expired) else logging.WARNING
        if self.error is None or str(self.error) != str(error):
            self._log.log(level, "Watching %s in %s: %s", self.kind, self.namespace or "all", error)
        self.error = error
        self._attempted()
        return error

    def _attempted(self) -> None:
        attempt, self._attempt = self._attempt, asyncio.Event()
        attempt.set()

    async def _list(self) -> None:
        objects: dict[Key, Live] = {}
        params = {"labelSelector": self._selector, "limit": _PAGE}
        accept = "application/json" if self.full else METADATA_LIST
        while True:
            answer = await self._api.call(
                "GET", self.kind.path(self.namespace), params=params, accept=accept, raw=True
            )
            page = msgspec.json.decode(answer, type=_List)
            for fields in page.items or ():
                live = Live(self.kind, fields, full=self.full)
                objects[live.meta.key] = live
            if not page.metadata.get("continue"):
                break
            params["continue"] = page.metadata["continue"]
        if self._end is not None:
            return
        before = dict(self._store)
        self._version = page.metadata["resourceVersion"]
        self._synced, self.error, self._listed = True, None, time.monotonic()
        for key in before.keys() - objects.keys():
            self._forget(before[key])
        for key, live in objects.items():
            old = before.get(key)
            if old is None or old.meta.resource_version != live.meta.resource_version:
                self._remember(live)
        self._attempted()

    async def _watch(self) -> None:
        """List if need be, then follow the change stream until it ends."""
        if self._version is None:
            await self._list()
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "labelSelector": self._selector,
            "timeoutSeconds": str(random.randint(*_WATCH_SECONDS)),  # noqa: S311 - spread load
        }
        accept = "application/json" if self.full else METADATA
        start = time.monotonic()
        try:
            async with self._api.stream(
                self.kind.path(self.namespace), params=params, accept=accept, idle=self._idle
            ) as lines:
                self.watching = True
                if self.frozen:  # the right is back; all else is told by the next list or error
                    self.error = None
                    self._attempted()
                async for line in lines:
                    if line:
                        self._handle(msgspec.json.decode(line, type=_Event))
                        self._event_count += 1
        except ClusterError:
            if self._event_count == 0 and time.monotonic() - start >= self._idle:
                # Silence from the start: perhaps a position the server will never reach.
                self._version = None
            raise
        finally:
            self.watching = False

    def _handle(self, event: _Event) -> None:
        if event.type == "ERROR":
            status = {k: msgspec.json.decode(v) for k, v in event.object.items()}
            raise error_from(status, status.get("code", 500))
        if event.type == "BOOKMARK":
            meta = msgspec.json.decode(event.object["metadata"], type=dict[str, Any])
            self._version = meta["resourceVersion"]
            return
        live = Live(self.kind, event.object, full=self.full)
        self._version = live.meta.resource_version
        if event.type == "DELETED":
            self._forget(live)
        else:
            self._remember(live)

    def _remember(self, live: Live) -> None:
        if self._end is not None:
            return  # closed in the very turn in which this came: nobody would take it out again
        owner = live.meta.labels.get(OWNER, "")
        key = live.meta.key
        old = self._store.get(key)
        if old is not None and old.meta.labels.get(OWNER, "") != owner:
            self._forget(old)
        sample = (old or self._latest or live).meta
        live.meta.labels = sharing(live.meta.labels, sample.labels)
        live.meta.annotations = sharing(live.meta.annotations, sample.annotations)
        self._latest = live
        self._store[key] = live
        self._owners.setdefault(owner, {}).setdefault(self, {})[key] = live
        self._changes.notify(owner)

    def _forget(self, live: Live) -> None:
        entry = self._store.pop(live.meta.key, live)
        owner = entry.meta.labels.get(OWNER, "")
        stores = self._owners.get(owner, {})
        objects = stores.get(self, {})
        objects.pop(live.meta.key, None)
        if not objects:
            stores.pop(self, None)
        if not stores:
            self._owners.pop(owner, None)
        self._on_gone(entry)
        self._changes.notify(owner)


Sight = tuple[Reflector, str]
"""A store, and the namespace for which it is read."""
