"""What one process did between two moments: seconds, CPU, memory, requests."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from kubernetes_asyncio.client.rest import RESTClientObject

REQUESTS: Counter[str] = Counter()
"""By method, of both HTTP clients; filled once `count_requests` was called."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PEAK_FROM_NOW = "5"


@dataclass
class Cost:
    """Filled when the block of `measured` ends."""

    seconds: float = 0
    cpu: float = 0
    worker_cpu: float = 0
    peak_mib: float = 0
    requests: dict[str, int] = field(default_factory=dict)


def count_requests() -> None:
    """Count what leaves this process, below everything that could repeat or skip a request."""
    ours: Any = httpx2.AsyncHTTPTransport
    send = ours.handle_async_request
    ours.handle_async_request = _counting(send, lambda request: str(request.method))
    theirs: Any = RESTClientObject
    theirs.request = _counting(theirs.request, str)


def _counting(send: Callable[..., Any], method_of: Callable[[Any], str]) -> Callable[..., Any]:
    async def counted(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
        REQUESTS[method_of(first)] += 1
        return await send(self, first, *args, **kwargs)

    return counted


@contextmanager
def measured() -> Iterator[Cost]:
    """Everything that happens in this process, and the CPU of those that it started."""
    cost, before = Cost(), REQUESTS.copy()
    Path("/proc/self/clear_refs").write_text(_PEAK_FROM_NOW)
    memory, worker = _memory("VmRSS"), _children_cpu()
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.seconds, cost.cpu = time.perf_counter() - wall, time.process_time() - cpu
    cost.worker_cpu = _children_cpu() - worker
    cost.peak_mib = _memory("VmHWM") - memory
    cost.requests = dict(REQUESTS - before)


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _children_cpu() -> float:
    pids = {
        pid
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    }
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / _TICKS
