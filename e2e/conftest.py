"""The cluster, a namespace and a hub for the end-to-end tests."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import cluster as clusters
from e2e.cluster import Cluster
from e2e.cluster.model import cache_folder
from e2e.hub import Hub
from e2e.proxy import install_proxy

CHARTS = Path(__file__).parent / "charts"
DEFAULT_CHART = Path(__file__).parents[1] / "charts" / "user-server"
OWNED = "app.kubernetes.io/managed-by=lightkube-template-spawner"

MakeHub = Callable[..., Hub]


def report(text: str) -> None:
    print(text, flush=True)


class Kube:
    """An administrator's kubectl, with JSON read and written."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def __call__(self, *words: str, given: object = None) -> str:
        command = [self.cluster.kubectl, f"--kubeconfig={self.cluster.kubeconfig}", *words]
        text = None if given is None else json.dumps(given)
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
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

    def list(self, kinds: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        words = ["get", kinds, "-n", namespace, "-o", "json", "--show-managed-fields"]
        if selector:
            words += ["-l", selector]
        return list(json.loads(self(*words))["items"])

    def owned(self, namespace: str, selector: str = OWNED) -> list[str]:
        """`Kind/name` of every object of every kind in the namespace that carries our labels."""
        kinds = self("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
        kinds = [kind for kind in kinds if not kind.startswith("events")]
        found = self.list(",".join(kinds), namespace, selector)
        return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in found)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return clusters.up(log=report)


@pytest.fixture(scope="session")
def kube(cluster: Cluster) -> Kube:
    return Kube(cluster)


@pytest.fixture(scope="session")
def proxy_command() -> list[str]:
    return install_proxy(cache_folder(), report)


@pytest.fixture(scope="module")
def space(kube: Kube) -> Iterator[str]:
    """A namespace of the module's own."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    kube("create", "namespace", name)
    yield name
    kube("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def make_hub(cluster: Cluster, proxy_command: list[str], space: str) -> MakeHub:
    """Make a hub with our spawner; `traits` are those of the spawner class.

    Each module has a namespace of its own, so the instance name may stay what it is by default.
    """

    def make(config: str = "", environment: dict[str, str] | None = None, **traits: object) -> Hub:
        settings: dict[str, object] = {
            "kubeconfig": str(cluster.kubeconfig),
            "namespace": space,
            "start_timeout": 60,
            "extra_vars": {"image": cluster.image},
            **traits,
        }
        lines = ['c.JupyterHub.spawner_class = "lightkube-template"']
        lines += [f"c.LightkubeTemplateSpawner.{name} = {v!r}" for name, v in settings.items()]
        return Hub(
            "\n".join([*lines, config, ""]),
            proxy_command=proxy_command,
            connect_address=cluster.host_address,
            environment=environment,
        )

    return make
