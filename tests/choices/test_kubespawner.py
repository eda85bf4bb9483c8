"""Plain profile lists give what KubeSpawner gives, and its faults with them are none of ours."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightkube_template_spawner.choices import Choices, ChoicesRefused, Selection
from lightkube_template_spawner.choices.overrides import TARGETS
from tests.choices.samples import applied, documented
from tests.support.connect import kubeconfig

SCRIPT = Path(__file__).with_name("kubespawner_answers.py")
ENVIRONMENT = {"BASE": "0", "OLD": "0"}
NAMES = [
    "args",
    "cpu_limit",
    "default_url",
    "environment",
    "extra_labels",
    "extra_resource_limits",
    "image",
    "mem_limit",
    "node_selector",
    "tolerations",
    "uid",
]
CASES = 250


def theirs(folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, SCRIPT],
        input=json.dumps({"cases": cases, "names": NAMES}),
        env={**os.environ, "KUBECONFIG": str(kubeconfig(folder)), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answers: list[dict[str, Any]] = json.loads(run.stdout)
    return answers


async def traits(selection: Selection) -> dict[str, Any]:
    """What ours comes to, by KubeSpawner's names, over what its traits have before."""
    result = await applied(selection, environment=ENVIRONMENT)
    found: dict[str, Any] = {}
    for name in NAMES:
        target = TARGETS[name]
        value: Any = result.traits.get(target.trait) if target.trait else result.values
        for part in target.value:
            value = (value or {}).get(part)
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if item is not None}
        if value is not None:
            found[name] = value
    return found


def override(rng: random.Random) -> dict[str, Any]:
    few: dict[str, list[Any]] = {
        "args": [["--a"], ["--b", "--c"]],
        "cpu_limit": [1, 2.5],
        "default_url": ["/lab", "/tree"],
        "environment": [{"A": "1"}, {"A": None, "B": "2"}, {"OLD": None}],
        "extra_labels": [{"l": "1"}, {"l": "2", "m": "3"}],
        "extra_resource_limits": [{"x/gpu": "1"}, {"x/gpu": None}],
        "image": ["a:1", "b:2"],
        "mem_limit": [2**30, 2**31],
        "node_selector": [{"n": "1"}, {"n": None, "o": "2"}],
        "tolerations": [[{"key": "a"}], []],
        "uid": [0, 1000],
    }
    return {name: rng.choice(values) for name, values in few.items() if rng.random() < 0.3}


def option(rng: random.Random) -> dict[str, Any]:
    choices = {key: {"kubespawner_override": override(rng)} for key in ("x", "y", "z")}
    if rng.random() < 0.5:
        choices[rng.choice("xyz")]["default"] = True  # type: ignore[assignment]
    built: dict[str, Any] = {"display_name": "O", "choices": choices}
    if rng.random() < 0.5:
        built["unlisted_choice"] = {
            "enabled": rng.random() < 0.8,
            "display_name": "Other",
            "kubespawner_override": {"image": "r/{value}:{value}", "environment": {"T": "{value}"}},
        }
        if rng.random() < 0.5:
            built["unlisted_choice"]["validation_regex"] = "^[a-z]+$"
    return built


def profile_list(rng: random.Random) -> Any:
    profiles = []
    for n in range(rng.randint(1, 3)):
        profile: dict[str, Any] = {
            "display_name": f"Profile {n}, ünder test",
            "kubespawner_override": override(rng),
            "profile_options": {
                key: option(rng) for key in rng.sample(["o", "p"], rng.randint(0, 2))
            },
        }
        if rng.random() < 0.3:
            profile["default"] = True
        if rng.random() < 0.3:
            profile["slug"] = f"slug {n}"
        profiles.append(profile)
    if rng.random() < 0.2:
        return {f"k{9 - n}": profile for n, profile in enumerate(profiles)}
    return profiles


def options(rng: random.Random) -> dict[str, Any]:
    sent: dict[str, Any] = {
        "profile": rng.choice(["profile-0-under-test", "profile-1-under-test", "slug 0", "", "no"]),
        "o": rng.choice(["x", "y", "z", "", None, "no", ["x"], {"x": 1}]),
        "p": rng.choice(["x", "y", "z"]),
        "o--unlisted-choice": rng.choice(["abc", "", None, "ABC"]),
        "garbage": [1],
    }
    return {key: value for key, value in sent.items() if rng.random() < 0.6}


def form(rng: random.Random) -> dict[str, list[str]]:
    sent = {"profile": [rng.choice(["profile-0-under-test", "slug 0"])], "junk": ["1"]}
    for key in ("o", "p"):
        value = rng.choice(["x", "y", "z", "--unlisted-choice"])
        suffix, text = ("", value) if value in "xyz" else (value, "abc")
        for slug in ("profile-0-under-test", "slug 0"):
            sent[f"profile-option-{slug}--{key}{suffix}"] = [text]
    return sent


async def test_plain_lists_give_what_kubespawner_gives(tmp_path: Path) -> None:
    rng = random.Random(9)
    cases: list[dict[str, Any]] = []
    for _ in range(CASES):
        case = {"profile_list": profile_list(rng), "options": options(rng)}
        cases.append(case | ({"form": form(rng)} if rng.random() < 0.4 else {}))
    initial = {"profile_list": [{"display_name": "A"}], "options": {}}
    nothing, *answers = theirs(tmp_path, [initial, *cases])
    agreed = refused = 0
    for case, answer in zip(cases, answers, strict=True):
        choices = Choices.load(case["profile_list"])
        sent = choices.from_form(case["form"]) if "form" in case else case["options"]
        try:
            selection = choices.select(sent, "eve")
        except ChoicesRefused:
            # Without a profile it judges no text that was typed.
            unjudged = not sent.get("profile") and sent.get("o--unlisted-choice")
            assert "refused" in answer or unjudged, (case, answer)
            refused += 1
            continue
        assert "refused" not in answer, (case, answer)
        assert nothing["traits"] | await traits(selection) == answer["traits"], case
        theirs_sent = {key: value for key, value in answer["options"].items() if value}
        both = theirs_sent.keys() & selection.stored.keys()
        assert {selection.stored[key] == theirs_sent[key] for key in both} <= {True}
        agreed += 1
    assert agreed > CASES / 3
    assert refused > CASES / 10


async def test_the_documented_example_gives_what_kubespawner_gives(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"profile": "demo-1", "image": "base"},
        {"profile": "demo-1", "image--unlisted-choice": "jupyter/datascience-notebook:latest"},
        {"profile": "demo-2"},
        {"garbage-arrived-via-rest-api": "anything"},
        {"profile": "demo-1", "garbage-arrived-via-rest-api": "anything"},
    ]
    cases = [{"profile_list": documented(), "options": body} for body in bodies]
    initial = {"profile_list": [{"display_name": "A"}], "options": {}}
    nothing, *answers = theirs(tmp_path, [initial, *cases])
    choices = Choices.load(documented())
    for body, answer in zip(bodies, answers, strict=True):
        ours = nothing["traits"] | await traits(choices.select(body, "eve"))
        assert ours == answer["traits"], body


# KubeSpawner's faults with profile_list.


async def test_an_async_function_in_an_override_is_awaited() -> None:
    async def image(spawner: Any) -> str:
        return "x:1"

    choices = Choices.load([{"display_name": "A", "kubespawner_override": {"image": image}}])
    assert (await applied(choices.select({}, "eve"))).values == {"image": "x:1"}


@pytest.mark.parametrize("sent", ["unknown", {"a": 1}, ["base"], 5, True])
def test_an_unknown_choice_or_type_is_a_refusal_and_no_crash(sent: Any) -> None:
    with pytest.raises(ChoicesRefused, match=r"Image \(image\) is .* Choose|: choose 'base'"):
        Choices.load(documented()).select({"profile": "demo-1", "image": sent}, "eve")


def test_a_regular_expression_must_match_the_whole_text() -> None:
    profile_list = documented()
    unlisted = profile_list[0]["profile_options"]["image"]["unlisted_choice"]
    unlisted["validation_regex"] = "pangeo/"
    with pytest.raises(ChoicesRefused, match="image--unlisted-choice"):
        Choices.load(profile_list).select({"image--unlisted-choice": "pangeo/x@evil ; rm"}, "eve")


async def test_a_typed_text_is_judged_where_no_profile_is_named(tmp_path: Path) -> None:
    body = {"image--unlisted-choice": "evil/x:y"}
    [answer] = theirs(tmp_path, [{"profile_list": documented(), "options": body}])
    assert answer["traits"]["image"] == "evil/x:y"
    with pytest.raises(ChoicesRefused, match="image--unlisted-choice"):
        Choices.load(documented()).select(body, "eve")


def test_the_form_shows_defaults_where_saved_options_no_longer_fit() -> None:
    offer = Choices.load(documented()).for_user("eve")
    stale = offer.form({"profile": "gone", "image": {"no": "more"}})
    assert stale == offer.form()


async def test_an_override_of_one_start_is_gone_at_the_next() -> None:
    choices = Choices.load(documented())
    gpu = await applied(choices.select({"profile": "demo-2"}, "eve"))
    assert gpu.values == {"resources": {"requests": {"nvidia.com/gpu": "1"}}}
    plain = await applied(choices.select({"profile": "demo-1"}, "eve"))
    assert "resources" not in plain.values


async def test_an_option_without_a_list_can_be_started() -> None:
    profile_list = documented()
    del profile_list[0]["profile_options"]["image"]["choices"]
    choices = Choices.load(profile_list)
    selection = choices.select({"image--unlisted-choice": "jupyter/a:b"}, "eve")
    assert (await applied(selection)).values == {"image": "jupyter/a:b"}
    with pytest.raises(ChoicesRefused, match=r"Image \(image\) is needed"):
        choices.select({}, "eve")
