"""The values that a template gets for one spawner, and what messages must not repeat of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

from jupyterhub.traitlets import ByteSpecification
from traitlets import TraitError

from lightkube_template_spawner.choices import merged
from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.hub import exceptions, kubespawner
from lightkube_template_spawner.objects.identity import Identity
from lightkube_template_spawner.templates import guard, limits, values
from lightkube_template_spawner.templates.redaction import Redactor

_SIZES = ("mem_limit", "mem_guarantee")
_SET_BY_OPTIONS = ("cmd", "args", "default_url", "notebook_dir")


async def build(
    spawner: Any, identity: Identity, *, former_pvc: str, internal_ssl: Mapping[str, Any]
) -> tuple[dict[str, Any], Redactor]:
    """All values of the server that ``spawner`` starts under this identity.

    What a choice of ``profile_list`` sets comes before all else, ``extra_vars`` before the rest.

    Raises:
        OptionsRefused: the user's options are too deep, too many or too long.
        TemplateError: ``extra_vars`` gives none, or a function in a trait failed.
    """
    limits.check_options(spawner.user_options)  # saved by an older hub, or set by a hook
    ours = {
        "cmd": list(spawner.cmd or []),
        "args": list(spawner.get_args()),
        "default_url": spawner.default_url,
        "notebook_dir": spawner.notebook_dir,
        "mem_limit": spawner.mem_limit,
        "mem_guarantee": spawner.mem_guarantee,
        "cpu_limit": spawner.cpu_limit,
        "cpu_guarantee": spawner.cpu_guarantee,
        "user_options": spawner.user_options,
        "groups": sorted(group.name for group in spawner.user.groups),
        "admin": bool(spawner.user.admin),
        "profile": {},
        "hub": {"api_url": spawner.hub.api_url, "base_url": spawner.hub.base_url},
        "labels": dict(identity.server_labels),
        "annotations": {},
        "former_pvc_name": former_pvc,
        "kubespawner": kubespawner.plain(spawner.config),
        "internal_ssl": internal_ssl,
    }
    with exceptions.failing(spawner.log, "a function in the trait `environment`"):
        env = spawner.get_env()
    extra = await _extra(spawner)
    choice = spawner.choice
    built = values.build(
        identity,
        unescaped_username=str(spawner.user.name),
        unescaped_servername=str(spawner.name),
        namespace=spawner.namespace,
        ip=spawner.ip,
        port=spawner.port,
        env=env,
        ours=ours,
        extra=extra,
    )
    if choice.selection is not None:
        built |= {name: ours[name] for name in choice.applied.traits if name in ours}
        built = merged(built, choice.applied.values) | choice.values
    return built, Redactor(built)


def configured(spawner: Any) -> dict[str, Any]:
    """The settings that users' options may change, as they are before ``apply_user_options``."""
    return {name: copy(getattr(spawner, name)) for name in _SET_BY_OPTIONS}


def tainted(spawner: Any, before: Mapping[str, Any]) -> Iterator[guard.Path]:
    """Paths of the values that users can write; ``before`` is what ``configured`` gave.

    A setting is one of them, however it was made, if it changed in a start with options; of what
    a profile set, only what the user typed.
    """
    yield from guard.TAINTED
    yield from spawner.tainted_values
    applied = spawner.choice.applied
    yield from applied.typed
    yield ("choice", "options")
    if spawner.user_options:
        before = {**before, **applied.traits}
        yield from ((name,) for name in _SET_BY_OPTIONS if getattr(spawner, name) != before[name])


async def _extra(spawner: Any) -> dict[str, Any]:
    extra = await _called(spawner) if callable(spawner.extra_vars) else spawner.extra_vars
    if extra is None:
        return {}
    if not isinstance(extra, Mapping):
        raise TemplateError(
            f"the trait `extra_vars` gave a {type(extra).__name__}, not a dictionary"
        )
    return {**extra, **{name: _bytes(name, extra[name]) for name in _SIZES if name in extra}}


async def _called(spawner: Any) -> Any:
    with exceptions.failing(spawner.log, "the function of the trait `extra_vars`"):
        extra = spawner.extra_vars(spawner)
        return await extra if inspect.isawaitable(extra) else extra


def _bytes(name: str, value: Any) -> Any:
    """A size as the spawner's own trait of that name takes it: ``256M`` is a number of bytes."""
    if not isinstance(value, str):
        return value
    try:
        return ByteSpecification().validate(None, value)
    except TraitError as error:
        raise TemplateError(f"`{name}` of the trait `extra_vars`: {error}") from None
