"""Starting a server: plan, clear what is left, apply by rank, wait until it answers; then its URL.

``launch`` cleans nothing up: on an error it raises, on a cancel it ends at once. The hub then calls
``stop``, whose removal by label is the one way in which objects go.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.live import Live, Meta
from lightkube_template_spawner.cluster.rbac import is_missing_right
from lightkube_template_spawner.cluster.retry import deadline
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import Forbidden, NameTaken, StartFailed
from lightkube_template_spawner.lifecycle import failures, liveness
from lightkube_template_spawner.lifecycle.apply import Applier
from lightkube_template_spawner.lifecycle.preflight import Access
from lightkube_template_spawner.lifecycle.readiness import Tell, Waiter, Watch
from lightkube_template_spawner.lifecycle.record import Record, merged
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects import parsing
from lightkube_template_spawner.objects import plan as manifests
from lightkube_template_spawner.objects.connection import Address, Route
from lightkube_template_spawner.objects.identity import KINDS, USERID, WAIT, Identity, Policy
from lightkube_template_spawner.objects.plan import Contract, Plan, Planned
from lightkube_template_spawner.objects.ref import CLAIM, POD, ObjectRef
from lightkube_template_spawner.objects.status import State

_RETAINED = (Policy.SERVER_DELETED, Policy.USER_DELETED)


@dataclass(frozen=True)
class Launcher:
    """Starts one server; everything that does not change between its steps."""

    cluster: Cluster
    identity: Identity
    contract: Contract
    route: Route
    log: logging.Logger
    tell: Tell
    limits: failures.FailureRules = field(default_factory=failures.FailureRules)
    force_lost: bool = False  # delete what a lost node keeps, as `Removal` does
    # Whether an object was made for another user of this hub.
    is_anothers: Callable[[Meta], bool] = lambda _: False

    async def launch(
        self,
        documents: Mapping[str, list[Any]],
        *,
        before: Record | None,
        save: Callable[[Record], None],
        timeout: float,
    ) -> Record:
        """Bring the rendered objects to life; the record of a ready server, with its URL.

        ``before`` is what an earlier start left on record; ``save`` is called before the first
        write, so that a hub that dies in the middle finds everything again.

        Raises:
            ConfigurationError: the template breaks the contract; nothing was written.
            NameTaken: another user, renamed since, goes by this name; nothing was written.
            NotOurs: an object belongs to somebody else; it was not written.
            StartFailed, StartTimeout, ClusterError: what happened, with the object's name.
        """
        waiter = self._waiter(Record(self.identity, self.contract.namespace))
        try:
            with deadline(timeout, self.limits.retried_for):
                plan, kinds = await self._plan(documents)
                places = Record(self.identity, self.contract.namespace, kinds=plan.places())
                waiter.server = Server(self.cluster, places)
                home = plan.connection.namespace or self.contract.namespace
                access = Access(self.cluster, plan, kinds, home, self.log)
                await access.open()
                self._check_name()
                await self._remove_leftovers(waiter.server, before, timeout)
                record = self._record(plan, before)
                save(record)
                waiter.server = Server(self.cluster, record)
                with waiter.listening():
                    connection = await self._apply(plan, waiter, access)
                    record = replace(record, connection=connection)
                    save(record)
                    refs = [*(item.ref for item in plan.objects[:-1] if _waits(item)), connection]
                    waiter.server = Server(self.cluster, record)
                    result = await self._until_ready(refs, waiter, set(), access.watch)
        except TimeoutError as error:
            raise waiter.late(timeout, str(error)) from None
        except Forbidden as error:
            if is_missing_right(error):  # a role was changed: the next start asks again
                self.cluster.rights.forget()
            raise
        save(result)
        return result

    def _waiter(self, record: Record) -> Waiter:
        return Waiter(Server(self.cluster, record), self.limits, self.tell, self.log)

    async def _plan(
        self, documents: Mapping[str, list[Any]]
    ) -> tuple[Plan, dict[tuple[str, str], Kind]]:
        parsed = parsing.parse(documents)
        kinds: dict[tuple[str, str], Kind] = {
            d.kind: await self.cluster.discovery.kind(*d.kind) for d in parsed
        }
        plan = manifests.prepare(
            parsed,
            self.identity,
            self.contract,
            namespaced=lambda kind: kinds[kind].namespaced,
            nonce=secrets.token_hex(16),
        )
        for warning in plan.warnings:
            self.log.warning("%s", warning)
        return plan, kinds

    def _check_name(self) -> None:
        """Objects that go by this user's name may have been made for somebody else."""
        own_id = str(self.identity.userid)
        for live in self.cluster.objects_of(self.identity.owner):
            userid = live.meta.annotations.get(USERID, own_id)
            if self.is_anothers(live.meta):
                raise NameTaken(
                    f"{live.reference} is that of another user, who was renamed and still goes by "
                    f"the name {self.identity.username!r} in the cluster"
                )
            if userid != own_id:
                self.log.warning(
                    "%s was made for user %s of the hub, whom it no longer knows: it is used, for "
                    "the name %r is the same",
                    live.reference,
                    userid,
                    self.identity.username,
                )

    def _leftovers(self, server: Server) -> list[Live]:
        """Objects of an earlier run of this server that should have gone with it."""
        return [
            live
            for live in server.objects()
            if live.meta.labels.get(self.contract.lifecycle_key) == Policy.STOPPED
            and not live.meta.controlled
        ]

    async def _remove_leftovers(
        self, server: Server, before: Record | None, timeout: float
    ) -> None:
        leftovers = self._leftovers(server)
        if not leftovers and not (before and before.live):
            return
        self.tell("Removing what an earlier server left behind", 5)
        self.log.info(
            "Leftovers: %s", ", ".join(live.reference for live in leftovers) or "on record"
        )
        places: dict[str, set[str]] = {
            k: set(v) for k, v in (before.kinds if before else {}).items()
        }
        for live in leftovers:
            places.setdefault(str(live.kind), set()).add(live.meta.namespace)
            for kind in filter(None, live.meta.annotations.get(KINDS, "").split(",")):
                places.setdefault(kind, set()).add(live.meta.namespace)
        record = replace(
            server.record,
            kinds={kind: tuple(names) for kind, names in places.items()},
            connection=before.connection if before else None,
        )
        removal = Removal(self.cluster, self.log, force_lost=self.force_lost)
        await removal.stop(record, self.contract.lifecycle_key, timeout=timeout)

    def _record(self, plan: Plan, before: Record | None) -> Record:
        item = plan.connection
        claims = (o.name for o in plan.objects if o.kind == CLAIM)
        return Record(
            self.identity,
            self.contract.namespace,
            kinds=plan.places({Policy.STOPPED}),
            retained=merged(plan.places(_RETAINED), before.retained if before else {}),
            connection=item.ref,
            address=Address.written(item.manifest, self.contract.connection_key),
            pod=_server_pod(plan),
            pvc=next(claims, ""),
            live=True,
        )

    async def _apply(self, plan: Plan, waiter: Waiter, access: Access) -> ObjectRef:
        """Write all objects, rank by rank; the live connection object."""
        applier = Applier(self.cluster, self.identity, self.contract, access.kinds, self.log)
        count = 0
        uid = ""
        for rank, items in groupby(plan.objects, key=lambda item: item.rank):
            if rank > manifests.BINDINGS:
                await access.complete()
            for live in await gather(applier.apply, items):
                uid = live["metadata"]["uid"]
                waiter.made(uid)
                count += 1
            self.tell(f"Applied {count} of {len(plan.objects)} objects", 10)
        # The connection object is alone in the last rank, so the last UID is its.
        return replace(plan.connection.ref, uid=uid)

    async def adopt(self, record: Record, *, timeout: float) -> Record:
        """The record, with URL, of a server that an earlier hub started; waits until it is ready.

        Raises:
            StartFailed, StartTimeout, ClusterError: it does not become ready.
        """
        connection = record.connection
        if connection is None:
            raise StartFailed("there is no connection object on record")
        waiter = self._waiter(record)
        # Its UID is not on record where the earlier hub ended in the middle of the start.
        refs = [replace(connection, uid="")]
        try:
            with deadline(timeout), waiter.listening():
                watch = partial(liveness.watch, waiter.server)
                await watch()
                await self._watch_controllers(record)
                for live in waiter.server.objects():
                    waiter.made(live.meta.uid)
                return await self._until_ready(refs, waiter, {str(connection)}, watch)
        except TimeoutError as error:
            raise waiter.late(timeout, str(error)) from None

    async def _until_ready(
        self, refs: Sequence[ObjectRef], waiter: Waiter, sightings: set[str], watch: Watch
    ) -> Record:
        """The record, with URL, once these objects are ready; the connection object is the last."""
        server = waiter.server

        def ready() -> Record | None:
            for ref in refs:
                readiness = server.readiness(ref, sightings)
                if readiness.state is State.FAILED:
                    raise StartFailed(f"{ref}: {readiness.message}")
                if not readiness.ready:
                    waiter.update(f"{ref}: {readiness.message}")
                    return None
            live, url = server.connection(), server.url(self.route)
            if live is None or url is None:
                waiter.update(f"{refs[-1]}: it has no address yet")
                return None
            return replace(
                server.record,
                connection=replace(refs[-1], uid=live.meta.uid),
                address=server.address(live, self.route),
                url=url,
                ready=True,
            )

        return await waiter.until(ready, watch)

    async def _watch_controllers(self, record: Record) -> None:
        """What makes pods says why it cannot, also where a Service is what is connected to."""
        for kind in await self.cluster.discovery.named(record.kinds):
            if kind.group == "apps":
                for namespace in record.kinds[str(kind)]:
                    await self.cluster.watch(kind, namespace, full=True)


def _waits(item: Planned) -> bool:
    return bool(item.manifest["metadata"]["annotations"].get(WAIT) == "true")


def _server_pod(plan: Plan) -> str:
    """The pod that the template itself renders for the server; "" where a controller makes it."""
    if plan.connection.kind == POD:
        return plan.connection.name
    selector = (plan.connection.manifest.get("spec") or {}).get("selector")
    for item in plan.objects:
        beside = item.namespace == plan.connection.namespace  # where a Service looks
        if item.kind == POD and beside and isinstance(selector, Mapping):
            labels = item.manifest["metadata"]["labels"]
            if selector.items() <= labels.items():
                return item.name
    return ""
