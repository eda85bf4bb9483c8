"""Removes every trace of the local cluster from the machine."""

from __future__ import annotations

import time
from pathlib import Path

from e2e.cluster import network, processes
from e2e.cluster.local import runtime
from e2e.cluster.local.layout import Layout
from e2e.cluster.model import Log
from e2e.cluster.record import Record, remove_files


def down(record: Record, at: Layout, log: Log) -> None:
    """Whatever state the cluster is in; a second call finds nothing to do."""
    alive = {one.name: one.pid for one in record.processes if one.alive()}
    everything = set(alive.values()) | processes.marked()
    if everything:
        log(f"stopping {len(everything)} processes")
    # The kubelet goes first: it would start again what is ended below.
    if "kubelet" in alive:
        processes.stop([alive["kubelet"]])
    runtime.end_containers()
    if "containerd" in alive and runtime.answers(at):
        # Its store outlives the cluster; the containers in it must not.
        deadline = time.monotonic() + 10
        while runtime.remove_containers(at) and time.monotonic() < deadline:
            time.sleep(0.1)
    processes.stop(set(alive.values()) | processes.marked())
    runtime.end_containers()
    network.down(at.programs, record)
    remove_files(record)
    for folder in reversed(record.created):
        try:
            Path(folder).rmdir()
        except OSError:  # somebody else uses it by now
            log(f"{folder} was made for the cluster and is in use: left alone")
