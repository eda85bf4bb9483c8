"""A whole start on the fake: what it costs, what it refuses, what it leaves when it is cut off."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import (
    Forbidden,
    ManifestError,
    NotOurs,
    RemovalIncomplete,
    SpawnerError,
    StartFailed,
    StartTimeout,
    Unavailable,
    UnknownKind,
)
from lightkube_template_spawner.lifecycle import failures, liveness
from lightkube_template_spawner.lifecycle.launcher import Launcher
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects.identity import DIGEST, OWNER, Identity, Policy
from lightkube_template_spawner.objects.status import Ended
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer, Fault, Seen, text
from tests.support.objects import LIFECYCLE, ME, YOU, manifest
from tests.support.timing import QUICK, until
from tests.support.world import CONNECTION, ROUTE, RULES, Obj, World, chart, log


@pytest.fixture
async def world(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[World]:
    cluster = Cluster(connect(tmp_path, transport=fake), ME.instance, log, QUICK)
    await asyncio.sleep(0)
    yield World(fake, cluster)
    await cluster.aclose()
    feed = cluster.events("hub")
    if feed._closing is not None:
        feed._closing.cancel()


SERVER = {"Secret/s", "Pod/s", "Service/s"}
ALL = {*SERVER, "PersistentVolumeClaim/home"}


# Starting


async def test_a_start(world: World, fake: FakeApiServer) -> None:
    record = await world.launch()
    service = fake.find("Service", "hub", "s")
    assert service is not None
    assert record.url == f"http://{service['spec']['clusterIP']}:8888"
    assert record.ready
    assert record.connection is not None
    assert record.connection.uid == service["metadata"]["uid"]
    assert (record.pod, record.pvc) == ("s", "home")
    assert record.kinds == {"v1/Pod": ("hub",), "v1/Secret": ("hub",), "v1/Service": ("hub",)}
    assert record.retained == {"v1/PersistentVolumeClaim": ("hub",)}
    assert world.saved[-1] == record
    assert world.saved[0] == replace(
        record, url="", ready=False, connection=replace(record.connection, uid="")
    )
    for item in fake.everything():
        assert item["metadata"]["labels"].items() >= ME.user_labels.items()
        assert {f["manager"] for f in item["metadata"]["managedFields"]} == {ME.manager}
    secret = fake.find("Secret", "hub", "s")
    assert secret is not None
    assert secret["data"] == {"token": base64.b64encode(b"hush").decode()}


async def test_a_start_costs_a_request_an_object(world: World, fake: FakeApiServer) -> None:
    """Beside what all servers share: discovery, rights, one list and watch a kind, events."""
    await world.launch()
    assert world.writes() == [
        "PATCH persistentvolumeclaims/home", "PATCH secrets/s", "PATCH pods/s", "PATCH services/s",
    ]  # fmt: skip
    kinds = ("endpointslices", "persistentvolumeclaims", "pods", "secrets", "services")
    shared = [*("GET /apis?$",) * 2]
    assert fake.count(shared[0]) == 2
    for kind in kinds:
        assert fake.count(f"GET .*/{kind}$") == 1
        assert fake.count(f"WATCH .*/{kind}$") == 1
    assert fake.count("events$") == 2
    assert fake.count("POST .*/selfsubjectrulesreviews$") == 1
    assert len(fake.requests) == 4 + 2 + 1 + 2 * len(kinds) + 2
    fake.requests.clear()
    files = chart("t")
    files["volume"]["metadata"]["name"] = "home2"
    files["pod"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "home2"
    await world.launch(files, YOU)
    others = [str(seen) for seen in fake.requests if seen.method != "PATCH"]
    assert [one for one in others if not one.endswith("events")] == []
    assert len(world.writes()) == 4


async def test_the_next_start_leaves_an_unchanged_volume_alone(
    world: World, fake: FakeApiServer
) -> None:
    record = await world.launch()
    volume = fake.find("PersistentVolumeClaim", "hub", "home")
    await world.stop(record)
    assert world.left() == {"PersistentVolumeClaim/home"}
    fake.requests.clear()
    again = await world.launch(before=record.stopped())
    assert again.ready
    assert world.writes() == ["PATCH secrets/s", "PATCH pods/s", "PATCH services/s"]
    assert fake.find("PersistentVolumeClaim", "hub", "home") == volume
    assert [one for one in map(str, fake.requests) if "persistentvolumeclaims" in one] == []


async def test_a_changed_volume_is_updated_under_its_uid(world: World, fake: FakeApiServer) -> None:
    record = await world.launch()
    await world.stop(record)
    before = fake.find("PersistentVolumeClaim", "hub", "home")
    files = chart()
    files["volume"]["spec"] = {"size": 2}
    fake.requests.clear()
    await world.launch(files, before=record.stopped())
    after = fake.find("PersistentVolumeClaim", "hub", "home")
    assert before is not None
    assert after is not None
    assert (after["spec"], after["metadata"]["uid"]) == ({"size": 2}, before["metadata"]["uid"])
    (patch,) = (s for s in fake.requests if s.path.endswith("claims/home"))
    assert patch.body["metadata"]["uid"] == before["metadata"]["uid"]
    assert "resourceVersion" not in patch.body["metadata"]


@pytest.mark.parametrize("fault", [
    text(422, '{"message": "spec is immutable", "code": 422}', "application/json"),
    pytest.param(
        text(403, '{"message": "only dynamically provisioned pvc can be resized", "code": 403}',
             "application/json"),
    ),
], ids=["422", "403"])  # fmt: skip
async def test_a_volume_that_refuses_the_change_is_kept(
    world: World, fake: FakeApiServer, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    record = await world.launch()
    await world.stop(record)
    files = chart()
    files["volume"]["spec"] = {"size": 0}
    fake.faults.append(replace(fault, method="PATCH", path="claims/home", met=0))
    await world.launch(files, before=record.stopped())
    live = fake.find("PersistentVolumeClaim", "hub", "home")
    assert live is not None
    assert live["spec"] == {"size": 1}
    assert "keeps its present state" in caplog.text


async def test_an_edited_field_is_kept_and_the_rest_applied(
    world: World, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    record = await world.launch()
    await world.stop(record)
    live = fake.find("PersistentVolumeClaim", "hub", "home")
    assert live is not None
    live["spec"] = {"size": 5}
    fake.put(live)
    fake.claim(live, "kubectl-edit", "spec", "size")
    files = chart()
    files["volume"]["spec"] = {"size": 2, "more": 1}
    await world.launch(files, before=record.stopped())
    assert '.spec.size (conflict with "kubectl-edit")' in caplog.text
    after = fake.find("PersistentVolumeClaim", "hub", "home")
    assert after is not None
    assert after["spec"] == {"size": 5, "more": 1}
    caplog.clear()
    await world.launch(files, before=record.stopped())
    assert "keeps" not in caplog.text


async def test_an_edited_volume_that_refuses_the_rest_is_kept_whole(
    world: World, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    record = await world.launch()
    await world.stop(record)
    before = fake.find("PersistentVolumeClaim", "hub", "home")
    assert before is not None
    fake.claim(before, "kubectl-edit", "spec", "size")
    files = chart()
    files["volume"]["spec"] = {"size": 2, "more": 1}
    conflict = json.dumps({
        "message": "conflict with others", "code": 409, "details": {"causes": [
            {"field": ".spec.size", "message": "", "reason": "FieldManagerConflict"}]},
    })  # fmt: skip
    fake.faults += [
        replace(text(409, conflict, "application/json"), method="PATCH", path="claims/home"),
        replace(
            text(422, '{"message": "more is immutable", "code": 422}', "application/json"),
            method="PATCH",
            path="claims/home",
        ),
    ]
    await world.launch(files, before=record.stopped())
    assert "the template's change was refused: more is immutable" in caplog.text
    assert fake.find("PersistentVolumeClaim", "hub", "home") == before


async def test_unknown_fields_are_left_out_with_a_warning(
    world: World, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    files = chart()
    files["service"]["spec"]["bogus"] = 1
    await world.launch(files)
    service = fake.find("Service", "hub", "s")
    assert service is not None
    assert "bogus" not in service["spec"]
    assert ".spec.bogus" in caplog.text


async def test_an_answer_lost_on_the_way(world: World, fake: FakeApiServer) -> None:
    fake.faults.append(
        Fault(error=lambda: httpx2.ReadError("x"), lost=True, method="PATCH", times=4)
    )
    record = await world.launch()
    assert record.ready
    assert world.left() == ALL
    assert fake.count("DELETE") == 0


@pytest.mark.parametrize(("path", "times"), [("claims/home", 1), ("pods/s", 4)])
async def test_a_crowded_quota_passes(
    world: World, fake: FakeApiServer, path: str, times: int
) -> None:
    """Many starts at once: the API server gives up on its quota's counter with a 409."""
    message = (
        'Operation cannot be fulfilled on resourcequotas \\"q\\": the object has been modified'
    )
    body = f'{{"message": "{message}", "reason": "Conflict", "code": 409}}'
    fault = text(409, body, "application/json")
    fake.faults.append(replace(fault, method="PATCH", path=path, times=times))
    assert (await world.launch(timeout=2)).ready


# What is left from before


async def test_leftovers_go_first(world: World, fake: FakeApiServer) -> None:
    old = await world.launch()
    pod = fake.find("Pod", "hub", "s")
    fake.requests.clear()
    record = await world.launch(before=old)
    new = fake.find("Pod", "hub", "s")
    assert pod is not None
    assert new is not None
    assert pod["metadata"]["uid"] != new["metadata"]["uid"]
    methods = [write.split()[0] for write in world.writes()]
    assert methods == ["DELETE"] * 3 + ["PATCH"] * 3
    assert record.url != old.url
    assert any("left behind" in text for text in world.told)


async def test_leftovers_nobody_remembers(world: World, fake: FakeApiServer) -> None:
    """The hub died before it saved: the connection object itself says which kinds there are."""
    files = chart()
    files["extra"] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "old"}}
    await world.launch(files)
    await world.launch(before=None)
    assert world.left() == ALL


async def test_leftovers_without_their_connection_object(world: World, fake: FakeApiServer) -> None:
    fake.put(manifest("Secret", "old"))
    fake.put(manifest("Pod", "s", spec={"nodeName": "node"}, status={"phase": "Failed"}))
    fake.put(manifest("Secret", "kept", policy=Policy.SERVER_DELETED))
    fake.put(manifest("Secret", "theirs", YOU))
    fake.put(manifest("Secret", "named", replace(ME, servername="named")))
    await world.launch()
    assert world.left() == {*ALL, "Secret/kept", "Secret/theirs", "Secret/named"}


async def test_an_object_in_the_way_is_cleared(world: World, fake: FakeApiServer) -> None:
    """Made by this very server between the look and the write: by a start that was cut off."""

    def late(seen: Seen, when: str) -> None:
        if (seen.method, when) == ("PATCH", "arrived") and "secrets" in seen.path:
            fake.on_request = lambda seen, when: None
            fake.put(manifest("Secret", "s", digest="of another start", data={"old": "b2xk"}))

    fake.on_request = late
    await world.launch()
    secret = fake.find("Secret", "hub", "s")
    assert secret is not None
    assert "old" not in secret["data"]


# What is refused, with nothing written


async def refused(world: World, *texts: str, **options: Any) -> None:
    before = {json.dumps(item, sort_keys=True) for item in world.fake.everything()}
    with pytest.raises(NotOurs) as caught:
        await world.launch(**options)
    for word in texts:
        assert word in str(caught.value)
    after = {json.dumps(item, sort_keys=True) for item in world.fake.everything()}
    assert before <= after
    mine = [
        item for item in world.fake.everything() if json.dumps(item, sort_keys=True) not in before
    ]
    assert all(ME.owns(item["metadata"]["labels"]) for item in mine)


@pytest.mark.parametrize(("kind", "name"), [
    ("Secret", "s"), ("Service", "s"), ("PersistentVolumeClaim", "home"), ("Pod", "s"),
])  # fmt: skip
@pytest.mark.parametrize("whose", ["administrator", "other user", "same slug", "other hub"])
async def test_what_is_somebody_elses_stays_so(
    world: World, fake: FakeApiServer, kind: str, name: str, whose: str
) -> None:
    item = manifest(kind, name, YOU, data={"k": "v"}, spec={"x": 1}, status={})
    labels = item["metadata"]["labels"]
    if whose == "administrator":
        labels.clear()
    if whose == "same slug":  # collided in minutes: only the owner label tells them apart
        labels.update({**ME.server_labels, OWNER: YOU.owner})
    if whose == "other hub":
        labels.update(replace(ME, instance="j").server_labels)
    manager = "kubectl-create" if whose == "administrator" else YOU.manager
    fake.put(item, manager)
    reason = "kubectl-create" if whose == "administrator" else "belongs to user"
    await refused(world, f"{kind}/hub/{name}", f"({_file(kind)}.yaml)", reason)
    assert fake.count("DELETE") == 0


def _file(kind: str) -> str:
    return {"PersistentVolumeClaim": "volume"}.get(kind, kind.lower())


async def test_users_of_one_slug(world: World, fake: FakeApiServer) -> None:
    mine = await world.launch()
    colliding = replace(YOU)
    colliding.__dict__["user_slug"] = ME.user_slug
    await refused(world, "belongs to user", identity=colliding)
    await world.stop(replace(mine, identity=colliding))
    assert world.left() == ALL


async def test_a_name_used_by_another_server_of_the_user(world: World, fake: FakeApiServer) -> None:
    await world.launch()
    files = chart()
    del files["volume"]
    files["pod"]["spec"]["volumes"] = []
    named = replace(ME, servername="named")
    await refused(world, "another server of this user", objects=files, identity=named)
    assert world.left() == ALL


async def test_a_lasting_object_is_not_turned_into_a_passing_one(
    world: World, fake: FakeApiServer
) -> None:
    fake.put(manifest("Secret", "s", policy=Policy.USER_DELETED))
    await refused(world, "outlive its server")


async def test_a_former_spawners_volume_is_used_unwritten(
    world: World, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = former(fake, size=9)
    record = await world.launch()
    assert record.ready
    assert fake.find("PersistentVolumeClaim", "hub", "home") == before
    assert "former spawner" in caplog.text


async def test_only_a_claim_that_the_hub_remembers_needs_no_instance_label(
    world: World, fake: FakeApiServer
) -> None:
    live = former(fake, size=9)
    live["metadata"]["labels"]["app.kubernetes.io/instance"] = "a-release"
    before = fake.put(live, "OpenAPI-Generator")
    await refused(world, "not this user's")
    record = await world.launch(rules=replace(RULES, former_pvc="home"))
    assert record.ready
    assert fake.find("PersistentVolumeClaim", "hub", "home") == before


def former(fake: FakeApiServer, **spec: int) -> Obj:
    """A volume that KubeSpawner made."""
    item = manifest("PersistentVolumeClaim", "home", spec=spec)
    del item["metadata"]["labels"][OWNER]
    item["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "kubespawner"
    item["metadata"]["annotations"]["hub.jupyter.org/username"] = ME.username
    return fake.put(item, "OpenAPI-Generator")


async def test_a_former_spawners_volume_is_taken_over(world: World, fake: FakeApiServer) -> None:
    before = former(fake, size=9)
    rules = replace(RULES, adopt_retained=True)
    await world.stop(await world.launch(rules=rules))
    after = fake.find("PersistentVolumeClaim", "hub", "home")
    assert after is not None
    assert ME.owns(after["metadata"]["labels"])
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == {"size": 1}
    fake.requests.clear()
    await world.launch()  # held like any other from now on
    assert [one for one in world.writes() if "claims" in one] == []


async def test_a_volume_that_cannot_change_is_taken_over_as_it_is(
    world: World, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    former(fake, size=9)
    refusal = text(422, '{"message": "may not shrink", "code": 422}', "application/json")

    def looked(seen: Seen, when: str) -> None:
        if (seen.method, when) == ("GET", "arrived") and seen.path.endswith("claims/home"):
            fake.faults.append(replace(refusal, method="PATCH", path="claims/home"))

    fake.on_request = looked
    await world.launch(rules=replace(RULES, adopt_retained=True))
    after = fake.find("PersistentVolumeClaim", "hub", "home")
    assert after is not None
    assert ME.owns(after["metadata"]["labels"])
    assert after["spec"] == {"size": 9}
    assert "keeps its present state but for its labels: may not shrink" in caplog.text


@pytest.mark.parametrize("whose", ["administrator", "other user", "other hub"])
async def test_nothing_else_is_taken_over(world: World, fake: FakeApiServer, whose: str) -> None:
    item = former(fake, size=9)
    labels = item["metadata"]["labels"]
    match whose:
        case "administrator":
            labels.clear()
        case "other user":
            labels[OWNER] = YOU.owner
        case _:
            labels["app.kubernetes.io/instance"] = "j"
    fake.put(item)
    await refused(
        world, "PersistentVolumeClaim/hub/home", rules=replace(RULES, adopt_retained=True)
    )


async def test_a_server_does_not_take_what_ends_with_another(
    world: World, fake: FakeApiServer
) -> None:
    files = chart()
    files["volume"]["metadata"]["annotations"][LIFECYCLE] = Policy.SERVER_DELETED.value
    await world.launch(files)
    other = chart("t")
    other["volume"] = files["volume"]
    named = replace(ME, servername="named")
    await refused(world, "another server of this user", objects=other, identity=named)


def going(fake: FakeApiServer) -> None:
    live = fake.find("PersistentVolumeClaim", "hub", "home")
    assert live is not None
    live["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    live["metadata"]["finalizers"] = ["kubernetes.io/pvc-protection"]
    fake.put(live)


@pytest.mark.parametrize("known", [True, False])
async def test_a_volume_that_is_going_is_awaited(
    world: World, fake: FakeApiServer, known: bool
) -> None:
    record = await world.launch()
    await world.stop(record)
    before = fake.find("PersistentVolumeClaim", "hub", "home")
    assert before is not None
    going(fake)
    if known:
        await asyncio.sleep(0.02)
    starting = asyncio.create_task(world.launch(before=record.stopped()))
    await asyncio.sleep(0.1)
    assert fake.find("Pod", "hub", "s") is None
    fake.remove("PersistentVolumeClaim", "hub", "home")
    await starting
    after = fake.find("PersistentVolumeClaim", "hub", "home")
    assert after is not None
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


async def test_a_volume_that_is_held_while_it_goes_is_not_used(
    world: World, fake: FakeApiServer
) -> None:
    world.cluster.timing = replace(QUICK, going=0.05)
    record = await world.launch()
    await world.stop(record)
    going(fake)
    with pytest.raises(
        StartFailed, match=r"home \(held by kubernetes.io/pvc-protection\) is being"
    ):
        await world.launch(before=record.stopped())


async def test_what_a_leftover_is_held_by_is_told_within_the_start(
    world: World, fake: FakeApiServer
) -> None:
    item = manifest("Pod", "s", spec={"nodeName": "n"})
    item["metadata"]["finalizers"] = ["example.org/hold"]
    fake.put(item)
    with pytest.raises(RemovalIncomplete, match=r"Pod/hub/s \(held by example.org/hold\)"):
        await world.launch(timeout=3)


@pytest.mark.parametrize(("change", "error"), [
    (lambda files: files["pod"].update(kind="Pot"), UnknownKind),
    (lambda files: files["service"]["metadata"].pop("annotations"), ManifestError),
    (lambda files: files["pod"]["metadata"].update(namespace="other"), ManifestError),
    (lambda files: files["secret"]["metadata"].update(name="a/../../secrets"), ManifestError),
    (lambda files: files["pod"]["metadata"]["labels"].update({OWNER: "x"}), ManifestError),
    (lambda files: files.pop("secret"), ManifestError),
])  # fmt: skip
async def test_a_bad_template_writes_nothing(
    world: World, fake: FakeApiServer, change: Callable[[dict[str, Obj]], object],
    error: type[SpawnerError],
) -> None:  # fmt: skip
    files = chart()
    change(files)
    with pytest.raises(error):
        await world.launch(files)
    assert world.writes() == []
    assert world.saved == []


@pytest.mark.parametrize("verb", ["create", "delete", "get", "list", "patch", "watch"])
async def test_missing_rights_are_named_and_nothing_is_written(
    world: World, fake: FakeApiServer, verb: str
) -> None:
    fake.forbidden |= {(verb, "secrets"), ("watch", "endpointslices")}
    with pytest.raises(Forbidden) as refused:
        await world.launch()
    lines = str(refused.value).splitlines()
    assert lines[0] == (
        f"Nothing was created: the hub's account hub may not watch endpointslices.discovery.k8s.io "
        f"in namespace 'hub', nor {verb} secrets in namespace 'hub'."
    )
    assert [line for line in lines if "secrets" in line][1:] == [
        f'- {{apiGroups: [""], resources: [secrets], verbs: [{verb}]}}'
    ]
    assert (world.writes(), world.saved, world.left()) == ([], [], set())
    fake.forbidden.clear()
    await world.launch()
    assert world.left() == ALL


async def test_rights_are_asked_for_once_and_what_is_lost_at_the_next_start(
    world: World, fake: FakeApiServer
) -> None:
    await world.stop(await world.launch())
    await world.stop(await world.launch())
    assert fake.count("rulesreviews") == 1
    fake.forbidden.add(("create", "secrets"))
    with pytest.raises(Forbidden, match=r"Secret/hub/s .* was refused: .* cannot create"):
        await world.launch()
    fake.requests.clear()
    with pytest.raises(Forbidden, match=r"^Nothing was created: .* create secrets in"):
        await world.launch()
    assert world.writes() == []


@pytest.mark.parametrize("answer", [
    text(403, "no"), text(500, "webhook"),
], ids=["403", "500"])  # fmt: skip
async def test_where_rights_cannot_be_asked_the_start_goes_on(
    world: World, fake: FakeApiServer, answer: Fault
) -> None:
    answer.met, answer.path, answer.times = 0, "selfsubject", 99
    fake.faults.append(answer)
    fake.incomplete = True
    await world.launch()


async def test_without_events_a_start_goes_on_and_says_so_once(
    world: World, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    fake.forbidden.add(("watch", "events"))
    for _ in range(2):
        await world.stop(await world.launch())
    told = [text for text in caplog.messages if "what happens to their pods" in text]
    assert len(told) == 1
    assert "resources: [events], verbs: [watch]}" in told[0]


# Waiting


async def test_a_pod_that_ends(world: World, fake: FakeApiServer) -> None:
    world.node = False
    starting = asyncio.create_task(world.launch())
    await until(lambda: "Service/s" in world.left())
    fake.run_pod("hub", "s", phase="Failed", reason="Evicted", message="no disk", conditions=[])
    with pytest.raises(StartFailed, match="Pod/hub/s ended before it was ready: Evicted: no disk"):
        await starting


@pytest.mark.parametrize("fault", [
    Fault(error=lambda: httpx2.ConnectError("refused"), times=10_000),
    Fault(answer=lambda: httpx2.Response(503), times=10_000),
    Fault(answer=lambda: httpx2.Response(429, headers={"Retry-After": "0"}), times=10_000),
], ids=["down", "503", "429"])  # fmt: skip
@pytest.mark.parametrize("path", ["", "/secrets", "/pods/s$"])
async def test_a_start_goes_on_when_the_api_server_is_back(
    world: World, fake: FakeApiServer, fault: Fault, path: str
) -> None:
    """Whatever it waits for: what is served, the first lists, or an answer to an apply."""
    fake.faults.append(replace(fault, path=path, met=0))
    starting = asyncio.create_task(world.launch(timeout=20))
    await until(lambda: fake.faults[0].met > 8)
    assert not starting.done()
    fake.faults.clear()
    assert (await starting).ready


@pytest.mark.parametrize(("fault", "words"), [
    (Fault(error=lambda: httpx2.ConnectError("refused"), times=10_000), "ConnectError refused"),
    (text(503, "starting"), "Service Unavailable"),
    (Fault(times=10_000), "the API server did not answer in time"),
], ids=["down", "503", "silent"])  # fmt: skip
@pytest.mark.parametrize("path", ["", "/pods/s$"])
async def test_a_start_that_is_too_late_says_what_the_api_server_last_said(
    world: World, fake: FakeApiServer, fault: Fault, words: str, path: str
) -> None:
    fake.faults.append(replace(fault, path=path, met=0, times=10_000))
    with pytest.raises(StartTimeout, match=f"not ready after 0 s: .*{words}"):
        await world.launch(timeout=0.4)


async def test_a_server_that_is_never_ready(world: World, fake: FakeApiServer) -> None:
    world.node = False
    with pytest.raises(StartTimeout, match="Service/hub/s: no endpoint is ready yet"):
        await world.launch(timeout=1.5)
    assert world.left() == ALL  # the hub calls stop; a start cleans nothing up


async def test_watches_that_break_while_waiting(world: World, fake: FakeApiServer) -> None:
    world.node = False
    starting = asyncio.create_task(world.launch())
    await until(lambda: "Service/s" in world.left())
    fake.muted = True
    fake.run_pod("hub", "s")
    fake.compact()
    await asyncio.sleep(0.01)
    fake.muted = False
    for watch in list(fake.watches):
        watch.end(httpx2.ReadError("reset"))
    assert (await starting).ready


async def test_a_watch_that_is_refused_is_named(world: World, fake: FakeApiServer) -> None:
    fake.forbidden.add(("watch", "endpointslices"))
    with pytest.raises(SpawnerError, match="may not watch endpointslices"):
        await world.launch(timeout=1.5)


async def test_events_are_told(world: World, fake: FakeApiServer) -> None:
    world.node = False
    starting = asyncio.create_task(world.launch())
    await until(lambda: "Service/s" in world.left() and fake.count("WATCH .*events") == 1)
    pod = fake.find("Pod", "hub", "s")
    assert pod is not None
    for number, uid in enumerate((pod["metadata"]["uid"], "a stranger's")):
        fake.put({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": f"e{number}", "namespace": "hub"},
            "involvedObject": {"kind": "Pod", "name": "s", "uid": uid},
            "type": "Warning", "reason": f"FailedScheduling{number}", "message": "no room",
            "lastTimestamp": "2026-11-22T00:00:00Z",
        })  # fmt: skip
    await until(lambda: any("FailedScheduling0" in text for text in world.told))
    fake.run_pod("hub", "s")
    await starting
    assert "2026-11-22T00:00:00Z [Warning] Pod FailedScheduling0: no room" in world.told
    assert not any("FailedScheduling1" in text for text in world.told)


async def test_adopting_a_running_server(world: World, fake: FakeApiServer) -> None:
    record = await world.launch()
    launcher = Launcher(world.cluster, ME, RULES, ROUTE, log, lambda text, _: None)
    lost = replace(record, url="", ready=False)
    assert await launcher.adopt(lost, timeout=1) == record
    await world.stop(record)
    with pytest.raises(StartFailed, match="Service/hub/s: it was deleted"):
        await launcher.adopt(lost, timeout=1)


async def test_what_a_user_writes_into_a_service_does_not_move_the_route(
    world: World, fake: FakeApiServer
) -> None:
    record = await world.launch()
    launcher = Launcher(world.cluster, ME, RULES, ROUTE, log, lambda text, _: None)
    service = fake.find("Service", "hub", "s")
    assert service is not None
    key = ROUTE.annotation_key
    service["metadata"]["annotations"] |= {
        "x": "169.254.169.254", f"{key}-address": "{.metadata.annotations.x}",
        f"{key}-port": "80", f"{key}-scheme": "https",
    }  # fmt: skip
    fake.put(service)
    await asyncio.sleep(0.02)
    assert await launcher.adopt(record, timeout=1) == record
    fake.put({**service, "spec": {"type": "ExternalName", "externalName": "169.254.169.254"}})
    await asyncio.sleep(0.02)
    with pytest.raises(ManifestError, match="Service hub/s is an ExternalName, which the template"):
        await launcher.adopt(record, timeout=1)


async def test_what_the_template_says_of_its_address_is_kept(
    world: World, fake: FakeApiServer
) -> None:
    files = chart()
    annotations = {f"{ROUTE.annotation_key}-port": "web", f"{ROUTE.annotation_key}-scheme": "https"}
    files["service"]["metadata"]["annotations"] = {**CONNECTION, **annotations}
    files["service"]["spec"]["ports"] = [{"name": "web", "port": 81}, {"name": "b", "port": 82}]
    record = await world.launch(files)
    assert record.url.endswith(":81")
    service = fake.find("Service", "hub", "s")
    assert service is not None
    service["metadata"]["annotations"] = {}
    fake.put(service)
    await asyncio.sleep(0.02)
    launcher = Launcher(world.cluster, ME, RULES, ROUTE, log, lambda text, _: None)
    assert await launcher.adopt(replace(record, url="", ready=False), timeout=1) == record


async def test_a_template_may_connect_through_an_external_name(world: World) -> None:
    files = chart()
    external = {"type": "ExternalName", "externalName": "nb.example.com"}
    files["service"]["spec"] = external
    assert (await world.launch(files)).url == "http://nb.example.com:8888"


async def test_a_webhook_that_is_down_ends_the_start_in_its_rules_time(
    world: World, fake: FakeApiServer
) -> None:
    message = 'Internal error occurred: failed calling webhook \\"w\\": connection refused'
    body = f'{{"message": "{message}", "reason": "InternalError", "code": 500}}'
    fault = text(500, body, "application/json")
    fake.faults.append(replace(fault, method="PATCH", path="pods/s", times=9999))
    limits = failures.FailureRules({"webhook-down": {"grace": 0.05}})
    with pytest.raises(Unavailable, match=r"Pod/hub/s \(pod.yaml\) was refused: .*webhook"):
        await world.launch(timeout=60, limits=limits)


async def test_the_rules_hold_for_a_server_that_is_adopted(
    world: World, fake: FakeApiServer, tmp_path: Path
) -> None:
    """A Deployment's, behind a Service: neither pod nor connection object says what is wrong."""
    files = chart()
    pod = files.pop("pod")
    spec = {"selector": {"matchLabels": {"app": "s"}}, "template": pod}
    files["pods"] = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "s"},
                     "spec": spec}  # fmt: skip
    with pytest.raises(StartTimeout):
        await world.launch(files, timeout=1)
    await world.cluster.aclose()
    failing = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
               "message": 'pods "s-1" is forbidden: exceeded quota: q'}  # fmt: skip
    item = fake.find("Deployment", "hub", "s")
    assert item is not None
    fake.put({**item, "status": {"conditions": [failing]}})
    new = Cluster(connect(tmp_path, transport=fake), ME.instance, log, QUICK)
    limits = failures.FailureRules({"quota": {"grace": 0.05}})
    launcher = Launcher(new, ME, RULES, ROUTE, log, lambda text, _: None, limits)
    with pytest.raises(StartFailed, match=r"Deployment/hub/s: FailedCreate: .*exceeded quota: q"):
        await launcher.adopt(world.saved[-1], timeout=30)
    await new.aclose()


# Cut off


async def test_cut_off_anywhere_nothing_is_lost_sight_of(world: World, fake: FakeApiServer) -> None:
    """Cancelled at its N-th request, before or after it is handled: then a stop, then a start."""
    await world.stop(await world.launch())
    total = 12
    for number in range(1, total + 1):
        for moment in ("arrived", "handled"):
            starting = asyncio.create_task(world.launch())
            _cancel_at(fake, starting, number, moment)
            await asyncio.wait([starting])
            fake.on_request = lambda seen, when: None
            for item in fake.everything():
                assert ME.owns(item["metadata"]["labels"])
                assert LIFECYCLE in item["metadata"]["labels"]
                assert DIGEST in item["metadata"]["annotations"]
            if number % 2:
                assert (await world.launch(before=world.saved[-1])).ready
            await world.stop(world.saved[-1])
            assert world.left() == {"PersistentVolumeClaim/home"}, (number, moment)
    assert (await world.launch()).ready


def _cancel_at(fake: FakeApiServer, task: asyncio.Task[Any], number: int, moment: str) -> None:
    count = 0

    def hook(seen: Seen, when: str) -> None:
        nonlocal count
        count += when == moment and not seen.watch
        if count == number:
            task.cancel()

    fake.on_request = hook


async def test_a_cancel_is_obeyed_at_once(world: World, fake: FakeApiServer) -> None:
    world.node = False
    fake.faults.append(Fault(method="PATCH", path="pods", times=99))
    starting = asyncio.create_task(world.launch())
    await until(lambda: fake.count("PATCH .*pods"))
    starting.cancel()
    async with asyncio.timeout(0.1):
        await asyncio.wait([starting])
    assert starting.cancelled()


async def test_twenty_at_once(world: World, fake: FakeApiServer) -> None:
    def own(number: int) -> dict[str, Obj]:
        files = chart(f"s{number}")
        files["volume"]["metadata"]["name"] = f"home{number}"
        claim = files["pod"]["spec"]["volumes"][0]["persistentVolumeClaim"]
        claim["claimName"] = f"home{number}"
        return files

    users = [Identity("i", f"user{number}") for number in range(20)]
    records = await asyncio.gather(
        *(world.launch(own(number), user, timeout=60) for number, user in enumerate(users))
    )
    assert len({record.url for record in records}) == 20
    assert len(world.writes()) == 80
    assert fake.count("WATCH") == 6
    await asyncio.gather(*map(world.stop, records))
    assert {item.split("/")[0] for item in world.left()} == {"PersistentVolumeClaim"}


async def test_a_pod_deleted_during_the_start_is_told(world: World, fake: FakeApiServer) -> None:
    world.node = False
    files = chart()
    del files["service"]
    files["pod"]["metadata"]["annotations"] = CONNECTION
    starting = asyncio.create_task(world.launch(files))
    await until(lambda: any("Waiting for Pod/hub/s" in text for text in world.told))
    fake.remove("Pod", "hub", "s")
    with pytest.raises(StartFailed, match="Pod/hub/s: it was deleted"):
        await starting


async def test_the_servers_pod_is_where_its_service_is(world: World, fake: FakeApiServer) -> None:
    """It is looked for there, not in the hub's own namespace."""
    files = chart()
    for name in ("pod", "service", "secret"):
        files[name]["metadata"] = {**files[name]["metadata"], "namespace": "other"}
    files["pod"]["spec"]["volumes"] = []
    record = await world.launch(files, rules=replace(RULES, namespaces=("other",)))
    assert record.pods_in == "other"
    server, limits = Server(world.cluster, record), liveness.Limits()
    assert liveness.look(server, limits) is None
    fake.remove("Pod", "other", "s")
    await until(lambda: liveness.look(server, limits))
    missing = liveness.look(server, limits)
    assert isinstance(missing, liveness.Missing)
    assert await liveness.confirm(world.cluster, missing, log) == Ended(
        1, "Pod/other/s was deleted"
    )


async def test_time_that_is_up_says_why_the_hub_saw_nothing_in_another_namespace(
    world: World, fake: FakeApiServer
) -> None:
    files = chart()
    for item in files.values():
        item["metadata"] = {**item["metadata"], "namespace": "other"}
    message = '{"message": "etcd is away", "code": 503}'
    away = Fault(lambda: httpx2.Response(503, text=message), path="/other/pods$", times=9999)
    fake.faults.append(away)
    with pytest.raises(StartTimeout, match="etcd is away"):
        await world.launch(files, rules=replace(RULES, namespaces=("other",)), timeout=1)
