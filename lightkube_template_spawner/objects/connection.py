"""The one object that JupyterHub connects through: how to find it, and its URL once live; pure.

Users may be allowed to patch their own pods and Services. So the annotations that lead to an
address are read from the template's manifest only, and never from a live object.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import urlsplit

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects.ref import POD, SERVICE, KindRef

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


@dataclass(frozen=True, slots=True)
class Address:
    """What the template says of its connection object's address; "" for what it leaves open.

    ``path``, ``port`` and ``scheme`` are annotations, ``external_name`` is the host of a Service
    of that type.
    """

    path: str = ""
    port: str = ""
    scheme: str = ""
    external_name: str = ""

    @classmethod
    def written(cls, manifest: Mapping[str, Any], key: str) -> Address:
        """As the manifest of a connection object has it."""
        annotations = manifest["metadata"].get("annotations") or {}
        spec = manifest.get("spec")
        external = (
            KindRef.of(manifest) == SERVICE
            and isinstance(spec, Mapping)
            and spec.get("type") == "ExternalName"
        )
        return cls(
            path=annotations.get(f"{key}-address") or "",
            port=annotations.get(f"{key}-port") or "",
            scheme=annotations.get(f"{key}-scheme") or "",
            external_name=str(manifest["spec"].get("externalName") or "") if external else "",
        )


def is_connection(manifest: Mapping[str, Any], key: str) -> bool:
    """Whether this object is marked as the one to connect to."""
    annotations = manifest["metadata"].get("annotations") or {}
    return annotations.get(key) == "true"


def only_one(candidates: Iterable[str], key: str) -> str:
    """The single marked object's reference.

    Raises:
        ManifestError: none or several are marked.
    """
    references = list(candidates)
    if len(references) == 1:
        return references[0]
    if not references:
        raise ManifestError(
            f'no object has the annotation {key}: "true": put it on the one Pod, Service or other '
            "object that JupyterHub connects to"
        )
    raise ManifestError(
        f'{len(references)} objects have the annotation {key}: "true", which may stand on one '
        "only: " + ", ".join(references)
    )


def check(manifest: Mapping[str, Any], key: str) -> None:
    """Refuse annotations that can give no address, whatever the live object will be.

    Raises:
        ManifestError: the path or the scheme is none.
    """
    address = Address.written(manifest, key)
    if address.path and not _steps(address.path):
        raise _no_path(address.path)
    if address.scheme not in ("", "http", "https"):
        raise ManifestError(f"{key}-scheme is {address.scheme!r}: write http or https")


def url(live: Mapping[str, Any], address: Address, route: Route) -> str | None:
    """The URL of a ready connection object, or None while it has no address.

    Raises:
        ManifestError: the object can never give one (a port that its Service lacks, a bad path, a
            Service that was made an ExternalName meanwhile).
    """
    scheme, port_name = address.scheme or route.scheme, address.port
    if address.path:
        text = lookup(live, address.path)
        if not isinstance(text, str) or not text:
            return None
        host, scheme, port = _split(text, scheme, route.port)
        return _join(scheme, host, _number(live, port_name, "port") if port_name else port)
    if KindRef.of(live) == POD:
        pod_ip = _pod_ip(live)
        port = _number(live, port_name, "port") if port_name else route.port
        return _join(scheme, pod_ip, port) if pod_ip else None
    if KindRef.of(live) == SERVICE:
        host = _service_host(live, address, route)
        return _join(scheme, host, _service_port(live, port_name, route))
    return None


def recalled(live: Mapping[str, Any], old_url: str, route: Route) -> Address | None:
    """The address of a server whose record holds its URL only, as versions before this one wrote.

    A pod or Service at its own address keeps the port and the scheme of ``old_url``;
    one without a URL, cut off while it started, has the hub's. None where the URL must come from
    an annotation, which is not read from the live object: then the URL stays as it is until the
    server is started again.
    """
    kind = KindRef.of(live)
    external = kind == SERVICE and live["spec"].get("type") == "ExternalName"
    if external or kind not in (POD, SERVICE):
        return None
    if not old_url:
        return Address()
    parts = urlsplit(old_url)
    address = Address(port=str(parts.port or ""), scheme=parts.scheme)
    host = _pod_ip(live) if kind == POD else _service_host(live, address, route)
    return address if parts.hostname == host else None


def foreseen_host(manifest: Mapping[str, Any], route: Route, namespace: str) -> str | None:
    """The host of a Service's URL before there is a Service; None if only the cluster knows it."""
    metadata, spec = {"namespace": namespace, **manifest["metadata"]}, manifest.get("spec")
    if KindRef.of(manifest) != SERVICE or not isinstance(spec, Mapping):
        return None
    address = Address.written(manifest, route.annotation_key)
    fixed_host = bool(spec.get("clusterIP")) or bool(address.external_name)
    if address.path or (route.service_address == "ip" and not fixed_host):
        return None
    return _service_host({"metadata": metadata, "spec": spec}, address, route)


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
    steps = []
    position = 0
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            raise _no_path(path)
        steps.append(step)
        position = step.end()
    return steps


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
        host, scheme, own_port = parts.hostname, parts.scheme, parts.port
    except ValueError:
        host = own_port = None
    if not host or scheme not in ("http", "https"):
        raise ManifestError(f"the connection address {address!r} is not a URL, host or host:port")
    if whole:
        port = 443 if scheme == "https" else 80
    return host, scheme, own_port or port


def _join(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _pod_ip(live: Mapping[str, Any]) -> str:
    return str((live.get("status") or {}).get("podIP") or "")


def _service_host(live: Mapping[str, Any], address: Address, route: Route) -> str:
    if address.external_name:
        return address.external_name
    spec, metadata = live["spec"], live["metadata"]
    if spec.get("type") == "ExternalName":
        raise ManifestError(
            f"Service {metadata['namespace']}/{metadata['name']} is an ExternalName, which the "
            "template did not make it: its name is not followed; start the server again"
        )
    cluster_ip = spec.get("clusterIP")
    if route.service_address == "ip" and cluster_ip and cluster_ip != "None":
        return str(cluster_ip)
    return f"{metadata['name']}.{metadata['namespace']}.svc.{route.cluster_domain}"


def _service_port(live: Mapping[str, Any], port_name: str, route: Route) -> int:
    ports = live["spec"].get("ports") or []
    headless = live["spec"].get("clusterIP") == "None"
    for entry in ports:
        if port_name and port_name in (entry.get("name"), str(entry["port"])):
            return _direct(entry) if headless else int(entry["port"])
    if headless or not ports:
        return _number(live, port_name, "port") if port_name else route.port
    if not port_name:
        for entry in ports:
            if route.port in (entry["port"], entry.get("targetPort")):
                return int(entry["port"])
        if len(ports) == 1:
            return int(ports[0]["port"])
    names = ", ".join(f"{entry.get('name', 'unnamed')}={entry['port']}" for entry in ports)
    raise ManifestError(
        f"Service {live['metadata'].get('namespace')}/{live['metadata']['name']} has no port "
        f"{port_name or route.port} (it has {names}): name one in the annotation "
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
