"""Finds out whether what a user typed changes the shape of a manifest.

A chart that writes ``image: {{ .Values.image }}`` without quotes lets a user's text become YAML:
more keys, more documents, a privileged container. So a chart is rendered twice when a user's text
could do that: once with the real values and once with a harmless word, the *canary*, in the place
of each such text. The two results must have the same documents, keys, list lengths and types, and
where a canary shows, the user's text must show whole. Charts that pipe user text through `quote`
or `toJson` always pass.

It cannot tell a chart that *decides* by such a text (``if eq .Values.user_options.size "extra
large"``) from one that is tricked by it: such values are named as trusted.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.objects.kubeyaml import plain_scalar

#: Top-level values that hold what users, their browsers or their identity provider wrote.
TAINTED: Final = (
    "unescaped_username",
    "unescaped_servername",
    "user_options",
    "groups",
    "annotations",
    "env",
    "env_list",
)
#: A user called `y` or `1e3` must not become a boolean or a number. Options and variables may be
#: words like `true` and `2`, and charts decide by them.
_NAMES: Final = frozenset(("unescaped_username", "unescaped_servername"))
#: Copies of these in other values are not looked for: they are many, short and common.
_NOT_TRACED: Final = frozenset(("env", "env_list"))
_SHORTEST_TRACED_PART: Final = 4

#: A key may turn into `true`, but not into anything but a key.
_SAFE_KEY: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._@/+ -]*[A-Za-z0-9_])?\Z")
_SAFE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@/:+-]*[A-Za-z0-9])?\Z")


def is_harmless(text: str) -> bool:
    """Whether ``text`` is one scalar wherever it is put in YAML, with or without quotes."""
    return not text or bool(_SAFE.match(text))


def is_exact(text: str) -> bool:
    """Whether it is the same string, too, and not a number, a boolean or null."""
    return not text or (is_harmless(text) and isinstance(plain_scalar(text), str))


@dataclass(frozen=True)
class Probe:
    """``values`` with canaries in them, and what each canary stands for."""

    values: dict[str, Any]
    texts: Mapping[str, str]
    places: Mapping[str, str]
    canary: re.Pattern[str]


def probe(
    values: Mapping[str, Any], tainted: Collection[str] = TAINTED, trusted: Collection[str] = ()
) -> Probe | None:
    """The values for the second render; None if no user's text could do any harm.

    ``tainted`` are top-level names; ``trusted`` are exceptions by path (``user_options.size``).
    Unsafe text that was copied from a tainted value into another value is found, too.
    """
    canaries = _Canaries(frozenset(trusted))
    replaced = dict(values)
    for name in sorted(tainted, key=_NOT_TRACED.__contains__):
        if name in values:
            replaced[name] = canaries.replace(values[name], name)
            if name not in _NOT_TRACED:
                canaries.trace()
    if not canaries.by_text:
        return None
    for name in values.keys() - set(tainted):
        replaced[name] = canaries.replace_copies(values[name], name)
    texts = {canary: text for text, canary in canaries.by_text.items()}
    return Probe(replaced, texts, canaries.places, canaries.pattern)


def compare(
    real: Mapping[str, Sequence[Any]], probed: Mapping[str, Sequence[Any]], probe: Probe
) -> None:
    """Raise TemplateError unless both renders, documents by template, have the same shape."""
    comparison = _Comparison(probe)
    for source in sorted(real.keys() | probed.keys()):
        ours, theirs = real.get(source, ()), probed.get(source, ())
        if len(ours) != len(theirs):
            raise comparison.shape(source, "", f"{_count(theirs)} became {len(ours)}", theirs)
        for one, other in zip(ours, theirs, strict=True):
            comparison.same(one, other, source, "")


@dataclass
class _Canaries:
    """Replaces unsafe texts, equal ones by the same canary."""

    trusted: frozenset[str]
    by_text: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    traced: frozenset[str] = frozenset()
    # Nobody can type a canary in advance. Upper case and marks make it vanish, as it must, when a
    # chart changes the text (`lower`, a regular expression, `b64enc`).
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"Zq\.[0-9]+_{self.nonce}@qZ(?:\$\(q\))?")

    def trace(self) -> None:
        self.traced = frozenset(self.by_text)

    def replace(self, value: Any, place: str) -> Any:
        if place in self.trusted:
            return value
        if isinstance(value, str):
            safe = is_exact(value) if place in _NAMES else is_harmless(value)
            return value if safe else self._canary(value, place)
        return self._inside(value, place, self.replace)

    def replace_copies(self, value: Any, place: str) -> Any:
        if place in self.trusted or not self.traced:
            return value
        if isinstance(value, str):
            return self._canary(value, place) if self._is_copy(value) else value
        return self._inside(value, place, self.replace_copies)

    def _inside(self, value: Any, place: str, replace: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key if _SAFE_KEY.match(key) else replace(key, f"{place} (a key)"): replace(
                    item, f"{place}.{key}"
                )
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [replace(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return value

    def _is_copy(self, text: str) -> bool:
        if is_harmless(text):
            return False
        return text in self.traced or any(
            part in text for part in self.traced if len(part) >= _SHORTEST_TRACED_PART
        )

    def _canary(self, text: str, place: str) -> str:
        if text not in self.by_text:
            # Charts may decide by Kubernetes' own `$(NAME)`, which is harmless in YAML.
            reference = "$(q)" if "$(" in text else ""
            canary = f"Zq.{len(self.by_text)}_{self.nonce}@qZ{reference}"
            self.by_text[text] = canary
            self.places[canary] = place
        return self.by_text[text]


class _Comparison:
    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def same(self, real: Any, probed: Any, source: str, path: str) -> None:
        """Shapes only: numbers and booleans that a chart works out from a text may differ."""
        kind = _kind(probed)
        if _kind(real) != kind:
            raise self.shape(source, path, f"{kind} became {_kind(real)}", probed)
        if isinstance(real, dict):
            expected = {self._restored(key): item for key, item in probed.items()}
            if real.keys() != expected.keys():
                change = f"{_count(expected, 'key')} became {len(real)} or others"
                raise self.shape(source, path, change, probed)
            for key, item in real.items():
                self.same(item, expected[key], source, f"{path}.{key}" if path else key)
        elif isinstance(real, list):
            if len(real) != len(probed):
                change = f"{_count(probed, 'item')} became {len(real)}"
                raise self.shape(source, path, change, probed)
            for index, (item, other) in enumerate(zip(real, probed, strict=True)):
                self.same(item, other, source, f"{path}[{index}]")
        elif isinstance(real, str):
            self._whole(real, probed, source, path)

    def shape(self, source: str, path: str, change: str, probed: Any) -> TemplateError:
        return TemplateError(
            f"{source}{_at(path)}: {change}, because the text of {self._names(probed)} is read as "
            "YAML (or the template decides by it). Nothing was created. Pipe the value through "
            "`quote` or `toJson` in the template, or, if it decides by it, name it as trusted."
        )

    def _whole(self, real: str, probed: str, source: str, path: str) -> None:
        for canary in self._probe.canary.findall(probed):
            if not any(form in real for form in _forms(self._probe.texts[canary])):
                raise TemplateError(
                    f"{source}{_at(path)}: the text of {self._probe.places[canary]} does not "
                    "arrive whole. Nothing was created. Pipe it through `quote` or `toJson`, "
                    "without quotation marks around them."
                )

    def _restored(self, key: str) -> str:
        return self._probe.canary.sub(lambda found: self._probe.texts[found[0]], key)

    def _names(self, probed: Any) -> str:
        """The values whose canaries are at the place in question, or else all of them."""
        found = self._probe.canary.findall(json.dumps(probed))
        names = sorted({self._probe.places[canary] for canary in found or self._probe.places})
        return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _forms(text: str) -> Iterator[str]:
    """How a text may rightly stand in a string: as it is, trimmed, or escaped."""
    yield text
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    yield escaped
    yield escaped.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    yield text.replace("'", "''")
    yield text.strip()
    yield text.strip("/")


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"


def _count(items: Any, noun: str = "document") -> str:
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")


def _at(path: str) -> str:
    return f", {path}" if path else ""
