"""Where the parts of the local cluster are, and the names that more than one of them uses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.packages import Packages

CGROUP = "lts-e2e"
"""The cgroup under which all pods are, so that they can be found and ended for certain."""
HIDDEN = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers")
"""Where kubelet and CNI write whatever they are told; folders of ours lie over them."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of one local cluster are."""

    data: Path
    run: Path
    built: Path
    images: Path
    """containerd's store; kept between clusters, because unpacking images takes long."""
    programs: Packages

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def volumes(self) -> Path:
        return self.data / "volumes"

    @property
    def socket(self) -> Path:
        return self.run / "containerd.sock"

    def kubeconfig(self, who: str) -> str:
        """The kubeconfig file of a component."""
        return str(self.keys / f"{who}.kubeconfig")

    def program(self, name: str) -> str:
        """The path of a program that was built."""
        return str(self.built / name)


def write_settings(path: Path, document: dict[str, Any]) -> Path:
    """Write a file of settings as JSON, which every reader of YAML takes."""
    path.write_text(json.dumps(document, indent=1))
    return path
