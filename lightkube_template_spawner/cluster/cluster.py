"""The only writer: create, apply, delete; one shared instance per API server, hub and event loop.

Ownership is enforced by the API server itself. An object that must be new is applied with a
resource version that no object has: absent, it is created; present, 409 and nothing is written. One
that we hold is applied under its UID. Only ``adopt_retained`` forces anything, under a UID too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import anyio
import msgspec

from lightkube_template_spawner.cluster.api import METADATA_LIST, Api, Kind
from lightkube_template_spawner.cluster.discovery import Discovery
from lightkube_template_spawner.cluster.events import EventFeed
from lightkube_template_spawner.cluster.rbac import Rights
from lightkube_template_spawner.cluster.reflector import Changes, Live, Meta, Reflector
from lightkube_template_spawner.cluster.retry import retried
from lightkube_template_spawner.concurrency import each
from lightkube_template_spawner.errors import (
    AlreadyThere,
    ClusterError,
    Conflict,
    Forbidden,
    NotFound,
    Unavailable,
)
from lightkube_template_spawner.objects import ownership
from lightkube_template_spawner.objects.identity import DIGEST, Identity, Selection, hub_selector
from lightkube_template_spawner.objects.plan import Planned

T = TypeVar("T")
Key = tuple[Kind, str | None, bool]  # kind, namespace (None: all), whether objects are kept whole

_WRITES_IN_FLIGHT = 8
# No object ever has it, so an apply that carries it can only create.
_MUST_BE_NEW = "1"
# Kinds whose status decides something; of all others the store keeps metadata, so that no Secret's
# data is ever in the hub.
_WITH_STATUS = frozenset({"Pod", "Service", "EndpointSlice", "Deployment", "StatefulSet"})
NAMESPACE = "v1/Namespace"
# Groups that Kubernetes itself serves and whose objects run nothing; any other's may run a pod.
_PASSIVE = frozenset({"", "autoscaling", "extensions", "policy", "resource.k8s.io"}) | {
    f"{name}.k8s.io"
    for name in (
        "admissionregistration",
        "apiextensions",
        "apiregistration",
        "certificates",
        "coordination",
        "discovery",
        "events",
        "flowcontrol.apiserver",
        "networking",
        "gateway.networking",
        "node",
        "rbac.authorization",
        "scheduling",
        "storage",
    )
}


def propagation(kind: Kind) -> str:
    """Foreground where dependents are the point: gone then means that their pods are gone."""
    return "Background" if kind.group in _PASSIVE else "Foreground"


def is_workload(kind: Kind) -> bool:
    """Whether objects of this kind run something, or may: they go first."""
    return str(kind) == "v1/Pod" or (kind.group not in _PASSIVE and not confines(kind))


def gives_rights(kind: Kind) -> bool:
    """Whether objects of this kind may be what lets us delete the others: they go last."""
    return kind.group == "rbac.authorization.k8s.io"


def confines(kind: Kind) -> bool:
    """Whether objects of this kind, Kubernetes' or a network plugin's, keep what runs apart."""
    return kind.kind.endswith("NetworkPolicy")


class Cluster:
    """Stores, discovery and writes for one hub instance on one API server."""

    def __init__(self, api: Api, instance: str, log: logging.Logger) -> None:
        self.api = api
        self.changes = Changes()
        self.discovery = Discovery(api, log)
        self.rights = Rights(api, self.discovery, log)
        self._log = log
        self._selector = hub_selector(instance)
        self._writes = anyio.CapacityLimiter(_WRITES_IN_FLIGHT)
        self._reflectors: dict[Key, Reflector] = {}
        # Kinds that one watch follows in all namespaces, with those that are ours to look at: a hub
        # of the same instance name elsewhere has objects of the same owners.
        self._wide: dict[Kind, set[str]] = {}
        self._one_by_one: set[Kind] = set()  # we may not delete collections of these
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
        full = (full or kind.kind in _WITH_STATUS) and kind.kind != "Secret"
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
                slim=not full,
            )
            self._reflectors[key].within = within
            if str(kind) == NAMESPACE:
                self._reflectors[key].on_gone = lambda live: self.leave(live.meta.name)
            self._wanted.put_nowait(self._reflectors[key])
        return self._reflectors[key]

    async def watch(self, kind: Kind, namespace: str | None, *, full: bool = False) -> Reflector:
        """The same once it is filled; one for all namespaces, where that is allowed.

        A hub with one namespace has no use for that. The second one is when it is asked.

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
        await store.sync()
        for key in narrow:
            if key in self._reflectors and self._reflectors[key].synced:  # nobody waits for it
                self._reflectors.pop(key).close()
        return store

    def _narrow(self, kind: Kind) -> list[tuple[Kind, str, bool]]:
        """The stores of a kind that are open for one namespace each."""
        return [(kind, key[1], key[2]) for key in self._reflectors if key[0] == kind and key[1]]

    def events(self, namespace: str) -> EventFeed:
        """The events of a namespace, watched only while somebody listens."""
        if namespace not in self._feeds:
            self._feeds[namespace] = EventFeed(self.api, namespace, self._log)
        return self._feeds[namespace]

    def leave(self, namespace: str) -> None:
        """Close what watches a namespace that is gone, and forget what we were allowed in it."""
        for key in [key for key in self._reflectors if key[1] == namespace]:
            self._reflectors.pop(key).close()
        for within in self._wide.values():
            within.discard(namespace)
        if namespace in self._feeds:
            self._feeds.pop(namespace).close()
        self.rights.forget([namespace])

    async def has_ended(self, namespace: str) -> bool:
        """Whether the namespace goes or is gone, and with it, perhaps, our rights in it."""
        if not namespace:
            return False
        try:
            kind = await self.discovery.kind("v1", "Namespace")
            found = await self._retry(lambda: self.api.call("GET", kind.path(None, namespace)))
        except NotFound:
            self.leave(namespace)
            return True
        except ClusterError:
            return False
        return bool(found["metadata"].get("deletionTimestamp"))

    def stores(self) -> Iterator[Reflector]:
        """Every store that is open."""
        yield from self._reflectors.values()

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

    async def create(self, kind: Kind, planned: Planned, identity: Identity) -> dict[str, Any]:
        """Create the object, or refuse: never write to one that is there.

        Raises:
            AlreadyThere: an object of that name exists; nothing was written.
            ClusterError: refused for another reason.
        """
        manifest = _with_metadata(planned.manifest, resourceVersion=_MUST_BE_NEW)
        try:
            return await self._write(
                lambda: self.api.apply(kind, manifest, manager=identity.manager)
            )
        except Conflict as error:
            live = await self.get(kind, planned.namespace, planned.name)
            if live is None:
                raise  # it was there and is gone: the caller's next try will create it
            if ownership.same_start(live, identity.manager, planned.digest, DIGEST):
                return live  # our own request, whose answer was lost
            raise AlreadyThere(f"{planned.reference} exists already", live) from error

    async def apply_held(
        self, kind: Kind, planned: Planned, identity: Identity, uid: str, *, force: bool = False
    ) -> dict[str, Any]:
        """Bring an object that we hold to the new intent; bound to its UID, so never re-created.

        ``force`` takes every field from its present manager.

        Raises:
            Conflict: a field belongs to another manager, or the object was replaced.
            ClusterError: refused for another reason, such as an immutable field.
        """
        manifest = _with_metadata(planned.manifest, uid=uid)
        return await self._write(
            lambda: self.api.apply(kind, manifest, manager=identity.manager, force=force)
        )

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """The live object, or None."""
        path = kind.path(namespace, name)
        try:
            found = await self._retry(lambda: self.api.call("GET", path))
        except NotFound:
            return None
        except Forbidden:
            if await self.has_ended(namespace):
                return None
            raise
        return dict(found)

    async def delete_matching(
        self,
        kind: Kind,
        namespace: str,
        selection: Selection[Meta],
        *,
        grace: int | None = None,
    ) -> list[Meta]:
        """Delete what is selected; one request, or one an object where that is refused.

        Returns the objects that were there. One that refuses to go does not keep the others.

        Raises:
            ClusterError: some could not be deleted; the message names each.
        """
        if "deletecollection" in kind.verbs and kind not in self._one_by_one:
            try:
                return await self._delete_collection(kind, namespace, selection.selector, grace)
            except NotFound:
                return []
            except Unavailable:
                raise
            except ClusterError as error:
                self._log.info("Deleting %s one by one: %s", kind, error)
                if isinstance(error, Forbidden):
                    self._one_by_one.add(kind)
        return await self.delete_listed(kind, namespace, selection, grace=grace)

    async def delete_listed(
        self,
        kind: Kind,
        namespace: str | None,
        selection: Selection[Meta],
        *,
        grace: int | None = None,
    ) -> list[Meta]:
        """List, check each object here, then delete by UID; for kinds that we only discovered."""
        metas = await self.list_metadata(kind, namespace, selection.selector)
        found = [meta for meta in metas if selection.matches(meta)]

        async def delete(meta: Meta) -> ClusterError | None:
            try:
                await self._delete_one(kind, meta, grace)
            except NotFound:
                return None
            except ClusterError as error:
                return error
            return None

        answers = list(zip(found, await each(delete, found), strict=True))
        refused = [(meta, error) for meta, error in answers if error is not None]
        if refused:
            _, first = refused[0]
            raise type(first)(
                "; ".join(f"{kind.kind}/{m.namespace}/{m.name}: {e}" for m, e in refused),
                code=first.code,
                reason=first.reason,
                deleted=[meta for meta, error in answers if error is None],
            )
        return found

    async def delete_now(self, kind: Kind, meta: Meta) -> None:
        """Delete an object without waiting for its node, which may still run its process."""
        with contextlib.suppress(NotFound):
            await self._delete_one(kind, meta, 0)

    async def list_metadata(self, kind: Kind, namespace: str | None, selector: str) -> list[Meta]:
        """Metadata of what the selector finds; [] where the kind or namespace is not served."""
        found: list[Meta] = []
        params = {"labelSelector": selector, "limit": "500"}
        path = kind.path(namespace)
        while True:
            try:
                page = await self._retry(
                    lambda: self.api.call("GET", path, params=params, accept=METADATA_LIST)
                )
            except NotFound:
                return found
            found += _metas(page)
            proceed = (page.get("metadata") or {}).get("continue")
            if not proceed:
                return found
            params["continue"] = proceed

    async def _delete_collection(
        self, kind: Kind, namespace: str, selector: str, grace: int | None
    ) -> list[Meta]:
        path = kind.path(namespace)
        # Options travel in the body only: with a body present, those in the query are ignored.
        answer = await self._write(
            lambda: self.api.call(
                "DELETE",
                path,
                params={"labelSelector": selector},
                accept=METADATA_LIST,
                body=_options(kind, grace),
            )
        )
        return _metas(answer)

    async def _delete_one(self, kind: Kind, meta: Meta, grace: int | None) -> None:
        path = kind.path(meta.namespace, meta.name)
        options = {**_options(kind, grace), "preconditions": {"uid": meta.uid}}
        try:
            await self._write(lambda: self.api.call("DELETE", path, body=options))
        except Conflict as error:
            raise NotFound(f"{meta.name} was replaced meanwhile") from error

    async def _write(self, operation: Callable[[], Awaitable[T]]) -> T:
        async def in_turn() -> T:
            async with self._writes:  # not while it waits to try again: others may get through
                return await operation()

        return await self._retry(in_turn)

    async def _retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await retried(operation, self._log)


def _with_metadata(manifest: dict[str, Any], **fields: str) -> dict[str, Any]:
    return {**manifest, "metadata": {**manifest["metadata"], **fields}}


def _options(kind: Kind, grace: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": propagation(kind),
    }
    if grace is not None:
        options["gracePeriodSeconds"] = grace
    return options


def _metas(listing: Any) -> list[Meta]:
    items = listing.get("items") or () if isinstance(listing, dict) else ()
    return [msgspec.convert(item["metadata"], Meta) for item in items]


_shared: dict[tuple[asyncio.AbstractEventLoop, str, str, str], Cluster] = {}


def shared(
    kubeconfig: str, context: str, instance: str, log: logging.Logger, *, timeout: float
) -> Cluster:
    """The cluster that every spawner of this hub uses on this event loop; opened at first use.

    It closes itself when the hub cancels its tasks at exit.

    Raises:
        ConfigurationError: no cluster is configured, or its kubeconfig cannot be used.
    """
    loop = asyncio.get_running_loop()
    for key in [key for key in _shared if key[0].is_closed()]:
        del _shared[key]
    key = (loop, kubeconfig, context, instance)
    if key not in _shared:
        api = Api(kubeconfig or None, context or None, timeout=timeout)
        _shared[key] = Cluster(api, instance, log)
    return _shared[key]
