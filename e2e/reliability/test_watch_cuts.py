"""A class starts and stops while every watch connection is cut each second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from e2e.cluster import Cluster
from e2e.cluster.model import FAKE_NODE, FAKE_NODE_TAINT
from e2e.conftest import MakeHub
from e2e.harness import light
from e2e.harness.faultproxy import FaultProxy, KubeConfig
from e2e.harness.faults import Faults
from e2e.harness.hub import Hub, user_path
from e2e.harness.kube import Kube

USERS = [f"pupil-{number}" for number in range(50)]
EVERY = 1.0  # seconds
REOPENED = 2.0  # times a second and kind, at most: it pauses 0.4 s and more after each cut
# Fake pods have addresses at which nobody answers; the test does, for all of them.
CONFIG = """
from lightkube_template_spawner import LightkubeTemplateSpawner
class Answered(LightkubeTemplateSpawner):
    async def start(self):
        await super().start()
        return "{url}"
c.JupyterHub.spawner_class = Answered
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0, "slow_stop_timeout": 0}}
c.Spawner.poll_interval = 3600  # so that only the watch can notice what happens
"""
ON_FAKE_NODE = f"""restartPolicy: Never
  nodeName: {FAKE_NODE}
  tolerations: [{{key: {FAKE_NODE_TAINT}, operator: Exists}}]"""


@asynccontextmanager
async def answering() -> AsyncGenerator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def until_all(hub: Hub, state: str) -> None:
    """Wait until all are `ready` or `stopped`; the hub forgets a server that keeps nothing."""
    with anyio.fail_after(100):
        while True:
            found = await hub.users()
            servers = [found[name].get("") for name in USERS]
            if state == "stopped" and not any(s and not s["stopped"] for s in servers):
                return
            if state == "ready" and all(s and s["ready"] for s in servers):
                return
            await anyio.sleep(0.5)


async def test_fifty_users_start_and_stop_while_watches_are_cut(
    make_hub: MakeHub, kube: Kube, cluster: Cluster, space: str, tmp_path: Path, faults: Faults
) -> None:
    pod = light.pod()
    if cluster.fake_node:
        pod = pod.replace("restartPolicy: Never", ON_FAKE_NODE)
    chart = light.chart(tmp_path / "chart", pod=pod, secret=light.secret())
    kubeconfig = KubeConfig(kube)
    async with answering() as url:
        with FaultProxy(kubeconfig) as proxy:
            file = str(kubeconfig.write(tmp_path / "kubeconfig", server=proxy.url))
            config = CONFIG.format(url=url)
            async with make_hub(config, kubeconfig=file, template_path=chart) as hub:
                for name in USERS:
                    await hub.create_user(name)
                for _ in faults(f"watches are cut every {EVERY:.0f} s while 50 users start"):
                    await turn(hub, proxy, faults)
                    assert kube.owned(space) == []


async def turn(hub: Hub, proxy: FaultProxy, faults: Faults) -> None:
    mark, began = proxy.mark(), time.monotonic()
    proxy.cut_watches(EVERY)
    try:
        for verb, state in (("POST", "ready"), ("DELETE", "stopped")):
            asked = time.monotonic()
            async with anyio.create_task_group() as group:
                for name in USERS:
                    group.start_soon(hub.api, verb, user_path(name, "server"))
            await until_all(hub, state)
            faults.saw(f"all were {state} after, in s", time.monotonic() - asked)
    finally:
        proxy.up()
    seen, took = proxy.since(mark), time.monotonic() - began
    reopened = [times / took for (verb, _), times in seen.items() if verb == "watch"]
    faults.saw("a watch was opened, times a second", max(reopened))
    faults.saw("lists", sum(times for (verb, _), times in seen.items() if verb == "list"))
    assert max(reopened) < REOPENED
