"""What a template's output must be, and what becomes of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import kubeyaml, parsing, stamping
from lightkube_template_spawner.objects import plan as manifests
from lightkube_template_spawner.objects.identity import (
    DIGEST,
    KINDS,
    OWNER,
    SERVERNAME,
    USERNAME,
    Identity,
    Policy,
)
from lightkube_template_spawner.objects.plan import LAST, Contract, Plan

ALICE = Identity("hub", "alice", "gpu", 7)
RULES = Contract(namespace="ns")
CONNECTION, LIFECYCLE = RULES.connection_key, RULES.lifecycle_key
CLUSTER_SCOPED = {"Namespace", "PersistentVolume", "ClusterRole", "StorageClass"}
PROPERTY = settings(deadline=None, max_examples=40, derandomize=True)


def thing(
    kind: str,
    name: str = "x",
    api_version: str = "v1",
    *,
    at: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, **(at or {})},
        **more,
    }


def server(**more: Any) -> dict[str, Any]:
    return thing("Pod", "server", at={"annotations": {CONNECTION: "true"}}, **more)


def parse(*objects: object) -> list[parsing.Document]:
    return parsing.parse({"a.yaml": copy.deepcopy([*objects])})


def plan(
    *objects: object, rules: Contract = RULES, nonce: str = "n", identity: Identity = ALICE
) -> Plan:
    return manifests.prepare(
        parse(*objects),
        identity,
        rules,
        namespaced=lambda kind: kind[1] not in CLUSTER_SCOPED,
        nonce=nonce,
    )


def refused(*objects: object, rules: Contract = RULES) -> str:
    with pytest.raises(ManifestError) as caught:
        plan(*objects, rules=rules)
    return str(caught.value)


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["List", "PodList", "ConfigMapList"])
def test_lists_are_opened(kind: str) -> None:
    items = [thing("Pod", "a"), thing("Pod", "b")]
    found = parse({"apiVersion": "v1", "kind": kind, "items": items}, thing("Pod", "c"))
    assert [d.manifest["metadata"]["name"] for d in found] == ["a", "b", "c"]


@pytest.mark.parametrize("items", [[], None])
def test_an_empty_list_is_no_object(items: object) -> None:
    assert len(parse({"apiVersion": "v1", "kind": "List", "items": items}, thing("Pod"))) == 1


def test_a_kind_that_merely_ends_in_list_is_an_object() -> None:
    assert parse(thing("AllowList", api_version="example.com/v1"))[0].kind == (
        "example.com/v1",
        "AllowList",
    )


@pytest.mark.parametrize("hook", ["test", "test-success", "test-failure"])
def test_helms_test_hooks_are_left_out(hook: str) -> None:
    helper = thing("Pod", "check", at={"annotations": {"helm.sh/hook": hook}})
    other = thing("Job", at={"annotations": {"helm.sh/hook": "pre-install"}})
    assert [d.manifest["kind"] for d in parse(helper, other)] == ["Job"]


def test_each_object_knows_its_file() -> None:
    found = parsing.parse({"a.yaml": [thing("Pod")], "b.yaml": []})
    assert found[0].where == "Pod/x (a.yaml)"


@pytest.mark.parametrize("files", [{}, {"a.yaml": []}])
def test_no_object_at_all_is_refused(files: dict[str, list[Any]]) -> None:
    with pytest.raises(ManifestError, match="rendered no object at all"):
        parsing.parse(files)


def test_too_many_objects_are_refused() -> None:
    assert "101 objects, more than 100" in refused(*(thing("Pod", f"p{n}") for n in range(101)))


@pytest.mark.parametrize(("document", "word"), [("text", "str"), (3, "int"), ([1], "list")])
def test_a_document_that_is_no_mapping_is_refused(document: object, word: str) -> None:
    assert refused(document) == f"a.yaml: a document is a {word}, not an object"


@pytest.mark.parametrize("key", ["apiVersion", "kind"])
@pytest.mark.parametrize("value", [None, "", 1, []])
def test_an_object_without_type_is_refused(key: str, value: object) -> None:
    assert refused({**thing("Pod"), key: value}) == f"a.yaml: an object has no {key}"


@pytest.mark.parametrize("metadata", [None, "x", []])
def test_an_object_without_metadata_is_refused(metadata: object) -> None:
    broken = {**thing("Pod"), "metadata": metadata}
    assert refused(broken) == "a.yaml: a Pod has no metadata"


@pytest.mark.parametrize("metadata", [{}, {"name": ""}])
def test_an_object_without_name_is_refused(metadata: dict[str, Any]) -> None:
    assert refused({**thing("Pod"), "metadata": metadata}) == "a.yaml: a Pod has no name"


def test_a_generated_name_is_refused() -> None:
    assert "generateName" in refused(thing("Pod", at={"generateName": "x-"}))


@pytest.mark.parametrize("key", ["name", "namespace"])
@pytest.mark.parametrize(("text", "value"), [("n", False), ("0123", 83), ("1e3", 1000)])
def test_a_name_that_yaml_reads_otherwise_is_refused_with_quote(
    key: str, text: str, value: object
) -> None:
    lines = {"name": "x", key: text}
    text = "\n".join(f"  {name}: {value}" for name, value in lines.items())
    with pytest.raises(ManifestError, match=f"the {key} of a Pod reads as {value}.*`quote`"):
        parsing.parse(
            {"a.yaml": kubeyaml.load_all(f"apiVersion: v1\nkind: Pod\nmetadata:\n{text}")}
        )


@pytest.mark.parametrize("what", ["labels", "annotations"])
@pytest.mark.parametrize("value", [1, True, None, {"a": "b"}])
def test_labels_and_annotations_that_are_not_text_are_refused(what: str, value: object) -> None:
    message = refused(thing("Pod", at={what: {"team": value}}))
    assert message.startswith(f"a.yaml: Pod 'x': metadata.{what}.team reads as {value!r}")
    assert "`quote`" in message


@pytest.mark.parametrize("what", ["labels", "annotations"])
def test_labels_and_annotations_that_are_no_mapping_are_refused(what: str) -> None:
    assert refused(thing("Pod", at={what: ["a"]})).endswith(f"metadata.{what} is not a mapping")


@pytest.mark.parametrize("value", ["a@b.example", "x" * 64, "-a", "a\n", "a b", "ü"])
def test_a_label_value_that_kubernetes_refuses_is_refused_here(value: str) -> None:
    assert "is no label value" in refused(thing("Pod", at={"labels": {"user": value}}))


@pytest.mark.parametrize("value", ["", "a", "A.b_c-d", "x" * 63])
def test_a_label_value_that_kubernetes_accepts_is_accepted(value: str) -> None:
    assert parse(thing("Pod", at={"labels": {"user": value}}))


@pytest.mark.parametrize("path", [("template",), ("jobTemplate", "spec", "template")])
def test_labels_of_pod_templates_are_checked_too(path: tuple[str, ...]) -> None:
    inner: dict[str, Any] = {"metadata": {"labels": {"year": 2026}}}
    for key in reversed(path):
        inner = {key: inner}
    kind = "CronJob" if len(path) > 1 else "Deployment"
    assert "metadata.labels.year reads as 2026" in refused(thing(kind, spec=inner))


def test_empty_labels_and_annotations_are_none() -> None:
    (document,) = parse(thing("Pod", at={"labels": None, "annotations": None}))
    assert document.manifest["metadata"] == {"name": "x"}


# -- containers -----------------------------------------------------------------------------------


def with_containers(kind: str, containers: Any, group: str = "containers") -> dict[str, Any]:
    spec = {group: containers}
    return thing(kind, spec=spec if kind == "Pod" else {"template": {"spec": spec}})


@pytest.mark.parametrize("kind", ["Pod", "Deployment"])
@pytest.mark.parametrize("group", ["containers", "initContainers"])
@pytest.mark.parametrize(("key", "value"), [("name", False), ("name", 5), ("image", 1.5)])
def test_a_container_named_n_is_refused_before_the_server_does(
    kind: str, group: str, key: str, value: object
) -> None:
    message = refused(with_containers(kind, [{key: value}], group))
    assert f"a container's {key} reads as {value!r}, not as text" in message
    assert "`quote`" in message


def test_a_container_that_is_no_mapping_is_refused() -> None:
    assert "a container is not a mapping" in refused(with_containers("Pod", ["sh"]))


@pytest.mark.parametrize("value", [False, True, 0, 8888, 0.0, 1.5, {}, [], ["a"]])
def test_a_variable_whose_value_is_not_text_is_refused(value: object) -> None:
    env = [{"name": "PORT", "value": value}]
    message = refused(with_containers("Pod", [{"name": "c", "env": env}]))
    assert "the environment variable 'PORT' of container 'c' is not text" in message


@pytest.mark.parametrize("variable", [{"name": False}, {"value": "x"}, "A=1", None])
def test_a_variable_without_a_name_is_refused(variable: object) -> None:
    assert "`quote`" in refused(with_containers("Pod", [{"name": "c", "env": [variable]}]))


@pytest.mark.parametrize(
    "variable", [{"name": "A", "value": ""}, {"name": "A", "value": None}, {"name": "A"}]
)
def test_a_variable_without_value_is_accepted(variable: dict[str, Any]) -> None:
    assert parse(with_containers("Pod", [{"name": "c", "env": [variable]}]))


def test_a_variable_set_twice_is_refused() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "2"}]
    assert "container 'c' sets A twice" in refused(
        with_containers("Pod", [{"name": "c", "env": env}])
    )


def test_two_containers_may_set_the_same_variable() -> None:
    env = [{"name": "A", "value": "1"}]
    assert parse(with_containers("Pod", [{"name": "c", "env": env}, {"name": "d", "env": env}]))


# -- names and places -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("Service", 63), ("Namespace", 63), ("StatefulSet", 52), ("CronJob", 52), ("Job", 63),
     ("Pod", 253), ("ConfigMap", 253)],
)  # fmt: skip
def test_a_name_over_its_kinds_limit_is_refused(kind: str, limit: int) -> None:
    rules = Contract(namespace="ns", cluster_kinds=("v1/Namespace",))
    assert len(plan(thing(kind, "a" * limit), server(), rules=rules).objects) == 2
    message = refused(thing(kind, "a" * (limit + 1)), server(), rules=rules)
    assert f"its name has {limit + 1} characters, more than {limit}" in message


@pytest.mark.parametrize("name", ["Alice", "a_b", "a@b", "-a", "a-", "a..b", "a\n", "ü"])
def test_a_name_that_kubernetes_refuses_is_refused_here(name: str) -> None:
    assert "escaped_*" in refused(thing("ConfigMap", name), server())


def test_roles_may_be_named_more_freely() -> None:
    role = thing("Role", "a:B", "rbac.authorization.k8s.io/v1")
    assert plan(role, server()).objects[0].name == "a:B"


@pytest.mark.parametrize("namespace", [None, "", "ns"])
def test_an_object_without_namespace_gets_ours(namespace: str | None) -> None:
    made = plan(server(), thing("Secret", at={"namespace": namespace}))
    assert {item.namespace for item in made.objects} == {"ns"}
    assert made.connection.reference == "Pod/ns/server"


def test_a_namespace_that_is_not_allowed_is_refused() -> None:
    message = refused(server(), thing("Secret", at={"namespace": "kube-system"}))
    assert "Secret/kube-system/x (a.yaml)" in message
    assert "`extra_namespaces`" in message


@pytest.mark.parametrize("pattern", ["team", "t*", "*"])
def test_an_allowed_namespace_is_accepted(pattern: str) -> None:
    rules = Contract(namespace="ns", namespaces=(pattern,))
    made = plan(server(), thing("Secret", at={"namespace": "team"}), rules=rules)
    assert made.objects[0].reference == "Secret/team/x"


def test_a_namespace_that_the_template_makes_is_accepted() -> None:
    rules = Contract(namespace="ns", cluster_kinds=("v1/Namespace",))
    own = thing("Namespace", "own", at={"annotations": {LIFECYCLE: "user-deleted"}})
    made = plan(server(), own, thing("Secret", at={"namespace": "own"}), rules=rules)
    assert [item.reference for item in made.objects] == [
        "Namespace/own",
        "Secret/own/x",
        "Pod/ns/server",
    ]


def test_a_cluster_scoped_kind_is_refused_unless_listed() -> None:
    role = thing("ClusterRole", "r", "rbac.authorization.k8s.io/v1")
    name = "rbac.authorization.k8s.io/v1/ClusterRole"
    assert f"`cluster_kinds`: ['{name}']" in refused(server(), role)
    made = plan(server(), role, rules=Contract(namespace="ns", cluster_kinds=(name,)))
    assert made.objects[0].namespace == ""


def test_a_cluster_scoped_object_loses_a_namespace_that_it_cannot_have() -> None:
    rules = Contract(namespace="ns", cluster_kinds=("v1/PersistentVolume",))
    made = plan(server(), thing("PersistentVolume", at={"namespace": "kube-system"}), rules=rules)
    assert "namespace" not in made.objects[0].manifest["metadata"]


def test_an_object_rendered_twice_is_refused() -> None:
    twice = parsing.parse({"a.yaml": [server()], "b.yaml": [thing("Pod", "server")]})
    with pytest.raises(ManifestError, match=r"\(b\.yaml\) is rendered twice, also in a\.yaml"):
        manifests.prepare(twice, ALICE, RULES, namespaced=lambda _: True, nonce="n")


def test_the_same_name_in_another_namespace_kind_or_group_is_another_object() -> None:
    rules = Contract(namespace="ns", namespaces=("b",))
    others = [
        thing("Pod", "server", at={"namespace": "b"}),
        thing("Secret", "server"),
        thing("Pod", "server", "example.com/v1"),
    ]
    assert len(plan(server(), *others, rules=rules).objects) == 4


def test_an_object_in_two_versions_of_its_group_is_one_object() -> None:
    old, new = thing("Job", api_version="batch/v1beta1"), thing("Job", api_version="batch/v1")
    assert "rendered twice" in refused(server(), old, new)


def test_a_reference_out_of_the_set_is_refused_unless_shared() -> None:
    spec = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "home-bob"}}]}
    assert "`shared_objects`" in refused(server(spec=spec))
    shared = Contract(namespace="ns", shared_objects=("PersistentVolumeClaim/home-*",))
    assert plan(server(spec=spec), rules=shared).connection.name == "server"


# -- the connection object ------------------------------------------------------------------------


def test_no_connection_object_is_refused() -> None:
    assert f'no object has the annotation {CONNECTION}: "true"' in refused(thing("Pod"))


@pytest.mark.parametrize("value", ["True", "yes", "false", ""])
def test_another_value_does_not_mark_a_connection(value: str) -> None:
    assert "no object has" in refused(thing("Pod", at={"annotations": {CONNECTION: value}}))


def test_two_connection_objects_are_refused_and_named() -> None:
    message = refused(server(), thing("Service", at={"annotations": {CONNECTION: "true"}}))
    assert "2 objects" in message
    assert "Pod/ns/server (a.yaml), Service/ns/x (a.yaml)" in message


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("address", "status.url", "not a path"), ("address", "{}", "not a path"),
     ("scheme", "ftp", "http or https")],
)  # fmt: skip
def test_connection_annotations_that_never_work_are_refused_before_anything_is_written(
    key: str, value: str, word: str
) -> None:
    pod = server()
    pod["metadata"]["annotations"][f"{CONNECTION}-{key}"] = value
    message = refused(pod)
    assert message.startswith("Pod/ns/server (a.yaml): ")
    assert word in message


def test_the_connection_object_lists_the_kinds_that_a_stop_removes() -> None:
    kept = thing("PersistentVolumeClaim", at={"annotations": {LIFECYCLE: "user-deleted"}})
    made = plan(server(), thing("Deployment", api_version="apps/v1"), thing("Secret"), kept)
    assert made.connection.manifest["metadata"]["annotations"][KINDS] == (
        "apps/v1/Deployment,v1/Pod,v1/Secret"
    )


# -- lifecycles -----------------------------------------------------------------------------------


def policies(*objects: object, rules: Contract = RULES) -> dict[str, Policy]:
    return {item.manifest["kind"]: item.policy for item in plan(*objects, rules=rules).objects}


def test_without_annotation_data_is_kept_with_a_warning_and_the_rest_goes() -> None:
    made = plan(server(), thing("PersistentVolumeClaim", "home"), thing("Secret"))
    assert {item.manifest["kind"]: item.policy for item in made.objects} == {
        "Pod": Policy.STOPPED,
        "Secret": Policy.STOPPED,
        "PersistentVolumeClaim": Policy.USER_DELETED,
    }
    (warning,) = made.warnings
    assert "PersistentVolumeClaim/ns/home (a.yaml)" in warning
    assert "kept until the user is deleted" in warning


def test_listed_kinds_are_kept_too() -> None:
    rules = Contract(namespace="ns", retained_kinds=("example.com/v1/Database",))
    database = thing("Database", api_version="example.com/v1")
    assert policies(server(), database, rules=rules)["Database"] is Policy.USER_DELETED
    claim = thing("PersistentVolumeClaim")
    assert policies(server(), claim, rules=rules)["PersistentVolumeClaim"] is Policy.STOPPED


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Secret"])
def test_a_written_lifecycle_counts_without_warning(kind: str, policy: Policy) -> None:
    made = plan(server(), thing(kind, at={"annotations": {LIFECYCLE: policy.value}}))
    assert made.objects[0].policy is policy
    assert made.warnings == ()


def test_an_unknown_lifecycle_is_refused() -> None:
    message = refused(server(), thing("Secret", at={"annotations": {LIFECYCLE: "forever"}}))
    assert message == (
        f"Secret/ns/x (a.yaml): {LIFECYCLE} is 'forever', not one of "
        "server-stopped, server-deleted, user-deleted"
    )


def test_a_connection_object_that_outlives_its_server_is_told() -> None:
    pod = server()
    pod["metadata"]["annotations"][LIFECYCLE] = "user-deleted"
    assert "it stays when the server stops" in plan(pod).warnings[0]


def test_other_annotation_keys_can_be_configured() -> None:
    rules = Contract(namespace="ns", connection_key="my/connection", lifecycle_key="my/lifecycle")
    pod = thing("Pod", at={"annotations": {"my/connection": "true"}})
    made = plan(pod, rules=rules)
    assert made.connection.manifest["metadata"]["labels"]["my/lifecycle"] == "server-stopped"


def test_a_contradicting_label_is_refused_with_the_objects_name() -> None:
    message = refused(server(), thing("Secret", at={"labels": {USERNAME: "bob"}}))
    assert message.startswith("Secret/ns/x (a.yaml): its label")


def test_places_name_kinds_and_namespaces_of_a_lifecycle() -> None:
    rules = Contract(namespace="ns", namespaces=("b",))
    keep = {"annotations": {LIFECYCLE: "server-deleted"}}
    made = plan(
        server(),
        thing("Secret"),
        thing("Secret", at={"namespace": "b"}),
        thing("ConfigMap", at=keep),
        rules=rules,
    )
    assert made.places({Policy.STOPPED}) == {"v1/Pod": ("ns",), "v1/Secret": ("b", "ns")}
    assert made.places({Policy.SERVER_DELETED}) == {"v1/ConfigMap": ("ns",)}
    assert set(made.places()) == {"v1/ConfigMap", "v1/Pod", "v1/Secret"}


@pytest.mark.parametrize("policy", list(Policy))
def test_places_name_the_volumes_of_claim_templates(policy: Policy) -> None:
    claim = {"metadata": {"name": "d", "annotations": {LIFECYCLE: policy.value}}}
    spec = {"volumeClaimTemplates": [claim]}
    made = plan(server(), thing("StatefulSet", api_version="apps/v1", spec=spec))
    for other in Policy:
        assert ("v1/PersistentVolumeClaim" in made.places({other})) == (other is policy)


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("when", ["Delete", "Retain"])
def test_a_set_that_deletes_volumes_that_are_to_outlive_it_is_told(
    policy: Policy, when: str
) -> None:
    claim = {"metadata": {"name": "d", "annotations": {LIFECYCLE: policy.value}}}
    spec = {
        "volumeClaimTemplates": [claim],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when},
    }
    made = plan(server(), thing("StatefulSet", api_version="apps/v1", spec=spec))
    told = [one for one in made.warnings if "persistentVolumeClaimRetentionPolicy" in one]
    assert len(told) == (when == "Delete" and policy is not Policy.STOPPED)
    assert all("StatefulSet" in one and "write Retain" in one for one in told)


# -- order ----------------------------------------------------------------------------------------


def test_objects_come_in_the_order_in_which_they_need_each_other() -> None:
    rules = Contract(namespace="ns", cluster_kinds=("v1/Namespace",), retained_kinds=())
    kinds = ["Deployment", "NetworkPolicy", "Secret", "Service", "ServiceAccount", "Namespace"]
    made = plan(server(), *(thing(kind) for kind in kinds), rules=rules)
    assert [item.manifest["kind"] for item in made.objects] == [
        "Namespace", "ServiceAccount", "Secret", "NetworkPolicy", "Service", "Deployment", "Pod",
    ]  # fmt: skip


def test_the_connection_object_is_last_and_alone_in_its_rank() -> None:
    service = thing("Service", "s", at={"annotations": {CONNECTION: "true"}})
    made = plan(service, thing("Pod", "p"), thing("Deployment", api_version="apps/v1"))
    assert made.connection.reference == "Service/ns/s"
    assert [item.rank for item in made.objects].count(LAST) == 1


# -- digest ---------------------------------------------------------------------------------------


def digests(*objects: dict[str, Any], nonce: str) -> dict[str, str]:
    made = plan(*(copy.deepcopy(item) for item in objects), nonce=nonce)
    return {item.manifest["kind"]: item.digest for item in made.objects}


def test_a_kept_objects_digest_is_the_same_at_each_start_and_a_new_ones_is_not() -> None:
    kept = thing("PersistentVolumeClaim", spec={"size": 1})
    first, second = digests(server(), kept, nonce="1"), digests(server(), kept, nonce="2")
    assert first["PersistentVolumeClaim"] == second["PersistentVolumeClaim"]
    assert first["Pod"] != second["Pod"]
    assert digests(server(), kept, nonce="1") == first


def test_a_kept_connection_objects_digest_is_the_same_at_each_start() -> None:
    pod = server()
    pod["metadata"]["annotations"][LIFECYCLE] = "user-deleted"
    assert digests(pod, nonce="1") == digests(pod, nonce="2")


def test_a_changed_intent_has_another_digest() -> None:
    old = thing("PersistentVolumeClaim", spec={"size": 1})
    new = thing("PersistentVolumeClaim", spec={"size": 2})
    key = "PersistentVolumeClaim"
    assert digests(server(), old, nonce="1")[key] != digests(server(), new, nonce="1")[key]


def test_a_digest_in_the_chart_does_not_stay() -> None:
    secret = thing("Secret", at={"annotations": {DIGEST: "forged"}})
    made = plan(server(), secret)
    assert re.fullmatch(r"[0-9a-f]{32}", made.objects[0].digest)


# -- properties -----------------------------------------------------------------------------------

KINDS_SEEN = [
    ("v1", "Secret"), ("v1", "PersistentVolumeClaim"), ("v1", "Service"), ("v1", "ServiceAccount"),
    ("v1", "Namespace"), ("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"),
    ("batch/v1", "CronJob"), ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"), ("example.com/v1", "Anything"),
]  # fmt: skip


@st.composite
def sets_of_objects(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), max_size=6, unique=True))
    objects = [server()]
    for name in names:
        api_version, kind = draw(st.sampled_from(KINDS_SEEN))
        annotations = draw(
            st.none()
            | st.fixed_dictionaries({}, optional={LIFECYCLE: st.sampled_from(list(Policy))})
        )
        objects.append(thing(kind, name, api_version, at={"annotations": annotations}))
    return draw(st.permutations(objects))


ALL_ALLOWED = Contract(namespace="ns", cluster_kinds=("v1/Namespace",))


@PROPERTY
@given(sets_of_objects())
def test_order_is_a_permutation_by_rank_that_keeps_the_templates_order(
    objects: list[dict[str, Any]],
) -> None:
    made = plan(*objects, rules=ALL_ALLOWED)
    before = [item["metadata"]["name"] for item in objects]
    after = [item.name for item in made.objects]
    assert sorted(after) == sorted(before)
    places = [(item.rank, before.index(item.name)) for item in made.objects]
    assert places == sorted(places)
    assert after[-1] == "server"


@PROPERTY
@given(sets_of_objects())
def test_everything_in_a_plan_is_the_users(objects: list[dict[str, Any]]) -> None:
    for item in plan(*objects, rules=ALL_ALLOWED).objects:
        labels = item.manifest["metadata"]["labels"]
        assert ALICE.owns(labels)
        assert labels[LIFECYCLE] == item.policy
        assert (labels.get(SERVERNAME) == "gpu") == (item.policy is not Policy.USER_DELETED)


POD_SPEC = {
    "serviceAccountName": "a",
    "imagePullSecrets": [{"name": "s"}],
    "containers": [
        {
            "name": "c",
            "image": "i",
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            "envFrom": [{"configMapRef": {"name": "c"}}],
        }
    ],
    "volumes": [
        {"name": "v", "persistentVolumeClaim": {"claimName": "p"}},
        {"name": "w", "projected": {"sources": [{"secret": {"name": "s"}}]}},
        {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"dataSource": {}}}}},
    ],
}
TEMPLATE = {"metadata": {"labels": {"app": "x"}, "annotations": {"a": "b"}}, "spec": POD_SPEC}
CLAIM = {
    "metadata": {"name": "d", "labels": {"a": "b"}, "annotations": {LIFECYCLE: "user-deleted"}},
    "spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "p"}},
}
WHOLE: list[dict[str, Any]] = [
    thing("Pod", "x", at={"namespace": "ns", "labels": {"a": "b"}}, spec=POD_SPEC),
    thing(
        "StatefulSet", "x", "apps/v1", spec={"template": TEMPLATE, "volumeClaimTemplates": [CLAIM]}
    ),
    thing("CronJob", "x", "batch/v1", spec={"jobTemplate": {"spec": {"template": TEMPLATE}}}),
    thing(
        "Service", at={"annotations": {LIFECYCLE: "server-stopped"}}, spec={"selector": {"a": "b"}}
    ),
    thing("NetworkPolicy", "x", "networking.k8s.io/v1", spec={"podSelector": {"matchLabels": {}}}),
    thing("PodDisruptionBudget", "x", "policy/v1", spec={"selector": {"matchLabels": {"a": "b"}}}),
    thing("Secret", data={"a": "Yg=="}, stringData={"a": "b"}),
    {"apiVersion": "v1", "kind": "List", "items": [thing("Secret")]},
]


def ways(value: Any) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside ``value``."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (key,)
        if isinstance(inner, dict | list):
            yield from ((key, *rest) for rest in ways(inner))


SPOILT = [(item, way) for item in WHOLE for way in ways(item)]


@pytest.mark.parametrize("value", [None, "x", 3, False, [], {}, ["x"], {"x": 1}], ids=repr)
def test_whatever_a_template_renders_is_planned_as_the_users_or_refused(value: object) -> None:
    """Each part of a whole object in turn is something else: never a TypeError during a start."""
    rules = Contract(namespace="ns", cluster_kinds=("*",), shared_objects=("*",))
    planned = 0
    for item, way in SPOILT:
        spoilt = copy.deepcopy(item)
        holder: Any = spoilt
        for key in way[:-1]:
            holder = holder[key]
        holder[way[-1]] = copy.deepcopy(value)
        try:
            made = plan(spoilt, server(), rules=rules)
        except ManifestError as error:
            assert "a.yaml" in str(error), way  # noqa: PT017 - either way is right
            continue
        planned += 1
        for result in made.objects:
            assert result.manifest["metadata"]["labels"][OWNER] == ALICE.owner, way
            for template in stamping.pod_templates(result.manifest):
                assert template["metadata"]["labels"][OWNER] == ALICE.owner, way
    assert planned > len(SPOILT) // 10
