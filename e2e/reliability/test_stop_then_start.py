"""A start while the old pod is still going: a new pod, and never the old one's address."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub, user_path
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser, ServerFailedError

pytestmark = pytest.mark.timeout(REPEAT * 150)

GRACE = 3  # seconds that the process outlives its TERM; the tests last as long
CONFIG = f"""
{light.OPTIONS_ARE_TRAITS}
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0, "slow_stop_timeout": 0}}
"""


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub) -> AsyncGenerator[Hub]:
    traits = {"poll_interval": 3600, "stop_timeout": 1, "http_timeout": 10}
    async with make_hub(CONFIG, **traits) as hub:
        yield hub
        names = [*await hub.users()]
        for name in names:  # all at once: each takes its grace
            await hub.request("DELETE", user_path(name, "servers", ""))
        for name in names:
            await until_stopped(hub, name)
            await hub.delete_user(name)


async def until_stopped(hub: Hub, name: str) -> None:
    with anyio.fail_after(60):
        while True:
            server = (await hub.users())[name].get("", {})
            if not server.get("ready") and not server.get("pending"):
                return
            await anyio.sleep(0.05)


def pod(grace: int, **options: Any) -> str:
    spec = f"spec:\n  terminationGracePeriodSeconds: {grace}"
    return light.pod(**options).replace("spec:", spec, 1)


@pytest.fixture
def deaf(tmp_path: Path) -> str:
    """A pod whose process ignores TERM until it is killed, and goes on to serve."""
    text = pod(GRACE).replace("trap 'exit 0' TERM", "trap '' TERM")
    assert "trap '' TERM" in text
    return light.chart(tmp_path / "deaf", pod=text, claim=light.claim(), secret=light.secret())


@pytest.fixture
def held(tmp_path: Path) -> str:
    """A pod that a finalizer keeps after its process has gone."""
    text = pod(1, metadata="  finalizers: [e2e/hold]")
    return light.chart(tmp_path / "held", pod=text, claim=light.claim(), secret=light.secret())


class Server:
    """One user's server, as the cluster, the hub and the proxy know it."""

    def __init__(self, hub: Hub, kube: Kube, space: str, user: HubUser, chart: str) -> None:
        self.hub, self.kube, self.space, self.user, self.chart = hub, kube, space, user, chart
        self.name = f"jupyter-{user.name}"

    async def ask(self) -> None:
        await self.user.start_server(options={"template_path": self.chart})

    async def start(self) -> None:
        await self.ask()
        await self.user.wait_ready()

    def pod(self) -> dict[str, Any]:
        found = self.kube.get("pod", self.space, self.name)
        assert found is not None
        return found

    @property
    def uid(self) -> str:
        return str(self.pod()["metadata"]["uid"])

    async def until_stopped(self) -> None:
        await until_stopped(self.hub, self.user.name)

    async def is_new(self, old: dict[str, Any]) -> None:
        """The pod is another one, and what the proxy leads to is it."""
        new = self.pod()
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        assert not new["metadata"].get("deletionTimestamp")
        routes = await self.hub.api("GET", "proxy")
        target = routes[f"/user/{self.user.name}/"]["target"]
        assert target == f"http://{new['status']['podIP']}:8888"
        assert new["status"]["podIP"] != old["status"]["podIP"]
        page = await self.user.page(f"/user/{self.user.name}/")
        assert page.status_code == 404
        assert "x-jupyterhub-version" not in page.headers  # the server itself


async def again(server: Server, faults: Faults) -> None:
    """Start until the hub lets one through: it refuses while it knows of a stop under way."""
    began = time.monotonic()
    with anyio.fail_after(60):
        while (
            answer := await server.user.try_api(
                "POST",
                user_path(server.user.name, "servers", ""),
                json={"template_path": server.chart},
            )
        ).is_error:
            assert "pending stop" in answer.text, answer.text
            await anyio.sleep(0.1)
    await server.user.wait_ready()
    faults.saw("s from the request to the new server", time.monotonic() - began)


async def test_a_start_at_once_after_a_stop(
    hub: Hub, kube: Kube, space: str, deaf: str, faults: Faults
) -> None:
    for turn in faults(f"stop and start at once, the process ignores TERM for {GRACE} s"):
        async with signed_in(hub, f"stopped-{turn}") as user:
            server = Server(hub, kube, space, user, deaf)
            await server.start()
            old = server.pod()
            await user.api("DELETE", user_path(user.name, "servers", ""))
            assert server.pod()["metadata"]["uid"] == old["metadata"]["uid"]
            await again(server, faults)
            await server.is_new(old)


async def test_a_start_at_once_after_the_pod_was_deleted(
    hub: Hub, kube: Kube, space: str, deaf: str, faults: Faults
) -> None:
    for turn in faults("kubectl delete pod --wait=false, and start as soon as the hub knows"):
        async with signed_in(hub, f"deleted-{turn}") as user:
            server = Server(hub, kube, space, user, deaf)
            await server.start()
            old = server.pod()
            kube("delete", "pod", server.name, "-n", space, "--wait=false")
            await server.until_stopped()
            await server.start()
            await server.is_new(old)


async def test_a_start_after_a_hub_that_died_while_it_stopped(
    hub: Hub, kube: Kube, space: str, deaf: str, faults: Faults
) -> None:
    for turn in faults("hub killed during a stop, and start at once after its restart"):
        async with signed_in(hub, f"killed-{turn}") as user:
            server = Server(hub, kube, space, user, deaf)
            await server.start()
            old = server.pod()
            await user.api("DELETE", user_path(user.name, "servers", ""))
            going = "--for=jsonpath={.metadata.deletionTimestamp}"
            kube("wait", f"pod/{server.name}", "-n", space, going, "--timeout=10s")
            await hub.kill()
            await hub.start()
            await server.until_stopped()
            await server.start()
            await server.is_new(old)


@contextmanager
def released(kube: Kube, space: str, name: str, after: float) -> Iterator[None]:
    """Take the finalizer away a while from now."""
    patch = json.dumps({"metadata": {"finalizers": None}})
    timer = threading.Timer(after, lambda: kube("patch", "pod", name, "-n", space, "-p", patch))
    timer.start()
    try:
        yield
    finally:
        timer.join()


async def test_a_start_while_a_finalizer_holds_the_old_pod(
    hub: Hub, kube: Kube, space: str, held: str, deaf: str, faults: Faults
) -> None:
    for turn in faults("a finalizer holds the old pod: for ever, and for 5 s"):
        async with signed_in(hub, f"held-{turn}") as user:
            server = Server(hub, kube, space, user, held)
            await server.start()
            old = server.pod()
            await user.api("DELETE", user_path(user.name, "servers", ""))
            await server.until_stopped()
            await user.start_server(options={"template_path": deaf, "k8s_timeout": 5})
            text = rf"Pod/{space}/{server.name} \(held by e2e/hold\)"
            with pytest.raises(ServerFailedError, match=text):
                await user.wait_ready()
            await server.until_stopped()
            assert server.uid == old["metadata"]["uid"]
            server.chart = deaf
            with released(kube, space, server.name, after=5):
                await server.start()
            await server.is_new(old)
