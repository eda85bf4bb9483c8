"""What the two ways to run Helm have in common."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.templates.chart import SCHEMA, Chart

_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_RELEASE_NAME_LENGTH: Final = 53
_MISFIT: Final = re.compile(
    r"at '(?P<path>/[^']*)': (?P<value>'[^']*') does not match pattern '[^']*'"
)


@dataclass(frozen=True)
class Request:
    """One render: ``values`` is JSON text; ``release`` is already a name that Helm takes."""

    chart: Chart
    values: str
    release: str
    namespace: str
    kube_version: str | None
    strict: bool


class Engine(Protocol):
    """Runs Helm; raises TemplateError with Helm's words, or EngineMissing."""

    async def render(self, request: Request, seconds: float) -> dict[str, str]:
        """Text by template path, as Helm names it: the chart's name first."""
        ...

    async def aclose(self) -> None:
        """End what it runs."""
        ...


class EngineMissing(TemplateError):
    """Helm itself cannot be run here, whatever the chart."""


def release_name(name: str) -> str:
    """Helm's command refuses longer or other names than the library does: both get the same."""
    return _NOT_IN_NAMES.sub("-", name.lower())[:_RELEASE_NAME_LENGTH].strip("-") or "release"


def refused(chart: Chart, words: str) -> TemplateError:
    """Helm's own error, which names file, line and column."""
    words = " ".join(words.split())
    if "schema" in words and "don't meet the specification" in words:
        words = _MISFIT.sub(lambda misfit: _described(chart, misfit), words)
        return TemplateError(
            f"The values do not fit the values.schema.json of the template {chart.source}: {words} "
            "(the trait `extra_vars` sets them)"
        )
    return TemplateError(f"The template {chart.source} cannot be rendered: {words}")


def _described(chart: Chart, misfit: re.Match[str]) -> str:
    """The schema's own words for what belongs there, instead of its regular expression."""
    part: Any = json.loads(chart.files[SCHEMA]) if SCHEMA in chart.files else {}
    for key in misfit["path"].split("/")[1:]:
        properties = part.get("properties", {}) if isinstance(part, dict) else {}
        part = properties.get(key, {})
    words = part.get("description") if isinstance(part, dict) else None
    return f"at '{misfit['path']}': {misfit['value']} is not {words}" if words else misfit[0]


def too_slow(chart: Chart, seconds: float) -> TemplateError:
    """A loop in Go templates cannot be stopped from inside."""
    return TemplateError(
        f"The template {chart.source} was not rendered within {seconds:g} seconds. Look for a loop "
        "over a large range or a template that includes itself."
    )


def kill(process: asyncio.subprocess.Process) -> None:
    """The whole group: Helm must not leave anything running."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def environment(names: tuple[str, ...], **variables: str) -> dict[str, str]:
    """Nothing of the hub's environment, which holds its secrets, but the named variables."""
    return {name: os.environ[name] for name in names if name in os.environ} | variables


def yaml_only(documents: Mapping[str, Any]) -> dict[str, str]:
    """Without notes for people and empty texts, in the order of the template paths."""
    return {
        path: text
        for path, text in sorted(documents.items())
        if text.strip() and path.rsplit("/", 1)[-1] != "NOTES.txt"
    }
