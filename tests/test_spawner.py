"""The spawner under a real JupyterHub: users, database and life cycle; the API server is a fake."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import sqlalchemy
from jupyterhub import orm
from jupyterhub import spawner as hub_spawner
from jupyterhub.user import User
from jupyterhub.utils import iterate_until
from tornado import web
from traitlets import TraitError
from traitlets.config import Config
from traitlets.config.loader import DeferredConfigString

from lightkube_template_spawner import spawner as spawner_module
from lightkube_template_spawner.cluster.cluster import shared
from lightkube_template_spawner.errors import RemovalIncomplete
from lightkube_template_spawner.hub import startup
from lightkube_template_spawner.lifecycle import liveness, monitor
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects.identity import OWNER, Identity
from lightkube_template_spawner.objects.ref import POD, ObjectRef
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from lightkube_template_spawner.templates.helm.library import library_folder
from tests.support.charts import write_chart
from tests.support.connect import kubeconfig
from tests.support.fake_apiserver import FakeApiServer, Fault, Seen, text
from tests.support.hub import INSTANCE, FakeHub, log, running_hub
from tests.support.timing import until

pytestmark = [
    pytest.mark.skipif(library_folder() is None, reason="helm-python-sdk is missing"),
]

STATE = "lightkube_template_spawner"
CHART = """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: home-{{ .Values.escaped_username }}
  annotations: {kubetemplatespawner/lifecycle: user-deleted}
spec: {size: 1}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: kept-{{ .Values.escaped_user_server }}
  annotations: {kubetemplatespawner/lifecycle: server-deleted}
data: {a: b}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: "values-{{ .Values.escaped_user_server }}"}
data:
  values: {{ omit .Values "env" "env_list" | toJson | quote }}
---
apiVersion: v1
kind: Secret
metadata: {name: "{{ .Values.escaped_user_server }}"}
stringData:
  {{- range .Values.env_list }}
  {{ .name }}: {{ .value | quote }}
  {{- end }}
---
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Values.escaped_user_server }}
  annotations: {kubetemplatespawner/connection: "true"}
spec:
  containers:
    - name: main
      image: image
      envFrom: [{secretRef: {name: "{{ .Values.escaped_user_server }}"}}]
  volumes:
    - name: home
      persistentVolumeClaim: {claimName: "home-{{ .Values.escaped_username }}"}
"""
ADA = "ada@example.org"
ME = Identity(INSTANCE, ADA)
SLUG = ME.user_slug
KEPT = {f"PersistentVolumeClaim/home-{SLUG}", f"ConfigMap/kept-{SLUG}"}
RUNNING = {*KEPT, f"ConfigMap/values-{SLUG}", f"Secret/{SLUG}", f"Pod/{SLUG}"}
DOWN = Fault(error=lambda: httpx2.ConnectError("refused"), times=9999)
DENIED = text(403, '{"message": "no", "reason": "Forbidden", "code": 403}', "application/json")


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chart(tmp_path_factory.mktemp("chart"), CHART)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never comes."""
    monkeypatch.setattr(spawner_module, "_POLL_PATIENCE", 0.1)
    monkeypatch.setattr(spawner_module, "_ADOPT_PATIENCE", 0.2)


@pytest.fixture
async def hub(fake: FakeApiServer, tmp_path: Path, chart: Path) -> AsyncIterator[FakeHub]:
    async with running_hub(fake, tmp_path, chart) as made:
        yield made


def down(fault: Fault = DOWN) -> Fault:
    return replace(fault, met=0, times=9999)


def saved(hub: FakeHub, name: str = "") -> dict[str, Any]:
    """The state in the database, not in the session."""
    query = hub.db.query(orm.Spawner).filter_by(name=name).populate_existing()
    return dict(query.first().state or {})


def rendered(fake: FakeApiServer, server: str = SLUG) -> dict[str, Any]:
    """The values that the template got."""
    found = fake.find("ConfigMap", "hub", f"values-{server}")
    assert found is not None
    return dict(json.loads(found["data"]["values"]))


def uid(fake: FakeApiServer, kind: str, name: str) -> str:
    found = fake.find(kind, "hub", name)
    assert found is not None, f"no {kind} {name}"
    return str(found["metadata"]["uid"])


def die(fake: FakeApiServer, code: int = 137) -> None:
    ended = {"terminated": {"exitCode": code, "reason": "OOMKilled"}}
    fake.run_pod(
        "hub",
        SLUG,
        phase="Failed",
        conditions=[],
        containerStatuses=[{"name": "main", "state": ended}],
    )


async def seen_dead(hub: FakeHub, spawner: LightkubeTemplateSpawner) -> None:
    record = spawner._record
    assert record is not None
    await until(lambda: liveness.look(Server(hub.cluster, record), liveness.Limits()))


# -- a life ---------------------------------------------------------------------------------------


async def test_a_life(hub: FakeHub, fake: FakeApiServer) -> None:
    user = hub.user()
    assert await user.spawner.poll() == 0
    assert fake.requests == []
    spawner = await hub.spawn(user)
    assert spawner.server.url == f"http://127.0.0.1:{hub.port}/user/{ADA}/"
    assert await spawner.poll() is None
    assert hub.left() == RUNNING
    volume = uid(fake, "PersistentVolumeClaim", f"home-{SLUG}")

    await hub.stop(user)
    assert hub.left() == KEPT
    assert await user.spawner.poll() == 0
    assert saved(hub)[STATE]["live"] is False
    fake.requests.clear()
    await user.spawner.stop()
    assert fake.requests == []

    await hub.spawn(user)
    assert uid(fake, "PersistentVolumeClaim", f"home-{SLUG}") == volume
    await hub.stop(user)
    assert hub.stopped == []


async def test_start_returns_a_url(hub: FakeHub) -> None:
    spawner = hub.prepared(hub.user())
    assert await spawner.start() == f"http://127.0.0.1:{hub.port}"


async def test_the_record_is_saved_before_the_first_write(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    seen: list[dict[str, Any]] = []

    def look(request: Seen, moment: str) -> None:
        if request.method == "PATCH" and moment == "arrived" and not seen:
            assert not hub.db.dirty
            seen.append(saved(hub))

    hub.hooks.append(look)
    await hub.start(hub.user())
    record = seen[0][STATE]
    assert (record["live"], record["ready"]) == (True, False)
    assert record["identity"]["username"] == ADA
    assert record["kinds"].keys() == {"v1/Pod", "v1/Secret", "v1/ConfigMap"}
    assert (seen[0]["pod_name"], seen[0]["pvc_name"]) == (SLUG, f"home-{SLUG}")


async def test_a_hub_that_dies_while_a_server_starts_finds_it_again(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    hub.node = False
    spawning = asyncio.create_task(hub.spawn(hub.user()))
    await until(hub.pods)
    spawning.cancel()
    await asyncio.wait([spawning])
    await hub.restart()
    before = uid(fake, "Pod", SLUG)
    user = hub.user()
    assert await user.spawner.poll() is None
    checking = asyncio.create_task(hub.check(user))
    await until(lambda: fake.count("WATCH .*pods") == 2)
    assert not checking.done()
    hub.run_pods()
    assert await checking is None
    assert uid(fake, "Pod", SLUG) == before
    assert user.spawner.server.url.startswith(f"http://127.0.0.1:{hub.port}/user/")
    assert saved(hub)[STATE]["ready"] is True
    assert fake.count("DELETE") == 0

    await hub.restart()
    user = hub.user()
    assert await hub.check(user) is None
    die(fake)
    await until(lambda: hub.stopped)
    assert hub.left() == KEPT


async def test_the_state_holds_no_secret(hub: FakeHub) -> None:
    hub.config.LightkubeTemplateSpawner.environment = {"PASSWORD": "hunter2"}
    user = hub.user()
    spawner = await hub.spawn(user)
    whole = json.dumps(saved(hub))
    for secret in (spawner.api_token, "hunter2", "PASSWORD", "containers"):
        assert secret not in whole


async def test_what_a_state_says_is_understood_again(hub: FakeHub) -> None:
    user = hub.user()
    spawner = await hub.spawn(user)
    state = json.loads(json.dumps(spawner.get_state()))
    other = user._new_spawner("")
    other.load_state(state)
    assert json.loads(json.dumps(other.get_state())) == state
    assert await other.poll() is None


@pytest.mark.parametrize("state", [
    {}, {"pod_name": "jupyter-ada", "namespace": "hub", "pvc_name": "claim-ada", "dns_name": "x"},
    {"manifests": [{"kind": "Pod"}], "pid": 5}, {STATE: None}, {STATE: []}, {STATE: "x"},
    {STATE: {"identity": 5, "namespace": {}}}, {STATE: {"identity": {"instance": "i"}}},
    {STATE: {"identity": {"instance": "i", "username": "x"}, "namespace": "hub", "live": "yes"}},
], ids=str)  # fmt: skip
async def test_a_state_that_is_not_ours(hub: FakeHub, state: dict[str, Any]) -> None:
    user = hub.user()
    user.orm_spawners[""].state = state
    spawner = user.spawner
    assert await spawner.poll() == 0
    await spawner.stop()
    assert spawner.identity.username == "x" if "username" in str(state) else ADA
    json.dumps(spawner.get_state())


async def test_the_volume_that_kubespawner_remembered_stays_known(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    """Through failed starts, stops and restarts of the hub; never taken for one of our own."""
    user = hub.user()
    assert rendered_name(await hub.spawn(user), fake) == ""
    await user.stop()
    await hub.restart()
    assert rendered_name(await hub.spawn(hub.user()), fake) == ""
    other = hub.user("grace")
    other.orm_spawners[""].state = {"pvc_name": "claim-grace", "kubespawner_version": "7.1.0"}
    hub.db.commit()
    other.spawner.clear_state()
    assert other.spawner.get_state()["former_pvc_name"] == "claim-grace"
    assert rendered_name(await hub.spawn(other), fake) == "claim-grace"
    await other.stop()
    await hub.restart()
    assert rendered_name(await hub.spawn(hub.user("grace")), fake) == "claim-grace"


def rendered_name(spawner: LightkubeTemplateSpawner, fake: FakeApiServer) -> object:
    return rendered(fake, spawner.identity.user_slug)["former_pvc_name"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("broken", [
    {"connection": None}, {"connection": "x"}, {"connection": {"kind": "Pot"}}, {"kinds": 5},
    {"namespace": "../x"}, {"connection": {"api_version": "v1", "kind": "Pod", "name": "a/b"}},
], ids=str)  # fmt: skip
async def test_a_broken_record_of_a_live_server(hub: FakeHub, broken: dict[str, Any]) -> None:
    user = hub.user()
    await hub.spawn(user)
    state = saved(hub)
    state[STATE].update(broken)
    user.orm_spawners[""].state = state
    hub.db.commit()
    await hub.restart()
    spawner = hub.user().spawner
    await spawner.poll()
    assert await spawner.get_url() == spawner.server.url


async def test_clearing_the_state_keeps_the_identity(hub: FakeHub) -> None:
    user = hub.user()
    spawner = await hub.spawn(user)
    await spawner.stop()
    spawner.clear_state()
    state = spawner.get_state()[STATE]
    assert state["identity"]["username"] == ADA
    assert state["retained"]
    assert (state["live"], state["ready"], state["url"], state["kinds"]) == (False, False, "", {})


# -- starts that fail -----------------------------------------------------------------------------


async def test_a_start_that_fails_is_removed_by_the_hub(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.node = False
    user = hub.user()
    spawning = asyncio.create_task(hub.spawn(user))
    await until(hub.pods)
    spawner = user.spawner
    die(fake)
    with pytest.raises(hub_spawner.SpawnException, match="OOMKilled"):
        await spawning
    assert hub.left() == KEPT
    assert await spawner.poll() == 0
    assert saved(hub)[STATE]["live"] is False

    hub.node = True
    spawner = await hub.spawn(user)
    assert await spawner.poll() is None
    fake.requests.clear()
    await hub.stop(user)
    assert hub.left() == KEPT
    assert fake.count("PATCH") == 0


async def test_between_a_failed_start_and_stop_poll_says_running(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    spawner = hub.prepared(hub.user())
    fake.faults.append(replace(DENIED, method="PATCH", path="/pods/", times=9))
    with pytest.raises(hub_spawner.SpawnException):
        await spawner.start()
    assert await spawner.poll() is None
    await spawner.stop()
    assert await spawner.poll() == 0
    assert hub.left() == KEPT


async def test_nothing_was_written_by_a_start_that_was_refused_before(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    hub.config.LightkubeTemplateSpawner.template_path = str(hub.folder / "missing")
    user = hub.user()
    with pytest.raises(hub_spawner.SpawnException, match="missing"):
        await hub.spawn(user)
    assert hub.left() == set()


async def test_a_cancelled_start_ends_at_once(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.node = False
    spawner = hub.prepared(hub.user())
    fake.faults.append(Fault(method="PATCH", path="/pods/", times=99))
    starting = asyncio.create_task(spawner.start())
    await until(lambda: fake.count("PATCH .*/pods/"))
    assert await spawner.poll() is None
    starting.cancel()
    async with asyncio.timeout(0.1):
        await asyncio.wait([starting])
    assert starting.cancelled()
    assert await spawner.poll() is None
    await spawner.stop()
    assert hub.left() == KEPT
    assert await spawner.poll() == 0


async def test_a_server_that_is_never_ready(hub: FakeHub) -> None:
    await hub.spawn(hub.user("bob"))  # all is warm then
    theirs = hub.left()
    hub.node = False
    hub.config.LightkubeTemplateSpawner.k8s_timeout = 1
    with pytest.raises(hub_spawner.SpawnException, match=f"Pod/hub/{SLUG}") as caught:
        await hub.spawn(hub.user())
    assert caught.value.reason == "unschedulable"  # no scheduler took notice of it
    assert hub.left() - theirs == KEPT


async def _never(spawner: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("who", ["API server", "extra_vars"])
async def test_who_is_silent_before_anything_is_rendered_is_named(
    hub: FakeHub, fake: FakeApiServer, who: str
) -> None:
    hub.config.LightkubeTemplateSpawner.start_timeout = 3
    if who == "extra_vars":
        hub.config.LightkubeTemplateSpawner.extra_vars = _never
    else:
        fake.faults.append(down(Fault()))
    with pytest.raises(hub_spawner.SpawnException, match=who) as caught:
        await hub.spawn(hub.user())
    assert caught.value.reason == {"API server": "api-server", "extra_vars": "timeout"}[who]


async def test_a_server_that_does_not_answer_is_removed(hub: FakeHub) -> None:
    hub.config.LightkubeTemplateSpawner.port = 1
    hub.config.LightkubeTemplateSpawner.http_timeout = 1
    with pytest.raises(TimeoutError):
        await hub.spawn(hub.user())
    assert hub.left() == KEPT


async def test_a_stop_that_fails_names_what_stays(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    hub.config.LightkubeTemplateSpawner.stop_timeout = 0.5
    user = hub.user()
    spawner = await hub.spawn(user)
    pod = fake.find("Pod", "hub", SLUG)
    assert pod is not None
    pod["metadata"]["finalizers"] = ["example.org/hold"]
    fake.put(pod)
    with pytest.raises(RemovalIncomplete, match=rf"Pod/hub/{SLUG} .*example\.org/hold"):
        await spawner.stop()
    assert "did not stop: still there" in caplog.text  # the hub itself drops the error unseen
    fake.remove("Pod", "hub", SLUG)
    await until(lambda: not hub.pods())
    await spawner.stop()
    assert hub.left() == KEPT


@pytest.mark.parametrize(("now", "grace"), [(False, None), (True, 1)])
async def test_the_grace_of_a_stop(
    hub: FakeHub, fake: FakeApiServer, now: bool, grace: int | None
) -> None:
    spawner = await hub.spawn(hub.user())
    await spawner.stop(now=now)
    (asked,) = (s for s in fake.requests if s.method == "DELETE" and "/pods" in s.path)
    assert asked.body.get("gracePeriodSeconds") == grace


async def test_a_stop_while_the_cluster_is_away(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.config.LightkubeTemplateSpawner.stop_timeout = 0.5
    user = hub.user()
    spawner = await hub.spawn(user)
    fake.faults.append(down())
    with pytest.raises(RemovalIncomplete, match="did not answer"):
        await spawner.stop()
    fake.faults.clear()
    assert await spawner.poll() is None
    await hub.stop(user)
    assert hub.left() == KEPT


async def test_kinds_that_are_no_longer_served(hub: FakeHub, fake: FakeApiServer) -> None:
    await hub.spawn(hub.user())
    state = saved(hub)
    state[STATE]["kinds"]["example.org/v9/Gone"] = ["hub"]
    hub.user().orm_spawners[""].state = state
    hub.db.commit()
    await hub.restart()
    user = hub.user()
    await hub.stop(user)
    assert hub.left() == KEPT
    await user.delete_spawners()
    assert hub.left() == set()


# -- poll -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", [DOWN, DENIED, text(503, "no"), Fault()],
                         ids=["down", "403", "503", "silent"])  # fmt: skip
async def test_a_cluster_that_does_not_tell_is_no_evidence(
    hub: FakeHub, fake: FakeApiServer, fault: Fault
) -> None:
    await hub.spawn(hub.user())
    await hub.restart()
    fake.faults.append(down(fault))
    spawner = hub.user().spawner
    assert await spawner.poll() is None
    assert await spawner.get_url() == spawner.server.url
    assert await spawner.poll() is None
    assert hub.left() == RUNNING


async def test_polls_cost_no_request(hub: FakeHub, fake: FakeApiServer) -> None:
    spawner = await hub.spawn(hub.user())
    fake.requests.clear()
    for _ in range(100):
        assert await spawner.poll() is None
    assert fake.requests == []


async def test_a_poll_believes_no_watch_that_was_refused(hub: FakeHub, fake: FakeApiServer) -> None:
    """The right to watch is gone; that to look at one object tells what became of it."""
    spawner = await hub.spawn(hub.user())
    fake.forbidden.add(("watch", "pods"))
    for watch in [watch for watch in fake.watches if watch.seen.path.endswith("/pods")]:
        watch.end()
    await asyncio.sleep(0.1)
    assert await spawner.poll() is None
    fake.remove("Pod", "hub", SLUG)
    assert await spawner.poll() == 1
    assert hub.left() == KEPT


async def test_polls_of_a_new_hub_cost_one_list(hub: FakeHub, fake: FakeApiServer) -> None:
    names = [f"user{number}" for number in range(8)]
    await asyncio.gather(*(hub.spawn(hub.user(name)) for name in names))
    await hub.restart()
    fake.requests.clear()
    answers = await asyncio.gather(*(hub.check(hub.user(name)) for name in names))
    assert answers == [None] * 8
    assert fake.count("GET .*/pods$") == 1
    assert len(fake.requests) <= 6  # discovery, pods, and the events of what is adopted


async def test_a_death_is_noticed_at_once_and_told_once(hub: FakeHub, fake: FakeApiServer) -> None:
    user = hub.user()
    spawner = await hub.spawn(user)
    die(fake)
    await until(lambda: hub.stopped and not spawner.active)
    assert hub.stopped == [f"{ADA}::137"]
    assert hub.left() == KEPT
    assert await spawner.poll() == 0
    assert saved(hub)[STATE]["live"] is False
    assert not hub.cluster.changes._callbacks
    await hub.spawn(user)
    assert hub.left() == RUNNING


@pytest.mark.parametrize("old", [False, True], ids=["JupyterHub 6", "JupyterHub 5"])
async def test_the_user_reads_why_the_server_ended(
    hub: FakeHub, fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        monkeypatch.delattr(hub_spawner, "SpawnException")
    user = hub.user()
    spawner = await hub.spawn(user)
    die(fake)
    await until(lambda: hub.stopped and not spawner.active)
    shown: Any = spawner._failed  # what the hub's page about a server that does not run asks for
    assert shown.jupyterhub_message == "Your server ended: OOMKilled (exit code 137)"
    assert isinstance(shown, web.HTTPError)
    note = "ended: OOMKilled (exit code 137)"
    assert saved(hub)[STATE]["note"] == note  # another hub will tell it, too
    again = await hub.spawn(user)
    assert not again._failed
    assert (await _told(again))[0] == f"Your last server {note}"
    assert saved(hub)[STATE]["note"] == ""


async def test_a_server_that_completed_is_no_failure(hub: FakeHub, fake: FakeApiServer) -> None:
    user = hub.user()
    spawner = await hub.spawn(user)
    die(fake, 0)
    await until(lambda: hub.stopped and "" not in user.spawners)
    assert not spawner._failed
    assert (hub.stopped, saved(hub)[STATE]["note"]) == ([f"{ADA}::0"], "")


async def test_who_asks_during_a_burial_waits_for_its_end(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    """A start through the REST API polls first: it must find a server that is wholly gone."""
    spawner = await hub.spawn(hub.user())
    fake.delay = 0.05
    die(fake)
    await until(lambda: spawner._reaping)
    assert await spawner.poll_and_notify() == 137
    assert (spawner.active, hub.stopped, hub.left()) == (False, [f"{ADA}::137"], KEPT)
    assert fake.count("DELETE .*/pods$") == 1


async def test_a_death_at_the_end_of_a_start_is_noticed_after_it(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    spawner = await hub.spawn(hub.user())
    spawner._spawn_pending = True  # the hub adds the route
    die(fake)
    await seen_dead(hub, spawner)
    assert hub.stopped == []
    spawner._spawn_pending = False
    await until(lambda: hub.stopped and not spawner.active)


@pytest.mark.parametrize("pending", ["_start_pending", "_stop_pending"])
async def test_nobody_polls_into_a_start_or_stop(
    hub: FakeHub, fake: FakeApiServer, pending: str
) -> None:
    spawner = await hub.spawn(hub.user())
    setattr(spawner, pending, True)
    die(fake)
    await seen_dead(hub, spawner)
    assert await spawner.poll_and_notify() is None
    assert hub.left() == RUNNING
    setattr(spawner, pending, False)
    await until(lambda: hub.stopped and not spawner.active)


async def test_a_restart_in_place_is_told_and_no_death(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    user = hub.user()
    spawner = await hub.spawn(user)
    container = {"name": "main", "state": {"running": {}}, "restartCount": 1}
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    now(fake, containerStatuses=[{**container, "lastState": last}])
    note = "was restarted in place: OOMKilled (exit code 137), restart 1"
    await until(lambda: saved(hub)[STATE]["note"] == note)
    assert [m for m in caplog.messages if "restarted" in m] == [f"{ADA} {note}"]
    assert await spawner.poll() is None
    await hub.stop(user)
    assert (await _told(await hub.spawn(user)))[0] == f"Your last server {note}"


async def test_a_crash_loop_ends_a_server(hub: FakeHub, fake: FakeApiServer) -> None:
    spawner = await hub.spawn(hub.user())
    status = {"name": "main", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    now(fake, containerStatuses=[{**status, "restartCount": 2}])
    await asyncio.sleep(0.02)
    assert await spawner.poll() is None
    now(fake, containerStatuses=[{**status, "restartCount": 3}])
    await until(lambda: hub.stopped and not spawner.active)
    assert hub.left() == KEPT


LOST = [
    {"type": "Ready", "status": "False"},
    {"type": "ContainersReady", "status": "True"},
]


def now(fake: FakeApiServer, **status: Any) -> None:
    """The kubelet writes this into the status of the server's pod."""
    pod = fake.find("Pod", "hub", SLUG)
    assert pod is not None
    pod["status"].update(status)
    fake.put(pod)


def lose_node(fake: FakeApiServer, *, finalizers: list[str]) -> None:
    """Nobody deletes what runs on it: the fake's finalizer stands for its kubelet."""
    pod = fake.find("Pod", "hub", SLUG)
    assert pod is not None
    pod["spec"]["nodeName"] = "lost"
    pod["metadata"]["finalizers"] = finalizers
    pod["status"]["conditions"] = LOST
    fake.put(pod)


async def test_a_lost_node_ends_a_server_after_its_time(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    hub.config.LightkubeTemplateSpawner.node_lost_timeout = 0.2
    user = hub.user()
    spawner = await hub.spawn(user)
    lose_node(fake, finalizers=["kubelet"])
    await until(lambda: "node lost does not answer" in caplog.text)
    assert await spawner.poll() is None
    await until(lambda: hub.stopped and not spawner.active)
    assert hub.left() == {*KEPT, f"Pod/{SLUG}"}
    assert "Your server ended: node lost does not answer, for 0 s" in str(spawner._failed)
    with pytest.raises(web.HTTPError, match=f"Pod/hub/{SLUG} is still on node lost, which does"):
        await hub.spawn(user)
    assert hub.left() == {*KEPT, f"Pod/{SLUG}"}
    pod = fake.find("Pod", "hub", SLUG)
    assert pod is not None
    pod["metadata"]["finalizers"] = []
    fake.put(pod)  # the node is back
    await hub.spawn(user)
    assert hub.left() == RUNNING


async def test_a_death_is_seen_at_once_while_a_lost_node_is_waited_for(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(monitor, "_SOON", 60.0)
    spawner = await hub.spawn(hub.user())
    lose_node(fake, finalizers=[])
    await until(lambda: "node lost does not answer" in caplog.text)
    await asyncio.sleep(0.05)  # it waits now
    fake.remove("Pod", "hub", SLUG)
    await until(lambda: hub.stopped and not spawner.active)
    assert hub.left() == KEPT


async def test_a_node_that_answers_again_ends_nothing(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    hub.config.LightkubeTemplateSpawner.node_lost_timeout = 0.3
    spawner = await hub.spawn(hub.user())
    lose_node(fake, finalizers=[])
    await until(lambda: "node lost does not answer" in caplog.text)
    now(fake, conditions=[{"type": "Ready", "status": "True"}])
    await asyncio.sleep(0.4)
    assert await spawner.poll() is None
    assert hub.left() == RUNNING


async def test_the_route_follows_the_server(
    hub: FakeHub, fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes: list[str] = []

    class Proxy:
        async def add_user(self, user: User, name: str) -> None:
            routes.append(user.spawners[name].server.host)
            if len(routes) == 1:
                raise OSError("the proxy is restarted")

    monkeypatch.setattr(monitor, "_AGAIN", 0.05)
    hub.settings["proxy"] = Proxy()
    spawner = await hub.spawn(hub.user())
    now(fake, podIP="10.1.2.3")
    url = f"http://10.1.2.3:{hub.port}"
    await until(lambda: saved(hub)[STATE]["url"] == url)
    assert routes == [url, url]
    assert hub.db.query(orm.Server).one().ip == "10.1.2.3"
    assert spawner.ready


async def test_a_poll_gives_the_exit_code(hub: FakeHub, fake: FakeApiServer) -> None:
    spawner = await hub.start(hub.user())
    spawner._check_pending = True  # the watch keeps out of it
    die(fake, 3)
    await seen_dead(hub, spawner)
    fake.delay = 0.05
    assert list(await asyncio.gather(spawner.poll(), spawner.poll())) == [3, 3]
    assert hub.left() == KEPT
    assert fake.count("DELETE .*/pods$") == 1
    assert await spawner.poll() == 3
    spawner.clear_state()
    assert await spawner.poll() == 0


async def test_a_restart_that_cannot_be_noted_leaves_the_hub_its_session(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    user = hub.user()
    spawner = await hub.spawn(user)
    refuse = "BEFORE UPDATE ON spawners BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END"
    hub.db.execute(sqlalchemy.text(f"CREATE TRIGGER refuse {refuse}"))
    hub.db.commit()
    over = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    container = {"name": "main", "state": {"running": {}}, "restartCount": 1, "lastState": over}
    now(fake, containerStatuses=[container])
    await until(lambda: "has a note that was not saved" in caplog.text)
    hub.db.execute(sqlalchemy.text("DROP TRIGGER refuse"))
    hub.db.commit()
    user.orm_user.admin = True  # the hub's next request
    hub.db.commit()
    assert await spawner.poll() is None
    now(fake, podIP="10.1.2.3")  # the watch goes on
    await until(lambda: saved(hub)[STATE]["url"] == f"http://10.1.2.3:{hub.port}")
    assert "OOMKilled" in saved(hub)[STATE]["note"]


async def test_all_polls_give_the_exit_code_of_one_death(hub: FakeHub, fake: FakeApiServer) -> None:
    """The pod is gone, the rest is being removed: another poll sees the pod deleted."""
    spawner = await hub.start(hub.user())
    spawner._check_pending = True  # the watch keeps out of it
    hanging = Fault(method="DELETE", path="/secrets", times=1)
    fake.faults.append(hanging)
    die(fake)
    await seen_dead(hub, spawner)
    first = asyncio.create_task(spawner.poll())
    await until(lambda: hanging.met)
    await until(lambda: hub.cluster.find(ObjectRef(POD, "hub", SLUG)) is None)
    second = asyncio.create_task(spawner.poll())
    assert list(await asyncio.gather(first, second)) == [137, 137]


async def test_a_poll_that_is_overtaken_by_a_burial_gives_its_exit_code(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    """It asks the API server for a pod that is not in the store, and meanwhile all is removed."""
    spawner = await hub.start(hub.user())
    spawner._check_pending = True  # the watch keeps out of it
    die(fake)
    await seen_dead(hub, spawner)
    fake.delay = 0.1  # for the removal to be under way when the second one asks
    first = asyncio.create_task(spawner.poll())
    await until(lambda: hub.cluster.find(ObjectRef(POD, "hub", SLUG)) is None)
    asked = Fault(method="GET", path=f"/pods/{SLUG}", times=1)
    fake.faults.append(asked)
    second = asyncio.create_task(spawner.poll())
    await until(lambda: asked.met)
    assert list(await asyncio.gather(first, second)) == [137, 137]


async def test_a_deleted_pod_is_noticed(hub: FakeHub, fake: FakeApiServer) -> None:
    spawner = await hub.spawn(hub.user())
    fake.remove("Pod", "hub", SLUG)
    await until(lambda: hub.stopped and not spawner.active)
    assert hub.left() == KEPT
    assert len(hub.stopped) == 1


async def test_a_dead_server_that_cannot_be_removed(hub: FakeHub, fake: FakeApiServer) -> None:
    spawner = await hub.start(hub.user())
    spawner._check_pending = True  # the watch keeps out of it
    fake.forbidden.update({("delete", "secrets"), ("deletecollection", "secrets")})
    die(fake)
    await seen_dead(hub, spawner)
    assert await spawner.poll() == 137  # it is dead, whatever is left of it
    assert await spawner.poll() is None  # so the hub's own stop tries again
    with pytest.raises(RemovalIncomplete):
        await spawner.stop()
    fake.forbidden.clear()
    await spawner.stop()
    assert hub.left() == KEPT


async def test_a_stop_is_not_taken_for_a_death(hub: FakeHub, fake: FakeApiServer) -> None:
    user = hub.user()
    spawner = await hub.spawn(user)
    asked: list[int] = []
    spawner.add_poll_callback(lambda: asked.append(1))
    fake.delay = 0.02
    spawner._stop_pending = True  # as the hub's handler does before anything else
    await hub.stop(user)
    await asyncio.sleep(0.02)
    assert (asked, hub.stopped) == ([], [])


async def test_a_start_is_not_taken_for_a_death(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.node = False
    user = hub.user()
    spawner = user.spawner
    asked: list[int] = []
    spawner.add_poll_callback(lambda: asked.append(1))
    spawning = asyncio.create_task(hub.spawn(user))
    await until(hub.pods)
    fake.remove("Pod", "hub", SLUG)
    await asyncio.sleep(0.02)
    spawning.cancel()
    await asyncio.wait([spawning])
    assert asked == []


# -- adoption -------------------------------------------------------------------------------------


async def test_get_url_follows_the_server(hub: FakeHub, fake: FakeApiServer) -> None:
    await hub.spawn(hub.user())
    hub.user().spawner.server.proto = "https"
    await hub.restart()
    now(fake, podIP="10.1.2.3")
    spawner = hub.user().spawner
    assert await spawner.get_url() == f"http://10.1.2.3:{hub.port}/user/{ADA}/"
    assert spawner.server.proto == "http"
    assert saved(hub)[STATE]["url"] == f"http://10.1.2.3:{hub.port}"


async def test_what_a_user_writes_into_a_pod_does_not_move_the_server(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    spawner = await hub.spawn(hub.user())
    url = saved(hub)[STATE]["url"]
    key = "kubetemplatespawner/connection"
    pod = fake.find("Pod", "hub", SLUG)
    assert pod is not None
    pod["metadata"]["annotations"] |= {
        "x": "169.254.169.254", f"{key}-address": "{.metadata.annotations.x}",
        f"{key}-port": "80", f"{key}-scheme": "https",
    }  # fmt: skip
    fake.put(pod)
    await asyncio.sleep(0.1)
    assert saved(hub)[STATE]["url"] == url
    await hub.restart()
    assert await hub.user().spawner.get_url() == f"{url}/user/{ADA}/"
    assert saved(hub)[STATE]["url"] == url
    assert spawner.server.url == hub.user().spawner.server.url


SERVICE = """\
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .Values.escaped_user_server }}
  annotations: {kubetemplatespawner/connection: "true"}
spec:
  clusterIP: 127.0.0.1
  selector: {app: lab}
  ports: [{port: {{ .Values.port }}}]
"""
FORGED = {
    "x": "169.254.169.254", "kubetemplatespawner/connection-port": "80",
    "kubetemplatespawner/connection-address": "{.metadata.annotations.x}",
}  # fmt: skip


@pytest.fixture
async def behind_service(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> AsyncIterator[FakeHub]:
    """A hub whose servers are reached through Services, with a proxy that keeps its routes."""
    folder = tmp_path / "service"
    shutil.copytree(chart, folder)
    pod = CHART.replace(
        'annotations: {kubetemplatespawner/connection: "true"}', "labels: {app: lab}"
    )
    (folder / "templates" / "a.yaml").write_text(pod + SERVICE)
    routes: list[str] = []

    async def add_user(user: User, name: str) -> None:
        routes.append(user.spawners[name].server.host)

    async with running_hub(fake, tmp_path, folder) as made:
        made.settings["proxy"] = SimpleNamespace(add_user=add_user, routes=routes)
        yield made


@pytest.mark.parametrize(
    ("kind", "metadata", "spec", "said"),
    [
        ("Service", {}, {"type": "ExternalName", "externalName": "169.254.169.254"},
         f"Service hub/{SLUG} is an ExternalName, which the template did not make it"),
        ("Service", {"annotations": FORGED}, {}, ""),
        ("Pod", {"annotations": FORGED, "labels": {"app": "other"}}, {}, ""),
        ("Pod", {"labels": {OWNER: "another's"}}, {}, ""),
    ],
)  # fmt: skip
async def test_what_a_user_writes_into_objects_does_not_move_a_server_that_runs(
    behind_service: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture,
    kind: str, metadata: dict[str, Any], spec: dict[str, Any], said: str,
) -> None:  # fmt: skip
    hub = behind_service
    spawner = await hub.spawn(hub.user())
    url, where = saved(hub)[STATE]["url"], spawner.server.url
    service, item = fake.find("Service", "hub", SLUG), fake.find(kind, "hub", SLUG)
    assert service is not None
    assert item is not None
    for name, fields in metadata.items():
        item["metadata"].setdefault(name, {}).update(fields)
    item["spec"] |= spec
    fake.put(item)
    await until(lambda: said in caplog.text)
    await asyncio.sleep(0.1)
    assert await spawner.poll() is None
    assert (saved(hub)[STATE]["url"], spawner.server.url) == (url, where)
    assert not any(record.exc_info for record in caplog.records)
    await hub.restart()
    assert await hub.user().spawner.get_url() == where
    moved = url.replace("127.0.0.1", "127.0.0.2")
    service["spec"]["clusterIP"] = "127.0.0.2"
    fake.put(service)  # the monitor was awake: this one it follows
    await until(lambda: saved(hub)[STATE]["url"] == moved)
    assert hub.settings["proxy"].routes == [moved]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trouble", ["gone", "not ready", "forgotten", "no database"])
async def test_get_url_never_raises(
    hub: FakeHub, fake: FakeApiServer, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.spawn(hub.user())
    known = hub.user().spawner.server.url
    await hub.restart()
    spawner = hub.user().spawner
    if trouble == "gone":
        fake.remove("Pod", "hub", SLUG)
    if trouble == "not ready":
        fake.run_pod("hub", SLUG, conditions=[])
    if trouble == "forgotten":
        spawner.load_state({})
    if trouble == "no database":
        monkeypatch.setattr(hub.db, "commit", _broken_commit)
    async with asyncio.timeout(5):
        assert await spawner.get_url() == known


def hub_process(monkeypatch: pytest.MonkeyPatch, **traits: Any) -> SimpleNamespace:
    """This process as that of a hub that does not answer yet."""
    app = SimpleNamespace(http_server=None, **traits)
    process = SimpleNamespace(initialized=lambda: True, instance=lambda: app)
    monkeypatch.setitem(sys.modules, "jupyterhub.app", SimpleNamespace(JupyterHub=process))
    startup._hubs.append(app)
    return app


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("limit", "words"), [(10, ", or for 10 s:"), (-1, " ready:"), (1, "")])
async def test_a_hub_that_waits_for_servers_says_how_not_to(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, limit: int, words: str,
) -> None:  # fmt: skip
    hub.node = False
    spawning = asyncio.create_task(hub.spawn(hub.user()))
    await until(hub.pods)
    spawning.cancel()
    await asyncio.wait([spawning])
    hub.config.LightkubeTemplateSpawner.start_timeout = 2
    await hub.restart()
    app = hub_process(monkeypatch, init_spawners_timeout=limit)
    spawner = hub.user().spawner
    await asyncio.gather(spawner.get_url(), spawner.get_url())
    said = [r.getMessage() for r in caplog.records if "init_spawners_timeout = 1" in r.getMessage()]
    assert len(said) == bool(words)
    assert all(ADA in text and words in text for text in said)
    caplog.clear()
    app.http_server = "up"
    startup._waiting_hubs.clear()
    await spawner.get_url()
    assert "init_spawners_timeout" not in caplog.text


async def test_a_hub_waits_for_no_server_that_was_ready(
    hub: FakeHub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.spawn(hub.user())
    await hub.restart()
    hub_process(monkeypatch, init_spawners_timeout=10)
    assert await hub.user().spawner.get_url() == f"http://127.0.0.1:{hub.port}/user/{ADA}/"
    assert "init_spawners_timeout" not in caplog.text


def _broken_commit() -> None:
    raise RuntimeError("database is locked")


async def test_a_server_that_ended_while_no_hub_ran(hub: FakeHub, fake: FakeApiServer) -> None:
    await hub.spawn(hub.user())
    await hub.close_cluster()
    die(fake, 9)
    hub.open_cluster()
    hub.boot()
    assert await hub.check(hub.user()) == 9
    assert hub.left() == KEPT


# -- what users are told --------------------------------------------------------------------------


def reasons() -> list[Any]:
    quota = text(403, '{"message": "exceeded quota: q", "code": 403}', "application/json")
    return [
        pytest.param(
            lambda hub, fake: fake.put({"apiVersion": "v1", "kind": "Secret",
                                        "metadata": {"name": SLUG, "namespace": "hub"}}),
            "ownership", f"Secret/hub/{SLUG}", id="not ours",
        ),
        pytest.param(
            lambda hub, fake: fake.faults.append(replace(quota, method="PATCH", times=9)),
            "quota", "exceeded quota: q", id="quota",
        ),
        pytest.param(
            lambda hub, fake: setattr(
                hub.config.LightkubeTemplateSpawner, "template_path", "/nowhere"
            ),
            "template", "/nowhere", id="template",
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["JupyterHub 6", "JupyterHub 5"])
@pytest.mark.parametrize(("spoil", "reason", "word"), reasons())
async def test_errors_are_explained(
    hub: FakeHub, fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch, old: bool,
    spoil: Callable[[FakeHub, FakeApiServer], object], reason: str, word: str,
) -> None:  # fmt: skip
    if old:
        monkeypatch.delattr(hub_spawner, "SpawnException")
    spoil(hub, fake)
    with pytest.raises(web.HTTPError) as caught:
        await hub.start(hub.user())
    error: Any = caught.value
    assert error.status_code == 400
    assert word in error.jupyterhub_message
    assert word in error.get_message()
    if old:
        assert type(error) is web.HTTPError
    else:
        assert (error.reason, error.message) == (reason, error.jupyterhub_message)


@pytest.mark.parametrize("encoded", [False, True])
async def test_a_token_in_an_answer_is_not_repeated(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture, encoded: bool
) -> None:
    spawner = hub.prepared(hub.user())
    token = spawner.api_token

    def answer() -> httpx2.Response:
        (patch,) = (s for s in fake.requests if s.method == "PATCH" and "/secrets/" in s.path)
        shown = patch.body["data"]["JUPYTERHUB_API_TOKEN"] if encoded else token
        return httpx2.Response(422, json={"message": f"bad: {shown}", "code": 422})

    fake.faults.append(Fault(answer=answer, method="PATCH", path="/secrets/"))
    with pytest.raises(hub_spawner.SpawnException, match=r"bad: \[env JUPY") as caught:
        await spawner.start()
    assert token not in str(caught.value)
    assert token not in caplog.text
    printed = "".join(traceback.format_exception(caught.value))
    assert token not in printed
    assert base64.b64encode(token.encode()).decode() not in printed


async def test_an_api_server_that_is_away_is_not_the_users_fault(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    fake.faults.append(down(text(503, "away")))
    with pytest.raises(hub_spawner.SpawnException) as caught:
        await hub.start(hub.user())
    assert caught.value.status_code == 503


async def test_progress(hub: FakeHub) -> None:
    hub.node = False
    user = hub.user()
    spawning = asyncio.ensure_future(hub.spawn(user))
    await until(lambda: user.spawner.pending == "spawn")
    spawner = user.spawner
    readers = [asyncio.create_task(_read(spawner, spawning)) for _ in range(3)]
    await until(hub.pods)
    late = asyncio.create_task(_read(spawner, spawning))
    hub.run_pods()
    await spawning
    first, *others = [await reader for reader in (*readers, late)]
    assert others == [first] * 3
    assert any("Applied" in entry["message"] for entry in first)
    numbers = [entry["progress"] for entry in first]
    assert numbers == sorted(set(numbers))
    assert all(0 <= number < 100 for number in numbers)
    assert [entry async for entry in spawner.progress()] == first[1:]


async def _told(spawner: LightkubeTemplateSpawner) -> list[str]:
    return [entry["message"] async for entry in spawner.progress()]


async def _read(spawner: LightkubeTemplateSpawner, until: Any) -> list[dict[str, Any]]:
    return [entry async for entry in iterate_until(until, spawner._generate_progress())]


async def test_progress_that_is_asked_for_before_the_start(hub: FakeHub) -> None:
    """The hub's page asks at once; hooks may take their time before the start."""
    opened = asyncio.Event()

    async def slow(spawner: Any) -> None:
        await opened.wait()

    hub.config.LightkubeTemplateSpawner.pre_spawn_hook = slow
    user = hub.user()
    spawning = asyncio.ensure_future(hub.spawn(user))
    await until(lambda: user.spawner.pending == "spawn" and user.spawner.api_token)
    reader = asyncio.create_task(_read(user.spawner, spawning))
    await asyncio.sleep(0.02)
    opened.set()
    await spawning
    assert len(await reader) > 2


async def test_progress_of_a_failed_start(hub: FakeHub, fake: FakeApiServer) -> None:
    spawner = hub.prepared(hub.user())
    assert [entry async for entry in spawner.progress()] == []
    fake.faults.append(replace(DENIED, method="PATCH", times=9))
    with pytest.raises(hub_spawner.SpawnException):
        await spawner.start()
    assert [entry async for entry in spawner.progress()] != []


# -- named servers, and users that go -------------------------------------------------------------


async def test_named_servers(hub: FakeHub, fake: FakeApiServer) -> None:
    user = hub.user()
    await hub.spawn(user)
    named = await hub.spawn(user, "gpu")
    server = f"{SLUG}--gpu"
    own = {f"ConfigMap/kept-{server}", f"ConfigMap/values-{server}", f"Secret/{server}",
           f"Pod/{server}"}  # fmt: skip
    assert hub.left() == RUNNING | own
    await hub.stop(user, "gpu")
    assert hub.left() == RUNNING | {f"ConfigMap/kept-{server}"}
    assert await user.spawner.poll() is None
    await user._delete_spawner("gpu")
    assert hub.left() == RUNNING
    assert named.identity.servername == "gpu"


async def test_a_deleted_user_leaves_nothing(hub: FakeHub, fake: FakeApiServer) -> None:
    ada, bob = hub.user(), hub.user("bob")
    for user, name in ((ada, ""), (ada, "gpu"), (bob, "")):
        await hub.spawn(user, name)
        await hub.stop(user, name)
    theirs = {item for item in hub.left() if "bob" in item}
    hub.config.LightkubeTemplateSpawner.template_path = "/nowhere"
    await hub.restart()
    await hub.user().delete_spawners()
    assert hub.left() == theirs


async def test_deleting_a_user_is_tried_again(
    hub: FakeHub, fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = hub.user()
    await hub.spawn(user)
    await hub.stop(user)
    monkeypatch.setattr("anyio.sleep", lambda seconds: asyncio.sleep(0.001))
    fake.faults.append(replace(DENIED, method="DELETE", times=2))
    await user.delete_spawners()
    assert hub.left() == set()


async def test_a_deletion_that_fails_for_good(
    hub: FakeHub, fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = hub.user()
    await hub.spawn(user)
    await hub.stop(user)
    monkeypatch.setattr("anyio.sleep", lambda seconds: asyncio.sleep(0.001))
    fake.faults.append(replace(DENIED, method="DELETE", times=99))
    with pytest.raises(RemovalIncomplete, match=f"home-{SLUG}"):
        await user._new_spawner("").delete_forever()


async def test_deleting_a_user_who_never_had_a_server(hub: FakeHub, fake: FakeApiServer) -> None:
    await hub.user().delete_spawners()
    assert fake.count("DELETE") == 0


async def test_a_user_is_not_removed_while_a_named_server_runs(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    user = hub.user()
    await hub.spawn(user, "gpu")
    before = hub.left()
    with pytest.raises(RemovalIncomplete, match=f"{ADA}:gpu is active; stop it"):
        await user.spawner.delete_forever()
    assert hub.left() == before
    await hub.stop(user, "gpu")
    await user.delete_spawners()
    assert hub.left() == set()


async def test_nothing_starts_while_the_user_is_removed(hub: FakeHub, fake: FakeApiServer) -> None:
    user = hub.user()
    await hub.spawn(user)
    await hub.stop(user)
    removal: list[asyncio.Task[None]] = []

    def start(request: Seen, moment: str) -> None:
        if request.method == "DELETE" and not removal:
            removal.append(asyncio.ensure_future(hub.spawn(user, "gpu")))  # type: ignore[arg-type]

    hub.hooks.append(start)
    await user.delete_spawners()
    with pytest.raises(Exception, match="is being removed: try again in a moment"):
        await removal[0]
    assert hub.left() == set()


# -- identity -------------------------------------------------------------------------------------


async def test_a_renamed_user_keeps_the_volume(hub: FakeHub, fake: FakeApiServer) -> None:
    user = hub.user()
    await hub.spawn(user)
    await hub.stop(user)
    volume = uid(fake, "PersistentVolumeClaim", f"home-{SLUG}")
    user.orm_user.name = "countess"
    hub.db.commit()
    await hub.restart()
    user = hub.user("countess")
    await hub.spawn(user)
    await hub.spawn(user, "second")  # it has no record of its own: its sibling tells
    assert {item for item in hub.left() if "Claim" in item} == {
        f"PersistentVolumeClaim/home-{SLUG}"
    }
    assert uid(fake, "PersistentVolumeClaim", f"home-{SLUG}") == volume
    assert rendered(fake)["unescaped_username"] == "countess"
    assert user.spawners["second"].identity.username == ADA
    for name in ("", "second"):
        await hub.stop(user, name)
    await user.delete_spawners()
    assert hub.left() == set()


async def test_a_new_user_of_a_former_name_is_somebody_else(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    old = hub.user()
    await hub.spawn(old)
    old.orm_user.name = "countess"
    hub.db.commit()
    new = hub.user(ADA)
    assert new.id != old.id
    before = hub.left()
    await hub.spawn(new)
    assert before < hub.left()
    pods = {item for item in hub.left() if "Pod/" in item or "Claim/" in item}
    assert len(pods) == 4
    await hub.stop(new)
    await new.delete_spawners()
    assert hub.left() == before
    assert await hub.users[old.orm_user].spawner.poll() is None


def forget(hub: FakeHub, user: User, created: datetime) -> None:
    """The hub's notes on a user's servers are lost, the user is not."""
    user.orm_user.created = created
    for entry in user.orm_spawners.values():
        entry.state = {}
    hub.db.commit()


@pytest.mark.parametrize("fraction", [0, 900_000])
async def test_a_new_user_of_a_former_name_is_somebody_else_even_without_records(
    hub: FakeHub, fake: FakeApiServer, fraction: int
) -> None:
    """Objects carry the second in which they were made, users its fraction, too."""
    old = hub.user()
    await hub.spawn(old)
    await hub.stop(old)
    forget(hub, old, datetime(2026, 11, 22, microsecond=fraction))  # noqa: DTZ001 - as the hub does
    old.orm_user.name = "countess"
    hub.db.commit()
    await hub.restart()
    before = hub.left()
    volume = uid(fake, "PersistentVolumeClaim", f"home-{SLUG}")
    new = hub.user(ADA)
    await new.delete_spawners()  # who never had a server
    assert hub.left() == before
    hub.users.delete(new)
    new = hub.user(ADA)
    await hub.spawn(new)
    claims = {item for item in hub.left() if "Claim/" in item}
    assert len(claims) == 2
    assert new.spawner.identity.username == f"{ADA}/{new.id}"
    await hub.stop(new)
    await new.delete_spawners()
    assert hub.left() == before
    assert uid(fake, "PersistentVolumeClaim", f"home-{SLUG}") == volume


async def test_who_comes_back_after_the_database_was_lost_has_the_volume(
    hub: FakeHub, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    hub.user("first")
    user = hub.user()
    await hub.spawn(user)
    await hub.stop(user)
    volume = uid(fake, "PersistentVolumeClaim", f"home-{SLUG}")
    for known in list(hub.users.values()):
        hub.users.delete(known)
    again, other = hub.user(), hub.user("somebody with the former number")
    assert other.id == 2
    assert again.id == 1
    await hub.spawn(again)
    assert f"home-{SLUG} was made for user 2 of the hub, whom it no longer knows" in caplog.text
    assert uid(fake, "PersistentVolumeClaim", f"home-{SLUG}") == volume
    assert len({item for item in hub.left() if "Claim/" in item}) == 1
    await hub.stop(again)
    await again.delete_spawners()
    assert hub.left() == set()


async def test_the_names_of_a_removed_server_are_kept_with_the_user(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    user = hub.user()
    await hub.spawn(user, "gpu")
    await hub.stop(user, "gpu")
    volume = uid(fake, "PersistentVolumeClaim", f"home-{SLUG}")
    await user._delete_spawner("gpu")
    hub.db.delete(user.orm_spawners["gpu"])
    user.spawners.pop("gpu")
    user.orm_user.name = "countess"
    hub.db.commit()
    await hub.restart()
    user = hub.user("countess")
    await hub.spawn(user)
    assert uid(fake, "PersistentVolumeClaim", f"home-{SLUG}") == volume
    assert len({item for item in hub.left() if "Claim/" in item}) == 1


async def rename(hub: FakeHub, user: User, old: str, new: str) -> None:
    """What the hub's API does."""
    await user.spawners[old].rename(old, new)
    user.orm_spawners[old].name = new
    hub.db.commit()
    user.spawners.pop(old)
    hub.db.expire_all()
    await hub.restart()


@pytest.mark.parametrize("first", ["", "gpu"])
async def test_a_renamed_server_is_the_same_server(
    hub: FakeHub, fake: FakeApiServer, first: str
) -> None:
    user = hub.user()
    await hub.spawn(user, first)
    kept = {item for item in hub.left() if "/kept-" in item}
    await hub.stop(user, first)
    await rename(hub, user, first, "cpu")
    user = hub.user()
    await hub.spawn(user, "cpu")
    before = hub.left()
    (pod,) = hub.pods()
    assert kept < before

    await hub.spawn(user, first)  # a new one of the former name
    assert before < hub.left()
    assert fake.find("Pod", "hub", pod["metadata"]["name"]) == pod
    await hub.stop(user, first)
    if first:
        await user._delete_spawner(first)
        assert hub.left() == before
    await hub.stop(user, "cpu")
    await user._delete_spawner("cpu")
    assert not kept & hub.left()


async def test_another_instance_name_is_another_hub(hub: FakeHub) -> None:
    user = hub.user()
    await hub.spawn(user)
    await hub.stop(user)
    hub.config.LightkubeTemplateSpawner.instance_name = "other"
    await hub.restart()
    assert hub.user().spawner.identity.instance == "other"


@pytest.mark.parametrize("name", ["a@b", "../x", "Ünï çødé", "x" * 255, "a b/c", "---"])
async def test_odd_server_names_of_old_hubs(hub: FakeHub, fake: FakeApiServer, name: str) -> None:
    user = hub.user()
    hub.add_server(user, name)
    spawner = user.spawners[name]
    assert await spawner.poll() == 0
    await hub.start(user, name)
    assert spawner.get_state()[STATE]["identity"]["servername"] == name
    assert rendered(fake, spawner.identity.user_server_slug)["unescaped_servername"] == name
    await spawner.stop()
    assert not hub.pods()


# -- values ---------------------------------------------------------------------------------------


async def _given(spawner: Any) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"image": spawner.user.name}


@pytest.mark.parametrize(("extra", "expected"), [
    ({"image": "x"}, {"image": "x"}), ({"admin": "overridden"}, {"admin": "overridden"}),
    (lambda spawner: {"image": spawner.user.name}, {"image": ADA}), (_given, {"image": ADA}),
    (None, {"instance": INSTANCE}), (lambda spawner: None, {"instance": INSTANCE}),
], ids=["dict", "override", "function", "async", "None", "None made"])  # fmt: skip
async def test_extra_vars(
    hub: FakeHub, fake: FakeApiServer, extra: Any, expected: Mapping[str, Any]
) -> None:
    hub.config.LightkubeTemplateSpawner.extra_vars = extra
    await hub.start(hub.user())
    assert rendered(fake).items() >= expected.items()


async def test_extra_vars_that_are_none(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.config.LightkubeTemplateSpawner.extra_vars = lambda spawner: ["image"]
    with pytest.raises(hub_spawner.SpawnException, match="`extra_vars` gave a list"):
        await hub.start(hub.user())
    assert hub.left() == set()


async def test_extra_vars_that_fail_are_named(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback, which may hold anything, is for the log."""
    table: dict[str, Any] = {}
    hub.config.LightkubeTemplateSpawner.extra_vars = lambda spawner: table["sesame"]
    with pytest.raises(hub_spawner.SpawnException, match="`extra_vars` raised KeyError") as caught:
        await hub.start(hub.user())
    assert "sesame" not in str(caught.value)
    assert "KeyError: 'sesame'" in caplog.text


async def test_extra_vars_may_refuse_a_start(hub: FakeHub) -> None:
    def closed(spawner: Any) -> dict[str, Any]:
        raise web.HTTPError(409, "closed on Sundays")

    hub.config.LightkubeTemplateSpawner.extra_vars = closed
    with pytest.raises(web.HTTPError, match="closed on Sundays"):
        await hub.start(hub.user())


async def test_extra_vars_take_sizes_as_the_traits_do(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.config.LightkubeTemplateSpawner.extra_vars = {"mem_limit": "256M", "mem_guarantee": 7}
    await hub.start(hub.user())
    values = rendered(fake)
    assert (values["mem_limit"], values["mem_guarantee"]) == (256 << 20, 7)
    hub.config.LightkubeTemplateSpawner.extra_vars = {"mem_limit": "2GB"}
    refused = "`mem_limit` of the trait `extra_vars`: 2GB is not a valid"
    with pytest.raises(hub_spawner.SpawnException, match=refused):
        await hub.start(hub.user("bob"))


async def test_an_absent_namespace_comes_with_the_command_that_makes_it(
    hub: FakeHub, fake: FakeApiServer
) -> None:
    absent = {"message": 'namespaces "hub" not found', "code": 404}
    refusal = text(404, json.dumps(absent), "application/json")
    fake.faults.append(replace(refusal, method="PATCH", times=9))
    with pytest.raises(hub_spawner.SpawnException, match="kubectl create namespace hub"):
        await hub.start(hub.user())


def _nested(depth: int) -> dict[str, Any]:
    return {"a": _nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(("options", "words"), [
    (_nested(400), r"user_options\.a\.a\.a.* levels deep"), ({"a": 10**400}, "64 bits"),
    ({"a": float("nan")}, "nan"), ({"a": "\ud800"}, "user_options.a holds"),
    ({"a": ["x" * 1000] * 200}, "128 KiB"),
], ids=["deep", "huge", "nan", "surrogate", "long"])  # fmt: skip
@pytest.mark.parametrize("by", ["the user", "a hook"])
async def test_options_that_no_start_can_use_are_the_users_fault(
    hub: FakeHub, fake: FakeApiServer, options: dict[str, Any], words: str, by: str
) -> None:
    def late(spawner: Any) -> None:
        spawner.user_options = options

    if by == "a hook":
        hub.config.LightkubeTemplateSpawner.pre_spawn_hook = late
    with pytest.raises(hub_spawner.SpawnException, match=words) as caught:
        await hub.spawn(hub.user(), options=options if by == "the user" else {"a": "b"})
    assert (caught.value.status_code, caught.value.reason) == (400, "options")
    assert hub.left() == set()


def _careless(folder: Path, text: str) -> str:
    """A chart with one more object, which holds ``text``."""
    more = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: more}}\ndata:\n  a: {text}\n"
    return str(write_chart(folder / "careless", f"{CHART}---\n{more}"))


async def test_a_setting_that_options_set_is_guarded_even_if_they_were_changed(
    hub: FakeHub,
) -> None:
    def apply(spawner: Any, options: Any) -> None:
        spawner.default_url = options["url"].lower()

    settings = hub.config.LightkubeTemplateSpawner
    settings.template_path = _careless(hub.folder, "{{ .Values.default_url }}")
    settings.apply_user_options = apply
    await hub.spawn(hub.user(), options={"url": "/LAB"})
    with pytest.raises(hub_spawner.SpawnException, match="because of default_url"):
        await hub.spawn(hub.user("bob"), options={"url": "/LAB\n  B: c"})


async def test_what_the_administrator_says_of_values_counts(hub: FakeHub) -> None:
    settings = hub.config.LightkubeTemplateSpawner
    settings.template_path = _careless(hub.folder, "{{ .Values.mail }}")
    settings.extra_vars = lambda spawner: {"mail": spawner.user_options["mail"].lower()}
    settings.apply_user_options = lambda spawner, options: None
    settings.tainted_values = ["mail"]
    settings.trusted_values = {"user_options.size": ["small", "extra large"]}
    await hub.spawn(hub.user(), options={"mail": "A@B", "size": "extra large"})
    with pytest.raises(hub_spawner.SpawnException, match="because of mail") as caught:
        await hub.spawn(hub.user("bob"), options={"mail": "A\n  B: c"})
    assert caught.value.reason == "template"
    with pytest.raises(hub_spawner.SpawnException, match=r"user_options\.size is") as caught:
        await hub.spawn(hub.user("eve"), options={"mail": "A", "size": "all"})
    assert (caught.value.status_code, caught.value.reason) == (400, "options")


async def test_what_environment_makes_of_options_is_not_the_hubs_fault(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {"SIZE": lambda spawner: spawner.user_options["size"]}
    hub.config.LightkubeTemplateSpawner.environment = environment
    with pytest.raises(hub_spawner.SpawnException, match=r"`environment`.* KeyError") as caught:
        await hub.start(hub.user())
    assert (caught.value.status_code, caught.value.reason) == (400, "template")
    assert "KeyError: 'size'" in caplog.text


async def test_the_values(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.config.LightkubeTemplateSpawner.update({
        "mem_limit": "2G", "mem_guarantee": "1G", "cpu_limit": 1.5, "cpu_guarantee": 0.5,
        "cmd": ["start.sh"], "args": ["--debug"], "default_url": "/lab", "notebook_dir": "/home",
    })  # fmt: skip
    hub.config.KubeSpawner.image = "theirs"
    hub.config.KubeSpawner.modify_pod_hook = lambda spawner, pod: pod
    user = hub.user(admin=True)
    user.sync_groups(["staff", "artists"])
    await hub.spawn(user, options={"size": "large"})
    pod = fake.find("Pod", "hub", SLUG)
    secret = fake.find("Secret", "hub", SLUG)
    assert pod is not None
    assert secret is not None
    values = rendered(fake)
    assert values.items() >= {
        "mem_limit": 2 * 1024**3, "mem_guarantee": 1024**3, "cpu_limit": 1.5, "cpu_guarantee": 0.5,
        "cmd": ["start.sh"], "args": ["--debug"], "default_url": "/lab", "notebook_dir": "/home",
        "user_options": {"size": "large"}, "groups": ["artists", "staff"], "admin": True,
        "profile": {}, "kubespawner": {"image": "theirs"}, "instance": INSTANCE,
        "namespace": "hub", "ip": "0.0.0.0", "port": hub.port, "userid": user.id,
        "escaped_username": SLUG, "escaped_servername": "", "escaped_user_server": SLUG,
        "unescaped_username": ADA, "unescaped_servername": "",
        "hub": {"api_url": "http://127.0.0.1:8081/hub/api", "base_url": "/hub/"},
    }.items()  # fmt: skip
    assert "PATH" not in secret["data"]


async def test_port_zero(hub: FakeHub, fake: FakeApiServer) -> None:
    hub.config.LightkubeTemplateSpawner.port = 0
    spawner = hub.prepared(hub.user())
    assert await spawner.start() == "http://127.0.0.1:8888"
    assert rendered(fake)["port"] == 8888


# -- settings of KubeSpawner ----------------------------------------------------------------------


def configured(hub: FakeHub, config: Config) -> LightkubeTemplateSpawner:
    hub.config.merge(config)
    spawner: LightkubeTemplateSpawner = hub.user()._new_spawner("")
    return spawner


async def test_kubespawners_settings_are_defaults(hub: FakeHub) -> None:
    theirs = Config()
    theirs.KubeSpawner.mem_limit = "1G"
    theirs.KubeSpawner.cpu_limit = 2
    theirs.KubeSpawner.http_timeout = 77
    theirs.Spawner.cpu_limit = 1
    spawner = configured(hub, theirs)
    assert spawner.mem_limit == 1024**3
    assert spawner.cpu_limit == 1
    assert spawner.http_timeout == 3
    assert spawner.start_timeout == 8


async def test_kubespawners_settings_written_in_other_ways(hub: FakeHub) -> None:
    theirs = Config()
    theirs.KubeSpawner.environment.update({"A": "1"})
    theirs.KubeSpawner.cpu_guarantee = DeferredConfigString("0.5")
    hub.config.KubeSpawner = theirs.KubeSpawner
    spawner = configured(hub, Config())
    assert spawner.environment == {"A": "1"}
    assert spawner.cpu_guarantee == 0.5


async def test_kubespawners_settings_are_not_shared_between_users(hub: FakeHub) -> None:
    """Hooks and group overrides write to a spawner's dictionaries."""
    theirs = Config()
    theirs.KubeSpawner.environment = {"A": "1"}
    first = configured(hub, theirs)
    first.environment["PASSWORD"] = "of the first"
    assert hub.user("bob")._new_spawner("").environment == {"A": "1"}


# -- the cluster ----------------------------------------------------------------------------------


def test_two_event_loops_have_a_cluster_each(tmp_path: Path) -> None:
    file = str(kubeconfig(tmp_path))

    async def opened() -> tuple[int, bool]:
        made = shared(file, "", INSTANCE, log, timeout=1)
        again = shared(file, "", INSTANCE, log, timeout=1)
        other = shared(file, "", "other", log, timeout=1)
        made.loop = asyncio.get_running_loop()  # type: ignore[attr-defined] # keeps it, and its id
        found = id(made), made is again and made is not other
        kept.append(made)
        for cluster in (made, other):
            await asyncio.sleep(0)
            await cluster.aclose()
        return found

    kept: list[Any] = []
    first, second = asyncio.run(opened()), asyncio.run(opened())
    assert first[0] != second[0]
    assert first[1]
    assert second[1]


async def test_spawners_share_a_cluster(hub: FakeHub) -> None:
    assert hub.user()._new_spawner("")._cluster() is hub.user("bob")._new_spawner("")._cluster()


async def test_a_kubeconfig_that_is_missing(hub: FakeHub) -> None:
    hub.config.LightkubeTemplateSpawner.kubeconfig = str(hub.folder / "missing")
    user = hub.user()
    with pytest.raises(hub_spawner.SpawnException, match="missing"):
        await hub.spawn(user)
    assert await user.spawner.poll() == 0


async def test_start_takes_no_longer_than_it_may(hub: FakeHub) -> None:
    hub.node = False
    hub.config.LightkubeTemplateSpawner.start_timeout = 3
    began = time.monotonic()
    with pytest.raises(hub_spawner.SpawnException, match="not ready after 1 s"):
        await hub.spawn(hub.user())
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(("name", "value"), [
    ("resource_kinds", ["Pod"]), ("extra_vars", 271828), ("instance_name", "271828 !"),
])  # fmt: skip
def test_a_setting_that_cannot_be_used_is_named_and_its_value_is_not(
    name: str, value: object
) -> None:
    """JupyterHub's error page shows what the exception carries under this name."""
    with pytest.raises(TraitError) as refused:
        LightkubeTemplateSpawner(config=Config({"LightkubeTemplateSpawner": {name: value}}))
    shown = vars(refused.value)["jupyterhub_message"]
    assert f"the setting {name!r} of LightkubeTemplateSpawner cannot be used" in shown
    assert "271828" not in shown
