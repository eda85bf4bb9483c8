"""Who a server is in Kubernetes: names as KubeSpawner's, ownership stronger than names."""

from __future__ import annotations

import itertools
import json
import random
import re
import string
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.objects.identity import (
    INSTANCE,
    OWNER,
    SERVERNAME,
    USERNAME,
    Identity,
    Policy,
    Selection,
    hub_selector,
    slugs,
)

KEY = "kubetemplatespawner/lifecycle"
VICTIM = "firstname.lastname@university.example"
ATTACKER = "firstname.lastname.unyon2jgca@evil.example"

INSTANCES = st.from_regex(r"[a-z]([-a-z0-9_.]{0,61}[a-z0-9])?", fullmatch=True)
# Short names over few characters, so that joins and escapes have a chance to coincide.
NAMES = st.one_of(st.text("ab-.@A", min_size=1, max_size=6), st.text(min_size=1, max_size=80))
IDENTITIES = st.builds(
    Identity, st.sampled_from(["hub", "hub-b"]), NAMES, st.one_of(st.just(""), NAMES)
)
PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    """Judge as the API server does: a term with a value needs the label to be there."""
    terms = re.findall(r"([^,=() ]+)(?: in \(([^)]*)\)|=([^,]*))?(?:,|$)", selector)
    assert terms, f"an empty selector chooses everything: {selector!r}"
    for key, group, value in terms:
        if key not in labels:
            return False
        if f"{key} in (" in selector:
            if labels[key] not in group.split(","):
                return False
        elif f"{key}=" in selector and labels[key] != value:
            return False
    return True


def labels_of(identity: Identity, policy: Policy = Policy.STOPPED) -> dict[str, str]:
    return {**identity.server_labels, KEY: policy.value}


def test_the_matcher_of_these_tests_knows_the_three_kinds_of_terms() -> None:
    assert matches("a=1,b in (x,y),c=,d", {"a": "1", "b": "y", "c": "", "d": "any"})
    assert not matches("a=1", {"a": "2"})
    assert not matches("b in (x,y)", {"b": "z"})
    assert not matches("c=", {})
    assert not matches("c=", {"c": "x"})
    assert not matches("d", {})


# -- slugs ----------------------------------------------------------------------------------------


def ten_thousand_names() -> list[str]:
    chance = random.Random(2026)
    letters = string.ascii_letters + string.digits + "-._@ +/\\é漢😀\n"
    simple = string.ascii_lowercase + string.digits + "-"
    names = ["", "-", "--", "a--b", "x" * 48, "x" * 49, "x" * 63, "x" * 64, "0", "A", VICTIM]
    while len(names) < 10_000:
        alphabet = chance.choice((letters, simple))
        names.append("".join(chance.choices(alphabet, k=chance.randint(1, 70))))
    return names


def test_the_slug_module_loaded_alone_equals_a_plain_import_on_10000_names() -> None:
    names = ten_thousand_names()
    script = (
        "import json, sys\n"
        "from kubespawner.slugs import safe_slug, multi_slug, is_valid_label\n"
        "names = json.load(sys.stdin)\n"
        "pairs = zip(names, names[1:])\n"
        "json.dump([[safe_slug(n, max_length=48) for n in names],\n"
        "           [safe_slug(n, is_valid=is_valid_label) for n in names],\n"
        "           [multi_slug(list(p), max_length=48) for p in pairs]], sys.stdout)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
    )
    alone = slugs()
    assert json.loads(run.stdout) == [
        [alone.safe_slug(name, max_length=48) for name in names],
        [alone.safe_slug(name, is_valid=alone.is_valid_label) for name in names],
        [alone.multi_slug(list(pair), max_length=48) for pair in itertools.pairwise(names)],
    ]


def test_a_plain_name_is_kept_and_another_one_gets_a_hash() -> None:
    assert Identity("hub", "alice").user_slug == "alice"
    assert Identity("hub", "alice").server_slug == ""
    assert Identity("hub", VICTIM).user_slug == "firstname-lastname-university-example---362aa909"
    assert Identity("hub", "alice", "My Server").server_slug == "my-server---c2d9a82f"


def test_user_server_of_the_default_server_is_the_user() -> None:
    assert Identity("hub", "alice").user_server_slug == "alice"


def test_user_server_of_a_named_server_joins_both() -> None:
    assert Identity("hub", "alice", "gpu").user_server_slug == "alice--gpu"


@pytest.mark.parametrize(
    ("user", "server"),
    [("a" * 30, "b" * 30), ("a" * 47, ""), ("a" * 44, "bcd"), ("ü" + "a" * 50, "ü")],
)
def test_user_server_that_would_be_too_long_has_one_hash_over_both(user: str, server: str) -> None:
    slug = Identity("hub", user, server).user_server_slug
    assert slug == slugs().multi_slug([user, server], max_length=48)
    assert len(slug) <= 48


def test_user_server_of_exactly_48_characters_is_still_joined() -> None:
    assert Identity("hub", "a" * 43, "bcd").user_server_slug == "a" * 43 + "--bcd"
    assert Identity("hub", "a" * 46).user_server_slug == "a" * 46


@PROPERTY
@given(IDENTITIES)
def test_every_slug_is_a_label_value_and_an_object_name(identity: Identity) -> None:
    for slug in (identity.user_slug, identity.server_slug, identity.user_server_slug):
        assert len(slug) <= 48
        assert slug == "" or re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", slug)
    assert identity.user_slug
    assert bool(identity.server_slug) == bool(identity.servername)


# -- owner and manager ----------------------------------------------------------------------------


def test_owner_is_a_label_value_of_52_characters() -> None:
    assert re.fullmatch(r"[a-z2-7]{52}", Identity("hub", "alice").owner)


def test_owner_differs_by_instance_and_user_but_not_by_server_or_userid() -> None:
    owner = Identity("hub", "alice").owner
    assert Identity("hub-b", "alice").owner != owner
    assert Identity("hub", "alicf").owner != owner
    assert Identity("hub", "alice", "gpu", 7).owner == owner


def test_owner_does_not_depend_on_where_instance_ends_and_user_begins() -> None:
    assert Identity("hub", "balice").owner != Identity("hubb", "alice").owner


def test_two_users_with_one_slug_have_two_owners() -> None:
    victim, attacker = Identity("hub", VICTIM), Identity("hub", ATTACKER)
    # The collision of reference/apiserver-facts.md row 2, at KubeSpawner's default length...
    assert slugs().safe_slug(VICTIM) == slugs().safe_slug(ATTACKER)
    # ...and what does not differ in 32 bits does not at any length.
    assert victim.user_slug[-8:] == attacker.user_slug[-8:]
    assert victim.owner != attacker.owner
    assert victim.manager != attacker.manager
    assert not victim.owns(attacker.user_labels)
    assert not matches(victim.user_selector(), labels_of(attacker))
    assert not matches(victim.selector(KEY, Policy), labels_of(attacker))


@PROPERTY
@given(INSTANCES, NAMES)
def test_manager_fits_the_apis_128_bytes_for_any_names(instance: str, name: str) -> None:
    identity = Identity(instance, name)
    assert len(identity.manager.encode()) <= 128
    assert identity.manager.startswith("lts:")
    assert identity.manager.endswith(identity.owner[:16])


def test_manager_is_one_a_user() -> None:
    assert Identity("hub", "alice").manager == Identity("hub", "alice", "gpu", 3).manager
    assert Identity("hub", "alice").manager != Identity("hub", "bob").manager


# -- labels and selectors -------------------------------------------------------------------------


def test_the_default_servers_selector_ends_in_an_empty_servername() -> None:
    selector = Identity("hub", "alice").selector(KEY, [Policy.STOPPED])
    assert selector.endswith(f",{SERVERNAME}=")
    assert f"{KEY} in (server-stopped)" in selector


def test_a_named_servers_selector_ends_in_its_slug() -> None:
    assert Identity("hub", "alice", "gpu").selector(KEY, Policy).endswith(f",{SERVERNAME}=gpu")


def test_every_selector_names_the_owner() -> None:
    identity = Identity("hub", "alice")
    assert f"{OWNER}={identity.owner}" in identity.user_selector().split(",")
    assert f"{OWNER}={identity.owner}" in identity.selector(KEY, Policy).split(",")
    assert hub_selector("hub") == f"{INSTANCE}=hub,{OWNER}"


def test_the_default_servers_selector_leaves_shared_objects_alone() -> None:
    identity = Identity("hub", "alice")
    shared = {**identity.user_labels, KEY: Policy.STOPPED.value}
    assert not matches(identity.selector(KEY, Policy), shared)
    assert matches(identity.user_selector(), shared)


def test_a_selector_leaves_other_lifecycles_alone() -> None:
    identity = Identity("hub", "alice")
    stop = identity.selector(KEY, [Policy.STOPPED])
    assert matches(stop, labels_of(identity))
    assert not matches(stop, labels_of(identity, Policy.SERVER_DELETED))
    removal = identity.selector(KEY, [Policy.SERVER_DELETED, Policy.STOPPED])
    assert matches(removal, labels_of(identity, Policy.SERVER_DELETED))
    assert not matches(removal, labels_of(identity, Policy.USER_DELETED))


@PROPERTY
@given(IDENTITIES, IDENTITIES)
def test_no_selector_of_one_server_matches_another_servers_labels(a: Identity, b: Identity) -> None:
    assert matches(a.selector(KEY, Policy), labels_of(a))
    assume(a != b)
    assert not matches(a.selector(KEY, Policy), labels_of(b))
    assert not a.owns_as_server(labels_of(b))


@PROPERTY
@given(IDENTITIES, NAMES, st.sampled_from(Policy))
def test_the_user_selector_matches_all_of_the_users_and_nothing_else(
    identity: Identity, other: str, policy: Policy
) -> None:
    selector = identity.user_selector()
    for server in ("", "gpu", other):
        sibling = Identity(identity.instance, identity.username, server)
        assert matches(selector, labels_of(sibling, policy))
        assert identity.owns(labels_of(sibling, policy))
    assume(other != identity.username)
    stranger = Identity(identity.instance, other, identity.servername)
    assert not matches(selector, labels_of(stranger, policy))
    assert not identity.owns(labels_of(stranger, policy))


def test_owning_as_a_user_is_less_than_owning_as_a_server() -> None:
    default, named = Identity("hub", "alice"), Identity("hub", "alice", "gpu")
    assert default.owns(named.server_labels)
    assert not default.owns_as_server(named.server_labels)
    assert not default.owns_as_server(default.user_labels)
    assert default.owns_as_server({**default.server_labels, "more": "labels"})
    assert not default.owns({USERNAME: "alice", INSTANCE: "hub"})


# -- state ----------------------------------------------------------------------------------------


@PROPERTY
@given(IDENTITIES, st.integers() | st.none())
def test_state_survives_the_database(identity: Identity, userid: int | None) -> None:
    identity = replace(identity, userid=userid)
    assert Identity.from_state(json.loads(json.dumps(identity.to_state()))) == identity


@pytest.mark.parametrize(
    "state",
    [None, {}, [], "alice", 3, {"pod_name": "jupyter-alice"}, {"instance": "hub"},
     {"instance": 1, "username": "a"}, {"instance": "hub", "username": None}],
)  # fmt: skip
def test_foreign_state_gives_no_identity(state: object) -> None:
    assert Identity.from_state(state) is None


def test_state_of_wrong_types_beside_the_names_is_read_as_unknown() -> None:
    state = {"instance": "hub", "username": "alice", "servername": None, "userid": "7"}
    assert Identity.from_state(state) == Identity("hub", "alice")


# -- selections -----------------------------------------------------------------------------------


@dataclass
class Item:
    labels: Mapping[str, str]
    name: str = ""


def test_a_selection_checks_what_the_selector_says() -> None:
    server, sibling = Identity("hub", "alice"), Identity("hub", "alice", "gpu")
    stop = server.selection(KEY, [Policy.STOPPED])
    assert stop.selector == server.selector(KEY, [Policy.STOPPED])
    assert stop.matches(Item(labels_of(server)))
    assert not stop.matches(Item(labels_of(sibling)))
    removal = server.user_selection()
    assert removal.selector == server.user_selector()
    assert removal.matches(Item(labels_of(sibling)))
    assert not removal.matches(Item(labels_of(Identity("hub", "bob"))))


def test_a_selection_is_narrowed() -> None:
    server = Identity("hub", "alice")

    def is_x(item: Item) -> bool:
        return item.name == "x"

    everything: Selection[Item] = server.user_selection()
    narrow = everything.where(is_x)
    assert narrow.selector == server.user_selector()
    assert narrow.matches(Item(labels_of(server), "x"))
    assert not narrow.matches(Item(labels_of(server), "y"))
    assert not narrow.matches(Item({}, "x"))


def test_no_selection_is_of_everything() -> None:
    with pytest.raises(ValueError, match="empty selector"):
        Selection("", lambda item: True)
