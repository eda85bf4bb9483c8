"""JupyterHub's exceptions for our errors: shown to the user, not counted as the hub's fault."""

from __future__ import annotations

from collections.abc import Mapping

from jupyterhub import spawner as hub_spawner
from tornado import web

from lightkube_template_spawner.errors import (
    ClusterError,
    ConfigurationError,
    NotOurs,
    SpawnerError,
    StartFailed,
    StartTimeout,
)
from lightkube_template_spawner.lifecycle.failures import FailureRules

_REASONS: Mapping[type[SpawnerError], str] = {
    ConfigurationError: "template",
    NotOurs: "ownership",
}


def reason(error: SpawnerError, rules: FailureRules) -> str:
    """A word for it: a label of the hub's metrics."""
    if isinstance(error, StartFailed | StartTimeout):
        return error.reason
    if isinstance(error, ClusterError):
        return rules.refused(str(error))
    return next((word for kind, word in _REASONS.items() if isinstance(error, kind)), "cluster")


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
