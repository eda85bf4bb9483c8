"""Every place where a pod or a claim names another object is seen, and none leads elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"persistentVolumeClaimName": "theirs"}, (CLAIM, "theirs")),
        ({"volumeSnapshotContentName": "theirs"}, ("VolumeSnapshotContent", "theirs")),
    ],
)
def test_what_a_snapshot_is_taken_of_is_seen(
    source: dict[str, str], expected: tuple[str, str]
) -> None:
    snapshot = thing("VolumeSnapshot", spec={"source": source})
    assert list(references.of_manifest(snapshot)) == [expected]


def test_the_volume_that_a_claim_asks_for_is_seen() -> None:
    expected = [("PersistentVolume", "theirs")]
    bare = {"volumeName": "theirs"}
    assert list(references.of_manifest(thing(CLAIM, spec=bare))) == expected
    spec = {**bare, "accessModes": ["ReadWriteOnce"]}
    templates = {"volumeClaimTemplates": [{"spec": spec}]}
    assert list(references.of_manifest(thing("StatefulSet", spec=templates))) == expected
    ephemeral = volume(ephemeral={"volumeClaimTemplate": {"spec": spec}})
    assert list(references.of_manifest(thing("Pod", spec=ephemeral))) == expected
    assert list(references.of_manifest(thing("Cluster", spec={"storage": spec}))) == expected


def test_the_volume_name_of_a_storage_driver_is_no_reference() -> None:
    spec = volume(scaleIO={"volumeName": "v", "system": "s"})
    assert list(references.of_manifest(thing("Pod", spec=spec))) == []


# -- custom resources -----------------------------------------------------------------------------

KEYS = st.sampled_from(["spec", "template", "jobTemplate", "worker", "x", "items"])
WRAPS = st.lists(st.one_of(KEYS, st.just(0)), max_size=12)


def wrapped(value: Any, steps: list[str | int]) -> dict[str, Any]:
    """``value`` deep in a custom resource: each step is a key, or 0 for a list."""
    for step in steps:
        value = [{"other": 1}, value] if step == 0 else {step: value, "replicas": 2}
    return thing("Notebook", spec={"inner": value})


@given(place=st.sampled_from(PLACES), steps=WRAPS)
def test_a_pod_is_seen_at_any_depth_of_any_kind(
    place: tuple[dict[str, Any], tuple[str, str]], steps: list[str | int]
) -> None:
    spec, expected = place
    pod = {"containers": [{"name": "c"}], **spec}
    assert list(references.of_manifest(wrapped(pod, steps))) == [expected]


@given(
    claim=st.sampled_from(
        [
            (clone(), (CLAIM, "theirs")),
            (clone("VolumeSnapshot"), ("VolumeSnapshot", "theirs")),
            (clone(namespace="elsewhere"), (CLAIM, "elsewhere/theirs")),
            ({"volumeName": "v", "accessModes": ["ReadWriteOnce"]}, ("PersistentVolume", "v")),
            ({"persistentVolumeClaim": {"claimName": "theirs"}}, (CLAIM, "theirs")),
        ]
    ),
    steps=WRAPS,
)
def test_a_claim_is_seen_at_any_depth_of_any_kind(
    claim: tuple[dict[str, Any], tuple[str, str]], steps: list[str | int]
) -> None:
    spec, expected = claim
    assert list(references.of_manifest(wrapped(spec, steps))) == [expected]


def test_no_depth_is_too_much() -> None:
    pod = {"containers": [{"name": "c"}], "serviceAccountName": "a"}
    deep = wrapped(pod, ["x", 0] * 5_000)
    assert list(references.of_manifest(deep)) == [("ServiceAccount", "a")]


def test_a_pods_reference_is_told_once_wherever_it_is_found() -> None:
    pod = {**volume(secret={"secretName": "s"}), **container(envFrom=[])}
    for manifest in (thing("Pod", spec=pod), thing("Job", spec={"template": {"spec": pod}})):
        assert list(references.of_manifest(manifest)) == [(SECRET, "s")]


def test_what_looks_like_a_pod_but_is_a_schema_refers_to_nothing() -> None:
    schema = {"properties": {"containers": {"type": "array"}, "serviceAccountName": {"type": "x"}}}
    assert list(references.of_manifest(thing("CustomResourceDefinition", spec=schema))) == []
    account = {"containers": [{"name": "c"}], "serviceAccount": {"create": True}}
    assert list(references.of_manifest(thing("Application", spec=account))) == []


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


def test_a_snapshot_of_anothers_claim_is_refused_and_with_it_the_claim_made_of_it() -> None:
    copy = thing(CLAIM, "home-bob", spec=clone("VolumeSnapshot", "s"))
    snapshot = thing(
        "VolumeSnapshot", "s", spec={"source": {"persistentVolumeClaimName": "home-alice"}}
    )
    with pytest.raises(ManifestError, match=rf"VolumeSnapshot .*{CLAIM} ns/home-alice"):
        check(copy, snapshot)
    check(copy, snapshot, thing(CLAIM, "home-alice"))
    check(copy, snapshot, shared=(f"{CLAIM}/home-alice",))


def test_a_volume_of_the_cluster_is_the_rendered_one_in_every_namespace() -> None:
    claim = thing(CLAIM, "home", "elsewhere", spec={"volumeName": "disk"})
    with pytest.raises(ManifestError, match="refers to PersistentVolume disk, which"):
        check(claim)
    check(claim, thing("PersistentVolume", "disk"))
    check(claim, shared=("PersistentVolume/disk",))


def test_a_source_in_another_namespace_is_the_one_rendered_there() -> None:
    copy = thing(CLAIM, "copy", spec=clone(namespace="elsewhere"))
    with pytest.raises(ManifestError, match=f"refers to {CLAIM} elsewhere/theirs"):
        check(copy, thing(CLAIM, "theirs"))
    check(copy, thing(CLAIM, "theirs", "elsewhere"))
    check(copy, shared=(f"{CLAIM}/elsewhere/theirs",))


def test_a_custom_resources_pod_is_held_to_the_same_rule() -> None:
    notebook = thing("Notebook", spec={"template": {"spec": {**container(), **POD["spec"]}}})
    with pytest.raises(ManifestError, match=f"Notebook .*{CLAIM} ns/home-bob"):
        check(notebook)
    check(notebook, thing(CLAIM, "home-bob"))
