"""What the server says that it serves: all in two answers, or, as before, one a group."""

from __future__ import annotations

from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.kinds import Kinds, Served
from tests.support.fake_apiserver.messages import Obj, Refusal, Seen, unknown_resource


def discovery(seen: Seen, behaviour: Behaviour) -> Obj:
    """The answer to ``/api``, ``/apis``, or either with a group and version."""
    path = seen.path
    aggregated = "APIGroupDiscoveryList" in seen.accept and not behaviour.legacy
    if path in ("/api", "/apis") and aggregated:
        return _aggregated(behaviour, core=path == "/api")
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return _groups(behaviour.kinds)
    group_version = path.removeprefix("/apis/").removeprefix("/api/")
    resources = [served for served in behaviour.kinds if served.api_version == group_version]
    if group_version in behaviour.stale:
        raise Refusal(503, "ServiceUnavailable", "service unavailable")
    if not resources:
        raise unknown_resource()
    return {"kind": "APIResourceList", "groupVersion": group_version, "resources": [
        entry for served in resources for entry in _with_status(served)
    ]}  # fmt: skip


def _groups(kinds: Kinds) -> Obj:
    groups: dict[str, list[str]] = {}
    for served in kinds:
        if served.version not in groups.setdefault(served.group, []):
            groups[served.group].append(served.version)
    return {"kind": "APIGroupList", "groups": [
        {
            "name": name,
            "versions": [{"groupVersion": f"{name}/{v}", "version": v} for v in versions],
            "preferredVersion": {"groupVersion": f"{name}/{versions[0]}"},
        }
        for name, versions in groups.items() if name
    ]}  # fmt: skip


def _with_status(served: Served) -> tuple[Obj, Obj]:
    return (
        {"name": served.plural, "kind": served.kind, "namespaced": served.namespaced,
         "verbs": list(served.verbs), "singularName": served.kind.lower()},
        {"name": f"{served.plural}/status", "kind": served.kind, "singularName": "",
         "namespaced": served.namespaced, "verbs": ["get", "patch", "update"]},
    )  # fmt: skip


def _aggregated(behaviour: Behaviour, *, core: bool) -> Obj:
    groups: dict[str, dict[str, list[Obj]]] = {}
    for served in behaviour.kinds:
        if (served.group == "") is core:
            group = groups.setdefault(served.group, {})
            group.setdefault(served.version, []).append(_entry(served))
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [
            {
                "metadata": {"name": group} if group else {},
                "versions": [
                    {"version": version, "freshness": "Stale"}
                    if f"{group}/{version}" in behaviour.stale
                    else {"version": version, "resources": resources, "freshness": "Current"}
                    for version, resources in versions.items()
                ],
            }
            for group, versions in groups.items()
        ],
    }


def _entry(served: Served) -> Obj:
    kind = {"group": served.group, "version": served.version, "kind": served.kind}
    return {
        "resource": served.plural,
        "responseKind": None if served.unnamed else kind,
        "scope": "Namespaced" if served.namespaced else "Cluster",
        "verbs": list(served.verbs),
    }
