"""Removal: what runs goes first, is awaited, and what holds the rest is named."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.timing import Timing
from lightkube_template_spawner.errors import NodeLost, RemovalIncomplete
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.objects.identity import Identity, Policy
from lightkube_template_spawner.objects.ref import SERVICE, ObjectRef
from tests.support.fake_apiserver import FakeApiServer, Fault, Refusal, text
from tests.support.objects import LIFECYCLE, ME, YOU, manifest
from tests.support.timing import QUICK

log = logging.getLogger("test")
HOLD = "example.org/hold"
KINDS = ("v1/Pod", "v1/Secret", "v1/Service", "networking.k8s.io/v1/NetworkPolicy")
RECORD = Record(ME, "hub", kinds=dict.fromkeys(KINDS, ("hub",)), live=True)


@pytest.fixture
def quick() -> Timing:
    return replace(QUICK, doubt=0.05)


def server(fake: FakeApiServer, identity: Identity = ME, name: str = "s") -> None:
    """A running server: pod, secret, service, policy; and a volume that stays."""
    fake.put(manifest("Pod", name, identity, spec={"nodeName": "node"}))
    fake.put(manifest("Secret", name, identity))
    fake.put(manifest("Service", name, identity))
    fake.put(manifest("NetworkPolicy", name, identity, api_version="networking.k8s.io/v1"))
    fake.put(manifest("PersistentVolumeClaim", name, identity, Policy.USER_DELETED))


async def watch(cluster: Cluster, *kinds: str) -> None:
    for kind in await cluster.discovery.named(kinds or KINDS):
        await cluster.reflector(kind, "hub").sync()


async def stop(cluster: Cluster, record: Record = RECORD, **options: Any) -> None:
    await Removal(cluster, log).stop(record, LIFECYCLE, **{"timeout": 2, **options})


# A stop


async def test_pods_go_first_and_are_awaited(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    server(fake, YOU, "y")
    await watch(cluster)
    fake.delay = 0.05
    seen: list[tuple[str, bool]] = []
    fake.on_request = lambda request, when: (
        seen.append((request.path.rpartition("/")[2], "Pod/s" in fake.left()))
        if (request.method, when) == ("DELETE", "arrived")
        else None
    )
    await stop(cluster)
    assert seen[0] == ("pods", True)
    assert sorted(seen[1:]) == [
        ("networkpolicies", False), ("secrets", False), ("services", False),
    ]  # fmt: skip
    assert fake.left() == {
        "PersistentVolumeClaim/s", "Pod/y", "Secret/y", "Service/y", "NetworkPolicy/y",
        "PersistentVolumeClaim/y",
    }  # fmt: skip


async def test_a_stop_costs_a_request_a_kind(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    await watch(cluster)
    await asyncio.sleep(0.02)
    fake.requests.clear()
    await stop(cluster)
    assert fake.count("^DELETE") == 4
    assert [str(seen) for seen in fake.requests if seen.method != "DELETE"] == []


async def test_stopping_twice_is_no_error(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    await asyncio.gather(stop(cluster), stop(cluster))
    await stop(cluster)
    await stop(cluster, Record(ME, "hub"))
    assert fake.left() == {"PersistentVolumeClaim/s"}


async def test_the_connection_object_goes_first_too(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    connection = ObjectRef(SERVICE, "hub", "s")
    order: list[str] = []
    fake.on_request = lambda request, when: (
        order.append(request.path.rpartition("/")[2])
        if (request.method, when) == ("DELETE", "arrived")
        else None
    )
    await stop(cluster, replace(RECORD, connection=connection))
    assert set(order[:2]) == {"pods", "services"}


async def test_other_servers_of_the_user_stay(fake: FakeApiServer, cluster: Cluster) -> None:
    named = replace(ME, servername="named")
    server(fake)
    server(fake, named, "n")
    await stop(cluster)
    assert fake.left() >= {"Pod/n", "Secret/n"}
    await stop(cluster, replace(RECORD, identity=named))
    assert fake.left() == {"PersistentVolumeClaim/s", "PersistentVolumeClaim/n"}


async def test_kinds_that_are_gone_hold_nothing_up(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    kinds = {**RECORD.kinds, "gone.example.org/v1/Gone": ("hub",)}
    await stop(cluster, replace(RECORD, kinds=kinds), extra_kinds=["v1/ConfigMap", "x/v1/Y"])
    assert fake.left() == {"PersistentVolumeClaim/s"}
    assert fake.count("DELETE .*configmaps$") == 1


async def test_a_pod_that_ends_slowly_is_waited_for_without_a_watch(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    server(fake)
    fake.delay = 0.1
    await stop(cluster)
    assert fake.left() == {"PersistentVolumeClaim/s"}


@pytest.mark.parametrize("watched", [True, False])
async def test_a_finalizer_is_named(fake: FakeApiServer, cluster: Cluster, watched: bool) -> None:
    server(fake)
    held = fake.find("Secret", "hub", "s")
    assert held is not None
    held["metadata"]["finalizers"] = [HOLD]
    fake.put(held)
    if watched:
        await watch(cluster)
    with pytest.raises(RemovalIncomplete, match=f"still there after 2 s: Secret/hub/s.*{HOLD}"):
        await stop(cluster, timeout=2)
    assert fake.left() == {"Secret/s", "PersistentVolumeClaim/s"}


async def test_a_pod_that_stays_is_named(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    await watch(cluster)
    fake.controllers = False
    with pytest.raises(RemovalIncomplete, match="Pod/hub/s"):
        await stop(cluster, timeout=1)
    # What may run stays confined, and nothing else stays.
    assert fake.left() == {"Pod/s", "NetworkPolicy/s", "PersistentVolumeClaim/s"}
    fake.remove("Pod", "hub", "s")
    await stop(cluster)
    assert fake.left() == {"PersistentVolumeClaim/s"}


async def test_a_new_incarnation_is_not_waited_for(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    await watch(cluster)
    fake.controllers = False
    stopping = asyncio.create_task(stop(cluster))
    await asyncio.sleep(0.05)
    fake.remove("Pod", "hub", "s")
    fake.put(manifest("Pod", "s"))
    await stopping


async def test_what_refuses_is_named_and_keeps_no_other(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    server(fake)
    fake.put(manifest("Secret", "t"))
    fake.protected["t"] = Refusal(403, "Forbidden", "the webhook says no")
    with pytest.raises(
        RemovalIncomplete, match=r"not deleted: .*Secret/hub/t: the webhook says no"
    ):
        await stop(cluster)
    assert fake.left() == {"Secret/t", "PersistentVolumeClaim/s"}


async def test_pods_beside_one_that_refuses_are_awaited(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    server(fake)
    fake.put(manifest("Pod", "t", spec={"nodeName": "node"}))
    fake.protected["t"] = Refusal(403, "Forbidden", "the webhook says no")
    fake.delay = 0.1
    running: list[bool] = []
    fake.on_request = lambda request, when: (
        running.append("Pod/s" in fake.left())
        if request.method == "DELETE" and request.path.endswith("networkpolicies")
        else None
    )
    with pytest.raises(RemovalIncomplete):
        await stop(cluster)
    assert not any(running)


async def test_a_server_that_is_down_is_told(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    await watch(cluster)
    fake.faults.append(Fault(error=lambda: httpx2.ConnectError("refused"), times=10_000))
    with pytest.raises(RemovalIncomplete, match=r"v1/Pod in hub: .*answer: ConnectError refused"):
        await stop(cluster, timeout=1)
    fake.faults.clear()
    await stop(cluster)
    assert fake.left() == {"PersistentVolumeClaim/s"}


async def test_a_server_that_was_always_down_is_told(fake: FakeApiServer, cluster: Cluster) -> None:
    """A hub that starts during an outage cannot know which kinds there are."""
    server(fake)
    fake.faults.append(Fault(times=10_000))
    with pytest.raises(RemovalIncomplete, match=r"which kinds .*: the API server did not answer"):
        await stop(cluster, timeout=1)


async def test_a_stop_goes_on_when_the_server_is_back(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    server(fake)
    await watch(cluster)
    fake.faults.append(Fault(error=lambda: httpx2.ConnectError("refused"), times=10_000))
    stopping = asyncio.create_task(stop(cluster))
    await asyncio.sleep(0.2)
    assert not stopping.done()
    fake.faults.clear()
    await stopping
    assert fake.left() == {"PersistentVolumeClaim/s"}


async def test_an_extension_that_is_down_keeps_no_other_object(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    server(fake)
    await watch(cluster)
    fake.faults.append(
        Fault(answer=lambda: httpx2.Response(503), method="DELETE", path="/services", times=10_000)
    )
    with pytest.raises(RemovalIncomplete, match="not deleted: v1/Service in hub: "):
        await stop(cluster, timeout=1)
    assert fake.left() == {"Service/s", "PersistentVolumeClaim/s"}


async def test_a_dead_watch_does_not_hide_that_all_is_gone(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    server(fake)
    await watch(cluster)
    fake.muted = True
    await stop(cluster, timeout=1)
    assert fake.left() == {"PersistentVolumeClaim/s"}


async def test_a_silent_server_ends_at_the_deadline(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    await watch(cluster)
    fake.faults.append(Fault(times=999))
    with pytest.raises(RemovalIncomplete):
        await stop(cluster, timeout=1)


async def test_a_bad_moment_passes(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    fake.faults += [
        replace(text(429, "Too many requests", Retry_After="0"), times=3),
        Fault(error=lambda: httpx2.ReadError("reset"), lost=True, method="DELETE", times=2),
        replace(text(503, "x"), method="DELETE"),
    ]
    await stop(cluster)
    assert fake.left() == {"PersistentVolumeClaim/s"}


async def test_a_cancelled_stop_can_be_repeated(fake: FakeApiServer, cluster: Cluster) -> None:
    """At every request, before it is handled and after."""
    server(fake)
    await stop(cluster)
    total = len(fake.requests)
    for number in range(1, total + 1):
        for moment in ("arrived", "handled"):
            server(fake)
            task = asyncio.create_task(stop(cluster))
            _cancel_at(fake, task, number, moment)
            await asyncio.wait([task])
            fake.on_request = lambda seen, when: None
            await stop(cluster)
            assert fake.left() == {"PersistentVolumeClaim/s"}


def _cancel_at(fake: FakeApiServer, task: asyncio.Task[None], number: int, moment: str) -> None:
    count = 0

    def hook(seen: object, when: str) -> None:
        nonlocal count
        count += when == moment
        if count == number:
            task.cancel()

    fake.on_request = hook


# The removal of a user


async def purge(cluster: Cluster, **options: Any) -> None:
    given: dict[str, Any] = {"namespaces": ["hub"], "known_kinds": {}, "timeout": 2, **options}
    await Removal(cluster, log).purge(ME.user_selection(), owner=ME.owner, **given)


async def test_a_user_leaves_nothing(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    server(fake, replace(ME, servername="named"), "n")
    server(fake, YOU, "y")
    fake.put(manifest("Widget", "w", policy=Policy.SERVER_DELETED, api_version="example.org/v1"))
    await purge(cluster)
    assert fake.left() == {
        "Pod/y", "Secret/y", "Service/y", "NetworkPolicy/y", "PersistentVolumeClaim/y",
    }  # fmt: skip
    assert fake.count("DELETE [^ ]*/(pods|secrets|widgets)$") == 0  # never a whole collection


async def test_what_controllers_made_is_theirs(fake: FakeApiServer, cluster: Cluster) -> None:
    item = manifest("Secret", "made")
    item["metadata"]["ownerReferences"] = [{"uid": "u", "controller": True}]
    fake.put(item)
    await purge(cluster)
    assert fake.left() == {"Secret/made"}


async def test_without_full_rights_only_what_is_known(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    server(fake)
    fake.incomplete = True
    await purge(cluster, known_kinds={"v1/Secret": ("hub",)}, only_kinds=["v1/Pod"])
    assert fake.left() == {"Service/s", "NetworkPolicy/s", "PersistentVolumeClaim/s"}
    fake.incomplete = False
    fake.rules = [{"apiGroups": [""], "resources": ["services"], "verbs": ["list", "delete"]}]
    await purge(cluster)
    assert fake.left() == {"NetworkPolicy/s", "PersistentVolumeClaim/s"}
    fake.rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    await purge(cluster, only_kinds=["networking.k8s.io/v1/NetworkPolicy"])
    assert fake.left() == {"PersistentVolumeClaim/s"}


async def test_cluster_wide_objects_only_of_allowed_kinds(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    item = manifest("Namespace", "mine")
    del item["metadata"]["namespace"]
    fake.put(item)
    await purge(cluster)
    assert fake.find("Namespace", "", "mine")
    await purge(cluster, cluster_kinds=["v1/Namespace"])
    assert not fake.find("Namespace", "", "mine")


async def test_a_user_with_much_is_removed_in_time(fake: FakeApiServer, cluster: Cluster) -> None:
    for number in range(60):
        fake.put(manifest("Secret", f"s{number}"))
    await purge(cluster, timeout=10)
    assert fake.left() == set()


async def test_a_purge_does_not_flood_the_server(fake: FakeApiServer, cluster: Cluster) -> None:
    for number in range(60):
        fake.put(manifest("Secret", f"s{number}"))
    await purge(cluster, timeout=10)
    assert fake.most_open <= 20


async def test_a_purge_leaves_no_new_watches(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    fake.put(manifest("Widget", "w", api_version="example.org/v1"))
    await purge(cluster)
    await asyncio.sleep(0.02)
    assert not fake.watches


# Pods on a node that does not answer


LOST = {"conditions": [{"type": "Ready", "status": "False"},
                       {"type": "ContainersReady", "status": "True"}]}  # fmt: skip
HELD = r"^Pod/hub/s is still on node node, which does not answer: .*kubectl delete pod s -n hub"


def lose_node(fake: FakeApiServer) -> None:
    """Nobody tells that the pod is gone."""
    server(fake)
    fake.put(manifest("Pod", "s", spec={"nodeName": "node"}, status=LOST))
    fake.controllers = False


async def test_a_pod_on_a_lost_node_is_not_waited_for(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    lose_node(fake)
    await watch(cluster)
    with pytest.raises(NodeLost, match=HELD):
        await stop(cluster, timeout=30)
    # Its process may still run: what confines it stays.
    assert fake.left() == {"Pod/s", "NetworkPolicy/s", "PersistentVolumeClaim/s"}


async def test_a_node_that_is_lost_meanwhile(fake: FakeApiServer, cluster: Cluster) -> None:
    server(fake)
    fake.controllers = False
    await watch(cluster)
    stopping = asyncio.create_task(stop(cluster, timeout=30))
    await asyncio.sleep(0.05)
    pod = fake.find("Pod", "hub", "s")
    assert pod is not None
    fake.put({**pod, "status": LOST})
    with pytest.raises(NodeLost, match=HELD):
        await stopping


async def test_what_else_stays_is_named_beside(fake: FakeApiServer, cluster: Cluster) -> None:
    lose_node(fake)
    hold = manifest("Secret", "held")
    hold["metadata"]["finalizers"] = [HOLD]
    fake.put(hold)
    await watch(cluster)
    with pytest.raises(RemovalIncomplete, match=rf"{HELD}.*Secret/hub/held \(held by {HOLD}\)"):
        await stop(cluster, timeout=1)


async def test_a_lost_pod_is_deleted_by_force_where_told_to(
    fake: FakeApiServer, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    lose_node(fake)
    await watch(cluster)

    def force(seen: Any, when: str) -> None:
        now = (seen.body or {}).get("gracePeriodSeconds") == 0
        if (seen.method, when, now) == ("DELETE", "handled", True):
            fake.remove("Pod", "hub", "s")

    fake.on_request = force
    await Removal(cluster, log, force_lost=True).stop(RECORD, LIFECYCLE, timeout=30)
    assert fake.left() == {"PersistentVolumeClaim/s"}
    assert fake.count("DELETE .*/pods/s$") == 1
    assert "Deleting Pod/hub/s by force: node node does not answer" in caplog.text
