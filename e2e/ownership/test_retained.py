"""What outlives a server: changed, edited, refused, made by a former spawner; nothing is lost."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.model import TINY_IMAGE
from e2e.conftest import hub_fixture, signed_in
from e2e.harness import light
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser

pytestmark = pytest.mark.timeout(REPEAT * 150)

VALUES = {"size": "1Mi", "class": "e2e-immediate", "tier": "bronze", "n": 1}
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .Values.former_pvc_name | default (printf "home-%s" .Values.escaped_username) }}
  labels: {tier: {{ .Values.tier }}}
  annotations: {kubetemplatespawner/lifecycle: user-deleted}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: {{ .Values.class }}
  resources: {requests: {storage: {{ .Values.size }}}}
"""
METADATA = """
metadata:
  name: {{ .Values.escaped_username }}
  annotations: {kubetemplatespawner/lifecycle: {{ .Values.lifecycle }}}"""
# Nothing of them runs: what is asked here is what the API server takes.
GATED = f"""
schedulingGates: [{{name: e2e/never}}]
containers:
  - {{name: c, image: {TINY_IMAGE}, env: [{{name: KEY, value: "{{{{ .Values.n }}}}"}}]}}
"""


def indented(text: str, by: int) -> str:
    return text.strip().replace("\n", "\n" + " " * by)


OTHERS = {
    "job": f"""
apiVersion: batch/v1
kind: Job
{METADATA}
spec:
  suspend: true
  template:
    spec:
      restartPolicy: Never
      {indented(GATED, 6)}
""",
    "beside": f"""
apiVersion: v1
kind: Pod
{METADATA}
spec:
  {indented(GATED, 2)}
""",
    "service": f"""
apiVersion: v1
kind: Service
{METADATA}
spec:
  type: {{{{ ternary "ClusterIP" .Values.type (eq (int .Values.n) 1) }}}}
  ports: [{{port: 80}}]
""",
    "set": f"""
apiVersion: apps/v1
kind: StatefulSet
{METADATA}
spec:
  serviceName: none
  replicas: 0
  selector: {{matchLabels: {{app: {{{{ .Values.escaped_username }}}}}}}}
  template:
    metadata: {{labels: {{app: {{{{ .Values.escaped_username }}}}}}}}
    spec:
      {indented(GATED, 6)}
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {{requests: {{storage: {{{{ .Values.n }}}}Mi}}}}
""",
    "deployment": f"""
apiVersion: apps/v1
kind: Deployment
{METADATA}
spec:
  replicas: 0
  selector: {{matchLabels: {{app: {{{{ .Values.escaped_username }}}}}}}}
  template:
    metadata: {{labels: {{app: {{{{ .Values.escaped_username }}}}}}}}
    spec:
      {indented(GATED, 6)}
""",
}
KINDS = ("job", "pod", "service", "statefulset", "deployment")
WRITE = "echo {{ .Values.word }} >> /data/words"
SET = f"""
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {light.NAME}}}
spec:
  serviceName: {light.NAME}
  selector: {{matchLabels: {{app: {light.NAME}}}}}
  persistentVolumeClaimRetentionPolicy: {{whenDeleted: {{{{ .Values.whenDeleted }}}}}}
  template:
    metadata: {{labels: {{app: {light.NAME}}}}}
    spec:
      automountServiceAccountToken: false
      containers:
        - name: server
          image: {TINY_IMAGE}
          command: [/bin/sh, -c, "{WRITE}; trap 'exit 0' TERM; httpd -f -p 8888 & wait $!"]
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: e2e-immediate
        resources: {{requests: {{storage: 1Mi}}}}
"""
SET_SERVICE = f"""
apiVersion: v1
kind: Service
metadata:
  name: {light.NAME}
  annotations: {{kubetemplatespawner/connection: "true"}}
spec:
  selector: {{app: {light.NAME}}}
  ports: [{{port: 8888}}]
"""

hub = hub_fixture(light.OPTIONS_ARE_TRAITS, poll_interval=3600)


async def start(
    hub: Hub,
    user: HubUser,
    template: str,
    *,
    traits: dict[str, Any] | None = None,
    **values: object,
) -> str:
    """Start with these values; what the hub logged of it."""
    log = len(hub.log.read_text())
    options = {"template_path": template, "extra_vars": VALUES | values, **(traits or {})}
    await user.run_server(options=options)
    return hub.log.read_text()[log:]


async def start_again(hub: Hub, user: HubUser, template: str, **values: Any) -> str:
    await user.stop_server()
    return await start(hub, user, template, **values)


def there(kube: Kube, kind: str, space: str, name: str) -> dict[str, Any]:
    found = kube.get(kind, space, name)
    assert found is not None, f"no {kind} {name}"
    return found


def uid(item: dict[str, Any]) -> str:
    return str(item["metadata"]["uid"])


def hold(kube: Kube, space: str, name: str, finalizers: list[str] | None) -> None:
    patch = json.dumps({"metadata": {"finalizers": finalizers}})
    kube("patch", "pvc", name, "-n", space, "--type=merge", "-p", patch)


async def test_a_volume_grows_and_keeps_what_it_cannot_change(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    template = light.chart(tmp_path, pod=light.pod(), claim=CLAIM)
    for turn in faults("volume grown, shrunk, moved, edited by an administrator"):
        async with signed_in(hub, f"volume-{turn}") as user:
            name = f"home-{user.name}"

            def claim(name: str = name) -> dict[str, Any]:
                return there(kube, "pvc", space, name)

            def size(name: str = name) -> str:
                return str(claim(name)["spec"]["resources"]["requests"]["storage"])

            await start(hub, user, template)
            first = uid(claim())
            log = await start_again(hub, user, template, size="2Mi")
            assert "keeps its present state" not in log
            grown = "--for=jsonpath={.status.capacity.storage}=2Mi"
            kube("wait", f"pvc/{name}", "-n", space, grown, "--timeout=30s")
            log = await start_again(hub, user, template, size="1Mi")
            assert f"PersistentVolumeClaim/{space}/{name} keeps its present state" in log
            assert "spec.resources.requests.storage" in log
            log = await start_again(hub, user, template, **{"class": "e2e-wait", "size": "2Mi"})
            assert f"PersistentVolumeClaim/{space}/{name} keeps its present state" in log
            assert "spec is immutable" in log
            # The label is ours; the annotation, the administrator's own.
            kube("label", f"pvc/{name}", "-n", space, "--overwrite", "tier=gold")
            kube("annotate", f"pvc/{name}", "-n", space, "note=mine")
            log = await start_again(hub, user, template, size="3Mi", tier="silver")
            (warning,) = (line for line in log.splitlines() if "keeps its present state" in line)
            assert '.metadata.labels.tier (conflict with "kubectl-label"' in warning
            labels, annotations = claim()["metadata"]["labels"], claim()["metadata"]["annotations"]
            assert (labels["tier"], annotations["note"], size()) == ("gold", "mine", "3Mi")
            before = claim()["metadata"]["resourceVersion"]
            log = await start_again(hub, user, template, size="3Mi", tier="silver")
            assert "keeps its present state" not in log  # told once
            assert (uid(claim()), claim()["metadata"]["labels"]["tier"]) == (first, "gold")
            faults.saw(
                "writes to an unchanged volume", claim()["metadata"]["resourceVersion"] != before
            )
            await user.stop_server()
            hold(kube, space, name, ["e2e/hold"])
            kube("delete", "pvc", name, "-n", space, "--wait=false")
            release = threading.Timer(3, hold, (kube, space, name, None))
            release.start()  # until then it is going, and the start waits
            await start(hub, user, template)
            release.join()
            assert uid(claim()) != first
            await hub.delete_user(user.name)
            assert kube.get("pvc", space, name) is None, hub.log_tail()


async def test_what_cannot_be_changed_is_new_or_kept(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    template = light.chart(tmp_path, pod=light.pod(), **OTHERS)
    for turn in faults("pod spec, Service type, Job template, claim template changed"):
        async with signed_in(hub, f"passing-{turn}") as user:
            given: dict[str, Any] = {"lifecycle": "server-stopped", "type": "NodePort"}
            await start(hub, user, template, **given)
            before = {kind: there(kube, kind, space, user.name) for kind in KINDS}
            log = await start_again(hub, user, template, **given, n=2)
            assert "keeps its present state" not in log
            for kind in KINDS:
                after = there(kube, kind, space, user.name)
                assert uid(after) != uid(before[kind])
                assert after["spec"] != before[kind]["spec"]
            await hub.delete_user(user.name)
        async with signed_in(hub, f"lasting-{turn}") as user:
            given = {"lifecycle": "user-deleted", "type": "ExternalName"}
            await start(hub, user, template, **given)
            before = {kind: there(kube, kind, space, user.name) for kind in KINDS}
            kube("scale", f"deployment/{user.name}", "-n", space, "--replicas=3")  # as autoscalers
            log = await start_again(hub, user, template, **given, n=2)
            for kind, field in {
                "Job": "spec.template.*: Invalid value: …: field is immutable",
                "Pod": "pod updates may not change fields",
                "Service": "spec.externalName: Required",
                "StatefulSet": "updates to statefulset spec",
                "Deployment": r"\.spec\.replicas \(conflict with .*subresource",
            }.items():
                told = re.findall(f"{kind}/{space}/{user.name} keeps its present state", log)
                assert len(told) == 1, (kind, log)
                assert re.search(f"{told[0]}.*{field}", log), (kind, log)
            after = {kind: there(kube, kind, space, user.name) for kind in KINDS}
            assert {k: uid(v) for k, v in after.items()} == {k: uid(v) for k, v in before.items()}
            spec = after["deployment"]["spec"]
            (container,) = spec["template"]["spec"]["containers"]
            assert (spec["replicas"], container["env"][0]["value"]) == (3, "2")
            await hub.delete_user(user.name)
            assert [kind for kind in KINDS if kube.get(kind, space, user.name)] == []


async def test_a_set_keeps_its_volumes_until_the_user_goes(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    template = light.chart(tmp_path, set=SET, service=SET_SERVICE)
    for turn in faults("StatefulSet stopped and started"):
        async with signed_in(hub, f"set-{turn}") as user:
            name = f"jupyter-{user.name}"
            log = await start(hub, user, template, word="one", whenDeleted="Retain")
            assert "whenDeleted" not in log
            claim = there(kube, "pvc", space, f"data-{name}-0")
            assert claim["metadata"]["labels"]["kubetemplatespawner/lifecycle"] == "user-deleted"
            await start_again(hub, user, template, word="two", whenDeleted="Retain")
            words = kube("exec", f"{name}-0", "-n", space, "--", "cat", "/data/words")
            assert words.split() == ["one", "two"]
            await user.stop_server()
            assert uid(there(kube, "pvc", space, f"data-{name}-0")) == uid(claim)
            log = await start(hub, user, template, word="three", whenDeleted="Delete")
            assert f"StatefulSet/{space}/{name}" in log
            assert "persistentVolumeClaimRetentionPolicy" in log
            await hub.delete_user(user.name)
            assert kube.owned(space, f"hub.jupyter.org/username={user.name}") == []


KUBESPAWNER = {
    "app.kubernetes.io/managed-by": "kubespawner",
    "component": "singleuser-storage",
    "app.kubernetes.io/instance": "a-release",
}  # as Zero to JupyterHub sets it
KUBETEMPLATESPAWNER = {
    "app.kubernetes.io/managed-by": "kubetemplatespawner",
    "hub.jupyter.org/servername": "",
}


def former(
    kube: Kube, space: str, user: str, *, size: str = "1Mi", made: dict[str, str] = KUBESPAWNER
) -> dict[str, Any]:
    """A volume as the client of a former spawner posts it."""
    name = f"old-{user}"
    labels = {"app.kubernetes.io/instance": "jupyter", "hub.jupyter.org/username": user, **made}
    manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "e2e-immediate",
            "resources": {"requests": {"storage": size}},
        },
    }
    given = ("-n", space, "--field-manager=OpenAPI-Generator", "-f", "-")
    kube("create", *given, given=manifest)
    kube("wait", f"pvc/{name}", "-n", space, "--for=jsonpath={.status.phase}=Bound")
    return there(kube, "pvc", space, name)


async def remember(hub: Hub, **claims: str) -> None:
    """Put into the hub's database what KubeSpawner keeps there of a server that is stopped."""
    for user in claims:
        await hub.create_user(user)
    await hub.stop()
    with sqlite3.connect(hub.folder / "jupyterhub.sqlite") as database:
        for user, claim in claims.items():
            state = json.dumps({"kubespawner_version": "7.1.0", "pvc_name": claim})
            (number,) = database.execute("SELECT id FROM users WHERE name = ?", (user,)).fetchone()
            database.execute("DELETE FROM spawners WHERE user_id = ?", (number,))
            database.execute(
                "INSERT INTO spawners (user_id, name, state) VALUES (?, '', ?)", (number, state)
            )
    await hub.start()


async def test_a_volume_of_a_former_spawner_is_used_or_taken_over(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    """Under the name that KubeSpawner gave it, which is not what the template would choose."""
    template = light.chart(tmp_path, pod=light.pod(), claim=CLAIM)
    before: dict[str, dict[str, Any]] = {}
    for turn in range(1, REPEAT + 1):  # one restart of the hub for all
        before[f"used{turn}"] = former(kube, space, f"used{turn}")
        before[f"taken{turn}"] = former(kube, space, f"taken{turn}", made=KUBETEMPLATESPAWNER)
        before[f"small{turn}"] = former(kube, space, f"small{turn}", size="2Mi")
    await remember(hub, **{user: f"old-{user}" for user in before})
    for turn in faults("volume and hub database of a KubeSpawner"):
        used, taken, small = (f"{word}{turn}" for word in ("used", "taken", "small"))
        async with signed_in(hub, used) as user:
            for _ in range(2):
                log = await start(hub, user, template)
                assert f"PersistentVolumeClaim/{space}/old-{used} was made by a former" in log
                await user.stop_server()
            await hub.delete_user(used)
            assert there(kube, "pvc", space, f"old-{used}") == before[used]
        for name in (taken, small):
            async with signed_in(hub, name) as user:
                log = await start(hub, user, template, traits={"adopt_retained": True})
                assert f"PersistentVolumeClaim/{space}/old-{name} of a former spawner is" in log
                now = there(kube, "pvc", space, f"old-{name}")
                assert uid(now) == uid(before[name])
                assert now["metadata"]["labels"]["tier"] == "bronze"
                assert now["spec"]["resources"] == before[name]["spec"]["resources"]
                await hub.delete_user(name)
                assert kube.get("pvc", space, f"old-{name}") is None
        for name in (used, taken, small):
            assert kube.get("pvc", space, f"home-{name}") is None
        kube("delete", "pvc", f"old-{used}", "-n", space)
