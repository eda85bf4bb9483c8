"""Fields that an apply was refused for, and a manifest without them; pure."""

from __future__ import annotations

import copy
import re
from typing import Any

_REPORT = re.compile(r"(\.[^\s:]+(?:\[[^\]]*\][^\s:]*)*): field not declared in schema")
_ITEM = re.compile(r"\[(?:(?P<index>\d+)|(?P<keys>[^\]]*))\]")
_KEY = re.compile(r'(?P<name>[\w$-]+)=(?:"(?P<text>[^"]*)"|(?P<other>[^,\]]*))')


def undeclared(message: str) -> list[str]:
    """Paths of the fields that an apply was refused for, such as ``.spec.ports[name="x"].y``."""
    return _REPORT.findall(message)


def without(manifest: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """A copy of ``manifest`` that lacks the fields at ``paths``."""
    result = copy.deepcopy(manifest)
    for path in paths:
        _cut(result, path)
    return result


def _cut(value: Any, path: str) -> None:
    step = _ITEM.match(path)
    if step:
        _cut(_item(value, step), path[step.end() :])
    elif isinstance(value, dict):
        # Names may hold dots, as labels' do: the longest that fits is meant.
        for name in sorted(value, key=len, reverse=True):
            head = f".{name}"
            if path == head:
                del value[name]
                return
            if path.startswith((f"{head}.", f"{head}[")):
                _cut(value[name], path[len(head) :])
                return


def _item(value: Any, step: re.Match[str]) -> Any:
    items = value if isinstance(value, list) else []
    if step["index"]:
        return items[int(step["index"])] if int(step["index"]) < len(items) else None
    # A list keyed by fields, of which the manifest may leave out defaults (protocol="TCP").
    fields = {
        key["name"]: key["text"] if key["text"] is not None else key["other"]
        for key in _KEY.finditer(step["keys"])
    }
    candidates = [
        item
        for item in items
        if isinstance(item, dict)
        and all(str(item[name]) == value for name, value in fields.items() if name in item)
    ]
    return max(candidates, key=lambda item: len(fields.keys() & item.keys()), default=None)
