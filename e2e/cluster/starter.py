"""Starts the components of the local cluster, and shows the log of one that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from e2e.cluster import processes
from e2e.cluster.model import ClusterError
from e2e.cluster.record import Record

START_SECONDS = 60.0
"""How long one component may take before it counts as failed; on two busy cores."""


class Starter:
    """Starts components and waits for them; one that fails shows the end of its log."""

    def __init__(self, record: Record, logs: Path, environment: dict[str, str]) -> None:
        self.record = record
        self.logs = logs
        source = str(Path(__file__).parents[2])
        self.environment = environment | {"PYTHONPATH": source}

    def __call__(self, name: str, command: list[str]) -> None:
        found = processes.start(name, command, self.log(name), self.environment)
        self.record.processes.append(found)
        self.record.save()

    def log(self, name: str) -> Path:
        """The log file of a component."""
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process number of a component that was started."""
        return next(one.pid for one in reversed(self.record.processes) if one.name == name)

    def end(self, name: str) -> None:
        """Stop one component again."""
        processes.stop([self.pid(name)], grace=5)
        self.record.processes = [one for one in self.record.processes if one.name != name]
        self.record.save()

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a component works."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            self.check_all()
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{name} is not ready after {START_SECONDS:.0f} s; the end of its log:\n"
                    + processes.tail(self.log(name))
                )
            time.sleep(0.1)

    def check_all(self) -> None:
        """Fail as soon as any component has ended."""
        for process in self.record.processes:
            if not process.alive():
                raise ClusterError(
                    f"{process.name} ended; the end of its log:\n"
                    + processes.tail(self.log(process.name))
                )
