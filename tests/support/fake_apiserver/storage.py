"""The objects, their resourceVersions, who applied which of their fields, and the watch log."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

from tests.support.fake_apiserver.kinds import Kinds, Resource, Served
from tests.support.fake_apiserver.messages import Obj, not_found
from tests.support.fake_apiserver.paths import Path, leaves
from tests.support.fake_apiserver.selectors import selects

Key = tuple[str, str]  # namespace, name

NOW = "2026-11-22T00:00:00Z"
LATER = "2026-11-22T00:00:01Z"

# What updates keep of an object's metadata.
_KEPT = ("uid", "creationTimestamp", "managedFields", "deletionTimestamp", "namespace")


def key_of(item: Obj) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


@dataclass
class Change:
    """One entry of the watch log: the object after it, and before it."""

    version: int
    resource: Resource
    type: str
    object: Obj
    before: Obj | None


class Storage:
    """Every write counts ``version`` up, and is told to ``listeners``."""

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._objects: dict[Resource, dict[Key, Obj]] = {}
        self.version = 1000
        self.compacted = 1000  # what was before is forgotten
        self.history: list[Change] = []
        self.claims: dict[str, dict[str, set[Path]]] = {}  # by UID: manager to what it applied
        self.complete: Callable[[Obj], None] = lambda item: None  # fills in a new object
        self.listeners: list[Callable[[Change], None]] = []

    # Reading; nothing is copied

    def of(self, resource: Resource) -> dict[Key, Obj]:
        return self._objects.setdefault(resource, {})

    def get(self, served: Served, key: Key) -> Obj | None:
        return self.of(served.resource).get(key)

    def every(self) -> Iterator[tuple[Served, Key, Obj]]:
        """All objects; what is removed meanwhile is left out."""
        for resource, items in list(self._objects.items()):
            served = self._kinds.at(resource)
            for key in list(items):
                if key in items:
                    yield served, key, items[key]

    def matching(self, served: Served, namespace: str, selector: str) -> list[Obj]:
        return [
            item
            for key, item in sorted(self.of(served.resource).items())
            if namespace in ("", key[0]) and selects(selector, item)
        ]

    def need_namespace(self, served: Served, key: Key) -> None:
        if not served.namespaced or served.kind == "ServiceAccount":
            return  # a namespace's account may be made together with it
        if ("", key[0]) not in self.of(("", "namespaces")):
            raise not_found("namespaces", key[0])

    # Writing

    def put(self, manifest: Obj, manager: str) -> Obj:
        """Create or replace as another client or a controller would."""
        served = self._kinds.of(manifest["apiVersion"], manifest["kind"])
        key = key_of(manifest)
        old = self.get(served, key)
        if old is None:
            return self.create(served, key, manifest, manager, "Update")
        new = deepcopy(manifest)
        new["metadata"] = {**old["metadata"], **new["metadata"]}
        return self.commit(served, key, new)

    def create(self, served: Served, key: Key, body: Obj, manager: str, operation: str) -> Obj:
        self.need_namespace(served, key)
        item = {"apiVersion": served.api_version, "kind": served.kind, **deepcopy(body)}
        metadata = item["metadata"]
        if served.namespaced:
            metadata["namespace"] = key[0]
        metadata["name"] = key[1]
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = NOW
        metadata["managedFields"] = [{"manager": manager, "operation": operation}]
        self.claims[metadata["uid"]] = {manager: set(leaves(body))}
        self.complete(item)
        return self.commit(served, key, item)

    def update(self, served: Served, key: Key, live: Obj, body: Obj) -> Obj:
        """Replace all of it, whatever resourceVersion the new one has."""
        new = deepcopy(body)
        new["metadata"].update({k: v for k, v in live["metadata"].items() if k in _KEPT})
        return self.commit(served, key, new)

    def commit(self, served: Served, key: Key, new: Obj) -> Obj:
        """Store a new state; one on its way out without finalizers goes instead."""
        old = self.get(served, key)
        metadata = new["metadata"]
        held = old is not None and bool(old["metadata"].get("finalizers"))
        if held and metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self.remove(served, key)
            return new
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        if old is None or old.get("spec") != new.get("spec"):
            metadata["generation"] = metadata.get("generation", 0) + 1
        self.of(served.resource)[key] = new
        self._record(served, "MODIFIED" if old else "ADDED", new, old)
        return new

    def remove(self, served: Served, key: Key) -> None:
        """Take the object away, and a namespace with all that is in it."""
        item = self.of(served.resource).pop(key)
        last = deepcopy(item)
        self.version += 1
        last["metadata"]["resourceVersion"] = str(self.version)
        if served.kind == "Pod":
            last["metadata"].setdefault("deletionTimestamp", LATER)
        self.claims.pop(item["metadata"]["uid"], None)
        self._record(served, "DELETED", last, item)
        if served.kind == "Namespace":
            for inner, place, _ in self.every():
                if place[0] == key[1]:
                    self.remove(inner, place)

    def _record(self, served: Served, kind: str, item: Obj, before: Obj | None) -> None:
        change = Change(self.version, served.resource, kind, deepcopy(item), before)
        self.history.append(change)
        for listener in self.listeners:
            listener(change)

    def compact(self) -> None:
        """Forget the past: watches from earlier versions are expired."""
        self.compacted = self.version
        self.history.clear()
