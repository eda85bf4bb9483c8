"""One server that is on record, as the stores show it."""

from __future__ import annotations

from dataclasses import dataclass

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.live import Live
from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.objects import connection
from lightkube_template_spawner.objects.connection import Address, Route
from lightkube_template_spawner.objects.ref import ObjectRef


@dataclass(frozen=True, slots=True)
class Server:
    """What is on record of a server, together with the cluster that it runs in."""

    cluster: Cluster
    record: Record

    def connection(self) -> Live | None:
        """The object that the hub connects through; None while the stores do not show it."""
        made = self.record.connection
        return self.find(made) if made is not None else None

    def find(self, ref: ObjectRef) -> Live | None:
        """The object of that name, whatever its UID; None while the stores do not show it."""
        return self.cluster.known(str(ref.kind), ref.namespace, ref.name)

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
