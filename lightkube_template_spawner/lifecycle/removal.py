"""Removing objects by label: at stop the kinds on record, with a user every kind that is served.

In phases: what runs goes first and is awaited; what confines and feeds it (network policies,
secrets, accounts) goes after, with its namespace where that goes; roles, which may be what lets us
do all this, go last. One object that refuses to go never keeps the others, but that
network policies stay with a pod that does. Whoever calls again goes on where the last call ended.
A pod on a node that does not answer is not waited for: it stays until its node tells.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import Enum, auto

import anyio

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.kinds import confines, gives_rights, is_workload
from lightkube_template_spawner.cluster.live import Live, Meta
from lightkube_template_spawner.cluster.retry import deadline
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import (
    ClusterError,
    Forbidden,
    NodeLost,
    NotFound,
    RemovalIncomplete,
    Unavailable,
)
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.objects import status
from lightkube_template_spawner.objects.identity import OWNER, SERVERNAME, Policy, Selection
from lightkube_template_spawner.objects.ref import NAMESPACE, POD, ObjectRef

Target = tuple[Kind, Meta]  # an object that is to go
Place = tuple[Kind, str]  # kind, namespace ("" for cluster-scoped)
Delete = Callable[[Place], Awaitable[list[Target]]]

_ASKING = 8  # at once, where nothing watches


class _Phase(Enum):
    """What goes after what is gone."""

    WORKLOADS = auto()  # and what the hub connects to
    NAMESPACES = auto()  # with what is left in them
    REST = auto()
    RIGHTS = auto()


def _phase_of(kind: Kind, leads: Callable[[Kind], bool]) -> _Phase:
    if leads(kind):
        return _Phase.WORKLOADS
    if kind.ref == NAMESPACE:
        return _Phase.NAMESPACES
    return _Phase.RIGHTS if gives_rights(kind) else _Phase.REST


def _is_needed_still(kind: Kind) -> bool:
    return confines(kind) or gives_rights(kind) or kind.ref == NAMESPACE


class Removal:
    """One removal: a deadline, what was asked to go, and what refused."""

    def __init__(
        self,
        cluster: Cluster,
        log: logging.Logger,
        *,
        grace: int | None = None,
        force_lost: bool = False,
    ) -> None:
        self._cluster = cluster
        self._log = log
        self._grace = grace
        self._force_lost = force_lost  # pods on nodes that do not answer go at once
        self._forced_uids: set[str] = set()
        self._losses: dict[str, str] = {}  # what such a node keeps, by UID
        self._refusals: list[str] = []
        self._spaces: set[str] = set()  # namespaces that go, with all that is in them
        # What the stores knew before we asked: an object's end may be seen before its answer comes.
        self._known_uids: set[str] = set()
        self._asking = anyio.CapacityLimiter(_ASKING)

    async def stop(
        self, record: Record, lifecycle_key: str, *, extra_kinds: Iterable[str] = (), timeout: float
    ) -> None:
        """Remove what goes when this server stops; at most one request a kind and namespace.

        ``extra_kinds`` are those that the administrator wants looked at, whatever is on record.

        Raises:
            RemovalIncomplete: objects are still there after ``timeout`` seconds.
            ClusterError: the API server could not be asked.
        """
        identity = record.identity
        selection = identity.selection(lifecycle_key, [Policy.STOPPED])
        places = dict(record.kinds)
        for kind in extra_kinds:
            places.setdefault(kind, record.namespaces)
        connection = record.connection

        def leads(kind: Kind) -> bool:
            return is_workload(kind) or (connection is not None and kind.ref == connection.kind)

        async def delete(place: Place) -> list[Target]:
            kind, namespace = place
            metas = await self._cluster.delete_matching(
                kind,
                namespace,
                selection,
                grace=self._grace if kind.ref == POD else None,
            )
            return [(kind, meta) for meta in metas]

        await self._phases(identity.owner, self._resolve(places), leads, delete, timeout)

    async def purge(
        self,
        selection: Selection[Meta],
        *,
        owner: str,
        namespaces: Iterable[str],
        known_kinds: Mapping[str, tuple[str, ...]],
        only_kinds: Iterable[str] = (),
        cluster_kinds: Iterable[str] = (),
        timeout: float,
    ) -> None:
        """Remove everything that is selected, in every kind there is.

        ``known_kinds`` are looked at even where the API server cannot tell our rights;
        ``only_kinds`` narrow the search to these and those.

        Raises:
            RemovalIncomplete, ClusterError: as ``stop``.
        """
        places = self._everywhere(namespaces, known_kinds, only_kinds, cluster_kinds)
        await self._phases(owner, places, is_workload, self._by_uid(selection), timeout)

    async def remove_listed(
        self,
        places: Iterable[Place],
        selection: Selection[Meta],
        *,
        timeout: float,
    ) -> None:
        """Remove what is selected in ``places``, and nothing elsewhere.

        Raises:
            RemovalIncomplete, ClusterError: as ``stop``.
        """

        async def listing() -> list[Place]:
            return list(places)

        await self._phases("", listing(), is_workload, self._by_uid(selection), timeout)

    def _by_uid(self, selection: Selection[Meta]) -> Delete:
        """Deleting one by one what is selected and no controller made."""
        targets = selection.where(lambda meta: not meta.controlled)

        async def delete(place: Place) -> list[Target]:
            kind, namespace = place
            metas = await self._cluster.delete_listed(kind, namespace, targets)
            return [(kind, meta) for meta in metas]

        return delete

    async def _resolve(self, places: Mapping[str, tuple[str, ...]]) -> list[Place]:
        kinds = {str(kind): kind for kind in await self._cluster.discovery.named(places)}
        return [(kinds[n], place) for n in kinds for place in places[n]]

    async def _everywhere(
        self,
        namespaces: Iterable[str],
        known_kinds: Mapping[str, tuple[str, ...]],
        only_kinds: Iterable[str],
        cluster_kinds: Iterable[str],
    ) -> list[Place]:
        discovery = self._cluster.discovery
        places = dict.fromkeys(await self._resolve(known_kinds))
        names = set(only_kinds)
        cluster_names = {*cluster_kinds}
        for namespace, kinds in (await discovery.deletable(namespaces)).items():
            if kinds is None:
                self._log.warning(
                    "The API server cannot tell what we may delete in %s: only kinds on record and "
                    "in `resource_kinds` are searched",
                    namespace,
                )
            for kind in await discovery.named(names) if kinds is None else kinds:
                if names and str(kind) not in names:
                    continue
                if kind.namespaced:
                    places[kind, namespace] = None
                elif str(kind) in cluster_names:
                    places[kind, ""] = None
        return list(places)

    async def _phases(
        self,
        owner: str,
        places: Awaitable[list[Place]],
        leads: Callable[[Kind], bool],
        delete: Delete,
        timeout: float,
    ) -> None:
        self._known_uids = {live.meta.uid for live in self._cluster.objects_of(owner)}
        # Within a start, end before it does: the message names what holds the objects.
        timeout = min(timeout, 0.8 * (anyio.current_effective_deadline() - anyio.current_time()))
        end = anyio.current_time() + timeout
        try:
            with deadline(timeout):
                locations = await places
        except TimeoutError as error:
            raise RemovalIncomplete(
                f"nothing was removed in {timeout:.0f} s: which kinds there are is not known: "
                f"{error}"
            ) from None
        leftovers: list[Target] = []
        for phase in _Phase:
            batch = [
                place
                for place in locations
                if _phase_of(place[0], leads) is phase and place[1] not in self._spaces
            ]
            if leftovers or self._refusals:
                # What may still run is not set free, nor out of our reach.
                batch = [place for place in batch if not _is_needed_still(place[0])]
            leftovers += await self._phase(batch, delete, end)
            end = max(end, anyio.current_time() + timeout / 8)
        messages = [*dict.fromkeys(self._losses.values())]
        leftovers = [target for target in leftovers if target[1].uid not in self._losses]
        if messages and not leftovers and not self._refusals:
            raise NodeLost("; ".join(messages))
        if leftovers:
            names = ", ".join(held((kind, self._seen((kind, m)) or m)) for kind, m in leftovers)
            messages.append(f"still there after {timeout:.0f} s: {names}")
        if self._refusals:
            messages.append("not deleted: " + "; ".join(self._refusals))
        if messages:
            raise RemovalIncomplete("; ".join(messages))

    async def _phase(self, places: Iterable[Place], delete: Delete, end: float) -> list[Target]:
        """Ask all to go and wait until they are gone; those that are not by the deadline."""
        leftovers: list[Target] = []
        queue = list(places)

        async def gone(target: Target) -> None:
            try:
                await self.gone(target)
                leftovers.remove(target)
                if target[0].ref == NAMESPACE:
                    self._cluster.leave(target[1].name)
            except NodeLost as error:
                self._losses[target[1].uid] = str(error)

        async def clear(place: Place) -> None:
            targets = await self._delete(place, delete)
            queue.remove(place)
            leftovers.extend(targets)
            self._spaces |= {meta.name for kind, meta in targets if kind.ref == NAMESPACE}
            await gather(gone, targets)

        try:
            with deadline(end - anyio.current_time()):
                await gather(clear, list(queue))
        except TimeoutError as error:
            self._refusals += [f"{_where(place)}: {error}" for place in queue]
        return leftovers

    async def _delete(self, place: Place, delete: Delete) -> list[Target]:
        try:
            return await delete(place)
        except NotFound:
            return []
        except Unavailable:
            raise
        except ClusterError as error:
            if isinstance(error, Forbidden) and await self._cluster.has_ended(place[1]):
                return []
            self._refusals.append(f"{_where(place)}: {error}")
            return [(place[0], meta) for meta in error.deleted]

    async def gone(self, target: Target) -> None:
        """Wait until this very object is gone, by the watch; by asking where nothing watches.

        Raises:
            NodeLost: it will not go before its node answers.
        """
        meta = target[1]
        owner = meta.labels.get(OWNER, "")
        watched = meta.uid in self._known_uids or bool(self._seen(target))
        watched = watched and not self._cluster.is_frozen(target[0].ref, meta.namespace)

        def over() -> bool | None:
            return True if not self._seen(target) or self._lost_pods(target) else None

        while True:
            if watched:
                with anyio.move_on_after(self._cluster.timing.doubt):
                    await self._cluster.changes.wait_until(owner, over)
                    if not self._seen(target):
                        return
            if not await self._there(target):
                return
            await self._give_up(self._lost_pods(target))
            if not watched:
                await anyio.sleep(self._cluster.timing.confirm)

    def _lost_pods(self, target: Target) -> list[tuple[Live, str]]:
        """Pods that keep it because their node, named beside, does not answer.

        A controller waits for its pods: it is kept if none of the server's others is left.
        """
        kind, meta = target
        if not is_workload(kind):
            return []
        pods = [
            (live, status.unreachable(live.as_dict()))
            for live in self._cluster.objects_of(meta.labels.get(OWNER, ""))
            if live.kind.ref == POD
            and live.meta.labels.get(SERVERNAME) == meta.labels.get(SERVERNAME)
        ]
        if kind.ref == POD:
            pods = [(live, node) for live, node in pods if live.meta.uid == meta.uid]
        if not all(node for _, node in pods):
            return []
        return [(live, node) for live, node in pods if live.meta.uid not in self._forced_uids]

    async def _give_up(self, pods: list[tuple[Live, str]]) -> None:
        if pods and not self._force_lost:
            raise NodeLost("; ".join(_on_lost_node(live, node) for live, node in pods))
        for live, node in pods:
            self._log.warning("Deleting %s by force: node %s does not answer", live.reference, node)
            self._forced_uids.add(live.meta.uid)
            await self._cluster.delete_now(live.kind, live.meta)

    async def _there(self, target: Target) -> bool:
        kind, meta = target
        try:
            async with self._asking:
                live = await self._cluster.get(kind, meta.namespace, meta.name)
        except Unavailable:
            return True
        except Forbidden:
            return False  # a right to list and delete, and none to look: nothing tells when it went
        return live is not None and live["metadata"].get("uid") == meta.uid

    def _seen(self, target: Target) -> Meta | None:
        """The object as an open store has it; none is opened for one that goes away."""
        kind, meta = target
        for store in self._cluster.stores_of(kind.ref, meta.namespace):
            live = store.get(meta.namespace, meta.name)
            if live is not None and live.meta.uid == meta.uid:
                return live.meta
        return None


def _where(place: Place) -> str:
    return f"{place[0]} in {place[1] or 'the cluster'}"


def held(target: Target) -> str:
    """The object, and the finalizers that keep it from going."""
    kind, meta = target
    holders = f" (held by {', '.join(meta.finalizers)})" if meta.finalizers else ""
    return f"{ObjectRef(kind.ref, meta.namespace, meta.name)}{holders}"


def _on_lost_node(pod: Live, node: str) -> str:
    return (
        f"{pod.reference} is still on node {node}, which does not answer: it goes when the node is "
        "back or is removed from the cluster. If the node is surely off, an administrator may "
        f"delete it: `kubectl delete pod {pod.meta.name} -n {pod.meta.namespace} --force`, "
        "or set `force_delete_lost_pods`"
    )
