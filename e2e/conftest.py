"""The cluster, a namespace and a hub for the end-to-end tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e import cluster as clusters
from e2e.cluster import Cluster
from e2e.cluster.model import cache_folder
from e2e.harness.hub import Hub
from e2e.harness.kube import OWNED, Kube
from e2e.harness.proxy import install_proxy
from e2e.harness.recorder import (
    faults,
    pytest_runtest_teardown,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from e2e.harness.user import HubUser

CHARTS = Path(__file__).parent / "charts"
DEFAULT_CHART = Path(__file__).parents[1] / "charts" / "user-server"

__all__ = [
    "CHARTS",
    "DEFAULT_CHART",
    "OWNED",
    "Kube",
    "MakeHub",
    "faults",
    "hub_fixture",
    "pytest_runtest_teardown",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
    "signed_in",
]

# Read when tests are collected, before any of them starts a cluster.
FOUND_RUNNING = clusters.status() is not None

MakeHub = Callable[..., Hub]


def report(text: str) -> None:
    print(text, flush=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that restart the cluster come first: what was made before would be dead."""
    items.sort(key=lambda item: item.path.name != "test_cluster.py")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster; one that was not running before the tests is gone after them."""
    yield clusters.up(log=report)
    if not FOUND_RUNNING and not os.environ.get("E2E_KEEP_CLUSTER"):
        clusters.down(log=report)


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

    def make(
        config: str = "",
        environment: dict[str, str] | None = None,
        kind: Callable[..., Hub] = Hub,
        **traits: object,
    ) -> Hub:
        settings: dict[str, object] = {
            "kubeconfig": str(cluster.kubeconfig),
            "namespace": space,
            "start_timeout": 60,
            "extra_vars": {"image": cluster.image},
            **traits,
        }
        lines = ['c.JupyterHub.spawner_class = "lightkube-template"']
        lines += [f"c.LightkubeTemplateSpawner.{name} = {v!r}" for name, v in settings.items()]
        return kind(
            "\n".join([*lines, config, ""]),
            proxy_command=proxy_command,
            connect_address=cluster.host_address,
            environment=environment,
        )

    return make


def hub_fixture(config: str = "", **traits: object) -> Any:
    """Make a module's fixture `hub`: one hub for all its tests, without a user after them."""

    @pytest.fixture(scope="module")
    async def hub(make_hub: MakeHub) -> AsyncGenerator[Hub]:
        async with make_hub(config, **traits) as hub:
            yield hub
            await hub.delete_users()

    return hub


@asynccontextmanager
async def signed_in(hub: Hub, name: str) -> AsyncGenerator[HubUser]:
    """A user who has logged in."""
    async with HubUser(hub.url) as user:
        await user.login(name, hub.user_password)
        yield user
