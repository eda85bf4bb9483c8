"""A real JupyterHub for the tests: its own process, its own folder, a real proxy that outlives it.

The harness owns the proxy, so a test may kill the hub and find every user's route still there, as
in a Zero to JupyterHub deployment.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import anyio
import anyio.to_thread
import httpx2

ADMIN = "admin"
TAIL_LINES = 60
# jsonschema's optional check of IRIs builds a grammar at import: 2.2 s of every start of a hub.
RUN_HUB = """\
import sys
sys.modules["rfc3987_syntax"] = None
from jupyterhub.app import main
main()
"""
# Every secret comes from the hub's environment, so none is in a file or on a command line.
BASE_CONFIG = """\
import os
c = get_config()
c.JupyterHub.bind_url = {public_url!r}
c.JupyterHub.hub_ip = {hub_ip!r}
c.JupyterHub.hub_port = {hub_port!r}
c.JupyterHub.hub_connect_ip = {connect_address!r}
c.JupyterHub.init_spawners_timeout = 1
c.JupyterHub.db_url = "sqlite:///jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = "cookie_secret"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0}}
c.JupyterHub.services = [{{"name": "e2e", "admin": True, "api_token": os.environ["E2E_API_TOKEN"]}}]
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = {proxy_api_url!r}
c.JupyterHub.authenticator_class = "shared-password"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {{{admin!r}}}
c.SharedPasswordAuthenticator.user_password = os.environ["E2E_USER_PASSWORD"]
c.SharedPasswordAuthenticator.admin_password = os.environ["E2E_ADMIN_PASSWORD"]
"""


class Hub:
    """One hub with its proxy: `async with Hub(config, proxy_command=...) as hub`.

    Args:
        config: Python configuration text, or `{"ClassName": {"trait": literal}}`; it comes after
            the harness's own settings and may override them.
        proxy_command: what `e2e.proxy.install_proxy` returned.
        connect_address: where user servers reach the hub, such as the address of a pod bridge.
        hub_ip: what the hub binds for them; the connect address unless given.
        environment: added to the hub's environment.
    """

    _scheme = "http"  # of the hub and of the proxy's own API

    def __init__(
        self,
        config: str | Mapping[str, Mapping[str, object]],
        *,
        proxy_command: Sequence[str],
        connect_address: str = "127.0.0.1",
        hub_ip: str | None = None,
        environment: Mapping[str, str] | None = None,
        ready_timeout: float = 60,
    ) -> None:
        self.user_password, self.admin_password = secrets.token_hex(12), secrets.token_hex(24)
        self.api_token = secrets.token_hex(16)
        self.ready_timeout = ready_timeout
        self.ready_seconds = 0.0
        self._proxy_command = list(proxy_command)
        self._proxy_token, self._crypt_key = secrets.token_hex(16), secrets.token_hex(32)
        self._given_environment = dict(environment or {})
        self._connect_address = connect_address
        bound = hub_ip or connect_address
        public, proxy_api, self._hub_port = _free_ports("127.0.0.1", "127.0.0.1", bound)
        self.url = f"http://127.0.0.1:{public}"
        self._proxy_api_url = f"{self._scheme}://127.0.0.1:{proxy_api}"
        self._config = BASE_CONFIG.format(
            public_url=self.url,
            hub_ip=bound,
            hub_port=self._hub_port,
            connect_address=connect_address,
            proxy_api_url=self._proxy_api_url,
            admin=ADMIN,
        ) + _config_text(config)
        self._hub: subprocess.Popen[bytes] | None = None
        self._proxy: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-")))
            self.log = self.folder / "hub.log"
            (self.folder / "jupyterhub_config.py").write_text(self._config)
            client = httpx2.AsyncClient(base_url=self.url, timeout=60)
            self._client = await stack.enter_async_context(client)
            stack.push_async_callback(self._end_processes)
            await self._start_proxy()
            await self.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start_proxy(self) -> None:
        public, api = self.url.rpartition(":")[2], self._proxy_api_url.rpartition(":")[2]
        target = f"{self._scheme}://{self._connect_address}:{self._hub_port}"
        command = [*self._proxy_command, "--ip", "127.0.0.1", "--port", public]
        command += ["--api-ip", "127.0.0.1", "--api-port", api]
        command += ["--default-target", target, "--error-target", f"{target}/hub/error"]
        environment = {**os.environ, "CONFIGPROXY_AUTH_TOKEN": self._proxy_token}
        self._proxy = self._popen([*command, *self._proxy_options()], environment, "proxy.log")

    def _proxy_options(self) -> list[str]:
        return []

    async def start(self) -> None:
        """Start the hub and wait until it answers through the proxy."""
        begun = time.monotonic()
        self._hub = self._run_hub(self.log.name)
        while not await self._healthy():
            if self._hub.poll() is not None:
                raise RuntimeError(f"the hub ended with {self._hub.returncode}:\n{self.log_tail()}")
            if time.monotonic() - begun > self.ready_timeout:
                raise TimeoutError(f"no hub in {self.ready_timeout:.0f} s:\n{self.log_tail()}")
            await anyio.sleep(0.05)
        self.ready_seconds = time.monotonic() - begun

    def _run_hub(self, log: str, *options: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **self._given_environment,
            "CONFIGPROXY_AUTH_TOKEN": self._proxy_token,
            "JUPYTERHUB_CRYPT_KEY": self._crypt_key,
            "E2E_API_TOKEN": self.api_token,
            "E2E_USER_PASSWORD": self.user_password,
            "E2E_ADMIN_PASSWORD": self.admin_password,
        }
        command = [sys.executable, "-c", RUN_HUB, "-f", "jupyterhub_config.py", *options]
        return self._popen(command, environment, log)

    async def _healthy(self) -> bool:
        try:
            return (await self._client.get("/hub/health", timeout=5)).status_code == 200
        except httpx2.TransportError:  # the proxy itself may not listen yet
            return False

    async def stop(self) -> None:
        """End the hub as a deployment does, with SIGTERM; user servers and routes stay."""
        if self._hub is not None:
            self._hub.terminate()
            await self._wait_for_end(self._hub)

    async def kill(self) -> None:
        """End the hub with SIGKILL, as a lost node or a lack of memory does."""
        if self._hub is not None:
            self._hub.kill()
            await self._wait_for_end(self._hub)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    @property
    def pid(self) -> int:
        """The hub's own process."""
        assert self._hub is not None, "it was never started"
        return self._hub.pid

    async def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            await anyio.to_thread.run_sync(process.wait, 30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise TimeoutError(f"the hub ignored SIGTERM for 30 s:\n{self.log_tail()}") from None

    async def _end_processes(self) -> None:
        """Leave no process, even when the test was cancelled."""
        for process in (self._hub, self._proxy):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _popen(
        self, command: list[str], environment: dict[str, str], log: str
    ) -> subprocess.Popen[bytes]:
        """A session of its own keeps the tests' Ctrl-C from ending it before the clean-up does."""
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def wait_for_log(
        self, pattern: str, timeout: float = 30, start: int = 0
    ) -> re.Match[str]:
        """Return the first match in the log from character `start` on."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.log.read_text(errors="replace")[start:])):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {pattern!r} in the hub's log:\n{self.log_tail()}")
            await anyio.sleep(0.05)
        return found

    async def request(self, method: str, path: str, json: object = None) -> httpx2.Response:
        """Call `/hub/api/<path>` as the admin service, whatever the answer's status."""
        headers = {"Authorization": f"token {self.api_token}"}
        url = f"/hub/api/{path.lstrip('/')}"
        return await self._client.request(method, url, json=json, headers=headers)

    async def api(self, method: str, path: str, json: object = None) -> Any:
        """Call the API and return what it says; an error carries the hub's own words."""
        response = await self.request(method, path, json)
        if response.is_error:
            raise RuntimeError(f"{method} {path}: {response.status_code} {response.text}")
        return response.json() if response.content else None

    async def create_user(self, name: str) -> None:
        await self.api("POST", user_path(name))

    async def delete_user(self, name: str) -> None:
        """Remove a user; the hub stops their servers first and answers when that is done."""
        await self.api("DELETE", user_path(name))

    async def delete_users(self) -> None:
        """Remove everybody: their servers would outlive the hub."""
        for name in await self.users():
            await self.delete_user(name)

    async def users(self) -> dict[str, dict[str, Any]]:
        """Every user's servers, stopped ones included, by name."""
        found = await self.api("GET", "users?include_stopped_servers=1&limit=200")
        return {user["name"]: user["servers"] for user in found}


async def until(condition: Callable[[], Awaitable[Any]], timeout: float = 60) -> None:
    """Wait for what a test says must come true."""
    deadline = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < deadline, "it did not come true"
        await anyio.sleep(0.1)


def user_path(name: str, *rest: str) -> str:
    """A user's path in the API; a name may hold anything but a slash."""
    return "/".join(quote(part, safe="") for part in ("users", name, *rest))


def _config_text(config: str | Mapping[str, Mapping[str, object]]) -> str:
    if isinstance(config, str):
        return config
    settings = ((owner, *trait) for owner, traits in config.items() for trait in traits.items())
    return "".join(f"c.{owner}.{trait} = {value!r}\n" for owner, trait, value in settings)


def _free_ports(*addresses: str) -> list[int]:
    """Ports that differ: each is held until all are found, or one could be given twice."""
    with ExitStack() as held:
        found = [held.enter_context(socket.create_server((name, 0))) for name in addresses]
        return [int(one.getsockname()[1]) for one in found]
