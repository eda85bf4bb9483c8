"""Finds out whether what a user sent changes the shape of a manifest.

A chart that writes ``image: {{ .Values.image }}`` without quotes lets a user's text become YAML:
more keys, more documents, a privileged container. So a chart is rendered again when a user's input
could do that, with harmless words, *canaries*, in the places of such texts, and with one more entry
in each list and mapping that a user made. Both results must have the same documents, keys, list
lengths and types, and where a canary shows, the user's text must show whole. Charts that pick
single options by name and pipe them through `quote` always pass.

Texts such as `2` or `true` are different: no chart can be tricked by them into more than another
type, and many decide by them. So only the places where they show are compared.

What is not seen is said in ``docs/explanation/templates-and-untrusted-text.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from lightkube_template_spawner.errors import OptionsRefused, TemplateError
from lightkube_template_spawner.templates.canaries import (
    A_KEY,
    NOT_TRACED,
    Canaries,
    Path,
    Probe,
    is_exact,
    is_harmless,
    path,
    place,
)
from lightkube_template_spawner.templates.plain import shown

__all__ = ["Path", "Probe", "Trusted", "Undecided", "is_exact", "is_harmless", "path"]

#: Top-level values that hold what users, their browsers or their identity provider wrote.
TAINTED: Final[tuple[Path, ...]] = (
    ("unescaped_username",),
    ("unescaped_servername",),
    ("user_options",),
    ("groups",),
    ("annotations",),
    ("env",),
    ("env_list",),
)
#: Line breaks of YAML 1.1 that most programs print as they are; YAML reads them as a space.
_BREAKS: Final = re.compile("[\x85\u2028\u2029]")
_GO_ESCAPED: Final = re.compile("[&<>\u2028\u2029]")
_SPACE: Final = re.compile("[\\s\x85\u2028\u2029]+")

#: What may be chosen at each path that a template decides by.
Trusted = Mapping[Path, Sequence[Any]]


class Undecided(TemplateError):
    """The template does something else when other text stands in a text's place."""


def check_allowed(values: Mapping[str, Any], trusted: Trusted) -> None:
    """Check what users chose where the template may decide by it.

    A list passes, too, if all its items are allowed and no two are equal.

    Raises:
        OptionsRefused: a value is not among the allowed ones; names it and them.
    """
    for where, allowed in trusted.items():
        texts = [_json(one) for one in allowed]
        for value in _at(values, where):
            items = [_json(one) for one in value] if isinstance(value, list) else [""]
            chosen = len(set(items)) == len(items) and set(items) <= set(texts)
            if not chosen and _json(value) not in texts:
                raise OptionsRefused(
                    f"{place(where)} is {shown(_json(value))}, which is not among what may be "
                    f"chosen: {', '.join(shown(text) for text in texts[:10])}."
                )


def check_syntax(
    values: Mapping[str, Any], tainted: Collection[Path], trusted: Collection[Path]
) -> None:
    """Refuse Go template syntax in what users wrote: for charts that call `tpl`.

    Raises:
        TemplateError: a text or key holds `{{`; names its place.
    """
    for where in tainted:
        if where[0] not in NOT_TRACED:
            for value in _at(values, where):
                _check_syntax(value, where, trusted)


def _check_syntax(value: Any, where: Path, trusted: Collection[Path]) -> None:
    if where in trusted:
        return
    if isinstance(value, str) and "{{" in value:
        raise TemplateError(
            f"The text of {place(where)} holds `{{{{`, and the template calls `tpl`, which would "
            "run it. Nothing was created. Send it without, or remove `tpl` from the template."
        )
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_syntax(key, (*where, A_KEY), trusted)
            _check_syntax(item, (*where, key), trusted)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_syntax(item, (*where, index), trusted)


def probe(
    values: Mapping[str, Any],
    tainted: Collection[Path] = TAINTED,
    trusted: Collection[Path] = (),
    *,
    lookalikes: bool = False,
    named: bool = False,
) -> Probe | None:
    """The values for another render; None if nothing that users sent could do any harm.

    ``trusted`` are exceptions: what ``check_allowed`` has let through. Text that was copied from a
    tainted value into another value is found, too. With ``lookalikes``, texts that YAML may read as
    another type are replaced as well; ``named`` says that the template picks options by name only.
    """
    replaced = None if lookalikes else _NONE
    canaries = Canaries(frozenset(trusted), risky=True, lookalikes=replaced, named=named)
    return canaries.probe(values, tainted)


def probe_of(
    texts: Collection[str],
    values: Mapping[str, Any],
    tainted: Collection[Path] = TAINTED,
    trusted: Collection[Path] = (),
) -> Probe | None:
    """The values with only these look-alikes replaced, for ``compare_types``."""
    canaries = Canaries(frozenset(trusted), risky=False, lookalikes=frozenset(texts))
    return canaries.probe(values, tainted)


_NONE: Final[frozenset[str]] = frozenset()


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


def compare_types(
    real: Mapping[str, Sequence[Any]], probed: Mapping[str, Sequence[Any]], probe: Probe
) -> None:
    """Raise TemplateError if a text became a number, a boolean or null; Undecided if unclear."""
    comparison = _Comparison(probe)
    for source in sorted(real.keys() | probed.keys()):
        comparison.types(list(real.get(source, ())), list(probed.get(source, ())), source, "")


class _Comparison:
    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def same(self, real: Any, probed: Any, source: str, path: str) -> None:
        """Shapes only: numbers and booleans that a chart works out from a text may differ."""
        if type(real) is not type(probed) and _kind(real) != _kind(probed):
            raise self.shape(source, path, f"{_kind(probed)} became {_kind(real)}", probed)
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

    def types(self, real: Any, probed: Any, source: str, path: str) -> None:
        """Only what both have, for a template may decide by such texts what it renders."""
        if isinstance(probed, str):
            if real is None or isinstance(real, bool | int | float):
                raise self.shape(source, path, f"text became {_kind(real)}", probed)
        elif isinstance(probed, dict) and isinstance(real, dict):
            for key, item in probed.items():
                restored = self._restored(key)
                if restored in real:
                    self.types(real[restored], item, source, f"{path}.{key}" if path else key)
                elif restored != key:
                    raise self.shape(source, path, "a key became another", probed)
        elif isinstance(probed, list) and isinstance(real, list):
            if len(real) != len(probed):
                raise Undecided(str(self.shape(source, path, "a list's length changed", probed)))
            for index, (item, other) in enumerate(zip(real, probed, strict=True)):
                self.types(item, other, source, f"{path}[{index}]")

    def shape(self, source: str, path: str, change: str, probed: Any) -> TemplateError:
        return TemplateError(
            f"{source}{_at_path(path)}: {change}, because of {self._names(probed)}: it is read as "
            "YAML, or the template decides by it. Nothing was created. In the template, pick one "
            "value and pipe it through `quote` (`toString | quote` if it may be a list or a "
            "mapping); if the template decides by it, set `trusted_values` to what may be chosen."
        )

    def _whole(self, real: str, probed: str, source: str, path: str) -> None:
        for canary in self._probe.canary.findall(probed):
            text = self._probe.texts[canary]
            if text != canary and not any(_holds(real, form) for form in _forms(text)):
                name = ", ".join(self._probe.place_names([canary]))
                raise TemplateError(
                    f"{source}{_at_path(path)}: the text of {name} does not arrive whole. "
                    "Nothing was created. Pipe it through `quote` or `toJson`, "
                    "without quotation marks around them."
                )

    def _restored(self, key: str) -> str:
        return self._probe.canary.sub(lambda match: self._probe.texts[match[0]], key)

    def _names(self, probed: Any) -> str:
        """The values whose canaries are at the place in question, or else all of them."""
        shown_here = self._probe.canary.findall(json.dumps(probed))
        names = self._probe.place_names(shown_here)
        return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _at(values: Any, where: Path) -> list[Any]:
    """What is at ``where``, if anything is."""
    for key in where:
        if not isinstance(values, Mapping) or key not in values:
            return []
        values = values[key]
    return [values]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _holds(real: str, form: str) -> bool:
    if form in real:
        return True
    return bool(_BREAKS.search(form)) and _SPACE.sub(" ", form) in _SPACE.sub(" ", real)


def _forms(text: str) -> Iterator[str]:
    """How a text may rightly stand in a string: as it is, trimmed, or escaped."""
    yield text
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    yield escaped
    yield _GO_ESCAPED.sub(lambda letter: f"\\u{ord(letter[0]):04x}", escaped)
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


def _at_path(path: str) -> str:
    return f", {path}" if path else ""
