"""Every error this package raises on purpose; each message names its object and what to do.

SpawnerError
├── ConfigurationError          the administrator's input is wrong
│   ├── TemplateError           the template cannot be found, loaded, rendered, read
│   ├── ManifestError           a rendered object breaks the template contract
│   ├── ProfileError            a profile, or where profiles are read, cannot be used
│   └── UnknownKind             the API server serves no such kind
├── OptionsRefused              what a user sent for a start is too much, or not allowed
├── ClusterError                the API server refused or could not be asked
│   ├── Forbidden               401, 403: the message names verb, resource and namespace
│   ├── NotFound                404
│   ├── Conflict                409
│   ├── Invalid                 400, 405, 413, 415, 422 and apply's typed 500: never retried
│   ├── Expired                 410: list again
│   └── Unavailable             429, 5xx, time-outs, broken connections and answers: retried
├── NotOurs                     the object belongs to somebody else; it was not written
├── StartFailed                 the server ended or was refused before it was ready
├── StartTimeout                it was not ready in time; the message says what it waited for
├── HubError                    the hub could not be asked, or its answer cannot be relied on
└── RemovalIncomplete           objects still there at the deadline, and what holds them
    └── NodeLost                a pod that a node which does not answer keeps; the others are gone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SpawnerError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigurationError(SpawnerError):
    """What the administrator wrote cannot be used; starting again will not help."""


class TemplateError(ConfigurationError):
    """The template cannot be found, loaded or rendered, or its output is not YAML."""


class ManifestError(ConfigurationError):
    """A rendered object breaks the template contract."""


class ProfileError(ConfigurationError):
    """A profile cannot be used; names its source, the field, and what is allowed there."""


class UnknownKind(ConfigurationError):
    """The API server serves no such apiVersion and kind."""


class OptionsRefused(SpawnerError):
    """What a user chose or typed for a start is too large, or not among what is allowed."""


class ClusterError(SpawnerError):
    """The API server's refusal, or the lack of an answer.

    ``code`` is the HTTP status (None when there was no answer), ``reason`` the API's one-word
    reason, ``causes`` the entries of ``details.causes``, ``retry_after`` seconds to wait. Where one
    of several deletions was refused, ``deleted`` is what the others asked to go.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        reason: str | None = None,
        causes: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
        deleted: Sequence[Any] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.causes = tuple(causes)
        self.retry_after = retry_after
        self.deleted = tuple(deleted)


class Forbidden(ClusterError):
    """The hub's account may not do this."""


class NotFound(ClusterError):
    """No such object, namespace or path."""


class Conflict(ClusterError):
    """The object exists, changed meanwhile, or a field belongs to another manager."""


class AlreadyThere(Conflict):
    """An object that must be new exists; ``live`` is what the API server has."""

    def __init__(self, message: str, live: Mapping[str, Any]) -> None:
        super().__init__(message, code=409, reason="AlreadyExists")
        self.live = live


class Invalid(ClusterError):
    """The API server will never accept this object as it is."""


class Expired(ClusterError):
    """The resource version is too old: list again."""


class Unavailable(ClusterError):
    """No usable answer; the same request may succeed later."""


class NotOurs(SpawnerError):
    """An object that the template names belongs to somebody else; it was not written."""


class NameTaken(NotOurs):
    """Objects that go by this user's name are those of another user of this very hub."""


class StartFailed(SpawnerError):
    """The server ended, or was refused by the cluster, before it was ready.

    ``reason`` is a word for it, by which the hub counts its failures.
    """

    def __init__(self, message: str, *, reason: str = "cluster") -> None:
        super().__init__(message)
        self.reason = reason


class StartTimeout(SpawnerError):
    """The server was not ready in time; ``reason`` is a word for what was wrong, if known."""

    SILENT = "api-server"  # the reason word where no request was answered

    def __init__(self, message: str, *, reason: str = "timeout") -> None:
        super().__init__(message)
        self.reason = reason


class RemovalIncomplete(SpawnerError):
    """Some objects are still there at the deadline; names them and what holds them."""


class NodeLost(RemovalIncomplete):
    """All that is still there waits for a node that does not answer."""


class HubError(SpawnerError):
    """The hub's REST API did not answer, or not with all that must be known."""
