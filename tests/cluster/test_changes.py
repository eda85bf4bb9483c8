"""Who waits is told once something changed, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from lightkube_template_spawner.cluster.changes import Changes


async def test_wait_until() -> None:
    changes = Changes()
    found: list[str] = []
    assert await changes.wait_until("me", lambda: "at once") == "at once"
    waiting = asyncio.create_task(changes.wait_until("me", lambda: found[0] if found else None))
    await asyncio.sleep(0)
    changes.notify("you")
    changes.notify("me")
    await asyncio.sleep(0)
    assert not waiting.done()
    found.append("now")
    changes.notify("me")
    assert await waiting == "now"
    assert not changes._callbacks


async def test_wait_until_leaves_nothing_behind() -> None:
    changes = Changes()

    def raises() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await changes.wait_until("me", raises)
    waiting: asyncio.Task[None] = asyncio.create_task(changes.wait_until("me", lambda: None))
    await asyncio.sleep(0)
    assert changes._callbacks
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not changes._callbacks


async def test_a_callback_may_leave_while_it_is_called() -> None:
    changes = Changes()
    called: list[int] = []

    def once() -> None:
        called.append(1)
        leave()
        leave()

    leave = changes.subscribe("me", once)
    changes.subscribe("me", lambda: called.append(2))
    changes.notify("me")
    changes.notify("me")
    assert sorted(called) == [1, 2, 2]
