"""What pods and volume claims refer to by name: volumes, secrets, config maps, accounts, devices.

Ownership of objects does not cover references: a template that lets a name follow a user's choice
could mount or clone another user's volume. So each name must be rendered in the same set, or be
listed as shared by the administrator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects.stamping import claim_templates, pod_templates

Reference = tuple[str, str]  # kind, name
_DEVICES = {
    "resourceClaimName": "ResourceClaim",
    "resourceClaimTemplateName": "ResourceClaimTemplate",
}


def check(
    manifests: Iterable[tuple[str, Mapping[str, Any]]], shared: Iterable[str], default: str
) -> None:
    """Refuse a reference to an object that is neither rendered nor shared.

    ``manifests`` are (reference for messages, manifest); ``shared`` are patterns ``Kind/name``;
    ``default`` is the namespace of manifests that name none.

    Raises:
        ManifestError: naming the object, the reference and both ways out.
    """
    known = list(manifests)
    rendered = {
        (m["metadata"].get("namespace", default), m["kind"], m["metadata"]["name"])
        for _, m in known
    }
    allowed = list(shared)
    for where, manifest in known:
        namespace = manifest["metadata"].get("namespace", default)
        for kind, name in of_manifest(manifest):
            if (namespace, kind, name) in rendered:
                continue
            if any(fnmatchcase(f"{kind}/{name}", pattern) for pattern in allowed):
                continue
            raise ManifestError(
                f"{where}: it refers to {kind} {namespace}/{name}, which the template does not "
                f"render: render it, or list {kind}/{name} in the trait `shared_objects`"
            )


def of_manifest(manifest: Mapping[str, Any]) -> Iterator[Reference]:
    """Every name that this object's pods and volume claims refer to."""
    if manifest["kind"] == "Pod":
        yield from _of_pod(manifest.get("spec"))
    if manifest["kind"] == "PersistentVolumeClaim":
        yield from _of_claim(manifest.get("spec"))
    for claim in claim_templates(manifest):
        yield from _of_claim(claim.get("spec"))
    for template in pod_templates(manifest):
        yield from _of_pod(template.get("spec"))


def _of_pod(spec: object) -> Iterator[Reference]:
    if not isinstance(spec, Mapping):
        return
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account and account != "default":
        yield "ServiceAccount", str(account)
    yield from _named(spec.get("imagePullSecrets"), "Secret")
    for device in _mappings(spec.get("resourceClaims")):
        for key, kind in _DEVICES.items():
            if device.get(key):
                yield kind, str(device[key])
    for volume in _mappings(spec.get("volumes")):
        yield from _of_volume(volume)
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in _mappings(spec.get(group)):
            yield from _of_environment(container)


def _of_claim(spec: object) -> Iterator[Reference]:
    """What a volume starts as a copy of: another claim, a snapshot."""
    if not isinstance(spec, Mapping):
        return
    for source in _mappings([spec.get("dataSource"), spec.get("dataSourceRef")]):
        parts = [source.get("namespace"), source.get("name")]
        if source.get("name"):
            yield str(source.get("kind")), "/".join(str(part) for part in parts if part)


def _of_volume(volume: Mapping[str, Any]) -> Iterator[Reference]:
    claim = volume.get("persistentVolumeClaim")
    if isinstance(claim, Mapping) and claim.get("claimName"):
        yield "PersistentVolumeClaim", str(claim["claimName"])
    secret = volume.get("secret")
    if isinstance(secret, Mapping) and secret.get("secretName"):
        yield "Secret", str(secret["secretName"])
    yield from _named([volume.get("configMap")], "ConfigMap")
    azure = volume.get("azureFile")
    if isinstance(azure, Mapping) and azure.get("secretName"):
        yield "Secret", str(azure["secretName"])
    ephemeral = volume.get("ephemeral")
    template = ephemeral.get("volumeClaimTemplate") if isinstance(ephemeral, Mapping) else None
    if isinstance(template, Mapping):
        yield from _of_claim(template.get("spec"))
    projected = volume.get("projected")
    if isinstance(projected, Mapping):
        for source in _mappings(projected.get("sources")):
            yield from _named([source.get("secret")], "Secret")
            yield from _named([source.get("configMap")], "ConfigMap")
    for driver in _mappings(list(volume.values())):
        yield from _named([driver.get("secretRef")], "Secret")
        yield from _named([driver.get("nodePublishSecretRef")], "Secret")


def _of_environment(container: Mapping[str, Any]) -> Iterator[Reference]:
    for source in _mappings(container.get("envFrom")):
        yield from _named([source.get("secretRef")], "Secret")
        yield from _named([source.get("configMapRef")], "ConfigMap")
    for variable in _mappings(container.get("env")):
        origin = variable.get("valueFrom")
        if isinstance(origin, Mapping):
            yield from _named([origin.get("secretKeyRef")], "Secret")
            yield from _named([origin.get("configMapKeyRef")], "ConfigMap")


def _named(items: object, kind: str) -> Iterator[Reference]:
    for item in _mappings(items):
        if item.get("name"):
            yield kind, str(item["name"])


def _mappings(items: object) -> list[Mapping[str, Any]]:
    return [i for i in items if isinstance(i, Mapping)] if isinstance(items, list) else []
