"""The command lines of what runs beside the node, on kind and locally."""

from __future__ import annotations

import sys
from pathlib import Path

from e2e.cluster import network
from e2e.cluster.model import FAKE_NODE, LOST_NODE_SECONDS


def kwok(built: Path, kubeconfig: str, node_address: str) -> list[str]:
    """Plays the fake node and the pods on it."""
    return [
        str(built / "kwok"),
        f"--kubeconfig={kubeconfig}",
        f"--config={built / 'kwok-stages.yaml'}",
        f"--manage-single-node={FAKE_NODE}",
        f"--cidr={network.FAKE_PODS}",
        f"--node-ip={node_address}",
        f"--server-address={network.PRIVATE}:10247",
        f"--node-lease-duration-seconds={LOST_NODE_SECONDS}",
    ]


def provisioner(kubeconfig: str, folder: str, node: str, prefix: str = "") -> list[str]:
    """Ours, because the controllers' own makes volumes that only root can write."""
    command = [sys.executable, "-m", "e2e.cluster.provisioner", "--kubeconfig", kubeconfig]
    command += ["--folder", folder, "--prefix", prefix]
    # A fake pod may have a volume too: nothing is ever written to it.
    return [*command, "--node", node, "--node", FAKE_NODE]
