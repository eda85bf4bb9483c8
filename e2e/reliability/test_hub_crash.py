"""The hub dies at each single request of a start and of a stop: the next one adopts or removes.

Which requests those are is read off a start and a stop. Then each gets a user of its own, whose
server is brought to just that request and stuck there: the request has not arrived yet, or it was
carried out and its answer is on the way. One death of the hub thus meets many points at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import pytest

from e2e.conftest import OWNED, MakeHub, report
from e2e.harness import light
from e2e.harness.faultproxy import FaultProxy, KubeConfig
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub, until, user_path
from e2e.harness.kube import Kube
from e2e.harness.requests import Request
from e2e.harness.user import HubUser
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.objects.identity import USERNAME

pytestmark = pytest.mark.timeout(REPEAT * 300)

CONFIG = """
c.Spawner.poll_interval = 3600
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
"""
SERVICE = f"""
apiVersion: v1
kind: Service
metadata:
  name: {light.NAME}
  annotations: {{kubetemplatespawner/lifecycle: server-stopped}}
spec:
  ports: [{{port: 8888}}]
  selector: {{app: {light.NAME}}}
"""
KINDS = "pods,secrets,services,persistentvolumeclaims"
VERBS = {"patch": "PATCH", "create": "POST", "delete": "DELETE", "deletecollection": "DELETE"}
AT_ONCE = 7  # the hub has at most 8 writes under way, and those that are stuck count


class Point(NamedTuple):
    """Where one user's server is when the hub dies."""

    during: str  # "start" or "stop"
    verb: str
    resource: str
    carried_out: bool

    def __str__(self) -> str:
        when = "unheard" if self.carried_out else "unsent"
        return f"{self.during} {self.verb} {self.resource} {when}"

    @property
    def user(self) -> str:
        word = "b" if self.carried_out else "a"  # one is no beginning of the other
        return f"{self.during}-{self.verb}-{self.resource}-{word}x"

    def request(self) -> str:
        """What the first line of the request looks like."""
        if self.verb == "deletecollection":
            return f"^DELETE [^ ]*/{self.resource}\\?[^ ]*username%3D{self.user}(%|&|,| |$)"
        return f"^{VERBS[self.verb]} [^ ]*/{self.resource}/[^/?]*{self.user}[? ]"


class Stage(NamedTuple):
    """A hub whose way to the API server can be stopped."""

    hub: Hub
    proxy: FaultProxy
    kube: Kube
    space: str

    async def click(self, verb: str, *users: str, server: bool = True) -> None:
        """Ask the hub to start (POST) or stop (DELETE) servers, or to make or delete users."""

        async def one(user: str) -> None:
            rest = ("servers", "") if server else ()
            answer = await self.hub.request(verb, user_path(user, *rest))
            assert not answer.is_error, answer.text

        await gather(one, users)

    async def settle(self, *users: str) -> dict[str, str]:
        """Wait until nothing is pending; which servers are ready and which have stopped."""
        states: dict[str, str] = {}

        async def settled() -> bool:
            found = await self.hub.users()
            for user in users:
                server = found[user].get("", {"pending": None, "ready": False})
                states[user] = server["pending"] or ("ready" if server["ready"] else "stopped")
            return set(states.values()) <= {"ready", "stopped"}

        await until(settled)
        return states

    def objects(self) -> dict[str, dict[str, str]]:
        """What each user has: `Kind` to UID."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for item in self.kube.list(KINDS, self.space, OWNED):
            metadata = item["metadata"]
            found[metadata["labels"][USERNAME]][item["kind"]] = metadata["uid"]
        return found

    async def orphans(self) -> list[str]:
        """What the command reports."""
        environment = {
            **os.environ,
            "JUPYTERHUB_API_URL": f"{self.hub.url}/hub/api",
            "JUPYTERHUB_API_TOKEN": self.hub.api_token,
        }
        words = [sys.executable, "-m", "lightkube_template_spawner", "orphans", "-o", "json"]
        words += ["--instance", "jupyter", "-n", self.space, "--min-age", "0s"]
        words += ["--kubeconfig", str(self.kube.cluster.kubeconfig)]
        done = await anyio.run_process(words, env=environment, check=False)
        assert done.returncode in (0, 1), done.stderr.decode()
        return [
            f"{o['kind']}/{o['name']}: {o['reason']}" for o in json.loads(done.stdout)["orphans"]
        ]


@pytest.fixture(scope="module")
def proxy(kube: Kube) -> Iterator[FaultProxy]:
    with FaultProxy(KubeConfig(kube)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
async def stage(
    make_hub: MakeHub, proxy: FaultProxy, kube: Kube, space: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[Stage]:  # fmt: skip
    folder: Path = tmp_path_factory.mktemp("crash")
    file = KubeConfig(kube).write(folder / "kubeconfig", server=proxy.url)
    chart = light.chart(
        folder / "chart",
        claim=light.claim(),
        secret=light.secret(),
        service=SERVICE,
        pod=light.pod(),
    )
    traits: dict[str, object] = {"template_path": chart, "start_timeout": 60, "http_timeout": 3}
    traits["k8s_request_timeout"] = 60.0  # longer than the hub lives with what is stuck
    async with make_hub(CONFIG, kubeconfig=str(file), **traits) as hub:
        yield Stage(hub, proxy, kube, space)


@pytest.fixture(scope="module")
async def points(stage: Stage) -> list[Point]:
    """Every write of a start and of a stop, twice: not arrived, and carried out but unheard."""
    found = []
    for user in ("first", "second"):  # what the first asks of the hub's whole life is not counted
        await stage.click("POST", user, server=False)
        for during, verb, settled in ("start", "POST", "ready"), ("stop", "DELETE", "stopped"):
            mark = len(stage.proxy.requests)
            await stage.click(verb, user)
            assert await stage.settle(user) == {user: settled}
            requests = stage.proxy.requests[mark:]
            report(f"{user} {during}: {', '.join(f'{r.verb} {r.resource}' for r in requests)}")
            if user == "second":
                found += [
                    Point(during, *write, c) for write in writes(requests) for c in (False, True)
                ]
        await stage.click("DELETE", user, server=False)
    return found


def writes(requests: list[Request]) -> list[tuple[str, str]]:
    """Those that change objects, each once; a question is posted too."""
    asked = [(r.verb, r.resource) for r in requests if r.verb in VERBS]
    return [pair for pair in dict.fromkeys(asked) if not pair[1].startswith("selfsubject")]


async def stick(stage: Stage, points: list[Point]) -> dict[str, dict[str, str]]:
    """Bring each point's server to its request; what each user has before the hub dies."""
    users = {during: [p.user for p in points if p.during == during] for during in ("start", "stop")}
    await stage.click("POST", *users["start"], *users["stop"], server=False)
    await stage.click("POST", *users["stop"])
    assert set((await stage.settle(*users["stop"])).values()) <= {"ready"}
    held = [p.request() for p in points if not p.carried_out]
    unheard = [p.request() for p in points if p.carried_out]
    if held:
        stage.proxy.hold("|".join(held))
    if unheard:
        stage.proxy.hold_answers("|".join(unheard))
    await stage.click("POST", *users["start"])
    await stage.click("DELETE", *users["stop"])

    async def all_stuck() -> bool:
        return all(any(re.search(p.request(), line) for line in stage.proxy.stuck) for p in points)

    await until(all_stuck)
    return stage.objects()


async def adopted_or_removed(
    stage: Stage, points: list[Point], before: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Hold the next hub to its promise; what became of each server."""
    states: dict[str, str] = {}
    wrong: dict[Point, str] = {}

    async def as_promised() -> bool:
        states.update(await stage.settle(*(point.user for point in points)))
        objects = stage.objects()
        wrong.clear()
        for point in points:
            expected = before[point.user]
            if states[point.user] == "stopped":
                expected = {k: v for k, v in expected.items() if k == "PersistentVolumeClaim"}
            if objects[point.user] != expected:
                wrong[point] = f"{states[point.user]}, but has {', '.join(objects[point.user])}"
        return not wrong

    try:
        await until(as_promised)
    except AssertionError:
        raise AssertionError({str(point): text for point, text in wrong.items()}) from None
    async with HubUser(stage.hub.url) as visitor:
        for user in (user for user, state in states.items() if state == "ready"):
            answer = await visitor.page(f"/user/{user}/")
            assert answer.status_code == 404
            assert "x-jupyterhub-version" not in answer.headers
    assert await stage.orphans() == []
    return states


async def all_go(stage: Stage, states: dict[str, str]) -> None:
    """Start what has stopped, stop everything, delete the users: volumes, then nothing is left."""
    stopped = [user for user, state in states.items() if state == "stopped"]
    await stage.click("POST", *stopped)
    assert set((await stage.settle(*states)).values()) == {"ready"}
    await stage.click("DELETE", *states)
    assert set((await stage.settle(*states)).values()) == {"stopped"}
    objects = stage.objects()
    assert {user: [*objects[user]] for user in states} == {
        user: ["PersistentVolumeClaim"] for user in states
    }
    await stage.click("DELETE", *states, server=False)
    assert stage.kube.owned(stage.space) == []


async def one_death(stage: Stage, points: list[Point], die: Callable[[], Awaitable[None]]) -> None:
    before = await stick(stage, points)
    await die()
    stage.proxy.up()
    await stage.hub.start()
    states = await adopted_or_removed(stage, points, before)
    report("; ".join(f"{point}: {states[point.user]}" for point in points))
    await all_go(stage, states)


async def test_a_hub_killed_at_each_request_loses_and_leaves_nothing(
    stage: Stage, points: list[Point], faults: Faults
) -> None:
    assert {(p.during, p.verb) for p in points} == {
        ("start", "patch"),
        ("stop", "deletecollection"),
    }
    for _ in faults("the hub is killed at each write of a start and of a stop"):
        for index in range(0, len(points), AT_ONCE):
            await one_death(stage, points[index : index + AT_ONCE], stage.hub.kill)
        faults.saw("points", len(points))


async def test_a_hub_that_is_told_to_end_at_any_request_loses_and_leaves_nothing(
    stage: Stage, points: list[Point], faults: Faults
) -> None:
    """Half of the points at each turn."""
    for turn in faults("the hub gets SIGTERM at a write of a start or a stop"):
        half = points[turn % 2 :: 2]
        for index in range(0, len(half), AT_ONCE):
            await one_death(stage, half[index : index + AT_ONCE], stage.hub.stop)
        faults.saw("points", len(half))
