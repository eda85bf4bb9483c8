"""Words that messages about the configuration and about users' choices share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

_LISTED: Final = 20  # names in one message
_LONGEST: Final = 80  # characters of a name for which a near one is looked for


def kind(value: Any) -> str:
    """What a value is, in the words of those who write YAML or JSON."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__}"


def nearest(name: Any, known: Iterable[str]) -> str:
    """The known name that was probably meant, as a question to put into a message, or nothing."""
    if isinstance(name, str) and len(name) > _LONGEST:  # looking for it would take long
        return ""
    close = get_close_matches(str(name), sorted(known), n=1, cutoff=0.7)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(names: Iterable[str]) -> str:
    """Names as an alternative; sorted where they have no order of their own."""
    ordered = sorted(names) if isinstance(names, set | frozenset) else list(names)
    if not ordered:
        return "nothing"
    quoted = [repr(name) for name in ordered[:_LISTED]]
    more = f" or one of {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted) + more
