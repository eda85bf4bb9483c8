"""Renders charts in a process of its own: a Go abort, a hang or 1 GB of output is not the hub's.

``renderer.worker`` starts it and talks to it, one JSON object a line:

    {"id": 1, "load": DIGEST, "files": {PATH: BASE64}}
        -> {"id": 1, "loaded": true}
    {"id": 2, "chart": DIGEST, "values": {...}, "options": {...}}
        -> {"id": 2, "documents": {PATH: TEXT}} or {"id": 2, "unknown": true}
    either of them
        -> {"id": 3, "error": TEXT, "kind": CLASS NAME}

It is run as a file, so it imports nothing of this package. It ends when the pipe it reads from is
closed, even in the middle of a render, so that it never outlives a hub.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import select
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

GIB: Final = 1 << 30
MAX_CHARTS: Final = 16
LIMITS: Final[Mapping[int, int]] = {
    resource.RLIMIT_AS: 2 * GIB,  # Go does not start below 1 GiB of address space
    resource.RLIMIT_CORE: 0,  # a core file would hold the users' tokens
    resource.RLIMIT_FSIZE: GIB // 4,
    resource.RLIMIT_NOFILE: 256,
}


class UnknownChart(Exception):
    """The chart was never loaded here, or too long ago."""


class Worker:
    """The charts that are loaded and what can be asked about them."""

    def __init__(self) -> None:
        import helm_python  # takes 0.1 s and 56 MB: after the limits are set
        from helm_python import _native

        self._helm = helm_python
        self._native = _native
        self._charts: dict[str, bytes] = {}

    def answer(self, request: Mapping[str, Any]) -> str:
        """The fields of the reply, as JSON without the braces."""
        if "load" in request:
            self._load(request["load"], request["files"])
            return '"loaded": true'
        try:
            return f'"documents": {self._render(request)}'
        except UnknownChart:
            return '"unknown": true'

    def _load(self, digest: str, files: Mapping[str, str]) -> None:
        """Keep the chart as Helm packs it: .helmignore applied, symbolic links resolved."""
        with tempfile.TemporaryDirectory(prefix="chart-") as folder:
            root = Path(folder, "chart")
            for name, data in files.items():
                path = root / name
                if ".." in path.parts or not path.is_relative_to(root):
                    raise ValueError(f"the file {name!r} lies outside the chart")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(data))
            with self._helm.Chart.load(root) as chart:
                archive = Path(chart.save(folder)).read_bytes()
        while len(self._charts) >= MAX_CHARTS:
            del self._charts[next(iter(self._charts))]
        self._charts[digest] = archive

    def _render(self, request: Mapping[str, Any]) -> str:
        """Helm's own JSON. The chart is read anew: rendering drops disabled subcharts for good."""
        archive = self._charts.get(request["chart"])
        if archive is None:
            raise UnknownChart
        values = json.dumps(request["values"])
        with self._helm.Chart.load_archive(archive) as chart:
            options = json.dumps(request["options"])
            text = self._native.call_string("helm_render", chart._raw(), values, options)
            return str(text)


def replies(requests: BinaryIO, worker: Worker | Exception) -> Iterator[bytes]:
    """One line for each request; an exception in the place of the worker answers all of them."""
    for line in requests:
        request = json.loads(line)
        if isinstance(worker, Exception):
            fields = error_fields(worker, "LibraryError")
        else:
            try:
                fields = worker.answer(request)
            except Exception as error:  # noqa: BLE001 - the hub decides what each error means
                fields = error_fields(error, type(error).__name__)
        yield f'{{"id": {json.dumps(request["id"])}, {fields}}}\n'.encode()


def error_fields(error: Exception, kind: str) -> str:
    """What went wrong, as the fields of a reply."""
    return f'"error": {json.dumps(str(error))}, "kind": {json.dumps(kind)}'


def limit_self() -> None:
    """Set by the worker, because doing it between fork and exec is unsafe in a hub with threads."""
    for limit, ceiling in LIMITS.items():
        _, maximum = resource.getrlimit(limit)
        value = ceiling if maximum == resource.RLIM_INFINITY else min(ceiling, maximum)
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):  # not every system has every limit
            continue


def end_with_parent(descriptor: int) -> None:
    """Wait for the other end of the pipe to be closed, then end at once."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hanging up is reported whatever was asked for
    poll.poll()
    os._exit(0)


def main(library: str | None) -> None:
    """Serve standard input until it ends; ``library`` is the folder that helm_python is in."""
    limit_self()
    if library is not None:
        sys.path.append(library)
    threading.Thread(target=end_with_parent, args=(0,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else prints must not get between the replies
    try:
        worker: Worker | Exception = Worker()
    except Exception as error:  # noqa: BLE001 - no such library, or not for this platform
        worker = error
    for reply in replies(sys.stdin.buffer, worker):
        answers.write(reply)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
