"""What a selection changes: by the table, in order, for one start only."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightkube_template_spawner.choices import Applied, Choices, merged
from lightkube_template_spawner.choices.overrides import ALIASES, TARGETS
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from tests.choices.samples import applied, documented, ours, spawner

CHART = Path(__file__).parents[2] / "charts" / "user-server" / "values.yaml"


async def overridden(override: dict[str, Any], **settings: Any) -> Applied:
    choices = Choices.load([{"display_name": "A", "kubespawner_override": override}])
    return await applied(choices.select({}, "ada"), **settings)


async def typed(text: str, **layer: Any) -> Applied:
    choices = Choices.load(
        [
            {
                "display_name": "A",
                "profile_options": {"o": {"unlisted_choice": {"enabled": True, **layer}}},
            }
        ]
    )
    return await applied(choices.select({"o--unlisted-choice": text}, "ada"))


def test_every_trait_of_the_table_is_one_of_the_spawner() -> None:
    traits = LightkubeTemplateSpawner.class_traits(config=True).keys()
    assert {target.trait for target in TARGETS.values() if target.trait} - traits == set()


def test_every_name_of_the_table_is_one_of_kubespawner() -> None:
    code = "from kubespawner import KubeSpawner; print(*KubeSpawner.class_trait_names(config=True))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert TARGETS.keys() - set(run.stdout.split()) == set()


def test_every_value_of_the_table_is_one_of_the_default_chart() -> None:
    defaults = yaml.safe_load(CHART.read_text())
    tops = {target.value[0] for target in TARGETS.values() if target.value}
    assert tops - defaults.keys() == set()
    assert {
        name for name, target in TARGETS.items() if bool(target.trait) is bool(target.value)
    } == set()
    assert set(ALIASES.values()) <= TARGETS.keys()


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ({"image": "x:1"}, {"image": "x:1"}),
        ({"image_spec": "x:1"}, {"image": "x:1"}),
        ({"image_pull_policy": "Always"}, {"imagePullPolicy": "Always"}),
        ({"image_pull_secrets": "a"}, {"imagePullSecrets": [{"name": "a"}]}),
        (
            {"image_pull_secrets": ["a", {"name": "b"}]},
            {"imagePullSecrets": [{"name": "a"}, {"name": "b"}]},
        ),
        ({"node_selector": {"gpu": "yes"}}, {"nodeSelector": {"gpu": "yes"}}),
        ({"extra_resource_limits": {"x/gpu": 1}}, {"resources": {"limits": {"x/gpu": 1}}}),
        ({"extra_resource_guarantees": {"x/gpu": 1}}, {"resources": {"requests": {"x/gpu": 1}}}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "a"}]}),
        (
            {"volumes": {"b": {"name": "b"}, "a": {"name": "a"}}},
            {"extraVolumes": [{"name": "a"}, {"name": "b"}]},
        ),
        ({"uid": 0, "gid": None, "fs_gid": 5}, {"uid": 0, "gid": None, "fsGroup": 5}),
        ({"supplemental_gids": [7]}, {"podSecurityContext": {"supplementalGroups": [7]}}),
        ({"privileged": True}, {"containerSecurityContext": {"privileged": True}}),
        ({"storage_capacity": "9Gi"}, {"storage": {"size": "9Gi"}}),
        (
            {"node_affinity_required": [{"matchExpressions": []}]},
            {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": []}]
                        }
                    }
                }
            },
        ),
    ],
)
async def test_settings_become_values_of_the_template(
    override: dict[str, Any], values: dict[str, Any]
) -> None:
    assert await overridden(override) == Applied(values=values)


async def test_settings_that_we_have_too_stay_traits() -> None:
    override = {"cpu_limit": 2, "cmd": ["start.sh"], "mem_limit": "2G", "default_url": "/lab"}
    assert await overridden(override) == Applied(traits=override)


async def test_an_override_never_sticks() -> None:
    profile_list = documented()
    profile_list[0]["kubespawner_override"]["environment"] = {"A": {"b": ["c"]}}
    choices = Choices.load(profile_list)
    before = spawner(environment={"A": {"x": 1}, "B": "2"})
    untouched = deepcopy(before)
    first = await choices.select({"profile": "demo-1"}, "ada").overrides.applied(before)
    assert first.traits["environment"] == {"A": {"x": 1, "b": ["c"]}, "B": "2"}
    first.traits["environment"]["A"]["b"].append("d")
    first.values["image"] = "changed"
    assert before == untouched
    again = await choices.select({"profile": "demo-1"}, "ada").overrides.applied(before)
    assert again.traits["environment"]["A"]["b"] == ["c"]
    assert again.values["image"] == "jupyter/minimal-notebook:latest"
    second = await choices.select({"profile": "demo-2"}, "ada").overrides.applied(before)
    assert second.traits == {}


async def test_typed_text_never_sticks_in_the_list() -> None:
    choices = Choices.load(documented())
    for text in ("jupyter/a:1", "jupyter/b:2"):
        selection = choices.select({"profile": "demo-1", "image--unlisted-choice": text}, "ada")
        assert (await applied(selection)).values["image"] == text


async def test_mappings_merge_lists_replace_and_none_removes() -> None:
    profile_list: list[dict[str, Any]] = [
        {
            "display_name": "A",
            "kubespawner_override": {
                "environment": {"A": "1", "OLD": None},
                "tolerations": [{"key": "a"}],
                "node_selector": {"a": "1", "b": "2"},
            },
            "profile_options": {
                "o": {
                    "choices": {
                        "x": {
                            "kubespawner_override": {
                                "environment": {"A": None, "B": "2"},
                                "tolerations": [{"key": "b"}],
                                "node_selector": {"a": None},
                            }
                        }
                    }
                }
            },
        }
    ]
    result = await applied(
        Choices.load(profile_list).select({}, "ada"), environment={"OLD": "0", "KEPT": "k"}
    )
    assert result.traits == {"environment": {"KEPT": "k", "B": "2"}}
    # None stays: Helm takes it for "without the chart's default".
    assert result.values == {"tolerations": [{"key": "b"}], "nodeSelector": {"a": None, "b": "2"}}


async def test_what_is_further_down_wins_whichever_way_it_is_written() -> None:
    profile_list = [
        {
            "display_name": "A",
            "values": {"image": "profile"},
            "profile_options": {
                "o": {"choices": {"x": {"kubespawner_override": {"image": "choice"}}}},
                "p": {"choices": {"x": {"values": {"uid": 3}, "kubespawner_override": {"uid": 2}}}},
            },
        }
    ]
    result = await applied(Choices.load(profile_list).select({}, "ada"))
    assert result.values == {"image": "choice", "uid": 3}


async def test_mappings_of_named_volumes_merge_as_in_kubespawner() -> None:
    profile_list = [
        {
            "display_name": "A",
            "kubespawner_override": {"volumes": {"b": {"name": "b"}, "c": {"name": "c"}}},
            "profile_options": {
                "o": {
                    "choices": {
                        "x": {"kubespawner_override": {"volumes": {"a": {"name": "a"}, "c": None}}}
                    }
                }
            },
        }
    ]
    result = await applied(Choices.load(profile_list).select({}, "ada"))
    assert result.values == {"extraVolumes": [{"name": "a"}, {"name": "b"}]}


async def test_functions_are_called_with_the_spawner_async_ones_awaited() -> None:
    async def url(spawner: Any) -> str:
        return f"/lab/{spawner.name}"

    result = await overridden(
        {"default_url": url, "image": lambda spawner: spawner.name}, name="ada"
    )
    assert result == Applied(traits={"default_url": "/lab/ada"}, values={"image": "ada"})


async def test_what_a_function_raises_names_its_place() -> None:
    def image(spawner: Any) -> str:
        raise LookupError("no such course")

    with pytest.raises(LookupError, match="no such course") as caught:
        await overridden({"image": image})
    assert caught.value.__notes__ == [
        "in the function of profile_list[0] ('a').kubespawner_override.image"
    ]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{value}", "x"),
        ("jupyter/{value}:{value}", "jupyter/x:x"),
        ("{other}-{value}", "{other}-x"),
        ("{{value}} {{{value}}}", "{value} {x}"),
        ("{} { }", "{} { }"),
    ],
)
async def test_what_was_typed_is_put_in_and_other_braces_stay(template: str, text: str) -> None:
    result = await typed("x", kubespawner_override={"image": template})
    assert result.values == {"image": text}


async def test_what_was_typed_is_never_read_as_a_pattern() -> None:
    hostile = "{value.__class__} {{}} \\1"
    result = await typed(hostile, values={"a": ["{value}"], "k {value}": 1})
    assert result.values == {"a": [hostile], f"k {hostile}": 1}


async def test_paths_of_typed_texts_are_told() -> None:
    result = await typed(
        "x",
        kubespawner_override={"image": "i:{value}", "environment": {"A": "{value}", "B": "b"}},
        values={"a": {"b": [{"c": "{value}"}], "d": "plain"}, "e": {"{value}": 1}},
    )
    assert result.typed == {("image",), ("environment", "A"), ("a", "b"), ("e",)}


async def test_a_number_alone_stays_a_number_and_is_not_told_as_typed() -> None:
    choices = Choices.load(ours())
    result = await applied(choices.select({"memory": "1.5"}, "ada"))
    assert result.traits == {"mem_limit": "1.5G"}
    assert result.values["memory"] == {"gib": 1.5}
    assert result.typed == {("branch",)}


def test_merging_changes_neither_side() -> None:
    base, new = {"a": {"b": [1]}}, {"a": {"c": {"d": 2}}}
    result = merged(base, new)
    assert result == {"a": {"b": [1], "c": {"d": 2}}}
    result["a"]["b"].append(2)
    result["a"]["c"]["d"] = 3
    assert (base, new) == ({"a": {"b": [1]}}, {"a": {"c": {"d": 2}}})
