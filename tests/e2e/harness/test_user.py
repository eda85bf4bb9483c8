"""What a person in the end-to-end tests reads, from a hub that is a script."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest

from e2e.harness.user import HubUser, ServerFailedError
from tests.support.loopback import loopback, whole

FAILED = {"progress": 100, "failed": True, "message": "Spawn failed: not this user's"}


async def refusal(*answers: bytes, pending: list[str | None], server: str = "") -> str:
    """What the user reads of a start, where the hub's progress gives these answers in turn.

    A default server that is not asked about is pending all the time.
    """
    progress, states = iter(answers), iter(pending)

    async def answer(first: str, writer: asyncio.StreamWriter) -> None:
        path = first.split()[1]
        if path == "/hub/login":
            writer.write(whole(b"", extra="Set-Cookie: _xsrf=x; Path=/hub/\r\n"))
        elif "/progress" in path:
            writer.write(next(progress))
        else:
            servers = {"": {"pending": "spawn"}, server: {"pending": next(states)}}
            writer.write(whole(json.dumps({"servers": servers}).encode()))

    async with loopback(answer) as url, HubUser(url) as user:
        await user.page("/hub/login")
        user.name = "ada"
        with pytest.raises((ServerFailedError, httpx2.HTTPStatusError, RuntimeError)) as caught:
            await user.wait_ready(server, timeout=5)
        return str(caught.value)


def told(event: dict[str, object]) -> bytes:
    return whole(f"data: {json.dumps(event)}\n\n".encode(), content_type="text/event-stream")


NOT_STARTING = whole(b'{"message": "ada: is not starting"}', "400 Bad Request")


@pytest.mark.parametrize(
    ("before", "pending"),
    [(0, []), (1, ["stop"]), (3, ["stop", "stop", "stop"]), (1, [None])],
)
async def test_a_refusal_is_read_when_its_stop_is_done(
    before: int, pending: list[str | None]
) -> None:
    text = await refusal(*[NOT_STARTING] * before, told(FAILED), pending=pending)
    assert text == FAILED["message"]


@pytest.mark.parametrize("server", ["", "gpu"])
async def test_a_server_that_nobody_started_is_no_refusal(server: str) -> None:
    text = await refusal(NOT_STARTING, NOT_STARTING, pending=[None], server=server)
    assert "400" in text
