"""The resources that the server has."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.fake_apiserver.messages import unknown_resource

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")

Resource = tuple[str, str]  # group, plural: all versions of a resource are the same objects


@dataclass(frozen=True)
class Served:
    """One resource; ``unnamed`` ones are listed by discovery with ``responseKind: null``."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    verbs: tuple[str, ...] = VERBS
    unnamed: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> Resource:
        return self.group, self.plural

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


KINDS = (
    *(
        Served("", "v1", kind, kind.lower() + "s")
        for kind in ("Pod", "Secret", "Service", "ConfigMap", "PersistentVolumeClaim", "Event")
    ),
    Served("", "v1", "ServiceAccount", "serviceaccounts"),
    Served("", "v1", "Namespace", "namespaces", False, tuple(v for v in VERBS if "coll" not in v)),
    Served("", "v1", "Binding", "bindings", verbs=("create",)),
    Served("apps", "v1", "Deployment", "deployments"),
    Served("apps", "v1", "StatefulSet", "statefulsets"),
    Served("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    Served("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    Served("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
    Served("example.org", "v1", "Widget", "widgets"),
    Served("example.org", "v1beta1", "Widget", "widgets"),
    Served("example.org", "v1", "Nameless", "namelesses", unnamed=True),
)


class Kinds(list[Served]):
    """What is served at present; a test may append a kind, as one that installs a CRD does."""

    def at(self, resource: Resource, version: str = "") -> Served:
        """The resource in that version, or in its first; 404 if there is none."""
        for served in self:
            if served.resource == resource and version in ("", served.version):
                return served
        raise unknown_resource()

    def of(self, api_version: str, kind: str) -> Served:
        """The resource that a manifest belongs to."""
        return next(s for s in self if (s.api_version, s.kind) == (api_version, kind))
