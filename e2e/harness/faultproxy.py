"""An API server that a test can take away from one hub, or that refuses it; no other notices.

with FaultProxy(kubeconfig) as proxy:
    kubeconfig.write(file, server=proxy.url)  # the hub's
    proxy.answer(503, retry_after=1)  # or down(), hang(), hold("^PATCH "), cut_watches(1), ...
    proxy.up()
    proxy.since(mark)  # what the hub asked
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from e2e.harness.kube import Kube
from e2e.harness.requests import Request

_CHUNK = 65536
_HUNG_UP = (OSError, asyncio.IncompleteReadError)


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

    It listens in clear text and has a thread of its own, since tests block theirs. Heads of
    requests are read, answers are copied as bytes, so a watch flows as if nothing was between.
    """

    def __init__(self, kubeconfig: KubeConfig) -> None:
        target = urlsplit(kubeconfig.server)
        self._target = (target.hostname, target.port)
        self._tls = kubeconfig.tls()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._open: set[asyncio.StreamWriter] = set()
        self._watches: set[asyncio.StreamWriter] = set()
        self._held: re.Pattern[str] | None = None
        self._muted: re.Pattern[str] | None = None
        self.stuck: list[str] = []  # first lines of what is held, and of what has no answer yet
        self._holding = threading.Event()
        self._answers: list[tuple[re.Pattern[str], bytes]] = []
        self._due: list[_Due] = []
        self._cutting: asyncio.Task[None] | None = None
        self._flows = asyncio.Event()
        self._down = False
        self.url = ""
        self.port = 0
        self.requests: list[Request] = []
        self.connections: list[float] = []  # when each was opened, on the monotonic clock

    def __enter__(self) -> Self:
        self._thread.start()
        self._flows.set()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
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
        self._run(self._break(self._open))

    def up(self) -> None:
        """Be the API server again."""
        self._down, self._held, self._muted = False, None, None
        self.stuck.clear()
        self._holding.clear()
        self._answers.clear()
        self._due.clear()
        self._run(self._flow())

    def hold(self, request: str) -> None:
        """Let requests whose first line matches wait, until `up` lets them pass."""
        self._held = re.compile(request)

    def hold_answers(self, request: str) -> None:
        """Let the API server do what such requests ask; its answers wait until `up`."""
        self._muted = re.compile(request)

    async def wait_until_holding(self) -> None:
        """Wait until a request is held."""
        if not await asyncio.to_thread(self._holding.wait, 30):
            raise TimeoutError("no request came that matches")

    def hang(self) -> None:
        """Keep every connection open, accept new ones, and let nothing pass until `up`."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def answer(
        self,
        status: int,
        request: str = "",
        *,
        retry_after: int | None = None,
        message: str = "refused by the test",
        reason: str = "",
    ) -> None:
        """Answer requests whose first line matches (all of them) in the API server's place.

        Watches that are open stay open: `cut_watches()` makes them come again.
        """
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": status,
        }
        content = json.dumps(body)
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
        head += [f"Content-Length: {len(content.encode())}"]
        head += [] if retry_after is None else [f"Retry-After: {retry_after}"]
        text = "\r\n".join([*head, "", content])
        self._answers.insert(0, (re.compile(request), text.encode()))

    def cut_watches(self, every: float | None = None) -> None:
        """Break the watches that are open: once, or every so many seconds until `up`."""
        self._run(self._break(self._watches))
        if every is not None:
            self._run(self._begin_cutting(every))

    def after(
        self, count: int, act: Callable[[], object], request: str = "^(PATCH|POST|DELETE) "
    ) -> threading.Event:
        """Call `act` once the API server has answered the `count`-th matching request from now.

        Its answer is passed on after that, so a hub that `act` kills never hears it. The event is
        set when it is done.
        """
        due = _Due(count, act, re.compile(request), threading.Event())
        self._due.append(due)
        return due.done

    def mark(self) -> int:
        """A position among the requests to count from."""
        return len(self.requests)

    def since(self, mark: int, *, but: Iterable[str] = ()) -> Counter[tuple[str, str]]:
        """How often each (verb, resource) was asked for, without the resources in `but`."""
        left_out = set(but)
        found = self.requests[mark:]
        return Counter((r.verb, r.resource) for r in found if r.resource not in left_out)

    def tries(self, since: float) -> int:
        """Requests, and connections that brought none, since a time on the monotonic clock."""
        asked = sum(request.at >= since for request in self.requests)
        return max(asked, sum(at >= since for at in self.connections))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _break(self, connections: set[asyncio.StreamWriter]) -> None:
        for writer in connections:
            writer.transport.abort()

    async def _flow(self) -> None:
        self._flows.set()
        if self._cutting is not None:
            self._cutting.cancel()
            self._cutting = None

    async def _begin_cutting(self, every: float) -> None:
        async def cut() -> None:
            while True:
                await asyncio.sleep(every)
                await self._break(self._watches)

        self._cutting = asyncio.create_task(cut())

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(time.monotonic())
        link = _Link(reader, writer)
        self._open.add(writer)
        try:
            await self._flows.wait()
            if self._down:
                return
            answers, link.server = await asyncio.open_connection(*self._target, ssl=self._tls)
            self._open.add(link.server)
            await asyncio.gather(self._copy(answers, link), self._pass(link, link.server))
        except _HUNG_UP:
            return  # one of the two has gone
        finally:
            self._watches.discard(writer)
            for end in filter(None, (writer, link.server)):
                self._open.discard(end)
                end.transport.abort()

    async def _pass(self, link: _Link, server: asyncio.StreamWriter) -> None:
        """Pass requests on, one after another; bodies have a length, as our client sends them."""
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await link.reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode("latin-1").rstrip().split("\r\n")
                headers = dict(field.lower().split(": ", 1) for field in fields)
                if "transfer-encoding" in headers:
                    raise NotImplementedError("a chunked request: teach the proxy to read it")
                body = await link.reader.readexactly(int(headers.get("content-length", 0)))
                self._watches.discard(link.client)
                request = Request.read(*line.split(" ")[:2])
                self.requests.append(request)
                if not await self._let_through(line, link):
                    break
                answer = next((text for match, text in self._answers if match.search(line)), None)
                if answer is not None:
                    link.client.write(answer)
                    await link.client.drain()
                    continue
                if request.verb == "watch":
                    self._watches.add(link.client)
                link.line = line
                link.due = [due for due in self._due if due.counts(line)]
                server.write(head + body)
                await server.drain()
        server.transport.abort()

    async def _let_through(self, line: str, link: _Link) -> bool:
        """Wait while requests are held or nothing flows; whether the client is still there."""
        while self._held is not None and self._held.search(line):
            self._sticks(line)
            await asyncio.sleep(0.02)
            if link.gone:
                return False
        await self._flows.wait()
        return not link.gone

    def _sticks(self, line: str) -> None:
        self._holding.set()
        if line not in self.stuck:
            self.stuck.append(line)

    async def _copy(self, answers: asyncio.StreamReader, link: _Link) -> None:
        while chunk := await answers.read(_CHUNK):
            await self._flows.wait()
            for due in link.due:
                due.act()
                due.done.set()
            link.due = []
            while self._muted is not None and self._muted.search(link.line):
                self._sticks(link.line)
                await asyncio.sleep(0.02)
                if link.gone:
                    return
            link.client.write(chunk)
            await link.client.drain()
        link.client.transport.abort()


@dataclass
class _Due:
    """What is done after one of the requests to come."""

    count: int
    act: Callable[[], object]
    request: re.Pattern[str]
    done: threading.Event

    def counts(self, line: str) -> bool:
        """Whether this request is the one."""
        if not self.request.search(line):
            return False
        self.count -= 1
        return self.count == 0


class _Link:
    """One client's connection, the one behind it, and what waits for the answer at hand."""

    def __init__(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.due: list[_Due] = []
        self.line = ""  # of the request that is being answered

    @property
    def gone(self) -> bool:
        """Whether the client has hung up."""
        return self.reader.at_eof() or self.client.is_closing()
