"""Whom a profile is for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightkube_template_spawner.profiles import MERGE, SEMANTICS, SINGLEUSER_PROFILES, Profiles


def matches(
    profile: dict[str, Any],
    image: str | None = "quay.io/lab/notebook:7",
    user: str | None = "bob",
    groups: tuple[str, ...] = (),
    semantics: str = MERGE,
) -> bool:
    return bool(Profiles.from_list([profile]).matching(image, user, groups, semantics=semantics))


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({}, True),
        ({"images": [], "users": [], "groups": []}, True),
        ({"images": ["quay.io/lab/notebook:7"]}, True),
        ({"images": ["x", "quay.io/lab/notebook:7"]}, True),
        ({"images": ["quay.io/lab/notebook"]}, False),
        ({"images": ["quay.io/lab/notebook:7-gpu"]}, False),
        ({"images": ["notebook:7"]}, False),
        ({"users": ["bob"]}, True),
        ({"users": ["bo"]}, False),
        ({"users": ["Bob"]}, False),
        ({"users": ["amy", "*"]}, True),
        ({"users": ["b*"]}, False),
        ({"users": ["bob"], "images": ["x"]}, False),
    ],
)
def test_images_and_users(profile: dict[str, Any], expected: bool, semantics: str) -> None:
    assert matches(profile, semantics=semantics) is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("quay.io/lab/*", True),
        ("quay.io/*", True),
        ("*:7", True),
        ("*/notebook:?", True),
        ("quay.io/lab/notebook:[678]", True),
        ("quay.io/lab/notebook:[!7]", False),
        ("notebook*", False),
        ("QUAY.IO/*", False),
    ],
)
def test_patterns_match_whole_names(pattern: str, expected: bool) -> None:
    assert matches({"images": [pattern]}) is expected
    assert not matches({"images": [pattern]}, semantics=SINGLEUSER_PROFILES)


@pytest.mark.parametrize(
    ("profile", "groups", "expected"),
    [
        ({"groups": ["staff"]}, (), False),
        ({"groups": ["staff"]}, ("staff", "x"), True),
        ({"groups": ["*"]}, (), True),
        ({"groups": ["staff"], "users": ["bob"]}, (), True),
        ({"groups": ["staff"], "users": ["amy"]}, ("staff",), True),
        ({"groups": ["staff"], "users": ["amy"]}, ("x",), False),
        ({"groups": ["staff"], "users": ["*"]}, (), True),
        ({"users": ["amy"]}, ("amy",), False),
    ],
)
def test_groups(profile: dict[str, Any], groups: tuple[str, ...], expected: bool) -> None:
    assert matches(profile, groups=groups) is expected


@pytest.mark.parametrize("user", [None, ""])
def test_no_user_is_any_user(user: str | None) -> None:
    assert matches({"users": ["amy"], "groups": ["staff"]}, user=user)
    assert not matches({"images": ["x"]}, user=user)


def test_no_image_has_the_profiles_for_all_images() -> None:
    assert matches({}, image=None)
    assert not matches({"images": ["*"]}, image=None)


@given(st.text(max_size=20), st.text("ab*?[]!-~&|^\\:/", max_size=30))
def test_any_text_is_a_pattern(image: str, pattern: str) -> None:
    if pattern:
        matches({"images": [pattern]}, image=image)


def test_a_pattern_cannot_take_for_ever() -> None:
    assert not matches({"images": ["*a" * 400 + "b"]}, image="a" * 100_000)


def test_the_order_is_the_list_s() -> None:
    profiles = Profiles.from_list([{"name": n, "users": ["bob"]} for n in "cab"] + [{"name": "d"}])
    assert [profile.name for profile in profiles.matching("i", "bob")] == ["c", "a", "b", "d"]
    assert [profile.name for profile in profiles.matching("i", "amy")] == ["d"]
