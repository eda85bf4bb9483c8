"""What an object is called: its kind, where it is, its name, and which one of that name; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class KindRef(NamedTuple):
    """A kind as manifests name it; its text, such as ``v1/Pod``, is that of traits and records."""

    api_version: str
    kind: str

    def __str__(self) -> str:
        return f"{self.api_version}/{self.kind}"

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> KindRef:
        """The kind of a manifest or a live object."""
        return cls(manifest["apiVersion"], manifest["kind"])


POD = KindRef("v1", "Pod")
SERVICE = KindRef("v1", "Service")
NAMESPACE = KindRef("v1", "Namespace")
CLAIM = KindRef("v1", "PersistentVolumeClaim")
SLICE = KindRef("discovery.k8s.io/v1", "EndpointSlice")


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object; ``namespace`` is "" if it has none, ``uid`` is "" for any object of that name.

    Its text is ``Kind/namespace/name``, or ``Kind/name`` where no namespace is known.
    """

    kind: KindRef
    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind.kind, self.namespace, self.name) if part)

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> ObjectRef:
        """What a manifest or a live object calls itself."""
        metadata = manifest["metadata"]
        return cls(
            KindRef.of(manifest),
            metadata.get("namespace") or "",
            metadata["name"],
            metadata.get("uid") or "",
        )

    def to_state(self) -> dict[str, str]:
        """The JSON that ``from_state`` reads back."""
        api_version, kind = self.kind
        rest = {"namespace": self.namespace, "name": self.name, "uid": self.uid}
        return {"api_version": api_version, "kind": kind, **rest}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ObjectRef:
        """Read back; what is missing is ""."""
        names = ("api_version", "kind", "namespace", "name", "uid")
        api_version, kind, *rest = (str(state.get(name) or "") for name in names)
        return cls(KindRef(api_version, kind), *rest)
