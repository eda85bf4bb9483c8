"""One event loop kind, and a fresh API server in memory, for the tests that ask for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lightkube_template_spawner.cluster import events, reflector
from lightkube_template_spawner.cluster import retry as patience
from lightkube_template_spawner.cluster.api import Api
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.lifecycle import removal
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer
from tests.support.objects import ME


@pytest.fixture
def fake() -> FakeApiServer:
    return FakeApiServer("hub", "other")


@pytest.fixture
async def api(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[Api]:
    made = connect(tmp_path, transport=fake)
    yield made
    await made.aclose()


@pytest.fixture
async def cluster(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(connect(tmp_path, transport=fake), ME.instance, logging.getLogger("test"))
    await asyncio.sleep(0)
    yield made
    await made.aclose()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole hub's pauses in milliseconds."""
    monkeypatch.setattr(patience, "_BACKOFF", (0.001, 0.001))
    monkeypatch.setattr(events, "_PAUSE", (0.01, 0.01))
    monkeypatch.setattr(events, "_LINGER", 0.01)
    monkeypatch.setattr(reflector, "_BACKOFF", (0.02, 0.08))
    monkeypatch.setattr(removal, "_CONFIRM", 0.01)
