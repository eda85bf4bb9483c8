"""Waiting for one server: what its objects and their events say, and when it is no use any more."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TypeVar

import anyio

from lightkube_template_spawner.cluster.events import Event
from lightkube_template_spawner.cluster.live import Live
from lightkube_template_spawner.cluster.reflector import Sight
from lightkube_template_spawner.errors import (
    ClusterError,
    Forbidden,
    StartFailed,
    StartTimeout,
)
from lightkube_template_spawner.lifecycle import failures
from lightkube_template_spawner.lifecycle.failures import Course, FailureRules, Symptom, Trouble
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects import references, status
from lightkube_template_spawner.objects.ref import POD

T = TypeVar("T")
Watch = Callable[[], Awaitable[list[Sight]]]
Tell = Callable[[str, int], None]  # a sentence for the user, and the progress in per cent

# Seconds after which a pod that nobody looks at is worth a word, and has its references looked up.
_NO_NOTICE = 10.0
_LOOK_UP = 10.0  # seconds that this may take
_BLIND = 1.0  # seconds until a trouble is judged again that could not be
# What keeps the scheduler from so much as looking at a pod, and the versions that serve it. All
# else is said in the pod's conditions and events.
_LOOKED_UP = {
    "PersistentVolumeClaim": ("v1",),
    "ResourceClaim": tuple(f"resource.k8s.io/{v}" for v in ("v1", "v1beta2", "v1beta1")),
    "ResourceClaimTemplate": tuple(f"resource.k8s.io/{v}" for v in ("v1", "v1beta2", "v1beta1")),
}


class Waiter:
    """One start, from its first object until its server is ready.

    ``uids`` are those of the objects that were applied; pods join them as they come.
    """

    def __init__(
        self, server: Server, rules: FailureRules, tell: Tell, log: logging.Logger
    ) -> None:
        self.what = "the API server"
        self.uids: set[str] = set()
        self.server = server
        self._tell = tell
        self._log = log
        self._course = Course(rules)
        self._troubles: list[Trouble] = []
        self._told: set[str] = set()
        self._heard: dict[str, dict[str, Event]] = {}  # by UID and reason, the last of each
        self._refused_at = math.inf  # since when its watches are refused
        self._missing: dict[str, list[Symptom]] = {}  # by the UID of the pod that was looked up

    def update(self, what: str) -> None:
        """Say what is waited for, when it changes to what was not said before."""
        if what != self.what:
            self.what = what
            self._tell_once(f"Waiting for {what}")

    def late(self, timeout: float, said: str = "") -> StartTimeout:
        """What was waited for, what is wrong, and what kept the hub from seeing it."""
        words = [str(trouble.symptom) for trouble in self._troubles]
        server = self.server
        stores = chain.from_iterable(map(server.cluster.stores_in, server.record.namespaces))
        blind = sorted({str(store.error) for store in stores if store.error})
        text = f"not ready after {timeout:.0f} s: waited for {self.what}"
        for more in dict.fromkeys(filter(None, [*words, said, *blind])):
            text += f"; {more}" if more not in text else ""
        reason = StartTimeout.SILENT if said else "timeout"
        if self._troubles:
            reason = self._troubles[0].rule.reason
        return StartTimeout(text, reason=reason)

    # -- events -----------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the events of every namespace that holds objects of this server."""
        with ExitStack() as stack:
            for namespace in self.server.record.namespaces:
                feed = self.server.cluster.events(namespace)
                stack.enter_context(feed.listen(self._hear, self.uids))
            yield

    def made(self, uid: str) -> None:
        """An object of this server is there: what was said of it before its UID was known."""
        self.uids.add(uid)
        for namespace in self.server.record.namespaces:
            for event in self.server.cluster.events(namespace).about(uid):
                self._hear(event)

    def _hear(self, event: Event) -> None:
        if event.is_routine or not (event.uid in self.uids or self._is_about_a_part(event)):
            return
        heard = self._heard.setdefault(event.uid, {})
        if heard.get(event.reason) == event:
            return
        heard[event.reason] = event
        self._tell(f"{event.time} [{event.type}] {event.kind} {event.reason}: {event.message}", 50)
        self.server.cluster.changes.notify(self.server.record.identity.owner)

    def _is_about_a_part(self, event: Event) -> bool:
        """Objects that controllers made for our pods, or of them: claims, Kueue's workloads."""
        for live in self.server.pods():
            if live.meta.uid == event.uid:
                return True
            if event.kind == "PersistentVolumeClaim" and event.name in _claims(live):
                return True
            # Kueue calls it by the pod's name and a digest.
            workload = event.name.rpartition("-")[0]
            if event.kind == "Workload" and workload == f"pod-{live.meta.name}":
                return True
        return False

    # -- the wait ---------------------------------------------------------------------------------

    async def until(self, ready: Callable[[], T | None], watch: Watch) -> T:
        """Wait until ``ready`` gives something else than None; it reads stores only.

        ``watch`` opens these stores, and again where one is refused or closed meanwhile.

        Raises:
            StartFailed: a rule's grace is over, the server ended, or its namespace goes.
            ClusterError: ``watch`` is refused.
        """
        sights: list[Sight] = []
        changed = asyncio.Event()
        unsubscribe = self.server.cluster.changes.subscribe(
            self.server.record.identity.owner, changed.set
        )
        try:
            while True:
                sights = await self._in_sight(sights, watch)
                self._refuse_the_ended()
                if (result := ready()) is not None:
                    return result
                due = anyio.current_time() + await self._judge()
                await self._until_news(changed, due, sights)
                changed.clear()
        finally:
            unsubscribe()

    async def _until_news(self, changed: asyncio.Event, due: float, sights: list[Sight]) -> None:
        """Until something changed, is due, or can no longer be seen."""
        while True:
            rest = due - anyio.current_time()
            with anyio.move_on_after(min(rest, self.server.cluster.timing.sight)):
                await changed.wait()
            if changed.is_set() or anyio.current_time() >= due or not _all_seen(sights):
                return

    async def _in_sight(self, sights: list[Sight], watch: Watch) -> list[Sight]:
        if sights and _all_seen(sights):
            return sights
        cluster = self.server.cluster
        try:
            sights = await watch()
        except Forbidden:
            now = anyio.current_time()
            self._refused_at = min(self._refused_at, now)
            lasting = now - self._refused_at >= cluster.timing.recovering
            if not lasting and any(store.recovering for store in cluster.stores()):
                return sights  # it has just come back and may not know our rights yet
            for namespace in self.server.record.namespaces:
                if await cluster.has_ended(namespace):
                    raise StartFailed(f"namespace {namespace!r} is being deleted") from None
            raise
        self._refused_at = math.inf
        return sights

    def _refuse_the_ended(self) -> None:
        for live in self.server.pods():
            if live.meta.uid not in self.uids:
                self.made(live.meta.uid)
            # One that a controller made is the controller's to replace.
            over = None if live.meta.controlled else status.ended(live.as_dict())
            if over:
                raise StartFailed(
                    f"{live.reference} ended before it was ready: {over.reason}", reason="crash"
                )

    async def _judge(self) -> float:
        """Seconds until it is to be asked again, if nothing changes."""
        now = anyio.current_time()
        self._troubles = self._course.troubles(self._symptoms(), now)
        wake = min((trouble.due for trouble in self._troubles), default=math.inf)
        for trouble in self._troubles:
            if trouble.due <= now:
                if self._is_blind():
                    return _BLIND  # it may be over by now
                raise StartFailed(str(trouble.symptom), reason=trouble.rule.reason)
            unnoticed = trouble.symptom.words.startswith(failures.UNNOTICED)
            worth = trouble.since + (_NO_NOTICE if unnoticed else 0.0)
            if worth > now:  # every pod begins like this
                wake = min(wake, worth)
                continue
            self._say(trouble)
            if unnoticed and await self._look_up():
                return 0.0
        return wake - now

    def _say(self, trouble: Trouble) -> None:
        symptom, grace = trouble.symptom, trouble.rule.grace
        if symptom.words not in self.what:
            limit = "" if grace is None else f" (this may last {grace:.0f} s)"
            self._tell_once(f"{symptom}{limit}")

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text, 30)

    def _symptoms(self) -> Iterator[Symptom]:
        pods = [(live, live.as_dict()) for live in self.server.pods()]
        for live, pod in pods:
            heard = tuple(_words(event) for event in self._heard.get(live.meta.uid, {}).values())
            yield from failures.of_pod(live.reference, pod, heard)
            if failures.unnoticed(pod):
                yield from self._missing.get(live.meta.uid, ())
        for live in self.server.objects():
            if "status" in live.parts and live.kind.group == "apps":
                yield from failures.of_controller(live.reference, live.as_dict())
        for uid, events in self._heard.items():
            for event in events.values():
                if self._still_counts(uid, event, pods):
                    yield Symptom(failures.EVENT, f"{event.kind}/{event.name}", _words(event))

    @staticmethod
    def _still_counts(uid: str, event: Event, pods: list[tuple[Live, dict[str, object]]]) -> bool:
        """Whether what an event told of has not been overcome since; no event says that it was."""
        if event.kind == "Pod":
            return any(live.meta.uid == uid and not failures.begun(pod) for live, pod in pods)
        if event.kind == "PersistentVolumeClaim":
            return not pods or any(not failures.scheduled(pod) for _, pod in pods)
        owners = (owner for live, _ in pods for owner in live.meta.owner_references)
        return all(owner.get("uid") != uid for owner in owners)

    async def _look_up(self) -> bool:
        """Ask for what unnoticed pods refer to, once a pod; whether something is missing."""
        any_missing = False
        for live in self.server.pods():
            if live.meta.uid not in self._missing and failures.unnoticed(live.as_dict()):
                self._missing[live.meta.uid] = []
                with anyio.move_on_after(_LOOK_UP):
                    self._missing[live.meta.uid] = [
                        Symptom(
                            failures.REFERENCE,
                            live.reference,
                            f"it refers to {kind}/{live.meta.namespace}/{name}, which does not "
                            "exist",
                        )
                        for kind, name in references.of_manifest(live.as_dict())
                        if await self._is_missing(kind, live.meta.namespace, name)
                    ]
                any_missing = any_missing or bool(self._missing[live.meta.uid])
        return any_missing

    async def _is_missing(self, kind: str, namespace: str, name: str) -> bool:
        served = await self.server.cluster.discovery.named(
            [f"{version}/{kind}" for version in _LOOKED_UP.get(kind, ())]
        )
        try:
            return (
                bool(served) and await self.server.cluster.get(served[0], namespace, name) is None
            )
        except ClusterError as error:
            self._log.info("%s/%s/%s cannot be looked up: %s", kind, namespace, name, error)
            self._tell(f"{kind}/{namespace}/{name} cannot be looked up: {error}", 30)
            return False

    def _is_blind(self) -> bool:
        """Whether what is known of pods may be old: the API server is away."""
        return not any(
            store.watching
            for store in self.server.cluster.stores_of(POD, self.server.record.pods_in)
        )


def _words(event: Event) -> str:
    return f"{event.reason}: {event.message}"


def _all_seen(sights: list[Sight]) -> bool:
    return all(store.sees(namespace) for store, namespace in sights)


def _claims(pod: Live) -> set[str]:
    """The names of the volume claims that a pod uses, those of its ephemeral volumes included."""
    claims: set[str] = set()
    for volume in (pod.as_dict().get("spec") or {}).get("volumes") or ():
        claims.add(str((volume.get("persistentVolumeClaim") or {}).get("claimName")))
        if "ephemeral" in volume:
            claims.add(f"{pod.meta.name}-{volume['name']}")
    return claims
