"""A server that dies by itself is gone at once: its objects, not its volume; the user reads why.

The hub polls once an hour here, so only the watch can tell it.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import anyio
import anyio.to_thread
import pytest

from e2e import light
from e2e.cluster.model import TINY_IMAGE
from e2e.conftest import MakeHub, signed_in
from e2e.hub import Hub
from e2e.kube import Kube
from e2e.reliability.faults import Faults
from e2e.user import HubUser, ServerFailedError

pytestmark = pytest.mark.anyio

Obj = dict[str, Any]
# Everything that a server of these tests may have; EndpointSlices follow their Service.
KINDS = "pods,secrets,services,configmaps,deployments,replicasets,persistentvolumeclaims"
NOTICED = 1.0  # seconds, promised on a quiet machine; noted, not asserted
CONFIG = f"""
{light.OPTIONS_ARE_TRAITS}
c.Spawner.poll_interval = 3600
c.JupyterHub.last_activity_interval = 3600
c.JupyterHub.init_spawners_timeout = 1
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


def deployed() -> Obj:
    template = {"metadata": {"labels": LABEL}, "spec": pod_spec("Always")}
    return obj(
        "Deployment", "apps/v1", spec={"selector": {"matchLabels": LABEL}, "template": template}
    )


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
        self._log = 0

    async def start(self, template: str, **traits: object) -> list[str]:
        """Start it and give what the spawn page said."""
        await self.user.start_server(options={"template_path": template, **traits})
        events = await self.user.wait_ready()
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

    async def tells(self, reason: str) -> None:
        """The page that the user comes to says why; nothing starts by itself."""
        page = await self.user.page(f"/user/{self.user.name}/")
        assert page.status_code == 424, page.text
        assert re.search(f"Your server ended: {reason}", page.text), page.text
        assert await self.names() == self.kept


@contextlib.asynccontextmanager
async def server_of(kube: Kube, space: str, hub: Hub, name: str) -> AsyncGenerator[Server]:
    async with signed_in(hub, name) as user:
        yield Server(kube, space, hub, user)


async def until(condition: Callable[[], Awaitable[Any]], timeout: float = 45) -> None:
    deadline = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < deadline, "it did not come true"
        await anyio.sleep(0.1)


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
Story = Callable[[Faults], Awaitable[None]]


async def at_once(faults: Faults, stories: Iterable[Story]) -> None:
    """A few kinds of faults at a time, each with turns of its own: most of them wait."""
    few = anyio.CapacityLimiter(3)

    async def tell(story: Story) -> None:
        async with few:
            await story(Faults(faults.promise, faults.report))

    async with anyio.create_task_group() as group:
        for story in stories:
            group.start_soon(tell, story)


async def test_a_death_is_noticed_told_and_cleaned_up(
    hub: Hub, kube: Kube, space: str, faults: Faults, make_chart: MakeChart
) -> None:
    async def die(name: str, faults: Faults) -> None:
        death = DEATHS[name]
        pod = labelled(obj("Pod", spec=death.spec, connects=not death.service))
        template = make_chart(pod=pod, **({"service": SERVICE} if death.service else {}))
        async with server_of(kube, space, hub, f"d{list(DEATHS).index(name)}") as server:
            told = await server.start(template, **death.traits)
            for _ in faults(name):
                assert not any("last server" in text for text in told[1:])
                await server.buried(faults, await death.kill(server), death.reason)
                await server.tells(death.reason)
                told = await server.start(template, **death.traits)  # without an administrator
                assert re.match(f"Your last server ended: {death.reason}", told[0])
            await server.user.stop_server()

    async def complete(faults: Faults) -> None:
        template = make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))
        async with server_of(kube, space, hub, "completes") as server:
            for _ in faults("it ends by itself, well"):
                await server.start(template)
                began = await server.end("exit 0")
                await server.buried(faults, began, r"Completed \(exit code 0\)")
                page = await server.user.page(f"/user/{server.user.name}/")
                assert "is not running" in page.text
                assert "failed" not in page.text

    await at_once(faults, [*(partial(die, name) for name in DEATHS), complete])


async def test_a_hub_finds_a_server_that_died_meanwhile(
    hub: Hub, kube: Kube, space: str, faults: Faults, make_chart: MakeChart
) -> None:
    template = make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))
    async with server_of(kube, space, hub, "meanwhile") as server:
        for _ in faults("its pod deleted while no hub runs"):
            await server.start(template)
            await hub.kill()
            await server.fault("delete", "pod", server.pod, "-n", space)
            await hub.start()
            await server.until_stopped()
            assert await server.names() == server.kept
            told = await server.start(template)
            assert told[0] == f"Your last server ended: Pod/{space}/{server.pod} was deleted"
            await server.user.stop_server()


async def test_a_start_into_a_burial_waits_for_its_end(
    hub: Hub, kube: Kube, space: str, faults: Faults, make_chart: MakeChart
) -> None:
    template = make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))
    async with server_of(kube, space, hub, "hurried") as server:
        await server.start(template)
        for _ in faults("a start while a dead server is removed"):
            before = kube.get("pod", space, server.pod)
            await server.fault("delete", "pod", server.pod, "-n", space, "--wait=false")
            told = await server.start(template)
            after = kube.get("pod", space, server.pod)
            assert before is not None
            assert after is not None
            assert after["metadata"]["uid"] != before["metadata"]["uid"]
            assert any("Applied" in text for text in told)
            await until_answers(server.user)
            text = hub.log.read_text()[server._log :]
            assert not re.search(r"Traceback|Unhandled", text), text
        await server.user.stop_server()


async def until_answers(user: HubUser) -> None:
    """The server itself answers through the proxy: it knows no page, and is not the hub."""

    async def answers() -> bool:
        page = await user.page(f"/user/{user.name}/")
        return page.status_code == 404 and "x-jupyterhub-version" not in page.headers

    await until(answers)


# -- servers that others replace or move ----------------------------------------------------------


async def test_a_server_that_is_restarted_or_replaced_is_not_dead(
    hub: Hub, kube: Kube, space: str, faults: Faults, make_chart: MakeChart
) -> None:
    pod = make_chart(pod=obj("Pod", spec=pod_spec("OnFailure"), connects=True))
    deployment = make_chart(deployment=deployed(), service=SERVICE)

    async def pod_of(server: Server) -> str:
        """The pod of a Deployment that is not going away."""
        selector = f"hub.jupyter.org/username={server.user.name}"
        found: list[str] = []

        async def there() -> list[str]:
            pods = await anyio.to_thread.run_sync(kube.list, "pods", space, selector)
            metas = [pod["metadata"] for pod in pods]
            found[:] = [meta["name"] for meta in metas if not meta.get("deletionTimestamp")]
            return found

        await until(there)
        return found[0]

    async def restarted(faults: Faults) -> None:
        async with server_of(kube, space, hub, "restarts") as server:
            for _ in faults("out of memory, restarted in place"):
                await server.start(pod)
                before = await server.names()
                began = await server.end(ONCE + USE_UP_MEMORY)
                told = r"was restarted in place: OOMKilled \(exit code 137\), restart 1"
                await server.logged(f"restarts {told}")
                faults.saw("noticed after, in s", time.monotonic() - began)
                assert "" in await server.user.servers()
                assert await server.names() == before
                await server.user.stop_server()
                again = await server.start(pod)
                assert re.match(f"Your last server {told}", again[0])
                await server.user.stop_server()

    async def replaced(faults: Faults) -> None:
        async with server_of(kube, space, hub, "replaced") as server:
            await server.start(deployment)
            for _ in faults("the pod of a Deployment deleted by hand"):
                name = await pod_of(server)
                began = await server.fault("delete", "pod", name, "-n", space, "--wait=false")
                assert await pod_of(server) != name
                await until_answers(server.user)
                faults.saw("answered again after, in s", time.monotonic() - began)
                assert "" in await server.user.servers()
                assert "replaced ended:" not in hub.log.read_text()
            await server.user.stop_server()

    async def crash_loop(faults: Faults) -> None:
        async with server_of(kube, space, hub, "loops") as server:
            for _ in faults("the pod of a Deployment in a crash loop"):
                await server.start(deployment, crash_loop_restarts=1)
                began = await server.end("exit 6", await pod_of(server))
                reason = r"Error \(exit code 6\), again after 1 restarts"
                await server.buried(faults, began, reason)

    async def no_pod(faults: Faults) -> None:
        async with server_of(kube, space, hub, "scaled") as server:
            for _ in faults("a Deployment scaled to nothing"):
                await server.start(deployment, replacement_timeout=2)
                which = f"deployment/{server.pod}"
                began = await server.fault("scale", which, "--replicas=0", "-n", space)
                await server.buried(faults, began, "no pod of the server runs: .*, for 2 s")

    await at_once(faults, [restarted, replaced, crash_loop, no_pod])


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


async def test_the_route_follows_an_address_that_changes(
    hub: Hub,
    kube: Kube,
    space: str,
    faults: Faults,
    make_chart: MakeChart,
    backends: list[str],
) -> None:
    """Any kind may be what the hub connects to: here one whose address a test can change."""
    where = obj("ConfigMap", connects=True, data={"address": f"http://{backends[0]}:8888"})
    where["metadata"]["annotations"] = {
        **CONNECTION,
        "kubetemplatespawner/connection-address": "{.data.address}",
    }
    template = make_chart(where=where)
    async with server_of(kube, space, hub, "moves") as server:
        await server.start(template)

        async def says(word: str) -> None:
            async def said() -> bool:
                return (await server.user.page("/user/moves/")).text.strip() == word

            await until(said)

        await says("one")
        to = 0
        for turn in faults("the address of the connection object changes"):
            to = turn % 2
            patch = json.dumps({"data": {"address": f"http://{backends[to]}:8888"}})
            began = await server.fault("patch", "configmap", server.pod, "-n", space, "-p", patch)
            await says(["one", "two"][to])
            faults.saw("the proxy followed after, in s", time.monotonic() - began)
            assert "" in await server.user.servers()
        await hub.restart()  # which compares its database with what the cluster says
        await says(["one", "two"][to])
        assert "had invalid url" not in hub.log.read_text()[server._log :]
        await server.user.stop_server()
        assert await server.names() == server.kept


# -- lost nodes -----------------------------------------------------------------------------------


class LostNode:
    """A node without a kubelet: lost ten seconds after its last heartbeat, in this cluster.

    What a kubelet would write of its pod is written here.
    """

    def __init__(self, kube: Kube, space: str, address: str, name: str) -> None:
        self.kube, self.space, self.address = kube, space, address
        self.name = name

    async def __aenter__(self) -> Self:
        taint = {"key": "e2e/lost", "effect": "NoSchedule"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}}
        self.kube.create({**node, "spec": {"taints": [taint]}})
        self.beat()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kube("delete", "node", self.name)

    def beat(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        patch = {"status": {"conditions": [{**ready, "lastHeartbeatTime": now}]}}
        status = ("--subresource=status", "-p", json.dumps(patch))
        self.kube("patch", "node", self.name, *status)

    async def run(self, pod: str) -> None:
        """Write that the pod runs, as soon as it is there."""

        async def there() -> Any:
            self.beat()
            return self.kube.get("pod", self.space, pod)

        await until(there)
        container = {"name": "server", "ready": True, "started": True, "restartCount": 0}
        container |= {"image": "x", "imageID": "", "state": {"running": {}}}
        conditions = [{"type": name, "status": "True"} for name in ("Ready", "ContainersReady")]
        status = {"phase": "Running", "podIP": self.address, "conditions": conditions}
        patch = json.dumps({"status": {**status, "containerStatuses": [container]}})
        place = ("-n", self.space, "--subresource=status", "-p", patch)
        self.kube("patch", "pod", pod, *place)


FOR_EVER: Obj = {"tolerations": [{"operator": "Exists"}]}
CASES = {
    # Nobody but us would ever give it up.
    "a node lost, its pod tolerates that": (FOR_EVER, "node .* does not answer, for 2 s"),
    # Kubernetes evicts it, after five seconds in this cluster.
    "a node lost, Kubernetes evicts": (Obj(), "node .* does not answer"),
}


async def test_a_server_on_a_lost_node(
    hub: Hub, kube: Kube, space: str, faults: Faults, make_chart: MakeChart, backends: list[str]
) -> None:
    elsewhere = make_chart(pod=obj("Pod", spec=pod_spec(), connects=True))

    async def lose(name: str, faults: Faults) -> None:
        spec, reason = CASES[name]
        user = f"lost{list(CASES).index(name)}"
        async with server_of(kube, space, hub, user) as server:
            for _ in faults(name):
                async with LostNode(kube, space, backends[0], f"{space}-{user}") as node:
                    lost = pod_spec(nodeName=node.name, **spec)
                    chart = make_chart(lost=obj("Pod", spec=lost, connects=True))
                    patience = 2 if spec else 300
                    asked = {"template_path": chart, "node_lost_timeout": patience}
                    await server.user.start_server(options=asked)
                    await node.run(server.pod)
                    await server.user.wait_ready()
                    began = await server.fault("get", "node", node.name)  # its last heartbeat was
                    await server.logged(f"{user}: node {node.name} does not answer")
                    faults.saw("Kubernetes says so after, in s", time.monotonic() - began)
                    assert "" in await server.user.servers()
                    await server.logged(f"{user} ended: {reason}")
                    faults.saw("given up after, in s", time.monotonic() - began)
                    await server.until_stopped()
                    held = f"Pod/{space}/{server.pod} is still on node {node.name}, which does not"
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

    await at_once(faults, [partial(lose, name) for name in CASES])
