"""Following one running server through the watch: its end, its restarts in place, its address.

Nothing here waits for the hub's poll interval, and nothing comes in the way of a start or stop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import Forbidden, ManifestError
from lightkube_template_spawner.lifecycle import liveness
from lightkube_template_spawner.lifecycle.liveness import Limits, Missing, Silent
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects import status
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.objects.status import Ended

_PENDING = 0.2  # seconds until a start or stop under way is looked at again
_SOON = 2.0  # seconds until an answer that did not come is asked for again, doubled up to the next
_AGAIN = 30.0  # the same for what the API server could not tell, or would not remove


class RunningServer(Protocol):
    """The server as its spawner knows it, and what the spawner does with news of it."""

    @property
    def record(self) -> Record | None:
        """What is on record of it."""

    @property
    def limits(self) -> Limits:
        """How long it may be silent."""

    @property
    def route(self) -> Route:
        """How its connection object leads to it."""

    @property
    def settled(self) -> bool:
        """Whether it runs, and no start, stop or check is under way."""

    @property
    def log(self) -> logging.Logger:
        """For what befalls the cluster's objects."""

    def warn(self, text: str) -> None:
        """Log this, with the server's name."""

    def note(self, text: str) -> None:
        """Log this, and keep it for the user's next start."""

    async def moved(self, url: str) -> bool:
        """Follow it to its new address; false where that is to be tried again."""

    async def poll_and_notify(self) -> int | None:
        """Ask whether it ended, and stop it if so; None while it lives."""


class Monitor:
    """Follows one server through the watch."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._cluster: Cluster | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._silence_start: float | None = None
        self._restarts: dict[str, int] = {}  # of each pod, as far as they were told

    def begin(self, cluster: Cluster, record: Record) -> None:
        """Follow this server from now on."""
        self.end()
        self._cluster = cluster
        self._unsubscribe = cluster.changes.subscribe(record.identity.owner, self._notice)
        self._notice()  # what happened meanwhile

    def end(self) -> None:
        """Follow it no longer; a look under way ends by itself."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._unsubscribe = None
        self._silence_start = None
        self._restarts = {}
        self._changed.set()

    async def ended(self, cluster: Cluster, record: Record, limits: Limits) -> Ended | None:
        """How the server ended, or None while it runs, may come back, or cannot be asked about.

        Raises:
            ClusterError: the stores could not be filled.
        """
        server = Server(cluster, record)
        try:
            await liveness.watch(server)
        except Forbidden:
            return await liveness.ask(server, limits, self._server.log)
        finding = liveness.look(server, limits)
        if isinstance(finding, Missing):
            finding = await liveness.confirm(cluster, finding, self._server.log)
        if isinstance(finding, Silent):
            return self._out_of_patience(finding)
        self._silence_start = None
        return finding

    def _out_of_patience(self, silence: Silent) -> Ended | None:
        now = time.monotonic()
        if self._silence_start is None:
            self._silence_start = now
            self._server.warn(silence.reason)
        if not silence.patience or now - self._silence_start < silence.patience:
            return None
        return Ended(1, f"{silence.reason}, for {silence.patience:.0f} s")

    def _notice(self) -> None:
        self._changed.set()
        if self._task is None or self._task.done():
            view = self._followed()
            if view is not None and self._is_news(view):
                self._task = asyncio.create_task(self._attend())

    def _followed(self) -> Server | None:
        cluster, record = self._cluster, self._server.record
        if cluster is None or record is None or not record.ready or self._unsubscribe is None:
            return None
        return Server(cluster, record)

    def _is_news(self, server: Server) -> bool:
        finding = liveness.look(server, self._server.limits)
        if self._silence_start is not None or finding is not None:
            return True
        return bool(self._restarted(server) or self._new_url(server))

    async def _attend(self) -> None:
        """Look until the server is well again, or gone."""
        server, pause = self._server, _SOON
        while (view := self._followed()) is not None:
            self._changed.clear()
            if not server.settled:
                await asyncio.sleep(_PENDING)
                continue
            finding = liveness.look(view, server.limits)
            if finding is None and self._silence_start is None:
                self._tell_restarts(view)
                url = self._new_url(view)
                if not url or await server.moved(url):
                    return
                await self._wait(_AGAIN)
            elif await server.poll_and_notify() is not None:
                return
            else:
                await self._wait(min(pause, self._remaining(finding)))
                pause = min(2 * pause, _AGAIN)

    def _remaining(self, finding: Ended | Missing | Silent | None) -> float:
        """Seconds until patience ends, or until it is worth to ask again."""
        if self._silence_start is None or not isinstance(finding, Silent) or not finding.patience:
            return _AGAIN
        return max(0.0, self._silence_start + finding.patience - time.monotonic())

    async def _wait(self, seconds: float) -> None:
        """Until the next change, but no longer than this."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _restarted(self, server: Server) -> list[tuple[str, int, Ended | None]]:
        restarts = []
        for live in server.main_pods():
            count, last = status.restarts(live.as_dict())
            if count > self._restarts.setdefault(live.meta.uid, count):
                restarts.append((live.meta.uid, count, last))
        return restarts

    def _tell_restarts(self, server: Server) -> None:
        for uid, count, last in self._restarted(server):
            self._restarts[uid] = count
            reason = last.reason if last is not None else "its container ended"
            self._server.note(f"was restarted in place: {reason}, restart {count}")

    def _new_url(self, server: Server) -> str:
        """The URL of the server, if it is another one than the hub knows."""
        try:
            url = server.url(self._server.route)
        except ManifestError as error:
            self._server.warn(str(error))
            return ""
        return url if url and url != server.record.url else ""
