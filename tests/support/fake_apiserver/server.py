"""The server that tests make, and what they do behind the API's back."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import httpx2

from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.controllers import Controllers
from tests.support.fake_apiserver.kinds import KINDS, Served
from tests.support.fake_apiserver.messages import Obj, Seen
from tests.support.fake_apiserver.routes import Routes
from tests.support.fake_apiserver.storage import Storage
from tests.support.fake_apiserver.transport import Transport
from tests.support.fake_apiserver.watches import Watches


class FakeApiServer(Transport, Behaviour):
    """The server; it starts with the namespaces that are named."""

    def __init__(self, *namespaces: str, kinds: Iterable[Served] = KINDS) -> None:
        Transport.__init__(self)
        Behaviour.__init__(self, kinds)
        self._storage = Storage(self.kinds)
        self._controllers = Controllers(self._storage, self)
        self._watches = Watches(self._storage, self)
        self._routes = Routes(self._storage, self._controllers, self._watches, self)
        self.watches = self._watches.open
        for name in namespaces:
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def respond(self, seen: Seen) -> Obj | httpx2.Response:
        return self._routes.respond(seen)

    # What tests do behind the API's back

    def put(self, manifest: Obj, manager: str = "somebody-else") -> Obj:
        """Create or replace as another client or a controller would."""
        return deepcopy(self._storage.put(manifest, manager))

    def claim(self, item: Obj, manager: str, *path: str) -> None:
        """Let another manager own a field, as if it had applied it."""
        self._storage.claims[item["metadata"]["uid"]][manager] = {path}

    def find(self, kind: str, namespace: str, name: str) -> Obj | None:
        """The object as it is, or None."""
        for served, key, item in self._storage.every():
            if served.kind == kind and key == (namespace, name):
                return deepcopy(item)
        return None

    def everything(self) -> list[Obj]:
        """Every object but Namespaces and what controllers put there."""
        return [
            deepcopy(item)
            for _, _, item in self._storage.every()
            if item["kind"] not in ("Namespace", "ServiceAccount", "EndpointSlice")
        ]

    def left(self) -> set[str]:
        """Kind and name of everything: ``Pod/one``."""
        return {f"{item['kind']}/{item['metadata']['name']}" for item in self.everything()}

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Take the object away at once, whatever holds it."""
        for served, key, _ in self._storage.every():
            if served.kind == kind and key == (namespace, name):
                self._storage.remove(served, key)

    def run_pod(self, namespace: str, name: str, **status: Any) -> Obj:
        """Schedule and start a pod: Ready with an address."""
        return deepcopy(self._controllers.run_pod(namespace, name, **status))

    def run_new_pods(self, **status: Any) -> None:
        """Start all pods that are neither started nor on their way out."""
        for pod in self.everything():
            metadata = pod["metadata"]
            new = pod["kind"] == "Pod" and "status" not in pod
            if new and "deletionTimestamp" not in metadata:
                self._controllers.run_pod(metadata["namespace"], metadata["name"], **status)

    def compact(self) -> None:
        """Forget the past: watches from earlier versions are expired."""
        self._storage.compact()

    def bookmark(self) -> None:
        """Send a bookmark to every watch that asked for them."""
        self._watches.bookmark()
