"""Whether a server that is on record still runs, read from the stores; "dead" needs evidence."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from lightkube_template_spawner import status
from lightkube_template_spawner.api import Kind
from lightkube_template_spawner.cluster import Cluster
from lightkube_template_spawner.errors import ClusterError
from lightkube_template_spawner.identity import OWNER
from lightkube_template_spawner.record import Record
from lightkube_template_spawner.reflector import Live, Reflector
from lightkube_template_spawner.status import Ended

# As discovery asks for them: a kind made by hand, without verbs, would be watched a second time.
POD = ("v1", "Pod")
SLICE = ("discovery.k8s.io/v1", "EndpointSlice")


async def watch(cluster: Cluster, record: Record) -> list[Reflector]:
    """Open the stores that tell about this server, and wait for their first list.

    The connection object's comes first, that of the pods last.

    Raises:
        ClusterError: the API server refuses, or does not know the kind.
    """
    stores = []
    if record.connection is not None:
        connection = record.connection
        kind = await cluster.discovery.kind(connection.api_version, connection.kind)
        stores.append(cluster.reflector(kind, connection.namespace, full=True))
        if kind.kind == "Service" and kind.group == "":
            slices = await cluster.discovery.kind(*SLICE)
            stores.append(cluster.reflector(slices, connection.namespace))
    stores.append(cluster.reflector(await cluster.discovery.kind(*POD), record.pods_in))
    for store in stores:
        await store.sync()
    return stores


def pods(cluster: Cluster, record: Record) -> Iterator[Live]:
    """The server's pods, whoever made them."""
    for live in cluster.objects_of(record.identity.owner):
        if live.kind.kind == "Pod" and record.identity.owns_as_server(live.meta.labels):
            yield live


def longest_grace(cluster: Cluster, record: Record) -> int:
    """Seconds that the server's pods may take to end, as the template wrote them."""
    found = [0]
    for live in pods(cluster, record):
        spec = live.as_dict().get("spec") or {}
        found.append(int(spec.get("terminationGracePeriodSeconds") or 0))
    return max(found)


def suspicious(cluster: Cluster, record: Record) -> bool:
    """Whether the stores no longer show a healthy server; costs no request and proves nothing."""
    connection = record.connection
    if connection is None:
        return False
    names = {(connection.kind, connection.namespace, connection.name)}
    if record.pod:
        names.add(("Pod", record.pods_in, record.pod))
    for live in cluster.objects_of(record.identity.owner):
        healthy = not live.meta.deletion_timestamp
        if healthy and live.kind.kind == "Pod" and live.parts:
            healthy = status.ended(live.as_dict()) is None
        if healthy:
            names.discard((live.kind.kind, live.meta.namespace, live.meta.name))
    return bool(names)


async def ended(cluster: Cluster, record: Record, log: logging.Logger) -> Ended | None:
    """How the server ended, or None while it runs, starts, or cannot be asked about.

    Reads stores only; what they do not show any more is confirmed by one GET.

    Raises:
        ClusterError: the stores could not be filled.
    """
    stores = await watch(cluster, record)
    connection = record.connection
    if connection is None or not connection.uid:
        return None
    where = (connection.namespace, connection.name)
    over = await _object_ended(cluster, stores[0], where, connection.uid, log)
    if over is None and record.pod and connection.kind != "Pod":
        over = await _object_ended(cluster, stores[-1], (record.pods_in, record.pod), "", log)
    return over


async def _object_ended(
    cluster: Cluster, store: Reflector, where: tuple[str, str], uid: str, log: logging.Logger
) -> Ended | None:
    live = store.get(*where)
    if live is None or (uid and live.meta.uid != uid):
        return await _confirm_gone(cluster, store.kind, where, uid, log)
    if live.meta.deletion_timestamp:
        return Ended(1, f"{live.reference} is being deleted")
    return status.ended(live.as_dict()) if live.kind.kind == "Pod" else None


async def _confirm_gone(
    cluster: Cluster, kind: Kind, where: tuple[str, str], uid: str, log: logging.Logger
) -> Ended | None:
    reference = "/".join((kind.kind, *where))
    try:
        live = await cluster.get(kind, *where)
    except ClusterError as error:
        log.warning("%s cannot be asked about: %s", reference, error)
        return None
    if live is None or (uid and live["metadata"].get("uid") != uid):
        return Ended(1, f"{reference} was deleted")
    if OWNER not in (live["metadata"].get("labels") or {}):
        log.warning("%s lost its label %s; it still runs", reference, OWNER)
    return None
