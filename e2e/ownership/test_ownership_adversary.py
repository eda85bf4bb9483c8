"""Whatever users call themselves and their servers and type as options, nothing of others is met.

Every case goes through Helm, the guard, the check and a dry-run apply, as a start does. A template
that names somebody else's object goes all the way: the real apply, which is refused.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from e2e.cluster import Cluster as Provided
from e2e.conftest import DEFAULT_CHART
from e2e.harness import light
from e2e.harness.faults import Faults
from e2e.harness.kube import Kube
from e2e.ownership import adversary
from e2e.ownership.adversary import CARELESS, Case
from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.retry import retry
from lightkube_template_spawner.errors import Conflict, Invalid, NotOurs, SpawnerError
from lightkube_template_spawner.lifecycle.apply import Applier
from lightkube_template_spawner.objects import parsing
from lightkube_template_spawner.objects import plan as manifests
from lightkube_template_spawner.objects.identity import MANAGED_BY, OWNER, PREFIX, Identity, Policy
from lightkube_template_spawner.objects.plan import Contract, Plan, Planned
from lightkube_template_spawner.templates import renderer, values

pytestmark = pytest.mark.timeout(7200)

CASES = 5_000  # a turn
AT_ONCE = 8
ALL_OBJECTS = 10  # every so-manieth case: all its objects; else one, in turn
log = logging.getLogger("adversary")
# First the pair with one slug, found by trying.
VICTIMS = [
    Identity("jupyter", "first+last@uni-._example__", userid=1),
    Identity("jupyter", "victim", "gpu", userid=2),
    Identity("other-hub", "first+last@uni-._example__", userid=1),
]
ATTACKER = "first.+.last@uni-+example.+."
NAMES = ["admins", "claim-kubespawners", *(v.user_server_slug for v in VICTIMS[:2])]
KINDS = {
    ("v1", kind): Kind("", "v1", kind, plural, namespaced=kind not in ("Namespace", "Node"))
    for kind, plural in (
        ("ConfigMap", "configmaps"),
        ("Secret", "secrets"),
        ("Pod", "pods"),
        ("PersistentVolumeClaim", "persistentvolumeclaims"),
        ("Event", "events"),
        ("Namespace", "namespaces"),
        ("Node", "nodes"),
    )
}


def theirs(kind: str, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    head = {"name": name, "labels": dict(labels)}
    spec: dict[str, Any] = {"data": {"a": "Yg=="}}
    if kind == "Pod":
        gates = [{"name": "e2e/never"}]
        spec = {"spec": {"containers": [{"name": "c", "image": "none"}], "schedulingGates": gates}}
    return {"apiVersion": "v1", "kind": kind, "metadata": head, **spec}


@pytest.fixture(scope="module")
def victims(kube: Kube, space: str) -> None:
    """Objects of an administrator, of KubeSpawner, of other users and of another hub."""
    former = {
        "app.kubernetes.io/instance": "jupyter",
        "hub.jupyter.org/username": "kubespawners",
        MANAGED_BY: "kubespawner",
    }
    owned = {v.user_server_slug: v.server_labels for v in reversed(VICTIMS)}
    labels = {**{name: {} for name in NAMES}, "claim-kubespawners": former, **owned}
    found = [theirs(kind, n, labels[n]) for n in NAMES for kind in ("ConfigMap", "Secret", "Pod")]
    listing = {"apiVersion": "v1", "kind": "List", "items": found}
    kube("create", "-n", space, "-f", "-", given=listing)


class DryRun(httpx2.AsyncBaseTransport):
    """Asks for each apply as a trial, which writes nothing."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "PATCH":
            request.url = request.url.copy_merge_params({"dryRun": "All"})
        return await self._transport.handle_async_request(request)


@pytest.fixture
async def cluster_of_hub(cluster: Provided) -> AsyncIterator[Cluster]:
    hub = Cluster(Api(str(cluster.kubeconfig)), "jupyter", log)
    yield hub
    await hub.aclose()
    await renderer.close_renderers()


@pytest.fixture
def trial(cluster: Provided, cluster_of_hub: Cluster) -> Api:
    """The same API server, where an apply changes nothing; it closes with the other."""
    return Api(str(cluster.kubeconfig), transport=DryRun(cluster_of_hub.api._transport))


class Run:
    """What becomes of each case, by word."""

    def __init__(self, cluster: Cluster, trial: Api, space: str, folder: Path) -> None:
        self.cluster, self.trial, self.space = cluster, trial, space
        self.rules = Contract(space)
        self.seen: Counter[str] = Counter()
        self.charts = {"the default chart": str(DEFAULT_CHART)}
        for number, (way, text) in enumerate(CARELESS.items()):
            made = light.chart(folder / str(number), careless=text, pod=adversary.pod())
            self.charts[way] = made
        mounted = light.chart(folder / "mounted", pod=adversary.pod(adversary.MOUNTED))
        self.charts["an option as volume"] = mounted

    async def all(self, source: Iterator[tuple[int, Case]]) -> None:
        for number, case in source:
            # Who goes by a victim's very name is that user.
            genuine = case.username in {victim.username for victim in VICTIMS}
            await self.case(number, replace(case, username=case.username + "!" * genuine))

    async def case(self, number: int, case: Case) -> None:
        # Every other one meets the default chart, the rest each careless one in turn.
        ways = list(self.charts)
        way = ways[0] if number % 2 else ways[1 + number // 2 % (len(ways) - 1)]
        identity = Identity("jupyter", case.username, case.servername, 1000 + number)
        plan = await self._plan(way, identity, case)
        if plan is None:
            return
        self._check(way, plan, identity)
        chosen = plan.objects
        if number % ALL_OBJECTS:
            chosen = (plan.objects[number % len(plan.objects)],)
        for item in chosen:
            await self._apply(item, identity)

    async def _plan(self, way: str, identity: Identity, case: Case) -> Plan | None:
        given = values.build(
            identity,
            unescaped_username=case.username,
            unescaped_servername=case.servername,
            namespace=self.space,
            ip="0.0.0.0",
            port=8888,
            env={"JUPYTERHUB_USER": case.username, "OPTION": case.options["note"]},
            ours={"user_options": case.options, "groups": [case.options["label"]]},
            extra={"image": "none"},
        )
        engine = renderer.open_renderer(
            Path(self.charts[way]), kube_version=None, log=log, timeout=60
        )
        try:
            rendered = await engine.render(
                given, release=identity.user_server_slug, namespace=self.space
            )
            plan = manifests.prepare(
                parsing.parse(rendered.objects),
                identity,
                self.rules,
                namespaced=lambda kind: kind not in KINDS or KINDS[kind].namespaced,
                nonce="0",
            )
        except SpawnerError as error:
            self.seen[f"refused before the API server ({type(error).__name__})"] += 1
            return None
        self.seen["planned"] += 1
        return plan

    def _check(self, way: str, plan: Plan, identity: Identity) -> None:
        """No extra document, no foreign label, nothing outside the namespace and the kinds."""
        kinds = sorted(item.kind[1] for item in plan.objects)
        if way == "the default chart":
            assert kinds == ["PersistentVolumeClaim", "Pod", "Secret"], kinds
        elif way == "an option as volume":
            assert kinds == ["Pod"]
        elif way == "a bare option as kind":
            assert len(kinds) == 2
            assert "Pod" in kinds
        else:
            assert kinds == ["ConfigMap", "Pod"], (way, kinds)
        for item in plan.objects:
            metadata = item.manifest["metadata"]
            assert item.namespace == self.space
            assert item.kind in KINDS or way == "a bare option as kind"
            ours = identity.user_labels
            if item.policy is not Policy.USER_DELETED:
                ours = identity.server_labels
            assert ours.items() <= metadata["labels"].items()
            assert metadata["labels"][OWNER] not in {victim.owner for victim in VICTIMS}
            assert metadata["labels"][MANAGED_BY] == PREFIX
        assert len(identity.manager.encode()) <= 128

    async def _apply(self, item: Planned, identity: Identity) -> None:
        kind = KINDS.get(item.kind)
        if kind is None:
            self.seen["a kind that is not served"] += 1
            return
        head = {**item.manifest["metadata"], "resourceVersion": "1"}
        intent = {**item.manifest, "metadata": head}
        try:
            answer = await retry(
                lambda: self.trial.apply(kind, intent, manager=identity.manager), log
            )
        except Conflict:
            await self._takeover(item, identity, kind)
        except Invalid:
            self.seen["refused by the API server"] += 1
        else:
            metadata = answer["metadata"]
            assert (metadata["name"], metadata["namespace"]) == (item.name, self.space)
            assert metadata["labels"] == item.manifest["metadata"]["labels"]
            assert item.name not in NAMES or kind.kind not in ("ConfigMap", "Secret", "Pod")
            self.seen["would be created"] += 1

    async def _takeover(self, item: Planned, identity: Identity, kind: Kind) -> None:
        """The name is somebody else's: the real thing."""
        assert item.name in NAMES, item.reference
        applier = Applier(self.cluster, identity, self.rules, {item.kind: kind}, log)
        with pytest.raises(NotOurs) as refused:
            await applier.apply(item)
        text = str(refused.value)
        assert item.reference in text
        assert item.source in text
        assert "is not this user's: it" in text
        self.seen["refused takeovers"] += 1


def snapshot(kube: Kube, space: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place in (space, "kube-system", "default"):
        for item in kube.list("configmaps,secrets,pods,pvc,serviceaccounts,services", place):
            metadata = item["metadata"]
            key = f"{item['kind']}/{place}/{metadata['name']}"
            found[key] = {k: metadata.get(k) for k in ("uid", "labels", "annotations")}
            found[key]["data"] = item.get("data")
    return found


async def test_no_name_and_no_option_leads_to_what_is_somebody_elses(
    cluster_of_hub: Cluster,
    trial: Api,
    kube: Kube,
    space: str,
    victims: None,
    tmp_path: Path,
    faults: Faults,
) -> None:
    before = snapshot(kube, space)
    coveted = [*NAMES, "admins", ATTACKER, *(v.username for v in VICTIMS)]
    coveted += [v.owner for v in VICTIMS] + [f"{VICTIMS[1].user_slug}--gpu", space]
    for turn in faults(f"{CASES} hostile names and options"):
        run = Run(cluster_of_hub, trial, space, tmp_path / str(turn))
        began = time.monotonic()
        async with anyio.create_task_group() as group:
            source = enumerate(adversary.cases(turn, CASES, coveted))
            for _ in range(AT_ONCE):
                group.start_soon(run.all, source)
        for word, count in sorted(run.seen.items()):
            faults.saw(word, count)
        faults.saw("cases a second", CASES / (time.monotonic() - began))
        assert run.seen["refused takeovers"]
        assert run.seen["would be created"]
    assert snapshot(kube, space) == before
