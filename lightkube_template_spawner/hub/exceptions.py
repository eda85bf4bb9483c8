"""JupyterHub's exceptions for our errors: shown to the user, not counted as the hub's fault."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jupyterhub import spawner as hub_spawner
from tornado import web

from lightkube_template_spawner.cluster.retry import deadline
from lightkube_template_spawner.errors import (
    ClusterError,
    ConfigurationError,
    NotOurs,
    OptionsRefused,
    SpawnerError,
    StartFailed,
    StartTimeout,
    TemplateError,
    Unavailable,
)
from lightkube_template_spawner.lifecycle.failures import FailureRules

_NO_NAMESPACE = re.compile(r'namespaces "([^"]+)" not found')
_REASONS: Mapping[type[SpawnerError], str] = {
    ConfigurationError: "template",
    NotOurs: "ownership",
    OptionsRefused: "options",
}


def reason(error: SpawnerError, rules: FailureRules) -> str:
    """A word for it: a label of the hub's metrics."""
    if isinstance(error, StartFailed | StartTimeout):
        return error.reason
    if isinstance(error, ClusterError):
        return rules.refused(str(error))
    return next((word for kind, word in _REASONS.items() if isinstance(error, kind)), "cluster")


def mended(message: str) -> str:
    """With the way out, where the API server only says what is missing."""
    match = _NO_NAMESPACE.search(message)
    if match is None:
        return message
    return (
        f"{message}: create it with `kubectl create namespace {match[1]}`, or set the trait "
        "`namespace` to another"
    )


def make(message: str, reason: str, status: int) -> web.HTTPError:
    """A SpawnException; on JupyterHub 5, which has none and counts every failure, an HTTPError."""
    exception: web.HTTPError
    if hasattr(hub_spawner, "SpawnException"):
        exception = hub_spawner.SpawnException(message, reason=reason, status_code=status)
    else:
        exception = web.HTTPError(status, "%s", message)
    # The spawn page reads this attribute, whatever the exception.
    vars(exception)["jupyterhub_message"] = message
    return exception


@contextmanager
def in_time(patience: float) -> Iterator[None]:
    """Give all that comes before the first write the time of a start.

    Raises:
        StartTimeout: it is up.
    """
    try:
        with deadline(patience):
            yield
    except TimeoutError as error:
        raise StartTimeout(
            f"not ready after {patience:.0f} s: waited for the API server's version, or for "
            f"`extra_vars`: {error}",
            reason=StartTimeout.SILENT if str(error) else "timeout",
        ) from None


@contextmanager
def explaining(
    rules: FailureRules, mask: Callable[[str], str], log: logging.Logger, server: str
) -> Iterator[None]:
    """Raise the hub's exception for one of ours, in words that ``mask`` leaves; log them."""
    try:
        yield
    except SpawnerError as error:
        why, text = reason(error, rules), mask(str(error))
        message = mended(text)
        log.error(  # noqa: TRY400 - the hub logs tracebacks
            "Starting %s failed (%s): %s", server, why, message
        )
        silent = isinstance(error, Unavailable) or why == StartTimeout.SILENT
        # A traceback has the words before they were masked.
        cause = error if text == str(error) else None
        raise make(message, why, 503 if silent else 400) from cause


@contextmanager
def failing(log: logging.Logger, function: str) -> Iterator[None]:
    """What an administrator's function raises; its own refusals of a start are left alone.

    Raises:
        TemplateError: it failed; the log has where.
    """
    try:
        yield
    except (web.HTTPError, SpawnerError, TimeoutError):
        raise
    except Exception as error:
        log.exception("%s failed", function)
        raise TemplateError(
            f"{function} raised {type(error).__name__}: the hub's log says where"
        ) from None


def show_next(spawner: Any, message: str) -> None:
    """Let the user's next page say it: the hub shows there why the last spawn failed."""
    pending = getattr(spawner, "_spawn_future", None)
    if hasattr(hub_spawner.Spawner, "_spawn_future") and (pending is None or pending.done()):
        spawner._spawn_future = asyncio.get_running_loop().create_future()
        spawner._spawn_future.set_exception(make(message, "ended", 424))
        spawner._spawn_future.exception()  # asked for, so that nobody warns that it was not
