"""A cluster of the caller's own, named by E2E_KUBECONFIG: used as it is, never changed."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from e2e.cluster import build
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.model import Cluster, ClusterError, Log, StorageClasses, cache_folder
from e2e.cluster.objects import DEFAULT_CLASS
from e2e.cluster.user_image import IMAGE


def cluster(log: Log) -> Cluster:
    """Describe it; what cannot be read from it is taken from variables E2E_*."""
    kubeconfig = Path(os.environ["E2E_KUBECONFIG"]).resolve()
    if not kubeconfig.is_file():
        raise ClusterError(f"E2E_KUBECONFIG names no file: {kubeconfig}")
    call = Kubectl(kubectl_program(log), kubeconfig)
    immediate, _, wait = os.environ.get("E2E_STORAGE_CLASSES", "").partition(",")
    if not immediate:
        immediate = default_class(call)
    return Cluster(
        provider="given",
        name="given",
        kubeconfig=kubeconfig,
        kubectl=call.program,
        host_address=os.environ.get("E2E_HOST_ADDRESS") or own_address(call),
        node=os.environ.get("E2E_NODE") or open_node(call),
        fake_node=os.environ.get("E2E_FAKE_NODE", ""),
        storage_classes=StorageClasses(immediate, wait or immediate),
        image=os.environ.get("E2E_IMAGE", IMAGE),
    )


def default_class(call: Kubectl) -> str:
    """The class of claims that name none."""
    for item in call.get("storageclasses")["items"]:
        if item["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true":
            return str(item["metadata"]["name"])
    raise ClusterError("the given cluster has no default storage class: set E2E_STORAGE_CLASSES")


def open_node(call: Kubectl) -> str:
    """The first node that takes pods without being asked to."""
    for node in call.get("nodes")["items"]:
        if not node["spec"].get("taints") and not node["spec"].get("unschedulable"):
            return str(node["metadata"]["name"])
    raise ClusterError("the given cluster has no node without taints: set E2E_NODE")


def own_address(call: Kubectl) -> str:
    """The address from which this host reaches the API server; pods reach it there, we hope."""
    view = yaml.safe_load(call("config", "view", "--minify", "--output=json"))
    server = urlsplit(view["clusters"][0]["cluster"]["server"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server.hostname, server.port or 443))
        return str(probe.getsockname()[0])


def kubectl_program(log: Log) -> Path:
    """The machine's kubectl, else one that is built."""
    if found := shutil.which("kubectl"):
        return Path(found)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    return build.build(cache, "clients", log) / "kubectl"
