"""The API server over lightkube: one place for HTTP, credentials, path safety and error mapping.

lightkube gives the configuration, TLS, authentication and server-side apply. What it lacks (raw
calls with a body on DELETE, metadata-only lists, watches with bookmarks) goes over the HTTP client
that lightkube itself builds. Every undocumented name of it is imported here and nowhere else;
``tests/test_api.py`` holds them to what we rely on.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import httpx2
import msgspec
import yaml
from lightkube import AsyncClient, KubeConfig
from lightkube.config import client_adapter
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import (
    GenericGlobalResource,
    GenericNamespacedResource,
    create_api_info,
)

from lightkube_template_spawner.errors import (
    ClusterError,
    ConfigurationError,
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    ManifestError,
    NotFound,
    Unavailable,
)
from lightkube_template_spawner.objects.ref import KindRef

_PARTIAL = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"
METADATA = _PARTIAL.format("")
METADATA_LIST = _PARTIAL.format("List")

_CONNECT = 3.0  # seconds: a lost packet is sent again after one; watches are to be back in five
_SEGMENT = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.:]*[A-Za-z0-9])?")
_INVALID = frozenset({400, 405, 413, 415, 422})
# A refused pod spec is repeated whole, the variables of its containers included.
_DUMP = re.compile(r"(?<=Invalid value: )[\w.]*[{\[].*?[}\]](?=: )", re.DOTALL)
# Apply reports what it cannot read (a field that the schema lacks, a duplicate list key, a Secret
# that is not base64) as a 500 without a reason; asked again, it says the same.
# Many writers at once: the API server gives up on a quota's counter, not on the object.
_CROWDED = "Operation cannot be fulfilled on resourcequotas"
_UNREADABLE = ("failed to create typed patch object", "failed to convert new object")


def segment(text: object) -> str:
    """``text`` as one path segment; lightkube escapes none (``a/../../secrets`` would travel).

    Raises:
        ManifestError: it is not a name that Kubernetes could accept.
    """
    if not isinstance(text, str) or len(text) > 253 or not _SEGMENT.fullmatch(text):
        raise ManifestError(f"{text!r} cannot be the name of a Kubernetes object or namespace")
    return text


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource that the API server serves, with the verbs it allows."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    verbs: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def api_version(self) -> str:
        """As manifests write it: ``v1``, ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def ref(self) -> KindRef:
        """The kind as manifests name it."""
        return KindRef(self.api_version, self.kind)

    def __str__(self) -> str:
        return str(self.ref)

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """The URL path of the collection, or of one object; all namespaces if none is given."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", segment(namespace)]
        parts.append(self.plural)
        if name is not None:
            parts.append(segment(name))
        return "/" + "/".join(parts)


@lru_cache(maxsize=512)
def _resource(kind: Kind) -> type[Any]:
    """A lightkube generic class made directly: its process-wide registry refuses a second use."""
    base = GenericNamespacedResource if kind.namespaced else GenericGlobalResource
    info = create_api_info(kind.group, kind.version, kind.kind, kind.plural)
    return type(kind.kind, (base,), {"_api_info": info})


def error_from(status: object, code: int, fallback: str = "") -> ClusterError:
    """The error for a Status body, or for whatever came instead of one."""
    body = status if isinstance(status, Mapping) else {}
    details = body.get("details")
    details = details if isinstance(details, Mapping) else {}
    message = _DUMP.sub("…", str(body.get("message") or fallback or f"HTTP {code}"))
    number = body.get("code")
    code = number if isinstance(number, int) else code
    classes = {401: Forbidden, 403: Forbidden, 404: NotFound, 409: Conflict, 410: Expired}
    kind: type[ClusterError] = classes.get(code, Unavailable)
    if code == 409 and message.startswith(_CROWDED):
        kind = Unavailable
    if code in _INVALID or (code == 500 and message.startswith(_UNREADABLE)):
        kind = Invalid
    return kind(
        message,
        code=code,
        reason=body.get("reason"),
        causes=details.get("causes") or (),
        retry_after=details.get("retryAfterSeconds"),
    )


def _refusal(response: httpx2.Response, content: bytes) -> ClusterError:
    try:
        body = msgspec.json.decode(content) if content else {}
    except msgspec.MsgspecError:
        body = {}  # a proxy's page, or the plain text of a 429
    error = error_from(body, response.status_code, response.reason_phrase)
    if error.retry_after is None and response.headers.get("Retry-After", "").isdigit():
        error.retry_after = float(response.headers["Retry-After"])
    return error


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Lines as a watch sends them.

    httpx2's own end at U+0085 and other breaks too, which JSON may hold unescaped: a user's word in
    a pod's status could then break the watch that the whole hub shares.
    """
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def _keepalive() -> list[tuple[int, int, int]]:
    """Notice a dead path without asking anything, as a silent watch would else hang on it.

    A connection whose packets are dropped ends after five seconds, idle or not; where the system
    does not know these options, only a watch's idle time-out and a request's own are left.
    """
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (
        ("TCP_KEEPIDLE", 3),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 5000),  # milliseconds
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


class Api:
    """One connection pool to one API server, for one event loop."""

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        timeout: float = 10.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            contexts = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
            config = contexts.get(context)
            if config is None:
                raise ConfigurationError(
                    "no Kubernetes cluster is configured: run in a pod with a service account, or "
                    "set KUBECONFIG or the trait `kubeconfig`"
                )
            user = config.user or User()
            config = config._replace(user=user)  # a context without a user is refused otherwise
            tls = client_adapter.verify_cluster(config.cluster, user, config.abs_file)
        except yaml.YAMLError:
            # Its message quotes the file, which may hold a token.
            raise ConfigurationError("the kubeconfig cannot be used: it is not YAML") from None
        except (ConfigError, OSError) as error:
            raise ConfigurationError(f"the kubeconfig cannot be used: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"the kubeconfig lacks something: {error!r}") from error
        self.server = config.cluster.server
        self._timeout = httpx2.Timeout(timeout, connect=min(timeout, _CONNECT))
        # Each watch holds a connection, so there is no limit here; the writers limit themselves.
        self._transport = transport or httpx2.AsyncHTTPTransport(
            verify=tls,
            socket_options=_keepalive(),
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=20, keepalive_expiry=60
            ),
        )
        self._kube = AsyncClient(config, timeout=self._timeout, transport=self._transport)
        self._http = client_adapter.AsyncClient(
            config,
            client_adapter.ConnectionParams(
                timeout=self._timeout,
                transport=self._transport,  # type: ignore[arg-type] # annotated as the sync one
            ),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._kube.close()
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        accept: str = "application/json",
        body: Mapping[str, Any] | None = None,
        raw: bool = False,
    ) -> Any:
        """One request; the decoded JSON of a 2xx answer, or its bytes if ``raw``.

        Raises:
            ClusterError: any other answer, or none.
        """
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = await self._http.request(
                method, path, params=params, headers=headers, content=content
            )
        except (httpx2.HTTPError, ConfigError) as error:
            raise Unavailable(self._unreachable(error)) from error
        if not response.is_success:
            raise _refusal(response, response.content)
        if raw:
            return response.content
        try:
            return msgspec.json.decode(response.content) if response.content else {}
        except msgspec.MsgspecError as error:
            raise Unavailable(f"{self.server} answered with broken JSON: {error}") from error

    async def apply(
        self,
        kind: Kind,
        manifest: Mapping[str, Any],
        *,
        manager: str,
        force: bool = False,
    ) -> dict[str, Any]:
        """Server-side apply; the live object as the API server returned it.

        ``force`` takes fields from other managers: only what ``adopt_retained`` asks for needs it.

        Raises:
            ClusterError: refused, or no usable answer (then it may or may not have been written).
        """
        metadata = manifest["metadata"]
        segment(metadata["name"])
        namespace = segment(metadata["namespace"]) if kind.namespaced else None
        try:
            return await self._kube.apply(  # type: ignore[no-any-return, call-overload]
                _resource(kind)(manifest),
                namespace=namespace,
                field_manager=manager,
                force=force,
            )
        except httpx2.HTTPStatusError as error:  # ApiError among them
            raise _refusal(error.response, error.response.content) from error
        except (httpx2.HTTPError, ConfigError) as error:
            raise Unavailable(self._unreachable(error)) from error
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            # lightkube trips over bodies that are not a Status; what was written is unknown.
            raise Unavailable(f"{self.server} gave an unusable answer: {error!r}") from error

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, str], accept: str, idle: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch; yields its lines. Ends with Unavailable after ``idle`` silent seconds.

        Raises:
            ClusterError: refused, broken off, or silent for too long.
        """
        timeout = httpx2.Timeout(self._timeout.connect, read=idle)
        try:
            async with self._http.stream(
                "GET", path, params=params, headers={"Accept": accept}, timeout=timeout
            ) as response:
                if not response.is_success:
                    raise _refusal(response, await response.aread())
                yield _lines(response)
        except (httpx2.HTTPError, ConfigError) as error:
            raise Unavailable(self._unreachable(error)) from error

    def _unreachable(self, error: Exception) -> str:
        return f"the API server {self.server} did not answer: {type(error).__name__} {error}"
