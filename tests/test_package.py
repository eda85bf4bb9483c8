"""What the package offers from outside."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lightkube_template_spawner as package

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
HEAVY = ("jupyterhub", "kubespawner", "lightkube", "tornado", "traitlets", "anyio", "asyncio")


def python(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_public_names() -> None:
    assert package.__all__ == ["LightkubeTemplateSpawner", "__version__"]
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = package.Other


def test_importing_the_package_imports_no_hub_and_no_client() -> None:
    code = "import sys, lightkube_template_spawner; print(*sys.modules)"
    assert not set(HEAVY) & set(python(code).split())


def test_making_slugs_does_not_import_kubespawner() -> None:
    code = (
        "import sys\n"
        "from lightkube_template_spawner.objects.identity import Identity\n"
        "Identity('hub', 'a@b', 'My Server').user_server_slug\n"
        "print(*sys.modules)"
    )
    assert not set(HEAVY) & set(python(code).split())


def test_the_entry_point_gives_a_spawner_that_explains_all_its_traits_without_kubespawner() -> None:
    declared = PROJECT["entry-points"]["jupyterhub.spawners"]
    assert declared == {"lightkube-template": f"{package.__name__}:LightkubeTemplateSpawner"}
    code = (
        "import sys\n"
        "from importlib.metadata import EntryPoint\n"
        f"name, value = {next(iter(declared.items()))!r}\n"
        "ours = EntryPoint(name, value, 'jupyterhub.spawners').load()\n"
        "from jupyterhub.spawner import Spawner\n"
        "assert issubclass(ours, Spawner)\n"
        "assert 'kubespawner' not in sys.modules\n"
        "traits = ours.class_traits(config=True).items()\n"
        "print(ours.__name__, *(name for name, trait in traits if not trait.help.strip()))\n"
    )
    assert python(code) == "LightkubeTemplateSpawner"


def test_the_installed_distribution_is_this_one() -> None:
    try:
        installed = importlib.metadata.distribution(PROJECT["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the project is not installed, only on the path")
    points = installed.entry_points.select(group="jupyterhub.spawners")
    assert "lightkube-template" in points.names


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(package.__file__).parent / "py.typed").exists()
