"""Which kinds the API server serves, asked in two requests and remembered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.cluster.retry import retry
from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.errors import Unavailable, UnknownKind

_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"
_ACCEPT = f"{_AGGREGATED.format('v2')},{_AGGREGATED.format('v2beta1')},application/json"

# Made by controllers from objects of ours, copying their labels: never ours to delete or report.
DERIVED = frozenset({"Endpoints", "EndpointSlice", "Event", "Lease", "ControllerRevision"})
_TO_DELETE = frozenset({"list", "delete"})


class Discovery:
    """The kinds of one API server; asked again once when a kind is not known."""

    def __init__(self, api: Api, log: logging.Logger, timing: Timing = DEFAULT) -> None:
        self._api = api
        self._log = log
        self._timing = timing
        self._kinds: dict[tuple[str, str], Kind] = {}
        self._preferred: list[Kind] = []
        self._silent_versions: set[str] = set()  # API versions that are served but did not answer
        self._asking: asyncio.Lock = asyncio.Lock()
        self._version = ""

    async def server_version(self) -> str:
        """The API server's own version, such as ``v1.36.3``."""
        if not self._version:
            self._version = str((await self._get("/version"))["gitVersion"])
        return self._version

    async def kind(self, api_version: str, kind: str) -> Kind:
        """The resource behind a manifest's ``apiVersion`` and ``kind``.

        Raises:
            UnknownKind: the API server serves no such kind, even when asked again.
            ClusterError: it could not be asked.
        """
        key = (api_version, kind)

        async def find() -> Kind:
            for fresh in (False, True):
                kinds = await self._load(fresh=fresh, need=key)
                if key in kinds:
                    return kinds[key]
            if api_version in self._silent_versions:
                raise Unavailable(f"the API {api_version} did not answer for itself")
            raise UnknownKind(
                f"the API server serves no {api_version}/{kind}: install its definition (CRD), or "
                "correct apiVersion and kind in the template"
            )

        return await retry(find, self._log, self._timing)

    async def named(self, names: Iterable[str]) -> list[Kind]:
        """The kinds written as ``v1/Pod`` or ``apps/v1/Deployment``; unknown ones are left out.

        A kind that is no longer served has no objects left, so its absence is no error.
        """
        kinds = []
        for name in names:
            api_version, _, kind = name.rpartition("/")
            try:
                kinds.append(await self.kind(api_version, kind))
            except UnknownKind:
                continue
        return kinds

    async def deletable(self, namespaces: Iterable[str]) -> dict[str, list[Kind] | None]:
        """By namespace, every kind that is served and that our account may list and delete there.

        Each once, in its preferred version. None when the API server cannot tell our rights
        (webhook authorizers): then only kinds known to be used may be touched.
        """
        kinds = await self.holding()
        if self._silent_versions:
            versions = ", ".join(sorted(self._silent_versions))
            self._log.warning("Objects of %s are not looked for: it did not answer", versions)
        places: dict[str, list[Kind] | None] = {}
        for namespace in namespaces:
            rules, complete = await self.rules(namespace)
            targets = [kind for kind in kinds if allowed(rules, kind, _TO_DELETE) == _TO_DELETE]
            places[namespace] = targets if complete else None
        return places

    async def holding(self) -> list[Kind]:
        """Every kind that can hold objects of ours, whatever we may do with it."""
        await self._load(fresh=True)
        return [k for k in self._preferred if k.verbs >= _TO_DELETE and k.kind not in DERIVED]

    async def rules(self, namespace: str) -> tuple[list[Mapping[str, Any]], bool]:
        """What our account may do in ``namespace``, and whether that is all of it."""
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        answer = await retry(
            lambda: self._api.call("POST", path, body=review), self._log, self._timing
        )
        status = answer.get("status") or {}
        return list(status.get("resourceRules") or ()), not status.get("incomplete")

    async def _get(self, path: str, accept: str = "application/json") -> Any:
        return await retry(
            lambda: self._api.call("GET", path, accept=accept), self._log, self._timing
        )

    async def _load(
        self, *, fresh: bool, need: tuple[str, str] | None = None
    ) -> Mapping[tuple[str, str], Kind]:
        if self._kinds and not fresh:
            return self._kinds
        before = self._kinds
        async with self._asking:
            if self._kinds is not before and (need is None or need in self._kinds):
                return self._kinds  # somebody else asked while we waited
            kinds: dict[tuple[str, str], Kind] = {}
            preferred: dict[tuple[str, str], Kind] = {}
            self._silent_versions.clear()
            for root in ("/api", "/apis"):
                answer = await self._get(root, accept=_ACCEPT)
                for kind in await self._read(root, answer):
                    kinds.setdefault((kind.api_version, kind.kind), kind)
                    preferred.setdefault((kind.group, kind.kind), kind)
            self._kinds, self._preferred = kinds, list(preferred.values())
            if before:  # a cluster that serves other kinds may have been upgraded
                self._version = ""
        return self._kinds

    async def _read(self, root: str, answer: Mapping[str, Any]) -> list[Kind]:
        if answer.get("kind") == "APIGroupDiscoveryList":
            kinds = list(_aggregated(answer))
            self._silent_versions |= _stale(answer) - {kind.api_version for kind in kinds}
            return kinds
        kinds = []
        for group_version in _group_versions(answer):
            try:
                listing = await self._api.call("GET", f"{root}/{group_version}")
            except Unavailable as error:  # an extension that is down is not to cost the others
                self._log.warning("The API %s does not answer: %s", group_version, error)
                self._silent_versions.add(group_version)
                before = self._kinds.values()
                kinds += [kind for kind in before if kind.api_version == group_version]
            else:
                kinds += _legacy(group_version, listing)
        return kinds


def granted(rules: Iterable[Mapping[str, Any]], kind: Kind) -> set[str]:
    """The verbs, perhaps ``*``, that the rules allow; rules for single names do not count."""
    verbs: set[str] = set()
    for rule in rules:
        groups, resources = rule.get("apiGroups") or (), rule.get("resources") or ()
        names = rule.get("resourceNames")
        if not names and {kind.group, "*"} & {*groups} and {kind.plural, "*"} & {*resources}:
            verbs |= set(rule.get("verbs") or ())
    return verbs


def allowed(
    rules: Iterable[Mapping[str, Any]], kind: Kind, verbs: frozenset[str]
) -> frozenset[str]:
    """Those of ``verbs`` that the rules allow."""
    grants = granted(rules, kind)
    return verbs if "*" in grants else verbs & grants


def _aggregated(answer: Mapping[str, Any]) -> Iterator[Kind]:
    for group in answer["items"]:
        name = group["metadata"].get("name", "")
        for version in group["versions"]:
            for resource in version.get("resources") or ():
                response = resource.get("responseKind") or {}
                if response.get("kind"):
                    yield Kind(
                        name,
                        version["version"],
                        response["kind"],
                        resource["resource"],
                        resource["scope"] == "Namespaced",
                        frozenset(resource["verbs"]),
                    )


def _stale(answer: Mapping[str, Any]) -> set[str]:
    """Group-versions whose own server did not answer of late; there may be nothing about them."""
    return {
        f"{group['metadata'].get('name', '')}/{version['version']}"
        for group in answer["items"]
        for version in group["versions"]
        if version.get("freshness") == "Stale"
    }


def _group_versions(answer: Mapping[str, Any]) -> list[str]:
    """Group-versions in the server's order of preference, from a list made before 1.26."""
    if answer.get("kind") == "APIVersions":
        return list(answer["versions"])
    versions = []
    for group in answer.get("groups") or ():
        preferred = group["preferredVersion"]["groupVersion"]
        rest = [version["groupVersion"] for version in group["versions"]]
        versions += [preferred, *(version for version in rest if version != preferred)]
    return versions


def _legacy(group_version: str, listing: Mapping[str, Any]) -> Iterator[Kind]:
    group, _, version = group_version.rpartition("/")
    for resource in listing.get("resources") or ():
        if "/" not in resource["name"]:
            yield Kind(
                group,
                version,
                resource["kind"],
                resource["name"],
                bool(resource["namespaced"]),
                frozenset(resource["verbs"]),
            )
