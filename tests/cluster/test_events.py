"""Events reach who starts, are asked for only then, and cost little."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from lightkube_template_spawner.cluster.api import Api
from lightkube_template_spawner.cluster.events import Event, EventFeed
from lightkube_template_spawner.cluster.timing import Timing
from tests.support.fake_apiserver import FakeApiServer, Fault, text
from tests.support.timing import until


@pytest.fixture
async def feed(api: Api) -> AsyncIterator[EventFeed]:
    made = EventFeed(
        api, "hub", logging.getLogger("test"), Timing(events=(0.02, 0.02), linger=0.05)
    )
    yield made
    if made._closing is not None:
        made._closing.cancel()
    made.close()
    await asyncio.sleep(0)


def event(name: str, message: str = "", **more: Any) -> dict[str, Any]:
    about = {"kind": "Pod", "name": "p", "namespace": "hub", "uid": "u"}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "hub"},
        "involvedObject": about,
        "message": message or name,
        **more,
    }


async def test_only_what_happens_while_somebody_listens(
    fake: FakeApiServer, feed: EventFeed
) -> None:
    for number in range(20):
        fake.put(event(f"old{number}"))
    heard: list[str] = []
    with feed.listen(lambda e: heard.append(e.message)):
        await until(lambda: fake.watches)
        fake.put(event("new"))
        await until(lambda: heard)
    assert heard == ["new"]
    first, watch = fake.requests
    assert first.query == {"limit": "1"}
    assert watch.query["fieldSelector"] == "involvedObject.kind!=Node"


async def test_one_watch_serves_all_and_ends_after_the_last(
    fake: FakeApiServer, feed: EventFeed
) -> None:
    heard: list[str] = []
    with feed.listen(lambda e: heard.append("a")), feed.listen(lambda e: heard.append("b")):
        await until(lambda: fake.watches)
        fake.put(event("one"))
        await until(lambda: len(heard) == 2)
    with feed.listen(lambda e: heard.append("c")):
        await asyncio.sleep(0.1)  # longer than it lingers
        fake.put(event("two"))
        await until(lambda: heard[-1] == "c")
    assert fake.count("^WATCH") == 1
    await until(lambda: not fake.watches)
    fake.put(event("three"))
    assert feed.about("u") == []
    with feed.listen(lambda e: heard.append(e.message)):
        await until(lambda: fake.watches)
        fake.put(event("four"))
        await until(lambda: heard[-1] == "four")


async def test_what_came_before_its_object_was_known(fake: FakeApiServer, feed: EventFeed) -> None:
    with feed.listen(lambda e: None):
        await until(lambda: fake.watches)
        for number in range(3):
            fake.put(event(f"e{number}"))
        fake.put(event("other", involvedObject={"uid": "another"}))
        await until(lambda: feed.about("another"))
        assert [e.message for e in feed.about("u")] == ["e0", "e1", "e2"]


@pytest.mark.parametrize("fault", [
    Fault(error=lambda: httpx2.ConnectError("refused"), times=3),
    text(503, "x"), text(403, "{}", "application/json"), text(200, "<html>\n", "text/html"),
    text(200, '{"type": "ERROR", "object": {"code": 410}}\n', "application/json"),
    text(200, '{"type": "ADDED"}\n', "application/json"),
    text(200, "[1]\n", "application/json"),
    text(200, '{"type": "ADDED", "object": {"metadata": {"resourceVersion": "1"},'
              ' "involvedObject": 5}}\n', "application/json"),
], ids=["down", "503", "403", "page", "410", "no object", "list", "odd event"])  # fmt: skip
@pytest.mark.parametrize("watch", [True, False])
async def test_it_goes_on_after_failures(
    fake: FakeApiServer, feed: EventFeed, fault: Fault, watch: bool
) -> None:
    fault.met, fault.watch = 0, watch
    fake.faults.append(fault)
    heard: list[str] = []
    with feed.listen(lambda e: heard.append(e.message)):
        await until(lambda: fake.watches)
        fake.put(event("told"))
        await until(lambda: heard)
    assert heard == ["told"]


@pytest.mark.parametrize("fault", [
    text(200, "", "application/json"),
    text(200, '{"type": "ERROR", "object": {"code": 410}}\n', "application/json"),
    text(403, "{}", "application/json"),
    Fault(error=lambda: httpx2.ConnectError("refused")),
], ids=["closes at once", "410", "403", "down"])  # fmt: skip
async def test_the_rate_of_requests_is_bounded(
    fake: FakeApiServer, feed: EventFeed, fault: Fault
) -> None:
    fault.met, fault.times, fault.watch = 0, 10_000, True
    fake.faults.append(fault)
    with feed.listen(lambda e: None):
        await asyncio.sleep(0.3)
    assert len(fake.requests) < 40


async def test_a_dropped_watch_resumes_where_it_was(fake: FakeApiServer, feed: EventFeed) -> None:
    heard: list[str] = []
    with feed.listen(lambda e: heard.append(e.message)):
        await until(lambda: fake.watches)
        fake.put(event("one"))
        await until(lambda: heard)
        fake.muted = True
        fake.put(event("two"))
        await asyncio.sleep(0.01)
        fake.muted = False
        fake.watches[0].end()
        await until(lambda: len(heard) == 2)
    assert heard == ["one", "two"]


@pytest.mark.parametrize("fault", [
    text(503, "x"), text(429, "slow down", Retry_After="0"),
    Fault(error=lambda: httpx2.ConnectError("refused")),
], ids=["503", "429", "down"])  # fmt: skip
async def test_what_happens_during_an_outage_is_heard_after_it(
    fake: FakeApiServer, feed: EventFeed, fault: Fault
) -> None:
    heard: list[str] = []
    with feed.listen(lambda e: heard.append(e.message)):
        await until(lambda: fake.watches)
        fake.faults.append(fault)
        fault.met, fault.times = 0, 3
        fake.watches[0].end(httpx2.ReadError("reset"))
        await until(lambda: not fake.watches)
        fake.put(event("meanwhile"))
        await until(lambda: heard)
    assert heard == ["meanwhile"]
    assert fake.count("^GET") == 1


def test_events_of_every_age_are_read() -> None:
    now = Event.read(event("e", " spaced ", eventTime="t2", reason="R", type="Warning"))
    assert (now.time, now.message, now.reason, now.type, now.kind, now.name, now.uid) == (
        "t2", "spaced", "R", "Warning", "Pod", "p", "u",
    )  # fmt: skip
    old = Event.read({"metadata": {"creationTimestamp": "t0"}, "message": None, "type": None})
    assert (old.time, old.message, old.type, old.uid) == ("t0", "", "Normal", "")
    both = Event.read({"lastTimestamp": "t3", "firstTimestamp": "t1", "metadata": {}})
    assert both.time == "t3"
    assert json.loads(json.dumps(both.message)) == ""
