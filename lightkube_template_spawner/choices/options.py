"""Judges what was sent for one option: a choice, a text or a number, or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from lightkube_template_spawner.choices.model import (
    OTHERS,
    UNLISTED,
    Choice,
    Layer,
    Monotonic,
    Number,
    Option,
    Profile,
    Redirect,
    Unlisted,
)
from lightkube_template_spawner.choices.section import LARGEST
from lightkube_template_spawner.choices.wording import kind, nearest, one_of
from lightkube_template_spawner.templates.plain import shown

MAX_TYPED: Final = 1_024  # characters: a regular expression may take long for longer texts
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")


class FieldRefused(Exception):
    """The sentence about one field; becomes a ``Problem``."""


@dataclass(frozen=True, slots=True)
class Pick:
    """What one option comes to: its key and value as they are stored, and what they change."""

    key: str
    value: str | int | float
    layer: Layer
    rank: float = 0.0
    notices: tuple[str, ...] = ()


def redirected(name: str, redirect: Redirect, target: Profile | Choice | None) -> str:
    """What the user reads whose choice leads elsewhere."""
    instead = f"{name} is replaced by {target.display_name if target else redirect.to}."
    return f"{instead} {redirect.message}".strip()


def settled(
    option: Option, sent: Mapping[str, Any], fixed: Mapping[str, Any], *, lenient: bool = False
) -> Pick | None:
    """What one option comes to; None where nothing is chosen and nothing must be.

    With ``lenient``, for options that were chosen in another profile, what does not fit falls back
    to the default, and the user is told.

    Raises:
        FieldRefused: what was sent does not fit.
    """
    former = former_pick(option, fixed)
    try:
        pick = picked(option, sent)
        if pick and former:
            _check_change(option, former, pick)
    except FieldRefused as refusal:
        if not lenient:
            raise
        pick = former or _default_pick(option)
        return replace(pick, notices=(f"{refusal} The default is used.",)) if pick else None
    return pick or former or _default_pick(option)


def former_pick(option: Option, fixed: Mapping[str, Any]) -> Pick | None:
    """The pick that the option is bound to; none if it is no longer there."""
    if option.mutable and not option.monotonic:
        return None
    try:
        return picked(option, fixed)
    except FieldRefused:
        return None


def _check_change(option: Option, former: Pick, pick: Pick) -> None:
    name = option.display_name
    if not option.mutable and (pick.key, pick.value) != (former.key, former.value):
        raise FieldRefused(
            f"{name} ({option.key}) was set at the first start and cannot be changed: choose "
            f"{former.value}."
        )
    if option.monotonic is Monotonic.INCREASING and pick.rank < former.rank:
        raise FieldRefused(
            f"{name} ({option.key}) can only grow: choose {shown(str(former.value))} or more."
        )
    if option.monotonic is Monotonic.DECREASING and pick.rank > former.rank:
        raise FieldRefused(
            f"{name} ({option.key}) can only shrink: choose {shown(str(former.value))} or less."
        )


def picked(option: Option, sent: Mapping[str, Any]) -> Pick | None:
    """What was sent for one option, or None if that was nothing.

    Raises:
        FieldRefused: it does not fit.
    """
    value, text = sent.get(option.key), sent.get(option.key + UNLISTED)
    if option.number:
        return _number(option, option.number, value)
    if not option.choices and text in (None, ""):
        text = value  # links and clients need not know that there is no list
    if text is not None and text != "":
        return _text(option, text)
    if value is None or value == "":
        return None
    return _choice(option, value)


def _default_pick(option: Option) -> Pick | None:
    if option.number:
        pick = _number(option, option.number, option.number.default)
        if pick:
            return pick
        raise _missing(option)
    choice = option.default
    if choice:
        return _choice(option, choice.key)
    if option.unlisted and option.unlisted.default:
        return _text(option, option.unlisted.default)
    if option.unlisted and option.unlisted.default == "":
        return None
    raise _missing(option)


def _missing(option: Option) -> FieldRefused:
    return FieldRefused(
        f"{option.display_name} ({option.key}) is needed: choose {allowed(option)}."
    )


def _number(option: Option, number: Number, value: Any) -> Pick | None:
    if value is None or value == "":
        return None
    name = f"{option.display_name} ({option.key})"
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldRefused(f"{name} is {kind(value)}: choose {number.allowed}.")
    if not (abs(value) <= LARGEST and number.allows(value)):  # NaN is in no order
        raise FieldRefused(f"{name} is {shown(_brief(value))}: choose {number.allowed}.")
    exact = int(value) if value == int(value) else value
    return Pick(option.key, exact, replace(number.layer, typed=exact), rank=float(exact))


def _brief(value: float) -> str:
    return str(value) if abs(value) <= LARGEST else "too large a number"


def _text(option: Option, text: Any) -> Pick:
    name = f"{option.display_name} ({option.key}{UNLISTED})"
    unlisted = option.unlisted
    if unlisted is None:
        raise FieldRefused(f"{name} is not open to you: choose {allowed(option)}.")
    if not isinstance(text, str):
        raise FieldRefused(f"{name} is {kind(text)}: send text.")
    if len(text) > MAX_TYPED:
        raise FieldRefused(f"{name} has {len(text)} characters: send at most {MAX_TYPED}.")
    if not text.isprintable():
        raise FieldRefused(f"{name} holds line breaks or characters that cannot be shown.")
    if unlisted.regex and not unlisted.regex.fullmatch(text):
        raise FieldRefused(f"{name} is {shown(text)!r}: {_expected(unlisted)}.")
    return Pick(option.key + UNLISTED, text, replace(unlisted.layer, typed=text))


def _expected(unlisted: Unlisted) -> str:
    if unlisted.message:
        return unlisted.message.rstrip(".")
    return f"it must match {unlisted.regex.pattern if unlisted.regex else ''}"


def _choice(option: Option, key: Any) -> Pick:
    name = f"{option.display_name} ({option.key})"
    if not isinstance(key, str):
        raise FieldRefused(f"{name} is {kind(key)}: choose {allowed(option)}.")
    choice = option.choice(key)
    notices: tuple[str, ...] = ()
    while choice and choice.redirect:
        target = option.choice(choice.redirect.to)
        notices += (redirected(choice.display_name, choice.redirect, target),)
        choice = target
    if choice is None and option.unlisted and key in OTHERS:
        raise FieldRefused(f"{name} is to be another one: choose {_typed(option)}.")
    if choice is None:
        close = nearest(key, [one.key for one in option.choices if one.offered])
        raise FieldRefused(
            f"{name} is {shown(key)!r}, which is not there for you.{close} Choose "
            f"{allowed(option)}."
        )
    if choice.deprecated:
        notices += (f"{option.display_name}, {choice.display_name}: {choice.deprecated}",)
    rank = float(option.choices.index(choice))
    return Pick(option.key, choice.key, choice.layer, rank, notices)


def allowed(option: Option) -> str:
    """What may be sent for an option, for messages."""
    if option.number:
        return option.number.allowed
    offered = [choice.key for choice in option.choices if choice.offered]
    if option.unlisted is None:
        return one_of(offered)
    return f"{one_of(offered)}, or {_typed(option)}" if offered else _typed(option)


def _typed(option: Option) -> str:
    return f"a text of your own (`{option.key}{UNLISTED}`)"
