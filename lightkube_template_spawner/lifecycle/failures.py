"""What ends a start before its time is up: one table of rules, with reasons and graces; pure.

A *symptom* is one thing that the cluster says about a server that is not ready yet. The first rule
that fits it says for how long it may last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from lightkube_template_spawner.objects.status import condition, sentence

Live = Mapping[str, Any]

# What a rule can look at.
REFUSAL = "refusal"  # the API server's answer to an object of ours: the start fails at once
RETRY = "retry"  # an answer that is no decision: the request is repeated
CONTAINER = "container"  # why a container waits
SCHEDULING = "scheduling"  # why a pod has no node
QUEUE = "queue"  # a pod that a queue holds by scheduling gates
REFERENCE = "reference"  # what a pod that nobody looks at refers to and is not there
CONTROLLER = "controller"  # why a controller cannot make pods
EVENT = "event"  # an event about an object of the server, its pods and their claims
WHERE = (REFUSAL, RETRY, CONTAINER, SCHEDULING, QUEUE, REFERENCE, CONTROLLER, EVENT)

_REASON = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ON_THEIR_WAY = frozenset({"ContainerCreating", "PodInitializing"})
UNNOTICED = "Unnoticed"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: where it looks, for which words, and what follows after ``grace`` seconds.

    ``grace`` None: the user is told, the start goes on. ``restarts`` is how often the container
    must have been restarted, ``heard`` what an event about the same object must have said.
    """

    where: tuple[str, ...]
    pattern: str
    reason: str
    grace: float | None
    restarts: int = 0
    heard: str = ""


_CRASHES = r"^(CrashLoopBackOff|Ended|CreateContainerError|RunContainerError|PostStartHookError)"
_NO_PODS = (REFUSAL, CONTROLLER, EVENT)
# The first that fits counts. Words are `Reason: message`, as Kubernetes writes them.
DEFAULTS: Mapping[str, Rule] = {
    # A webhook that is being restarted answers again soon.
    "webhook-down": Rule((RETRY, CONTROLLER, EVENT), r"failed calling webhook", "admission", 10),
    # A quota counts what was deleted just before for a moment longer.
    "quota": Rule(_NO_PODS, r"exceeded quota|failed quota|(min|max)imum \S+ usage per", "quota", 5),
    "admission": Rule(
        _NO_PODS,
        r"denied the request|denied request|violates PodSecurity|pod rejected|no PriorityClass",
        "admission",
        5,
    ),
    # A node is let read a pod's claims and secrets a moment after it got the pod: that is no lack.
    "rights": Rule(_NO_PODS, r'User "(?!system:node:)[^"]*" cannot ', "rights", 5),
    "invalid": Rule(_NO_PODS, r" is invalid:|is not valid|strict decoding error", "invalid", 5),
    "pods-not-made": Rule((CONTROLLER, EVENT), r"^FailedCreate: ", "cluster", 20),
    "image-name": Rule((CONTAINER,), r"^(InvalidImageName|ErrImageNeverPull)", "image", 0),
    "image-missing": Rule(
        (CONTAINER,),
        r"^(ErrImagePull|ImagePullBackOff): .*"
        r"(not found|does not exist|manifest unknown|unauthorized|denied|[Ff]orbidden)",
        "image",
        0,
    ),
    # The kubelet tries again after 10 s; a registry that hiccups gets that chance.
    "image": Rule(
        (CONTAINER,),
        r"^(ErrImagePull|ImagePullBackOff|ImageInspectError|RegistryUnavailable|Signature)",
        "image",
        15,
    ),
    # Secrets that another controller writes are seconds late.
    "config": Rule((CONTAINER,), r"^CreateContainerConfigError", "config", 10),
    # Three runs that failed: the kubelet waits 0, 10, 20... seconds between them.
    "crash-loop": Rule((CONTAINER,), _CRASHES, "crash", 0, restarts=2),
    "crash": Rule((CONTAINER,), _CRASHES, "crash", 20),
    # The scheduler may see a pod before its claim, for a moment; no autoscaler mends it.
    "claim-missing": Rule(
        (SCHEDULING,), r'persistentvolumeclaim "[^"]*" (not found|is being deleted)', "volume", 5
    ),
    "claim-unbound": Rule((SCHEDULING,), r"unbound immediate PersistentVolumeClaim", "volume", 60),
    # An autoscaler said that a node is coming: some take a quarter of an hour.
    "scaling-up": Rule(
        (SCHEDULING,), r"", "unschedulable", 900, heard=r"^(TriggeredScaleUp|Nominated)"
    ),
    "no-scale-up": Rule((SCHEDULING,), r"", "unschedulable", 15, heard=r"^NotTriggerScaleUp"),
    # A scheduler that is being restarted takes no notice for as long as its lease.
    "unnoticed": Rule((SCHEDULING,), r"^Unnoticed", "unschedulable", 120),
    # The cluster autoscaler promises an answer in 30 s, on large clusters in 60 s.
    "unschedulable": Rule((SCHEDULING,), r"", "unschedulable", 60),
    "queue": Rule((QUEUE,), r"", "queue", None),
    "reference": Rule((REFERENCE,), r"", "config", 0),
    "claim-template": Rule((EVENT,), r"^FailedResourceClaimCreation", "config", 10),
    "storage-class": Rule(
        (EVENT,), r"^ProvisioningFailed: .*storageclass.* not found", "volume", 5
    ),
    "no-volume": Rule((EVENT,), r"^FailedBinding: no persistent volumes", "volume", 30),
    "provisioning": Rule(
        (EVENT,), r"^(ProvisioningFailed|VolumeMismatch|FailedBinding)", "volume", 45
    ),
    "mount-missing": Rule(
        (EVENT,),
        r'^FailedMount: .*((secret|configmap) "[^"]*" not found|references non-existent)',
        "config",
        10,
    ),
    # A disk that another node still holds is free after a minute or two.
    "mount": Rule((EVENT,), r"^Failed(Mount|AttachVolume|MapVolume)", "volume", 150),
    "sandbox": Rule((EVENT,), r"^FailedCreatePodSandBox", "cluster", 60),
}


@dataclass(frozen=True, slots=True)
class Symptom:
    """What the cluster says about one object of a server that is not ready yet."""

    where: str
    subject: str
    words: str
    restarts: int = 0
    heard: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.subject}: {self.words}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A symptom, the rule that fits it, and since when it lasts."""

    symptom: Symptom
    rule: Rule
    since: float

    @property
    def due(self) -> float:
        """When the start fails by it."""
        return math.inf if self.rule.grace is None else self.since + self.rule.grace


class FailureRules:
    """The table, with the administrator's changes in it."""

    def __init__(self, changes: object = None) -> None:
        """``changes``: by name; a row of its own, another value in a default row, None to drop it.

        Raises:
            ValueError: naming the row, the key and what belongs there.
        """
        self.rows = _table({} if changes is None else changes)

    def match(self, symptom: Symptom) -> Rule | None:
        """The first rule that fits."""
        return next((rule for rule in self.rows.values() if _fits(rule, symptom)), None)

    def refused(self, message: str) -> str:
        """The reason word for what the API server refuses; "cluster" where no rule has one."""
        rule = self.match(Symptom(REFUSAL, "", message)) or self.match(Symptom(RETRY, "", message))
        return rule.reason if rule else "cluster"

    def retried_for(self, message: str) -> float | None:
        """Seconds for which a request with this answer is repeated; None: as long as there is."""
        rule = self.match(Symptom(RETRY, "", message))
        return rule.grace if rule else None


class Course:
    """Since when each trouble of one start lasts; one that goes away starts afresh."""

    def __init__(self, rules: FailureRules) -> None:
        self._rules = rules
        self._since: dict[tuple[str, str], float] = {}

    def troubles(self, symptoms: Iterable[Symptom], now: float) -> list[Trouble]:
        """What is wrong now, that whose grace ends first in front."""
        starts: dict[tuple[str, str], float] = {}
        troubles = []
        for symptom in symptoms:
            rule = self._rules.match(symptom)
            if rule is not None:
                # By reason: a pull that fails and its back-off are one trouble.
                key = symptom.subject, rule.reason
                starts[key] = self._since.get(key, now)
                troubles.append(Trouble(symptom, rule, starts[key]))
        self._since = starts
        return sorted(troubles, key=lambda trouble: trouble.due)


def of_pod(reference: str, pod: Live, heard: tuple[str, ...] = ()) -> Iterator[Symptom]:
    """What a pod's own status says; ``heard`` is what recent events said of it."""
    if pod["metadata"].get("deletionTimestamp"):
        return
    scheduling = condition(pod, "PodScheduled")
    gates = [str(gate.get("name")) for gate in (pod.get("spec") or {}).get("schedulingGates") or ()]
    if gates:
        words = f"SchedulingGated: it waits in the queue, held by {', '.join(gates)}"
        yield Symptom(QUEUE, reference, words)
    elif scheduling.get("status") == "False" and scheduling.get("reason") != "SchedulingGated":
        words = sentence(scheduling, "Unschedulable")
        yield Symptom(SCHEDULING, reference, words, heard=heard)
    elif unnoticed(pod):
        name = (pod.get("spec") or {}).get("schedulerName") or "default-scheduler"
        words = f"{UNNOTICED}: the scheduler {name!r} has not looked at it"
        yield Symptom(SCHEDULING, reference, words, heard=heard)
    for container in _containers(pod):
        words = _not_running(container)
        if words:
            yield Symptom(
                CONTAINER,
                f"{reference}, container {container.get('name')}",
                words,
                restarts=int(container.get("restartCount") or 0),
                heard=heard,
            )


def of_controller(reference: str, live: Live) -> Iterator[Symptom]:
    """Why a Deployment or ReplicaSet cannot make its pods."""
    failure = condition(live, "ReplicaFailure")
    if failure.get("status") == "True":
        yield Symptom(CONTROLLER, reference, sentence(failure, "FailedCreate"))


def unnoticed(pod: Live) -> bool:
    """Whether neither a scheduler nor a kubelet has said anything of it."""
    status = pod.get("status") or {}
    signs = status.get("conditions") or status.get("containerStatuses")
    return not signs and not (pod.get("spec") or {}).get("nodeName")


def scheduled(pod: Live) -> bool:
    """Whether it has a node; then its claims are bound."""
    return condition(pod, "PodScheduled").get("status") == "True"


def begun(pod: Live) -> bool:
    """Whether a container of it has ever run: then volumes, sandbox and image are there."""
    states = [
        state
        for container in _containers(pod)
        for state in (container.get("state") or {}, container.get("lastState") or {})
    ]
    return any("running" in state or "terminated" in state for state in states)


def _containers(pod: Live) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status") or {}
    for group in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(group) or ()


def _not_running(container: Mapping[str, Any]) -> str:
    """Why a container waits, with how it ended before, which a back-off does not say."""
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting, now, before = state.get("waiting"), state.get("terminated"), last.get("terminated")
    if now:
        return f"Ended: {_end(now)}" if now.get("exitCode") else ""
    if not waiting or not waiting.get("reason") or waiting["reason"] in _ON_THEIR_WAY:
        return ""
    return sentence(waiting, "") + (f"; it ended: {_end(before)}" if before else "")


def _end(terminated: Mapping[str, Any]) -> str:
    return f"{sentence(terminated, 'Error')}, exit code {terminated.get('exitCode', 0)}"


def _fits(rule: Rule, symptom: Symptom) -> bool:
    return (
        symptom.where in rule.where
        and symptom.restarts >= rule.restarts
        and bool(re.search(rule.pattern, symptom.words, re.DOTALL))
        and (not rule.heard or any(re.search(rule.heard, words) for words in symptom.heard))
    )


def _table(changes: object) -> dict[str, Rule]:
    """New rows first: an administrator who adds one knows the cluster better than the defaults."""
    if not isinstance(changes, Mapping):
        raise ValueError(  # noqa: TRY004 - all that is wrong with it is one error
            f"it is a {type(changes).__name__}, not a dictionary of rules by name"
        )
    additions: dict[str, Rule] = {}
    table = dict(DEFAULTS)
    for name, row in changes.items():
        if row is None and name in table:
            del table[name]
        elif name in table:
            table[name] = _row(name, row, DEFAULTS[name])
        else:
            additions[str(name)] = _row(name, row, None)
    return {**additions, **table}


def _row(name: object, row: object, default: Rule | None) -> Rule:
    keys = [field.name for field in fields(Rule)]
    if not isinstance(row, Mapping):
        raise ValueError(  # noqa: TRY004
            f"rule {name!r} is {row!r}, not a dictionary with some of {_list(keys)}"
        )
    extras = [key for key in row if key not in keys]
    if extras:
        raise ValueError(f"rule {name!r} has no key {extras[0]!r}: its keys are {_list(keys)}")
    if default is None:
        gaps = [key for key in keys[:4] if key not in row]
        if gaps:
            raise ValueError(
                f"rule {name!r} lacks {_list(gaps)}; the names of the default rules are "
                + _list(DEFAULTS)
            )
        default = Rule((), "", "", None)
    values = dict(row)
    if isinstance(values.get("where"), str):
        values["where"] = [values["where"]]
    if isinstance(values.get("where"), list):
        values["where"] = tuple(values["where"])
    rule = replace(default, **values)
    for key, value in asdict(rule).items():
        complaint = _CHECKS[key](value)
        if complaint:
            raise ValueError(f"rule {name!r}: {key} is {value!r}, not {complaint}")
    return rule


def _where(value: object) -> str:
    right = isinstance(value, tuple) and value and all(place in WHERE for place in value)
    return "" if right else f"one or several of {_list(WHERE)}"


def _pattern(value: object) -> str:
    try:
        re.compile(value if isinstance(value, str) else "(")
    except re.error as error:
        return f"a regular expression ({error})"
    return ""


def _reason(value: object) -> str:
    right = isinstance(value, str) and _REASON.fullmatch(value)
    return "" if right else "a word of at most 32 small letters, digits, '-' and '_'"


def _grace(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = value is None or (number and float(str(value)) >= 0)
    return "" if right else "a number of seconds, or None for never"


def _restarts(value: object) -> str:
    right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return "" if right else "a number of restarts"


_CHECKS = {
    "where": _where,
    "pattern": _pattern,
    "reason": _reason,
    "grace": _grace,
    "restarts": _restarts,
    "heard": _pattern,
}


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
