"""The three ways to start servers that are compared; each runs in a process of its own.

python -m benchmarks.arms bare|ours|kubespawner NAMESPACE SERVERS SINGLES
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import Any, Protocol

import msgspec
from kubespawner import KubeSpawner

from benchmarks.doubles import spawner
from benchmarks.measure import count_requests, measured
from lightkube_template_spawner import LightkubeTemplateSpawner
from lightkube_template_spawner.cluster.api import Api
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.templates import renderer

_PODS = "/api/v1/namespaces/{}/pods"
_CLAIMS = "/api/v1/namespaces/{}/persistentvolumeclaims"
_AT_ONCE = 8  # writes in flight, as many as the package allows itself


class Arm(Protocol):
    """One way to start and stop servers, known by their number."""

    async def prepare(self, numbers: Iterable[int]) -> None:
        """Do what a hub has done long before a user clicks."""

    async def start(self, number: int) -> None: ...

    async def stop(self, number: int) -> None: ...


class Bare:
    """Manifests rendered before the clock runs, plain HTTP, one watch: what the cluster costs."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._api = Api()
        self._documents: dict[int, dict[str, bytes]] = {}
        self._names: dict[int, str] = {}
        self._ready: dict[str, asyncio.Event] = {}
        self._gone: dict[str, asyncio.Event] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._watching: asyncio.Task[None] | None = None

    async def prepare(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            made = spawner(LightkubeTemplateSpawner, number, self._namespace, "user")
            found = [o for docs in (await made._rendered(made.identity)).values() for o in docs]
            paths = {"Pod": _PODS, "PersistentVolumeClaim": _CLAIMS}
            self._documents[number] = {
                f"{paths[item['kind']].format(self._namespace)}/{item['metadata']['name']}": (
                    msgspec.json.encode(item)
                )
                for item in sorted(found, key=lambda item: str(item["kind"]))
            }
            self._names[number] = next(
                item["metadata"]["name"] for item in found if item["kind"] == "Pod"
            )
        for name in self._names.values():
            self._ready[name], self._gone[name] = asyncio.Event(), asyncio.Event()
        await renderer.close_renderers()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def start(self, number: int) -> None:
        headers = {"Content-Type": "application/apply-patch+yaml"}
        for path, content in self._documents[number].items():
            async with self._limit:
                answer = await self._api._http.request(
                    "PATCH", path, params={"fieldManager": "bare"}, headers=headers, content=content
                )
            answer.raise_for_status()
        await self._ready[self._names[number]].wait()

    async def stop(self, number: int) -> None:
        name = self._names[number]
        async with self._limit:
            await self._api.call("DELETE", f"{_PODS.format(self._namespace)}/{name}")
        await self._gone[name].wait()

    async def _watch(self) -> None:
        path = _PODS.format(self._namespace)
        params = {"watch": "true", "resourceVersion": "0"}
        async with self._api.stream(
            path, params=params, accept="application/json", idle=600
        ) as lines:
            async for line in lines:
                event = msgspec.json.decode(line)
                pod = event["object"]
                name = pod["metadata"]["name"]
                if event["type"] == "DELETED":
                    self._gone[name].set()
                elif is_ready(pod["status"]):
                    self._ready[name].set()


class Spawners:
    """A spawner class, started through its own `start` and `stop`."""

    def __init__(self, cls: type[Any], namespace: str) -> None:
        self.cls = cls
        self.namespace = namespace
        self.known: dict[int, Any] = {}

    async def prepare(self, numbers: Iterable[int]) -> None:
        self.known |= {n: spawner(self.cls, n, self.namespace, "user") for n in numbers}

    async def start(self, number: int) -> None:
        await self.known[number].start()

    async def stop(self, number: int) -> None:
        await self.known[number].stop()


class Ours(Spawners):
    """Ours, with the moment at which each pod was seen to be Ready."""

    def __init__(self, namespace: str) -> None:
        super().__init__(LightkubeTemplateSpawner, namespace)
        self.lags: list[float] = []

    async def start(self, number: int) -> None:
        made = self.known[number]
        cluster: Cluster = made._cluster()
        owner = made.identity.owner
        seen: list[float] = []

        def look() -> None:
            if not seen and any(
                live.kind.kind == "Pod" and is_ready(msgspec.json.decode(live.parts["status"]))
                for live in cluster.objects_of(owner)
            ):
                seen.append(time.perf_counter())

        forget = cluster.changes.subscribe(owner, look)
        await made.start()
        self.lags.append(time.perf_counter() - seen[0])
        forget()

    def lag(self) -> float:
        """The median so far, which is then forgotten."""
        lags, self.lags = self.lags, []
        return statistics.median(lags)

    async def store_bytes(self) -> int:
        """What all stores of this hub take in memory, filled anew."""
        known = next(iter(self.known.values()))._cluster()
        gc.collect()
        tracemalloc.start()
        fresh = Cluster(Api(), "benchmark", logging.getLogger("benchmark"))
        for store in list(known.stores()):
            await fresh.reflector(store.kind, store.namespace, full=store.full).sync()
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await fresh.aclose()
        return size


def is_ready(status: dict[str, Any]) -> bool:
    """Whether a pod's status says Ready."""
    conditions = status.get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def run(arm: Arm, servers: int, singles: int) -> dict[str, Any]:
    """One after another first, then all at once; then stop all."""
    alone, together = range(1, singles + 1), range(singles + 1, singles + 1 + servers)
    await arm.prepare([0, *alone, *together])
    await arm.start(0)  # opens watches and connections, starts Helm's worker
    result: dict[str, Any] = {"singles": []}
    for number in alone:
        begun = time.perf_counter()
        await arm.start(number)
        result["singles"].append(time.perf_counter() - begun)
    if isinstance(arm, Ours):
        result["lag_alone"] = arm.lag()
    before = await arm.store_bytes() if isinstance(arm, Ours) else 0
    result["start"] = await _all(arm.start, together)
    if isinstance(arm, Ours):
        result["lag"] = arm.lag()
        result["store"] = (await arm.store_bytes() - before) / servers
        result["poll"] = await _all(lambda number: arm.known[number].poll(), together)
    result["stop"] = await _all(arm.stop, together)
    return result


async def _all(do: Callable[[int], Awaitable[object]], numbers: Iterable[int]) -> dict[str, Any]:
    gc.collect()
    with measured() as cost:
        results = await asyncio.gather(*map(do, numbers), return_exceptions=True)
    errors = [error for error in results if isinstance(error, BaseException)]
    for text in sorted({repr(error) for error in errors})[:3]:
        logging.getLogger("benchmark").warning("failed: %s", text)
    return {**asdict(cost), "failed": len(errors)}


async def main(name: str, namespace: str, servers: int, singles: int) -> None:
    """Run one arm and print what it cost."""
    count_requests()
    arm: Arm
    if name == "bare":
        arm = Bare(namespace)
    else:
        arm = Ours(namespace) if name == "ours" else Spawners(KubeSpawner, namespace)
    result = await run(arm, servers, singles)
    await renderer.close_renderers()
    print(json.dumps(result))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
