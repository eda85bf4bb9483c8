"""A list of profiles, read from plain data, and what it sets for one start."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from lightkube_template_spawner.errors import ProfileError, TemplateError
from lightkube_template_spawner.objects import kubeyaml
from lightkube_template_spawner.objects.identity import slugs
from lightkube_template_spawner.profiles import checks
from lightkube_template_spawner.profiles.checks import Place
from lightkube_template_spawner.profiles.match import Matcher
from lightkube_template_spawner.profiles.merge import MERGE, SEMANTICS, SINGLEUSER_PROFILES, merge
from lightkube_template_spawner.profiles.model import Profile, read_own, read_profile, read_size

#: Where singleuser-profiles looks for its profiles.
CONFIGMAP: Final = "jupyter-singleuser-profiles"
CONFIGMAP_KEY: Final = "jupyterhub-singleuser-profiles.yaml"
LABEL: Final = "jupyterhub=singleuser-profiles"
OWN_CONFIGMAP: Final = "jupyterhub-singleuser-profile-"
OWN_KEY: Final = "profile"

MAX_PROFILES: Final = 10_000
_MEND: Final = "Look at the indentation there, and put texts with special characters in quotes."


class Profiles:
    """Profiles and sizes in their order; never changed once made.

    Adding two gives a third, whose profiles are those of the first, then those of the second.
    """

    def __init__(self, profiles: Iterable[Profile] = (), sizes: Iterable[Profile] = ()) -> None:
        self.profiles = tuple(profiles)
        self.sizes = tuple(sizes)
        self._sizes = {size.name: size for size in self.sizes}
        self._matchers = tuple(Matcher.of(profile) for profile in self.profiles)

    def __add__(self, other: Profiles) -> Profiles:
        return Profiles((*self.profiles, *other.profiles), (*self.sizes, *other.sizes))

    @classmethod
    def from_list(cls, profiles: Any, sizes: Any = (), *, source: str = "the profiles") -> Profiles:
        """Read lists of mappings, as in the hub's configuration.

        Raises:
            ProfileError: what cannot be used, with ``source``, the profile and the field.
        """
        data = {"profiles": profiles, "sizes": sizes}
        _check_length(data, source)
        return _read(checks.plain_data(data, Place(source)), Place(source))

    @classmethod
    def from_text(
        cls, text: str, source: str = "the profiles' text", *, key: str = CONFIGMAP_KEY
    ) -> Profiles:
        """Read YAML: ``profiles`` and ``sizes``, a list of profiles, or a ConfigMap that has them.

        In a ConfigMap they are the text under ``key`` of its data.

        Raises:
            ProfileError: not YAML, or what cannot be used.
        """
        place = Place(source)
        data = _document(text, place)
        if isinstance(data, dict) and "data" in data:
            return _from_configmap(data, source, key)
        return _read(data, place)

    @classmethod
    def from_configmaps(
        cls,
        configmaps: Mapping[str, Mapping[str, Any]],
        user: str | None = None,
        *,
        main: str = CONFIGMAP,
        label: str = LABEL,
        key: str = CONFIGMAP_KEY,
    ) -> Profiles:
        """Read ConfigMaps, each given by its name, with ``labels`` and ``data``.

        The one called ``main`` comes first, then those with ``label``, by name; all others are
        ignored. Where ``user`` is given, that user's own profile comes last. A ConfigMap that is
        not there has no profiles.

        Raises:
            ProfileError: no ``key`` in a ConfigMap, not YAML there, or what cannot be used.
        """
        made = cls()
        if main in configmaps:
            made += _from_configmap(configmaps[main], f"ConfigMap {main}", key)
        for name in sorted(configmaps):
            if _has_label(configmaps[name], label):
                more = _from_configmap(configmaps[name], f"ConfigMap {name}", key)
                made += _repeated(more) if name == main else more
        return made + _own(configmaps, user)

    def matching(
        self,
        image: str | None,
        user: str | None = None,
        groups: Collection[str] = (),
        *,
        semantics: str = MERGE,
    ) -> tuple[Profile, ...]:
        """The profiles for this image and this user, in their order."""
        exact = semantics == SINGLEUSER_PROFILES
        return tuple(
            matcher.profile
            for matcher in self._matchers
            if matcher.for_image(image, exact=exact)
            and matcher.for_user(user, groups)
            and (exact or not matcher.profile.repeated)
        )

    def size(self, name: str | None) -> Profile | None:
        """The size of that name, the last of several; None if there is none."""
        return self._sizes.get(name) if name else None

    def merged(
        self,
        image: str | None = None,
        user: str | None = None,
        groups: Collection[str] = (),
        size: str | None = None,
        semantics: str = MERGE,
    ) -> dict[str, Any]:
        """All that is set for this start, as a new mapping that is the caller's to change.

        ``name``, ``users``, ``images`` and ``groups`` are those of all profiles that match; every
        field of a profile is there, empty (``max_age`` and ``idle``, in seconds: None) where none
        sets it; ``semantics`` is the argument. No ``user`` matches every profile. The size comes
        after all profiles; one that does not exist changes nothing.

        Raises:
            ProfileError: there are no such semantics.
        """
        if semantics not in SEMANTICS:
            raise ProfileError(f"merge semantics must be one of {', '.join(SEMANTICS)}")
        profiles = self.matching(image, user, groups, semantics=semantics)
        chosen = self.size(size)
        if chosen is not None and _counts(chosen, semantics):
            profiles = (*profiles, chosen)
        return merge(profiles, semantics)


def _counts(size: Profile, semantics: str) -> bool:
    """A size that sets nothing is none; singleuser-profiles looks at its resources only."""
    if semantics == SINGLEUSER_PROFILES:
        return any(size.fields.get("resources", {}).values())
    return bool(size.fields)


def _read(data: Any, place: Place) -> Profiles:
    data = {"profiles": data} if isinstance(data, list) else checks.mapping(data, place)
    checks.known(data, ("profiles", "sizes"), place)
    return Profiles(
        (read_profile(item, at) for item, at in _items(data, "profiles", place)),
        (read_size(item, at) for item, at in _items(data, "sizes", place)),
    )


def _items(data: dict[str, Any], key: str, place: Place) -> Iterator[tuple[Any, Place]]:
    items = checks.listing(data.get(key), place.key(key))
    _check_length(data, place.source)
    for n, item in enumerate(items):
        yield item, place.key(key).item(n)


def _check_length(data: Mapping[str, Any], source: str) -> None:
    for key, items in data.items():
        if isinstance(items, list | tuple) and len(items) > MAX_PROFILES:
            Place(source, (key,)).refuse(f"more than {MAX_PROFILES}: write fewer")


def _document(text: Any, place: Place) -> Any:
    if not isinstance(text, str):
        place.refuse("must be text")
    try:
        documents = kubeyaml.load_all(text, place.source, mend=_MEND)
    except TemplateError as error:
        raise ProfileError(str(error)) from None
    if len(documents) > 1:
        place.refuse(f"must be one YAML document, not {len(documents)}")
    return checks.plain_data(documents[0], place) if documents else None


def _content(configmap: Any, key: str, place: Place) -> Any:
    """What stands under ``key`` of a ConfigMap's data, read as YAML."""
    texts = configmap.get("data") if isinstance(configmap, Mapping) else None
    if not isinstance(texts, Mapping) or key not in texts:
        keys = ", ".join(sorted(map(str, texts))[:5]) if isinstance(texts, Mapping) else ""
        place.refuse(f"has no key `{key}` in its data; keys there: {keys or 'none'}")
    return _document(texts[key], Place(f"{place.source}, {key}"))


def _from_configmap(configmap: Mapping[str, Any], source: str, key: str) -> Profiles:
    return _read(_content(configmap, key, Place(source)), Place(f"{source}, {key}"))


def _has_label(configmap: Any, label: str) -> bool:
    key, _, value = label.partition("=")
    labels = configmap.get("labels") if isinstance(configmap, Mapping) else None
    return isinstance(labels, Mapping) and labels.get(key) == value


def _repeated(profiles: Profiles) -> Profiles:
    """Of a ConfigMap that was read already: merging by key needs it but once."""
    again = (
        Profile(one.name, one.images, one.users, one.groups, one.fields, repeated=True)
        for one in profiles.profiles
    )
    return Profiles(again)


def _own(configmaps: Mapping[str, Mapping[str, Any]], user: str | None) -> Profiles:
    """The profile that the user may write."""
    name = f"{OWN_CONFIGMAP}{slugs().escape_slug(user)}" if user else ""
    if name not in configmaps:
        return Profiles()
    place = Place(f"ConfigMap {name}")
    data = _content(configmaps[name], OWN_KEY, place)
    own_place = Place(f"{place.source}, {OWN_KEY}")
    return Profiles([read_own(data, own_place, user)] if data and user else [])
