"""The values on their way to Helm: plain JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lightkube_template_spawner.errors import TemplateError


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
