"""Whether one live object is ready, still on its way, or has ended; pure, after kstatus.

Only the connection object, and objects that ask for it, are judged: a volume that never binds shows
in its pod's events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

Live = Mapping[str, Any]

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_SHORT_RUN = 600.0  # seconds; after a longer one the kubelet restarts a container at once


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
    """How a server ended: what the hub takes for its exit code, and the cluster's reason for it."""

    code: int
    reason: str


def compute(live: Live) -> Status:
    """Judge one live object by the rules of its kind, else by its conditions."""
    if live["metadata"].get("deletionTimestamp"):
        return Status(State.TERMINATING, "it is being deleted")
    observed = (live.get("status") or {}).get("observedGeneration")
    # Some kinds write it as text (Argo's Rollout), or something else altogether.
    generation = int(str(observed)) if str(observed).isdecimal() else None
    if generation is not None and generation < live["metadata"].get("generation", 0):
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
    endpoint_slices = list(slices)
    if spec.get("type") == "ExternalName" or (not spec.get("selector") and not endpoint_slices):
        return Status(State.READY)
    for endpoint_slice in endpoint_slices:
        for endpoint in endpoint_slice.get("endpoints") or ():
            # An unset condition means ready (discovery.k8s.io/v1).
            if (endpoint.get("conditions") or {}).get("ready", True):
                return Status(State.READY)
    return Status(State.IN_PROGRESS, "no endpoint is ready yet")


def server_container(pod: Live) -> str:
    """The container that is the server: the one its author names as default, else the first."""
    name = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
    if name:
        return str(name)
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    return str(containers[0].get("name", ""))


def ended(pod: Live, crash_loop_restarts: int | None = None) -> Ended | None:
    """How the pod's server ended for good, or None while it lives or may be restarted in place.

    With ``crash_loop_restarts``, a container that was restarted as often and ended soon again has
    ended, too.
    """
    status = pod.get("status") or {}
    loop = crash_loop(pod, crash_loop_restarts) if crash_loop_restarts is not None else None
    terminated = (_server_status(pod).get("state") or {}).get("terminated")
    if terminated:
        end = _ended(terminated)
        if _restarts(pod, end.code) and status.get("phase") not in ("Succeeded", "Failed"):
            return loop
        if status.get("phase") == "Failed" and status.get("reason"):
            # Evicted, node shut down: the container's own reason is a mere consequence.
            return Ended(end.code, sentence(status, "Failed"))
        return end
    if status.get("phase") == "Failed":
        return Ended(1, sentence(status, "Failed"))
    if status.get("phase") == "Succeeded":
        return Ended(0, "Completed")
    return loop


def crash_loop(pod: Live, limit: int) -> Ended | None:
    """How the server ends again and again; None while it may be restarted once more.

    For the first seconds of CrashLoopBackOff the kubelet only says that the container ended.
    """
    state = _server_status(pod).get("state") or {}
    count, last = restarts(pod)
    terminated = state.get("terminated")
    waits = (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff"
    if count < limit or not (waits or (terminated and _ran_shortly(terminated))):
        return None
    end = _ended(terminated) if terminated else last or Ended(1, "Error")
    return Ended(end.code, f"{end.reason}, again after {count} restarts (CrashLoopBackOff)")


def _ran_shortly(terminated: Mapping[str, Any]) -> bool:
    start, finish = terminated.get("startedAt"), terminated.get("finishedAt")
    if not start or not finish:
        return False
    duration = datetime.fromisoformat(str(finish)) - datetime.fromisoformat(str(start))
    return duration.total_seconds() < _SHORT_RUN


def restarts(pod: Live) -> tuple[int, Ended | None]:
    """How often the server was restarted in place, and how it ended before the last time."""
    container = _server_status(pod)
    terminated = (container.get("lastState") or {}).get("terminated")
    return int(container.get("restartCount") or 0), _ended(terminated) if terminated else None


def running(pod: Live) -> bool:
    """Whether the server's process runs, ready or too busy to say so, as far as anybody knows."""
    alive = (pod.get("status") or {}).get("phase") == "Running"
    alive = alive and "running" in (_server_status(pod).get("state") or {})
    return alive and not pod["metadata"].get("deletionTimestamp") and not unreachable(pod)


def unreachable(pod: Live) -> str:
    """The node that no longer tells about this pod; "" while it does.

    The node controller then sets Ready to False and gives no reason; a kubelet always gives one.
    """
    readiness = condition(pod, "Ready")
    if readiness.get("status") != "False" or readiness.get("reason"):
        return ""
    if condition(pod, "ContainersReady").get("status") != "True":
        return ""
    return str((pod.get("spec") or {}).get("nodeName") or "")


def disrupted(pod: Live) -> str:
    """Why Kubernetes itself took the pod away; "" where somebody else did."""
    target = condition(pod, "DisruptionTarget")
    if target.get("status") != "True":
        return ""
    evicted = target.get("reason") == "EvictionByEvictionAPI"
    return sentence({**target, "reason": "Evicted"} if evicted else target, "Evicted")


def _server_status(pod: Live) -> Mapping[str, Any]:
    name = server_container(pod)
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container.get("name") == name:
            return dict(container)
    return {}


def _ended(terminated: Mapping[str, Any]) -> Ended:
    code = int(terminated.get("exitCode", 0))
    return Ended(code, f"{terminated.get('reason') or 'Ended'} (exit code {code})")


def _restarts(pod: Live, code: int) -> bool:
    spec = pod.get("spec") or {}
    name = server_container(pod)
    containers: list[Mapping[str, Any]] = spec.get("containers") or []
    container = next((item for item in containers if item.get("name") == name), {})
    if container.get("restartPolicyRules"):
        return True  # the kubelet judges them; where it does not restart, the phase says so
    policy = container.get("restartPolicy") or spec.get("restartPolicy", "Always")
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def _pod(live: Live) -> Status:
    end = ended(live)
    if end:
        return Status(State.FAILED, f"it ended: {end.reason}")
    if condition(live, "Ready").get("status") == "True":
        return Status(State.READY)
    scheduling = condition(live, "PodScheduled")
    if scheduling.get("status") == "False":
        return Status(State.IN_PROGRESS, sentence(scheduling, "waiting for a node"))
    status = live.get("status") or {}
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or ():
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason"):
                what = f"container {container['name']}"
                return Status(State.IN_PROGRESS, f"{what}: {sentence(waiting, 'waiting')}")
    return Status(State.IN_PROGRESS, "its containers are not ready yet")


def _replicas(ready_field: str, updated_field: str | None) -> Callable[[Live], Status]:
    def rule(live: Live) -> Status:
        progressing = condition(live, "Progressing")
        if progressing.get("reason") == "ProgressDeadlineExceeded":
            return Status(State.FAILED, sentence(progressing, "it made no progress"))
        failure = condition(live, "ReplicaFailure")
        if failure.get("status") == "True":  # for how long is the failure rules' question
            return Status(State.IN_PROGRESS, sentence(failure, "its pods cannot be created"))
        total = int((live.get("spec") or {}).get("replicas", 1))
        status = live.get("status") or {}
        if status.get("observedGeneration") is None:
            return Status(State.IN_PROGRESS, "its controller has not seen it yet")
        counts = [ready_field]
        if updated_field and not _updates_by_hand(live):
            counts.append(updated_field)
        count = min(int(status.get(name) or 0) for name in counts)
        if count < total:
            return Status(State.IN_PROGRESS, f"{count} of {total} replicas are ready")
        return Status(State.READY)

    return rule


def _updates_by_hand(live: Live) -> bool:
    """Whether pods of an older template stay until somebody deletes them."""
    return ((live.get("spec") or {}).get("updateStrategy") or {}).get("type") == "OnDelete"


def _daemon_set(live: Live) -> Status:
    status = live.get("status") or {}
    total = int(status.get("desiredNumberScheduled") or 0)
    count = int(status.get("numberReady") or 0)
    if status.get("observedGeneration") is None or count < total:
        return Status(State.IN_PROGRESS, f"{count} of {total} pods are ready")
    return Status(State.READY)


def _job(live: Live) -> Status:
    failure = condition(live, "Failed")
    if failure.get("status") == "True":
        return Status(State.FAILED, sentence(failure, "it failed"))
    if condition(live, "Complete").get("status") == "True":
        return Status(State.READY)
    return Status(State.IN_PROGRESS, "it is not complete yet")


def _phase(goal: str) -> Callable[[Live], Status]:
    def rule(live: Live) -> Status:
        phase = (live.get("status") or {}).get("phase")
        if phase == goal:
            return Status(State.READY)
        return Status(State.IN_PROGRESS, f"its phase is {phase or 'not set'}")

    return rule


def _by_conditions(live: Live) -> Status:
    """The generic rules: Stalled fails, Reconciling waits, Ready or Available decides."""
    stall = condition(live, "Stalled")
    if stall.get("status") == "True":
        return Status(State.FAILED, sentence(stall, "it is stalled"))
    reconciliation = condition(live, "Reconciling")
    if reconciliation.get("status") == "True":
        return Status(State.IN_PROGRESS, sentence(reconciliation, "it is being reconciled"))
    for name in ("Ready", "Available"):
        entry = condition(live, name)
        if entry and entry.get("status") != "True":
            return Status(State.IN_PROGRESS, sentence(entry, f"{name} is not True"))
    return Status(State.READY)


def condition(live: Live, name: str) -> Mapping[str, Any]:
    """The condition of this type, or an empty one."""
    conditions = (live.get("status") or {}).get("conditions")
    for entry in conditions if isinstance(conditions, list) else ():
        if isinstance(entry, Mapping) and entry.get("type") == name:
            return entry
    return {}


def sentence(source: Mapping[str, Any], default: str) -> str:
    """``Reason: message``, as far as the cluster gives them."""
    parts = [str(source[key]) for key in ("reason", "message") if source.get(key)]
    return ": ".join(parts) or default


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
