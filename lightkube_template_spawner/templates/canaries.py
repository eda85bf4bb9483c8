"""The values of a probe: a start's, with harmless words where users wrote something; pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lightkube_template_spawner.objects.kubeyaml import plain_scalar
from lightkube_template_spawner.templates.plain import shown

#: Where a value is: keys and positions, never one text, so that no dotted key looks like a path.
Path = tuple[str | int, ...]
#: The last part of a key's own path, which no key and no position in a list equals.
A_KEY: Final = -1

#: A user called `y` or `1e3` must not become a boolean or a number, and no chart decides by that.
_NAMES: Final = frozenset((("unescaped_username",), ("unescaped_servername",)))
_OPTIONS: Final = ("user_options",)
#: Values whose lists, mappings and keys the hub or the administrator makes: users, only texts.
_OURS: Final = frozenset(
    ("unescaped_username", "unescaped_servername", "groups", "annotations", "env", "env_list")
) | {"cmd", "args", "default_url", "notebook_dir"}
#: Copies of these in other values are not looked for: they are many, short and common.
NOT_TRACED: Final = frozenset(("env", "env_list"))
_SHORTEST_TRACED_PART: Final = 4

_SAFE_KEY: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._@/+ -]*[A-Za-z0-9_])?\Z")
_LONGEST_KEY: Final = 256  # of keys beyond 1024 `toYaml` makes nothing at all
_SAFE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@/:+-]*[A-Za-z0-9])?\Z")

_Replace = Callable[[Any, Path], Any]


def is_harmless(text: str) -> bool:
    """Whether ``text`` is one scalar wherever it is put in YAML, with or without quotes."""
    return not text or bool(_SAFE.match(text))


def is_exact(text: str) -> bool:
    """Whether it is the same string, too, and not a number, a boolean or null."""
    return not text or (is_harmless(text) and isinstance(plain_scalar(text), str))


def is_lookalike(text: str) -> bool:
    """Whether it is one scalar, but not text when it stands without quotes: `2`, `true`, `y`."""
    return is_harmless(text) and not is_exact(text)


def _is_safe_key(key: str) -> bool:
    return len(key) <= _LONGEST_KEY and bool(_SAFE_KEY.match(key))


def path(name: str | Collection[str]) -> Path:
    """A path as settings write it: with dots, or as a tuple where a key holds a dot."""
    return tuple(name.split(".")) if isinstance(name, str) else tuple(name)


def place(where: Path) -> str:
    """A path as messages show it."""
    text = ""
    for part in where:
        if part == A_KEY:
            text += " (a key)"
        elif isinstance(part, int):
            text += f"[{part}]"
        elif "." in part:
            text += f"[{shown(part)!r}]"
        else:
            text += f".{shown(part)}"
    return shown(text.removeprefix("."))


@dataclass(frozen=True)
class Probe:
    """``values`` with canaries in them, and what each canary stands for.

    A canary that stands for itself is an entry that no user sent. ``lookalikes`` are the texts
    among the replaced that YAML may read as a number, a boolean or null.
    """

    values: dict[str, Any]
    texts: Mapping[str, str]
    places: Mapping[str, tuple[Path, str]]
    canary: re.Pattern[str]
    lookalikes: tuple[str, ...]

    def place_names(self, canaries: Collection[str] = ()) -> list[str]:
        """The places of these canaries, or of all, as messages show them."""
        places = (self.places[canary] for canary in canaries or self.places)
        return sorted({f"{place(where)}{what}" for where, what in places})


@dataclass
class Canaries:
    """Replaces texts, equal ones by the same canary, and lets users' lists and mappings grow.

    ``risky`` are texts that may be more than one scalar; ``lookalikes`` are replaced if they are
    among the given ones, or all of them with None. With ``named`` the template picks single options
    by name, so that it cannot notice others.
    """

    trusted: frozenset[Path]
    risky: bool
    lookalikes: frozenset[str] | None
    named: bool = False
    by_text: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[Path, str]] = field(default_factory=dict)
    traced: frozenset[str] = frozenset()
    # Nobody can type a canary in advance. Upper case and marks make it vanish, as it must, when a
    # chart changes the text (`lower`, a regular expression, `b64enc`).
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))

    def probe(self, values: Mapping[str, Any], tainted: Collection[Path]) -> Probe | None:
        """``values`` with canaries; None if there is nothing to replace."""
        result: Any = dict(values)
        for where in sorted(tainted, key=lambda one: one[0] in NOT_TRACED):
            result = _changed(result, where, self._replace)
            if where[0] not in NOT_TRACED:
                self.traced = frozenset(self.by_text)
        if not self.texts:
            return None
        names = values.keys() if self.traced else frozenset()
        for name in names - {where[0] for where in tainted if len(where) == 1}:
            result[name] = self._replace_copies(result[name], (name,))
        pattern = re.compile(rf"Zq\.[0-9]+_{self.nonce}@qZ(?:\$\(q\))?")
        lookalikes = tuple(text for text in self.by_text if is_lookalike(text))
        return Probe(result, self.texts, self.places, pattern, lookalikes)

    def _replace(self, value: Any, where: Path) -> Any:
        if where in self.trusted:
            return value
        if isinstance(value, str):
            return self._canary(value, where) if self._may_change(value, where) else value
        result = self._inside(value, where, self._replace)
        if self._may_grow(value, where):
            self._grow(result, where)
        return result

    def _may_grow(self, value: Any, where: Path) -> bool:
        if not self.risky or where[0] in _OURS:
            return False
        return bool(value and not self.named) if where == _OPTIONS else True

    def _may_change(self, text: str, where: Path) -> bool:
        if where[-1] == A_KEY:
            return self.risky and not _is_safe_key(text)
        if not is_harmless(text):
            return self.risky
        if where in _NAMES:
            return self.risky and not is_exact(text)
        typed = where[0] not in _OURS or where[0] == "groups"
        chosen = self.lookalikes is None or text in self.lookalikes
        return typed and chosen and not is_exact(text)

    def _replace_copies(self, value: Any, where: Path) -> Any:
        if where in self.trusted:
            return value
        if isinstance(value, str):
            return self._canary(value, where) if self._is_copy(value) else value
        return self._inside(value, where, self._replace_copies)

    def _is_copy(self, text: str) -> bool:
        if is_exact(text):
            return False
        if is_lookalike(text):
            return text in self.traced and not self._is_name(text)
        return text in self.traced or any(
            part in text for part in self.traced if len(part) >= _SHORTEST_TRACED_PART
        )

    def _is_name(self, text: str) -> bool:
        where, _ = self.places[self.by_text[text]]
        return where in _NAMES

    def _inside(self, value: Any, where: Path, replace: _Replace) -> Any:
        if isinstance(value, Mapping):
            return {
                key if _is_safe_key(key) else replace(key, (*where, A_KEY)): replace(
                    item, (*where, key)
                )
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [replace(item, (*where, index)) for index, item in enumerate(value)]
        return value

    def _grow(self, content: Any, where: Path) -> None:
        """One more entry, like the last one: a template must not notice how many there are."""
        if isinstance(content, dict):
            canary = self._more(where, " (its keys)")
            content[canary] = _like(next(reversed(content.values()), None), canary)
        elif isinstance(content, list):
            canary = self._more(where, " (its items)")
            # Go prints a list as `[a b]`, which is one of YAML: the comma tells.
            content.append(_like(content[-1] if content else None, f"{canary}, {canary}"))

    def _more(self, where: Path, what: str) -> str:
        canary = self._new(where, what)
        self.texts[canary] = canary
        return canary

    def _canary(self, text: str, where: Path) -> str:
        if text not in self.by_text:
            # Charts may decide by Kubernetes' own `$(NAME)`, which is harmless in YAML.
            canary = self._new(where, end="$(q)" if "$(" in text else "")
            self.by_text[text] = canary
            self.texts[canary] = text
        return self.by_text[text]

    def _new(self, where: Path, what: str = "", end: str = "") -> str:
        canary = f"Zq.{len(self.places)}_{self.nonce}@qZ{end}"
        self.places[canary] = where, what
        return canary


def _changed(value: Any, where: Path, change: _Replace, prefix: Path = ()) -> Any:
    """A copy of ``value`` with what is at ``where`` changed, if there is anything."""
    if not where:
        return change(value, prefix)
    if isinstance(value, Mapping) and where[0] in value:
        key = str(where[0])
        return {**value, key: _changed(value[key], where[1:], change, (*prefix, key))}
    return value


def _like(value: Any, text: str) -> Any:
    """What has the shape of ``value`` and equals nothing that a user sent."""
    if isinstance(value, dict):
        return {key: _like(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [_like(item, text) for item in value]
    return text
