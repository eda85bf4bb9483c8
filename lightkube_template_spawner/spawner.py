"""The spawner: JupyterHub's contract on one side, the launcher's on the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import anyio
from jupyterhub.spawner import Spawner
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import object_session
from traitlets import Integer, TraitError, default, validate

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import NameTaken, NodeLost, RemovalIncomplete, SpawnerError
from lightkube_template_spawner.hub import (
    check,
    database,
    deletion,
    exceptions,
    internal_ssl,
    kubespawner,
    names,
    routing,
    startup,
    values,
)
from lightkube_template_spawner.hub.choosing import Choosing
from lightkube_template_spawner.hub.internal_ssl import Certificate
from lightkube_template_spawner.hub.progress import ProgressLog
from lightkube_template_spawner.hub.settings import Settings
from lightkube_template_spawner.lifecycle.launcher import Launcher
from lightkube_template_spawner.lifecycle.monitor import Monitor
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.objects.identity import Identity
from lightkube_template_spawner.objects.status import Ended
from lightkube_template_spawner.templates.redaction import Redactor, masked_log

_POLL_PATIENCE = 2.0  # seconds that a poll waits for a first list: the hub's start waits for polls
_ADOPT_PATIENCE = 2.5  # the same for a server that was ready when the former hub ended
_PORT = 8888
_NOW = 1  # grace for a stop "now"; with 0 the process outlives its object


class LightkubeTemplateSpawner(Settings, Choosing, Spawner):
    """Runs each user's server from a template on Kubernetes."""

    port = Integer(_PORT, config=True, help="The port that the server listens on in its pod.")

    def __init__(self, **kwargs: Any) -> None:
        self._record: Record | None = None
        self._former_pvc = ""  # the volume claim that KubeSpawner remembered for this server
        self._progress_log: ProgressLog | None = None
        self._starting = False
        self._exit_code = 0  # of a server that died by itself, until its state is cleared
        self._reaping: asyncio.Task[int] | None = None
        self._notice: asyncio.Task[Any] | None = None
        self._monitor = Monitor(self)
        self._certificate: Certificate | None = None  # of the start that is under way
        self._redactor = Redactor({})
        try:
            super().__init__(**kwargs)
            kubespawner.inherit(self)
        except TraitError as error:
            raise check.named(error, type(self), kwargs.get("config")) from None
        self._configured = values.configured(self)
        startup.when_hub_has_started(LightkubeTemplateSpawner)

    @validate("port")
    def _valid_port(self, proposal: Any) -> int:
        """Zero is a random port elsewhere; a pod's own ports are free, and the hub must know."""
        return int(proposal["value"]) or _PORT

    @default("k8s_timeout")
    def _default_k8s_timeout(self) -> int:
        return int(self.start_timeout)

    @default("service_address")
    def _default_service_address(self) -> str:
        return "dns" if self.internal_ssl else "ip"

    # -- the hub's contract -----------------------------------------------------------------------

    async def start(self) -> str:
        """Start the server; its URL once it is ready.

        Cleans nothing up on failure: ``poll`` then answers None, so that the hub calls ``stop``.
        """
        self._monitor.end()
        log = self._progress_log
        if log is None or log.closed:
            self._progress_log = log = ProgressLog()
        if self._record is not None and self._record.note:
            log.tell(f"Your last server {self._record.note}", 1)
        for notice in self.choice.notices:
            log.tell(notice, 1)
        self._starting = True
        start_time = time.monotonic()
        try:
            with self._explaining():
                deletion.check_start(self)
                try:
                    launcher, record = await self._launch(start_time)
                except NameTaken as taken:
                    identity = names.apart(self, self.identity)
                    self.log.warning(
                        "%s goes by the name %r: %s", self._log_name, identity.username, taken
                    )
                    self._save(Record(identity, self.namespace))
                    launcher, record = await self._launch(start_time)
        finally:
            self._certificate = None
            self._starting = False
            log.close()
        self._monitor.begin(launcher.cluster, record)
        seconds = time.monotonic() - start_time
        self.log.info("%s is ready at %s after %.1f s", self._log_name, record.url, seconds)
        return record.url

    async def _launch(self, start_time: float) -> tuple[Launcher, Record]:
        launcher = self._launcher()
        launcher.tell("Rendering the template", 2)
        documents = await self._rendered(launcher.identity)
        if self._certificate is not None:
            self._certificate.check(documents, launcher.route, self.namespace)
        record = await launcher.launch(
            documents,
            before=self._record,
            save=self._save,
            timeout=max(1.0, self._patience() - (time.monotonic() - start_time)),
        )
        return launcher, record

    async def create_certs(self) -> dict[str, str]:
        """Sign a certificate for the name by which the hub will connect.

        The hub's own way stops all else for 0.1 s, makes one file for all servers of a user, and
        refuses names of 60 characters.
        """
        self._certificate = Certificate(self.secret_mount_path)
        self.cert_paths = self._certificate.paths  # both renders have the same environment
        identity = self.identity
        with self._explaining():
            alt_names = await internal_ssl.wanted(self, await self._rendered(identity))
        self.log.info("Making a certificate for %s: %s", self._log_name, ", ".join(alt_names))
        self._certificate = replace(self._certificate, names=alt_names)
        subject = f"user-{identity.user_server_slug}"
        return await internal_ssl.issue(
            self.internal_certs_location, subject, alt_names, self.internal_trust_bundles
        )

    async def move_certs(self, paths: dict[str, str]) -> dict[str, str]:
        """Keep the certificate for the template, which puts it where these paths are in the pod."""
        certificate = self._certificate or Certificate(self.secret_mount_path)
        self._certificate = await asyncio.to_thread(certificate.read, paths)
        return self._certificate.paths

    async def stop(self, now: bool = False) -> None:
        """Remove what goes when the server stops, and wait until it is gone."""
        record = self._record
        self._monitor.end()
        if record is None or not record.live:
            return
        grace = _NOW if now else self.delete_grace_period
        wait = grace if grace is not None else Server(self._cluster(), record).longest_grace()
        try:
            await self._remove(record, self.stop_timeout + wait, grace=grace)
        except SpawnerError as error:  # which the hub drops unseen
            self._warn("did not stop", error)
            raise
        self._record = record.stopped()

    async def poll(self) -> int | None:
        """None while the server runs, starts, or cannot be asked about; else its exit code.

        The hub calls ``stop`` only after None. So None is the answer, too, while a failed start's
        objects exist; and a server that died by itself is removed here, before its code is given.
        """
        record = self._record
        if self._starting:
            return None
        if record is None or not record.live:
            return self._exit_code
        if not record.ready:
            return None
        try:
            end = await self._ended(record)
            if self._record is not record:  # reaped meanwhile by another poll, which knew the code
                return await self.poll()
            if end is None:
                return None
            if self._reaping is None or self._reaping.done():
                self._reaping = asyncio.create_task(self._reap(record, end))
            return await asyncio.shield(self._reaping)
        except Exception as error:  # noqa: BLE001 - the hub would take the server for stopped
            self._warn("cannot be polled", error)
            return None

    async def _ended(self, record: Record) -> Ended | None:
        """How the server ended; None while it runs, or when no answer comes in time."""
        with anyio.move_on_after(_POLL_PATIENCE):
            return await self._monitor.ended(self._cluster(), record, self.limits)
        return None

    async def poll_and_notify(self) -> int | None:
        """As the hub's own, but one at a time, and never into a start or stop under way.

        The hub calls it at each poll interval, for the home page and before a start or stop; we do
        when the watch sees a death. All who ask wait for the same end.
        """
        if self._start_pending or self._stop_pending:
            return None
        if self._notice is None or self._notice.done():
            self._notice = asyncio.create_task(super().poll_and_notify())
        code: int | None = await asyncio.shield(self._notice)
        return code

    async def get_url(self) -> str:
        """The URL of a server that a former hub started; waits until it is ready, never raises.

        A ``get_url`` that raises keeps the whole hub from starting.
        """
        url = str(self.server.url) if self.server else ""
        record = self._record
        if record is None or not record.live:
            return url
        if not record.ready:
            startup.explain_wait(self._log_name, self.log)
        try:
            launcher = self._launcher()
            self._monitor.begin(launcher.cluster, record)  # whatever comes of it
            patience = _ADOPT_PATIENCE if record.ready else self._remaining_patience()
            record = await launcher.adopt(record, timeout=patience)
            # The hub compares with its own and stores address and port; the scheme is left to us.
            self.server.proto = urlsplit(record.url).scheme
            self._save(record)
        except Exception as error:  # noqa: BLE001 - the hub would not start
            self._warn("cannot be adopted", error)
            return url
        return f"{record.url}{self.server.base_url}"

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Messages of the running start, for any number of readers, early or late."""
        log = self._progress_log
        if log is None and self.pending == "spawn":  # hooks still run: the start will use it
            self._progress_log = log = ProgressLog()
        if log is not None:
            async for entry in log.read():
                yield entry

    async def delete_forever(self) -> None:
        """Remove what belongs to this named server; for the default server, all that is the user's.

        The hub forgets the user whatever happens here, so it is tried more than once.

        Raises:
            ClusterError, RemovalIncomplete: all tries failed, or a server of theirs is active.
        """
        with deletion.removal(self):
            if self.name:
                names.pin(self, self.identity, self.namespace)
            await deletion.purge(self, self._removal())

    def get_state(self) -> dict[str, Any]:
        """What the hub's database keeps: no manifest, no environment, no token."""
        state = dict(super().get_state())
        if self._former_pvc:
            state["former_pvc_name"] = self._former_pvc
        if self._record is not None:
            state.update(self._record.for_spawner())
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` gave; another spawner's state is left alone."""
        super().load_state(state)
        self._record = Record.of_spawner(state)
        # KubeSpawner's own note; ours of that name may be a volume that this template made.
        pvc = "" if self._record else state.get("pvc_name")
        self._former_pvc = str(state.get("former_pvc_name") or pvc or "")

    def clear_state(self) -> None:
        """Forget what ends with a server; its identity and what it keeps outlive it."""
        super().clear_state()
        self._exit_code = 0
        self._monitor.end()  # a server that died is not stopped
        if self._record is not None and not self._record.live:
            self._record = self._record.stopped()

    # -- parts ------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """Whose server this is, by the names of the user's and the server's first start."""
        return names.pinned(self, self._record, self.instance_name)

    def _cluster(self) -> Cluster:
        return self.open_cluster(self.log)

    def _launcher(self) -> Launcher:
        return Launcher(
            self._cluster(),
            self.identity,
            self.contract(self._former_pvc, self.choice.labels),
            self.route,
            masked_log(self.log, self._masked),
            self._tell,
            self.start_rules,
            force_lost=self.force_delete_lost_pods,
            is_anothers=lambda meta: names.is_anothers(self, meta),
        )

    @property
    def record(self) -> Record | None:
        """What is on record of the server; None before its first start."""
        return self._record

    @property
    def route(self) -> Route:
        """How its connection object leads to it."""
        return self.connection_route(self.port, "https" if self.internal_ssl else "http")

    @property
    def settled(self) -> bool:
        """Whether it runs, and the hub neither starts, stops nor checks it."""
        return bool(self.ready and not self.pending)

    def warn(self, text: str) -> None:
        """Log this, with the server's name."""
        self.log.warning("%s: %s", self._log_name, text)

    def _tell(self, message: str, progress: int) -> None:
        if self._progress_log is not None:
            self._progress_log.tell(self._masked(message), progress)

    def _masked(self, message: str) -> str:
        return self._redactor(message)

    async def _rendered(self, identity: Identity) -> Mapping[str, list[Any]]:
        """What the template makes, within the time of a start."""
        with exceptions.in_time(self._patience()):
            version = await self._cluster().discovery.server_version()
            engine = self.open_renderer(version, self.log)
            template_values, self._redactor = await values.build(
                self,
                identity,
                former_pvc=self._former_pvc,
                internal_ssl=self._certificate.values if self._certificate else {},
            )
            rendering = await engine.render(
                template_values,
                release=identity.user_server_slug,
                namespace=self.namespace,
                tainted=[*values.tainted(self, self._configured)],
                trusted=self.trusted_values,
            )
            return rendering.objects

    async def _remove(self, record: Record, timeout: float, *, grace: int | None = None) -> None:
        """Remove what goes when a server stops; a pod on a lost node is left to its node."""
        try:
            key, kinds = self.lifecycle_annotation_key, self.resource_kinds
            await self._removal(grace).stop(record, key, extra_kinds=kinds, timeout=timeout)
        except NodeLost as error:  # the next start says so, if it is still there
            self._warn("is gone, but", error)

    def _removal(self, grace: int | None = None) -> Removal:
        lost = self.force_delete_lost_pods
        return Removal(self._cluster(), self.log, grace=grace, force_lost=lost)

    async def _reap(self, record: Record, end: Ended) -> int:
        """Remove what a server that died by itself leaves; the hub calls no ``stop`` for it.

        Gives its exit code to all who poll meanwhile: once its pod is removed, they see no more of
        it than that it was deleted.
        """
        reason = self._masked(end.reason)
        self.log.warning("%s ended: %s", self._log_name, reason)
        rest = record.stopped()
        try:
            await self._remove(record, self.stop_timeout)
        except RemovalIncomplete as error:
            self._warn("is not removed whole", error)
            rest = replace(record, ready=False)  # the hub's own stop goes on, then the next start
        self._exit_code = end.code
        if self._record is record:
            self._save(replace(rest, note=f"ended: {reason}" if end.code else ""))
            if end.code:
                exceptions.show_next(self, f"Your server ended: {reason}")
        return end.code

    def note(self, what: str) -> None:
        """Keep for the log, and for the user's next start, what befell the server."""
        what = self._masked(what)
        self.log.warning("%s %s", self._log_name, what)
        if self._record is not None:
            try:
                self._save(replace(self._record, note=what))
            except SQLAlchemyError as error:  # the watch, which told it, goes on
                self._warn("has a note that was not saved", error)

    async def moved(self, url: str) -> bool:
        """Follow the server to its new address, in the database and in the proxy."""
        record = self._record
        if record is None or self.server is None:
            return False
        try:
            await routing.follow(self, url)
            self._save(replace(record, url=url))
        except Exception as error:  # noqa: BLE001 - tried again, and again
            self._warn(f"moved to {url}, but", error)
            return False
        self.log.warning("%s moved to %s", self._log_name, url)
        return True

    def _save(self, record: Record) -> None:
        """Keep the record in the database too: the hub itself saves only after a start or stop."""
        self._record = replace(record, cluster=self.kube_context)
        self.orm_spawner.state = self.get_state()
        session = object_session(self.orm_spawner)
        if session is not None:
            database.commit(session)

    def _warn(self, what: str, error: Exception) -> None:
        expected = isinstance(error, SpawnerError | OSError)
        self.log.warning("%s %s: %s", self._log_name, what, error, exc_info=not expected)

    def _patience(self) -> float:
        """A little less than the hub's own, so that our message is the one that is read."""
        return max(1.0, min(float(self.k8s_timeout), float(self.start_timeout) - 2.0))

    def _remaining_patience(self) -> float:
        return max(_ADOPT_PATIENCE, self._patience() - startup.age(self.orm_spawner))

    def _explaining(self) -> AbstractContextManager[None]:
        return exceptions.explaining(self.start_rules, self._masked, self.log, self._log_name)
