"""A server that dies by itself is gone at once: its objects, not its volume; the user reads why.

The hub polls once an hour here, so only the watch can tell it.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import anyio
import anyio.to_thread
import pytest

from e2e.cluster.model import TINY_IMAGE
from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub, until
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser, ServerFailedError

pytestmark = pytest.mark.timeout(300 * REPEAT)

Obj = dict[str, Any]
# Everything that a server of these tests may have; EndpointSlices follow their Service.
KINDS = "pods,secrets,services,configmaps,deployments,statefulsets,persistentvolumeclaims"
CONFIG = f"""
{light.OPTIONS_ARE_TRAITS}
c.Spawner.poll_interval = 3600
c.JupyterHub.last_activity_interval = 3600
"""
# Its shell runs what the test writes to /tmp/end, as its own last act; /tmp outlives a restart.
SERVER = """
trap 'exit 0' TERM
httpd -p 8888
while [ ! -e /tmp/end ]; do sleep 0.1; done
exec sh /tmp/end
"""
CONNECTION = {"kubetemplatespawner/connection": "true"}
USE_UP_MEMORY = "tail /dev/zero"
ONCE = "rm /tmp/end; "


def pod_spec(restart: str = "Never", *, sidecar: bool = False, **spec: Any) -> Obj:
    server = {
        "name": "server",
        "image": TINY_IMAGE,
        "command": ["/bin/sh", "-c", SERVER],
        "resources": {"limits": {"memory": "32Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    wait = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    other = {"name": "sidecar", "image": TINY_IMAGE, "command": ["/bin/sh", "-c", wait]}
    return {
        "restartPolicy": restart,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [server, *([other] if sidecar else [])],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        **spec,
    }


def obj(kind: str, api: str = "v1", *, connects: bool = False, **fields: Any) -> Obj:
    metadata = {"name": light.NAME, "annotations": CONNECTION if connects else {}}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


LABEL = {"app": light.NAME}
SERVICE = obj("Service", connects=True, spec={"selector": LABEL, "ports": [{"port": 8888}]})


def controller(kind: str) -> Obj:
    template = {"metadata": {"labels": LABEL}, "spec": pod_spec("Always")}
    spec = {"selector": {"matchLabels": LABEL}, "template": template}
    return obj(kind, "apps/v1", spec=spec)


def labelled(pod: Obj) -> Obj:
    return {**pod, "metadata": {**pod["metadata"], "labels": LABEL}}


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub) -> AsyncGenerator[Hub]:
    async with make_hub(CONFIG, start_timeout=60, http_timeout=10) as hub:
        yield hub


@pytest.fixture
def make_chart(tmp_path: Path) -> Callable[..., str]:
    """A secret that goes with the server, a volume that stays, and what is given."""

    def make(**objects: Obj) -> str:
        folder = tmp_path / uuid.uuid4().hex
        texts = {name: json.dumps(item) for name, item in objects.items()}
        return light.chart(folder, claim=light.claim(), secret=light.secret(), **texts)

    return make


class Server:
    """One user's server, as the administrator, the user and the hub see it."""

    def __init__(self, kube: Kube, space: str, hub: Hub, user: HubUser) -> None:
        self.kube, self.space, self.hub, self.user = kube, space, hub, user
        self.pod = f"jupyter-{user.name}"
        self.here = ("-n", space)
        self._log = 0

    async def start(self, template: str, **traits: object) -> list[str]:
        """Start it and give what the spawn page said."""
        events = await self.user.run_server(options={"template_path": template, **traits})
        return [event["message"] for event in events[1:]]  # the first is the hub's own

    async def names(self) -> list[str]:
        mine = f"hub.jupyter.org/username={self.user.name}"
        found = await anyio.to_thread.run_sync(self.kube.list, KINDS, self.space, mine)
        return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in found)

    @property
    def kept(self) -> list[str]:
        return [f"PersistentVolumeClaim/claim-{self.user.name}"]

    async def fault(self, *words: str, given: object = None) -> float:
        """Do this to the cluster; when it was asked for."""
        self._log = len(self.hub.log.read_text())
        began = time.monotonic()
        await anyio.to_thread.run_sync(partial(self.kube, *words, given=given))
        return began

    async def end(self, script: str, pod: str = "") -> float:
        """Let the server run this as its last act."""
        write = f"echo '{script}' > /tmp/new; mv /tmp/new /tmp/end"
        pod = pod or self.pod
        return await self.fault(
            "exec", pod, "-n", self.space, "-c", "server", "--", "sh", "-c", write
        )

    async def patch_status(self, kind: str, name: str, **status: Any) -> float:
        patch = json.dumps({"status": status})
        place = ("-n", self.space)
        return await self.fault("patch", kind, name, *place, "--subresource=status", "-p", patch)

    async def until_stopped(self, timeout: float = 45) -> None:
        async def stopped() -> bool:
            server = (await self.hub.users())[self.user.name][""]
            return bool(server["stopped"]) and server["pending"] is None

        await until(stopped, timeout)

    async def logged(self, pattern: str, timeout: float = 45) -> re.Match[str]:
        return await self.hub.wait_for_log(pattern, timeout, self._log)

    async def buried(self, faults: Faults, began: float, reason: str) -> None:
        """The hub noticed it by the watch, cleaned up, and tells the user."""
        await self.logged(rf"{self.user.name} ended: {reason}")
        faults.saw("noticed after, in s", time.monotonic() - began)
        await self.until_stopped()
        faults.saw("stopped after, in s", time.monotonic() - began)
        assert await self.names() == self.kept

    async def running_pod(self) -> Obj:
        """The metadata of its pod that is not going away, once there is one."""
        mine = f"hub.jupyter.org/username={self.user.name}"
        found: list[Obj] = []

        async def there() -> list[Obj]:
            pods = await anyio.to_thread.run_sync(self.kube.list, "pods", self.space, mine)
            metas = [pod["metadata"] for pod in pods]
            found[:] = [meta for meta in metas if not meta.get("deletionTimestamp")]
            return found

        await until(there)
        return found[0]

    async def until_answers(self) -> None:
        """The server itself answers through the proxy: it knows no page, and is not the hub."""

        async def answers() -> bool:
            with anyio.move_on_after(2):  # a connection to the pod that went may hang for long
                page = await self.user.page(f"/user/{self.user.name}/")
                return page.status_code == 404 and "x-jupyterhub-version" not in page.headers
            return False

        await until(answers)

    async def tells(self, reason: str) -> None:
        """The page that the user comes to says why; nothing starts by itself."""
        page = await self.user.page(f"/user/{self.user.name}/")
        assert page.status_code == 424, page.text
        assert re.search(f"Your server ended: {reason}", page.text), page.text
        assert await self.names() == self.kept


class Death(NamedTuple):
    """What kills a server, what the hub makes of it, and the pod it happens to."""

    kill: Callable[[Server], Awaitable[float]]
    reason: str
    spec: Obj
    traits: Mapping[str, Any] = MappingProxyType({})
    service: bool = False


async def evict(server: Server) -> float:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": server.pod}}
    path = f"/api/v1/namespaces/{server.space}/pods/{server.pod}/eviction"
    return await server.fault("create", "--raw", path, "-f", "-", given=eviction)


def delete(kind: str) -> Callable[[Server], Awaitable[float]]:
    return lambda server: server.fault(
        "delete", kind, server.pod, "-n", server.space, "--wait=false"
    )


MEMORY = "The node was low on resource: memory."
DEATHS = {
    "its pod deleted by hand": Death(delete("pod"), "Pod/.* was deleted", pod_spec()),
    "its pod evicted": Death(evict, "Evicted: Eviction API: evicting", pod_spec()),
    # The kubelet here cannot evict (it sees no file system): its words, written by hand.
    "the kubelet's words of an eviction": Death(
        lambda s: s.patch_status("pod", s.pod, phase="Failed", reason="Evicted", message=MEMORY),
        f"Evicted: {MEMORY}",
        pod_spec(),
    ),
    "out of memory, not restarted": Death(
        lambda s: s.end(USE_UP_MEMORY), r"OOMKilled \(exit code 137\)", pod_spec()
    ),
    "it ends with an error": Death(lambda s: s.end("exit 3"), r"Error \(exit code 3\)", pod_spec()),
    "it ends while a sidecar lives": Death(
        lambda s: s.end("exit 4"), r"Error \(exit code 4\)", pod_spec(sidecar=True)
    ),
    "a crash loop": Death(
        lambda s: s.end("exit 5"),
        r"Error \(exit code 5\), again after 1 restarts \(CrashLoopBackOff\)",
        pod_spec("Always"),
        {"crash_loop_restarts": 1},
    ),
    "its Service deleted by hand": Death(
        delete("service"), "Service/.* was deleted", pod_spec(), service=True
    ),
}


MakeChart = Callable[..., str]


@pytest.fixture
def backends(kube: Kube, space: str) -> Iterator[list[str]]:
    """Addresses of two web servers that tell who they are."""
    for name in ("one", "two"):
        page = f"mkdir -p /tmp/www/user/moves; echo {name} > /tmp/www/user/moves/index.html"
        command = f"{page}; exec httpd -f -p 8888 -h /tmp/www"
        spec = {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "server", "image": TINY_IMAGE, "command": ["/bin/sh", "-c", command]}
            ],
        }
        metadata = {"name": name, "namespace": space}
        kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    kube("wait", "pod", "one", "two", "-n", space, "--for=condition=Ready", "--timeout=60s")
    pods = [kube.get("pod", space, name) for name in ("one", "two")]
    yield [pod["status"]["podIP"] for pod in pods if pod]
    kube("delete", "pod", "one", "two", "-n", space, "--wait=false")


class Scene(NamedTuple):
    """Where the stories play."""

    hub: Hub
    kube: Kube
    space: str
    make_chart: MakeChart
    backends: list[str]

    @contextlib.asynccontextmanager
    async def server_of(self, name: str) -> AsyncGenerator[Server]:
        async with signed_in(self.hub, name) as user:
            yield Server(self.kube, self.space, self.hub, user)


@pytest.fixture
def scene(hub: Hub, kube: Kube, space: str, make_chart: MakeChart, backends: list[str]) -> Scene:
    return Scene(hub, kube, space, make_chart, backends)


Story = Callable[[Scene, Faults], Awaitable[None]]


async def test_who_dies_is_buried_and_who_lives_is_not(scene: Scene, faults: Faults) -> None:
    """A few kinds of faults at a time, each with turns of its own: most of them wait."""
    few = anyio.CapacityLimiter(4)
    loss = [partial(lose, name) for name in LOSSES]
    deaths = [partial(die, name) for name in DEATHS]
    kept = [partial(replace, kind) for kind in ("Deployment", "StatefulSet")]
    stories: list[Story] = [*loss, *deaths, *kept]
    stories += [complete, restart, loop, have_no_pod, hurry]

    async def tell(story: Story) -> None:
        async with few:
            await story(scene, Faults(faults.promise, faults.report))

    async with anyio.create_task_group() as group:
        for story in stories:
            group.start_soon(tell, story)


async def die(name: str, scene: Scene, faults: Faults) -> None:
    death = DEATHS[name]
    pod = labelled(obj("Pod", spec=death.spec, connects=not death.service))
    template = scene.make_chart(pod=pod, **({"service": SERVICE} if death.service else {}))
    async with scene.server_of(f"d{list(DEATHS).index(name)}") as server:
        told = await server.start(template, **death.traits)
        for _ in faults(name):
            assert not any("last server" in text for text in told[1:])
            await server.buried(faults, await death.kill(server), death.reason)
            await server.tells(death.reason)
            told = await server.start(template, **death.traits)  # without an administrator
            assert re.match(f"Your last server ended: {death.reason}", told[0])
        await server.user.stop_server()
        await scene.hub.delete_user(server.user.name)
        assert await server.names() == []


async def complete(scene: Scene, faults: Faults) -> None:
    template = scene.make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))
    async with scene.server_of("completes") as server:
        for _ in faults("it ends by itself, well"):
            await server.start(template)
            began = await server.end("exit 0")
            await server.buried(faults, began, r"Completed \(exit code 0\)")
            page = await server.user.page(f"/user/{server.user.name}/")
            assert "is not running" in page.text
            assert "failed" not in page.text


async def hurry(scene: Scene, faults: Faults) -> None:
    """A start that comes while a dead server is removed waits for the end of it."""
    template = scene.make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))
    async with scene.server_of("hurried") as server:
        await server.start(template)
        for _ in faults("a start while a dead server is removed"):
            before = await server.running_pod()
            began = await server.fault("delete", "pod", server.pod, *server.here, "--wait=false")
            told = await server.start(template)
            faults.saw("the next one was ready after, in s", time.monotonic() - began)
            assert any("Applied" in text for text in told)
            assert (await server.running_pod())["uid"] != before["uid"]
            await server.until_answers()
        await server.user.stop_server()


# -- servers that others restart or replace -------------------------------------------------------


async def restart(scene: Scene, faults: Faults) -> None:
    template = scene.make_chart(pod=obj("Pod", spec=pod_spec("OnFailure"), connects=True))
    async with scene.server_of("restarts") as server:
        for _ in faults("out of memory, restarted in place"):
            await server.start(template)
            before = await server.names()
            began = await server.end(ONCE + USE_UP_MEMORY)
            told = r"was restarted in place: OOMKilled \(exit code 137\), restart 1"
            await server.logged(f"restarts {told}")
            faults.saw("noticed after, in s", time.monotonic() - began)
            assert "" in await server.user.servers()
            assert await server.names() == before
            await server.user.stop_server()
            again = await server.start(template)
            assert re.match(f"Your last server {told}", again[0])
            await server.user.stop_server()


async def replace(kind: str, scene: Scene, faults: Faults) -> None:
    template = scene.make_chart(controller=controller(kind), service=SERVICE)
    async with scene.server_of(f"by-{kind.lower()}") as server:
        await server.start(template)
        for _ in faults(f"the pod of a {kind} deleted by hand"):
            old = await server.running_pod()
            which = ("delete", "pod", old["name"], *server.here, "--wait=false")
            began = await server.fault(*which)
            assert (await server.running_pod())["uid"] != old["uid"]
            await server.until_answers()
            faults.saw("answered again after, in s", time.monotonic() - began)
            assert "" in await server.user.servers()
            assert f"{server.user.name} ended:" not in scene.hub.log.read_text()
        await server.user.stop_server()


async def loop(scene: Scene, faults: Faults) -> None:
    template = scene.make_chart(controller=controller("Deployment"), service=SERVICE)
    async with scene.server_of("loops") as server:
        for _ in faults("the pod of a Deployment in a crash loop"):
            await server.start(template, crash_loop_restarts=1)
            began = await server.end("exit 6", (await server.running_pod())["name"])
            await server.buried(faults, began, r"Error \(exit code 6\), again after 1 restarts")


async def have_no_pod(scene: Scene, faults: Faults) -> None:
    template = scene.make_chart(controller=controller("Deployment"), service=SERVICE)
    async with scene.server_of("scaled") as server:
        for _ in faults("a Deployment scaled to nothing"):
            await server.start(template, replacement_timeout=2)
            which = f"deployment/{server.pod}"
            began = await server.fault("scale", which, "--replicas=0", *server.here)
            await server.buried(faults, began, "no pod of the server runs: .*, for 2 s")


# -- lost nodes -----------------------------------------------------------------------------------


class LostNode:
    """A node without a kubelet: lost ten seconds after its last heartbeat, in this cluster.

    What a kubelet would write of its pod is written here.
    """

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name

    async def __aenter__(self) -> Self:
        taint = {"key": "e2e/lost", "effect": "NoSchedule"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}}
        self.scene.kube.create({**node, "spec": {"taints": [taint]}})
        return self

    async def __aexit__(self, *_: object) -> None:
        self.scene.kube("delete", "node", self.name)

    def beat(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        patch = {"status": {"conditions": [{**ready, "lastHeartbeatTime": now}]}}
        status = ("--subresource=status", "-p", json.dumps(patch))
        self.scene.kube("patch", "node", self.name, *status)

    async def run(self, pod: str) -> None:
        """Write that the pod runs, as soon as it is there."""
        kube, space = self.scene.kube, self.scene.space

        async def there() -> Any:
            self.beat()
            return kube.get("pod", space, pod)

        await until(there)
        container = {"name": "server", "ready": True, "started": True, "restartCount": 0}
        container |= {"image": "x", "imageID": "", "state": {"running": {}}}
        conditions = [{"type": name, "status": "True"} for name in ("Ready", "ContainersReady")]
        status = {"phase": "Running", "podIP": self.scene.backends[0], "conditions": conditions}
        patch = json.dumps({"status": {**status, "containerStatuses": [container]}})
        kube("patch", "pod", pod, "-n", space, "--subresource=status", "-p", patch)


FOR_EVER: Obj = {"tolerations": [{"operator": "Exists"}]}
LOSSES = {
    # Nobody but us would ever give it up.
    "a node lost, its pod tolerates that": (FOR_EVER, "node .* does not answer, for 2 s"),
    # Kubernetes evicts it, after five seconds in this cluster.
    "a node lost, Kubernetes evicts": (Obj(), "node .* does not answer"),
}


async def lose(name: str, scene: Scene, faults: Faults) -> None:
    spec, reason = LOSSES[name]
    user = f"lost{list(LOSSES).index(name)}"
    elsewhere = scene.make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))
    async with scene.server_of(user) as server:
        for _ in faults(name):
            async with LostNode(scene, f"{scene.space}-{user}") as node:
                lost = pod_spec(nodeName=node.name, **spec)
                chart = scene.make_chart(lost=obj("Pod", spec=lost, connects=True))
                asked = {"template_path": chart, "node_lost_timeout": 2 if spec else 300}
                await server.user.start_server(options=asked)
                await node.run(server.pod)
                await server.user.wait_ready()
                began = await server.fault("get", "node", node.name)  # no heartbeat from now on
                await server.logged(f"{user}: node {node.name} does not answer")
                faults.saw("Kubernetes says so after, in s", time.monotonic() - began)
                assert "" in await server.user.servers()
                await server.logged(f"{user} ended: {reason}")
                faults.saw("given up after, in s", time.monotonic() - began)
                await server.until_stopped()
                held = f"Pod/{scene.space}/{server.pod} is still on node {node.name}, which does"
                assert await server.names() == [*server.kept, f"Pod/{server.pod}"]
                await server.logged(held)
                page = await server.user.page(f"/user/{user}/")
                assert re.search(f"Your server ended: {reason}", page.text), page.text
                # Its volume may still be in use: the next start says so at once, and why.
                asking = time.monotonic()
                with pytest.raises(ServerFailedError, match=held):
                    await server.start(elsewhere)
                faults.saw("the next start refused after, in s", time.monotonic() - asking)
                told = await server.start(elsewhere, force_delete_lost_pods=True)
                assert any("Applied" in text for text in told)
                await server.user.stop_server()
                assert await server.names() == server.kept


# -- with the hub itself --------------------------------------------------------------------------


async def test_a_hub_finds_a_server_that_died_meanwhile(scene: Scene, faults: Faults) -> None:
    template = scene.make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))
    async with scene.server_of("meanwhile") as server:
        for _ in faults("its pod deleted while no hub runs"):
            await server.start(template)
            await scene.hub.kill()
            await server.fault("delete", "pod", server.pod, *server.here)
            await scene.hub.start()
            await server.until_stopped()
            assert await server.names() == server.kept
            told = await server.start(template)
            assert told[0] == f"Your last server ended: Pod/{scene.space}/{server.pod} was deleted"
            await server.user.stop_server()


async def test_the_route_follows_an_address_that_changes(scene: Scene, faults: Faults) -> None:
    """Any kind may be what the hub connects to: here one whose address a test can change."""

    def address(number: int) -> Obj:
        return {"data": {"address": f"http://{scene.backends[number]}:8888"}}

    where = obj("ConfigMap", connects=True, **address(0))
    path = {"kubetemplatespawner/connection-address": "{.data.address}"}
    where["metadata"]["annotations"] = {**CONNECTION, **path}
    async with scene.server_of("moves") as server:
        await server.start(scene.make_chart(where=where))

        async def says(word: str) -> None:
            async def said() -> bool:
                return (await server.user.page("/user/moves/")).text.strip() == word

            await until(said)

        await says("one")
        to = 0
        for turn in faults("the address of the connection object changes"):
            to = turn % 2
            patch = json.dumps(address(to))
            began = await server.fault("patch", "configmap", server.pod, *server.here, "-p", patch)
            await says(["one", "two"][to])
            faults.saw("the proxy followed after, in s", time.monotonic() - began)
            assert "" in await server.user.servers()
        await scene.hub.restart()  # which compares its database with what the cluster says
        await says(["one", "two"][to])
        assert "had invalid url" not in scene.hub.log.read_text()[server._log :]
        await server.user.stop_server()
        assert await server.names() == server.kept
