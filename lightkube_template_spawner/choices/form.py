"""The page on which users choose: HTML that needs no script and nothing from the network.

Inputs are called as in KubeSpawner's form. Which profile's options are shown is a matter of CSS;
browsers that cannot do that show all of them. An input that the browser would refuse is never
hidden, because the form could not be sent and nobody would see why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader

from lightkube_template_spawner.choices.model import (
    OTHERS,
    PROFILE,
    UNLISTED,
    Choice,
    Monotonic,
    Number,
    Option,
    Profile,
    by_slug,
    field_name,
)
from lightkube_template_spawner.choices.options import (
    MAX_TYPED,
    FieldRefused,
    Pick,
    former_pick,
    settled,
)
from lightkube_template_spawner.choices.select import (
    ChoicesRefused,
    Problem,
    chosen_profile,
    nothing_open,
)

_TEMPLATE: Final = "form.html"
# What Python and browsers may read differently: then only the hub judges.
_PYTHONIC: Final = re.compile(r"\(\?|\\[^.\-/+*?()\[\]{}|^$dnt]")
_FIXED: Final = "This was set at the first start and cannot be changed."


_ENVIRONMENT: Final = Environment(
    loader=FileSystemLoader(str(Path(__file__).parent)), autoescape=True
)


def render(
    everything: Sequence[Profile],
    offered: Sequence[Profile],
    shown: Mapping[str, Any],
    fixed: Mapping[str, Any],
    problems: Sequence[Problem],
) -> str:
    """The inner part of the hub's form, with ``shown`` (options, saved or sent) filled in.

    What does not fit is shown as it is where a user typed it, and as the default elsewhere.
    """
    chosen, notices = _chosen(everything, offered, shown)
    visible = [one for one in offered if one.offered or (chosen and one.slug == chosen.slug)]
    ids = {("", ""): "lts-0"} if visible else {}
    fieldsets = []
    for n, profile in enumerate(visible):
        own = profile is chosen
        view = _Fields(
            f"lts-{n}",
            profile,
            shown=shown if own else {},
            fixed=fixed,
            problems=problems,
            notices=notices,
        )
        fieldsets.append(view.fieldset(checked=own))
        ids |= view.ids
    errors = [
        {"message": one.message, "id": ids.get((one.profile, one.option))} for one in problems
    ]
    if not visible and not errors:
        errors.append({"message": nothing_open(everything), "id": None})
    return _ENVIRONMENT.get_template(_TEMPLATE).render(
        profiles=fieldsets, errors=errors, notices=list(dict.fromkeys(notices))
    )


def _chosen(
    everything: Sequence[Profile], offered: Sequence[Profile], shown: Mapping[str, Any]
) -> tuple[Profile | None, list[str]]:
    """The profile that is marked, and what is to be told about it."""
    for slug in (shown.get(PROFILE), None):
        try:
            profile, notices, _ = chosen_profile(tuple(everything), tuple(offered), slug)
        except ChoicesRefused:
            continue
        return by_slug(offered, profile.slug), list(notices)
    return None, []


class _Fields:
    """One profile as its fieldset's template needs it; ``ids`` has where its problems lead."""

    def __init__(
        self,
        name: str,
        profile: Profile,
        *,
        shown: Mapping[str, Any],
        fixed: Mapping[str, Any],
        problems: Iterable[Problem],
        notices: list[str],
    ) -> None:
        self._id = name
        self._profile = profile
        self._shown = shown
        self._fixed = fixed
        self._errors = {one.option: one.message for one in problems if one.profile == profile.slug}
        self._notices = notices
        self.ids: dict[tuple[str, str], str] = {(profile.slug, ""): name}

    def fieldset(self, *, checked: bool) -> dict[str, Any]:
        profile = self._profile
        return {
            "id": self._id,
            "slug": profile.slug,
            "label": profile.display_name,
            "hint": _sentences(profile.description, profile.deprecated),
            "checked": checked,
            "options": [self._option(n, option) for n, option in enumerate(profile.options)],
        }

    def _option(self, n: int, option: Option) -> dict[str, Any]:
        pick = self._pick(option)
        bound = former_pick(option, self._fixed)
        view: dict[str, Any] = {
            "id": f"{self._id}-{n}",
            "name": field_name(self._profile.slug, option.key),
            "label": option.display_name,
            "error": self._errors.get(option.key, ""),
            "hint": _sentences(option.description, _FIXED if bound and not option.mutable else ""),
            "choices": [],
        }
        self.ids[(self._profile.slug, option.key)] = view["id"]
        if option.choices:
            self._list(view, option, pick, bound)
        else:
            view["other"] = self._typed(view, option, pick, bound)
        return view

    def _pick(self, option: Option) -> Pick | None:
        """What is filled in: what is shown, what the option is bound to, or the default."""
        for options in (self._shown, {}):
            try:
                pick = settled(option, options, self._fixed)
            except FieldRefused:
                continue
            if pick and options:
                self._notices += pick.notices
            return pick
        return None

    def _list(
        self, view: dict[str, Any], option: Option, pick: Pick | None, bound: Pick | None
    ) -> None:
        """A list; with ``other``, if a text may be typed instead."""
        typed = option.key + UNLISTED
        raw = self._shown.get(typed)
        is_other = bool(raw) or (pick is not None and pick.key == typed)
        if not option.choice(self._shown.get(option.key)):
            is_other = is_other or self._shown.get(option.key) in OTHERS
        entries = [
            {
                "key": choice.key,
                "label": _label(choice),
                "selected": not is_other and pick is not None and pick.value == choice.key,
            }
            for choice in _listed(option, pick, bound)
        ]
        if option.unlisted and (bound is None or option.mutable or bound.key == typed):
            label = _dashed(
                option.unlisted.display_name_in_choices, option.unlisted.description_in_choices
            )
            entries.append({"key": OTHERS[0], "label": label, "selected": is_other})
            view["other"] = self._text_of(option, view["id"] + "u", pick, bound)
        view["choices"] = entries
        view["named"] = bool(view["error"])
        if view["error"] and is_other and "other" in view:
            self.ids[(self._profile.slug, option.key)] = view["other"]["id"]
            view["other"]["error"], view["error"] = view["error"], ""

    def _typed(
        self, view: dict[str, Any], option: Option, pick: Pick | None, bound: Pick | None
    ) -> dict[str, Any]:
        """A number or text that stands by itself."""
        if option.number is None:
            field = self._text_of(option, view["id"], pick, bound)
            return field | {
                "label": option.display_name,
                "hint": _sentences(view["hint"], field["hint"]),
                "error": view["error"],
            }
        raw = self._shown.get(option.key)
        limits = _limits(option, option.number, bound)
        return view | {
            "type": "number",
            "limits": limits,
            "value": raw if isinstance(raw, str) else pick.value if pick else "",
            "readonly": bound is not None and not option.mutable,
        }

    def _text_of(
        self, option: Option, name: str, pick: Pick | None, bound: Pick | None
    ) -> dict[str, Any]:
        """The input for a text of the user's own."""
        unlisted, key = option.unlisted, option.key + UNLISTED
        raw = self._shown.get(key) or ("" if option.choices else self._shown.get(option.key))
        chosen = pick.value if pick and pick.key == key else ""
        limits: dict[str, Any] = {"maxlength": MAX_TYPED}
        if unlisted and unlisted.regex and not _PYTHONIC.search(unlisted.regex.pattern):
            limits["pattern"] = unlisted.regex.pattern
        return {
            "id": name,
            "name": field_name(self._profile.slug, key),
            "label": (unlisted.display_name if unlisted else "") or option.display_name,
            "hint": unlisted.message if unlisted else "",
            "error": "",
            "type": "text",
            "limits": limits,
            "value": raw if isinstance(raw, str) and raw else chosen,
            "readonly": bound is not None and not option.mutable,
        }


def _listed(option: Option, pick: Pick | None, bound: Pick | None) -> list[Choice]:
    """The choices that may be made now; a hidden one only by those who have it."""
    if bound and not option.mutable:
        return [choice for choice in option.choices if choice.key == bound.value]
    held = pick.value if pick else None
    choices = [one for one in option.choices if one.offered or one.key == held]
    if bound is None or not option.monotonic:
        return choices
    grows = option.monotonic is Monotonic.INCREASING
    at = int(bound.rank)
    still = option.choices[at:] if grows else option.choices[: at + 1]
    return [choice for choice in choices if choice in still]


def _limits(option: Option, number: Number, bound: Pick | None) -> dict[str, Any]:
    limits: dict[str, Any] = {"min": number.minimum, "max": number.maximum, "step": number.step}
    if bound and option.monotonic is Monotonic.INCREASING:
        limits["min"] = bound.value
    if bound and option.monotonic is Monotonic.DECREASING:
        limits["max"] = bound.value
    return {name: value for name, value in limits.items() if value is not None}


def _label(choice: Choice) -> str:
    return _dashed(choice.display_name, _sentences(choice.description, choice.deprecated))


def _dashed(name: str, more: str) -> str:
    return f"{name} – {more}" if more else name  # noqa: RUF001 - a dash, for people


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)
