"""What is running, written down so that any later call can find it, repair it or remove it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from e2e.cluster.kubectl import Kubectl
from e2e.cluster.model import Cluster, ClusterError, Log, StorageClasses, run_folder
from e2e.cluster.processes import Process


@dataclass
class Record:
    """One cluster's traces on this machine; saved before each trace is made, not after."""

    name: str
    provider: str
    data: str
    """The folder with everything that is thrown away with the cluster."""
    cluster: dict[str, Any] | None = None
    """Set once the cluster is ready; a record without it is of a run that did not get there."""
    processes: list[Process] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    """Folders that the machine did not have before."""
    settings: dict[str, str] = field(default_factory=dict)
    """Kernel settings, by file under /proc/sys, as they were before."""

    def save(self) -> None:
        """Write the record in one step, so that a reader never sees half of it."""
        folder = run_folder()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        write_whole(folder / "record.json", text)

    def finish(self, cluster: Cluster) -> None:
        """Note that the cluster is ready and what its users have to know."""
        self.cluster = asdict(cluster) | {
            "kubeconfig": str(cluster.kubeconfig),
            "kubectl": str(cluster.kubectl),
        }
        self.save()

    def healthy(self, cluster: Cluster) -> bool:
        """Whether every process lives and the node is ready."""
        if not all(process.alive() for process in self.processes):
            return False
        call = Kubectl(cluster.kubectl, cluster.kubeconfig)
        ready = ("wait", "--for=condition=Ready", f"node/{cluster.node}", "--timeout=5s")
        return call.succeeds(*ready)

    def described(self) -> Cluster | None:
        """The cluster as its users see it, if it ever became ready."""
        if self.cluster is None:
            return None
        found = dict(self.cluster)
        found["kubeconfig"] = Path(found["kubeconfig"])
        found["kubectl"] = Path(found["kubectl"])
        found["storage_classes"] = StorageClasses(*found["storage_classes"])
        return Cluster(**found)


def load() -> Record | None:
    """The record of the cluster on this machine, or None."""
    try:
        found = json.loads((run_folder() / "record.json").read_text())
    except FileNotFoundError:
        return None
    found["processes"] = [Process(**process) for process in found["processes"]]
    return Record(**found)


def remove_files(record: Record) -> None:
    """Forget the cluster, keeping its logs in the cache until the next one's.

    A folder with something mounted in it is not removed: it could be a pod's volume.
    """
    data = Path(record.data)
    if (data / "logs").is_dir():
        shutil.rmtree(data.parent / "last-logs", ignore_errors=True)
        (data / "logs").rename(data.parent / "last-logs")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for folder in (data, run_folder()):
        for mounted in mounts:
            if Path(mounted).is_relative_to(folder):
                raise ClusterError(f"not removing {folder}: {mounted} is still mounted")
        if folder.exists():
            shutil.rmtree(folder)


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that it is there completely or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as out:
        out.write(text)
    Path(out.name).chmod(mode)
    Path(out.name).replace(path)


@contextmanager
def locked(log: Log) -> Iterator[None]:
    """Let one `up` or `down` at a time touch the machine; others wait and say so."""
    path = run_folder().with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another run is starting or stopping the cluster: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        # The run before us may have removed the file while we waited for it.
        try:
            if path.stat().st_ino == os.fstat(handle).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def refuse_other(record: Record | None, name: str) -> None:
    """Refuse to start or stop one cluster under the name of another."""
    if record is not None and record.name != name:
        raise ClusterError(
            f"the cluster {record.name!r} runs on this machine, and only one fits:"
            f" use it, or stop it with `python -m e2e.cluster down --name {record.name}`"
        )
