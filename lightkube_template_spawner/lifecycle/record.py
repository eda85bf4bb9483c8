"""What the hub's database remembers of one server: enough to find it again, and no secret; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from lightkube_template_spawner.objects.connection import Address
from lightkube_template_spawner.objects.identity import Identity
from lightkube_template_spawner.objects.ref import ObjectRef

STATE = "lightkube_template_spawner"  # our part of a spawner's state
Namespaces = Mapping[str, tuple[str, ...]]  # of a server's objects, by kind


@dataclass(frozen=True, slots=True)
class Record:
    """One server's objects, by kind and namespace; never manifests, environment or tokens.

    ``kinds`` (name to namespaces, "" for cluster-scoped) hold objects that go when the server
    stops, ``retained`` objects that stay. The UID of ``connection``, which JupyterHub connects
    through, is "" until it was applied; ``address`` is how the template leads to the connection
    object's address, None in a record of a version that did not keep it. ``pod`` is
    the pod that the template itself renders for the server, "" where a controller makes it.
    ``live`` is true from the first write until everything that goes at a stop is gone. ``note`` is
    what befell the server by itself, for the user's next start.
    """

    identity: Identity
    namespace: str
    cluster: str = ""
    kinds: Namespaces = field(default_factory=dict)
    retained: Namespaces = field(default_factory=dict)
    connection: ObjectRef | None = None
    address: Address | None = None
    pod: str = ""
    pvc: str = ""
    url: str = ""
    live: bool = False
    ready: bool = False
    note: str = ""

    def to_state(self) -> dict[str, Any]:
        """JSON for the hub's database."""
        return {
            **{name: getattr(self, name) for name in _FIELDS},
            "kinds": dict(self.kinds),
            "retained": dict(self.retained),
            "identity": self.identity.to_state(),
            "connection": self.connection and self.connection.to_state(),
            "address": self.address and asdict(self.address),
        }

    def for_spawner(self) -> dict[str, Any]:
        """Our part of a spawner's state, and names as KubeSpawner has them, for its tools."""
        kubespawner_names = {"pod_name": self.pod, "pvc_name": self.pvc}
        names = {key: name for key, name in kubespawner_names.items() if name}
        return {STATE: self.to_state(), "namespace": self.namespace, **names}

    @property
    def pods_in(self) -> str:
        """The namespace of the server's pods: a Service, too, finds them in its own only."""
        return (self.connection and self.connection.namespace) or self.namespace

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace that holds, or may hold, objects of this server."""
        places = [*self.kinds.values(), *self.retained.values(), (self.namespace,)]
        return tuple(sorted({name for names in places for name in names if name}))

    @classmethod
    def from_state(cls, state: object) -> Record | None:
        """Read back; None for another spawner's state or an unreadable one."""
        if not isinstance(state, Mapping):
            return None
        identity = Identity.from_state(state.get("identity"))
        namespace = state.get("namespace")
        if identity is None or not isinstance(namespace, str):
            return None
        connection, address = state.get("connection"), state.get("address")
        return cls(
            identity,
            namespace,
            cluster=str(state.get("cluster") or ""),
            kinds=_namespaces(state.get("kinds")),
            retained=_namespaces(state.get("retained")),
            connection=ObjectRef.from_state(connection)
            if isinstance(connection, Mapping)
            else None,
            address=_address(address) if isinstance(address, Mapping) else None,
            pod=str(state.get("pod") or ""),
            pvc=str(state.get("pvc") or ""),
            url=str(state.get("url") or ""),
            live=state.get("live") is True,
            ready=state.get("ready") is True,
            note=str(state.get("note") or ""),
        )

    @classmethod
    def of_spawner(cls, state: object) -> Record | None:
        """The record in all that the hub keeps of one spawner; None if it holds none."""
        return cls.from_state(state.get(STATE)) if isinstance(state, Mapping) else None

    def stopped(self) -> Record:
        """What is still true once the server is gone: its identity and what it keeps."""
        return replace(
            self,
            kinds={},
            connection=None,
            address=None,
            pod="",
            url="",
            live=False,
            ready=False,
        )


_FIELDS: Final = tuple(each.name for each in fields(Record))


def merged(*parts: Namespaces) -> dict[str, tuple[str, ...]]:
    """All kinds, each with every namespace that any of them names."""
    places: dict[str, set[str]] = {}
    for part in parts:
        for kind, names in part.items():
            places.setdefault(kind, set()).update(names)
    return {kind: tuple(sorted(names)) for kind, names in places.items()}


def _address(state: Mapping[str, Any]) -> Address:
    names = ("path", "port", "scheme", "external_name")
    return Address(*(str(state.get(name) or "") for name in names))


def _namespaces(state: object) -> Namespaces:
    if not isinstance(state, Mapping):
        return {}
    return {kind: _texts(places) for kind, places in state.items() if isinstance(kind, str)}


def _texts(items: object) -> tuple[str, ...]:
    return tuple(i for i in items if isinstance(i, str)) if isinstance(items, list | tuple) else ()
