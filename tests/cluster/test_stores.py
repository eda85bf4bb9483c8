"""Stores are shared, keep no Secret's data, and show an object once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable

import pytest

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import Forbidden, NotFound
from lightkube_template_spawner.objects.ref import ObjectRef
from tests.support.fake_apiserver import FakeApiServer
from tests.support.objects import CONFIG, ME, POD, YOU, manifest
from tests.support.timing import until


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


async def test_the_store_that_keeps_most_is_asked_first(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    fake.put(manifest(data={"k": "v"}))
    for full in (False, True):
        await cluster.reflector(CONFIG, "hub", full=full).sync()
    live = cluster.find(ObjectRef(CONFIG.ref, "hub", "c"))
    assert live is not None
    assert live.as_dict()["data"] == {"k": "v"}
    assert cluster.find(ObjectRef(CONFIG.ref, "other", "c")) is None
    assert cluster.find(ObjectRef(POD.ref, "hub", "c")) is None


async def test_what_is_frozen_is_so_in_its_namespace_only(cluster: Cluster) -> None:
    for namespace in ("hub", "other"):
        await cluster.reflector(POD, namespace).sync()
    cluster.reflector(POD, "other").error = Forbidden("no longer", code=403)
    assert cluster.is_frozen(POD.ref, "other")
    assert not cluster.is_frozen(POD.ref, "hub")
    assert not cluster.is_frozen(CONFIG.ref, "other")


def calls(function: Callable[[], object]) -> int:
    """How many calls of Python functions and of built-in ones a call leads to."""
    count = 0

    def tell(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # what it calls when it happens to run is not counted
    sys.setprofile(tell)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


LOOKS: dict[str, Callable[[Cluster], object]] = {
    "find": lambda cluster: cluster.find(ObjectRef(CONFIG.ref, "hub", "c")),
    "objects_of": lambda cluster: list(cluster.objects_of(ME.owner)),
    "is_frozen": lambda cluster: cluster.is_frozen(CONFIG.ref, "hub"),
    "stores_in": lambda cluster: list(cluster.stores_in("hub")),
    "leave": lambda cluster: cluster.leave("nowhere"),
}


@pytest.mark.parametrize("look", LOOKS)
async def test_no_look_goes_through_the_namespaces_of_all_users(
    fake: FakeApiServer, cluster: Cluster, look: str
) -> None:
    fake.put(manifest())
    await cluster.reflector(CONFIG, "hub").sync()
    alone = calls(lambda: LOOKS[look](cluster))
    for number in range(50):
        await cluster.reflector(CONFIG, f"user-{number}").sync()
    assert calls(lambda: LOOKS[look](cluster)) == alone


async def test_a_store_that_is_filled_tells_only_those_whose_objects_it_has(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    fake.put(manifest())
    words: list[str] = []
    cluster.changes.subscribe(ME.owner, lambda: words.append("mine"))
    cluster.changes.subscribe(YOU.owner, lambda: words.append("yours"))
    await cluster.reflector(CONFIG, "hub").sync()
    assert words == ["mine"]


async def test_secrets_stay_on_the_cluster(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.put(manifest("Secret", data={"k": "aHVzaA=="}))
    kind = Kind("", "v1", "Secret", "secrets", namespaced=True)
    for full in (False, True):
        store = cluster.reflector(kind, "hub", full=full)
        await store.sync()
        for live in store.of_owner(ME.owner):
            assert "aHVzaA==" not in str(live.as_dict())


async def test_what_comes_in_the_turn_in_which_a_store_is_closed_is_not_kept(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    """A task whose data has arrived is not cancelled any more; nobody would take this out again."""
    store = cluster.reflector(CONFIG, "hub")
    await store.sync()
    await until(lambda: store.watching)
    fake.put(manifest())
    cluster.leave("hub")
    await asyncio.sleep(0.05)
    assert not list(cluster.objects_of(ME.owner))


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_nor_is_a_list_that_comes_then(
    fake: FakeApiServer, cluster: Cluster, turns: int
) -> None:
    fake.put(manifest())
    store = cluster.reflector(CONFIG, "hub")
    for _ in range(turns):
        await asyncio.sleep(0)
    cluster.leave("hub")
    await asyncio.sleep(0.05)
    assert not list(cluster.objects_of(ME.owner))
    with contextlib.suppress(NotFound):  # it ends, and does not take a closed store for a good one
        async with asyncio.timeout(1):
            await store.sync()
