"""The values on their way to Helm: plain JSON in, and nothing secret out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lightkube_template_spawner.errors import TemplateError

_SECRET_NAME: Final = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET: Final = 3
_SHORTEST_VALUE: Final = 8


def plain(value: Any, place: str = "") -> Any:
    """``value`` as lists, dicts and scalars; TemplateError names the place of anything else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str(value), place)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TemplateError(f"The value {place or '.'} is {value}, which JSON does not have.")
        return float(value)
    if isinstance(value, Mapping):
        return {_key(key, place): plain(item, _join(place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise TemplateError(
        f"The value {place or '.'} is a {type(value).__name__}, which a template cannot take. "
        "Values are text, numbers, booleans, None, lists and dictionaries: convert it first."
    )


def to_json(values: Any) -> str:
    """As UTF-8 text: Helm's command line reads no escaped characters beyond 16 bits."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def masked(message: str, values: Mapping[str, Any]) -> str:
    """``message`` without the environment's values, which schema and ``tpl`` errors quote."""
    found = {text: name for name, text in _environment(values.get("env")) if _is_secret(name, text)}
    for text in sorted(found, key=len, reverse=True):
        for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
            message = message.replace(form, f"[env {found[text]}]")
    return message


def _is_secret(name: str, text: str) -> bool:
    """Short values of harmless names stay: replacing each `1` makes an error unreadable."""
    return len(text) >= (_SHORTEST_SECRET if _SECRET_NAME.search(name) else _SHORTEST_VALUE)


def _environment(env: Any) -> Iterator[tuple[str, str]]:
    if isinstance(env, Mapping):
        for name, value in env.items():
            if isinstance(value, str):
                yield str(name), value
            elif isinstance(value, Mapping):
                yield from ((str(name), text) for _, text in _environment(value))


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise TemplateError(
            f"The value {place or '.'} has the key {key!r}, a {type(key).__name__}: keys are text."
        )
    return _text(str(key), place)


def _text(text: str, place: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TemplateError(
            f"The value {place or '.'} holds bytes that are not text (half a character)."
        ) from None
    return text


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)
