"""JupyterHub's own request handlers, without a web server: what clicks and API calls do to servers.

``Clicks(...).start(user, "gpu")`` runs the very code of ``POST /users/:name/servers/:server``, with
all that it keeps in flight; a new hub process calls JupyterHub's own ``init_spawners``.
"""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

from jupyterhub.apihandlers.users import UserAPIHandler, UserServerAPIHandler
from jupyterhub.auth import DummyAuthenticator
from tornado import web

from lightkube_template_spawner.hub.startup import finish_stops

log = logging.getLogger("hub")


class Proxy:
    """Routes, as the hub last set them."""

    def __init__(self) -> None:
        self.routes: set[tuple[str, str]] = set()

    async def add_user(self, user: Any, server: str = "") -> None:
        self.routes.add((user.name, server))

    async def delete_user(self, user: Any, server: str = "") -> None:
        self.routes.discard((user.name, server))


class _Quiet:
    """What the web server would do for a handler; the answer's body is of no interest."""

    application: Any
    request: Any
    status = 200

    def __init__(self, settings: dict[str, Any], body: object) -> None:
        self.application = SimpleNamespace(settings=settings)
        content = b"" if body is None else json.dumps(body).encode()
        self.request = SimpleNamespace(body=content)
        self._jupyterhub_user = SimpleNamespace(name="admin", admin=True, kind="user")

    def set_status(self, code: int, reason: str | None = None) -> None:
        self.status = code

    def set_header(self, *args: object) -> None: ...
    def write(self, *args: object) -> None: ...


class _Server(_Quiet, UserServerAPIHandler):  # type: ignore[misc] # its base has no types
    current_user = property(lambda self: self._jupyterhub_user)
    server_model = staticmethod(lambda *args, **options: {})


class _User(_Quiet, UserAPIHandler):  # type: ignore[misc]
    current_user = property(lambda self: self._jupyterhub_user)
    user_model = staticmethod(lambda *args, **options: {})


class Clicks:
    """The handlers of one hub process."""

    def __init__(self, db: Any, users: Any, settings: dict[str, Any]) -> None:
        self.proxy = Proxy()
        self.settings: dict[str, Any] = {
            **settings,
            "db": db,
            "users": users,
            "proxy": self.proxy,
            "authenticator": DummyAuthenticator(),
            "eventlog": SimpleNamespace(emit=lambda **event: None),
            "log": log,
            "slow_spawn_timeout": 0,
            "allow_invalid_named_server_start": True,
        }

    async def start(self, user: str, server: str = "") -> int:
        return await self._call(_Server, "post", user, server)

    async def stop(self, user: str, server: str = "", *, remove: bool = False) -> int:
        body = {"remove": True} if remove else None
        return await self._call(_Server, "delete", user, server, body=body)

    async def rename_server(self, user: str, server: str, new: str) -> int:
        return await self._call(_Server, "patch", user, server, body={"name": new})

    async def delete_user(self, user: str) -> int:
        return await self._call(_User, "delete", user)

    async def rename_user(self, user: str, new: str) -> int:
        return await self._call(_User, "patch", user, body={"name": new})

    async def take_over(self) -> None:
        """What a new hub process does with the servers that the database says are there."""
        from jupyterhub.app import JupyterHub  # 4 seconds, for those who restart only

        names = ("db", "users", "proxy", "authenticator", "log")
        app = SimpleNamespace(log_level=logging.WARNING, **{n: self.settings[n] for n in names})
        await JupyterHub.init_spawners(app)
        await finish_stops(app)

    async def _call(
        self, handler: type[_Quiet], method: str, *names: str, body: object = None
    ) -> int:
        """The status of the answer, errors of the client's making included."""
        made = handler(self.settings, body)
        try:
            await getattr(handler, method).__wrapped__(made, *names)
        except web.HTTPError as error:
            if error.status_code >= 500:
                raise
            return int(error.status_code)
        return made.status
