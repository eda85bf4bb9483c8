"""A start that cannot succeed ends in seconds, in the cluster's own words, and costs nobody else.

All kinds of trouble are met at once by one hub that would end at its second counted failure.
"""

from __future__ import annotations

import html
import json
import re
import socket
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
import pytest

from e2e.cluster.model import TINY_IMAGE
from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faults import Faults
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser, ServerFailedError

pytestmark = pytest.mark.timeout(600)

Obj = dict[str, Any]
KINDS = "pods,secrets,services,deployments,replicasets,statefulsets,persistentvolumeclaims"
LIMIT = 90.0  # seconds until the user has read it, on a busy machine; the start's own time is 120
CONFIG = f"""
{light.OPTIONS_ARE_TRAITS}
c.LightkubeTemplateSpawner.consecutive_failure_limit = 2
c.JupyterHub.authenticate_prometheus = False
"""
ANYTHING = ["Secret/nothing", "ConfigMap/nothing", "PersistentVolumeClaim/nothing"]
ANYTHING += ["ResourceClaim/nothing"]
NAMES = {"name": light.NAME}
CONNECTION = {"kubetemplatespawner/connection": "true"}


def pod(container: Obj | None = None, **spec: Any) -> Obj:
    """A pod that a user connects to, with something wrong in it."""
    server: Obj = {"name": "server", "image": TINY_IMAGE}
    server["command"] = ["httpd", "-f", "-p", "8888"]
    # Without one, Kubernetes calls a server that ends at once ready for a moment.
    server["readinessProbe"] = {"tcpSocket": {"port": 8888}, "periodSeconds": 1}
    basis = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**NAMES, "annotations": CONNECTION},
        "spec": {**basis, "containers": [{**server, **(container or {})}], **spec},
    }


def controlled(kind: str, inner: Obj) -> dict[str, Obj]:
    """The same behind a Service, made by a controller."""
    label = {"app": light.NAME}
    template = {"metadata": {"labels": label}, "spec": inner["spec"]}
    spec: Obj = {"selector": {"matchLabels": label}, "template": template}
    if kind == "StatefulSet":
        spec["serviceName"] = light.NAME
    service = {"selector": label, "ports": [{"port": 8888}]}
    return {
        "server": {"apiVersion": "apps/v1", "kind": kind, "metadata": NAMES, "spec": spec},
        "service": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**NAMES, "annotations": CONNECTION},
            "spec": service,
        },
    }


def mounting(**source: Any) -> Obj:
    mounts = {"volumeMounts": [{"name": "more", "mountPath": "/more"}]}
    return pod(mounts, volumes=[{"name": "more", **source}])


class Case(NamedTuple):
    """What is wrong, and what the user is to read."""

    templates: Mapping[str, Obj]
    reason: str
    words: str
    place: str = ""  # which of the module's namespaces
    traits: Mapping[str, object] = {}


def bare(broken: Obj, reason: str, words: str, place: str = "", **traits: Any) -> Case:
    return Case({"server": broken}, reason, words, place, traits)


CLAIM = {"persistentVolumeClaim": {"claimName": light.CLAIM_NAME}}
UNCLASSED = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {
        "name": light.CLAIM_NAME,
        "annotations": {"kubetemplatespawner/lifecycle": "user-deleted"},
    },
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "nothing",
        "resources": {"requests": {"storage": "1Mi"}},
    },
}
HUGE = pod({"resources": {"requests": {"cpu": "900"}}})
GRACE = 3
IMPATIENT: Obj = {"failure_rules": {"unschedulable": {"grace": GRACE}}}
QUOTA = r"exceeded quota: none"
POLICY = r"denied request: the policy of this test says no"
RESTRICTED = r'violates PodSecurity "restricted'
WEBHOOK = r"failed calling webhook.*connection refused"
# On a busy machine the ten seconds may be up before the two have greeted each other.
HANGS = r"failed calling webhook.*(context deadline exceeded|TLS handshake timeout)"
CASES = {
    "an image that cannot be pulled": bare(
        pod({"image": "localhost:1/none:1"}),
        "image",
        r"Pod/\S+, container server: (ErrImagePull|ImagePullBackOff): .*connection refused",
    ),
    "an image that is never pulled": bare(
        pod({"image": "localhost/none:1", "imagePullPolicy": "Never"}),
        "image",
        "ErrImageNeverPull: .*not present",
    ),
    "no image's name": bare(
        pod({"image": "UPPER//x"}), "image", "InvalidImageName: .*invalid reference format"
    ),
    "a Secret of variables that is not there": bare(
        pod({"envFrom": [{"secretRef": {"name": "nothing"}}]}),
        "config",
        r'CreateContainerConfigError: secret "nothing" not found',
    ),
    "a key that its ConfigMap lacks": bare(
        pod({"env": [{"name": "A", "valueFrom": {
            "configMapKeyRef": {"name": "kube-root-ca.crt", "key": "nothing"}}}]}),
        "config",
        "CreateContainerConfigError: couldn't find key nothing in ConfigMap",
        shared_objects=["ConfigMap/kube-root-ca.crt"],
    ),
    "a Secret to mount that is not there": bare(
        mounting(secret={"secretName": "nothing"}),
        "config",
        r'Pod/\S+: FailedMount: .*secret "nothing" not found',
    ),
    "a ConfigMap to mount that is not there": bare(
        mounting(configMap={"name": "nothing"}),
        "config",
        r'FailedMount: .*configmap "nothing" not found',
    ),
    "a server that crashes again and again": bare(
        pod({"command": ["/bin/sh", "-c", "exit 3"]}),
        "crash",
        r"(CrashLoopBackOff: .*; it ended|Ended): Error, exit code 3",
    ),
    "an init container that crashes": bare(
        pod(initContainers=[
            {"name": "first", "image": TINY_IMAGE, "command": ["/bin/sh", "-c", "exit 4"]}
        ]),
        "crash",
        r"container first: (CrashLoopBackOff|Ended): .*exit code 4",
    ),
    "a command that is not there": bare(
        pod({"command": ["/nothing"]}), "crash", r'(?s)exec: "/nothing".*no such file',
    ),
    "a server that ends at once": bare(
        pod({"command": ["/bin/sh", "-c", "exit 5"]}, restartPolicy="Never"),
        "crash",
        "ended before it was ready: Error",
    ),
    "a pod that fits on no node": bare(
        HUGE, "unschedulable", "Unschedulable: .*Insufficient cpu", **IMPATIENT
    ),
    "a pod that fits on no node until time is up": bare(
        HUGE, "unschedulable", r"not ready after \d+ s: .*Insufficient cpu", k8s_timeout=20
    ),
    "a Deployment's pod that fits on no node": Case(
        controlled("Deployment", HUGE), "unschedulable", "Pod/.*Insufficient cpu", "", IMPATIENT
    ),
    "a volume claim that is not there": bare(
        mounting(persistentVolumeClaim={"claimName": "nothing"}),
        "volume",
        'Unschedulable: .*persistentvolumeclaim "nothing" not found',
    ),
    "a storage class that is not there": Case(
        {"claim": UNCLASSED, "server": mounting(**CLAIM)},
        "volume",
        'PersistentVolumeClaim/.*ProvisioningFailed: storageclass.* "nothing" not found',
    ),
    "a volume on another node": bare(
        {**mounting(**CLAIM), "spec": {
            **mounting(**CLAIM)["spec"], "nodeSelector": {"e2e/nowhere": "yes"}}},
        "unschedulable",
        "Unschedulable: .*didn't match Pod's node affinity/selector",
        **IMPATIENT,
    ),
    "a device claim that is not there": bare(
        pod(resourceClaims=[{"name": "device", "resourceClaimName": "nothing"}]),
        "config",
        r"Pod/\S+: it refers to ResourceClaim/\S+/nothing, which does not exist",
    ),
    "a full quota": bare(pod(), "quota", f"Pod/.*was refused: .*{QUOTA}", "quota"),
    "a full quota for a Deployment's pod": Case(
        controlled("Deployment", pod()), "quota", f"Deployment/.*FailedCreate: .*{QUOTA}", "quota"
    ),
    "a full quota for a StatefulSet's pod": Case(
        controlled("StatefulSet", pod()), "quota", f"StatefulSet/.*FailedCreate: .*{QUOTA}", "quota"
    ),
    "a policy that denies": bare(pod(), "admission", f"Pod/.*{POLICY}", "policy"),
    "a policy that denies a Deployment's pod": Case(
        controlled("Deployment", pod()), "admission", f"Deployment/.*{POLICY}", "policy"
    ),
    "pod security": bare(pod(), "admission", RESTRICTED, "restricted"),
    "pod security for a Deployment's pod": Case(
        controlled("Deployment", pod()), "admission", f"Deployment/.*{RESTRICTED}", "restricted"
    ),
    "a webhook that is down": bare(pod(), "admission", WEBHOOK, "webhook"),
    "a webhook that hangs": bare(pod(), "admission", HANGS, "hanging"),
    "a webhook that is down for a Deployment's pod": Case(
        controlled("Deployment", pod()), "admission", f"Deployment/.*{WEBHOOK}", "webhook"
    ),
    "a name that is none": bare(
        pod(hostname="-"), "invalid", r"Pod/.*was refused: .*spec.hostname.*is invalid|is invalid:"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(kube: Kube, space: str) -> Iterator[dict[str, str]]:
    """Namespaces in which pods are refused, each in its own way; "" is the ordinary one."""
    found = {"": space}
    for name in ("quota", "policy", "restricted", "webhook", "hanging"):
        found[name] = f"{space}-{name}"
        kube("create", "namespace", found[name])
    kube("create", "quota", "none", "--hard=pods=0", "-n", found["quota"])
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    kube("label", "namespace", found["restricted"], restricted)
    silent = socket.create_server((kube.cluster.host_address, 0))
    silence = "https://{}:{}/".format(*silent.getsockname())
    hooks = {found["webhook"]: "https://127.0.0.1:1/", found["hanging"]: silence}
    for manifest in [*policy(space, found["policy"]), webhooks(space, hooks)]:
        kube.create(manifest)
    try:
        for name in found.keys() - {"", "hanging"}:  # each takes a moment until it is in force
            _until_refused(kube, found[name])
        yield found
    finally:
        silent.close()
        kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings"
        for kind in (*kinds.split(","), "validatingwebhookconfigurations"):
            kube("delete", kind, space, "--ignore-not-found")
        for name in found.values():
            if name != space:
                kube("delete", "namespace", name, "--wait=false")


def policy(name: str, namespace: str) -> list[Obj]:
    group = "admissionregistration.k8s.io"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    constraints = {"resourceRules": [{**rule, "operations": ["CREATE"]}]}
    validation = {"expression": "false", "message": "the policy of this test says no"}
    return [
        {
            "apiVersion": f"{group}/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {**constraints, "namespaceSelector": where},
                "validations": [validation],
            },
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


def webhooks(name: str, urls: Mapping[str, str]) -> Obj:
    """By namespace, addresses where nobody answers."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": f"{namespace}.example.org",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {"url": url},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [{**rule, "operations": ["CREATE"]}],
            }
            for namespace, url in urls.items()
        ],
    }


def _until_refused(kube: Kube, namespace: str) -> None:
    probe = pod()
    probe["metadata"] = {"name": "probe", "namespace": namespace}
    for _ in range(300):
        try:
            kube("create", "--dry-run=server", "-f", "-", given=probe)
        except RuntimeError as error:
            if "serviceaccount" not in str(error) and "status unknown" not in str(error):
                return
        time.sleep(0.1)
    raise TimeoutError(f"pods are not refused in {namespace}")


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub, places: dict[str, str]) -> AsyncGenerator[Hub]:
    traits = {"start_timeout": 120, "http_timeout": 5, "shared_objects": ANYTHING}
    async with make_hub(CONFIG, **traits) as hub:
        yield hub
        await hub.delete_users()


def write(folder: Path, templates: Mapping[str, Obj]) -> str:
    """A chart of the case's objects, a secret that goes with the server and a volume that stays."""
    given = {name: json.dumps(manifest) for name, manifest in templates.items()}
    return light.chart(folder, **{"claim": light.claim(), "secret": light.secret(), **given})


async def failure(user: HubUser, options: Mapping[str, object]) -> tuple[float, str]:
    """After how many seconds the user reads that the start has failed, and what."""
    began = time.monotonic()
    await user.start_server(options=options)
    try:
        events = await user.wait_ready(timeout=LIMIT)
    except ServerFailedError as error:
        return time.monotonic() - began, str(error)
    except RuntimeError as error:  # it failed before its progress was asked for
        if "is not starting" not in str(error):
            raise
        # The hub says no more than that it stops the server.
        while await user.servers():  # noqa: ASYNC110
            await anyio.sleep(0.1)
        page = await user.page(f"/hub/spawn-pending/{user.name}")
        return time.monotonic() - began, html.unescape(page.text)
    raise AssertionError(f"it is ready: {events}")


def left(kube: Kube, namespace: str, user: str) -> list[str]:
    found = kube.list(KINDS, namespace, f"hub.jupyter.org/username={user}")
    return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in found)


async def until_stopped(hub: Hub, user: str) -> None:
    with anyio.fail_after(60):
        while True:
            server = (await hub.users())[user][""]
            if server["stopped"] and server["pending"] is None:
                return
            await anyio.sleep(0.2)


async def test_what_cannot_succeed_fails_in_seconds_in_the_clusters_words(
    hub: Hub, kube: Kube, places: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    wrong: list[str] = []
    free = anyio.Semaphore(16)  # starts at a time: the machine may be small

    async def one(number: int, name: str, case: Case) -> None:
        mine = Faults(faults.promise, faults.report)
        namespace = places[case.place]
        chart = write(tmp_path / str(number), case.templates)
        options = {"template_path": chart, "namespace": namespace, **case.traits}
        async with free, signed_in(hub, f"user{number}") as user:
            for _ in mine(name):
                log = len(hub.log.read_text())
                seconds, text = await failure(user, options)
                assert re.search(case.words, text), text
                told = rf"Starting \S*{user.name}\S* failed \({case.reason}\)"
                assert re.search(told, hub.log.read_text()[log:]), f"not {case.reason}: {text}"
                mine.saw("the user read why after, in s", seconds)
                await until_stopped(hub, user.name)
                assert left(kube, namespace, user.name) == [
                    f"PersistentVolumeClaim/claim-{user.name}"
                ]

    async def noted(number: int, name: str, case: Case) -> None:
        try:
            await one(number, name, case)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - all are told below
            wrong.append(f"{name}: {error!r}")

    async with anyio.create_task_group() as group:
        for number, (name, case) in enumerate(CASES.items()):
            group.start_soon(noted, number, name, case)
    assert not wrong, "\n\n".join(wrong)
    await nothing_counted(hub)


async def nothing_counted(hub: Hub) -> None:
    """The hub, which ends at the second failure that counts, counted none."""
    async with httpx2.AsyncClient(base_url=hub.url) as client:
        metrics = (await client.get("/hub/metrics")).text
    spawns = re.findall(r"^jupyterhub_server_spawn_duration_seconds_count\{(.*)\} (\S+)", metrics,
                        re.MULTILINE)  # fmt: skip
    counted = {labels: float(count) for labels, count in spawns}
    assert sum(n for labels, n in counted.items() if 'status="failure"' in labels) > 0
    assert sum(n for labels, n in counted.items() if 'status="error"' in labels) == 0
    assert "consecutive spawn" not in hub.log.read_text()


async def test_the_page_that_the_user_reads_has_the_clusters_words(
    hub: Hub, tmp_path: Path
) -> None:
    case = CASES["an image that is never pulled"]
    chart = write(tmp_path, case.templates)
    async with signed_in(hub, "reader") as user:
        await failure(user, {"template_path": chart})
        page = await user.page(f"/hub/spawn-pending/{user.name}")
        assert "ErrImageNeverPull" in page.text
        await until_stopped(hub, user.name)


async def test_a_pod_for_which_a_node_is_coming_is_waited_for(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    """As an autoscaler does it: it says so in an event, and the node comes after the grace."""
    node = kube.cluster.node
    async with signed_in(hub, "scaled") as user:
        for turn in faults("a node that an autoscaler brings after the grace"):
            selector = {f"e2e/{space}": str(turn)}
            chart = write(tmp_path / str(turn), {"server": pod(nodeSelector=selector)})
            await user.start_server(options={"template_path": chart, **IMPATIENT})
            found = await made(kube, space, user.name)
            kube.create(event(found, "TriggeredScaleUp", "pod triggered scale-up: 0->1"))
            began = time.monotonic()
            await anyio.sleep(GRACE + 2)
            kube("label", "node", node, f"e2e/{space}={turn}", "--overwrite")
            await user.wait_ready()
            faults.saw("ready after, in s", time.monotonic() - began)
            await user.stop_server()
            kube("label", "node", node, f"e2e/{space}-")


async def made(kube: Kube, namespace: str, user: str) -> Obj:
    """The user's pod, as soon as it is there."""
    with anyio.fail_after(60):
        while True:
            found = kube.get("pod", namespace, f"jupyter-{user}")
            if found:
                return found
            await anyio.sleep(0.1)


def event(about: Obj, reason: str, message: str) -> Obj:
    metadata = about["metadata"]
    where = {key: metadata[key] for key in ("namespace", "name", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "scale-", "namespace": metadata["namespace"]},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", **where},
        "type": "Normal",
        "reason": reason,
        "message": message,
        "source": {"component": "cluster-autoscaler"},
    }


async def test_the_same_rules_hold_for_a_start_that_a_new_hub_adopts(
    hub: Hub, kube: Kube, space: str, tmp_path: Path, faults: Faults
) -> None:
    """To the hub it is a server that does not answer, so the reason is in its log only."""
    chart = write(tmp_path, CASES["a Secret of variables that is not there"].templates)
    async with signed_in(hub, "adopted") as user:
        for _ in faults("the hub is killed during a start that cannot succeed"):
            await user.start_server(options={"template_path": chart})
            await made(kube, space, user.name)
            await hub.kill()
            log = len(hub.log.read_text())
            began = time.monotonic()
            await hub.start()
            await hub.wait_for_log("cannot be adopted: Pod/.*CreateContainerConfigError", 60, log)
            faults.saw("the new hub gave up after, in s", time.monotonic() - began)
            await until_stopped(hub, user.name)
            assert left(kube, space, user.name) == [f"PersistentVolumeClaim/claim-{user.name}"]


async def test_a_rule_that_is_none_is_told_when_the_hub_starts(make_hub: MakeHub) -> None:
    async with make_hub(failure_rules={"image": {"pattern": "("}}) as hub:
        await hub.wait_for_log(r"failure_rules: rule 'image': pattern is '\(', not a regular")
