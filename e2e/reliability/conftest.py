"""The fault recorder, whose report is printed and, where `E2E_REPORT` names a file, written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from e2e.reliability.faults import Faults, Report

REPORT = Report()


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    """Inject a fault several times and note what was seen; the file's name is the promise."""
    promise = request.path.stem.removeprefix("test_").replace("_", " ")
    return Faults(promise, REPORT)


def pytest_runtest_teardown() -> None:
    """After each test, so that a campaign of hours that is ended leaves its report."""
    path = os.environ.get("E2E_REPORT")
    if path and REPORT.faults:
        REPORT.write(Path(path))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REPORT.faults:
        terminalreporter.section("faults injected")
        terminalreporter.write(REPORT.text())
