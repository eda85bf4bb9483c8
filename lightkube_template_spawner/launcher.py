"""Starting a server: plan, clear what is left, apply by rank, wait until it answers; then its URL.

``launch`` cleans nothing up: on an error it raises, on a cancel it ends at once. The hub then calls
``stop``, whose removal by label is the one way in which objects go.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import anyio

from lightkube_template_spawner import connection, liveness, manifests, status
from lightkube_template_spawner.api import Kind
from lightkube_template_spawner.applying import Applying
from lightkube_template_spawner.cluster import Cluster
from lightkube_template_spawner.connection import Route
from lightkube_template_spawner.errors import Forbidden, StartFailed, StartTimeout
from lightkube_template_spawner.events import Event, EventFeed
from lightkube_template_spawner.identity import KINDS, WAIT, Identity, Policy
from lightkube_template_spawner.manifests import Plan, Planned, Rules
from lightkube_template_spawner.record import Connection, Record
from lightkube_template_spawner.reflector import Live
from lightkube_template_spawner.removal import Removal
from lightkube_template_spawner.status import State, Status
from lightkube_template_spawner.together import each

Tell = Callable[[str, int], None]  # a sentence for the user, and the progress in per cent

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

    async def launch(
        self,
        documents: Mapping[str, manifests.Source],
        *,
        before: Record | None,
        save: Callable[[Record], None],
        feed: EventFeed,
        timeout: float,
    ) -> Record:
        """Bring the rendered objects to life; the record of a ready server, with its URL.

        ``before`` is what an earlier start left on record; ``save`` is called before the first
        write, so that a hub that dies in the middle finds everything again.

        Raises:
            ConfigurationError: the template breaks the contract; nothing was written.
            NotOurs: an object belongs to somebody else; it was not written.
            StartFailed, StartTimeout, ClusterError: what happened, with the object's name.
        """
        waiting = _Waiting("the API server")
        try:
            with anyio.fail_after(timeout):
                plan, kinds = await self._plan(documents)
                await self._open_stores(plan, kinds)
                await self._remove_leftovers(before, timeout)
                record = self._record(plan, before)
                save(record)
                uids: set[str] = set()
                with feed.listen(lambda event: self._hear(event, uids, record), uids):
                    record = await self._apply(plan, kinds, record, uids, feed)
                    save(record)
                    url = await self._wait_until_ready(plan, record, waiting)
        except TimeoutError:
            raise self._late(timeout, waiting) from None
        ready = replace(record, url=url, ready=True)
        save(ready)
        return ready

    def _late(self, timeout: float, waiting: _Waiting) -> StartTimeout:
        """What was waited for, and what kept the hub from seeing it."""
        blind = {str(store.error) for store in self.cluster.stores() if store.error}
        text = "; ".join([f"waited for {waiting.what}", *sorted(blind)])
        return StartTimeout(f"not ready after {timeout:.0f} s: {text}")

    async def _plan(
        self, documents: Mapping[str, manifests.Source]
    ) -> tuple[Plan, dict[tuple[str, str], Kind]]:
        parsed = manifests.parse(documents)
        kinds = {d.kind: await self.cluster.discovery.kind(*d.kind) for d in parsed}
        plan = manifests.prepare(
            parsed,
            self.identity,
            self.rules,
            namespaced=lambda key: kinds[key].namespaced,
            nonce=secrets.token_hex(16),
        )
        for warning in plan.warnings:
            self.log.warning("%s", warning)
        return plan, kinds

    async def _open_stores(self, plan: Plan, kinds: Mapping[tuple[str, str], Kind]) -> None:
        """Share one watch a kind and namespace: leftovers and held objects then cost no request."""
        pods = await self.cluster.discovery.kind(*liveness.POD)
        home = plan.connection.namespace or self.rules.namespace
        stores = [self.cluster.reflector(pods, home)]
        for item in plan.objects:
            full = item is plan.connection or _waits(item)
            stores.append(
                self.cluster.reflector(kinds[item.kind], item.namespace or None, full=full)
            )
        if plan.connection.kind == ("v1", "Service"):
            slices = await self.cluster.discovery.kind(*liveness.SLICE)
            stores.append(self.cluster.reflector(slices, plan.connection.namespace))
        for store in dict.fromkeys(stores):
            try:
                await store.sync()
            except Forbidden as error:
                raise Forbidden(
                    f"{error}. The hub's account needs get, list, watch, create, patch and delete "
                    f"on {store.kind.plural} in namespace {store.namespace!r}",
                    code=error.code,
                    reason=error.reason,
                ) from error

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
        removal = Removal(self.cluster, self.log)
        await removal.stop(record, self.rules.lifecycle_key, timeout=timeout)

    def _record(self, plan: Plan, before: Record | None) -> Record:
        kept = plan.places(_RETAINED)
        for kind, places in (before.retained if before else {}).items():
            kept[kind] = tuple(sorted({*kept.get(kind, ()), *places}))
        item = plan.connection
        claims = (o.name for o in plan.objects if o.kind == ("v1", "PersistentVolumeClaim"))
        return Record(
            self.identity,
            self.rules.namespace,
            kinds=plan.places({Policy.STOPPED}),
            retained=kept,
            connection=Connection(*item.kind, item.namespace, item.name),
            pod=_server_pod(plan),
            pvc=next(claims, ""),
            live=True,
        )

    async def _apply(
        self,
        plan: Plan,
        kinds: Mapping[tuple[str, str], Kind],
        record: Record,
        uids: set[str],
        feed: EventFeed,
    ) -> Record:
        applying = Applying(self.cluster, self.identity, self.rules, kinds, self.log)
        done = 0
        uid = ""
        for _, rank in groupby(plan.objects, key=lambda item: item.rank):
            for live in await each(applying.put, rank):
                uid = live["metadata"]["uid"]
                uids.add(uid)
                for event in feed.about(uid):
                    self._say(event)
                done += 1
            self.tell(f"Applied {done} of {len(plan.objects)} objects", 10)
        item = plan.connection  # alone in the last rank, so the last UID is its
        return replace(record, connection=Connection(*item.kind, item.namespace, item.name, uid))

    async def _wait_until_ready(self, plan: Plan, record: Record, waiting: _Waiting) -> str:
        watched = [o for o in plan.objects if o is plan.connection or _waits(o)]
        bare = {o.name for o in plan.objects if o.kind == ("v1", "Pod")}
        seen: set[str] = set()

        def ready() -> str | None:
            for live in liveness.pods(self.cluster, record):
                over = status.ended(live.as_dict()) if live.meta.name in bare else None
                if over:
                    raise StartFailed(f"{live.reference} ended before it was ready: {over.reason}")
            for item in watched:
                verdict = self._judge(item, record, seen)
                if verdict.state is State.FAILED:
                    raise StartFailed(f"{item.reference}: {verdict.message}")
                if not verdict.ready:
                    waiting.update(f"{item.reference}: {verdict.message}", self.tell)
                    return None
            return self._url(record, waiting)

        return await self.cluster.changes.wait_until(self.identity.owner, ready)

    def _judge(self, item: Planned, record: Record, seen: set[str]) -> Status:
        """The status of one object; ``seen`` are those that the watch has shown before."""
        live = self._find(item.kind, item.namespace, item.name)
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
        if str(live.kind) != "v1/Service":
            return status.compute(live.as_dict())
        return status.service(
            live.as_dict(),
            [
                found.as_dict()
                for found in self.cluster.objects_of(self.identity.owner)
                if found.kind.kind == "EndpointSlice"
                and found.meta.namespace == live.meta.namespace
                and found.meta.labels.get("kubernetes.io/service-name") == live.meta.name
            ],
        )

    def _find(self, kind: tuple[str, str], namespace: str, name: str) -> Live | None:
        return self.cluster.known("/".join(kind), namespace, name)

    def _url(self, record: Record, waiting: _Waiting) -> str | None:
        made = record.connection
        if made is None:
            return None
        live = self._find((made.api_version, made.kind), made.namespace, made.name)
        if live is None:
            return None
        url = connection.url(live.as_dict(), self.route)
        if url is None:
            waiting.update(f"{made.reference}: it has no address yet", self.tell)
        return url

    async def adopt(self, record: Record, *, timeout: float) -> Record:
        """The record, with URL, of a server that an earlier hub started; waits until it is ready.

        Raises:
            StartFailed, StartTimeout, ClusterError: it does not become ready.
        """
        made = record.connection
        if made is None:
            raise StartFailed("there is no connection object on record")
        waiting = _Waiting("the API server")

        def ready() -> Record | None:
            live = self._find((made.api_version, made.kind), made.namespace, made.name)
            if live is None:
                raise StartFailed(f"{made.reference} does not exist")
            verdict = self._status(live)
            if verdict.state is State.FAILED:
                raise StartFailed(f"{made.reference}: {verdict.message}")
            if not verdict.ready:
                waiting.update(f"{made.reference}: {verdict.message}", self.tell)
                return None
            url = self._url(record, waiting)
            if url is None:
                return None
            known = replace(made, uid=live.meta.uid)
            return replace(record, connection=known, url=url, ready=True)

        try:
            with anyio.fail_after(timeout):
                await liveness.watch(self.cluster, record)
                return await self.cluster.changes.wait_until(self.identity.owner, ready)
        except TimeoutError:
            raise self._late(timeout, waiting) from None

    def _hear(self, event: Event, uids: set[str], record: Record) -> None:
        """Tell the user of events about this server's objects, pods of its controllers included."""
        if event.is_routine:
            return
        if event.uid in uids or any(
            live.meta.uid == event.uid for live in liveness.pods(self.cluster, record)
        ):
            self._say(event)

    def _say(self, event: Event) -> None:
        self.tell(f"{event.time} [{event.type}] {event.kind} {event.reason}: {event.message}", 50)


class _Waiting:
    """What a start waits for, told when it changes and named when time is up."""

    def __init__(self, what: str) -> None:
        self.what = what

    def update(self, what: str, tell: Tell) -> None:
        if what != self.what:
            self.what = what
            tell(f"Waiting for {what}", 30)


def _waits(item: Planned) -> bool:
    return bool(item.manifest["metadata"]["annotations"].get(WAIT) == "true")


def _server_pod(plan: Plan) -> str:
    """The pod that the template itself renders for the server; "" where a controller makes it."""
    if plan.connection.kind == ("v1", "Pod"):
        return plan.connection.name
    selector = (plan.connection.manifest.get("spec") or {}).get("selector")
    for item in plan.objects:
        beside = item.namespace == plan.connection.namespace  # where a Service looks
        if item.kind == ("v1", "Pod") and beside and isinstance(selector, Mapping):
            labels = item.manifest["metadata"]["labels"]
            if selector.items() <= labels.items():
                return item.name
    return ""
