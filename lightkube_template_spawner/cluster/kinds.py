"""What a kind is to us: whether it runs something, confines it, gives rights, or has a status."""

from __future__ import annotations

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.objects.ref import POD

_WITH_STATUS = frozenset({"Pod", "Service", "EndpointSlice", "Deployment", "StatefulSet"})
# Groups that Kubernetes itself serves and whose objects run nothing; any other's may run a pod.
_PASSIVE = frozenset({"", "autoscaling", "extensions", "policy", "resource.k8s.io"}) | {
    f"{name}.k8s.io"
    for name in (
        "admissionregistration",
        "apiextensions",
        "apiregistration",
        "certificates",
        "coordination",
        "discovery",
        "events",
        "flowcontrol.apiserver",
        "networking",
        "gateway.networking",
        "node",
        "rbac.authorization",
        "scheduling",
        "storage",
    )
}


def propagation(kind: Kind) -> str:
    """Foreground where dependents are the point: gone then means that their pods are gone."""
    return "Background" if kind.group in _PASSIVE else "Foreground"


def is_workload(kind: Kind) -> bool:
    """Whether objects of this kind run something, or may: they go first."""
    return kind.ref == POD or (kind.group not in _PASSIVE and not confines(kind))


def gives_rights(kind: Kind) -> bool:
    """Whether objects of this kind may be what lets us delete the others: they go last."""
    return kind.group == "rbac.authorization.k8s.io"


def confines(kind: Kind) -> bool:
    """Whether objects of this kind, Kubernetes' or a network plugin's, keep what runs apart."""
    return kind.kind.endswith("NetworkPolicy")


def is_kept_whole(kind: Kind) -> bool:
    """Whether stores keep such objects whole, because their status decides something.

    Of all other kinds they keep metadata, so that no Secret's data is ever in the hub.
    """
    return kind.kind in _WITH_STATUS
