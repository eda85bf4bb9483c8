"""Helm as a library, in one long-lived process that all renderers of an event loop share.

A render takes a few milliseconds there, ten times as long with a `helm` process. Whatever goes
wrong between a request and its whole reply (time-out, cancellation, a crash) ends the process: the
next request starts a fresh one, so a late reply can never be taken for another user's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import logging
import sys
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.templates.chart import Chart
from lightkube_template_spawner.templates.helm import engine
from lightkube_template_spawner.templates.helm import process as helm_worker

LONGEST_REPLY: Final = 16 << 20
_SECONDS_TO_END: Final = 2.0
#: Go collects when its heap has grown fivefold, not twofold: a quarter less work for 15 MB.
_GARBAGE: Final = "400"
_PASSED: Final = ("HELM_C_LIB", "LD_LIBRARY_PATH", "TMPDIR")

_workers: WeakKeyDictionary[asyncio.AbstractEventLoop, HelmWorker] = WeakKeyDictionary()


def library_folder() -> str | None:
    """The folder that holds helm_python, found without importing it; None when not installed."""
    spec = importlib.util.find_spec("helm_python")
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent.parent)


class SharedWorker:
    """A renderer's hold on the event loop's worker, which ends with the last of them."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._worker: HelmWorker | None = None

    async def render(self, request: engine.Request, seconds: float) -> dict[str, str]:
        """As HelmWorker.render."""
        if self._worker is None:
            loop = asyncio.get_running_loop()
            self._worker = _workers.setdefault(loop, HelmWorker(self._log))
            self._worker.holders += 1
        return await self._worker.render(request, seconds)

    async def aclose(self) -> None:
        """Let go of the worker."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.holders -= 1
        if worker.holders == 0:
            _workers.pop(asyncio.get_running_loop(), None)
            await worker.aclose()


class _Ended(Exception):
    """The process ended before it had replied."""


class HelmWorker:
    """Starts the process when it is needed and asks it one thing at a time."""

    def __init__(self, log: logging.Logger) -> None:
        self.holders = 0
        self._log = log
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._zombies: list[asyncio.subprocess.Process] = []
        self._closed = False
        self._last = 0

    async def render(self, request: engine.Request, seconds: float) -> dict[str, str]:
        """Text by template path; ``seconds`` count from when it is this request's turn."""
        async with self._lock:
            try:
                async with asyncio.timeout(seconds):
                    reply = await self._render(request)
            except TimeoutError:
                raise engine.too_slow(request.chart, seconds) from None
        return engine.yaml_only(reply["documents"])

    async def aclose(self) -> None:
        """Close the pipe, which ends the process at once; a render in progress fails."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(_SECONDS_TO_END):
                    await process.wait()
            except TimeoutError:
                self._kill(process)
        for zombie in self._zombies:
            await zombie.wait()

    def _kill(self, process: asyncio.subprocess.Process) -> None:
        engine.kill(process)
        self._zombies = [one for one in (*self._zombies, process) if one.returncode is None]

    async def _render(self, request: engine.Request) -> dict[str, Any]:
        message = _message(request)
        try:
            return await self._ask_about(request.chart, message)
        except _Ended:  # perhaps long ago and for another reason, such as a lack of memory
            self._log.info("The Helm worker had ended; starting another")
        try:
            return await self._ask_about(request.chart, message)
        except _Ended as error:
            raise TemplateError(
                f"Helm ended ({error}) while it rendered the template {request.chart.source}. Look "
                "for a template that includes itself, prints a value that holds itself, or writes "
                "more than a gigabyte."
            ) from None

    async def _ask_about(self, chart: Chart, message: str) -> dict[str, Any]:
        reply = await self._ask(message, chart)
        if "unknown" in reply:
            await self._ask(_loading(chart), chart)
            reply = await self._ask(message, chart)
        if "documents" not in reply:
            raise TemplateError(f"The Helm worker lost the template {chart.source}; try again.")
        return reply

    async def _ask(self, fields: str, chart: Chart) -> dict[str, Any]:
        process = await self._started()
        self._last += 1
        try:
            reply = await self._exchange(process, f'{{"id": {self._last}, {fields}}}\n')
        except BaseException:
            self._process = None
            self._kill(process)
            raise
        if "error" in reply:
            raise _refusal(chart, reply)
        return reply

    async def _exchange(self, process: asyncio.subprocess.Process, message: str) -> dict[str, Any]:
        if process.stdin is None or process.stdout is None:  # pragma: no cover - both are pipes
            raise _Ended("without pipes")
        with contextlib.suppress(ConnectionError):  # the missing reply tells
            process.stdin.write(message.encode())
            await process.stdin.drain()
        try:
            line = await process.stdout.readline()
        except ValueError:
            raise TemplateError(
                f"A template renders more than {LONGEST_REPLY >> 20} MiB, too much for one server."
            ) from None
        if not line.endswith(b"\n"):
            raise _Ended(_cause(await process.wait()))
        reply: dict[str, Any] = json.loads(line)
        if reply["id"] != self._last:
            raise TemplateError("The Helm worker answered another request; try again.")
        return reply

    async def _started(self) -> asyncio.subprocess.Process:
        """The worker's file is run as such: neither the hub's path nor its package is needed."""
        if self._closed:
            raise TemplateError("The renderer is closed: the hub is shutting down.")
        if self._process is None:
            command = [sys.executable, "-I", "-S", helm_worker.__file__]
            if (folder := library_folder()) is not None:
                command.append(folder)
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=engine.environment(_PASSED, LANG="C.UTF-8", GOGC=_GARBAGE),
                start_new_session=True,
                limit=LONGEST_REPLY,
            )
        return self._process


def _message(request: engine.Request) -> str:
    options: dict[str, Any] = {
        "name": request.release,
        "namespace": request.namespace,
        "strict": request.strict,
    }
    if request.kube_version is not None:
        options["kube_version"] = request.kube_version
    return (
        f'"chart": "{request.chart.digest}", "options": {json.dumps(options)}, '
        f'"values": {request.values}'
    )


def _loading(chart: Chart) -> str:
    files = {name: base64.b64encode(data).decode() for name, data in chart.files.items()}
    return f'"load": "{chart.digest}", "files": {json.dumps(files)}'


def _refusal(chart: Chart, reply: dict[str, Any]) -> TemplateError:
    if reply["kind"] == "LibraryError":
        return engine.EngineMissing(f"Helm's library cannot be used here: {reply['error']}")
    return engine.refused(chart, reply["error"])


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
