"""What may be chosen, as frozen values: profiles, their options, and who may choose them; pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final

UNLISTED: Final = "--unlisted-choice"  # after an option's key: the key of a text of the user's own
#: Entries by which forms say that a text is meant: KubeSpawner's and ours, and fancy-profiles'.
OTHERS: Final = (UNLISTED.removeprefix("--"), "unlisted_choice")
PROFILE: Final = "profile"
EVERYONE: Final = "*"


@dataclass(frozen=True, slots=True)
class Audience:
    """For whom something is: named users and groups, or everyone."""

    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    @property
    def everyone(self) -> bool:
        """Whether nobody is left out."""
        return EVERYONE in self.users or not (self.users or self.groups)

    def admits(self, user: str, groups: Collection[str]) -> bool:
        """Whether it is for this user."""
        return self.everyone or user in self.users or not self.groups.isdisjoint(groups)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one profile, choice or input changes of a start.

    ``kubespawner`` has values, or functions of the spawner, by KubeSpawner's trait names;
    ``values`` goes to the template as it is. ``typed`` is what the user typed, for ``{value}``.
    """

    place: str
    kubespawner: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    typed: str | int | float | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a choice that is no longer offered leads, and what its users read about it."""

    to: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of an option's list."""

    key: str
    display_name: str
    layer: Layer
    description: str = ""
    default: bool = False
    audience: Audience = Audience()
    hidden: bool = False
    deprecated: str = ""
    redirect: Redirect | None = None

    @property
    def offered(self) -> bool:
        """Whether new users see it."""
        return not self.hidden and self.redirect is None


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A text that the user types, instead of an entry of the list or without any list."""

    layer: Layer
    display_name: str
    display_name_in_choices: str = "Other..."
    description_in_choices: str = ""
    regex: re.Pattern[str] | None = None
    message: str = ""
    default: str | None = None
    audience: Audience = Audience()


@dataclass(frozen=True, slots=True)
class Number:
    """A number that the user types."""

    layer: Layer
    minimum: int | float | None = None
    maximum: int | float | None = None
    step: int | float = 1
    default: int | float | None = None

    @property
    def allowed(self) -> str:
        """Which numbers may be typed, for messages."""
        if self.minimum is not None and self.maximum is not None:
            bounds = f"from {self.minimum} to {self.maximum}"
        elif self.minimum is not None:
            bounds = f"from {self.minimum} on"
        elif self.maximum is not None:
            bounds = f"up to {self.maximum}"
        else:
            bounds = ""
        steps = "" if self.step == 1 and _whole(self.minimum) else f"in steps of {self.step}"
        kind = "a whole number" if _whole(self.step) and _whole(self.minimum) else "a number"
        return " ".join(part for part in (kind, bounds, steps) if part)

    def allows(self, value: float) -> bool:
        """Whether it lies within the bounds and on a step, counted from the minimum."""
        if self.minimum is not None and value < self.minimum:
            return False
        if self.maximum is not None and value > self.maximum:
            return False
        return (_exact(value) - _exact(self.minimum or 0)) % _exact(self.step) == 0


class Monotonic(StrEnum):
    """In which direction an option may change from one start to the next."""

    NO = ""
    INCREASING = "increasing"
    DECREASING = "decreasing"


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that users of a profile choose: from a list, by typing, or a number."""

    key: str
    display_name: str
    description: str = ""
    choices: tuple[Choice, ...] = ()
    unlisted: Unlisted | None = None
    number: Number | None = None
    audience: Audience = Audience()
    mutable: bool = True
    ephemeral: bool = False
    monotonic: Monotonic = Monotonic.NO
    image_building: bool = False  # jupyterhub-fancy-profiles offers to build an image

    @property
    def usable(self) -> bool:
        """Whether there is anything to choose."""
        offered = any(choice.offered for choice in self.choices)
        return offered or self.unlisted is not None or self.number is not None

    @property
    def default(self) -> Choice | None:
        """The choice of those who choose nothing: the one marked, else the first offered."""
        offered = [choice for choice in self.choices if choice.offered]
        marked = (choice for choice in offered if choice.default)
        return next(marked, offered[0] if offered else None)

    def choice(self, key: object) -> Choice | None:
        """The entry of this key."""
        return next((choice for choice in self.choices if choice.key == key), None)


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of server that users may start."""

    slug: str
    display_name: str
    layer: Layer
    description: str = ""
    default: bool = False
    options: tuple[Option, ...] = ()
    audience: Audience = Audience()
    hidden: bool = False
    deprecated: str = ""
    redirect: Redirect | None = None

    @property
    def offered(self) -> bool:
        """Whether new users see it."""
        return not self.hidden and self.redirect is None


def _whole(value: float | None) -> bool:
    return value is None or value == int(value)


def _exact(value: float) -> Fraction:
    return Fraction(str(value))  # 0.1 is a tenth, as whoever wrote it meant


def by_slug(profiles: Iterable[Profile], slug: str) -> Profile | None:
    """The profile of this slug."""
    return next((profile for profile in profiles if profile.slug == slug), None)


def field_name(slug: str, key: str) -> str:
    """What a form calls the input of an option, as KubeSpawner's does."""
    return f"profile-option-{slug}--{key}"
