"""What the spawner relies on in an API server; the same functions run on the fake and a real one.

Each case gets an ``Api`` and a namespace of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from lightkube_template_spawner.cluster.api import METADATA, METADATA_LIST, Api, Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.discovery import Discovery
from lightkube_template_spawner.cluster.events import Event, EventFeed
from lightkube_template_spawner.cluster.live import Meta
from lightkube_template_spawner.cluster.rbac import FULL, Rights
from lightkube_template_spawner.errors import (
    AlreadyThere,
    ClusterError,
    Conflict,
    Expired,
    Invalid,
    NotFound,
    RemovalIncomplete,
)
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.objects.identity import DIGEST, Identity, Policy
from lightkube_template_spawner.objects.plan import Planned
from tests.support.objects import LIFECYCLE

Obj = dict[str, Any]
Case = Callable[[Api, str], Awaitable[None]]
CASES: list[Case] = []

CONFIG = Kind("", "v1", "ConfigMap", "configmaps", True, frozenset({"deletecollection"}))
YOUNG = Kind("contract.example.org", "v1", "Young", "youngs", namespaced=True)
POD = Kind("", "v1", "Pod", "pods", True)
SECRET = Kind("", "v1", "Secret", "secrets", True)
SERVICE = Kind("", "v1", "Service", "services", True)
EVENT = Kind("", "v1", "Event", "events", True)
HOLD = "example.org/hold"

log = logging.getLogger("contract")


def case(function: Case) -> Case:
    CASES.append(function)
    return function


def config(space: str, name: str = "c", *, data: Obj | None = None, **metadata: Any) -> Obj:
    head = {"name": name, "namespace": space, **metadata}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": data or {"k": "v"}}


async def post(api: Api, kind: Kind, manifest: Obj, manager: str = "somebody") -> Obj:
    path = kind.path(manifest["metadata"]["namespace"])
    made = await api.call("POST", path, body=manifest, params={"fieldManager": manager})
    return dict(made)


async def get(api: Api, kind: Kind, space: str, name: str) -> Obj | None:
    try:
        return dict(await api.call("GET", kind.path(space, name)))
    except NotFound:
        return None


async def gone(api: Api, kind: Kind, space: str, name: str) -> None:
    async with asyncio.timeout(15):
        while await get(api, kind, space, name) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def put(api: Api, kind: Kind, item: Obj) -> Obj:
    metadata = item["metadata"]
    path = kind.path(metadata["namespace"], metadata["name"])
    return dict(await api.call("PUT", path, body=item))


def managers(item: Obj) -> set[tuple[str, str]]:
    return {(f["manager"], f["operation"]) for f in item["metadata"]["managedFields"]}


# Server-side apply and its two preconditions


@case
async def apply_creates_and_records_its_manager(api: Api, space: str) -> None:
    made = await api.apply(CONFIG, config(space, resourceVersion="1"), manager="lts:a")
    assert made["metadata"]["uid"]
    assert made["metadata"]["resourceVersion"] != "1"
    assert managers(made) == {("lts:a", "Apply")}


@case
async def apply_as_new_refuses_what_exists(api: Api, space: str) -> None:
    """Whoever made it, and even where nothing would change."""
    for name, maker in (("posted", None), ("applied", "lts:b"), ("mine", "lts:a")):
        manifest = config(space, name)
        if maker is None:
            before = await post(api, CONFIG, manifest)
        else:
            before = await api.apply(CONFIG, manifest, manager=maker)
        manifest["metadata"]["resourceVersion"] = "1"
        manifest["metadata"]["labels"] = {"a": "b"}
        with pytest.raises(Conflict) as caught:
            await api.apply(CONFIG, manifest, manager="lts:a")
        assert (caught.value.code, caught.value.reason) == (409, "Conflict")
        assert not caught.value.causes
        assert await get(api, CONFIG, space, name) == before


@case
async def apply_as_new_races_to_one_winner(api: Api, space: str) -> None:
    async def one(number: int) -> bool:
        manifest = config(space, data={"k": str(number)}, resourceVersion="1")
        try:
            await api.apply(CONFIG, manifest, manager=f"lts:{number}")
        except Conflict:
            return False
        return True

    assert sum(await asyncio.gather(*map(one, range(8)))) == 1


@case
async def apply_as_new_onto_a_terminating_object_is_refused(api: Api, space: str) -> None:
    await post(api, CONFIG, config(space, finalizers=[HOLD]))
    await api.call("DELETE", CONFIG.path(space, "c"), body={})
    with pytest.raises(Conflict):
        await api.apply(CONFIG, config(space, resourceVersion="1"), manager="lts:a")
    live = await get(api, CONFIG, space, "c")
    assert live is not None
    assert live["metadata"]["deletionTimestamp"]
    live["metadata"]["finalizers"] = []
    await put(api, CONFIG, live)
    await gone(api, CONFIG, space, "c")


@case
async def apply_under_a_uid_updates_only_that_object(api: Api, space: str) -> None:
    made = await api.apply(CONFIG, config(space), manager="lts:a")
    uid = made["metadata"]["uid"]
    changed = await api.apply(CONFIG, config(space, data={"k": "2"}, uid=uid), manager="lts:a")
    assert (changed["data"], changed["metadata"]["uid"]) == ({"k": "2"}, uid)
    other = "00000000-0000-4000-8000-000000000000"
    with pytest.raises((Conflict, Invalid)) as caught:
        await api.apply(CONFIG, config(space, data={"k": "3"}, uid=other), manager="lts:a")
    assert caught.value.code in (409, 422)
    assert await get(api, CONFIG, space, "c") == changed
    await api.call("DELETE", CONFIG.path(space, "c"), body={})
    with pytest.raises(Conflict, match="uid mismatch"):
        await api.apply(CONFIG, config(space, uid=uid), manager="lts:a")
    assert await get(api, CONFIG, space, "c") is None


@case
async def apply_names_the_manager_it_conflicts_with(api: Api, space: str) -> None:
    before = await api.apply(CONFIG, config(space), manager="lts:other")
    for extra in ({}, {"resourceVersion": "1"}, {"uid": before["metadata"]["uid"]}):
        with pytest.raises(Conflict, match="lts:other") as caught:
            await api.apply(CONFIG, config(space, data={"k": "2"}, **extra), manager="lts:a")
        (cause,) = caught.value.causes
        assert (cause["reason"], cause["field"]) == ("FieldManagerConflict", ".data.k")
        assert "lts:other" in cause["message"]
    assert await get(api, CONFIG, space, "c") == before


@case
async def apply_without_the_fields_in_conflict_leaves_them_and_writes_the_rest(
    api: Api, space: str
) -> None:
    made = await api.apply(CONFIG, config(space, data={"k": "1", "a": "1"}), manager="lts:a")
    await api.apply(CONFIG, config(space, data={"k": "edited"}), manager="editor", force=True)
    uid = made["metadata"]["uid"]
    with pytest.raises(Conflict) as caught:
        await api.apply(CONFIG, config(space, data={"k": "2", "a": "2"}, uid=uid), manager="lts:a")
    assert [cause["field"] for cause in caught.value.causes] == [".data.k"]
    rest = await api.apply(CONFIG, config(space, data={"a": "2"}, uid=uid), manager="lts:a")
    assert rest["data"] == {"k": "edited", "a": "2"}


@case
async def apply_by_force_is_bound_to_its_uid_too(api: Api, space: str) -> None:
    before = await post(api, CONFIG, config(space, labels={"a": "theirs"}))
    wanted: Obj = {"data": {"k": "2"}, "labels": {"a": "ours"}}
    other = "00000000-0000-4000-8000-000000000000"
    with pytest.raises((Conflict, Invalid)):
        await api.apply(CONFIG, config(space, uid=other, **wanted), manager="lts:a", force=True)
    assert await get(api, CONFIG, space, "c") == before
    uid = before["metadata"]["uid"]
    after = await api.apply(CONFIG, config(space, uid=uid, **wanted), manager="lts:a", force=True)
    assert (after["data"], after["metadata"]["labels"]) == ({"k": "2"}, {"a": "ours"})
    assert after["metadata"]["uid"] == uid


@case
async def apply_shares_equal_fields_and_drops_its_own(api: Api, space: str) -> None:
    await api.apply(CONFIG, config(space, data={"k": "1", "a": "x"}), manager="lts:a")
    both = await api.apply(CONFIG, config(space, data={"k": "1"}), manager="lts:b")
    assert managers(both) == {("lts:a", "Apply"), ("lts:b", "Apply")}
    left = await api.apply(CONFIG, config(space, data={"b": "y"}), manager="lts:a")
    assert left["data"] == {"k": "1", "b": "y"}


@case
async def apply_of_the_same_intent_changes_nothing(api: Api, space: str) -> None:
    first = await api.apply(CONFIG, config(space), manager="lts:a")
    again = await api.apply(CONFIG, config(space), manager="lts:a")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


@case
async def apply_refuses_a_field_that_the_schema_lacks(api: Api, space: str) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": space},
        "spec": {"ports": [{"port": 80}], "bogus": 1},
    }
    with pytest.raises(Invalid, match=r"\.spec\.bogus: field not declared in schema") as caught:
        await api.apply(SERVICE, manifest, manager="lts:a")
    assert caught.value.code == 500
    assert await get(api, SERVICE, space, "s") is None


@case
async def apply_refuses_a_secret_that_is_not_base64(api: Api, space: str) -> None:
    head = {"name": "s", "namespace": space}
    manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": head, "data": {"a": "b"}}
    with pytest.raises(Invalid, match="illegal base64 data") as caught:
        await api.apply(SECRET, manifest, manager="lts:a")
    assert caught.value.code == 500
    assert await get(api, SECRET, space, "s") is None


@case
async def apply_needs_the_namespace(api: Api, space: str) -> None:
    with pytest.raises(NotFound, match=f'namespaces "{space}-no" not found'):
        await api.apply(CONFIG, config(f"{space}-no", resourceVersion="1"), manager="lts:a")


# Discovery


@case
async def discovery_finds_kinds(api: Api, space: str) -> None:
    discovery = Discovery(api, log)
    pod = await discovery.kind("v1", "Pod")
    assert (pod.plural, pod.namespaced) == ("pods", True)
    assert pod.verbs >= {"list", "watch", "patch", "create", "delete", "deletecollection"}
    assert "deletecollection" not in (await discovery.kind("v1", "Namespace")).verbs
    assert (await discovery.kind("apps/v1", "Deployment")).plural == "deployments"
    deletable = (await discovery.deletable([space]))[space]
    assert deletable is not None
    names = [str(kind) for kind in deletable]
    assert {"v1/Pod", "v1/Secret", "apps/v1/Deployment"} <= {*names}
    assert not {"v1/Event", "discovery.k8s.io/v1/EndpointSlice", "v1/Binding"} & {*names}
    assert len(names) == len({*names})
    assert (await discovery.server_version()).startswith("v1.")


@case
async def rights_can_be_asked_for(api: Api, space: str) -> None:
    """All in one request a namespace, those of the cluster for one that cannot be, or one each."""
    asked = Rights(api, Discovery(api, log), log)
    namespaces = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
    assert await asked.missing({(CONFIG, space): FULL, (namespaces, ""): FULL}) == {}
    assert await asked.everywhere(CONFIG)
    assert len((await asked.account()).split()) > 3
    attributes = {"verb": "watch", "group": "", "resource": "configmaps", "namespace": space}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert (await api.call("POST", path, body=review))["status"]["allowed"] is True


@case
async def discovery_speaks_the_old_form_too(api: Api, space: str) -> None:
    core, groups = await api.call("GET", "/api"), await api.call("GET", "/apis")
    assert (core["kind"], core["versions"]) == ("APIVersions", ["v1"])
    assert groups["kind"] == "APIGroupList"
    (apps,) = (group for group in groups["groups"] if group["name"] == "apps")
    assert apps["preferredVersion"]["groupVersion"] == "apps/v1"
    assert apps["versions"][0]["groupVersion"] == "apps/v1"
    listing = await api.call("GET", "/apis/apps/v1")
    named = {resource["name"]: resource for resource in listing["resources"]}
    found = named["deployments"]
    assert (found["kind"], found["namespaced"]) == ("Deployment", True)
    assert "deletecollection" in found["verbs"]
    assert "deployments/status" in named


# Reading


@case
async def lists_select_by_label(api: Api, space: str) -> None:
    for name, labels in {
        "one": {"a": "1", "s": ""}, "two": {"a": "2"}, "three": {"a": "3", "s": "x"}, "none": {},
    }.items():  # fmt: skip
        await post(api, CONFIG, config(space, name, labels=labels))
    for selector, expected in {
        "a=1": {"one"},
        "a": {"one", "two", "three"},
        "a in (1,3)": {"one", "three"},
        "a in (1,2),s=": {"one"},
        "s=": {"one"},
        "a,s=x": {"three"},
        "a=4": set(),
    }.items():
        found = await api.call("GET", CONFIG.path(space), params={"labelSelector": selector})
        assert {item["metadata"]["name"] for item in found["items"]} == expected, selector
        assert not any("kind" in item for item in found["items"])


@case
async def metadata_comes_without_data(api: Api, space: str) -> None:
    await post(api, CONFIG, config(space, labels={"a": "b"}, annotations={"c": "d"}))
    listing = await api.call("GET", CONFIG.path(space), accept=METADATA_LIST)
    assert listing["kind"] == "PartialObjectMetadataList"
    (item,) = (i for i in listing["items"] if i["metadata"]["name"] == "c")
    assert (item["kind"], "data" in item) == ("PartialObjectMetadata", False)
    meta = msgspec.convert(item["metadata"], Meta)
    assert (meta.labels, meta.annotations, meta.namespace) == ({"a": "b"}, {"c": "d"}, space)
    assert meta.uid
    one = await api.call("GET", CONFIG.path(space, "c"), accept=METADATA)
    assert (one["kind"], "data" in one) == ("PartialObjectMetadata", False)


@case
async def lists_come_in_pages(api: Api, space: str) -> None:
    for number in range(5):
        await post(api, CONFIG, config(space, f"c{number}", labels={"a": "b"}))
    params = {"labelSelector": "a=b", "limit": "2"}
    sizes, names = [], []
    while True:
        page = await api.call("GET", CONFIG.path(space), params=params)
        sizes.append(len(page["items"]))
        names += [item["metadata"]["name"] for item in page["items"]]
        if not page["metadata"].get("continue"):
            break
        params["continue"] = page["metadata"]["continue"]
    assert sizes == [2, 2, 1]
    assert names == [f"c{number}" for number in range(5)]
    cluster = await _cluster(api)
    found = await cluster.list_metadata(CONFIG, space, "a=b")
    assert [meta.name for meta in found] == names
    await _close(cluster)


@case
async def absent_places(api: Api, space: str) -> None:
    """An absent namespace lists as empty; an absent object or kind is 404."""
    assert (await api.call("GET", CONFIG.path(f"{space}-no")))["items"] == []
    with pytest.raises(NotFound):
        await api.call("GET", CONFIG.path(space, "no"))
    with pytest.raises(NotFound):
        await api.call("GET", Kind("", "v1", "Nope", "nopes", True).path(space))


# Watching


async def _next(lines: Any, count: int, patience: float = 10) -> list[tuple[str, str, Obj]]:
    found: list[tuple[str, str, Obj]] = []
    async with asyncio.timeout(patience):
        while len(found) < count:
            event = msgspec.json.decode(await anext(lines), type=Obj)
            if event["type"] != "BOOKMARK":
                name = event["object"].get("metadata", {}).get("name", "")
                found.append((event["type"], name, event["object"]))
    return found


async def _watch(
    stack: AsyncExitStack,
    api: Api,
    space: str,
    version: str,
    accept: str = "application/json",
    kind: Kind = CONFIG,
) -> Any:
    params = {
        "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": "60",
        "labelSelector": "a", "resourceVersion": version,
    }  # fmt: skip
    stream = api.stream(kind.path(space), params=params, accept=accept, idle=30)
    return await stack.enter_async_context(stream)


@case
async def watches_tell_every_change_in_order(api: Api, space: str) -> None:
    version = (await api.call("GET", CONFIG.path(space)))["metadata"]["resourceVersion"]
    async with AsyncExitStack() as stack:
        lines = await _watch(stack, api, space, version)
        await post(api, CONFIG, config(space, "unlabelled"))
        made = await post(api, CONFIG, config(space, labels={"a": "b"}))
        made["data"] = {"k": "2"}
        made = await put(api, CONFIG, made)
        await api.call("DELETE", CONFIG.path(space, "c"), body={})
        events = await _next(lines, 3)
        assert [(kind, name) for kind, name, _ in events] == [
            ("ADDED", "c"), ("MODIFIED", "c"), ("DELETED", "c"),
        ]  # fmt: skip
        versions = [item["metadata"]["resourceVersion"] for _, _, item in events]
        assert len({*versions}) == 3
        assert (events[1][2]["data"], events[1][2]["kind"]) == ({"k": "2"}, "ConfigMap")
        # What happened after a version is told to whoever comes later.
        later = await _watch(stack, api, space, versions[0])
        assert [kind for kind, *_ in await _next(later, 2)] == ["MODIFIED", "DELETED"]


@case
async def a_lost_label_is_told_as_a_deletion(api: Api, space: str) -> None:
    version = (await api.call("GET", CONFIG.path(space)))["metadata"]["resourceVersion"]
    async with AsyncExitStack() as stack:
        lines = await _watch(stack, api, space, version, METADATA)
        made = await post(api, CONFIG, config(space, labels={"a": "b"}))
        made["metadata"]["labels"] = {}
        now = await put(api, CONFIG, made)
        _, (kind, _, last) = await _next(lines, 2)
        assert (kind, last["kind"]) == ("DELETED", "PartialObjectMetadata")
        assert last["metadata"]["labels"] == {"a": "b"}
        assert last["metadata"]["resourceVersion"] == now["metadata"]["resourceVersion"]
        assert "deletionTimestamp" not in last["metadata"]


@case
async def a_version_from_long_ago_has_expired(api: Api, space: str) -> None:
    """On a young server, of a kind that is younger still: its history begins after version 1."""
    kinds = await api.call("GET", "/apis")
    young = any(group["name"] == YOUNG.group for group in kinds["groups"])
    async with AsyncExitStack() as stack:
        try:
            lines = await _watch(stack, api, space, "1", kind=YOUNG if young else CONFIG)
            ((kind, _, status),) = await _next(lines, 1, patience=2)
        except Expired:
            return
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")


@case
async def line_breaks_of_unicode_do_not_break_watch_lines(api: Api, space: str) -> None:
    version = (await api.call("GET", CONFIG.path(space)))["metadata"]["resourceVersion"]
    odd = "a\x85b\u2028c\u2029d\x0be\x1cf\rg"
    async with AsyncExitStack() as stack:
        lines = await _watch(stack, api, space, version)
        await post(api, CONFIG, config(space, data={"k": odd}, labels={"a": "b"}))
        ((_, _, item),) = await _next(lines, 1)
        assert item["data"] == {"k": odd}


@case
async def events_are_told_while_they_happen(api: Api, space: str) -> None:
    feed = EventFeed(api, space, log)
    heard: asyncio.Queue[Event] = asyncio.Queue()
    old = {"involvedObject": {"kind": "Pod", "name": "p", "namespace": space, "uid": "u1"}}
    head = {"apiVersion": "v1", "kind": "Event", "reason": "Pulled", "message": "before"}
    await post(api, EVENT, {**head, **old, "metadata": {"name": "e1", "namespace": space}})
    with feed.listen(heard.put_nowait):
        await asyncio.sleep(0.3)
        new = {**head, **old, "message": " now ", "type": "Warning"}
        await post(api, EVENT, {**new, "metadata": {"name": "e2", "namespace": space}})
        async with asyncio.timeout(5):
            event = await heard.get()
    assert feed.about("u1") == [event]
    assert (event.kind, event.name, event.type, event.reason, event.message) == (
        "Pod", "p", "Warning", "Pulled", "now",
    )  # fmt: skip
    assert event.time
    assert feed._closing is not None
    feed._closing.cancel()
    feed.close()


# Deleting


@case
async def a_delete_is_bound_to_its_uid(api: Api, space: str) -> None:
    made = await post(api, CONFIG, config(space))
    path = CONFIG.path(space, "c")
    with pytest.raises(Conflict, match="does not match the UID in record"):
        await api.call("DELETE", path, body={"preconditions": {"uid": "another"}})
    assert await get(api, CONFIG, space, "c") == made
    await api.call("DELETE", path, body={"preconditions": {"uid": made["metadata"]["uid"]}})
    assert await get(api, CONFIG, space, "c") is None
    with pytest.raises(NotFound):
        await api.call("DELETE", path, body={})


@case
async def a_collection_goes_by_its_labels(api: Api, space: str) -> None:
    for name, labels in {"one": {"a": "1"}, "two": {"a": "1"}, "other": {"a": "2"}}.items():
        await post(api, CONFIG, config(space, name, labels=labels))
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    answers = [
        await api.call(
            "DELETE", CONFIG.path(space), params={"labelSelector": "a=1"}, body=options,
            accept=METADATA_LIST,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert {item["metadata"]["name"] for item in answers[0]["items"]} == {"one", "two"}
    assert all(item["metadata"]["labels"] == {"a": "1"} for item in answers[0]["items"])
    assert answers[0]["kind"] == "PartialObjectMetadataList"
    assert answers[1]["items"] is None
    assert await get(api, CONFIG, space, "other") is not None
    with pytest.raises(Invalid) as caught:
        await api.call("DELETE", CONFIG.path(), params={"labelSelector": "a=2"}, body=options)
    assert caught.value.code == 405


@case
async def a_finalizer_holds_an_object(api: Api, space: str) -> None:
    version = (await api.call("GET", CONFIG.path(space)))["metadata"]["resourceVersion"]
    await post(api, CONFIG, config(space, labels={"a": "b"}, finalizers=[HOLD]))
    async with AsyncExitStack() as stack:
        lines = await _watch(stack, api, space, version)
        await api.call("DELETE", CONFIG.path(space, "c"), body={})
        live = await get(api, CONFIG, space, "c")
        assert live is not None
        assert live["metadata"]["deletionTimestamp"]
        again = await api.call(
            "DELETE", CONFIG.path(space), params={"labelSelector": "a=b"}, body={}
        )
        assert [item["metadata"]["name"] for item in again["items"]] == ["c"]
        live["metadata"]["finalizers"] = []
        await put(api, CONFIG, live)
        await gone(api, CONFIG, space, "c")
        kinds = [kind for kind, *_ in await _next(lines, 3)]
        assert kinds == ["ADDED", "MODIFIED", "DELETED"]


@case
async def foreground_deletion_ends(api: Api, space: str) -> None:
    await post(api, CONFIG, config(space))
    options = {"propagationPolicy": "Foreground"}
    answer = await api.call("DELETE", CONFIG.path(space, "c"), body=options)
    assert answer["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert answer["metadata"]["deletionTimestamp"]
    await gone(api, CONFIG, space, "c")


@case
async def an_unscheduled_pod_goes_at_once(api: Api, space: str) -> None:
    """Its last event carries a deletionTimestamp: proof that it was deleted."""
    version = (await api.call("GET", POD.path(space)))["metadata"]["resourceVersion"]
    async with asyncio.timeout(10):  # a new namespace refuses pods until it has its account
        account = Kind("", "v1", "ServiceAccount", "serviceaccounts", True)
        while await get(api, account, space, "default") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": space, "labels": {"a": "b"}},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{"name": "main", "image": "none.example.org/none"}],
        },
    }
    await post(api, POD, manifest)
    await api.call("DELETE", POD.path(space, "p"), body={})
    assert await get(api, POD, space, "p") is None
    params = {"watch": "true", "resourceVersion": version, "labelSelector": "a"}
    async with api.stream(POD.path(space), params=params, accept=METADATA, idle=30) as lines:
        async for line in lines:
            event = msgspec.json.decode(line, type=Obj)
            if event["type"] == "DELETED":
                assert event["object"]["metadata"]["deletionTimestamp"]
                break


# The modules above, on the same server


IDENTITY = Identity("contract", "user@example.org")


def planned(manifest: Obj, identity: Identity = IDENTITY, *, start: str = "1") -> Planned:
    metadata = manifest["metadata"]
    metadata["labels"] = {
        **metadata.get("labels", {}), **identity.server_labels, LIFECYCLE: Policy.STOPPED.value,
    }  # fmt: skip
    metadata["annotations"] = {DIGEST: start}
    return Planned(manifest, Policy.STOPPED, 2, "a.yaml")


async def _cluster(api: Api) -> Cluster:
    cluster = Cluster(api, IDENTITY.instance, log)
    await asyncio.sleep(0)  # let its supervisor begin
    return cluster


async def _close(cluster: Cluster) -> None:
    """Stop its watches, but leave the connection, which is the test's."""
    cluster.api = _Kept()  # type: ignore[assignment]
    await cluster.aclose()


class _Kept:
    async def aclose(self) -> None:
        return


@case
async def create_makes_or_refuses(api: Api, space: str) -> None:
    cluster = await _cluster(api)
    made = await cluster.create(CONFIG, planned(config(space)), IDENTITY)
    assert managers(made) == {(IDENTITY.manager, "Apply")}
    with pytest.raises(AlreadyThere) as caught:
        await cluster.create(CONFIG, planned(config(space), start="2"), IDENTITY)
    assert caught.value.live == made
    changed = planned(config(space, data={"k": "2"}))
    uid = made["metadata"]["uid"]
    assert (await cluster.apply_held(CONFIG, changed, IDENTITY, uid))["data"] == {"k": "2"}
    with pytest.raises(ClusterError) as refused:
        await cluster.apply_held(CONFIG, changed, IDENTITY, "another")
    assert refused.value.code in (409, 422)
    await _close(cluster)


@case
async def stores_follow(api: Api, space: str) -> None:
    cluster = await _cluster(api)
    store = cluster.reflector(CONFIG, space)
    await cluster.create(CONFIG, planned(config(space, "before")), IDENTITY)
    await post(api, CONFIG, config(space, "foreign"))
    async with asyncio.timeout(10):
        await store.sync()
        assert [live.meta.name for live in store.of_owner(IDENTITY.owner)] == ["before"]
        await cluster.create(CONFIG, planned(config(space, "after")), IDENTITY)
        wait = cluster.changes.wait_until
        live = await wait(IDENTITY.owner, lambda: store.get(space, "after"))
        assert live.as_dict()["metadata"]["labels"] == dict(live.meta.labels)
        assert not live.parts
        await api.call("DELETE", CONFIG.path(space, "before"), body={})
        await wait(IDENTITY.owner, lambda: store.get(space, "before") is None or None)
    assert len(store) == 1
    await _close(cluster)


@case
async def delete_matching_takes_what_is_ours(api: Api, space: str) -> None:
    cluster = await _cluster(api)
    for name in ("one", "two"):
        await cluster.create(CONFIG, planned(config(space, name)), IDENTITY)
    stranger = Identity("contract", "stranger")
    await cluster.create(CONFIG, planned(config(space, "theirs"), stranger), stranger)
    selection = IDENTITY.selection(LIFECYCLE, [Policy.STOPPED])
    for kind in (CONFIG, Kind("", "v1", "ConfigMap", "configmaps", True)):  # at once; one by one
        found = await cluster.delete_matching(kind, space, selection)
        assert {meta.name for meta in found} == {"one", "two"}
        assert await cluster.delete_matching(kind, space, selection) == []
        await gone(api, CONFIG, space, "one")
        await gone(api, CONFIG, space, "two")
        for name in ("one", "two"):
            await cluster.create(CONFIG, planned(config(space, name)), IDENTITY)
    assert await get(api, CONFIG, space, "theirs") is not None
    await _close(cluster)


@case
async def removal_waits_and_names_what_holds(api: Api, space: str) -> None:
    cluster = await _cluster(api)
    store = cluster.reflector(CONFIG, space)
    await store.sync()
    await cluster.create(CONFIG, planned(config(space, finalizers=[HOLD])), IDENTITY)
    record = Record(IDENTITY, space, kinds={"v1/ConfigMap": (space,)}, live=True)
    with pytest.raises(RemovalIncomplete, match=f"ConfigMap/{space}/c.*{HOLD}"):
        await Removal(cluster, log).stop(record, LIFECYCLE, timeout=1)
    live = await get(api, CONFIG, space, "c")
    assert live is not None
    live["metadata"]["finalizers"] = []
    removing = asyncio.create_task(Removal(cluster, log).stop(record, LIFECYCLE, timeout=10))
    await put(api, CONFIG, live)
    await removing
    assert await get(api, CONFIG, space, "c") is None
    await _close(cluster)


def names(cases: Iterable[Case] = CASES) -> list[str]:
    return [function.__name__ for function in cases]
