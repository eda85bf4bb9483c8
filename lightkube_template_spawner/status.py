"""Whether one live object is ready, still on its way, or has ended; pure, after kstatus.

Only the connection object, and objects that ask for it, are judged: a volume that never binds shows
in its pod's events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Live = Mapping[str, Any]

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


class State(StrEnum):
    """kstatus' words, as far as a spawner needs them."""

    READY = "Ready"
    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    TERMINATING = "Terminating"


@dataclass(frozen=True, slots=True)
class Status:
    """A verdict and one sentence for the person who waits."""

    state: State
    message: str = ""

    @property
    def ready(self) -> bool:
        """Whether the object does what it is for."""
        return self.state is State.READY


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server ended: its exit code (0 if unknown) and the cluster's reason for it."""

    code: int
    reason: str


def compute(live: Live) -> Status:
    """Judge one live object by the rules of its kind, else by its conditions."""
    if live["metadata"].get("deletionTimestamp"):
        return Status(State.TERMINATING, "it is being deleted")
    observed = (live.get("status") or {}).get("observedGeneration")
    # Some kinds write it as text (Argo's Rollout), or something else altogether.
    seen = int(str(observed)) if str(observed).isdecimal() else None
    if seen is not None and seen < live["metadata"].get("generation", 0):
        return Status(State.IN_PROGRESS, "its controller has not seen this version yet")
    return _RULES.get(live.get("kind", ""), _by_conditions)(live)


def service(live: Live, slices: Iterable[Live]) -> Status:
    """A Service is ready when it routes somewhere: one ready endpoint in one of its slices.

    Without a selector the endpoints are the template's own business: waited for if any slice
    exists. An ExternalName has none.
    """
    if live["metadata"].get("deletionTimestamp"):
        return Status(State.TERMINATING, "it is being deleted")
    spec = live.get("spec") or {}
    found = list(slices)
    if spec.get("type") == "ExternalName" or (not spec.get("selector") and not found):
        return Status(State.READY)
    for endpoint_slice in found:
        for endpoint in endpoint_slice.get("endpoints") or ():
            # An unset condition means ready (discovery.k8s.io/v1).
            if (endpoint.get("conditions") or {}).get("ready", True):
                return Status(State.READY)
    return Status(State.IN_PROGRESS, "no endpoint is ready yet")


def server_container(pod: Live) -> str:
    """The container that is the server: the one its author names as default, else the first."""
    named = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
    if named:
        return str(named)
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    return str(containers[0].get("name", ""))


def ended(pod: Live) -> Ended | None:
    """How the pod's server ended for good, or None while it lives or may be restarted in place."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        terminated = (container.get("state") or {}).get("terminated")
        if container.get("name") == server_container(pod) and terminated:
            code = int(terminated.get("exitCode", 0))
            if _restarts(pod, code) and status.get("phase") not in ("Succeeded", "Failed"):
                return None
            if status.get("phase") == "Failed" and status.get("reason"):
                # Evicted, node shut down: the container's own reason is a mere consequence.
                return Ended(code, _sentence(status, "Failed"))
            return Ended(code, str(terminated.get("reason") or f"exit code {code}"))
    if status.get("phase") == "Failed":
        return Ended(1, _sentence(status, "Failed"))
    if status.get("phase") == "Succeeded":
        return Ended(0, "Completed")
    return None


def _restarts(pod: Live, code: int) -> bool:
    policy = (pod.get("spec") or {}).get("restartPolicy", "Always")
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def _pod(live: Live) -> Status:
    over = ended(live)
    if over:
        return Status(State.FAILED, f"it ended: {over.reason}")
    if _condition(live, "Ready").get("status") == "True":
        return Status(State.READY)
    scheduled = _condition(live, "PodScheduled")
    if scheduled.get("status") == "False":
        return Status(State.IN_PROGRESS, _sentence(scheduled, "waiting for a node"))
    status = live.get("status") or {}
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or ():
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason"):
                what = f"container {container['name']}"
                return Status(State.IN_PROGRESS, f"{what}: {_sentence(waiting, 'waiting')}")
    return Status(State.IN_PROGRESS, "its containers are not ready yet")


def _replicas(ready_field: str, updated_field: str | None) -> Callable[[Live], Status]:
    def rule(live: Live) -> Status:
        progressing = _condition(live, "Progressing")
        if progressing.get("reason") == "ProgressDeadlineExceeded":
            return Status(State.FAILED, _sentence(progressing, "it made no progress"))
        if _condition(live, "ReplicaFailure").get("status") == "True":
            failure = _condition(live, "ReplicaFailure")
            return Status(State.FAILED, _sentence(failure, "its pods cannot be created"))
        wanted = int((live.get("spec") or {}).get("replicas", 1))
        status = live.get("status") or {}
        if status.get("observedGeneration") is None:
            return Status(State.IN_PROGRESS, "its controller has not seen it yet")
        counts = [ready_field, *([updated_field] if updated_field else [])]
        short = min(int(status.get(name) or 0) for name in counts)
        if short < wanted:
            return Status(State.IN_PROGRESS, f"{short} of {wanted} replicas are ready")
        return Status(State.READY)

    return rule


def _daemon_set(live: Live) -> Status:
    status = live.get("status") or {}
    wanted = int(status.get("desiredNumberScheduled") or 0)
    ready = int(status.get("numberReady") or 0)
    if status.get("observedGeneration") is None or ready < wanted:
        return Status(State.IN_PROGRESS, f"{ready} of {wanted} pods are ready")
    return Status(State.READY)


def _job(live: Live) -> Status:
    failed = _condition(live, "Failed")
    if failed.get("status") == "True":
        return Status(State.FAILED, _sentence(failed, "it failed"))
    if _condition(live, "Complete").get("status") == "True":
        return Status(State.READY)
    return Status(State.IN_PROGRESS, "it is not complete yet")


def _phase(wanted: str) -> Callable[[Live], Status]:
    def rule(live: Live) -> Status:
        phase = (live.get("status") or {}).get("phase")
        if phase == wanted:
            return Status(State.READY)
        return Status(State.IN_PROGRESS, f"its phase is {phase or 'not set'}")

    return rule


def _by_conditions(live: Live) -> Status:
    """The generic rules: Stalled fails, Reconciling waits, Ready or Available decides."""
    stalled = _condition(live, "Stalled")
    if stalled.get("status") == "True":
        return Status(State.FAILED, _sentence(stalled, "it is stalled"))
    reconciling = _condition(live, "Reconciling")
    if reconciling.get("status") == "True":
        return Status(State.IN_PROGRESS, _sentence(reconciling, "it is being reconciled"))
    for name in ("Ready", "Available"):
        condition = _condition(live, name)
        if condition and condition.get("status") != "True":
            return Status(State.IN_PROGRESS, _sentence(condition, f"{name} is not True"))
    return Status(State.READY)


def _condition(live: Live, name: str) -> Mapping[str, Any]:
    conditions = (live.get("status") or {}).get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, Mapping) and condition.get("type") == name:
            return condition
    return {}


def _sentence(source: Mapping[str, Any], otherwise: str) -> str:
    parts = [str(source[key]) for key in ("reason", "message") if source.get(key)]
    return ": ".join(parts) or otherwise


_RULES: Mapping[str, Callable[[Live], Status]] = {
    "Pod": _pod,
    "Deployment": _replicas("availableReplicas", "updatedReplicas"),
    "StatefulSet": _replicas("readyReplicas", "updatedReplicas"),
    "ReplicaSet": _replicas("readyReplicas", None),
    "DaemonSet": _daemon_set,
    "Job": _job,
    "PersistentVolumeClaim": _phase("Bound"),
    "Namespace": _phase("Active"),
}
