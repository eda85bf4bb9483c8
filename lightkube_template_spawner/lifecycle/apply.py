"""Putting planned objects on the cluster: create the new, update the held, leave others alone."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio
import msgspec

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.live import Meta
from lightkube_template_spawner.errors import (
    AlreadyThere,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NotOurs,
    StartFailed,
    Unavailable,
)
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.removal import Removal, held
from lightkube_template_spawner.objects import ownership
from lightkube_template_spawner.objects import unknown_fields as schema
from lightkube_template_spawner.objects.identity import DIGEST, SERVERNAME, Identity, Policy
from lightkube_template_spawner.objects.ownership import Relation
from lightkube_template_spawner.objects.plan import Contract, Planned
from lightkube_template_spawner.objects.ref import CLAIM

T = TypeVar("T")

# A namespace refuses pods until its controller has made this, a tenth of a second after it.
_NO_ACCOUNT = 'serviceaccount "default" not found'
_ACCOUNT_WAIT, _PAUSE = 10.0, 0.1
_TRIES = 3
_CLEARING = 60.0  # at most, within the start's own time


class Applier:
    """Applies one plan's objects for one server."""

    def __init__(
        self,
        cluster: Cluster,
        identity: Identity,
        contract: Contract,
        kinds: Mapping[tuple[str, str], Kind],
        log: logging.Logger,
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._contract = contract
        self._kinds = kinds
        self._log = log

    async def apply(self, item: Planned) -> dict[str, Any]:
        """Create or update one object; the live object.

        Raises:
            NotOurs: somebody else has it; it was not written.
            ClusterError: refused; the message names the object and its file.
        """
        kind = self._kinds[item.kind]
        try:
            put = self._create if item.policy is Policy.STOPPED else self._hold
            live = await _once_accepted(partial(put, kind, item))
        except (Forbidden, NotFound, Invalid, Unavailable) as error:
            raise type(error)(
                f"{item.reference} ({item.source}) was refused: {error}",
                code=error.code,
                reason=error.reason,
                causes=error.causes,
            ) from error
        return live

    async def _create(self, kind: Kind, item: Planned) -> dict[str, Any]:
        """Create what must be new; only this very server's own leftover may be in the way."""
        for attempt in range(_TRIES):
            try:
                return await self._make(kind, item)
            except AlreadyThere as error:
                if attempt == _TRIES - 1:
                    raise
                await self._clear_the_way(kind, item, error.live)
            except Conflict:
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _make(self, kind: Kind, item: Planned) -> dict[str, Any]:
        return await self._with_known_fields(
            item, partial(self._cluster.create, kind, identity=self._identity)
        )

    async def _clear_the_way(self, kind: Kind, item: Planned, live: Mapping[str, Any]) -> None:
        metadata = live["metadata"]
        labels = metadata.get("labels") or {}
        if ownership.relation(metadata, self._identity) is not Relation.OURS:
            raise _foreign(item, metadata)
        self._refuse_other_servers(item, metadata)
        if labels.get(self._contract.lifecycle_key) != Policy.STOPPED:
            raise NotOurs(
                f"{item.reference} ({item.source}) was made to outlive its server (lifecycle "
                f"{labels.get(self._contract.lifecycle_key)}) and is now rendered as "
                f"{Policy.STOPPED}: delete it by hand, or keep its lifecycle"
            )
        record = Record(
            self._identity,
            self._contract.namespace,
            kinds={str(kind): (item.namespace,)},
            live=True,
        )
        removal = Removal(self._cluster, self._log)
        await removal.stop(record, self._contract.lifecycle_key, timeout=_CLEARING)

    def _refuse_other_servers(self, item: Planned, metadata: Mapping[str, Any]) -> None:
        server = (metadata.get("labels") or {}).get(SERVERNAME)
        if server not in (None, self._identity.server_slug):
            raise NotOurs(
                f"{item.reference} ({item.source}) is in use by another server of this user: "
                f"{ownership.describe(metadata)}. Make its name of `escaped_user_server`, or give "
                f"it the lifecycle {Policy.USER_DELETED} to share it"
            )

    async def _hold(self, kind: Kind, item: Planned) -> dict[str, Any]:
        """Create a retained object, or bring the one that we hold to the new intent."""
        stored = self._cluster.find(item.ref)
        live = stored.as_dict() if stored else None
        for _ in range(_TRIES):
            if live is None:
                try:
                    return await self._make(kind, item)
                except AlreadyThere as error:
                    live = dict(error.live)
                except Conflict:
                    continue  # it went while we looked
            result = await self._take(kind, item, live)
            if result is not None:
                return result
            live = None
        raise StartFailed(f"{item.reference} was deleted or replaced while it was applied")

    async def _take(self, kind: Kind, item: Planned, live: dict[str, Any]) -> dict[str, Any] | None:
        """Use the object that is there; None when it is gone."""
        metadata = live["metadata"]
        claim = item.kind == CLAIM
        remembered = claim and item.name == self._contract.former_pvc
        relation = ownership.relation(metadata, self._identity, remembered=remembered)
        if relation is Relation.FOREIGN:
            raise _foreign(item, metadata)
        if metadata.get("deletionTimestamp"):
            await self._until_gone(kind, metadata)
            return None
        if relation is Relation.FORMER and self._contract.adopt_retained:
            return await self._adopt(kind, item, metadata["uid"])
        if relation is Relation.FORMER:
            self._log.warning(
                "%s was made by a former spawner: it is used as it is, not written, and not "
                "deleted with the user; `adopt_retained` takes such objects over",
                item.reference,
            )
            return live
        if (metadata.get("labels") or {}).get(self._contract.lifecycle_key) != Policy.USER_DELETED:
            self._refuse_other_servers(item, metadata)
        if (metadata.get("annotations") or {}).get(DIGEST) == item.digest:
            return live
        return await self._update(kind, item, metadata["uid"])

    async def _until_gone(self, kind: Kind, metadata: Mapping[str, Any]) -> None:
        """Applying onto what is being deleted succeeds, and it vanishes all the same."""
        target = kind, msgspec.convert(metadata, Meta)
        with anyio.move_on_after(self._cluster.timing.going):
            await Removal(self._cluster, self._log).gone(target)
            return
        raise StartFailed(
            f"{held(target)} is being deleted: start again when it is gone; its contents go with it"
        )

    async def _adopt(self, kind: Kind, item: Planned, uid: str) -> dict[str, Any]:
        """Make a former spawner's object ours, whatever its present managers say."""
        take = partial(self._cluster.apply_held, kind, identity=self._identity, uid=uid, force=True)
        self._log.warning("%s of a former spawner is taken over", item.reference)
        try:
            return await self._with_known_fields(item, take)
        except (Invalid, Forbidden) as error:
            # A volume of another size or class. Its labels decide whose it is.
            self._log.warning(
                "%s keeps its present state but for its labels: %s", item.reference, error
            )
            manifest = {key: item.manifest[key] for key in ("apiVersion", "kind", "metadata")}
            return await take(replace(item, manifest=manifest))

    async def _update(self, kind: Kind, item: Planned, uid: str) -> dict[str, Any] | None:
        """Apply the new intent to our own object; what refuses it is kept; None when it is gone.

        A field that somebody else has changed since is left to them, and the rest is applied.
        """
        hold = partial(self._cluster.apply_held, kind, identity=self._identity, uid=uid)
        conflicts: dict[str, str] = {}
        try:
            try:
                return await self._with_known_fields(item, hold)
            except Conflict as error:
                conflicts = {cause["field"]: cause["message"] for cause in error.causes}
                if not conflicts:
                    raise
                rest = replace(item, manifest=schema.without(item.manifest, [*conflicts]))
                live = await self._with_known_fields(rest, hold)
        except (Conflict, Invalid, Forbidden) as error:
            # Forbidden: admission says so of a class that cannot grow volumes, or a quota is full.
            now = await self._cluster.get(kind, item.namespace, item.name)
            if now is None or now["metadata"]["uid"] != uid:
                return None
            self._log.warning(
                "%s keeps its present state, the template's change was refused: %s",
                item.reference,
                error,
            )
            return now
        self._log.warning(
            "%s keeps its present state where it was changed by hand or by a controller: %s; the "
            "rest of the template's change was applied",
            item.reference,
            "; ".join(f"{field} ({why})" for field, why in conflicts.items()),
        )
        return live

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
            paths = schema.undeclared(str(error))
            if not paths:
                raise
            for path in paths:
                self._log.warning(
                    "%s (%s): the field %s is not part of a %s and was left out; correct the "
                    "template",
                    item.reference,
                    item.source,
                    path,
                    item.kind[1],
                )
            return dict(await put(replace(item, manifest=schema.without(item.manifest, paths))))


async def _once_accepted(put: Callable[[], Awaitable[T]]) -> T:
    deadline = anyio.current_time() + _ACCOUNT_WAIT
    while True:
        try:
            return await put()
        except Forbidden as error:
            if _NO_ACCOUNT not in str(error) or anyio.current_time() > deadline:
                raise
        await anyio.sleep(_PAUSE)


def _foreign(item: Planned, metadata: Mapping[str, Any]) -> NotOurs:
    return NotOurs(
        f"{item.reference} ({item.source}) exists and is not this user's: "
        f"{ownership.describe(metadata)}. It was left as it is; give the object another name in "
        "the template"
    )
