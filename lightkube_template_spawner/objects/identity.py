"""Whose server this is, in the words of Kubernetes: slugs, owner, labels, selectors, field manager.

Names follow KubeSpawner's *safe* scheme, as KubeTemplateSpawner's do, so that existing charts keep
their object names. Ownership does not rest on them: two users can be given one slug (a 32-bit hash,
collided in minutes), so every object also carries ``OWNER``, a full hash that no selector omits.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

INSTANCE = "app.kubernetes.io/instance"
MANAGED_BY = "app.kubernetes.io/managed-by"
USERNAME = "hub.jupyter.org/username"
SERVERNAME = "hub.jupyter.org/servername"
PREFIX = "lightkube-template-spawner"
OWNER = f"{PREFIX}/owner"
USERID = f"{PREFIX}/userid"
DIGEST = f"{PREFIX}/digest"
KINDS = f"{PREFIX}/kinds"
WAIT = f"{PREFIX}/wait"
PROFILE = f"{PREFIX}/profile"

_SLUG_LENGTH = 48
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def is_label_value(text: str) -> bool:
    """Whether Kubernetes takes ``text``, which is not empty, as a label's value."""
    return bool(_LABEL_VALUE.fullmatch(text))


class Policy(StrEnum):
    """When an object goes; a later event includes the earlier ones."""

    STOPPED = "server-stopped"
    SERVER_DELETED = "server-deleted"
    USER_DELETED = "user-deleted"


class Labelled(Protocol):
    """What a selection is asked about, such as the metadata of a live object."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""


M = TypeVar("M", bound=Labelled)
M_contra = TypeVar("M_contra", bound=Labelled, contravariant=True)


@dataclass(frozen=True)
class Selection(Generic[M_contra]):
    """Objects to delete: the API server's selector, and our own check of each of them.

    An API server that ignores selectors (an aggregated one may) must not cost a cluster.

    Raises:
        ValueError: the selector is empty, which selects everything.
    """

    selector: str
    matches: Callable[[M_contra], bool]

    def __post_init__(self) -> None:
        if not self.selector:
            raise ValueError("an empty selector would delete everything")

    def where(self: Selection[M], condition: Callable[[M], bool]) -> Selection[M]:
        """Those of them of which this is true, too."""
        return Selection(self.selector, lambda item: self.matches(item) and condition(item))


@cache
def slugs() -> ModuleType:
    """KubeSpawner's slug module alone: importing its package would cost 66 MB and 1.6 s."""
    package = importlib.util.find_spec("kubespawner")
    if package is None or not package.submodule_search_locations:
        raise ImportError("install jupyterhub-kubespawner: object names follow its slug scheme")
    file = Path(package.submodule_search_locations[0]) / "slugs.py"
    spec = importlib.util.spec_from_file_location(f"{__name__}._kubespawner_slugs", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Identity:
    """One server of one user of one hub instance.

    ``username`` and ``servername`` are the raw names at the user's first start: they stay when the
    hub renames either, so that the volume stays too. ``servername`` is "" for the default server.
    """

    instance: str
    username: str
    servername: str = ""
    userid: int | None = None

    @cached_property
    def user_slug(self) -> str:
        """``escaped_username`` of the template contract."""
        return str(slugs().safe_slug(self.username, max_length=_SLUG_LENGTH))

    @cached_property
    def server_slug(self) -> str:
        """``escaped_servername``: "" for the default server."""
        if not self.servername:
            return ""
        return str(slugs().safe_slug(self.servername, max_length=_SLUG_LENGTH))

    @cached_property
    def user_server_slug(self) -> str:
        """``escaped_user_server``, as KubeSpawner joins the two."""
        if len(self.user_slug) + len(self.server_slug) + 2 > _SLUG_LENGTH:
            names = [self.username, self.servername]
            return str(slugs().multi_slug(names, max_length=_SLUG_LENGTH))
        if self.servername:
            return f"{self.user_slug}--{self.server_slug}"
        return self.user_slug

    @cached_property
    def owner(self) -> str:
        """52 characters that only this instance's user of this very name has."""
        digest = hashlib.sha256(f"{self.instance}".encode() + b"\xff" + self.username.encode())
        return base64.b32encode(digest.digest()).decode().rstrip("=").lower()

    @cached_property
    def manager(self) -> str:
        """The field manager: one a user, within the API's 128 bytes."""
        return f"lts:{self.instance[:20]}:{self.user_slug[:32]}:{self.owner[:16]}"

    @cached_property
    def user_labels(self) -> Mapping[str, str]:
        """Labels that make an object this user's."""
        return {INSTANCE: self.instance, USERNAME: self.user_slug, OWNER: self.owner}

    @cached_property
    def server_labels(self) -> Mapping[str, str]:
        """Labels that make an object this server's."""
        return {**self.user_labels, SERVERNAME: self.server_slug}

    def selector(self, lifecycle_key: str, policies: Iterable[Policy]) -> str:
        """Select this server's objects that go with one of ``policies``.

        The default server's selector ends in ``servername=``, which matches only objects that have
        the label, with an empty value.
        """
        lifecycle = f"{lifecycle_key} in ({','.join(sorted(policies))})"
        return f"{self.user_selector()},{lifecycle},{SERVERNAME}={self.server_slug}"

    def user_selector(self) -> str:
        """Select everything of this user; used when the user is removed, and nowhere else."""
        return ",".join(f"{key}={value}" for key, value in self.user_labels.items())

    def selection(self, lifecycle_key: str, policies: Iterable[Policy]) -> Selection[Labelled]:
        """This server's objects that go with one of ``policies``."""
        selector = self.selector(lifecycle_key, policies)
        return Selection(selector, lambda item: self.owns_as_server(item.labels))

    def user_selection(self) -> Selection[Labelled]:
        """Everything of this user."""
        return Selection(self.user_selector(), lambda item: self.owns(item.labels))

    def owns(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is this user's."""
        return self.user_labels.items() <= labels.items()

    def owns_as_server(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is this server's."""
        return self.server_labels.items() <= labels.items()

    def to_state(self) -> dict[str, Any]:
        """The JSON that ``from_state`` reads back."""
        return {
            "instance": self.instance,
            "username": self.username,
            "servername": self.servername,
            "userid": self.userid,
        }

    @classmethod
    def from_state(cls, state: object) -> Identity | None:
        """The identity that a hub database remembers; None for anything else's state."""
        if not isinstance(state, Mapping):
            return None
        instance, username = state.get("instance"), state.get("username")
        servername, userid = state.get("servername"), state.get("userid")
        if not (isinstance(instance, str) and isinstance(username, str)):
            return None
        return cls(
            instance,
            username,
            servername if isinstance(servername, str) else "",
            userid if isinstance(userid, int) else None,
        )


def hub_selector(instance: str) -> str:
    """Select every object of this hub instance; what the shared watches use."""
    return f"{INSTANCE}={instance},{OWNER}"
