"""A server that a queue holds waits, says so, outlives a hub restart, and never fails by it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from e2e.conftest import hub_fixture, signed_in
from e2e.harness import light
from e2e.harness.faults import OUTAGE, Faults
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser

GATE = "e2e.example.org/queue"
WAITS = f"SchedulingGated: it waits in the queue, held by {GATE}"
# Waiting in the queue must not count: each of these would end the start at once.
STRICT = {name: {"grace": 0} for name in ("unschedulable", "unnoticed", "reference")}

hub = hub_fixture(light.OPTIONS_ARE_TRAITS, start_timeout=300, failure_rules=STRICT)


def queued(folder: Path, *, service: bool = False) -> str:
    """A chart whose pod a queue holds, behind a Service if asked for."""
    pod = light.pod(connection=not service, metadata="  labels: {app: NAME}").replace(
        "spec:", f"spec:\n  schedulingGates: [{{name: {GATE}}}]"
    )
    templates = {"pod": pod.replace("NAME", light.NAME), "claim": light.claim()}
    if service:
        templates["service"] = SERVICE.replace("NAME", light.NAME)
    return light.chart(folder, **templates)


SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: NAME
  annotations: {kubetemplatespawner/connection: "true"}
spec: {selector: {app: NAME}, ports: [{port: 8888}]}
"""


async def held(kube: Kube, space: str, user: str) -> str:
    """The UID of the user's pod, once the scheduler has found its gate."""
    with anyio.fail_after(60):
        while True:
            found = kube.get("pod", space, f"jupyter-{user}") or {}
            if "SchedulingGated" in json.dumps(found.get("status")):
                return str(found["metadata"]["uid"])
            await anyio.sleep(0.1)


def admit(kube: Kube, space: str, user: str) -> None:
    """As the queue does when it is the pod's turn."""
    patch = json.dumps({"spec": {"schedulingGates": None}})
    kube("patch", "pod", f"jupyter-{user}", "-n", space, "-p", patch)


async def told(user: HubUser, seconds: float) -> list[str]:
    """What the spawn page shows within so many seconds."""
    found: list[str] = []
    with anyio.move_on_after(seconds):
        async for event in user.progress():
            found.append(str(event["message"]))  # noqa: PERF401 - to keep what came in time
    return found


async def until_ready(hub: Hub, user: str) -> None:
    with anyio.fail_after(90):
        while True:
            server: dict[str, Any] = (await hub.users())[user][""]
            assert not server["stopped"], hub.log_tail()
            if server["ready"]:
                return
            await anyio.sleep(0.1)


@pytest.mark.parametrize("service", [False, True], ids=["pod", "service"])
async def test_a_server_in_a_queue_waits_and_says_so(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults, service: bool
) -> None:
    chart = queued(tmp_path, service=service)
    async with signed_in(hub, f"queued-{service}".lower()) as user:
        for _ in faults(f"a queue holds a server's pod (by {'Service' if service else 'Pod'})"):
            await user.start_server(options={"template_path": chart})
            uid = await held(kube, space, user.name)
            messages = await told(user, OUTAGE)
            assert [text for text in messages if WAITS in text], messages
            began = time.monotonic()
            admit(kube, space, user.name)
            await user.wait_ready()
            faults.saw("ready after it was let go, in s", time.monotonic() - began)
            assert await held_uid(kube, space, user.name) == uid
            await user.stop_server()


async def held_uid(kube: Kube, space: str, user: str) -> str:
    found = kube.get("pod", space, f"jupyter-{user}")
    assert found is not None
    return str(found["metadata"]["uid"])


async def test_a_server_in_a_queue_outlives_the_hub(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    chart = queued(tmp_path)
    async with signed_in(hub, "restarted") as user:
        for turn in faults("the hub is killed while a server waits in a queue"):
            await user.start_server(options={"template_path": chart})
            uid = await held(kube, space, user.name)
            await (hub.kill() if turn % 2 else hub.stop())
            await hub.start()
            await anyio.sleep(OUTAGE)
            assert await held_uid(kube, space, user.name) == uid
            began = time.monotonic()
            admit(kube, space, user.name)
            await until_ready(hub, user.name)
            faults.saw("ready after it was let go, in s", time.monotonic() - began)
            assert await held_uid(kube, space, user.name) == uid
            await user.stop_server()


async def test_a_start_that_ends_in_the_queue_says_that_it_waited_there(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    """`start_timeout` is the hub's own limit, for which there is no way around."""
    chart = queued(tmp_path, service=True)
    async with signed_in(hub, "too-long") as user:
        for _ in faults("a queue is longer than the start may take"):
            await user.start_server(options={"template_path": chart, "k8s_timeout": 8})
            messages = await told(user, 60)
            assert "not ready after" in messages[-1], messages
            assert WAITS in messages[-1]
            await hub.wait_for_log(r"Starting \S*too-long\S* failed \(queue\)")
            assert not kube.list("pods", space, f"hub.jupyter.org/username={user.name}")
            while await user.servers():  # noqa: ASYNC110 - the hub must be asked
                await anyio.sleep(0.1)
