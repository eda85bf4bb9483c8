"""Following one running server through the watch: its end, its restarts in place, its address.

Nothing here waits for the hub's poll interval, and nothing comes in the way of a start or stop.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import ManifestError
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


class Vigil:
    """Watches over one server for its spawner, a friend, which polls, buries and moves it."""

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        self._unsubscribe: Any = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._silent_since: float | None = None
        self._restarts: dict[str, int] = {}  # of each pod, as far as they were told

    def begin(self, cluster: Cluster, record: Record) -> None:
        """Follow this server from now on."""
        self.end()
        self._unsubscribe = cluster.changes.subscribe(record.identity.owner, self._notice)
        self._notice()  # what happened meanwhile

    def end(self) -> None:
        """Follow it no longer; a look under way ends by itself."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._unsubscribe = None
        self._silent_since = None
        self._restarts = {}
        self._changed.set()

    async def ended(self, cluster: Cluster, record: Record, limits: Limits) -> Ended | None:
        """How the server ended, or None while it runs, may come back, or cannot be asked about.

        Raises:
            ClusterError: the stores could not be filled.
        """
        await liveness.watch(Server(cluster, record))
        seen = liveness.look(Server(cluster, record), limits)
        if isinstance(seen, Missing):
            seen = await liveness.confirm(cluster, seen, self._spawner.log)
        if isinstance(seen, Silent):
            return self._out_of_patience(seen)
        self._silent_since = None
        return seen

    def _out_of_patience(self, seen: Silent) -> Ended | None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            self._spawner.log.warning("%s: %s", self._spawner._log_name, seen.reason)
        if not seen.patience or now - self._silent_since < seen.patience:
            return None
        return Ended(1, f"{seen.reason}, for {seen.patience:.0f} s")

    def _notice(self) -> None:
        self._changed.set()
        if self._task is None or self._task.done():
            record = self._followed()
            if record is not None and self._news(record):
                self._task = asyncio.create_task(self._attend())

    def _followed(self) -> Record | None:
        record: Record | None = self._spawner._record
        ready = record is not None and record.ready and self._unsubscribe is not None
        return record if ready else None

    def _news(self, record: Record) -> bool:
        cluster, limits = self._spawner._cluster(), self._spawner._limits()
        if (
            self._silent_since is not None
            or liveness.look(Server(cluster, record), limits) is not None
        ):
            return True
        return bool(self._restarted(cluster, record) or self._moved(cluster, record))

    async def _attend(self) -> None:
        """Look until the server is well again, or gone."""
        spawner, again = self._spawner, _SOON
        while (record := self._followed()) is not None:
            self._changed.clear()
            if spawner.pending or not spawner.ready:
                await asyncio.sleep(_PENDING)
                continue
            cluster, limits = spawner._cluster(), spawner._limits()
            seen = liveness.look(Server(cluster, record), limits)
            if seen is None and self._silent_since is None:
                self._tell_restarts(cluster, record)
                url = self._moved(cluster, record)
                if not url or await spawner._move(url):
                    return
                await self._wait(_AGAIN)
            elif await spawner.poll_and_notify() is not None:
                return
            else:
                await self._wait(min(again, self._remaining(seen)))
                again = min(2 * again, _AGAIN)

    def _remaining(self, seen: Ended | Missing | Silent | None) -> float:
        """Seconds until patience ends, or until it is worth to ask again."""
        if self._silent_since is None or not isinstance(seen, Silent) or not seen.patience:
            return _AGAIN
        return max(0.0, self._silent_since + seen.patience - time.monotonic())

    async def _wait(self, seconds: float) -> None:
        """Until the next change, but no longer than this."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _restarted(self, cluster: Cluster, record: Record) -> list[tuple[str, int, Ended | None]]:
        found = []
        for live in Server(cluster, record).main_pods():
            count, last = status.restarts(live.as_dict())
            if count > self._restarts.setdefault(live.meta.uid, count):
                found.append((live.meta.uid, count, last))
        return found

    def _tell_restarts(self, cluster: Cluster, record: Record) -> None:
        for uid, count, last in self._restarted(cluster, record):
            self._restarts[uid] = count
            reason = last.reason if last is not None else "its container ended"
            self._spawner._note(f"was restarted in place: {reason}, restart {count}")

    def _moved(self, cluster: Cluster, record: Record) -> str:
        """The URL of the server, if it is another one than the hub knows."""
        route: Route = self._spawner._route()
        try:
            url = Server(cluster, record).url(route)
        except ManifestError as error:
            self._spawner.log.warning("%s: %s", self._spawner._log_name, error)
            return ""
        return url if url and url != record.url else ""
