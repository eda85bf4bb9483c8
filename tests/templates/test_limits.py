"""What users send is small and flat enough, or refused by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.errors import OptionsRefused, TemplateError
from lightkube_template_spawner.templates.limits import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    check_options,
)
from lightkube_template_spawner.templates.plain import plain, to_json
from lightkube_template_spawner.templates.redaction import Redactor


def nested(depth: int, inner: Any = "x") -> Any:
    for _ in range(depth):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (nested(400), rf"user_options\.a\.a.*more than {MAX_DEPTH} levels deep"),
        (nested(sys.getrecursionlimit() * 2), "levels deep"),
        ({"a": [[[]] * 3] * MAX_NODES}, rf"more than {MAX_NODES} values"),
        ({"a": "x" * (MAX_BYTES + 1)}, rf"{MAX_BYTES >> 10} KiB of text.*user_options\.a"),
        ({"é" * (MAX_BYTES // 2): 1, "b": "b"}, "KiB of text"),
        ({"a": float("nan")}, r"user_options\.a is nan"),
        ({"a": [1, float("-inf")]}, r"user_options\.a\[1\] is -inf"),
        ({"a": 10**5000}, r"user_options\.a is a number of more than 64 bits"),
        ({"a": "\ud800"}, r"user_options\.a holds bytes"),
        ({"\ud800": 1}, r"user_options holds bytes"),
        ({1: 1}, r"user_options has the key 1, a int"),
        ({"a": object()}, r"user_options\.a is a object"),
    ],
)
def test_too_much_is_refused_by_name(options: Any, words: str) -> None:
    with pytest.raises(OptionsRefused, match=words) as caught:
        check_options(options)
    assert len(str(caught.value).encode()) < 2_000


def test_a_form_fits() -> None:
    check_options({})
    check_options({"image": ["x"], "note": "é" * 10_000, "cores": 2, "gpu": False, "none": None})
    check_options(nested(MAX_DEPTH))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@given(json_like)
@settings(deadline=None)
def test_what_fits_is_json_and_the_rest_is_one_of_our_errors(options: Any) -> None:
    try:
        check_options(options)
    except OptionsRefused:
        return
    assert to_json(plain(options)).encode()


def test_a_value_that_holds_itself_is_named() -> None:
    """An administrator's own, which no limit of users' options looks at."""
    values: dict[str, Any] = {}
    values["me"] = {"again": values}
    with pytest.raises(TemplateError, match=r"^The value me\.again\..*itself"):
        plain(values)
    values["token"] = "\ud800 and more than that"
    assert Redactor(values)("a word") == "a word"


class _Endless(list[int]):
    """A list of which no entry may be touched."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("its entries were looked at")


def test_a_list_that_is_too_long_is_not_walked() -> None:
    with pytest.raises(OptionsRefused, match=r"too many from user_options\.a on"):
        check_options({"a": _Endless([0] * 3_000)})
