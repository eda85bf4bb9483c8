"""What every rendered object gets from us: owner labels, lifecycle, annotations, own selectors.

Labels are what objects are found and deleted by, so they are set here, never left to the chart; a
chart that says otherwise about whose object it is, is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.identity import (
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

_TEMPLATED = frozenset(
    {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"}
)


def stamp(
    manifest: dict[str, Any],
    identity: Identity,
    policy: Policy,
    *,
    lifecycle_key: str,
    select_own_pods: bool,
    gitops_guard: bool,
) -> None:
    """Put our labels and annotations on ``manifest``, in place.

    Objects that outlive the server carry no server name unless the chart gives them one: servers of
    one user may share them. Pod templates and claim templates are labelled too, but pod templates
    without managed-by and lifecycle: a stop that deleted pods by label would only make their
    controller create them again.

    Raises:
        ManifestError: a label of the chart says that the object is somebody else's.
    """
    metadata = manifest["metadata"]
    labels = metadata.setdefault("labels", {})
    ours = identity.user_labels if policy is Policy.USER_DELETED else identity.server_labels
    _refuse_foreign(labels, identity)
    labels.update({**ours, MANAGED_BY: PREFIX, lifecycle_key: policy.value})
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
    for template in pod_templates(manifest):
        inner = template.setdefault("metadata", {}).setdefault("labels", {})
        _refuse_foreign(inner, identity)
        inner.update(ours)
    _stamp_claims(manifest, identity, lifecycle_key)
    _encode_string_data(manifest)
    if select_own_pods:
        _narrow_selectors(manifest, identity)


def pod_templates(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod templates inside a controller's manifest."""
    spec = manifest.get("spec")
    if not isinstance(spec, Mapping):
        return []
    if manifest["kind"] == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    elif manifest["kind"] not in _TEMPLATED:
        return []
    template = spec.get("template")
    return [template] if isinstance(template, dict) else []


def _refuse_foreign(labels: Mapping[str, Any], identity: Identity) -> None:
    for key, value in identity.server_labels.items():
        if key in labels and labels[key] != value:
            raise ManifestError(
                f"its label {key}: {labels[key]!r} is not this server's ({value!r}): use the "
                "template's values, or leave the label out; it is added for you"
            )


def _stamp_claims(manifest: Mapping[str, Any], identity: Identity, lifecycle_key: str) -> None:
    """Label claim templates now: their volumes get no other labels, and none can be added later."""
    if manifest["kind"] != "StatefulSet":
        return
    for claim in (manifest.get("spec") or {}).get("volumeClaimTemplates") or ():
        metadata = claim.setdefault("metadata", {})
        annotations = metadata.setdefault("annotations", {})
        policy = annotations.setdefault(lifecycle_key, Policy.USER_DELETED.value)
        labels = metadata.setdefault("labels", {})
        _refuse_foreign(labels, identity)
        labels.update({**identity.user_labels, MANAGED_BY: PREFIX, lifecycle_key: policy})


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
        encoded = base64.b64encode(value.encode()).decode()
        manifest.setdefault("data", {})[key] = encoded


def _narrow_selectors(manifest: Mapping[str, Any], identity: Identity) -> None:
    """Let Services, NetworkPolicies and disruption budgets choose this user's pods only."""
    spec = manifest.get("spec")
    if not isinstance(spec, dict):
        return
    if manifest["kind"] == "Service" and manifest["apiVersion"] == "v1" and spec.get("selector"):
        spec["selector"][OWNER] = identity.owner
    if manifest["kind"] == "NetworkPolicy":
        selector = spec.setdefault("podSelector", {})
        selector.setdefault("matchLabels", {})[OWNER] = identity.owner
    if manifest["kind"] == "PodDisruptionBudget" and spec.get("selector") is not None:
        spec["selector"].setdefault("matchLabels", {})[OWNER] = identity.owner
