"""The one object that JupyterHub connects through: how to find it, and its URL once live; pure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import urlsplit

from lightkube_template_spawner.errors import ManifestError

_STEP = re.compile(
    r"""\.(?P<name>[A-Za-z_][\w-]*)
      | \[(?P<quote>['"])(?P<key>.*?)(?P=quote)\]
      | \[(?P<index>-?\d+)\]
      | \[\?\(@\.(?P<field>[\w.-]+)\s*==\s*(?P<mark>['"])(?P<value>.*?)(?P=mark)\)\]""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Route:
    """How an address is made: the hub's port and scheme, and what a Service is called by.

    ``service_address`` is ``ip`` (the cluster IP) or ``dns`` (``name.namespace.svc.domain``).
    """

    annotation_key: str = "kubetemplatespawner/connection"
    port: int = 8888
    scheme: str = "http"
    service_address: str = "ip"
    cluster_domain: str = "cluster.local"


def is_connection(manifest: Mapping[str, Any], key: str) -> bool:
    """Whether this object is marked as the one to connect to."""
    annotations = manifest["metadata"].get("annotations") or {}
    return annotations.get(key) == "true"


def only_one(marked: Iterable[str], key: str) -> str:
    """The single marked object's reference.

    Raises:
        ManifestError: none or several are marked.
    """
    found = list(marked)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ManifestError(
            f'no object has the annotation {key}: "true": put it on the one Pod, Service or other '
            "object that JupyterHub connects to"
        )
    raise ManifestError(
        f'{len(found)} objects have the annotation {key}: "true", which may stand on one only: '
        + ", ".join(found)
    )


def check(manifest: Mapping[str, Any], key: str) -> None:
    """Refuse annotations that can give no address, whatever the live object will be.

    Raises:
        ManifestError: the path or the scheme is none.
    """
    annotations = manifest["metadata"].get("annotations") or {}
    path, scheme = annotations.get(f"{key}-address"), annotations.get(f"{key}-scheme")
    if path and not _steps(path):
        raise _no_path(path)
    if scheme and scheme not in ("http", "https"):
        raise ManifestError(f"{key}-scheme is {scheme!r}: write http or https")


def url(live: Mapping[str, Any], route: Route) -> str | None:
    """The URL of a ready connection object, or None while it has no address.

    Raises:
        ManifestError: the object can never give one (a port that its Service lacks, a bad path).
    """
    annotations = live["metadata"].get("annotations") or {}
    scheme = annotations.get(f"{route.annotation_key}-scheme") or route.scheme
    wanted = annotations.get(f"{route.annotation_key}-port")
    path = annotations.get(f"{route.annotation_key}-address")
    port: int | None
    if path:
        found = lookup(live, path)
        if not isinstance(found, str) or not found:
            return None
        host, scheme, port = _split(found, scheme, route.port)
        return _join(scheme, host, _number(live, wanted, "port") if wanted else port)
    if live.get("kind") == "Pod":
        pod_ip = (live.get("status") or {}).get("podIP")
        port = _number(live, wanted, "port") if wanted else route.port
        return _join(scheme, pod_ip, port) if pod_ip else None
    if live.get("kind") == "Service":
        return _join(scheme, _service_host(live, route), _service_port(live, wanted, route))
    return None


def foreseen_host(manifest: Mapping[str, Any], route: Route, namespace: str) -> str | None:
    """The host of a Service's URL before there is a Service; None if only the cluster knows it."""
    metadata, spec = {"namespace": namespace, **manifest["metadata"]}, manifest.get("spec")
    if manifest["kind"] != "Service" or not isinstance(spec, Mapping):
        return None
    if f"{route.annotation_key}-address" in (metadata.get("annotations") or {}):
        return None
    given = bool(spec.get("clusterIP")) or spec.get("type") == "ExternalName"
    if route.service_address == "ip" and not given:
        return None
    return _service_host({"metadata": metadata, "spec": spec}, route)


def lookup(live: Mapping[str, Any], path: str) -> Any:
    """The value at a Kubernetes JSONPath (fields, keys, indexes, equality filters), or None.

    Raises:
        ManifestError: the path is not one of these.
    """
    value: Any = live
    for step in _steps(path):
        value = _step(value, step)
    return value


def _steps(path: str) -> list[re.Match[str]]:
    text = path.strip().removeprefix("{").removesuffix("}").strip().removeprefix("$")
    found = []
    position = 0
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            raise _no_path(path)
        found.append(step)
        position = step.end()
    return found


def _no_path(path: str) -> ManifestError:
    return ManifestError(
        f"{path!r} is not a path like {{.status.address.url}} or "
        '{.status.addresses[?(@.type=="Hostname")].value}'
    )


def _step(value: Any, step: re.Match[str]) -> Any:
    if step["index"] is not None:
        index = int(step["index"])
        inside = isinstance(value, list) and -len(value) <= index < len(value)
        return value[index] if inside else None
    if step["field"] is not None:
        items = value if isinstance(value, list) else []
        return next(
            (item for item in items if lookup(item, f".{step['field']}") == step["value"]), None
        )
    key = step["name"] if step["name"] is not None else step["key"]
    return value.get(key) if isinstance(value, Mapping) else None


def _split(address: str, scheme: str, port: int) -> tuple[str, str, int]:
    """Host, scheme and port of a URL, which has its scheme's port, or of a host, which has ours."""
    with contextlib.suppress(ValueError):
        return str(IPv6Address(address)), scheme, port
    whole = "://" in address
    try:
        parts = urlsplit(address if whole else f"//{address}", scheme=scheme)
        host, scheme, named = parts.hostname, parts.scheme, parts.port
    except ValueError:
        host = named = None
    if not host or scheme not in ("http", "https"):
        raise ManifestError(f"the connection address {address!r} is not a URL, host or host:port")
    if whole:
        port = 443 if scheme == "https" else 80
    return host, scheme, named or port


def _join(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _service_host(live: Mapping[str, Any], route: Route) -> str:
    spec = live["spec"]
    if spec.get("type") == "ExternalName":
        return str(spec["externalName"])
    address = spec.get("clusterIP")
    if route.service_address == "ip" and address and address != "None":
        return str(address)
    metadata = live["metadata"]
    return f"{metadata['name']}.{metadata['namespace']}.svc.{route.cluster_domain}"


def _service_port(live: Mapping[str, Any], wanted: str | None, route: Route) -> int:
    ports = live["spec"].get("ports") or []
    headless = live["spec"].get("clusterIP") == "None"
    for entry in ports:
        if wanted is not None and wanted in (entry.get("name"), str(entry["port"])):
            return _direct(entry) if headless else int(entry["port"])
    if headless or not ports:
        return _number(live, wanted, "port") if wanted else route.port
    if wanted is None:
        for entry in ports:
            if route.port in (entry["port"], entry.get("targetPort")):
                return int(entry["port"])
        if len(ports) == 1:
            return int(ports[0]["port"])
    names = ", ".join(f"{entry.get('name', 'unnamed')}={entry['port']}" for entry in ports)
    raise ManifestError(
        f"Service {live['metadata'].get('namespace')}/{live['metadata']['name']} has no port "
        f"{wanted or route.port} (it has {names}): name one in the annotation "
        f"{route.annotation_key}-port"
    )


def _direct(entry: Mapping[str, Any]) -> int:
    """The pods' own port: nothing translates behind a headless Service."""
    target = entry.get("targetPort")
    return target if isinstance(target, int) else int(entry["port"])


def _number(live: Mapping[str, Any], text: str, what: str) -> int:
    if re.fullmatch(r"[1-9][0-9]{0,4}", text):
        return int(text)
    for container in (live.get("spec") or {}).get("containers") or ():
        for entry in container.get("ports") or ():
            if entry.get("name") == text:
                return int(entry["containerPort"])
    raise ManifestError(f"{live['metadata']['name']}: {what} {text!r} is not a port number or name")
