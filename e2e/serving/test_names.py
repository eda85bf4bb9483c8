"""Names that YAML, Kubernetes, shells or URLs could mistake: each user gets what is theirs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest

from e2e.cluster import Cluster
from e2e.conftest import CHARTS, Kube, MakeHub, signed_in
from e2e.harness.hub import Hub, user_path

WITH_JUPYTER = ["ünï çødé+@x.org", 'a"b: {c}']
# Some of these are one word to a YAML reader that guesses: `y` was `true`, `1e3` is `1000.0`.
LIGHT = ["x" * 59 + "a", "x" * 59 + "b", "12345", "y", "true", "1e3", "1000.0", "null"]
NAMES = [*WITH_JUPYTER, *LIGHT]

LEAVE_A_FILE = """
import json, os
open(os.environ["JUPYTERHUB_USER"], "w").close()
print(json.dumps(sorted(name for name in os.listdir() if not name.startswith("."))))
"""


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub, cluster: Cluster) -> AsyncGenerator[Hub]:
    values = "lambda spawner: spawner.user_options"
    config = f"c.LightkubeTemplateSpawner.extra_vars = {values}\n"
    async with make_hub(config, template_path=str(CHARTS / "volumes")) as hub:
        yield hub


async def start(hub: Hub, name: str, values: dict[str, Any]) -> None:
    await hub.create_user(name)
    await hub.api("POST", user_path(name, "server"), json=values)
    with anyio.fail_after(100):
        while True:
            servers = (await hub.api("GET", user_path(name)))["servers"]
            assert "" in servers, f"{name!r} did not start:\n{hub.log_tail(200)}"
            if servers[""]["ready"]:
                return
            await anyio.sleep(0.5)


async def test_each_name_has_its_own_server_and_volume(
    hub: Hub, kube: Kube, cluster: Cluster, space: str
) -> None:
    async with anyio.create_task_group() as group:
        for name in LIGHT:
            group.start_soon(start, hub, name, {"image": cluster.tiny_image})
        for name in WITH_JUPYTER:
            group.start_soon(start, hub, name, {"image": cluster.image, "jupyter": True})

    assert sorted(await hub.users()) == sorted(["admin", *NAMES])
    pods, claims = kube.list("pods", space), kube.list("pvc", space)
    assert sorted(map(owner, pods)) == sorted(NAMES)
    assert sorted(map(owner, kube.list("secrets", space))) == sorted(NAMES)
    assert sorted(map(owner, claims)) == sorted(2 * NAMES)  # a home and a scratch volume
    owners = {claim["metadata"]["name"]: owner(claim) for claim in claims}
    for pod in pods:
        mounted = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]]
        assert [owners[claim] for claim in mounted] == [owner(pod)] * 2
        if owner(pod) in LIGHT:
            shown = kube("exec", pod["metadata"]["name"], "-n", space, "--", "cat", "who")
            assert shown == f"{owner(pod)}\n"

    for name in WITH_JUPYTER:
        async with signed_in(hub, name) as user:
            assert json.loads(await user.run_code(LEAVE_A_FILE)) == sorted([name, "scratch"])

    async with anyio.create_task_group() as group:
        for name in NAMES:
            group.start_soon(hub.delete_user, name)
    assert kube.owned(space) == []


def owner(item: dict[str, Any]) -> str:
    """The user's name as it was written, on each object."""
    name: str = item["metadata"]["annotations"]["hub.jupyter.org/username"]
    return name
