"""The only writer: create, apply, delete; one shared instance per API server, hub and event loop.

Ownership is enforced by the API server itself. An object that must be new is applied with a
resource version that no object has: absent, it is created; present, 409 and nothing is written. One
that we hold is applied under its UID. Only ``adopt_retained`` forces anything, under a UID too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import msgspec

from lightkube_template_spawner.cluster.api import METADATA_LIST, Api, Kind
from lightkube_template_spawner.cluster.kinds import propagation
from lightkube_template_spawner.cluster.live import Meta
from lightkube_template_spawner.cluster.retry import retry
from lightkube_template_spawner.cluster.stores import Stores
from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import (
    AlreadyThere,
    ClusterError,
    Conflict,
    Forbidden,
    NotFound,
    Unavailable,
)
from lightkube_template_spawner.objects import ownership
from lightkube_template_spawner.objects.identity import DIGEST, Identity, Selection
from lightkube_template_spawner.objects.plan import Planned

T = TypeVar("T")

_WRITES_IN_FLIGHT = 8
# No object ever has it, so an apply that carries it can only create.
_MUST_BE_NEW = "1"


class Cluster(Stores):
    """Stores, discovery and writes for one hub instance on one API server."""

    def __init__(
        self, api: Api, instance: str, log: logging.Logger, timing: Timing = DEFAULT
    ) -> None:
        super().__init__(api, instance, log, timing)
        self._writes = anyio.CapacityLimiter(_WRITES_IN_FLIGHT)
        self._one_by_one: set[Kind] = set()  # we may not delete collections of these

    async def has_ended(self, namespace: str) -> bool:
        """Whether the namespace goes or is gone, and with it, perhaps, our rights in it."""
        if not namespace:
            return False
        try:
            kind = await self.discovery.kind("v1", "Namespace")
            live = await self._retry(lambda: self.api.call("GET", kind.path(None, namespace)))
        except NotFound:
            self.leave(namespace)
            return True
        except ClusterError:
            return False
        return bool(live["metadata"].get("deletionTimestamp"))

    async def create(self, kind: Kind, item: Planned, identity: Identity) -> dict[str, Any]:
        """Create the object, or refuse: never write to one that is there.

        Raises:
            AlreadyThere: an object of that name exists; nothing was written.
            ClusterError: refused for another reason.
        """
        manifest = _with_metadata(item.manifest, resourceVersion=_MUST_BE_NEW)
        try:
            return await self._write(
                lambda: self.api.apply(kind, manifest, manager=identity.manager)
            )
        except Conflict as error:
            live = await self.get(kind, item.namespace, item.name)
            if live is None:
                raise  # it was there and is gone: the caller's next try will create it
            if ownership.same_start(live, identity.manager, item.digest, DIGEST):
                return live  # our own request, whose answer was lost
            raise AlreadyThere(f"{item.reference} exists already", live) from error

    async def apply_held(
        self, kind: Kind, item: Planned, identity: Identity, uid: str, *, force: bool = False
    ) -> dict[str, Any]:
        """Bring an object that we hold to the new intent; bound to its UID, so never re-created.

        ``force`` takes every field from its present manager.

        Raises:
            Conflict: a field belongs to another manager, or the object was replaced.
            ClusterError: refused for another reason, such as an immutable field.
        """
        manifest = _with_metadata(item.manifest, uid=uid)
        return await self._write(
            lambda: self.api.apply(kind, manifest, manager=identity.manager, force=force)
        )

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """The live object, or None."""
        path = kind.path(namespace, name)
        try:
            live = await self._retry(lambda: self.api.call("GET", path))
        except NotFound:
            return None
        except Forbidden:
            if await self.has_ended(namespace):
                return None
            raise
        return dict(live)

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
        targets = [meta for meta in metas if selection.matches(meta)]

        async def delete(meta: Meta) -> ClusterError | None:
            try:
                await self._delete_one(kind, meta, grace)
            except NotFound:
                return None
            except ClusterError as error:
                return error
            return None

        answers = list(zip(targets, await gather(delete, targets), strict=True))
        refusals = [(meta, error) for meta, error in answers if error is not None]
        if refusals:
            _, first = refusals[0]
            raise type(first)(
                "; ".join(f"{kind.kind}/{m.namespace}/{m.name}: {e}" for m, e in refusals),
                code=first.code,
                reason=first.reason,
                deleted=[meta for meta, error in answers if error is None],
            )
        return targets

    async def delete_now(self, kind: Kind, meta: Meta) -> None:
        """Delete an object without waiting for its node, which may still run its process."""
        with contextlib.suppress(NotFound):
            await self._delete_one(kind, meta, 0)

    async def list_metadata(self, kind: Kind, namespace: str | None, selector: str) -> list[Meta]:
        """Metadata of what the selector finds; [] where the kind or namespace is not served."""
        metas: list[Meta] = []
        params = {"labelSelector": selector, "limit": "500"}
        path = kind.path(namespace)
        while True:
            try:
                page = await self._retry(
                    lambda: self.api.call("GET", path, params=params, accept=METADATA_LIST)
                )
            except NotFound:
                return metas
            metas += _metas(page)
            proceed = (page.get("metadata") or {}).get("continue")
            if not proceed:
                return metas
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
        return await retry(operation, self._log, self.timing)


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
