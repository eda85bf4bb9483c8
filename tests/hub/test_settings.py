"""What an administrator may configure, and what is said about mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from lightkube_template_spawner.hub import settings as module
from lightkube_template_spawner.hub.settings import Settings, default_chart
from lightkube_template_spawner.objects.plan import RETAINED_KINDS, Contract

SEED = {
    "template_path", "instance_name", "connection_annotation_key", "lifecycle_annotation_key",
    "resource_kinds", "namespace", "extra_vars", "k8s_timeout",
}  # fmt: skip


@pytest.fixture(autouse=True)
def outside_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    account = tmp_path / "namespace"
    monkeypatch.setattr(module, "_ACCOUNT", account)
    for name in ("POD_NAMESPACE", "HELM_RELEASE_NAME"):
        monkeypatch.delenv(name, raising=False)
    return account


def configured(**values: Any) -> Settings:
    return Settings(config=Config({"Settings": values}))


def test_the_seeds_traits_are_all_there() -> None:
    assert Settings.class_traits(config=True).keys() >= SEED


@pytest.mark.parametrize("name", sorted(Settings.class_own_traits(config=True)))
def test_every_trait_can_be_configured_and_says_what_it_is_for(name: str) -> None:
    help_text = str(Settings.class_traits()[name].help).strip()
    assert len(help_text) > 30
    assert help_text[0].isupper()
    assert help_text.endswith((".", ")", "}")) or "::" in help_text


# -- instance name --------------------------------------------------------------------------------


def test_outside_a_pod_the_instance_is_jupyter() -> None:
    assert Settings().instance_name == "jupyter"
    assert Settings().namespace == "default"


def test_in_a_pod_the_instance_is_release_and_namespace(
    monkeypatch: pytest.MonkeyPatch, outside_a_pod: Path
) -> None:
    outside_a_pod.write_text("team-a\n")
    assert Settings().instance_name == "team-a"
    assert Settings().namespace == "team-a"
    monkeypatch.setenv("HELM_RELEASE_NAME", "hub")
    assert Settings().instance_name == "hub-team-a"
    monkeypatch.setenv("POD_NAMESPACE", "team-b")
    assert Settings().instance_name == "hub-team-b"


def test_long_releases_and_namespaces_still_give_two_hubs_two_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HELM_RELEASE_NAME", "r" * 53)
    names = set()
    for namespace in ("n" * 62 + "a", "n" * 62 + "b", "n" * 9, "n--" + "n" * 20):
        monkeypatch.setenv("POD_NAMESPACE", namespace)
        name = Settings().instance_name
        assert configured(instance_name=name).instance_name == name
        names.add(name)
    assert len(names) == 4
    assert max(map(len, names)) <= 63


@pytest.mark.parametrize("name", ["a", "hub-1", "A.b_c", "x" * 63])
def test_a_label_value_is_an_instance_name(name: str) -> None:
    assert configured(instance_name=name).instance_name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "ü", "x" * 64, "a\n", "a,b", "a=b"])
def test_what_is_no_label_value_is_no_instance_name(name: str) -> None:
    with pytest.raises(TraitError, match=f"instance_name {re.escape(repr(name))} is not a label"):
        Settings().instance_name = name


# -- kinds ----------------------------------------------------------------------------------------

KIND_TRAITS = ["resource_kinds", "retained_kinds", "cluster_kinds"]


@pytest.mark.parametrize("trait", KIND_TRAITS)
def test_kinds_are_written_as_in_manifests(trait: str) -> None:
    kinds = ["v1/Pod", "apps/v1/Deployment", "kubeflow.org/v1beta1/Notebook"]
    assert getattr(configured(**{trait: kinds}), trait) == kinds


@pytest.mark.parametrize("trait", KIND_TRAITS)
@pytest.mark.parametrize(
    "kind",
    ["Pod", "apps/Deployment", "/v1/Pod", "v1/", "", "a/b/c/d", "apps/v1/", "v1//Pod", "v2/Pod"],
)
def test_a_kind_written_otherwise_is_refused_with_examples(trait: str, kind: str) -> None:
    with pytest.raises(TraitError) as caught:
        setattr(Settings(), trait, ["v1/Secret", kind])
    assert f"{trait}: {kind!r} is not written as `v1/Pod`" in str(caught.value)


def test_data_is_retained_unless_configured_otherwise() -> None:
    assert Settings().retained_kinds == list(RETAINED_KINDS)
    assert configured(retained_kinds=[]).retained_kinds == []


def test_defaults_of_traits_and_rules_are_the_same() -> None:
    made, rules = Settings(), Contract(namespace="ns")
    assert made.connection_annotation_key == rules.connection_key
    assert made.lifecycle_annotation_key == rules.lifecycle_key
    assert tuple(made.retained_kinds) == rules.retained_kinds
    assert made.select_own_pods == rules.select_own_pods
    assert made.gitops_guard == rules.gitops_guard
    assert not [*made.extra_namespaces, *made.cluster_kinds, *made.shared_objects]


# -- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{}, {"a": 1}, None, lambda spawner: {}])
def test_extra_vars_are_a_dictionary_or_a_function(value: Any) -> None:
    assert configured(extra_vars=value).extra_vars == value


@pytest.mark.parametrize("value", ["text", 3, ["a"]])
def test_extra_vars_of_another_type_are_refused(value: Any) -> None:
    with pytest.raises(TraitError, match="extra_vars"):
        Settings().extra_vars = value


def test_a_service_is_addressed_by_ip_or_dns_only() -> None:
    assert configured(service_address="dns").service_address == "dns"
    with pytest.raises(TraitError, match="service_address"):
        Settings().service_address = "hostname"


def test_grace_is_the_templates_unless_told() -> None:
    assert Settings().delete_grace_period is None
    assert configured(delete_grace_period=5).delete_grace_period == 5


@pytest.mark.parametrize(("rules", "words"), [
    ({"image": {"pattern": "("}}, r"failure_rules: rule 'image': pattern is '\('"),
    ({"image": {"patience": 5}}, "failure_rules: rule 'image' has no key 'patience'"),
    ("none", "failure_rules"),
])  # fmt: skip
def test_bad_failure_rules_are_refused(rules: object, words: str) -> None:
    with pytest.raises(TraitError, match=words):
        configured(failure_rules=rules)


def test_failure_rules_are_kept_as_they_were_given() -> None:
    given = {"unschedulable": {"grace": 300}, "queue": None}
    assert configured(failure_rules=given).failure_rules == given


def test_the_packaged_chart_is_found_inside_or_beside_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "lightkube_template_spawner"
    package.mkdir()
    monkeypatch.setattr(module, "__file__", str(package / "hub" / "settings.py"))
    assert default_chart() == tmp_path / "charts" / "user-server"
    (package / "charts" / "user-server").mkdir(parents=True)
    assert default_chart() == package / "charts" / "user-server"


# -- what users may write -------------------------------------------------------------------------


def test_trusted_values_say_what_may_be_chosen() -> None:
    given = {"user_options.size": ["small"], ("user_options", "a.b"): (1, 2)}
    assert configured(trusted_values=given).trusted_values == {
        ("user_options", "size"): ["small"],
        ("user_options", "a.b"): [1, 2],
    }
    assert configured(trusted_values=[]).trusted_values == {}
    assert configured(tainted_values=["email", ("a.b", "c")]).tainted_values == [
        ("email",),
        ("a.b", "c"),
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"trusted_values": ["user_options.size"]},
            r'is now a dictionary.*"user_options\.size": \[',
        ),
        ({"trusted_values": {"user_options.size": "small"}}, "needs a list of what may be chosen"),
        ({"trusted_values": {"": ["small"]}}, "trusted_values: '' is not a path"),
        ({"trusted_values": {("a", 1): ["small"]}}, "is not a path"),
        ({"tainted_values": ["a..b"]}, "tainted_values: 'a..b' is not a path"),
        ({"tainted_values": [1]}, "is not a path"),
    ],
)
def test_mistakes_about_what_users_may_write(values: dict[str, Any], words: str) -> None:
    with pytest.raises(TraitError, match=words):
        configured(**values)
