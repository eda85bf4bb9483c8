"""What the cluster's own words about an object mean for the person who waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightkube_template_spawner.objects import status
from lightkube_template_spawner.objects.status import Ended, State, Status

CASES: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "data" / "status.yaml").read_text()
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


# -- pods that a running server may have ----------------------------------------------------------


def pod(*, ready: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": "True", **(ready or {})},
        {"type": "ContainersReady", "status": "True"},
    ]
    return {
        "kind": "Pod",
        "metadata": {},
        "spec": {"nodeName": "n", "containers": [{"name": "server"}]},
        "status": {
            "phase": "Running",
            "conditions": conditions,
            "containerStatuses": [{"name": "server", "state": {"running": {}}, **container}],
        },
    }


KILLED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


def ran(until: str) -> dict[str, Any]:
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": f"2026-01-01T{until}Z"}
    return {"terminated": {**KILLED["terminated"], **times}}


LOOP = "OOMKilled (exit code 137), again after 3 restarts (CrashLoopBackOff)"
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}


@pytest.mark.parametrize(
    ("state", "restarts", "reason"),
    [
        (BACK_OFF, 2, None),
        (BACK_OFF, 3, LOOP),
        ({"running": {}}, 9, None),  # it may have run for weeks between two ends
        (KILLED, 9, None),  # for how long it ran is not known
        (ran("00:03:00"), 2, None),
        (
            ran("00:03:00"),
            3,
            "OOMKilled (exit code 137), again after 3 restarts (CrashLoopBackOff)",
        ),
        (ran("00:13:00"), 3, None),
    ],
)
def test_a_crash_loop_is_an_end(state: dict[str, Any], restarts: int, reason: str | None) -> None:
    live = pod(state=state, restartCount=restarts, lastState=KILLED)
    assert status.ended(live, 3) == (Ended(137, reason) if reason else None)
    assert status.ended(live) is None
    assert status.restarts(live) == (restarts, Ended(137, "OOMKilled (exit code 137)"))
    assert status.running(live) is ("running" in state)


def test_a_crash_loop_whose_former_end_is_unknown() -> None:
    over = status.ended(pod(state=BACK_OFF, restartCount=1), 1)
    assert over == Ended(1, "Error, again after 1 restarts (CrashLoopBackOff)")
    assert status.restarts(pod()) == (0, None)


@pytest.mark.parametrize(
    ("ready", "node"),
    [
        ({}, ""),
        ({"status": "False"}, "n"),
        ({"status": "False", "reason": "ContainersNotReady"}, ""),
        ({"status": "False", "reason": "ReadinessGatesNotReady"}, ""),
    ],
)
def test_only_the_node_controller_gives_no_reason(ready: dict[str, str], node: str) -> None:
    assert status.unreachable(pod(ready=ready)) == node
    assert status.running(pod(ready=ready)) is (node == "")


def test_a_pod_that_was_not_ready_when_its_node_was_lost_looks_as_before() -> None:
    live = pod(ready={"status": "False"})
    live["status"]["conditions"][1]["status"] = "False"
    assert status.unreachable(live) == ""
    assert status.unreachable({"metadata": {}}) == ""


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (("True", "EvictionByEvictionAPI", "API: evicting"), "Evicted: API: evicting"),
        (("True", "PreemptionByScheduler", "preempted"), "PreemptionByScheduler: preempted"),
        (("False", "EvictionByEvictionAPI", "not after all"), ""),
    ],
)  # fmt: skip
def test_who_took_the_pod(target: tuple[str, str, str], said: str) -> None:
    live = pod()
    assert status.disrupted(live) == ""
    fields = dict(zip(("status", "reason", "message"), target, strict=True))
    live["status"]["conditions"].append({"type": "DisruptionTarget", **fields})
    assert status.disrupted(live) == said
