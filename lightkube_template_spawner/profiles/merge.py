"""How the profiles of one start become one.

``merge``, the default, merges by key: of environment variables, ports, volumes and tolerations
there is one each in the end, as server-side apply demands. ``singleuser-profiles`` gives what that
library gave for the fields that it knew (``legacy``). In both, the list's order decides, and what
comes last wins.

Merged in whatever groups, variables, tolerations, amounts, labels, annotations and selectors are
the same as merged at once, as long as no profile takes away (``null``, ``merge: replace``). So are
free mappings, where no key has a mapping in one profile and something else in another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from posixpath import normpath
from typing import Any, Final, NamedTuple

from lightkube_template_spawner.profiles import legacy
from lightkube_template_spawner.profiles.fields import GPU, volume_name
from lightkube_template_spawner.profiles.model import Profile

MERGE: Final = "merge"
SINGLEUSER_PROFILES: Final = "singleuser-profiles"
SEMANTICS: Final = (MERGE, SINGLEUSER_PROFILES)

Item = dict[str, Any]
_NESTED: Final = (dict, list)  # made once: the copy asks for every value


class Rule(NamedTuple):
    """How a field is merged: what it is at first, one more profile, and what comes out."""

    start: Callable[[], Any]
    add: Callable[[Any, Any], Any]
    finish: Callable[[Any], Any]


def merge(profiles: Sequence[Profile], semantics: str) -> dict[str, Any]:
    """All of ``profiles``, in their order, as one new mapping."""
    rules = _RULES[semantics]
    kept = _LEGACY if semantics == SINGLEUSER_PROFILES else {}
    state: dict[str, Any] = {}
    for profile in profiles:
        for name, value in profile.fields.items():
            rule = rules[name]
            replaced = name in profile.replaced and name not in kept
            before = state[name] if name in state and not replaced else rule.start()
            state[name] = rule.add(before, value)
    return {
        "name": ", ".join(profile.name for profile in profiles if profile.name),
        "users": _union(profile.users for profile in profiles),
        "images": _union(profile.images for profile in profiles),
        **{
            name: copied(rule.finish(state[name] if name in state else rule.start()))
            for name, rule in rules.items()
        },
        "groups": _union(profile.groups for profile in profiles),
        "semantics": semantics,
    }


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(lists)))


def copied(value: Any) -> Any:
    """A copy that shares no mapping and no list with ``value``."""
    if isinstance(value, dict):
        return {
            key: copied(item) if isinstance(item, _NESTED) else item for key, item in value.items()
        }
    if isinstance(value, list):
        return [copied(item) if isinstance(item, _NESTED) else item for item in value]
    return value


def deep_merge(into: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``into`` with ``more`` in it, mapping by mapping; lists and scalars are replaced."""
    for key, value in more.items():
        before = into.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            deep_merge(before, value)
        else:
            into[key] = copied(value)
    return into


def last_wins(items: list[Item], *keys: Callable[[Item], Hashable]) -> list[Item]:
    """``items`` without those of which a later one has the same key; a key of None is none."""
    for key in keys:
        of_items = [key(item) for item in items]
        last = {of_item: n for n, of_item in enumerate(of_items)}
        items = [
            item
            for n, (item, of_item) in enumerate(zip(items, of_items, strict=True))
            if of_item is None or last[of_item] == n
        ]
    return items


def unique_env(variables: Iterable[Item]) -> list[Item]:
    """One EnvVar a name, the last, where the first stood; numbers are text, as in YAML."""
    last: dict[str, Item] = {}
    for variable in variables:
        last[variable["name"]] = variable
    return [_as_text(variable) for variable in last.values()]


def unique_ports(ports: list[Item]) -> list[Item]:
    """One port a number and protocol, and one a name: the last."""
    return last_wins(ports, port_key, lambda port: port.get("name"))


def port_key(port: Item) -> Hashable:
    """What server-side apply tells ports apart by."""
    return port["containerPort"], port.get("protocol") or "TCP"


def unique_volumes(volumes: list[Item]) -> list[Item]:
    """One volume a name, and one a mount path: the last. Names are made valid."""
    last = last_wins(volumes, lambda volume: volume_name(volume["name"]), _mount_path)
    return [{**volume, "name": volume_name(volume["name"])} for volume in last]


def unique_tolerations(tolerations: list[Item]) -> list[Item]:
    """One toleration of a taint: the last, which can differ in its seconds."""
    return last_wins(tolerations, _taint)


def _as_text(variable: Item) -> Item:
    if "valueFrom" in variable:
        return variable
    value = variable["value"]
    if isinstance(value, bool):
        value = "true" if value else "false"
    return {"name": variable["name"], "value": "" if value is None else str(value)}


def _mount_path(volume: Item) -> Hashable:
    path: str = volume.get("mountPath") or volume_name(volume["name"])
    return normpath(path)


def _taint(toleration: Item) -> Hashable:
    of = toleration.get
    parts = of("operator") or "Equal", of("key") or "", of("value") or "", of("effect") or ""
    return tuple(map(str, parts))  # a pod's can be anything


def _update(into: Item, more: Item) -> Item:
    into.update(more)
    return into


def _extend(into: list[Any], more: list[Any]) -> list[Any]:
    into.extend(more)
    return into


def _without_nulls(entries: Item) -> Item:
    """``null`` takes away what an earlier profile set."""
    return {key: value for key, value in entries.items() if value is not None}


def _add_resources(into: Item, more: Item) -> Item:
    for side in ("requests", "limits"):
        into[side].update(more.get(side, {}))
        for older, name in (("mem_limit", "memory"), ("cpu_limit", "cpu")):
            if more.get(older) is not None:
                into[side][name] = more[older]
    return into


def _resources(into: Item) -> Item:
    return {side: _without_nulls(amounts) for side, amounts in into.items()}


def _gpus(into: Item) -> Item:
    """Both resource and count, or nothing where there are none."""
    return {"resource": GPU, **into} if into.get("count") else {}


def _itself(value: Any) -> Any:
    return value


def _later(_: Any, more: Any) -> Any:
    return more


def _nothing() -> None:
    return None


_FREE: Final = Rule(dict, deep_merge, _itself)
_FLAT: Final = Rule(dict, _update, _without_nulls)
_LAST: Final = Rule(_nothing, _later, _itself)

_KEYED: Final[Mapping[str, Rule]] = {
    "env": Rule(list, _extend, unique_env),
    "resources": Rule(lambda: {"requests": {}, "limits": {}}, _add_resources, _resources),
    "volumes": Rule(list, _extend, unique_volumes),
    "node_tolerations": Rule(list, _extend, unique_tolerations),
    "node_affinity": _FREE,
    "services": _FREE,
    "gpus": Rule(dict, _update, _gpus),
    "node_selector": _FLAT,
    "labels": _FLAT,
    "annotations": _FLAT,
    "ports": Rule(list, _extend, unique_ports),
    "values": _FREE,
    "extra_pod_config": _FREE,
    "extra_container_config": _FREE,
    "max_age": _LAST,
    "idle": _LAST,
}
_LEGACY: Final[Mapping[str, Rule]] = {
    "env": Rule(list, _extend, _itself),
    "resources": Rule(legacy.no_resources, legacy.add_resources, legacy.resources),
    "volumes": Rule(list, _extend, _itself),
    "node_tolerations": Rule(list, _extend, _itself),
    "node_affinity": Rule(dict, _update, _itself),
    "services": Rule(dict, _update, _itself),
}
_RULES: Final[Mapping[str, Mapping[str, Rule]]] = {
    MERGE: _KEYED,
    SINGLEUSER_PROFILES: {**_KEYED, **_LEGACY},
}
