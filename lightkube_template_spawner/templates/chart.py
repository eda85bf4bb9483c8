"""A chart's files as they were at one moment, from a folder, a ConfigMap's folder or an archive.

Reading them here, once for each change, means that a ConfigMap that is being replaced never gives
half of the old chart and half of the new one, and that both engines render the same files.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final

from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.objects import kubeyaml
from lightkube_template_spawner.templates import plain

MAX_FILES: Final = 2_000
MAX_BYTES: Final = 20 << 20
MAX_FOLDERS_DEEP: Final = 20
SCHEMA: Final = "values.schema.json"
#: A look at the files costs a thread and a stat each; a burst of starts shares one.
SECONDS_BETWEEN_LOOKS: Final = 0.2
_EACH_BY_ITSELF: Final = frozenset(
    ("$schema", "$id", "$defs", "definitions", "title", "description", "type", "properties")
) | {"required"}
_TPL: Final = re.compile(rb"\btpl\b")
_ALL_OPTIONS: Final = re.compile(rb'user_options(?!\.\w)|\bValues\b(?!\.\w|\s+"\w+")')
_SUFFIXES: Final = (".tgz", ".tar.gz")

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Chart:
    """``files`` by their path in the chart; ``source`` is what messages call it."""

    source: str
    files: Mapping[str, bytes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and contents."""
        total = hashlib.sha256()
        for name in sorted(self.files):
            data = self.files[name]
            total.update(f"{len(name.encode())} {name} {len(data)} ".encode() + data)
        return total.hexdigest()

    @cached_property
    def without_schema(self) -> Chart:
        """For the guard, which puts words of its own where a schema may want a number."""
        files = {k: v for k, v in self.files.items() if PurePosixPath(k).name != SCHEMA}
        return self if len(files) == len(self.files) else Chart(self.source, files)

    @cached_property
    def calls_tpl(self) -> bool:
        """Whether a template may run text as a template; of a packed subchart it is assumed."""
        return self._packed or any(_TPL.search(text) for text in self._templates)

    @cached_property
    def names_options(self) -> bool:
        """Whether templates use ``user_options`` one by one, by name, and never all of them.

        So they cannot notice how many there are, which spares the guard a render. Whatever uses all
        values at once may use all options.
        """
        return not self.calls_tpl and not any(_ALL_OPTIONS.search(text) for text in self._templates)

    @cached_property
    def _packed(self) -> bool:
        return any(name.endswith(_SUFFIXES) for name in self.files)

    @cached_property
    def _templates(self) -> list[bytes]:
        return [data for name, data in self.files.items() if "templates/" in name]

    def judged(self, values: Mapping[str, Any]) -> str | None:
        """A hash of all that the schema looks at in ``values``; None if that cannot be told.

        Checking a schema costs Helm as much as rendering, and what it looks at is mostly the same
        for all users: values that differ in nothing else need not be checked again.
        """
        if self._schema_keys is None:
            return None
        looked_at = {key: values[key] for key in self._schema_keys & values.keys()}
        nulls = sorted((key, value is None) for key, value in values.items())
        text = json.dumps([self.digest, nulls, looked_at], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _schema_keys(self) -> frozenset[str] | None:
        """The top-level values that the schema names, if it judges each by itself."""
        schemas = [name for name in self.files if PurePosixPath(name).name == SCHEMA]
        if schemas != [SCHEMA] or any(name.endswith(_SUFFIXES) for name in self.files):
            return None
        try:
            schema = json.loads(self.files[SCHEMA])
        except (ValueError, RecursionError):
            return None
        if not isinstance(schema, dict) or not schema.keys() <= _EACH_BY_ITSELF:
            return None
        properties = schema.get("properties", {})
        return frozenset(properties) if isinstance(properties, dict) else None


def check_template(path: Path) -> Chart:
    """The chart at ``path``, which may block while it is read.

    Raises:
        TemplateError: it is none that can render; the message says what is missing.
    """
    chart = _read(path)[1]
    _check(chart)
    return chart


class ChartSource:
    """The chart at ``path``, read again when a file of it has changed."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._lock = asyncio.Lock()
        self._looked = float("-inf")
        self._fingerprint: Fingerprint | None = None
        self._chart: Chart | None = None

    async def current(self) -> Chart:
        """The newest chart that is whole; a broken edit is logged and the one before stays."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._chart is None or now - self._looked >= SECONDS_BETWEEN_LOOKS:
                await self._look()
                self._looked = now
            if self._chart is None:  # pragma: no cover - _look raised
                raise TemplateError(f"{self._path} was not read.")
            return self._chart

    async def _look(self) -> None:
        try:
            fingerprint = await asyncio.to_thread(_fingerprint, self._path)
            if fingerprint == self._fingerprint:
                return
            fingerprint, chart = await asyncio.to_thread(_read, self._path)
            _check(chart)
        except TemplateError as error:
            if self._chart is None:
                raise
            self._log.error(
                "The template stays as it was, for its new version is broken: %s", error
            )
            return
        self._fingerprint, self._chart = fingerprint, chart


def _read(path: Path) -> tuple[Fingerprint, Chart]:
    """The chart between two equal looks at its files: a copy in progress is waited for, briefly."""
    for _ in range(5):
        before = _fingerprint(path)
        try:
            files = dict(_archive(path)) if _is_archive(path) else _folder(_root(path))
        except FileNotFoundError:  # replaced under our eyes
            continue
        except OSError as error:
            raise TemplateError(f"The template {path} cannot be read: {error.strerror}.") from error
        if _fingerprint(path) == before:
            return before, Chart(str(path), _inside(path, _unflattened(files)))
    raise TemplateError(f"The template {path} keeps changing while it is read; try again.")


def _fingerprint(path: Path) -> Fingerprint:
    try:
        if _is_archive(path):
            return (_stamp("", path.stat()),)
        if path.is_dir():
            root = _root(path)
            return (_stamp(str(root), root.stat()), *sorted(_stamps(root)))
    except OSError as error:
        raise TemplateError(f"The template {path} cannot be read: {error.strerror}.") from error
    if path.exists():
        raise TemplateError(f"The template {path} is neither a folder nor a .tgz archive.")
    raise TemplateError(
        f"There is no template at {path}. It must be a Helm chart: a folder with Chart.yaml and "
        "templates/, or a .tgz archive of one."
    )


def _stamps(root: Path) -> Iterator[tuple[str, int, int, int]]:
    for name, path in _walk(root):
        try:
            yield _stamp(name, path.stat())
        except FileNotFoundError:
            continue


def _stamp(name: str, stat: os.stat_result) -> tuple[str, int, int, int]:
    return name, stat.st_mtime_ns, stat.st_size, stat.st_ino


def _is_archive(path: Path) -> bool:
    return path.name.endswith(_SUFFIXES) and path.is_file()


def _root(path: Path) -> Path:
    """A ConfigMap's folder is a set of links through `..data`, which is replaced as one."""
    data = path / "..data"
    return data.resolve() if data.is_dir() else path.resolve()


def _folder(root: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    size = 0
    for name, path in _walk(root):
        files[name] = path.read_bytes()
        size += len(files[name])
        _check_size(root, len(files), size)
    return files


def _walk(folder: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Path]]:
    """All files below, links followed, without the kubelet's and git's own."""
    if depth > MAX_FOLDERS_DEEP:
        raise TemplateError(f"{folder} lies too many folders deep for a chart; is a link circular?")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("..") or entry.name == ".git":
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)
        elif entry.is_file():
            yield prefix + entry.name, Path(entry.path)


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a packed chart, without the folder that they all lie in."""
    data = path.read_bytes()
    size = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for count, member in enumerate(archive):
                name = PurePosixPath(member.name)
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is None:
                    continue
                if _leaves(name) or len(name.parts) < 2:
                    raise TemplateError(
                        f"The archive {path} is not a chart's: it holds {member.name!r}."
                    )
                size += member.size
                _check_size(path, count, size)
                yield str(PurePosixPath(*name.parts[1:])), stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise TemplateError(f"The archive {path} cannot be unpacked: {error}.") from error


def _check_size(path: Path, count: int, size: int) -> None:
    if count > MAX_FILES or size > MAX_BYTES:
        raise TemplateError(
            f"{path} holds more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB, too much for a "
            "chart; is it the right path?"
        )


def _unflattened(files: dict[str, bytes]) -> dict[str, bytes]:
    """A ConfigMap's keys hold no slash: `templates__pod.yaml` means `templates/pod.yaml`."""
    flat = not any(name.startswith("templates/") for name in files)
    if flat and any(name.startswith("templates__") for name in files):
        return {name.replace("__", "/"): data for name, data in files.items()}
    return files


def _inside(path: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """``files``, none of which lies outside the chart: Helm gets them written by these names."""
    for name in files:
        if not plain.is_text(name):
            raise TemplateError(
                f"The template {path} has a file {name!r}, whose name is not UTF-8 text: rename it."
            )
        if _leaves(PurePosixPath(name)):
            raise TemplateError(
                f"The template {path} is not a chart: one of its files would be {name!r}, outside "
                "of it. In a ConfigMap's keys `__` stands for `/`: rename that key."
            )
    return files


def _leaves(name: PurePosixPath) -> bool:
    return name.is_absolute() or ".." in name.parts


def _check(chart: Chart) -> None:
    if "Chart.yaml" not in chart.files:
        raise TemplateError(_no_chart(chart))
    about = _mapping(chart, "Chart.yaml")
    for key in ("apiVersion", "name", "version"):
        if not isinstance(about.get(key), str):
            raise TemplateError(
                f"{chart.source}/Chart.yaml needs `{key}` as text; a small one is "
                "`apiVersion: v2`, `name: user-server`, `version: 0.1.0`."
            )
    if about.get("type") == "library":
        raise TemplateError(f"{chart.source} is a library chart, which renders nothing by itself.")
    if not any(name.startswith("templates/") for name in chart.files) and not _subcharts(chart):
        raise TemplateError(f"{chart.source} has no templates/, so it would render nothing.")
    _check_dependencies(chart, about)


def _check_dependencies(chart: Chart, about: Mapping[str, Any]) -> None:
    """Helm's library renders without what is missing, and says nothing."""
    dependencies = _declared(chart, "Chart.yaml", about)
    if "requirements.yaml" in chart.files:
        requirements = _mapping(chart, "requirements.yaml")
        dependencies = [*dependencies, *_declared(chart, "requirements.yaml", requirements)]
    subcharts = _subcharts(chart)
    for dependency in dependencies:
        name = dependency.get("name") if isinstance(dependency, dict) else None
        if not isinstance(name, str):
            raise TemplateError(
                f"The chart {chart.source} has a dependency without a name: look at `dependencies` "
                "in Chart.yaml or requirements.yaml."
            )
        if not any(_holds(entry, name) for entry in subcharts):
            raise TemplateError(
                f"The chart {chart.source} depends on {name!r}, which is not in its charts/. "
                f"Run `helm dependency build {chart.source}` and ship charts/ with it."
            )


def _declared(chart: Chart, name: str, content: Mapping[str, Any]) -> list[Any]:
    declared = content.get("dependencies") or []
    if not isinstance(declared, list):
        raise TemplateError(f"{chart.source}/{name} needs `dependencies` as a list.")
    return declared


def _holds(entry: str, dependency: str) -> bool:
    packed = entry.startswith(f"{dependency}-") and entry.endswith(".tgz")
    return entry == dependency or packed


def _subcharts(chart: Chart) -> set[str]:
    return {name.split("/")[1] for name in chart.files if name.startswith("charts/")}


def _mapping(chart: Chart, name: str) -> dict[str, Any]:
    source = f"{chart.source}/{name}"
    try:
        documents = kubeyaml.load_all(chart.files[name].decode(), source)
    except UnicodeDecodeError:
        raise TemplateError(f"{source} is not UTF-8 text.") from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise TemplateError(f"{source} must be one YAML mapping.")
    return documents[0]


def _no_chart(chart: Chart) -> str:
    folders = sorted(name.split("/")[0] for name in chart.files if name.count("/") == 1
                   and name.endswith("/Chart.yaml"))  # fmt: skip
    if folders:
        return f"{chart.source} is not a chart, but {chart.source}/{folders[0]} is: name that one."
    return (
        f"{chart.source} is not a Helm chart: it has no Chart.yaml. A chart is a folder with "
        "Chart.yaml and templates/; in a ConfigMap the keys are `Chart.yaml` and, for "
        "`templates/pod.yaml`, `templates__pod.yaml`."
    )
