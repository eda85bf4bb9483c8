"""Reads ``profile_list`` as KubeSpawner defines it, with our additions; refuses what it cannot use.

Whatever is wrong is told when the list is read, with the profile, the field and what is allowed,
and not when a user has chosen it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Final, TypeVar

from slugify import slugify

from lightkube_template_spawner.choices import overrides
from lightkube_template_spawner.choices.model import (
    OTHERS,
    PROFILE,
    UNLISTED,
    Audience,
    Choice,
    Layer,
    Monotonic,
    Number,
    Option,
    Profile,
    Redirect,
    Unlisted,
    field_name,
)
from lightkube_template_spawner.choices.section import Section
from lightkube_template_spawner.choices.wording import kind, nearest
from lightkube_template_spawner.errors import ConfigurationError

_AUDIENCE: Final = ("users", "groups")
_LAYER: Final = ("kubespawner_override", "values")
_LIFE: Final = ("default", "hidden", "deprecated", "redirect", *_AUDIENCE, *_LAYER)
_PROFILE: Final = ("display_name", "slug", "description", "profile_options", *_LIFE)
_CHOICE: Final = ("display_name", "description", *_LIFE)
_OPTION: Final = (
    "display_name",
    "description",
    "choices",
    "unlisted_choice",
    "number",
    "mutable",
    "ephemeral",
    "monotonic",
    *_AUDIENCE,
    "dynamic_image_building",
)
_UNLISTED: Final = (
    "enabled",
    "display_name",
    "display_name_in_choices",
    "description_in_choices",
    "validation_regex",
    "validation_message",
    "default",
    *_AUDIENCE,
    *_LAYER,
)
_NUMBER: Final = ("min", "max", "step", "default", *_LAYER)
_REDIRECT: Final = ("to", "message")
_BUILDING: Final = ("enabled",)

_Lived = TypeVar("_Lived", Profile, Choice)


def load(profile_list: Any) -> tuple[Profile, ...]:
    """The profiles of a list, or of a mapping, whose values are taken in the order of its keys.

    Raises:
        ConfigurationError: it cannot be used; names the profile, the field and what is allowed.
    """
    if isinstance(profile_list, Mapping):
        entries: Sequence[Any] = [profile_list[key] for key in sorted(profile_list, key=str)]
    elif isinstance(profile_list, list | tuple):
        entries = profile_list
    else:
        raise ConfigurationError(
            f"profile_list is {kind(profile_list)}: write a list of profiles, or a mapping of them."
        )
    profiles = tuple(_profile(entry, f"profile_list[{n}]") for n, entry in enumerate(entries))
    _check_unique(profiles)
    _check_redirects(profiles, "profile_list", "slug", (profile.slug for profile in profiles))
    return profiles


def _profile(entry: Any, place: str) -> Profile:
    slug = _slug(entry)
    section = Section(entry, f"{place} ({slug!r})" if slug else place, _PROFILE)
    if "display_name" not in section:
        raise section.wrong("display_name", "is missing: write what users read")
    name = section.text("display_name")
    if not section.text("slug", slug):
        raise section.wrong(
            "slug", f"is empty, and {name!r} has no letters to make one from: write one"
        )
    options = section.mapping("profile_options")
    place = f"{section.place}.profile_options"
    return Profile(
        slug=slug,
        display_name=name,
        options=tuple(_option(key, value, f"{place}.{key}") for key, value in options.items()),
        **_life(section),
    )


def _slug(entry: Any) -> str:
    """A profile's slug, as KubeSpawner makes it; nothing where none can be read."""
    if not isinstance(entry, Mapping):
        return ""
    slug, name = entry.get("slug"), entry.get("display_name")
    if isinstance(slug, str):
        return slug
    return slugify(name) if isinstance(name, str) else ""


def _life(section: Section) -> dict[str, Any]:
    """What profiles and choices have in common."""
    redirect = None
    if "redirect" in section:
        inner = Section(section.raw("redirect"), f"{section.place}.redirect", _REDIRECT)
        if "to" not in inner:
            raise inner.wrong("to", "is missing: write where to")
        redirect = Redirect(inner.text("to"), inner.text("message"))
    life = {
        "description": section.text("description"),
        "default": section.flag("default"),
        "hidden": section.flag("hidden"),
        "deprecated": section.text("deprecated"),
        "redirect": redirect,
        "audience": _audience(section),
        "layer": _layer(section),
    }
    if life["default"] and (life["hidden"] or redirect):
        raise section.wrong("default", "is true for what is not offered: mark another one")
    return life


def _audience(section: Section) -> Audience:
    users, groups = section.names("users"), section.names("groups")
    given = [key for key in _AUDIENCE if key in section]
    if given and not users | groups:
        # Everyone, or nobody: a list that code left empty must not open what it was to close.
        raise section.wrong(
            given[0], 'names nobody: leave it out, or write ["*"], where it is for everyone'
        )
    return Audience(users, groups)


def _layer(section: Section, *, typed: bool = False) -> Layer:
    theirs, ours = (section.mapping(key) for key in _LAYER)
    return overrides.layer(section.place, theirs, ours, typed=typed)


def _option(key: str, value: Any, place: str) -> Option:
    if key == PROFILE or key.endswith(UNLISTED):
        raise ConfigurationError(f"{place}: the key {key!r} has a meaning of its own: use another.")
    section = Section(value, place, _OPTION)
    option = Option(
        key=key,
        display_name=section.text("display_name", key),
        description=section.text("description"),
        choices=_choices(section),
        unlisted=_unlisted(section),
        number=_number(section),
        audience=_audience(section),
        mutable=section.flag("mutable", default=True),
        ephemeral=section.flag("ephemeral"),
        monotonic=_monotonic(section),
        image_building=_builds_images(section),
    )
    _check_option(option, section)
    return option


def _check_option(option: Option, section: Section) -> None:
    if not option.usable:
        raise section.wrong(
            "choices", "offers nothing: write choices, an enabled unlisted_choice, or a number"
        )
    if option.number and (option.choices or option.unlisted):
        raise section.wrong("number", "stands beside choices: make it an option of its own")
    if option.unlisted and option.choice(OTHERS[0]):
        raise section.wrong("choices", f"has the key {OTHERS[0]!r}, which forms use: use another")
    if option.unlisted and option.choices and option.unlisted.default is not None:
        raise section.wrong("unlisted_choice", "has a default: mark one of the choices instead")
    if option.monotonic and option.unlisted:
        raise section.wrong(
            "monotonic", "needs an order, which texts have not: use a number, or choices only"
        )
    if option.ephemeral and (option.monotonic or not option.mutable):
        raise section.wrong(
            "ephemeral", "is for one start only: it goes with neither monotonic nor mutable: false"
        )
    place = f"{section.place}.choices"
    _check_redirects(option.choices, place, "key", (choice.key for choice in option.choices))


def _choices(section: Section) -> tuple[Choice, ...]:
    choices = []
    for key, value in section.mapping("choices").items():
        inner = Section(value, f"{section.place}.choices.{key}", _CHOICE)
        name = inner.text("display_name", key)
        choices.append(Choice(key=key, display_name=name, **_life(inner)))
    return tuple(choices)


def _unlisted(section: Section) -> Unlisted | None:
    if "unlisted_choice" not in section:
        return None
    place = f"{section.place}.unlisted_choice"
    inner = Section(section.raw("unlisted_choice"), place, _UNLISTED)
    name = section.text("display_name")
    unlisted = Unlisted(
        layer=_layer(inner, typed=True),
        display_name=inner.text("display_name", "Another one" if "choices" in section else name),
        display_name_in_choices=inner.text("display_name_in_choices", "Other..."),
        description_in_choices=inner.text("description_in_choices"),
        regex=_regex(inner),
        message=inner.text("validation_message"),
        default=inner.text("default") if "default" in inner else None,
        audience=_audience(inner),
    )
    if unlisted.default and unlisted.regex and not unlisted.regex.fullmatch(unlisted.default):
        raise inner.wrong("default", "does not match validation_regex: write one that does")
    return unlisted if inner.flag("enabled") else None


def _regex(section: Section) -> re.Pattern[str] | None:
    try:
        text = section.text("validation_regex")
        return re.compile(text) if text else None
    except re.error as error:
        raise section.wrong("validation_regex", f"is no regular expression: {error}") from None


def _number(section: Section) -> Number | None:
    if "number" not in section:
        return None
    inner = Section(section.raw("number"), f"{section.place}.number", _NUMBER)
    minimum, maximum, step = inner.number("min"), inner.number("max"), inner.number("step")
    if step is not None and step <= 0:
        raise inner.wrong("step", f"is {step}: write a number above 0")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise inner.wrong("min", f"is {minimum}, above max ({maximum}): write a smaller one")
    default = inner.number("default")
    number = Number(
        layer=_layer(inner, typed=True),
        minimum=minimum,
        maximum=maximum,
        step=1 if step is None else step,
        default=minimum if default is None else default,
    )
    if default is not None and not number.allows(default):
        raise inner.wrong("default", f"is {default}, which is not allowed: {number.allowed}")
    return number


def _monotonic(section: Section) -> Monotonic:
    value = section.raw("monotonic")
    if isinstance(value, bool) or value is None:
        return Monotonic.INCREASING if value else Monotonic.NO
    try:
        return Monotonic(value)
    except ValueError:
        raise section.wrong("monotonic", "is neither increasing nor decreasing") from None


def _builds_images(section: Section) -> bool:
    if "dynamic_image_building" not in section:
        return False
    place = f"{section.place}.dynamic_image_building"
    return Section(section.raw("dynamic_image_building"), place, _BUILDING).flag("enabled")


def _check_unique(profiles: Sequence[Profile]) -> None:
    """No two profiles have one slug, and no two inputs of the form have one name."""
    slugs: dict[str, int] = {}
    inputs: dict[str, str] = {}
    for n, profile in enumerate(profiles):
        if profile.slug in slugs:
            raise ConfigurationError(
                f"profile_list[{n}].slug is {profile.slug!r}, as that of profile_list"
                f"[{slugs[profile.slug]}]: nobody could choose the second one. Give it another."
            )
        slugs[profile.slug] = n
        for option in profile.options:
            name = field_name(profile.slug, option.key)
            if name in inputs:
                raise ConfigurationError(
                    f"profile_list[{n}] ({profile.slug!r}).profile_options.{option.key} would have "
                    f"the same input as an option of {inputs[name]!r}: change one of the keys."
                )
            inputs[name] = profile.slug


def _check_redirects(entries: Sequence[_Lived], place: str, what: str, keys: Iterable[str]) -> None:
    """Each redirect leads, in the end, to something that is there."""
    targets = dict(zip(keys, entries, strict=True))
    for name, entry in targets.items():
        current = entry
        for hops in count():
            if current.redirect is None:
                break
            to = current.redirect.to
            if to not in targets:
                raise ConfigurationError(
                    f"{place}: the redirect of {name!r} leads to {to!r}, which is no {what} here."
                    f"{nearest(to, targets)} Allowed are {', '.join(targets)}."
                )
            if hops > len(targets):
                raise ConfigurationError(
                    f"{place}: the redirect of {name!r} leads in a circle: let one of its entries "
                    "stay."
                )
            current = targets[to]
