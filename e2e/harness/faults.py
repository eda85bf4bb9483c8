"""How often each fault is injected, how long an outage lasts, and the report of what was seen.

    for turn in faults("the API server answers 503"):
        ...inject, look, assert...
        faults.saw("the watch was back after", seconds)

`E2E_REPEAT` (2) and `E2E_OUTAGE` (5 seconds) set both; `tox run -e soak` sets 20 and 60. A turn
counts as held when the loop's body came to its end.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

REPEAT = int(os.environ.get("E2E_REPEAT", "2"))
OUTAGE = float(os.environ.get("E2E_OUTAGE", "5"))


@dataclass
class Fault:
    """One kind of fault: how often it was injected, how often the promise held, what was seen."""

    promise: str
    injected: str
    turns: int = 0
    held: int = 0
    seconds: float = 0.0
    seen: dict[str, list[float]] = field(default_factory=dict)

    @property
    def observations(self) -> str:
        """Each measurement as its median and its largest value."""
        return "; ".join(
            f"{what} {statistics.median(values):.2f} (at most {max(values):.2f})"
            for what, values in self.seen.items()
        )


@dataclass
class Faults:
    """The faults of one test; `promise` is the name of its file, as the report groups them."""

    promise: str
    report: Report
    current: Fault | None = None

    def __call__(self, injected: str, times: int = REPEAT) -> Iterator[int]:
        fault = self.current = self.report.fault(self.promise, injected)
        for _ in range(times):
            fault.turns += 1
            began = time.monotonic()
            yield fault.turns
            fault.seconds += time.monotonic() - began
            fault.held += 1

    def saw(self, what: str, value: float) -> None:
        """Note a measurement of the fault at hand: seconds, or a count that `what` names."""
        assert self.current is not None, "nothing was injected yet"
        self.current.seen.setdefault(what, []).append(value)
        print(f"{self.promise}, {self.current.injected}: {what} {value:.2f}", flush=True)


@dataclass
class Report:
    """All faults of one run, as a table that `docs/explanation/reliability.md` can quote."""

    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)

    def fault(self, promise: str, injected: str) -> Fault:
        """The fault of this name; one that several tests inject is counted together."""
        return self.faults.setdefault((promise, injected), Fault(promise, injected))

    def add(self, fault: Fault) -> None:
        """Put in what another process has seen."""
        self.faults[fault.promise, fault.injected] = fault

    def text(self) -> str:
        """Markdown: one table a promise, one row a fault."""
        lines: list[str] = []
        for promise, group in groupby(sorted(self.faults.values(), key=_place), _promise):
            head = "| injected | times | held | seen |\n|---|---|---|---|"
            lines += [f"## {promise[:1].upper()}{promise[1:]}", "", head]
            for fault in group:
                seen = f"{fault.observations}; " if fault.seen else ""
                each = f"{seen}{fault.seconds / max(fault.held, 1):.0f} s a turn"
                lines.append(f"| {fault.injected} | {fault.turns} | {fault.held} | {each} |")
            lines.append("")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write the table; a run that ends early has written what it has seen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text())


def _promise(fault: Fault) -> str:
    return fault.promise


def _place(fault: Fault) -> tuple[str, str]:
    return fault.promise, fault.injected
