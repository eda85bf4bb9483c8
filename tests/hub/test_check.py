"""What a hub that starts says of settings that cannot work."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from traitlets import TraitError
from traitlets.config import Config
from traitlets.config.loader import DeferredConfigString

from lightkube_template_spawner.hub import check as module
from lightkube_template_spawner.hub import startup
from lightkube_template_spawner.hub.settings import default_chart
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from tests.support.charts import write_chart
from tests.support.fake_apiserver import FakeApiServer, Fault
from tests.support.hub import FakeHub, running_hub

log = logging.getLogger("hub")


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    return write_chart(tmp_path / "chart", "kind: Pod\n")


async def lines(hub: FakeHub, **settings: Any) -> list[str]:
    hub.config.LightkubeTemplateSpawner.update(settings)
    return await module.problems(LightkubeTemplateSpawner, hub.config, log)


def exists(fake: FakeApiServer, *namespaces: str) -> None:
    for name in namespaces:
        fake.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


async def test_what_works_is_not_worth_a_word(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    exists(fake, "hub")
    async with running_hub(fake, tmp_path, chart) as hub:
        assert await lines(hub) == []
    assert fake.count("(PATCH|PUT|DELETE)") == 0


async def test_an_absent_namespace_is_named_with_the_command_that_makes_it(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    exists(fake, "hub")
    async with running_hub(fake, tmp_path, chart) as hub:
        [line] = await lines(hub, namespace="newcomer")
        assert "'newcomer' does not exist" in line
        assert "kubectl create namespace newcomer" in line
        assert "set `namespace`" in line
        [line] = await lines(hub, namespace="hub", extra_namespaces=["also", "user-*"])
        assert "'also' does not exist" in line
        assert "`extra_namespaces`" in line
        assert await lines(hub, namespace="later", cluster_kinds=["v1/Namespace"]) == []


async def test_rights_in_a_namespace_that_is_absent_are_not_spoken_of(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    fake.rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]
    async with running_hub(fake, tmp_path, chart, namespace="newcomer") as hub:
        [line] = await lines(hub)
        assert "'newcomer' does not exist" in line


async def test_an_account_that_may_not_read_the_namespace_is_believed(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    fake.forbidden.add(("get", "namespaces"))
    async with running_hub(fake, tmp_path, chart) as hub:
        assert await lines(hub) == []


async def test_missing_rights_are_named_with_the_rules_to_add(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    exists(fake, "hub")
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    fake.rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}, pods]
    async with running_hub(fake, tmp_path, chart) as hub:
        [line] = await lines(hub)
        assert line.startswith(
            "the hub's account hub may not list or watch pods in namespace 'hub'"
        )
        assert "resources: [pods], verbs: [list, watch]" in line
        assert "\n" not in line
        [line] = await lines(hub, template_path="")  # of the packaged chart more is known
        assert "resources: [secrets]" in line


async def test_the_packaged_chart_makes_the_pods_itself(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    exists(fake, "hub")
    fake.forbidden.add(("create", "pods"))
    async with running_hub(fake, tmp_path, default_chart()) as hub:
        assert await lines(hub) == []  # of a chart of their own only a start tells
        [line] = await lines(hub, template_path="")
        assert "may not create pods in namespace 'hub'" in line


async def test_with_several_namespaces_only_a_start_tells_where_rights_are_needed(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    exists(fake, "hub", "also")
    fake.rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]
    async with running_hub(fake, tmp_path, chart) as hub:
        assert await lines(hub, extra_namespaces=["also"]) == []


async def test_settings_of_kubespawner_without_effect_are_named(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    exists(fake, "hub")
    (chart / "templates" / "pod.yaml").write_text("{{ toYaml .Values.kubespawner.tolerations }}\n")
    async with running_hub(fake, tmp_path, chart) as hub:
        hub.config.KubeSpawner.update(init_containers=[{"name": "a"}], tolerations=[])
        [line] = await lines(hub)
        assert "of c.KubeSpawner have no effect with this spawner: init_containers (" in line
        _, line = await lines(hub, template_path=str(tmp_path / "nowhere"))
        assert "init_containers, tolerations" in line


async def test_a_chart_that_cannot_render_is_named(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    exists(fake, "hub")
    async with running_hub(fake, tmp_path, chart) as hub:
        [line] = await lines(hub, template_path=str(tmp_path / "nowhere"))
        assert line.startswith("c.LightkubeTemplateSpawner.template_path: There is no template at")


async def test_a_cluster_that_cannot_be_reached_is_named_in_bounded_time(
    fake: FakeApiServer, tmp_path: Path, chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    fake.faults.append(Fault(error=lambda: httpx2.ConnectError("refused"), times=9999))
    async with running_hub(fake, tmp_path, chart) as hub:
        [line] = await lines(hub)
        assert "did not answer within 0 s" in line
        assert "refused" in line
        assert "`kubeconfig`" in line
        everywhere = {"cluster_kinds": ["v1/Namespace"], "extra_namespaces": ["also"]}
        [line] = await lines(hub, **everywhere)  # of which nothing else would be asked
        assert "did not answer within 0 s" in line
        [line] = await lines(hub, kubeconfig=str(tmp_path / "missing"))
        assert str(tmp_path / "missing") in line
        assert "`kubeconfig`" in line


async def test_a_cluster_that_refuses_the_hub_is_named(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    fake.faults.append(Fault(answer=lambda: httpx2.Response(401), times=9999))
    async with running_hub(fake, tmp_path, chart) as hub:
        assert await lines(hub) == ["the API server refuses the hub: Unauthorized"]


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("LightkubeTemplateSpawner", "2GB"),
        ("Spawner", "2GB"),
        ("KubeSpawner", "2GB"),
        ("LightkubeTemplateSpawner", DeferredConfigString("2GB")),
    ],
)
async def test_a_value_that_its_trait_refuses_is_named_with_its_section(
    section: str, value: object
) -> None:
    config = Config({section: {"mem_limit": value, "cpu_limit": 1.0}})
    [line] = await module.problems(LightkubeTemplateSpawner, config, log)
    assert line.startswith(f"c.{section}.mem_limit cannot be used: 2GB is not a valid")
    with pytest.raises(TraitError, match=rf"^c.{section}.mem_limit cannot be used") as refused:
        LightkubeTemplateSpawner(config=config)
    assert "the setting 'mem_limit'" in vars(refused.value)["jupyterhub_message"]


async def test_values_that_their_traits_take_are_not_named() -> None:
    """Those of the command line and of in-place changes, too."""
    config = Config()
    config.KubeSpawner.environment.update({"A": "1"})
    config.Spawner.start_timeout = DeferredConfigString("77")
    config.LightkubeTemplateSpawner.failure_rules = {"image": {"grace": None}}
    assert list(module.unusable(LightkubeTemplateSpawner, config)) == []


async def test_the_hub_logs_a_line_for_each_unless_told_not_to(
    fake: FakeApiServer, tmp_path: Path, chart: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_hub(fake, tmp_path, chart, namespace="absent") as hub:
        app = SimpleNamespace(
            config=hub.config, spawner_class=LightkubeTemplateSpawner, log=logging.getLogger("hub")
        )
        await startup.check(app)
        [record] = caplog.records
        assert record.levelname == "ERROR"
        assert "'absent' does not exist" in record.getMessage()
        caplog.clear()
        before = len(fake.requests)
        hub.config.LightkubeTemplateSpawner.check_at_hub_start = False
        await startup.check(app)
        assert (caplog.records, len(fake.requests)) == ([], before)
