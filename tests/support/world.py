"""One user's server in raw objects, and a hub without JupyterHub that starts and stops it."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.lifecycle import failures
from lightkube_template_spawner.lifecycle.launcher import Launcher
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.objects.identity import Identity, Policy
from lightkube_template_spawner.objects.plan import Contract
from tests.support.fake_apiserver import FakeApiServer
from tests.support.objects import LIFECYCLE, ME

log = logging.getLogger("test")
RULES = Contract("hub")
ROUTE = Route()
CONNECTION = {"kubetemplatespawner/connection": "true"}

Obj = dict[str, Any]


def chart(name: str = "s", **pod: Any) -> dict[str, Obj]:
    """One user's server: a volume, a secret, a pod, and a Service to connect through."""
    metadata = {"name": name}
    lasting = {"name": "home", "annotations": {LIFECYCLE: Policy.USER_DELETED.value}}
    container = {
        "name": "main",
        "image": "image",
        "envFrom": [{"secretRef": metadata}],
    }
    volumes = [{"name": "home", "persistentVolumeClaim": {"claimName": "home"}}]
    return {
        "volume": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": lasting,
                   "spec": {"size": 1}},
        "secret": {"apiVersion": "v1", "kind": "Secret", "metadata": metadata,
                   "stringData": {"token": "hush"}},
        "pod": {"apiVersion": "v1", "kind": "Pod",
                "metadata": {**metadata, "labels": {"app": name}},
                "spec": {"containers": [container], "volumes": volumes, **pod}},
        "service": {"apiVersion": "v1", "kind": "Service",
                    "metadata": {**metadata, "annotations": CONNECTION},
                    "spec": {"selector": {"app": name}, "ports": [{"port": 8888}]}},
    }  # fmt: skip


@dataclass
class World:
    """A hub with its cluster, and the node that runs its pods as soon as they are there."""

    fake: FakeApiServer
    cluster: Cluster
    told: list[str] = field(default_factory=list)
    saved: list[Record] = field(default_factory=list)
    node: bool = True

    async def launch(
        self,
        objects: Mapping[str, Obj] | None = None,
        identity: Identity = ME,
        *,
        before: Record | None = None,
        rules: Contract = RULES,
        limits: failures.FailureRules | None = None,
        timeout: float = 5,
    ) -> Record:
        files = chart() if objects is None else objects
        launcher = Launcher(
            self.cluster,
            identity,
            rules,
            ROUTE,
            log,
            lambda text, _: self.told.append(text),
            limits or failures.FailureRules(),
        )
        running = asyncio.create_task(self._run_pods())
        try:
            return await launcher.launch(
                {f"{name}.yaml": [copy.deepcopy(item)] for name, item in files.items()},
                before=before,
                save=self.saved.append,
                timeout=timeout,
            )
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def _run_pods(self) -> None:
        while True:
            await asyncio.sleep(0.002)
            if self.node:
                self.fake.run_new_pods()

    async def stop(self, record: Record) -> None:
        await Removal(self.cluster, log).stop(record, LIFECYCLE, timeout=2)

    def left(self) -> set[str]:
        return self.fake.left()

    def writes(self) -> list[str]:
        seen = [seen for seen in self.fake.requests if seen.method != "GET"]
        wrote = [one for one in seen if "/selfsubject" not in one.path]  # those ask
        return [f"{one.method} {one.path.split('hub/')[1]}" for one in wrote]
