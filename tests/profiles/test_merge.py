"""What several profiles make together: by key, last one wins; or as singleuser-profiles had it."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles import SEMANTICS, SINGLEUSER_PROFILES, Profiles
from lightkube_template_spawner.profiles.merge import port_key

Data = dict[str, Any]
EMPTY: Data = {
    "name": "", "users": [], "images": [], "groups": [], "env": [],
    "resources": {"requests": {}, "limits": {}}, "volumes": [], "node_tolerations": [],
    "node_affinity": {}, "services": {}, "gpus": {}, "node_selector": {}, "labels": {},
    "annotations": {}, "ports": [], "values": {}, "extra_pod_config": {},
    "extra_container_config": {}, "max_age": None, "idle": None, "semantics": "merge",
}  # fmt: skip


def merged(*profiles: Any, sizes: Any = (), **options: Any) -> Data:
    return Profiles.from_list(list(profiles), sizes).merged("img:1", "bob", **options)


def old(*profiles: Data, **options: Any) -> Data:
    return merged(*profiles, semantics=SINGLEUSER_PROFILES, **options)


def claim(name: str, **mount: str) -> Data:
    return {"name": name, "persistentVolumeClaim": {"claimName": name}, **mount}


def test_no_profile_has_every_key() -> None:
    assert merged() == EMPTY
    assert old().keys() == EMPTY.keys()


def test_names_and_whom_it_is_for() -> None:
    profiles = [
        {"name": "a", "users": ["bob", "amy"], "groups": ["x"]},
        {"users": ["bob"], "images": ["img:1"]},
        {"name": "c", "users": ["*", "amy"], "groups": ["y", "x"], "images": ["i", "img:1"]},
    ]
    answer = merged(*profiles)
    assert answer["name"] == "a, c"
    assert answer["users"] == ["bob", "amy", "*"]
    assert answer["groups"] == ["x", "y"]
    assert answer["images"] == ["img:1", "i"]


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        (
            "env",
            [{"A": "1", "B": 2}, [{"name": "A", "value": True}], {"C": None, "D": 1.5}],
            [
                {"name": "A", "value": "true"},
                {"name": "B", "value": "2"},
                {"name": "C", "value": ""},
                {"name": "D", "value": "1.5"},
            ],
        ),
        (
            "env",
            [{"A": "1"}, {"A": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        ),
        (
            "env",
            [{"A": {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}}, {"A": "1"}],
            [{"name": "A", "value": "1"}],
        ),
        (
            "resources",
            [
                {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi", "cpu": 2}},
                {"limits": {"memory": "4Gi"}},
                {"limits": {"cpu": None}},
            ],
            {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi"}},
        ),
        (
            "resources",
            [{"limits": {"cpu": 1}, "requests": {"cpu": 1}}, {"mem_limit": "2Gi", "cpu_limit": ""}],
            {"requests": {"cpu": 1, "memory": "2Gi"}, "limits": {"cpu": 1, "memory": "2Gi"}},
        ),
        (
            "volumes",
            [[claim("d"), claim("My Data")], [claim("e"), claim("my-data", mountPath="/m")]],
            [claim("d"), claim("e"), {**claim("my-data", mountPath="/m")}],
        ),
        (
            "volumes",
            [[claim("d", mountPath="/data")], [claim("e", mountPath="/data/")]],
            [claim("e", mountPath="/data/")],
        ),
        ("volumes", [[claim("d")], [claim("e", mountPath="./d")]], [claim("e", mountPath="./d")]),
        (
            "ports",
            [[80, {"containerPort": 53, "protocol": "UDP"}], [{"containerPort": 80, "name": "ui"}]],
            [
                {"containerPort": 53, "protocol": "UDP"},
                {"containerPort": 80, "protocol": "TCP", "name": "ui"},
            ],
        ),
        (
            "ports",
            [[{"containerPort": 80, "name": "ui"}, 81], [{"containerPort": 82, "name": "ui"}]],
            [
                {"containerPort": 81, "protocol": "TCP"},
                {"containerPort": 82, "protocol": "TCP", "name": "ui"},
            ],
        ),
        (
            "node_tolerations",
            [
                [{"key": "a", "value": "1"}, {"key": "b"}],
                [{"key": "a", "operator": "Equal", "value": "1", "tolerationSeconds": 9}],
            ],
            [
                {"key": "b"},
                {"key": "a", "operator": "Equal", "value": "1", "tolerationSeconds": 9},
            ],
        ),
        (
            "node_affinity",
            [{"required": {"terms": [1]}, "preferred": [1]}, {"required": {"terms": [2], "x": 1}}],
            {"required": {"terms": [2], "x": 1}, "preferred": [1]},
        ),
        (
            "services",
            [{"s": {"labels": {"l": "1"}}, "t": None}, {"s": {"labels": {"m": "1"}}}],
            {"s": {"labels": {"l": "1", "m": "1"}}, "t": {}},
        ),
        ("gpus", [{"resource": "amd.com/gpu"}, 2], {"resource": "amd.com/gpu", "count": 2}),
        ("gpus", [1, "2"], {"resource": "nvidia.com/gpu", "count": 2}),
        ("gpus", [2, 0], {}),
        ("node_selector", [{"a": "1", "b": "2"}, {"a": None, "c": "3"}], {"b": "2", "c": "3"}),
        ("labels", [{"a": "1"}, {"a": "2"}], {"a": "2"}),
        ("annotations", [{"x.y/a": "any text"}, {"b": ""}], {"x.y/a": "any text", "b": ""}),
        (
            "values",
            [{"a": {"b": 1, "c": [1, 2]}, "n": 1}, {"a": {"c": [3]}, "n": None}],
            {"a": {"b": 1, "c": [3]}, "n": None},
        ),
        ("values", [{"a": {"b": 1}}, {"a": 5}, {"a": {"c": 2}}], {"a": {"c": 2}}),
        ("extra_pod_config", [{"a": {"b": 1}}, {"a": {"c": 2}}], {"a": {"b": 1, "c": 2}}),
        ("extra_container_config", [{"tty": True}, {"tty": False}], {"tty": False}),
        ("max_age", ["8h", "1d12h"], 129_600),
        ("idle", ["30m", 90], 90),
    ],
)
def test_each_field_by_key(field: str, values: list[Any], expected: Any) -> None:
    answer = merged(*({field: value} for value in values))
    assert answer[field] == expected
    assert answer == {**EMPTY, field: expected}


FIRST: Data = {"env": {"A": "1"}, "labels": {"a": "1"}, "values": {"v": {"a": 1}}}


class TestReplace:
    def test_all_that_the_profile_sets(self) -> None:
        answer = merged(FIRST, {"merge": "replace", "env": {}, "values": {"v": {"b": 2}}})
        assert answer["env"] == []
        assert answer["values"] == {"v": {"b": 2}}
        assert answer["labels"] == {"a": "1"}

    def test_the_fields_that_it_names(self) -> None:
        second = {"env": {"B": "2"}, "labels": {"b": "2"}}
        answer = merged(FIRST, {**second, "merge": {"env": "replace", "labels": "merge"}})
        assert [variable["name"] for variable in answer["env"]] == ["B"]
        assert answer["labels"] == {"a": "1", "b": "2"}

    def test_later_ones_merge_with_what_is_left(self) -> None:
        answer = merged(FIRST, {"merge": "replace", "env": {"B": "2"}}, {"env": {"C": "3"}})
        assert [variable["name"] for variable in answer["env"]] == ["B", "C"]

    def test_the_old_semantics_know_it_for_new_fields_only(self) -> None:
        second = {"merge": "replace", "env": {"B": "2"}, "labels": {"b": "2"}}
        answer = old(FIRST, second)
        assert [variable["name"] for variable in answer["env"]] == ["A", "B"]
        assert answer["labels"] == {"b": "2"}


LIMITS: Data = {
    "resources": {"requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "memory": "1Gi"}}
}


class TestSizes:
    @pytest.mark.parametrize(
        ("resources", "expected"),
        [
            (
                {"limits": {"cpu": 8}},
                {"requests": {"cpu": 8}, "limits": {"cpu": 8, "memory": "1Gi"}},
            ),
            (
                {"requests": {"memory": "3Gi"}},
                {
                    "requests": {"cpu": "250m", "memory": "3Gi"},
                    "limits": {"cpu": "500m", "memory": "3Gi"},
                },
            ),
            (
                {"mem_limit": "2Gi"},
                {
                    "requests": {"cpu": "250m", "memory": "2Gi"},
                    "limits": {"cpu": "500m", "memory": "2Gi"},
                },
            ),
            (
                {"requests": {"cpu": 1}, "limits": {"memory": "2Gi"}},
                {"requests": {"cpu": 1}, "limits": {"cpu": "500m", "memory": "2Gi"}},
            ),
        ],
    )
    def test_it_comes_last(self, resources: Data, expected: Data) -> None:
        answer = merged(LIMITS, sizes=[{"name": "L", "resources": resources}], size="L")
        assert answer["name"] == "L"
        assert answer["resources"] == expected

    def test_it_can_set_more_than_resources(self) -> None:
        size = {"name": "gpu", "gpus": 2, "node_selector": {"gpu": "yes"}}
        answer = merged(LIMITS, sizes=[size], size="gpu")
        assert answer["gpus"]["count"] == 2
        assert answer["node_selector"] == {"gpu": "yes"}

    @pytest.mark.parametrize("size", [None, "", "nope", "empty"])
    @pytest.mark.parametrize("semantics", SEMANTICS)
    def test_none_changes_nothing(self, size: str | None, semantics: str) -> None:
        profiles = Profiles.from_list([{"name": "g"}], [{"name": "empty"}])
        assert profiles.merged(size=size, semantics=semantics) == profiles.merged(
            semantics=semantics
        )

    def test_of_two_of_one_name_the_last(self) -> None:
        sizes = [{"name": "L", "resources": {"limits": {"cpu": n}}} for n in (1, 2)]
        assert merged(sizes=sizes, size="L")["resources"]["limits"] == {"cpu": 2}


def test_one_user_s_start_leaves_nothing_for_the_next() -> None:
    profiles = Profiles.from_list(
        [
            {"values": {"a": {"b": 1}}, "services": {"s": {"x": 1}}},
            {"users": ["bob"], "values": {"a": {"c": 2}}, "services": {"s": {"y": 2}}},
        ]
    )
    for semantics in SEMANTICS:
        before = profiles.merged(user="amy", semantics=semantics)
        assert profiles.merged(user="bob", semantics=semantics) != before
        assert profiles.merged(user="amy", semantics=semantics) == before
    assert profiles.merged(user="amy")["values"] == {"a": {"b": 1}}


def test_unknown_semantics_are_refused() -> None:
    with pytest.raises(ProfileError, match="must be one of merge, singleuser-profiles"):
        merged(semantics="append")


# Generated profiles: few names, so that they meet.

_NAMES = st.sampled_from("abc")
_TEXTS = st.sampled_from(["1", "2", "3"])
_FLAT = st.dictionaries(_NAMES, _TEXTS, max_size=3)
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "env": _FLAT | st.lists(st.fixed_dictionaries({"name": _NAMES, "value": _TEXTS}), max_size=3),
    "resources": st.fixed_dictionaries({}, optional={"requests": _FLAT, "limits": _FLAT}),
    "node_tolerations": st.lists(
        st.fixed_dictionaries(
            {"key": _NAMES}, optional={"tolerationSeconds": st.integers(0, 3), "effect": _TEXTS}
        ),
        max_size=3,
    ),
    "node_selector": _FLAT,
    "labels": _FLAT,
    "annotations": _FLAT,
    "values": st.dictionaries(_NAMES, st.fixed_dictionaries({}, optional={"x": _FLAT, "y": _FLAT})),
    "max_age": st.integers(1, 9),
}
_CLASHING: dict[str, st.SearchStrategy[Any]] = {
    "volumes": st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["a", "A", "b"]), "emptyDir": st.just({})},
            optional={"mountPath": st.sampled_from(["/a", "/a/", "a", "./b", ""])},
        ),
        max_size=3,
    ),
    "ports": st.lists(
        st.fixed_dictionaries(
            {"containerPort": st.integers(1, 3)},
            optional={"name": _NAMES, "protocol": st.sampled_from(["TCP", "UDP"])},
        ),
        max_size=3,
    ),
    "gpus": st.integers(0, 2),
    "merge": st.sampled_from(["merge", "replace"]),
}


def _profiles(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[list[Data]]:
    return st.lists(st.fixed_dictionaries({}, optional=fields), max_size=5)


GROUPABLE = _profiles(_FIELDS)
ANY = _profiles({**_FIELDS, **_CLASHING})


def as_profile(answer: Data) -> Data:
    return {key: value for key, value in answer.items() if key in _FIELDS}


def in_order(answer: Data) -> Data:
    """With variables by name: their order tells only where each stood first."""
    return {**answer, "env": {one["name"]: one["value"] for one in answer["env"]}}


@given(GROUPABLE, GROUPABLE, GROUPABLE)
def test_merging_is_associative(first: list[Data], second: list[Data], third: list[Data]) -> None:
    at_once = in_order(merged(*first, *second, *third))
    left = as_profile(merged(*first, *second))
    right = as_profile(merged(*second, *third))
    assert in_order(merged(left, *third)) == at_once
    assert in_order(merged(*first, right)) == at_once


@given(ANY, st.sampled_from(SEMANTICS))
def test_the_order_decides(profiles: list[Data], semantics: str) -> None:
    last = {"env": {"a": "last"}, "labels": {"a": "last"}, "values": {"a": {"x": {"a": "last"}}}}
    answer = merged(*profiles, last, semantics=semantics)
    assert [one["value"] for one in answer["env"] if one["name"] == "a"][-1] == "last"
    assert answer["labels"]["a"] == answer["values"]["a"]["x"]["a"] == "last"


@given(ANY)
def test_a_profile_twice_is_as_good_as_once(profiles: list[Data]) -> None:
    doubled = [again for profile in profiles for again in (profile, profile)]
    assert merged(*doubled) == merged(*profiles)


@given(ANY, st.sampled_from(SEMANTICS))
def test_nothing_that_is_given_is_changed(data: list[Data], semantics: str) -> None:
    before = copy.deepcopy(data)
    profiles = Profiles.from_list(data)
    first = profiles.merged(semantics=semantics)
    kept = copy.deepcopy(first)
    spoil(first)
    assert profiles.merged(semantics=semantics) == kept
    assert data == before


def spoil(value: Any) -> None:
    """Change every mapping and list in it."""
    for inner in list(value.values()) if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            spoil(inner)
    value.clear()


@given(ANY)
def test_no_key_is_there_twice_for_server_side_apply(profiles: list[Data]) -> None:
    answer = merged(*profiles)
    assert unique(variable["name"] for variable in answer["env"])
    assert all(isinstance(variable["value"], str) for variable in answer["env"])
    assert unique(port_key(port) for port in answer["ports"])
    assert unique(port["name"] for port in answer["ports"] if "name" in port)
    assert unique(volume["name"] for volume in answer["volumes"])
    assert unique(toleration.values() for toleration in map(comparable, answer["node_tolerations"]))


def comparable(toleration: Data) -> Data:
    return {key: toleration.get(key, "") for key in ("key", "operator", "value", "effect")}


def unique(items: Any) -> bool:
    keys: list[Hashable] = [tuple(item) if not isinstance(item, str) else item for item in items]
    return len(keys) == len(set(keys))


@given(ANY, st.sampled_from(SEMANTICS))
def test_what_is_merged_is_a_valid_profile(profiles: list[Data], semantics: str) -> None:
    answer = merged(*profiles, semantics=semantics)
    del answer["semantics"]
    again = merged(answer, semantics=semantics)
    del again["semantics"]
    if not answer["resources"]:  # which the old semantics read as: nothing said
        del again["resources"], answer["resources"]
    assert again == answer
