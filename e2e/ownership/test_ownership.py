"""Nothing that is somebody else's is written, used or deleted: on the real API server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import MakeHub, hub_fixture, signed_in
from e2e.harness import light
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser, ServerFailedError
from lightkube_template_spawner.objects.identity import Identity

# One slug for both, and for both as the name of a server: found by trying 60,000 names.
VICTIM = "first+last@uni-._example__"
ATTACKER = "first.+.last@uni-+example.+."
KINDS = "pods,secrets,services,deployments,persistentvolumeclaims,configmaps"

hub = hub_fixture(light.OPTIONS_ARE_TRAITS, poll_interval=3600)


async def start(user: HubUser, chart: str) -> None:
    await user.run_server(options={"template_path": chart})


async def refusal(user: HubUser, chart: str) -> str:
    """What the user reads when the start is refused."""
    with pytest.raises(ServerFailedError) as failed:
        await start(user, chart)
    return str(failed.value)


def snapshot(kube: Kube, space: str, owner: str = "") -> dict[str, Any]:
    """Every object of an owner, whole, without what controllers and the kubelet report."""
    selector = f"lightkube-template-spawner/owner={owner}" if owner else ""
    found = {}
    for item in kube.list(KINDS, space, selector):
        item.pop("status", None)
        item["metadata"].pop("resourceVersion")
        item["metadata"]["managedFields"] = [
            entry for entry in item["metadata"]["managedFields"] if "subresource" not in entry
        ]
        found[f"{item['kind']}/{item['metadata']['name']}"] = item
    return found


def owner_of(name: str) -> str:
    return Identity("jupyter", name).owner


def object_of(kind: str, api_version: str, **fields: object) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, **fields}


SLEEP = {"containers": [{"name": "c", "image": "localhost/tiny:e2e"}]}
GATED = {**SLEEP, "schedulingGates": [{"name": "e2e/never"}]}
LABELS = {"app": "admin"}
DEPLOYMENT = {
    "replicas": 0,
    "selector": {"matchLabels": LABELS},
    "template": {"metadata": {"labels": LABELS}, "spec": SLEEP},
}
CLAIM = {
    "accessModes": ["ReadWriteOnce"],
    "storageClassName": "e2e-wait",
    "resources": {"requests": {"storage": "1Mi"}},
}
FOREIGN = (
    object_of("Secret", "v1", stringData={"key": "admin's"}),
    object_of("Service", "v1", spec={"ports": [{"port": 80}]}),
    object_of("Deployment", "apps/v1", spec=DEPLOYMENT),
    object_of("PersistentVolumeClaim", "v1", spec=CLAIM),
    object_of("Pod", "v1", spec=GATED),
)


@pytest.mark.parametrize("lifecycle", ["server-stopped", "user-deleted"])
async def test_an_administrators_objects_are_refused_and_unwritten(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, lifecycle: str
) -> None:
    """The template names an object that an administrator made, and wants it otherwise."""
    before = {}
    async with signed_in(hub, f"user-{lifecycle}") as user:
        for theirs in FOREIGN:
            kind = theirs["kind"]
            name = f"{kind}-{lifecycle}".lower()
            kube("create", "-n", space, "-f", "-", given={**theirs, "metadata": {"name": name}})
            before[kind, name] = await settled(kube, space, kind, name)
            annotations = {"kubetemplatespawner/lifecycle": lifecycle}
            if kind == "Pod":
                annotations["kubetemplatespawner/connection"] = "true"
            metadata = {"name": name, "labels": {"ours": "true"}, "annotations": annotations}
            templates = {"wanted": json.dumps({**theirs, "metadata": metadata})}
            if kind != "Pod":
                templates["pod"] = light.pod()
            text = await refusal(user, light.chart(tmp_path / kind, **templates))
            assert re.search(
                rf"{kind}/{space}/{name} .* is not this user's: .* kubectl-create.* left as it is",
                text,
            )
        assert snapshot(kube, space, owner_of(user.name)) == {}
        await hub.delete_user(user.name)
    for (kind, name), theirs in before.items():
        assert kube.get(kind, space, name) == theirs


async def settled(kube: Kube, space: str, kind: str, name: str) -> dict[str, Any]:
    """The object once its controllers have said all they have to say."""
    if kind == "Deployment":
        reason = '{.status.conditions[?(@.type=="Progressing")].reason}=NewReplicaSetAvailable'
        kube("wait", f"{kind}/{name}", "-n", space, f"--for=jsonpath={reason}", "--timeout=30s")
    found = kube.get(kind, space, name)
    assert found is not None
    return found


async def test_another_users_object_is_refused_with_their_name(
    hub: Hub, kube: Kube, space: str, tmp_path: Path
) -> None:
    """A template whose names do not depend on the user."""
    chart = light.chart(tmp_path, pod=light.pod("one-for-all"), secret=light.secret("one-secret"))
    async with signed_in(hub, "first") as first, signed_in(hub, "second") as second:
        await start(first, chart)
        before = snapshot(kube, space, owner_of("first"))
        assert set(before) == {"Pod/one-for-all", "Secret/one-secret"}
        text = await refusal(second, chart)
        assert f"Secret/{space}/one-secret" in text
        assert "belongs to user 'first' of hub instance 'jupyter'" in text
        assert snapshot(kube, space, owner_of("first")) == before
        assert snapshot(kube, space, owner_of("second")) == {}
        await hub.delete_user("second")
        assert snapshot(kube, space, owner_of("first")) == before
        assert (await first.servers())[""]["ready"]
        await hub.delete_user("first")
    assert snapshot(kube, space, owner_of("first")) == {}


async def test_two_users_with_one_slug_never_touch_each_other(
    hub: Hub, kube: Kube, space: str, tmp_path: Path
) -> None:
    assert Identity("jupyter", VICTIM).user_slug == Identity("jupyter", ATTACKER).user_slug
    chart = light.chart(
        tmp_path / "same", pod=light.pod(), claim=light.claim(), secret=light.secret()
    )
    name = "{{ .Values.unescaped_username | sha256sum | trunc 8 }}"
    apart = light.chart(
        tmp_path / "apart", pod=light.pod(f"pod-{name}"), claim=light.claim(f"claim-{name}")
    )
    theft = light.chart(tmp_path / "theft", pod=light.pod(f"pod-{name}"), claim=light.claim())
    async with signed_in(hub, VICTIM) as victim, signed_in(hub, ATTACKER) as attacker:
        await start(victim, chart)
        before = snapshot(kube, space, owner_of(VICTIM))
        assert len(before) == 3
        for wanted in (chart, theft):
            assert f"belongs to user '{VICTIM}'" in await refusal(attacker, wanted)
        assert snapshot(kube, space, owner_of(VICTIM)) == before
        assert snapshot(kube, space, owner_of(ATTACKER)) == {}
        # With names of their own, both run under one slug, and each goes alone.
        await start(attacker, apart)
        assert len(snapshot(kube, space, owner_of(ATTACKER))) == 2
        await attacker.stop_server()
        assert len(snapshot(kube, space, owner_of(ATTACKER))) == 1
        await start(attacker, apart)
        await hub.delete_user(ATTACKER)
        assert snapshot(kube, space, owner_of(ATTACKER)) == {}
        assert snapshot(kube, space, owner_of(VICTIM)) == before
        assert (await victim.servers())[""]["ready"]
        await hub.delete_user(VICTIM)
    assert snapshot(kube, space, owner_of(VICTIM)) == {}


async def test_another_hubs_object_is_refused_and_survives_its_namesake(
    hub: Hub, make_hub: MakeHub, kube: Kube, space: str, tmp_path: Path
) -> None:
    """Two hubs in one namespace, one user name, a template that leaves the instance out."""
    name = "{{ .Values.escaped_username }}"
    chart = light.chart(tmp_path, pod=light.pod(name), claim=light.claim(name))
    other = Identity("other-hub", "both").owner
    async with (
        make_hub(instance_name="other-hub", template_path=chart) as other_hub,
        signed_in(other_hub, "both") as elsewhere,
        signed_in(hub, "both") as here,
    ):
        await elsewhere.run_server()
        before = snapshot(kube, space, other)
        assert set(before) == {"Pod/both", "PersistentVolumeClaim/both"}
        text = await refusal(here, chart)
        assert "belongs to user 'both' of hub instance 'other-hub'" in text
        await hub.delete_user("both")
        assert snapshot(kube, space, other) == before
        assert (await elsewhere.servers())[""]["ready"]
        await other_hub.delete_user("both")
    assert snapshot(kube, space, other) == {}


async def test_what_an_administrator_changed_on_a_volume_stays_and_the_start_goes_on(
    hub: Hub, kube: Kube, space: str, tmp_path: Path
) -> None:
    def chart(tier: str, storage_class: str = "e2e-immediate") -> str:
        claim = light.claim("edited", storage_class, labels=f"{{tier: {tier}}}")
        return light.chart(tmp_path / tier, pod=light.pod(), claim=claim)

    async with signed_in(hub, "edited") as user:
        await start(user, chart("bronze"))
        await user.stop_server()
        kube("label", "pvc/edited", "-n", space, "--overwrite", "tier=gold", "admins=own")
        log = len(hub.log.read_text())
        await start(user, chart("silver"))
        claim = kube.get("pvc", space, "edited")
        assert claim is not None
        labels = claim["metadata"]["labels"]
        assert (labels["tier"], labels["admins"]) == ("gold", "own")
        warning = await hub.wait_for_log(
            rf"PersistentVolumeClaim/{space}/edited keeps its present state.*", start=log
        )
        assert "kubectl-label" in warning[0]
        assert "tier" in warning[0]
        await user.stop_server()
        log = len(hub.log.read_text())
        await start(user, chart("gold", "e2e-wait"))  # which no volume can change
        await hub.wait_for_log("edited keeps its present state.*immutable", start=log)
        await hub.delete_user(user.name)
    assert kube.get("pvc", space, "edited") is None


@pytest.mark.parametrize("label", ["name slug", "label slug"])
async def test_a_kubespawner_volume_is_used_unwritten_and_outlives_the_user(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, label: str
) -> None:
    """KubeSpawner's labels carry another slug than its names where a name has capitals or dots."""
    name = "old.user" if label == "label slug" else "olduser"
    identity = Identity("jupyter", name)
    claim_name = f"claim-{identity.user_slug}"
    labels = {
        "app.kubernetes.io/instance": "jupyter",
        "app.kubernetes.io/managed-by": "kubespawner",
        "component": "singleuser-storage",
        "hub.jupyter.org/username": name,
    }
    spec = {**CLAIM, "storageClassName": "e2e-immediate"}
    metadata = {"name": claim_name, "labels": labels}
    old = object_of("PersistentVolumeClaim", "v1", metadata=metadata, spec=spec)
    kube("create", "-n", space, "-f", "-", given=old)
    kube("wait", f"pvc/{claim_name}", "-n", space, "--for=jsonpath={.status.phase}=Bound")
    before = kube.get("pvc", space, claim_name)
    mount = light.pod().replace(
        "containers:",
        f"volumes: [{{name: home, persistentVolumeClaim: {{claimName: {claim_name}}}}}]\n"
        "  containers:",
    )
    chart = light.chart(tmp_path, pod=mount, claim=light.claim())
    async with signed_in(hub, name) as user:
        log = len(hub.log.read_text())
        await start(user, chart)
        await hub.wait_for_log(
            rf"PersistentVolumeClaim/{space}/{claim_name} was made by a former spawner", start=log
        )
        assert kube.get("pvc", space, claim_name) == before
        await user.stop_server()
        assert kube.get("pvc", space, claim_name) == before
        await hub.delete_user(name)
    assert kube.get("pvc", space, claim_name) == before
