"""List then watch one kind under a selector, for the whole hub: the store that polls read.

Never ends by itself: every failure is followed by a resume, or by a new list when the position in
the change stream is lost. A list replaces the store and reports what vanished meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import anyio
import msgspec

from lightkube_template_spawner.cluster.api import METADATA, METADATA_LIST, Api, Kind, error_from
from lightkube_template_spawner.cluster.retry import LEARNING, asked_pause
from lightkube_template_spawner.errors import (
    ClusterError,
    Expired,
    Forbidden,
    NotFound,
    Unavailable,
)
from lightkube_template_spawner.objects.identity import OWNER
from lightkube_template_spawner.objects.ref import ObjectRef

T = TypeVar("T")
Key = tuple[str, str]  # namespace ("" for cluster-scoped), name

_PAGE = "500"
_IDLE = 90.0  # bookmarks come each minute or so; longer silence is a dead connection
_BACKOFF = (0.8, 2.5)  # seconds; with a connection's time-out it is back within five
_REFUSED = 30.0  # the longest pause where only an administrator can change the answer
_WATCH_SECONDS = (290, 590)
_HOT = 5.0  # a watch that ends sooner is not opened again at once
_NOISE = frozenset({"apiVersion", "kind", "metadata"})
_Containers = list[dict[str, msgspec.Raw]] | None


class Meta(msgspec.Struct, rename="camel"):
    """The part of ``metadata`` that matters; managedFields, most of an object's size, is not."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None
    finalizers: list[str] = []
    owner_references: list[dict[str, Any]] = []

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def controlled(self) -> bool:
        """Whether a controller made it: then it is the controller's to remove."""
        return any(reference.get("controller") for reference in self.owner_references)


class Live:
    """A live object kept small: parsed metadata, the other fields as JSON until asked for."""

    __slots__ = ("kind", "meta", "parts")

    def __init__(self, kind: Kind, fields: dict[str, msgspec.Raw], *, slim: bool) -> None:
        self.kind = kind
        self.meta = msgspec.json.decode(fields["metadata"], type=Meta)
        self.parts: dict[str, bytes] = {}
        if not slim:
            self.parts = {k: bytes(v) for k, v in fields.items() if k not in _NOISE}
            if str(kind) == "v1/Pod" and "spec" in self.parts:
                self.parts["spec"] = _without_variables(self.parts["spec"])

    @property
    def reference(self) -> str:
        """``Kind/namespace/name``."""
        return str(ObjectRef(self.kind.ref, self.meta.namespace, self.meta.name))

    def as_dict(self) -> dict[str, Any]:
        """As the API server writes it, without managedFields and containers' variables."""
        head = {"apiVersion": self.kind.api_version, "kind": self.kind.kind}
        body = {name: msgspec.json.decode(raw) for name, raw in self.parts.items()}
        return {**head, "metadata": msgspec.to_builtins(self.meta), **body}


def _without_variables(spec: bytes) -> bytes:
    """Most of a pod, may hold tokens, and nobody asks the store for them."""
    fields = msgspec.json.decode(spec, type=dict[str, msgspec.Raw])
    for group in ("containers", "initContainers"):
        found = msgspec.json.decode(fields.get(group, b"null"), type=_Containers)
        for container in found or ():
            container.pop("env", None)
        if found:
            fields[group] = msgspec.Raw(msgspec.json.encode(found))
    return msgspec.json.encode(fields)


def _sharing(texts: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """Equal texts kept once: most labels and annotations are the same on every object of a hub."""
    return {
        sys.intern(key): other[key] if other.get(key) == text else text
        for key, text in texts.items()
    }


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

    def notify_all(self) -> None:
        """A store was filled: who waits for what is not in it must look again."""
        for owner in tuple(self._callbacks):
            self.notify(owner)

    async def wait_until(self, owner: str, predicate: Callable[[], T | None]) -> T:
        """Wait until ``predicate`` gives something else than None; it reads stores only."""
        changed = asyncio.Event()
        unsubscribe = self.subscribe(owner, changed.set)
        try:
            while (found := predicate()) is None:
                await changed.wait()
                changed.clear()
            return found
        finally:
            unsubscribe()


class _Event(msgspec.Struct):
    type: str
    object: dict[str, msgspec.Raw]


class _List(msgspec.Struct):
    metadata: dict[str, Any]
    items: list[dict[str, msgspec.Raw]] | None = None


class Reflector:
    """The store of one kind in one namespace (None: all of them), under one label selector."""

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str | None,
        *,
        selector: str,
        changes: Changes,
        log: logging.Logger,
        slim: bool,
        idle: float = _IDLE,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.error: ClusterError | None = None
        self.watching = False  # whether changes come in at present
        self.relists = 0
        self._api = api
        self._selector = selector
        self._changes = changes
        self._log = log
        self.full = not slim  # whether objects are kept whole, not only their metadata
        self._idle = idle
        self._store: dict[Key, Live] = {}
        self._owners: dict[str, dict[Key, Live]] = {}
        self._latest: Live | None = None
        self._version: str | None = None
        self._synced = False
        self._listed = -math.inf
        self._silent = -math.inf  # when the API server last gave no usable answer
        self._heard = 0  # events of the watch at hand
        self._attempt = asyncio.Event()  # set, and replaced, after each attempt to list
        self._hurry = asyncio.Event()
        self._scope = anyio.CancelScope()
        self.within: set[str] | None = None  # namespaces that it shows, of all that it watches
        self.on_gone: Callable[[Live], None] = lambda _: None

    def get(self, namespace: str, name: str) -> Live | None:
        """The object, as far as the store knows."""
        return self._store.get((namespace, name)) if self._shows(namespace) else None

    def of_owner(self, owner: str) -> Iterator[Live]:
        """This owner's objects."""
        for live in self._owners.get(owner, {}).values():
            if self._shows(live.meta.namespace):
                yield live

    def _shows(self, namespace: str) -> bool:
        return self.within is None or namespace in self.within

    def __len__(self) -> int:
        return len(self._store)

    @property
    def synced(self) -> bool:
        """Whether a list has ever come through."""
        return self._synced

    async def sync(self) -> None:
        """Wait for the first list.

        Raises:
            Forbidden, NotFound: the API server refuses it; waiting would not help.
        """
        if not self._synced:
            self._hurry.set()
        while not self._synced:
            await self._attempt.wait()
            if isinstance(self.error, Forbidden | NotFound):
                raise self.error

    def close(self) -> None:
        """End the watch: the namespace is gone, and with it what the store knew."""
        self.error = NotFound(f"namespace {self.namespace!r} is gone", code=404)
        for live in list(self._store.values()):
            self._forget(live)
        self._attempted()
        self._scope.cancel()

    async def run(self) -> None:
        """Keep the store true until cancelled or closed."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        delay = _BACKOFF[0]
        while True:
            began, resumed, self._heard = time.monotonic(), self._version is not None, 0
            self.error = await self._once()
            lasted = time.monotonic() - began > _HOT
            expired = resumed and isinstance(self.error, Expired) and self._listed < began - _HOT
            learning = isinstance(self.error, Unavailable) and self.error.code == 403
            if lasted or expired or learning or self._heard:
                delay = _BACKOFF[0]
            if expired or (lasted and self.error is None):
                continue
            jittered = delay * random.uniform(0.5, 1.0)  # noqa: S311
            await self._pause(max(jittered, asked_pause(self.error)))
            refused = isinstance(self.error, Forbidden | NotFound)
            delay = min(delay * 2, _REFUSED if refused else _BACKOFF[1])

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
    def learning(self) -> bool:
        """Whether the API server has just come back: it may not know our rights yet."""
        return time.monotonic() - self._silent < LEARNING

    async def _pause(self, seconds: float) -> None:
        """Back off, unless a start is waiting for the first list."""
        self._hurry.clear()
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            return
        await asyncio.sleep(_BACKOFF[0] / 4)  # many may hurry us: still no faster than this

    def _lost(self, error: ClusterError) -> ClusterError:
        self._version = None
        return self._failed(error)

    def _failed(self, error: ClusterError) -> ClusterError:
        if isinstance(error, Unavailable):
            self._silent = time.monotonic()
        elif isinstance(error, Forbidden) and self.learning:
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
        found: dict[Key, Live] = {}
        params = {"labelSelector": self._selector, "limit": _PAGE}
        accept = METADATA_LIST if not self.full else "application/json"
        while True:
            answer = await self._api.call(
                "GET", self.kind.path(self.namespace), params=params, accept=accept, raw=True
            )
            page = msgspec.json.decode(answer, type=_List)
            for fields in page.items or ():
                live = Live(self.kind, fields, slim=not self.full)
                found[live.meta.key] = live
            if not page.metadata.get("continue"):
                break
            params["continue"] = page.metadata["continue"]
        before, first = dict(self._store), not self._synced
        self._version = page.metadata["resourceVersion"]
        self._synced, self.error, self._listed = True, None, time.monotonic()
        self.relists += 1
        for key in before.keys() - found.keys():
            self._forget(before[key])
        for key, live in found.items():
            old = before.get(key)
            if old is None or old.meta.resource_version != live.meta.resource_version:
                self._remember(live)
        if first:
            self._changes.notify_all()
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
        accept = METADATA if not self.full else "application/json"
        began = time.monotonic()
        try:
            async with self._api.stream(
                self.kind.path(self.namespace), params=params, accept=accept, idle=self._idle
            ) as lines:
                self.watching = True
                async for line in lines:
                    if line:
                        self._handle(msgspec.json.decode(line, type=_Event))
                        self._heard += 1
        except ClusterError:
            if self._heard == 0 and time.monotonic() - began >= self._idle:
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
        live = Live(self.kind, event.object, slim=not self.full)
        self._version = live.meta.resource_version
        if event.type == "DELETED":
            self._forget(live)
        else:
            self._remember(live)

    def _remember(self, live: Live) -> None:
        owner = live.meta.labels.get(OWNER, "")
        key = live.meta.key
        old = self._store.get(key)
        if old is not None and old.meta.labels.get(OWNER, "") != owner:
            self._forget(old)
        like = (old or self._latest or live).meta
        live.meta.labels = _sharing(live.meta.labels, like.labels)
        live.meta.annotations = _sharing(live.meta.annotations, like.annotations)
        self._latest = live
        self._store[key] = live
        self._owners.setdefault(owner, {})[key] = live
        self._changes.notify(owner)

    def _forget(self, live: Live) -> None:
        known = self._store.pop(live.meta.key, live)
        owner = known.meta.labels.get(OWNER, "")
        objects = self._owners.get(owner, {})
        objects.pop(live.meta.key, None)
        if not objects:
            self._owners.pop(owner, None)
        self.on_gone(known)
        self._changes.notify(owner)
