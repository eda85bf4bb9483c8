"""Stores are shared, keep no Secret's data, and show an object once."""

from __future__ import annotations

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from tests.support.fake_apiserver import FakeApiServer
from tests.support.objects import CONFIG, ME, POD, manifest


async def test_stores_are_shared(fake: FakeApiServer, cluster: Cluster) -> None:
    store = cluster.reflector(POD, "hub")
    assert cluster.reflector(POD, "hub") is store
    assert store.full
    assert not cluster.reflector(CONFIG, "hub").full
    assert cluster.reflector(POD, "other") is not store
    namespace = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
    assert cluster.reflector(namespace, "hub") is cluster.reflector(namespace, None)
    await store.sync()
    assert len(list(cluster.stores())) == 4


async def test_an_object_in_two_stores_comes_once(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.put(manifest())
    stores = [cluster.reflector(CONFIG, "hub"), cluster.reflector(CONFIG, "hub", full=True)]
    for store in stores:
        await store.sync()
    assert [live.meta.name for live in cluster.objects_of(ME.owner)] == ["c"]


async def test_secrets_stay_on_the_cluster(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.put(manifest("Secret", data={"k": "aHVzaA=="}))
    kind = Kind("", "v1", "Secret", "secrets", namespaced=True)
    for full in (False, True):
        store = cluster.reflector(kind, "hub", full=full)
        await store.sync()
        for live in store.of_owner(ME.owner):
            assert "aHVzaA==" not in str(live.as_dict())
