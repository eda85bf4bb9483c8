"""Which kinds run something, and how they are asked to go."""

from __future__ import annotations

import pytest

from lightkube_template_spawner.cluster import kinds
from lightkube_template_spawner.cluster.api import Kind
from tests.support.objects import CONFIG, POD


@pytest.mark.parametrize(("kind", "policy", "first"), [
    (POD, "Background", True),
    (CONFIG, "Background", False),
    (Kind("", "v1", "PersistentVolumeClaim", "x", True), "Background", False),
    (Kind("apps", "v1", "Deployment", "x", True), "Foreground", True),
    (Kind("batch", "v1", "Job", "x", True), "Foreground", True),
    (Kind("networking.k8s.io", "v1", "NetworkPolicy", "x", True), "Background", False),
    (Kind("policy", "v1", "PodDisruptionBudget", "x", True), "Background", False),
    (Kind("autoscaling", "v2", "HorizontalPodAutoscaler", "x", True), "Background", False),
    (Kind("example.org", "v1", "Widget", "x", True), "Foreground", True),
    (Kind("gateway.networking.k8s.io", "v1", "HTTPRoute", "x", True), "Background", False),
    pytest.param(
        Kind("acme.policy", "v1", "Thing", "x", True), "Foreground", True,
    ),
], ids=str)  # fmt: skip
def test_what_goes_first_and_how(kind: Kind, policy: str, first: bool) -> None:
    assert kinds.propagation(kind) == policy
    assert kinds.is_workload(kind) is first
