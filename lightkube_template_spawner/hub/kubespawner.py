"""What add-ons and Zero to JupyterHub write to KubeSpawner's section of the configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
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
    "profile_list",
    "progress_ready_hook",
    "start_timeout",
)
# A template that walks through the section, or writes all of it.
_WHOLE = re.compile(r"(with|range|toYaml|toJson)\b[^}]*\bkubespawner\W*[|}]")


def inherit(spawner: Any) -> None:
    """Take shared settings from ``c.KubeSpawner`` where our own sections leave them out.

    Raises:
        TraitError: one of them has a value that the trait refuses.
    """
    for name, value in inherited(type(spawner), spawner.config).items():
        # Hooks and group overrides write to dictionaries: each spawner has its own.
        setattr(spawner, name, deepcopy(resolved(spawner, name, value)))


def inherited(spawner_class: type[Any], config: Config) -> dict[str, Any]:
    """Those settings, as the configuration has them."""
    section = config.get("KubeSpawner", {})
    names = _own(spawner_class, config)
    return {name: section[name] for name in _INHERITED if name in section and name not in names}


def resolved(spawner: Any, name: str, value: Any) -> Any:
    """The value of a trait, however the configuration file or the command line gave it."""
    if isinstance(value, LazyConfigValue):  # c.KubeSpawner.environment.update(...)
        return value.get_value(getattr(spawner, name))
    if isinstance(value, DeferredConfig):  # --KubeSpawner.cpu_limit=1
        return value.get_value(spawner.traits()[name])
    return value


def plain(config: Config) -> dict[str, Any]:
    """KubeSpawner's settings as JSON; what is none (callables, client objects) is left out."""
    settings = {}
    for name, value in config.get("KubeSpawner", {}).items():
        try:
            settings[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return settings


def unread(spawner_class: type[Any], config: Config, chart: Mapping[str, bytes]) -> list[str]:
    """One line that names every setting of ``c.KubeSpawner`` without effect, with the mend.

    ``chart`` has the template's files: what they name of ``.Values.kubespawner`` has an effect.
    """
    idle = set(config.get("KubeSpawner", {})) - set(_INHERITED) - _own(spawner_class, config)
    values = plain(config)
    template_names = _named(idle & values.keys(), chart)
    traits = idle & set(spawner_class.class_trait_names(config=True)) - template_names
    rest = idle - template_names - traits
    data, code = sorted(rest & values.keys()), sorted(rest - values.keys())
    parts = []
    if traits:
        parts.append(f"{_list(traits)} (set as c.{spawner_class.__name__}.{min(traits)})")
    if data:
        parts.append(
            f"{_list(data)} (a chart can read them, as `.Values.kubespawner.{data[0]}`; this one "
            "does not)"
        )
    if code:
        parts.append(f"{_list(code)} (no plain values, so that no chart can read them)")
    if not parts:
        return []
    return [f"these settings of c.KubeSpawner have no effect with this spawner: {'; '.join(parts)}"]


def _own(spawner_class: type[Any], config: Config) -> set[str]:
    """What is set in the sections of the spawner's own classes."""
    return {name for cls in spawner_class.__mro__ for name in config.get(cls.__name__, {})}


def _named(names: set[str], chart: Mapping[str, bytes]) -> set[str]:
    text = "\n".join(
        data.decode(errors="replace") for path, data in chart.items() if "templates/" in path
    )
    if _WHOLE.search(text):
        return names
    return {name for name in names if re.search(rf"\bkubespawner\W{{1,4}}{name}\b", text)}


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
