"""A merged profile on a pod: a KubeSpawner's, another client object, or a mapping."""

from __future__ import annotations

import copy
from posixpath import normpath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_asyncio import client

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles import (
    SEMANTICS,
    SINGLEUSER_PROFILES,
    Profiles,
    apply_pod_profile,
)

Data = dict[str, Any]
API = object.__new__(client.ApiClient)  # its constructor opens a session


def spawner(name: str = "bob", **options: Any) -> Any:
    return SimpleNamespace(user=SimpleNamespace(name=name), **options)


def model_pod() -> Any:
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name="jupyter-bob", labels={"app": "hub"}),
        spec=client.V1PodSpec(
            containers=[
                client.V1Container(
                    name="notebook",
                    env=[client.V1EnvVar("A", "pod"), client.V1EnvVar("P", "pod")],
                    ports=[client.V1ContainerPort(container_port=8888, name="notebook-port")],
                    resources=client.V1ResourceRequirements(limits={"memory": "9Gi"}, requests={}),
                    volume_mounts=[client.V1VolumeMount(mount_path="/home", name="home")],
                ),
                client.V1Container(name="sidecar"),
            ],
            tolerations=[client.V1Toleration(key="hub.jupyter.org/dedicated", operator="Exists")],
            volumes=[client.V1Volume(name="home", empty_dir=client.V1EmptyDirVolumeSource())],
        ),
    )


def plain_pod() -> Data:
    pod: Data = API.sanitize_for_serialization(model_pod())
    return pod


def applied(profile: Data, by: Any = None, semantics: str = "merge") -> Data:
    """The pod, and that it is the same whichever way it was given."""
    merged = Profiles.from_list([profile]).merged(semantics=semantics)
    pod = apply_pod_profile(by or spawner(), plain_pod(), merged, "/mnt")
    typed = apply_pod_profile(by or spawner(), model_pod(), merged, "/mnt")
    assert API.sanitize_for_serialization(typed) == pod
    return pod


def with_main(**fields: Any) -> Data:
    return {"spec": {"containers": [{"name": "notebook", **fields}]}}


def variables(container: Data) -> Data:
    return {one["name"]: one.get("value") for one in container["env"]}


EVERYTHING: Data = {
    "env": {"A": "profile", "T": {"secretKeyRef": {"name": "s", "key": "k"}}},
    "resources": {"limits": {"cpu": 2}, "requests": {"cpu": "1", "memory": "1Gi"}},
    "volumes": [
        {"name": "Data Set", "persistentVolumeClaim": {"claimName": "d"}, "mountPath": "/data"},
        {"name": "scratch", "emptyDir": {}, "mountPath": "./tmp", "subPath": "x"},
    ],
    "node_tolerations": [{"key": "gpu"}],
    "node_affinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "l", "operator": "In", "values": ["v"]}]}
            ]
        }
    },
    "node_selector": {"disk": "ssd"},
    "labels": {"team": "x"},
    "annotations": {"note": "any text"},
    "ports": [{"containerPort": 4040, "name": "spark"}],
    "gpus": {"count": 1, "resource": "amd.com/gpu"},
    "max_age": "8h",
    "extra_pod_config": {"priorityClassName": "high", "securityContext": {"fsGroup": 5}},
    "extra_container_config": {"securityContext": {"runAsUser": 5}},
}


def test_each_field_has_its_place() -> None:
    pod = applied(EVERYTHING)
    spec = pod["spec"]
    main, sidecar = spec["containers"]
    assert pod["metadata"]["labels"] == {
        "app": "hub", "team": "x", "jupyterhub.opendatahub.io/user": "bob",
    }  # fmt: skip
    assert pod["metadata"]["annotations"] == {"note": "any text"}
    assert main["env"] == [
        {"name": "JUPYTERHUB_USER_NAME", "value": "bob"},
        {"name": "A", "value": "profile"},
        {"name": "P", "value": "pod"},
        {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    assert sidecar["env"] == [{"name": "JUPYTERHUB_USER_NAME", "value": "bob"}]
    assert main["resources"] == {
        "limits": {"memory": "9Gi", "cpu": "2", "amd.com/gpu": "1"},
        "requests": {"memory": "1Gi", "cpu": "1", "amd.com/gpu": "1"},
    }
    assert spec["volumes"] == [
        {"name": "home", "emptyDir": {}},
        {"name": "data-set", "persistentVolumeClaim": {"claimName": "d"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    assert main["volumeMounts"] == [
        {"name": "home", "mountPath": "/home"},
        {"name": "data-set", "mountPath": "/data"},
        {"name": "scratch", "mountPath": "/mnt/./tmp", "subPath": "x"},
    ]
    assert [one["key"] for one in spec["tolerations"]] == ["hub.jupyter.org/dedicated", "gpu"]
    assert spec["affinity"] == {"nodeAffinity": EVERYTHING["node_affinity"]}
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert [port["containerPort"] for port in main["ports"]] == [8888, 4040]
    assert spec["activeDeadlineSeconds"] == 28_800
    assert spec["priorityClassName"] == "high"
    assert spec["securityContext"] == {"fsGroup": 5}
    assert main["securityContext"] == {"runAsUser": 5}


def test_an_empty_profile_leaves_the_pod_but_for_the_user_s_name() -> None:
    expected = plain_pod()
    expected["metadata"]["labels"]["jupyterhub.opendatahub.io/user"] = "bob"
    for container in expected["spec"]["containers"]:
        name = {"name": "JUPYTERHUB_USER_NAME", "value": "bob"}
        container["env"] = [name, *container.get("env", ())]
    assert applied({}) == expected


def test_the_old_semantics_replace_and_repeat_what_the_pod_has() -> None:
    main = applied(EVERYTHING, semantics=SINGLEUSER_PROFILES)["spec"]["containers"][0]
    assert [one["name"] for one in main["env"]] == ["A", "P", "A", "T", "JUPYTERHUB_USER_NAME"]
    assert main["resources"]["limits"] == {"cpu": "2", "amd.com/gpu": "1"}
    spec = applied(EVERYTHING, semantics=SINGLEUSER_PROFILES)["spec"]
    assert spec["tolerations"] == [{"key": "gpu"}]
    home = {"volumes": [{"name": "home", "emptyDir": {}}]}
    spec = applied(home, semantics=SINGLEUSER_PROFILES)["spec"]
    assert [volume["name"] for volume in spec["volumes"]] == ["home", "home"]


def test_an_affinity_that_is_there_is_kept() -> None:
    pod = model_pod()
    anti = client.V1PodAntiAffinity(required_during_scheduling_ignored_during_execution=[])
    pod.spec.affinity = client.V1Affinity(pod_anti_affinity=anti)
    for semantics in SEMANTICS:
        merged = Profiles.from_list([EVERYTHING]).merged(semantics=semantics)
        affinity = apply_pod_profile(spawner(), pod, merged).spec.affinity
        assert affinity.pod_anti_affinity is anti
        required = affinity.node_affinity.required_during_scheduling_ignored_during_execution
        assert required.node_selector_terms[0].match_expressions[0].values == ["v"]


def test_variables_come_after_those_that_they_use() -> None:
    used = {"A": "$(Z)/$(JUPYTERHUB_USER_NAME)", "Z": "1"}
    env = applied({"env": used})["spec"]["containers"][0]["env"]
    assert [one["name"] for one in env] == ["JUPYTERHUB_USER_NAME", "Z", "A", "P"]


class TestGpus:
    @pytest.mark.parametrize("count", [2, "2"])
    @pytest.mark.parametrize("semantics", SEMANTICS)
    def test_the_user_s_choice(self, count: Any, semantics: str) -> None:
        pod = applied({"gpus": 1}, spawner(gpu_count=count), semantics)
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == "2"
        assert resources["requests"]["nvidia.com/gpu"] == "2"

    @pytest.mark.parametrize("count", [None, 0, "", "0"])
    def test_no_choice_leaves_the_profile_s(self, count: Any) -> None:
        limits = applied({"gpus": 1}, spawner(gpu_count=count))["spec"]["containers"][0][
            "resources"
        ]
        assert limits["limits"]["nvidia.com/gpu"] == "1"
        main = applied({}, spawner(gpu_count=count, gpu_mode="selinux"))["spec"]["containers"][0]
        assert "nvidia.com/gpu" not in main["resources"]["limits"]
        assert "securityContext" not in main

    def test_a_choice_that_is_no_number(self) -> None:
        with pytest.raises(ProfileError, match="gpu_count: must be a whole number"):
            applied({}, spawner(gpu_count="many"))

    def test_modes(self) -> None:
        spec = applied({"gpus": 1}, spawner(gpu_mode="selinux"))["spec"]
        assert spec["securityContext"] == {"seLinuxOptions": {"type": "nvidia_container_t"}}
        assert spec["containers"][0]["securityContext"] == {"capabilities": {"drop": ["ALL"]}}
        spec = applied({"gpus": 1}, spawner(gpu_mode="privileged"))["spec"]
        assert spec["containers"][0]["securityContext"] == {"privileged": True}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/abs", "/abs"), ("./rel", "/mnt/./rel"), (None, "/mnt/ds"), ("", "/mnt/ds")],
)
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_mount_paths(path: str | None, expected: str, semantics: str) -> None:
    claim = {"claimName": "c", "readOnly": True}
    volume = {"name": "ds", "persistentVolumeClaim": claim, "mountPath": path}
    spec = applied({"volumes": [volume]}, semantics=semantics)["spec"]
    assert spec["containers"][0]["volumeMounts"][-1] == {"name": "ds", "mountPath": expected}
    assert spec["volumes"][-1] == {"name": "ds", "persistentVolumeClaim": claim}


@pytest.mark.parametrize(
    ("user", "label"),
    [("bob", "bob"), ("a.b", "a-2eb"), ("Bob@x.y", "bob-x-y---efafcb62"), ("x" * 80, "x" * 5)],
)
def test_the_user_s_label_is_one_that_kubernetes_takes(user: str, label: str) -> None:
    pod = applied({}, spawner(user))
    assert pod["metadata"]["labels"]["jupyterhub.opendatahub.io/user"].startswith(label)
    assert len(pod["metadata"]["labels"]["jupyterhub.opendatahub.io/user"]) <= 63
    assert variables(pod["spec"]["containers"][1])["JUPYTERHUB_USER_NAME"] == user


def test_a_client_s_pod_is_changed_where_it_must_be() -> None:
    pod = model_pod()
    sidecar, home = pod.spec.containers[1], pod.spec.containers[0].volume_mounts
    selector = pod.spec.node_selector = {"disk": "ssd"}
    merged = Profiles.from_list([{"env": {"B": "1"}}]).merged()
    assert apply_pod_profile(spawner(), pod, merged) is pod
    assert pod.spec.containers[1] is sidecar
    assert pod.spec.node_selector is selector
    assert pod.spec.containers[0].volume_mounts is home
    assert {type(variable) for variable in pod.spec.containers[0].env} == {client.V1EnvVar}


def test_a_client_s_pod_without_metadata() -> None:
    pod = client.V1Pod(spec=client.V1PodSpec(containers=[client.V1Container(name="notebook")]))
    apply_pod_profile(spawner(), pod, Profiles.from_list([EVERYTHING]).merged())
    assert pod.metadata.labels["team"] == "x"
    assert pod.spec.containers[0].ports[0].container_port == 4040


def test_a_value_that_becomes_a_reference_loses_its_text() -> None:
    pod = model_pod()
    merged = Profiles.from_list([{"env": {"A": {"secretKeyRef": {"name": "s", "key": "k"}}}}])
    apply_pod_profile(spawner(), pod, merged.merged())
    (variable,) = (one for one in pod.spec.containers[0].env if one.name == "A")
    assert variable.value is None
    assert variable.value_from.secret_key_ref.name == "s"


def test_mappings_are_not_changed() -> None:
    pod, profile = plain_pod(), Profiles.from_list([EVERYTHING]).merged()
    before = copy.deepcopy((pod, profile))
    apply_pod_profile(spawner(), pod, profile)
    assert (pod, profile) == before


def test_a_pod_template_is_a_pod_too() -> None:
    template = {"spec": {"containers": [{"name": "notebook"}]}}
    pod = apply_pod_profile(spawner(), template, {"env": {"A": 1}})
    assert variables(pod["spec"]["containers"][0]) == {"A": "1", "JUPYTERHUB_USER_NAME": "bob"}


def test_the_pod_that_kubespawner_makes() -> None:
    from kubespawner.objects import make_pod

    pod = make_pod(
        name="jupyter-bob", image="i", cmd=["x"], port=8888, image_pull_policy=None,
        env={"A": "pod", "S": {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}},
        mem_limit="9Gi", cpu_limit=1, labels={"app": "hub"},
        volumes=[{"name": "home", "emptyDir": {}}],
        volume_mounts=[{"name": "home", "mountPath": "/home"}],
    )  # fmt: skip
    profile = Profiles.from_list([EVERYTHING]).merged()
    sent = API.sanitize_for_serialization(apply_pod_profile(spawner(), pod, profile))
    main = sent["spec"]["containers"][0]
    assert variables(main)["A"] == "profile"
    assert main["resources"]["limits"] == {"memory": "9Gi", "cpu": "2", "amd.com/gpu": "1"}
    assert [volume["name"] for volume in sent["spec"]["volumes"]] == ["home", "data-set", "scratch"]


@pytest.mark.parametrize(
    ("pod", "profile", "message"),
    [
        (plain_pod(), None, "given to apply_pod_profile: must be what `merged`"),
        (plain_pod(), {"env": 5}, "the profile given to apply_pod_profile: env: must be a list"),
        (model_pod(), {"node_affinity": {"a": 1}}, "`a` is not a field of V1NodeAffinity: remove"),
        (
            model_pod(),
            {"extra_pod_config": {"hostNet": 1}},
            "`hostNet` is not a field of V1PodSpec",
        ),
        (
            model_pod(),
            {"extra_pod_config": {"hostAliases": [{"ip": None}]}},
            "V1HostAlias: Invalid value for `ip`, must not be `None`",
        ),
        ({}, {}, "the pod given to apply_pod_profile has no spec"),
        ({"spec": {}}, {}, "the pod given to apply_pod_profile: containers: must have a container"),
        (
            {"spec": {"containers": "c"}},
            {},
            "apply_pod_profile: containers: must be a list, not te",
        ),
        (with_main(env=["A"]), {}, "apply_pod_profile: env[0]: must be a mapping, not text"),
        (with_main(env=[{"value": "1"}]), {}, "apply_pod_profile: env[0]: has no `name`"),
        (with_main(ports=[{}]), {}, "apply_pod_profile: ports[0]: has no `containerPort`"),
        (
            model_pod(),
            {"extra_container_config": {"name": None}},
            "V1Container: Invalid value for `name`, must not be `None`",
        ),
        (SimpleNamespace(spec=None), {}, "has no spec: give a V1Pod, or a mapping with"),
    ],
)
def test_faults(pod: Any, profile: Any, message: str) -> None:
    with pytest.raises(ProfileError) as error:
        apply_pod_profile(spawner(), pod, profile)
    assert message.replace("profile has", "profile: has") in str(error.value)


_VOLUME = st.fixed_dictionaries(
    {"name": st.sampled_from(["home", "Home", "b"]), "emptyDir": st.just({})},
    optional={"mountPath": st.sampled_from(["/home", "/opt/../home", "b", "./b", "/mnt/b", ""])},
)
_PORT = st.fixed_dictionaries(
    {"containerPort": st.sampled_from([8888, 1])}, optional={"name": st.just("notebook-port")}
)


@given(st.lists(_VOLUME), st.lists(_PORT), st.dictionaries(st.sampled_from("AP"), st.text()))
def test_no_key_is_there_twice_for_server_side_apply(
    volumes: list[Data], ports: list[Data], env: Data
) -> None:
    profile = {"volumes": volumes, "ports": ports, "env": env}
    pod = apply_pod_profile(spawner(), plain_pod(), Profiles.from_list([profile]).merged(), "/mnt")
    main = pod["spec"]["containers"][0]
    for keys in (
        [volume["name"] for volume in pod["spec"]["volumes"]],
        [normpath(mount["mountPath"]) for mount in main["volumeMounts"]],
        [port["containerPort"] for port in main["ports"]],
        [port["name"] for port in main["ports"] if "name" in port],
        [variable["name"] for variable in main["env"]],
    ):
        assert len(keys) == len(set(keys))
