"""What the cluster's own words about an object mean for the person who waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightkube_template_spawner import status
from lightkube_template_spawner.status import Ended, State, Status

CASES: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "data" / "status.yaml").read_text()
)


def live(case: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "x", **case.get("metadata", {})}, **case["live"]}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    case = CASES[name]
    verdict = status.compute(live(case))
    assert (verdict.state, verdict.message) == (case["is"], case.get("says", ""))
    assert verdict.ready == (case["is"] == "Ready")


PODS = {name: case for name, case in CASES.items() if case["live"]["kind"] == "Pod"}


@pytest.mark.parametrize("name", PODS)
def test_end(name: str) -> None:
    expected = PODS[name].get("ended")
    assert status.ended(live(PODS[name])) == (Ended(*expected) if expected else None)


# -- which container is the server ----------------------------------------------------------------


def test_the_server_is_the_default_container_else_the_first() -> None:
    pod: dict[str, Any] = {"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}
    assert status.server_container(pod) == "a"
    pod["metadata"]["annotations"] = {status.DEFAULT_CONTAINER: "b"}
    assert status.server_container(pod) == "b"
    assert status.server_container({"metadata": {"annotations": None}}) == ""


# -- services -------------------------------------------------------------------------------------


def service(**spec: Any) -> dict[str, Any]:
    return {"kind": "Service", "metadata": {}, "spec": spec}


def endpoints(*ready: bool | None) -> dict[str, Any]:
    return {"endpoints": [{"conditions": {} if r is None else {"ready": r}} for r in ready]}


READY = Status(State.READY)
WAITS = Status(State.IN_PROGRESS, "no endpoint is ready yet")


@pytest.mark.parametrize(
    ("spec", "slices", "verdict"),
    [
        ({"selector": {"a": "b"}}, [], WAITS),
        ({"selector": {"a": "b"}}, [{}], WAITS),
        ({"selector": {"a": "b"}}, [{"endpoints": None}], WAITS),
        ({"selector": {"a": "b"}}, [endpoints()], WAITS),
        ({"selector": {"a": "b"}}, [endpoints(False)], WAITS),
        ({"selector": {"a": "b"}}, [endpoints(True)], READY),
        ({"selector": {"a": "b"}}, [endpoints(None)], READY),
        ({"selector": {"a": "b"}}, [{"endpoints": [{}]}], READY),
        ({"selector": {"a": "b"}}, [endpoints(False), endpoints(False, True)], READY),
        ({}, [], READY),
        ({"selector": {}}, [], READY),
        ({}, [endpoints(False)], WAITS),
        ({}, [endpoints(True)], READY),
        ({"type": "ExternalName", "selector": {"a": "b"}}, [], READY),
        ({"type": "ExternalName"}, [endpoints(False)], READY),
    ],
)
def test_a_service_is_ready_when_it_leads_somewhere(
    spec: dict[str, Any], slices: list[dict[str, Any]], verdict: Status
) -> None:
    assert status.service(service(**spec), iter(slices)) == verdict


def test_a_service_that_is_being_deleted_is_not_ready() -> None:
    going = service(selector={"a": "b"})
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert status.service(going, [endpoints(True)]).state is State.TERMINATING
