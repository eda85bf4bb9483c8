"""HTTP in and out: the log of requests, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

import httpx2

from tests.support.fake_apiserver.messages import Obj, Refusal, Seen


@dataclass
class Fault:
    """What happens to requests instead of, or after, being handled.

    ``answer`` is sent, or ``error`` raised, without handling; with ``lost`` the request is handled
    first, so that only its answer goes missing. Neither: the request hangs.
    """

    answer: Callable[[], httpx2.Response] | None = None
    error: Callable[[], Exception] | None = None
    lost: bool = False
    method: str = ""
    path: str = ""
    watch: bool | None = None
    times: int = 1
    met: int = 0

    def meets(self, seen: Seen) -> bool:
        return (
            self.met < self.times
            and self.method in ("", seen.method)
            and re.search(self.path, seen.path) is not None
            and self.watch in (None, seen.watch)
        )


def text(code: int, body: str, content_type: str = "text/plain", **headers: str) -> Fault:
    """A fault that answers something other than a Status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type:
        named["Content-Type"] = content_type
    return Fault(answer=lambda: httpx2.Response(code, content=body.encode(), headers=named))


class Transport(httpx2.AsyncBaseTransport, ABC):
    """``requests`` is its log, ``faults`` what goes wrong, ``on_request`` a test's own look."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.on_request: Callable[[Seen, str], None] = lambda seen, when: None
        self.most_open = 0  # requests other than watches at one time
        self._open = 0

    @abstractmethod
    def respond(self, seen: Seen) -> Obj | httpx2.Response:
        """The answer to a request, or a Refusal."""

    def count(self, text: str) -> int:
        """How many requests were like ``PATCH /api/v1/…`` (a regular expression)."""
        return sum(re.search(text, str(seen)) is not None for seen in self.requests)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        seen = await _read(request)
        self.requests.append(seen)
        self._open += not seen.watch
        self.most_open = max(self.most_open, self._open)
        try:
            self.on_request(seen, "arrived")
            await asyncio.sleep(0)
            fault = next((fault for fault in self.faults if fault.meets(seen)), None)
            if fault is None:
                response = self._answer(seen)
            else:
                response = await self._faulty(fault, seen)
            self.on_request(seen, "handled")
            await asyncio.sleep(0)
            return response
        finally:
            self._open -= not seen.watch

    async def _faulty(self, fault: Fault, seen: Seen) -> httpx2.Response:
        fault.met += 1
        if fault.lost:
            self._answer(seen)
        if fault.error is not None:
            raise fault.error()
        if fault.answer is not None:
            return fault.answer()
        assert seen.read_timeout is not None, "nothing would end this request"
        await asyncio.sleep(seen.read_timeout)
        raise httpx2.ReadTimeout("silence")

    def _answer(self, seen: Seen) -> httpx2.Response:
        try:
            body = self.respond(seen)
        except Refusal as refusal:
            return refusal.answer
        if isinstance(body, httpx2.Response):
            return body
        return httpx2.Response(200, json=body)


async def _read(request: httpx2.Request) -> Seen:
    content = await request.aread()
    quoted_path = request.url.raw_path.decode().partition("?")[0]
    return Seen(
        request.method,
        unquote(quoted_path),
        dict(request.url.params),
        json.loads(content) if content else {},
        quoted_path,
        request.headers["Accept"],
        request.extensions["timeout"]["read"],
    )
