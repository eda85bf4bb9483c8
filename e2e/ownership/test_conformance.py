"""The two apply preconditions that ownership rests on, on any cluster given as E2E_KUBECONFIG.

``metadata.resourceVersion: "1"`` may only create, ``metadata.uid`` only update that very object.
Needs ConfigMaps in one namespace (E2E_NAMESPACE, else "default"), and lightkube; nothing else.
"""

from __future__ import annotations

import os
import uuid

import pytest

from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.errors import ClusterError, Conflict

CONFIG = Kind("", "v1", "ConfigMap", "configmaps", namespaced=True)
SPACE = os.environ.get("E2E_NAMESPACE", "default")


@pytest.fixture
def kubeconfig(request: pytest.FixtureRequest) -> str:
    """A given cluster need have nothing else that the other tests want of one."""
    given = os.environ.get("E2E_KUBECONFIG")
    return given or str(request.getfixturevalue("cluster").kubeconfig)


async def test_apply_preconditions(kubeconfig: str) -> None:
    api = Api(kubeconfig)
    name = f"conformance-{uuid.uuid4().hex[:8]}"
    path = CONFIG.path(SPACE, name)

    async def apply(value: str, **precondition: str) -> dict[str, object]:
        head = {"name": name, "namespace": SPACE, **precondition}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": {"k": value}}
        return await api.apply(CONFIG, body, manager="lts:conformance")

    try:
        made = await apply("1", resourceVersion="1")  # absent: created
        with pytest.raises(Conflict):
            await apply("2", resourceVersion="1")  # present: refused, even to its own manager
        uid = (await api.call("GET", path))["metadata"]["uid"]
        assert await api.call("GET", path) == made
        assert (await apply("3", uid=uid))["data"] == {"k": "3"}  # held: updated
        with pytest.raises(ClusterError) as refused:
            await apply("4", uid=str(uuid.uuid4()))  # another object: refused
        assert refused.value.code in (409, 422)
        assert (await api.call("GET", path))["data"] == {"k": "3"}
        await api.call("DELETE", path, body={})
        with pytest.raises(Conflict):
            await apply("5", uid=uid)  # gone: never created again
        listing = await api.call("GET", CONFIG.path(SPACE))
        assert name not in {item["metadata"]["name"] for item in listing["items"]}
    finally:
        gone = {"labelSelector": "", "fieldSelector": f"metadata.name={name}"}
        await api.call("DELETE", CONFIG.path(SPACE), params=gone, body={})
        await api.aclose()
