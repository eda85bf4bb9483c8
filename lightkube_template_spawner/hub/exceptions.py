"""JupyterHub's exceptions for our errors: shown to the user, not counted as the hub's fault."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jupyterhub import spawner as hub_spawner
from tornado import web

from lightkube_template_spawner.errors import (
    ClusterError,
    ConfigurationError,
    NotOurs,
    OptionsRefused,
    SpawnerError,
    StartFailed,
    StartTimeout,
)
from lightkube_template_spawner.lifecycle.failures import Rules

_NO_NAMESPACE = re.compile(r'namespaces "([^"]+)" not found')
_REASONS: Mapping[type[SpawnerError], str] = {
    ConfigurationError: "template",
    NotOurs: "ownership",
    OptionsRefused: "options",
}


def reason(error: SpawnerError, rules: Rules) -> str:
    """A word for it: a label of the hub's metrics."""
    if isinstance(error, StartFailed | StartTimeout):
        return error.reason
    if isinstance(error, ClusterError):
        return rules.refused(str(error))
    return next((word for kind, word in _REASONS.items() if isinstance(error, kind)), "cluster")


def mended(message: str) -> str:
    """With the way out, where the API server only says what is missing."""
    absent = _NO_NAMESPACE.search(message)
    if absent is None:
        return message
    return (
        f"{message}: create it with `kubectl create namespace {absent[1]}`, or set the trait "
        "`namespace` to another"
    )


def make(message: str, reason: str, status: int) -> web.HTTPError:
    """A SpawnException; on JupyterHub 5, which has none and counts every failure, an HTTPError."""
    raised: web.HTTPError
    if hasattr(hub_spawner, "SpawnException"):
        raised = hub_spawner.SpawnException(message, reason=reason, status_code=status)
    else:
        raised = web.HTTPError(status, "%s", message)
    # The spawn page reads this attribute, whatever the exception.
    vars(raised)["jupyterhub_message"] = message
    return raised
