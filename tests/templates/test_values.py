"""What a template is given, and which of two values of one name wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.objects.identity import Identity
from lightkube_template_spawner.templates import values

IDENTITY = Identity("hub", "Alice", "gpu", 7)
SEED = {
    "userid", "unescaped_username", "unescaped_servername", "escaped_username",
    "escaped_servername", "escaped_user_server", "instance", "namespace", "ip", "port", "env",
}  # fmt: skip


def build(
    env: dict[str, Any] | None = None,
    ours: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return values.build(
        IDENTITY,
        unescaped_username="Alice",
        unescaped_servername="gpu",
        namespace="ns",
        ip="0.0.0.0",
        port=8888,
        env=env or {},
        ours=ours or {},
        extra=extra or {},
    )


def test_the_seeds_names_are_all_there() -> None:
    assert build({"A": "b"}) == {
        "userid": 7,
        "unescaped_username": "Alice",
        "unescaped_servername": "gpu",
        "escaped_username": IDENTITY.user_slug,
        "escaped_servername": "gpu",
        "escaped_user_server": IDENTITY.user_server_slug,
        "instance": "hub",
        "namespace": "ns",
        "ip": "0.0.0.0",
        "port": 8888,
        "env": {"A": "b"},
        "env_list": [{"name": "A", "value": "b"}],
    }


@pytest.mark.parametrize("name", sorted(SEED))
def test_ours_never_shadow_the_seeds_and_extra_wins_over_both(name: str) -> None:
    assert build(ours={name: "ours"})[name] == build()[name]
    assert build(ours={name: "ours"}, extra={name: "extra"})[name] == "extra"


def test_ours_are_beside_them_and_extra_wins() -> None:
    assert build(ours={"cmd": ["a"]})["cmd"] == ["a"]
    assert build(ours={"cmd": ["a"]}, extra={"cmd": None})["cmd"] is None
    assert build(extra={"image": "x"})["image"] == "x"


def test_env_is_text_and_leaves_references_to_the_list() -> None:
    origin = {"secretKeyRef": {"name": "s", "key": "k"}}
    made = build({"N": 1, "B": True, "S": {"valueFrom": origin}, "T": origin, "E": ""})
    assert made["env"] == {"N": "1", "B": "True", "E": ""}
    assert made["env_list"] == [
        {"name": "B", "value": "True"},
        {"name": "E", "value": ""},
        {"name": "N", "value": "1"},
        {"name": "S", "valueFrom": origin},
        {"name": "T", "valueFrom": origin},
    ]


def order(**env: Any) -> str:
    return "".join(variable["name"] for variable in values.env_list(env))


def test_variables_are_sorted_by_name() -> None:
    assert order(C="", A="", B="") == "ABC"


def test_a_variable_comes_after_those_it_uses() -> None:
    assert order(A="$(Z)/x:$(Y)", Y="$(Z)", Z="") == "ZYA"
    assert order(A="$(C)", B="", C="", D="$(B)") == "CABD"


@pytest.mark.parametrize("text", ["$(A)", "$(NONE)", "$Z", "$$(Z)", "$(Z", "(Z)", "$()"])
def test_what_is_no_use_of_another_variable_does_not_move_it(text: str) -> None:
    assert order(A=text, Z="") == "AZ"


def test_two_dollars_before_a_use_are_one_dollar_and_a_use() -> None:
    assert order(A="$$$(Z)", Z="") == "ZA"


def test_names_may_hold_dots_and_hyphens() -> None:
    found = values.env_list({"a": "$(z.b-c)", "z.b-c": ""})
    assert [variable["name"] for variable in found] == ["z.b-c", "a"]


def test_a_circle_does_not_disturb_the_others() -> None:
    assert order(A="$(B)", B="$(A)", C="$(Z)", Z="") == "BAZC"
    assert order(A="$(Z)", X="$(Y)", Y="$(X)", Z="") == "ZAYX"


def test_references_use_nothing_and_may_be_used() -> None:
    assert order(A="$(Z)", Z={"secretKeyRef": {"name": "$(A)"}}) == "ZA"


def test_a_long_chain_is_no_problem() -> None:
    env = {f"V{n:05}": f"$(V{n + 1:05})" for n in range(3000)}
    assert [v["name"] for v in values.env_list(env)] == sorted(env, reverse=True)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.dictionaries(st.sampled_from("ABCDEF"), st.lists(st.sampled_from("ABCDEFG"), max_size=3)))
def test_every_variable_comes_once_and_uses_come_first_unless_they_circle(
    uses: dict[str, list[str]],
) -> None:
    found = order(**{name: "".join(f"$({use})" for use in used) for name, used in uses.items()})
    assert sorted(found) == sorted(uses)

    def reaches(start: str, goal: str) -> bool:
        seen, todo = set(), [start]
        while todo:
            for use in uses.get(todo.pop(), []):
                if use == goal:
                    return True
                if use not in seen:
                    seen.add(use)
                    todo.append(use)
        return False

    for name, used in uses.items():
        for use in set(used) & uses.keys():
            if not reaches(use, name):
                assert found.index(use) < found.index(name)
