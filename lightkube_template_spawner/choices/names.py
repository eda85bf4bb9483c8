"""What forms and links send, as the mapping that the REST API takes.

Every input is called as in KubeSpawner's form, so that what was written for that goes on working.
Only names that the list declares are read, and nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from lightkube_template_spawner.choices.model import (
    PROFILE,
    UNLISTED,
    Option,
    Profile,
    by_slug,
    field_name,
)

_LINK: Final = "opt-"  # JupyterHub's prefix for options in the query of a link
_HUBS: Final = ("next", "display_name", "_xsrf")  # what it means itself by names without it


def from_form(profiles: Iterable[Profile], formdata: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a submitted form means.

    Forms without script send the inputs of all profiles, and a text beside a list whether it is
    meant or not: only the chosen profile's inputs count, and the text only if the list says so.
    """
    slug = _first(formdata, PROFILE)
    if not slug:
        return {}
    sent = {PROFILE: slug}
    profile = by_slug(profiles, slug)
    for option in profile.options if profile else ():
        name = field_name(slug, option.key)
        sent |= _meant(option, _first(formdata, name), _first(formdata, name + UNLISTED).strip())
    return sent


def from_query(profiles: Iterable[Profile], query: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a link means: ``?profile=gpu&opt-image=x``, or with a form's long names."""
    plain = {name: value for name, value in query.items() if name not in _HUBS}
    plain |= {
        name.removeprefix(_LINK): value for name, value in query.items() if name.startswith(_LINK)
    }
    slug = _first(plain, PROFILE)
    keys = {option.key for profile in profiles for option in profile.options}
    sent = from_form(profiles, plain)
    for key in keys:
        for name in (key, key + UNLISTED):
            text = _first(plain, name)
            if text:
                sent[name] = text
    return {PROFILE: slug, **sent} if slug else sent


def _meant(option: Option, listed: str, text: str) -> dict[str, str]:
    if option.number:
        return {option.key: listed} if listed else {}
    if option.choice(listed):
        return {option.key: listed}
    if text:  # of the words by which forms say "another one", only ours is known
        return {option.key + UNLISTED: text}
    return {option.key: listed} if listed else {}


def _first(data: Mapping[str, Any], name: str) -> str:
    """The first text of this name, as the hub gives them: in a list."""
    values = data.get(name)
    if isinstance(values, str):
        return values
    first = values[0] if isinstance(values, list | tuple) and values else ""
    return first if isinstance(first, str) else ""
