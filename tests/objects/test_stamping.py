"""What every object carries once it is stamped, whatever its chart wrote."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects.identity import (
    INSTANCE,
    MANAGED_BY,
    OWNER,
    SERVERNAME,
    USERID,
    USERNAME,
    Identity,
    Policy,
)
from lightkube_template_spawner.objects.stamping import (
    GITOPS_GUARD,
    claim_templates,
    pod_templates,
    stamp,
)

KEY = "kubetemplatespawner/lifecycle"
ALICE = Identity("hub", "Alice Müller", "gpu", 7)
TEMPLATED = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"]


def thing(kind: str, api_version: str = "v1", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, **fields}


def stamped(
    manifest: dict[str, Any],
    policy: Policy = Policy.STOPPED,
    identity: Identity = ALICE,
    *,
    select_own_pods: bool = True,
    gitops_guard: bool = True,
) -> dict[str, Any]:
    stamp(
        manifest,
        identity,
        policy,
        lifecycle_key=KEY,
        select_own_pods=select_own_pods,
        gitops_guard=gitops_guard,
    )
    return manifest


# -- labels and annotations -----------------------------------------------------------------------


def test_an_object_that_goes_with_its_server_carries_all_labels() -> None:
    labels = stamped(thing("Pod"))["metadata"]["labels"]
    assert labels == {
        INSTANCE: "hub",
        USERNAME: ALICE.user_slug,
        SERVERNAME: "gpu",
        OWNER: ALICE.owner,
        MANAGED_BY: "lightkube-template-spawner",
        KEY: "server-stopped",
    }


def test_the_default_servers_object_has_an_empty_servername() -> None:
    labels = stamped(thing("Pod"), identity=Identity("hub", "alice"))["metadata"]["labels"]
    assert labels[SERVERNAME] == ""


def test_an_object_kept_for_the_user_belongs_to_no_server() -> None:
    metadata = stamped(thing("PersistentVolumeClaim"), Policy.USER_DELETED)["metadata"]
    assert SERVERNAME not in metadata["labels"]
    assert SERVERNAME not in metadata["annotations"]
    assert metadata["labels"][KEY] == metadata["annotations"][KEY] == "user-deleted"


def test_an_object_kept_for_a_named_server_belongs_to_it() -> None:
    metadata = stamped(thing("PersistentVolumeClaim"), Policy.SERVER_DELETED)["metadata"]
    assert metadata["labels"][SERVERNAME] == "gpu"


def test_a_chart_may_say_that_a_kept_object_is_one_servers() -> None:
    claim = thing("PersistentVolumeClaim")
    claim["metadata"]["labels"] = {SERVERNAME: "gpu"}
    metadata = stamped(claim, Policy.USER_DELETED)["metadata"]
    assert metadata["labels"][SERVERNAME] == "gpu"
    assert metadata["annotations"][SERVERNAME] == "gpu"


def test_raw_names_and_user_id_are_annotations() -> None:
    annotations = stamped(thing("Pod"))["metadata"]["annotations"]
    assert annotations[USERNAME] == "Alice Müller"
    assert annotations[SERVERNAME] == "gpu"
    assert annotations[USERID] == "7"
    assert (
        USERID
        not in stamped(thing("Pod"), identity=Identity("hub", "a"))["metadata"]["annotations"]
    )


def test_managed_by_is_ours_whatever_the_chart_says() -> None:
    pod = thing("Pod")
    pod["metadata"]["labels"] = {MANAGED_BY: "kubetemplatespawner", "app": "x"}
    labels = stamped(pod)["metadata"]["labels"]
    assert labels[MANAGED_BY] == "lightkube-template-spawner"
    assert labels["app"] == "x"


def test_a_lifecycle_label_that_differs_from_the_annotation_is_put_right() -> None:
    pod = thing("Pod")
    pod["metadata"]["labels"] = {KEY: "user-deleted"}
    assert stamped(pod)["metadata"]["labels"][KEY] == "server-stopped"


@pytest.mark.parametrize("key", [INSTANCE, USERNAME, SERVERNAME, OWNER])
def test_a_label_that_names_somebody_else_is_refused(key: str) -> None:
    pod = thing("Pod")
    pod["metadata"]["labels"] = {key: "bob"}
    with pytest.raises(ManifestError, match=f"{key}.*bob.*not this server's"):
        stamped(pod)


def test_labels_that_agree_are_accepted() -> None:
    pod = thing("Pod")
    pod["metadata"]["labels"] = dict(ALICE.server_labels)
    assert stamped(pod)["metadata"]["labels"].items() >= ALICE.server_labels.items()


def test_gitops_annotations_are_added_unless_the_chart_has_them_or_the_trait_is_off() -> None:
    assert stamped(thing("Pod"))["metadata"]["annotations"].items() >= GITOPS_GUARD.items()
    own = thing("Pod")
    key = next(iter(GITOPS_GUARD))
    own["metadata"]["annotations"] = {key: "mine"}
    assert stamped(own)["metadata"]["annotations"][key] == "mine"
    bare = stamped(thing("Pod"), gitops_guard=False)["metadata"]["annotations"]
    assert not GITOPS_GUARD.keys() & bare.keys()


# -- pod templates and claim templates ------------------------------------------------------------


@pytest.mark.parametrize("kind", TEMPLATED)
def test_pod_templates_carry_the_owner_but_nothing_a_stop_deletes_by(kind: str) -> None:
    spec = {"template": {"metadata": {"labels": {"app": "x"}}, "spec": {}}}
    template = stamped(thing(kind, "apps/v1", spec=spec))["spec"]["template"]
    assert template["metadata"]["labels"] == {"app": "x", **ALICE.server_labels}


def test_a_cron_jobs_pod_template_is_stamped_too() -> None:
    spec: dict[str, Any] = {"jobTemplate": {"spec": {"template": {"spec": {}}}}}
    job = stamped(thing("CronJob", "batch/v1", spec=spec))["spec"]["jobTemplate"]
    assert job["spec"]["template"]["metadata"]["labels"] == dict(ALICE.server_labels)


def test_a_pod_template_object_is_stamped_too() -> None:
    template = thing("PodTemplate")
    template["template"] = {"spec": {"containers": [{"name": "one"}]}}
    labels = stamped(template)["template"]["metadata"]["labels"]
    assert labels == dict(ALICE.server_labels)


def test_a_custom_kind_of_a_built_in_name_is_looked_through() -> None:
    labels: dict[str, str] = {}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "one"}]}}
    spec = {"template": {"pods": [template]}}
    stamped(thing("Deployment", "example.org/v1", spec=spec))
    assert labels == dict(ALICE.server_labels)


def test_a_pod_template_that_names_somebody_else_is_refused() -> None:
    spec = {"template": {"metadata": {"labels": {USERNAME: "bob"}}}}
    with pytest.raises(ManifestError, match="bob"):
        stamped(thing("Deployment", "apps/v1", spec=spec))


@pytest.mark.parametrize("template", [{}, {"metadata": None}, {"metadata": {"labels": None}}])
def test_what_a_chart_leaves_empty_in_a_pod_template_is_filled(template: dict[str, Any]) -> None:
    spec = stamped(thing("Deployment", "apps/v1", spec={"template": template}))["spec"]
    assert spec["template"]["metadata"]["labels"] == dict(ALICE.server_labels)


@pytest.mark.parametrize(
    "spec",
    [None, "text", [], {}, {"template": None}, {"template": "x"}, {"jobTemplate": "x"},
     {"jobTemplate": {"spec": 3}}, {"volumeClaimTemplates": "x"}, {"volumeClaimTemplates": ["x"]}],
)  # fmt: skip
@pytest.mark.parametrize("kind", [*TEMPLATED, "CronJob"])
def test_a_controller_of_an_odd_shape_has_no_templates(kind: str, spec: Any) -> None:
    assert pod_templates(thing(kind, spec=spec)) == []
    assert claim_templates(thing(kind, spec=spec)) == []
    stamped(thing(kind, spec=spec))


@pytest.mark.parametrize(
    "template", [{"metadata": "x"}, {"metadata": {"labels": "x"}}, {"metadata": {"labels": ["x"]}}]
)
def test_labels_that_are_no_mapping_are_refused(template: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="is not a mapping"):
        stamped(thing("Deployment", "apps/v1", spec={"template": template}))


POD_SPEC = {"containers": [{"name": "c"}]}


@given(steps=st.lists(st.sampled_from(["spec", "template", "worker", 0]), max_size=8))
def test_a_custom_resources_pod_template_is_stamped_like_a_built_in_one(
    steps: list[str | int],
) -> None:
    template: dict[str, Any] = {"metadata": {"labels": {"app": "x"}}, "spec": POD_SPEC}
    inner: Any = template
    for step in steps:
        inner = [inner] if step == 0 else {step: inner}
    stamped(thing("Notebook", "kubeflow.org/v1", spec={"inner": inner}))
    assert template["metadata"]["labels"] == {"app": "x", **ALICE.server_labels}


def test_a_kept_custom_resources_pod_template_belongs_to_no_server() -> None:
    template: dict[str, Any] = {"metadata": {}, "spec": POD_SPEC}
    stamped(thing("Notebook", "kubeflow.org/v1", spec=template), Policy.USER_DELETED)
    assert template["metadata"]["labels"] == ALICE.user_labels


@pytest.mark.parametrize(
    "template",
    [
        {"spec": POD_SPEC},  # its schema may declare no metadata
        {"metadata": None, "spec": POD_SPEC},
        {"metadata": {"name": "x"}, "spec": {"replicas": 1}},
        {"metadata": {"name": "x"}, "spec": {"containers": {"min": 1}}},
        {"metadata": {"name": "x"}},
    ],
)
def test_what_may_take_no_labels_is_left_as_it_is(template: dict[str, Any]) -> None:
    before = copy.deepcopy(template)
    stamped(thing("Notebook", "kubeflow.org/v1", spec={"template": template}))
    assert template == before


def test_a_custom_resource_with_containers_of_its_own_is_stamped_once() -> None:
    labels = stamped(thing("Agent", "example.com/v1", spec=dict(POD_SPEC)))["metadata"]["labels"]
    assert labels[MANAGED_BY] == "lightkube-template-spawner"


def test_a_custom_resources_pod_template_that_names_somebody_else_is_refused() -> None:
    template = {"metadata": {"labels": {USERNAME: "bob"}}, "spec": POD_SPEC}
    with pytest.raises(ManifestError, match="bob"):
        stamped(thing("Notebook", "kubeflow.org/v1", spec={"template": template}))


def claim(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "data", **metadata}, "spec": {}}


def stamped_claim(template: dict[str, Any]) -> dict[str, Any]:
    spec = {"volumeClaimTemplates": [template]}
    manifest = stamped(thing("StatefulSet", "apps/v1", spec=spec))
    metadata: dict[str, Any] = manifest["spec"]["volumeClaimTemplates"][0]["metadata"]
    return metadata


@pytest.mark.parametrize("template", [claim(), {}, {"metadata": None}, claim(labels=None)])
def test_a_claim_template_is_kept_for_the_user(template: dict[str, Any]) -> None:
    metadata = stamped_claim(template)
    assert metadata["labels"] == {
        **ALICE.user_labels,
        MANAGED_BY: "lightkube-template-spawner",
        KEY: "user-deleted",
    }
    assert metadata["annotations"] == {KEY: "user-deleted"}


@pytest.mark.parametrize("policy", [Policy.STOPPED, Policy.SERVER_DELETED])
def test_a_claim_template_with_a_shorter_life_is_found_by_its_servers_selector(
    policy: Policy,
) -> None:
    labels = stamped_claim(claim(annotations={KEY: policy.value}))["labels"]
    assert labels[KEY] == policy
    assert labels[SERVERNAME] == "gpu"


def test_a_claim_templates_unknown_lifecycle_is_refused() -> None:
    with pytest.raises(ManifestError, match="claim template is 'never', not one of server-stopped"):
        stamped_claim(claim(annotations={KEY: "never"}))


def test_a_claim_template_that_names_somebody_else_is_refused() -> None:
    with pytest.raises(ManifestError, match="bob"):
        stamped_claim(claim(labels={USERNAME: "bob"}))


# -- secrets --------------------------------------------------------------------------------------


def test_string_data_becomes_data_and_wins_as_on_the_server() -> None:
    secret = thing("Secret", stringData={"a": "ü", "b": "2"}, data={"a": "b2xk", "c": "Yw=="})
    stamped(secret)
    assert "stringData" not in secret
    assert {k: base64.b64decode(v).decode() for k, v in secret["data"].items()} == {
        "a": "ü",
        "b": "2",
        "c": "c",
    }


@pytest.mark.parametrize("plain", [None, {}])
def test_empty_string_data_is_dropped(plain: object) -> None:
    assert "stringData" not in stamped(thing("Secret", stringData=plain))


def test_string_data_beside_empty_data() -> None:
    assert stamped(thing("Secret", stringData={"a": "1"}, data=None))["data"] == {"a": "MQ=="}


def test_string_data_that_reads_as_a_number_is_refused_without_its_value() -> None:
    with pytest.raises(ManifestError, match=r"stringData\.pin is not a string: quote it") as caught:
        stamped(thing("Secret", stringData={"pin": 123456}))
    assert "123456" not in str(caught.value)


def test_string_data_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ManifestError, match="stringData is not a mapping"):
        stamped(thing("Secret", stringData=["a"]))


def test_string_data_of_other_kinds_is_theirs() -> None:
    custom = stamped(thing("Secret", "example.com/v1", stringData={"a": 1}))
    assert custom["stringData"] == {"a": 1}


# -- selectors ------------------------------------------------------------------------------------


def test_a_service_chooses_this_users_pods_only() -> None:
    service = stamped(thing("Service", spec={"selector": {"app": "x"}}))
    assert service["spec"]["selector"] == {"app": "x", OWNER: ALICE.owner}


@pytest.mark.parametrize("spec", [None, {}, {"selector": None}, {"selector": {}}])
def test_a_service_without_selector_stays_without(spec: Any) -> None:
    service = stamped(thing("Service", spec=spec))
    assert not (service["spec"] or {}).get("selector")


@pytest.mark.parametrize(
    "spec",
    [None, {}, {"podSelector": None}, {"podSelector": {}}, {"podSelector": {"matchLabels": None}}],
)
def test_a_network_policy_for_all_pods_becomes_one_for_this_users(spec: Any) -> None:
    policy = stamped(thing("NetworkPolicy", "networking.k8s.io/v1", spec=spec))
    assert policy["spec"]["podSelector"] == {"matchLabels": {OWNER: ALICE.owner}}


def test_a_network_policys_own_terms_stay() -> None:
    selector = {"matchLabels": {"app": "x"}, "matchExpressions": []}
    policy = stamped(thing("NetworkPolicy", "networking.k8s.io/v1", spec={"podSelector": selector}))
    assert policy["spec"]["podSelector"] == {
        "matchLabels": {"app": "x", OWNER: ALICE.owner},
        "matchExpressions": [],
    }


def test_a_disruption_budget_covers_this_users_pods_only() -> None:
    budget = stamped(thing("PodDisruptionBudget", "policy/v1", spec={"selector": {}}))
    assert budget["spec"]["selector"] == {"matchLabels": {OWNER: ALICE.owner}}
    nothing = stamped(thing("PodDisruptionBudget", "policy/v1", spec={"maxUnavailable": 1}))
    assert "selector" not in nothing["spec"]


@pytest.mark.parametrize(
    ("kind", "api_version", "spec"),
    [
        ("NetworkPolicy", "projectcalico.org/v3", {"selector": "app == 'x'"}),
        ("Service", "serving.knative.dev/v1", {"selector": {"a": "b"}}),
        ("PodDisruptionBudget", "example.com/v1", {"selector": {}}),
    ],
)
def test_other_apis_kinds_of_the_same_name_are_left_alone(
    kind: str, api_version: str, spec: dict[str, Any]
) -> None:
    assert stamped(thing(kind, api_version, spec=dict(spec)))["spec"] == spec


@pytest.mark.parametrize(
    ("kind", "api_version", "spec"),
    [
        ("Service", "v1", {"selector": "app=x"}),
        ("NetworkPolicy", "networking.k8s.io/v1", {"podSelector": "x"}),
        ("PodDisruptionBudget", "policy/v1", {"selector": ["x"]}),
        ("NetworkPolicy", "networking.k8s.io/v1", "x"),
    ],
)
def test_a_selector_that_is_no_mapping_is_refused(kind: str, api_version: str, spec: Any) -> None:
    with pytest.raises(ManifestError, match="is not a mapping"):
        stamped(thing(kind, api_version, spec=spec))


def test_selectors_stay_as_they_are_when_the_trait_is_off() -> None:
    service = stamped(thing("Service", spec={"selector": {"app": "x"}}), select_own_pods=False)
    assert service["spec"]["selector"] == {"app": "x"}
