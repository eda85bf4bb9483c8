"""Whom a profile is for."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import translate

from lightkube_template_spawner.profiles.model import Profile

EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One profile's images, users and groups, ready to be asked for each start."""

    profile: Profile
    images: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    people: frozenset[str] | None  # None: everybody
    groups: frozenset[str]

    @classmethod
    def of(cls, profile: Profile) -> Matcher:
        """The matcher of ``profile``: of images with ``*``, ``?`` or ``[`` its patterns."""
        globs = [image for image in profile.images if any(sign in image for sign in "*?[")]
        limited = profile.users or profile.groups
        everybody = not limited or EVERYBODY in (*profile.users, *profile.groups)
        return cls(
            profile,
            frozenset(profile.images),
            tuple(re.compile(translate(glob)) for glob in globs),
            None if everybody else frozenset(profile.users),
            frozenset(profile.groups),
        )

    def for_image(self, image: str | None, *, exact: bool) -> bool:
        """No images: all of them. ``exact`` leaves patterns out, as singleuser-profiles does."""
        if not self.images or image in self.images:
            return True
        if exact or image is None:
            return False
        return any(pattern.match(image) for pattern in self.patterns)

    def for_user(self, user: str | None, groups: Collection[str]) -> bool:
        """Users and groups both empty: everybody. A user of either list. No user: whoever it is."""
        if not user:
            return True
        if self.profile.owner is not None:
            return user == self.profile.owner
        if self.people is None or user in self.people:
            return True
        return not self.groups.isdisjoint(groups)
