"""Whose a live object is."""

from __future__ import annotations

from typing import Any

import pytest

from lightkube_template_spawner.objects.identity import (
    DIGEST,
    INSTANCE,
    OWNER,
    SERVERNAME,
    USERNAME,
    Identity,
    slugs,
)
from lightkube_template_spawner.objects.ownership import Relation, describe, relation, same_start

ALICE = Identity("hub", "alice")
VICTIM = Identity("hub", "firstname.lastname@university.example")
ATTACKER = Identity("hub", "firstname.lastname.unyon2jgca@evil.example")


def former(user: str, **annotations: str) -> dict[str, Any]:
    return {"labels": {INSTANCE: "hub", USERNAME: user}, "annotations": annotations}


def test_ours_are_objects_with_our_labels_of_any_server() -> None:
    assert relation({"labels": dict(ALICE.user_labels)}, ALICE) is Relation.OURS
    assert relation({"labels": {**ALICE.server_labels, "a": "b"}}, ALICE) is Relation.OURS
    named = Identity("hub", "alice", "gpu")
    assert relation({"labels": dict(named.server_labels)}, ALICE) is Relation.OURS


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"labels": None},
        {"labels": {USERNAME: "alice"}},
        {"labels": {INSTANCE: "hub"}},
        {"labels": {INSTANCE: "other", USERNAME: "alice"}},
        {"labels": {INSTANCE: "hub", USERNAME: "bob"}},
        {"labels": {INSTANCE: "hub", USERNAME: "alice", OWNER: ""}},
        {"labels": {INSTANCE: "hub", USERNAME: "alice", OWNER: VICTIM.owner}},
        {"labels": {OWNER: ALICE.owner}},
    ],
)
def test_anything_less_is_foreign(metadata: dict[str, Any]) -> None:
    assert relation(metadata, ALICE) is Relation.FOREIGN


def test_an_object_without_owner_label_is_a_former_spawners() -> None:
    assert relation(former("alice"), ALICE) is Relation.FORMER
    assert relation({"labels": former("alice")["labels"]}, ALICE) is Relation.FORMER


def test_what_the_hub_remembers_needs_no_instance_label() -> None:
    for instance in ({}, {INSTANCE: "the-release"}):
        theirs = former("alice")
        theirs["labels"] = {USERNAME: "alice", **instance}
        assert relation(theirs, ALICE) is Relation.FOREIGN
        assert relation(theirs, ALICE, remembered=True) is Relation.FORMER
        bobs = {**theirs, "annotations": {USERNAME: "bob"}}
        assert relation(bobs, ALICE, remembered=True) is Relation.FOREIGN
        owned = {**theirs, "labels": {**theirs["labels"], OWNER: VICTIM.owner}}
        assert relation(owned, ALICE, remembered=True) is Relation.FOREIGN


def test_kubespawners_label_for_a_name_that_is_no_object_name_is_known() -> None:
    dotted = Identity("hub", "Alice.B")
    assert dotted.user_slug != "Alice.B"
    assert relation(former("Alice.B"), dotted) is Relation.FORMER
    assert relation(former(dotted.user_slug), dotted) is Relation.FORMER
    long = Identity("hub", "a@" + "b" * 80)
    label = slugs().safe_slug(long.username, is_valid=slugs().is_valid_label)
    assert relation(former(label), long) is Relation.FORMER


def test_a_colliding_name_owns_nothing_of_the_victims() -> None:
    slug = slugs().safe_slug(VICTIM.username)
    assert slug == slugs().safe_slug(ATTACKER.username)
    assert relation({"labels": dict(VICTIM.server_labels)}, ATTACKER) is Relation.FOREIGN
    theirs = former(slug, **{USERNAME: VICTIM.username})
    assert relation(theirs, VICTIM) is Relation.FORMER
    assert relation(theirs, ATTACKER) is Relation.FOREIGN


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"labels": dict(ALICE.user_labels)}, "it belongs to user 'alice' of hub instance 'hub'"),
        (
            {"labels": dict(VICTIM.server_labels), "annotations": {USERNAME: VICTIM.username}},
            f"it belongs to user '{VICTIM.username}' of hub instance 'hub'",
        ),
        (
            {"labels": {**ALICE.user_labels, SERVERNAME: "gpu"}},
            "it belongs to user 'alice' of hub instance 'hub', server 'gpu'",
        ),
        ({"labels": {OWNER: "x"}}, "it belongs to user 'unknown' of hub instance None"),
        (
            {"managedFields": [{"manager": "kubectl"}, {"manager": "helm"}, {"manager": "helm"}]},
            "it was made by helm, kubectl and carries no owner label",
        ),
        ({"labels": None}, "it was made by somebody else and carries no owner label"),
    ],
)
def test_the_owner_is_described(metadata: dict[str, Any], sentence: str) -> None:
    assert describe(metadata) == sentence


def test_the_same_start_is_known_by_manager_and_digest() -> None:
    live = {
        "metadata": {
            "annotations": {DIGEST: "d"},
            "managedFields": [{"manager": "kubelet"}, {"manager": ALICE.manager}],
        }
    }
    assert same_start(live, ALICE.manager, "d", DIGEST)
    assert not same_start(live, ALICE.manager, "e", DIGEST)
    assert not same_start(live, VICTIM.manager, "d", DIGEST)
    assert not same_start({"metadata": {}}, ALICE.manager, "d", DIGEST)
