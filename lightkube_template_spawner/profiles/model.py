"""A profile as a value: whom it is for, and what it sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from lightkube_template_spawner.profiles import checks
from lightkube_template_spawner.profiles.checks import Place
from lightkube_template_spawner.profiles.fields import FIELDS, check_fields

OWN_NAME: Final = "@singleuser@"

_FOR_WHOM: Final = ("images", "users", "groups")
_PROFILE_KEYS: Final = ("name", *_FOR_WHOM, "merge", *FIELDS)
_SIZE_KEYS: Final = ("name", "merge", *FIELDS)
_REMEMBERED: Final = ("gpu", "last_selected_image", "last_selected_size")
_OWN_KEYS: Final = ("name", "env", *_REMEMBERED)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is set for certain images, users and groups; empty ``images`` or ``users``: for all.

    ``fields`` has what it sets, by name and checked. Those of ``replaced`` drop what earlier
    profiles said of them. ``owner`` is the user whose own profile this is, ``repeated`` says that
    the singleuser-profiles library would read it a second time from the same place.
    """

    name: str = ""
    images: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    replaced: frozenset[str] = frozenset()
    owner: str | None = None
    repeated: bool = False


def read_profile(data: Any, place: Place) -> Profile:
    """One profile of a list.

    Raises:
        ProfileError: an unknown key, or a value that its field does not take.
    """
    return _read(data, _PROFILE_KEYS, place)


def read_size(data: Any, place: Place) -> Profile:
    """A size: a named profile for whoever chooses it.

    Where it has only one of requests and limits, that is both, as singleuser-profiles has it.
    """
    size = _read(data, _SIZE_KEYS, place)
    if not size.name:
        place.key("name").refuse("a size needs one: it is what users choose")
    resources = _on_both_sides(size.fields.get("resources", {}))
    fields = {**size.fields, "resources": resources} if resources else size.fields
    return Profile(size.name, fields=MappingProxyType(fields), replaced=size.replaced)


def read_own(data: Any, place: Place, user: str) -> Profile:
    """The profile that ``user`` may write: environment variables, and choices that it remembers.

    Whoever writes it must not reach the cluster's Secrets, volumes or nodes through it.
    """
    own = _read(data, _OWN_KEYS, place)
    for n, variable in enumerate(own.fields.get("env", ())):
        if "valueFrom" in variable:
            place.key("env").item(n).refuse(
                "a user's own profile takes text, not `valueFrom`, which can name any Secret"
            )
    return Profile(own.name or OWN_NAME, fields=own.fields, owner=user)


def _read(data: Any, allowed: tuple[str, ...], place: Place) -> Profile:
    if not isinstance(data, dict):
        place.refuse(f"must be a mapping, not {checks.kind(data)}")
    name = data.get("name")
    if not isinstance(name, str | None):
        place.key("name").refuse(f"must be text, not {checks.kind(name)}: put it in quotes")
    place = place.named(name or "")
    checks.known(data, allowed, place)
    images, users, groups = (checks.names(data.get(key), place.key(key)) for key in _FOR_WHOM)
    return Profile(
        name or "",
        images,
        users,
        groups,
        MappingProxyType(check_fields(data, place)),
        _replaced(data.get("merge"), place.key("merge")),
    )


def _on_both_sides(resources: Mapping[str, Any]) -> dict[str, Any]:
    """``mem_limit`` and ``cpu_limit``, or else requests without limits, or these without those."""
    limits = {"memory": resources.get("mem_limit"), "cpu": resources.get("cpu_limit")}
    if any(limits.values()):
        amounts = {name: amount for name, amount in limits.items() if amount is not None}
        return {"requests": amounts, "limits": amounts}
    given = [resources[side] for side in ("requests", "limits") if side in resources]
    return {**resources, "requests": given[0], "limits": given[-1]} if given else dict(resources)


def _replaced(value: Any, place: Place) -> frozenset[str]:
    """The fields to replace: of ``replace`` all, of a mapping those that it says it of."""
    if value is None or value == "merge":
        return frozenset()
    if value == "replace":
        return frozenset(FIELDS)
    if not isinstance(value, dict):
        place.refuse("must be `merge`, `replace`, or a mapping of fields to one of them")
    checks.known(value, tuple(FIELDS), place)
    for name, strategy in value.items():
        checks.one_of(strategy, ("merge", "replace"), place.key(name))
    return frozenset(name for name, strategy in value.items() if strategy == "replace")
