"""Starting a server: plan, clear what is left, apply by rank, wait until it answers; then its URL.

``launch`` cleans nothing up: on an error it raises, on a cancel it ends at once. The hub then calls
``stop``, whose removal by label is the one way in which objects go.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.live import Live, Meta
from lightkube_template_spawner.cluster.rbac import is_missing_right
from lightkube_template_spawner.cluster.retry import within
from lightkube_template_spawner.concurrency import each
from lightkube_template_spawner.errors import Forbidden, NameTaken, StartFailed
from lightkube_template_spawner.lifecycle import failures, liveness
from lightkube_template_spawner.lifecycle.apply import Applying
from lightkube_template_spawner.lifecycle.preflight import Access
from lightkube_template_spawner.lifecycle.readiness import Tell, Waiting
from lightkube_template_spawner.lifecycle.record import Record, merged
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects import plan as manifests
from lightkube_template_spawner.objects import status
from lightkube_template_spawner.objects.connection import Address, Route
from lightkube_template_spawner.objects.identity import KINDS, USERID, WAIT, Identity, Policy
from lightkube_template_spawner.objects.plan import Plan, Planned, Rules
from lightkube_template_spawner.objects.ref import CLAIM, POD, SERVICE
from lightkube_template_spawner.objects.status import State, Status

_RETAINED = (Policy.SERVER_DELETED, Policy.USER_DELETED)


@dataclass(frozen=True)
class Launcher:
    """Starts one server; everything that does not change between its steps."""

    cluster: Cluster
    identity: Identity
    rules: Rules
    route: Route
    log: logging.Logger
    tell: Tell
    limits: failures.Rules = field(default_factory=failures.Rules)
    force_lost: bool = False  # delete what a lost node keeps, as `Removal` does
    another: Callable[[Meta], bool] = lambda _: False  # was it made for another user of this hub?

    async def launch(
        self,
        documents: Mapping[str, manifests.Source],
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
        waiting = self._waiting(Record(self.identity, self.rules.namespace))
        try:
            with within(timeout, self.limits.retried_for):
                plan, kinds = await self._plan(documents)
                home = plan.connection.namespace or self.rules.namespace
                access = Access(self.cluster, plan, kinds, home, self.log)
                await access.open()
                self._check_name()
                await self._remove_leftovers(before, timeout)
                record = self._record(plan, before)
                save(record)
                waiting.record = record
                with waiting.listening():
                    record = await self._apply(plan, record, waiting, access)
                    save(record)
                    url = await self._wait_until_ready(plan, record, waiting)
        except TimeoutError as error:
            raise waiting.late(timeout, str(error)) from None
        except Forbidden as error:
            if is_missing_right(error):  # a role was changed: the next start asks again
                self.cluster.rights.forget()
            raise
        ready = replace(record, url=url, ready=True)
        save(ready)
        return ready

    def _waiting(self, record: Record) -> Waiting:
        return Waiting(self.cluster, record, self.limits, self.tell, self.log)

    async def _plan(
        self, documents: Mapping[str, manifests.Source]
    ) -> tuple[Plan, dict[tuple[str, str], Kind]]:
        parsed = manifests.parse(documents)
        kinds: dict[tuple[str, str], Kind] = {
            d.kind: await self.cluster.discovery.kind(*d.kind) for d in parsed
        }
        plan = manifests.prepare(
            parsed,
            self.identity,
            self.rules,
            namespaced=lambda kind: kinds[kind].namespaced,
            nonce=secrets.token_hex(16),
        )
        for warning in plan.warnings:
            self.log.warning("%s", warning)
        return plan, kinds

    def _check_name(self) -> None:
        """Objects that go by this user's name may have been made for somebody else."""
        own = str(self.identity.userid)
        for live in self.cluster.objects_of(self.identity.owner):
            userid = live.meta.annotations.get(USERID, own)
            if self.another(live.meta):
                raise NameTaken(
                    f"{live.reference} is that of another user, who was renamed and still goes by "
                    f"the name {self.identity.username!r} in the cluster"
                )
            if userid != own:
                self.log.warning(
                    "%s was made for user %s of the hub, whom it no longer knows: it is used, for "
                    "the name %r is the same",
                    live.reference,
                    userid,
                    self.identity.username,
                )

    def _leftovers(self) -> list[Live]:
        """Objects of an earlier run of this server that should have gone with it."""
        return [
            live
            for live in self.cluster.objects_of(self.identity.owner)
            if self.identity.owns_as_server(live.meta.labels)
            and live.meta.labels.get(self.rules.lifecycle_key) == Policy.STOPPED
            and not live.meta.controlled
        ]

    async def _remove_leftovers(self, before: Record | None, timeout: float) -> None:
        found = self._leftovers()
        if not found and not (before and before.live):
            return
        self.tell("Removing what an earlier server left behind", 5)
        self.log.info("Leftovers: %s", ", ".join(live.reference for live in found) or "on record")
        places: dict[str, set[str]] = {
            k: set(v) for k, v in (before.kinds if before else {}).items()
        }
        for live in found:
            places.setdefault(str(live.kind), set()).add(live.meta.namespace)
            for kind in filter(None, live.meta.annotations.get(KINDS, "").split(",")):
                places.setdefault(kind, set()).add(live.meta.namespace)
        record = Record(
            self.identity,
            self.rules.namespace,
            kinds={kind: tuple(names) for kind, names in places.items()},
            connection=before.connection if before else None,
        )
        removal = Removal(self.cluster, self.log, force_lost=self.force_lost)
        await removal.stop(record, self.rules.lifecycle_key, timeout=timeout)

    def _record(self, plan: Plan, before: Record | None) -> Record:
        item = plan.connection
        claims = (o.name for o in plan.objects if o.kind == CLAIM)
        return Record(
            self.identity,
            self.rules.namespace,
            kinds=plan.places({Policy.STOPPED}),
            retained=merged(plan.places(_RETAINED), before.retained if before else {}),
            connection=item.ref,
            address=Address.written(item.manifest, self.rules.connection_key),
            pod=_server_pod(plan),
            pvc=next(claims, ""),
            live=True,
        )

    async def _apply(self, plan: Plan, record: Record, waiting: Waiting, access: Access) -> Record:
        applying = Applying(self.cluster, self.identity, self.rules, access.kinds, self.log)
        done = 0
        uid = ""
        for rank, items in groupby(plan.objects, key=lambda item: item.rank):
            if rank > manifests.BINDINGS:
                await access.complete()
            for live in await each(applying.put, items):
                uid = live["metadata"]["uid"]
                waiting.made(uid)
                done += 1
            self.tell(f"Applied {done} of {len(plan.objects)} objects", 10)
        # The connection object is alone in the last rank, so the last UID is its.
        return replace(record, connection=replace(plan.connection.ref, uid=uid))

    async def _wait_until_ready(self, plan: Plan, record: Record, waiting: Waiting) -> str:
        watched = [o for o in plan.objects if o is plan.connection or _waits(o)]
        seen: set[str] = set()

        def ready() -> str | None:
            for item in watched:
                verdict = self._judge(item, record, seen)
                if verdict.state is State.FAILED:
                    raise StartFailed(f"{item.reference}: {verdict.message}")
                if not verdict.ready:
                    waiting.update(f"{item.reference}: {verdict.message}")
                    return None
            return self._url(record, waiting)

        return await waiting.until(ready)

    def _judge(self, item: Planned, record: Record, seen: set[str]) -> Status:
        """The status of one object; ``seen`` are those that the watch has shown before."""
        live = Server(self.cluster, record).find(item.ref)
        if live is None and item.reference in seen:
            return Status(State.FAILED, "it was deleted while the server started")
        if live is None:
            return Status(State.IN_PROGRESS, "it is being created")
        seen.add(item.reference)
        connection = record.connection
        if item.rank == manifests.LAST and connection and live.meta.uid != connection.uid:
            return Status(State.IN_PROGRESS, "an earlier one is still there")
        return self._status(live)

    def _status(self, live: Live) -> Status:
        if live.kind.ref != SERVICE:
            return status.compute(live.as_dict())
        owner, service = self.identity.owner, live.meta
        return status.service(
            live.as_dict(), liveness.slices(self.cluster, owner, service.namespace, service.name)
        )

    def _url(self, record: Record, waiting: Waiting) -> str | None:
        made = record.connection
        if made is None:
            return None
        url = Server(self.cluster, record).url(self.route)
        if url is None:
            waiting.update(f"{made}: it has no address yet")
        return url

    async def adopt(self, record: Record, *, timeout: float) -> Record:
        """The record, with URL, of a server that an earlier hub started; waits until it is ready.

        Raises:
            StartFailed, StartTimeout, ClusterError: it does not become ready.
        """
        made = record.connection
        if made is None:
            raise StartFailed("there is no connection object on record")
        waiting, server = self._waiting(record), Server(self.cluster, record)

        def ready() -> Record | None:
            live = server.connection()
            if live is None:
                raise StartFailed(f"{made} does not exist")
            verdict = self._status(live)
            if verdict.state is State.FAILED:
                raise StartFailed(f"{made}: {verdict.message}")
            if not verdict.ready:
                waiting.update(f"{made}: {verdict.message}")
                return None
            url = self._url(record, waiting)
            if url is None:
                return None
            known = replace(made, uid=live.meta.uid)
            address = server.address(live, self.route)
            return replace(record, connection=known, address=address, url=url, ready=True)

        try:
            with within(timeout), waiting.listening():
                await liveness.watch(self.cluster, record)
                await self._watch_controllers(record)
                for live in self.cluster.objects_of(self.identity.owner):
                    if self.identity.owns_as_server(live.meta.labels):
                        waiting.made(live.meta.uid)
                return await waiting.until(ready)
        except TimeoutError as error:
            raise waiting.late(timeout, str(error)) from None

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
