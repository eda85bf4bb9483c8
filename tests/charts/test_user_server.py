"""The packaged chart keeps the template contract, keeps secrets, and runs without privileges."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.hub.settings import default_chart
from lightkube_template_spawner.objects import identity, parsing
from lightkube_template_spawner.objects import plan as manifests
from lightkube_template_spawner.templates import values as spawner_values
from lightkube_template_spawner.templates.renderer import (
    Rendered,
    check_template,
    close_renderers,
    open_renderer,
)

REPOSITORY = Path(__file__).parents[2]
Objects = dict[str, dict[str, Any]]
Render = Callable[..., Objects]

BASE: dict[str, Any] = json.loads((REPOSITORY / "tests" / "data" / "values.json").read_text())


def with_env(env: dict[str, Any]) -> dict[str, Any]:
    """The two values that a server's environment becomes."""
    texts = {name: value for name, value in env.items() if isinstance(value, str)}
    return {"env": texts, "env_list": spawner_values.env_list(env)}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Rendered]]:
    """Render the chart in one event loop, and so one worker, for all tests."""

    async def rendered(values: dict[str, Any]) -> Rendered:
        chart = default_chart()
        renderer = open_renderer(chart, kube_version="v1.33.0", log=logging.getLogger("test"))
        return await renderer.render(values, release="alice", namespace="users")

    with asyncio.Runner() as runner:
        yield lambda **values: runner.run(rendered({**BASE, **values}))
        runner.run(close_renderers())


@pytest.fixture(scope="module")
def render(run: Callable[..., Rendered]) -> Render:
    """The rendered objects by kind."""

    def objects(**values: Any) -> Objects:
        documents = [one for several in run(**values).objects.values() for one in several]
        found = {document["kind"]: document for document in documents}
        assert len(found) == len(documents)
        return found

    return objects


NAME = "jupyter-jhub--n---1a2b3c4d"
STANDARD = {"Pod", "Secret", "PersistentVolumeClaim"}
CERTIFICATE = {
    "path": "/etc/jupyterhub/ssl",
    "files": {"ssl.key": "-\nk: y\n", "ssl.crt": "c"},
    "id": "0f1e2d3c",
}
EVERYTHING: dict[str, Any] = {
    "connection": "service",
    "networkPolicy": {"enabled": True},
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"pool": "users"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "users"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "low",
    "schedulerName": "users",
    "runtimeClassName": "gvisor",
    "serviceAccountName": "user",
    "extraLabels": {"team": "y"},
    "extraAnnotations": {"note": "a: b"},
    "extraVolumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    "extraVolumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    "initContainers": [{"name": "first", "image": "x"}],
    "extraContainers": [{"name": "db", "image": "postgres"}],
    "resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"ephemeral-storage": "1Gi"}},
}


def pod_of(objects: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Pod"]["spec"]
    return spec


def notebook(objects: Objects) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(objects)["containers"][0]
    return container


# The contract


@pytest.mark.parametrize(
    ("values", "kinds", "connection"),
    [
        ({}, STANDARD, "Pod"),
        (
            {"connection": "service"},
            {"Pod", "Secret", "PersistentVolumeClaim", "Service"},
            "Service",
        ),
        ({"storage": {"enabled": False}}, {"Pod", "Secret"}, "Pod"),
        (
            EVERYTHING,
            {*STANDARD, "Service", "NetworkPolicy"},
            "Service",
        ),
    ],
)
def test_objects(render: Render, values: dict[str, Any], kinds: set[str], connection: str) -> None:
    objects = render(**values)
    assert set(objects) == kinds
    for kind, manifest in objects.items():
        metadata = manifest["metadata"]
        labels, annotations = metadata["labels"], metadata["annotations"]
        retained = kind == "PersistentVolumeClaim"
        assert metadata["namespace"] == "users"
        assert labels["app.kubernetes.io/instance"] == "jhub"
        assert labels["hub.jupyter.org/username"] == "n---1a2b3c4d"
        assert ("hub.jupyter.org/servername" in labels) is not retained
        assert annotations["kubetemplatespawner/lifecycle"] == (
            "user-deleted" if retained else "server-stopped"
        )
        assert (annotations.get("kubetemplatespawner/connection") == "true") is (kind == connection)
        assert all(isinstance(value, str) for value in [*labels.values(), *annotations.values()])


@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, {"storage": {"perServer": True}}, {"internal_ssl": CERTIFICATE}]
)
@pytest.mark.parametrize("server", ["", "Second server"])
def test_the_spawner_accepts_it(
    run: Callable[..., Rendered], values: dict[str, Any], server: str
) -> None:
    """Parsing, ownership, references and order, as in a start."""
    who = identity.Identity(instance="jhub", username="Ünï@x.org", servername=server, userid=7)
    own = {
        "escaped_username": who.user_slug,
        "escaped_servername": who.server_slug,
        "escaped_user_server": who.user_server_slug,
        "labels": dict(who.server_labels),
    }
    rules = manifests.Contract("users", shared_objects=("Secret/registry", "ServiceAccount/user"))
    documents = parsing.parse(run(**values, **own).objects)
    plan = manifests.prepare(documents, who, rules, namespaced=lambda _: True, nonce="n")
    assert not plan.warnings
    by_service = values.get("connection") == "service" or "internal_ssl" in values
    expected = "Service" if by_service else "Pod"
    assert plan.connection.manifest["kind"] == expected


def test_labels_of_zero_to_jupyterhub(render: Render) -> None:
    """Its network policies select by these; without them a pod would be open to all."""
    config = {
        "common_labels": {"app": "jupyterhub", "release": "jhub", "chart": "jupyterhub-4.4.0"},
        "extra_labels": {"hub.jupyter.org/network-access-hub": "true", "component": "other"},
    }
    objects = render(kubespawner=config)
    labels = objects["Pod"]["metadata"]["labels"]
    assert labels["app"] == "jupyterhub"
    assert labels["release"] == "jhub"
    assert labels["component"] == "singleuser-server"
    assert labels["hub.jupyter.org/network-access-hub"] == "true"
    assert (
        objects["PersistentVolumeClaim"]["metadata"]["labels"]["component"] != labels["component"]
    )


def test_given_labels_and_annotations(render: Render) -> None:
    objects = render(
        extraLabels={"team": "y", "hub.jupyter.org/username": "mallory"},
        labels={"owner": "o"},
        annotations={
            "who": "Ünï: {x}",
            "kubetemplatespawner/lifecycle": "user-deleted",
            "kubetemplatespawner/connection-address": "{.metadata.annotations.who}",
            "kubetemplatespawner/connection-port": "1",
            "kubetemplatespawner/connection-scheme": "https",
        },
        extraAnnotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "true"},
    )
    labels = objects["Pod"]["metadata"]["labels"]
    annotations = objects["Pod"]["metadata"]["annotations"]
    assert (labels["team"], labels["owner"]) == ("y", "o")
    assert labels["hub.jupyter.org/username"] == "n---1a2b3c4d"
    assert "owner" not in objects["PersistentVolumeClaim"]["metadata"]["labels"]
    assert annotations["who"] == "Ünï: {x}"
    assert annotations["kubetemplatespawner/lifecycle"] == "server-stopped"
    assert not [key for key in annotations if key.startswith("kubetemplatespawner/connection-")]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "true"


@pytest.mark.parametrize("service", [False, True])
def test_the_port_is_one(render: Render, service: bool) -> None:
    objects = render(port=9999, connection="service" if service else "pod")
    (port,) = notebook(objects)["ports"]
    assert port == {"name": "notebook-port", "containerPort": 9999, "protocol": "TCP"}
    if service:
        spec = objects["Service"]["spec"]
        assert spec["ports"][0]["port"] == 9999
        assert spec["ports"][0]["targetPort"] == port["name"]
        assert spec["selector"].items() <= objects["Pod"]["metadata"]["labels"].items()


# Names


@pytest.mark.parametrize("instance", ["jhub", "j" * 63, "Release_1.users"])
@pytest.mark.parametrize("slug", ["a", "a" * 63, "n---1a2b3c4d", "user--server---1a2b3c4d"])
def test_names_fit(render: Render, instance: str, slug: str) -> None:
    objects = render(instance=instance, escaped_username=slug, escaped_user_server=slug)
    for manifest in objects.values():
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])", manifest["metadata"]["name"])
    assert objects["Pod"]["metadata"]["labels"]["app.kubernetes.io/instance"] == instance


def test_two_hubs_do_not_meet(render: Render) -> None:
    """Nor do instances that differ only in what a name cannot hold."""
    pairs = [("x", "y-z"), ("x-y", "z"), ("X-y", "z"), ("x_y", "z"), ("x.y", "z")]
    names = [
        render(instance=instance, escaped_username=slug, escaped_user_server=slug)[kind]["metadata"]
        for instance, slug in pairs
        for kind in ("Pod", "PersistentVolumeClaim")
    ]
    assert len({name["name"] for name in names}) == len(names)


def test_a_long_name_is_cut_by_its_hash(render: Render) -> None:
    slug = "s" * 63
    whole = f"jupyter-jhub--{slug}"
    name = render(escaped_user_server=slug)["Pod"]["metadata"]["name"]
    assert name == f"{whole[:50]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def test_home_volumes(render: Render) -> None:
    claim = render()["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == "claim-jhub--n---1a2b3c4d"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "10Gi"}},
    }
    named = {"escaped_user_server": "n--two---1a2b3c4d", "escaped_servername": "two"}
    assert render(**named)["PersistentVolumeClaim"] == claim
    own = render(**named, storage={"perServer": True, "storageClass": "-"})["PersistentVolumeClaim"]
    assert own["metadata"]["name"] == "claim-jhub--n--two---1a2b3c4d"
    assert own["metadata"]["labels"]["hub.jupyter.org/servername"] == "two"
    assert own["metadata"]["annotations"]["kubetemplatespawner/lifecycle"] == "server-deleted"
    assert own["spec"]["storageClassName"] == ""
    old = render(storage={"claimName": "claim-alice", "storageClass": "fast", "size": "1Ti"})
    assert old["PersistentVolumeClaim"]["spec"]["storageClassName"] == "fast"
    (volume,) = pod_of(old)["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "claim-alice"}
    assert "volumes" not in pod_of(render(storage={"enabled": False}))


def test_a_home_of_kubespawner_keeps_its_name(render: Render) -> None:
    found = render(former_pvc_name="claim-bob")
    assert found["PersistentVolumeClaim"]["metadata"]["name"] == "claim-bob"
    (volume,) = pod_of(found)["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "claim-bob"}
    chosen = render(former_pvc_name="claim-bob", storage={"claimName": "claim-alice"})
    assert chosen["PersistentVolumeClaim"]["metadata"]["name"] == "claim-alice"


# Secrets


@pytest.mark.parametrize("values", [{}, EVERYTHING])
def test_the_token_is_in_the_secret_only(render: Render, values: dict[str, Any]) -> None:
    objects = render(**values)
    secret = objects.pop("Secret")
    assert secret["stringData"]["JUPYTERHUB_API_TOKEN"] == "tok3n-of-a-user"
    assert secret["immutable"] is True
    assert "tok3n" not in json.dumps(objects)
    reference = {"secretRef": {"name": secret["metadata"]["name"]}}
    assert notebook(objects)["envFrom"] == [reference]


def test_variables_arrive_whole(render: Render) -> None:
    env = {
        "EMPTY": "",
        "YES": "y",
        "NUMBER": "1e3",
        "JSON": '{"a": ["b", "ü 🎉"]}',
        "LINES": "a\n b\n---\nc: d\n\n",
        "QUOTES": "\"'\\ $ $$ {{ .Values }} \t \x00",
        "BASE": "/opt",
        "PATH2": "$(BASE)/bin:$(HOME)",
        "NODE": {"fieldRef": {"fieldPath": "spec.nodeName"}},
    }
    objects = render(**with_env(env))
    stays = {"PATH2", "NODE"}
    assert objects["Secret"]["stringData"] == {k: v for k, v in env.items() if k not in stays}
    assert sorted(notebook(objects)["env"], key=str) == [
        {"name": "NODE", "valueFrom": env["NODE"]},
        {"name": "PATH2", "value": env["PATH2"]},
    ]
    assert "env" not in notebook(render(**with_env({"A": "b"})))


# The pod


def restricted(spec: dict[str, Any]) -> list[str]:
    """What the "restricted" pod security standard forbids in a pod, for the fields it has."""
    wrong = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
               "projected", "secret"}  # fmt: skip
    for volume in spec.get("volumes", ()):
        wrong += [f"volume {volume['name']}"] if not allowed & volume.keys() else []
    pod = spec.get("securityContext", {})
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        own = container.get("securityContext", {})
        rules = {
            "runAsNonRoot": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True,
            "runAsUser": own.get("runAsUser", pod.get("runAsUser")) != 0,
            "seccompProfile": own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
            in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities", {}).get("drop") == ["ALL"]
            and set(own["capabilities"].get("add", ())) <= {"NET_BIND_SERVICE"},
            "privileged": not own.get("privileged"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
        }
        wrong += [f"{container['name']}: {rule}" for rule, kept in rules.items() if not kept]
    return wrong


@pytest.mark.parametrize(
    "values", [{}, {"uid": None, "gid": None, "fsGroup": None}, {"uid": 1000650000}]
)
def test_it_is_restricted(render: Render, values: dict[str, Any]) -> None:
    assert restricted(pod_of(render(**values))) == []


def test_the_checker_of_this_test_notices(render: Render) -> None:
    loose = render(
        podSecurityContext={"runAsNonRoot": False},
        containerSecurityContext={"capabilities": {"add": ["SYS_ADMIN"]}, "privileged": True},
        extraVolumes=[{"name": "host", "hostPath": {"path": "/"}}],
    )
    assert restricted(pod_of(loose)) == [
        "volume host",
        "notebook: runAsNonRoot",
        "notebook: capabilities",
        "notebook: privileged",
    ]


def test_who_it_runs_as(render: Render) -> None:
    context = pod_of(render())["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (1000, 100, 100)
    assert pod_of(render(uid=1000650000))["securityContext"]["runAsUser"] == 1000650000
    assert (
        not {"runAsUser", "fsGroup"}
        & pod_of(render(uid=None, fsGroup=None))["securityContext"].keys()
    )
    assert pod_of(render(uid=0))["securityContext"]["runAsUser"] == 0


def test_the_pod(render: Render) -> None:
    spec = pod_of(render())
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["terminationGracePeriodSeconds"] == 10
    assert notebook(render())["args"] == ["jupyterhub-singleuser", "--debug"]
    assert "args" not in notebook(render(cmd=[], args=["--debug"]))
    assert notebook(render(cmd=["x"], args=None))["args"] == ["x"]


def test_everything_that_can_be_set(render: Render) -> None:
    spec = pod_of(render(**EVERYTHING))
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName",
                "schedulerName", "runtimeClassName", "serviceAccountName",
                "initContainers"):  # fmt: skip
        assert spec[key] == EVERYTHING[key]
    assert spec["containers"][1:] == EVERYTHING["extraContainers"]
    assert [volume["name"] for volume in spec["volumes"]] == ["home", "shm"]
    assert spec["containers"][0]["imagePullPolicy"] == "Always"
    assert [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]] == [
        "/home/jovyan",
        "/dev/shm",
    ]


def test_images(render: Render) -> None:
    assert notebook(render())["image"].startswith("quay.io/jupyterhub/")
    kubespawner = {"image": "example.org/from-kubespawner:1"}
    assert notebook(render(kubespawner=kubespawner))["image"] == kubespawner["image"]
    assert notebook(render(kubespawner=kubespawner, image="mine:2"))["image"] == "mine:2"


@pytest.mark.parametrize(
    ("values", "resources"),
    [
        ({"mem_limit": None, "cpu_limit": None}, {"limits": {}, "requests": {}}),
        (
            {
                "mem_limit": 2**45 + 1,
                "cpu_limit": 2.0,
                "mem_guarantee": 10**6,
                "cpu_guarantee": 0.05,
            },
            {
                "limits": {"memory": "35184372088833", "cpu": "2"},
                "requests": {"memory": "1000000", "cpu": "0.05"},
            },
        ),
        (
            {"resources": EVERYTHING["resources"], "mem_limit": 1, "cpu_limit": None},
            {
                "limits": {"nvidia.com/gpu": 1, "memory": "1"},
                "requests": {"ephemeral-storage": "1Gi"},
            },
        ),
    ],
)
def test_resources(render: Render, values: dict[str, Any], resources: dict[str, Any]) -> None:
    assert notebook(render(**values))["resources"] == resources


def test_the_probe(render: Render) -> None:
    probe = notebook(render())["startupProbe"]
    assert probe["httpGet"] == {"port": "notebook-port", "path": "/user/%C3%9Cn%C3%AF/api"}
    assert probe["periodSeconds"] == 1
    tcp = {"port": "notebook-port"}
    assert notebook(render(**with_env({})))["startupProbe"]["tcpSocket"] == tcp
    assert notebook(render(startupProbe={"type": "tcp"}))["startupProbe"]["tcpSocket"] == tcp
    assert "startupProbe" not in notebook(render(startupProbe={"type": "none"}))
    health = notebook(render(startupProbe={"path": "healthz"}))["startupProbe"]["httpGet"]
    assert health["path"].endswith("/healthz")


@pytest.mark.parametrize("values", [{}, EVERYTHING, {"storage": {"enabled": False}}])
def test_a_certificate(run: Callable[..., Rendered], values: dict[str, Any]) -> None:
    """With internal_ssl: in a Secret of its own, as a variable's is not for files."""
    rendered = run(**values, internal_ssl=CERTIFICATE).objects
    files = {Path(source).stem: documents for source, documents in rendered.items()}
    (secret,), (pod,), (service,) = files["certificate"], files["pod"], files["service"]
    assert secret["stringData"] == CERTIFICATE["files"]
    (volume,) = (v for v in pod["spec"]["volumes"] if v["name"] == "certificate")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    container = pod["spec"]["containers"][0]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "certificate")
    assert mount == {"name": "certificate", "mountPath": CERTIFICATE["path"], "readOnly": True}
    # The kubelet has no certificate to show.
    assert container["startupProbe"]["tcpSocket"] == {"port": "notebook-port"}
    assert service["metadata"]["annotations"]["kubetemplatespawner/connection"] == "true"
    assert "kubetemplatespawner/connection" not in pod["metadata"]["annotations"]
    assert "k: y" not in json.dumps([pod, service])
    # The address behind a name is remembered, so the name is new at each start.
    assert service["metadata"]["name"] == f"{NAME}-0f1e2d3c"


def test_the_network_policy(render: Render) -> None:
    policy = render(networkPolicy={"enabled": True})["NetworkPolicy"]["spec"]
    labels = render()["Pod"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert "hub.jupyter.org/servername" in policy["podSelector"]["matchLabels"]
    hub, own = policy["ingress"]
    assert hub["ports"] == [{"port": "notebook-port", "protocol": "TCP"}]
    assert hub["from"][0]["podSelector"]["matchLabels"] == {
        "hub.jupyter.org/network-access-singleuser": "true"
    }
    assert own["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["egress"][1]["to"][0]["ipBlock"]["except"] == ["169.254.169.254/32"]


# Wrong values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"connection": "Ingress"}, "/connection"),
        ({"storage": {"size": 10}}, "/storage/size"),
        ({"storage": {"size": "ten"}}, "/storage/size"),
        ({"storage": {"sizes": "10Gi"}}, "sizes"),
        ({"storage": "10Gi"}, "/storage"),
        ({"uid": "1000"}, "/uid"),
        ({"port": "8888"}, "/port"),
        ({"mem_limit": "1G"}, "/mem_limit"),
        ({"nodeSelector": {"gpu": True}}, "/nodeSelector/gpu"),
        ({"tolerations": {"key": "x"}}, "/tolerations"),
        ({"extraVolumes": [{"emptyDir": {}}]}, "/extraVolumes/0"),
        ({"image": {"name": "x", "tag": "y"}}, "/image"),
        ({"instance": None}, "instance"),
        ({"restartPolicy": "always"}, "/restartPolicy"),
        ({"startupProbe": {"type": "exec"}}, "/startupProbe/type"),
    ],
)
def test_wrong_values_are_named(render: Render, values: dict[str, Any], words: str) -> None:
    with pytest.raises(TemplateError, match=r"values\.schema\.json") as caught:
        render(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize("size", ["1048576Ki", "10Gi", "0.5Ti", "500M", "1e9", "1000000000"])
def test_sizes_are_those_of_kubernetes(render: Render, size: str) -> None:
    spec = render(storage={"size": size})["PersistentVolumeClaim"]["spec"]
    assert spec["resources"]["requests"]["storage"] == size


@pytest.mark.parametrize("size", ["10ki", "ki", "1.2.3Gi", "ten gigs", ".", "10Gi\n"])
def test_a_size_that_is_none_is_said_in_words(render: Render, size: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(storage={"size": size})
    said = str(caught.value)
    assert "is not a quantity such as 10Gi or 500M" in said
    assert "`extra_vars`" in said
    assert "^[0-9]" not in said


def test_every_documented_value_is_in_the_schema() -> None:
    chart = default_chart()
    check_template(chart)
    documented = yaml.safe_load((chart / "values.yaml").read_text())
    schema = json.loads((chart / "values.schema.json").read_text())["properties"]
    assert documented.keys() <= schema.keys()
    assert all(
        value.keys() == schema[key]["properties"].keys()
        for key, value in documented.items()
        if schema[key].get("additionalProperties") is False
    )


# What users type


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value)


NASTY = st.text(min_size=1) | st.text(
    "\"'\\\n\t -:{}[]#&*!|>%@`,?~01enyx$()", min_size=1, max_size=20
)


@given(text=NASTY)
@example("Ünï çødé+@x.org")
@example("12345")
@example("y")
@example("1e3")
@example("true")
@example("null")
@example('a"b: {c}')
@example("x\n---\nkind: Role\n")
@example("x\n  hostPID: true")
@example("{{ .Values.env }}")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_text_of_a_user_changes_the_shape(render: Render, text: str) -> None:
    """And it arrives exactly, wherever a chart of ours puts it."""
    if "$(" in text:
        return

    def with_text(text: str) -> dict[str, Any]:
        return {
            "unescaped_username": text,
            "user_options": {"image": text},
            "image": text,
            "annotations": {"who": text},
            **with_env({"JUPYTERHUB_USER": text, "JUPYTERHUB_SERVICE_PREFIX": f"/user/{text}/"}),
        }

    objects, ordinary = render(**with_text(text)), render(**with_text("ordinary"))
    assert shape(objects) == shape(ordinary)
    assert objects["Secret"]["stringData"]["JUPYTERHUB_USER"] == text
    assert objects["Pod"]["metadata"]["annotations"]["who"] == text
    assert notebook(objects)["image"] == text
    assert notebook(objects)["startupProbe"]["httpGet"]["path"] == f"/user/{text}/api"
    assert BASE["unescaped_username"] == "Ünï çødé+@x.org"
