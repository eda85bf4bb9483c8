"""Judges what a user sent against what is open to them, before anything exists for the start.

Whatever was not declared is left out of the result; whatever was declared and does not fit is
refused, all of it in one answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightkube_template_spawner.choices.model import (
    PROFILE,
    UNLISTED,
    Audience,
    Profile,
    by_slug,
)
from lightkube_template_spawner.choices.options import FieldRefused, Pick, redirected, settled
from lightkube_template_spawner.choices.overrides import Overrides
from lightkube_template_spawner.choices.wording import kind, nearest, one_of
from lightkube_template_spawner.errors import OptionsRefused
from lightkube_template_spawner.templates.plain import shown


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is refused: of which profile and option, and the sentence about it."""

    profile: str
    option: str
    message: str


class ChoicesRefused(OptionsRefused):
    """What a user chose cannot be started; ``problems`` has each reason with its field."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(" ".join(problem.message for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Selection:
    """One start's choice.

    ``options`` has the profile and every option with defaults filled in, ``stored`` those that the
    next start takes over (without `ephemeral` ones), ``fixed`` those that later starts may not
    change, or not back (`mutable: false`, `monotonic`): keep it and pass it to the next selection.
    ``notices`` are sentences for the user, ``ignored`` names of what was sent and is not declared.
    """

    profile: str
    display_name: str
    options: Mapping[str, Any]
    stored: Mapping[str, Any]
    fixed: Mapping[str, Any]
    overrides: Overrides
    notices: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def open_to(profiles: Iterable[Profile], user: str, groups: Collection[str]) -> tuple[Profile, ...]:
    """The profiles for this user, each with the options and choices for this user only.

    A profile with an option of which nothing is left is not for this user.
    """
    admitted = (profile for profile in profiles if profile.audience.admits(user, groups))
    narrowed = (_narrowed(profile, user, groups) for profile in admitted)
    return tuple(
        profile
        for profile in narrowed
        if profile.redirect or all(option.usable for option in profile.options)
    )


def _narrowed(profile: Profile, user: str, groups: Collection[str]) -> Profile:
    def admits(audience: Audience) -> bool:
        return audience.admits(user, groups)

    if not profile.options:
        return profile
    options = (
        replace(
            option,
            choices=tuple(
                choice for choice in option.choices if choice.redirect or admits(choice.audience)
            ),
            unlisted=option.unlisted
            if option.unlisted and admits(option.unlisted.audience)
            else None,
        )
        for option in profile.options
        if admits(option.audience)
    )
    return replace(profile, options=tuple(options))


def select(
    everything: Iterable[Profile],
    offered: Iterable[Profile],
    sent: Any,
    fixed: Mapping[str, Any] | None = None,
) -> Selection:
    """What the options that were sent, or saved, come to; ``offered`` is what ``open_to`` gave.

    Raises:
        ChoicesRefused: some of it is not allowed; names each field and what is allowed.
    """
    if sent is not None and not isinstance(sent, Mapping):
        raise ChoicesRefused([_problem(f"The options are {kind(sent)}: send a JSON object.")])
    sent, fixed = sent or {}, fixed or {}
    profile, notices, moved = chosen_profile(tuple(everything), tuple(offered), sent.get(PROFILE))
    picks: dict[str, Pick] = {}
    problems = []
    for option in profile.options:
        try:
            pick = settled(option, sent, fixed, lenient=moved)
        except FieldRefused as refusal:
            problems.append(Problem(profile.slug, option.key, str(refusal)))
            continue
        if pick:
            picks[option.key] = pick
            notices += pick.notices
    if problems:
        raise ChoicesRefused(problems)
    return _selection(profile, picks, sent, fixed, notices)


def _selection(
    profile: Profile,
    picks: Mapping[str, Pick],
    sent: Mapping[str, Any],
    fixed: Mapping[str, Any],
    notices: tuple[str, ...],
) -> Selection:
    def kept(keys: Iterable[str]) -> dict[str, Any]:
        return {picks[key].key: picks[key].value for key in keys if key in picks}

    lasting = [option for option in profile.options if not option.ephemeral]
    bound = [option.key for option in lasting if option.monotonic or not option.mutable]
    former = {key: value for key, value in fixed.items() if key.removesuffix(UNLISTED) not in bound}
    known = {option.key + suffix for option in profile.options for suffix in ("", UNLISTED)}
    return Selection(
        profile=profile.slug,
        display_name=profile.display_name,
        options={PROFILE: profile.slug, **kept(picks)},
        stored={PROFILE: profile.slug, **kept(option.key for option in lasting)},
        fixed=former | kept(bound),
        overrides=Overrides((profile.layer, *(pick.layer for pick in picks.values()))),
        notices=notices,
        ignored=tuple(shown(key) for key in sent if key != PROFILE and key not in known),
    )


def chosen_profile(
    everything: tuple[Profile, ...], offered: tuple[Profile, ...], slug: Any
) -> tuple[Profile, tuple[str, ...], bool]:
    """The profile, what its user is told, and whether it is another one than was asked for.

    Raises:
        ChoicesRefused: there is no such profile, or not for this user.
    """
    if slug is None or slug == "":
        return _default(everything, offered), (), False
    allowed = one_of(profile.slug for profile in offered if profile.offered)
    if not isinstance(slug, str):
        raise ChoicesRefused([_problem(f"`profile` is {kind(slug)}: choose {allowed}.")])
    asked = profile = by_slug(everything, slug)
    notices: tuple[str, ...] = ()
    while profile and profile.redirect:
        target = by_slug(everything, profile.redirect.to)
        notices += (redirected(profile.display_name, profile.redirect, target),)
        profile = target
    if profile is None or asked is None:
        close = nearest(slug, [one.slug for one in offered if one.offered])
        raise ChoicesRefused(
            [_problem(f"There is no profile {shown(slug)!r}.{close} Choose {allowed}.")]
        )
    mine = by_slug(offered, profile.slug)
    if mine is None:
        raise ChoicesRefused(
            [_problem(f"The profile {profile.slug!r} is not for you{_whose(profile)}: {allowed}.")]
        )
    if mine.deprecated:
        notices += (f"{mine.display_name}: {mine.deprecated}",)
    return mine, notices, mine.slug != asked.slug


def default_profile(offered: Iterable[Profile]) -> Profile | None:
    """The profile of those who choose none: the one marked, else the first offered."""
    shown_ones = [profile for profile in offered if profile.offered]
    marked = (profile for profile in shown_ones if profile.default)
    return next(marked, shown_ones[0] if shown_ones else None)


def _default(everything: tuple[Profile, ...], offered: tuple[Profile, ...]) -> Profile:
    profile = default_profile(offered)
    if profile is None:
        raise ChoicesRefused([_problem(nothing_open(everything))])
    return profile


def nothing_open(everything: Iterable[Profile]) -> str:
    """What a user reads to whom no profile is open."""
    groups = {group for profile in everything for group in _groups(profile)}
    if not groups:
        return "No profile is open to you: ask the administrator of this hub for one."
    return f"No profile is open to you. Members of {one_of(groups)} have some: ask to become one."


def _whose(profile: Profile) -> str:
    groups = _groups(profile)
    return f" (members of {one_of(groups)} have it)" if groups else ""


def _groups(profile: Profile) -> set[str]:
    """Those that open the profile, or choices without which it cannot be started."""
    audiences = [profile.audience]
    audiences += (choice.audience for option in profile.options for choice in option.choices)
    return {group for audience in audiences for group in audience.groups}


def _problem(message: str) -> Problem:
    return Problem("", "", message)
