"""Fields that a kind's schema lacks, as apply reports them, and a manifest without them; pure."""

from __future__ import annotations

import copy
import re
from typing import Any

_REPORT = re.compile(r"(\.[^\s:]+(?:\[[^\]]*\][^\s:]*)*): field not declared in schema")
_STEP = re.compile(r"\.(?P<name>[^.\[\s]+)|\[(?P<index>\d+)\]|\[(?P<keys>[^\]]*)\]")
_KEY = re.compile(r'(?P<name>[\w$-]+)=(?:"(?P<text>[^"]*)"|(?P<other>[^,\]]*))')


def undeclared(message: str) -> list[str]:
    """Paths of the fields that an apply was refused for, such as ``.spec.ports[name="x"].y``."""
    return _REPORT.findall(message)


def without(manifest: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """A copy of ``manifest`` that lacks the fields at ``paths``."""
    trimmed = copy.deepcopy(manifest)
    for path in paths:
        *way, last = _STEP.finditer(path)
        holder: Any = trimmed
        for step in way:
            holder = _descend(holder, step)
        if isinstance(holder, dict) and last["name"]:
            holder.pop(last["name"], None)
    return trimmed


def _descend(value: Any, step: re.Match[str]) -> Any:
    if step["name"]:
        return value.get(step["name"]) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else []
    if step["index"]:
        return items[int(step["index"])] if int(step["index"]) < len(items) else None
    # A list keyed by fields, of which the manifest may leave out defaults (protocol="TCP").
    wanted = {
        key["name"]: key["text"] if key["text"] is not None else key["other"]
        for key in _KEY.finditer(step["keys"])
    }
    candidates = [
        item
        for item in items
        if isinstance(item, dict)
        and all(str(item[name]) == value for name, value in wanted.items() if name in item)
    ]
    return max(candidates, key=lambda item: len(wanted.keys() & item.keys()), default=None)
