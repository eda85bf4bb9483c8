"""Starts, stops, polls, deaths and removals in every order, on the API server in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from jupyterhub.apihandlers import users as hub_handlers

from lightkube_template_spawner.templates import renderer as renderers
from lightkube_template_spawner.templates.helm.library import library_folder
from tests.support.charts import write_chart
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer
from tests.support.hub import FakeHub, local_hub
from tests.support.interleaving import TEMPLATES, Gate, Interleaving, Obj, World

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
pytestmark = pytest.mark.skipif(library_folder() is None, reason="helm-python-sdk is missing")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made
        made.run(renderers.close_renderers())


@pytest.fixture(autouse=True)
def short_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    # The hub gives a cancelled start one second to end.
    short = SimpleNamespace(**vars(asyncio))
    short.sleep = lambda seconds: asyncio.sleep(seconds / 5)
    monkeypatch.setattr(hub_handlers, "asyncio", short)


class InMemory(World):
    username = "ada@example.org"

    def __init__(self, fake: FakeApiServer) -> None:
        self.fake = fake

    def connect(self, folder: Path) -> Any:
        self.gate = Gate(self.fake)
        return connect(folder, transport=self.gate)

    async def objects(self) -> list[Obj]:
        return self.fake.everything()

    async def create(self, manifest: Obj) -> None:
        self.fake.put(manifest)
        if manifest["kind"] == "Pod":
            self.fake.run_pod("hub", manifest["metadata"]["name"])

    async def delete_pod(self, name: str) -> None:
        self.fake.remove("Pod", "hub", name)

    async def fail_pod(self, name: str) -> None:
        state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
        statuses = [{"name": "main", "state": state}]
        self.fake.run_pod("hub", name, phase="Failed", conditions=[], containerStatuses=statuses)


@asynccontextmanager
async def in_memory(folder: Path) -> AsyncIterator[World]:
    fake = FakeApiServer("hub")
    world = InMemory(fake)
    make = partial(FakeHub, connect=partial(world.connect, folder), fake=fake, folder=folder)
    config = {"kubeconfig": str(folder / "kubeconfig"), "template_path": str(folder / "chart")}
    async with local_hub(make, **config, http_timeout=1) as hub:
        world.hub = hub
        yield world


@pytest.mark.filterwarnings("default::sqlalchemy.exc.SAWarning")
@pytest.mark.timeout(600)
def test_every_order(runner: asyncio.Runner, tmp_path: Path) -> None:
    write_chart(tmp_path / "chart", TEMPLATES)
    run_state_machine_as_test(
        partial(Interleaving, runner.run, partial(in_memory, tmp_path)),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=12,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
