"""Starts, stops, polls, deaths, restarts and removals of one user's servers, in every order.

A machine that hypothesis drives, against the API server in memory and a real one alike. All that
the hub asks waits at a gate until a step lets it through, so what one click does can be cut into at
any request by another click, by a death, or by the end of the hub's process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lightkube_template_spawner.objects.identity import INSTANCE as INSTANCE_LABEL
from lightkube_template_spawner.objects.identity import OWNER, SERVERNAME, Identity
from tests.support.clicks import Clicks
from tests.support.hub import INSTANCE, LocalHub
from tests.support.objects import LIFECYCLE

log = logging.getLogger("interleaving")

Obj = dict[str, Any]
SERVERS = st.sampled_from(["", "gpu"])
PASSING = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 21])  # requests, after a step
NEIGHBOUR = Identity(INSTANCE, "neighbour", userid=77)
CALM = 0.004  # seconds that a step may take until it waits at the gate
PATIENCE = 30.0

# One of each lifecycle; the secret is confined to a start, the claim is never mounted.
TEMPLATES = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: home-{{ .Values.escaped_username }}
  annotations: {kubetemplatespawner/lifecycle: user-deleted}
spec:
  storageClassName: ""
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: kept-{{ .Values.escaped_user_server }}
  annotations: {kubetemplatespawner/lifecycle: server-deleted}
---
apiVersion: v1
kind: Secret
metadata: {name: "{{ .Values.escaped_user_server }}"}
stringData: {token: {{ .Values.env.JUPYTERHUB_API_TOKEN | quote }}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Values.escaped_user_server }}
  annotations: {kubetemplatespawner/connection: "true"}
spec:
  nodeSelector: {type: kwok}
  tolerations: [{key: kwok.x-k8s.io/node, operator: Exists}]
  restartPolicy: Never
  automountServiceAccountToken: false
  containers: [{name: main, image: "localhost/none:1"}]
"""


class Gate(httpx2.AsyncBaseTransport):
    """Holds requests back until they are let through; watches pass. One for each hub process."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.open = False
        self.passed = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def let(self, count: int) -> None:
        while self._waiting and count:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                count -= 1

    def unlock(self, *, open_: bool) -> None:
        self.open = open_
        if open_:
            self.let(len(self._waiting))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self.open and request.url.params.get("watch") != "true":
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self.passed += 1
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class World(ABC):
    """A hub on an API server, and what an administrator sees and does there."""

    hub: LocalHub
    gate: Gate
    username: str

    @abstractmethod
    async def objects(self) -> list[Obj]:
        """Every pod, secret, config map and claim of the namespace."""

    @abstractmethod
    async def create(self, manifest: Obj) -> None: ...

    @abstractmethod
    async def delete_pod(self, name: str) -> None: ...

    @abstractmethod
    async def fail_pod(self, name: str) -> None: ...


class Interleaving(RuleBasedStateMachine):
    """``run`` runs a coroutine on the one event loop; ``enter`` makes a world for each example."""

    def __init__(
        self,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        enter: Callable[[], AbstractAsyncContextManager[World]],
    ) -> None:
        super().__init__()
        self._runner = run
        self._context = enter()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._removal: asyncio.Future[Any] | None = None
        self._loose: list[str] = []  # what nobody handled
        self._log = _Errors()
        self._volume = ""
        logging.getLogger().addHandler(self._log)
        self.world: World = run(self._context.__aenter__())
        self.identity = Identity(INSTANCE, self.world.username)
        run(self._begin())

    def _run(self, what: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self._runner(what)
        except BaseException as error:  # a replay may go another way: this one is to be seen
            log.warning("!! %r", error)
            raise

    async def _begin(self) -> None:
        log.warning("-- begin")
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        for manifest in neighbours():
            await self.world.create(manifest)
        self._hub_starts()
        self._foreign = await self._eventually(self._settled_neighbours)

    def teardown(self) -> None:
        try:
            self._run(self._end())
        finally:
            logging.getLogger().removeHandler(self._log)
            self._run(self._context.__aexit__(None, None, None))

    async def _end(self) -> None:
        """Whatever happened: a removed user leaves nothing, and nobody else has noticed."""
        log.warning("-- end")
        await self._settle()
        if self._user() is not None:
            for server in list(self._user().orm_spawners):
                self._do_later(self.clicks.stop(self.world.username, server))
                await self._settle()
            self._volume = ""
            self.world.gate.unlock(open_=True)
            await self.clicks.delete_user(self.world.username)
        await self._eventually(self._nothing_left)
        gc.collect()
        assert not self._loose, self._loose

    # -- what people, the hub and the cluster do ----------------------------------------------
    # No step is left out for what is so at its time: a replay may be a little faster or slower.

    @rule(server=SERVERS, passing=PASSING)
    def start(self, server: str, passing: int) -> None:
        log.warning("-- start %r, %d", server, passing)
        self.world.hub.user(self.world.username)  # who was removed may come back
        self._do(passing, self.clicks.start(self.world.username, server))

    @rule(server=SERVERS, remove=st.booleans(), passing=PASSING)
    def stop(self, server: str, remove: bool, passing: int) -> None:
        log.warning("-- stop %r, remove %s, %d", server, remove, passing)
        user = self._user()
        if user is not None and server in user.orm_spawners:
            remove = remove and bool(server)
            self._do(passing, self.clicks.stop(self.world.username, server, remove=remove))

    @rule(server=SERVERS, passing=PASSING)
    def poll(self, server: str, passing: int) -> None:
        """Of the home page, say; and what the hub does at each interval while a server is ready."""
        log.warning("-- poll %r, %d", server, passing)
        user = self._user()
        if user is not None and server in user.spawners:
            spawner = user.spawners[server]
            self._do(passing, spawner.poll_and_notify() if spawner.ready else spawner.poll())

    @rule(passing=PASSING)
    def requests_pass(self, passing: int) -> None:
        log.warning("-- %d requests pass", passing)
        self._run(self._pass(passing))

    @rule(server=SERVERS, failed=st.booleans(), passing=PASSING)
    def pod_ends(self, server: str, failed: bool, passing: int) -> None:
        """By itself, or deleted by hand."""
        log.warning("-- pod of %r %s, %d", server, "fails" if failed else "is deleted", passing)
        end = self.world.fail_pod if failed else self.world.delete_pod
        self._run(self._to_pod(server, end))
        self._run(self._pass(passing))

    @rule(killed=st.booleans(), passing=PASSING)
    def hub_ends(self, killed: bool, passing: int) -> None:
        log.warning("-- hub ends, killed %s, %d", killed, passing)
        self._run(self._restart(killed=killed))
        self._run(self._pass(passing))

    @rule(passing=PASSING)
    def delete_user(self, passing: int) -> None:
        log.warning("-- delete user, %d", passing)
        if self._user() is not None and (self._removal is None or self._removal.done()):
            self._volume = ""
            self._removal = self._do(passing, self.clicks.delete_user(self.world.username))

    @rule()
    def everything_settles(self) -> None:
        log.warning("-- everything settles")
        self._run(self._settle())

    @invariant()
    def nothing_is_loose(self) -> None:
        if self._loose or self._log.seen:
            log.warning("!! %s %s", self._loose, self._log.seen)
        assert not self._loose, self._loose
        assert not self._log.seen, self._log.seen

    # -- how ----------------------------------------------------------------------------------

    def _user(self) -> Any:
        from jupyterhub import orm

        found = orm.User.find(self.world.hub.db, self.world.username)
        return None if found is None else self.world.hub.users[found]

    def _do(self, passing: int, what: Awaitable[Any]) -> asyncio.Future[Any]:
        async def one() -> asyncio.Future[Any]:
            task = asyncio.ensure_future(what)
            self._tasks.add(task)
            await self._pass(passing)
            return task

        return self._run(one())  # type: ignore[no-any-return]

    async def _pass(self, count: int) -> None:
        """Let requests through, one after another."""
        await self._calm()
        for _ in range(count):
            self.world.gate.let(1)
            await self._calm()

    async def _calm(self) -> None:
        """Until all that goes on waits at the gate; a little is enough, for any order will do."""
        passed = -1
        while passed != self.world.gate.passed:
            passed = self.world.gate.passed
            await asyncio.sleep(CALM)

    async def _to_pod(self, server: str, what: Callable[[str], Awaitable[None]]) -> None:
        for pod in await self._pods(server):
            if "deletionTimestamp" not in pod["metadata"]:
                await what(pod["metadata"]["name"])

    def _hub_starts(self) -> None:
        hub = self.world.hub
        hub.user(self.world.username)
        self.clicks = Clicks(hub.db, hub.users, hub.settings)

    async def _restart(self, *, killed: bool) -> None:
        hub = self.world.hub
        await hub.end(killed=killed)
        self._tasks.clear()
        self._log.seen.clear()
        self.clicks = Clicks(hub.db, hub.users, hub.settings)
        self._do_later(self.clicks.take_over())

    def _do_later(self, what: Awaitable[Any]) -> None:
        self._tasks.add(asyncio.ensure_future(what))

    def _pending(self) -> list[str]:
        user = self._user()
        # The hub removes a server in a task that it keeps no hold of.
        tasks = [t for t in asyncio.all_tasks() if "_remove_spawner" in repr(t)]
        found = [repr(task) for task in (*self._tasks, *tasks) if not task.done()]
        for spawner in user.spawners.values() if user is not None else ():
            if spawner.pending or (spawner._spawn_future and not spawner._spawn_future.done()):
                found.append(f"{spawner._log_name} {spawner.pending}")  # noqa: PERF401
        return found

    async def _settle(self) -> None:
        self.world.gate.unlock(open_=True)
        await self._eventually(self._at_rest)
        for task in self._tasks:
            if not task.cancelled() and task.exception():
                self._blame(task.exception())
        self._tasks.clear()
        await self._eventually(self._consistent)
        self.world.gate.unlock(open_=False)

    async def _eventually(self, check: Callable[[], Awaitable[Any]]) -> Any:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return await check()
            except AssertionError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(CALM)

    async def _at_rest(self) -> None:
        assert not self._pending(), self._pending()

    async def _mine(self) -> list[Obj]:
        return [
            o for o in await self.world.objects() if labels(o).get(OWNER) == self.identity.owner
        ]

    async def _pods(self, server: str) -> list[Obj]:
        slug = Identity(INSTANCE, self.world.username, server).server_slug
        mine = [o for o in await self._mine() if labels(o).get(SERVERNAME) == slug]
        return [o for o in mine if o["kind"] == "Pod"]

    async def _consistent(self) -> None:
        """What the hub believes is what there is, and the rest is as it was."""
        user = self._user()
        mine = await self._mine()
        volumes = [o["metadata"]["uid"] for o in mine if o["kind"] == "PersistentVolumeClaim"]
        if self._volume:
            assert volumes == [self._volume], f"the volume was {self._volume}, there is {volumes}"
        elif volumes:
            (self._volume,) = volumes
        for server in ("", "gpu"):
            slug = Identity(INSTANCE, self.world.username, server).server_slug
            stopped = [
                o
                for o in mine
                if labels(o).get(SERVERNAME) == slug and labels(o)[LIFECYCLE] == "server-stopped"
            ]
            names = sorted(f"{o['kind']}/{o['metadata']['name']}" for o in stopped)
            pods = [o for o in stopped if o["kind"] == "Pod"]
            spawner = user and user.spawners.get(server)
            if spawner and spawner.ready:
                assert len(pods) == 1, f"{server!r} is ready, there is {names}"
                assert "deletionTimestamp" not in pods[0]["metadata"], f"{names} goes"
                assert pods[0].get("status", {}).get("phase") != "Failed", f"{names} failed"
                assert len(stopped) == 2, names
                assert await spawner.poll() is None, f"{server!r} is ready and polled as dead"
            else:
                assert not names, f"{server!r} is not ready, there is {names}"
                assert spawner is None or await spawner.poll() is not None, "polled as alive"
        assert await self._settled_neighbours() == self._foreign

    async def _settled_neighbours(self) -> dict[str, Obj]:
        found = await self.world.objects()
        theirs = [o for o in found if labels(o).get(OWNER) == NEIGHBOUR.owner or is_foreign(o)]
        assert len(theirs) == len(neighbours()), [o["metadata"]["name"] for o in found]
        pods = [o for o in theirs if o["kind"] == "Pod"]
        assert all(o.get("status", {}).get("phase") == "Running" for o in pods)
        return {f"{o['kind']}/{o['metadata']['name']}": plain(o) for o in theirs}

    async def _nothing_left(self) -> None:
        left = [f"{o['kind']}/{o['metadata']['name']}" for o in await self._mine()]
        assert not left, f"the user is gone, there is {left}"
        assert await self._settled_neighbours() == self._foreign

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._blame(context.get("exception"), str(context["message"]))

    def _blame(self, error: BaseException | None, message: str = "") -> None:
        """The hub's own refusals of clicks that cross each other are not ours to judge."""
        text = f"{message} {error!r}"
        if not any(known in text for known in HUBS_OWN):
            self._loose.append(text)


HUBS_OWN = (
    "is active and cannot be deleted",
    "is active; stop it, then remove again",
    " pending ",
    "No such user",
    "orm_spawner not found",
)


class _Errors(logging.Handler):
    """Tracebacks that the hub logs: what it did not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error and not any(known in str(error) for known in HUBS_OWN):
            self.seen.append(f"{record.getMessage()}: {error!r}")


def labels(item: Obj) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def is_foreign(item: Obj) -> bool:
    return str(item["metadata"]["name"]) == "administrators"


def plain(item: Obj) -> Obj:
    """What nobody but its owner changes."""
    metadata = item["metadata"]
    kept = {key: metadata.get(key) for key in ("uid", "labels", "annotations", "ownerReferences")}
    return {**kept, "data": item.get("data")}


def neighbours() -> list[Obj]:
    """Another user's server, and an administrator's objects with all labels but the owner's."""
    marks = {**NEIGHBOUR.server_labels, LIFECYCLE: "server-stopped"}
    theirs = {INSTANCE_LABEL: INSTANCE, SERVERNAME: "", LIFECYCLE: "server-stopped"}
    pod = {
        "nodeSelector": {"type": "kwok"},
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        "containers": [{"name": "main", "image": "localhost/none:1"}],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": "hub", "labels": dict(given)},
            **({"spec": pod} if kind == "Pod" else {"data": {"a": "Yg=="}}),
        }
        for name, given in (("neighbours", marks), ("administrators", theirs))
        for kind in ("Pod", "Secret")
    ]
