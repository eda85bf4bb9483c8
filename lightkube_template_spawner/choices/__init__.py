"""What users may choose, and what comes of a choice; pure: no hub, no cluster.

``Choices`` is the list as the administrator wrote it, ``Offer`` what is open to one user. A list
that is a function is called by whoever has the spawner; its result is loaded as any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightkube_template_spawner.choices import form, loading, names, select, theirs
from lightkube_template_spawner.choices.model import Profile
from lightkube_template_spawner.choices.overrides import Applied, Overrides, merged
from lightkube_template_spawner.choices.select import ChoicesRefused, Problem, Selection

__all__ = [
    "Applied",
    "Choices",
    "ChoicesRefused",
    "Offer",
    "Overrides",
    "Problem",
    "Selection",
    "merged",
]


@dataclass(frozen=True, slots=True)
class Offer:
    """What one user may choose."""

    everything: tuple[Profile, ...]
    profiles: tuple[Profile, ...]

    def select(self, user_options: Any, fixed: Mapping[str, Any] | None = None) -> Selection:
        """What options come to, whether sent, saved or from a form.

        ``fixed`` is what the last selection's ``fixed`` was, kept with the server.

        Raises:
            ChoicesRefused: some of it is not allowed; names each field and what is allowed.
        """
        return select.select(self.everything, self.profiles, user_options, fixed)

    def form(
        self,
        saved: Any = None,
        errors: Sequence[Problem] = (),
        prefill: Mapping[str, Any] | None = None,
        fixed: Mapping[str, Any] | None = None,
    ) -> str:
        """The page's inner part, or nothing where the list is empty.

        ``saved`` are the last start's options, whatever they are. ``prefill`` comes before them:
        what a link says (``Choices.from_query``), or what was sent and refused, with ``errors``.
        """
        if not self.everything:
            return ""
        last = dict(saved) if isinstance(saved, Mapping) else {}
        now = dict(prefill or {})
        same = now.get("profile") in (None, "", last.get("profile"))
        shown = last | now if same else now
        return form.render(self.everything, self.profiles, shown, fixed or {}, errors)

    def their_form(
        self,
        user_options: Mapping[str, Any] | None = None,
        *,
        paths: Iterable[str | Path] = (),
        text: str = "",
    ) -> str:
        """The same by a template for KubeSpawner: ``text``, else ``form.html`` in ``paths``.

        Raises:
            jinja2.TemplateError: there is none, or it cannot be rendered.
        """
        return theirs.render(self.profiles, user_options or {}, paths=paths, text=text)


@dataclass(frozen=True, slots=True)
class Choices:
    """A ``profile_list``, read and checked."""

    profiles: tuple[Profile, ...] = field(default=())

    @classmethod
    def load(cls, profile_list: Any) -> Choices:
        """Read a list of profiles, or a mapping of them, as KubeSpawner 7.1 defines it.

        Raises:
            ConfigurationError: it cannot be used; names the profile, the field, what is allowed.
        """
        return cls(loading.load(profile_list))

    def __bool__(self) -> bool:
        return bool(self.profiles)

    def for_user(self, name: str, groups: Collection[str] = ()) -> Offer:
        """What is open to this user."""
        return Offer(self.profiles, select.open_to(self.profiles, name, groups))

    def select(
        self,
        user_options: Any,
        user: str,
        groups: Collection[str] = (),
        fixed: Mapping[str, Any] | None = None,
    ) -> Selection:
        """What options of this user come to; see ``Offer.select``."""
        return self.for_user(user, groups).select(user_options, fixed)

    def from_form(self, formdata: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a submitted form means; nothing is judged yet."""
        return names.from_form(self.profiles, formdata)

    def from_query(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a link means, for ``prefill``: ``?profile=gpu&opt-image=x``."""
        return names.from_query(self.profiles, query)
