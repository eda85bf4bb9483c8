"""What kubeyaml reads is what Kubernetes reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.objects import kubeyaml

SCALARS: list[tuple[str, Any]] = [
    ("y", True), ("n", False), ("Y", True), ("N", False),
    ("on", True), ("yes", True), ("True", True), ("OFF", False),
    ("yEs", "yEs"), ("tRue", "tRue"),
    ("~", None), ("null", None), ("NULL", None), ("", None), ("nULL", "nULL"),
    ("0777", 511), ("089", 89), ("0o777", 511), ("0O17", 15), ("0o8", "0o8"),
    ("0x1F", 31), ("-0x1F", -31), ("0X1f", 31), ("0x", "0x"), ("0b11", 3), ("-0b11", -3),
    ("+5", 5), ("-5", -5), ("00", 0), ("-0", 0), ("0_7", 7), ("1_000", 1000), ("_1", "_1"),
    ("1e3", 1000), ("1e+06", 1000000), ("1.00065e+09", 1000650000), ("1000650000.0", 1000650000),
    ("1.5", 1.5), ("09.5", 9.5), ("1.", 1), ("+.5", 0.5), (".5", 0.5), (".5_0", 0.5),
    ("._5", "._5"), (".", "."), ("+", "+"), ("1e400", "1e400"), ("1e-7", 1e-7),
    ("18446744073709551615", 2**64 - 1), ("-9223372036854775808", -(2**63)),
    ("100000000000000000000", 10**20), ("1e21", 1e21),
    ("1:30", "1:30"), ("12:30:45", "12:30:45"), ("2026-01-01", "2026-01-01"),
    ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
    ("=", "="), ("<<", "<<"), ("v1", "v1"), ("1.2.3", "1.2.3"), ("bob #x", "bob"),
    ("'5'", "5"), ('"y"', "y"), ("|\n  5", "5\n"), (">-\n  a\n  b", "a b"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[repr(text) for text, _ in SCALARS])
def test_scalars(text: str, value: Any) -> None:
    (document,) = kubeyaml.load_all(f"a: {text}\n")
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("y: 1", ["true"]),
        ("off: 1", ["false"]),
        ("0x10: 1\n2: 2", ["16", "2"]),
        ('"<<": 1', ["<<"]),
        ('"null": 1', ["null"]),
    ],
)
def test_keys_are_text(text: str, keys: list[str]) -> None:
    assert list(kubeyaml.load_all(text)[0]) == keys


def test_documents() -> None:
    text = "# only a comment\n---\na: 1\n---\n\n---\nnull\n---\n- 2\n...\n---\n'3'\n"
    assert kubeyaml.load_all(text) == [{"a": 1}, [2], "3"]
    assert kubeyaml.load_all("") == []


def test_aliases_are_copies() -> None:
    (document,) = kubeyaml.load_all("a: &x {p: [1]}\nb: *x\nc: &s 7\nd: *s\n")
    assert document == {"a": {"p": [1]}, "b": {"p": [1]}, "c": 7, "d": 7}
    document["a"]["p"].append(2)
    assert document["b"] == {"p": [1]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<<: *x\n  p: 9", {"p": 9, "q": 2}),
        ("p: 9\n  <<: *x", {"p": 1, "q": 2}),
        ("<<: [{p: 5}, *x]", {"p": 5, "q": 2}),
        ("<<: {r: 3}", {"r": 3}),
    ],
)
def test_merge_keys(text: str, value: Any) -> None:
    assert kubeyaml.load_all(f"a: &x {{p: 1, q: 2}}\nb:\n  {text}\n")[0]["b"] == value


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: 1\nb: 2\na: 3", 3, 1, "second time"),
        ("a: 1\n<<: {b: 1}\nb: 1\nb: 2", 4, 1, "second time"),
        ('1: a\n"1": b', 2, 1, "second time"),
        ("a: !!str 5", 1, 4, "tag"),
        ("a: !x {b: 1}", 1, 4, "tag"),
        ("a: ! 5", 1, 4, "tag"),
        ("a:\n  - .inf", 2, 5, "infinity"),
        ("a: -.Inf", 1, 4, "infinity"),
        ("a: .NaN", 1, 4, "infinity"),
        ("~: 1", 1, 1, "key"),
        ("1.5: 1", 1, 1, "quotes"),
        ("? [a]\n: 1", 1, 3, "key"),
        ("a: {{ b }}", 1, 5, "key"),
        ("a: *x", 1, 4, "anchor"),
        ("a: &x [*x]", 1, 8, "inside"),
        ("a: &x 1\n---\nb: *x", 3, 4, "anchor"),
        ("<<: 5", 1, 5, "mapping"),
        ("a: b: c", 1, 5, "mapping values are not allowed"),
        ("a:\n\t- 1", 2, 1, "indentation"),
        ('a: "x', 1, 6, "quote"),
        ("a: @x", 1, 4, "quote"),
        ("- a\nb: 1", 2, 1, "indentation"),
    ],
)
def test_errors_name_the_place(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        kubeyaml.load_all(text, "templates/pod.yaml")
    message = str(caught.value)
    assert message.startswith(f"templates/pod.yaml, line {line}, column {column}: ")
    assert words in message


@pytest.mark.parametrize("text", ["a: \x00", "a: '\x07'", "a: \ud800", "\x08"])
def test_characters_that_are_not_yaml(text: str) -> None:
    with pytest.raises(TemplateError, match=r"templates/pod\.yaml.*`quote`"):
        kubeyaml.load_all(text, "templates/pod.yaml")


def test_errors_hold_no_content() -> None:
    """A value next to the mistake may be a token."""
    for text in ('token: "s3cret\n', "token: s3cret: x", "token: [s3cret", "t: s3cret\n- s3cret"):
        with pytest.raises(TemplateError) as caught:
            kubeyaml.load_all(text)
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: " + "{b: " * 10_000,
        "- " * 5_000 + "x",
        "a: &a [" + ",".join("1" * 10) + "]\n" + "".join(
            f"k{i}: &k{i} [{','.join([f'*k{i - 1}' if i else '*a'] * 10)}]\n" for i in range(9)
        ),
        "k0: &k0 [1]\n" + "".join(f"k{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 200)),
        "---\na: 1\n" * 1_001,
        "[" + "1," * 200_001 + "]",
    ],
    ids=["flow", "maps", "block", "laughs", "chain", "documents", "nodes"],
)  # fmt: skip
def test_limits(text: str) -> None:
    with pytest.raises(TemplateError, match="more than"):
        kubeyaml.load_all(text)


LETTERS = st.characters(exclude_categories=("Cc", "Cs", "Cn")) | st.sampled_from("\n\t\r\"'\\")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(LETTERS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(LETTERS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_json_is_read_exactly(value: Any) -> None:
    """What `toJson` writes, and so what a chart that quotes everything writes, comes back."""
    text = json.dumps(value, ensure_ascii=False)
    assert kubeyaml.load_all(text) == ([] if value is None else [value])


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_any_text_gives_documents_or_a_template_error(text: str) -> None:
    try:
        documents = kubeyaml.load_all(text)
    except TemplateError:
        return
    json.dumps(documents, allow_nan=False)


WORDS = st.one_of(
    st.text("0123456789.+-_eExXoObBaAfFinN", min_size=1, max_size=10),
    st.sampled_from([text for text, _ in SCALARS if text and "\n" not in text]),
    st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9 .:/@=<~-]{0,8}", fullmatch=True),
)


@given(WORDS)
@example("0.0")
@example("0x_1")
@example("-.5")
@settings(max_examples=300, deadline=None)
def test_agrees_with_kubernetes(word: str) -> None:
    """helm_python.values_from_yaml is sigs.k8s.io/yaml itself."""
    helm = pytest.importorskip("helm_python")
    text = f"a: {word}\n"
    try:
        theirs = helm.values_from_yaml(text)["a"]
    except helm.HelmError:
        with pytest.raises(TemplateError):
            kubeyaml.load_all(text)
        return
    (document,) = kubeyaml.load_all(text)
    ours = document["a"]
    if isinstance(ours, (int, float)) and not isinstance(ours, bool):
        assert float(ours) == float(theirs)  # their JSON holds numbers as floats
    else:
        assert ours == theirs
        assert type(ours) is type(theirs)
