"""What users choose of ``profile_list``: JupyterHub's side of ``choices``.

The hub asks for a form, hands over what the form, a link or the REST API sent, and has it applied
before a start. All of these meet here; what is allowed, and what it changes, ``choices`` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

from jupyterhub.handlers.pages import SpawnHandler
from sqlalchemy.orm import object_session
from traitlets import Bool, Callable, Dict, List, TraitError, Union, default
from traitlets.config import Configurable

from lightkube_template_spawner.choices import (
    Applied,
    Choices,
    ChoicesRefused,
    Offer,
    Problem,
    Selection,
)
from lightkube_template_spawner.errors import ConfigurationError, OptionsRefused
from lightkube_template_spawner.hub import database, exceptions
from lightkube_template_spawner.objects.identity import PROFILE, is_label_value
from lightkube_template_spawner.templates import limits

#: Where the hub's database has, of each server, the choice that it runs with.
STATE: Final = "lightkube_choice"
_HUBS: Final = frozenset(("next", "display_name"))  # parameters of a link that are the hub's own
#: The list that was read last, and what it came to: the same for all users of a hub.
_last: list[tuple[Any, Choices]] = []


@dataclass
class Choice:
    """One server's choice: what it was given, what came of it, and what later starts keep."""

    saved: dict[str, Any] = field(default_factory=dict)  # what a start without options uses
    fixed: dict[str, Any] = field(default_factory=dict)  # what later starts may not change
    recorded: dict[str, Any] = field(default_factory=dict)  # of the server that runs
    selection: Selection | None = None
    applied: Applied = field(default_factory=Applied)
    own: dict[str, Any] = field(default_factory=dict)  # traits as they are without it
    posted: bool = False  # whether the options come from the form
    refused: tuple[dict[str, Any], tuple[Problem, ...]] | None = None  # of the form, to show again
    link: dict[str, list[str]] = field(default_factory=dict)

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences for the user: what was redirected, or will go."""
        return self.selection.notices if self.selection is not None else ()

    @property
    def labels(self) -> dict[str, str]:
        """What the server's objects are labelled with."""
        profile = self.selection.profile if self.selection is not None else ""
        return {PROFILE: profile} if is_label_value(profile) else {}

    @property
    def values(self) -> dict[str, Any]:
        """What templates are told of it, beside its overrides."""
        if self.selection is None:
            return {}
        names = {"profile": self.selection.profile, "display_name": self.selection.display_name}
        return {"choice": {**names, "options": dict(self.selection.options)}}

    @property
    def state(self) -> dict[str, Any]:
        """What the hub's database keeps; nothing if there is none."""
        return {**self.recorded, **({"fixed": self.fixed} if self.fixed else {})}


class Choosing(Configurable):
    """The part of the hub's contract that is about options; stands before the hub's ``Spawner``."""

    user: Any
    handler: Any
    log: Any
    orm_spawner: Any
    options_form: Any
    apply_user_options: Any
    _explaining: Any

    profile_list = Union(
        [List(Dict()), Dict(), Callable()],
        config=True,
        help="""
        What users may choose from before their server starts, as KubeSpawner 7 defines it: a list
        of profiles with `display_name`, `slug`, `description`, `default`, `profile_options` (each
        with `choices` and `unlisted_choice`) and `kubespawner_override`; or a dictionary of them;
        or a function of the spawner that returns one and may be async. Empty: no form. That of
        `c.KubeSpawner` is used where this one is not set::

            c.LightkubeTemplateSpawner.profile_list = [
                {
                    "display_name": "Small",
                    "default": True,
                    "kubespawner_override": {"image": "quay.io/jupyter/base-notebook"},
                },
                {
                    "display_name": "With a GPU",
                    "slug": "gpu",
                    "groups": ["research"],
                    "kubespawner_override": {"mem_limit": "16G"},
                    "values": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
                },
            ]

        `kubespawner_override` sets traits of this spawner and values of the template, for one start
        only; a key without a counterpart is refused. `values` are merged over the template's
        values. Profiles, options, choices and `unlisted_choice` may be limited to `users` and
        `groups`. What is sent is checked before anything is created, whether by the form or by the
        REST API: what was not declared is dropped, what does not fit is refused with 400.
        """,
    )

    link_autostart = Bool(
        False,
        config=True,
        help="""
        Start a server at once when somebody opens a link with options, such as
        `/hub/spawn?profile=gpu`. Off, the link fills in the form and its user decides: links come
        from anybody. Only with `profile_list`.
        """,
    )

    def __init__(self, **kwargs: Any) -> None:
        self.choice = Choice()
        super().__init__(**kwargs)
        self.user_options: dict[str, Any]
        self.choice.saved = dict(self.user_options)

    @default("options_form")
    def _default_options_form(self) -> Any:
        return _form if self.profile_list else ""

    @default("options_from_form")
    def _default_options_from_form(self) -> Any:
        hub: Any = super()
        return _from_form if self.profile_list else hub._options_from_form()

    async def choices(self) -> Choices:
        """The list as it is now.

        Raises:
            ConfigurationError: it cannot be used; names the profile, the field, what is allowed.
            TemplateError: its function failed.
        """
        profiles = self.profile_list
        if callable(profiles):
            with exceptions.failing(self.log, "the function of the trait `profile_list`"):
                profiles = profiles(self)
                profiles = await profiles if inspect.isawaitable(profiles) else profiles
        if not _last or _last[0][0] != profiles:
            read = Choices.load(profiles)
            _last[:] = [(deepcopy(profiles), read)]  # its function may change it in place
        return _last[0][1]

    async def offer(self) -> Offer:
        """What is open to this user."""
        groups = [group.name for group in self.user.groups]
        return (await self.choices()).for_user(self.user.name, groups)

    async def options_from_query(self, query_data: Mapping[str, Any]) -> Any:
        """What a link asks for, where it may start a server."""
        hub: Any = super()
        if not self.profile_list:
            return hub.options_from_query(query_data)
        with self._explaining():
            return (await self.choices()).from_query(query_data)

    async def run_auth_state_hook(self, auth_state: Any) -> None:
        """Also the moment before the hub looks whether a link brings options, and starts by it."""
        hub: Any = super()
        await hub.run_auth_state_hook(auth_state)
        handler = self.handler
        if self.link_autostart or self.options_form is not _form:
            return
        if isinstance(handler, SpawnHandler) and handler.request.method == "GET":
            query = handler.request.query_arguments
            self.choice.link = {
                name: [text.decode(errors="replace") for text in query.pop(name)]
                for name in query.keys() - _HUBS
            }

    async def _run_apply_user_options(self, user_options: Any) -> None:
        """Refuse with 400 what no start could use, before hooks see it; the hub calls this."""
        with self._explaining():
            try:
                limits.check_options(user_options)
                chosen = await self._choose(user_options)
            except OptionsRefused:
                self._save_options(self.choice.saved)  # not what was refused
                raise
        if self.apply_user_options or not chosen:
            hub: Any = super()
            await hub._run_apply_user_options(self.user_options)

    async def _choose(self, user_options: Any) -> bool:
        """Whether there is something to choose; then the choice is made, and its traits are set."""
        choice = self.choice
        posted, choice.posted = choice.posted, False
        offer = await self.offer() if self.profile_list else None
        if offer is None or not offer.everything:
            choice.saved = dict(user_options)
            return False
        try:
            selection = offer.select(user_options, choice.fixed)
        except ChoicesRefused as refusal:
            if posted:  # of a named server too, the hub renders the default server's form
                choice.refused = self.user.spawner.choice.refused = user_options, refusal.problems
            raise
        with exceptions.failing(self.log, f"a function of the profile {selection.profile!r}"):
            choice.applied = await selection.overrides.applied(self)
        choice.selection = selection
        choice.recorded = {"profile": selection.profile, "options": dict(selection.stored)}
        choice.fixed = dict(selection.fixed)
        choice.saved = dict(selection.stored)
        self.user_options = dict(selection.options)
        self._save_options(choice.saved)
        self._override(choice.applied.traits, selection.profile)
        return True

    def _override(self, traits: Mapping[str, Any], profile: str) -> None:
        for name, value in traits.items():
            self.choice.own.setdefault(name, getattr(self, name))
            try:
                setattr(self, name, value)
            except TraitError as error:
                raise ConfigurationError(
                    f"profile_list, {profile}: `{name}` cannot be set: {error}"
                ) from None

    def _save_options(self, options: dict[str, Any]) -> None:
        """Keep them for a start without options, in place of what was sent, whatever it was."""
        self.orm_spawner.user_options = options
        session = object_session(self.orm_spawner)
        if session is not None:
            database.commit(session)

    def get_state(self) -> dict[str, Any]:
        """With the choice that the server runs with."""
        hub: Any = super()
        state: dict[str, Any] = dict(hub.get_state())
        if self.choice.state:
            state[STATE] = self.choice.state
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` gave: what may not be changed stays so after a restart."""
        hub: Any = super()
        hub.load_state(state)
        former = state.get(STATE)
        recorded = dict(former) if isinstance(former, Mapping) else {}
        fixed = recorded.pop("fixed", None)
        self.choice.recorded = recorded
        self.choice.fixed = dict(fixed) if isinstance(fixed, Mapping) else {}

    def clear_state(self) -> None:
        """Take back what a choice set: the next start begins with the settings."""
        hub: Any = super()
        hub.clear_state()
        for name, value in self.choice.own.items():
            setattr(self, name, value)
        self.choice.own, self.choice.recorded = {}, {}
        self.choice.selection, self.choice.applied = None, Applied()


def problems(settings: Any) -> list[str]:
    """A line if the list cannot be used; what its function gives, only a start tells."""
    try:
        if not callable(settings.profile_list):
            Choices.load(settings.profile_list)
    except ConfigurationError as error:
        return [f"c.{type(settings).__name__}.profile_list: {error}"]
    return []


async def _form(spawner: Choosing) -> str:
    """The page's form: with what was refused, a link's options, or the last choice filled in."""
    choice = spawner.choice
    (sent, problems), choice.refused = choice.refused or ({}, ()), None
    link, choice.link = choice.link, {}
    with spawner._explaining():
        offer = await spawner.offer()
        if link and not sent:
            sent = (await spawner.choices()).from_query(link)
        return offer.form(choice.saved, problems, sent, choice.fixed)


async def _from_form(form_data: Mapping[str, Any], spawner: Choosing) -> dict[str, Any]:
    spawner.choice.posted = True
    with spawner._explaining():
        return (await spawner.choices()).from_form(form_data)
