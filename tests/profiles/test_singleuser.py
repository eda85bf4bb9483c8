"""The old library's class, by its names and with its answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles import SINGLEUSER_PROFILES, Profiles, SingleuserProfiles

Data = dict[str, Any]
KEY = "jupyterhub-singleuser-profiles.yaml"
MAIN = "jupyter-singleuser-profiles"

TEXT = """
profiles:
- name: globals
  env: {A: '1'}
- name: gpu
  users: [bob]
  images: [img:1]
  env: [{name: A, value: '2'}]
- name: gpu
  users: [amy]
sizes:
- name: L
  resources: {limits: {memory: 8Gi}}
- name: S
"""


@pytest.fixture
def service(tmp_path: Path) -> SingleuserProfiles:
    configmaps = {
        MAIN: {"labels": {}, "data": {KEY: TEXT}},
        "jupyterhub-singleuser-profile-bob": {"data": {"profile": "env: {A: mine}"}},
    }
    made = SingleuserProfiles(namespace="hub", verify_ssl=False, configmaps=lambda: configmaps)
    made.load_profiles(username="bob")
    return made


def old(*profiles: Data, user: str | None = "bob", **options: Any) -> Data:
    """What merging as singleuser-profiles gives."""
    sizes = options.pop("sizes", ())
    return Profiles.from_list(list(profiles), sizes).merged(
        "img:1", user, semantics=SINGLEUSER_PROFILES, **options
    )


class TestLoading:
    def test_from_configmaps(self, service: SingleuserProfiles) -> None:
        answer = service.get_merged_profile("img:1", user="bob", size="L")
        assert answer["name"] == "globals, gpu, @singleuser@, L"
        assert [variable["value"] for variable in answer["env"]] == ["1", "2", "mine"]
        assert answer["resources"]["limits"] == {"memory": "8Gi"}

    def test_from_a_file_without_its_sizes(self, tmp_path: Path) -> None:
        path = tmp_path / "profiles.yaml"
        path.write_text(json.dumps({"data": {KEY: TEXT}}))
        service = SingleuserProfiles()
        service.load_profiles(filename=str(path))
        assert service.get_merged_profile("img:1", "bob", "L")["name"] == "globals, gpu"
        assert service.get_sizes() == []

    def test_from_nowhere(self) -> None:
        with pytest.raises(ProfileError, match="give `filename`, or SingleuserProfiles a function"):
            SingleuserProfiles().load_profiles()

    def test_what_was_read_stays_when_an_edit_is_broken(self) -> None:
        texts = iter([TEXT, "profiles: ["])
        service = SingleuserProfiles(configmaps=lambda: {"mine": {"data": {"p.yaml": next(texts)}}})
        service.load_profiles("mine", key_name="p.yaml")
        with pytest.raises(ProfileError, match=r"ConfigMap mine, p\.yaml, line 2"):
            service.load_profiles("mine", key_name="p.yaml")
        assert len(service.profiles) == 3


class TestAsking:
    def test_profiles(self, service: SingleuserProfiles) -> None:
        names = [one["name"] for one in service.get_profile_by_image("img:1", "bob")]
        assert names == ["globals", "gpu", "@singleuser@"]
        assert service.get_profile_by_image("img:2", "amy") == [
            {"name": "globals", "env": [{"name": "A", "value": "1"}]},
            {"name": "gpu", "users": ["amy"]},
        ]
        assert service.get_profile_by_name("gpu")["users"] == ["bob"]
        assert service.get_profile_by_name("x") == {}

    def test_sizes(self, service: SingleuserProfiles) -> None:
        memory = {"memory": "8Gi"}
        assert service.get_size("L") == {
            "name": "L",
            "resources": {"limits": memory, "requests": memory},
        }
        assert service.get_size("x") == {}
        assert [size["name"] for size in service.get_sizes()] == ["L", "S"]

    @pytest.mark.parametrize(
        ("users", "user", "expected"),
        [
            (["bob"], "bob", True),
            (["bob"], "amy", False),
            (["bob"], None, True),
            (["*"], "amy", True),
            ([], "amy", True),
        ],
    )
    def test_filter_by_username(self, users: list[str], user: str | None, expected: bool) -> None:
        profile = {"name": "p", "users": users, "images": ["any"]}
        answer = SingleuserProfiles().filter_by_username(profile, user)
        assert answer == (profile if expected else {})

    def test_answers_are_the_caller_s(self, service: SingleuserProfiles) -> None:
        service.profiles[0]["env"].clear()
        service.get_profile_by_name("globals")["env"].clear()
        assert service.get_profile_by_name("globals")["env"]


class TestMergingByHand:
    def test_empty(self) -> None:
        empty = SingleuserProfiles.empty_profile()
        assert empty["name"] == ""
        assert empty["resources"]["limits"] == {"memory": None, "cpu": None}
        assert SingleuserProfiles.merge_profiles(empty, empty) == empty

    def test_two(self) -> None:
        first: Data = {"name": "a", "env": {"A": 1}, "resources": {"limits": {"cpu": 1}}}
        answer = SingleuserProfiles.merge_profiles(first, {"name": "b", "env": {"A": 2}})
        assert answer["name"] == "a, b"
        assert answer["env"] == [{"name": "A", "value": 1}, {"name": "A", "value": 2}]
        assert first["env"] == {"A": 1}

    def test_a_fault(self) -> None:
        with pytest.raises(ProfileError, match="the second one: unknown key `evn`"):
            SingleuserProfiles.merge_profiles({}, {"evn": {}})

    def test_env_dict_to_list(self) -> None:
        expected = [{"name": "A", "value": 1}, {"name": "B", "value": None}]
        assert SingleuserProfiles.env_dict_to_list({"A": 1, "B": None}) == expected

    @pytest.mark.parametrize(
        ("path", "expected"), [("/abs", "/abs"), ("./r", "/m/./r"), ("", "/m/v"), (None, "/m/v")]
    )
    def test_generate_volume_path(self, path: str | None, expected: str) -> None:
        assert SingleuserProfiles.generate_volume_path(path, "/m", "v") == expected


POD: Data = {"metadata": {}, "spec": {"containers": [{"name": "notebook"}]}}


class TestPods:
    def test_the_hook_of_the_seed_s_readme(self, service: SingleuserProfiles) -> None:
        spawner = SimpleNamespace(user=SimpleNamespace(name="bob"))
        profile = service.get_merged_profile("img:1", user="bob")
        pod = SingleuserProfiles.apply_pod_profile(spawner, POD, profile)
        values = [variable["value"] for variable in pod["spec"]["containers"][0]["env"]]
        assert values == ["1", "2", "mine", "bob"]

    @pytest.mark.parametrize("count", [2, "2"])
    def test_gpus(self, count: Any) -> None:
        pod = SingleuserProfiles.apply_gpu_config(SingleuserProfiles.GPU_MODE_SELINUX, count, POD)
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert limits == {"nvidia.com/gpu": "2"}
        assert pod["spec"]["securityContext"]["seLinuxOptions"]["type"] == "nvidia_container_t"
        assert SingleuserProfiles.apply_gpu_config(None, 0, POD) == POD

    @pytest.mark.parametrize(
        ("mode", "expected"), [("selinux", "selinux"), ("privileged", "privileged"), ("x", None)]
    )
    def test_gpu_mode(self, mode: str, expected: str | None) -> None:
        assert SingleuserProfiles(gpu_mode=mode).gpu_mode == expected


GLOBALS: Data = {
    "name": "globals",
    "env": [{"name": "A", "value": "1"}],
    "resources": {
        "requests": {"memory": "500Mi", "cpu": "250m"},
        "limits": {"memory": "1Gi", "cpu": "500m"},
    },
}


class TestExactMerges:
    """The old library's answers that surprise, each as it was observed."""

    def test_env_of_two_is_both(self) -> None:
        u = {"name": "u", "users": ["bob"], "env": [{"name": "A", "value": "2"}]}
        assert [one["value"] for one in old(GLOBALS, u)["env"]] == ["1", "2"]
        assert [one["value"] for one in old(GLOBALS, u, user="amy")["env"]] == ["1"]
        assert old(GLOBALS, u, user=None)["name"] == "globals, u"

    @pytest.mark.parametrize(
        ("resources", "expected"),
        [
            (
                {"limits": {"memory": "4Gi"}},
                {
                    "requests": {"memory": "500Mi", "cpu": "250m"},
                    "limits": {"memory": "4Gi"},
                    "mem_limit": None,
                    "cpu_limit": None,
                },
            ),
            (
                {"mem_limit": "1Gi"},
                {
                    "requests": {"memory": "1Gi", "cpu": None},
                    "limits": {"memory": "1Gi", "cpu": None},
                },
            ),
        ],
    )
    def test_limits_are_replaced_whole(self, resources: Data, expected: Data) -> None:
        assert old(GLOBALS, {"resources": resources})["resources"] == expected

    def test_limits_alone_have_null_requests(self) -> None:
        resources = old({"resources": {"limits": {"memory": "4Gi"}}})["resources"]
        assert resources["requests"] == {"memory": None, "cpu": None}

    def test_a_size_with_limits_alone_requests_them(self) -> None:
        limits = {"memory": "8Gi", "cpu": "8"}
        answer = old(
            GLOBALS, sizes=[{"name": "Large", "resources": {"limits": limits}}], size="Large"
        )
        assert answer["name"] == "globals, Large"
        assert answer["resources"]["requests"] == answer["resources"]["limits"] == limits

    def test_lists_are_joined(self) -> None:
        volume = {"name": "d", "persistentVolumeClaim": {"claimName": "d"}}
        profile = {"node_tolerations": [{"key": "x"}], "volumes": [volume]}
        answer = old(profile, profile)
        assert answer["node_tolerations"] == [{"key": "x"}, {"key": "x"}]
        assert answer["volumes"] == [volume, volume]

    def test_mappings_are_joined_by_their_top_key(self) -> None:
        first = {"node_affinity": {"required": [1]}, "services": {"s": {"a": {"n": 1}, "b": 1}}}
        second = {"node_affinity": {"required": [2]}, "services": {"s": {"a": {"m": 1}}}}
        answer = old(first, second)
        assert answer["node_affinity"] == {"required": [2]}
        assert answer["services"] == {"s": {"a": {"m": 1}}}

    @pytest.mark.parametrize(
        ("zero", "expected"),
        [
            ([{"mem_limit": "1Gi", "cpu_limit": 0}], {"memory": "1Gi", "cpu": 0}),
            ([{"cpu_limit": 0}, {"mem_limit": "1Gi"}], {"memory": "1Gi", "cpu": 0}),
            ([{"mem_limit": "1Gi"}, {"cpu_limit": 0}], {"memory": "1Gi", "cpu": None}),
        ],
    )
    def test_a_limit_of_zero(self, zero: list[Data], expected: Data) -> None:
        assert old(*({"resources": one} for one in zero))["resources"]["limits"] == expected

    def test_where_it_crashed_nothing_is_set(self) -> None:
        empty: Data = {"resources": {"requests": {}, "limits": {}}}
        assert old(empty, {"name": "next"})["resources"] == {}
        pod = {"spec": {"containers": [{"name": "n", "resources": {"limits": {"cpu": "1"}}}]}}
        spawner = SimpleNamespace(user=SimpleNamespace(name="bob"))
        answer = SingleuserProfiles.apply_pod_profile(spawner, pod, old(empty))
        assert answer["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "1"}}

    def test_a_size_without_resources_is_none(self) -> None:
        assert old(GLOBALS, sizes=[{"name": "S", "env": {"S": "1"}}], size="S") == old(GLOBALS)
        size = {"name": "S", "env": {"S": "1"}, "resources": {"limits": {"cpu": 1}}}
        answer = old(GLOBALS, sizes=[size], size="S")
        assert [one["name"] for one in answer["env"]] == ["A", "S"]
