"""Calling other programs: what they said is the message when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from e2e.cluster.model import ClusterError


def attempt(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program and return whatever came of it; `environment` adds to ours."""
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | dict(environment or {}),
        cwd=cwd,
        input=stdin,
    )


def run(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Run a program that has to work and return what it printed."""
    done = attempt(*command, environment=environment, cwd=cwd, stdin=stdin)
    if done.returncode:
        name = " ".join([Path(command[0]).name, *map(str, command[1:])])
        raise ClusterError(f"{name[:200]} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout
