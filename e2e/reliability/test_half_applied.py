"""A start that ends halfway, and a stop that cannot end, leave what the user had and no more."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faultproxy import FaultProxy, KubeConfig
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub, user_path
from e2e.harness.kube import Kube
from e2e.harness.user import HubUser, ServerFailedError

pytestmark = pytest.mark.timeout(REPEAT * 150)

# In the order of the template; the first outlives the server.
PLURALS = ("persistentvolumeclaims", "secrets", "configmaps", "networkpolicies", "pods")
CONFIG = f"""
{light.OPTIONS_ARE_TRAITS}
def hook(spawner):
    options_are_traits(spawner)
    if spawner.user_options.get("fails") == "pre_spawn_hook":
        raise RuntimeError("the hook fails")
def extra_vars(spawner):
    if spawner.user_options.get("fails") == "extra_vars":
        raise RuntimeError("the function fails")
    return spawner.user_options.get("values", {{}})
c.LightkubeTemplateSpawner.pre_spawn_hook = hook
c.LightkubeTemplateSpawner.extra_vars = extra_vars
"""


def marked(plural: str) -> str:
    """Which requests for an object the cluster refuses, and what holds it, is the values' say."""
    return f"""
  labels:
    e2e/refuse: {{{{ eq .Values.refused "{plural}" | ternary .Values.operation "nothing" }}}}
  finalizers: {{{{ eq .Values.held "{plural}" | ternary (list "e2e/hold") list | toJson }}}}"""


def template(plural: str, kind: str, api_version: str, spec: str) -> str:
    return f"""
apiVersion: {api_version}
kind: {kind}
metadata:
  name: {light.NAME}
  annotations: {{kubetemplatespawner/lifecycle: server-stopped}}
{marked(plural)}
{spec}
"""


TEMPLATES = {
    "claim": light.claim(labels="{}").replace("\n  labels: {}", marked(PLURALS[0])),
    "secret": template("secrets", "Secret", "v1", "stringData: {key: value}"),
    "config": template("configmaps", "ConfigMap", "v1", "data: {key: value}"),
    "policy": template(
        "networkpolicies", "NetworkPolicy", "networking.k8s.io/v1", "spec: {podSelector: {}}"
    ),
}


def pod(*, gated: bool = False) -> str:
    """One that ends soon: what does not go is then told soon."""
    text = light.pod(metadata=marked("pods").lstrip("\n"), gated=gated)
    return text.replace("spec:", "spec:\n  terminationGracePeriodSeconds: 1")


@pytest.fixture(scope="module")
def proxy(kube: Kube) -> Iterator[FaultProxy]:
    with FaultProxy(KubeConfig(kube)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
async def hub(
    make_hub: MakeHub, proxy: FaultProxy, kube: Kube, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Hub]:
    file = tmp_path_factory.mktemp("way") / "kubeconfig"
    KubeConfig(kube).write(file, server=proxy.url)
    traits = {"kubeconfig": str(file), "http_timeout": 3, "poll_interval": 3600, "stop_timeout": 3}
    async with make_hub(CONFIG, **traits) as hub:
        yield hub
        await hub.delete_users()


@pytest.fixture(scope="module")
def policy(kube: Kube, space: str) -> Iterator[str]:
    """An admission policy that denies what an object's label says, in this namespace only."""
    only_here = {"matchLabels": {"kubernetes.io/metadata.name": space}}
    rule = {
        "apiGroups": ["*"],
        "apiVersions": ["*"],
        "resources": ["*"],
        "operations": ["CREATE", "DELETE"],
    }
    labels = "(request.operation == 'DELETE' ? oldObject : object).metadata.?labels"
    refused = {
        "expression": f"{labels}[?'e2e/refuse'].orValue('') != request.operation",
        "message": "the administrator said no",
    }
    group = "admissionregistration.k8s.io/v1"
    spec: dict[str, Any] = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": only_here},
        "validations": [refused],
    }
    binding = {"policyName": space, "validationActions": ["Deny"]}
    for kind, content in (
        ("ValidatingAdmissionPolicy", spec),
        ("ValidatingAdmissionPolicyBinding", binding),
    ):
        kube.create(
            {"apiVersion": group, "kind": kind, "metadata": {"name": space}, "spec": content}
        )
    try:
        deadline = time.monotonic() + 30
        while not denied(kube, space):  # it takes a moment to be in force
            assert time.monotonic() < deadline, "the policy is not in force"
        yield space
    finally:
        kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings"
        kube("delete", kinds, space, "--ignore-not-found")


def denied(kube: Kube, space: str) -> bool:
    metadata = {"name": "trial", "namespace": space, "labels": {"e2e/refuse": "CREATE"}}
    trial = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    try:
        kube("create", "--dry-run=server", "-f", "-", given=trial)
    except RuntimeError as error:
        return "said no" in str(error)
    return False


@pytest.fixture
def chart(tmp_path: Path) -> str:
    return light.chart(tmp_path / "open", **TEMPLATES, pod=pod())


@pytest.fixture
def gated(tmp_path: Path) -> str:
    return light.chart(tmp_path / "gated", **TEMPLATES, pod=pod(gated=True))


NOTHING = {"refused": "", "operation": "", "held": ""}


async def ask(user: HubUser, chart: str, fails: str = "", **traits: object) -> None:
    values = {key: traits.pop(key, nothing) for key, nothing in NOTHING.items()}
    options = {"template_path": chart, "values": values, "fails": fails, **traits}
    await user.start_server(options=options)


async def refusal(user: HubUser, chart: str, **options: Any) -> str:
    await ask(user, chart, **options)
    with pytest.raises(ServerFailedError) as failed:
        await user.wait_ready()
    return str(failed.value)


@pytest.fixture
def has(kube: Kube, space: str) -> Callable[[HubUser], dict[str, str]]:
    """What a user has: UIDs by name, so that what was made anew is told from what was left."""

    def found(user: HubUser) -> dict[str, str]:
        selector = f"hub.jupyter.org/username={user.name}"
        items = kube.list(",".join(PLURALS), space, selector)
        return {
            f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["uid"] for item in items
        }

    return found


async def until_stopped(hub: Hub, user: HubUser) -> None:
    with anyio.fail_after(45):
        while True:
            server = (await hub.users())[user.name].get("", {})
            if server.get("pending") is None and not server.get("ready"):
                return
            await anyio.sleep(0.1)


async def test_a_start_that_is_refused_halfway_leaves_what_was_there(
    hub: Hub, policy: str, chart: str, has: Any, faults: Faults
) -> None:
    for turn in faults("each of five objects refused by an admission policy"):
        async with signed_in(hub, f"refused-{turn}") as user:
            text = await refusal(user, chart, refused="pods", operation="CREATE")
            assert "the administrator said no" in text
            # A volume is the user's from then on: another server may use it, data may be on it.
            had = has(user)
            assert list(had) == [f"PersistentVolumeClaim/claim-{user.name}"]
            for plural in PLURALS[1:]:
                text = await refusal(user, chart, refused=plural, operation="CREATE")
                assert f"/jupyter-{user.name} (" in text, text
                assert "was refused" in text, text
                assert "the administrator said no" in text, text
                assert has(user) == had
            await hub.delete_user(user.name)
            assert has(user) == {}
            async with signed_in(hub, user.name) as again:
                await refusal(again, chart, refused=PLURALS[0], operation="CREATE")
                assert has(again) == {}
                await hub.delete_user(user.name)


async def test_a_start_that_is_cancelled_at_any_object_leaves_what_was_there(
    hub: Hub, proxy: FaultProxy, chart: str, has: Any, faults: Faults
) -> None:
    for turn in faults("cancelled while an object is being applied"):
        async with signed_in(hub, f"cancelled-{turn}") as user:
            await ask(user, chart)
            await user.wait_ready()
            await user.stop_server()
            had = has(user)
            assert len(had) == 1
            for plural in PLURALS[1:]:
                proxy.hold(f"^PATCH .*/{plural}/")
                await ask(user, chart)
                await proxy.wait_until_holding()
                began = time.monotonic()
                await user.stop_server()
                faults.saw("s until the hub had stopped it", time.monotonic() - began)
                proxy.up()
                assert has(user) == had
            await ask(user, chart)
            await user.wait_ready()
            await hub.delete_user(user.name)
            assert has(user) == {}


async def test_a_start_that_fails_by_time_or_by_a_hook_leaves_what_was_there(
    hub: Hub, chart: str, gated: str, has: Any, faults: Faults
) -> None:
    for turn in faults("time-out, pre_spawn_hook raises, extra_vars raises"):
        async with signed_in(hub, f"hooked-{turn}") as user:
            assert "not ready after " in await refusal(user, gated, k8s_timeout=2)
            had = has(user)
            assert list(had) == [f"PersistentVolumeClaim/claim-{user.name}"]
            told = await refusal(user, chart, fails="extra_vars")
            assert "the function of the trait `extra_vars` raised RuntimeError" in told
            assert has(user) == had
            with pytest.raises(RuntimeError, match="500"):  # the hub says no more of its own hook
                await ask(user, chart, fails="pre_spawn_hook")
            await until_stopped(hub, user)
            assert has(user) == had
            await hub.delete_user(user.name)
            assert has(user) == {}


async def test_a_hub_that_is_told_to_end_halfway_leaves_what_was_there(
    hub: Hub, proxy: FaultProxy, chart: str, has: Any, faults: Faults
) -> None:
    for turn in faults("SIGTERM of the hub while an object is being applied"):
        async with signed_in(hub, f"sigterm-{turn}") as user:
            await ask(user, chart)
            await user.wait_ready()
            await user.stop_server()
            had = has(user)
            proxy.hold(f"^PATCH .*/{PLURALS[-1 - turn % 2]}/")
            await ask(user, chart)
            await proxy.wait_until_holding()
            await hub.stop()
            proxy.up()
            assert has(user).keys() > had.keys()  # a hub that ends removes nothing: it may adopt
            began = time.monotonic()
            await hub.start()
            await until_stopped(hub, user)
            faults.saw("s until the next hub had removed it", time.monotonic() - began)
            assert has(user) == had
            await hub.delete_user(user.name)


async def stop(hub: Hub, user: HubUser) -> str:
    """Ask for a stop that fails; what the hub says of it."""
    log = len(hub.log.read_text())
    await user.try_api("DELETE", user_path(user.name, "servers", ""))
    await until_stopped(hub, user)
    return hub.log.read_text()[log:]


def left(user: HubUser, *kinds: str) -> set[str]:
    names = {f"{kind}/jupyter-{user.name}" for kind in kinds}
    return {f"PersistentVolumeClaim/claim-{user.name}", *names}


async def test_one_object_that_refuses_deletion_keeps_no_other(
    hub: Hub, kube: Kube, space: str, policy: str, chart: str, has: Any, faults: Faults
) -> None:
    for turn in faults("an admission policy denies the deletion of one object"):
        async with signed_in(hub, f"denied-{turn}") as user:
            name = f"jupyter-{user.name}"
            await ask(user, chart, refused="secrets", operation="DELETE")
            await user.wait_ready()
            said = await stop(hub, user)
            assert re.search(f"not deleted: .*Secret/{space}/{name}: .*administrator said no", said)
            assert has(user).keys() == left(user, "Secret")
            kube("label", f"secret/{name}", "-n", space, "e2e/refuse-")
            await ask(user, chart, refused="pods", operation="DELETE")  # goes on where it ended
            await user.wait_ready()
            said = await stop(hub, user)
            assert re.search(f"not deleted: .*Pod/{space}/{name}: .*administrator said no", said)
            assert has(user).keys() == left(user, "Pod", "NetworkPolicy")  # it runs, confined
            kube("label", f"pod/{name}", "-n", space, "e2e/refuse-")
            await ask(user, chart, refused="secrets", operation="DELETE")
            await user.wait_ready()
            kube("delete", "pod", name, "-n", space)  # a server that dies is dead all the same
            await until_stopped(hub, user)
            assert has(user).keys() == left(user, "Secret")
            kube("label", f"secret/{name}", "-n", space, "e2e/refuse-")
            await hub.delete_user(user.name)
            assert has(user) == {}


async def test_a_finalizer_is_named_and_keeps_no_other(
    hub: Hub, kube: Kube, space: str, chart: str, has: Any, faults: Faults
) -> None:
    for turn in faults("a finalizer holds one object"):
        async with signed_in(hub, f"held-{turn}") as user:
            name = f"jupyter-{user.name}"
            for plural, kind, stays in (
                ("configmaps", "ConfigMap", ("ConfigMap",)),
                ("pods", "Pod", ("Pod", "NetworkPolicy")),
            ):
                await ask(user, chart, held=plural)
                await user.wait_ready()
                said = await stop(hub, user)
                assert re.search(
                    rf"still there after \d+ s: {kind}/{space}/{name} \(held by e2e/hold\)", said
                )
                assert has(user).keys() == left(user, *stays)
                patch = json.dumps({"metadata": {"finalizers": None}})
                kube("patch", f"{plural}/{name}", "-n", space, "-p", patch)
            await ask(user, chart)
            await user.wait_ready()
            await user.stop_server()
            assert has(user).keys() == left(user)
            await hub.delete_user(user.name)
            assert has(user) == {}
