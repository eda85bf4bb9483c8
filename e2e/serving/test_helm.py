"""The renderer's tests once more with a real `helm` command, which unit tests do without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster.build import build
from e2e.cluster.model import cache_folder
from e2e.conftest import report

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def helm() -> str:
    """The folder of a helm command: of the machine, else built from its Go module."""
    found = shutil.which("helm")
    return str(Path(found).parent if found else build(cache_folder(), "helm", report))


def test_the_command_renders_as_the_library_does(helm: str) -> None:
    path = os.pathsep.join([helm, os.environ["PATH"]])
    command = [sys.executable, "-m", "pytest", "-q", "tests/templates/test_renderer.py"]
    done = subprocess.run(
        [*command, "-k", "command or engines_agree"],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert "passed" in done.stdout
