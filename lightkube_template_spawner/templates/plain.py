"""The values on their way to Helm: plain JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from lightkube_template_spawner.errors import TemplateError

#: A manifest may be 100 levels deep; what holds itself must not end in a RecursionError.
MAX_DEPTH: Final = 60
_LONGEST_SHOWN: Final = 80


def plain_mapping(values: Any) -> dict[str, Any]:
    """All values of a start, as ``plain`` makes them."""
    mapping = plain(values)
    if not isinstance(mapping, dict):
        raise TemplateError(
            f"The values are a {type(values).__name__}, but must be a dictionary: a template calls "
            "each by its name."
        )
    return mapping


def plain(value: Any, place: str = "", depth: int = 0) -> Any:
    """``value`` as lists, dicts and scalars; TemplateError names the place of anything else."""
    if isinstance(value, str):
        return _text(str.__str__(value), place)  # of an Enum the value, as JSON has it
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _integer(int(value), place)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TemplateError(f"The value {shown(place)} is {value}, which JSON does not have.")
        return float(value)
    if depth > MAX_DEPTH:
        raise TemplateError(
            f"The value {shown(place)} lies more than {MAX_DEPTH} levels deep; does a value hold "
            "itself?"
        )
    if isinstance(value, Mapping):
        return {
            _key(key, place): plain(item, _join(place, key), depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item, f"{place}[{n}]", depth + 1) for n, item in enumerate(value)]
    raise TemplateError(
        f"The value {shown(place)} is a {type(value).__name__}, which a template cannot take. "
        "Values are text, numbers, booleans, None, lists and dictionaries: convert it first."
    )


def shown(place: Any) -> str:
    """A place or key as a message can show it: of keys that a user chose, not the whole."""
    if not isinstance(place, str):
        return str(place) if isinstance(place, int) and abs(place) < 2**64 else "?"
    cut = place if len(place) <= _LONGEST_SHOWN else f"{place[:_LONGEST_SHOWN]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in cut) or "."


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: no half characters, of which Python makes strings."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def to_json(values: Any) -> str:
    """As UTF-8 text: Helm's command line reads no escaped characters beyond 16 bits."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def _integer(number: int, place: str) -> int:
    if not -(2**63) <= number < 2**64:
        raise TemplateError(
            f"The value {shown(place)} is a number of more than 64 bits: write it as text."
        )
    return number


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise TemplateError(
            f"The value {shown(place)} has the key {shown(key)}, a {type(key).__name__}: keys are "
            "text."
        )
    return _text(str.__str__(key), place)


def _text(text: str, place: str) -> str:
    if not text.isascii() and not is_text(text):
        raise TemplateError(
            f"The value {shown(place)} holds bytes that are not text (half a character)."
        )
    return text


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)
