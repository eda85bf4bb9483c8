"""No text that a user types changes what a template makes, and honest charts never notice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.errors import OptionsRefused, TemplateError
from lightkube_template_spawner.objects import kubeyaml
from lightkube_template_spawner.templates import guard

NASTY = [
    'a"b: {c}\n- x',
    "x\n---\nkind: RoleBinding\nname: admin",
    'x"\ndata2: "y',
    "x'\ndata2: 'y",
    "x\n  hostPID: true",
    "{a: b}",
    "[a, b]",
    "n",
    "1e3",
    "null",
    "bob #x",
    "a\\nb",
    "*user",
    "&user x",
    "!!int 5",
    "- x",
    ": x",
    "| x",
    "%x",
    "Ünï çødé+@x.org",
]

PLAIN_TEMPLATES = {
    "bare": "kind: Pod\nname: {value}\nlast: 1\n",
    "double": 'kind: Pod\nname: "{value}"\nlast: 1\n',
    "single": "kind: Pod\nname: '{value}'\nlast: 1\n",
    "inside": "kind: Pod\nargs: [--name={value}, x]\nlast: 1\n",
    "comment": "kind: Pod\n# for {value}\nlast: 1\n",
    "key": "kind: Pod\nlabels:\n  {value}: x\nlast: 1\n",
    "block": "kind: Pod\ntext: |\n  {value}\nlast: 1\n",
}


def go_quote(text: str) -> str:
    """Near enough to the template function `quote`."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    letters = (
        escapes.get(x, x if x.isprintable() else f"\\U{ord(x):08x}" if ord(x) > 255
                    else f"\\x{ord(x):02x}")
        for x in text
    )  # fmt: skip
    return f'"{"".join(letters)}"'


def render(template: str, values: Mapping[str, Any]) -> dict[str, list[Any]]:
    if template == "quoted":
        text = f"kind: Pod\nname: {go_quote(values['unescaped_username'])}\nlast: 1\n"
    else:
        text = PLAIN_TEMPLATES[template].format(value=values["unescaped_username"])
    return {"pod.yaml": kubeyaml.load_all(text)}


def guarded(template: str, values: Mapping[str, Any]) -> list[Any]:
    real = render(template, values)
    probe = guard.probe(values)
    if probe is not None:
        guard.compare(real, render(template, probe.values), probe)
    return real["pod.yaml"]


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("template", PLAIN_TEMPLATES)
def test_nasty_text_is_refused_or_exact(template: str, name: str) -> None:
    ordinary = render(template, {"unescaped_username": "ordinary"})["pod.yaml"]
    try:
        documents = guarded(template, {"unescaped_username": name})
    except TemplateError:
        return
    assert shape(documents, name) == shape(ordinary, "ordinary")
    for text in (documents[0].get("name"), documents[0].get("text"), *documents[0].get("args", ())):
        assert text is None or text == "x" or name.strip() in text


@given(st.text() | st.text("\"'\\\n\t -:{}[]#&*!|>%@`,?~01enyx", max_size=12))
@example("\x7f")
@settings(max_examples=200, deadline=None)
def test_quoted_text_always_passes(name: str) -> None:
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
        return
    assert guarded("quoted", {"unescaped_username": name}) == [
        {"kind": "Pod", "name": name, "last": 1}
    ]


@given(
    st.sampled_from(sorted(PLAIN_TEMPLATES)),
    st.text("\"'\\\n\t -:{}[]#&*!|>%@`,?~01enyxkind", min_size=1, max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_no_text_changes_the_shape(template: str, name: str) -> None:
    """The oracle is independent: the keys and types of the same template with an ordinary name."""
    try:
        documents = guarded(template, {"unescaped_username": name})
    except TemplateError:
        return
    ordinary = render(template, {"unescaped_username": "ordinary"})["pod.yaml"]
    assert shape(documents, name) == shape(ordinary, "ordinary")


def shape(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        if name in value.get("labels", ()):
            value = {**value, "labels": {"NAME": value["labels"][name]}}
        return {key: shape(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item, name) for item in value]
    return type(value)


@pytest.mark.parametrize("text", ["alice", "a.b@x.org", "http://hub:8081/hub/api", "a1-b_c"])
def test_ordinary_text_needs_no_second_render(text: str) -> None:
    assert guard.is_exact(text)
    values = {"unescaped_username": text, "user_options": {"a": text}}
    assert guard.probe(values, named=True, lookalikes=True) is None
    assert guard.probe({**values, "user_options": {}}, lookalikes=True) is None


WORDS = ["on", "n", "null", "0x1F", "1_000", "1e3", "12345", "true"]


@pytest.mark.parametrize("text", [*NASTY, *WORDS, "a:", "-a", "a b", "ü", "a\n"])
def test_text_that_may_change(text: str) -> None:
    assert not guard.is_exact(text)
    assert guard.is_harmless(text) is (text in WORDS)


def test_charts_may_decide_by_words_and_by_nothing() -> None:
    """`if .Values.unescaped_servername` tells named servers; a form's checkbox sends `true`."""
    values = {"unescaped_servername": "", "user_options": {"gpu": "true", "cores": "2"}}
    assert guard.probe(values, named=True) is None
    probe = guard.probe({"unescaped_username": "12345", "args": ["12345"], "default_url": ""})
    assert probe is not None
    assert probe.values["unescaped_username"] != "12345"
    assert probe.values["args"] == ["12345"]
    assert probe.values["default_url"] == ""


def test_canaries_replace_tainted_text_and_its_copies() -> None:
    values = {
        "unescaped_username": "a b",
        "user_options": {"image": "x: {y}", "n": 3, "list": ["", "ok"]},
        "env": {"JUPYTERHUB_USER": "a b", "PREFIX": "/user/a%20b/"},
        "image": "x: {y}",
        "args": ["--image=x: {y}"],
        "mountPath": "/home/jovyan",
        "admin": True,
    }
    probe = guard.probe(values)
    assert probe is not None
    got = probe.values
    assert got["unescaped_username"] == got["env"]["JUPYTERHUB_USER"]
    assert got["image"] == got["user_options"]["image"]
    assert guard.is_exact(got["image"])
    assert guard.is_exact(got["args"][0])
    assert got["args"][0] != got["image"]
    assert got["user_options"]["n"] == 3
    assert got["user_options"]["list"][1] == "ok"
    assert len(got["user_options"]["list"]) == 3
    assert len(got["user_options"]) == 4
    assert got["mountPath"] == "/home/jovyan"
    assert values["unescaped_username"] == "a b"


def test_trusted_values_stay() -> None:
    values = {"user_options": {"size": "extra large", "other": "a b"}}
    probe = guard.probe(values, trusted=[("user_options", "size")])
    assert probe is not None
    assert probe.values["user_options"]["size"] == "extra large"
    assert probe.values["user_options"]["other"] != "a b"
    assert guard.probe(values, trusted=[("user_options",)]) is None
    assert guard.probe(values, tainted=[("env",)]) is None


def test_a_key_with_a_dot_is_no_path() -> None:
    trusted: guard.Trusted = {("profile", "size"): ["a b"]}
    values = {"user_options": {}, "profile.size": "x y"}
    guard.check_allowed(values, trusted)
    probe = guard.probe(values, tainted=[("profile.size",)], trusted=list(trusted))
    assert probe is not None
    assert probe.values["profile.size"] != "x y"
    assert guard.path("a.b") == guard.path(("a", "b")) != guard.path(("a.b",))


def test_paths_inside_other_values_can_be_tainted() -> None:
    values = {"claims": {"email": "a b", "all": ["x"], "ours": "c d"}, "copy": "a b"}
    probe = guard.probe(values, tainted=[("claims", "email"), ("claims", "all"), ("none", "x")])
    assert probe is not None
    claims = probe.values["claims"]
    assert claims["email"] == probe.values["copy"] != "a b"
    assert (len(claims), len(claims["all"]), claims["ours"]) == (3, 2, "c d")


ALLOWED: guard.Trusted = {("user_options", "size"): ["small", "extra large", 2, ["a", "a"]]}


@pytest.mark.parametrize(
    "size", ["small", "extra large", 2, [], ["small"], ["small", 2], ["a", "a"], None]
)
def test_what_is_allowed(size: Any) -> None:
    guard.check_allowed({"user_options": {} if size is None else {"size": size}}, ALLOWED)


@pytest.mark.parametrize("size", ["Small", "2", True, 2.5, None, ["small", "small"], ["b"], {}])
def test_what_is_not_allowed(size: Any) -> None:
    with pytest.raises(OptionsRefused, match=r"^user_options\.size is .*small.*extra large"):
        guard.check_allowed({"user_options": {"size": size}}, ALLOWED)


def test_an_entry_that_no_user_sent_never_passes_for_an_empty_key() -> None:
    """Nor does it for any other key that a user can send."""
    values = {"user_options": {"": "a", "b": "c"}}
    probe = guard.probe(values)
    assert probe is not None
    with pytest.raises(TemplateError, match=r"user_options \(its keys\)"):
        guard.compare({"t": [values["user_options"]]}, {"t": [probe.values["user_options"]]}, probe)


def compare(values: dict[str, Any], make: Any) -> None:
    probe = guard.probe(values)
    assert probe is not None
    guard.compare({"t": [make(values)]}, {"t": [make(probe.values)]}, probe)


def test_what_a_chart_works_out_of_a_text_may_differ() -> None:
    values = {"user_options": {"gpus": "-2", "name": "Ü Ä"}}
    compare(values, lambda v: {"n": len(v["user_options"]["name"])})
    compare(values, lambda v: {"big": v["user_options"]["gpus"] == "-2"})
    compare(values, lambda v: {"low": v["user_options"]["name"].lower()})
    compare(values, lambda v: {v["user_options"]["name"]: 1})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda v: {"a": 2 if v == "2 #" else v}, r"^t, a: text became a number.*`?user_opt"),
        (lambda v: {"a": [1] if v == "2 #" else []}, r"^t, a: 0 items became 1"),
        (lambda v: {"a": 1, **({"b": 1} if v == "2 #" else {})}, r"^t: 1 key became 2"),
        (lambda v: {"a": {"b": [v.replace(" #", "")]}}, r"^t, a\.b\[0\]: .*does not arrive whole"),
    ],
)
def test_messages_name_place_and_value(make: Any, words: str) -> None:
    with pytest.raises(TemplateError, match=words) as caught:
        compare({"user_options": {"n": "2 #"}}, lambda v: make(v["user_options"]["n"]))
    assert "user_options.n" in str(caught.value) or "user_options (" in str(caught.value)
    assert "`quote`" in str(caught.value)


def test_documents_are_counted() -> None:
    probe = guard.probe({"unescaped_username": "a b"})
    assert probe is not None
    with pytest.raises(TemplateError, match=r"^t: 1 document became 2.*unescaped_username"):
        guard.compare({"t": [1, 2]}, {"t": [1]}, probe)
    with pytest.raises(TemplateError, match=r"^u: 0 documents became 1"):
        guard.compare({"u": [1]}, {}, probe)


sendable = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([*NASTY, *WORDS, "", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NASTY, "a", "b", "hostNetwork", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)


def as_json(options: Mapping[str, Any]) -> str:
    return f"v: [{json.dumps(options.get('x'))}]\n"


def as_keys(options: Mapping[str, Any]) -> str:
    return "v: [n]\n" + "".join(f"{json.dumps(key)}: a\n" for key in sorted(options))


def as_printed(options: Mapping[str, Any]) -> str:
    """What Go makes of a list without `quote`."""
    x = options.get("x")
    text = f"[{' '.join(map(str, x))}]" if isinstance(x, list) else json.dumps(x)
    return f"v: [{text}]\n"


@pytest.mark.parametrize("template", [as_json, as_keys, as_printed])
@given(st.dictionaries(st.sampled_from(["a", "b", "y", "a: b"]), sendable), sendable)
@settings(max_examples=150, deadline=None)
def test_no_list_no_mapping_and_no_key_changes_the_shape(
    template: Callable[[Mapping[str, Any]], str], more: dict[str, Any], x: Any
) -> None:
    """The oracle: one scalar in a list, and nothing beside it, whatever was sent."""
    values = {"user_options": {**more, "x": x}}
    try:
        real = {"t": kubeyaml.load_all(template(values["user_options"]))}
        probe = guard.probe(values, lookalikes=True)
        assert probe is not None
        probed = {"t": kubeyaml.load_all(template(probe.values["user_options"]))}
        guard.compare(real, probed, probe)
    except TemplateError:
        return
    document = real["t"][0]
    assert document.keys() == {"v"}
    assert len(document["v"]) == 1
    assert not isinstance(document["v"][0], dict | list)
