"""What objects and kinds are called."""

from __future__ import annotations

from lightkube_template_spawner.objects.ref import POD, KindRef, ObjectRef


def test_a_kind_is_written_as_traits_write_it() -> None:
    assert str(POD) == f"{POD}" == "v1/Pod"
    assert str(KindRef.of({"apiVersion": "apps/v1", "kind": "Deployment"})) == "apps/v1/Deployment"


def test_an_object_is_written_by_kind_namespace_and_name() -> None:
    assert str(ObjectRef(POD, "ns", "x", "uid")) == "Pod/ns/x"
    assert str(ObjectRef(KindRef("example.com/v1", "Cluster"), "", "x")) == "Cluster/x"


def test_an_object_is_what_its_manifest_says() -> None:
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    assert ObjectRef.of(manifest) == ObjectRef(POD, "", "x")
    manifest["metadata"] = {"name": "x", "namespace": "ns", "uid": "u"}
    assert ObjectRef.of(manifest) == ObjectRef(POD, "ns", "x", "u")


def test_what_a_state_lacks_is_empty() -> None:
    assert ObjectRef.from_state({"kind": "Pod", "name": None}) == ObjectRef(
        KindRef("", "Pod"), "", ""
    )
