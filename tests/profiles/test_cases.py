"""What singleuser-profiles 0.1.1 answered in recorded cases is what its semantics answer here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles import (
    MERGE,
    SEMANTICS,
    SINGLEUSER_PROFILES,
    Profiles,
    SingleuserProfiles,
)

Case = dict[str, Any]
CASES: list[Case] = json.loads(
    (Path(__file__).parents[1] / "data" / "profile_cases.json").read_text()
)
#: Where merging by key keeps what the old semantics lose or double, and what it gives instead.
BY_KEY: dict[str, dict[str, Any]] = {
    "readme-acorvin-spark-Req": {
        "resources": {
            "requests": {"memory": "3Gi", "cpu": "250m"},
            "limits": {"memory": "3Gi", "cpu": "500m"},
        }
    },
    "env-number": {"env": {"X": "80", "Y": "true", "Z": ""}},
    "res-limits-only-after": {
        "resources": {
            "requests": {"memory": "500Mi", "cpu": "250m"},
            "limits": {"memory": "4Gi", "cpu": "500m"},
        }
    },
    "res-legacy-half": {
        "resources": {
            "requests": {"memory": "2Gi", "cpu": "250m"},
            "limits": {"memory": "2Gi", "cpu": "500m"},
        }
    },
    "res-new-then-legacy-twice": {
        "resources": {
            "requests": {"memory": "1Gi", "cpu": 2},
            "limits": {"memory": "1Gi", "cpu": 2},
        }
    },
    "res-gpu-key": {
        "resources": {
            "requests": {"memory": "500Mi", "cpu": "250m"},
            "limits": {"memory": "1Gi", "cpu": "500m", "nvidia.com/gpu": "1"},
        }
    },
    "size-nope": {
        "resources": {
            "requests": {"memory": "500Mi", "cpu": "250m"},
            "limits": {"memory": "4Gi", "cpu": "500m"},
        }
    },
    "vol-append": {
        "volumes": [
            {"name": "e", "persistentVolumeClaim": {"claimName": "e"}},
            {"name": "d", "persistentVolumeClaim": {"claimName": "d"}},
        ]
    },
    "svc-replace": {"services": {"s": {"configuration": {"n": 1, "m": 1}, "labels": {"l": "1"}}}},
    "random-0": {
        "resources": {
            "requests": {"memory": "4Gi", "cpu": "2"},
            "limits": {"memory": "4Gi", "cpu": "2"},
        }
    },
    "random-1": {
        "resources": {"requests": {"memory": "1Gi", "cpu": "2"}, "limits": {"memory": "1Gi"}}
    },
    # Nothing in the profile: what the pod has stays.
    "pod-tol-keep": {"resources": {"limits": {"memory": "9Gi"}}},
}


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    """The cases of these kinds, each under its own name."""
    cases = [case for case in CASES if ("pod" in case) == ("pod" in kinds)]
    return pytest.mark.parametrize("case", cases, ids=lambda case: str(case["id"]))


def read(case: Case) -> Profiles:
    if "configmaps" in case:
        return Profiles.from_configmaps(case["configmaps"], case["user"])
    if "file" in case:
        return Profiles.from_text(case["file"])
    return Profiles.from_list(case["profiles"], case.get("sizes", ()))


def merged(case: Case, semantics: str) -> dict[str, Any]:
    return read(case).merged(
        image=case["image"], user=case["user"], size=case.get("size"), semantics=semantics
    )


def bare(value: Any) -> Any:
    """Without what is null or empty, which the cases take for absent."""
    if isinstance(value, dict):
        items = {key: bare(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item not in (None, {}, [], "")}
    return [bare(item) for item in value] if isinstance(value, list) else value


def comparable(answer: dict[str, Any], keys: Any) -> dict[str, Any]:
    shown = {key: answer.get(key) for key in keys}
    for key in {"users", "images"} & shown.keys():
        shown[key] = sorted(shown[key] or ())
    result: dict[str, Any] = bare(shown)
    return result


def by_name(variables: Any) -> dict[str, Any]:
    """Each variable's last entry."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in variables or ()}


def test_all_cases_are_there() -> None:
    assert len(CASES) == 46
    assert BY_KEY.keys() <= {case["id"] for case in CASES}


@of_kind("merged")
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_merged(case: Case, semantics: str) -> None:
    expected = dict(case["expect"])
    if "error" in expected:
        with pytest.raises(ProfileError, match=r"ConfigMap jupyter-singleuser-profiles.*line 2"):
            read(case)
        return
    answer = merged(case, semantics)
    if semantics == MERGE:
        assert len(answer["env"]) == len(by_name(answer["env"]))
        answer["env"] = by_name(answer["env"])
        expected["env"] = by_name(expected["env"])
        expected |= BY_KEY.get(case["id"], {})
    assert comparable(answer, expected) == comparable(expected, expected)


@of_kind("pod")
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("typed", [True, False], ids=["V1Pod", "mapping"])
def test_pods(case: Case, semantics: str, typed: bool) -> None:
    expected = dict(case["expect"])
    options = case["pod"]
    spawner = SimpleNamespace(
        user=SimpleNamespace(name=case["user"]), gpu_count=options.get("gpu_count", 0)
    )
    answer = shown(
        SingleuserProfiles.apply_pod_profile(
            spawner, pod(options, typed), merged(case, semantics), "/mnt"
        )
    )
    if semantics == MERGE:
        assert len(answer["env"]) == len(by_name(answer["env"]))
        answer["env"] = by_name(answer["env"])
        expected["env"] = by_name(expected["env"])
        expected |= BY_KEY.get(case["id"], {})
    assert bare(answer) == bare(expected)


def pod(options: dict[str, Any], typed: bool) -> Any:
    container = {
        "name": "notebook",
        "env": [{"name": name, "value": value} for name, value in options.get("env", ())],
        "resources": {"limits": {"memory": "9Gi"}},
    }
    spec = {"containers": [container], "tolerations": options.get("tolerations")}
    return as_model(spec) if typed else {"metadata": {}, "spec": spec}


def as_model(spec: dict[str, Any]) -> Any:
    from kubernetes_asyncio import client

    (container,) = spec["containers"]
    return client.V1Pod(
        metadata=client.V1ObjectMeta(),
        spec=client.V1PodSpec(
            containers=[
                client.V1Container(
                    name=container["name"],
                    env=[client.V1EnvVar(**variable) for variable in container["env"]],
                    resources=client.V1ResourceRequirements(**container["resources"]),
                )
            ],
            tolerations=spec["tolerations"]
            and [client.V1Toleration(**toleration) for toleration in spec["tolerations"]],
        ),
    )


def shown(pod: Any) -> dict[str, Any]:
    """A pod's parts as the cases name them."""
    if not isinstance(pod, dict):
        from kubernetes_asyncio import client

        api = object.__new__(client.ApiClient)  # its constructor opens a session
        pod = api.sanitize_for_serialization(pod)
    (container,) = pod["spec"]["containers"]
    return {
        "labels": pod["metadata"].get("labels"),
        "env": container.get("env"),
        "resources": container.get("resources"),
        "mounts": container.get("volumeMounts"),
        **{key: pod["spec"].get(key) for key in ("volumes", "tolerations", "affinity")},
    }


def test_the_semantics_are_told_in_the_answer() -> None:
    assert merged(CASES[0], SINGLEUSER_PROFILES)["semantics"] == SINGLEUSER_PROFILES
    assert merged(CASES[0], MERGE)["semantics"] == MERGE
