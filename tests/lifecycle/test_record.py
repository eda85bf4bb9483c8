"""What the hub's database remembers, and what it makes of other spawners' memories."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.objects.connection import Address
from lightkube_template_spawner.objects.identity import Identity
from lightkube_template_spawner.objects.ref import SERVICE, KindRef, ObjectRef

ALICE = Identity("hub", "alice", "gpu", 7)
FULL = Record(
    ALICE,
    "ns",
    cluster="main",
    kinds={"v1/Pod": ("ns",), "v1/Secret": ("b", "ns")},
    retained={"v1/PersistentVolumeClaim": ("ns",), "v1/Namespace": ("",)},
    connection=ObjectRef(SERVICE, "ns", "x", "uid"),
    address=Address("{.status.ip}", "web", "https", "nb.example.com"),
    pod="p",
    pvc="c",
    url="http://10.0.0.1:8888",
    live=True,
    ready=True,
)
TEXT = st.text(max_size=8)
PLACES = st.dictionaries(TEXT, st.lists(TEXT, max_size=2).map(tuple), max_size=3)
RECORDS = st.builds(
    Record,
    st.builds(Identity, TEXT, TEXT, TEXT, st.none() | st.integers()),
    TEXT,
    cluster=TEXT,
    kinds=PLACES,
    retained=PLACES,
    connection=st.none() | st.builds(ObjectRef, st.builds(KindRef, TEXT, TEXT), TEXT, TEXT, TEXT),
    address=st.none() | st.builds(Address, TEXT, TEXT, TEXT, TEXT),
    pod=TEXT,
    pvc=TEXT,
    url=TEXT,
    live=st.booleans(),
    ready=st.booleans(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([f.name for f in fields(Record)]), inner, max_size=4)
    ),
    max_leaves=8,
)
PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)


@PROPERTY
@given(RECORDS)
def test_a_record_survives_the_database(record: Record) -> None:
    assert Record.from_state(json.loads(json.dumps(record.to_state()))) == record


def test_a_record_holds_nothing_but_these() -> None:
    assert FULL.to_state().keys() == {
        "identity", "namespace", "cluster", "kinds", "retained", "connection", "address", "pod",
        "pvc", "url", "live", "ready", "note",
    }  # fmt: skip


@pytest.mark.parametrize(
    "state",
    [None, {}, [], "text", {"pod_name": "jupyter-alice", "namespace": "ns"},
     {"identity": {"instance": "hub"}, "namespace": "ns"}, {"identity": ALICE.to_state()},
     {"identity": ALICE.to_state(), "namespace": None}],
)  # fmt: skip
def test_another_spawners_state_is_no_record(state: object) -> None:
    assert Record.from_state(state) is None


@PROPERTY
@given(
    st.fixed_dictionaries({"identity": st.just(ALICE.to_state()), "namespace": st.just("ns")}), JSON
)
def test_a_spoilt_state_is_read_as_far_as_it_goes(known: dict[str, Any], spoilt: Any) -> None:
    state = {**spoilt, **known} if isinstance(spoilt, dict) else {**known, "kinds": spoilt}
    record = Record.from_state(state)
    assert record is not None
    assert record.identity == ALICE
    assert Record.from_state(json.loads(json.dumps(record.to_state()))) == record


def test_only_true_is_live() -> None:
    state = {**FULL.to_state(), "live": "yes", "ready": 1}
    record = Record.from_state(state)
    assert record is not None
    assert not record.live
    assert not record.ready


def test_a_stopped_server_keeps_its_identity_and_what_it_retains() -> None:
    assert FULL.stopped() == Record(ALICE, "ns", cluster="main", retained=FULL.retained, pvc="c")
    assert FULL.stopped().stopped() == FULL.stopped()


def test_namespaces_are_all_that_hold_objects_and_the_servers_own() -> None:
    assert FULL.namespaces == ("b", "ns")
    assert Record(ALICE, "own").namespaces == ("own",)
    assert FULL.stopped().namespaces == ("ns",)


def test_a_connection_is_saved_field_by_field() -> None:
    assert FULL.to_state()["connection"] == {
        "api_version": "v1", "kind": "Service", "namespace": "ns", "name": "x", "uid": "uid",
    }  # fmt: skip
