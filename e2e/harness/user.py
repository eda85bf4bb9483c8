"""A person with a browser: logs in by the form, starts a server, opens the lab, runs code.

Requests carry what a browser would send (cookies, `Sec-Fetch-Mode`, the XSRF token read from its
cookie), so the hub's own protections are in force.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import anyio
import httpx2

from e2e.harness.hub import user_path

NAVIGATE = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin", "Accept": "text/html"}


class ServerFailedError(Exception):
    """The hub gave up on a start; `events` is all that the progress page showed."""

    def __init__(self, message: str, events: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.events = events


class CodeFailedError(Exception):
    """The code that a user ran raised; the message is the exception's name and text."""


class HubUser:
    """One browser session: `async with HubUser(hub.url) as user`.

    Where a method takes a server's name, "" is the default server.
    """

    def __init__(self, url: str, timeout: float = 60) -> None:
        self.url = url
        self.name = ""
        self.timeout = timeout
        self._server_urls: dict[str, str] = {}
        self._client = httpx2.AsyncClient(base_url=url, timeout=timeout, follow_redirects=True)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(exc_type, exc, traceback)

    async def page(self, path: str) -> httpx2.Response:
        """Open a page as if its address was typed, following redirects and OAuth."""
        return await self._client.get(path, headers=NAVIGATE)

    async def login(self, name: str, password: str) -> None:
        """Log in by the form; `self.name` becomes the name by which the hub knows the user."""
        # Without `next` the hub goes to /hub/spawn, which would start a server by itself.
        form = await self.page("/hub/login?next=/hub/home")
        _must_succeed(form)
        data = {"username": name, "password": password, "_xsrf": self._xsrf("/hub/")}
        answer = await self._client.post(form.url, data=data, headers=NAVIGATE)
        _must_succeed(answer)
        if answer.url.path != "/hub/home":
            raise PermissionError(f"{name!r} was not let in: {answer.url}")
        self.name = (await self.api("GET", "user")).json()["name"]

    def _xsrf(self, path: str) -> str:
        values = (cookie.value for cookie in self._client.cookies.jar if _is_xsrf(cookie, path))
        token = next(values, None)
        if token is None:
            raise LookupError(f"no _xsrf cookie for {path}")
        return token

    async def api(self, method: str, path: str, json: object = None) -> httpx2.Response:
        """Call the hub's API as the hub's own pages do, with cookies; raises on an error status."""
        response = await self.try_api(method, path, json)
        _must_succeed(response)
        return response

    async def try_api(self, method: str, path: str, json: object = None) -> httpx2.Response:
        """The same, for answers that are meant to be errors."""
        return await self._fetch(method, f"/hub/api/{path}", "/hub/", json)

    async def _fetch(
        self, method: str, url: str, cookie_path: str, json: object = None
    ) -> httpx2.Response:
        headers = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        headers["X-XSRFToken"] = self._xsrf(cookie_path)
        return await self._client.request(method, url, json=json, headers=headers)

    async def start_server(
        self, server: str = "", options: Mapping[str, object] | None = None
    ) -> None:
        """Ask for a server; the hub answers at once, `wait_ready` tells when it is there."""
        path = user_path(self.name, "servers", server)
        await self.api("POST", path, json=dict(options) if options is not None else None)

    async def submit_spawn_form(
        self, server: str = "", fields: Mapping[str, Any] | None = None
    ) -> httpx2.Response:
        """Start through the options form and return the page that follows.

        Where the spawner has no form, opening its page is what starts the server.
        """
        path = "/".join(quote(part, safe="") for part in ("spawn", self.name, server) if part)
        form = await self.page(f"/hub/{path}")
        if "/spawn-pending/" in form.url.path:
            return form
        data = {**(fields or {}), "_xsrf": self._xsrf("/hub/")}
        return await self._client.post(f"/hub/{path}", data=data, headers=NAVIGATE)

    async def progress(self, server: str = "") -> AsyncGenerator[dict[str, Any]]:
        """Yield the events of the spawn page until the server is ready or has failed.

        While the hub stops what a refused start left, its progress says 400 and nothing of the
        reason: it is asked again until the stop is done, and once more.
        """
        path = user_path(self.name, "servers", server, "progress")
        headers = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        params = {"_xsrf": self._xsrf("/hub/")}
        url = f"/hub/api/{path}"
        pending = True  # as far as is known
        while True:
            async with self._client.sse(url, headers=headers, params=params) as source:
                if source.response.is_error:
                    await source.response.aread()
                if source.response.status_code != 400 or not pending:
                    _must_succeed(source.response)
                    async for event in source:
                        content: Any = event.json()
                        yield content
                        if content.get("ready") or content.get("failed"):
                            return
                    return
            pending = bool((await self.servers()).get(server, {}).get("pending"))
            await anyio.sleep(0.1)

    async def wait_ready(self, server: str = "", timeout: float = 120) -> list[dict[str, Any]]:
        """Wait for a pending start and return its events; raise `ServerFailedError` if it fails."""
        with anyio.fail_after(timeout):
            async with aclosing(self.progress(server)) as progress:
                events = [event async for event in progress]
        if not events or not events[-1].get("ready"):
            raise ServerFailedError(events[-1]["message"] if events else "no event", events)
        return events

    async def servers(self) -> dict[str, dict[str, Any]]:
        """The user's servers that are not fully stopped, as the hub's home page knows them."""
        model = (await self.api("GET", user_path(self.name))).json()
        found: dict[str, dict[str, Any]] = model["servers"]
        return found

    async def server_url(self, server: str = "") -> str:
        """The path of a server, quoted as the hub quotes it: cookies are bound to that spelling.

        It is remembered, so that a server can be used while the hub is down.
        """
        if server not in self._server_urls:
            self._server_urls[server] = (await self.servers())[server]["url"]
        return self._server_urls[server]

    async def lab(self, server: str = "") -> httpx2.Response:
        """Open JupyterLab, which logs in to the user's server through the hub (OAuth)."""
        response = await self.page(f"{await self.server_url(server)}lab")
        _must_succeed(response)
        return response

    async def run_code(self, code: str, server: str = "", timeout: float = 60) -> str:
        """Run code in a new kernel and return what it printed, or else its last value."""
        await self.lab(server)
        base = await self.server_url(server)
        created = await self._fetch("POST", f"{base}api/kernels", base, {"name": "python3"})
        _must_succeed(created)
        kernel = f"{base}api/kernels/{created.json()['id']}"
        try:
            with anyio.fail_after(timeout):
                return await self._execute(f"{kernel}/channels", code)
        finally:
            with anyio.CancelScope(shield=True):
                await self._fetch("DELETE", kernel, base)

    async def _execute(self, channels: str, code: str) -> str:
        request, session = uuid.uuid4().hex, uuid.uuid4().hex
        header = {"msg_id": request, "msg_type": "execute_request", "session": session}
        header |= {"username": "", "version": "5.3"}
        content = {"code": code, "silent": False, "stop_on_error": True}
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}}
        address = f"{self.url.replace('http', 'ws', 1)}{channels}"
        headers = {"Origin": self.url, "Sec-Fetch-Mode": "websocket"}
        params = {"session_id": session}
        output: list[str] = []
        failure = ""  # raised once the socket is closed: its task group would wrap it
        async with self._client.websocket(address, params=params, headers=headers) as socket:
            await socket.send_json({**message, "content": content})
            while True:
                reply: Any = await socket.receive_json()
                if reply["parent_header"].get("msg_id") != request:
                    continue
                kind, content = reply["msg_type"], reply["content"]
                if kind == "stream":
                    output.append(str(content["text"]))
                elif kind == "execute_result":
                    output.append(content["data"]["text/plain"])
                elif kind == "error":
                    failure = f"{content['ename']}: {content['evalue']}"
                elif kind == "status" and content["execution_state"] == "idle":
                    break
        if failure:
            raise CodeFailedError(failure)
        return "".join(output).strip()

    async def run_server(
        self, server: str = "", options: Mapping[str, object] | None = None
    ) -> list[dict[str, Any]]:
        """Start a server, wait until it is ready and return the events of its spawn page."""
        await self.start_server(server, options)
        return await self.wait_ready(server)

    async def stop_server(self, server: str = "", timeout: float = 60) -> None:
        """Stop a server and wait until the hub has forgotten it."""
        await self._remove(server, {}, timeout)

    async def delete_server(self, server: str, timeout: float = 60) -> None:
        """Remove a named server for good."""
        await self._remove(server, {"remove": True}, timeout)

    async def _remove(self, server: str, body: dict[str, bool], timeout: float) -> None:
        await self.api("DELETE", user_path(self.name, "servers", server), json=body)
        deadline = time.monotonic() + timeout
        while server in await self.servers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{server!r} of {self.name!r} is still there")
            await anyio.sleep(0.1)


def _is_xsrf(cookie: Any, path: str) -> bool:
    return bool(cookie.name == "_xsrf" and cookie.path == path)


def _must_succeed(response: httpx2.Response) -> None:
    if response.is_error:
        request = response.request
        raise RuntimeError(
            f"{request.method} {request.url}: {response.status_code} {response.text[:500]}"
        )
