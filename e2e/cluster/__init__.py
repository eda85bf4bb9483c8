"""A real Kubernetes cluster for the end-to-end tests and the demo, with or without Docker."""

from __future__ import annotations

import os

from e2e.cluster import given, kind, local, record, teardown
from e2e.cluster.model import (
    DEFAULT_NAME,
    TINY_IMAGE,
    Cluster,
    ClusterError,
    Log,
    StorageClasses,
)

__all__ = [
    "TINY_IMAGE",
    "Cluster",
    "ClusterError",
    "StorageClasses",
    "down",
    "status",
    "up",
]


def up(name: str = DEFAULT_NAME, log: Log = print) -> Cluster:
    """Return the running cluster, or start one with the first provider that is there."""
    if os.environ.get("E2E_KUBECONFIG"):
        log("provider given: E2E_KUBECONFIG is set")
        return given.cluster(log)
    with record.locked(log):
        found = record.load()
        record.refuse_other(found, name)
        provider, why = choose(found)
        log(f"provider {provider}: {why}")
        if provider == "kind":
            return kind.up(found, name, log)
        return local.up(found, name, log)


def down(name: str = DEFAULT_NAME, log: Log = print) -> None:
    """Remove the cluster and all its traces but the cache."""
    with record.locked(log):
        found = record.load()
        record.refuse_other(found, name)
        if found is None:
            log("no cluster runs here")
        elif found.provider == "kind":
            kind.down(found, log)
        else:
            teardown.down(found, local.ground(log), log)


def status() -> Cluster | None:
    """The cluster that was started here, whether or not all of it still works."""
    if os.environ.get("E2E_KUBECONFIG"):
        return given.cluster(lambda _: None)
    found = record.load()
    return found.described() if found else None


def choose(found: record.Record | None) -> tuple[str, str]:
    """The provider to use and why: what runs already, a container engine, else this machine."""
    if found is not None:
        return found.provider, "started here before"
    if engine := kind.engine():
        return "kind", f"{engine} answers"
    if problem := local.possible():
        raise ClusterError(
            f"no cluster can run here: no Docker or Podman answers, and {problem}."
            " Start Docker, or set E2E_KUBECONFIG to a cluster of yours"
        )
    return "local", "no Docker or Podman answers, and this is Linux as root"
