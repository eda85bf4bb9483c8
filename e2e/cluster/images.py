"""Container images: a tiny one made here, and loading archives only when they changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.model import PAUSE_IMAGE, TINY_IMAGE, Log
from e2e.cluster.packages import packages
from e2e.cluster.user_image import build_image


def archives(cache: Path, log: Log) -> list[Path]:
    """All images that pods of the tests use, in files that every runtime takes."""
    busybox = packages(cache, {}, log).file("bin/busybox")
    return [tiny_archive(cache, busybox), build_image(cache, log)]


def tiny_archive(cache: Path, busybox: Path) -> Path:
    """A docker archive with one busybox under two names: a test image and the pods' sandbox."""
    archive = cache / "tiny.tar"
    if archive.exists() and archive.stat().st_mtime >= busybox.stat().st_mtime:
        return archive
    layer = _layer(busybox)
    configs = {
        TINY_IMAGE: _config(layer, ["sh"]),
        PAUSE_IMAGE: _config(layer, ["sleep", "infinity"]),
    }
    names = {image: f"{hashlib.sha256(text).hexdigest()}.json" for image, text in configs.items()}
    manifest = [
        {"Config": names[image], "RepoTags": [image], "Layers": ["layer.tar"]} for image in configs
    ]
    scratch = archive.with_suffix(f".{os.getpid()}")
    with tarfile.open(scratch, "w") as out:
        _add(out, "layer.tar", layer)
        for image, text in configs.items():
            _add(out, names[image], text)
        _add(out, "manifest.json", json.dumps(manifest).encode())
    scratch.rename(archive)
    return archive


def _layer(busybox: Path) -> bytes:
    applets = run(busybox, "--list").split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for folder, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("home", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            out.addfile(entry)
        _add(out, "bin/busybox", busybox.read_bytes(), 0o755)
        for name in sorted(set(applets) - {"busybox"}):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            out.addfile(entry)
        users = "root:x:0:0:root:/:/bin/sh\njovyan:x:1000:100:user:/tmp:/bin/sh\n"
        _add(out, "etc/passwd", users.encode())
        _add(out, "etc/group", b"root:x:0:\nusers:x:100:\n")
    return buffer.getvalue()


def _config(layer: bytes, command: list[str]) -> bytes:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    document = {
        "architecture": machine,
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    return json.dumps(document, sort_keys=True).encode()


def _add(out: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    out.addfile(entry, io.BytesIO(content))


def load(archive: Path, note: Path, importer: Callable[[Path], None], log: Log) -> None:
    """Import an archive unless the note beside the image store says that it is in there.

    The digest is taken of a file's size and time, not of its 700 megabytes.
    """
    state = archive.stat()
    signature = f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
    known: dict[str, str] = json.loads(note.read_text()) if note.exists() else {}
    if known.get(archive.name) == signature:
        return
    log(f"loading {archive.name} ({state.st_size / 1e6:.0f} MB)")
    importer(archive)
    note.write_text(json.dumps(known | {archive.name: signature}))
