"""What a choice changes: KubeSpawner's trait names as traits and template values of ours.

``TARGETS`` is the whole table. Nothing here is written to a spawner: the result is a value for one
start, so that no choice outlives its server.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lightkube_template_spawner.choices.model import Layer
from lightkube_template_spawner.choices.wording import nearest
from lightkube_template_spawner.errors import ConfigurationError, TemplateError
from lightkube_template_spawner.templates.plain import MAX_DEPTH, plain

Path = tuple[str, ...]

_BRACES: Final = re.compile(r"\{\{|\}\}|\{value\}")
_FORMATTED: Final = re.compile(r"\{value[^}\w][^}]*\}")
# What KubeSpawner replaces in the traits that it expands, and no chart would.
_EXPANDED: Final = re.compile(
    r"\{((safe_|escaped_|unescaped_)?(username|servername|user_server)|userid|pod_name|pvc_name"
    r"|namespace|hubnamespace)\}"
)
_NOT_FORMATTED: Final = ": only {value} is replaced, by what the user typed, and as it is"
_NOT_EXPANDED: Final = (
    ", which KubeSpawner replaces and this spawner does not: let the template write users' names"
)


def _same(value: Any) -> Any:
    return value


def _items(value: Any) -> Any:
    """A list that KubeSpawner lets be written as a mapping, for its order and for merging."""
    if isinstance(value, Mapping):
        return [value[key] for key in sorted(value, key=str) if value[key] is not None]
    return value


def _pull_secrets(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence):
        return names
    return [{"name": name} if isinstance(name, str) else name for name in names]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a KubeSpawner setting goes: a trait of the spawner, or a path of template values."""

    trait: str = ""
    value: Path = ()
    convert: Callable[[Any], Any] = _same
    expanded: bool = False  # KubeSpawner replaces `{username}` and its like there


_DURING: Final = "DuringSchedulingIgnoredDuringExecution"
_REQUIRED: Final = f"required{_DURING}"
_PREFERRED: Final = f"preferred{_DURING}"

_TRAITS: Final = (
    "args",
    "cmd",
    "cpu_guarantee",
    "cpu_limit",
    "debug",
    "default_url",
    "delete_grace_period",
    "disable_user_config",
    "http_timeout",
    "mem_guarantee",
    "mem_limit",
    "notebook_dir",
    "start_timeout",
)

#: Every key that a ``kubespawner_override`` may have.
TARGETS: Final[Mapping[str, Target]] = {
    **{name: Target(trait=name) for name in _TRAITS},
    "environment": Target(trait="environment", expanded=True),
    "allow_privilege_escalation": Target(
        value=("containerSecurityContext", "allowPrivilegeEscalation")
    ),
    "automount_service_account_token": Target(value=("automountServiceAccountToken",)),
    "common_labels": Target(value=("extraLabels",)),
    "container_security_context": Target(value=("containerSecurityContext",)),
    "extra_annotations": Target(value=("extraAnnotations",), expanded=True),
    "extra_containers": Target(value=("extraContainers",), convert=_items, expanded=True),
    "extra_labels": Target(value=("extraLabels",), expanded=True),
    "extra_resource_guarantees": Target(value=("resources", "requests")),
    "extra_resource_limits": Target(value=("resources", "limits")),
    "fs_gid": Target(value=("fsGroup",)),
    "gid": Target(value=("gid",)),
    "image": Target(value=("image",)),
    "image_pull_policy": Target(value=("imagePullPolicy",)),
    "image_pull_secrets": Target(value=("imagePullSecrets",), convert=_pull_secrets),
    "init_containers": Target(value=("initContainers",), convert=_items, expanded=True),
    "node_affinity_preferred": Target(
        value=("affinity", "nodeAffinity", _PREFERRED), convert=_items
    ),
    "node_affinity_required": Target(
        value=("affinity", "nodeAffinity", _REQUIRED, "nodeSelectorTerms"), convert=_items
    ),
    "node_selector": Target(value=("nodeSelector",)),
    "pod_affinity_preferred": Target(value=("affinity", "podAffinity", _PREFERRED), convert=_items),
    "pod_affinity_required": Target(value=("affinity", "podAffinity", _REQUIRED), convert=_items),
    "pod_anti_affinity_preferred": Target(
        value=("affinity", "podAntiAffinity", _PREFERRED), convert=_items
    ),
    "pod_anti_affinity_required": Target(
        value=("affinity", "podAntiAffinity", _REQUIRED), convert=_items
    ),
    "pod_security_context": Target(value=("podSecurityContext",)),
    "priority_class_name": Target(value=("priorityClassName",)),
    "privileged": Target(value=("containerSecurityContext", "privileged")),
    "scheduler_name": Target(value=("schedulerName",)),
    "service_account": Target(value=("serviceAccountName",), expanded=True),
    "storage_access_modes": Target(value=("storage", "accessModes")),
    "storage_capacity": Target(value=("storage", "size")),
    "storage_class": Target(value=("storage", "storageClass")),
    "supplemental_gids": Target(value=("podSecurityContext", "supplementalGroups")),
    "tolerations": Target(value=("tolerations",), convert=_items),
    "uid": Target(value=("uid",)),
    "volume_mounts": Target(value=("extraVolumeMounts",), convert=_items, expanded=True),
    "volumes": Target(value=("extraVolumes",), convert=_items, expanded=True),
}

#: Names that KubeSpawner itself still takes for newer ones.
ALIASES: Final[Mapping[str, str]] = {
    "image_spec": "image",
    "singleuser_image_spec": "image",
    **{
        f"singleuser_{name}": name
        for name in (
            "allow_privilege_escalation",
            "extra_annotations",
            "extra_containers",
            "extra_labels",
            "fs_gid",
            "image_pull_policy",
            "image_pull_secrets",
            "init_containers",
            "node_selector",
            "privileged",
            "service_account",
            "supplemental_gids",
            "uid",
        )
    },
    **{
        f"user_{name}": name
        for name in ("storage_access_modes", "storage_capacity", "storage_class")
    },
}


def layer(
    place: str, kubespawner: Mapping[str, Any], values: Mapping[str, Any], *, typed: bool = False
) -> Layer:
    """Both kinds of overrides of a profile or choice, or of a ``typed`` input, copied and checked.

    Raises:
        ConfigurationError: a key has no counterpart here, or a value is nothing a template takes.
    """
    where = f"{place}.kubespawner_override"
    renamed = {}
    for key, value in kubespawner.items():
        name = ALIASES.get(key, key)
        if name not in TARGETS:
            raise ConfigurationError(
                f"{where}.{key} has no counterpart in this spawner.{nearest(key, TARGETS)} Give "
                f"the template what it needs under `values`, or use one of {', '.join(TARGETS)}."
            )
        renamed[name] = _json_like(value, f"{where}.{key}")
        if TARGETS[name].expanded:
            _check_texts(renamed[name], f"{where}.{key}", _EXPANDED, _NOT_EXPANDED)
        if typed:
            _check_texts(renamed[name], f"{where}.{key}", _FORMATTED, _NOT_FORMATTED)
    try:
        return Layer(place, renamed, plain(values, f"{place}.values"))
    except TemplateError as error:
        raise ConfigurationError(str(error)) from None


def _json_like(value: Any, place: str, depth: int = 0) -> Any:
    """A copy, so that neither the configuration nor a start can change the other."""
    if depth > MAX_DEPTH:
        raise ConfigurationError(f"{place} lies too deep; does a value hold itself?")
    if isinstance(value, Mapping):
        return {key: _json_like(item, place, depth + 1) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_json_like(item, place, depth + 1) for item in value]
    return value


def _check_texts(value: Any, place: str, pattern: re.Pattern[str], why: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_texts(key, place, pattern, why)
            _check_texts(item, place, pattern, why)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item, place, pattern, why)
    elif isinstance(value, str) and (braces := pattern.search(value)):
        raise ConfigurationError(f"{place} holds {braces[0]}{why}.")


@dataclass(frozen=True, slots=True)
class Applied:
    """What one start uses: ``traits`` for the spawner, ``values`` to merge over the template's.

    A None in ``values`` takes a default of the chart away. ``typed`` has the paths of values that
    hold what the user typed (of a trait: its name first), for whoever guards the template.
    """

    traits: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    typed: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class Overrides:
    """The layers of one selection, the profile's first, the options' in the profile's order."""

    layers: tuple[Layer, ...] = ()

    async def applied(self, spawner: Any) -> Applied:
        """What they make of this spawner's present settings, which stay as they are.

        Functions are called with the spawner, and may be async. What they raise is passed on,
        with a note that says where the function stands.
        """
        traits: dict[str, Any] = {}
        values: dict[str, Any] = {}
        settings: dict[
            str, Any
        ] = {}  # by KubeSpawner's names: they merge before they are converted
        typed: set[Path] = set()
        for one in self.layers:
            for name, given in one.kubespawner.items():
                target = TARGETS[name]
                value = await _called(given, spawner, f"{one.place}.kubespawner_override.{name}")
                if name not in settings:
                    settings[name] = getattr(spawner, target.trait) if target.trait else None
                filled = _filled(value, one.typed)
                settings[name] = _updated(settings[name], filled, keep_none=not target.trait)
                if target.trait:
                    traits[target.trait] = settings[name]
                else:
                    converted = target.convert(settings[name])
                    values = merged(values, _nested(target.value, converted))
                typed.update(_typed(value, one, (target.trait,) if target.trait else target.value))
            values = merged(values, _filled(one.values, one.typed))
            typed.update(_typed(one.values, one, ()))
        return Applied(traits, values, frozenset(typed))


def merged(base: Any, new: Any) -> Any:
    """``new`` over ``base``: mappings key by key, all else replaced; None stays, for Helm."""
    return _updated(base, new, keep_none=True)


def _updated(base: Any, new: Any, *, keep_none: bool) -> Any:
    if not isinstance(new, Mapping):
        return _copied(new)
    if not isinstance(base, Mapping):
        # A setting that is no mapping is replaced whole; within mappings, None means "without".
        base = {}
    result = {key: _copied(value) for key, value in base.items()}
    for key, value in new.items():
        if value is None and not keep_none:
            result.pop(key, None)
        else:
            result[key] = _updated(result.get(key), value, keep_none=keep_none)
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _nested(path: Path, value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


async def _called(value: Any, spawner: Any, place: str) -> Any:
    if not callable(value):
        return value
    try:
        result = value(spawner)
        return await result if inspect.isawaitable(result) else result
    except Exception as error:
        error.add_note(f"in the function of {place}")
        raise


def _filled(value: Any, typed: str | float | None) -> Any:
    """``value`` with what the user typed for ``{value}``; a number alone stays a number."""
    if typed is None:
        return value
    if isinstance(value, Mapping):
        return {_filled_text(key, typed): _filled(item, typed) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, typed) for item in value]
    if value == "{value}":
        return typed
    return _filled_text(value, typed)


def _filled_text(text: Any, typed: str | float) -> Any:
    """As ``str.format`` reads braces, which KubeSpawner uses, but none of them is an error."""
    if not isinstance(text, str):
        return text
    return _BRACES.sub(lambda found: str(typed) if found[0] == "{value}" else found[0][0], text)


def _typed(value: Any, one: Layer, path: Path) -> Iterator[Path]:
    """The paths at which a text of the user's own is put in."""
    if not isinstance(one.typed, str):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _holds(key):
                yield path
            else:
                yield from _typed(item, one, (*path, str(key)))
    elif isinstance(value, list | tuple):
        if any(True for item in value for _ in _typed(item, one, path)):
            yield path
    elif _holds(value):
        yield path


def _holds(text: Any) -> bool:
    return isinstance(text, str) and "{value}" in text.replace("{{", "")
