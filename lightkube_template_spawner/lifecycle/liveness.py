"""Whether a server that is on record still runs, read from the stores; "dead" needs evidence."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.live import Live
from lightkube_template_spawner.cluster.reflector import Sight
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import ClusterError
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects import status
from lightkube_template_spawner.objects.identity import OWNER
from lightkube_template_spawner.objects.ref import POD, SERVICE, SLICE, ObjectRef
from lightkube_template_spawner.objects.status import Ended


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a server that is not seen to run may take to come back; 0 seconds: for ever."""

    crash_loop_restarts: int = 3
    node_lost: float = 300.0
    replacement: float = 600.0


@dataclass(frozen=True, slots=True)
class Missing:
    """An object that the stores do not show; only the API server can say that it is gone."""

    ref: ObjectRef


@dataclass(frozen=True, slots=True)
class Silent:
    """No sign of life and no proof of an end: dead after ``patience`` seconds, if not 0."""

    reason: str
    patience: float


async def watch(server: Server) -> list[Sight]:
    """Open the stores that tell about this server, and wait for their first list.

    The connection object's comes first, that of the pods last.

    Raises:
        ClusterError: the API server refuses, or does not know the kind.
    """
    cluster, record = server.cluster, server.record
    places: list[tuple[Kind, str, bool]] = []
    if record.connection is not None:
        connection = record.connection
        kind = await cluster.discovery.kind(*connection.kind)
        places.append((kind, connection.namespace, True))
        if connection.kind == SERVICE:
            slices = await cluster.discovery.kind(*SLICE)
            places.append((slices, connection.namespace, False))
    places.append((await cluster.discovery.kind(*POD), record.pods_in, False))
    stores = await gather(lambda place: cluster.watch(place[0], place[1], full=place[2]), places)
    return [(store, place[1]) for store, place in zip(stores, places, strict=True)]


def look(server: Server, limits: Limits) -> Ended | Missing | Silent | None:
    """What the stores show of a server; None where it runs, or where they cannot tell."""
    record = server.record
    connection = record.connection
    if connection is None or not connection.uid:
        return None
    for ref in _essentials(record):
        live = server.find(ref)
        if live is None or (ref.uid and live.meta.uid != ref.uid):
            return Missing(ref)
        finding = _pod(live, limits) if ref.kind == POD else _object(live)
        if finding is not None:
            return finding
    if not record.pod and connection.kind == SERVICE:
        return _replacement(server, limits)
    return None


def _essentials(record: Record) -> list[ObjectRef]:
    """The objects without which the server is over, if they are known."""
    connection = record.connection
    if connection is None or not connection.uid:
        return []
    refs = [connection]
    if record.pod and connection.kind != POD:
        refs.append(ObjectRef(POD, record.pods_in, record.pod))
    return refs


async def ask(server: Server, limits: Limits, log: logging.Logger) -> Ended | None:
    """What the API server itself says, where a store is closed to us and would tell old news."""
    for ref in _essentials(server.record):
        end = await confirm(server.cluster, Missing(ref), log, limits)
        if end is not None:
            return end
    return None


async def confirm(
    cluster: Cluster, missing: Missing, log: logging.Logger, limits: Limits | None = None
) -> Ended | None:
    """Ask the API server about an object that the stores do not show; by limits, whether it runs.

    None where it is there, and where the API server does not tell.
    """
    ref = missing.ref
    try:
        kind = await cluster.discovery.kind(*ref.kind)
        live = await cluster.get(kind, ref.namespace, ref.name)
    except ClusterError as error:
        log.warning("%s cannot be asked about: %s", ref, error)
        return None
    if live is None or (ref.uid and live["metadata"].get("uid") != ref.uid):
        return Ended(1, f"{ref} was deleted")
    if OWNER not in (live["metadata"].get("labels") or {}):
        log.warning("%s lost its label %s; it still runs", ref, OWNER)
    if limits is not None and ref.kind == POD:
        return status.ended(live, limits.crash_loop_restarts)
    return None


def _object(live: Live) -> Ended | None:
    if live.meta.deletion_timestamp:
        return Ended(1, f"{live.reference} was deleted")
    return None


def _pod(live: Live, limits: Limits) -> Ended | Silent | None:
    pod = live.as_dict()
    end = status.ended(pod, limits.crash_loop_restarts)
    node = status.unreachable(pod)
    silence = f"node {node} does not answer" if node else ""
    if live.meta.deletion_timestamp:
        why = silence or status.disrupted(pod)
        return (Ended(1, why) if why else end) or _object(live)
    return Silent(silence, limits.node_lost) if silence and end is None else end


def _replacement(server: Server, limits: Limits) -> Ended | Silent | None:
    """A server whose pods a controller makes lives while it has one, or may get another one."""
    pods = [live.as_dict() for live in server.main_pods()]
    if any(status.running(pod) for pod in pods):
        return None
    for pod in pods:
        end = status.crash_loop(pod, limits.crash_loop_restarts)
        if end is not None and not pod["metadata"].get("deletionTimestamp"):
            return end
    connection = server.record.connection
    ends = server.slices(connection) if connection is not None else []
    if not pods and (not ends or any(end.get("endpoints") for end in ends)):
        return None  # pods that are not ours to see, or none are needed
    nodes = [status.unreachable(pod) for pod in pods]
    silence = next((f"node {node} does not answer" for node in nodes if node), "")
    waits = silence or next((status.compute(pod).message for pod in pods), "it has no pod")
    return Silent(f"no pod of the server runs: {waits}", limits.replacement)
