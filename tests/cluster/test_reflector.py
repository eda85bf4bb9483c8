"""The store stays true through every kind of failure, asks little, and keeps little."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lightkube_template_spawner.cluster import api as api_module
from lightkube_template_spawner.cluster import reflector as module
from lightkube_template_spawner.cluster.api import Api, Kind
from lightkube_template_spawner.cluster.changes import Changes
from lightkube_template_spawner.cluster.live import Live
from lightkube_template_spawner.cluster.reflector import Reflector
from lightkube_template_spawner.cluster.timing import Timing
from lightkube_template_spawner.errors import Forbidden, NotFound, Unavailable
from lightkube_template_spawner.objects.identity import INSTANCE, OWNER, hub_selector
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer, Fault, text
from tests.support.loopback import HEAD, chunk, loopback, whole
from tests.support.timing import QUICK, until

POD = Kind("", "v1", "Pod", "pods", namespaced=True)
SECRET = Kind("", "v1", "Secret", "secrets", namespaced=True)
log = logging.getLogger("test")


def pod(name: str, owner: str = "me", namespace: str = "hub", **more: Any) -> dict[str, Any]:
    labels = {INSTANCE: "i", OWNER: owner}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": []},
        **more,
    }


def make(api: Api, kind: Kind = POD, **options: Any) -> Reflector:
    given = {"selector": hub_selector("i"), "changes": Changes(), "owners": {}, "log": log,
             "full": True, "timing": QUICK}  # fmt: skip
    return Reflector(api, kind, "hub", **{**given, **options})


@asynccontextmanager
async def running(store: Reflector) -> AsyncIterator[Reflector]:
    task = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


def names(store: Reflector, owner: str = "me") -> set[str]:
    return {live.meta.name for live in store.of_owner(owner)}


def lists(fake: FakeApiServer) -> int:
    """How often the store was filled anew."""
    return fake.count("^GET")


# The plain way


async def test_list_then_watch(fake: FakeApiServer, api: Api) -> None:
    fake.put(pod("one"))
    fake.put(pod("elsewhere", namespace="other"))
    fake.put({**pod("foreign"), "metadata": {"name": "foreign", "namespace": "hub"}})
    async with running(make(api)) as store:
        await store.sync()
        assert names(store) == {"one"}
        fake.put(pod("two"))
        fake.put(pod("three", owner="you"))
        await until(lambda: len(store) == 3)
        fake.put(pod("one", status={"phase": "Running"}))
        await until(lambda: (store.get("hub", "one") or _fail()).parts.get("status"))
        fake.remove("Pod", "hub", "one")
        await until(lambda: store.get("hub", "one") is None)
        assert (names(store), names(store, "you"), len(store)) == ({"two"}, {"three"}, 2)
        changed = fake.put(
            {**pod("two"), "metadata": {"name": "two", "namespace": "hub", "labels": {}}}
        )
        await until(lambda: store.get("hub", "two") is None)
        assert changed["metadata"]["labels"] == {}
    assert [str(seen) for seen in fake.requests] == [
        "GET /api/v1/namespaces/hub/pods", "WATCH /api/v1/namespaces/hub/pods",
    ]  # fmt: skip
    query = fake.requests[1].query
    assert query["allowWatchBookmarks"] == "true"
    assert 290 <= int(query["timeoutSeconds"]) <= 590
    assert "resourceVersion" not in fake.requests[0].query


def _fail() -> Any:
    raise AssertionError("not in the store")


async def test_pages(fake: FakeApiServer, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", "3")
    for number in range(10):
        fake.put(pod(f"p{number}"))
    async with running(make(api)) as store:
        await store.sync()
        assert len(store) == 10
    assert fake.count("^GET") == 4


async def test_an_expired_page_token_starts_the_list_anew(
    fake: FakeApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", "3")
    for number in range(5):
        fake.put(pod(f"p{number}"))

    def between(seen: Any, when: str) -> None:
        if when == "handled" and len(fake.requests) == 1:
            fake.put(pod("new"))
            fake.compact()

    fake.on_request = between
    async with running(make(api)) as store:
        await store.sync()
        assert len(store) == 6
    assert fake.count("^GET") == 4


async def test_an_object_that_moves_to_another_owner(fake: FakeApiServer, api: Api) -> None:
    fake.put(pod("one"))
    async with running(make(api)) as store:
        await store.sync()
        fake.put(pod("one", owner="you"))
        await until(lambda: names(store, "you") == {"one"})
        assert names(store) == set()
        assert len(store) == 1


async def test_a_new_incarnation_replaces_the_old(fake: FakeApiServer, api: Api) -> None:
    first = fake.put(pod("one"))
    async with running(make(api)) as store:
        await store.sync()
        fake.remove("Pod", "hub", "one")
        second = fake.put(pod("one"))
        assert first["metadata"]["uid"] != second["metadata"]["uid"]
        await until(
            lambda: (live := store.get("hub", "one")) and live.meta.uid == second["metadata"]["uid"]
        )
        assert names(store) == {"one"}


# Failures of the watch

Break = Callable[[FakeApiServer], None]


def end(*fate: bytes | Exception) -> Break:
    return lambda fake: fake.watches[0].end(*fate)


def expire(fake: FakeApiServer) -> None:
    fake.compact()
    error = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
    fake.watches[0].end(json.dumps(error).encode() + b"\n")


def expire_over_http(fake: FakeApiServer) -> None:
    fake.compact()
    fake.expired_over_http = True
    fake.watches[0].end()


def then(*faults: Fault) -> Break:
    def cut(fake: FakeApiServer) -> None:
        for fault in faults:
            fault.met = 0
        fake.faults += faults
        fake.watches[0].end()

    return cut


BREAKS: dict[str, tuple[Break, bool]] = {  # and whether a new list is needed
    "clean end": (end(), False),
    "drop": (end(httpx2.ReadError("reset")), False),
    "silence": (end(httpx2.ReadTimeout("silence")), False),
    "cut in the middle of a line": (end(b'{"type":"MODIFIED","obj'), True),
    "broken line": (end(b"<html>\n"), True),
    "event without object": (end(b'{"type":"ADDED"}\n'), True),
    "event of another shape": (end(b'{"type":"ADDED","object":{"metadata":3}}\n'), True),
    "bookmark without version": (end(b'{"type":"BOOKMARK","object":{"metadata":{}}}\n'), True),
    "error without code": (end(b'{"type":"ERROR","object":{"message":"x"}}\n'), False),
    "410 in the stream": (expire, True),
    "410 over HTTP": (expire_over_http, True),
    "502": (then(text(502, "<html>", "text/html", )), False),
    "503, 429": (then(text(503, "x"), text(429, "slow down", Retry_After="1")), False),
    "refused": (then(Fault(error=lambda: httpx2.ConnectError("refused"), times=3)), False),
    "empty answers": (then(text(200, "", "application/json")), False),
    "another page": (then(text(200, "hello\n", "text/html")), True),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
async def test_every_break_is_mended(fake: FakeApiServer, api: Api, name: str) -> None:
    """What changed meanwhile is seen afterwards, and what vanished is told."""
    broken, is_listed_again = BREAKS[name]
    fake.put(pod("stays"))
    fake.put(pod("vanishes"))
    store = make(api)
    told: list[set[str]] = []
    store._changes.subscribe("me", lambda: told.append(names(store)))
    async with running(store):
        await store.sync()
        await until(lambda: fake.watches)
        fake.muted = True
        fake.put(pod("fresh"))
        fake.remove("Pod", "hub", "vanishes")
        await asyncio.sleep(0.01)
        broken(fake)
        fake.muted = False
        await until(lambda: names(store) == {"stays", "fresh"})
        assert told[-1] == {"stays", "fresh"}
        await until(lambda: fake.watches)
        fake.put(pod("last"))
        await until(lambda: "last" in names(store))
        await until(lambda: store.error is None or store.synced)
    assert lists(fake) == 1 + is_listed_again


@pytest.mark.parametrize("heard", [False, True])
async def test_long_silence(fake: FakeApiServer, api: Api, heard: bool) -> None:
    """From the start: the position may never come, so list. After a bookmark: just go on."""
    fake.put(pod("one"))
    async with running(make(api, idle=0.1)) as store:
        await store.sync()
        await until(lambda: fake.watches)
        if heard:
            fake.bookmark()
        fake.muted = True
        fake.put(pod("two"))
        await until(lambda: fake.count("^WATCH") == 2)
        assert lists(fake) == (1 if heard else 2)


async def test_bookmarks_move_the_position(fake: FakeApiServer, api: Api) -> None:
    async with running(make(api)) as store:
        await store.sync()
        fake.put(pod("other", owner="you", namespace="other"))  # not in this watch
        await until(lambda: fake.watches)
        fake.bookmark()
        await asyncio.sleep(0.01)
        fake.compact()
        fake.watches[0].end()
        await until(lambda: fake.count("^WATCH") == 2)
        fake.put(pod("one"))
        await until(lambda: names(store) == {"one"})
        assert lists(fake) == 1


# A server that is down, or refuses


async def test_refusal_surfaces_and_passes(fake: FakeApiServer, api: Api) -> None:
    fake.forbidden.add(("list", "pods"))
    async with running(make(api)) as store:
        for _ in range(2):
            with pytest.raises(Forbidden, match='cannot list resource "pods"'):
                await store.sync()
        assert (store.synced, isinstance(store.error, Forbidden)) == (False, True)
        fake.forbidden.clear()
        fake.put(pod("one"))
        await until(lambda: store.synced)
        await store.sync()
        assert names(store) == {"one"}
        assert store.error is None


async def test_a_right_that_is_taken_away_and_given_back(fake: FakeApiServer, api: Api) -> None:
    """What such a store knows is old news, which nobody may take for the truth."""
    fake.put(pod("one"))
    async with running(make(api)) as store:
        await store.sync()
        await until(lambda: fake.watches)
        fake.forbidden.add(("watch", "pods"))
        fake.watches[0].end()
        await until(lambda: store.frozen)
        for _ in range(2):
            with pytest.raises(Forbidden, match='cannot watch resource "pods"'):
                await store.sync()
        fake.remove("Pod", "hub", "one")
        fake.put(pod("two"))
        fake.forbidden.clear()
        await store.sync()
        await until(lambda: names(store) == {"two"})
        assert (store.frozen, store.error, lists(fake)) == (False, None, 1)


async def test_who_asks_a_store_that_is_refused_does_not_wait_for_its_next_try(
    fake: FakeApiServer, api: Api
) -> None:
    async with running(make(api, timing=Timing(watch=(0.1, 1.0)))) as store:
        await store.sync()
        await until(lambda: fake.watches)
        fake.forbidden.add(("watch", "pods"))
        fake.watches[0].end()
        await until(lambda: fake.count("WATCH") == 5)  # it pauses for longer and longer
        began = time.monotonic()
        with pytest.raises(Forbidden):
            await store.sync()
        assert time.monotonic() - began < 0.4


async def test_who_waits_for_a_store_that_closes_is_told_why(api: Api) -> None:
    store = make(api)
    task = asyncio.create_task(store.run())
    await store.sync()
    store.close(Forbidden("no longer in all namespaces", code=403))
    await task
    with pytest.raises(Forbidden, match="no longer in all namespaces"):
        await asyncio.wait_for(store.sync(), 1)


async def test_a_server_that_is_back_may_not_know_our_rights_yet(
    fake: FakeApiServer, api: Api
) -> None:
    """A start that waits for the first list must not fail with rights that it has."""
    fake.faults += [
        Fault(error=lambda: httpx2.ConnectError("refused"), times=2),
        Fault(answer=lambda: httpx2.Response(403), times=3),
    ]
    fake.put(pod("one"))
    async with running(make(api)) as store:
        await store.sync()
        assert names(store) == {"one"}
    assert [fault.met for fault in fake.faults] == [2, 3]


def test_it_is_back_within_five_seconds() -> None:
    """The longest pause, and a connection that fails just after the server is back."""
    assert Timing().watch[1] + api_module._CONNECT - 1 <= 5  # a lost SYN is sent again after 1 s


async def test_a_lost_position_after_an_outage_is_listed_at_once(
    fake: FakeApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HOT", 0.1)
    async with running(make(api, timing=Timing(watch=(0.02, 5.0)))) as store:
        await store.sync()
        await until(lambda: fake.watches)
        await asyncio.sleep(0.1)
        fake.faults.append(Fault(error=lambda: httpx2.ConnectError("refused"), times=4))
        fake.watches[0].end(httpx2.ReadError("reset"))
        await until(lambda: not fake.watches)
        fake.put(pod("meanwhile"))
        fake.compact()
        await until(lambda: names(store) == {"meanwhile"})
    assert lists(fake) == 2


async def test_an_unserved_kind_surfaces(fake: FakeApiServer, api: Api) -> None:
    unserved = Kind("no.example.org", "v1", "No", "noes", namespaced=True)
    async with running(make(api, unserved)) as store:
        with pytest.raises(NotFound):
            await store.sync()


async def test_a_server_that_is_down_is_waited_for(fake: FakeApiServer, api: Api) -> None:
    fake.faults.append(Fault(error=lambda: httpx2.ConnectError("refused"), times=1000))
    async with running(make(api)) as store:
        waiting = [asyncio.create_task(store.sync()) for _ in range(50)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        assert isinstance(store.error, Unavailable)
        assert len(fake.requests) < 70  # a quarter of the shortest pause apart: 5 ms here
        fake.faults.clear()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize("fault", [
    Fault(error=lambda: httpx2.ConnectError("refused"), times=10_000),
    text(200, "", "application/json"),
    text(500, "x"),
    text(403, "{}", "application/json"),
    text(410, "{}", "application/json"),
    text(200, '{"type":"ERROR","object":{"code":410}}\n', "application/json"),
    text(200, "x\n", "application/json"),
    text(200, '{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}\n',
         "application/json"),
], ids=["down", "closes at once", "500", "403", "410", "410 in stream", "nonsense",
        "one word"])  # fmt: skip
async def test_the_rate_of_requests_is_bounded(
    fake: FakeApiServer, api: Api, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    fault.met, fault.times, fault.watch = 0, 10_000, True
    fake.faults.append(fault)
    async with running(make(api)) as store:
        await store.sync()
        await asyncio.sleep(0.25)
    # Backing off from 10 ms to 80 ms at most; without it, there are hundreds.
    assert fake.count("^WATCH") < 30
    assert fake.count("^GET") < 30
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) < 15


async def test_a_bug_does_not_end_the_store(
    fake: FakeApiServer, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make(api)) as store:
        await store.sync()
        await until(lambda: fake.watches)

        def broken(live: Live) -> None:
            monkeypatch.undo()
            raise ZeroDivisionError

        monkeypatch.setattr(store, "_remember", broken)
        fake.put(pod("one"))
        await until(lambda: names(store) == {"one"})
    assert "ZeroDivisionError" in caplog.text


# The same on real connections


Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
EMPTY = whole(b'{"metadata": {"resourceVersion": "5"}, "items": []}')
ADDED = {"type": "ADDED", "object": {**pod("one"), "status": {}}}
ADDED["object"]["metadata"]["resourceVersion"] = "6"  # type: ignore[index]


@pytest.mark.parametrize("end", ["reset", "half open", "truncated", "closes", "502"])
async def test_real_connections_that_break(tmp_path: Path, end: str) -> None:
    watches = 0

    async def answer(first: str, writer: asyncio.StreamWriter) -> None:
        nonlocal watches
        if "watch=true" not in first:
            writer.write(EMPTY)
            return
        watches += 1
        if watches > 2:
            writer.write(HEAD + chunk(json.dumps(ADDED).encode() + b"\n"))
        elif end == "truncated":
            writer.write(HEAD + chunk(b'{"type": "ADD') + b"ff\r\nab")
            writer.close()
        elif end == "closes":
            writer.write(HEAD + chunk(b""))
        elif end == "502":
            writer.write(whole(b"<html/>", "502 Bad Gateway", "text/html"))
        else:
            writer.write(HEAD)
        await writer.drain()
        if end == "reset" and watches <= 2:
            await asyncio.sleep(0.01)
            writer.transport.abort()
        elif watches > 2 or end == "half open":
            await asyncio.sleep(3)

    async with loopback(answer) as url:
        api = connect(tmp_path, url)
        async with running(make(api, idle=0.1)) as store:
            await store.sync()
            await until(lambda: names(store) == {"one"})
        assert watches >= 3
        await api.aclose()


# What is kept


async def test_a_slim_store_holds_no_secret_data(fake: FakeApiServer, api: Api) -> None:
    word = base64.b64encode(b"hush").decode()
    fake.put({**pod("s"), "kind": "Secret", "data": {"k": word}, "spec": {"x": word}})
    async with running(make(api, SECRET, full=False)) as store:
        await store.sync()
        fake.put({**pod("t"), "kind": "Secret", "data": {"k": word}})
        await until(lambda: len(store) == 2)
        for live in store.of_owner("me"):
            assert live.parts == {}
            assert word not in str(live.as_dict())
            assert live.as_dict()["kind"] == "Secret"
    assert all("PartialObjectMetadata" in accept for accept in await _accepts(fake, api))


async def _accepts(fake: FakeApiServer, api: Api) -> list[str]:
    """The Accept headers that a slim store sends."""
    found: list[str] = []

    async def hook(request: httpx2.Request) -> None:
        found.append(request.headers["Accept"])

    api._http.event_hooks["request"].append(hook)
    async with running(make(api, SECRET, full=False)) as store:
        await store.sync()
        await until(lambda: len(found) == 2)
    return found


async def test_no_change_between_look_and_wait_is_missed(fake: FakeApiServer, api: Api) -> None:
    async with running(make(api)) as store:
        await store.sync()
        began = time.monotonic()
        for number in range(100):
            fake.put(pod(f"p{number}"))
            await store._changes.wait_until("me", lambda n=number: store.get("hub", f"p{n}"))  # type: ignore[misc]
        assert time.monotonic() - began < 3
