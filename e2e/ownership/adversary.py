# ruff: noqa: E501, RUF001 - long and odd on purpose
"""Names and option values that somebody hostile would choose, from a seed; charts that invite them.

Each chart of ``CARELESS`` puts a user's text where no chart should, in the way that its name says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

SYNTAX = (
    "x\n---\nkind: ClusterRoleBinding\nname: admin", 'a"b: {c}\n- x', "x'\ndata2: 'y", "x\n  hostPID: true",
    "{a: b}", "[a, b]", "*user", "&user x", "!!int 5", "- x", ": x", "| x", "%YAML 1.1", "bob #x", "? x",
    "<<: *x", "n", "1e3", "null", "~", "0x1f", "1_000", "2026-11-22", "yes", "{{ .Values.env | toYaml }}",
    '{{ lookup "v1" "Secret" "kube-system" "" }}', "{{", "}}", "{{- end }}", '{{ template "x" . }}', "$(TOKEN)",
    "${HOME}", "`id`", "$(id)", "'; rm -rf /", "\\", "\\n", "%s%n", "\x00", "\x07", "\x1b[31m", "\r\n", "\t",
    "\u0085", "\u2028", "\ufeff", "\u202egnp", "\ud800", "a\u0300", "ﬁ", "𝒶", "🙂" * 20, "é" * 30, "Ünï çødé+@x.org",
)  # fmt: skip
PATHS = (
    "..", ".", "../../secrets", "a/../../namespaces/kube-system/secrets/x", "/etc/passwd", "a/b", "%2e%2e%2f",
    "kube-system", "default", "../default", "*", "x?watch=true", "x#y", "pods/x/exec",
)  # fmt: skip
LABELS = (
    "a,b=c", "x in (a,b)", "!x", "a=b", "app.kubernetes.io/instance", "-x-", "x" * 64, "x" * 253, "x" * 300,
    "x" * 5000, "", " ", "a b", "A.B_c", "---", "a--b", "a---0123abcd",
)  # fmt: skip
KINDS = ("ConfigMap", "Secret", "Pod", "ClusterRoleBinding", "Namespace", "List", "Event", "Node")


@dataclass(frozen=True)
class Case:
    username: str
    servername: str
    options: dict[str, str]


def cases(seed: int, count: int, coveted: list[str]) -> Iterator[Case]:
    """``coveted`` are names, slugs and owners of others, which somebody may want to be taken for."""
    chance = random.Random(seed)
    pieces = (SYNTAX, PATHS, LABELS, tuple(coveted))

    def text() -> str:
        found = chance.choice(chance.choice(pieces))
        match chance.randrange(6):
            case 0:
                return found + chance.choice(chance.choice(pieces))
            case 1:
                return f"user{chance.randrange(10**6)}{found}"
            case 2:
                return "".join(chr(_code(chance)) for _ in range(chance.randrange(1, 40)))
            case _:
                return found

    for number in range(count):
        # The hub keeps names in a database, which takes no half characters and no empty name.
        username = text().encode(errors="ignore").decode() or f"user{number}"
        servername = "" if chance.random() < 0.3 else text().encode(errors="ignore").decode()
        options = {key: text() for key in ("name", "label", "note", "namespace", "claim")}
        for key in ("name", "claim"):  # what leads to somebody's object is whole
            if chance.random() < 0.4:
                options[key] = chance.choice(coveted)
        options["kind"] = chance.choice([chance.choice(KINDS), text()])
        yield Case(username, servername, options)


def _code(chance: random.Random) -> int:
    """Of any plane, mostly low; no half characters."""
    code = chance.choice([chance.randrange(1, 0x250), chance.randrange(1, 0x110000)])
    return code if not 0xD800 <= code < 0xE000 else 0x3042


def _config(head: str, body: str = "data: {a: b}") -> str:
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n{head}\n{body}\n"


NAME = '  name: "{{ .Values.escaped_user_server }}"\n'
CARELESS: dict[str, str] = {
    "a bare option as name": _config("  name: {{ .Values.user_options.name }}"),
    "an option as name": _config("  name: {{ .Values.user_options.name | quote }}"),
    "an option as name of what is kept": _config(
        "  name: {{ .Values.user_options.name | quote }}\n"
        "  annotations: {kubetemplatespawner/lifecycle: user-deleted}"
    ),
    "a bare username in a name": _config("  name: home-{{ .Values.unescaped_username }}"),
    "a bare option as label": _config(
        f"{NAME}  labels:\n    team: {{{{ .Values.user_options.label }}}}"
    ),
    "options as the labels of ownership": _config(
        f"{NAME}  labels:\n"
        "    lightkube-template-spawner/owner: {{ .Values.user_options.label | quote }}\n"
        "    hub.jupyter.org/username: {{ .Values.user_options.name | quote }}"
    ),
    "a bare username as annotation": _config(
        f"{NAME}  annotations:\n    who: {{{{ .Values.unescaped_username }}}}"
    ),
    "bare options as annotation keys": _config(
        f"{NAME}  annotations:\n    {{{{ .Values.user_options.note }}}}: x"
    ),
    "an option as namespace": _config(
        f"{NAME}  namespace: {{{{ .Values.user_options.namespace | quote }}}}"
    ),
    "a bare option as kind": _config(NAME).replace("ConfigMap", "{{ .Values.user_options.kind }}"),
    "bare text in a block": _config(NAME, "data:\n  text: |\n    {{ .Values.user_options.note }}"),
    "bare text at the end": _config(NAME, "data: {a: b}\n# {{ .Values.user_options.note }}"),
}
MOUNTED = "claimName: {{ .Values.user_options.claim | quote }}"


def pod(volume: str = "") -> str:
    """What the hub would connect to; ``volume`` is a claim by a user's choice."""
    volumes = f"\n  volumes: [{{name: v, persistentVolumeClaim: {{{volume}}}}}]" if volume else ""
    return f"""
apiVersion: v1
kind: Pod
metadata:
{NAME}  annotations: {{kubetemplatespawner/connection: "true"}}
spec:
  containers: [{{name: main, image: none}}]{volumes}
"""
