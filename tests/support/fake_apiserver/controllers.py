"""What acts on the objects beside the API server, a little later.

The scheduler and kubelet (``run_pod``, and pods that end), the garbage collector, the endpoint
controller, and the controller that gives each namespace its service account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from tests.support.fake_apiserver import paths
from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.kinds import Served
from tests.support.fake_apiserver.messages import Obj
from tests.support.fake_apiserver.selectors import selects
from tests.support.fake_apiserver.storage import Change, Key, Storage

MANAGER = "a-controller"


class Controllers:
    """They follow the storage, and write to it."""

    def __init__(self, storage: Storage, behaviour: Behaviour) -> None:
        self._storage = storage
        self._behaviour = behaviour
        self._addresses = 0
        self._slices_are_due = False
        storage.complete = self._complete
        storage.listeners.append(self._notice)

    def run_pod(self, namespace: str, name: str, **status: Any) -> Obj:
        """Schedule and start a pod: Ready with an address."""
        pod = deepcopy(self._storage.of(("", "pods"))[namespace, name])
        pod.setdefault("spec", {})["nodeName"] = "node"
        pod["status"] = {
            "phase": "Running", "podIP": f"10.1.0.{self._address()}",
            "conditions": [{"type": "Ready", "status": "True"}], **status,
        }  # fmt: skip
        return self._storage.put(pod, MANAGER)

    def end(self, served: Served, key: Key) -> None:
        """Let go, after a while, of an object that is on its way out."""
        item = self._storage.of(served.resource)[key]
        uid = item["metadata"]["uid"]
        if self._behaviour.controllers:
            self._soon(lambda: self._finish(served, key, uid))

    def _finish(self, served: Served, key: Key, uid: str) -> None:
        item = self._storage.get(served, key)
        if item is None or item["metadata"]["uid"] != uid:
            return
        if set(item["metadata"].get("finalizers", ())) <= {"foregroundDeletion"}:
            self._storage.remove(served, key)

    def _complete(self, item: Obj) -> None:
        """What is there at once, and our code looks at."""
        if item["kind"] == "Service":
            item.setdefault("spec", {}).setdefault("clusterIP", f"10.96.0.{self._address()}")
        if item["kind"] == "Namespace":
            item["status"] = {"phase": "Active"}
            if self._behaviour.controllers:
                account = {"name": "default", "namespace": item["metadata"]["name"]}
                manifest = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
                self._soon(lambda: self._storage.put(manifest, MANAGER))

    def _notice(self, change: Change) -> None:
        if not self._behaviour.controllers:
            return
        if change.type == "DELETED":
            uid = change.object["metadata"]["uid"]
            self._soon(lambda: self._collect(uid))
        if change.resource in (("", "pods"), ("", "services")) and not self._slices_are_due:
            self._slices_are_due = True
            self._soon(self._write_slices)

    def _collect(self, owner: str) -> None:
        """What the garbage collector does once an owner is gone."""
        for served, key, item in self._storage.every():
            owners = item["metadata"].get("ownerReferences", [])
            if any(reference["uid"] == owner for reference in owners):
                self._storage.remove(served, key)

    def _write_slices(self) -> None:
        """What the endpoint controller does: a slice for each Service that has a ready pod."""
        self._slices_are_due = False
        pods = list(self._storage.of(("", "pods")).values())
        for service in list(self._storage.of(("", "services")).values()):
            labels = paths.get(service, ("spec", "selector")) or {}
            selector = ",".join(f"{name}={value}" for name, value in labels.items())
            ready = [pod for pod in pods if selector and selects(selector, pod) and _ready(pod)]
            self._write_slice(service, [pod["status"]["podIP"] for pod in ready])

    def _write_slice(self, service: Obj, addresses: list[str]) -> None:
        metadata = service["metadata"]
        name, namespace = f"{metadata['name']}-x7k2p", metadata["namespace"]
        endpoints = [{"addresses": addresses, "conditions": {"ready": True}}] if addresses else []
        slices = self._storage.of(("discovery.k8s.io", "endpointslices"))
        old = slices.get((namespace, name), {"endpoints": []})
        if old["endpoints"] == endpoints:
            return
        of_service = {"kubernetes.io/service-name": metadata["name"]}
        owner = {"kind": "Service", "name": metadata["name"], "uid": metadata["uid"]}
        manifest = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {**metadata.get("labels", {}), **of_service},
                "ownerReferences": [{**owner, "controller": True}],
            },
            "endpoints": endpoints,
        }
        self._storage.put(manifest, MANAGER)

    def _address(self) -> int:
        self._addresses += 1
        return self._addresses

    def _soon(self, action: Callable[[], object]) -> None:
        try:
            asyncio.get_running_loop().call_later(self._behaviour.delay, action)
        except RuntimeError:
            action()  # set up before the test's loop runs


def _ready(pod: Obj) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)
