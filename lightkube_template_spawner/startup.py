"""What is done once when the hub that uses the spawner has started: orphans go to its log.

JupyterHub has no hook for this, and at its start it makes spawners only for servers that run. But
it loads the spawner's class inside its event loop, before anything else of ours can happen.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

from jupyterhub import orm
from sqlalchemy import Text, literal_column, select

from lightkube_template_spawner.cluster import shared
from lightkube_template_spawner.errors import SpawnerError
from lightkube_template_spawner.orphans import Known, Server
from lightkube_template_spawner.settings import Settings
from lightkube_template_spawner.sweep import Found, Sweep

_PATIENCE = 5.0  # seconds between two looks at whether the hub has started
_PAGE = 200  # users read at once: the hub's loop must not wait for more
_SHOWN = 20
_running: set[asyncio.Task[None]] = set()  # the loop itself holds no reference


def when_hub_has_started(spawner_class: type[Settings]) -> None:
    """Report orphans as soon as the hub of this process has started, if it uses the class."""
    hub = getattr(sys.modules.get("jupyterhub.app"), "JupyterHub", None)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if hub is None or not hub.initialized():
        return
    app = hub.instance()

    def check() -> None:
        if app.http_server is None:
            loop.call_later(_PATIENCE, check)
        elif issubclass(app.spawner_class, spawner_class):
            task = loop.create_task(_report(app))
            _running.add(task)
            task.add_done_callback(_running.discard)

    loop.call_later(_PATIENCE, check)


async def _report(app: Any) -> None:
    try:
        settings: Settings = app.spawner_class(config=app.config)  # for its traits only
        if settings.report_orphans:
            await report(settings, app.db, app.log)
    except Exception as error:
        expected = isinstance(error, SpawnerError | OSError)
        app.log.warning("Orphans were not looked for: %s", error, exc_info=not expected)


async def report(settings: Settings, db: Any, log: logging.Logger) -> Found:
    """Look for orphans and log them: one line each, up to a number, and a summary.

    Raises:
        SpawnerError: the cluster could not be asked.
    """

    async def ask() -> Known:
        return await known_to(db, Known(settings.instance_name, settings.lifecycle_annotation_key))

    cluster = shared(
        settings.kubeconfig,
        settings.kube_context,
        settings.instance_name,
        log,
        timeout=settings.k8s_request_timeout,
    )
    literal = [name for name in settings.extra_namespaces if not set(name) & set("*?[")]
    found = await Sweep(cluster, ask, log).find([settings.namespace, *literal])
    for orphan in found.orphans[:_SHOWN]:
        log.warning("Orphan: %s", orphan)
    if found.orphans:
        log.warning(
            "%d objects of instance %r in the cluster belong to nobody whom this hub knows; "
            "nothing was deleted: see `lightkube-template-spawner orphans --help`",
            len(found.orphans),
            settings.instance_name,
        )
    for text in found.failed:
        log.warning("Orphans were not looked for among %s", text)
    log.info("Looked for orphans among %d kinds: %d", found.kinds, len(found.orphans))
    return found


async def known_to(db: Any, known: Known) -> Known:
    """``known`` with every user and server of the hub's database, read in small pieces."""
    last = 0
    while True:
        page = select(orm.User.id, orm.User.name).where(orm.User.id > last)
        users = db.execute(page.order_by(orm.User.id).limit(_PAGE)).all()
        if not users:
            return known
        first, last = users[0][0], users[-1][0]
        text = literal_column("spawners.state", Text)  # the hub's own type cannot be cached
        columns = select(orm.Spawner.user_id, orm.Spawner.name, orm.Spawner.server_id, text)
        servers: dict[int, list[Server]] = {}
        for owner, name, server, state in db.execute(
            columns.where(orm.Spawner.user_id.between(first, last))
        ):
            servers.setdefault(owner, []).append(
                Server(name, server is not None, json.loads(state or "{}"))
            )
        for number, name in users:
            known.add(name, servers.get(number, ()))
        await asyncio.sleep(0)
