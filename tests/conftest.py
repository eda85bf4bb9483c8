"""One event loop kind, and a fresh API server in memory, for the tests that ask for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lightkube_template_spawner.api import Api
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def fake() -> FakeApiServer:
    return FakeApiServer("hub", "other")


@pytest.fixture
async def api(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[Api]:
    made = connect(tmp_path, transport=fake)
    yield made
    await made.aclose()
