"""Servers of every shape, on a real cluster through a real hub: start, use, stop, removal."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from e2e.cluster import Cluster
from e2e.conftest import CHARTS, Kube, MakeHub, signed_in
from e2e.harness.hub import Hub, user_path
from e2e.harness.user import HubUser

# The chart and its values come with the request for a server, so one hub serves every test.
BY_REQUEST = """
from lightkube_template_spawner import LightkubeTemplateSpawner

class AsRequested(LightkubeTemplateSpawner):
    async def stop(self, now=False):
        await super().stop(now=now or self.user_options.get("now", False))

def choose(spawner):
    spawner.template_path = spawner.user_options["chart"]

c.JupyterHub.spawner_class = AsRequested
c.Spawner.pre_spawn_hook = choose
c.LightkubeTemplateSpawner.extra_vars = lambda spawner: spawner.user_options["values"]
"""
GATE = "e2e/gate"


@pytest.fixture(scope="module")
def elsewhere(kube: Kube, space: str) -> Iterator[str]:
    """A second namespace."""
    name = f"{space}-elsewhere"
    kube("create", "namespace", name)
    yield name
    kube("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def workbenches(kube: Kube, space: str) -> Iterator[str]:
    """The API group of a custom resource whose operator is played by the tests."""
    group = f"{space}.example.org"
    definition = f"workbenches.{group}"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": anything},
    }
    kube.create(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": definition},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": "Workbench", "plural": "workbenches", "singular": "workbench"},
                "versions": [version],
            },
        }
    )
    kube("wait", "--for=condition=Established", f"crd/{definition}", "--timeout=60s")
    yield group
    kube("delete", "crd", definition, "--wait=false")


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub, elsewhere: str, workbenches: str) -> AsyncGenerator[Hub]:
    # The definition of the custom resource is here from the beginning: objects of a kind that the
    # cluster's garbage collector has not met yet (it looks every 30 s) are slow to be deleted.
    async with make_hub(BY_REQUEST, extra_namespaces=[elsewhere]) as hub:
        yield hub


def ask(cluster: Cluster, chart: str, **values: object) -> dict[str, Any]:
    """The options of a request for a server of a light image."""
    return {"chart": str(CHARTS / chart), "values": {"image": cluster.tiny_image, **values}}


def theirs(name: str) -> str:
    """Selects all that a user of a simple name owns."""
    return f"hub.jupyter.org/username={name},lightkube-template-spawner/owner"


async def record(hub: Hub, name: str, server: str = "") -> dict[str, Any]:
    """What the hub's database knows of a server."""
    user = await hub.api("GET", user_path(name))
    state: dict[str, Any] = user["servers"][server]["state"]["lightkube_template_spawner"]
    return state


async def until_told(user: HubUser, text: str, server: str = "") -> None:
    """Wait for a message of the running start; the start must not end before."""
    with anyio.fail_after(60):
        async with aclosing(user.progress(server)) as progress:
            async for event in progress:
                assert not event.get("ready")
                assert not event.get("failed"), event["message"]
                if text in event["message"]:
                    return
    raise AssertionError(f"nobody said {text!r}")


async def answers_itself(user: HubUser, server: str = "") -> bool:
    """Whether the server, not the hub, answers at its public address (it has no page there)."""
    answer = await user.page(await user.server_url(server))
    return answer.status_code == 404 and "<H1>404 Not Found</H1>" in answer.text


async def test_a_service_is_awaited_and_every_reader_is_told(
    hub: Hub, kube: Kube, cluster: Cluster, space: str
) -> None:
    heard: dict[str, list[dict[str, Any]]] = {}

    async def read(name: str) -> None:
        heard[name] = await user.wait_ready()

    async with signed_in(hub, "sara") as user:
        await user.start_server(options=ask(cluster, "service", gate=GATE))
        async with anyio.create_task_group() as readers:
            readers.start_soon(read, "first")
            readers.start_soon(read, "second")
            await until_told(user, "no endpoint is ready yet")
            kube("wait", "--for=condition=ContainersReady", "pod/sara", "-n", space)
            server = (await user.servers())[""]
            assert (server["ready"], server["pending"]) == (False, "spawn")
            readers.start_soon(read, "late")
            await until_told(user, "no endpoint is ready yet")
            condition = {"status": {"conditions": [{"type": GATE, "status": "True"}]}}
            patch = ["patch", "pod/sara", "-n", space, "--subresource=status"]
            kube(*patch, "-p", json.dumps(condition))
        told = [event["message"] for event in heard["first"]]
        assert [event["message"] for event in heard["second"]] == told
        assert [event["message"] for event in heard["late"]] == told
        assert any("[Normal] Pod Started: " in message for message in told)
        service = kube.get("service", space, "sara")
        assert service is not None
        assert (await record(hub, "sara"))["url"] == f"http://{service['spec']['clusterIP']}:80"
        assert await answers_itself(user)
        await user.stop_server()
    assert kube.owned(space, theirs("sara")) == []


@pytest.mark.parametrize("controller", ["Deployment", "StatefulSet"])
async def test_a_controller_makes_the_pod(
    hub: Hub, kube: Kube, cluster: Cluster, space: str, controller: str
) -> None:
    name = controller.lower()
    claims = ["PersistentVolumeClaim/work-statefulset-0"] if controller == "StatefulSet" else []
    async with signed_in(hub, name) as user:
        await user.run_server(options=ask(cluster, "workload", controller=controller))
        assert await answers_itself(user)
        (pod,) = kube.list("pods", space, theirs(name))
        assert pod["metadata"]["ownerReferences"][0]["controller"] is True
        await user.stop_server()
    assert kube.owned(space, theirs(name)) == claims
    await hub.delete_user(name)
    assert kube.owned(space, theirs(name)) == []


async def test_the_packaged_chart_keeps_the_home(
    hub: Hub, kube: Kube, cluster: Cluster, space: str
) -> None:
    def options(connection: str) -> dict[str, Any]:
        return {"chart": "", "values": {"image": cluster.image, "connection": connection}}

    async with signed_in(hub, "paul") as user:
        await user.run_server(options=options("pod"))
        (pod,) = kube.list("pods", space, theirs("paul"))
        assert (await record(hub, "paul"))["url"] == f"http://{pod['status']['podIP']}:8888"
        await user.run_code("open('kept', 'w').write('from before')")
        await user.stop_server()
        (left,) = kube.owned(space, theirs("paul"))
        assert left.startswith("PersistentVolumeClaim/")

        await user.run_server(options=options("service"))
        (service,) = kube.list("services", space, theirs("paul"))
        assert (await record(hub, "paul"))["url"] == f"http://{service['spec']['clusterIP']}:8888"
        assert await user.run_code("print(open('kept').read())") == "from before"
    await hub.delete_user("paul")
    assert kube.owned(space, theirs("paul")) == []


async def test_two_servers_share_a_volume_that_outlives_them(
    hub: Hub, kube: Kube, cluster: Cluster, space: str
) -> None:
    storage = cluster.storage_classes.wait_for_first_consumer
    options = ask(cluster, "volumes", image=cluster.image, jupyter=True, storageClass=storage)

    def volumes() -> list[str]:
        owned = kube.owned(space, theirs("vera"))
        assert all(name.startswith("PersistentVolumeClaim/") for name in owned)
        return [name.removeprefix("PersistentVolumeClaim/") for name in owned]

    async with signed_in(hub, "vera") as user:
        await user.start_server("one", options)
        await user.start_server("two", options)
        await user.wait_ready("one")
        await user.wait_ready("two")
        await user.run_code("open('shared', 'w').write('from one')", "one")
        assert await user.run_code("print(open('shared').read())", "two") == "from one"
        await user.run_code("open('scratch/own', 'w').write('')", "one")
        assert await user.run_code("import os; os.listdir('scratch')", "two") == "[]"
        claims = kube.list("pvc", space, theirs("vera"))
        assert {claim["spec"]["storageClassName"] for claim in claims} == {storage}
        await user.stop_server("one")
        await user.stop_server("two")
        assert volumes() == ["home-vera", "scratch-vera--one", "scratch-vera--two"]
        await user.delete_server("two")
        assert volumes() == ["home-vera", "scratch-vera--one"]
    await hub.delete_user("vera")
    assert volumes() == []


async def test_stop_now_does_not_wait_for_a_deaf_server(
    hub: Hub, kube: Kube, cluster: Cluster, space: str
) -> None:
    """Its pod ignores SIGTERM and has ten minutes; only a stop "now" ends within the minute."""
    async with signed_in(hub, "nora") as user:
        await user.run_server(options=ask(cluster, "service", deaf=True) | {"now": True})
        await user.stop_server()
    assert kube.owned(space, theirs("nora")) == []


async def test_a_custom_resource_leads_to_the_server(
    hub: Hub, kube: Kube, cluster: Cluster, space: str, elsewhere: str, workbenches: str
) -> None:
    def options(keepsakes: bool) -> dict[str, Any]:
        values = {"group": workbenches, "elsewhere": elsewhere, "keepsakes": keepsakes}
        return ask(cluster, "everything", **values)

    async def operate(name: str, server: str = "") -> str:
        """What the operator of the custom resource does: publish where the server is."""
        await until_told(user, "it has no address yet", server)
        service = kube.get("service", space, name)
        assert service is not None
        url = f"http://{service['spec']['clusterIP']}:8888"
        patch = ["patch", f"workbenches.{workbenches}/{name}", "-n", space, "--subresource=status"]
        kube(*patch, "--type=merge", "-p", json.dumps({"status": {"url": url}}))
        return url

    kept = ["ResourceQuota/kept-cleo", "Workbench/kept-cleo"]
    async with signed_in(hub, "cleo") as user:
        await user.start_server("old", options(keepsakes=True))
        url = await operate("cleo--old", "old")
        await user.wait_ready("old")
        assert (await record(hub, "cleo", "old"))["url"] == url
        assert await answers_itself(user, "old")
        kinds = ["ConfigMap", "NetworkPolicy", "Pod", "Secret", "Service", "ServiceAccount"]
        running = [f"{kind}/cleo--old" for kind in [*kinds, "Workbench"]]
        assert kube.owned(space) == sorted([*running, *kept])
        there = ["ConfigMap/kept-cleo", "ConfigMap/running-cleo--old"]
        assert kube.owned(elsewhere) == there
        assert applied(kube, elsewhere, "configmap") == there
        kinds = [*kinds, "ResourceQuota", f"Workbench.v1.{workbenches}"]
        assert applied(kube, space, ",".join(kinds)) == sorted([*running, *kept])

        await user.stop_server("old")
        assert kube.owned(space) == kept
        assert kube.owned(elsewhere) == ["ConfigMap/kept-cleo"]
        await user.delete_server("old")  # and with it all that the hub's database knew of it
        assert kube.owned(space) == kept

        await user.start_server("", options(keepsakes=False))
        await operate("cleo")
        await user.wait_ready()
        await hub.delete_user("cleo")
    assert kube.owned(space) == []
    assert kube.owned(elsewhere) == []


def applied(kube: Kube, namespace: str, kinds: str) -> list[str]:
    """The objects of the user cleo that were applied, once and whole, under the user's manager."""
    found = []
    for live in kube.list(kinds, namespace, theirs("cleo")):
        managers = live["metadata"]["managedFields"]
        (whole,) = [m for m in managers if not m.get("subresource")]  # and nobody else wrote to it
        assert whole["manager"].startswith("lts:jupyter:cleo:")
        assert whole["operation"] == "Apply"
        found.append(f"{live['kind']}/{live['metadata']['name']}")
    return sorted(found)
