"""The spawner: JupyterHub's contract on one side, the launcher's on the other."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from datetime import timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
from jupyterhub.spawner import Spawner
from sqlalchemy.orm import object_session
from tornado import web
from traitlets import Integer, TraitError, default, validate

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.reflector import Meta
from lightkube_template_spawner.cluster.retry import within
from lightkube_template_spawner.errors import (
    ClusterError,
    NameTaken,
    NodeLost,
    RemovalIncomplete,
    SpawnerError,
    StartTimeout,
    TemplateError,
    Unavailable,
)
from lightkube_template_spawner.hub import (
    deletion as parting,
)
from lightkube_template_spawner.hub import (
    exceptions as huberrors,
)
from lightkube_template_spawner.hub import (
    internal_ssl as certificates,
)
from lightkube_template_spawner.hub import (
    kubespawner as heritage,
)
from lightkube_template_spawner.hub import (
    names,
    startup,
)
from lightkube_template_spawner.hub.internal_ssl import Certificate
from lightkube_template_spawner.hub.progress import ProgressLog
from lightkube_template_spawner.hub.settings import Settings, default_chart
from lightkube_template_spawner.lifecycle import failures, liveness
from lightkube_template_spawner.lifecycle.launcher import Launcher
from lightkube_template_spawner.lifecycle.monitor import Vigil
from lightkube_template_spawner.lifecycle.record import STATE, Record, merged
from lightkube_template_spawner.lifecycle.removal import Removal
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.objects.identity import Identity, Policy
from lightkube_template_spawner.objects.plan import Rules
from lightkube_template_spawner.objects.status import Ended
from lightkube_template_spawner.templates import guard, limits, renderer, values
from lightkube_template_spawner.templates.redaction import Mask, masked_log

_POLL_PATIENCE = 2.0  # seconds that a poll waits for a first list: the hub's start waits for polls
_ADOPT_PATIENCE = 2.5  # the same for a server that was ready when the former hub ended
_PORT = 8888
_NOW = 1  # grace for a stop "now"; with 0 the process outlives its object
_PURGE_TRIES = 3
_SET_BY_OPTIONS = ("cmd", "args", "default_url", "notebook_dir")  # by `apply_user_options`


class LightkubeTemplateSpawner(Settings, Spawner):
    """Runs each user's server from a template on Kubernetes."""

    port = Integer(_PORT, config=True, help="The port that the server listens on in its pod.")

    def __init__(self, **kwargs: Any) -> None:
        self._record: Record | None = None
        self._former_pvc = ""  # the volume claim that KubeSpawner remembered for this server
        self._progress_log: ProgressLog | None = None
        self._starting = False
        self._exit_code = 0  # of a server that died by itself, until its state is cleared
        self._burial: asyncio.Task[None] | None = None
        self._notice: asyncio.Task[Any] | None = None
        self._vigil = Vigil(self)
        self._certificate: Certificate | None = None  # of the start that is under way
        self._mask = Mask({})
        try:
            super().__init__(**kwargs)
        except TraitError as error:
            # The hub's error page shows this; the value, which may be secret, is for its log.
            vars(error)["jupyterhub_message"] = self._unusable(str(error))
            raise
        heritage.inherit(self)
        self._configured = {name: copy(getattr(self, name)) for name in _SET_BY_OPTIONS}
        startup.when_hub_has_started(LightkubeTemplateSpawner)

    @classmethod
    def _unusable(cls, error: str) -> str:
        """Which setting keeps every server of the hub from being looked at."""
        words = re.findall(r"\w+", error)
        named = sorted(set(words) & set(cls.class_trait_names(config=True)), key=words.index)
        what = f"the setting {named[0]!r}" if named else "a setting"
        return f"{what} of {cls.__name__} cannot be used: the hub's log says why"

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return []  # the hub's own environment is not the user's

    @default("ip")
    def _default_ip(self) -> str:
        return "0.0.0.0"  # noqa: S104 - inside the user's own pod

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

    @default("ssl_alt_names")
    def _default_ssl_alt_names(self) -> list[str]:
        return []  # not the hub's own names: the user can read the key

    @default("ssl_alt_names_include_local")
    def _default_ssl_alt_names_include_local(self) -> bool:
        return False

    # -- the hub's contract -----------------------------------------------------------------------

    async def start(self) -> str:
        """Start the server; its URL once it is ready.

        Cleans nothing up on failure: ``poll`` then answers None, so that the hub calls ``stop``.
        """
        self._vigil.end()
        log = self._progress_log
        if log is None or log.closed:
            self._progress_log = log = ProgressLog()
        if self._record is not None and self._record.note:
            log.tell(f"Your last server {self._record.note}", 1)
        self._starting = True
        began = time.monotonic()
        try:
            with self._explaining():
                parting.check_start(self)
                try:
                    launcher, record = await self._launch(began)
                except NameTaken as taken:
                    identity = names.apart(self, self.identity)
                    self.log.warning(
                        "%s goes by the name %r: %s", self._log_name, identity.username, taken
                    )
                    self._save(Record(identity, self.namespace))
                    launcher, record = await self._launch(began)
        finally:
            self._certificate = None
            self._starting = False
            log.close()
        self._vigil.begin(launcher.cluster, record)
        self.log.info(
            "%s is ready at %s after %.1f s", self._log_name, record.url, time.monotonic() - began
        )
        return record.url

    async def _run_apply_user_options(self, user_options: Any) -> None:
        """Refuse with 400 what no start could use, before hooks see it; the hub calls this."""
        with self._explaining():
            limits.check_options(user_options)
        await super()._run_apply_user_options(user_options)

    async def _launch(self, began: float) -> tuple[Launcher, Record]:
        launcher = await self._launcher()
        launcher.tell("Rendering the template", 2)
        documents = await self._rendered(launcher.identity)
        if self._certificate is not None:
            self._certificate.check(documents, launcher.route, self.namespace)
        record = await launcher.launch(
            documents,
            before=self._record,
            save=self._save,
            timeout=max(1.0, self._patience() - (time.monotonic() - began)),
        )
        return launcher, record

    async def create_certs(self) -> dict[str, str]:
        """Sign a certificate for the name by which the hub will connect.

        The hub's own way stops all else for 0.1 s, makes one file for all servers of a user, and
        refuses names of 60 characters.
        """
        self._certificate = Certificate(self.secret_mount_path)
        self.cert_paths = self._certificate.paths  # both renders have the same environment
        given = self.ssl_alt_names(self) if callable(self.ssl_alt_names) else self.ssl_alt_names
        configured = await given if inspect.isawaitable(given) else given
        identity = self.identity
        with self._explaining():
            documents = await self._rendered(identity)
            foreseen = certificates.foreseen(documents, self._route(), self.namespace)
            alt_names = certificates.names(
                foreseen, configured, local=self.ssl_alt_names_include_local
            )
        self.log.info("Making a certificate for %s: %s", self._log_name, ", ".join(alt_names))
        self._certificate = replace(self._certificate, names=alt_names)
        subject = f"user-{identity.user_server_slug}"
        return await certificates.issue(
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
        self._vigil.end()
        if record is None or not record.live:
            return
        grace = _NOW if now else self.delete_grace_period
        wait = grace if grace is not None else liveness.longest_grace(self._cluster(), record)
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
            over = await self._ended(record)
            if over is None:
                return None
            if self._burial is None or self._burial.done():
                self._burial = asyncio.create_task(self._bury(record, over))
            await asyncio.shield(self._burial)
        except Exception as error:  # noqa: BLE001 - the hub would take the server for stopped
            self._warn("cannot be polled", error)
            return None
        return over.code

    async def _ended(self, record: Record) -> Ended | None:
        """How the server ended; None while it runs, or when no answer comes in time."""
        with anyio.move_on_after(_POLL_PATIENCE):
            return await self._vigil.ended(self._cluster(), record, self._limits())
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
        known = str(self.server.url) if self.server else ""
        record = self._record
        if record is None or not record.live:
            return known
        try:
            launcher = await self._launcher()
            self._vigil.begin(launcher.cluster, record)  # whatever comes of it
            patience = _ADOPT_PATIENCE if record.ready else self._remaining_patience()
            record = await launcher.adopt(record, timeout=patience)
            # The hub compares with its own and stores address and port; the scheme is left to us.
            self.server.proto = urlsplit(record.url).scheme
            self._save(record)
        except Exception as error:  # noqa: BLE001 - the hub would not start
            self._warn("cannot be adopted", error)
            return known
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
        """
        with parting.removal(self):
            if self.name:
                names.pin(self, self.identity, self.namespace)
            await self._purge_patiently()

    async def _purge_patiently(self) -> None:
        for attempt in range(1, _PURGE_TRIES + 1):
            try:
                await self._purge()
            except (ClusterError, RemovalIncomplete) as error:
                self.log.error(  # noqa: TRY400 - the message says it all
                    "Removing %s, attempt %d of %d: %s",
                    self._log_name,
                    attempt,
                    _PURGE_TRIES,
                    error,
                )
                if attempt == _PURGE_TRIES:
                    raise
                await anyio.sleep(attempt)
            else:
                return

    def get_state(self) -> dict[str, Any]:
        """What the hub's database keeps: no manifest, no environment, no token."""
        state = dict(super().get_state())
        if self._former_pvc:
            state["former_pvc_name"] = self._former_pvc
        if self._record is not None:
            state[STATE] = self._record.to_state()
            state["namespace"] = self._record.namespace
            # KubeSpawner's names for them, for tools that read its state.
            theirs = {"pod_name": self._record.pod, "pvc_name": self._record.pvc}
            state.update({key: name for key, name in theirs.items() if name})
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` gave; another spawner's state is left alone."""
        super().load_state(state)
        self._record = Record.of_spawner(state)
        # KubeSpawner's own note; ours of that name may be a volume that this template made.
        theirs = "" if self._record else state.get("pvc_name")
        self._former_pvc = str(state.get("former_pvc_name") or theirs or "")

    def clear_state(self) -> None:
        """Forget what ends with a server; its identity and what it keeps outlive it."""
        super().clear_state()
        self._exit_code = 0
        self._vigil.end()  # a server that died is not stopped
        if self._record is not None and not self._record.live:
            self._record = self._record.stopped()

    # -- parts ------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """Whose server this is, by the names of the user's and the server's first start."""
        known = self._record
        if known is not None and known.identity.instance == self.instance_name:
            return replace(known.identity, userid=self.user.id)
        instance = self.instance_name
        return Identity(
            instance, names.username(self, instance), names.servername(self, instance), self.user.id
        )

    def _cluster(self) -> Cluster:
        return self.open_cluster(self.log)

    async def _launcher(self) -> Launcher:
        rules = Rules(
            namespace=self.namespace,
            connection_key=self.connection_annotation_key,
            lifecycle_key=self.lifecycle_annotation_key,
            namespaces=tuple(self.extra_namespaces),
            cluster_kinds=tuple(self.cluster_kinds),
            retained_kinds=tuple(self.retained_kinds),
            shared_objects=tuple(self.shared_objects),
            select_own_pods=self.select_own_pods,
            gitops_guard=self.gitops_guard,
            adopt_retained=self.adopt_retained,
            former_pvc=self._former_pvc,
        )
        log = masked_log(self.log, self._masked)
        limits = failures.Rules(self.failure_rules)
        return Launcher(
            self._cluster(),
            self.identity,
            rules,
            self._route(),
            log,
            self._tell,
            limits,
            force_lost=self.force_delete_lost_pods,
            another=lambda meta: names.is_anothers(self, meta),
        )

    def _route(self) -> Route:
        return Route(
            annotation_key=self.connection_annotation_key,
            port=self.port,
            scheme="https" if self.internal_ssl else "http",
            service_address=self.service_address,
            cluster_domain=self.cluster_domain,
        )

    def _tell(self, message: str, progress: int) -> None:
        if self._progress_log is not None:
            self._progress_log.tell(self._masked(message), progress)

    def _masked(self, message: str) -> str:
        return self._mask(message)

    async def _rendered(self, identity: Identity) -> Mapping[str, list[Any]]:
        """What the template makes, within the time of a start."""
        patience = self._patience()
        try:
            with within(patience):
                return await self._render(identity)
        except TimeoutError as error:
            raise StartTimeout(
                f"not ready after {patience:.0f} s: waited for the API server's version, or for "
                f"`extra_vars`: {error}",
                reason=StartTimeout.SILENT if str(error) else "timeout",
            ) from None

    async def _render(self, identity: Identity) -> Mapping[str, list[Any]]:
        path = Path(self.template_path) if self.template_path else default_chart()
        engine = renderer.open_renderer(
            path,
            kube_version=await self._cluster().discovery.server_version(),
            log=self.log,
            timeout=self.render_timeout,
            strict=self.strict_values,
        )
        limits.check_options(self.user_options)  # saved by an older hub, or set by a hook
        rendered = await engine.render(
            await self._given(identity),
            release=identity.user_server_slug,
            namespace=self.namespace,
            tainted=self._tainted(),
            trusted=self.trusted_values,
        )
        return rendered.objects

    def _tainted(self) -> list[guard.Path]:
        """Paths of what users can write: also settings that were changed when they sent options."""
        changed = [
            (name,) for name, value in self._configured.items() if getattr(self, name) != value
        ]
        return [*guard.TAINTED, *self.tainted_values, *(changed if self.user_options else ())]

    async def _given(self, identity: Identity) -> dict[str, Any]:
        """The template's values; what fails in a hook on them is not counted as the hub's fault."""
        try:
            return await self._values(identity)
        except (SpawnerError, TimeoutError, web.HTTPError):
            raise
        except Exception as error:
            self.log.exception("The template's values of %s cannot be made", self._log_name)
            raise TemplateError(
                f"the template's values cannot be made ({type(error).__name__}: {error}): look at "
                "`extra_vars` and `environment`, and at what they make of user_options; the hub's "
                "log has the place"
            ) from error

    async def _values(self, identity: Identity) -> dict[str, Any]:
        extra = self.extra_vars(self) if callable(self.extra_vars) else self.extra_vars
        if inspect.isawaitable(extra):
            extra = await extra
        if extra is not None and not isinstance(extra, Mapping):
            raise TemplateError(
                f"the trait `extra_vars` gave a {type(extra).__name__}, not a dictionary"
            )
        ours = {
            "cmd": list(self.cmd or []),
            "args": list(self.get_args()),
            "default_url": self.default_url,
            "notebook_dir": self.notebook_dir,
            "mem_limit": self.mem_limit,
            "mem_guarantee": self.mem_guarantee,
            "cpu_limit": self.cpu_limit,
            "cpu_guarantee": self.cpu_guarantee,
            "user_options": self.user_options,
            "groups": sorted(group.name for group in self.user.groups),
            "admin": bool(self.user.admin),
            "profile": {},
            "hub": {"api_url": self.hub.api_url, "base_url": self.hub.base_url},
            "labels": dict(identity.server_labels),
            "annotations": {},
            "former_pvc_name": self._former_pvc,
            "kubespawner": heritage.plain(self.config),
            "internal_ssl": self._certificate.values if self._certificate else {},
        }
        built = values.build(
            identity,
            unescaped_username=str(self.user.name),
            unescaped_servername=str(self.name),
            namespace=self.namespace,
            ip=self.ip,
            port=self.port,
            env=self.get_env(),
            ours=ours,
            extra=extra or {},
        )
        self._mask = Mask(built)
        return built

    async def _purge(self) -> None:
        identity = self.identity
        records = [*names.siblings(self), *([self._record] if self._record else [])]
        recorded = [name for record in records for name in record.namespaces]
        selector = identity.user_selector()
        ours = identity.owns
        if self.name:
            policies = [Policy.STOPPED, Policy.SERVER_DELETED]
            selector = identity.selector(self.lifecycle_annotation_key, policies)
            ours = identity.owns_as_server

        def is_ours(meta: Meta) -> bool:
            return ours(meta.labels) and not names.is_anothers(self, meta)

        await self._removal().purge(
            selector,
            is_ours,
            owner=identity.owner,
            namespaces=dict.fromkeys([*self.named_namespaces, *recorded]),
            known=merged(*(places for r in records for places in (r.kinds, r.retained))),
            only=self.resource_kinds,
            cluster_kinds=self.cluster_kinds,
            timeout=self.stop_timeout,
        )

    async def _remove(self, record: Record, timeout: float, *, grace: int | None = None) -> None:
        """Remove what goes when a server stops; a pod on a lost node is left to its node."""
        try:
            await self._removal(grace).stop(
                record, self.lifecycle_annotation_key, also=self.resource_kinds, timeout=timeout
            )
        except NodeLost as error:  # the next start says so, if it is still there
            self._warn("is gone, but", error)

    def _removal(self, grace: int | None = None) -> Removal:
        return Removal(
            self._cluster(), self.log, grace=grace, force_lost=self.force_delete_lost_pods
        )

    async def _bury(self, record: Record, over: Ended) -> None:
        """Remove what a server that died by itself leaves; the hub calls no ``stop`` for it."""
        reason = self._masked(over.reason)
        self.log.warning("%s ended: %s", self._log_name, reason)
        rest = record.stopped()
        try:
            await self._remove(record, self.stop_timeout)
        except RemovalIncomplete as error:
            self._warn("is not removed whole", error)
            rest = replace(record, ready=False)  # the hub's own stop goes on, then the next start
        self._exit_code = over.code
        if self._record is record:
            self._save(replace(rest, note=f"ended: {reason}" if over.code else ""))
            if over.code:
                self._tell_hub(f"Your server ended: {reason}")

    def _tell_hub(self, message: str) -> None:
        """Let the user's next page say it: the hub shows there why the last spawn failed."""
        pending = getattr(self, "_spawn_future", None)
        if hasattr(Spawner, "_spawn_future") and (pending is None or pending.done()):
            self._spawn_future = asyncio.get_running_loop().create_future()
            self._spawn_future.set_exception(huberrors.make(message, "ended", 424))
            self._spawn_future.exception()  # asked for, so that nobody warns that it was not

    def _note(self, what: str) -> None:
        """Keep for the log, and for the user's next start, what befell the server."""
        what = self._masked(what)
        self.log.warning("%s %s", self._log_name, what)
        if self._record is not None:
            self._save(replace(self._record, note=what))

    async def _move(self, url: str) -> bool:
        """Follow the server to its new address, in the database and in the proxy."""
        record, parts = self._record, urlsplit(url)
        if record is None or self.server is None:
            return False
        try:
            self.server.proto, self.server.ip = parts.scheme, str(parts.hostname)
            self.server.port = parts.port or (443 if parts.scheme == "https" else 80)
            proxy = self.user.settings.get("proxy")
            if proxy is not None:
                await proxy.add_user(self.user, self.name)
            self._save(replace(record, url=url))
        except Exception as error:  # noqa: BLE001 - tried again, and again
            self._warn(f"moved to {url}, but", error)
            return False
        self.log.warning("%s moved to %s", self._log_name, url)
        return True

    def _limits(self) -> liveness.Limits:
        return liveness.Limits(
            crash_loop_restarts=self.crash_loop_restarts,
            node_lost=self.node_lost_timeout,
            replacement=self.replacement_timeout,
        )

    def _save(self, record: Record) -> None:
        """Keep the record in the database too: the hub itself saves only after a start or stop."""
        self._record = replace(record, cluster=self.kube_context)
        self.orm_spawner.state = self.get_state()
        session = object_session(self.orm_spawner)
        if session is not None:
            session.commit()

    def _warn(self, what: str, error: Exception) -> None:
        expected = isinstance(error, SpawnerError | OSError)
        self.log.warning("%s %s: %s", self._log_name, what, error, exc_info=not expected)

    def _patience(self) -> float:
        """A little less than the hub's own, so that our message is the one that is read."""
        return max(1.0, min(float(self.k8s_timeout), float(self.start_timeout) - 2.0))

    def _remaining_patience(self) -> float:
        started = self.orm_spawner.started
        if started is None:
            return self._patience()
        passed = time.time() - started.replace(tzinfo=timezone.utc).timestamp()  # noqa: UP017
        return max(_ADOPT_PATIENCE, self._patience() - float(passed))

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except SpawnerError as error:
            explained = self._explained(error)
            masked = vars(explained)["jupyterhub_message"] != str(error)
            raise explained from (None if masked else error)  # the hub logs tracebacks

    def _explained(self, error: SpawnerError) -> Exception:
        """The hub's exception for one of ours: shown to the user, not counted as a hub fault."""
        reason = huberrors.reason(error, failures.Rules(self.failure_rules))
        message = self._masked(str(error))
        self.log.error("Starting %s failed (%s): %s", self._log_name, reason, message)
        silent = isinstance(error, Unavailable) or reason == StartTimeout.SILENT
        return huberrors.make(message, reason, 503 if silent else 400)
