"""Reads one mapping of the configuration key by key, with messages that say where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from lightkube_template_spawner.choices.wording import kind, nearest
from lightkube_template_spawner.errors import ConfigurationError

LARGEST: Final = 2**53  # beyond it JSON's numbers are not exact


class Section:
    """One mapping with a fixed set of keys; None counts as left out, as an empty key in YAML.

    Raises:
        ConfigurationError: no mapping, or a key that is not known; names the nearest that is.
    """

    def __init__(self, value: Any, place: str, known: Iterable[str]) -> None:
        self.place = place
        names = tuple(known)
        if not isinstance(value, Mapping):
            raise ConfigurationError(
                f"{place} is {kind(value)}: write a mapping with some of {', '.join(names)}."
            )
        for key in value:
            if key not in names:
                raise ConfigurationError(
                    f"{place} has the unknown key {key!r}.{nearest(key, names)} Allowed are "
                    f"{', '.join(names)}."
                )
        self._values = value

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it is written."""
        return self._values.get(key)

    def text(self, key: str, default: str = "") -> str:
        """A text."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, f"is {kind(value)}: write text")
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, f"is {kind(value)}: write true or false")
        return value

    def number(self, key: str) -> int | float | None:
        """A finite number, or None."""
        value = self._values.get(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= LARGEST:  # NaN is in no order
            raise self.wrong(key, f"is {kind(value)}: write a number of at most 2^53")
        return value  # type: ignore[no-any-return]

    def mapping(self, key: str) -> dict[str, Any]:
        """A mapping whose keys are text."""
        value = self._values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"is {kind(value)}: write a mapping")
        for name in value:
            if not isinstance(name, str) or not name:
                raise self.wrong(key, f"has the key {name!r}: keys are text, as {str(name)!r}")
        return dict(value)

    def names(self, key: str) -> frozenset[str]:
        """A list of names."""
        value = self._values.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list | tuple | set | frozenset) or not all(
            isinstance(name, str) and name for name in value
        ):
            raise self.wrong(key, f"is {kind(value)}: write a list of names")
        return frozenset(value)

    def wrong(self, key: str, what: str) -> ConfigurationError:
        """The error about one key: ``what`` says what is wrong with it and what is allowed."""
        return ConfigurationError(f"{self.place}.{key} {what}.")
