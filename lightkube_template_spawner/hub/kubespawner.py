"""What add-ons and Zero to JupyterHub write to KubeSpawner's section of the configuration."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from traitlets.config.loader import Config, DeferredConfig, LazyConfigValue

# Traits that every spawner has.
_INHERITED = (
    "auth_state_hook",
    "cpu_guarantee",
    "cpu_limit",
    "environment",
    "http_timeout",
    "mem_guarantee",
    "mem_limit",
    "post_stop_hook",
    "pre_spawn_hook",
    "progress_ready_hook",
    "start_timeout",
)


def inherit(spawner: Any) -> None:
    """Take shared settings from ``c.KubeSpawner`` where our own sections leave them out."""
    theirs = spawner.config.get("KubeSpawner", {})
    own = [spawner.config.get(cls.__name__, {}) for cls in type(spawner).__mro__]
    for name in _INHERITED:
        if name in theirs and not any(name in section for section in own):
            value = theirs[name]
            if isinstance(value, LazyConfigValue):  # c.KubeSpawner.environment.update(...)
                value = value.get_value(getattr(spawner, name))
            elif isinstance(value, DeferredConfig):  # --KubeSpawner.cpu_limit=1
                value = value.get_value(spawner.traits()[name])
            # Hooks and group overrides write to dictionaries: each spawner has its own.
            setattr(spawner, name, deepcopy(value))


def plain(config: Config) -> dict[str, Any]:
    """KubeSpawner's settings as JSON; what is none (callables, client objects) is left out."""
    found = {}
    for name, value in config.get("KubeSpawner", {}).items():
        try:
            found[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return found
