"""containerd from outside: importing images, and removing what a cluster left in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from e2e.cluster import processes
from e2e.cluster.commands import run
from e2e.cluster.local.layout import CGROUP, Layout
from e2e.cluster.model import ClusterError

CGROUPS = Path("/sys/fs/cgroup")


def ctr(at: Layout, *arguments: str | Path) -> str:
    """Call containerd's own client in the kubelet's part of it."""
    program = (at.programs.program("ctr"), "--address", at.socket, "--namespace", "k8s.io")
    return run(*program, *arguments, environment=at.programs.environment)


def answers(at: Layout) -> bool:
    """Whether the runtime takes calls."""
    try:
        ctr(at, "version")
    except ClusterError:
        return False
    return True


def import_image(at: Layout, archive: Path) -> None:
    """Load a docker archive and unpack it, so that the first pod need not wait for that."""
    ctr(at, "images", "import", archive)


def remove_containers(at: Layout) -> bool:
    """Remove the containers of an earlier cluster from the store; tell whether there were any.

    Their processes are gone; without this the next kubelet would spend its first seconds on them.
    """
    found = ctr(at, "containers", "list", "--quiet").split()
    for name in found:
        try:
            ctr(at, "containers", "delete", name)
        except ClusterError:  # its last task is still being taken down: the caller asks again
            continue
    return bool(found)


def cgroup_folders() -> list[Path]:
    """The cluster's cgroup in each hierarchy, or in the one of version 2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / CGROUP]
    roots = {root.resolve() for root in CGROUPS.iterdir() if (root / "cgroup.procs").exists()}
    return [root / CGROUP for root in sorted(roots)]


def make_cgroups() -> None:
    """The kubelet wants its root cgroup to be there, with the controllers it uses."""
    for folder in cgroup_folders():
        folder.mkdir(exist_ok=True)
        if (folder.parent / "cgroup.controllers").exists() and folder.parent == CGROUPS:
            offered = (folder.parent / "cgroup.controllers").read_text().split()
            for control in (folder.parent, folder):
                wanted = " ".join(f"+{name}" for name in offered)
                (control / "cgroup.subtree_control").write_text(wanted)
        for name in ("cpuset.cpus", "cpuset.mems"):
            # Version 1 starts a cpuset empty, and nothing can run in an empty one.
            if (folder / name).exists() and not (folder / name).read_text().strip():
                (folder / name).write_text((folder.parent / name).read_text())


def end_containers() -> None:
    """Kill every process in the cluster's cgroups, and remove the cgroups."""
    deadline = time.monotonic() + 20
    for root in filter(Path.is_dir, cgroup_folders()):
        while pids := _members(root):
            processes.stop(pids)
        for folder, _, _ in os.walk(root, topdown=False):
            _remove_cgroup(Path(folder), deadline)


def _members(root: Path) -> set[int]:
    found: set[int] = set()
    # The runtime may be removing its cgroups while we look.
    for folder, _, _ in os.walk(root):
        try:
            listed = Path(folder, "cgroup.procs").read_text()
        except OSError:
            continue
        found.update(int(pid) for pid in listed.split())
    return found - {0}


def _remove_cgroup(folder: Path, deadline: float) -> None:
    """The kernel lets go of a cgroup only a moment after its last process."""
    while True:
        try:
            return folder.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            if time.monotonic() > deadline:
                raise ClusterError(f"the cgroup {folder} stays busy") from None
            time.sleep(0.05)
