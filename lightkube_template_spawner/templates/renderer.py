"""Turns a template and a user's values into the text of manifests, with Helm.

The library runs in a worker process (``worker``); without it the `helm` command does (``cli``).
Both get the same snapshot of the chart (``chart``) and the same plain values (``payload``), and
what they render is read as Kubernetes reads it and guarded against text that users typed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from lightkube_template_spawner.errors import SpawnerError, TemplateError
from lightkube_template_spawner.objects import kubeyaml
from lightkube_template_spawner.templates import guard
from lightkube_template_spawner.templates import plain as payload
from lightkube_template_spawner.templates.chart import ChartSource, check_template
from lightkube_template_spawner.templates.helm.command import HelmCli
from lightkube_template_spawner.templates.helm.engine import (
    Engine,
    EngineMissing,
    Request,
    release_name,
)
from lightkube_template_spawner.templates.helm.library import SharedWorker, library_folder
from lightkube_template_spawner.templates.redaction import Redactor

__all__ = ["Rendered", "Renderer", "check_template", "close_renderers", "open_renderer"]

#: Hashes of values that fitted the schema; more kinds of them than this are checked each time.
_FITTING_KEPT: Final = 10_000
_NO_HELM: Final = (
    "Helm is needed to render templates and was not found. Install it as a library with "
    "`pip install lightkube-template-spawner[helm]`, or put a `helm` command on the hub's PATH."
)


_NOTHING: Final[guard.Trusted] = {}
#: Texts that look like numbers are looked at one by one, if they must be, up to so many.
_ONE_BY_ONE: Final = 16
_Key = tuple[Path, str | None, float, bool]
_open: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, Renderer]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Rendered:
    """What a template makes of values.

    ``documents`` holds text by template path and ``objects`` the same parsed, both in the order of
    the paths and without notes and empty documents; ``digest`` is the chart's SHA-256.
    """

    documents: Mapping[str, str]
    objects: Mapping[str, list[Any]]
    digest: str


class Renderer(Protocol):
    """A template that can be rendered."""

    async def render(
        self,
        values: Mapping[str, Any],
        *,
        release: str,
        namespace: str,
        tainted: Collection[guard.Path] = guard.TAINTED,
        trusted: guard.Trusted = _NOTHING,
    ) -> Rendered:
        """Render with ``values``; TemplateError says what is wrong with them or the template.

        ``tainted`` are the paths of the values that users can write, ``trusted`` those among them
        that the template decides by, with what may be chosen there (see ``guard``).
        """
        ...

    async def aclose(self) -> None:
        """Let go of processes and files."""
        ...


def open_renderer(
    path: Path,
    *,
    kube_version: str | None,
    log: logging.Logger,
    timeout: float = 10,
    strict: bool = False,
) -> Renderer:
    """Choose what renders the chart at ``path``; starts nothing yet.

    Within an event loop, equal arguments give the same renderer until it is closed, so it may be
    called for each start: the chart is read and Helm's process started once.

    ``strict`` makes a value that the template asks for and nobody gave an error instead of an
    empty text; the `helm` command has no such option.
    """
    key = (path, kube_version, timeout, strict)
    renderers = _open_here()
    if key in renderers:
        return renderers[key]
    engine = SharedWorker(log) if library_folder() is not None else _command(log, strict)
    renderer = _HelmRenderer(
        path,
        engine,
        kube_version=kube_version,
        log=log,
        timeout=timeout,
        strict=strict,
        forget=lambda: renderers.pop(key, None),
    )
    renderers[key] = renderer
    return renderer


async def close_renderers() -> None:
    """Close all that are open in this event loop."""
    for renderer in list(_open_here().values()):
        await renderer.aclose()


def _open_here() -> dict[_Key, Renderer]:
    """The event loop's renderers; without a loop there is nothing to share."""
    try:
        return _open.setdefault(asyncio.get_running_loop(), {})
    except RuntimeError:
        return {}


def _command(log: logging.Logger, strict: bool) -> HelmCli:
    program = shutil.which("helm")
    if program is None:
        raise EngineMissing(_NO_HELM)
    if strict:
        log.warning("The helm command cannot be strict about missing values: they render as empty")
    return HelmCli(program)


class _HelmRenderer:
    def __init__(
        self,
        path: Path,
        engine: Engine,
        *,
        kube_version: str | None,
        log: logging.Logger,
        timeout: float,
        strict: bool,
        forget: Callable[[], object],
    ) -> None:
        self._forget = forget
        self._path = path
        self._source = ChartSource(path, log)
        self._engine = engine
        self._kube_version = kube_version
        self._log = log
        self._timeout = timeout
        self._strict = strict
        self._fitting: set[str] = set()

    async def render(
        self,
        values: Mapping[str, Any],
        *,
        release: str,
        namespace: str,
        tainted: Collection[guard.Path] = guard.TAINTED,
        trusted: guard.Trusted = _NOTHING,
    ) -> Rendered:
        plain: dict[str, Any] = {}
        try:
            plain = payload.plain_mapping(values)
            return await self._rendered(plain, release, namespace, tainted, trusted)
        except TemplateError as error:
            raise type(error)(Redactor(plain)(str(error))) from None
        except SpawnerError:
            raise
        except Exception as error:
            raise TemplateError(
                f"The template {self._path} cannot be rendered with these values: "
                f"{type(error).__name__}."
            ) from error

    async def _rendered(
        self,
        plain: dict[str, Any],
        release: str,
        namespace: str,
        tainted: Collection[guard.Path],
        trusted: guard.Trusted,
    ) -> Rendered:
        chart = await self._source.current()
        judged = chart.judged(plain)
        request = Request(
            chart=chart.without_schema if judged in self._fitting else chart,
            values=payload.to_json(plain),
            release=release_name(release),
            namespace=namespace,
            kube_version=self._kube_version,
            strict=self._strict,
        )
        guard.check_allowed(plain, trusted)
        if chart.calls_tpl:
            guard.check_syntax(plain, tainted, trusted)
        documents = await self._run(request)
        rendered = Rendered(documents, _parsed(documents), chart.digest)
        await _Guarded(self._probed, request, rendered, plain, tainted, trusted).check()
        if judged is not None and len(self._fitting) < _FITTING_KEPT:
            self._fitting.add(judged)
        return rendered

    async def aclose(self) -> None:
        self._forget()
        await self._engine.aclose()

    async def _probed(
        self, request: Request, probe: guard.Probe, first: Rendered
    ) -> dict[str, list[Any]]:
        """Render with canaries; files in which none shows are not read a second time."""
        chart, values = request.chart.without_schema, payload.to_json(probe.values)
        try:
            texts = await self._run(replace(request, chart=chart, values=values))
            changed = {p: text for p, text in texts.items() if first.documents.get(p) != text}
            same = {p: first.objects[p] for p in texts if p not in changed}
            return {**same, **_parsed(changed)}
        except TemplateError as error:
            names = probe.place_names()
            raise guard.Undecided(
                "The template renders, but fails when other text stands in its place, so it "
                "cannot be told whether users can change its shape. If it decides by one of "
                "these, set `trusted_values` to what may be chosen there: "
                f"{', '.join(names[:10])}. ({error})"
            ) from None

    async def _run(self, request: Request) -> dict[str, str]:
        try:
            return await self._run_any(request)
        except OSError as error:
            raise TemplateError(
                f"Helm cannot be run: {error}. Look for a lack of memory, processes or open files "
                "on the hub's machine, or a `helm` command that was removed."
            ) from error

    async def _run_any(self, request: Request) -> dict[str, str]:
        """With the library, or with the command where that cannot be used."""
        engine = self._engine
        try:
            return await engine.render(request, self._timeout)
        except EngineMissing as error:
            if shutil.which("helm") is None:
                raise EngineMissing(f"{_NO_HELM} ({error})") from None
            if engine is self._engine:
                self._log.warning("%s Using the helm command, which is slower", error)
                self._engine = _command(self._log, self._strict)
        await engine.aclose()
        return await self._engine.render(request, self._timeout)


@dataclass(frozen=True)
class _Guarded:
    """The comparisons of one render; ``probed`` renders once more."""

    probed: Callable[[Request, guard.Probe, Rendered], Awaitable[dict[str, list[Any]]]]
    request: Request
    rendered: Rendered
    values: Mapping[str, Any]
    tainted: Collection[guard.Path]
    trusted: Collection[guard.Path]

    async def check(self) -> None:
        """One more render for a chart that decides by nothing; none if nothing could do harm."""
        probe = self._probe(lookalikes=True)
        if probe is None:
            return
        try:
            await self._compare(probe)
        except TemplateError:
            if not probe.lookalikes:
                raise
            await self._compare(self._probe(lookalikes=False))
            await self._check_types(probe.lookalikes)

    def _probe(self, *, lookalikes: bool) -> guard.Probe | None:
        named = self.request.chart.names_options
        return guard.probe(
            self.values, self.tainted, self.trusted, lookalikes=lookalikes, named=named
        )

    async def _compare(self, probe: guard.Probe | None) -> None:
        if probe is not None:
            probed = await self.probed(self.request, probe, self.rendered)
            guard.compare(self.rendered.objects, probed, probe)

    async def _check_types(self, texts: Sequence[str]) -> None:
        """Together; if the template decides by one of them, one by one."""
        try:
            await self._compare_types(texts)
        except guard.Undecided:
            if len(texts) > _ONE_BY_ONE:
                raise
            for text in texts if len(texts) > 1 else ():
                with contextlib.suppress(guard.Undecided):  # it decides by this one
                    await self._compare_types([text])

    async def _compare_types(self, texts: Sequence[str]) -> None:
        probe = guard.probe_of(texts, self.values, self.tainted, self.trusted)
        if probe is not None:
            probed = await self.probed(self.request, probe, self.rendered)
            guard.compare_types(self.rendered.objects, probed, probe)


def _parsed(documents: Mapping[str, str]) -> dict[str, list[Any]]:
    return {
        path: kubeyaml.load_all(text, f"{path} as rendered") for path, text in documents.items()
    }
