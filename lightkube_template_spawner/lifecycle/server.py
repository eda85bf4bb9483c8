"""One server that is on record, as the stores show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.live import Live
from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.objects import connection, status
from lightkube_template_spawner.objects.connection import Address, Route
from lightkube_template_spawner.objects.ref import POD, SERVICE, SLICE, ObjectRef
from lightkube_template_spawner.objects.status import State, Status


@dataclass(frozen=True, slots=True)
class Server:
    """What is on record of a server, together with the cluster that it runs in."""

    cluster: Cluster
    record: Record

    def connection(self) -> Live | None:
        """The object that the hub connects through; None while the stores do not show it."""
        ref = self.record.connection
        return self.find(ref) if ref is not None else None

    def find(self, ref: ObjectRef) -> Live | None:
        """The object of that name, whatever its UID; None while the stores do not show it."""
        return self.cluster.find(ref)

    def objects(self) -> Iterator[Live]:
        """All of its objects that the stores show."""
        for live in self.cluster.objects_of(self.record.identity.owner):
            if self.record.identity.owns_as_server(live.meta.labels):
                yield live

    def pods(self) -> list[Live]:
        """Its pods, whoever made them."""
        return [live for live in self.objects() if live.kind.ref == POD]

    def main_pods(self) -> list[Live]:
        """The pods in which the server itself runs: the template's own, or those of its Service."""
        namespace = self.record.pods_in
        if self.record.pod:
            pod = self.find(ObjectRef(POD, namespace, self.record.pod))
            return [pod] if pod is not None else []
        connection = self.connection()
        service = connection.as_dict() if connection and connection.kind.ref == SERVICE else {}
        selector = (service.get("spec") or {}).get("selector")
        return [
            live
            for live in self.pods()
            if selector
            and live.meta.namespace == namespace
            and selector.items() <= live.meta.labels.items()
        ]

    def longest_grace(self) -> int:
        """Seconds that its pods may take to end, as the template wrote them."""
        specs = [live.as_dict().get("spec") or {} for live in self.pods()]
        return max([0, *(int(s.get("terminationGracePeriodSeconds") or 0) for s in specs)])

    def slices(self, service: ObjectRef) -> list[dict[str, Any]]:
        """Where a Service of its owner leads."""
        return [
            live.as_dict()
            for live in self.cluster.objects_of(self.record.identity.owner)
            if live.kind.ref == SLICE
            and live.meta.namespace == service.namespace
            and live.meta.labels.get("kubernetes.io/service-name") == service.name
        ]

    def readiness(self, ref: ObjectRef, sightings: set[str]) -> Status:
        """The status of one object; ``sightings`` are those that the stores have had before."""
        live = self.find(ref)
        if live is None and str(ref) in sightings:
            return Status(State.FAILED, "it was deleted meanwhile")
        if live is None:
            return Status(State.IN_PROGRESS, "it is being created")
        sightings.add(str(ref))
        if ref.uid and live.meta.uid != ref.uid:
            return Status(State.IN_PROGRESS, "an earlier one is still there")
        if ref.kind == SERVICE:
            return status.service(live.as_dict(), self.slices(ref))
        return status.compute(live.as_dict())

    def address(self, live: Live, route: Route) -> Address | None:
        """How its address is found; None where an earlier version's record does not say."""
        if self.record.address is not None:
            return self.record.address
        return connection.recalled(live.as_dict(), self.record.url, route)

    def url(self, route: Route) -> str | None:
        """Where it can be reached now; None while its connection object has no address.

        Raises:
            ManifestError: the connection object can never give an address.
        """
        live = self.connection()
        if live is None:
            return None
        address = self.address(live, route)
        if address is not None:
            return connection.url(live.as_dict(), address, route)
        if not self.record.url:
            raise ManifestError(
                f"{live.reference}: an earlier version started this server and did not record how "
                "to find its address: stop the server and start it again"
            )
        return self.record.url
