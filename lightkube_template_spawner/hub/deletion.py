"""Keeps a removal for good and a start apart; the hub does so for one and the same server only.

The removal of a user takes all that is the user's, so it would take a named server's secrets and
volume from under it; and a start that crosses the removal would leave objects that nobody owns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from lightkube_template_spawner.errors import RemovalIncomplete, StartFailed

# The hub removes a user's servers one after another, and the user after the last.
_PAUSE = 1.0
# By the hub's user, by server: until when it does not start.
_ends: WeakKeyDictionary[Any, dict[str, float]] = WeakKeyDictionary()


@contextmanager
def removal(spawner: Any) -> Iterator[None]:
    """While a server, or with the default server all that is a user's, goes for good.

    Raises:
        RemovalIncomplete: a server that would lose its objects is active.
    """
    user, name = spawner.user, str(spawner.name)
    servers = [spawner] if name else list(user.spawners.values())
    active = [one._log_name for one in servers if one.active]
    if active:
        raise RemovalIncomplete(
            f"nothing was removed: {', '.join(active)} is active; stop it, then remove again"
        )
    ends = _ends.setdefault(user, {})
    whole = not name or ends.get("", 0.0) > time.monotonic()
    names = {"", name} if whole else {name}
    ends.update(dict.fromkeys(names, math.inf))
    try:
        yield
    finally:
        ends.update(dict.fromkeys(names, time.monotonic() + _PAUSE if whole else 0.0))


def check_start(spawner: Any) -> None:
    """Refuse the start of what is being removed.

    Raises:
        StartFailed: its removal is under way.
    """
    ends = _ends.get(spawner.user, {})
    if max(ends.get("", 0.0), ends.get(str(spawner.name), 0.0)) > time.monotonic():
        raise StartFailed(f"{spawner._log_name} is being removed: try again in a moment")
