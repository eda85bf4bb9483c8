"""What every rendered object gets from us: owner labels, lifecycle, annotations, own selectors.

Labels are what objects are found and deleted by, so they are set here, never left to the chart; a
chart that says otherwise about whose object it is, is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import nested
from lightkube_template_spawner.objects.identity import (
    MANAGED_BY,
    OWNER,
    PREFIX,
    SERVERNAME,
    USERID,
    USERNAME,
    Identity,
    Policy,
)

GITOPS_GUARD = {
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
}

_BUILT_IN = frozenset(("", "apps", "autoscaling", "batch", "extensions", "policy"))
#: Where built-in kinds have pod templates.
_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet"), ("spec", "template")),
    **dict.fromkeys(("ReplicaSet", "ReplicationController", "Job"), ("spec", "template")),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "PodTemplate": ("template",),
}


_NO_LABELS: Mapping[str, str] = {}


def stamp(
    manifest: dict[str, Any],
    identity: Identity,
    policy: Policy,
    *,
    lifecycle_key: str,
    select_own_pods: bool,
    gitops_guard: bool,
    more: Mapping[str, str] = _NO_LABELS,
) -> None:
    """Put our labels and annotations on ``manifest``, in place.

    Objects that outlive the server carry no server name unless the chart gives them one: servers of
    one user may share them. Pod templates and claim templates are labelled too, but pod templates
    without managed-by and lifecycle: a stop that deleted pods by label would only make their
    controller create them again. ``more`` are further labels for both.

    Raises:
        ManifestError: a label of the chart says that the object is somebody else's.
    """
    metadata = manifest["metadata"]
    labels = metadata.setdefault("labels", {})
    ours = identity.user_labels if policy is Policy.USER_DELETED else identity.server_labels
    _refuse_foreign(labels, identity)
    labels.update({**more, **ours, MANAGED_BY: PREFIX, lifecycle_key: policy.value})
    annotations = metadata.setdefault("annotations", {})
    annotations[lifecycle_key] = policy.value
    annotations.setdefault(USERNAME, identity.username)
    if SERVERNAME in labels:
        annotations.setdefault(SERVERNAME, identity.servername)
    if identity.userid is not None:
        annotations[USERID] = str(identity.userid)
    if gitops_guard:
        for key, value in GITOPS_GUARD.items():
            annotations.setdefault(key, value)
    for template in (*pod_templates(manifest), *_custom_pod_templates(manifest)):
        inner = _mapping(_mapping(template, "metadata"), "labels")
        _refuse_foreign(inner, identity)
        inner.update({**more, **ours})
    _stamp_claims(manifest, identity, lifecycle_key)
    _encode_string_data(manifest)
    if select_own_pods:
        _narrow_selectors(manifest, identity)


def pod_templates(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod template inside a controller's manifest, if it has one."""
    inner: Any = manifest if manifest["kind"] in _TEMPLATES else None
    for key in _TEMPLATES.get(manifest["kind"], ()):
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    return [inner] if isinstance(inner, dict) else []


def _custom_pod_templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates at any place, as custom resources have them, that have metadata.

    Only these can take labels: the schema of a custom resource may declare no metadata there, and
    the API server would refuse it or drop it. A chart that writes some shows that there is a place.
    """
    if manifest["apiVersion"].rpartition("/")[0] in _BUILT_IN:
        return []  # `pod_templates` knows where these have theirs
    return [
        item
        for item in nested.mappings(manifest)
        if item is not manifest
        and isinstance(item.get("metadata"), dict)
        and isinstance(item.get("spec"), dict)
        and nested.listed(item["spec"].get("containers"))
    ]


def claim_templates(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The volume claim templates inside a StatefulSet's manifest."""
    spec = manifest.get("spec")
    claims = spec.get("volumeClaimTemplates") if isinstance(spec, Mapping) else None
    if manifest["kind"] != "StatefulSet" or not isinstance(claims, list):
        return []
    return [claim for claim in claims if isinstance(claim, dict)]


def deletes_claims(manifest: Mapping[str, Any]) -> bool:
    """Whether a StatefulSet asks Kubernetes to delete its volumes when it goes."""
    spec = manifest.get("spec")
    policy = spec.get("persistentVolumeClaimRetentionPolicy") if isinstance(spec, Mapping) else None
    return isinstance(policy, Mapping) and policy.get("whenDeleted") == "Delete"


def _mapping(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping at ``key``, made if the template left it out or empty."""
    if holder.get(key) is None:
        holder[key] = {}
    mapping = holder[key]
    if not isinstance(mapping, dict):
        raise ManifestError(f"its {key} is not a mapping: look at the template's indentation")
    return mapping


def _refuse_foreign(labels: Mapping[str, Any], identity: Identity) -> None:
    for key, value in identity.server_labels.items():
        if key in labels and labels[key] != value:
            raise ManifestError(
                f"its label {key}: {labels[key]!r} is not this server's ({value!r}): use the "
                "template's values, or leave the label out; it is added for you"
            )


def _stamp_claims(manifest: Mapping[str, Any], identity: Identity, lifecycle_key: str) -> None:
    """Label claim templates now: their volumes get no other labels, and none can be added later."""
    for claim in claim_templates(manifest):
        metadata = _mapping(claim, "metadata")
        policy = _mapping(metadata, "annotations").setdefault(
            lifecycle_key, Policy.USER_DELETED.value
        )
        if policy not in list(Policy):
            raise ManifestError(
                f"{lifecycle_key} of a volume claim template is {policy!r}, not one of "
                + ", ".join(Policy)
            )
        labels = _mapping(metadata, "labels")
        _refuse_foreign(labels, identity)
        ours = identity.user_labels if policy == Policy.USER_DELETED else identity.server_labels
        labels.update({**ours, MANAGED_BY: PREFIX, lifecycle_key: policy})


def _encode_string_data(manifest: dict[str, Any]) -> None:
    """Turn ``stringData`` into ``data``.

    Applied as it is, it writes over another manager's keys without a conflict, and keys that the
    template drops stay for ever (both seen on a real API server).
    """
    if manifest["kind"] != "Secret" or manifest["apiVersion"] != "v1":
        return
    plain = manifest.pop("stringData", None) or {}
    if not isinstance(plain, Mapping):
        raise ManifestError("its stringData is not a mapping")
    for key, value in plain.items():
        if not isinstance(value, str):
            raise ManifestError(f"its stringData.{key} is not a string: quote it")
        _mapping(manifest, "data")[key] = base64.b64encode(value.encode()).decode()


def _narrow_selectors(manifest: dict[str, Any], identity: Identity) -> None:
    """Let Services, NetworkPolicies and disruption budgets choose this user's pods only."""
    group = manifest["apiVersion"].rpartition("/")[0]
    match group, manifest["kind"]:
        case "", "Service":
            spec = _mapping(manifest, "spec")
            if spec.get("selector"):
                _mapping(spec, "selector")[OWNER] = identity.owner
        case "networking.k8s.io", "NetworkPolicy":
            spec = _mapping(manifest, "spec")  # without one it would choose every pod
            _mapping(_mapping(spec, "podSelector"), "matchLabels")[OWNER] = identity.owner
        case "policy", "PodDisruptionBudget":
            spec = _mapping(manifest, "spec")
            if spec.get("selector") is not None:
                _mapping(_mapping(spec, "selector"), "matchLabels")[OWNER] = identity.owner
        case _:
            pass
