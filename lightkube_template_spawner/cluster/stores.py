"""Every store and event feed of one hub: opened when asked for, shared, closed with their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from itertools import product

import anyio

from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.cluster.changes import Changes
from lightkube_template_spawner.cluster.discovery import Discovery
from lightkube_template_spawner.cluster.events import EventFeed
from lightkube_template_spawner.cluster.kinds import is_kept_whole
from lightkube_template_spawner.cluster.live import Live
from lightkube_template_spawner.cluster.rbac import Rights
from lightkube_template_spawner.cluster.reflector import Owners, Reflector
from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.errors import ClusterError, Forbidden
from lightkube_template_spawner.objects.identity import hub_selector
from lightkube_template_spawner.objects.ref import NAMESPACE, KindRef, ObjectRef

Slot = tuple[str | None, bool]  # namespace (None: all), whether objects are kept whole


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
        # Thousands of namespaces may be watched one by one: no look goes through all stores.
        self._reflectors: dict[Kind, dict[Slot, Reflector]] = {}
        self._kinds: dict[KindRef, Kind] = {}  # of the stores, as they were last served
        self._owners: Owners = {}
        # Kinds that one watch follows in all namespaces, with those that are ours to look at: a hub
        # of the same instance name elsewhere has objects of the same owners.
        self._wide: dict[Kind, set[str]] = {}
        self._feeds: dict[str, EventFeed] = {}
        self._unstarted: asyncio.Queue[Reflector] = asyncio.Queue()
        # Reflectors outlive every spawner's call, so their task group lives in a task of its own.
        self._supervisor = asyncio.create_task(self._supervise())

    async def _supervise(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                while True:
                    reflector = await self._unstarted.get()
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
        namespaces = self._wide.get(kind)
        if namespaces is not None and namespace:
            namespaces.add(namespace)
        scope = namespace if kind.namespaced and namespaces is None else None
        stores = self._reflectors.setdefault(kind, {})
        full = full or (scope, True) in stores  # one that keeps more is there
        slot = scope, full
        if slot not in stores:
            self._kinds[kind.ref] = kind
            stores[slot] = Reflector(
                self.api,
                kind,
                scope,
                selector=self._selector,
                changes=self.changes,
                owners=self._owners,
                log=self._log,
                full=full,
                timing=self.timing,
                namespaces=namespaces,
                on_gone=self._left if kind.ref == NAMESPACE else lambda _: None,
            )
            self._unstarted.put_nowait(stores[slot])
        return stores[slot]

    async def watch(self, kind: Kind, namespace: str | None, *, full: bool = False) -> Reflector:
        """The same once it is filled; one for all namespaces, where that is allowed.

        A hub with one namespace has no use for that. The second one is when it is asked. Where the
        right to see all namespaces is gone, this one is watched alone.

        Raises:
            Forbidden, NotFound: the API server refuses it.
        """
        unsettled = kind.namespaced and not self.rights.is_settled(kind)
        namespaces = unsettled and {space for space, _ in self._narrow(kind)} - {namespace}
        if namespaces and await self.rights.everywhere(kind):
            self._wide.setdefault(kind, set())
        slots = self._narrow(kind) if kind in self._wide else []
        store = self.reflector(kind, namespace, full=full or any(whole for _, whole in slots))
        self._wide.get(kind, set()).update(space for space, _ in slots)
        try:
            await store.sync()
        except Forbidden as error:
            if not namespace or store.namespace == namespace or not kind.namespaced:
                raise
            self._split(kind, error)
            return await self.watch(kind, namespace, full=full or store.full)
        stores = self._reflectors[kind]
        for slot in slots:
            if slot in stores and stores[slot].synced:  # nobody waits for it
                self._close(kind, slot)
        return store

    def _split(self, kind: Kind, error: Forbidden) -> None:
        """Close what watches a kind in all namespaces; whoever is there opens their own."""
        self.rights.deny_everywhere(kind)
        if self._wide.pop(kind, None) is None:
            return  # somebody else was told before
        self._log.warning("Watching %s in each namespace by itself: %s", kind, error)
        for full in (True, False):
            self._close(kind, (None, full), error)

    def _narrow(self, kind: Kind) -> list[tuple[str, bool]]:
        """The stores of a kind that are open for one namespace each."""
        return [(space, full) for space, full in self._reflectors.get(kind, ()) if space]

    def _close(self, kind: Kind, slot: Slot, why: ClusterError | None = None) -> None:
        store = self._reflectors[kind].pop(slot, None)
        if store is not None:
            store.close(why)

    def events(self, namespace: str) -> EventFeed:
        """The events of a namespace, watched only while somebody listens."""
        if namespace not in self._feeds:
            self._feeds[namespace] = EventFeed(self.api, namespace, self._log, self.timing)
        return self._feeds[namespace]

    def _left(self, live: Live) -> None:
        self.leave(live.meta.name)

    def leave(self, namespace: str) -> None:
        """Close what watches a namespace that is gone, and forget what we were allowed in it."""
        for kind, full in product(self._reflectors, (True, False)):
            self._close(kind, (namespace, full))
        for namespaces in self._wide.values():
            namespaces.discard(namespace)
        if namespace in self._feeds:
            self._feeds.pop(namespace).close()
        self.rights.forget([namespace])

    def stores(self) -> Iterator[Reflector]:
        """Every store that is open."""
        for stores in self._reflectors.values():
            yield from stores.values()

    def stores_in(self, namespace: str) -> Iterator[Reflector]:
        """Every open store that may show objects of a namespace, or such as have none."""
        for kind in self._reflectors:
            yield from self.stores_of(kind.ref, namespace)

    def stores_of(self, kind: KindRef, namespace: str) -> Iterator[Reflector]:
        """Those of one kind; what keeps objects whole comes first."""
        stores = self._reflectors[self._kinds[kind]] if kind in self._kinds else {}
        for full, scope in product((True, False), (namespace, None)):
            if (scope, full) in stores:
                yield stores[scope, full]

    def is_frozen(self, kind: KindRef, namespace: str) -> bool:
        """Whether what is seen of a kind there is old news, for a right was taken away."""
        return any(store.frozen for store in self.stores_of(kind, namespace))

    def find(self, ref: ObjectRef) -> Live | None:
        """The object of that name, whatever its UID, as the open store that keeps most has it."""
        for store in self.stores_of(ref.kind, ref.namespace):
            live = store.get(ref.namespace, ref.name)
            if live is not None:
                return live
        return None

    def objects_of(self, owner: str) -> Iterator[Live]:
        """This owner's objects in every open store; an object watched twice comes once."""
        uids: set[str] = set()
        for store in self._owners.get(owner, ()):
            for live in store.of_owner(owner):
                if live.meta.uid not in uids:
                    uids.add(live.meta.uid)
                    yield live
