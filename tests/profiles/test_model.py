"""What a profile may say, and how it is refused: source, place, field, what is allowed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles import Profiles

SECRET = "hunter2-and-more"

FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"evn": {}}, "profiles[0] (p): unknown key `evn`; did you mean `env`? Allowed: annotations,"),
    ({"zzz": {}}, "profiles[0] (p): unknown key `zzz`. Allowed: annotations,"),
    ({"users": "bob"}, "profiles[0] (p).users: must be a list, not text"),
    ({"users": [7]}, "profiles[0] (p).users[0]: must be text, not a number without quotes"),
    ({"images": ["a", ""]}, "profiles[0] (p).images[1]: must not be empty"),
    ({"groups": ["g" * 1_001]}, "profiles[0] (p).groups[0]: must have at most 1000 characters"),
    ({"env": SECRET}, "profiles[0] (p).env: must be a list, not text"),
    ({"env": {"A": [SECRET]}}, "profiles[0] (p).env.A.value: must be text, not a list"),
    ({"env": {"A=B": SECRET}}, ".env.A=B.name: must be printable ASCII characters without `=`"),
    ({"env": {"A": {"secretRef": {}}}}, ".valueFrom: unknown key `secretRef`; did you mean `secr"),
    ({"env": [SECRET]}, "profiles[0] (p).env[0]: must be a mapping, not text"),
    ({"env": [{"value": SECRET}]}, "profiles[0] (p).env[0].name: must be text, not nothing"),
    (
        {"env": [{"name": "A", "vaule": SECRET}]},
        "env[0]: unknown key `vaule`; did you mean `value`",
    ),
    (
        {"env": [{"name": "A", "value": SECRET, "valueFrom": {"fieldRef": {}}}]},
        "env[0]: has both `value` and `valueFrom`: remove one",
    ),
    (
        {"env": [{"name": "A", "valueFrom": {}}]},
        ".valueFrom: must have exactly one source, such as",
    ),
    ({"env": {"A": {"fieldRef": SECRET}}}, ".valueFrom.fieldRef: must be a mapping, not text"),
    ({"resources": {"limit": {}}}, ".resources: unknown key `limit`; did you mean `limits`?"),
    ({"resources": {"limits": ["1Gi"]}}, ".resources.limits: must be a mapping, not a list"),
    (
        {"resources": {"limits": {"memory": "2GB"}}},
        ".limits.memory: must be an amount such as 500m",
    ),
    ({"resources": {"limits": {"cpu": -1}}}, ".limits.cpu: must be an amount such as 500m"),
    ({"resources": {"limits": {"cpu": True}}}, ".limits.cpu: must be an amount"),
    ({"resources": {"mem_limit": "much"}}, ".resources.mem_limit: must be an amount"),
    (
        {"volumes": [{"name": "d"}]},
        ".volumes[0]: must have exactly one source, such as persistentV",
    ),
    (
        {"volumes": [{"name": "d", "persistentVolumeClaims": {}}]},
        ".volumes[0]: unknown key `persistentVolumeClaims`; did you mean `persistentVolumeClaim`?",
    ),
    ({"volumes": [{"emptyDir": {}}]}, ".volumes[0].name: must be text, not nothing"),
    ({"volumes": [{"name": "-", "emptyDir": {}}]}, ".volumes[0].name: must have a letter or digit"),
    (
        {"volumes": [{"name": "d", "emptyDir": {}, "mountPath": 1}]},
        ".volumes[0].mountPath: must be text, not a number",
    ),
    (
        {"node_tolerations": [{"keys": "a"}]},
        ".node_tolerations[0]: unknown key `keys`; did you mean",
    ),
    ({"node_tolerations": [{"key": True}]}, "[0].key: must be text, not true or false without quo"),
    ({"node_affinity": []}, ".node_affinity: must be a mapping, not a list"),
    ({"services": {"spark": 1}}, ".services.spark: must be a mapping, not a number"),
    ({"gpus": -1}, ".gpus.count: must be a whole number from 0 to 1024"),
    ({"gpus": {"resource": "gpu"}}, ".gpus.resource: must be a name such as nvidia.com/gpu"),
    ({"gpus": {"number": 1}}, ".gpus: unknown key `number`"),
    (
        {"node_selector": {"disk": 1}},
        ".node_selector.disk: must be text, not a number without quot",
    ),
    (
        {"labels": {"a": "no blanks"}},
        ".labels.a: must be at most 63 letters, digits, `-`, `_`, `.`",
    ),
    ({"labels": {"no blanks": "a"}}, ".labels: the key `no blanks` is none that Kubernetes allows"),
    (
        {"annotations": {"a": 1}},
        ".annotations.a: must be text, not a number without quotes: put it",
    ),
    ({"ports": [0]}, ".ports[0].containerPort: must be a whole number from 1 to 65535"),
    (
        {"ports": [{"containerPort": 80, "protocol": "tcp"}]},
        ".protocol: must be one of TCP, UDP, SC",
    ),
    ({"ports": [{"containerPort": 80, "name": "UPPER"}]}, ".name: must be up to 15 small letters"),
    ({"values": [1]}, ".values: must be a mapping, not a list"),
    ({"extra_pod_config": {"tolerations": []}}, "is set by the profile's field `node_tolerations`"),
    ({"extra_container_config": {"env": []}}, ".env: is set by the profile's field `env`"),
    ({"max_age": "soon"}, ".max_age: must be a time such as 30m, 8h or 1d12h"),
    ({"idle": 0}, ".idle: must be a time such as 30m"),
    ({"max_age": 2**31}, ".max_age: must be a time such as 30m"),
    ({"max_age": "99999d"}, ".max_age: must be a time such as 30m"),
    ({"max_age": ""}, ".max_age: must be a time such as 30m"),
    ({"merge": "overwrite"}, ".merge: must be `merge`, `replace`, or a mapping of fields"),
    ({"merge": {"environment": "replace"}}, ".merge: unknown key `environment`"),
    ({"merge": {"env": "append"}}, ".merge.env: must be one of merge, replace"),
]


def refusal(profiles: Any, sizes: Any = (), source: str = "the profiles") -> str:
    with pytest.raises(ProfileError) as error:
        Profiles.from_list(profiles, sizes, source=source)
    return str(error.value)


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_is_named(fault: dict[str, Any], message: str) -> None:
    told = refusal([{"name": "p", **fault}], source="c.Spawner")
    assert told.startswith("c.Spawner: profiles[0] (p)")
    assert message in told
    assert SECRET not in told


def test_the_place_is_a_list_s_index_and_the_profile_s_name() -> None:
    told = refusal([{}, {"name": "team"}, {"name": "gpu\n", "users": 1}])
    assert (
        told
        == "the profiles: profiles[2] (gpu?).users: must be a list, not a number without quotes"
    )


@pytest.mark.parametrize(
    ("profiles", "sizes", "message"),
    [
        ({"name": "p"}, (), "the profiles: profiles: must be a list, not a mapping"),
        (["p"], (), "the profiles: profiles[0]: must be a mapping, not text"),
        ([None], (), "the profiles: profiles[0]: must be a mapping, not nothing"),
        (
            [{"name": 7}],
            (),
            "profiles[0].name: must be text, not a number without quotes: put it in",
        ),
        ([], [{"resources": {}}], "sizes[0].name: a size needs one: it is what users choose"),
        ([], [{"name": "L", "users": ["bob"]}], "sizes[0] (L): unknown key `users`"),
    ],
)
def test_lists(profiles: Any, sizes: Any, message: str) -> None:
    assert message in refusal(profiles, sizes)


def test_null_is_as_if_it_were_not_there() -> None:
    nothing = dict.fromkeys(
        ("name", "users", "images", "groups", "env", "resources", "values", "merge", "idle")
    )
    assert Profiles.from_list([nothing]).profiles == Profiles.from_list([{}]).profiles
    assert Profiles.from_list(None, None).profiles == ()


def test_a_profile_is_a_value_of_its_own() -> None:
    data: dict[str, Any] = {"name": "p", "env": {"A": "1"}, "values": {"a": {"b": [1]}}}
    profiles = Profiles.from_list([data])
    before = profiles.merged()
    data["env"]["A"] = data["values"]["a"]["b"] = "changed"
    profiles.merged()["values"]["a"]["b"].append(2)
    assert profiles.merged() == before
    with pytest.raises(TypeError):
        profiles.profiles[0].fields["env"] = []  # type: ignore[index]
    with pytest.raises(AttributeError):
        profiles.profiles[0].name = "q"  # type: ignore[misc]


class TestHostile:
    def test_too_deep(self) -> None:
        value: Any = {}
        for _ in range(100_000):
            value = {"a": value}
        assert "lies more than 60 levels deep" in refusal([{"values": value}])

    def test_a_value_that_holds_itself(self) -> None:
        value: dict[str, Any] = {}
        value["a"] = value["b"] = value
        told = refusal([{"values": value}])
        assert "more than 200000 values, or one that holds itself" in told

    def test_many_names_for_one_value(self) -> None:
        value: Any = "x"
        for _ in range(30):
            value = [value] * 10
        assert "more than 200000 values" in refusal([{"values": {"a": value}}])

    def test_too_many_profiles(self) -> None:
        assert refusal([{}] * 10_001) == "the profiles: profiles: more than 10000: write fewer"

    def test_a_huge_list(self) -> None:
        assert "more than 200000 values" in refusal([{"env": ["x"] * 1_000_000}])

    @pytest.mark.parametrize("value", [float("nan"), 2**64, object(), b"x", {1: 2}, "\ud800"])
    def test_what_is_not_json(self, value: Any) -> None:
        assert "the profiles: The value profiles[0].values.a" in refusal([{"values": {"a": value}}])

    def test_a_key_that_is_a_novel(self) -> None:
        assert len(refusal([{"env" * 1_000_000: 1}])) < 1_000

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        )
    )
    @example({"profiles": []})
    def test_anything_at_all_is_read_or_refused(self, data: Any) -> None:
        fields = (
            "env", "resources", "volumes", "node_tolerations", "node_affinity", "services", "gpus",
            "node_selector", "labels", "annotations", "ports", "values", "extra_pod_config",
            "extra_container_config", "max_age", "idle", "merge", "images", "users", "name",
        )  # fmt: skip
        for given_profiles in (data, [data], *([{field: data}] for field in fields)):
            with suppress(ProfileError):
                Profiles.from_list(given_profiles).merged("image", "bob")
