"""Orphans: what nobody owns is found, and nothing else ever is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import HubError, RemovalIncomplete
from lightkube_template_spawner.lifecycle.orphans import KnownServer, Roster
from lightkube_template_spawner.lifecycle.record import STATE, Record
from lightkube_template_spawner.lifecycle.sweep import Survey, Sweep
from lightkube_template_spawner.objects.identity import OWNER, Identity, Policy
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer, Fault, Refusal
from tests.support.objects import LIFECYCLE, ME, YOU, manifest
from tests.support.timing import QUICK

log = logging.getLogger("test")
NAMES = st.one_of(st.text("ab-./@A", min_size=1, max_size=5), st.text(min_size=1, max_size=70))
SERVER_NAMES = st.one_of(st.just(""), NAMES)
POLICIES = st.sampled_from(Policy)


def state_of(identity: Identity) -> dict[str, Any]:
    """As the hub's database keeps it, beside what others put there."""
    return {"pid": 7, STATE: Record(identity, "hub", live=True).to_state()}


def labels_of(identity: Identity, policy: Policy) -> dict[str, str]:
    ours = identity.user_labels if policy is Policy.USER_DELETED else identity.server_labels
    return {**ours, LIFECYCLE: policy.value}


# What the hub knows


@st.composite
def people(draw: st.DrawFn) -> list[tuple[str, list[tuple[str, Identity]]]]:
    """Users of a hub, each with servers and the identities that their objects carry.

    Some were renamed since their first start, as were some of their servers.
    """
    items = []
    for user in draw(st.lists(NAMES, unique=True, min_size=1, max_size=4)):
        pinned = draw(st.one_of(st.just(user), NAMES))
        servers = draw(st.lists(SERVER_NAMES, unique=True, max_size=3))
        items.append(
            (user, [(name, Identity("i", pinned, draw(st.just(name) | SERVER_NAMES)))
                    for name in servers])
        )  # fmt: skip
    return items


@settings(deadline=None, max_examples=100)
@given(people(), st.data())
def test_nothing_of_a_known_running_server_is_ever_an_orphan(
    known_people: list[tuple[str, list[tuple[str, Identity]]]], data: st.DataObject
) -> None:
    roster = Roster("i", LIFECYCLE)
    for user, servers in known_people:
        # A server that was never renamed may still be without a record.
        states = [
            None
            if (identity.username, identity.servername) == (user, name) and data.draw(st.booleans())
            else state_of(identity)
            for name, identity in servers
        ]
        roster.add(
            user, [KnownServer(n, True, s) for (n, _), s in zip(servers, states, strict=True)]
        )
    for _, servers in known_people:
        for _, identity in servers:
            for policy in Policy:
                assert roster.why_orphan(labels_of(identity, policy)) == ""


@settings(deadline=None, max_examples=50)
@given(st.lists(NAMES, unique=True, min_size=2, max_size=4), SERVER_NAMES, POLICIES)
def test_everything_of_a_user_who_is_gone_is_an_orphan(
    names: list[str], server: str, policy: Policy
) -> None:
    gone, *there = names
    roster = Roster("i", LIFECYCLE)
    for name in there:
        roster.add(name, [KnownServer(server, True)])
    assert "no such user" in roster.why_orphan(labels_of(Identity("i", gone, server), policy))


@pytest.mark.parametrize(("server", "policy", "active", "why"), [
    ("", Policy.STOPPED, True, ""),
    ("", Policy.STOPPED, False, "neither runs nor starts"),
    ("", Policy.SERVER_DELETED, False, ""),
    ("", Policy.USER_DELETED, False, ""),
    ("gone", Policy.STOPPED, True, "no such server"),
    ("gone", Policy.SERVER_DELETED, True, "no such server"),
    ("gone", Policy.USER_DELETED, True, ""),
])  # fmt: skip
def test_why_an_object_of_a_known_user_is_an_orphan(
    server: str, policy: Policy, active: bool, why: str
) -> None:
    roster = Roster("i", LIFECYCLE)
    roster.add(ME.username, [KnownServer("", active)])
    labels = {**replace(ME, servername=server).server_labels, LIFECYCLE: policy.value}
    reason = roster.why_orphan(labels)
    assert reason == why if not why else why in reason


def test_a_record_of_another_instance_makes_nobody_known() -> None:
    roster = Roster("i", LIFECYCLE)
    roster.add("renamed", [KnownServer("", True, state_of(replace(ME, instance="other")))])
    assert roster.records == 0
    assert roster.why_orphan(labels_of(ME, Policy.USER_DELETED))


def test_an_object_without_a_policy_is_left_to_its_user() -> None:
    roster = Roster("i", LIFECYCLE)
    roster.add(ME.username, [])
    assert roster.why_orphan(ME.server_labels) == ""


# A look at a cluster


class HubOfTwo:
    """Knows ``ME`` with a running server until told otherwise."""

    def __init__(self) -> None:
        self.users: dict[str, list[KnownServer]] = {
            ME.username: [KnownServer("", True, state_of(ME))]
        }
        self.asked = 0
        self.hooks: dict[int, Any] = {}  # what happens right before the nth question

    async def __call__(self) -> Roster:
        self.asked += 1
        self.hooks.get(self.asked, lambda: None)()
        roster = Roster("i", LIFECYCLE)
        for name, servers in self.users.items():
            roster.add(name, servers)
        return roster


@pytest.fixture
async def cluster(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(connect(tmp_path, transport=fake), "i", log, QUICK)
    await asyncio.sleep(0)
    yield made
    await made.aclose()


@pytest.fixture
def hub() -> HubOfTwo:
    return HubOfTwo()


@pytest.fixture
def sweep(cluster: Cluster, hub: HubOfTwo) -> Sweep:
    return Sweep(cluster, hub, log)


def server(fake: FakeApiServer, identity: Identity, name: str, **metadata: Any) -> None:
    for kind, policy in (
        ("Pod", Policy.STOPPED),
        ("Secret", Policy.STOPPED),
        ("PersistentVolumeClaim", Policy.USER_DELETED),
    ):
        item = manifest(kind, name, identity, policy)
        item["metadata"].update(metadata)
        fake.put(item)
        fake.put(item)  # the API server itself says when it was created; this says otherwise


def orphans(survey: Survey) -> set[str]:
    return {f"{o.kind.kind}/{o.meta.namespace}/{o.meta.name}" for o in survey.orphans}


THREE = {"Pod", "Secret", "PersistentVolumeClaim"}


async def test_objects_of_an_unknown_user_are_found_and_only_those(
    fake: FakeApiServer, sweep: Sweep
) -> None:
    server(fake, ME, "mine")
    server(fake, YOU, "yours")
    server(fake, replace(YOU, instance="j"), "foreign")
    kubespawners = manifest("Pod", "kubespawner", YOU)
    del kubespawners["metadata"]["labels"][OWNER]
    fake.put(kubespawners)
    controlled = manifest("Pod", "made", YOU)
    controlled["metadata"]["ownerReferences"] = [{"controller": True, "uid": "u"}]
    fake.put(controlled)
    fake.put(manifest("EndpointSlice", "s", YOU, api_version="discovery.k8s.io/v1"))
    survey = await sweep.find(["hub"])
    assert orphans(survey) == {f"{kind}/hub/yours" for kind in THREE}
    assert "made for user" in str(survey.orphans[0])
    assert not survey.failures


async def test_namespaces_on_record_are_looked_at_and_all_if_wanted(
    fake: FakeApiServer, sweep: Sweep, hub: HubOfTwo
) -> None:
    server(fake, YOU, "yours", namespace="other")
    assert orphans(await sweep.find(["hub"])) == set()
    assert orphans(await sweep.find([""])) == {f"{kind}/other/yours" for kind in THREE}
    elsewhere = Record(ME, "other").to_state()
    hub.users[ME.username] = [KnownServer("", True, {STATE: elsewhere})]
    assert orphans(await sweep.find(["hub"])) == {f"{kind}/other/yours" for kind in THREE}


async def test_kinds_without_a_namespace_are_looked_at_only_if_named(
    fake: FakeApiServer, sweep: Sweep
) -> None:
    labels = {**YOU.user_labels, LIFECYCLE: Policy.USER_DELETED.value}
    metadata = {"name": "user-yours", "labels": labels}
    fake.put({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    assert orphans(await sweep.find([""])) == set()
    survey = await sweep.find(["hub"], cluster_kinds=["v1/Namespace"])
    assert orphans(survey) == {"Namespace//user-yours"}


async def test_what_ends_or_starts_meanwhile_is_no_orphan(
    fake: FakeApiServer, sweep: Sweep, hub: HubOfTwo
) -> None:
    server(fake, ME, "mine")

    def stop() -> None:
        hub.users[ME.username] = [KnownServer("", False, state_of(ME))]

    def gone() -> None:
        fake.remove("Pod", "hub", "mine")
        fake.remove("Secret", "hub", "mine")

    hub.hooks = {1: stop, 2: gone}  # listed while they were on their way out
    assert orphans(await sweep.find(["hub"])) == set()
    assert hub.asked == 3

    def start() -> None:
        hub.users[YOU.username] = [KnownServer("", True)]

    hub.asked = 0
    server(fake, YOU, "yours")
    hub.hooks = {2: start}  # listed before the user is known
    assert orphans(await sweep.find(["hub"])) == set()


async def test_young_objects_are_left_out(fake: FakeApiServer, sweep: Sweep) -> None:
    for name, age in ("old", timedelta(hours=1)), ("young", timedelta(0)):
        created = f"{datetime.now(UTC) - age:%Y-%m-%dT%H:%M:%SZ}"
        server(fake, YOU, name, creationTimestamp=created)
    assert orphans(await sweep.find(["hub"], min_age=600)) == {f"{kind}/hub/old" for kind in THREE}


async def test_a_kind_that_cannot_be_listed_is_named_and_keeps_no_other(
    fake: FakeApiServer, sweep: Sweep
) -> None:
    server(fake, YOU, "yours")
    fake.forbidden.add(("list", "secrets"))
    fake.incomplete = True  # only the list itself tells
    survey = await sweep.find(["hub"])
    assert orphans(survey) == {"Pod/hub/yours", "PersistentVolumeClaim/hub/yours"}
    assert [str(kind) for kind, _ in survey.refusals] == ["v1/Secret"]
    assert "v1/Secret" not in {str(kind) for kind, _ in survey.places}


async def test_kinds_that_the_account_may_not_list_are_not_asked_for(
    fake: FakeApiServer, sweep: Sweep
) -> None:
    server(fake, YOU, "yours")
    fake.rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    survey = await sweep.find(["hub"])
    assert orphans(survey) == {"Pod/hub/yours"}
    assert "v1/Secret" in {str(kind) for kind, _ in survey.refusals}
    assert not fake.count("GET .*/secrets")
    fake.incomplete = True
    assert orphans(await sweep.find(["hub"])) == {"Pod/hub/yours"}


# Removal


async def test_only_what_was_found_goes_and_pods_first(fake: FakeApiServer, sweep: Sweep) -> None:
    server(fake, ME, "mine")
    server(fake, YOU, "yours")
    survey = await sweep.find(["hub"])
    server(fake, YOU, "later")
    await sweep.delete([o for o in survey.orphans if not o.retained], timeout=5)
    kept = {f"{kind}/{name}" for kind in THREE for name in ("mine", "later")}
    assert fake.left() == kept | {"PersistentVolumeClaim/yours"}
    deleted = [
        str(seen).rpartition("/hub/")[2] for seen in fake.requests if seen.method == "DELETE"
    ]
    assert deleted == ["pods/yours", "secrets/yours"]
    await sweep.delete(survey.orphans, timeout=5)
    assert fake.left() == kept


async def test_a_replaced_object_and_one_whose_user_came_back_are_left_alone(
    fake: FakeApiServer, sweep: Sweep, hub: HubOfTwo
) -> None:
    server(fake, YOU, "yours")
    survey = await sweep.find(["hub"])
    fake.remove("Secret", "hub", "yours")
    fake.put(manifest("Secret", "yours", YOU))
    hub.users[YOU.username] = [KnownServer("", True)]
    await sweep.delete(survey.orphans, timeout=5)
    assert fake.left() == {f"{kind}/yours" for kind in THREE}
    del hub.users[YOU.username]
    await sweep.delete(survey.orphans, timeout=5)
    assert fake.left() == {"Secret/yours"}


async def test_one_that_does_not_go_keeps_no_other_owner(fake: FakeApiServer, sweep: Sweep) -> None:
    server(fake, YOU, "held", finalizers=["example.org/hold"])
    server(fake, replace(YOU, username="zoe"), "free")
    fake.protected["free"] = Refusal(422, "Invalid", "not this one")
    survey = await sweep.find(["hub"])
    with pytest.raises(RemovalIncomplete, match="Pod/hub/held") as failed:
        await sweep.delete(survey.orphans, timeout=0.2)
    assert "Pod/hub/free: not this one" in str(failed.value)


async def test_a_hub_without_any_record_of_the_instance_gets_nothing_deleted(
    fake: FakeApiServer, sweep: Sweep, hub: HubOfTwo
) -> None:
    server(fake, YOU, "yours")
    hub.users = {"zoe": [KnownServer("", False)]}
    survey = await sweep.find(["hub"])
    assert survey.orphans
    with pytest.raises(HubError, match="no server of instance 'i' on record"):
        await sweep.delete(survey.orphans, timeout=5)
    assert len(fake.left()) == 3


async def test_a_hub_that_cannot_be_asked_ends_it(fake: FakeApiServer, cluster: Cluster) -> None:
    async def ask() -> Roster:
        raise HubError("no answer")

    with pytest.raises(HubError):
        await Sweep(cluster, ask, log).find(["hub"])
    assert not fake.requests


async def test_a_broken_api_is_named(fake: FakeApiServer, sweep: Sweep) -> None:
    server(fake, YOU, "yours")
    fake.faults.append(
        Fault(answer=lambda: Refusal(400, "BadRequest", "broken").answer, path="widgets")
    )
    survey = await sweep.find(["hub"])
    assert [text.partition(":")[0] for text in survey.failures] == ["example.org/v1/Widget in hub"]
    assert len(survey.orphans) == 3
