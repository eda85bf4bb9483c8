"""What a server costs the API server, counted between the hub and the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import Cluster
from e2e.conftest import CHARTS, Kube, MakeHub, signed_in
from e2e.harness.faultproxy import FaultProxy, KubeConfig
from e2e.harness.user import HubUser

# One request for each object that the chart `volumes` renders, volumes only where they are new.
RUNNING = {("patch", "pods"): 1, ("patch", "secrets"): 1}
WITH_VOLUMES = {**RUNNING, ("patch", "persistentvolumeclaims"): 2}
# Events are watched while a start is pending, and a minute longer; rights are asked about again
# when the last answer is some seconds old.
PENDING = ["events", "selfsubjectrulesreviews"]
STOPPED = {("deletecollection", "pods"): 1, ("deletecollection", "secrets"): 1}


@pytest.fixture
def counted(kube: Kube) -> Iterator[FaultProxy]:
    with FaultProxy(KubeConfig(kube)) as counted:
        yield counted


async def test_requests_are_those_that_change_something(
    make_hub: MakeHub,
    counted: FaultProxy,
    cluster: Cluster,
    kube: Kube,
    space: str,
    tmp_path: Path,
) -> None:
    traits = {
        "kubeconfig": str(KubeConfig(kube).write(tmp_path / "kubeconfig", server=counted.url)),
        "template_path": str(CHARTS / "volumes"),
        "extra_vars": {"image": cluster.tiny_image},
        "report_orphans": False,  # that looks everywhere once, a second after the hub's start
        "check_at_hub_start": False,  # and this asks for what a first start asks
    }
    async with (
        make_hub(**traits) as hub,
        signed_in(hub, "ada") as ada,
        signed_in(hub, "bob") as bob,
    ):
        assert counted.requests == []
        await ada.run_server()
        watched = ("events", "persistentvolumeclaims", "pods", "secrets")
        once = {(verb, kind): 1 for verb in ("list", "watch") for kind in watched}
        once |= {("get", "/version"): 1, ("get", "/api"): 1, ("get", "/apis"): 1}
        once |= {("create", "selfsubjectrulesreviews"): 1}  # may we do all that the template needs?
        assert counted.since(0) == {**once, **WITH_VOLUMES}

        mark = counted.mark()
        await bob.run_server()
        assert counted.since(mark, but=PENDING) == WITH_VOLUMES

        mark = counted.mark()
        for _ in range(100):
            await poll(ada)
        assert counted.since(mark) == {}

        for user in (ada, bob):
            mark = counted.mark()
            await user.stop_server()
            assert counted.since(mark) == STOPPED
            mark = counted.mark()
            await user.run_server()
            assert counted.since(mark, but=PENDING) == RUNNING

        await ada.stop_server()
        mark = counted.mark()
        await hub.restart()  # a new hub looks once, whoever runs
        await ada.run_server()
        assert counted.since(mark) == {**once, **RUNNING}
        mark = counted.mark()
        await bob.stop_server()
        assert counted.since(mark) == STOPPED

        for name in ("ada", "bob"):
            await hub.delete_user(name)
    assert kube.owned(space) == []


async def poll(user: HubUser) -> None:
    """Ask for the server that runs already: the hub polls it before it refuses."""
    answer = await user.try_api("POST", f"users/{user.name}/server")
    assert answer.status_code == 400, answer.text
    assert "ada is already running" in answer.text
