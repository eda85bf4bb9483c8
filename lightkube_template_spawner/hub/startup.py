"""What is done once when the hub that uses the spawner has started.

What cannot work goes to the log, stops that the former hub did not finish are finished, and orphans
go to the log.

JupyterHub has no hook for this, and at its start it makes spawners only for servers that run. But
it looks the spawner's class up inside its event loop when it reads its configuration, and that is
what `lightkube_template_spawner.__getattr__` and the class itself tell this module.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Any

from jupyterhub import orm
from sqlalchemy import Text, literal_column, select
from traitlets import TraitError

from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import SpawnerError
from lightkube_template_spawner.hub import database
from lightkube_template_spawner.hub.check import problems
from lightkube_template_spawner.hub.settings import Settings
from lightkube_template_spawner.lifecycle.orphans import KnownServer, Roster
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.sweep import Survey, Sweep

_PATIENCE = 1.0  # seconds between two looks at whether the hub has started
_PAGE = 200  # users read at once: the hub's loop must not wait for more
_SHOWN = 20
_SHORT = 3  # seconds for which nobody minds a hub that does not answer
_hubs: list[Any] = []  # hubs of this process
_waiting_hubs: list[Any] = []  # those of which it was said that they wait
_tasks: set[asyncio.Task[None]] = set()  # the loop itself holds no reference


def when_hub_has_started(spawner_class: type[Settings]) -> None:
    """Finish stops and report orphans once this process's hub has started, if it uses the class."""
    app = _hub()
    if app is None or app in _hubs:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    _hubs.append(app)

    def check() -> None:
        if app.http_server is None:
            loop.call_later(_PATIENCE, check)
        elif issubclass(app.spawner_class, spawner_class):
            for part, message in _PARTS.items():
                task = loop.create_task(_guarded(app, part, message))
                _tasks.add(task)
                task.add_done_callback(_tasks.discard)

    loop.call_later(_PATIENCE, check)


def _hub() -> Any:
    """This process's hub, if it is one."""
    hub = getattr(sys.modules.get("jupyterhub.app"), "JupyterHub", None)
    return hub.instance() if hub is not None and hub.initialized() else None


def explain_wait(server: str, log: logging.Logger) -> None:
    """Say, once a hub, that its start waits for a server that is still starting.

    Until then it answers nobody; a server that meets it meanwhile tries again later and later.
    """
    app = _hub()
    if app is None or app.http_server is not None or app in _waiting_hubs:
        return
    limit = app.init_spawners_timeout
    if 0 <= limit <= _SHORT:
        return
    _waiting_hubs.append(app)
    log.warning(
        "The hub does not answer until %s, which is still starting, is ready%s: set "
        "c.JupyterHub.init_spawners_timeout = 1 in its configuration",
        server,
        "" if limit < 0 else f", or for {limit} s",
    )


def age(entry: orm.Spawner) -> float:
    """Seconds since a server's start began, by the database; 0 where it does not say."""
    if entry.started is None:
        return 0.0
    return float(time.time() - entry.started.replace(tzinfo=UTC).timestamp())


async def _guarded(app: Any, part: Callable[[Any], Awaitable[None]], message: str) -> None:
    """The hub goes on without what fails here."""
    try:
        await part(app)
    except Exception as error:
        expected = isinstance(error, SpawnerError | TraitError | OSError)
        app.log.warning("%s: %s", message, error, exc_info=not expected)


async def _tidy(app: Any) -> None:
    settings: Settings = app.spawner_class(config=app.config)  # for its traits only
    await finish_stops(app)
    if settings.report_orphans:
        await report(settings, app.db, app.log)


async def check(app: Any) -> None:
    """Log each thing that keeps servers from starting, or that has no effect."""
    sections = (app.config.get(cls.__name__, {}) for cls in app.spawner_class.__mro__)
    if not any(section.get("check_at_hub_start") is False for section in sections):
        for line in await problems(app.spawner_class, app.config, app.log):
            app.log.error("%s: %s", app.spawner_class.__name__, line)


_PARTS = {
    check: "Whether the spawner's settings can work was not looked at",
    _tidy: "What a former hub left was not looked for",
}


async def finish_stops(app: Any) -> None:
    """Remove what is left of servers that a former hub began to stop.

    A hub that is told to end, or whose stop fails, notes the server as stopped all the same; the
    record then still says that it lives.
    """
    text = literal_column("spawners.state", Text)
    rows = app.db.execute(
        select(orm.Spawner.user_id, orm.Spawner.name, text).where(
            orm.Spawner.server_id.is_(None), text.contains('"live": true')
        )
    )
    servers = [row[:2] for row in rows if _lives(json.loads(row[2]))]

    async def finish(server: tuple[int, str]) -> None:
        user, name = server
        spawner = app.users[user].spawners[name]
        if spawner.active:
            return  # a start clears what is left by itself
        spawner._check_pending = True  # as the hub itself keeps starts away from what it checks
        try:
            app.log.warning("Finishing the stop of %s", spawner._log_name)
            await spawner.stop()
            spawner.orm_spawner.state = spawner.get_state()
            database.commit(app.db)
        except SpawnerError as error:
            app.log.warning("%s was not removed: %s", spawner._log_name, error)
        finally:
            spawner._check_pending = False

    await gather(finish, servers)


def _lives(state: dict[str, Any]) -> bool:
    record = Record.of_spawner(state)
    return record is not None and record.live


async def report(settings: Settings, db: Any, log: logging.Logger) -> Survey:
    """Look for orphans and log them: one line each, up to a number, and a summary.

    Raises:
        SpawnerError: the cluster could not be asked.
    """

    async def ask() -> Roster:
        return await known_to(db, Roster(settings.instance_name, settings.lifecycle_annotation_key))

    survey = await Sweep(settings.open_cluster(log), ask, log).find(
        settings.named_namespaces, cluster_kinds=settings.cluster_kinds
    )
    for orphan in survey.orphans[:_SHOWN]:
        log.warning("Orphan: %s", orphan)
    if survey.orphans:
        number = len(survey.orphans)
        log.warning(
            "%d object%s of instance %r in the cluster %s nobody whom this hub knows; nothing was "
            "deleted: look with `%s`, and read its --help",
            number,
            "" if number == 1 else "s",
            settings.instance_name,
            "belongs to" if number == 1 else "belong to",
            command(settings),
        )
    for text in survey.failures:
        log.warning("Orphans were not looked for among %s", text)
    log.info("Looked for orphans among %d kinds: %d", survey.kinds, len(survey.orphans))
    return survey


def command(settings: Settings) -> str:
    """The administrator's command that looks where, and for what, the hub itself looks."""
    words = ["lightkube-template-spawner", "orphans", f"--instance={settings.instance_name}"]
    words += [f"--namespace={name}" for name in settings.named_namespaces]
    words += [f"--cluster-kind={name}" for name in settings.cluster_kinds]
    options = {
        "--kubeconfig": settings.kubeconfig or os.environ.get("KUBECONFIG", ""),
        "--context": settings.kube_context,
        "--lifecycle-key": settings.lifecycle_annotation_key,
    }
    words += [f"{option}={value}" for option, value in options.items() if value]
    return shlex.join(words)


async def known_to(db: Any, roster: Roster) -> Roster:
    """``roster`` with every user and server of the hub's database, read in small pieces."""
    last = 0
    while True:
        page = select(orm.User.id, orm.User.name).where(orm.User.id > last)
        users = db.execute(page.order_by(orm.User.id).limit(_PAGE)).all()
        if not users:
            return roster
        first, last = users[0][0], users[-1][0]
        text = literal_column("spawners.state", Text)  # the hub's own type cannot be cached
        columns = select(orm.Spawner.user_id, orm.Spawner.name, orm.Spawner.server_id, text)
        servers: dict[int, list[KnownServer]] = {}
        for owner, name, server, state in db.execute(
            columns.where(orm.Spawner.user_id.between(first, last))
        ):
            servers.setdefault(owner, []).append(
                KnownServer(name, server is not None, json.loads(state or "{}"))
            )
        for number, name in users:
            roster.add(name, servers.get(number, ()))
        await asyncio.sleep(0)
