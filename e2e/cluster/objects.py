"""The objects that each cluster of ours starts with, on kind and locally."""

from __future__ import annotations

from typing import Any

from e2e.cluster.model import FAKE_NODE, FAKE_NODE_TAINT, PROVISIONER, STORAGE_CLASSES

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def storage_classes() -> list[dict[str, Any]]:
    """One class for each way of binding; both grow, both leave nothing behind."""
    modes = {
        STORAGE_CLASSES.immediate: "Immediate",
        STORAGE_CLASSES.wait_for_first_consumer: "WaitForFirstConsumer",
    }
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": name,
                "annotations": {DEFAULT_CLASS: str(mode == "Immediate").lower()},
            },
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": mode,
            "allowVolumeExpansion": True,
        }
        for name, mode in modes.items()
    ]


def fake_node() -> dict[str, Any]:
    """The node that kwok plays; its taint keeps other pods away."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": FAKE_NODE,
            "annotations": {FAKE_NODE_TAINT: "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": FAKE_NODE},
        },
        "spec": {"taints": [{"key": FAKE_NODE_TAINT, "value": "fake", "effect": "NoSchedule"}]},
    }
