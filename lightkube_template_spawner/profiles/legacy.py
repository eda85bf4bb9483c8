"""How singleuser-profiles 0.1.1 merges resources, for those who rely on it; pure.

Requests and limits are each replaced as a whole, and so are both by ``mem_limit`` or ``cpu_limit``:
what a later profile leaves out of them is lost.
"""

from __future__ import annotations

from typing import Any


def no_resources() -> dict[str, Any]:
    """The resources of no profile: every key is there, and null."""
    return {
        "requests": {"memory": None, "cpu": None},
        "limits": {"memory": None, "cpu": None},
        "mem_limit": None,
        "cpu_limit": None,
    }


def add_resources(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """``before`` with one more profile's resources."""
    amounts = {**before, **more}
    limits = {"memory": amounts.get("mem_limit"), "cpu": amounts.get("cpu_limit")}
    return {"requests": limits, "limits": limits} if any(limits.values()) else amounts


def resources(merged: dict[str, Any]) -> dict[str, Any]:
    """Nothing at all, which leaves a pod's own, where requests and limits are both empty."""
    return merged if merged.get("requests") or merged.get("limits") else {}
