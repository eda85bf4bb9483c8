"""Every place where a pod or a claim names another object is seen, and none leads elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import references

SECRET, CONFIG, CLAIM = "Secret", "ConfigMap", "PersistentVolumeClaim"


def thing(
    kind: str, name: str = "x", namespace: str | None = None, **fields: Any
) -> dict[str, Any]:
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}


def volume(**source: Any) -> dict[str, Any]:
    return {"volumes": [{"name": "v", **source}]}


def container(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": "c", **fields}]}


def variable(**origin: Any) -> dict[str, Any]:
    return container(env=[{"name": "A", "valueFrom": origin}])


def clone(kind: str = CLAIM, name: str = "theirs", **more: str) -> dict[str, Any]:
    return {"dataSource": {"kind": kind, "name": name, **more}}


PLACES: list[tuple[dict[str, Any], tuple[str, str]]] = [
    (volume(persistentVolumeClaim={"claimName": "home"}), (CLAIM, "home")),
    (volume(secret={"secretName": "s"}), (SECRET, "s")),
    (volume(configMap={"name": "c"}), (CONFIG, "c")),
    (volume(projected={"sources": [{"secret": {"name": "s"}}]}), (SECRET, "s")),
    (volume(projected={"sources": [{"configMap": {"name": "c"}}]}), (CONFIG, "c")),
    (volume(csi={"driver": "d", "nodePublishSecretRef": {"name": "s"}}), (SECRET, "s")),
    (volume(flexVolume={"driver": "d", "secretRef": {"name": "s"}}), (SECRET, "s")),
    (volume(rbd={"image": "i", "secretRef": {"name": "s"}}), (SECRET, "s")),
    (volume(cephfs={"secretRef": {"name": "s"}}), (SECRET, "s")),
    (volume(azureFile={"shareName": "a", "secretName": "s"}), (SECRET, "s")),
    (volume(ephemeral={"volumeClaimTemplate": {"spec": clone()}}), (CLAIM, "theirs")),
    (container(envFrom=[{"secretRef": {"name": "s"}}]), (SECRET, "s")),
    (container(envFrom=[{"configMapRef": {"name": "c"}}]), (CONFIG, "c")),
    (variable(secretKeyRef={"name": "s", "key": "k"}), (SECRET, "s")),
    (variable(configMapKeyRef={"name": "c", "key": "k"}), (CONFIG, "c")),
    ({"imagePullSecrets": [{"name": "s"}]}, (SECRET, "s")),
    ({"serviceAccountName": "a"}, ("ServiceAccount", "a")),
    ({"serviceAccount": "a"}, ("ServiceAccount", "a")),
    ({"resourceClaims": [{"resourceClaimName": "d"}]}, ("ResourceClaim", "d")),
    ({"resourceClaims": [{"resourceClaimTemplateName": "d"}]}, ("ResourceClaimTemplate", "d")),
    ({"initContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}, (SECRET, "s")),
    ({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}, (SECRET, "s")),
]
IDS = [f"{number}-{next(iter(spec))}" for number, (spec, _) in enumerate(PLACES)]


@pytest.mark.parametrize(("spec", "expected"), PLACES, ids=IDS)
def test_a_pods_reference_is_seen(spec: dict[str, Any], expected: tuple[str, str]) -> None:
    assert list(references.of_manifest(thing("Pod", spec=spec))) == [expected]


@pytest.mark.parametrize(("spec", "expected"), PLACES, ids=IDS)
@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"])
def test_a_pod_templates_reference_is_seen(
    kind: str, spec: dict[str, Any], expected: tuple[str, str]
) -> None:
    manifest = thing(kind, spec={"template": {"spec": spec}})
    assert list(references.of_manifest(manifest)) == [expected]


def test_a_cron_jobs_reference_is_seen() -> None:
    spec = {"jobTemplate": {"spec": {"template": {"spec": {"serviceAccountName": "a"}}}}}
    assert list(references.of_manifest(thing("CronJob", spec=spec))) == [("ServiceAccount", "a")]


@pytest.mark.parametrize("field", ["dataSource", "dataSourceRef"])
@pytest.mark.parametrize("kind", [CLAIM, "VolumeSnapshot"])
def test_what_a_volume_is_a_copy_of_is_seen(field: str, kind: str) -> None:
    spec = {field: {"kind": kind, "name": "theirs"}}
    expected = [(kind, "theirs")]
    assert list(references.of_manifest(thing(CLAIM, spec=spec))) == expected
    templates = {"volumeClaimTemplates": [{"spec": spec}]}
    assert list(references.of_manifest(thing("StatefulSet", spec=templates))) == expected


def test_a_copy_from_another_namespace_is_never_taken_for_ones_own() -> None:
    ours = thing(CLAIM, "theirs")
    copy = thing(CLAIM, spec=clone(namespace="elsewhere"))
    with pytest.raises(ManifestError, match="elsewhere/theirs"):
        references.check([("a", ours), ("b", copy)], [], "ns")


@pytest.mark.parametrize(
    "spec",
    [None, "text", {}, {"volumes": None}, {"volumes": "x"}, {"volumes": ["x", None]},
     {"serviceAccountName": "default"}, {"serviceAccountName": ""}, {"containers": [None, "x"]},
     {"imagePullSecrets": [{}, {"name": ""}]}, volume(emptyDir={}), volume(secret="x"),
     volume(projected={"sources": None}), volume(ephemeral={"volumeClaimTemplate": None}),
     container(env=[{"name": "A", "value": "b"}, "x"], envFrom="x"), variable(fieldRef={}),
     {"dataSource": None, "dataSourceRef": {}}],
)  # fmt: skip
def test_what_names_nothing_refers_to_nothing(spec: Any) -> None:
    assert list(references.of_manifest(thing("Pod", spec=spec))) == []
    assert list(references.of_manifest(thing(CLAIM, spec=spec))) == []


def test_every_reference_of_a_pod_is_seen_not_only_the_first() -> None:
    spec: dict[str, Any] = {}
    for part, _ in PLACES:
        for key, value in part.items():
            spec[key] = [*spec.get(key, []), *value] if isinstance(value, list) else value
    expected = {reference for _, reference in PLACES}
    assert set(references.of_manifest(thing("Pod", spec=spec))) == expected


# -- the check ------------------------------------------------------------------------------------

POD = thing("Pod", spec=volume(persistentVolumeClaim={"claimName": "home-bob"}))


def check(*manifests: dict[str, Any], shared: tuple[str, ...] = ()) -> None:
    references.check([(f"{m['kind']} (a.yaml)", m) for m in manifests], shared, "ns")


def test_a_name_that_is_rendered_too_is_accepted() -> None:
    check(POD, thing(CLAIM, "home-bob"))


def test_the_default_namespace_and_its_name_are_one() -> None:
    check(POD, thing(CLAIM, "home-bob", "ns"))


def test_a_name_that_leads_elsewhere_is_refused_with_both_ways_out() -> None:
    with pytest.raises(ManifestError) as caught:
        check(POD, thing(CLAIM, "home-alice"), thing(SECRET, "home-bob"))
    message = str(caught.value)
    assert message.startswith("Pod (a.yaml): it refers to PersistentVolumeClaim ns/home-bob")
    assert "render it, or list PersistentVolumeClaim/home-bob" in message
    assert "`shared_objects`" in message


def test_the_same_name_in_another_namespace_is_another_object() -> None:
    with pytest.raises(ManifestError, match="ns/home-bob"):
        check(POD, thing(CLAIM, "home-bob", "elsewhere"))


@pytest.mark.parametrize("pattern", [f"{CLAIM}/home-bob", f"{CLAIM}/home-*", f"{CLAIM}/*", "*"])
def test_a_shared_pattern_allows_a_name(pattern: str) -> None:
    check(POD, shared=("Secret/x", pattern))


@pytest.mark.parametrize(
    "pattern", ["Secret/home-bob", "home-bob", f"{CLAIM}/home", f"{CLAIM}/HOME-*", ""]
)
def test_another_pattern_does_not(pattern: str) -> None:
    with pytest.raises(ManifestError):
        check(POD, shared=(pattern,))
