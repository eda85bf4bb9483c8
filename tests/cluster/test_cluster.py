"""The only writer: creates or refuses, updates by UID, deletes by label, never more than asked."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import anyio
import httpx2
import pytest

from lightkube_template_spawner.cluster import cluster as module
from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.retry import deadline
from lightkube_template_spawner.errors import (
    AlreadyThere,
    ClusterError,
    ConfigurationError,
    Conflict,
    Forbidden,
    Invalid,
)
from lightkube_template_spawner.objects.identity import Identity, Policy
from tests.support.connect import connect, kubeconfig
from tests.support.fake_apiserver import FakeApiServer, Fault, Refusal, text
from tests.support.objects import CONFIG, LIFECYCLE, ME, POD, YOU, manifest, planned
from tests.support.timing import QUICK

log = logging.getLogger("test")
MINE = ME.selection(LIFECYCLE, [Policy.STOPPED])


def data(fake: FakeApiServer, name: str = "c") -> object:
    found = fake.find("ConfigMap", "hub", name)
    return None if found is None else found.get("data")


# Creating


async def test_a_new_object_costs_one_request(fake: FakeApiServer, cluster: Cluster) -> None:
    item = planned(manifest(data={"k": "v"}))
    made = await cluster.create(CONFIG, item, ME)
    assert data(fake) == {"k": "v"}
    assert made["metadata"]["uid"]
    (seen,) = fake.requests
    assert (seen.method, seen.query["fieldManager"]) == ("PATCH", ME.manager)
    assert seen.body["metadata"]["resourceVersion"] == "1"
    assert "resourceVersion" not in item.manifest["metadata"]


@pytest.mark.parametrize("maker", ["posted", "same user", "other user"])
async def test_what_is_there_is_not_written(
    fake: FakeApiServer, cluster: Cluster, maker: str
) -> None:
    if maker == "posted":
        before = fake.put({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "y"},
                           "metadata": {"name": "c", "namespace": "hub"}})  # fmt: skip
    else:
        identity = ME if maker == "same user" else YOU
        before = await cluster.create(
            CONFIG, planned(manifest(identity=identity, digest="0")), identity
        )
    with pytest.raises(AlreadyThere, match="ConfigMap/hub/c exists already") as caught:
        await cluster.create(CONFIG, planned(manifest(data={"k": "v"})), ME)
    assert caught.value.live == before
    assert fake.find("ConfigMap", "hub", "c") == before
    assert [seen.method for seen in fake.requests][-2:] == ["PATCH", "GET"]


LOST = {
    "reset": Fault(error=lambda: httpx2.ReadError("reset"), lost=True, method="PATCH"),
    "timeout": Fault(error=lambda: httpx2.ReadTimeout("late"), lost=True, method="PATCH"),
    "proxy's 502": replace(text(502, "<html/>", "text/html"), lost=True, method="PATCH"),
    "broken JSON": replace(text(200, '{"a', "application/json"), lost=True, method="PATCH"),
}


@pytest.mark.parametrize("name", LOST)
async def test_a_lost_answer_is_found_out(fake: FakeApiServer, cluster: Cluster, name: str) -> None:
    fake.faults.append(replace(LOST[name], met=0))
    made = await cluster.create(CONFIG, planned(manifest(data={"k": "v"})), ME)
    assert fake.find("ConfigMap", "hub", "c") == made
    assert [seen.method for seen in fake.requests] == ["PATCH", "PATCH", "GET"]


@pytest.mark.parametrize(("identity", "digest"), [(YOU, "1"), (ME, "of another start")])
async def test_a_lost_answer_to_a_refusal_is_no_success(
    fake: FakeApiServer, cluster: Cluster, identity: Identity, digest: str
) -> None:
    before = await cluster.create(
        CONFIG, planned(manifest(identity=identity, digest=digest)), identity
    )
    fake.faults.append(replace(LOST["reset"], met=0))
    with pytest.raises(AlreadyThere):
        await cluster.create(CONFIG, planned(manifest()), ME)
    assert fake.find("ConfigMap", "hub", "c") == before


async def test_an_object_that_went_meanwhile(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.put(manifest(digest="0"))
    fake.on_request = lambda seen, when: (
        fake.remove("ConfigMap", "hub", "c") if (seen.method, when) == ("GET", "arrived") else None
    )
    with pytest.raises(Conflict) as caught:
        await cluster.create(CONFIG, planned(manifest()), ME)
    assert not isinstance(caught.value, AlreadyThere)


async def test_refusals_are_not_repeated(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.forbidden.add(("create", "configmaps"))
    with pytest.raises(Forbidden, match="cannot create"):
        await cluster.create(CONFIG, planned(manifest()), ME)
    with pytest.raises(Invalid, match="field not declared in schema"):
        await cluster.create(CONFIG, planned(manifest(spec={"bogus": 1})), ME)
    assert len(fake.requests) == 2


async def test_at_most_eight_writes_at_a_time(fake: FakeApiServer, cluster: Cluster) -> None:
    items = [planned(manifest(name=f"c{n}")) for n in range(40)]
    await asyncio.gather(*(cluster.create(CONFIG, item, ME) for item in items))
    assert fake.most_open <= 8
    assert len(fake.requests) == 40


# Updating what we hold


async def test_an_update_is_bound_to_the_object(fake: FakeApiServer, cluster: Cluster) -> None:
    made = await cluster.create(CONFIG, planned(manifest(data={"k": "1"})), ME)
    uid = made["metadata"]["uid"]
    changed = planned(manifest(data={"k": "2"}))
    assert (await cluster.apply_held(CONFIG, changed, ME, uid))["data"] == {"k": "2"}
    fake.remove("ConfigMap", "hub", "c")
    with pytest.raises(Conflict, match="uid mismatch"):
        await cluster.apply_held(CONFIG, changed, ME, uid)
    assert data(fake) is None
    other = await cluster.create(CONFIG, planned(manifest(data={"k": "3"})), ME)
    with pytest.raises(ClusterError):
        await cluster.apply_held(CONFIG, changed, ME, uid)
    assert fake.find("ConfigMap", "hub", "c") == other


async def test_an_update_takes_no_field_by_force(fake: FakeApiServer, cluster: Cluster) -> None:
    made = await cluster.create(CONFIG, planned(manifest(data={"k": "1"})), YOU)
    changed = planned(manifest(data={"k": "2"}))
    with pytest.raises(Conflict) as caught:
        await cluster.apply_held(CONFIG, changed, ME, made["metadata"]["uid"])
    assert caught.value.causes[0]["field"] == ".data.k"
    assert data(fake) == {"k": "1"}
    assert all(seen.query.get("force", "false") == "false" for seen in fake.requests)


# Deleting by label


async def several(cluster: Cluster) -> None:
    for name in ("one", "two", "three"):
        await cluster.create(CONFIG, planned(manifest(name=name)), ME)
    await cluster.create(CONFIG, planned(manifest(name="theirs", identity=YOU)), YOU)
    kept = manifest(name="kept", policy=Policy.USER_DELETED)
    await cluster.create(CONFIG, planned(kept), ME)


def left(fake: FakeApiServer) -> set[str]:
    return {item["metadata"]["name"] for item in fake.everything()}


async def test_a_collection_goes_with_one_request(fake: FakeApiServer, cluster: Cluster) -> None:
    await several(cluster)
    fake.requests.clear()
    found = await cluster.delete_matching(CONFIG, "hub", MINE, grace=3)
    assert {meta.name for meta in found} == {"one", "two", "three"}
    assert left(fake) == {"theirs", "kept"}
    (seen,) = fake.requests
    assert (str(seen), {*seen.query}) == (
        "DELETE /api/v1/namespaces/hub/configmaps", {"labelSelector"},
    )  # fmt: skip
    assert seen.body == {"apiVersion": "v1", "kind": "DeleteOptions",
                         "propagationPolicy": "Background", "gracePeriodSeconds": 3}  # fmt: skip
    assert await cluster.delete_matching(CONFIG, "hub", MINE) == []  # items: null


async def test_no_write_is_ever_without_selector_or_name(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    await several(cluster)
    await cluster.delete_matching(CONFIG, "hub", MINE)
    await cluster.delete_matching(replace(CONFIG, verbs=frozenset()), "hub", MINE)
    for seen in fake.requests:
        if seen.method == "DELETE":
            assert seen.path.count("/") == 6 or seen.query["labelSelector"] == MINE.selector


@pytest.mark.parametrize("code", [403, 405, 422])
async def test_one_by_one_where_the_collection_is_refused(
    fake: FakeApiServer, cluster: Cluster, code: int
) -> None:
    await several(cluster)
    fake.requests.clear()
    fake.faults.append(
        replace(text(code, "{}", "application/json"), method="DELETE", path="configmaps$")
    )
    found = await cluster.delete_matching(CONFIG, "hub", MINE)
    assert {meta.name for meta in found} == {"one", "two", "three"}
    assert left(fake) == {"theirs", "kept"}
    single = [seen for seen in fake.requests if seen.path.count("/") == 6]
    assert {seen.body["preconditions"]["uid"] for seen in single} == {m.uid for m in found}


async def test_a_forbidden_collection_is_remembered(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.forbidden.add(("deletecollection", "configmaps"))
    for _ in range(3):
        await several(cluster)
        await cluster.delete_matching(CONFIG, "hub", MINE)
        fake.remove("ConfigMap", "hub", "theirs")
        fake.remove("ConfigMap", "hub", "kept")
    assert fake.count("DELETE .*configmaps$") == 1


async def test_one_that_refuses_keeps_no_other(fake: FakeApiServer, cluster: Cluster) -> None:
    await several(cluster)
    policy = Refusal(422, "Invalid", "a policy protects it")
    fake.protected = {"one": policy, "two": Refusal(403, "Forbidden", "so says the webhook")}
    with pytest.raises(ClusterError) as caught:
        await cluster.delete_matching(CONFIG, "hub", MINE)
    assert "ConfigMap/hub/one: a policy protects it" in str(caught.value)
    assert "ConfigMap/hub/two: so says the webhook" in str(caught.value)
    assert left(fake) == {"one", "two", "theirs", "kept"}


async def test_labels_are_checked_here_too(fake: FakeApiServer, cluster: Cluster) -> None:
    """A server that ignores selectors must not cost others their objects."""
    await several(cluster)
    everything = fake.everything()
    assert len(everything) == 5
    body = {"metadata": {}, "items": everything}
    fake.faults.append(
        Fault(answer=lambda: httpx2.Response(200, json=body), method="GET", path="configmaps$")
    )
    found = await cluster.delete_listed(CONFIG, "hub", MINE)
    assert {meta.name for meta in found} == {"one", "two", "three", "kept"}
    assert left(fake) == {"theirs"}


async def test_an_object_replaced_meanwhile_stays(fake: FakeApiServer, cluster: Cluster) -> None:
    await several(cluster)

    def replaced(seen: object, when: str) -> None:
        if getattr(seen, "method", "") == "GET" and when == "handled":
            fake.remove("ConfigMap", "hub", "one")
            fake.put(manifest(name="one", identity=YOU))

    fake.on_request = replaced
    found = await cluster.delete_listed(CONFIG, "hub", MINE)
    assert "two" in {meta.name for meta in found}
    assert left(fake) == {"one", "theirs", "kept"}
    live = fake.find("ConfigMap", "hub", "one")
    assert live is not None
    assert YOU.owns(live["metadata"]["labels"])


async def test_absent_kinds_and_namespaces_have_nothing(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    verbs = CONFIG.verbs
    for kind in (Kind("no.example.org", "v1", "No", "noes", True, verbs), replace(CONFIG)):
        assert await cluster.delete_matching(kind, "nowhere", MINE) == []
        assert await cluster.delete_listed(kind, "nowhere", MINE) == []


async def test_deletes_wait_out_a_bad_moment(fake: FakeApiServer, cluster: Cluster) -> None:
    await several(cluster)
    fake.faults += [
        replace(text(429, "Too many requests", Retry_After="0"), method="DELETE"),
        Fault(error=lambda: httpx2.ReadError("reset"), lost=True, method="DELETE"),
    ]
    assert await cluster.delete_matching(CONFIG, "hub", MINE) == []
    assert left(fake) == {"theirs", "kept"}
    fake.faults = [Fault(error=lambda: httpx2.ConnectError("refused"), times=10_000)]
    with pytest.raises(TimeoutError, match="ConnectError refused"), deadline(0.1):
        await cluster.delete_matching(CONFIG, "hub", MINE)


async def test_a_write_that_waits_for_its_next_try_keeps_no_other(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    """One extension that is down must not stand in the way of everybody's starts and stops."""
    slow = replace(QUICK, retry=(5, 5))
    cluster = Cluster(connect(tmp_path, transport=fake), ME.instance, log, slow)
    fake.faults.append(replace(text(500, "no webhook"), method="DELETE", path="/pods$", times=99))
    await several(cluster)
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(cluster.delete_matching, POD, "hub", MINE)
        with anyio.fail_after(2):
            assert await cluster.delete_matching(CONFIG, "hub", MINE)
        group.cancel_scope.cancel()
    await cluster.aclose()


# Closing


async def test_closing_ends_everything(fake: FakeApiServer, tmp_path: Path) -> None:
    cluster = Cluster(connect(tmp_path, transport=fake), ME.instance, log, QUICK)
    await cluster.reflector(POD, "hub").sync()
    with cluster.events("hub").listen(lambda event: None):
        await anyio.sleep(0.02)
        assert len(fake.watches) == 2
        await cluster.aclose()
    await asyncio.sleep(0)
    assert not fake.watches
    feed = cluster.events("hub")
    if feed._closing is not None:
        feed._closing.cancel()


async def test_closing_before_anything_began(fake: FakeApiServer, tmp_path: Path) -> None:
    api = connect(tmp_path, transport=fake)
    cluster = Cluster(api, ME.instance, log)
    await cluster.aclose()
    assert api._http.is_closed


async def test_one_cluster_for_all_spawners(tmp_path: Path) -> None:
    file = str(kubeconfig(tmp_path))
    one = module.shared(file, "", "i", log, timeout=1)
    assert module.shared(file, "", "i", log, timeout=1) is one
    other = module.shared(file, "", "another", log, timeout=1)
    assert other is not one
    with pytest.raises(ConfigurationError):
        module.shared(file, "no such context", "i", log, timeout=1)
    await asyncio.sleep(0)
    await one.aclose()
    await other.aclose()
