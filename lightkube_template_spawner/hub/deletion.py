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

import anyio

from lightkube_template_spawner.cluster.live import Meta
from lightkube_template_spawner.errors import ClusterError, RemovalIncomplete, StartFailed
from lightkube_template_spawner.hub import names
from lightkube_template_spawner.lifecycle.record import merged
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.objects.identity import Policy, Selection

# The hub removes a user's servers one after another, and the user after the last.
_PAUSE = 1.0
_TRIES = 3
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
    log_names = [server._log_name for server in servers if server.active]
    if log_names:
        raise RemovalIncomplete(
            f"nothing was removed: {', '.join(log_names)} is active; stop it, then remove again"
        )
    ends = _ends.setdefault(user, {})
    whole = not name or ends.get("", 0.0) > time.monotonic()
    keys = {"", name} if whole else {name}
    ends.update(dict.fromkeys(keys, math.inf))
    try:
        yield
    finally:
        ends.update(dict.fromkeys(keys, time.monotonic() + _PAUSE if whole else 0.0))


async def purge(spawner: Any, removal: Removal) -> None:
    """Remove what belongs to a named server, or with the default server all that is the user's.

    The hub forgets the user whatever happens here, so it is tried more than once.

    Raises:
        ClusterError, RemovalIncomplete: what the last attempt ended with.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            await _purge(spawner, removal)
        except (ClusterError, RemovalIncomplete) as error:
            words = "Removing %s, attempt %d of %d: %s"
            spawner.log.error(  # noqa: TRY400 - the message says it all
                words, spawner._log_name, attempt, _TRIES, error
            )
            if attempt == _TRIES:
                raise
            await anyio.sleep(attempt)
        else:
            return


async def _purge(spawner: Any, removal: Removal) -> None:
    identity, record = spawner.identity, spawner.record
    records = [*names.siblings(spawner), *([record] if record else [])]
    namespaces = [name for record in records for name in record.namespaces]
    selection: Selection[Meta] = identity.user_selection()
    if spawner.name:
        policies = [Policy.STOPPED, Policy.SERVER_DELETED]
        selection = identity.selection(spawner.lifecycle_annotation_key, policies)

    def is_theirs(meta: Meta) -> bool:
        return not names.is_anothers(spawner, meta)

    await removal.purge(
        selection.where(is_theirs),
        owner=identity.owner,
        namespaces=dict.fromkeys([*spawner.named_namespaces, *namespaces]),
        known_kinds=merged(*(places for r in records for places in (r.kinds, r.retained))),
        only_kinds=spawner.resource_kinds,
        cluster_kinds=spawner.cluster_kinds,
        timeout=spawner.stop_timeout,
    )


def check_start(spawner: Any) -> None:
    """Refuse the start of what is being removed.

    Raises:
        StartFailed: its removal is under way.
    """
    ends = _ends.get(spawner.user, {})
    if max(ends.get("", 0.0), ends.get(str(spawner.name), 0.0)) > time.monotonic():
        raise StartFailed(f"{spawner._log_name} is being removed: try again in a moment")
