"""Every mapping inside an object, at any depth: what is known by its shape, in whatever kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def mappings(tree: object) -> Iterator[dict[str, Any]]:
    """``tree`` itself, if it is a mapping, and each mapping inside it, in the order as written.

    Without recursion: no depth of nesting is too much.
    """
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(reversed(value.values()))
        elif isinstance(value, list):
            stack.extend(reversed(value))


def listed(value: object) -> list[dict[str, Any]]:
    """The mappings in a list; none of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
