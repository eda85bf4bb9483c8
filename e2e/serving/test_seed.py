"""A chart and a configuration as written for KubeTemplateSpawner, under our class name only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from e2e.cluster import Cluster
from e2e.conftest import CHARTS, Kube, MakeHub, signed_in
from e2e.harness.hub import Hub
from e2e.harness.user import ServerFailedError

SEED = CHARTS / "seed"


async def test_its_chart_runs_with_few_settings(
    make_hub: MakeHub, kube: Kube, cluster: Cluster, space: str
) -> None:
    extra = {"image": cluster.image, "serviceEnabled": True}
    async with (
        make_hub(template_path=str(SEED), instance_name="jupyter", extra_vars=extra) as hub,
        signed_in(hub, "dora") as user,
    ):
        await user.run_server()
        running = ["PersistentVolumeClaim/jupyter-dora", "Pod/jupyter-dora", "Service/jupyter-dora"]
        assert kube.owned(space) == running
        service = kube.get("service", space, "jupyter-dora")
        assert service is not None
        assert service["spec"]["ports"] == [
            {"name": "http", "port": 8888, "protocol": "TCP", "targetPort": 8888}
        ]
        log = hub.log.read_text()
        assert re.search(r"Service/\S+/jupyter-dora .*target_port is not part of a Service", log)
        assert f"dora is ready at http://{service['spec']['clusterIP']}:8888" in log
        assert await user.run_code("6 * 7") == "42"
        await user.stop_server()
        assert kube.owned(space) == ["PersistentVolumeClaim/jupyter-dora"]
        await hub.delete_user("dora")
        assert kube.owned(space) == []


async def test_its_chart_runs_with_every_setting(
    make_hub: MakeHub, kube: Kube, cluster: Cluster, space: str, tmp_path: Path
) -> None:
    """The chart's words are changed to others that only the traits can have told us."""
    chart = copytree(SEED, tmp_path / "chart")
    rewrite(chart, lambda text: text.replace("kubetemplatespawner/", "example.org/"))
    rewrite(chart, lambda text: text.replace("claimName: jupyter-", "claimName: second-"))
    config = f"""
async def variables(spawner):
    image = "localhost/none:e2e" if spawner.user.name == "lost" else {cluster.image!r}
    return {{"image": image, "serviceEnabled": False}}

c.LightkubeTemplateSpawner.extra_vars = variables
c.LightkubeTemplateSpawner.pre_spawn_hook = lambda spawner: (
    setattr(spawner, "k8s_timeout", 3 if spawner.user.name == "lost" else 60)
)
"""
    async with make_hub(
        config,
        template_path=str(chart),
        instance_name="second",
        namespace=space,
        connection_annotation_key="example.org/connection",
        lifecycle_annotation_key="example.org/lifecycle",
        resource_kinds=["v1/Pod", "v1/Service", "v1/PersistentVolumeClaim"],
        k8s_timeout=60,
    ) as hub:
        await start_use_and_remove(hub, kube, space)
        await fail_in_time(hub, kube, space)


async def start_use_and_remove(hub: Hub, kube: Kube, space: str) -> None:
    async with signed_in(hub, "dora") as user:
        await user.run_server()
        assert kube.owned(space) == ["PersistentVolumeClaim/second-dora", "Pod/second-dora"]
        pod = kube.get("pod", space, "second-dora")
        assert pod is not None
        log = hub.log.read_text()
        assert f"dora is ready at http://{pod['status']['podIP']}:8888" in log
        assert await user.run_code("6 * 7") == "42"
        labels = pod["metadata"]["labels"]
        assert labels["example.org/lifecycle"] == "server-stopped"
        planted = {"name": "planted", "namespace": space, "labels": labels}
        kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": planted})
        await user.stop_server()
    left = ["ConfigMap/planted", "PersistentVolumeClaim/second-dora"]
    assert kube.owned(space) == left
    await hub.delete_user("dora")
    assert kube.owned(space) == ["ConfigMap/planted"]  # not one of `resource_kinds`
    kube("delete", "configmap", "planted", "-n", space)


async def fail_in_time(hub: Hub, kube: Kube, space: str) -> None:
    async with signed_in(hub, "lost") as user:
        await user.start_server()
        with pytest.raises(ServerFailedError, match=r"not ready after 3 s: .*Pod/\S+/second-lost"):
            await user.wait_ready()
    await hub.delete_user("lost")
    assert kube.owned(space) == []


def rewrite(chart: Path, change: Callable[[str], str]) -> None:
    for file in (chart / "templates").iterdir():
        old = file.read_text()
        file.write_text(change(old))
