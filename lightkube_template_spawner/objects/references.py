"""What pods, volume claims and snapshots refer to by name: volumes, secrets, accounts, devices.

Ownership of objects does not cover references: a template that lets a name follow a user's choice
could mount or copy another user's volume. So each name must be rendered in the same set, or be
listed as shared by the administrator.

Pods are known by their shape, wherever they are: custom resources hold them too. What a custom
resource says in fields of its own, such as ``spec.volumeFrom: home``, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import nested
from lightkube_template_spawner.objects.stamping import pod_templates

Reference = tuple[str, str]  # kind, name; the name of one in another namespace is "namespace/name"
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_OF_PODS = (*_CONTAINERS, "volumes")
_CLAIM = "PersistentVolumeClaim"
_CLAIM_FIELDS = {"accessModes", "storageClassName", "volumeMode"}
_DEVICES = {
    "resourceClaimName": "ResourceClaim",
    "resourceClaimTemplateName": "ResourceClaimTemplate",
}
_SOURCES = ("dataSource", "dataSourceRef")
#: A mapping with none of these keys refers to nothing that is looked for, as most do.
_TELLING = _CLAIM_FIELDS | {
    *_OF_PODS,
    *_SOURCES,
    "persistentVolumeClaim",
    "persistentVolumeClaimName",
    "volumeName",
    "volumeSnapshotContentName",
}
_WITHOUT_NAMESPACE = {"PersistentVolume", "VolumeSnapshotContent"}


def check(
    manifests: Iterable[tuple[str, Mapping[str, Any]]], shared: Iterable[str], default: str
) -> None:
    """Refuse a reference to an object that is neither rendered nor shared.

    ``manifests`` are (reference for messages, manifest); ``shared`` are patterns ``Kind/name``;
    ``default`` is the namespace of manifests that name none.

    Raises:
        ManifestError: naming the object, the reference and both ways out.
    """
    objects = [(w, m, m["metadata"].get("namespace", default)) for w, m in manifests]
    rendered = {_path(m["kind"], m["metadata"]["name"], namespace) for _, m, namespace in objects}
    patterns = list(shared)
    for where, manifest, namespace in objects:
        for kind, name in of_manifest(manifest):
            path = _path(kind, name, namespace)
            if path in rendered:
                continue
            if any(fnmatchcase(f"{kind}/{name}", pattern) for pattern in patterns):
                continue
            raise ManifestError(
                f"{where}: it refers to {path}, which the template does not render: render it, or "
                f"list {kind}/{name} in the trait `shared_objects`"
            )


def of_manifest(manifest: Mapping[str, Any]) -> Iterator[Reference]:
    """Every name that the pods, volume claims and snapshots in this object refer to."""
    telling = [item for item in nested.mappings(manifest) if not _TELLING.isdisjoint(item)]
    for spec in _pods(manifest, telling):
        yield from _of_pod(spec)
    for item in telling:
        yield from _of_storage(item)
        if item.keys() & _CLAIM_FIELDS or (
            manifest["kind"] == _CLAIM and item is manifest.get("spec")
        ):
            yield from _text(item, "volumeName", "PersistentVolume")


def _path(kind: str, name: str, namespace: str) -> str:
    if kind in _WITHOUT_NAMESPACE or "/" in name:
        return f"{kind} {name}"
    return f"{kind} {namespace}/{name}"


def _pods(manifest: Mapping[str, Any], items: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The specs of pods: where built-in kinds have them, and what looks like one elsewhere."""
    pods = [manifest] if manifest["kind"] == "Pod" else pod_templates(manifest)
    specs = [pod["spec"] for pod in pods if isinstance(pod.get("spec"), dict)]
    specs += [item for item in items if any(nested.listed(item.get(key)) for key in _OF_PODS)]
    return {id(spec): spec for spec in specs}.values()


def _of_pod(spec: Mapping[str, Any]) -> Iterator[Reference]:
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    # In a custom resource it may be a mapping, such as what account to create.
    if isinstance(account, str) and account not in ("", "default"):
        yield "ServiceAccount", account
    yield from _named(spec.get("imagePullSecrets"), "Secret")
    for device in nested.listed(spec.get("resourceClaims")):
        for key, kind in _DEVICES.items():
            yield from _text(device, key, kind)
    for volume in nested.listed(spec.get("volumes")):
        yield from _of_volume(volume)
    for group in _CONTAINERS:
        for container in nested.listed(spec.get(group)):
            yield from _of_environment(container)


def _of_storage(item: Mapping[str, Any]) -> Iterator[Reference]:
    """Volumes and what they are copies of, in notations that mean nothing else in any kind."""
    yield from _text(item.get("persistentVolumeClaim"), "claimName", _CLAIM)
    yield from _text(item, "persistentVolumeClaimName", _CLAIM)
    yield from _text(item, "volumeSnapshotContentName", "VolumeSnapshotContent")
    for key in _SOURCES:
        source = item.get(key)
        if isinstance(source, Mapping) and source.get("kind") and source.get("name"):
            parts = [source.get("namespace"), source["name"]]
            yield str(source["kind"]), "/".join(str(part) for part in parts if part)


def _of_volume(volume: Mapping[str, Any]) -> Iterator[Reference]:
    yield from _text(volume.get("secret"), "secretName", "Secret")
    yield from _named([volume.get("configMap")], "ConfigMap")
    yield from _text(volume.get("azureFile"), "secretName", "Secret")
    projected = volume.get("projected")
    if isinstance(projected, Mapping):
        for source in nested.listed(projected.get("sources")):
            yield from _named([source.get("secret")], "Secret")
            yield from _named([source.get("configMap")], "ConfigMap")
    for driver in nested.listed(list(volume.values())):
        yield from _named([driver.get("secretRef")], "Secret")
        yield from _named([driver.get("nodePublishSecretRef")], "Secret")


def _of_environment(container: Mapping[str, Any]) -> Iterator[Reference]:
    for source in nested.listed(container.get("envFrom")):
        yield from _named([source.get("secretRef")], "Secret")
        yield from _named([source.get("configMapRef")], "ConfigMap")
    for variable in nested.listed(container.get("env")):
        origin = variable.get("valueFrom")
        if isinstance(origin, Mapping):
            yield from _named([origin.get("secretKeyRef")], "Secret")
            yield from _named([origin.get("configMapKeyRef")], "ConfigMap")


def _named(items: object, kind: str) -> Iterator[Reference]:
    for item in nested.listed(items):
        yield from _text(item, "name", kind)


def _text(holder: object, key: str, kind: str) -> Iterator[Reference]:
    if isinstance(holder, Mapping) and holder.get(key):
        yield kind, str(holder[key])
