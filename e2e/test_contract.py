"""The contract of ``tests/contract``, on a real API server: what keeps the fake honest."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from e2e import cluster as clusters
from lightkube_template_spawner.api import Api, Kind
from tests.contract.cases import CASES, Case, names

NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def running() -> clusters.Cluster:
    return clusters.up()


@pytest.fixture
async def api(running: clusters.Cluster) -> AsyncIterator[Api]:
    made = Api(str(running.kubeconfig))
    yield made
    await made.aclose()


@pytest.fixture
async def space(api: Api) -> AsyncIterator[str]:
    """A namespace of the test's own; it goes after the test, in its own time."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await api.call("POST", NAMESPACE.path(), body=manifest)
    yield name
    await api.call("DELETE", NAMESPACE.path(None, name), body={})


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES, ids=names())
async def test_contract(case: Case, api: Api, space: str) -> None:
    await case(api, space)
