"""The cluster on kind, where a Docker or Podman engine answers.

kind brings API server, controllers, kubelet and DNS; the volumes, the fake node and the images are
added, and the host gets routes to pods and Services through the node's container.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster import build, components, images, network, processes
from e2e.cluster.commands import attempt, run
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.model import (
    FAKE_NODE,
    LOST_NODE_SECONDS,
    STORAGE_CLASSES,
    Cluster,
    ClusterError,
    Log,
    cache_folder,
)
from e2e.cluster.objects import DEFAULT_CLASS, fake_node, storage_classes
from e2e.cluster.record import Record, remove_files
from e2e.cluster.starter import Starter

VOLUMES = "/var/local/e2e-volumes"
"""Where the volumes are in the node's container."""
ROUTED = (network.ALL_PODS, network.SERVICES)
LOST_NODE = {"node-monitor-grace-period": f"{LOST_NODE_SECONDS}s"}
TOLERATED = {
    "default-not-ready-toleration-seconds": "5",
    "default-unreachable-toleration-seconds": "5",
}


def engine() -> str:
    """The engine that answers, or nothing; a client alone is not enough."""
    for name in ("docker", "podman"):
        if shutil.which(name) and attempt(name, "info").returncode == 0:
            return name
    return ""


@dataclass(frozen=True)
class Node:
    """kind's one node: a container of the engine."""

    engine: str
    name: str

    def address(self, which: str) -> str:
        """Its `IPAddress` in kind's network, or that network's `Gateway`, which is the host."""
        template = f'{{{{(index .NetworkSettings.Networks "kind").{which}}}}}'
        found = run(self.engine, "inspect", "--format", template, self.name).strip()
        if not found:
            raise ClusterError(f"{self.engine} gives the container {self.name} no {which}")
        return found


def settings() -> dict[str, Any]:
    """Kind's own settings: our address ranges, and a lost node noticed within seconds."""
    patches: list[dict[str, Any]] = [
        {
            "kind": "KubeletConfiguration",
            "nodeLeaseDurationSeconds": LOST_NODE_SECONDS,
        }
    ]
    # kubeadm changed how it takes arguments; the patch for the other version matches nothing.
    for version, write in (("v1beta3", dict[str, str]), ("v1beta4", _as_list)):
        patches.append(
            {
                "apiVersion": f"kubeadm.k8s.io/{version}",
                "kind": "ClusterConfiguration",
                "apiServer": {"extraArgs": write(TOLERATED)},
                "controllerManager": {"extraArgs": write(LOST_NODE)},
            }
        )
    return {
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "kind": "Cluster",
        "networking": {"podSubnet": network.ALL_PODS, "serviceSubnet": network.SERVICES},
        "nodes": [{"role": "control-plane"}],
        "kubeadmConfigPatches": [json.dumps(patch) for patch in patches],
    }


def _as_list(arguments: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in arguments.items()]


def up(record: Record | None, name: str, log: Log) -> Cluster:
    """Return the running cluster if it is well, else make a new one."""
    if record is not None:
        running = record.described()
        if running is not None and record.healthy(running):
            load_images(running, log)
            return running
        log("the last cluster is not complete: removing what is left of it")
        down(record, log)
    record = Record(name, "kind", str(cache_folder() / "cluster"))
    record.save()
    return start(record, engine(), log)


def start(record: Record, engine_name: str, log: Log) -> Cluster:
    """Let kind make the cluster, then add what it lacks."""
    data = Path(record.data)
    built = build.build(cache_folder(), "clients", log)
    (data / "logs").mkdir(parents=True)
    config, kubeconfig = data / "kind.json", data / "kubeconfig"
    config.write_text(json.dumps(settings()))
    log("kind creates the cluster (it fetches its node image the first time)")
    create = ("create", "cluster", "--name", record.name, "--wait", "180s")
    kind(log, *create, "--config", str(config), "--kubeconfig", str(kubeconfig))
    node = Node(engine_name, f"{record.name}-control-plane")
    for addresses in ROUTED:
        change_route("replace", addresses, "via", node.address("IPAddress"))
    cluster = Cluster(
        provider="kind",
        name=record.name,
        kubeconfig=kubeconfig,
        kubectl=built / "kubectl",
        host_address=node.address("Gateway"),
        node=node.name,
        fake_node=FAKE_NODE,
        storage_classes=STORAGE_CLASSES,
    )
    load_images(cluster, log)
    add_parts(cluster, node, built, record)
    record.finish(cluster)
    return cluster


def add_parts(cluster: Cluster, node: Node, built: Path, record: Record) -> None:
    """Add the storage classes with their provisioner, and the fake node with its player."""
    call = Kubectl(cluster.kubectl, cluster.kubeconfig)
    for item in call.get("storageclasses")["items"]:
        name = item["metadata"]["name"]
        call("annotate", "--overwrite", f"storageclass/{name}", f"{DEFAULT_CLASS}=false")
    call.apply(fake_node(), *storage_classes())
    parts = Starter(record, Path(record.data) / "logs", {})
    config = str(cluster.kubeconfig)
    inside = f"{node.engine} exec {node.name}"
    parts("provisioner", components.provisioner(config, VOLUMES, node.name, prefix=inside))
    # kindnet makes a route to each node, so the fake one needs an address on kind's network that
    # nobody has.
    there = ipaddress.ip_interface(f"{node.address('IPAddress')}/{node.address('IPPrefixLen')}")
    parts("kwok", components.kwok(built, config, str(there.network[-2])))
    ready = ("wait", "--for=condition=Ready", f"node/{FAKE_NODE}", "--timeout=1s")
    parts.wait("kwok", lambda: call.succeeds(*ready))
    parts.check_all()


def load_images(cluster: Cluster, log: Log) -> None:
    """Hand the test images to the node, if they changed."""
    note = cluster.kubeconfig.parent / "imported.json"

    def load(archive: Path) -> None:
        kind(log, "load", "image-archive", str(archive), "--name", cluster.name)

    for archive in images.archives(cache_folder(), log):
        images.load(archive, note, load, log)


def down(record: Record, log: Log) -> None:
    """Remove the node, the routes and our own processes."""
    processes.stop({one.pid for one in record.processes if one.alive()} | processes.marked())
    for addresses in ROUTED:
        if attempt("ip", "route", "show", addresses).stdout.strip():
            change_route("delete", addresses)
    config = Path(record.data) / "kubeconfig"
    kind(log, "delete", "cluster", "--name", record.name, "--kubeconfig", str(config))
    remove_files(record)


def kind(log: Log, *arguments: str) -> None:
    """Call kind: the machine's own, else one that is built."""
    program = shutil.which("kind")
    if program is None:
        program = str(build.build(cache_folder(), "kind", log) / "kind")
    podman = {} if engine() == "docker" else {"KIND_EXPERIMENTAL_PROVIDER": "podman"}
    run(program, *arguments, environment=podman)


def change_route(*arguments: str) -> None:
    """Change the machine's routes, for which an ordinary user needs sudo without a password."""
    prefix = () if os.geteuid() == 0 else ("sudo", "-n")
    run(*prefix, "ip", "route", *arguments)
