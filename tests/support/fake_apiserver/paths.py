"""Paths of fields in an object: ``("spec", "replicas")`` is ``.spec.replicas``."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from tests.support.fake_apiserver.messages import Obj

Path = tuple[str, ...]

_IDENTITY = (("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"))


def leaves(body: Obj, at: Path = ()) -> Iterable[Path]:
    """Paths of what an apply claims: scalars, and lists as a whole."""
    for name, value in body.items():
        path = (*at, name)
        if path in _IDENTITY:
            continue
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield path


def dotted(path: Path) -> str:
    return "".join(f".{part}" for part in path)


def get(item: Any, path: Path) -> Any:
    """The value there, or None."""
    for part in path:
        item = item.get(part) if isinstance(item, dict) else None
    return item


def put(item: Obj, path: Path, value: Any) -> None:
    for part in path[:-1]:
        item = item.setdefault(part, {})
    item[path[-1]] = deepcopy(value)


def cut(item: Obj, path: Path) -> None:
    for part in path[:-1]:
        item = item.get(part, {})
    item.pop(path[-1], None)
