"""Every store and event feed of one hub: opened when asked for, shared, closed with their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import anyio

from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.cluster.changes import Changes
from lightkube_template_spawner.cluster.discovery import Discovery
from lightkube_template_spawner.cluster.events import EventFeed
from lightkube_template_spawner.cluster.kinds import is_kept_whole
from lightkube_template_spawner.cluster.live import Live
from lightkube_template_spawner.cluster.rbac import Rights
from lightkube_template_spawner.cluster.reflector import Reflector
from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.errors import Forbidden
from lightkube_template_spawner.objects.identity import hub_selector
from lightkube_template_spawner.objects.ref import NAMESPACE

Key = tuple[Kind, str | None, bool]  # kind, namespace (None: all), whether objects are kept whole


class Stores:
    """What one hub instance sees of one API server, and what it may do there."""

    def __init__(
        self, api: Api, instance: str, log: logging.Logger, timing: Timing = DEFAULT
    ) -> None:
        self.api = api
        self.timing = timing
        self.changes = Changes()
        self.discovery = Discovery(api, log, timing)
        self.rights = Rights(api, self.discovery, log, timing)
        self._log = log
        self._selector = hub_selector(instance)
        self._reflectors: dict[Key, Reflector] = {}
        # Kinds that one watch follows in all namespaces, with those that are ours to look at: a hub
        # of the same instance name elsewhere has objects of the same owners.
        self._wide: dict[Kind, set[str]] = {}
        self._feeds: dict[str, EventFeed] = {}
        self._wanted: asyncio.Queue[Reflector] = asyncio.Queue()
        # Reflectors outlive every spawner's call, so their task group lives in a task of its own.
        self._supervisor = asyncio.create_task(self._supervise())

    async def _supervise(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                while True:
                    reflector = await self._wanted.get()
                    group.start_soon(reflector.run, name=f"watch {reflector.kind}")
        finally:
            for feed in self._feeds.values():
                feed.close()
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self.api.aclose()

    async def aclose(self) -> None:
        """Stop every watch and close the connections."""
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor])
        await self.api.aclose()  # a supervisor that never ran has closed nothing

    def reflector(self, kind: Kind, namespace: str | None, *, full: bool = False) -> Reflector:
        """The shared store of a kind in a namespace; opened at the first call."""
        full = (full or is_kept_whole(kind)) and kind.kind != "Secret"
        within = self._wide.get(kind)
        if within is not None and namespace:
            within.add(namespace)
        scope = namespace if kind.namespaced and within is None else None
        full = full or (kind, scope, True) in self._reflectors  # one that keeps more is there
        key = (kind, scope, full)
        if key not in self._reflectors:
            self._reflectors[key] = Reflector(
                self.api,
                kind,
                scope,
                selector=self._selector,
                changes=self.changes,
                log=self._log,
                full=full,
                timing=self.timing,
                within=within,
                on_gone=self._left if kind.ref == NAMESPACE else lambda _: None,
            )
            self._wanted.put_nowait(self._reflectors[key])
        return self._reflectors[key]

    async def watch(self, kind: Kind, namespace: str | None, *, full: bool = False) -> Reflector:
        """The same once it is filled; one for all namespaces, where that is allowed.

        A hub with one namespace has no use for that. The second one is when it is asked. Where the
        right to see all namespaces is gone, this one is watched alone.

        Raises:
            Forbidden, NotFound: the API server refuses it.
        """
        unsettled = kind.namespaced and not self.rights.is_settled(kind)
        others = unsettled and {space for _, space, _ in self._narrow(kind)} - {namespace}
        if others and await self.rights.everywhere(kind):
            self._wide.setdefault(kind, set())
        narrow = self._narrow(kind) if kind in self._wide else []
        store = self.reflector(kind, namespace, full=full or any(whole for _, _, whole in narrow))
        self._wide.get(kind, set()).update(space for _, space, _ in narrow)
        try:
            await store.sync()
        except Forbidden as error:
            if not namespace or store.namespace == namespace or not kind.namespaced:
                raise
            self._split(kind, error)
            return await self.watch(kind, namespace, full=full or store.full)
        for key in narrow:
            if key in self._reflectors and self._reflectors[key].synced:  # nobody waits for it
                self._reflectors.pop(key).close()
        return store

    def _split(self, kind: Kind, error: Forbidden) -> None:
        """Close what watches a kind in all namespaces; whoever is there opens their own."""
        self.rights.deny_everywhere(kind)
        if self._wide.pop(kind, None) is None:
            return  # somebody else was told before
        self._log.warning("Watching %s in each namespace by itself: %s", kind, error)
        for key in [key for key in self._reflectors if key[0] == kind and key[1] is None]:
            self._reflectors.pop(key).close(error)

    def _narrow(self, kind: Kind) -> list[tuple[Kind, str, bool]]:
        """The stores of a kind that are open for one namespace each."""
        return [(kind, key[1], key[2]) for key in self._reflectors if key[0] == kind and key[1]]

    def events(self, namespace: str) -> EventFeed:
        """The events of a namespace, watched only while somebody listens."""
        if namespace not in self._feeds:
            self._feeds[namespace] = EventFeed(self.api, namespace, self._log, self.timing)
        return self._feeds[namespace]

    def _left(self, live: Live) -> None:
        self.leave(live.meta.name)

    def leave(self, namespace: str) -> None:
        """Close what watches a namespace that is gone, and forget what we were allowed in it."""
        for key in [key for key in self._reflectors if key[1] == namespace]:
            self._reflectors.pop(key).close()
        for within in self._wide.values():
            within.discard(namespace)
        if namespace in self._feeds:
            self._feeds.pop(namespace).close()
        self.rights.forget([namespace])

    def stores(self) -> Iterator[Reflector]:
        """Every store that is open."""
        yield from self._reflectors.values()

    def is_frozen(self, kind: Kind) -> bool:
        """Whether a store of this kind tells old news, for a right was taken away."""
        return any(s.frozen for s in self._reflectors.values() if str(s.kind) == str(kind))

    def known(self, kind: str, namespace: str, name: str) -> Live | None:
        """The object of a kind such as ``v1/Pod``, as the open store that keeps most has it."""
        found = [
            live
            for store in self._reflectors.values()
            if str(store.kind) == kind and (live := store.get(namespace, name))
        ]
        return max(found, key=lambda live: len(live.parts), default=None)

    def objects_of(self, owner: str) -> Iterator[Live]:
        """This owner's objects in every open store; an object watched twice comes once."""
        seen: set[str] = set()
        for reflector in self._reflectors.values():
            for live in reflector.of_owner(owner):
                if live.meta.uid not in seen:
                    seen.add(live.meta.uid)
                    yield live
