"""Which of the cluster's words end a start, under which word and after how long."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightkube_template_spawner.lifecycle import failures
from lightkube_template_spawner.lifecycle.failures import (
    CONTAINER,
    CONTROLLER,
    DEFAULTS,
    EVENT,
    QUEUE,
    REFERENCE,
    REFUSAL,
    RETRY,
    SCHEDULING,
    Course,
    FailureRules,
    Rule,
    Symptom,
    of_controller,
    of_pod,
)

UNSCHEDULABLE = "Unschedulable: 0/2 nodes are available: 1 Insufficient cpu."
UNBOUND = "Unschedulable: 0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims"
FORBIDDEN = 'FailedCreate: Error creating: pods "x" is forbidden: '
WEBHOOK = 'Internal error occurred: failed calling webhook "w.example.org": failed to call webhook'
HEARD_UP = ("TriggeredScaleUp: pod triggered scale-up: [{g 0->1 (max: 3)}]",)
HEARD_NONE = ("NotTriggerScaleUp: pod didn't trigger scale-up: 1 max node group size reached",)


def refused(what: str) -> str:
    return f'Pod/hub/s (pod.yaml) was refused: pods "s" is forbidden: {what}'


# As Kubernetes 1.36 and containerd wrote them; the autoscaler's from its source.
@pytest.mark.parametrize(("symptom", "name"), [
    (Symptom(REFUSAL, "", refused("exceeded quota: q, requested: pods=1, used: pods=0")), "quota"),
    (Symptom(REFUSAL, "", refused("failed quota: q: must specify limits.cpu")), "quota"),
    (Symptom(REFUSAL, "", refused("maximum memory usage per Container is 1Gi")), "quota"),
    (Symptom(REFUSAL, "", refused('violates PodSecurity "restricted:latest": x')), "admission"),
    (Symptom(REFUSAL, "", 'admission webhook "w" denied the request: no'), "admission"),
    (Symptom(REFUSAL, "", refused("ValidatingAdmissionPolicy 'p' denied request: no")),
     "admission"),
    (Symptom(REFUSAL, "", refused('pod rejected: RuntimeClass "x" not found')), "admission"),
    (Symptom(REFUSAL, "", 'pods is forbidden: User "hub" cannot create resource "pods"'), "rights"),
    (Symptom(REFUSAL, "", 'Pod "s" is invalid: spec.hostname: Invalid value'), "invalid"),
    (Symptom(REFUSAL, "", "something new"), None),
    (Symptom(RETRY, "", WEBHOOK), "webhook-down"),
    (Symptom(RETRY, "", "etcdserver: leader changed"), None),
    (Symptom(CONTAINER, "p", "InvalidImageName: couldn't parse"), "image-name"),
    (Symptom(CONTAINER, "p", "ErrImageNeverPull: not present"), "image-name"),
    (Symptom(CONTAINER, "p", 'ErrImagePull: failed to resolve "x": x: not found'), "image-missing"),
    (Symptom(CONTAINER, "p", 'ImagePullBackOff: Back-off pulling image "x": ErrImagePull: pull '
                             "access denied, repository does not exist"), "image-missing"),
    (Symptom(CONTAINER, "p", "ErrImagePull: dial tcp: connection refused"), "image"),
    (Symptom(CONTAINER, "p", 'ImagePullBackOff: Back-off pulling image "x"'), "image"),
    (Symptom(CONTAINER, "p", 'CreateContainerConfigError: secret "x" not found'), "config"),
    (Symptom(CONTAINER, "p", "CrashLoopBackOff: back-off 10s", restarts=1), "crash"),
    (Symptom(CONTAINER, "p", "CrashLoopBackOff: back-off 20s", restarts=2), "crash-loop"),
    (Symptom(CONTAINER, "p", "Ended: Error, exit code 1", restarts=2), "crash-loop"),
    (Symptom(CONTAINER, "p", "RunContainerError: exec: no such file"), "crash"),
    (Symptom(CONTAINER, "p", "SomethingNew: words"), None),
    (Symptom(SCHEDULING, "p", UNSCHEDULABLE), "unschedulable"),
    (Symptom(SCHEDULING, "p", UNSCHEDULABLE, heard=HEARD_UP), "scaling-up"),
    (Symptom(SCHEDULING, "p", UNSCHEDULABLE, heard=("Nominated: Pod should schedule on: x",)),
     "scaling-up"),
    (Symptom(SCHEDULING, "p", UNSCHEDULABLE, heard=(*HEARD_NONE, *HEARD_UP)), "scaling-up"),
    (Symptom(SCHEDULING, "p", UNSCHEDULABLE, heard=HEARD_NONE), "no-scale-up"),
    (Symptom(SCHEDULING, "p", 'Unschedulable: 0/2 nodes are available: persistentvolumeclaim "x" '
                              "not found. not found", heard=HEARD_UP), "claim-missing"),
    (Symptom(SCHEDULING, "p", UNBOUND), "claim-unbound"),
    (Symptom(SCHEDULING, "p", "Unnoticed: the scheduler 'x' has not looked at it"), "unnoticed"),
    (Symptom(QUEUE, "p", "SchedulingGated: it waits"), "queue"),
    (Symptom(REFERENCE, "p", "it refers to ResourceClaim/hub/x, which does not exist"),
     "reference"),
    (Symptom(CONTROLLER, "d", FORBIDDEN + "exceeded quota: q"), "quota"),
    (Symptom(CONTROLLER, "d", "FailedCreate: " + WEBHOOK), "webhook-down"),
    (Symptom(CONTROLLER, "d", "FailedCreate: something new"), "pods-not-made"),
    (Symptom(EVENT, "s", FORBIDDEN + 'violates PodSecurity "restricted:latest"'), "admission"),
    (Symptom(EVENT, "p", 'FailedMount: MountVolume.SetUp failed for volume "v" : secret "x" not '
                         "found"), "mount-missing"),
    (Symptom(EVENT, "p", "FailedMount: ... references non-existent secret key: k"),
     "mount-missing"),
    (Symptom(EVENT, "p", "FailedAttachVolume: Multi-Attach error for volume"), "mount"),
    (Symptom(EVENT, "p", 'FailedMount: failed to fetch PVC from API server: persistentvolumeclaims '
                         '"c" is forbidden: User "system:node:n" cannot get resource: no '
                         "relationship found between node 'n' and this object"), "mount"),
    (Symptom(EVENT, "p", "FailedCreatePodSandBox: Failed to create pod sandbox"), "sandbox"),
    (Symptom(EVENT, "c", 'ProvisioningFailed: storageclass.storage.k8s.io "x" not found'),
     "storage-class"),
    (Symptom(EVENT, "c", "ProvisioningFailed: rpc error: quota"), "provisioning"),
    (Symptom(EVENT, "c", "FailedBinding: no persistent volumes available for this claim and no "
                         "storage class is set"), "no-volume"),
    (Symptom(EVENT, "p", "FailedResourceClaimCreation: PodResourceClaim gpu"), "claim-template"),
    (Symptom(EVENT, "p", "FailedScheduling: 0/2 nodes are available"), None),
    (Symptom(EVENT, "p", "Pulled: image"), None),
])  # fmt: skip
def test_the_first_rule_that_fits(symptom: Symptom, name: str | None) -> None:
    rules = FailureRules()
    assert rules.match(symptom) == (DEFAULTS[name] if name else None)


def test_every_default_rule_is_one_that_an_administrator_could_write() -> None:
    given_as = ("where", "pattern", "reason", "grace", "restarts", "heard")
    rows = {f"mine-{n}": {k: getattr(r, k) for k in given_as} for n, r in DEFAULTS.items()}
    made = FailureRules(rows).rows
    assert list(made) == [*rows, *DEFAULTS]
    assert [made[f"mine-{name}"] for name in DEFAULTS] == list(DEFAULTS.values())


def test_the_words_for_refusals_and_how_long_an_answer_is_worth_another_try() -> None:
    rules = FailureRules({"webhook-down": {"grace": 3}})
    assert rules.refused(refused("exceeded quota: q")) == "quota"
    assert rules.refused(WEBHOOK) == "admission"
    assert rules.refused("something new") == "cluster"
    assert rules.retried_for(WEBHOOK) == 3
    assert rules.retried_for("etcdserver: leader changed") is None


# -- the administrator's changes ------------------------------------------------------------------


def test_a_rule_can_be_changed_dropped_and_added() -> None:
    rules = FailureRules({
        "image": {"grace": None},
        "queue": None,
        "licence": {"where": "event", "pattern": "^No", "reason": "licence", "grace": 1.5},
    }).rows  # fmt: skip
    assert next(iter(rules)) == "licence"
    assert rules["licence"] == Rule((EVENT,), "^No", "licence", 1.5)
    assert rules["image"].grace is None
    assert rules["image"].pattern == DEFAULTS["image"].pattern
    assert "queue" not in rules


WHOLE = {"where": "event", "pattern": "x", "reason": "x", "grace": 1}


@pytest.mark.parametrize(("changes", "words"), [
    ([], "it is a list, not a dictionary of rules by name"),
    ({"image": 5}, "rule 'image' is 5, not a dictionary with some of where, pattern, reason"),
    ({"mine": None}, "rule 'mine' is None"),
    ({"image": {"gracee": 5}}, "rule 'image' has no key 'gracee': its keys are where, pattern"),
    ({"mine": {"grace": 5}}, "rule 'mine' lacks where, pattern, reason; .* default rules are"),
    ({"image": {"pattern": "("}}, r"rule 'image': pattern is '\(', not a regular expression"),
    ({"image": {"pattern": None}}, "rule 'image': pattern is None, not a regular expression"),
    ({"image": {"heard": "["}}, r"rule 'image': heard is '\[', not a regular expression"),
    ({"image": {"where": "events"}}, "where is .*'events'.*, not one or several of refusal, retry"),
    ({"image": {"where": []}}, "not one or several of"),
    ({"image": {"where": 3}}, "not one or several of"),
    ({"image": {"reason": "Two words"}}, "reason is 'Two words', not a word of at most 32"),
    ({"image": {"reason": ""}}, "not a word"),
    ({"image": {"grace": -1}}, "grace is -1, not a number of seconds, or None for never"),
    ({"image": {"grace": "10"}}, "grace is '10', not a number"),
    ({"image": {"grace": True}}, "grace is True, not a number"),
    ({"image": {"grace": math.nan}}, "grace is nan, not a number"),
    ({"image": {"restarts": -1}}, "restarts is -1, not a number of restarts"),
    ({"image": {"restarts": 1.5}}, "restarts is 1.5, not"),
    ({"mine": {**WHOLE, "where": ["event", 3]}}, "where is"),
])  # fmt: skip
def test_a_bad_rule_is_named_with_what_belongs_there(changes: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FailureRules(changes)


KEYS = st.sampled_from(["where", "pattern", "reason", "grace", "restarts", "heard", "other"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
NAMES = st.sampled_from([*DEFAULTS, "mine", ""])


@given(st.dictionaries(NAMES, PLAIN | st.dictionaries(KEYS, PLAIN | st.lists(PLAIN)), max_size=3),
       st.text())  # fmt: skip
def test_whatever_is_configured_is_refused_in_words_or_works(changes: Any, words: str) -> None:
    try:
        rules = FailureRules(changes)
    except ValueError as error:
        if not re.match(r"rule |it is a ", str(error)):
            raise
        return
    for where in failures.WHERE:
        symptom = Symptom(where, "x", words, heard=(words,))
        for trouble in Course(rules).troubles([symptom], 0.0):
            assert trouble.due >= 0


# -- how long -------------------------------------------------------------------------------------


def test_a_trouble_lasts_until_it_is_gone_and_then_begins_anew() -> None:
    course = Course(FailureRules())
    pull = Symptom(CONTAINER, "p", "ErrImagePull: refused")
    back_off = Symptom(CONTAINER, "p", "ImagePullBackOff: refused")
    assert [t.due for t in course.troubles([pull], 100)] == [115]
    assert [t.due for t in course.troubles([back_off], 110)] == [115]
    assert course.troubles([], 111) == []
    assert [t.due for t in course.troubles([pull], 112)] == [127]


def test_an_autoscalers_word_gives_more_time_from_the_beginning_on() -> None:
    course = Course(FailureRules())
    plain = Symptom(SCHEDULING, "p", UNSCHEDULABLE)
    coming = Symptom(SCHEDULING, "p", UNSCHEDULABLE, heard=HEARD_UP)
    assert [t.due for t in course.troubles([plain], 0)] == [60]
    assert [t.due for t in course.troubles([coming], 30)] == [900]


def test_time_in_a_queue_does_not_count() -> None:
    course = Course(FailureRules())
    gated = list(of_pod("Pod/hub/s", pod(spec={"schedulingGates": [{"name": "g"}]})))
    assert [t.due for t in course.troubles(gated, 0)] == [math.inf]
    waits = list(of_pod("Pod/hub/s", pod(conditions=[placed("Unschedulable")])))
    assert [t.due for t in course.troubles(waits, 5000)] == [5060]


def test_what_is_due_first_is_told_first() -> None:
    both = [Symptom(SCHEDULING, "p", UNBOUND), Symptom(EVENT, "c", "ProvisioningFailed: "
            'storageclass.storage.k8s.io "x" not found')]  # fmt: skip
    assert [t.symptom.where for t in Course(FailureRules()).troubles(both, 0)] == [
        EVENT,
        SCHEDULING,
    ]


@given(st.lists(st.tuples(st.floats(0, 50), st.booleans()), max_size=20))
def test_no_trouble_is_ever_due_before_its_grace(steps: list[tuple[float, bool]]) -> None:
    course = Course(FailureRules())
    symptom = Symptom(CONTAINER, "p", "ErrImagePull: refused")
    now, since = 0.0, None
    for passed, there in steps:
        now += passed
        since = (now if since is None else since) if there else None
        found = course.troubles([symptom] if there else [], now)
        assert [t.due for t in found] == ([since + 15] if since is not None else [])


# -- what a pod says ------------------------------------------------------------------------------


def placed(reason: str, status: str = "False") -> dict[str, str]:
    return {"type": "PodScheduled", "status": status, "reason": reason, "message": "words"}


def pod(spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "s"}, "spec": spec or {}, "status": status}


def container(**fields: Any) -> dict[str, Any]:
    return {"name": "c", "restartCount": 0, **fields}


WAITING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
OVER = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
DONE = {"terminated": {"reason": "Completed", "exitCode": 0}}
CREATING = {"waiting": {"reason": "ContainerCreating"}}
READY = placed("x", "True")


@pytest.mark.parametrize(("live", "words"), [
    (pod(), ["scheduling Pod/hub/s: Unnoticed: the scheduler 'default-scheduler' has not looked"]),
    (pod({"schedulerName": "mine"}), ["scheduling Pod/hub/s: Unnoticed: the scheduler 'mine' has"]),
    (pod({"nodeName": "n"}), []),
    (pod(conditions=[placed("Unschedulable")]), ["scheduling Pod/hub/s: Unschedulable: words"]),
    (pod({"schedulingGates": [{"name": "a"}, {"name": "b"}]}),
     ["queue Pod/hub/s: SchedulingGated: it waits in the queue, held by a, b"]),
    (pod({"schedulingGates": [{"name": "a"}]}, conditions=[placed("SchedulingGated")]),
     ["queue Pod/hub/s: SchedulingGated: it waits in the queue, held by a"]),
    (pod(conditions=[placed("SchedulingGated")]), []),
    (pod(conditions=[READY], containerStatuses=[container(state=CREATING)]), []),
    (pod(conditions=[READY], containerStatuses=[container(state={"running": {}})]), []),
    (pod(conditions=[READY], containerStatuses=[container(state=WAITING, lastState=OVER)]),
     ["container Pod/hub/s, container c: CrashLoopBackOff: back-off; it ended: OOMKilled, exit"]),
    (pod(conditions=[READY], initContainerStatuses=[container(state=OVER)]),
     ["container Pod/hub/s, container c: Ended: OOMKilled, exit code 137"]),
    (pod(conditions=[READY], initContainerStatuses=[container(state=DONE)]), []),
])  # fmt: skip
def test_what_a_pod_says(live: dict[str, Any], words: list[str]) -> None:
    found = [f"{symptom.where} {symptom}" for symptom in of_pod("Pod/hub/s", live)]
    assert len(found) == len(words)
    assert all(text.startswith(start) for text, start in zip(found, words, strict=True)), found
    live["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    assert list(of_pod("Pod/hub/s", live)) == []


def test_what_has_begun_and_what_is_placed() -> None:
    assert not failures.begun(pod(containerStatuses=[container(state=CREATING)]))
    assert failures.begun(pod(containerStatuses=[container(state=WAITING, lastState=OVER)]))
    assert failures.begun(pod(initContainerStatuses=[container(state={"running": {}})]))
    assert failures.scheduled(pod(conditions=[READY]))
    assert not failures.scheduled(pod())


def test_what_a_controller_says() -> None:
    failing = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "m"}
    live = {"status": {"conditions": [failing]}}
    assert [str(s) for s in of_controller("Deployment/hub/d", live)] == [
        "Deployment/hub/d: FailedCreate: m"
    ]
    assert list(of_controller("Deployment/hub/d", {"status": {}})) == []
