"""Whether the hub's account may do what a template needs: asked before anything is created.

One review a namespace tells all rules that RBAC gives the account there. What it allows stands for
some seconds, so that a class that starts together asks once; what it denies is asked again at the
next start, which an administrator may have enabled meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.cluster.discovery import Discovery, allowed
from lightkube_template_spawner.cluster.events import EVENTS
from lightkube_template_spawner.cluster.retry import retry
from lightkube_template_spawner.cluster.timing import DEFAULT, Timing
from lightkube_template_spawner.errors import ClusterError, Forbidden
from lightkube_template_spawner.objects.plan import Plan

Place = tuple[Kind, str]  # kind, namespace ("" for kinds without one, or for all namespaces)
Needs = Mapping[Place, frozenset[str]]

# Deleting collections is not among them: it saves requests, and without it we delete one by one.
FULL = frozenset({"create", "delete", "get", "list", "patch", "watch"})
LOOK = frozenset({"list", "watch"})

_RBAC = "rbac.authorization.k8s.io"
# No namespace has this name, so that only rules of ClusterRoleBindings are told for it.
_NOWHERE = "-"
_REVIEWED_STANDS = 60.0  # seconds until it is asked again where each verb is a request
# Quotas, policies and admission webhooks say "forbidden" too, and nothing of anybody's rights.
_NO_RIGHT = re.compile(r'User ".*" cannot \S+ (resource|path) ')


def needed(plan: Plan, kinds: Mapping[tuple[str, str], Kind], watched: Iterable[Place]) -> Needs:
    """The verbs that one start, its polls and its removal use, by kind and namespace.

    ``watched`` are places that are looked at, whoever makes what is there.
    """
    needs: dict[Place, frozenset[str]] = dict.fromkeys(watched, LOOK)
    for item in plan.objects:
        needs[kinds[item.kind], item.namespace] = FULL
    return needs


def promised(plan: Plan, place: Place) -> bool:
    """Whether the template itself may give the right: it renders the namespace and a binding."""
    kind, namespace = place
    rendered = {item.name for item in plan.objects if item.kind == ("v1", "Namespace")}
    bound = {o.namespace for o in plan.objects if o.kind[1].endswith("RoleBinding")}
    return kind.group != _RBAC and namespace in rendered and bool(bound & {namespace, ""})


def is_missing_right(error: Forbidden) -> bool:
    """Whether the account lacks a right, as the API server's authorization words it."""
    return bool(_NO_RIGHT.search(str(error)))


def explain(missing: Needs, account: str = "the hub's account") -> str:
    """Every missing right in words, and as the rules to add, one a line, in YAML."""
    needs = sorted(missing.items(), key=lambda need: (need[0][1], str(need[0][0])))
    words = [
        f"{_any_of(sorted(verbs))} {_resource(kind)} {_where(name)}"
        for (kind, name), verbs in needs
    ]
    lines = [f"{account} may not {', nor '.join(words)}."]
    for namespace in dict.fromkeys(name for (_, name), _ in needs):
        role = f"a Role in namespace {namespace!r}" if namespace else "a ClusterRole"
        lines.append(f"Add to {role} that is bound to this account:")
        groups: dict[tuple[str, str], list[str]] = {}
        for (kind, name), verbs in needs:
            if name == namespace:
                key = (kind.group or '""', ", ".join(sorted(verbs)))
                groups.setdefault(key, []).append(kind.plural)
        lines += [
            f"- {{apiGroups: [{group}], resources: [{', '.join(plurals)}], verbs: [{verbs}]}}"
            for (group, verbs), plurals in groups.items()
        ]
    return "\n".join(lines)


def _any_of(verbs: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(verbs[:-1]), verbs[-1]]))


def _resource(kind: Kind) -> str:
    return f"{kind.plural}.{kind.group}" if kind.group else kind.plural


def _where(namespace: str) -> str:
    return f"in namespace {namespace!r}" if namespace else "in the cluster"


class _Held(NamedTuple):
    verbs: frozenset[str]
    until: float  # by the monotonic clock


_NOTHING = _Held(frozenset(), 0.0)


class Rights:
    """What the hub's account may do on one API server."""

    def __init__(
        self, api: Api, discovery: Discovery, log: logging.Logger, timing: Timing = DEFAULT
    ) -> None:
        self._api = api
        self._discovery = discovery
        self._log = log
        self._timing = timing
        self._held: dict[Place, _Held] = {}
        self._everywhere: dict[Kind, bool] = {}
        self._warned = False
        self._asking = asyncio.Lock()  # a class that starts together asks once

    async def missing(self, needs: Needs, *, events: str = "") -> Needs:
        """What of the needs we may not do; costs no request while all of it is known.

        ``events`` is the namespace whose events the users should see: without the right, they see
        none, which is said once.

        Raises:
            ClusterError: the API server could not be asked.
        """
        lacks = self._without(needs)
        if lacks:
            async with self._asking:
                lacks = self._without(needs)
                for namespace in sorted({name for _, name in lacks}):
                    rules, complete = await self._discovery.rules(namespace or _NOWHERE)
                    for place in [place for place in lacks if place[1] == namespace]:
                        held = allowed(rules, place[0], lacks[place])
                        if not complete:
                            held |= await self._reviewed(place, lacks[place] - held)
                        self._remember(
                            place, held, self._timing.rights if complete else _REVIEWED_STANDS
                        )
                        lacks[place] -= held
                    if complete and namespace == events:
                        self._look_for_events(rules, events)
        return {place: verbs for place, verbs in lacks.items() if verbs}

    def is_settled(self, kind: Kind) -> bool:
        """Whether ``everywhere`` was answered before."""
        return kind in self._everywhere

    async def everywhere(self, kind: Kind) -> bool:
        """Whether we may watch a kind in all namespaces at once; asked once."""
        if kind not in self._everywhere:
            try:
                self._everywhere[kind] = not await self.missing({(kind, ""): LOOK})
            except ClusterError as error:
                self._log.debug("May %s be watched in all namespaces: %s", kind, error)
                return False
        return self._everywhere[kind]

    def deny_everywhere(self, kind: Kind) -> None:
        """The API server refused to show a kind in all namespaces, whatever was said before."""
        self._everywhere[kind] = False

    def forget(self, namespaces: Iterable[str] | None = None) -> None:
        """Ask again what was allowed in these namespaces, or anywhere."""
        if namespaces is None:
            self._held.clear()
            self._everywhere.clear()
            return
        gone = {*namespaces}
        for place in [place for place in self._held if place[1] in gone]:
            del self._held[place]

    async def account(self) -> str:
        """What the API server calls us."""
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            answer = await self._api.call("POST", path, body=review)
            return f"the hub's account {answer['status']['userInfo']['username']}"
        except (ClusterError, LookupError, TypeError):
            return "the hub's account"  # before Kubernetes 1.28

    def _without(self, needs: Needs) -> dict[Place, frozenset[str]]:
        lacks = {place: verbs - self._known(place).verbs for place, verbs in needs.items()}
        return {place: verbs for place, verbs in lacks.items() if verbs}

    def _known(self, place: Place) -> _Held:
        held = self._held.get(place, _NOTHING)
        return held if time.monotonic() < held.until else _NOTHING

    def _remember(self, place: Place, verbs: frozenset[str], seconds: float) -> None:
        known = self._known(place)
        until = known.until or time.monotonic() + seconds
        self._held[place] = _Held(known.verbs | verbs, until)

    async def _reviewed(self, place: Place, verbs: frozenset[str]) -> frozenset[str]:
        """One question a verb, where webhooks decide and cannot tell their rules."""
        kind, namespace = place
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        allowed_verbs = set()
        for verb in sorted(verbs):
            attributes = {
                "group": kind.group,
                "resource": kind.plural,
                "namespace": namespace,
                "verb": verb,
            }
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            answer = await retry(
                partial(self._api.call, "POST", path, body=review), self._log, self._timing
            )
            if (answer.get("status") or {}).get("allowed") is True:
                allowed_verbs.add(verb)
        return frozenset(allowed_verbs)

    def _look_for_events(self, rules: Iterable[Mapping[str, Any]], namespace: str) -> None:
        lacking = LOOK - allowed(rules, EVENTS, LOOK)
        if lacking and not self._warned:
            self._warned = True
            self._log.warning(
                "Users do not see what happens to their pods while they start: %s",
                explain({(EVENTS, namespace): lacking}),
            )
