"""Looking for objects that nobody owns, and removing them when told to.

The cluster is listed before the hub is asked, so that a server which starts meanwhile is known; and
what was found is looked at a second time, so that one which ends meanwhile is not reported.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.discovery import allowed
from lightkube_template_spawner.cluster.live import Meta
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import ClusterError, Forbidden, HubError, RemovalIncomplete
from lightkube_template_spawner.lifecycle.orphans import Roster
from lightkube_template_spawner.lifecycle.removal import Place, Removal
from lightkube_template_spawner.objects.identity import (
    INSTANCE,
    OWNER,
    SERVERNAME,
    USERNAME,
    Policy,
    Selection,
)
from lightkube_template_spawner.objects.ref import ObjectRef

_LIST = frozenset({"list"})
Ask = Callable[[], Awaitable[Roster]]


@dataclass(frozen=True)
class Orphan:
    """An object that nobody owns, and why."""

    kind: Kind
    meta: Meta
    why: str
    lifecycle: str = ""

    @property
    def retained(self) -> bool:
        """Whether it may hold data: only what goes at every stop surely does not."""
        return self.lifecycle != Policy.STOPPED

    def __str__(self) -> str:
        meta = self.meta
        name = ObjectRef(self.kind.ref, meta.namespace, meta.name)
        holders = f", held by {', '.join(meta.finalizers)}" if meta.finalizers else ""
        ending = f" (being deleted{holders})" if meta.deletion_timestamp else ""
        return f"{name}{ending}, made for {self._owner}: {self.why}"

    @property
    def _owner(self) -> str:
        user, server = (
            self.meta.annotations.get(key) or self.meta.labels.get(key, "")
            for key in (USERNAME, SERVERNAME)
        )
        # Quoted, since a name may hold anything.
        return f"user {user!r}" + (f", server {server!r}" if server else "")

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        meta = self.meta
        return {
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "created": meta.creation_timestamp,
            "username": meta.annotations.get(USERNAME, ""),
            "servername": meta.annotations.get(SERVERNAME, ""),
            "lifecycle": self.lifecycle,
            "reason": self.why,
        }


@dataclass
class Survey:
    """What a look at the cluster gave, and what it could not see."""

    orphans: list[Orphan] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)  # that were looked at
    refusals: list[Place] = field(default_factory=list)  # our account may not list these
    # It should have been possible to list these; with the cause.
    failures: list[str] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)  # "" for all
    absentees: list[str] = field(default_factory=list)  # of those that were asked for
    young_count: int = 0  # orphans too young to be reported
    instances: set[str] = field(default_factory=set)  # instances there, if nobody knows this one

    @property
    def kinds(self) -> int:
        """How many kinds were looked at."""
        return len({kind for kind, _ in self.places})


class Sweep:
    """One look at a cluster for what the hub that ``ask`` asks does not know."""

    def __init__(self, cluster: Cluster, ask: Ask, log: logging.Logger) -> None:
        self._cluster = cluster
        self._ask = ask
        self._log = log
        self._objects = 0  # of this instance, as the last look saw

    async def find(
        self, namespaces: Iterable[str], *, cluster_kinds: Iterable[str] = (), min_age: float = 0
    ) -> Survey:
        """Orphans older than ``min_age`` seconds in ``namespaces``, or in all ("").

        Namespaces that the hub has on record for its users are looked at, too. Of kinds without a
        namespace only ``cluster_kinds`` are: a namespace that goes takes everything with it.

        Raises:
            ClusterError: the API server could not be asked what it serves.
        """
        roster = await self._ask()
        names = {*namespaces}
        absentees = [name for name in sorted(names) if name and await self._is_absent(name)]
        names = {""} if "" in names else names | roster.namespaces
        survey = await self._places(sorted(names), {*cluster_kinds})
        survey.namespaces, survey.absentees = sorted(names), absentees
        suspects: dict[str, Orphan] = {}
        places = survey.places
        for again in (False, True):
            objects = await self._list(places, roster, survey)
            if not again and not self._objects and not roster.records:
                survey.instances = roster.other_instances | await self._instances(places)
            roster = await self._ask()
            orphans = {
                meta.uid: Orphan(kind, meta, why, meta.labels.get(roster.lifecycle_key, ""))
                for kind, meta in objects
                if (why := roster.why_orphan(meta.labels)) and (not again or meta.uid in suspects)
            }
            suspects = {uid: o for uid, o in orphans.items() if _age(o.meta) >= min_age}
            survey.young_count += len(orphans) - len(suspects)
            if not suspects:
                break
            places = list(dict.fromkeys((o.kind, o.meta.namespace) for o in suspects.values()))
        refusals = {*survey.refusals}
        survey.places = [place for place in survey.places if place not in refusals]
        survey.orphans = sorted(suspects.values(), key=str)
        return survey

    async def delete(self, orphans: Iterable[Orphan], *, timeout: float) -> None:
        """Remove exactly these, what runs first; an object that was replaced is left alone.

        Raises:
            HubError: the hub has no server of this instance on record; nothing was deleted.
            RemovalIncomplete: some are still there; the message names them all.
        """
        roster = await self._ask()
        if not roster.records:
            raise HubError(
                f"the hub has no server of instance {roster.instance!r} on record, so that all its "
                "objects would be orphans: the database is new or lost, or this is another hub, or "
                "its `instance_name` is another one; nothing is deleted"
            )
        by_owner: dict[str, list[Orphan]] = {}
        for orphan in orphans:
            by_owner.setdefault(orphan.meta.labels[OWNER], []).append(orphan)

        async def remove(group: list[Orphan]) -> str:
            places = dict.fromkeys((o.kind, o.meta.namespace) for o in group)
            uids = {orphan.meta.uid for orphan in group}

            def is_orphan(meta: Meta) -> bool:
                return meta.uid in uids and bool(roster.why_orphan(meta.labels))

            removal = Removal(self._cluster, self._log)
            try:
                selection = Selection(roster.selector, is_orphan)
                await removal.remove_listed(places, selection, timeout=timeout)
            except (ClusterError, RemovalIncomplete) as error:
                return str(error)
            return ""

        # One owner's pod that does not end keeps nobody else's objects.
        errors = [text for text in await gather(remove, by_owner.values()) if text]
        if errors:
            raise RemovalIncomplete("; ".join(errors))

    async def _places(self, namespaces: Iterable[str], cluster_kinds: set[str]) -> Survey:
        discovery = self._cluster.discovery
        survey = Survey()
        permissions: dict[Place, bool] = {}
        kinds = [
            kind
            for kind in await discovery.holding()
            if kind.namespaced or str(kind) in cluster_kinds
        ]
        for namespace in namespaces:
            rules, complete = await discovery.rules(namespace or "default")
            for kind in kinds:
                place = kind, namespace if kind.namespaced else ""
                # Where the API server cannot tell our rights, the list itself will.
                may = not complete or bool(allowed(rules, kind, _LIST))
                permissions[place] = permissions.get(place, False) or may
        survey.places = [place for place, may in permissions.items() if may]
        survey.refusals = [place for place, may in permissions.items() if not may]
        return survey

    async def _list(
        self, places: Iterable[Place], roster: Roster, survey: Survey
    ) -> list[tuple[Kind, Meta]]:
        """One after another: nobody waits for it, and the API server has better to do."""
        objects = []
        self._objects = 0
        for kind, namespace in places:
            try:
                metas = await self._cluster.list_metadata(kind, namespace, roster.selector)
            except Forbidden:
                survey.refusals.append((kind, namespace))
                continue
            except ClusterError as error:
                survey.failures.append(f"{kind} in {namespace or 'the cluster'}: {error}")
                continue
            matches = [meta for meta in metas if roster.includes(meta.labels)]
            self._objects += len(matches)
            # Of ten thousand servers' objects only the suspicious ones are worth their memory.
            objects += [
                (kind, meta)
                for meta in matches
                if not meta.controlled and roster.why_orphan(meta.labels)
            ]
        return objects

    async def _is_absent(self, namespace: str) -> bool:
        """Whether there surely is no such namespace; its lists would only be empty."""
        kind = await self._cluster.discovery.kind("v1", "Namespace")
        try:
            return await self._cluster.get(kind, "", namespace) is None
        except Forbidden:
            return False

    async def _instances(self, places: Iterable[Place]) -> set[str]:
        """Whose objects are there: a look for an instance that nobody knows would find nothing."""
        for kind, namespace in places:
            with suppress(ClusterError):
                metas = await self._cluster.list_metadata(kind, namespace, OWNER)
                instances = {
                    meta.labels[INSTANCE] for meta in metas if {OWNER, INSTANCE} <= {*meta.labels}
                }
                if instances:
                    return instances
        return set()


def _age(meta: Meta) -> float:
    if not meta.creation_timestamp:
        return 0.0
    creation = datetime.fromisoformat(meta.creation_timestamp)
    return (datetime.now(UTC) - creation).total_seconds()
