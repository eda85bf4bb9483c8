"""What an administrator or the cluster gets wrong: users read what, and nothing is left behind."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from e2e.conftest import hub_fixture, signed_in
from e2e.harness import light
from e2e.harness.faultproxy import KubeConfig
from e2e.harness.hub import Hub, user_path
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser, ServerFailedError

KINDS = "pods,secrets,services,configmaps,persistentvolumeclaims"
OURS = "lightkube-template-spawner/owner"

CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {key: value}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {ports: [{port: 80}]}
"""
UNKNOWN = "apiVersion: example.com/v1\nkind: Nothing\nmetadata: {name: nothing}\n"
LONG = "n" * 64
OTHERS = "  labels: {hub.jupyter.org/username: somebody-else}"
ELSEWHERE = "  namespace: kube-system"
ENTRY = "annotations:"  # where a pod's metadata can be added to
BAD_CHARTS = {
    "a syntax error": (
        {"pod": light.pod() + "{{ if }}"},
        r"templates/pod.yaml.*missing value for if",
    ),
    "a missing function": (
        {"pod": light.pod() + "{{ nonsense 1 }}"},
        r'templates/pod.yaml.*function "nonsense" not defined',
    ),
    "a failing template": (
        {"pod": light.pod(), "check": '{{ fail "set the image" }}'},
        "templates/check.yaml.*set the image",
    ),
    "not YAML": (
        {"pod": light.pod(), "other": "a: b: c"},
        "templates/other.yaml.*line 1, column 5: mapping values are not allowed",
    ),
    "not an object": ({"pod": light.pod(), "other": "just text"}, "other.yaml: a document is a"),
    "nothing at all": ({"pod": "{{ if false }}x: y{{ end }}"}, "rendered no object at all"),
    "no connection": ({"pod": light.pod(connection=False)}, "no object has the annotation kube"),
    "two connections": (
        {"pod": light.pod("one"), "other": light.pod("two")},
        r"2 objects have the annotation .*Pod/\S+/(one|two) .*Pod/\S+/(one|two)",
    ),
    "an unknown kind": (
        {"pod": light.pod(), "other": UNKNOWN},
        r"serves no example.com/v1/Nothing",
    ),
    "a long name": (
        {"pod": light.pod(), "other": SERVICE.replace("NAME", LONG)},
        f"Service/.*{LONG}.*its name has 64 characters, more than 63",
    ),
    "a duplicate": (
        {"pod": light.pod(), "one": CONFIG_MAP, "two": CONFIG_MAP},
        r"ConfigMap/\S+/config .*two.yaml.* is rendered twice, also in .*one.yaml",
    ),
    "another user's label": (
        {"pod": light.pod(metadata=OTHERS)},
        r"Pod/\S+ .*label hub.jupyter.org/username: 'somebody-else' is not this server's",
    ),
    "another namespace": (
        {"pod": light.pod(metadata=ELSEWHERE)},
        "namespace 'kube-system' is neither .* nor listed in the trait `extra_namespaces`",
    ),
    "a cluster's object": (
        {"pod": light.pod(), "other": "apiVersion: v1\nkind: Namespace\nmetadata: {name: mine}"},
        "Namespace/mine .* belongs to no namespace; allow its kind in the trait `cluster_kinds`",
    ),
    "a refused object": (
        {
            "config": CONFIG_MAP,
            "secret": light.secret(),
            "pod": light.pod().replace("image:", "ports: [{containerPort: 99999}]\n      image:"),
        },
        r"Pod/\S+ .*pod.yaml\) was refused: .*containerPort.* between 1 and 65535",
    ),
}

hub = hub_fixture(light.OPTIONS_ARE_TRAITS, start_timeout=20)


@pytest.fixture(scope="module")
async def user(hub: Hub) -> AsyncGenerator[HubUser]:
    async with signed_in(hub, "unlucky") as user:
        yield user


def left(kube: Kube, space: str) -> list[str]:
    return [item["metadata"]["name"] for item in kube.list(KINDS, space, OURS)]


async def failure(user: HubUser, template: str, **traits: object) -> str:
    """What the user reads on the spawn page."""
    await user.start_server(options={"template_path": template, **traits})
    with pytest.raises(ServerFailedError) as failed:
        await user.wait_ready()
    assert await user.servers() == {}
    return str(failed.value)


@pytest.mark.parametrize("case", BAD_CHARTS)
async def test_a_bad_chart_is_explained_and_leaves_nothing(
    user: HubUser, kube: Kube, space: str, tmp_path: Path, case: str
) -> None:
    templates, reason = BAD_CHARTS[case]
    text = await failure(user, light.chart(tmp_path, **templates))
    assert re.search(reason, text, re.DOTALL), text
    assert left(kube, space) == []


async def test_a_template_that_is_none_is_explained(
    user: HubUser, kube: Kube, space: str, tmp_path: Path
) -> None:
    assert f"There is no template at {tmp_path}/nowhere" in await failure(
        user, f"{tmp_path}/nowhere"
    )
    (tmp_path / "pod.yaml").write_text(light.pod())
    assert "is not a Helm chart: it has no Chart.yaml" in await failure(user, str(tmp_path))
    # The page that the user comes back to says it, too.
    page = await user.page(f"/hub/spawn-pending/{user.name}")
    assert "is not a Helm chart: it has no Chart.yaml" in page.text
    assert left(kube, space) == []


async def test_values_that_the_charts_schema_refuses_are_explained(
    user: HubUser, kube: Kube, space: str, tmp_path: Path
) -> None:
    chart = light.chart(tmp_path, pod=light.pod())
    schema = {"properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"]}
    (tmp_path / "values.schema.json").write_text(json.dumps(schema))
    assert re.search("size.*is required|missing property 'size'", await failure(user, chart))
    text = await failure(user, chart, extra_vars={"size": "huge"})
    assert re.search("size.*(small|'small').*large", text, re.DOTALL)
    assert left(kube, space) == []


async def test_a_namespace_that_does_not_exist_is_explained(
    user: HubUser, kube: Kube, tmp_path: Path
) -> None:
    chart = light.chart(tmp_path, pod=light.pod(), secret=light.secret())
    text = await failure(user, chart, namespace="not-there")
    assert 'namespaces "not-there" not found' in text
    assert "Secret/not-there/jupyter-unlucky" in text


async def test_an_api_server_that_does_not_answer_is_named(
    user: HubUser, kube: Kube, tmp_path: Path
) -> None:
    kubeconfig = KubeConfig(kube).write(tmp_path / "kubeconfig", server="https://127.0.0.1:9")
    chart = light.chart(tmp_path / "chart", pod=light.pod())
    text = await failure(user, chart, kubeconfig=str(kubeconfig))
    assert "the API server https://127.0.0.1:9 did not answer" in text


async def test_a_hub_that_met_all_this_still_starts_servers(
    user: HubUser, kube: Kube, space: str, tmp_path: Path
) -> None:
    chart = light.chart(tmp_path, pod=light.pod(), secret=light.secret())
    await user.run_server(options={"template_path": chart})
    await user.stop_server()
    assert left(kube, space) == []


BAD_INSTANCE = "instance_name = 'not a label!'"
BAD_KINDS = "resource_kinds = ['Pod']"


async def test_a_hub_with_bad_traits_names_them_and_forgets_no_server(
    hub: Hub, user: HubUser, kube: Kube, space: str, tmp_path: Path
) -> None:
    """It does not start while servers run that it would not find; else the first start fails."""
    config = hub.folder / "jupyterhub_config.py"
    good = config.read_text()
    chart = light.chart(tmp_path, pod=light.pod())
    await user.run_server(options={"template_path": chart})
    await hub.stop()
    config.write_text(f"{good}\nc.LightkubeTemplateSpawner.{BAD_INSTANCE}\n")
    with pytest.raises(RuntimeError, match=r"(?s)hub ended.*'not a label!' is not a label value"):
        await hub.start()
    config.write_text(good)
    await hub.start()
    assert (await user.servers())[""]["ready"]
    await user.stop_server()
    config.write_text(f"{good}\nc.LightkubeTemplateSpawner.{BAD_KINDS}\n")
    await hub.restart()
    answer = await hub.request("POST", user_path(user.name, "servers", ""))
    assert answer.status_code == 500
    await hub.wait_for_log("resource_kinds: 'Pod' is not written as `v1/Pod`")
    page = await user.page("/hub/home")
    assert page.status_code == 500
    assert "&#39;resource_kinds&#39; of LightkubeTemplateSpawner cannot be used" in page.text
    config.write_text(good)
    await hub.restart()
    assert left(kube, space) == []
