"""Needed verbs against rules: what is missing, the rules to add, and when anybody is asked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightkube_template_spawner.cluster import rbac as rights
from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.cluster.discovery import Discovery, granted
from lightkube_template_spawner.cluster.rbac import FULL, LOOK, Needs, Rights
from lightkube_template_spawner.cluster.timing import Timing
from lightkube_template_spawner.errors import ClusterError, Forbidden
from lightkube_template_spawner.objects import parsing
from lightkube_template_spawner.objects import plan as manifests
from tests.support.fake_apiserver import FakeApiServer, Fault, text
from tests.support.objects import ME

log = logging.getLogger("test")

POD = Kind("", "v1", "Pod", "pods", True)
SECRET = Kind("", "v1", "Secret", "secrets", True)
SLICE = Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", True)
NAMESPACE = Kind("", "v1", "Namespace", "namespaces", False)
BINDING = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", True)
KINDS = {(k.api_version, k.kind): k for k in (POD, SECRET, SLICE, NAMESPACE, BINDING)}

verbs = st.frozensets(st.sampled_from(sorted(FULL)), min_size=1)
places = st.one_of(
    st.tuples(st.sampled_from([POD, SECRET, SLICE]), st.sampled_from(["a", "b"])),
    st.just((NAMESPACE, "")),
)


def rules_in(message: str, head: str) -> list[dict[str, Any]]:
    """The YAML below one headline of the message."""
    lines = message.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head)) + 1
    end = next((i for i in range(start, len(lines)) if lines[i][0] != "-"), len(lines))
    return list(yaml.safe_load("\n".join(lines[start:end])))


@given(st.dictionaries(places, verbs, min_size=1))
def test_the_printed_rules_give_what_is_missing_and_no_more(missing: Needs) -> None:
    message = rights.explain(missing)
    for namespace in {name for _, name in missing}:
        head = f"Add to a Role in namespace '{namespace}'" if namespace else "Add to a ClusterRole"
        rules = rules_in(message, head)
        for kind in (POD, SECRET, SLICE, NAMESPACE):
            assert granted(rules, kind) == missing.get((kind, namespace), set())


@given(st.dictionaries(places, verbs, min_size=1))
def test_every_verb_resource_and_namespace_is_in_the_first_line(missing: Needs) -> None:
    first = rights.explain(missing, "somebody").splitlines()[0]
    assert first.startswith("somebody may not ")
    for (kind, namespace), wanted in missing.items():
        (part,) = [
            part
            for part in first.removesuffix(".").split(", nor ")
            if f" {kind.plural}" in part and part.endswith(f"'{namespace}'" if namespace else "er")
        ]
        assert all(verb in part for verb in wanted)


def test_a_denial_in_words() -> None:
    missing = {(POD, "a"): frozenset({"get", "list", "watch"}), (SLICE, "a"): frozenset({"watch"})}
    assert rights.explain(missing) == (
        "the hub's account may not watch endpointslices.discovery.k8s.io in namespace 'a', nor "
        "get, list or watch pods in namespace 'a'.\n"
        "Add to a Role in namespace 'a' that is bound to this account:\n"
        "- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [watch]}\n"
        '- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}'
    )


# What a template needs


def thing(kind: Kind, name: str, namespace: str = "", **annotations: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "annotations": annotations}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def plan(*extra: dict[str, Any]) -> manifests.Plan:
    pod = thing(POD, "p", "own", **{"kubetemplatespawner/connection": "true"})
    return manifests.prepare(
        parsing.parse({"all.yaml": [pod, thing(SECRET, "s", "own"), *extra]}),
        ME,
        manifests.Contract("hub", namespaces=("own",), cluster_kinds=("v1/Namespace",)),
        namespaced=lambda key: KINDS[key].namespaced,
        nonce="",
    )


def test_rendered_kinds_need_everything_watched_ones_a_look() -> None:
    needs = rights.needed(plan(), KINDS, [(POD, "own"), (POD, "other")])
    assert needs == {(POD, "own"): FULL, (SECRET, "own"): FULL, (POD, "other"): LOOK}


def test_only_a_template_with_namespace_and_binding_may_bring_its_rights() -> None:
    namespace, binding = thing(NAMESPACE, "own"), thing(BINDING, "b", "own")
    both = plan(namespace, binding)
    assert rights.promised(both, (SECRET, "own"))
    assert not rights.promised(both, (SECRET, "hub"))
    assert not rights.promised(both, (NAMESPACE, ""))
    assert not rights.promised(both, (BINDING, "own"))  # who gives that?
    for less in (plan(), plan(namespace), plan(binding)):
        assert not rights.promised(less, (SECRET, "own"))


# Asking

NEEDS: Needs = {(POD, "hub"): FULL, (SLICE, "hub"): LOOK, (SECRET, "other"): frozenset({"get"})}


@pytest.fixture
def asked(api: Api) -> Rights:
    return Rights(api, Discovery(api, log), log)


async def test_one_review_a_namespace_however_many_start(
    fake: FakeApiServer, asked: Rights
) -> None:
    answers = await asyncio.gather(*(asked.missing(NEEDS) for _ in range(20)))
    assert answers == [{}] * 20
    assert await asked.missing(NEEDS) == {}
    assert [seen.body["spec"]["namespace"] for seen in fake.requests] == ["hub", "other"]


@pytest.mark.parametrize("incomplete", [False, True])
async def test_a_denial_is_asked_again_what_was_allowed_is_not(
    fake: FakeApiServer, asked: Rights, incomplete: bool
) -> None:
    fake.incomplete = incomplete
    fake.forbidden |= {("watch", "pods"), ("get", "secrets")}
    expected = {(POD, "hub"): frozenset({"watch"}), (SECRET, "other"): frozenset({"get"})}
    assert await asked.missing(NEEDS) == expected
    fake.forbidden.remove(("watch", "pods"))
    fake.forbidden.add(("list", "pods"))  # not asked again: it was allowed
    assert await asked.missing(NEEDS) == {(SECRET, "other"): frozenset({"get"})}
    asked.forget(["hub"])
    assert set(await asked.missing(NEEDS)) == {(POD, "hub"), (SECRET, "other")}
    fake.forbidden.clear()
    assert await asked.missing(NEEDS) == {}


async def test_webhooks_are_asked_verb_by_verb(fake: FakeApiServer, asked: Rights) -> None:
    fake.incomplete = True
    assert await asked.missing(NEEDS) == {}
    assert fake.count("selfsubjectaccessreviews") == len(FULL) + len(LOOK) + 1
    assert fake.count("selfsubjectrulesreviews") == 2


async def test_a_rule_for_one_name_does_not_count(fake: FakeApiServer, asked: Rights) -> None:
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}
    fake.rules = [{**rule, "resourceNames": ["one"]}]
    assert await asked.missing({(POD, "hub"): LOOK}) == {(POD, "hub"): LOOK}
    fake.rules = [rule]
    assert await asked.missing({(POD, "hub"): LOOK}) == {}


async def test_only_cluster_wide_rules_count_for_kinds_without_namespace(
    fake: FakeApiServer, asked: Rights
) -> None:
    rule = {"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["list", "watch"]}
    fake.rules, fake.roles = [], {"in-hub": [rule]}
    binding = thing(BINDING, "b", "hub")
    fake.put({**binding, "roleRef": {"name": "in-hub"}})
    assert await asked.missing({(POD, "hub"): LOOK}) == {}
    assert await asked.missing({(NAMESPACE, ""): LOOK}) == {(NAMESPACE, ""): LOOK}
    assert not await asked.everywhere(POD)
    fake.rules = [rule]
    assert await asked.missing({(NAMESPACE, ""): LOOK}) == {}


async def test_who_is_asked_about_everywhere_once(fake: FakeApiServer, asked: Rights) -> None:
    assert [await asked.everywhere(POD) for _ in range(3)] == [True] * 3
    assert len(fake.requests) == 1


@pytest.mark.parametrize("fault", [
    text(403, "no"), text(404, "no such kind"),
], ids=["403", "404"])  # fmt: skip
async def test_no_answer_is_no_answer(fake: FakeApiServer, asked: Rights, fault: Fault) -> None:
    fault.met, fault.times = 0, 99
    fake.faults = [fault]
    with pytest.raises(ClusterError):
        await asked.missing(NEEDS)
    assert not await asked.everywhere(POD)
    assert await asked.account() == "the hub's account"
    fake.faults.clear()
    assert await asked.missing(NEEDS) == {}
    assert await asked.everywhere(POD)
    assert await asked.account() == "the hub's account hub"


async def test_what_was_allowed_is_asked_again_after_a_while(fake: FakeApiServer, api: Api) -> None:
    rights = Rights(api, Discovery(api, log), log, Timing(rights=0.05))
    assert await rights.missing(NEEDS) == {}
    fake.forbidden.add(("create", "pods"))
    assert await rights.missing(NEEDS) == {}
    await asyncio.sleep(0.06)
    assert await rights.missing(NEEDS) == {(POD, "hub"): frozenset({"create"})}
    fake.forbidden.clear()
    fake.incomplete = True  # a request a verb: that is asked less often
    await asyncio.sleep(0.06)
    assert await rights.missing(NEEDS) == {}
    await asyncio.sleep(0.06)
    fake.forbidden.add(("create", "pods"))
    assert await rights.missing(NEEDS) == {}


async def test_what_is_asked_besides_neither_drops_nor_prolongs_what_was_allowed(
    fake: FakeApiServer, api: Api
) -> None:
    log = logging.getLogger("test")
    rights = Rights(api, Discovery(api, log), log, Timing(rights=0.3))
    assert await rights.missing({(POD, "hub"): LOOK}) == {}
    await asyncio.sleep(0.15)
    assert await rights.missing({(POD, "hub"): FULL}) == {}
    assert await rights.missing({(POD, "hub"): LOOK}) == {}
    assert len(fake.requests) == 2
    fake.forbidden.add(("list", "pods"))
    await asyncio.sleep(0.2)
    assert await rights.missing({(POD, "hub"): LOOK}) == {(POD, "hub"): frozenset({"list"})}


async def test_a_slow_review_denies_nothing(api: Api) -> None:
    """Nor does an answer that is old before the last of them has come."""
    assert await Rights(api, Discovery(api, log), log, Timing(rights=0)).missing(NEEDS) == {}


async def test_all_namespaces_are_asked_about_again(fake: FakeApiServer, asked: Rights) -> None:
    assert await asked.everywhere(POD)
    asked.deny_everywhere(POD)
    assert not await asked.everywhere(POD)
    asked.forget(["hub"])
    assert not await asked.everywhere(POD)
    asked.forget()
    assert not asked.is_settled(POD)
    assert await asked.everywhere(POD)


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        ('pods is forbidden: User "system:a:hub" cannot create resource "p" in', True),
        ('Pod/a/s (pod.yaml) refused: "s" is forbidden: User "x" cannot get resource "p"', True),
        ('forbidden: User "hub" cannot get path "/metrics"', True),
        ('pods "s" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1', False),
        ('pods "s" is forbidden: violates PodSecurity "restricted:latest": privileged', False),
        ('admission webhook "users" denied the request: User "hub" cannot have two', False),
        ("Unauthorized", False),
    ],
)  # fmt: skip
def test_whose_refusal_it_is(message: str, missing: bool) -> None:
    assert rights.is_missing_right(Forbidden(message, code=403)) is missing
