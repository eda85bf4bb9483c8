"""What the stores show of a running server, and what only the API server can say."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.lifecycle import liveness
from lightkube_template_spawner.lifecycle.liveness import Limits, Missing, Silent
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects.identity import OWNER
from lightkube_template_spawner.objects.ref import SERVICE, KindRef, ObjectRef
from lightkube_template_spawner.objects.status import Ended
from tests.support.fake_apiserver import FakeApiServer, text
from tests.support.objects import ME, manifest

Obj = dict[str, Any]
log = logging.getLogger("test")
LIMITS = Limits(crash_loop_restarts=2, node_lost=30, replacement=60)
LABEL = {"app": "s"}
CRASHED = {
    "name": "main",
    "restartCount": 2,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
}
RUNNING = {"name": "main", "state": {"running": {}}}
LOST = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]


def pod(name: str = "s", **status: Any) -> Obj:
    made = manifest("Pod", name, spec={"nodeName": "n", "containers": [{"name": "main"}]})
    made["metadata"]["labels"].update(LABEL)
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "podIP": "10.1.0.9"}
    live = {"phase": "Running", "containerStatuses": [RUNNING], **ready, **status}
    return {**made, "status": live}


async def served(fake: FakeApiServer, cluster: Cluster, kind: str, *others: Obj) -> Record:
    """A server that the hub connects to through an object of this kind."""
    first = pod() if kind == "Pod" else manifest(kind, "s", spec={"selector": LABEL})
    made = [fake.put(item) for item in (first, *others)]
    uid = made[0]["metadata"]["uid"]
    record = Record(
        ME, "hub", connection=ObjectRef(KindRef("v1", kind), "hub", "s", uid), live=True
    )
    await liveness.watch(Server(cluster, record))
    await asyncio.sleep(0.02)  # the fake's controllers, and their events
    return record


async def look(cluster: Cluster, record: Record) -> Any:
    await asyncio.sleep(0.02)
    return liveness.look(Server(cluster, record), LIMITS)


# -- a pod of the template's own ------------------------------------------------------------------


async def test_a_pod_is_followed_to_its_end(fake: FakeApiServer, cluster: Cluster) -> None:
    record = await served(fake, cluster, "Pod")
    assert await look(cluster, record) is None
    fake.put(pod(conditions=LOST))
    assert await look(cluster, record) == Silent("node n does not answer", 30)
    fake.put(pod(conditions=LOST, phase="Failed", reason="Evicted"))
    assert await look(cluster, record) == Ended(1, "Evicted")
    fake.put(pod(containerStatuses=[CRASHED]))
    reason = "Error (exit code 1), again after 2 restarts (CrashLoopBackOff)"
    assert await look(cluster, record) == Ended(1, reason)


EVICTION = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({}, "Pod/hub/s was deleted"),
        ({"conditions": [EVICTION]}, "Evicted"),
        ({"conditions": LOST}, "node n does not answer"),
        ({"phase": "Failed", "reason": "NodeShutdown"}, "NodeShutdown"),
    ],
)
async def test_who_takes_a_pod_away_is_told(
    fake: FakeApiServer, cluster: Cluster, status: Obj, reason: str
) -> None:
    record = await served(fake, cluster, "Pod")
    going = pod(**status)
    going["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}
    fake.put(going)
    assert await look(cluster, record) == Ended(1, reason)


async def test_what_the_stores_miss_is_asked_about(
    fake: FakeApiServer, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    record = await served(fake, cluster, "Pod")
    fake.remove("Pod", "hub", "s")
    missing = await look(cluster, record)
    assert isinstance(missing, Missing)
    fake.faults.append(text(403, '{"message": "no", "code": 403}', "application/json"))
    assert await liveness.confirm(cluster, missing, log) is None
    assert "Pod/hub/s cannot be asked about: no" in caplog.text
    gone = Ended(1, "Pod/hub/s was deleted")
    assert await liveness.confirm(cluster, missing, log) == gone
    fake.put(pod())  # another one of that name
    assert await look(cluster, record) == missing
    assert await liveness.confirm(cluster, missing, log) == gone


async def test_a_label_taken_away_ends_nothing(
    fake: FakeApiServer, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    record = await served(fake, cluster, "Pod")
    bare = pod()
    del bare["metadata"]["labels"][OWNER]
    fake.put(bare)
    missing = await look(cluster, record)
    assert isinstance(missing, Missing)
    assert await liveness.confirm(cluster, missing, log) is None
    assert f"Pod/hub/s lost its label {OWNER}" in caplog.text


async def test_before_the_connection_is_there_nothing_is_judged(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    record = await served(fake, cluster, "Pod")
    fake.remove("Pod", "hub", "s")
    assert await look(cluster, replace(record, connection=None)) is None


# -- pods that a controller makes -----------------------------------------------------------------


async def test_a_pod_may_be_replaced(fake: FakeApiServer, cluster: Cluster) -> None:
    record = await served(fake, cluster, "Service", pod("s-1"))
    assert await look(cluster, record) is None
    fake.put(pod("s-1", conditions=[{"type": "Ready", "status": "False", "reason": "Busy"}]))
    assert await look(cluster, record) is None  # too busy to answer a probe is not dead
    fake.put(pod("s-1", phase="Failed", reason="Evicted"))
    fake.put(pod("s-2", phase="Pending", containerStatuses=[]))
    seen = await look(cluster, record)
    assert isinstance(seen, Silent)
    assert seen.patience == 60
    fake.put(pod("s-2"))
    assert await look(cluster, record) is None


async def test_no_pod_at_all(fake: FakeApiServer, cluster: Cluster) -> None:
    record = await served(fake, cluster, "Service", pod("s-1"))
    fake.remove("Pod", "hub", "s-1")
    expected = Silent("no pod of the server runs: it has no pod", 60)
    assert await look(cluster, record) == expected


async def test_pods_on_a_lost_node(fake: FakeApiServer, cluster: Cluster) -> None:
    record = await served(fake, cluster, "Service", pod("s-1"))
    fake.put(pod("s-1", conditions=LOST))
    expected = Silent("no pod of the server runs: node n does not answer", 60)
    assert await look(cluster, record) == expected


async def test_a_crash_loop_behind_a_service(fake: FakeApiServer, cluster: Cluster) -> None:
    record = await served(fake, cluster, "Service", pod("s-1"))
    fake.put(pod("s-1", containerStatuses=[CRASHED]))
    seen = await look(cluster, record)
    assert isinstance(seen, Ended)
    fake.put(pod("s-2"))
    assert await look(cluster, record) is None


async def test_other_pods_of_the_server_do_not_count(fake: FakeApiServer, cluster: Cluster) -> None:
    database = pod("db")
    database["metadata"]["labels"]["app"] = "db"
    record = await served(fake, cluster, "Service", pod("s-1"), database)
    assert [live.meta.name for live in Server(cluster, record).main_pods()] == ["s-1"]
    fake.remove("Pod", "hub", "s-1")
    assert isinstance(await look(cluster, record), Silent)


async def test_a_service_without_pods_of_ours_is_not_judged(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    """Its endpoints may be anywhere."""
    fake.controllers = False
    record = await served(fake, cluster, "Service")
    assert await look(cluster, record) is None


async def test_a_service_that_is_deleted(fake: FakeApiServer, cluster: Cluster) -> None:
    record = await served(fake, cluster, "Service", pod("s-1"))
    fake.remove("Service", "hub", "s")
    missing = await look(cluster, record)
    assert missing == Missing(ObjectRef(SERVICE, "hub", "s", missing.ref.uid))
    assert await liveness.confirm(cluster, missing, log) == Ended(1, "Service/hub/s was deleted")


# -- a store that is closed to us -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Pod", "Service"])
async def test_the_api_server_is_asked_where_the_stores_tell_old_news(
    fake: FakeApiServer, cluster: Cluster, kind: str
) -> None:
    record = await served(fake, cluster, kind, *([pod()] if kind == "Service" else []))
    record = replace(record, pod="s")
    assert await liveness.ask(Server(cluster, record), LIMITS, log) is None
    fake.put(pod(containerStatuses=[CRASHED]))
    over = await liveness.ask(Server(cluster, record), LIMITS, log)
    assert over is not None
    assert "CrashLoopBackOff" in over.reason
    fake.remove("Pod", "hub", "s")
    gone = Ended(1, "Pod/hub/s was deleted")
    assert await liveness.ask(Server(cluster, record), LIMITS, log) == gone
    assert (
        await liveness.ask(Server(cluster, replace(record, connection=None)), LIMITS, log) is None
    )
    fake.forbidden.add(("get", "pods"))
    assert await liveness.ask(Server(cluster, record), LIMITS, log) is None
