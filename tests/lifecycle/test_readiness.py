"""What a start that is under way takes for a failure, on the fake: graces, events, queues."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.reflector import Sight
from lightkube_template_spawner.errors import StartFailed, Unavailable
from lightkube_template_spawner.lifecycle import failures, liveness
from lightkube_template_spawner.lifecycle import readiness as module
from lightkube_template_spawner.lifecycle.readiness import Waiter
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects.ref import POD, ObjectRef
from tests.support.connect import connect
from tests.support.fake_apiserver import KINDS, FakeApiServer, Fault, Served
from tests.support.objects import ME, YOU, manifest
from tests.support.timing import QUICK

Obj = dict[str, Any]
log = logging.getLogger("test")
SOON = 0.05
LATER = 30.0
RECORD = Record(
    ME, "hub", kinds={"v1/Pod": ("hub",)}, connection=ObjectRef(POD, "hub", "s"), live=True
)
UNSCHEDULABLE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
    "message": "0/2 nodes are available: 1 Insufficient cpu.",
}  # fmt: skip
PLACED = {"type": "PodScheduled", "status": "True"}
READY = {"type": "Ready", "status": "True"}


@pytest.fixture
def fake() -> FakeApiServer:
    devices = Served("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims")
    return FakeApiServer("hub", kinds=(*KINDS, devices))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NO_NOTICE", SOON)


@dataclass
class Start:
    """A start whose objects are there, and the cluster in which they are."""

    fake: FakeApiServer
    cluster: Cluster
    told: list[str] = field(default_factory=list)
    number: int = 0

    def pod(self, name: str = "s", spec: Mapping[str, Any] | None = None, **status: Any) -> Obj:
        old = self.fake.find("Pod", "hub", name)
        item = manifest("Pod", name, spec=dict(spec or {}), status=status)
        if old:
            item["metadata"]["uid"] = old["metadata"]["uid"]
        return self.fake.put(item)

    def waiting(self, **graces: float | None) -> Waiter:
        """With these rules, by name, and no other that could end it within a test."""
        rows: dict[str, object] = {name: {"grace": LATER} for name in failures.DEFAULTS}
        rows |= {name.replace("_", "-"): {"grace": grace} for name, grace in graces.items()}
        rules = failures.FailureRules(rows)
        return Waiter(
            Server(self.cluster, RECORD), rules, lambda text, _: self.told.append(text), log
        )

    async def lasts(self, waiting: Waiter, seconds: float = 4 * SOON) -> None:
        """It goes on waiting."""
        with anyio.move_on_after(seconds) as scope:
            await waiting.until(self.ready, self.watch)
        assert scope.cancelled_caught

    async def watch(self) -> list[Sight]:
        return await liveness.watch(Server(self.cluster, RECORD))

    def ready(self) -> str | None:
        live = self.cluster.find(ObjectRef(POD, "hub", "s"))
        ready = live and READY in (live.as_dict().get("status") or {}).get("conditions", ())
        return "ready" if ready else None

    async def event(self, about: Obj, reason: str, message: str) -> None:
        """Somebody's event about an object, once the watch is open."""
        while not self.fake.count("WATCH .*events"):  # noqa: ASYNC110
            await anyio.sleep(0.002)
        self.number += 1
        metadata = about["metadata"]
        self.fake.put({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": f"e{self.number}", "namespace": "hub"},
            "involvedObject": {
                "kind": about["kind"], "name": metadata["name"], "uid": metadata["uid"],
            },
            "type": "Warning", "reason": reason, "message": message,
        })  # fmt: skip
        await anyio.sleep(0.02)


@pytest.fixture
async def start(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[Start]:
    cluster = Cluster(connect(tmp_path, transport=fake), ME.instance, log, QUICK)
    await cluster.reflector(await cluster.discovery.kind("v1", "Pod"), "hub").sync()
    yield Start(fake, cluster)
    await cluster.aclose()
    feed = cluster.events("hub")
    if feed._closing is not None:
        feed._closing.cancel()


async def fails(start: Start, waiting: Waiter, *words: str, reason: str) -> None:
    with pytest.raises(StartFailed) as failed, anyio.fail_after(5):
        await waiting.until(start.ready, start.watch)
    assert all(word in str(failed.value) for word in words), failed.value
    assert failed.value.reason == reason


async def test_a_grace_ends_though_nothing_happens_any_more(start: Start) -> None:
    start.pod(conditions=[UNSCHEDULABLE])
    waiting = start.waiting(unschedulable=SOON)
    await fails(start, waiting, "Pod/hub/s: Unschedulable", "cpu", reason="unschedulable")
    assert start.told == [
        "Pod/hub/s: Unschedulable: 0/2 nodes are available: 1 Insufficient cpu. (this may last 0 s)"
    ]


async def test_the_pod_of_another_server_is_none_of_ours(start: Start) -> None:
    theirs = manifest("Pod", "t", YOU, spec={}, status={"conditions": [UNSCHEDULABLE]})
    start.fake.put(theirs)
    start.pod(conditions=[PLACED])
    await start.lasts(start.waiting(unschedulable=0))


async def test_a_trouble_that_goes_away_ends_nothing(start: Start) -> None:
    start.pod(conditions=[UNSCHEDULABLE])
    waiting = start.waiting(unschedulable=0.5)
    async with anyio.create_task_group() as group:
        group.start_soon(waiting.until, start.ready, start.watch)
        await anyio.sleep(SOON)
        start.pod(conditions=[READY, PLACED])


async def test_what_is_old_ends_nothing(
    start: Start, fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server is away when the grace is over: by then a node may have come."""
    monkeypatch.setattr(module, "_BLIND", 0.01)
    start.pod(conditions=[UNSCHEDULABLE])
    waiting = start.waiting(unschedulable=2 * SOON)
    await start.lasts(waiting, SOON)
    fake.faults.append(Fault(error=lambda: httpx2.ConnectError("refused"), path="pods", times=9999))
    for watch in list(fake.watches):
        watch.end(httpx2.ReadError("reset"))
    await start.lasts(waiting, 4 * SOON)
    fake.faults.clear()
    await fails(start, waiting, "Insufficient cpu", reason="unschedulable")


async def test_a_server_that_is_ready_is_never_failed(start: Start) -> None:
    back_off = {"waiting": {"reason": "CrashLoopBackOff"}}
    start.pod(conditions=[READY], containerStatuses=[{"name": "sidecar", "state": back_off}])
    assert await start.waiting(crash=0, crash_loop=0).until(start.ready, start.watch) == "ready"


async def test_a_bare_pod_that_ended_will_not_be_ready(start: Start) -> None:
    start.pod(phase="Failed", reason="Evicted", message="no disk")
    await fails(start, start.waiting(), "Pod/hub/s ended", "Evicted: no disk", reason="crash")


# -- events ---------------------------------------------------------------------------------------

MOUNT = ("FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "x" not found')


async def test_an_event_about_a_pod_ends_the_start_unless_the_pod_went_on(start: Start) -> None:
    pod = start.pod(conditions=[PLACED])
    waiting = start.waiting(mount_missing=SOON)
    with waiting.listening():
        await start.event(pod, *MOUNT)
        start.pod(conditions=[PLACED], containerStatuses=[{"name": "c", "state": {"running": {}}}])
        await start.lasts(waiting)
        start.pod(conditions=[PLACED])
        await fails(start, waiting, "Pod/s: FailedMount", 'secret "x"', reason="config")


async def test_the_same_event_is_told_once(start: Start) -> None:
    pod = start.pod(conditions=[PLACED])
    waiting = start.waiting()
    with waiting.listening():
        await start.event(pod, *MOUNT)
        waiting.made(pod["metadata"]["uid"])
        await start.lasts(waiting, SOON)
    assert len([text for text in start.told if "[Warning]" in text]) == 1


@pytest.mark.parametrize(("name", "volume"), [
    ("home-s-0", {"name": "home", "persistentVolumeClaim": {"claimName": "home-s-0"}}),
    ("s-scratch", {"name": "scratch", "ephemeral": {}}),
])  # fmt: skip
async def test_the_claims_that_controllers_make_are_the_servers(
    start: Start, name: str, volume: Obj
) -> None:
    start.pod(spec={"volumes": [volume]}, conditions=[UNSCHEDULABLE])
    waiting = start.waiting(storage_class=SOON)
    message = 'storageclass.storage.k8s.io "x" not found'
    other = manifest("PersistentVolumeClaim", "home-t-0")
    other["metadata"]["uid"] = "other"
    mine = manifest("PersistentVolumeClaim", name)
    mine["metadata"]["uid"] = "mine"
    with waiting.listening():
        await start.event(other, "ProvisioningFailed", message)
        await start.lasts(waiting)
        await start.event(mine, "ProvisioningFailed", message)
        start.pod(spec={"volumes": [volume]}, conditions=[PLACED])
        await start.lasts(waiting)
        start.pod(spec={"volumes": [volume]}, conditions=[UNSCHEDULABLE])
        await fails(start, waiting, f"PersistentVolumeClaim/{name}", message, reason="volume")


async def test_what_a_controller_could_not_make_and_then_made(start: Start) -> None:
    item = start.fake.put(manifest("StatefulSet", "s", api_version="apps/v1"))
    uid = item["metadata"]["uid"]
    waiting = start.waiting(quota=SOON)
    words = 'create Pod s-0 in StatefulSet s failed error: pods "s-0" is forbidden: exceeded quota'
    made = manifest("Pod", "s-0", status={"conditions": [PLACED]})
    made["metadata"]["ownerReferences"] = [{"uid": uid, "controller": True}]
    with waiting.listening():
        waiting.made(uid)
        await start.event(item, "FailedCreate", words)
        start.fake.put(made)
        await start.lasts(waiting)
        start.fake.remove("Pod", "hub", "s-0")
        await fails(start, waiting, "StatefulSet/s: FailedCreate", "quota", reason="quota")


async def test_a_deployment_that_cannot_make_pods(start: Start) -> None:
    await start.cluster.reflector(
        await start.cluster.discovery.kind("apps/v1", "Deployment"), "hub"
    ).sync()
    failing = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
               "message": 'pods "s-1" is forbidden: exceeded quota: q'}  # fmt: skip
    item = manifest("Deployment", "s", api_version="apps/v1", status={"conditions": [failing]})
    start.fake.put(item)
    waiting = start.waiting(quota=SOON)
    await fails(start, waiting, "Deployment/hub/s: FailedCreate", "quota: q", reason="quota")


async def test_an_autoscaler_that_brings_a_node_is_waited_for(start: Start) -> None:
    pod = start.pod(conditions=[UNSCHEDULABLE])
    waiting = start.waiting(unschedulable=4 * SOON, no_scale_up=SOON)
    with waiting.listening():
        await start.event(pod, "TriggeredScaleUp", "pod triggered scale-up: 0->1")
        await start.lasts(waiting, 8 * SOON)


async def test_an_autoscaler_that_brings_none_is_believed(start: Start) -> None:
    pod = start.pod(conditions=[UNSCHEDULABLE])
    waiting = start.waiting(no_scale_up=SOON)
    with waiting.listening():
        await start.event(pod, "NotTriggerScaleUp", "pod didn't trigger scale-up: max size")
        await fails(start, waiting, "Insufficient cpu", reason="unschedulable")


# -- queues and what nobody looks at --------------------------------------------------------------

GATED = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
DEVICE = {"resourceClaims": [{"name": "gpu", "resourceClaimName": "nope"}]}


async def test_a_queue_is_waited_for_and_named(start: Start) -> None:
    start.pod(spec=GATED)
    waiting = start.waiting(unschedulable=0, unnoticed=0, reference=0, queue=None)
    await start.lasts(waiting)
    words = "SchedulingGated: it waits in the queue, held by kueue.x-k8s.io/admission"
    assert start.told == [f"Pod/hub/s: {words}"]
    late = waiting.late(58)
    assert words in str(late)
    assert late.reason == "queue"


async def test_kueues_words_about_its_workload_are_told(start: Start) -> None:
    start.pod(spec=GATED)
    waiting = start.waiting()
    with waiting.listening():
        for name in ("pod-s-1a2b3", "pod-s-other-1a2b3"):
            item = manifest("Workload", name)
            item["metadata"]["uid"] = name
            await start.event(item, "Pending", f"insufficient unused quota for {name}")
        await start.lasts(waiting, SOON)
    assert [text.partition("Pending: ")[2] for text in start.told if "Pending" in text] == [
        "insufficient unused quota for pod-s-1a2b3"
    ]


async def test_a_pod_that_nobody_looks_at_names_its_missing_reference(start: Start) -> None:
    start.pod(spec=DEVICE)
    waiting = start.waiting(reference=0)
    await fails(start, waiting, "Pod/hub/s", "ResourceClaim/hub/nope", reason="config")


async def test_what_is_there_is_not_missing(start: Start) -> None:
    start.fake.put(manifest("ResourceClaim", "nope", api_version="resource.k8s.io/v1"))
    start.pod(spec=DEVICE)
    await start.lasts(start.waiting(reference=0))
    assert start.fake.count("GET .*resourceclaims/nope") == 1


async def test_what_may_not_be_looked_up_is_not_missing_either(start: Start) -> None:
    start.fake.forbidden.add(("get", "resourceclaims"))
    start.pod(spec=DEVICE)
    await start.lasts(start.waiting(reference=0))
    (note,) = (text for text in start.told if "cannot be looked up" in text)
    assert "ResourceClaim/hub/nope" in note
    assert "cannot get resource" in note


async def test_a_scheduler_that_takes_no_notice_is_named(start: Start) -> None:
    start.pod(spec={"schedulerName": "mine"})
    waiting = start.waiting(unnoticed=SOON)
    await fails(start, waiting, "Unnoticed: the scheduler 'mine'", reason="unschedulable")


async def test_a_pod_that_was_only_just_made_is_no_news(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NO_NOTICE", 4 * SOON)
    start.pod()
    waiting = start.waiting()
    await start.lasts(waiting, SOON)
    assert start.told == []
    await start.lasts(waiting, 6 * SOON)
    assert [text.partition(" has not")[0] for text in start.told] == [
        "Pod/hub/s: Unnoticed: the scheduler 'default-scheduler'"
    ]


async def test_what_is_waited_for_is_told_once(start: Start) -> None:
    waiting = start.waiting()
    for what in ("Pod/s: not ready", "Pod/s: not ready", "Pod/s: no address", "Pod/s: not ready"):
        waiting.update(what)
    assert start.told == ["Waiting for Pod/s: not ready", "Waiting for Pod/s: no address"]
    assert "waited for Pod/s: not ready" in str(waiting.late(5))


async def test_time_that_is_up_has_the_clusters_words(start: Start) -> None:
    start.pod(conditions=[UNSCHEDULABLE])
    waiting = start.waiting()
    await start.lasts(waiting, SOON)
    waiting.update("Service/hub/s: no endpoint is ready yet")
    late = waiting.late(58, "the API server's last words")
    assert str(late) == (
        "not ready after 58 s: waited for Service/hub/s: no endpoint is ready yet; Pod/hub/s: "
        "Unschedulable: 0/2 nodes are available: 1 Insufficient cpu.; the API server's last words"
    )
    assert late.reason == "unschedulable"
    assert start.waiting().late(5).reason == "timeout"


async def test_time_that_is_up_says_why_the_hub_saw_nothing_in_its_own_namespaces(
    start: Start,
) -> None:
    pods = await start.cluster.discovery.kind(*POD)
    for namespace in ("hub", "somebody-elses"):
        store = start.cluster.reflector(pods, namespace)
        store.error = Unavailable(f"no answer about {namespace}", code=503)
    words = str(start.waiting().late(5))
    assert "no answer about hub" in words
    assert "somebody-elses" not in words
