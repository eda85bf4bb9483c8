"""The hub's account has the least rights, or lacks one: told before anything is created."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
import yaml

from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faultproxy import KubeConfig
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser, ServerFailedError

pytestmark = pytest.mark.timeout(REPEAT * 150)

ALL = ("create", "delete", "get", "list", "patch", "watch")
LOOK = ("list", "watch")
# What the chart below needs, and nothing else; events and deletecollection are not among it.
LEAST: Mapping[str, tuple[str, ...]] = {
    "endpointslices": LOOK,
    "persistentvolumeclaims": ALL,
    "pods": ALL,
    "secrets": ALL,
    "services": ALL,
}
GROUPS = {"endpointslices": "discovery.k8s.io"}
MADE = "pods,secrets,services,persistentvolumeclaims"
SERVICE = f"""
apiVersion: v1
kind: Service
metadata:
  name: {light.NAME}
  annotations:
    kubetemplatespawner/lifecycle: server-stopped
    kubetemplatespawner/connection: "true"
spec:
  selector: {{app: {light.NAME}}}
  ports: [{{port: 8888}}]
"""
POD = light.pod(connection=False, metadata=f"  labels: {{app: {light.NAME}}}")


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub) -> AsyncGenerator[Hub]:
    config = f"{light.OPTIONS_ARE_TRAITS}\nc.JupyterHub.concurrent_spawn_limit = 0"
    async with make_hub(config, poll_interval=3600) as hub:
        yield hub


@pytest.fixture
def chart(tmp_path: Path) -> str:
    return light.chart(
        tmp_path / "chart", pod=POD, service=SERVICE, secret=light.secret(), claim=light.claim()
    )


class Account(NamedTuple):
    """A service account for the hub, with one Role of the same name."""

    kube: Kube
    space: str
    name: str
    folder: Path
    token: str

    @classmethod
    def create(cls, kube: Kube, space: str, name: str, folder: Path) -> Account:
        kube("create", "serviceaccount", name, "-n", space)
        words = (f"--role={name}", f"--serviceaccount={space}:{name}")
        kube("create", "rolebinding", name, "-n", space, *words)
        token = kube("create", "token", name, "-n", space, "--duration=2h").strip()
        folder.mkdir()
        return cls(kube, space, name, folder, token)

    def allow(self, rules: list[dict[str, Any]]) -> None:
        """Replace the Role."""
        metadata = {"name": self.name, "namespace": self.space}
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules}
        self.kube("apply", "-f", "-", given={**role, "metadata": metadata})

    def kubeconfig(self, name: str) -> str:
        """A file of its own for each name: the hub remembers by file what it may do."""
        return str(KubeConfig(self.kube).write(self.folder / name, token=self.token))


def rules(verbs: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    return [
        {"apiGroups": [GROUPS.get(kind, "")], "resources": [kind], "verbs": list(allowed)}
        for kind, allowed in verbs.items()
        if allowed
    ]


def objects(kube: Kube, space: str, user: str) -> list[str]:
    found = kube.list(MADE, space, f"hub.jupyter.org/username={user}")
    return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in found)


async def start(user: HubUser, chart: str, kubeconfig: str, **traits: object) -> None:
    options = {"template_path": chart, "kubeconfig": kubeconfig, **traits}
    await user.run_server(options=options)


async def refusal(user: HubUser, chart: str, kubeconfig: str, **traits: object) -> str:
    with pytest.raises(ServerFailedError) as failed:
        await start(user, chart, kubeconfig, **traits)
    return str(failed.value)


async def test_the_least_role_is_enough(
    hub: Hub, kube: Kube, space: str, chart: str, tmp_path: Path, faults: Faults
) -> None:
    account = Account.create(kube, space, "least", tmp_path / "least")
    account.allow(rules(LEAST))
    kubeconfig = account.kubeconfig("kubeconfig")
    for _ in faults("the hub's account has the least Role"):
        async with signed_in(hub, "least") as user:
            await start(user, chart, kubeconfig)
            assert len(objects(kube, space, user.name)) == 4
            await user.page("/hub/home")  # which polls
            assert (await user.servers())[""]["ready"]
            await user.stop_server()
            assert objects(kube, space, user.name) == ["PersistentVolumeClaim/claim-least"]
            await start(user, chart, kubeconfig)
            await hub.delete_user(user.name)
            assert objects(kube, space, user.name) == []


async def test_one_verb_less_is_told_with_the_rule_to_add(
    hub: Hub, kube: Kube, space: str, chart: str, tmp_path: Path, faults: Faults
) -> None:
    """The printed rule is that verb alone; added to what was left, it makes the start work."""
    accounts = {
        kind: Account.create(kube, space, f"without-{kind}", tmp_path / kind) for kind in LEAST
    }

    async def each_verb(kind: str, turn: int) -> None:
        account = accounts[kind]
        left, told, kubeconfig = LEAST, "", ""
        async with signed_in(hub, account.name) as user:
            for verb in LEAST[kind]:
                left = {**LEAST, kind: tuple(other for other in LEAST[kind] if other != verb)}
                await anyio.to_thread.run_sync(account.allow, rules(left))
                kubeconfig = account.kubeconfig(f"{verb}-{turn}")
                began = time.monotonic()
                text = await refusal(user, chart, kubeconfig)
                faults.saw("the refusal was read after", time.monotonic() - began)
                name = f"{kind}.{GROUPS[kind]}" if kind in GROUPS else kind
                assert (
                    f"{space}:{account.name} may not {verb} {name} in namespace '{space}'." in text
                )
                (told,) = re.findall(r"- (\{.*\})", text)
                assert [yaml.safe_load(told)] == rules({kind: (verb,)})
            assert objects(kube, space, user.name) == []  # not even the claim, which would stay
            await anyio.to_thread.run_sync(account.allow, [*rules(left), yaml.safe_load(told)])
            await start(user, chart, kubeconfig)
            await hub.delete_user(user.name)
            assert objects(kube, space, user.name) == []

    for turn in faults("each verb of the least Role is missing in turn"):
        async with anyio.create_task_group() as group:
            for kind in LEAST:
                group.start_soon(each_verb, kind, turn)


TAKEN = (("pods", "watch"), ("secrets", "create"), ("secrets", "list"))
AGAIN = 5.5  # seconds after which the hub asks again what it may do


async def test_a_right_taken_away_while_the_hub_runs_is_told_before_anything_is_created(
    hub: Hub, kube: Kube, space: str, chart: str, tmp_path: Path, faults: Faults
) -> None:
    """Watches that are open outlive the right to open them by minutes: they tell nothing of it."""

    async def take(kind: str, verb: str) -> None:
        name = f"{verb}-{kind}"
        account = Account.create(kube, space, name, tmp_path / name)
        kubeconfig = account.kubeconfig("kubeconfig")
        left = {**LEAST, kind: tuple(other for other in LEAST[kind] if other != verb)}
        async with signed_in(hub, name) as user:
            await anyio.to_thread.run_sync(account.allow, rules(LEAST))
            await start(user, chart, kubeconfig)
            await user.stop_server()
            claim = objects(kube, space, name)
            await anyio.to_thread.run_sync(account.allow, rules(left))
            await anyio.sleep(AGAIN)
            text = await refusal(user, chart, kubeconfig)
            assert "Nothing was created" in text
            assert f"{space}:{name} may not {verb} {kind} in namespace '{space}'." in text
            assert objects(kube, space, name) == claim == [f"PersistentVolumeClaim/claim-{name}"]
            await anyio.to_thread.run_sync(account.allow, rules(LEAST))
            await start(user, chart, kubeconfig)
            await hub.delete_user(name)
            assert objects(kube, space, name) == []

    for _ in faults("a right is taken away while the hub runs", times=1):
        async with anyio.create_task_group() as group:
            for kind, verb in TAKEN:
                group.start_soon(take, kind, verb)


# -- a namespace for each user --------------------------------------------------------------------


def own(space: str, text: str) -> str:
    """The template's object in its user's own namespace."""
    return text.replace("metadata:", f"metadata:\n  namespace: {home(space)}", 1)


def home(space: str, user: str = "{{ .Values.escaped_username }}") -> str:
    return f"{space}-{user}"


def namespace_and_binding(space: str) -> dict[str, str]:
    annotations = "annotations: {kubetemplatespawner/lifecycle: user-deleted}"
    subject = f"{{kind: ServiceAccount, name: apart, namespace: {space}}}"
    return {
        "namespace": f"""
apiVersion: v1
kind: Namespace
metadata:
  name: {home(space)}
  {annotations}
""",
        "binding": f"""
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: hub
  namespace: {home(space)}
  {annotations}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {space}-server}}
subjects: [{subject}]
""",
    }


def hubs_rules(space: str) -> list[dict[str, Any]]:
    """What the hub's account may do everywhere: make namespaces, and bind one role in them."""
    rbac = {"apiGroups": ["rbac.authorization.k8s.io"]}
    bind = {"resources": ["clusterroles"], "resourceNames": [f"{space}-server"], "verbs": ["bind"]}
    return [
        *rules({"namespaces": ALL}),
        {**rbac, "resources": ["rolebindings"], "verbs": list(ALL)},
        {**rbac, **bind},
    ]


@pytest.fixture
def apart(kube: Kube, space: str, tmp_path: Path) -> Iterator[Account]:
    """An account that may make namespaces, and what it binds itself to in them."""
    account = Account.create(kube, space, "apart", tmp_path / "account")
    names = {f"{space}-server": rules(LEAST), f"{space}-hub": hubs_rules(space)}
    for name, allowed in names.items():
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
        kube.create({**role, "metadata": {"name": name}, "rules": allowed})
    words = (f"--clusterrole={space}-hub", f"--serviceaccount={space}:apart")
    kube("create", "clusterrolebinding", f"{space}-hub", *words)
    yield account
    kube("delete", "clusterrolebinding", f"{space}-hub")
    kube("delete", "clusterrole", *names)


def may(account: Account, verb: str, kind: str, namespace: str) -> bool:
    """What `kubectl auth can-i` asks, for the account."""
    user = f"system:serviceaccount:{account.space}:{account.name}"
    attributes = {"verb": verb, "resource": kind, "namespace": namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    answer = account.kube("create", "-f", "-", "-o", "json", given=review)
    return bool(json.loads(answer)["status"]["allowed"])


async def test_a_namespace_for_each_user_with_the_least_rights(
    make_hub: MakeHub, kube: Kube, space: str, apart: Account, tmp_path: Path, faults: Faults
) -> None:
    objects_in_it = {
        "pod": POD,
        "service": SERVICE,
        "secret": light.secret(),
        "claim": light.claim(),
    }
    chart = light.chart(
        tmp_path / "chart",
        **namespace_and_binding(space),
        **{name: own(space, text) for name, text in objects_in_it.items()},
    )
    traits = {
        "kubeconfig": apart.kubeconfig("kubeconfig"),
        "template_path": chart,
        "cluster_kinds": ["v1/Namespace"],
    }
    ada, bob = home(space, "ada"), home(space, "bob")

    def uid(name: str) -> str:
        pod = kube.get("pod", home(space, name), f"jupyter-{name}")
        return str(pod["metadata"]["uid"]) if pod else ""

    async with make_hub(poll_interval=3600, **traits) as hub, signed_in(hub, "bob") as other:
        await other.run_server()
        before = uid("bob")
        for turn in faults("a user with a namespace of their own is removed"):
            assert not may(apart, "create", "pods", ada)
            async with signed_in(hub, "ada") as user:
                await user.run_server()
                await user.stop_server()
                assert objects(kube, ada, "ada") == ["PersistentVolumeClaim/claim-ada"]
                await user.run_server()
                assert len(objects(kube, ada, "ada")) == 4
            assert may(apart, "get", "secrets", ada)
            for elsewhere in (space, "default", "kube-system"):
                assert not may(apart, "get", "secrets", elsewhere)
            if turn > 1:
                await hub.restart()
            began = time.monotonic()
            await hub.delete_user("ada")
            faults.saw("the namespace was gone after", time.monotonic() - began)
            assert kube.get("namespace", "default", ada) is None
            assert not may(apart, "get", "secrets", ada)
            assert (uid("bob"), len(objects(kube, bob, "bob"))) == (before, 4)
            assert (await other.servers())[""]["ready"]
        log = hub.log.read_text()
        assert "not deleted" not in log
        assert "still there" not in log
        # The role goes with the namespace, often before the pod does.
        began = time.monotonic()
        kube("delete", "namespace", bob, "--wait=false")
        while not (await hub.users())["bob"][""]["stopped"]:
            assert time.monotonic() - began < 60, hub.log_tail()
            await anyio.sleep(0.2)
        faults.saw(
            "a namespace deleted by hand: its server was stopped after", time.monotonic() - began
        )
        await hub.delete_user("bob")
        assert kube.get("namespace", "default", bob) is None
