"""Which kinds there are, in the new form of discovery and the old."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx2
import pytest

from lightkube_template_spawner.cluster.api import Api
from lightkube_template_spawner.cluster.discovery import Discovery
from lightkube_template_spawner.cluster.retry import deadline
from lightkube_template_spawner.errors import UnknownKind
from tests.support.fake_apiserver import FakeApiServer, Fault, Served, text
from tests.support.timing import QUICK


@pytest.fixture
def discovery(api: Api) -> Discovery:
    return Discovery(api, logging.getLogger("test"), QUICK)


@pytest.mark.parametrize("legacy", [False, True])
async def test_kinds_are_found_once_for_all(
    fake: FakeApiServer, discovery: Discovery, legacy: bool
) -> None:
    fake.legacy = legacy
    pod, namespace, widget, old = await asyncio.gather(
        discovery.kind("v1", "Pod"),
        discovery.kind("v1", "Namespace"),
        discovery.kind("example.org/v1", "Widget"),
        discovery.kind("example.org/v1beta1", "Widget"),
    )
    assert (pod.group, pod.version, pod.plural, pod.namespaced) == ("", "v1", "pods", True)
    assert "deletecollection" in pod.verbs
    assert not namespace.namespaced
    assert (widget.path("hub"), old.version) == (
        "/apis/example.org/v1/namespaces/hub/widgets", "v1beta1",
    )  # fmt: skip
    groups = len({served.api_version for served in fake.kinds})
    assert len(fake.requests) == (2 + groups if legacy else 2)


async def test_an_unnamed_resource_is_left_out(discovery: Discovery) -> None:
    """``responseKind: null``: nothing says what its manifests would be called."""
    with pytest.raises(UnknownKind):
        await discovery.kind("example.org/v1", "Nameless")


async def test_an_unknown_kind_is_asked_for_once_more(
    fake: FakeApiServer, discovery: Discovery
) -> None:
    await discovery.kind("v1", "Pod")
    with pytest.raises(UnknownKind, match=r"example\.org/v1/Gadget"):
        await discovery.kind("example.org/v1", "Gadget")
    assert fake.count("GET /apis?$") == 4
    fake.kinds.append(Served("example.org", "v1", "Gadget", "gadgets"))
    found = await asyncio.gather(*(discovery.kind("example.org/v1", "Gadget") for _ in range(9)))
    assert {kind.plural for kind in found} == {"gadgets"}
    assert fake.count("GET /apis?$") == 6
    await discovery.kind("example.org/v1", "Gadget")
    assert fake.count("GET /apis?$") == 6


async def test_kinds_by_name(discovery: Discovery) -> None:
    found = await discovery.named(["v1/Pod", "gone.example.org/v1/Gone", "apps/v1/Deployment"])
    assert [kind.plural for kind in found] == ["pods", "deployments"]


@pytest.mark.parametrize("fault", [
    text(503, "starting"), text(429, "Too many requests", Retry_After="0"),
    text(502, "<html/>", "text/html"), Fault(lost=True, error=lambda: httpx2.ReadError("reset")),
], ids=["503", "429", "502", "broken"])  # fmt: skip
async def test_a_bad_moment_passes(fake: FakeApiServer, discovery: Discovery, fault: Fault) -> None:
    fault.met, fault.path = 0, "/api"
    fake.faults.append(fault)
    assert (await discovery.kind("v1", "Pod")).plural == "pods"
    assert await discovery.server_version() == "v1.36.3"


async def test_an_extension_that_is_down_costs_no_other(
    fake: FakeApiServer, discovery: Discovery
) -> None:
    """Before Kubernetes 1.26 each group is asked for itself, and an extension's server may fail."""
    fake.legacy = True
    fake.faults.append(
        Fault(answer=lambda: httpx2.Response(503), path="/apis/example.org/v1$", times=5)
    )
    assert (await discovery.kind("apps/v1", "Deployment")).plural == "deployments"
    assert fake.faults[0].met == 1
    # A kind of its own is waited for, as its objects may be there.
    assert [str(kind) for kind in await discovery.named(["example.org/v1/Widget"])] == [
        "example.org/v1/Widget"
    ]
    assert fake.faults[0].met == 5
    fake.faults[0].met = 0
    found = (await discovery.deletable(["hub"]))["hub"]
    assert found is not None
    assert "example.org/v1/Widget" in {str(kind) for kind in found}  # remembered


@pytest.mark.parametrize("legacy", [True, False])
async def test_a_kind_that_cannot_be_asked_about_is_not_called_unknown(
    fake: FakeApiServer, discovery: Discovery, legacy: bool
) -> None:
    fake.legacy, fake.stale = legacy, {"example.org/v1"}
    with pytest.raises(TimeoutError, match=r"example\.org/v1 did not answer"), deadline(0.1):
        await discovery.kind("example.org/v1", "Widget")
    fake.stale.clear()
    assert (await discovery.kind("example.org/v1", "Widget")).plural == "widgets"


# What may be deleted


async def names(discovery: Discovery) -> set[str] | None:
    found = (await discovery.deletable(["hub"]))["hub"]
    return None if found is None else {str(kind) for kind in found}


async def test_an_administrator_may_delete_all_but_what_controllers_make(
    discovery: Discovery, fake: FakeApiServer
) -> None:
    found = await names(discovery)
    assert found is not None
    assert {"v1/Pod", "v1/Namespace", "apps/v1/StatefulSet", "example.org/v1/Widget"} <= found
    assert not {"v1/Event", "discovery.k8s.io/v1/EndpointSlice", "v1/Binding"} & found
    assert "example.org/v1beta1/Widget" not in found


@pytest.mark.parametrize(("rules", "expected"), [
    ([], set()),
    ([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "delete"]}], {"v1/Pod"}),
    ([{"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}], {"v1/Pod"}),
    ([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}], set()),
    ([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
      {"apiGroups": ["*"], "resources": ["pods"], "verbs": ["delete"]}], {"v1/Pod"}),
    ([{"apiGroups": [""], "resources": ["pods"], "verbs": ["*"], "resourceNames": ["one"]}],
     set()),
    ([{"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"]}],
     {"apps/v1/Deployment", "apps/v1/StatefulSet"}),
    ([{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["*"]}], set()),
    ([{"verbs": ["*"]}], set()),
])  # fmt: skip
async def test_rules_narrow_what_may_be_deleted(
    fake: FakeApiServer, discovery: Discovery, rules: list[Any], expected: set[str]
) -> None:
    fake.rules = rules
    assert await names(discovery) == expected


async def test_nothing_is_concluded_from_incomplete_rules(
    fake: FakeApiServer, discovery: Discovery
) -> None:
    fake.incomplete = True
    assert await names(discovery) is None


async def test_deletable_kinds_are_asked_for_anew(
    fake: FakeApiServer, discovery: Discovery
) -> None:
    await names(discovery)
    fake.kinds.append(Served("example.org", "v1", "Gadget", "gadgets"))
    found = await names(discovery)
    assert found is not None
    assert "example.org/v1/Gadget" in found


async def test_an_upgraded_api_server_tells_its_new_version(
    fake: FakeApiServer, discovery: Discovery
) -> None:
    """Asked for once, and again after the kinds were asked for anew."""
    for _ in range(2):
        await discovery.kind("v1", "Pod")
        assert await discovery.server_version() == "v1.36.3"
    assert fake.count("GET /version") == 1
    fake.git_version = "v1.37.0"
    fake.kinds.append(Served("example.org", "v1", "Gadget", "gadgets"))
    await discovery.kind("example.org/v1", "Gadget")
    assert await discovery.server_version() == "v1.37.0"
    assert fake.count("GET /version") == 2
