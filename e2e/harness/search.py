"""Looks for secrets in all places that a hub writes to and that a stranger can read."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from e2e.harness.hub import Hub
from e2e.harness.kube import Kube

ALLOWED = ("Secret",)
LINE = 40  # of a key: all of it is base64, so each line is a secret of its own


class Search:
    """For secrets by name, as they are and as Kubernetes and JSON write them."""

    def __init__(self, **secrets: str) -> None:
        assert all(len(secret) > 12 for secret in secrets.values())
        self.forms = {form: name for name, secret in secrets.items() for form in _forms(secret)}

    def found_in(self, content: bytes | str) -> set[str]:
        """The names of the secrets that are in it."""
        data = content.encode() if isinstance(content, str) else content
        return {name for form, name in self.forms.items() if form in data}

    def files(self, *folders: Path) -> list[str]:
        return [
            f"{path}: {name}"
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file()
            for name in self.found_in(path.read_bytes())
        ]

    def leaks(self, hub: Hub, kube: Kube, namespace: str, *folders: Path) -> list[str]:
        """Every place where one is: database, log, temporary files, processes, objects."""
        # What a hub with internal_ssl keeps of its own: keys that only its account may read.
        own = [path for path in hub.folder.iterdir() if path.name != "internal-ssl"]
        found = self.files(*folders, *(path for path in own if path.is_dir()))
        places = {str(path): path.read_bytes() for path in own if path.is_file()}
        places["the database"] = dump(hub).encode()
        for process in Path("/proc").glob("[0-9]*"):  # what `ps` shows to everybody
            places[f"{process}/cmdline"] = read(process / "cmdline")
        for process in children(hub.folder):  # such as Helm's worker
            places[f"{process}/environ"] = read(process / "environ")
        kinds = kube("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
        for item in kube.list(",".join(kinds), namespace):
            if item["kind"] not in ALLOWED:
                place = f"{item['kind']}/{item['metadata']['name']}"
                places[place] = json.dumps(item).encode()
        assert any(place.startswith("Pod/") for place in places)
        return found + [
            f"{place}: {n}" for place, text in places.items() for n in self.found_in(text)
        ]


def dump(hub: Hub) -> str:
    """All of the hub's database, as SQL."""
    with sqlite3.connect(hub.folder / "jupyterhub.sqlite") as connection:
        return "\n".join(connection.iterdump())


def children(folder: Path) -> Iterator[Path]:
    """The processes that were started by the one that runs in `folder`."""
    processes = list(Path("/proc").glob("[0-9]*"))
    parents = {process.name for process in processes if _runs_in(process, folder)}
    for process in processes:
        words = read(process / "stat").rpartition(b")")[2].split()
        if words and words[1].decode() in parents:
            yield process


def read(path: Path) -> bytes:
    """Its content; nothing once the process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _forms(secret: str) -> Iterator[bytes]:
    texts = [secret, *(line for line in secret.splitlines() if len(line) >= LINE)]
    for text in texts:
        yield text.encode()
        yield json.dumps(text)[1:-1].encode()
        yield base64.b64encode(text.encode()).rstrip(b"=")


def _runs_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False
