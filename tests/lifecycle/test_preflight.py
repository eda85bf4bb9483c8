"""A namespace for each user, made by an account that may do little else: on the fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import Forbidden, StartFailed
from lightkube_template_spawner.lifecycle import liveness
from lightkube_template_spawner.lifecycle.launcher import Launcher
from lightkube_template_spawner.lifecycle.liveness import Missing
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.objects.identity import Identity
from lightkube_template_spawner.objects.ref import POD, ObjectRef
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer, Fault, text
from tests.support.objects import CONFIG, LIFECYCLE, ME, YOU
from tests.support.timing import QUICK
from tests.support.world import RULES, World, chart, log

Obj = dict[str, Any]
FULL = ["create", "delete", "get", "list", "patch", "watch"]
SPACES = replace(RULES, namespaces=("own-*",), cluster_kinds=("v1/Namespace",))


def rule(group: str, *plurals: str) -> Obj:
    return {"apiGroups": [group], "resources": [*plurals], "verbs": FULL}


EVERYWHERE = [rule("", "namespaces"), rule("rbac.authorization.k8s.io", "rolebindings")]
WITHIN = [
    rule("", "pods", "secrets", "services", "persistentvolumeclaims"),
    rule("discovery.k8s.io", "endpointslices"),
]


@pytest.fixture
def fake() -> FakeApiServer:
    fake = FakeApiServer("hub")
    fake.rules, fake.roles = EVERYWHERE, {"server": WITHIN}
    return fake


@pytest.fixture
async def world(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[World]:
    timing = replace(QUICK, binding=0.3, binding_pause=0.01, recovering=0.2)
    cluster = Cluster(connect(tmp_path, transport=fake), "i", log, timing)
    yield World(fake, cluster)
    await cluster.aclose()


def space(identity: Identity) -> str:
    return f"own-{identity.userid}"


def apart(identity: Identity = ME) -> dict[str, Obj]:
    """The whole server in a namespace of its user's own."""
    files = {key: {**item} for key, item in chart().items()}
    for item in files.values():
        item["metadata"] = {**item["metadata"], "namespace": space(identity)}
    metadata = {"name": "hub", "annotations": {LIFECYCLE: "user-deleted"}}
    return {
        **files,
        "space": {"apiVersion": "v1", "kind": "Namespace",
                  "metadata": {**metadata, "name": space(identity)}},
        "binding": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                    "metadata": {**metadata, "namespace": space(identity)},
                    "roleRef": {"kind": "ClusterRole", "name": "server"}},
    }  # fmt: skip


async def launch(world: World, identity: Identity = ME) -> Record:
    return await world.launch(apart(identity), identity, rules=SPACES)


async def purge(world: World, identity: Identity, record: Record) -> None:
    await Removal(world.cluster, log).purge(
        identity.user_selection(),
        owner=identity.owner,
        namespaces=["hub", *record.namespaces],
        known_kinds=record.retained,
        cluster_kinds=["v1/Namespace"],
        timeout=3,
    )


def watched(world: World, namespace: str) -> list[str]:
    """What is watched in a namespace, by our account and by the server's."""
    stores = [str(store.kind) for store in world.cluster.stores() if store.namespace == namespace]
    paths = [watch.seen.path for watch in world.fake.watches]
    return stores + [path for path in paths if f"/{namespace}/" in path]


async def test_rights_that_come_with_the_namespace(world: World, fake: FakeApiServer) -> None:
    for identity in (ME, YOU):
        record = await launch(world, identity)
        await world.stop(record)
        await world.stop(await launch(world, identity))
        assert fake.find("PersistentVolumeClaim", space(identity), "home")
    reviews = [s.body["spec"]["namespace"] for s in fake.requests if "rulesreviews" in s.path]
    assert [name for name in reviews if name != "-"] == [*[space(ME)] * 2, *[space(YOU)] * 2]
    # Once for namespaces themselves, and once for each kind that a second namespace has too.
    assert reviews.count("-") == 1 + 6


async def test_where_it_is_allowed_one_watch_sees_every_namespace(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules, fake.roles = [rule("*", "*")], {}
    for number in range(1, 5):
        await launch(world, Identity("i", f"user{number}", userid=number))
    kinds = [str(store.kind) for store in world.cluster.stores()]
    assert len(kinds) == len({*kinds}) == 7
    assert fake.count("GET .*/namespaces/own-1/pods$") == 1
    assert fake.count("GET .*/own-[234]/(pods|secrets|services)$") == 0
    assert fake.count("GET /api/v1/pods$") == fake.count("WATCH /api/v1/pods$") == 1
    await asyncio.sleep(0.02)
    assert not [watch for watch in fake.watches if "own-" in watch.seen.path
                and "events" not in watch.seen.path]  # fmt: skip


async def test_a_namesake_elsewhere_is_not_seen_by_a_watch_of_all_namespaces(
    world: World, fake: FakeApiServer
) -> None:
    """Two hubs of one instance name in different namespaces: neither clears the other's away."""
    fake.rules, fake.roles = [rule("*", "*")], {}
    await launch(world, YOU)
    record = await launch(world)
    fake.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "theirs"}})
    pod = fake.find("Pod", space(ME), "s")
    assert pod is not None
    labels = pod["metadata"]["labels"]
    fake.put({**pod, "metadata": {"name": "s", "namespace": "theirs", "labels": labels}})
    await asyncio.sleep(0.05)
    assert {live.meta.namespace for live in world.cluster.objects_of(ME.owner)} == {"", space(ME)}
    assert world.cluster.find(ObjectRef(POD, "theirs", "s")) is None
    await world.stop(record)
    await world.stop(await launch(world))
    assert fake.find("Pod", "theirs", "s")


async def test_a_removed_user_leaves_no_namespace_no_watch_and_the_others_alone(
    world: World, fake: FakeApiServer
) -> None:
    mine = await launch(world)
    yours = await launch(world, YOU)
    for _ in range(2):
        await world.stop(mine)
        await purge(world, ME, mine)
        await asyncio.sleep(0.05)
        assert not fake.find("Namespace", "", space(ME))
        assert watched(world, space(ME)) == []
        assert watched(world, space(YOU)) != []
        assert fake.find("Pod", space(YOU), "s")
        mine = await launch(world)
    await world.stop(yours)


async def test_after_a_restart_of_the_hub_too(
    world: World, fake: FakeApiServer, tmp_path: Path
) -> None:
    mine = await launch(world)
    world.cluster, before = (
        Cluster(connect(tmp_path, transport=fake), "i", log, QUICK),
        world.cluster,
    )
    await before.aclose()
    await world.stop(mine)
    await purge(world, ME, mine)
    assert not fake.find("Namespace", "", space(ME))
    await world.cluster.aclose()


async def test_a_role_that_does_not_suffice(world: World, fake: FakeApiServer) -> None:
    fake.roles = {"server": WITHIN[:1]}
    with pytest.raises(Forbidden, match=r"own roles do not suffice.*watch endpointslices") as error:
        await launch(world)
    assert "resources: [endpointslices], verbs: [list, watch]" in str(error.value)
    assert world.left() == {"RoleBinding/hub"}
    fake.roles = {"server": WITHIN}
    await launch(world)


async def test_a_server_that_has_just_come_back_is_asked_again(
    world: World, fake: FakeApiServer
) -> None:
    """For some seconds it denies what its roles allow."""
    await launch(world, YOU)
    watch = next(w for w in fake.watches if w.seen.path.endswith(f"{space(YOU)}/pods"))
    fake.rules = []
    watch.end(httpx2.ReadError("reset"))
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.1, lambda: fake.rules.extend(EVERYWHERE))
    await launch(world)
    fake.rules = []
    world.cluster.rights.forget()
    with pytest.raises(Forbidden, match=r"^Nothing was created"):
        await launch(world)


async def test_without_a_binding_all_is_refused_before_anything(
    world: World, fake: FakeApiServer
) -> None:
    files = apart()
    del files["binding"]
    with pytest.raises(Forbidden, match=r"^Nothing was created"):
        await world.launch(files, rules=SPACES)
    assert not fake.find("Namespace", "", space(ME))


async def test_a_namespace_that_an_administrator_deleted(
    world: World, fake: FakeApiServer, tmp_path: Path
) -> None:
    """Its role goes with it: a server there is gone, not unreachable for ever."""
    record = await launch(world)
    pods = await world.cluster.discovery.kind("v1", "Pod")
    fake.remove("Namespace", "", space(ME))
    assert await world.cluster.get(pods, space(ME), "s") is None
    assert watched(world, space(ME))[:1] == []
    await world.stop(record)  # nothing to do, and nothing refused
    # A hub that did not watch namespaces finds out when it is refused.
    fresh = Cluster(connect(tmp_path, transport=fake), "i", log, QUICK)
    store = fresh.reflector(pods, space(ME))
    with pytest.raises(Forbidden):
        await store.sync()
    assert await fresh.get(pods, space(ME), "s") is None
    assert list(fresh.stores()) == []
    await fresh.aclose()
    await launch(world)


async def test_a_namespace_that_goes_takes_along_what_we_may_not_touch_any_more(
    world: World, fake: FakeApiServer
) -> None:
    record = await launch(world)
    pods = await world.cluster.discovery.kind("v1", "Pod")
    going = fake.find("Namespace", "", space(ME))
    assert going is not None
    going["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:01Z"
    fake.put(going)
    fake.roles = {}
    assert await world.cluster.get(pods, record.pods_in, "s") is None
    await world.stop(record)


async def test_a_namespace_that_is_there_and_closed_to_us_is_not_gone(
    world: World, fake: FakeApiServer
) -> None:
    record = await launch(world)
    pods = await world.cluster.discovery.kind("v1", "Pod")
    fake.roles = {}
    with pytest.raises(Forbidden):
        await world.cluster.get(pods, record.pods_in, "s")
    fake.rules = []  # not even namespaces may be looked at
    with pytest.raises(Forbidden):
        await world.cluster.get(pods, record.pods_in, "s")
    assert watched(world, space(ME)) != []


# -- rights taken away while the hub runs ---------------------------------------------------------


async def take(world: World, verb: str, plural: str) -> None:
    """Take a right away; open watches of the kind end, as each does after some minutes."""
    world.fake.forbidden.add((verb, plural))
    await cut(world, plural)


async def cut(world: World, plural: str) -> None:
    for watch in [w for w in world.fake.watches if w.seen.path.endswith(f"/{plural}")]:
        watch.end()
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("plural", ["pods", "secrets", "services", "endpointslices"])
async def test_a_watch_that_is_refused_later_is_named_and_nothing_is_created(
    world: World, fake: FakeApiServer, plural: str
) -> None:
    fake.rules = [rule("*", "*")]
    await world.stop(await world.launch())
    before, writes = world.left(), world.writes()
    await take(world, "watch", plural)
    for _ in range(2):
        with pytest.raises(Forbidden, match=f"^Nothing was created: .* may not watch {plural}"):
            await world.launch()
    assert (world.left(), world.writes()) == (before, writes)
    fake.forbidden.clear()
    await world.stop(await world.launch())


async def test_a_right_to_create_that_goes_later_is_named_and_nothing_is_created(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    fake.rules = [rule("*", "*")]
    timing = replace(QUICK, rights=0.05)
    world = World(fake, Cluster(connect(tmp_path, transport=fake), "i", log, timing))
    await world.stop(await world.launch())
    before, writes = world.left(), world.writes()
    fake.forbidden.add(("create", "secrets"))
    await asyncio.sleep(0.06)
    with pytest.raises(Forbidden, match=r"^Nothing was created: .* may not create secrets"):
        await world.launch()
    assert (world.left(), world.writes()) == (before, writes)
    await world.cluster.aclose()


async def test_what_else_is_gone_with_a_watch_is_named_too(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules = [rule("*", "*")]
    await world.stop(await world.launch())
    fake.forbidden.add(("create", "secrets"))
    await take(world, "watch", "pods")
    with pytest.raises(Forbidden, match=r"watch pods in .* nor create secrets in") as error:
        await world.launch()
    assert str(error.value).startswith("Nothing was created: ")


async def wide(world: World) -> dict[Identity, Record]:
    """Servers in two namespaces, which one watch a kind follows, by a right that is then gone."""
    world.fake.rules, world.fake.roles = [rule("*", "*")], {"server": WITHIN}
    records = {identity: await launch(world, identity) for identity in (YOU, ME)}
    assert {store.namespace for store in world.cluster.stores()} == {None}
    world.fake.rules = EVERYWHERE
    for plural in ("pods", "secrets", "services", "persistentvolumeclaims", "endpointslices"):
        await cut(world, plural)
    return records


async def test_where_the_right_to_all_namespaces_goes_each_is_watched_by_itself(
    world: World, fake: FakeApiServer
) -> None:
    records = await wide(world)
    await world.stop(records[ME])
    records[ME] = await launch(world)
    pods = {s.namespace: s for s in world.cluster.stores() if s.kind.kind == "Pod"}
    assert {*pods} == {space(ME)}
    assert not pods[space(ME)].frozen
    # The other server's next poll opens the watch that shows it.
    assert await look(world, records[YOU]) is None
    fake.remove("Pod", space(YOU), "s")
    await asyncio.sleep(0.02)
    assert await look(world, records[YOU]) == Missing(ObjectRef(POD, space(YOU), "s"))
    await world.stop(records[YOU])
    assert not fake.find("Secret", space(YOU), "s")


async def look(world: World, record: Record) -> object:
    server = Server(world.cluster, record)
    await liveness.watch(server)
    return liveness.look(server, liveness.Limits())


async def test_a_watch_of_all_namespaces_that_was_refused_is_not_tried_again(
    world: World, fake: FakeApiServer
) -> None:
    """Whatever the rules say, which know nothing of a webhook that refuses."""
    fake.rules = [rule("*", "*")]
    records = {identity: await launch(world, identity) for identity in (YOU, ME)}
    fake.faults.append(Fault(answer=lambda: httpx2.Response(403), path="v1/pods$", times=9999))
    await cut(world, "pods")
    world.cluster.rights.forget()
    assert await look(world, records[ME]) is None
    tries = fake.count("v1/pods$")
    assert await look(world, records[YOU]) is None
    assert fake.count("v1/pods$") == tries


async def test_many_that_wait_for_a_watch_of_all_namespaces_fall_back_together(
    world: World, fake: FakeApiServer
) -> None:
    records = await wide(world)
    seen = await asyncio.gather(*(look(world, records[who]) for who in (ME, YOU) * 5))
    assert seen == [None] * 10
    stores = [(str(s.kind), s.namespace) for s in world.cluster.stores() if s.kind.namespaced]
    assert len(stores) == len({*stores})
    assert ("v1/Pod", None) not in stores


async def test_without_any_right_a_watch_of_all_namespaces_is_named_where_it_is_needed(
    world: World, fake: FakeApiServer
) -> None:
    records = await wide(world)
    fake.roles = {"server": WITHIN[1:]}
    with pytest.raises(Forbidden, match=f'cannot list .*"services".*"{space(ME)}"'):
        await look(world, records[ME])


async def test_a_quota_takes_nobodys_rights_away(world: World, fake: FakeApiServer) -> None:
    fake.rules = [rule("*", "*")]
    await world.stop(await world.launch())
    quota = {"kind": "Status", "code": 403, "reason": "Forbidden",
             "message": 'pods "s" is forbidden: exceeded quota: q, used: pods=1'}  # fmt: skip
    fault = text(403, json.dumps(quota), "application/json")
    fake.faults.append(replace(fault, method="PATCH", path="/pods/"))
    reviews = fake.count("rulesreviews")
    with pytest.raises(Forbidden, match="exceeded quota"):
        await world.launch()
    await world.stop(world.saved[-1])
    await world.launch()
    assert fake.count("rulesreviews") == reviews


# -- rights taken away while a server starts ------------------------------------------------------

TAKEN = "^A right was taken away while the server started: "


async def starting(world: World, files: dict[str, Obj] | None = None) -> asyncio.Task[Record]:
    """A start that waits for its pod, which no node runs."""
    world.node = False
    world.told.clear()
    rules = RULES if files is None else SPACES
    task = asyncio.create_task(world.launch(files, rules=rules, timeout=20))
    async with asyncio.timeout(5):
        while not any("Waiting for Service" in text for text in world.told):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    return task


async def becomes_ready(world: World, task: asyncio.Task[Record], namespace: str = "hub") -> None:
    assert not task.done(), task
    world.fake.run_pod(namespace, "s")
    async with asyncio.timeout(5):
        assert (await task).ready


@pytest.mark.parametrize("plural", ["pods", "services", "endpointslices"])
async def test_a_start_whose_watch_is_refused_ends_soon_and_names_the_right(
    world: World, fake: FakeApiServer, plural: str
) -> None:
    fake.rules = [rule("*", "*")]
    task = await starting(world)
    await take(world, "watch", plural)
    with pytest.raises(Forbidden, match=f"{TAKEN}.* may not watch {plural}[. ]") as error:
        async with asyncio.timeout(3):
            await task
    assert f"resources: [{plural}], verbs: [watch]" in str(error.value)
    fake.forbidden.clear()
    await world.stop(world.saved[-1])
    world.node = True
    await world.stop(await world.launch())


async def test_a_start_goes_on_without_watches_that_it_does_not_wait_for(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules = [rule("*", "*")]
    task = await starting(world)
    await take(world, "watch", "secrets")
    await becomes_ready(world, task)


async def test_an_adoption_whose_watch_is_refused_ends_soon(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules = [rule("*", "*")]
    (await starting(world)).cancel()
    launcher = Launcher(world.cluster, ME, RULES, Route(), log, lambda text, _: None)
    task = asyncio.create_task(launcher.adopt(world.saved[-1], timeout=20))
    await asyncio.sleep(0.05)
    await take(world, "watch", "pods")
    with pytest.raises(Forbidden, match='cannot watch resource "pods"'):
        async with asyncio.timeout(3):
            await task


async def test_a_server_that_has_just_come_back_ends_no_start(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules = [rule("*", "*")]
    task = await starting(world)
    fake.faults += [
        Fault(error=lambda: httpx2.ConnectError("refused"), path="/pods$", times=2),
        Fault(answer=lambda: httpx2.Response(403), path="/pods$", times=4),
    ]
    await cut(world, "pods")
    async with asyncio.timeout(5):
        while [fault.met for fault in fake.faults] != [2, 4]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await becomes_ready(world, task)


async def test_nor_does_it_where_another_watch_noticed_that_it_was_away(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules = [rule("*", "*")]
    task = await starting(world)
    for watch in [w for w in fake.watches if w.seen.path.endswith("/services")]:
        watch.end(httpx2.ReadError("reset"))
    await asyncio.sleep(0.02)
    await take(world, "watch", "pods")
    fake.forbidden.clear()
    await becomes_ready(world, task)


@pytest.mark.parametrize("noticed_by", ["the start", "a poll"])
async def test_a_start_goes_on_where_its_own_namespace_may_still_be_watched(
    world: World, fake: FakeApiServer, noticed_by: str
) -> None:
    fake.rules = [rule("*", "*")]
    other = await launch(world, YOU)
    if noticed_by == "a poll":
        world.cluster.timing = replace(world.cluster.timing, sight=20)
    task = await starting(world, apart())
    assert {store.namespace for store in world.cluster.stores()} == {None}
    fake.rules = EVERYWHERE
    for plural in ("pods", "services", "endpointslices"):
        await cut(world, plural)
    if noticed_by == "a poll":
        assert await look(world, other) is None
    await becomes_ready(world, task, space(ME))


async def test_a_start_is_told_of_the_watch_that_took_the_place_of_its_own(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules = [rule("*", "*")]
    task = await starting(world, apart())
    other = asyncio.create_task(launch(world, YOU))
    async with asyncio.timeout(5):
        while not fake.find("Service", space(YOU), "s"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await becomes_ready(world, other, space(YOU))
    assert {store.namespace for store in world.cluster.stores()} == {None}
    fake.rules, fake.roles = EVERYWHERE, {}
    await cut(world, "pods")
    with pytest.raises(Forbidden, match=f"{TAKEN}.* list, patch or watch pods in .*{space(ME)}"):
        async with asyncio.timeout(3):
            await task


async def test_a_start_whose_namespace_is_deleted_says_so(
    world: World, fake: FakeApiServer
) -> None:
    task = await starting(world, apart())
    fake.remove("Namespace", "", space(ME))
    with pytest.raises(StartFailed, match=f"namespace '{space(ME)}' is being deleted"):
        async with asyncio.timeout(3):
            await task
    assert watched(world, space(ME)) == []


async def test_nor_does_a_watch_somewhere_that_stays_away_keep_it(
    world: World, fake: FakeApiServer
) -> None:
    fake.rules = [rule("*", "*")]
    away = Fault(answer=lambda: httpx2.Response(503), path="/configmaps$", times=9999)
    fake.faults.append(away)
    world.cluster.reflector(CONFIG, "elsewhere")  # of somebody else's template
    task = await starting(world)
    await take(world, "watch", "pods")
    with pytest.raises(Forbidden, match=f"{TAKEN}.* watch pods"):
        async with asyncio.timeout(5):
            await task
    with pytest.raises(Forbidden, match="Nothing was created"):
        async with asyncio.timeout(5):
            await world.launch(timeout=20)


@pytest.mark.parametrize("wide", [False, True])
async def test_a_late_end_of_a_namespace_of_that_name_keeps_no_start_from_seeing(
    world: World, fake: FakeApiServer, wide: bool
) -> None:
    if wide:
        fake.rules = [rule("*", "*")]
        await launch(world, YOU)
    task = await starting(world, apart())
    world.cluster.leave(space(ME))  # as when the end of its former one is told late
    await asyncio.sleep(2 * world.cluster.timing.sight)
    await becomes_ready(world, task, space(ME))
