"""internal_ssl: a certificate for each server, by the name that its template gives it.

The hub and the proxy connect only where a certificate holds the host of their URL. That name is in
the rendered Service, and the certificate in the values: so the template is rendered once with an
empty one to learn the name, and then with the real one.

A Service that was deleted comes back with another address, and the hub and DNS servers remember the
old one for 10 to 60 seconds. Hence the ``id``: a template that puts it into the Service's name has
a name that nobody knows yet.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Any, Final

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import connection, parsing
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.objects.ref import ObjectRef

#: The hub's names for them, and those of the files in the pod, which are KubeSpawner's.
_FILES: Final = {
    "keyfile": "ssl.key",
    "certfile": "ssl.crt",
    "cafile": "notebooks-ca_trust.crt",
}
_AUTHORITY: Final = "notebooks-ca"
_LOCAL: Final = ("DNS:localhost", "IP:127.0.0.1")
_writing = threading.Lock()  # all certificates are listed in one file


@dataclass(frozen=True)
class Certificate:
    """Names that the server may be reached by, and the files that its pod needs."""

    folder: str
    names: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    files: Mapping[str, str] = field(
        default_factory=lambda: dict.fromkeys(_FILES.values(), "not made yet"), repr=False
    )

    @property
    def paths(self) -> dict[str, str]:
        """Where the server finds them, by the hub's names."""
        return {key: str(PurePosixPath(self.folder, name)) for key, name in _FILES.items()}

    @property
    def values(self) -> dict[str, Any]:
        """What the template gets: text by file name, the folder to mount it at, and the id."""
        return {"path": str(PurePosixPath(self.folder)), "files": dict(self.files), "id": self.id}

    def read(self, paths: Mapping[str, str]) -> Certificate:
        """The same, with the files that the hub has at ``paths``."""
        files = {name: Path(paths[key]).read_text() for key, name in _FILES.items()}
        return replace(self, files=files)

    def check(self, documents: Mapping[str, list[Any]], route: Route, namespace: str) -> None:
        """Raise ManifestError where a template makes up a new name each time it is rendered."""
        for name in foreseen(documents, route, namespace):
            if name not in self.names:
                raise ManifestError(
                    f"the certificate for internal_ssl is for {', '.join(self.names)}, but the "
                    f"template, rendered again, calls the server {name}: its Service's name must "
                    "not be random"
                )


def foreseen(documents: Mapping[str, list[Any]], route: Route, namespace: str) -> tuple[str, ...]:
    """The name of the connection object as a certificate has it; empty if nobody can know it yet.

    Raises:
        ManifestError: there is no one connection object.
    """
    manifests = [
        document.manifest
        for document in parsing.parse(documents)
        if connection.is_connection(document.manifest, route.annotation_key)
    ]
    connection.only_one(
        (str(ObjectRef.of(manifest)) for manifest in manifests), route.annotation_key
    )
    host = connection.foreseen_host(manifests[0], route, namespace)
    return (_alt_name(host),) if host else ()


async def wanted(spawner: Any, documents: Mapping[str, list[Any]]) -> tuple[str, ...]:
    """All names of the certificate for what the spawner's template rendered.

    Raises:
        ManifestError: there are none, or there is no one connection object.
    """
    setting = spawner.ssl_alt_names
    setting = setting(spawner) if callable(setting) else setting
    alt_names = await setting if inspect.isawaitable(setting) else setting
    hosts = foreseen(documents, spawner.route, spawner.namespace)
    return names(hosts, alt_names, local=spawner.ssl_alt_names_include_local)


def names(
    hosts: Sequence[str], alt_names: Collection[str], *, local: bool = False
) -> tuple[str, ...]:
    """All names of a server's certificate.

    Raises:
        ManifestError: there are none.
    """
    if not hosts and not alt_names:
        raise ManifestError(
            "with internal_ssl the server's name must be known before the server starts: put the "
            "connection annotation on a Service and leave `service_address` at `dns`, or write "
            "all names into `ssl_alt_names`"
        )
    return tuple(dict.fromkeys([*(_LOCAL if local else ()), *alt_names, *hosts]))


async def issue(
    location: str, subject: str, alt_names: Sequence[str], authorities: Mapping[str, str]
) -> dict[str, str]:
    """Sign a certificate of the hub's authority for servers; paths on the hub's disk.

    In a thread, as a key takes 0.1 s; one at a time, as the store is one file.
    """
    return await asyncio.to_thread(_issue, location, subject, alt_names, authorities)


def _issue(
    location: str, subject: str, alt_names: Sequence[str], authorities: Mapping[str, str]
) -> dict[str, str]:
    # The hub itself imports it only where internal_ssl is on.
    from certipy import Certipy

    with _writing:
        pair = Certipy(store_dir=location).create_signed_pair(
            subject, _AUTHORITY, alt_names=list(alt_names), overwrite=True
        )
    files = pair["files"]
    return {
        "keyfile": str(files["key"]),
        "certfile": str(files["cert"]),
        "cafile": str(authorities[_AUTHORITY]),
    }


def _alt_name(host: str) -> str:
    try:
        return f"IP:{ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"
