"""One event loop kind, and a fresh API server in memory, for the tests that ask for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lightkube_template_spawner.cluster.api import Api
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.timing import Timing
from lightkube_template_spawner.templates import renderer as renderers
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer
from tests.support.objects import ME
from tests.support.timing import QUICK


@pytest.fixture(scope="module", autouse=True)
async def helm_worker() -> AsyncIterator[None]:
    """All tests of a file share Helm's worker, which takes longest to start; it ends with them."""
    yield
    await renderers.close_renderers()


@pytest.fixture
def fake() -> FakeApiServer:
    return FakeApiServer("hub", "other")


@pytest.fixture
async def api(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[Api]:
    made = connect(tmp_path, transport=fake)
    yield made
    await made.aclose()


@pytest.fixture
def quick() -> Timing:
    """A whole hub's pauses in milliseconds."""
    return QUICK


@pytest.fixture
async def cluster(fake: FakeApiServer, tmp_path: Path, quick: Timing) -> AsyncIterator[Cluster]:
    log = logging.getLogger("test")
    made = Cluster(connect(tmp_path, transport=fake), ME.instance, log, quick)
    await asyncio.sleep(0)
    yield made
    await made.aclose()
