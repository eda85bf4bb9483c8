"""An API server that a test can take away from one hub, or that refuses it; no other notices."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import threading
from collections.abc import Coroutine
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from e2e.kube import Kube

_CHUNK = 65536


class KubeConfig:
    """The administrator's kubeconfig, to be written again with another server or account."""

    def __init__(self, kube: Kube) -> None:
        view = kube("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
        self._content = json.loads(view)
        self._cluster = self._content["clusters"][0]["cluster"]
        self.server: str = self._cluster["server"]

    def write(self, path: Path, *, server: str = "", token: str = "") -> Path:
        """One for `server`, in clear text where its address says so, and for `token`'s account."""
        cluster = {**self._cluster, "server": server or self.server}
        if cluster["server"].startswith("http:"):
            del cluster["certificate-authority-data"]
        content = {**self._content, "clusters": [{"name": "altered", "cluster": cluster}]}
        user = {"token": token} if token else self._content["users"][0]["user"]
        content["users"] = [{"name": "altered", "user": user}]
        context = {"cluster": "altered", "user": "altered"}
        content["contexts"] = [{"name": "altered", "context": context}]
        path.write_text(json.dumps({**content, "current-context": "altered"}))
        return path

    def tls(self) -> ssl.SSLContext:
        """As the administrator connects, with a client certificate where that is the way."""
        authority = base64.b64decode(self._cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        user = self._content["users"][0]["user"]
        if "client-key-data" in user:
            with NamedTemporaryFile() as file:
                for part in ("client-certificate-data", "client-key-data"):
                    file.write(base64.b64decode(user[part]) + b"\n")
                file.flush()
                context.load_cert_chain(file.name)
        return context


class FaultProxy:
    """`with FaultProxy(kubeconfig) as proxy`: `proxy.url` is the API server until told otherwise.

    It listens in clear text and has a thread of its own, since tests block theirs.
    """

    def __init__(self, kubeconfig: KubeConfig) -> None:
        target = urlsplit(kubeconfig.server)
        self._target = (target.hostname, target.port)
        self._tls = kubeconfig.tls()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._open: set[asyncio.StreamWriter] = set()
        self._held: re.Pattern[bytes] | None = None
        self._holding = threading.Event()
        self._down = False
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def down(self) -> None:
        """Break every connection, drop what is held, and answer nobody."""
        self._down = True
        self._run(self._break())

    def up(self) -> None:
        """Be the API server again."""
        self._down, self._held = False, None
        self._holding.clear()

    def hold(self, request: str) -> None:
        """Let requests whose first line matches wait, until `up` lets them pass."""
        self._held = re.compile(request.encode())

    async def wait_until_holding(self) -> None:
        """Wait until a request is held."""
        if not await asyncio.to_thread(self._holding.wait, 30):
            raise TimeoutError("no request came that matches")

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _break(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if self._down:
                return
            answers, server = await asyncio.open_connection(*self._target, ssl=self._tls)
            ends.append(server)
            self._open.update(ends)
            await asyncio.gather(self._copy(answers, writer), self._pass(reader, writer, server))
        except OSError:
            return  # one of the two has gone
        finally:
            self._open.difference_update(ends)
            for end in ends:
                end.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            line = chunk.partition(b"\r\n")[0]  # where it is a request: clients send its head whole
            while self._held is not None and self._held.search(line):
                self._holding.set()
                await asyncio.sleep(0.02)
                if client.is_closing():
                    return
            server.write(chunk)
            await server.drain()
        server.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.transport.abort()
