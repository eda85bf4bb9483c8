"""What a value in a profile may be, and how it is refused.

A message names the source, the place in it and what is allowed. It gives keys and kinds of values,
never the values: those of ``env`` and ``values`` can be secrets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, NoReturn

from lightkube_template_spawner.errors import ProfileError, TemplateError
from lightkube_template_spawner.objects.identity import is_label_value
from lightkube_template_spawner.templates import plain as values
from lightkube_template_spawner.templates.plain import shown

_LONGEST_NAME: Final = 1_000
MAX_NODES: Final = 200_000  # as many as a text may hold

_QUANTITY = re.compile(
    r"\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)(n|u|m|k|[MGTPE]|[KMGTPE]i|[eE][-+]?[0-9]+)?"
)
_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,8})h)?(?:(\d{1,9})m)?(?:(\d{1,10})s)?")
_SECONDS: Final = (86_400, 3_600, 60, 1)
_QUALIFIED = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: its source, and the path to it there."""

    source: str
    steps: tuple[str | int, ...] = ()
    name: str = ""  # of the profile or size: the first two steps lead to it

    def key(self, name: str) -> Place:
        """The place of a mapping's value."""
        return Place(self.source, (*self.steps, name), self.name)

    def item(self, number: int) -> Place:
        """The place of a list's item."""
        return Place(self.source, (*self.steps, number), self.name)

    def named(self, name: str) -> Place:
        """The same place, with the name by which an administrator knows what stands there."""
        return Place(self.source, self.steps, name) if len(self.steps) == 2 else self

    @property
    def path(self) -> str:
        """The steps as they are usually written: ``profiles[2] (gpu).env[0].value``."""
        path = ""
        for number, step in enumerate(self.steps):
            path += f"[{step}]" if isinstance(step, int) else f".{shown(step)}"
            path += f" ({shown(self.name)})" if self.name and number == 1 else ""
        return path.removeprefix(".")

    def refuse(self, problem: str) -> NoReturn:
        """Raise the error for what stands here."""
        where = f"{self.source}: {self.path}" if self.steps else self.source
        raise ProfileError(f"{where}: {problem}")


def plain_data(value: Any, place: Place) -> Any:
    """An own copy of ``value``, made of dicts, lists and scalars only."""
    if _nodes(value) > MAX_NODES:
        place.refuse(f"more than {MAX_NODES} values, or one that holds itself: write fewer")
    try:
        return values.plain(value, place.path)
    except TemplateError as error:
        raise ProfileError(f"{place.source}: {error}") from None


def _nodes(value: Any) -> int:
    """How many values there are, without recursion; what lies too deep is left to ``plain``."""
    count = 0
    waiting = [(value, 0)]
    while waiting and count <= MAX_NODES:
        current, depth = waiting.pop()
        count += 1
        if depth > values.MAX_DEPTH or not isinstance(current, Mapping | list | tuple):
            continue
        items: Iterable[Any] = current.values() if isinstance(current, Mapping) else current
        if count + len(waiting) + len(current) > MAX_NODES:
            return MAX_NODES + 1
        waiting += ((item, depth + 1) for item in items)
    return count


def kind(value: Any) -> str:
    """What a value is, in a YAML author's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false without quotes"
    if isinstance(value, int | float):
        return "a number without quotes"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"


def mapping(value: Any, place: Place) -> dict[str, Any]:
    """A mapping; ``null`` is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        place.refuse(f"must be a mapping, not {kind(value)}")
    return value


def listing(value: Any, place: Place) -> list[Any]:
    """A list; ``null`` is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        place.refuse(f"must be a list, not {kind(value)}")
    return value


def text(value: Any, place: Place) -> str:
    """Text that is not empty."""
    if not isinstance(value, str):
        place.refuse(f"must be text, not {kind(value)}")
    if not value:
        place.refuse("must not be empty")
    return value


def names(value: Any, place: Place) -> tuple[str, ...]:
    """A list of names: of images, users or groups."""
    return tuple(_name(item, place.item(n)) for n, item in enumerate(listing(value, place)))


def _name(value: Any, place: Place) -> str:
    name = text(value, place)
    if len(name) > _LONGEST_NAME:
        place.refuse(f"must have at most {_LONGEST_NAME} characters")
    return name


def known(keys: Iterable[str], allowed: Collection[str], place: Place) -> None:
    """Refuse the first key that nobody reads, naming the nearest one that somebody does."""
    for key in keys:
        if key in allowed:
            continue
        near = get_close_matches(key[:60], allowed, 1)
        hint = f"; did you mean `{near[0]}`?" if near else "."
        place.refuse(f"unknown key `{shown(key)}`{hint} Allowed: {', '.join(sorted(allowed))}")


def one_of(value: Any, allowed: Collection[str], place: Place) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in allowed:
        place.refuse(f"must be one of {', '.join(allowed)}")
    return value


def count(value: Any, place: Place, *, top: int = 2**31 - 1) -> int:
    """A whole number from 0 on; digits in quotes are one too."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= top:
        place.refuse(f"must be a whole number from 0 to {top}")
    return value


def quantity(value: Any, place: Place) -> str | int | float | None:
    """An amount as Kubernetes writes it; ``null`` takes away what an earlier profile set."""
    allowed = "must be an amount such as 500m, 2 or 4Gi"
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        place.refuse(f"{allowed}, not {kind(value)}")
    if isinstance(value, str):
        if not _QUANTITY.fullmatch(value):
            place.refuse(f"{allowed} (k, M, G, T, or Ki, Mi, Gi, Ti; no B)")
    elif value < 0 or not math.isfinite(value):
        place.refuse(f"{allowed}, not less than 0")
    return value


def duration(value: Any, place: Place) -> int:
    """Seconds: a number of them, or text such as ``90s``, ``30m``, ``8h``, ``1d12h``."""
    seconds = value
    if isinstance(value, str):
        parts = _DURATION.fullmatch(value)
        numbers = parts.groups() if parts and value else ()
        seconds = sum(int(n or 0) * unit for n, unit in zip(numbers, _SECONDS, strict=False))
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds < 2**31:
        place.refuse(
            "must be a time such as 30m, 8h or 1d12h, or a whole number of seconds above 0"
        )
    return seconds


def annotation_texts(value: Any, place: Place) -> dict[str, str | None]:
    """Text under keys as Kubernetes allows them; ``null`` takes away what was set before."""
    entries = mapping(value, place)
    for key, entry in entries.items():
        if not _QUALIFIED.fullmatch(key):
            place.refuse(
                f"the key `{shown(key)}` is none that Kubernetes allows: up to 63 letters, digits, "
                "`-`, `_`, `.`, after an optional domain and `/`"
            )
        if not isinstance(entry, str | None):
            place.key(key).refuse(f"must be text, not {kind(entry)}: put it in quotes")
    return entries


def label_texts(value: Any, place: Place) -> dict[str, str | None]:
    """As annotations; the texts are short and of few letters."""
    entries = annotation_texts(value, place)
    for key, entry in entries.items():
        if entry and not is_label_value(entry):
            place.key(key).refuse(
                "must be at most 63 letters, digits, `-`, `_`, `.`, with a letter or digit at "
                "both ends"
            )
    return entries
