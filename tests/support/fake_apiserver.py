"""An API server in memory, as a transport: ``Api(kubeconfig, transport=FakeApiServer())``.

It speaks the part of the API that the spawner uses, in the way a real server was seen to speak it;
``tests/contract`` runs the same functions on it and on a real cluster. What it does not do: lists
are atomic in server-side apply (no merging by key), nothing is validated or defaulted except what
``_default`` says, ``managedFields`` name their managers but not their fields, no subresources.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import httpx2

Obj = dict[str, Any]
Key = tuple[str, str]  # namespace, name
Path = tuple[str, ...]

_ALL = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_URL = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)
_TERM = re.compile(
    r"(?P<key>[^=!\s(),]+)(?:\s*(?P<op>=|in)\s*(?P<value>\([^)]*\)|[^,()]*))?(?:,|$)"
)


@dataclass(frozen=True)
class Served:
    """One resource; ``unnamed`` ones are listed by discovery with ``responseKind: null``."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    verbs: tuple[str, ...] = _ALL
    unnamed: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


KINDS = (
    *(
        Served("", "v1", kind, kind.lower() + "s")
        for kind in ("Pod", "Secret", "Service", "ConfigMap", "PersistentVolumeClaim", "Event")
    ),
    Served("", "v1", "ServiceAccount", "serviceaccounts"),
    Served("", "v1", "Namespace", "namespaces", False, tuple(v for v in _ALL if "coll" not in v)),
    Served("", "v1", "Binding", "bindings", verbs=("create",)),
    Served("apps", "v1", "Deployment", "deployments"),
    Served("apps", "v1", "StatefulSet", "statefulsets"),
    Served("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    Served("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    Served("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
    Served("example.org", "v1", "Widget", "widgets"),
    Served("example.org", "v1beta1", "Widget", "widgets"),
    Served("example.org", "v1", "Nameless", "namelesses", unnamed=True),
)


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Obj

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"

    def __str__(self) -> str:
        return f"{'WATCH' if self.watch else self.method} {self.path}"


class Refusal(Exception):
    """An answer of kind Status."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details, "code": code,
        }  # fmt: skip

    @property
    def answer(self) -> httpx2.Response:
        return httpx2.Response(self.code, json=self.status)


@dataclass
class Fault:
    """What happens to requests instead of, or after, being handled.

    ``answer`` is sent, or ``error`` raised, without handling; with ``lost`` the request is handled
    first, so that only its answer goes missing. Neither: the request hangs.
    """

    answer: Callable[[], httpx2.Response] | None = None
    error: Callable[[], Exception] | None = None
    lost: bool = False
    method: str = ""
    path: str = ""
    watch: bool | None = None
    times: int = 1
    met: int = 0

    def meets(self, seen: Seen) -> bool:
        return (
            self.met < self.times
            and self.method in ("", seen.method)
            and re.search(self.path, seen.path) is not None
            and self.watch in (None, seen.watch)
        )


@dataclass
class _Change:
    version: int
    served: tuple[str, str]
    type: str
    object: Obj
    before: Obj | None


@dataclass
class Watch:
    """An open watch: ``end`` it cleanly, with raw bytes first, or with an error."""

    seen: Seen
    fate: list[bytes | Exception | None] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, *fate: bytes | Exception) -> None:
        self.fate = [*fate, None]
        self.wake.set()


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for line in self._lines:
            yield line

    async def aclose(self) -> None:
        await self._lines.aclose()  # type: ignore[attr-defined] # it is a generator


class FakeApiServer(httpx2.AsyncBaseTransport):
    """The server; ``requests`` is its log, ``faults`` what goes wrong."""

    def __init__(self, *namespaces: str, kinds: Iterable[Served] = KINDS) -> None:
        self.kinds = list(kinds)
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.watches: list[Watch] = []
        self.most_open = 0  # requests other than watches at one time
        self.git_version = "v1.36.3"
        self.legacy = False  # discovery as before Kubernetes 1.26
        self.stale: set[str] = set()  # API versions whose own server is down
        self.expired_over_http = False  # 410 as an HTTP status instead of in the stream
        self.muted = False  # watches stay open and say nothing
        self.controllers = True  # kubelet and garbage collector; False: nothing finishes going
        self.delay = 0.005  # seconds that those take
        self.forbidden: set[tuple[str, str]] = set()  # (verb, plural), whatever the rules say
        self.protected: dict[str, Refusal] = {}  # what an admission policy keeps from deletion
        self.unknown_fields = {".spec.bogus"}
        # What our account may do everywhere, and, by name, what a RoleBinding gives it.
        self.rules: list[Obj] = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
        self.roles: dict[str, list[Obj]] = {}
        self.incomplete = False
        self.on_request: Callable[[Seen, str], None] = lambda seen, when: None
        self.version = 1000
        self._compacted = 1000
        self._stores: dict[tuple[str, str], dict[Key, Obj]] = {}
        self._fields: dict[str, dict[str, set[Path]]] = {}  # by UID: manager to what it applied
        self._history: list[_Change] = []
        self._open = 0
        self._addresses = 0
        self._slicing = False
        for name in namespaces:
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    # What tests do behind the API's back

    def put(self, manifest: Obj, manager: str = "somebody-else") -> Obj:
        """Create or replace as another client or a controller would."""
        served = self._served_kind(manifest["apiVersion"], manifest["kind"])
        metadata = manifest["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        old = self._store(served).get(key)
        new = deepcopy(manifest)
        if old is None:
            return deepcopy(self._create(served, key, new, manager, "Update"))
        new["metadata"] = {**old["metadata"], **new["metadata"]}
        return deepcopy(self._commit(served, key, new))

    def find(self, kind: str, namespace: str, name: str) -> Obj | None:
        """The object as it is, or None."""
        return next(
            (
                deepcopy(store[namespace, name])
                for (group, plural), store in self._stores.items()
                if self._served(group, plural).kind == kind and (namespace, name) in store
            ),
            None,
        )

    def everything(self) -> list[Obj]:
        """Every object but Namespaces and what controllers put there."""
        return [
            deepcopy(item)
            for store in self._stores.values()
            for item in store.values()
            if item["kind"] not in ("Namespace", "ServiceAccount", "EndpointSlice")
        ]

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Take the object away at once, whatever holds it."""
        for group, plural in list(self._stores):
            served = self._served(group, plural)
            if served.kind == kind and (namespace, name) in self._store(served):
                self._remove(served, (namespace, name))

    def run_pod(self, namespace: str, name: str, **status: Any) -> Obj:
        """Schedule and start a pod: Ready with an address."""
        self._addresses += 1
        pod = self.find("Pod", namespace, name)
        assert pod is not None, f"no pod {name}"
        pod.setdefault("spec", {})["nodeName"] = "node"
        pod["status"] = {
            "phase": "Running", "podIP": f"10.1.0.{self._addresses}",
            "conditions": [{"type": "Ready", "status": "True"}], **status,
        }  # fmt: skip
        return self.put(pod)

    def compact(self) -> None:
        """Forget the past: watches from earlier versions are expired."""
        self._compacted = self.version
        self._history.clear()

    def bookmark(self) -> None:
        """Send a bookmark to every watch that asked for them."""
        for watch in self.watches:
            if watch.seen.query.get("allowWatchBookmarks"):
                watch.fate = [self._bookmark(watch.seen)]
                watch.wake.set()

    def count(self, text: str) -> int:
        """How many requests were like ``PATCH /api/v1/…`` (a regular expression)."""
        return sum(re.search(text, str(seen)) is not None for seen in self.requests)

    # The transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        content = await request.aread()
        raw = request.url.raw_path.decode().partition("?")[0]
        seen = Seen(
            request.method,
            unquote(raw),
            dict(request.url.params),
            json.loads(content) if content else {},
        )
        self.requests.append(seen)
        self._open += not seen.watch
        self.most_open = max(self.most_open, self._open)
        try:
            self.on_request(seen, "arrived")
            await asyncio.sleep(0)
            fault = next((fault for fault in self.faults if fault.meets(seen)), None)
            if fault is None:
                response = self._answer(seen, raw, request)
            else:
                response = await self._faulty(fault, seen, raw, request)
            self.on_request(seen, "handled")
            await asyncio.sleep(0)
            return response
        finally:
            self._open -= not seen.watch

    async def _faulty(
        self, fault: Fault, seen: Seen, raw: str, request: httpx2.Request
    ) -> httpx2.Response:
        fault.met += 1
        if fault.lost:
            self._answer(seen, raw, request)
        if fault.error is not None:
            raise fault.error()
        if fault.answer is not None:
            return fault.answer()
        await asyncio.sleep(request.extensions["timeout"]["read"])
        raise httpx2.ReadTimeout("silence")

    def _answer(self, seen: Seen, raw: str, request: httpx2.Request) -> httpx2.Response:
        try:
            body = self._route(seen, raw, request)
        except Refusal as refusal:
            return refusal.answer
        if isinstance(body, httpx2.Response):
            return body
        return httpx2.Response(200, json=body)

    def _route(self, seen: Seen, raw: str, request: httpx2.Request) -> Obj | httpx2.Response:
        if raw == "/version":
            return {"major": "1", "minor": "36", "gitVersion": self.git_version}
        if raw.endswith("/selfsubjectrulesreviews"):
            rules = self._told(seen.body["spec"]["namespace"])
            status = {"resourceRules": rules, "incomplete": self.incomplete}
            return {**seen.body, "status": {**status, "nonResourceRules": []}}
        if raw.endswith("/selfsubjectaccessreviews"):
            asked = seen.body["spec"]["resourceAttributes"]
            served = self._served(asked["group"], asked["resource"])
            allowed = self._may(asked["verb"], served, asked["namespace"])
            return {**seen.body, "status": {"allowed": allowed}}
        if raw.endswith("/selfsubjectreviews"):
            return {**seen.body, "status": {"userInfo": {"username": "hub"}}}
        match = _URL.fullmatch(raw)
        if match is None or match["plural"] is None or raw.count("/") < 3:
            return self._discovery(raw, request.headers["Accept"])
        served = self._served(match["group"] or "", match["plural"], match["version"])
        key = (match["namespace"] or "", match["name"] or "")
        partial = "as=PartialObjectMetadata" in request.headers["Accept"]
        verb = self._verb(seen, match["name"])
        self._allow(verb, served, *key)
        if verb not in served.verbs:
            message = "the server does not allow this method on the requested resource"
            raise Refusal(405, "MethodNotAllowed", message)
        if verb == "watch":
            return self._watch(served, key[0], seen, request, partial=partial)
        if verb == "list":
            return self._list(served, key[0], seen.query, partial=partial)
        if verb == "deletecollection":
            return self._delete_collection(served, key[0], seen, partial=partial)
        if verb == "create":
            key = (key[0], seen.body["metadata"]["name"])
            if key in self._store(served):
                raise _already(served, key[1])
            manager = seen.query.get("fieldManager", "python")
            return deepcopy(self._create(served, key, seen.body, manager, "Update"))
        if verb == "patch":
            return deepcopy(self._apply(served, key, seen))
        item = self._store(served).get(key)
        if item is None:
            raise _absent(served, key[1])
        if verb == "delete":
            return self._delete(served, key, seen.body)
        if verb == "update":
            return deepcopy(self._replace(served, key, item, seen.body))
        return _partial(item) if partial else deepcopy(item)

    def _verb(self, seen: Seen, name: str | None) -> str:
        single = {"GET": "get", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
        many = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}
        if seen.watch:
            return "watch"
        return (single if name else many)[seen.method]

    def _told(self, namespace: str) -> list[Obj]:
        if not self.forbidden and not self.incomplete:
            return self._rules_in(namespace)
        return [
            {
                "apiGroups": [served.group],
                "resources": [served.plural],
                "verbs": [verb for verb in _ALL if self._may(verb, served, namespace)],
            }
            for served in self.kinds
            if not self.incomplete
        ]

    def _rules_in(self, namespace: str) -> list[Obj]:
        bindings = self._stores.get(("rbac.authorization.k8s.io", "rolebindings"), {})
        bound = [item["roleRef"]["name"] for key, item in bindings.items() if key[0] == namespace]
        return [*self.rules, *(rule for name in bound for rule in self.roles.get(name, ()))]

    def _may(self, verb: str, served: Served, namespace: str) -> bool:
        return (verb, served.plural) not in self.forbidden and any(
            {served.group, "*"} & {*rule.get("apiGroups", ())}
            and {served.plural, "*"} & {*rule.get("resources", ())}
            and {verb, "*"} & {*rule.get("verbs", ())}
            and not rule.get("resourceNames")
            for rule in self._rules_in(namespace if served.namespaced else "")
        )

    def _allow(self, verb: str, served: Served, namespace: str, name: str) -> None:
        if not self._may(verb, served, namespace):
            subject = f'{served.qualified} "{name}"' if name else served.qualified
            raise Refusal(
                403,
                "Forbidden",
                f'{subject} is forbidden: User "hub" cannot {verb} resource "{served.plural}" in '
                f'API group "{served.group}" in the namespace "{namespace}"',
            )

    # Discovery

    def _discovery(self, path: str, accept: str) -> Obj:
        if path in ("/api", "/apis") and "APIGroupDiscoveryList" in accept and not self.legacy:
            return self._aggregated(core=path == "/api")
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        groups: dict[str, list[str]] = {}
        for served in self.kinds:
            if served.version not in groups.setdefault(served.group, []):
                groups[served.group].append(served.version)
        if path == "/apis":
            return {"kind": "APIGroupList", "groups": [
                {
                    "name": name,
                    "versions": [{"groupVersion": f"{name}/{v}", "version": v} for v in versions],
                    "preferredVersion": {"groupVersion": f"{name}/{versions[0]}"},
                }
                for name, versions in groups.items() if name
            ]}  # fmt: skip
        group_version = path.removeprefix("/apis/").removeprefix("/api/")
        found = [served for served in self.kinds if served.api_version == group_version]
        if group_version in self.stale:
            raise Refusal(503, "ServiceUnavailable", "service unavailable")
        if not found:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        return {"kind": "APIResourceList", "groupVersion": group_version, "resources": [
            resource
            for served in found
            for resource in (
                {"name": served.plural, "kind": served.kind, "namespaced": served.namespaced,
                 "verbs": list(served.verbs), "singularName": served.kind.lower()},
                {"name": f"{served.plural}/status", "kind": served.kind, "singularName": "",
                 "namespaced": served.namespaced, "verbs": ["get", "patch", "update"]},
            )
        ]}  # fmt: skip

    def _aggregated(self, *, core: bool) -> Obj:
        groups: dict[str, dict[str, list[Obj]]] = {}
        for served in self.kinds:
            if (served.group == "") is core:
                made = {"group": served.group, "version": served.version, "kind": served.kind}
                groups.setdefault(served.group, {}).setdefault(served.version, []).append({
                    "resource": served.plural,
                    "responseKind": None if served.unnamed else made,
                    "scope": "Namespaced" if served.namespaced else "Cluster",
                    "verbs": list(served.verbs),
                })  # fmt: skip
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": [
                {
                    "metadata": {"name": group} if group else {},
                    "versions": [
                        {"version": version, "freshness": "Stale"}
                        if f"{group}/{version}" in self.stale
                        else {"version": version, "resources": resources, "freshness": "Current"}
                        for version, resources in versions.items()
                    ],
                }
                for group, versions in groups.items()
            ],
        }

    # Reading

    def _list(
        self, served: Served, namespace: str, query: Mapping[str, str], *, partial: bool
    ) -> Obj:
        after: list[str] = []
        if query.get("continue"):
            version, *after = json.loads(base64.b64decode(query["continue"]))
            if int(version) < self._compacted:
                raise _expired("The provided continue parameter is too old")
        found = self._matching(served, namespace, query)
        found = [item for item in found if not after or _key(item) > tuple(after)]
        limit = int(query.get("limit", "0")) or len(found)
        metadata = {"resourceVersion": str(self.version)}
        if len(found) > limit:
            token = json.dumps([self.version, *_key(found[limit - 1])])
            metadata["continue"] = base64.b64encode(token.encode()).decode()
        return _listing(served, found[:limit], metadata, partial=partial)

    def _matching(self, served: Served, namespace: str, query: Mapping[str, str]) -> list[Obj]:
        selector = query.get("labelSelector", "")
        return [
            item
            for key, item in sorted(self._store(served).items())
            if namespace in ("", key[0]) and _selects(selector, item)
        ]

    def _watch(
        self, served: Served, namespace: str, seen: Seen, request: httpx2.Request, *, partial: bool
    ) -> httpx2.Response:
        version = int(seen.query.get("resourceVersion") or 0)
        expired = 0 < version < self._compacted
        if expired and self.expired_over_http:
            raise _expired("too old resource version")
        watch = Watch(seen)
        if expired:
            line = {"type": "ERROR", "object": _expired("too old resource version").status}
            watch.end(_line(line))
        read = request.extensions["timeout"]["read"]
        lines = self._follow(watch, served, namespace, version, read, partial=partial)
        return httpx2.Response(
            200, stream=_Stream(lines), headers={"Content-Type": "application/json"}
        )

    async def _follow(
        self,
        watch: Watch,
        served: Served,
        namespace: str,
        version: int,
        read: float | None,
        *,
        partial: bool,
    ) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        ends = loop.time() + float(watch.seen.query.get("timeoutSeconds") or 1800)
        selector = watch.seen.query.get("labelSelector", "")
        self.watches.append(watch)
        try:
            if not version:
                version = self.version
                for item in self._matching(served, namespace, watch.seen.query):
                    yield _line({"type": "ADDED", "object": _shown(item, partial=partial)})
            while True:
                fate, watch.fate = watch.fate, []
                for step in fate:
                    if step is None:
                        return
                    if isinstance(step, Exception):
                        raise step
                    yield step
                watch.wake.clear()
                for change in [c for c in self._history if c.version > version]:
                    version = change.version
                    line = self._event(change, served, namespace, selector, partial=partial)
                    if line and not self.muted:
                        yield line
                silence = loop.time() + read if read else ends
                try:
                    async with asyncio.timeout_at(min(silence, ends)):
                        await watch.wake.wait()
                except TimeoutError:
                    if silence < ends:
                        raise httpx2.ReadTimeout("silence") from None
                    return
        finally:
            self.watches.remove(watch)

    def _event(
        self, change: _Change, served: Served, namespace: str, selector: str, *, partial: bool
    ) -> bytes | None:
        if change.served != (served.group, served.plural):
            return None
        if namespace not in ("", change.object["metadata"].get("namespace", "")):
            return None
        matched = change.before is not None and _selects(selector, change.before)
        matches = change.type != "DELETED" and _selects(selector, change.object)
        if not matched and not matches:
            return None
        item = change.object
        if not matches and change.type != "DELETED":
            # A label went: told as a deletion, in the last state that still matched.
            assert change.before is not None
            item = deepcopy(change.before)
            item["metadata"]["resourceVersion"] = str(change.version)
        kind = "DELETED" if not matches else "MODIFIED" if matched else "ADDED"
        return _line({"type": kind, "object": _shown(item, partial=partial)})

    def _bookmark(self, seen: Seen) -> bytes:
        match = _URL.fullmatch(seen.path)
        assert match is not None
        served = self._served(match["group"] or "", match["plural"])
        metadata = {"resourceVersion": str(self.version), "creationTimestamp": None}
        item = {"kind": served.kind, "apiVersion": served.api_version, "metadata": metadata}
        return _line({"type": "BOOKMARK", "object": item})

    # Writing

    def _create(self, served: Served, key: Key, body: Obj, manager: str, operation: str) -> Obj:
        self._needs_namespace(served, key)
        item = {"apiVersion": served.api_version, "kind": served.kind, **deepcopy(body)}
        metadata = item["metadata"]
        if served.namespaced:
            metadata["namespace"] = key[0]
        metadata["name"] = key[1]
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = "2026-11-22T00:00:00Z"
        metadata["managedFields"] = [{"manager": manager, "operation": operation}]
        self._fields[metadata["uid"]] = {manager: set(_leaves(body))}
        self._default(item)
        return self._commit(served, key, item)

    def _default(self, item: Obj) -> None:
        """What the real server, or a controller at once, adds and our code looks at."""
        if item["kind"] == "Service":
            self._addresses += 1
            item.setdefault("spec", {}).setdefault("clusterIP", f"10.96.0.{self._addresses}")
        if item["kind"] == "Namespace":
            item["status"] = {"phase": "Active"}
            if self.controllers:
                account = {"name": "default", "namespace": item["metadata"]["name"]}
                manifest = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
                self._soon(lambda: self.put(manifest))

    def _needs_namespace(self, served: Served, key: Key) -> None:
        if served.namespaced and ("", key[0]) not in self._stores.get(("", "namespaces"), {}):
            missing = served.plural if served.kind == "ServiceAccount" else "namespaces"
            if missing == "namespaces":
                raise Refusal(404, "NotFound", f'namespaces "{key[0]}" not found')

    def _needs_account(self, served: Served, key: Key) -> None:
        accounts = self._stores.get(("", "serviceaccounts"), {})
        if served.kind == "Pod" and self.controllers and (key[0], "default") not in accounts:
            raise Refusal(
                403,
                "Forbidden",
                f'pods "{key[1]}" is forbidden: error looking up service account {key[0]}/default: '
                'serviceaccount "default" not found',
            )

    def _apply(self, served: Served, key: Key, seen: Seen) -> Obj:
        body, manager = deepcopy(seen.body), seen.query["fieldManager"]
        metadata = body["metadata"]
        version, wanted_uid = metadata.pop("resourceVersion", ""), metadata.pop("uid", "")
        paths = set(_leaves(body))
        unknown = sorted(p for p in map(_dotted, paths) if p in self.unknown_fields)
        if unknown:
            raise Refusal(
                500,
                "",
                f"failed to create typed patch object ({key[0]}/{key[1]}; {served.api_version}, "
                f"Kind={served.kind}): {unknown[0]}: field not declared in schema",
            )
        if served.kind == "Secret":
            _refuse_unreadable(body, key)
        live = self._store(served).get(key)
        if live is None:
            if wanted_uid:
                raise Refusal(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {served.qualified} "{key[1]}": uid '
                    f"mismatch: the provided object specified uid {wanted_uid}, and no existing "
                    "object was found",
                )
            self._allow("create", served, *key)
            self._needs_account(served, key)
            return self._create(served, key, body, manager, "Apply")
        if seen.query.get("force") == "true":
            for theirs in self._fields[live["metadata"]["uid"]].values():
                theirs.difference_update(paths)
        self._refuse_conflicts(served, live, body, manager, paths)
        if wanted_uid and wanted_uid != live["metadata"]["uid"]:
            raise Refusal(
                422,
                "Invalid",
                f'{served.kind} "{key[1]}" is invalid: metadata.uid: Invalid value: '
                f'"{wanted_uid}": field is immutable',
            )
        if version and version != live["metadata"]["resourceVersion"]:
            raise Refusal(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {served.qualified} "{key[1]}": the object has '
                "been modified; please apply your changes to the latest version and try again",
            )
        return self._merge(served, key, body, manager, paths)

    def _refuse_conflicts(
        self, served: Served, live: Obj, body: Obj, manager: str, paths: set[Path]
    ) -> None:
        causes = [
            {"reason": "FieldManagerConflict", "message": f'conflict with "{other}"',
             "field": _dotted(path)}
            for other, theirs in self._fields[live["metadata"]["uid"]].items()
            if other != manager
            for path in sorted(paths & theirs)
            if _at(live, path) != _at(body, path)
        ]  # fmt: skip
        if causes:
            told = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
            many = "s" if len(causes) > 1 else ""
            message = f"Apply failed with {len(causes)} conflict{many}: {told}"
            raise Refusal(409, "Conflict", message, causes=causes)

    def _merge(self, served: Served, key: Key, body: Obj, manager: str, paths: set[Path]) -> Obj:
        live = self._store(served)[key]
        fields = self._fields[live["metadata"]["uid"]]
        new = deepcopy(live)
        others = set().union(*(theirs for other, theirs in fields.items() if other != manager))
        for path in fields.get(manager, set()) - paths - others:
            _cut(new, path)
        for path in paths:
            if _at(body, path) != {} or not isinstance(_at(new, path), dict):
                _set(new, path, _at(body, path))
        if manager not in fields:
            entry = {"manager": manager, "operation": "Apply"}
            new["metadata"]["managedFields"].append(entry)
        if new == live:
            return new
        fields[manager] = paths
        return self._commit(served, key, new)

    def _replace(self, served: Served, key: Key, live: Obj, body: Obj) -> Obj:
        new = deepcopy(body)
        given = new["metadata"].get("resourceVersion")
        if given and given != live["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", "the object has been modified")
        for name in ("uid", "creationTimestamp", "managedFields", "deletionTimestamp", "namespace"):
            if name in live["metadata"]:
                new["metadata"][name] = live["metadata"][name]
        return self._commit(served, key, new)

    def _delete_collection(
        self, served: Served, namespace: str, seen: Seen, *, partial: bool
    ) -> Obj:
        if served.namespaced and not namespace:
            message = "the server does not allow this method on the requested resource"
            raise Refusal(405, "MethodNotAllowed", message)
        found = self._matching(served, namespace, seen.query)
        shown = [deepcopy(item) for item in found]
        for item in found:
            self._delete(served, _key(item), seen.body)
        metadata = {"resourceVersion": str(self.version)}
        listing = _listing(served, shown, metadata, partial=partial)
        return {**listing, "items": listing["items"] or None}

    def _delete(self, served: Served, key: Key, options: Obj) -> Obj:
        item = self._store(served)[key]
        metadata = item["metadata"]
        if key[1] in self.protected:
            raise self.protected[key[1]]
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != metadata["uid"]:
            raise Refusal(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {served.kind} "{key[1]}": the UID in the '
                f"precondition ({wanted}) does not match the UID in record ({metadata['uid']})",
            )
        if metadata.get("deletionTimestamp"):
            return deepcopy(item)
        new = deepcopy(item)
        if options.get("propagationPolicy") == "Foreground":
            new["metadata"].setdefault("finalizers", []).append("foregroundDeletion")
        graceful = served.kind == "Pod" and bool(item.get("spec", {}).get("nodeName"))
        if new["metadata"].get("finalizers") or graceful or served.kind == "Namespace":
            new["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:01Z"
            new["metadata"]["deletionGracePeriodSeconds"] = options.get("gracePeriodSeconds", 0)
            self._commit(served, key, new)
            if self.controllers:
                self._soon(lambda: self._finish(served, key, metadata["uid"]))
            return deepcopy(new)
        self._remove(served, key)
        details = {"name": key[1], "kind": served.plural, "uid": metadata["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": details}

    def _finish(self, served: Served, key: Key, uid: str) -> None:
        """What kubelet and garbage collector do after a while."""
        item = self._store(served).get(key)
        if item is None or item["metadata"]["uid"] != uid:
            return
        new = deepcopy(item)
        kept = [f for f in new["metadata"].get("finalizers", []) if f != "foregroundDeletion"]
        if not kept:
            self._remove(served, key)
        elif kept != new["metadata"]["finalizers"]:
            new["metadata"]["finalizers"] = kept
            self._commit(served, key, new)

    def _remove(self, served: Served, key: Key) -> None:
        item = self._store(served).pop(key)
        gone = deepcopy(item)
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        if served.kind == "Pod":
            gone["metadata"].setdefault("deletionTimestamp", "2026-11-22T00:00:01Z")
        self._record(served, "DELETED", gone, item)
        uid = item["metadata"]["uid"]
        self._fields.pop(uid, None)
        if served.kind == "Namespace":
            for (group, plural), store in self._stores.items():
                for inner in [k for k in store if k[0] == key[1]]:
                    self._remove(self._served(group, plural), inner)
        if self.controllers:
            self._soon(lambda: self._collect(uid))
            if served.kind == "Pod":
                self._soon(self._slices)

    def _collect(self, owner: str) -> None:
        for (group, plural), store in list(self._stores.items()):
            for key, item in list(store.items()):
                owners = item["metadata"].get("ownerReferences", [])
                if any(reference["uid"] == owner for reference in owners):
                    self._remove(self._served(group, plural), key)

    def _commit(self, served: Served, key: Key, new: Obj) -> Obj:
        store = self._store(served)
        old = store.get(key)
        metadata = new["metadata"]
        held = old is not None and bool(old["metadata"].get("finalizers"))
        if held and metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self._remove(served, key)
            return new
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        if old is None or old.get("spec") != new.get("spec"):
            metadata["generation"] = metadata.get("generation", 0) + 1
        store[key] = new
        self._record(served, "MODIFIED" if old else "ADDED", new, old)
        if served.kind in ("Pod", "Service") and self.controllers and not self._slicing:
            self._slicing = True
            self._soon(self._slices)
        return new

    def _record(self, served: Served, kind: str, item: Obj, before: Obj | None) -> None:
        where = (served.group, served.plural)
        self._history.append(_Change(self.version, where, kind, deepcopy(item), before))
        for watch in self.watches:
            watch.wake.set()

    def _slices(self) -> None:
        """What the endpoint controller does: a slice for each Service that has a ready pod."""
        self._slicing = False
        pods = list(self._stores.get(("", "pods"), {}).values())
        for service in list(self._stores.get(("", "services"), {}).values()):
            selector = ",".join(
                f"{k}={v}" for k, v in (_at(service, ("spec", "selector")) or {}).items()
            )
            ready = [pod for pod in pods if selector and _selects(selector, pod) and _ready(pod)]
            if ready or self._slice_of(service):
                self._slice(service, [pod["status"]["podIP"] for pod in ready])

    def _slice_of(self, service: Obj) -> Obj | None:
        metadata = service["metadata"]
        return self.find("EndpointSlice", metadata["namespace"], f"{metadata['name']}-x7k2p")

    def _slice(self, service: Obj, addresses: list[str]) -> None:
        metadata = service["metadata"]
        name, space = metadata["name"], metadata["namespace"]
        owner = {"kind": "Service", "name": name, "uid": metadata["uid"], "controller": True}
        endpoints = [{"addresses": addresses, "conditions": {"ready": True}}] if addresses else []
        known = self._slice_of(service)
        if known is None or known["endpoints"] != endpoints:
            self.put({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{name}-x7k2p",
                    "namespace": space,
                    "labels": {**metadata.get("labels", {}), "kubernetes.io/service-name": name},
                    "ownerReferences": [owner],
                },
                "endpoints": endpoints,
            })  # fmt: skip

    def _soon(self, action: Callable[[], object]) -> None:
        try:
            asyncio.get_running_loop().call_later(self.delay, action)
        except RuntimeError:
            action()  # set up before the test's loop runs

    def _served(self, group: str, plural: str, version: str = "") -> Served:
        for served in self.kinds:
            named = (served.group, served.plural) == (group, plural)
            if named and version in ("", served.version):
                return served
        raise Refusal(404, "NotFound", "the server could not find the requested resource")

    def _served_kind(self, api_version: str, kind: str) -> Served:
        return next(s for s in self.kinds if (s.api_version, s.kind) == (api_version, kind))

    def _store(self, served: Served) -> dict[Key, Obj]:
        return self._stores.setdefault((served.group, served.plural), {})


def text(code: int, body: str, content_type: str = "text/plain", **headers: str) -> Fault:
    """A fault that answers something other than a Status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type:
        named["Content-Type"] = content_type
    return Fault(answer=lambda: httpx2.Response(code, content=body.encode(), headers=named))


def _already(served: Served, name: str) -> Refusal:
    return Refusal(409, "AlreadyExists", f'{served.qualified} "{name}" already exists')


def _refuse_unreadable(secret: Obj, key: Key) -> None:
    for value in (secret.get("data") or {}).values():
        try:
            base64.b64decode(value, validate=True)
        except ValueError:
            raise Refusal(
                500,
                "",
                f"failed to convert new object ({key[0]}/{key[1]}; /v1, Kind=Secret) to proper "
                "version: unable to convert unstructured object to /v1, Kind=Secret: error "
                "decoding from json: illegal base64 data at input byte 0",
            ) from None


def _absent(served: Served, name: str) -> Refusal:
    return Refusal(404, "NotFound", f'{served.qualified} "{name}" not found')


def _expired(message: str) -> Refusal:
    return Refusal(410, "Expired", message)


def _line(event: Obj) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"  # as Go writes it


def _key(item: Obj) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _partial(item: Obj) -> Obj:
    head = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    return {**head, "metadata": deepcopy(item["metadata"])}


def _shown(item: Obj, *, partial: bool) -> Obj:
    return _partial(item) if partial else item


def _listing(served: Served, items: list[Obj], metadata: Obj, *, partial: bool) -> Obj:
    if partial:
        head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
        return {**head, "metadata": metadata, "items": [_partial(item) for item in items]}
    # Items of built-in lists do not say their kind.
    bare = [
        {k: deepcopy(v) for k, v in i.items() if k not in ("apiVersion", "kind")} for i in items
    ]
    head = {"kind": f"{served.kind}List", "apiVersion": served.api_version}
    return {**head, "metadata": metadata, "items": bare}


def _selects(selector: str, item: Obj) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(_term(term, labels) for term in _TERM.finditer(selector) if term["key"])


def _term(term: re.Match[str], labels: Mapping[str, str]) -> bool:
    if term["op"] is None:
        return term["key"] in labels
    value = term["value"].strip("()")
    allowed = [part.strip() for part in value.split(",")] if term["op"] == "in" else [value]
    return term["key"] in labels and labels[term["key"]] in allowed


def _leaves(body: Obj, at: Path = ()) -> Iterable[Path]:
    """Paths of what an apply claims: scalars, and lists as a whole."""
    for name, value in body.items():
        path = (*at, name)
        if path in (("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")):
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        else:
            yield path


def _ready(pod: Obj) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)


def _dotted(path: Path) -> str:
    return "".join(f".{part}" for part in path)


def _at(item: Any, path: Path) -> Any:
    for part in path:
        item = item.get(part) if isinstance(item, dict) else None
    return item


def _set(item: Obj, path: Path, value: Any) -> None:
    for part in path[:-1]:
        item = item.setdefault(part, {})
    item[path[-1]] = deepcopy(value)


def _cut(item: Obj, path: Path) -> None:
    for part in path[:-1]:
        item = item.get(part, {})
    item.pop(path[-1], None)
