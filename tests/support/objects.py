"""Objects of a user's server, for tests that write them."""

from __future__ import annotations

from typing import Any

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.objects.identity import DIGEST, Identity, Policy
from lightkube_template_spawner.objects.plan import Planned

LIFECYCLE = "kubetemplatespawner/lifecycle"
ME = Identity("i", "me@example.org", userid=1)
YOU = Identity("i", "you@example.org", userid=2)
ALL = frozenset({"list", "delete", "deletecollection"})
CONFIG = Kind("", "v1", "ConfigMap", "configmaps", namespaced=True, verbs=ALL)
POD = Kind("", "v1", "Pod", "pods", namespaced=True, verbs=ALL)


def manifest(
    kind: str = "ConfigMap",
    name: str = "c",
    identity: Identity = ME,
    policy: Policy = Policy.STOPPED,
    *,
    api_version: str = "v1",
    digest: str = "1",
    **more: Any,
) -> dict[str, Any]:
    """As ``manifests.prepare`` leaves it, as far as the modules above the API look at it."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "hub",
            "labels": {**identity.server_labels, LIFECYCLE: policy.value},
            "annotations": {DIGEST: digest},
        },
        **more,
    }


def planned(item: dict[str, Any], policy: Policy = Policy.STOPPED) -> Planned:
    return Planned(item, policy, 2, "a.yaml")
