"""Start, stop, poll and removal of the same server in every order, against the real API server.

The machine is that of ``tests/support/interleaving.py``; the pods are kwok's, ready in no time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from e2e.cluster import Cluster
from e2e.harness import light
from e2e.harness.faults import Faults
from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.errors import NotFound
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from lightkube_template_spawner.templates import renderer as renderers
from tests.support.hub import LocalHub, local_hub
from tests.support.interleaving import TEMPLATES, Gate, Interleaving, Obj, World

KINDS = {
    kind: Kind("", "v1", kind, plural, namespaced=True)
    for kind, plural in (
        ("Pod", "pods"),
        ("Secret", "secrets"),
        ("ConfigMap", "configmaps"),
        ("PersistentVolumeClaim", "persistentvolumeclaims"),
    )
}
EXAMPLES = 5  # a turn, of at most 12 steps each


class OnThisMachine(LightkubeTemplateSpawner):
    """Fake pods have addresses at which nobody answers; the hub's own web server does."""

    async def start(self) -> str:
        await super().start()
        return f"http://127.0.0.1:{self.port}"

    async def get_url(self) -> str:
        await super().get_url()
        return f"http://127.0.0.1:{self.port}{self.server.base_url}"


class Real(World):
    """A namespace of a real cluster; an administrator's client that no gate holds back."""

    def __init__(self, cluster: Cluster, namespace: str, username: str) -> None:
        self._kubeconfig = str(cluster.kubeconfig)
        self.namespace = namespace
        self.username = username
        self.admin = Api(self._kubeconfig)

    def connect(self) -> Api:
        self.gate = Gate(Api(self._kubeconfig)._transport)
        return Api(self._kubeconfig, transport=self.gate)

    async def objects(self) -> list[Obj]:
        found = []
        for name, kind in KINDS.items():
            listing = await self.admin.call("GET", kind.path(self.namespace))
            found += [{**item, "kind": name} for item in listing["items"]]
        return found

    async def create(self, manifest: Obj) -> None:
        path = KINDS[manifest["kind"]].path(self.namespace)
        metadata = {**manifest["metadata"], "namespace": self.namespace}
        await self.admin.call("POST", path, body={**manifest, "metadata": metadata})

    async def clear(self) -> None:
        for kind in KINDS.values():
            now = {"gracePeriodSeconds": 0}
            await self.admin.call("DELETE", kind.path(self.namespace), body=now)
        while any(item["kind"] == "Pod" for item in await self.objects()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def delete_pod(self, name: str) -> None:
        try:
            await self.admin.call("DELETE", KINDS["Pod"].path(self.namespace, name), body={})
        except NotFound:
            return

    async def fail_pod(self, name: str) -> None:
        path = KINDS["Pod"].path(self.namespace, name)
        try:
            pod = await self.admin.call("GET", path)
        except NotFound:
            return
        ended = {"exitCode": 137, "reason": "OOMKilled"}
        pod["status"] = {
            **pod.get("status", {}),
            "phase": "Failed",
            "conditions": [],
            "containerStatuses": [
                {"name": "main", "image": "", "imageID": "", "ready": False, "restartCount": 0,
                 "state": {"terminated": ended}}
            ],
        }  # fmt: skip
        pod["metadata"].pop("resourceVersion")
        await self.admin.call("PUT", f"{path}/status", body=pod)


@asynccontextmanager
async def real(
    cluster: Cluster, namespace: str, chart: Path, numbers: Iterator[int]
) -> AsyncIterator[World]:
    """A hub with an empty database, and a user that nobody was before."""
    world = Real(cluster, namespace, f"user{next(numbers)}@example.org")
    config: dict[str, Any] = {
        "kubeconfig": str(cluster.kubeconfig),
        "namespace": namespace,
        "template_path": str(chart),
        "http_timeout": 2,
        "start_timeout": 30,
    }
    make = partial(LocalHub, connect=world.connect, settings={"spawner_class": OnThisMachine})
    async with local_hub(make, **config) as hub:
        world.hub = hub
        try:
            yield world
        finally:
            await world.clear()
            await world.admin.aclose()


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("default::sqlalchemy.exc.SAWarning")
def test_every_order_of_start_stop_poll_and_removal(
    cluster: Cluster, space: str, tmp_path: Path, faults: Faults
) -> None:
    light.chart(tmp_path, all=TEMPLATES)
    numbers = itertools.count()
    with asyncio.Runner() as runner:
        enter = partial(real, cluster, space, tmp_path, numbers)
        for turn in faults(f"{EXAMPLES} interleavings of up to 12 steps"):
            machine = partial(Interleaving, runner.run, enter)
            run_state_machine_as_test(
                seed(turn)(machine),  # type: ignore[arg-type] # a function does too
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=12,
                    database=None,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        faults.saw("interleavings", next(numbers))
        runner.run(renderers.close_renderers())
