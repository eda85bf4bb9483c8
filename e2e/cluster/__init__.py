"""A real Kubernetes cluster for the end-to-end tests and the demo, with or without Docker.

    python -m e2e.cluster up        # start it, or return the one that runs
    eval "$(python -m e2e.cluster env)"
    python -m e2e.cluster down      # leaves the cache and nothing else

The first that is there is used: the cluster named by E2E_KUBECONFIG, which is never changed; kind,
where a Docker or Podman engine answers; else a local cluster (Linux, root), built from Go modules
and Debian packages in the cache folder. The last two end with the same thing: pods that run,
volumes that bind, grow and go, DNS, Services that the host reaches too, and a fake node for load.

What the local cluster cannot show: NetworkPolicy is not enforced by its bridge, pods have no way
out of the machine, and Services hide the caller's address.
"""

from __future__ import annotations

import os

from e2e.cluster import given, kind, record
from e2e.cluster.local import provider as local
from e2e.cluster.local import teardown
from e2e.cluster.model import DEFAULT_NAME, TINY_IMAGE, Cluster, ClusterError, Log, StorageClasses

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
    if os.environ.get("E2E_KUBECONFIG"):
        log("the cluster was given (E2E_KUBECONFIG): left alone")
        return
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
