"""The API server goes away for a while: nothing is lost, and what was pending goes on."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from e2e.cluster import Cluster
from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faultproxy import FaultProxy, KubeConfig
from e2e.harness.faults import OUTAGE, Faults
from e2e.harness.hub import Hub, until, user_path
from e2e.harness.kube import Kube
from e2e.harness.outage import ControlPlane, Drop, control_plane, controllable, dropped
from e2e.harness.user import HubUser
from e2e.reliability.test_hub_restart import (
    TEMPLATES,
    everything,
    kept,
    names,
    open_gate,
    reach,
    uid,
    until_state,
    until_waiting,
)

RESUMED = 5.0  # seconds, stated in the issue
# For a start: the kubelet, too, loses its watches, and waits up to a minute before it tries again.
PATIENCE = 150 + 2 * OUTAGE
# The first pauses are 0.3 to 0.8 s, the later ones 1.3 to 2.5 s for a watch and 2 to 4 s for
# another request; some eight of them are under way here. A loop without pauses makes hundreds.
REQUESTS_A_SECOND = 16.0
CPU = 0.5  # of one core, while every page is opened all the time
# Kubernetes itself ends the pods of a node that could not report in time; here that is 15 s.
STAYS = (
    "restartPolicy: Never",
    "restartPolicy: Never\n  tolerations: [{operator: Exists, effect: NoExecute}]",
)
CONFIG = f"""
{light.OPTIONS_ARE_TRAITS}
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0, "slow_stop_timeout": 0}}
c.Spawner.poll_interval = 3600  # so that only the watch can notice what happens
"""


@dataclass
class World:
    """A hub on its way through the fault proxy, and five users: one works, four take turns."""

    hub: Hub
    kube: Kube
    space: str
    proxy: FaultProxy
    plane: ControlPlane
    works: HubUser
    others: deque[HubUser]  # the first two have a server, the last two have none
    plain: str
    gated: str
    doomed: str = ""  # whose pod is to be deleted behind the hub's back
    drops: list[Drop] = field(default_factory=list)

    def kill_doomed(self) -> None:
        if self.doomed:
            self.kube("delete", "pod", f"jupyter-{self.doomed}", "-n", self.space, "--wait=false")
        self.doomed = ""

    def uid(self, user: HubUser) -> str:
        return uid(self.kube, self.space, user.name)


class Outage(NamedTuple):
    """What is injected; `reachable` says whether an administrator can still use kubectl."""

    injected: str
    inject: Callable[[World], AbstractContextManager[None]]
    reachable: bool = True


@contextmanager
def broken(world: World) -> Iterator[None]:
    world.proxy.down()
    yield
    world.proxy.up()


def answering(status: int, retry_after: int | None = None) -> Outage:
    @contextmanager
    def inject(world: World) -> Iterator[None]:
        world.proxy.answer(status, retry_after=retry_after)
        world.proxy.cut_watches()
        yield
        world.proxy.up()

    asked = f" and Retry-After: {retry_after}" if retry_after else ""
    return Outage(f"the API server answers {status}{asked} to everything", inject)


@contextmanager
def hanging(world: World) -> Iterator[None]:
    world.proxy.hang()
    yield
    world.proxy.up()


@contextmanager
def black_hole(world: World) -> Iterator[None]:
    with dropped(world.proxy.port) as drop:
        world.drops.append(drop)
        yield
        world.drops.clear()


@contextmanager
def suspended(world: World) -> Iterator[None]:
    world.plane.suspend()
    yield
    world.plane.resume()


@contextmanager
def restarted(world: World) -> Iterator[None]:
    world.proxy.down()  # what happens now is what the hub cannot hear from the API server's past
    world.kill_doomed()
    world.plane.kill()
    world.plane.compact()
    yield
    world.plane.start()
    world.plane.wait_until_ready()
    world.proxy.up()


OUTAGES = {
    "broken": Outage("every connection is broken", broken),
    "500": answering(500),
    "503": answering(503),
    "429": answering(429, retry_after=1),
    "hangs": Outage("a proxy before the API server hangs", hanging),
}
# With another cluster than a local one these are left out, and the report shows it.
OF_LOCAL_CLUSTERS = {
    "black hole": Outage("all packets are dropped, connections stay open", black_hole),
    "suspended": Outage("the API server's process is suspended", suspended, reachable=False),
    "restarted": Outage(
        "the API server is killed, etcd compacted, the API server started", restarted, False
    ),
}


@pytest.fixture(scope="module")
def plane(cluster: Cluster) -> Iterator[ControlPlane]:
    with control_plane(cluster) as plane:
        yield plane


@pytest.fixture(scope="module")
async def world(
    make_hub: MakeHub,
    kube: Kube,
    space: str,
    plane: ControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[World]:
    """The hub has an account of its own: a restarted API server must first learn of its rights."""
    folder = tmp_path_factory.mktemp("outage")
    kube("create", "serviceaccount", "hub", "-n", space)
    account = f"--serviceaccount={space}:hub"
    kube("create", "rolebinding", "hub", "-n", space, "--clusterrole=admin", account)
    token = kube("create", "token", "hub", "-n", space, "--duration=8h").strip()
    plain = light.chart(folder / "plain", **TEMPLATES, pod=light.pod().replace(*STAYS))
    gated = light.chart(folder / "gated", **TEMPLATES, pod=light.pod(gated=True).replace(*STAYS))
    kubeconfig = KubeConfig(kube)
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(kubeconfig))
        file = kubeconfig.write(folder / "kubeconfig", server=proxy.url, token=token)
        hub = make_hub(CONFIG, kubeconfig=str(file), start_timeout=PATIENCE, http_timeout=10)
        await stack.enter_async_context(hub)
        users = [
            await stack.enter_async_context(signed_in(hub, name))
            for name in ("works", "one", "two", "three", "four")
        ]
        for user in users[:3]:
            await start(user, plain)
        for user in users[:3]:
            await user.wait_ready()
        works, *others = users
        yield World(hub, kube, space, proxy, plane, works, deque(others), plain, gated)
        proxy.up()
        for user in users:
            await user.stop_server()
            await hub.delete_user(user.name)


async def start(user: HubUser, template: str) -> None:
    await user.start_server(options={"template_path": template})


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def look_around(world: World, seconds: float, ready: list[HubUser]) -> None:
    """Open pages as people do: the hub polls for each home page, and finds every server alive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for user in ready:
            assert (await user.page("/hub/home")).is_success
            server = (await world.hub.users())[user.name][""]
            assert server["ready"], f"{user.name}: {server}"
        await reach(world.works)
        await anyio.sleep(0.3)


async def until_kept(world: World, user: HubUser) -> None:
    async def there() -> bool:
        return names(world.kube, world.space, user.name) == kept(user.name)

    await until(there)


async def turn(outage: Outage, world: World, faults: Faults) -> None:
    hub, works = world.hub, world.works
    doomed, stops, waits, late = world.others
    await start(waits, world.gated)
    await until_waiting(world.kube, world.space, waits.name)
    before = world.uid(works), world.uid(waits), world.uid(stops), hub.pid
    world.doomed, log = doomed.name, len(hub.log.read_text())
    used, began = cpu_seconds(hub.pid), time.monotonic()
    with outage.inject(world):
        await stops.api("DELETE", user_path(stops.name, "server"))
        await start(late, world.plain)
        await look_around(world, OUTAGE, [works, doomed])
        if outage.reachable:
            assert world.uid(stops) == before[2]
            world.kill_doomed()
        took = time.monotonic() - began
        tries = world.drops[0].packets() if world.drops else world.proxy.tries(began)
        used = cpu_seconds(hub.pid) - used
        assert not re.search(rf"{works.name}\S* ended|{doomed.name}\S* ended", hub_log(hub, log))
    returned = time.monotonic()
    world.kill_doomed()
    open_gate(world.kube, world.space, waits.name)
    await hub.wait_for_log(rf"{doomed.name}\S* ended: ", 30, log)
    faults.saw("a deleted pod was noticed after, in s", time.monotonic() - returned)
    for user in (waits, late):
        await user.wait_ready(timeout=PATIENCE)
    for user in (doomed, stops):
        await until_state(hub, user.name, "stopped")
        if re.search(rf"{user.name}\S* is gone, but.* does not answer", hub_log(hub, log)):
            # A busy machine's kubelet may be late: its node counts as lost, and keeps its pods.
            await until_kept(world, user)
        left = names(world.kube, world.space, user.name)
        assert left == kept(user.name), hub_log(hub, log)[-10_000:]
    await look_around(world, 0, [works, waits, late])
    faults.saw("all was as asked after, in s", time.monotonic() - returned)
    faults.saw("requests or packets a second", tries / took)
    faults.saw("the hub's share of a core", used / took)
    for user in (works, waits, late):
        assert names(world.kube, world.space, user.name) == everything(user.name)
    assert (world.uid(works), world.uid(waits)) == before[:2]
    assert hub.pid == before[3]
    assert tries / took < REQUESTS_A_SECOND
    assert used / took < CPU
    if (resumed := resumed_after(world.proxy, returned)) is not None:
        faults.saw("the last watch was back after, in s", resumed)
        assert resumed <= RESUMED
    world.others.rotate(2)


def hub_log(hub: Hub, start: int) -> str:
    return hub.log.read_text(errors="replace")[start:]


def resumed_after(proxy: FaultProxy, returned: float) -> float | None:
    """When the last kind was watched again; None where the connections outlived the outage."""
    first: dict[str, float] = {}
    for request in proxy.requests:
        if request.verb == "watch" and request.at >= returned and request.resource != "events":
            first.setdefault(request.resource, request.at - returned)
    return max(first.values(), default=None)


@pytest.mark.parametrize("name", OUTAGES)
async def test_nothing_is_lost_while_the_api_server_is_away(
    name: str, world: World, faults: Faults
) -> None:
    outage = OUTAGES[name]
    for _ in faults(outage.injected):
        await turn(outage, world, faults)


@pytest.mark.alone
@pytest.mark.parametrize("name", OF_LOCAL_CLUSTERS)
async def test_nothing_is_lost_while_the_api_server_itself_fails(
    name: str, world: World, cluster: Cluster, faults: Faults
) -> None:
    outage = OF_LOCAL_CLUSTERS[name]
    if not controllable(cluster):
        print(f"{outage.injected}: not on a {cluster.provider} cluster; its proxy hangs instead")
        outage = OUTAGES["hangs"]
    for _ in faults(outage.injected):
        mark = world.proxy.mark()
        await turn(outage, world, faults)
        if name == "restarted" and controllable(cluster):
            assert world.proxy.since(mark)["list", "pods"], "nobody's position was lost"
