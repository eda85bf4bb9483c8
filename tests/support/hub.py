"""A JupyterHub of real users, spawners and database, without its web server and proxy.

Starts and stops go through ``User.spawn`` and ``User.stop``, with what the hub's handlers do around
them; ``restart`` and ``check`` are what a new hub process does with the database that it finds.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from jupyterhub import orm, roles
from jupyterhub._version import __version__ as hub_version
from jupyterhub.objects import Hub, Server
from jupyterhub.user import User, UserDict
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from traitlets.config import Config

from lightkube_template_spawner.cluster import cluster as clusters
from lightkube_template_spawner.cluster.api import Api
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer, Seen
from tests.support.loopback import loopback, whole
from tests.support.timing import QUICK

INSTANCE = "i"
log = logging.getLogger("hub")


@dataclass
class LocalHub:
    """One hub in this process, on one API server; its users' pods answer on ``port``."""

    config: Config
    db: Any
    port: int
    connect: Callable[[], Api]  # what a new hub process makes of its kubeconfig
    stopped: list[str] = field(default_factory=list)  # servers that the hub found dead
    settings: dict[str, Any] = field(default_factory=dict)
    users: Any = None

    def __post_init__(self) -> None:
        self.kubeconfig = self.config.LightkubeTemplateSpawner.kubeconfig

    def boot(self) -> None:
        """A new hub process on the database as it is."""
        self.db.expire_all()
        hub = Hub(ip="127.0.0.1", port=8081, base_url="/hub/")
        self.settings = {
            "hub": hub,
            "config": self.config,
            "spawner_class": LightkubeTemplateSpawner,
            "allow_named_servers": True,
            "internal_ssl": False,
            **self.settings,
        }
        self.users = UserDict(lambda: self.db, self.settings)

    @property
    def key(self) -> tuple[asyncio.AbstractEventLoop, str, str, str]:
        return asyncio.get_running_loop(), self.kubeconfig, "", INSTANCE

    def open_cluster(self) -> None:
        clusters._shared[self.key] = Cluster(self.connect(), INSTANCE, log, QUICK)

    @property
    def cluster(self) -> Cluster:
        return clusters._shared[self.key]

    async def close_cluster(self) -> None:
        cluster = clusters._shared.pop(self.key)
        await cluster.aclose()
        for feed in cluster._feeds.values():
            if feed._closing is not None:
                feed._closing.cancel()

    async def restart(self) -> None:
        """The hub process dies, with all that it knew, and another one starts."""
        self.quiet()
        await self.close_cluster()
        self.open_cluster()
        self.boot()

    async def end(self, *, killed: bool) -> None:
        """The process ends in the middle of all that it does, and another one starts.

        Killed: nothing of it runs on, and what it had not committed is lost. Otherwise its tasks
        are cancelled, as a hub does that is told to end, and have their say.
        """
        if killed:
            self.db.rollback()
        known = _raw(self.db.get_bind()).serialize()
        self.quiet()
        own = asyncio.current_task()
        while others := {  # the users' servers live on
            task
            for task in asyncio.all_tasks()
            if task is not own and "loopback" not in repr(task.get_coro())
        }:
            for task in others:
                task.cancel()
            done, _ = await asyncio.wait(others, timeout=0.1)
            for task in done:
                _ = task.cancelled() or task.exception()
        await self.close_cluster()
        self.db.rollback()
        if killed:
            _raw(self.db.get_bind()).deserialize(known)
        self.db.expunge_all()
        self.open_cluster()
        self.boot()

    def quiet(self) -> None:
        for user in self.users.values():
            for spawner in user.spawners.values():
                spawner.stop_polling()

    def user(self, name: str = "ada@example.org", **columns: Any) -> User:
        orm_user = self.db.query(orm.User).filter_by(name=name).one_or_none()
        if orm_user is None:
            orm_user = orm.User(name=name, **columns)
            self.db.add(orm_user)
            self.db.commit()
            roles.assign_default_roles(self.db, orm_user)
            self.db.commit()
        return self.users[orm_user]

    def add_server(self, user: User, name: str) -> None:
        if name not in user.orm_spawners:
            orm_spawner = orm.Spawner(name=name)
            self.db.add(orm_spawner)
            orm_spawner.user = user.orm_user
            self.db.commit()

    async def spawn(self, user: User, name: str = "", **arguments: Any) -> LightkubeTemplateSpawner:
        """What ``spawn_single_user`` of the hub's handlers does."""
        self.add_server(user, name)
        spawner = user.get_spawner(name, replace_failed=True)
        spawner._spawn_pending = True
        spawner._spawn_future = asyncio.ensure_future(user.spawn(name, **arguments))
        try:
            await spawner._spawn_future
        finally:
            spawner._spawn_pending = False
        found = user.spawners[name]
        found.add_poll_callback(self._user_stopped, user, name)
        return found  # type: ignore[no-any-return]

    async def start(self, user: User, name: str = "") -> LightkubeTemplateSpawner:
        """Only the ``start`` of a spawner that the hub made ready for it."""
        spawner = self.prepared(user, name)
        await spawner.start()
        return spawner

    def prepared(self, user: User, name: str = "") -> LightkubeTemplateSpawner:
        """A spawner as ``User.spawn`` leaves it right before ``start``."""
        self.add_server(user, name)
        spawner = user.spawners[name]
        orm_server = orm.Server(base_url=f"{user.base_url}{name}")
        self.db.add(orm_server)
        self.db.commit()
        spawner.server = Server(orm_server=orm_server)
        spawner.clear_state()
        spawner.api_token = user.new_api_token()
        self.db.commit()
        return spawner  # type: ignore[no-any-return]

    async def stop(self, user: User, name: str = "") -> None:
        await user.stop(name)

    async def _user_stopped(self, user: User, name: str) -> None:
        status = await user.spawners[name].poll()
        self.stopped.append(f"{user.name}:{name}:{status}")
        await user.stop(name)

    async def check(self, user: User, name: str = "") -> int | None:
        """What ``init_spawners`` does with a server that the database says is there."""
        spawner = user.spawners[name]
        spawner._check_pending = True
        status = await spawner.poll()
        if status is None:
            url = await spawner.get_url()
            if url != spawner.server.url:
                parts = urlparse(url)
                spawner.server.ip = parts.hostname
                spawner.server.port = parts.port
                self.db.commit()
            await user._wait_up(spawner)
            spawner.add_poll_callback(self._user_stopped, user, name)
        else:
            await user.stop(name)
        spawner._check_pending = False
        return status  # type: ignore[no-any-return]


@dataclass
class FakeHub(LocalHub):
    """On the API server in memory."""

    fake: FakeApiServer = field(default_factory=FakeApiServer)
    folder: Path = Path()
    node: bool = True  # runs every pod as soon as it is created
    hooks: list[Any] = field(default_factory=list)  # called with each request and its moment

    def boot(self) -> None:
        super().boot()
        self.fake.on_request = self._seen

    def _seen(self, seen: Seen, moment: str) -> None:
        for hook in self.hooks:
            hook(seen, moment)
        if (seen.method, moment) == ("PATCH", "handled") and "/pods/" in seen.path and self.node:
            asyncio.get_running_loop().call_later(0.002, self.run_pods)

    def run_pods(self, **status: Any) -> None:
        self.fake.run_new_pods(**{"podIP": "127.0.0.1", **status})

    def left(self) -> set[str]:
        return self.fake.left()

    def pods(self) -> list[dict[str, Any]]:
        return [item for item in self.fake.everything() if item["kind"] == "Pod"]


@cache
def _engine() -> tuple[Engine, bytes]:
    """As the hub makes it, and a fresh database; one, because SQL is compiled for each engine.

    Without Alembic, which imports the whole hub for 4 seconds.
    """
    engine = create_engine("sqlite://", poolclass=StaticPool)
    orm.register_foreign_keys(engine)
    orm.Base.metadata.create_all(engine)
    with sessionmaker(bind=engine)() as db:
        for role in roles.get_default_roles():
            roles.create_role(db, role)
        fields = {"secret": "", "redirect_uri": "", "description": "x"}
        db.add(orm.OAuthClient(identifier="jupyterhub", **fields))
        db.commit()
    return engine, _raw(engine).serialize()


def _raw(engine: Engine) -> sqlite3.Connection:
    raw: sqlite3.Connection = engine.raw_connection().driver_connection  # type: ignore[assignment]
    return raw


Made = TypeVar("Made", bound=LocalHub)


@asynccontextmanager
async def running_hub(
    fake: FakeApiServer, folder: Path, chart: Path, **config: Any
) -> AsyncIterator[FakeHub]:
    """A hub on the API server in memory."""
    ours = {"kubeconfig": str(folder / "kubeconfig"), "template_path": str(chart), **config}
    made = partial(connect, folder, transport=fake)
    make = partial(FakeHub, connect=made, fake=fake, folder=folder)
    async with local_hub(make, **ours) as hub:
        yield hub


@asynccontextmanager
async def local_hub(make: Callable[..., Made], **config: Any) -> AsyncIterator[Made]:
    """A hub whose database is in memory, and one web server for all its users' servers."""

    async def answer(first: str, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{}", extra=f"X-JupyterHub-Version: {hub_version}\r\n"))

    engine, fresh = _engine()
    _raw(engine).deserialize(fresh)
    db = sessionmaker(bind=engine, expire_on_commit=False)()
    async with loopback(answer) as url:
        port = int(url.rpartition(":")[2])
        ours = {
            "instance_name": INSTANCE,
            "namespace": "hub",
            "port": port,
            "start_timeout": 8,
            "http_timeout": 3,
            **config,
        }
        hub = make(config=Config({"LightkubeTemplateSpawner": ours}), db=db, port=port)
        hub.open_cluster()
        hub.boot()
        try:
            yield hub
        finally:
            hub.quiet()
            await hub.close_cluster()
            db.close()
