# ruff: noqa: E501 - long on purpose
"""Whatever options users send, a manifest keeps its shape and types, and secrets their place.

Every case goes through the limits, Helm, the guard and the plan, as a start does; no cluster is
needed. What a chart makes of an ordinary word, unguarded, says what its manifests look like.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from e2e.conftest import DEFAULT_CHART
from e2e.harness import light
from e2e.harness.faults import Faults
from e2e.ownership import adversary
from e2e.ownership.adversary import LABELS, NAME, PATHS, SYNTAX
from lightkube_template_spawner.errors import OptionsRefused, SpawnerError
from lightkube_template_spawner.objects import parsing
from lightkube_template_spawner.objects import plan as manifests
from lightkube_template_spawner.objects.identity import Identity
from lightkube_template_spawner.templates import guard, limits, renderer, values
from lightkube_template_spawner.templates.renderer import Rendered

pytestmark = pytest.mark.timeout(1800)

CASES = 10_000  # a turn
AT_ONCE = 4
TOKEN = "Adversary-Token-0123456789"
WORD = "ordinary"
ME = Identity("jupyter", "ada", userid=1)
log = logging.getLogger("adversary")

NUMBERS = (
    "y", "Y", "n", "on", "off", "Yes", "TRUE", "null", "~", "0", "2", "-2", "0x10", "0b1", "0o7", "0777", "089",
    "1_000", "1e3", "1e+06", ".5", "5.", "+.5", "1:30", "2026-11-24", ".inf", ".NaN", "0x", "1_", "_1", "9" * 30,
)  # fmt: skip
GO = (
    "{{ .Values | toJson }}", "{{ .Values.env | toYaml }}", "{{ .Values.env.JUPYTERHUB_API_TOKEN | lower }}",
    "{{ .Values.user_options.x }}{{ .Values.env.JUPYTERHUB_API_TOKEN }}", "{{ fail `x` }}", "{{- `a` -}}",
    "{{ .Values.env.JUPYTERHUB_API_TOKEN | b64enc }}", "{", "}", "{{/* a */}}", "{{ include `x` . }}",
)  # fmt: skip
BREAKS = (
    "a\u0085b",
    "a\u2028b",
    "a\u2029\u2029b",
    "\u0085",
    "a \u2028 b",
    "a\rb",
    "a\vb",
    "a\fb",
    "\x7f",
    "\x80",
)
KEYS = (
    "y", "z", "hostNetwork", "privileged", "hostPath", "path", "name", "on", "0x10", "a.b", "", "a: b", "- a", "<<",
    "{{ .Values.env | toJson }}", "a\nb: c", "kind", "metadata",
)  # fmt: skip
PIECES = (SYNTAX, PATHS, LABELS, NUMBERS, GO, BREAKS, ("large", "small", "a", "b c"))


@dataclass(frozen=True)
class Way:
    """A template's last field, ``v``; the shapes of ``words`` and of no option are its own.

    An honest one refuses nothing but what is too large.
    """

    template: str
    words: tuple[Any, ...] = (WORD,)
    honest: bool = False
    own_key: bool = False


X = ".Values.user_options.x"
DECIDES = f"{{{{ if eq (toString {X}) %s }}}}v: [large]{{{{ else }}}}w: small{{{{ end }}}}\n"
WAYS = {
    "bare": Way(f"v: {{{{ {X} }}}}"),
    "in a list": Way(f"v: [{{{{ {X} }}}}, b]"),
    "in a mapping": Way(f"v: {{a: {{{{ {X} }}}}, b: c}}"),
    "in double quotes": Way(f'v: "{{{{ {X} }}}}"'),
    "in single quotes": Way(f"v: 'a {{{{ {X} }}}}'"),
    "as JSON": Way(f"v: {{{{ {X} | toJson }}}}"),
    "as JSON in a list": Way(f"v: [{{{{ {X} | toJson }}}}]"),
    "as YAML": Way(f"v: {{{{ {X} | toYaml }}}}"),
    "as YAML below": Way(f"v:\n  {{{{- {X} | toYaml | nindent 4 }}}}"),
    "in lower case": Way(f"v: {{{{ {X} | toString | lower }}}}"),
    "printed": Way(f'v: {{{{ printf "a %v" {X} }}}}'),
    "after a word": Way(f"v: --x={{{{ {X} }}}}"),
    "in a block": Way(f"v: |\n    {{{{ {X} }}}}"),
    "in a comment": Way(f"v: a # {{{{ {X} }}}}"),
    "as a key": Way(f"v:\n    {{{{ {X} }}}}: a", own_key=True),
    "as a quoted key": Way(f"v:\n    {{{{ {X} | toString | quote }}}}: a", own_key=True),
    "each item": Way(f"v: [a]\nw:\n{{{{ range {X} }}}}- {{{{ . }}}}\n{{{{ end }}}}", ()),
    "each item quoted": Way(f"v:\n- a\n{{{{ range {X} }}}}- {{{{ . | quote }}}}\n{{{{ end }}}}", ()),
    "each key": Way("v:\n  a: b\n{{ range $k, $v := .Values.user_options }}  {{ $k }}: {{ $v }}\n{{ end }}", ()),
    "each key quoted": Way(
        "v:\n  a: b\n{{ range $k, $v := .Values.user_options }}  {{ $k | quote }}: {{ $v | toString | quote }}\n"
        "{{ end }}", ()),
    "each key in lower case": Way(
        "v:\n  a: b\n{{ range $k, $v := .Values.user_options }}  {{ lower $k }}: a\n{{ end }}", ()),
    "all options": Way("v:\n  {{- .Values.user_options | toYaml | nindent 4 }}", ()),
    "all options of a name": Way("v: {{ index .Values `user_options` | toJson }}", ()),
    "each key of all values": Way(
        "v:\n  a: b\n{{ with .Values }}{{ range $k, $v := .user_options }}  {{ $k }}: a\n{{ end }}{{ end }}", ()),
    "each key, sorted": Way("v: [a{{ range keys .Values.user_options | sortAlpha }}, {{ . | quote }}{{ end }}]", ()),
    "merged": Way("v: {{ merge (dict `a` `b`) .Values.user_options | toJson }}", ()),
    "as JSON by default": Way(f"v: {{{{ {X} | default dict | toJson }}}}"),
    "the last, quoted": Way(f"v: {{{{ last {X} | toString | quote }}}}", ([WORD],)),
    "the first": Way(f"v: [{{{{ first {X} }}}}]", ([WORD],)),
    "joined": Way(f"v: {{a: [{{{{ join ` ` {X} }}}}]}}", ([WORD], WORD)),
    "joined, quoted": Way(f"v: {{{{ join `,` {X} | quote }}}}", ([WORD], WORD)),
    "one of two": Way(f"v: {{{{ coalesce .Values.user_options.y {X} }}}}"),
    "tpl of two": Way(f"v: {{{{ tpl (printf `%s%s` (toString .Values.user_options.y) (toString {X})) . | quote }}}}"),
    "tpl": Way(f"v: {{{{ tpl (toString {X}) . | quote }}}}"),
    "tpl in lower case": Way(f"v: {{{{ tpl (toString {X}) . | lower | b64enc | quote }}}}"),
    "tpl of all options": Way("v: {{ tpl (toJson .Values.user_options) . | quote }}"),
    "a copy": Way("v: {{ .Values.copy }}"),
    "a changed copy": Way("v: {{ .Values.claims.changed }}"),
    "a decision": Way(DECIDES % '"large"' + f"x: {{{{ {X} }}}}", (WORD, "large")),
    "a decision by a number": Way(DECIDES % '"2"' + "x: {{ .Values.user_options.y | default `a` }}", (WORD, "2")),
    "honest": Way(f"v: {{{{ {X} | toString | quote }}}}", honest=True),
    "honest JSON": Way(f"v: {{{{ {X} | toJson | quote }}}}", honest=True),
    "honest by name": Way("v: {{ .Values.user_options | toJson | quote }}", honest=True),
    "honest number": Way(f"v: {{{{ int64 {X} }}}}", honest=True),
    "the default chart": Way("", honest=True),
}  # fmt: skip


def sent(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Options as somebody hostile would send them."""
    chance = random.Random(seed)

    def text() -> str:
        piece = chance.choice(chance.choice(PIECES))
        match chance.randrange(6):
            case 0:
                return piece + chance.choice(chance.choice(PIECES))
            case 1:
                return f"a{piece}"
            case 2:
                letters = (chance.choice([chance.randrange(1, 0x250), chance.randrange(1, 0xD800)])
                           for _ in range(chance.randrange(1, 30)))  # fmt: skip
                return "".join(map(chr, letters))
            case _:
                return piece

    def value(depth: int) -> Any:
        match chance.randrange(10 if depth < 4 else 7):
            case 5:
                return chance.choice([True, False, None, 0, 2, -1, 10**6, 1.5, 1e300, 10**30])
            case 7:
                return [value(depth + 1) for _ in range(chance.randrange(4))]
            case 8 | 9:
                return {key(): value(depth + 1) for _ in range(chance.randrange(4))}
            case _:
                return text()

    def key() -> str:
        return chance.choice([*KEYS, text()])

    for number in range(count):
        options = {key(): value(1) for _ in range(chance.randrange(3))}
        if chance.random() < 0.95:
            options["x"] = value(0)
        if number % 200 == 0:
            for _ in range(chance.choice([25, 400])):
                options = {"x": options}
        yield options


def kind(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return type(value).__name__
    return "number"


def shape(value: Any, *, own_key: bool) -> Any:
    """Keys, lengths and kinds; with ``own_key`` the only key below ``v`` is the user's own."""
    if isinstance(value, dict):
        if own_key and isinstance(value.get("v"), dict) and len(value["v"]) == 1:
            value = {**value, "v": {"KEY": next(iter(value["v"].values()))}}
        return {key: shape(item, own_key=own_key) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item, own_key=own_key) for item in value]
    return kind(value)


def fits(found: Any, ordinary: Any, sent_kinds: set[str]) -> bool:
    """Numbers, booleans and null that are sent as such may stay what they are."""
    if isinstance(found, dict) and isinstance(ordinary, dict):
        return found.keys() == ordinary.keys() and all(
            fits(item, ordinary[key], sent_kinds) for key, item in found.items()
        )
    if isinstance(found, list) and isinstance(ordinary, list):
        return len(found) == len(ordinary) and all(
            fits(one, other, sent_kinds) for one, other in zip(found, ordinary, strict=True)
        )
    return bool(found == ordinary) or (isinstance(found, str) and found in sent_kinds)


def kinds_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {one for item in value.values() for one in kinds_in(item)}
    if isinstance(value, list):
        return {one for item in value for one in kinds_in(item)}
    return {kind(value)} - {"str"}


class Run:
    """One way through all of its cases."""

    def __init__(self, folder: Path, name: str, seen: Counter[str]) -> None:
        self.name, self.way, self.seen = name, WAYS[name], seen
        self.wrong: list[str] = []
        self.path = DEFAULT_CHART
        if self.way.template:
            head = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n"
            secret = (
                light.secret(NAME.split(": ", 1)[1].strip()).partition("stringData")[0]
                + "stringData: {{ .Values.env | toJson }}\n"
            )
            made = light.chart(
                folder,
                careless=f"{head}{NAME}{self.way.template}\n",
                pod=adversary.pod(),
                secret=secret,
            )
            self.path = Path(made)

    async def all(self, cases: Iterator[dict[str, Any]]) -> None:
        words = [{"x": word, "y": WORD} for word in self.way.words]
        ordinary = [one for options in words for one in await self._ordinary(options)]
        nothing = [await self._ordinary(one) for one in ({}, {"y": WORD}, {"x": ""})]

        async def some() -> None:
            for options in cases:
                empty = not str(options.get("x") or "").strip()
                less = nothing if empty else []
                await self._case(options, ordinary + [one for some in less for one in some])

        async with anyio.create_task_group() as group:
            for _ in range(AT_ONCE):
                group.start_soon(some)

    async def _ordinary(self, options: dict[str, Any]) -> list[Any]:
        """The shape with these options, if it renders at all."""
        try:
            return [self._shape(await self._render(options, guarded=False))]
        except SpawnerError:
            return []

    def _shape(self, rendered: Rendered) -> Any:
        return shape(rendered.objects, own_key=self.way.own_key)

    async def _case(self, options: dict[str, Any], known: list[Any]) -> None:
        try:
            limits.check_options(options)
            rendered = await self._render(options)
        except SpawnerError as error:
            self.seen[f"refused ({type(error).__name__})"] += 1
            self._check(isinstance(error, OptionsRefused) or not self.way.honest, options, error)
            self._check(TOKEN not in str(error), options, "the token in an error")
            return
        self.seen["rendered"] += 1
        self.seen[self.name] += 1
        found = self._shape(rendered)
        fitting = [one for one in known if fits(found, one, kinds_in(options))]
        self._check(bool(fitting), options, rendered.objects.get("light/templates/careless.yaml"))
        self._check_secrets(options, rendered)

    def _check(self, held: bool, options: object, seen: object) -> None:
        if not held:
            self.wrong.append(f"{self.name}: {options!r} gave {seen!r}")

    async def _render(self, options: dict[str, Any], *, guarded: bool = True) -> Rendered:
        x = options.get("x")
        changed = x.strip().replace("a", "b") if isinstance(x, str) else x
        more = {"copy": x if isinstance(x, str) else WORD, "claims": {"changed": changed}}
        given = values.build(
            ME,
            unescaped_username="ada",
            unescaped_servername="",
            namespace="users",
            ip="0.0.0.0",
            port=8888,
            env={"JUPYTERHUB_API_TOKEN": TOKEN},
            ours={"user_options": options},
            extra={"image": x if isinstance(x, str) and x else WORD, **more},
        )
        engine = renderer.open_renderer(self.path, kube_version=None, log=log, timeout=60)
        tainted = [*guard.TAINTED, ("claims",)] if guarded else []
        return await engine.render(given, release="a", namespace="users", tainted=tainted)

    def _check_secrets(self, options: object, rendered: Rendered) -> None:
        """In what would be applied; a plan may still refuse an object."""
        try:
            plan = manifests.prepare(
                parsing.parse(rendered.objects),
                ME,
                manifests.Contract("users"),
                namespaced=lambda one: one[1] not in ("Namespace", "Node"),
                nonce="0",
            )
        except SpawnerError:
            self.seen["rendered, and refused by the plan"] += 1
            return
        for item in plan.objects:
            text = json.dumps(item.manifest).lower()
            for form in (TOKEN, base64.b64encode(TOKEN.encode()).decode()):
                held = item.kind[1] == "Secret" or form.lower() not in text
                self._check(held, options, f"the token in {item.reference}")


@pytest.fixture
async def renderers() -> AsyncIterator[None]:
    yield
    await renderer.close_renderers()


async def test_no_option_changes_a_shape_or_a_type_or_shows_a_secret(
    renderers: None, tmp_path: Path, faults: Faults
) -> None:
    for turn in faults(f"{CASES} hostile options"):
        seen: Counter[str] = Counter()
        wrong: list[str] = []
        began = time.monotonic()
        share = -(-CASES // len(WAYS))
        for number, name in enumerate(WAYS):
            run = Run(tmp_path / f"{turn}-{number}", name, seen)
            await run.all(sent(turn * 1_000 + number, share))
            print(name, seen[name], "of", share, flush=True)
            wrong += run.wrong
        for word, count in sorted(seen.items()):
            faults.saw(word, count)
        faults.saw("cases a second", share * len(WAYS) / (time.monotonic() - began))
        assert not wrong, "\n".join(wrong[:40])
        assert seen["refused (OptionsRefused)"]
        assert seen["refused (TemplateError)"] > CASES / 10
        assert seen["rendered"] > CASES / 10
