"""The fault recorder, whose report is printed and, where `E2E_REPORT` names a file, written."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.faults import Fault, Faults, Report

REPORT = Report()


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    """Inject a fault several times and note what was seen; the file's name is the promise."""
    promise = request.path.stem.removeprefix("test_").replace("_", " ")
    return Faults(promise, REPORT)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After each test, so that a campaign of hours that is ended leaves its report."""
    path = os.environ.get("E2E_REPORT")
    if path and REPORT.faults and not hasattr(item.config, "workeroutput"):
        REPORT.write(Path(path))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where several processes test, each hands its part to the one that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["faults"] = [asdict(fault) for fault in REPORT.faults.values()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the part of a process that has ended."""
    for fields in getattr(node, "workeroutput", {}).get("faults", ()):
        REPORT.add(Fault(**fields))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REPORT.faults:
        terminalreporter.section("faults injected")
        terminalreporter.write(REPORT.text())
