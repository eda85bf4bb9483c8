"""The cluster's processes: started detached, recognised for certain, stopped without leftovers."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.model import ClusterError, run_folder

MARK = "LTS_E2E_PROCESS"
"""An environment variable that every component and all its children carry.

Its value is the cluster's run folder. A process that was started just before its `up` was killed
is in no record; its mark tells."""


@dataclass(frozen=True)
class Process:
    """A process that stays the same even when its number is used again."""

    name: str
    pid: int
    started: int

    def alive(self) -> bool:
        """Whether it still runs; one that ended and was not yet collected does not."""
        return started_at(self.pid) == self.started


def started_at(pid: int) -> int | None:
    """When a process started, in ticks since boot; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def start(
    name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Process:
    """Start a component in a session of its own, so that it outlives the caller."""
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        command[0],
        [*command],
        os.environ | (environment or {}) | {MARK: str(run_folder())},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), writing, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return Process(name, pid, started_at(pid) or 0)


def marked() -> set[int]:
    """Every process of the cluster, recorded or not."""
    found = set()
    mark = f"{MARK}={run_folder()}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if mark in environment.split(b"\0"):
            found.add(int(entry.name))
    return found


def stop(pids: Iterable[int], grace: float = 0.0) -> None:
    """End processes and wait until they are gone: politely for `grace` seconds, then by force."""
    handles: dict[int, int] = {}
    for pid in pids:
        try:
            handles[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
    try:
        if grace:
            _signal_and_wait(handles, signal.SIGTERM, grace)
        if left := _signal_and_wait(handles, signal.SIGKILL, 10.0):
            raise ClusterError(f"processes that do not end, even when killed: {sorted(left)}")
    finally:
        for pid, handle in handles.items():
            os.close(handle)
            with suppress(ChildProcessError):  # an earlier run started it
                os.waitpid(pid, os.WNOHANG)


def _signal_and_wait(handles: Mapping[int, int], what: signal.Signals, seconds: float) -> set[int]:
    """Send a signal and return the processes that have not ended in time."""
    left = {handle: pid for pid, handle in handles.items()}
    for handle in left:
        try:
            signal.pidfd_send_signal(handle, what)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + seconds
    poll = select.poll()
    for handle in left:
        poll.register(handle, select.POLLIN)
    while left and (remaining := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(remaining * 1000):
            poll.unregister(handle)
            del left[handle]
    return set(left.values())


def tail(log: Path, lines: int = 25) -> str:
    """The end of a component's log, for the message about its failure."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty log)"
