"""Take the API server away from everybody: its process, what its etcd remembers, or its packets.

    with control_plane(cluster) as plane: plane.kill(); plane.compact(); plane.start()
    with dropped(proxy.port, cluster) as drop: ...  # drop.packets() so far

Both need a local cluster, whose parts are processes of this machine: `controllable` says whether it
is one. With kind or a given cluster the fault proxy is what is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster import Cluster, processes, record
from e2e.cluster.commands import run
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.model import cache_folder
from e2e.cluster.network import PRIVATE
from e2e.cluster.packages import PROGRAMS, Packages, packages

API_SERVER = "kube-apiserver"
_ETCD = f"http://{PRIVATE}:2379/v3/kv"
_TABLE = "lts_e2e_fault"


def controllable(cluster: Cluster) -> bool:
    """Whether the cluster's parts are processes of this machine, and we may stop them."""
    return cluster.provider == "local"


class ControlPlane:
    """The parts of a local cluster, by their name."""

    def __init__(self, cluster: Cluster) -> None:
        self._call = Kubectl(cluster.kubectl, cluster.kubeconfig)
        self._suspended: set[str] = set()
        self._killed: dict[str, tuple[list[str], dict[str, str]]] = {}

    def suspend(self, name: str = API_SERVER) -> None:
        """Connections stay open, the system accepts more, and nothing is answered."""
        self._suspended.add(name)
        os.kill(self._part(name).pid, signal.SIGSTOP)

    def resume(self, name: str = API_SERVER) -> None:
        os.kill(self._part(name).pid, signal.SIGCONT)
        self._suspended.discard(name)

    def kill(self, name: str = API_SERVER) -> None:
        """End it as a lack of memory does; it is not started again by itself."""
        proc = Path(f"/proc/{self._part(name).pid}")
        command = proc.joinpath("cmdline").read_text().split("\0")[:-1]
        pairs = proc.joinpath("environ").read_text().split("\0")[:-1]
        self._killed[name] = command, dict(pair.split("=", 1) for pair in pairs)
        processes.stop([self._part(name).pid])

    def start(self, name: str = API_SERVER) -> None:
        """Start it again as it was, and note it in the cluster's record."""
        found = self._record()
        command, environment = self._killed.pop(name)
        log = Path(found.data) / "logs" / f"{name}.log"
        fresh = processes.start(name, command, log, environment)
        found.processes = [fresh if one.name == name else one for one in found.processes]
        found.save()

    def compact(self) -> None:
        """Make etcd forget the past, so that nobody can go on from where they were."""
        now = _etcd("range", {"key": "AA=="})["header"]["revision"]
        _etcd("compaction", {"revision": now, "physical": True})

    def wait_until_ready(self) -> None:
        """Wait for the API server."""
        deadline = time.monotonic() + 60
        while not self._call.succeeds("get", "--raw=/readyz", "--request-timeout=2s"):
            if time.monotonic() > deadline:
                raise TimeoutError("the API server does not come back")
            time.sleep(0.05)

    def undo(self) -> None:
        """Leave everything running."""
        for name in tuple(self._suspended):
            self.resume(name)
        for name in tuple(self._killed):
            self.start(name)
        self.wait_until_ready()

    def _part(self, name: str) -> processes.Process:
        return next(one for one in self._record().processes if one.name == name)

    def _record(self) -> record.Record:
        found = record.load()
        assert found is not None, "no local cluster runs"
        return found


@contextmanager
def control_plane(cluster: Cluster) -> Iterator[ControlPlane]:
    """The parts to play with; at the end they run as before."""
    plane = ControlPlane(cluster)
    try:
        yield plane
    finally:
        plane.undo()


@dataclass
class Drop:
    """Packets of one port that go nowhere."""

    programs: Packages

    def nft(self, *words: str) -> str:
        return run(self.programs.program("nft"), *words, environment=self.programs.environment)

    def packets(self) -> int:
        """How many were dropped."""
        return sum(map(int, re.findall(r"packets (\d+)", self.nft("list", "table", _TABLE))))


@contextmanager
def dropped(port: int) -> Iterator[Drop]:
    """Drop every packet to and from a port of this machine: connections stay open and dead."""
    drop = Drop(packages(cache_folder(), PROGRAMS, print))
    drop.nft("add", "table", _TABLE)
    try:
        hook = "{ type filter hook input priority 0; }"
        drop.nft("add", "chain", _TABLE, "input", hook)
        for way in ("dport", "sport"):
            drop.nft("add", "rule", _TABLE, "input", "tcp", way, str(port), "counter", "drop")
        yield drop
    finally:
        drop.nft("delete", "table", _TABLE)


def _etcd(what: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{_ETCD}/{what}", json.dumps(body).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return json.load(answer)
