"""A live object as the stores keep it: small, since a hub has thousands of them."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.objects.ref import POD, ObjectRef

Key = tuple[str, str]  # namespace ("" for cluster-scoped), name

_NOISE = frozenset({"apiVersion", "kind", "metadata"})
_Containers = list[dict[str, msgspec.Raw]] | None


class Meta(msgspec.Struct, rename="camel"):
    """The part of ``metadata`` that matters; managedFields, most of an object's size, is not."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None
    finalizers: list[str] = []
    owner_references: list[dict[str, Any]] = []

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def controlled(self) -> bool:
        """Whether a controller made it: then it is the controller's to remove."""
        return any(reference.get("controller") for reference in self.owner_references)


class Live:
    """A live object kept small: parsed metadata, the other fields as JSON until asked for."""

    __slots__ = ("kind", "meta", "parts")

    def __init__(self, kind: Kind, fields: dict[str, msgspec.Raw], *, full: bool) -> None:
        self.kind = kind
        self.meta = msgspec.json.decode(fields["metadata"], type=Meta)
        self.parts: dict[str, bytes] = {}
        if full:
            self.parts = {k: bytes(v) for k, v in fields.items() if k not in _NOISE}
            if kind.ref == POD and "spec" in self.parts:
                self.parts["spec"] = _without_variables(self.parts["spec"])

    @property
    def reference(self) -> str:
        """``Kind/namespace/name``."""
        return str(ObjectRef(self.kind.ref, self.meta.namespace, self.meta.name))

    def as_dict(self) -> dict[str, Any]:
        """As the API server writes it, without managedFields and containers' variables."""
        head = {"apiVersion": self.kind.api_version, "kind": self.kind.kind}
        body = {name: msgspec.json.decode(raw) for name, raw in self.parts.items()}
        return {**head, "metadata": msgspec.to_builtins(self.meta), **body}


def _without_variables(spec: bytes) -> bytes:
    """Most of a pod, may hold tokens, and nobody asks the store for them."""
    fields = msgspec.json.decode(spec, type=dict[str, msgspec.Raw])
    for group in ("containers", "initContainers"):
        containers = msgspec.json.decode(fields.get(group, b"null"), type=_Containers)
        for container in containers or ():
            container.pop("env", None)
        if containers:
            fields[group] = msgspec.Raw(msgspec.json.encode(containers))
    return msgspec.json.encode(fields)


def sharing(texts: dict[str, str], pool: dict[str, str]) -> dict[str, str]:
    """Equal texts kept once: most labels and annotations are the same on every object of a hub."""
    return {
        sys.intern(key): pool[key] if pool.get(key) == text else text for key, text in texts.items()
    }
