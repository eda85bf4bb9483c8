"""Putting planned objects on the cluster: create the new, update the held, leave others alone."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from lightkube_template_spawner import ownership, schema
from lightkube_template_spawner.api import Kind
from lightkube_template_spawner.cluster import Cluster
from lightkube_template_spawner.errors import (
    AlreadyThere,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NotOurs,
    StartFailed,
)
from lightkube_template_spawner.identity import DIGEST, Identity, Policy
from lightkube_template_spawner.manifests import Planned, Rules
from lightkube_template_spawner.ownership import Relation
from lightkube_template_spawner.record import Record
from lightkube_template_spawner.removal import Removal

_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts", namespaced=True)
_ACCOUNT_WAIT = 10.0


class Applying:
    """Applies one plan's objects for one server."""

    def __init__(
        self,
        cluster: Cluster,
        identity: Identity,
        rules: Rules,
        kinds: Mapping[tuple[str, str], Kind],
        log: logging.Logger,
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._rules = rules
        self._kinds = kinds
        self._log = log

    async def put(self, item: Planned) -> dict[str, Any]:
        """Create or update one object; the live object.

        Raises:
            NotOurs: somebody else has it; it was not written.
            ClusterError: refused; the message names the object and its file.
        """
        kind = self._kinds[item.kind]
        try:
            put = self._create if item.policy is Policy.STOPPED else self._hold
            live = await put(kind, item)
        except (Forbidden, NotFound, Invalid) as error:
            raise type(error)(
                f"{item.reference} ({item.source}) was refused: {error}",
                code=error.code,
                reason=error.reason,
                causes=error.causes,
            ) from error
        if item.kind == ("v1", "Namespace"):
            await self._default_account(item.name)
        return live

    async def _create(self, kind: Kind, item: Planned) -> dict[str, Any]:
        """Create what must be new; only this very server's own leftover may be in the way."""
        for attempt in range(3):
            try:
                return await self._with_known_fields(
                    item, partial(self._cluster.create, kind, identity=self._identity)
                )
            except AlreadyThere as error:
                if attempt == 2:
                    raise
                await self._clear_the_way(kind, item, error.live)
            except Conflict:
                if attempt == 2:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _clear_the_way(self, kind: Kind, item: Planned, live: Mapping[str, Any]) -> None:
        metadata = live["metadata"]
        labels = metadata.get("labels") or {}
        if ownership.relation(metadata, self._identity) is not Relation.OURS:
            raise _foreign(item, metadata)
        if not self._identity.owns_as_server(labels):
            raise NotOurs(
                f"{item.reference} ({item.source}) is in use by another server of this user: "
                f"{ownership.describe(metadata)}. Make its name of `escaped_user_server`, or give "
                f"it the lifecycle {Policy.USER_DELETED} to share it"
            )
        if labels.get(self._rules.lifecycle_key) != Policy.STOPPED:
            raise NotOurs(
                f"{item.reference} ({item.source}) was made to outlive its server (lifecycle "
                f"{labels.get(self._rules.lifecycle_key)}) and is now rendered as "
                f"{Policy.STOPPED}: delete it by hand, or keep its lifecycle"
            )
        found = Record(
            self._identity, self._rules.namespace, kinds={str(kind): (item.namespace,)}, live=True
        )
        removal = Removal(self._cluster, self._log)
        await removal.stop(found, self._rules.lifecycle_key, timeout=60)

    async def _hold(self, kind: Kind, item: Planned) -> dict[str, Any]:
        """Create a retained object, or bring the one that we hold to the new intent."""
        known = self._cluster.known(str(kind), item.namespace, item.name)
        if known is None:
            try:
                return await self._with_known_fields(
                    item, partial(self._cluster.create, kind, identity=self._identity)
                )
            except AlreadyThere as error:
                live = dict(error.live)
        else:
            live = known.as_dict()
        metadata = live["metadata"]
        related = ownership.relation(metadata, self._identity)
        if related is Relation.FOREIGN:
            raise _foreign(item, metadata)
        if metadata.get("deletionTimestamp"):
            raise StartFailed(f"{item.reference} is being deleted: try again when it is gone")
        if related is Relation.FORMER:
            self._log.warning(
                "%s was made by a former spawner: it is used as it is, not written, and not "
                "deleted with the user",
                item.reference,
            )
            return live
        if (metadata.get("annotations") or {}).get(DIGEST) == item.digest:
            return live
        return await self._update(kind, item, live)

    async def _update(self, kind: Kind, item: Planned, live: dict[str, Any]) -> dict[str, Any]:
        """Apply the new intent to our own object; what refuses it is kept as it is."""
        hold = partial(self._cluster.apply_held, kind, identity=self._identity)
        try:
            return await self._with_known_fields(
                item, lambda planned: hold(planned, uid=live["metadata"]["uid"])
            )
        except (Conflict, Invalid, Forbidden) as error:
            # Forbidden: admission says so of a class that cannot grow volumes, or a quota is full.
            now = await self._cluster.get(kind, item.namespace, item.name)
            if now is None or now["metadata"]["uid"] != live["metadata"]["uid"]:
                raise StartFailed(
                    f"{item.reference} was deleted or replaced while it was applied"
                ) from error
            self._log.warning(
                "%s keeps its present state, the template's change was refused: %s",
                item.reference,
                error,
            )
            return now

    async def _with_known_fields(
        self, item: Planned, put: Callable[[Planned], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """Apply; fields that the kind's schema lacks are dropped with a warning.

        The API server does the same for clients that create objects; only apply refuses. Charts
        written for such clients (KubeTemplateSpawner's example has one) must go on working.
        """
        try:
            return dict(await put(item))
        except Invalid as error:
            unknown = schema.undeclared(str(error))
            if not unknown:
                raise
            for path in unknown:
                self._log.warning(
                    "%s (%s): the field %s is not part of a %s and was left out; correct the "
                    "template",
                    item.reference,
                    item.source,
                    path,
                    item.kind[1],
                )
            return dict(await put(replace(item, manifest=schema.without(item.manifest, unknown))))

    async def _default_account(self, namespace: str) -> None:
        """A new namespace refuses pods until its default account exists."""
        with anyio.move_on_after(_ACCOUNT_WAIT):
            try:
                # A watch for an object that takes 0.1 s, once in a namespace's life, costs more.
                while await self._cluster.get(_ACCOUNT, namespace, "default") is None:  # noqa: ASYNC110
                    await anyio.sleep(0.1)
            except Forbidden:
                return  # without the right to look, the pod's own refusal will tell


def _foreign(item: Planned, metadata: Mapping[str, Any]) -> NotOurs:
    return NotOurs(
        f"{item.reference} ({item.source}) exists and is not this user's: "
        f"{ownership.describe(metadata)}. It was left as it is; give the object another name in "
        "the template"
    )
