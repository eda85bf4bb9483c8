"""Helm as the `helm` command, where its library does not run (Alpine, odd platforms).

Values go to standard input: on the command line or in a file other users of the machine could
read the tokens in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Final

from lightkube_template_spawner.templates.chart import Chart
from lightkube_template_spawner.templates.helm import engine

#: A hundred at once would be 100 processes of 60 MB and 3 seconds of every processor.
_AT_ONCE: Final = 4
_DOCUMENT: Final = re.compile(r"^---\n# Source: (.+)\n", re.MULTILINE)


class HelmCli:
    """Runs one `helm template` for each render."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._writing = asyncio.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written: set[str] = set()

    async def render(self, request: engine.Request, seconds: float) -> dict[str, str]:
        """Text by template path; ``seconds`` count from when it is this request's turn."""
        async with self._slots:
            path = await self._path(request.chart)
            code, output, errors = await self._run(request, path, seconds)
        if code:
            words = errors.decode(errors="replace").removeprefix("Error: ")
            raise engine.refused(request.chart, words or f"helm ended with status {code}")
        return engine.yaml_only(_by_source(output.decode()))

    async def aclose(self) -> None:
        """Remove the copies of the charts."""
        folder, self._folder = self._folder, None
        self._written.clear()
        if folder is not None:
            await asyncio.to_thread(folder.cleanup)

    async def _run(
        self, request: engine.Request, path: Path, seconds: float
    ) -> tuple[int | None, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            *self._command(request, path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=engine.environment(("PATH",), HOME=str(path.parent), HELM_NO_PLUGINS="1"),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(seconds):
                output, errors = await process.communicate(request.values.encode())
        except TimeoutError:
            raise engine.too_slow(request.chart, seconds) from None
        finally:
            if process.returncode is None:
                engine.kill(process)
                with contextlib.suppress(asyncio.CancelledError):
                    await process.wait()
        return process.returncode, output, errors

    def _command(self, request: engine.Request, path: Path) -> list[str]:
        command = [self._program, "template", request.release, str(path)]
        command += ["--namespace", request.namespace, "--values", "-"]
        if request.kube_version is not None:
            command += ["--kube-version", request.kube_version]
        return command

    async def _path(self, chart: Chart) -> Path:
        """The snapshot as files, written once for each version of the chart."""
        async with self._writing:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="charts-")
            path = Path(self._folder.name, chart.digest)
            if chart.digest not in self._written:
                await asyncio.to_thread(_write, chart, path)
                self._written.add(chart.digest)
            return path


def _write(chart: Chart, folder: Path) -> None:
    for name, data in chart.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _by_source(output: str) -> dict[str, str]:
    """Undo what the command does: it sorts all documents by kind and names each one's template."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    _, *parts = _DOCUMENT.split(output)
    for source, text in zip(parts[::2], parts[1::2], strict=True):
        texts[source].append(text)
    return {source: "---\n".join(documents) for source, documents in texts.items()}
