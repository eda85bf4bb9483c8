"""The import contracts hold, and whatever breaches one is told under that contract's name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest

import lightkube_template_spawner as package

PACKAGE = package.__name__
SETTINGS = Path(__file__).parents[1] / "pyproject.toml"
CONTRACTS = tomllib.loads(SETTINGS.read_text())["tool"]["importlinter"]["contracts"]

Breach = tuple[str, str]  # what imports, what it imports

# What CONTRIBUTING says, whatever the contracts are called.
HOUSE_RULES: list[Breach] = [
    *((f"{PACKAGE}.lifecycle", module) for module in ("lightkube", "httpx2", "jupyterhub")),
    *((f"{PACKAGE}.cluster", module) for module in ("jupyterhub", "traitlets", "sqlalchemy")),
    *((f"{PACKAGE}.templates", module) for module in ("lightkube", "jupyterhub", "tornado")),
    *((f"{PACKAGE}.profiles", module) for module in ("asyncio", "lightkube", "jupyterhub")),
    *((f"{PACKAGE}.objects", module) for module in ("asyncio", "anyio", "lightkube", "traitlets")),
    *((f"{PACKAGE}.choices", module) for module in ("jupyterhub", "traitlets", "asyncio")),
    (f"{PACKAGE}.cli", "lightkube"),
    (f"{PACKAGE}.hub", "httpx2"),
    (f"{PACKAGE}.cluster.cluster", "httpx2"),
    (f"{PACKAGE}.hub", f"{PACKAGE}.spawner"),
    (f"{PACKAGE}.lifecycle", f"{PACKAGE}.hub"),
    (f"{PACKAGE}.lifecycle", f"{PACKAGE}.profiles"),
    (f"{PACKAGE}.profiles", f"{PACKAGE}.lifecycle"),
    (f"{PACKAGE}.templates", f"{PACKAGE}.profiles"),
    (f"{PACKAGE}.cluster", f"{PACKAGE}.lifecycle"),
    (f"{PACKAGE}.cluster", f"{PACKAGE}.templates"),
    (f"{PACKAGE}.templates", f"{PACKAGE}.cluster"),
    (f"{PACKAGE}.objects", f"{PACKAGE}.cluster"),
    (f"{PACKAGE}.concurrency", f"{PACKAGE}.objects"),
    (f"{PACKAGE}.errors", f"{PACKAGE}.concurrency"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to be breached."""
    shutil.copytree(
        Path(package.__file__).parent,
        tmp_path / PACKAGE,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", SETTINGS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "COLUMNS": "1000"},  # lines are not to be wrapped
        capture_output=True,
        text=True,
        check=False,
    )


def broken(folder: Path) -> dict[str, str]:
    """What is told of each broken contract, by its name."""
    run = lint(folder)
    assert run.returncode == 1, run.stdout + run.stderr
    _, _, report = run.stdout.partition("Broken contracts\n")
    names = "|".join(re.escape(contract["name"]) for contract in CONTRACTS)
    _, *parts = re.split(rf"^({names})\n-+\n", report, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def plant(folder: Path, importer: str, imported: str) -> None:
    path = folder / Path(*importer.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert path.exists(), importer
    with path.open("a") as file:
        file.write(f"\nimport {imported}\n")


def told(breach: Breach) -> str:
    importer, imported = breach
    return f"{importer} -> {imported} (l."


def breaches(contract: dict[str, Any]) -> Iterator[Breach]:
    """Every import, of one module by another that the contract names, that it does not allow."""
    if contract["type"] == "forbidden":
        yield from product(contract["source_modules"], contract["forbidden_modules"])
        return
    for container in contract["containers"]:
        higher: list[str] = []
        for layer in contract["layers"]:
            modules = [f"{container}.{name.strip()}" for name in layer.split("|")]
            yield from product(modules, higher)
            yield from permutations(modules, 2)
            higher += modules


def test_the_contracts_hold() -> None:
    run = lint(SETTINGS.parent)
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(f"{contract['name']} KEPT" in run.stdout for contract in CONTRACTS)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: str(contract["name"]))
def test_each_breach_of_a_contract_is_told_under_its_name(
    copy: Path, contract: dict[str, Any]
) -> None:
    planted = list(breaches(contract))
    assert planted
    for breach in planted:
        plant(copy, *breach)
    report = broken(copy)[contract["name"]]
    assert [breach for breach in planted if told(breach) not in report] == []


@pytest.mark.parametrize(
    "contract",
    [contract for contract in CONTRACTS if contract["type"] == "layers"],
    ids=lambda contract: str(contract["name"]),
)
def test_a_new_module_must_be_given_its_layer(copy: Path, contract: dict[str, Any]) -> None:
    for container in contract["containers"]:
        (copy / Path(*container.split(".")) / "newcomer.py").touch()
        assert f"- {container}.newcomer" in broken(copy)[contract["name"]]


def test_the_house_rules_are_contracts(copy: Path) -> None:
    for breach in HOUSE_RULES:
        plant(copy, *breach)
    report = "".join(broken(copy).values())
    assert [breach for breach in HOUSE_RULES if told(breach) not in report] == []


def test_one_breach_breaks_no_contract_but_those_that_forbid_it(copy: Path) -> None:
    plant(copy, f"{PACKAGE}.cluster.cluster", "httpx2")
    assert list(broken(copy)) == [
        contract["name"]
        for contract in CONTRACTS
        if contract.get("source_modules") == [PACKAGE] and "httpx2" in contract["forbidden_modules"]
    ]
