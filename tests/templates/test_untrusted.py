"""Charts through the real Helm library: options that trick a careless one, and honest charts."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lightkube_template_spawner.errors import OptionsRefused, TemplateError
from lightkube_template_spawner.templates import chart as charts
from lightkube_template_spawner.templates import guard
from lightkube_template_spawner.templates import renderer as renderers
from lightkube_template_spawner.templates.chart import Chart
from lightkube_template_spawner.templates.helm.library import SharedWorker, library_folder
from tests.support.charts import write_chart

pytestmark = [
    pytest.mark.skipif(library_folder() is None, reason="helm-python-sdk is missing"),
]

TOKEN = "abcdefghijklmnop"
Rendering = Callable[..., Any]


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "SECONDS_BETWEEN_LOOKS", 0)


@pytest.fixture
async def render(tmp_path: Path) -> AsyncIterator[Rendering]:
    """Render one template with values; the only document that it makes."""

    async def rendering(template: str, values: Mapping[str, Any], **more: Any) -> Any:
        write_chart(tmp_path, template)
        engine = renderers.open_renderer(tmp_path, kube_version=None, log=logging.getLogger("test"))
        given = {"env": {"JUPYTERHUB_API_TOKEN": TOKEN}, **values}
        rendered = await engine.render(given, release="a", namespace="b", **more)
        return rendered.objects["demo/templates/a.yaml"][0]

    yield rendering
    await renderers.close_renderers()


def options(**given: Any) -> dict[str, Any]:
    return {"user_options": given}


BARE = "v: {{ .Values.user_options.x }}\n"
QUOTED = "v: {{ .Values.user_options.x | quote }}\n"
JSON = "v: [{{ .Values.user_options.x | toJson }}]\n"
RANGE = "v:\n  a: b\n{{ range $k, $v := .Values.user_options }}  {{ $k }}: {{ $v }}\n{{ end }}"
EACH = "v:\n{{ range .Values.user_options.x }}- {{ . | quote }}\n{{ end }}"
TPL = "v: {{ tpl .Values.user_options.x . | quote }}\n"
AS_KEY = "v:\n  {{ .Values.user_options.x }}: a\n"
LOWER = "v: {{ .Values.user_options.x | lower }}\n"
COPY = "v: {{ .Values.image }}\n"

TRICKS = {
    "a mapping for text": (JSON, options(x={"hostPath": {"path": "/"}})),
    "an empty mapping for text": (JSON, options(x={})),
    "a list for text": (JSON, options(x=["a"])),
    "an empty list for text": (JSON, options(x=[])),
    "a list of one, printed": (BARE, options(x=["a"])),
    "a list of numbers, printed": (BARE, options(x=[2])),
    "a list that ends in a number, printed": (BARE, options(x=["a", 1e300])),
    "a mapping deep inside": (JSON, options(x={"a": [{"b": {"c": "d"}}]})),
    "keys": (RANGE, options(hostNetwork=True)),
    "keys with plain words": (RANGE, options(serviceAccountName="admin")),
    "keys in another case": (RANGE.replace("{{ $k }}", "{{ lower $k }}"), options(Host="b")),
    "items": (EACH, options(x=["a", "b"])),
    "items of mappings": (EACH.replace(". |", ".n |"), options(x=[{"n": "a"}])),
    "all items, each once": (EACH.replace(".Values.user_options.x", "uniq .Values.user_options.x"),
                             options(x=["a"])),
    "all options": ("v: {{ .Values.user_options | toJson }}\n", options(x="a")),
    "a key that is too long for YAML": (
        "v:\n  {{- .Values.user_options | toYaml | nindent 4 }}\n",
        {"user_options": {"x" * 2000: "a"}}),
    "all options of all values": ("v: {{ get .Values `user_options` | toJson }}\n", options(x="a")),
    "template syntax": (TPL, options(x="{{ .Values | toJson }}")),
    "template syntax that shows itself": (TPL, options(
        x="{{ .Values.user_options.x }}{{ .Values.env.JUPYTERHUB_API_TOKEN }}")),
    "template syntax that is changed": (
        TPL.replace("quote", "lower | quote"), options(x="{{ .Values.env.JUPYTERHUB_API_TOKEN }}")),
    "template syntax that never ends": (TPL, options(
        x="{{ range until 100000 }}{{ range until 100000 }}{{ end }}{{ end }}")),
    "template syntax in a key": (
        "v: {{ tpl (keys .Values.user_options | first) . | quote }}\n",
        {"user_options": {"{{ .Values.env | toJson }}": "a"}}),
    "more lines": (BARE, options(x="a\nw: b")),
    "a list's item in more lines": (
        "v: {{ index .Values.user_options.x 0 }}\n", options(x=["a\nw: b"])),
    "hexadecimal": (BARE, options(x="0x10")), "underscore": (BARE, options(x="1_000")),
    "exponent": (BARE, options(x="1e3")), "octal": (BARE, options(x="0777")),
    "y": (BARE, options(x="y")), "off": (BARE, options(x="off")), "null": (BARE, options(x="null")),
    "changed": (LOWER, options(x="0X10")), "changed null": (LOWER, options(x="NULL")),
    "a boolean key": (AS_KEY, options(x="y")),
    "a number beside a decision": (
        '{{ if eq .Values.user_options.n "2" }}w: [a]\n{{ end }}' + BARE, options(n="2", x="y")),
    "a number where a list's length is decided": (
        'w: [a{{ if eq .Values.user_options.n "2" }}, b{{ end }}]\n' + BARE, options(n="2", x="y")),
    "a copy": (COPY, {**options(x="0x10"), "image": "0x10"}),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
async def test_a_careless_chart_is_refused(trick: str, render: Rendering) -> None:
    template, values = TRICKS[trick]
    with pytest.raises(TemplateError) as caught:
        await render(template, values)
    assert TOKEN not in str(caught.value)
    assert "user_options" in str(caught.value)


DECIDES = '{{ if eq .Values.user_options.x "%s" }}v: large\n{{ else }}w: [small]\n{{ end }}'
CHECKED = '{{ if not (regexMatch "^[0-9]+$" %s) }}{{ fail "no" }}{{ end }}'
HONEST: dict[str, tuple[str, dict[str, Any], Any]] = {
    "a word decides": (DECIDES % "large", options(x="large"), {"v": "large"}),
    "a checkbox decides": (DECIDES % "true", options(x="true"), {"v": "large"}),
    "a number decides": (DECIDES % "2", options(x="2"), {"v": "large"}),
    "a boolean decides": (DECIDES.replace('"%s"', "true"), options(x=True), {"v": "large"}),
    "a checked number": (
        CHECKED % ".Values.user_options.x" + BARE, options(x="2"), {"v": 2}),
    "checked numbers": (
        CHECKED % ".Values.user_options.x" + CHECKED % ".Values.user_options.y" + BARE,
        options(x="2", y="3"), {"v": 2}),
    "a number of text": (
        "v: {{ int64 .Values.user_options.x }}\n", options(x="2"), {"v": 2}),
    "a quoted number": (QUOTED, options(x="2"), {"v": "2"}),
    "a number": (BARE, options(x=2), {"v": 2}),
    "a mapping as text": (
        "v: {{ .Values.user_options.x | toJson | quote }}\n", options(x={"a": 1}), {"v": None}),
    "all options as text": (
        "v: {{ .Values.user_options | toJson | quote }}\n", options(x="{{ a }}"), {"v": None}),
    "all options as a block": (
        "v: |\n  {{- .Values.user_options | toYaml | nindent 2 }}\n", options(x="b"), {"v": None}),
    "a form's list": (
        "v: {{ index .Values.user_options.x 0 | quote }}\n", options(x=["a: b"]), {"v": "a: b"}),
    "joined": ('v: {{ join "," .Values.user_options.x | quote }}\n', options(x=["a", "b #"]),
               {"v": "a,b #"}),
    "template syntax without tpl": (QUOTED, options(x="{{ .Values }}"), {"v": "{{ .Values }}"}),
    "tpl of the administrator's": (
        TPL.replace("user_options.x", "ours"), {**options(x="a b"), "ours": "{{ 1 }}"}, {"v": "1"}),
    "other line breaks in JSON": (QUOTED.replace("x", "x | toJson"), options(x="<a\u2028b"),
                                  {"v": '"\\u003ca\\u2028b"'}),
    "other line breaks": (QUOTED, options(x="a\u0085b\u2028c\u2029d"),
                          {"v": "a\u0085b\u2028c\u2029d"}),
    "other line breaks as JSON": ("v: {{ .Values.user_options.x | toJson }}\n",
                                  options(x="a\u0085b\u2028 \u0085\u0085c"), {"v": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", HONEST)
async def test_an_honest_chart_never_notices(case: str, render: Rendering) -> None:
    template, values, expected = HONEST[case]
    document = await render(template, values)
    assert document.keys() == expected.keys()
    assert expected["v"] in (None, document["v"])


async def test_what_is_allowed_may_decide_and_the_rest_is_refused(render: Rendering) -> None:
    trusted = {("user_options", "x"): ["extra large", "b"], ("user_options", "n"): ["2"]}
    decides = DECIDES % "extra large"
    assert await render(decides, options(x="extra large"), trusted=trusted) == {"v": "large"}
    assert await render(EACH, options(x=["b", "extra large"]), trusted=trusted) == {
        "v": ["b", "extra large"]
    }
    assert await render(BARE.replace("x", "n"), options(n="2"), trusted=trusted) == {"v": 2}
    with pytest.raises(TemplateError, match="set `trusted_values`"):
        await render(decides, options(x="extra large"))
    for given in ("a: b", {"x": 1}, ["b", "b"], ["c"], 2):
        with pytest.raises(OptionsRefused, match=r"user_options\.x is .*extra large"):
            await render(decides, options(x=given), trusted=trusted)


async def test_what_extra_vars_make_of_a_users_text_can_be_declared(render: Rendering) -> None:
    values = {**options(x="A: B"), "mail": "a\nw: c", "claims": {"all": {"hostPath": {}}}}
    template = "v: {{ .Values.%s }}\n"
    assert (await render(template % "mail", values)).keys() == {"v", "w"}
    with pytest.raises(TemplateError, match="because of mail"):
        await render(template % "mail", values, tainted=[*guard.TAINTED, ("mail",)])
    tainted = [*guard.TAINTED, ("claims", "all")]
    with pytest.raises(TemplateError, match=r"because of claims\.all \(its keys\)"):
        await render(template % "claims.all | toJson", values, tainted=tainted)


@pytest.mark.parametrize(
    ("template", "values", "renders"),
    [
        (QUOTED, options(x="large", n=2), 1),
        (QUOTED, options(), 1),
        (QUOTED, options(x="a b"), 2),
        (QUOTED, options(x="2"), 2),
        (QUOTED, options(x=["a"]), 2),
        ('v: {{ index .Values "user_options" "x" | quote }}\n', options(x="a"), 2),
        ("v: {{ .Values.user_options | toJson | quote }}\n", options(x="a"), 2),
        (DECIDES % "2", options(x="2"), 3),
    ],
)
async def test_a_start_without_risky_options_renders_once(
    template: str,
    values: dict[str, Any],
    renders: int,
    render: Rendering,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    ask = SharedWorker.render

    async def counted(self: SharedWorker, request: Any, seconds: float) -> dict[str, str]:
        asked.append(request)
        return await ask(self, request, seconds)

    monkeypatch.setattr(SharedWorker, "render", counted)
    await render(template, values)
    assert len(asked) == renders


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{{ .Values.user_options.a }} {{ $.Values.user_options.b_c }}", True),
        ('{{ index .Values "cmd" }} {{ (index . 0).Values.image }}', True),
        ('{{ index .Values "user_options" }}', False),
        ("{{ .Values.user_options }}", False),
        ("{{ with .Values }}{{ end }}", False),
        ("{{ index .Values $name }}", False),
        ("{{ $all := .Values -}}", False),
        ("{{ tpl .Values.ours . }}", False),
    ],
)
def test_charts_that_pick_options_by_name(text: str, named: bool) -> None:
    chart = Chart("demo", {"charts/sub/templates/a.tpl": text.encode(), "values.yaml": b".Values"})
    assert chart.names_options is named
    packed = Chart("demo", {**chart.files, "charts/more.tgz": b""})
    assert packed.calls_tpl
    assert not packed.names_options
