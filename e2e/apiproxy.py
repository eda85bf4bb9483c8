"""A counter in front of the API server: passes everything through, notes each request.

Heads of requests are read, answers are copied as bytes, so a watch flows as if nothing was between.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import yaml
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?"
)
_OF_ONE = {"GET": "get", "PATCH": "patch", "PUT": "update", "DELETE": "delete", "POST": "create"}
_OF_MANY = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}
HUNG_UP = (anyio.BrokenResourceError, anyio.IncompleteRead, anyio.EndOfStream)


@dataclass(frozen=True)
class Request:
    """One request, in the words of Kubernetes' own authorization."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""

    @classmethod
    def read(cls, method: str, target: str) -> Request:
        parts = urlsplit(target)
        found = _PATH.fullmatch(parts.path)
        if found is None or found["resource"] == "namespaces":
            return cls(method.lower(), parts.path)
        name = unquote(found["name"] or "")
        verb = (_OF_ONE if name else _OF_MANY)[method]
        if verb == "list" and parse_qs(parts.query).get("watch") == ["true"]:
            verb = "watch"
        return cls(verb, found["resource"], found["namespace"] or "", name)


class ApiProxy:
    """What `counting` yields: `kubeconfig` is for the hub, `requests` are what the hub asked."""

    def __init__(self, kubeconfig: Path, requests: list[Request]) -> None:
        self.kubeconfig = kubeconfig
        self.requests = requests

    def mark(self) -> int:
        """A position to count from."""
        return len(self.requests)

    def since(self, mark: int, *, but: Iterable[str] = ()) -> Counter[tuple[str, str]]:
        """How often each (verb, resource) was asked for, without the resources in `but`."""
        left_out = set(but)
        found = self.requests[mark:]
        return Counter((r.verb, r.resource) for r in found if r.resource not in left_out)


@asynccontextmanager
async def counting(kubeconfig: Path, folder: Path) -> AsyncGenerator[ApiProxy]:
    """Run a proxy to the cluster of `kubeconfig`; its own kubeconfig is written to `folder`."""
    given = yaml.safe_load(kubeconfig.read_text())
    context = _named(given["contexts"], given["current-context"])["context"]
    cluster = _named(given["clusters"], context["cluster"])["cluster"]
    user = _named(given["users"], context["user"])["user"]
    where, tls = urlsplit(cluster["server"]), _tls(cluster, user, kubeconfig.parent, folder)
    requests: list[Request] = []

    async def serve(client: SocketStream) -> None:
        async with client:
            above = await anyio.connect_tcp(
                where.hostname or "",
                where.port or 443,
                ssl_context=tls,
                tls_standard_compatible=False,
            )
            async with above, anyio.create_task_group() as both:
                both.start_soon(_copy, above, client, both.cancel_scope)
                await _forward(client, above, requests)
                both.cancel_scope.cancel()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    proxied = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "counted", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "e2e", "user": {k: v for k, v in user.items() if k == "token"}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "counted", "user": "e2e"}}],
        "current-context": "e2e",
    }
    written = folder / "counted.kubeconfig"
    written.write_text(json.dumps(proxied))
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield ApiProxy(written, requests)
        group.cancel_scope.cancel()


async def _forward(client: ByteStream, above: ByteStream, requests: list[Request]) -> None:
    """Pass requests on, one after another; bodies have a length, as our client sends them."""
    reader = BufferedByteReceiveStream(client)
    with suppress(*HUNG_UP):
        while True:
            head = await reader.receive_until(b"\r\n\r\n", 65536)
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            if "transfer-encoding" in headers:
                raise NotImplementedError("a chunked request: teach the proxy to read it")
            requests.append(Request.read(method, target))
            body = await reader.receive_exactly(int(headers.get("content-length", 0)))
            await above.send(head + b"\r\n\r\n" + body)


async def _copy(above: ByteStream, client: ByteStream, both: anyio.CancelScope) -> None:
    with suppress(*HUNG_UP):
        async for block in above:
            await client.send(block)
    both.cancel()


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


def _tls(
    cluster: dict[str, Any], user: dict[str, Any], beside: Path, folder: Path
) -> ssl.SSLContext:
    """What the kubeconfig says; a client certificate is the proxy's to show, not the hub's."""
    authority = _file(cluster, "certificate-authority", beside, folder)
    context = ssl.create_default_context(cafile=authority)
    certificate = _file(user, "client-certificate", beside, folder)
    if certificate is not None:
        context.load_cert_chain(certificate, _file(user, "client-key", beside, folder))
    return context


def _file(section: dict[str, Any], key: str, beside: Path, folder: Path) -> Path | None:
    if data := section.get(f"{key}-data"):
        file = folder / key
        file.write_bytes(base64.b64decode(data))
        file.chmod(0o600)
        return file
    return beside / section[key] if section.get(key) else None
