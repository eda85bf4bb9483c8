"""The form templates that were written for KubeSpawner, jupyterhub-fancy-profiles' among them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from lightkube_template_spawner.choices.model import Choice, Layer, Option, Profile, Unlisted
from lightkube_template_spawner.choices.select import default_profile

_TEMPLATE = "form.html"


def render(
    offered: Iterable[Profile],
    user_options: Mapping[str, Any],
    *,
    paths: Iterable[str | Path] = (),
    text: str = "",
) -> str:
    """What such a template makes of the variables that it knows; ``text`` comes before ``paths``.

    ``form.html`` is looked for in the folders ``paths``, as in
    ``additional_profile_form_template_paths``. Unlike there, everything is escaped.
    """
    folders = ChoiceLoader([FileSystemLoader(str(path)) for path in paths])
    environment = Environment(loader=folders, autoescape=True)
    # Profiles are in the administrator's order: `tojson` must not sort them.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.from_string(text) if text else environment.get_template(_TEMPLATE)
    return template.render(profile_list=profile_list(offered), user_options=dict(user_options))


def profile_list(offered: Iterable[Profile]) -> list[dict[str, Any]]:
    """The profiles that are offered, with all defaults filled in, as KubeSpawner gives templates.

    What is no JSON is left out of their overrides.
    """
    shown = [profile for profile in offered if profile.offered]
    default = default_profile(shown)
    return [_profile(profile, is_default=profile is default) for profile in shown]


def _profile(profile: Profile, *, is_default: bool) -> dict[str, Any]:
    return {
        "display_name": profile.display_name,
        "slug": profile.slug,
        "description": _sentences(profile.description, profile.deprecated),
        "default": is_default,
        "profile_options": {option.key: _option(option) for option in profile.options},
        "kubespawner_override": _overrides(profile.layer),
    }


def _option(option: Option) -> dict[str, Any]:
    default = option.default
    return {
        "display_name": option.display_name,
        "choices": {
            choice.key: _choice(choice, is_default=choice is default)
            for choice in option.choices
            if choice.offered
        },
        "unlisted_choice": _unlisted(option.unlisted) if option.unlisted else {"enabled": False},
        "dynamic_image_building": {"enabled": option.image_building},
    }


def _choice(choice: Choice, *, is_default: bool) -> dict[str, Any]:
    return {
        "display_name": choice.display_name,
        "description": _sentences(choice.description, choice.deprecated),
        "default": is_default,
        "kubespawner_override": _overrides(choice.layer),
    }


def _unlisted(unlisted: Unlisted) -> dict[str, Any]:
    return {
        "enabled": True,
        "display_name": unlisted.display_name,
        "display_name_in_choices": unlisted.display_name_in_choices,
        "description_in_choices": unlisted.description_in_choices,
        "validation_regex": unlisted.regex.pattern if unlisted.regex else "",
        "validation_message": unlisted.message,
        "kubespawner_override": _overrides(unlisted.layer),
    }


def _overrides(layer: Layer) -> dict[str, Any]:
    plain = {}
    for name, value in layer.kubespawner.items():
        try:
            plain[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return plain


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)
