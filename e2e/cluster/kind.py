"""The cluster on kind, where a Docker or Podman engine answers."""

from __future__ import annotations

import shutil
import subprocess
from e2e.cluster.model import Cluster, Log
from e2e.cluster.record import Record


def engine() -> str:
    """The engine that answers, or nothing; a client alone is not enough."""
    for name in ("docker", "podman"):
        if (
            shutil.which(name)
            and not subprocess.run([name, "info"], capture_output=True).returncode
        ):
            return name
    return ""


def up(record: Record | None, name: str, log: Log) -> Cluster:
    raise NotImplementedError


def down(record: Record, log: Log) -> None:
    raise NotImplementedError
