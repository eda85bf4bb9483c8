"""The contract of ``tests/contract``, on a real API server: what keeps the fake honest."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from e2e.cluster import Cluster
from e2e.harness.kube import Kube
from lightkube_template_spawner.cluster.api import Api, Kind
from tests.contract.cases import CASES, YOUNG, Case, names

NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)


@pytest.fixture(scope="module")
def young_kind(kube: Kube) -> Iterator[None]:
    """A kind whose history begins now: what came before has expired."""
    names = {"plural": YOUNG.plural, "singular": "young", "kind": YOUNG.kind}
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True}
    name = f"{YOUNG.plural}.{YOUNG.group}"
    kube.create({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {"group": YOUNG.group, "scope": "Namespaced", "names": names,
                 "versions": [{**version, "schema": {"openAPIV3Schema": schema}}]},
    })  # fmt: skip
    for _ in range(100):  # established comes a little before served
        with suppress(RuntimeError):
            kube("get", "--raw", YOUNG.path())
            break
        time.sleep(0.1)
    yield
    kube("delete", "crd", name)


@pytest.fixture
async def api(cluster: Cluster, young_kind: None) -> AsyncIterator[Api]:
    made = Api(str(cluster.kubeconfig))
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


@pytest.mark.parametrize("case", CASES, ids=names())
async def test_contract(case: Case, api: Api, space: str) -> None:
    await case(api, space)
