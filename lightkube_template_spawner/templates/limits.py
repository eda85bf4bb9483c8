"""How large and how deep the options may be that users send; pure.

The hub stores and passes on whatever JSON a user sends. Without a limit, options nested a few
hundred deep end in a RecursionError, and megabytes of them keep the hub's event loop busy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from lightkube_template_spawner.errors import OptionsRefused, TemplateError
from lightkube_template_spawner.templates.plain import plain, shown

MAX_DEPTH: Final = 20
MAX_NODES: Final = 2_000
MAX_BYTES: Final = 128 << 10
_NAME: Final = "user_options"


def check_options(options: Any) -> None:
    """Check the options of one start.

    Raises:
        OptionsRefused: too deep, too many, too long, or not JSON; names what and the limit.
    """
    size = 0
    for nodes, (place, value, depth) in enumerate(_walk(options)):
        if depth > MAX_DEPTH:
            raise OptionsRefused(
                f"{shown(place)} lies more than {MAX_DEPTH} levels deep: send flatter options."
            )
        size += _size(value)
        if nodes + _entries(value) > MAX_NODES:  # before they are looked at
            raise OptionsRefused(
                f"{_NAME} holds more than {MAX_NODES} values: send fewer; too many from "
                f"{shown(place)} on."
            )
        if size > MAX_BYTES:
            raise OptionsRefused(
                f"{_NAME} holds more than {MAX_BYTES >> 10} KiB of text: send less; too much from "
                f"{shown(place)} on."
            )
    try:
        plain(options, _NAME)
    except TemplateError as error:
        raise OptionsRefused(str(error)) from None


def _walk(options: Any) -> Iterator[tuple[str, Any, int]]:
    """Each value with its place and depth, without recursion."""
    waiting: list[tuple[str, Any, int]] = [(_NAME, options, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        yield place, value, depth
        if isinstance(value, Mapping):
            waiting += ((f"{place}.{shown(key)}", item, depth + 1) for key, item in value.items())
        elif isinstance(value, list | tuple):
            waiting += ((f"{place}[{n}]", item, depth + 1) for n, item in enumerate(value))


def _entries(value: Any) -> int:
    return len(value) if isinstance(value, Mapping | list | tuple) else 0


def _size(value: Any) -> int:
    """Bytes of a text, or of a mapping's keys."""
    if isinstance(value, str):
        return len(value.encode(errors="replace")) if len(value) <= MAX_BYTES else len(value)
    if isinstance(value, Mapping):
        return sum(_size(key) for key in value if isinstance(key, str))
    return 0
