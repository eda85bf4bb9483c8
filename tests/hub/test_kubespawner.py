"""Which of KubeSpawner's settings have no effect, and what is said of them."""

from __future__ import annotations

import pytest
from traitlets.config import Config

from lightkube_template_spawner.hub.kubespawner import unread
from lightkube_template_spawner.hub.settings import default_chart
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from lightkube_template_spawner.templates.chart import check_template


def said(chart: str = "", **settings: object) -> list[str]:
    config = Config({"KubeSpawner": settings, "LightkubeTemplateSpawner": {"cmd": ["mine"]}})
    return unread(LightkubeTemplateSpawner, config, {"templates/pod.yaml": chart.encode()})


def test_settings_without_effect_are_named_in_one_line_with_the_mend() -> None:
    [line] = said(
        init_containers=[{"name": "block-metadata"}],
        node_selector={"a": "b"},
        service_account="hub",
        modify_pod_hook=lambda spawner, pod: pod,
        default_url="/lab",
    )
    assert "init_containers, node_selector, service_account (a chart can read them" in line
    assert "`.Values.kubespawner.init_containers`" in line
    assert "modify_pod_hook (no plain values" in line
    assert "default_url (set as c.LightkubeTemplateSpawner.default_url)" in line


def test_what_has_an_effect_is_not_named() -> None:
    assert said(cpu_limit=1, environment={"A": "b"}) == []
    assert said(cmd=["theirs"]) == []  # the spawner's own section has it
    assert said() == []


@pytest.mark.parametrize(
    "chart",
    [
        "{{ toYaml .Values.kubespawner.tolerations }}",
        '{{ index .Values "kubespawner" "tolerations" }}',
        '{{ index $kubespawner "tolerations" | default dict }}',
        "{{ (.Values.kubespawner).tolerations }}",
        "{{ with .Values.kubespawner }}{{ .tolerations }}{{ end }}",
    ],
)
def test_what_the_template_reads_has_an_effect(chart: str) -> None:
    [line] = said(chart, tolerations=[], node_selector={})[:1] or [""]
    assert "tolerations" not in line
    assert ("node_selector" in line) == ("with" not in chart)


def test_only_templates_read_settings_and_only_plain_values() -> None:
    config = Config({"KubeSpawner": {"tolerations": [], "modify_pod_hook": lambda _, pod: pod}})
    reads = b"{{ .Values.kubespawner.tolerations }}{{ .Values.kubespawner.modify_pod_hook }}"
    [line] = unread(LightkubeTemplateSpawner, config, {"README.md": reads})
    assert "tolerations (a chart can read them" in line
    [line] = unread(LightkubeTemplateSpawner, config, {"templates/pod.yaml": reads})
    assert line.endswith(": modify_pod_hook (no plain values, so that no chart can read them)")


def test_of_the_packaged_chart_what_it_reads_is_known() -> None:
    chart = check_template(default_chart()).files
    config = Config({"KubeSpawner": {"image": "i", "extra_labels": {}, "storage_capacity": "1Gi"}})
    [line] = unread(LightkubeTemplateSpawner, config, chart)
    assert "no effect with this spawner: storage_capacity (" in line
