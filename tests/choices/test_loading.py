"""What a profile_list may hold, and how it is told what it may not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from slugify import slugify

from lightkube_template_spawner.choices import Choices
from lightkube_template_spawner.errors import ConfigurationError
from tests.choices.samples import documented, ours


def slugs(profile_list: Any) -> list[str]:
    return [profile.slug for profile in Choices.load(profile_list).profiles]


def option(**fields: Any) -> list[dict[str, Any]]:
    return [{"display_name": "P", "profile_options": {"o": fields}}]


@pytest.mark.parametrize("name", ["Small", "GPU, 2 x A100", "Größe", "日本語", "a--b", "  x  "])
def test_slugs_are_those_of_kubespawner(name: str) -> None:
    assert slugs([{"display_name": name}]) == [slugify(name)]


def test_a_mapping_is_read_in_the_order_of_its_keys() -> None:
    assert slugs({"b": {"display_name": "First"}, "a": {"display_name": "Second"}}) == [
        "second",
        "first",
    ]


@pytest.mark.parametrize("profile_list", [documented(), ours(), [], {}, ()])
def test_a_good_list_is_read_and_left_as_it_was(profile_list: Any) -> None:
    before = deepcopy(profile_list)
    assert len(Choices.load(profile_list).profiles) == len(profile_list)
    assert bool(Choices.load(profile_list)) is bool(profile_list)
    assert profile_list == before


def test_what_fancy_profiles_adds_is_read() -> None:
    [profile] = Choices.load(
        option(
            choices={"a": {"display_name": "A", "description": "Good"}},
            unlisted_choice={"enabled": True, "description_in_choices": "Any"},
            dynamic_image_building={"enabled": True},
        )
    ).profiles
    assert profile.options[0].image_building
    assert profile.options[0].choices[0].description == "Good"


def test_an_empty_key_counts_as_left_out() -> None:
    [profile] = Choices.load(
        [{"display_name": "A", "description": None, "profile_options": None, "users": None}]
    ).profiles
    assert (profile.description, profile.options, profile.audience.everyone) == ("", (), True)


@pytest.mark.parametrize(
    ("profile_list", "words"),
    [
        (7, "profile_list is a number: write a list"),
        (["x"], r"profile_list\[0\] is text: write a mapping"),
        ([{}], r"profile_list\[0\]\.display_name is missing"),
        ([{"display_name": "?!"}], r"slug is empty.*has no letters"),
        ([{"display_name": "A"}, {"display_name": "a"}], r"\[1\]\.slug is 'a', as that of .*\[0\]"),
        (
            [{"display_name": "A", "defualt": True}],
            r"profile_list\[0\] \('a'\) has the unknown key 'defualt'\. Did you mean 'default'",
        ),
        ([{"slug": "x"}], r"profile_list\[0\] \('x'\)\.display_name is missing"),
        ([{"display_name": "A", "slug": 5}], r"\('a'\)\.slug is a number: write text"),
        ([{"display_name": "A", "slug": ""}], r"\.slug is empty"),
        ([{"display_name": "A", "default": "yes"}], r"\('a'\)\.default is text: write true"),
        ([{"display_name": "A", "users": "ada"}], r"\('a'\)\.users is text: write a list of names"),
        ([{"display_name": "A", "groups": []}], r"groups names nobody: leave it out"),
        ([{"display_name": "A", "redirect": {}}], r"redirect\.to is missing"),
        (
            [{"display_name": "A", "redirect": {"to": "smal"}}, {"display_name": "Small"}],
            r"redirect of 'a' leads to 'smal', which is no slug here\. Did you mean 'small'",
        ),
        (
            [
                {"display_name": "A", "redirect": {"to": "b"}},
                {"display_name": "B", "redirect": {"to": "a"}},
            ],
            "redirect of 'a' leads in a circle",
        ),
        ([{"display_name": "A", "redirect": {"to": "a"}}], "in a circle"),
        (
            [{"display_name": "A", "hidden": True, "default": True}],
            "default is true for what is not",
        ),
        ([{"display_name": "A", "kubespawner_override": []}], "kubespawner_override is a list"),
        (
            [{"display_name": "A", "kubespawner_override": {"cpu_limits": 1}}],
            r"kubespawner_override\.cpu_limits has no counterpart.*Did you mean 'cpu_limit'",
        ),
        (
            [{"display_name": "A", "kubespawner_override": {"lifecycle_hooks": {}}}],
            r"lifecycle_hooks has no counterpart.*under `values`",
        ),
        (
            [{"display_name": "A", "kubespawner_override": {"environment": {"U": "{username}"}}}],
            r"environment holds \{username\}, which KubeSpawner replaces",
        ),
        (
            [
                {
                    "display_name": "A",
                    "kubespawner_override": {"volumes": [{"x": "{safe_username}"}]},
                }
            ],
            r"volumes holds \{safe_username\}",
        ),
        ([{"display_name": "A", "values": {"x": object()}}], r"\('a'\)\.values\.x is a object"),
        (option(), "profile_options.o.choices offers nothing"),
        (option(choices={"a": {"hidden": True}}), "offers nothing"),
        (option(unlisted_choice={"enabled": False}), "offers nothing"),
        (option(choices={1: {}}), r"choices has the key 1: keys are text, as '1'"),
        (option(choices={"a": {"colour": 1}}), r"choices\.a has the unknown key 'colour'"),
        (option(choices={"a": {}}, number={}), "number stands beside choices"),
        (
            option(choices={"unlisted-choice": {}}, unlisted_choice={"enabled": True}),
            "the key 'unlisted-choice', which forms use",
        ),
        (
            option(choices={"a": {}}, unlisted_choice={"enabled": True, "default": "x"}),
            "unlisted_choice has a default",
        ),
        (
            option(unlisted_choice={"enabled": True, "validation_regex": "("}),
            "no regular expression",
        ),
        (
            option(unlisted_choice={"enabled": True, "validation_regex": "a", "default": "b"}),
            "default does not match",
        ),
        (
            option(
                unlisted_choice={"enabled": True, "kubespawner_override": {"image": "{value!r}"}}
            ),
            r"image holds \{value!r\}: only \{value\} is replaced",
        ),
        (option(unlisted_choice={"enabled": True}, monotonic=True), "monotonic needs an order"),
        (option(choices={"a": {}}, monotonic="up"), "monotonic is neither increasing nor"),
        (
            option(choices={"a": {}}, ephemeral=True, mutable=False),
            "ephemeral is for one start only",
        ),
        (
            option(choices={"a": {"redirect": {"to": "b"}}, "c": {}}),
            "leads to 'b', which is no key",
        ),
        (option(number={"min": 3, "max": 1}), r"number\.min is 3, above max \(1\)"),
        (option(number={"step": 0}), r"number\.step is 0"),
        (option(number={"min": True}), r"number\.min is true or false: write a number"),
        (
            option(number={"min": float("nan")}),
            r"number\.min is a number: write a number of at most",
        ),
        (option(number={"min": 1, "default": 1.5}), r"default is 1\.5.*whole number from 1 on"),
        ([{"display_name": "A", "profile_options": {"profile": {}}}], "a meaning of its own"),
        ([{"display_name": "A", "profile_options": {"a--unlisted-choice": {}}}], "of its own"),
        (
            [
                {"display_name": "A", "slug": "a", "profile_options": {"b--c": {"number": {}}}},
                {"display_name": "B", "slug": "a--b", "profile_options": {"c": {"number": {}}}},
            ],
            "the same input as an option of 'a'",
        ),
    ],
)
def test_a_bad_list_is_refused_by_place_field_and_mend(profile_list: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Choices.load(profile_list)


@pytest.mark.parametrize("key", ["kubespawner_override", "values"])
def test_overrides_that_hold_themselves_are_refused(key: str) -> None:
    circle: dict[str, Any] = {}
    circle["environment"] = {"a": circle}
    with pytest.raises(ConfigurationError, match="hold itself"):
        Choices.load([{"display_name": "A", key: circle}])


def test_braces_of_other_tools_are_left_alone_in_texts_that_kubespawner_does_not_expand() -> None:
    Choices.load(
        [{"display_name": "A", "kubespawner_override": {"args": ["--{username}", "{value: 1}"]}}]
    )
