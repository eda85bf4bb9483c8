"""An administrator's view of the cluster, for tests and the demo."""

from __future__ import annotations

import builtins
import json
import subprocess
from typing import Any

from e2e.cluster import Cluster

OWNED = "app.kubernetes.io/managed-by=lightkube-template-spawner"


class Kube:
    """An administrator's kubectl, with JSON read and written."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def __call__(self, *words: str, given: object = None) -> str:
        command = [str(self.cluster.kubectl), f"--kubeconfig={self.cluster.kubeconfig}", *words]
        text = None if given is None else json.dumps(given)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def create(self, manifest: object) -> None:
        """POST it, as somebody else's client would."""
        self("create", "-f", "-", given=manifest)

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            text = self("get", kind, name, "-n", namespace, "-o", "json", "--show-managed-fields")
        except RuntimeError as error:
            if "NotFound" in str(error) or "not found" in str(error):
                return None
            raise
        return dict(json.loads(text))

    def list(self, kinds: str, namespace: str, selector: str = "") -> builtins.list[dict[str, Any]]:
        words = ["get", kinds, "-n", namespace, "-o", "json", "--show-managed-fields"]
        if selector:
            words += ["-l", selector]
        return list(json.loads(self(*words))["items"])

    def owned(self, namespace: str, selector: str = OWNED) -> builtins.list[str]:
        """`Kind/name` of every object of every kind in the namespace that carries our labels.

        Endpoints come and go with their Service, whose labels they copy.
        """
        kinds = self("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
        kinds = [kind for kind in kinds if not kind.startswith(("events", "endpoint"))]
        found = self.list(",".join(kinds), namespace, selector)
        return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in found)
