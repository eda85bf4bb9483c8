"""Pods as objects of the Kubernetes client that KubeSpawner uses, to plain data and back.

The client is not imported: its objects describe themselves, and lie in the module of their class.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from lightkube_template_spawner.errors import ProfileError

_CONTAINER_TYPE = re.compile(r"(list|dict)[\[(](?:str, ?)?(.+)[\])]")


def to_plain(value: Any) -> Any:
    """A copy of a client object, or of plain data, with the API's own keys; without nulls."""
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if not _is_model(value):
        return value
    return {
        key: to_plain(getattr(value, name))
        for name, key in value.attribute_map.items()
        if getattr(value, name) is not None
    }


def update(model: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Write into ``model``, whose plain data is ``before``, what differs in ``after``.

    What does not differ stays the object that it is.

    Raises:
        ProfileError: the client has no such field, or refuses a value.
    """
    names = {key: name for name, key in model.attribute_map.items()}
    for key in before.keys() - after.keys():
        _set(model, names[key], None)
    for key, value in after.items():
        if key in before and before[key] == value:
            continue
        if key not in names:
            raise ProfileError(f"`{key}` is not a field of {type(model).__name__}: remove it")
        current = getattr(model, names[key])
        if _is_model(current) and isinstance(value, Mapping):
            update(current, before[key], value)
        elif _are_models(current) and len(current) == len(value):
            for item, old, new in zip(current, before[key], value, strict=True):
                update(item, old, new)
        else:
            _set(model, names[key], _made(value, model.openapi_types[names[key]], type(model)))


def _set(model: Any, name: str, value: Any) -> None:
    try:
        setattr(model, name, value)
    except ValueError as error:  # a field that must be there; the message names it, not a value
        raise ProfileError(f"{type(model).__name__}: {error}") from None


def _is_model(value: Any) -> bool:
    return hasattr(type(value), "openapi_types") and hasattr(type(value), "attribute_map")


def _are_models(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_model(item) for item in value)


def _made(value: Any, type_name: str, beside: type[Any]) -> Any:
    """``value`` as the client's type of that name, from the package that ``beside`` is in."""
    container = _CONTAINER_TYPE.fullmatch(type_name)
    if container and container[1] == "list" and isinstance(value, list):
        return [_made(item, container[2], beside) for item in value]
    if container and isinstance(value, Mapping):
        return {key: _made(item, container[2], beside) for key, item in value.items()}
    package = sys.modules[beside.__module__.rpartition(".")[0]]
    model = getattr(package, type_name, None)
    if model is None or not isinstance(value, Mapping):
        return value
    names = {key: name for name, key in model.attribute_map.items()}
    for key in value:
        if key not in names:
            raise ProfileError(f"`{key}` is not a field of {type_name}: remove it")
    try:
        return model(
            **{
                names[key]: _made(item, model.openapi_types[names[key]], beside)
                for key, item in value.items()
            }
        )
    except ValueError as error:  # as above
        raise ProfileError(f"{type_name}: {error}") from None
