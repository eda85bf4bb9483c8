"""What every part of the cluster shares: its description, its names and where its files live."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from e2e.cluster.user_image import IMAGE

Log = Callable[[str], None]

TINY_IMAGE = "localhost/tiny:e2e"
"""A static busybox: a shell, `sleep`, `httpd`, `wget` and `nslookup` in one megabyte."""

PAUSE_IMAGE = "localhost/pause:e2e"

DEFAULT_NAME = "lts-e2e"
NODE = "e2e-node"
FAKE_NODE = "e2e-fake"
FAKE_NODE_TAINT = "kwok.x-k8s.io/node"
DNS_DOMAIN = "cluster.local"
LOST_NODE_SECONDS = 10
"""How long a silent node counts as alive; its pods are given up 5 seconds later."""
PROVISIONER = "e2e.lightkube-template-spawner/local"


class StorageClasses(NamedTuple):
    """The two ways a volume can be bound; both grow, both are removed with their claim."""

    immediate: str
    wait_for_first_consumer: str


STORAGE_CLASSES = StorageClasses("e2e-immediate", "e2e-wait")


@dataclass(frozen=True)
class Cluster:
    """A running cluster, as tests and the demo see it."""

    provider: str
    """`given` (the caller's own), `kind` or `local`."""
    name: str
    kubeconfig: Path
    kubectl: Path
    host_address: str
    """The address at which pods reach a server that listens on this host."""
    node: str
    fake_node: str
    """A node without a machine: only pods that tolerate its taint land there; empty if none."""
    storage_classes: StorageClasses
    image: str = IMAGE
    tiny_image: str = TINY_IMAGE
    dns_domain: str = DNS_DOMAIN

    def environment(self) -> dict[str, str]:
        """The variables under which a shell and the tests find this cluster."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "E2E_KUBECTL": str(self.kubectl),
            "E2E_HOST_ADDRESS": self.host_address,
            "E2E_IMAGE": self.image,
            "E2E_NODE": self.node,
            "E2E_FAKE_NODE": self.fake_node,
            "E2E_STORAGE_CLASSES": ",".join(self.storage_classes),
        }


class ClusterError(Exception):
    """Something a person has to act on; its text is the whole message, shown without a trace."""


def cache_folder() -> Path:
    """Where builds and images are kept between clusters: outside the repository, per user."""
    chosen = os.environ.get("LTS_CACHE_DIR")
    if chosen:
        return Path(chosen).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).resolve() / "lightkube-template-spawner"


def run_folder() -> Path:
    """Where the running cluster is recorded.

    For root this is one place for the whole machine, because a second local cluster would fight
    the first over the kubelet's cgroups and the proxy's nft table, whatever cache it was built in.
    """
    if os.geteuid() == 0:
        return Path("/run/lts-e2e")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "lts-e2e" if base else cache_folder() / "run"
