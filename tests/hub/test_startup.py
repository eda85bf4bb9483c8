"""What a hub that has started says of objects that it does not know."""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyterhub import orm

from lightkube_template_spawner.cli import orphans
from lightkube_template_spawner.hub import startup
from lightkube_template_spawner.lifecycle.orphans import Roster
from lightkube_template_spawner.objects.identity import Policy
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from tests.support.charts import write_chart
from tests.support.fake_apiserver import FakeApiServer, Fault, Seen
from tests.support.hub import INSTANCE, FakeHub, running_hub
from tests.support.objects import LIFECYCLE, ME, YOU, manifest
from tests.support.timing import until


async def report(hub: FakeHub, **settings: object) -> list[str]:
    spawner = LightkubeTemplateSpawner(config=hub.config, **settings)
    found = await startup.report(spawner, hub.db, logging.getLogger("hub"))
    return [f"{o.kind.kind}/{o.meta.namespace}/{o.meta.name}" for o in found.orphans]


async def test_it_names_the_first_few_and_counts_all(
    fake: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(startup, "_SHOWN", 2)
    async with running_hub(fake, tmp_path, tmp_path) as hub:
        hub.user(ME.username)
        fake.put(manifest("PersistentVolumeClaim", "mine", ME, Policy.USER_DELETED))
        assert await report(hub) == []
        assert "belong to nobody" not in caplog.text
        for name in "abc":
            fake.put(manifest("Secret", name, YOU))
        elsewhere = manifest("Secret", "d", YOU)
        elsewhere["metadata"]["namespace"] = "other"
        fake.put(elsewhere)
        assert await report(hub) == [f"Secret/hub/{name}" for name in "abc"]
        assert len(await report(hub, extra_namespaces=["other", "user-*"])) == 4
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(":")[0] for line in lines[:2]] == ["Orphan", "Orphan"]
    assert lines[2].startswith("3 objects of instance 'i'")
    assert len(fake.everything()) == 5


async def test_the_warning_has_the_command_that_looks_at_the_same(
    fake: FakeApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_hub(fake, tmp_path, tmp_path) as hub:
        fake.put(manifest("Secret", "theirs", YOU))
        await report(hub, extra_namespaces=["other", "user-*"], cluster_kinds=["v1/Namespace"])
        kubeconfig = hub.kubeconfig
    [line] = [r.getMessage() for r in caplog.records if "look with" in r.getMessage()]
    assert line.startswith("1 object of instance 'i' in the cluster belongs to nobody")
    words = shlex.split(line.partition("`")[2].partition("`")[0])
    assert words[0] == "lightkube-template-spawner"
    options = orphans._parser().parse_args(words[1:])
    assert (options.instance, options.namespace) == ("i", ["hub", "other"])
    assert (options.kubeconfig, options.cluster_kind) == (kubeconfig, ["v1/Namespace"])


async def test_a_server_that_runs_by_the_database_is_no_orphan(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    async with running_hub(fake, tmp_path, tmp_path) as hub:
        user = hub.user(ME.username)
        fake.put(manifest("Secret", "mine", ME))
        assert await report(hub) == ["Secret/hub/mine"]
        hub.prepared(user)
        assert await report(hub) == []


@pytest.mark.parametrize("page", [1, 2, 5])
async def test_the_database_is_read_in_pieces(
    fake: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(startup, "_PAGE", page)
    async with running_hub(fake, tmp_path, tmp_path) as hub:
        names = [f"u{n}" for n in range(5)]
        for name in names:
            hub.add_server(hub.user(name), "work")
        hub.db.delete(hub.db.query(orm.User).filter_by(name="u2").one())
        hub.db.commit()
        known = await startup.known_to(hub.db, Roster(INSTANCE, LIFECYCLE))
        for name in names:
            there = replace(ME, username=name, servername="work")
            labels = {**there.server_labels, LIFECYCLE: Policy.SERVER_DELETED.value}
            assert bool(known.why_orphan(labels)) == (name == "u2")


async def test_outside_a_hub_the_class_is_just_a_class() -> None:
    before = asyncio.all_tasks()
    startup.when_hub_has_started(LightkubeTemplateSpawner)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({"namespace": "absent"}, ["'absent' does not exist", "Looked for orphans among"]),
        (
            {"mem_limit": "2GB"},
            [
                "LightkubeTemplateSpawner: c.LightkubeTemplateSpawner.mem_limit cannot be used",
                "What a former hub left was not looked for: c.LightkubeTemplateSpawner.mem_limit",
            ],
        ),
    ],
)
async def test_a_hub_that_has_started_is_looked_at_once(
    fake: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, settings: dict[str, str], lines: list[str],
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    monkeypatch.setattr(startup, "_PATIENCE", 0.01)
    async with running_hub(fake, tmp_path, tmp_path, **settings) as hub:
        app = SimpleNamespace(
            http_server=None, spawner_class=LightkubeTemplateSpawner, config=hub.config,
            db=hub.db, users=hub.users, log=logging.getLogger("hub"),
        )  # fmt: skip
        process = SimpleNamespace(initialized=lambda: True, instance=lambda: app)
        monkeypatch.setitem(sys.modules, "jupyterhub.app", SimpleNamespace(JupyterHub=process))
        for _ in range(2):
            startup.when_hub_has_started(LightkubeTemplateSpawner)
        await asyncio.sleep(0.05)
        assert caplog.records == []
        app.http_server = "up"
        await until(lambda: all(line in caplog.text for line in lines))
        monkeypatch.delitem(sys.modules, "jupyterhub.app")
        await asyncio.sleep(0.05)
    said = [record.getMessage() for record in caplog.records]
    assert all(sum(line in text for text in said) == 1 for line in lines)
    assert not any(record.exc_info for record in caplog.records)


CHART = """
apiVersion: v1
kind: Secret
metadata: {name: first, annotations: {kubetemplatespawner/lifecycle: server-stopped}}
---
apiVersion: v1
kind: Pod
metadata:
  name: first
  annotations:
    kubetemplatespawner/lifecycle: server-stopped
    kubetemplatespawner/connection: "true"
spec: {containers: [{name: a, image: b}]}
"""


async def test_a_stop_that_a_hub_could_not_finish_is_finished_by_the_next(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    chart = write_chart(tmp_path / "chart", CHART)
    async with running_hub(fake, tmp_path, chart) as hub:
        user = hub.user(ME.username)
        await hub.spawn(user)
        reached = asyncio.Event()

        def secrets_are_deleted(seen: Seen, moment: str) -> None:
            if seen.method == "DELETE" and "/secrets" in seen.path and moment == "arrived":
                reached.set()

        hub.hooks.append(secrets_are_deleted)
        fake.faults.append(Fault(method="DELETE", path="/secrets", times=99))  # hangs
        stop = asyncio.create_task(hub.stop(user))
        await reached.wait()
        stop.cancel()  # as a hub does with all its tasks at SIGTERM
        await asyncio.wait([stop])
        fake.faults.clear()
        await hub.restart()
        assert hub.left() == {"Secret/first"}
        app = SimpleNamespace(users=hub.users, db=hub.db, log=logging.getLogger("hub"))
        spawner = hub.users[user.id].spawners[""]
        finishing = asyncio.create_task(startup.finish_stops(app))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert spawner.pending == "check"
        await finishing
        assert not spawner.pending
        assert hub.left() == set()
        await hub.restart()
        before = len(fake.requests)
        await startup.finish_stops(SimpleNamespace(users=hub.users, db=hub.db, log=app.log))
        assert len(fake.requests) == before
        await hub.spawn(hub.users[user.id])
