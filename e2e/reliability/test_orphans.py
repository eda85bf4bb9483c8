"""Objects whose user or server the hub does not know: reported at hub start and by a command."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from lightkube_template_spawner.objects.identity import Identity

pytestmark = pytest.mark.timeout(REPEAT * 180)

KINDS = "pods,secrets,persistentvolumeclaims"
LIFECYCLE = "kubetemplatespawner/lifecycle"
COMMAND = [sys.executable, "-m", "lightkube_template_spawner", "orphans"]
# As the help of the command has it: a service of the hub, with the least that it needs.
CONFIG = """
c.Spawner.poll_interval = 3600
c.JupyterHub.services.append({{"name": "orphans", "command": {command!r}}})
c.JupyterHub.load_roles = [
    {{
        "name": "orphans",
        "services": ["orphans"],
        "scopes": ["list:users", "read:servers", "admin:server_state"],
    }}
]
"""


@pytest.fixture(scope="module")
async def hub(
    make_hub: MakeHub, space: str, kube: Kube, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Hub]:
    folder = tmp_path_factory.mktemp("chart")
    chart = light.chart(folder, claim=light.claim(), secret=light.secret(), pod=light.pod())
    command = [*COMMAND, "--instance", "jupyter", "-n", space, "--min-age", "0s"]
    command += ["--every", "1h", "--kubeconfig", str(kube.cluster.kubeconfig)]
    config = CONFIG.format(command=command)
    async with make_hub(config, template_path=chart) as hub:
        yield hub
        await hub.delete_users()


async def orphans(
    hub: Hub, kube: Kube, space: str, *words: str, **environment: str
) -> tuple[int, list[str], str]:
    """Exit status, what was found as `Kind/name`, and standard error."""
    given = {"JUPYTERHUB_API_URL": f"{hub.url}/hub/api", "JUPYTERHUB_API_TOKEN": hub.api_token}
    options = ["--instance", "jupyter", "-n", space, "--min-age", "0s", "-o", "json"]
    options += ["--kubeconfig", str(kube.cluster.kubeconfig), *words]
    done = await anyio.run_process(
        [*COMMAND, *options], env={**os.environ, **given, **environment}, check=False
    )
    found = json.loads(done.stdout)["orphans"] if done.stdout else []
    return done.returncode, [f"{o['kind']}/{o['name']}" for o in found], done.stderr.decode()


def everything(user: str) -> list[str]:
    return [f"PersistentVolumeClaim/claim-{user}", f"Pod/jupyter-{user}", f"Secret/jupyter-{user}"]


def uids(kube: Kube, space: str) -> dict[str, str]:
    """What is in the namespace, but the cluster's own."""
    found = {f"{i['kind']}/{i['metadata']['name']}": i for i in kube.list(KINDS, space)}
    return {name: item["metadata"]["uid"] for name, item in found.items()}


def secret_of(space: str, name: str, labels: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": space, "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


async def change_database(hub: Hub, *statements: str) -> None:
    """What an administrator does by hand while the hub is down; the file goes if there is none."""
    await hub.stop()
    file: Path = hub.folder / "jupyterhub.sqlite"
    if not statements:
        file.unlink()
    else:
        with sqlite3.connect(file) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
    await hub.start()


async def test_objects_of_a_user_who_is_gone_from_the_database(
    hub: Hub, kube: Kube, space: str, faults: Faults
) -> None:
    mine = Identity("jupyter", "stays")
    foreign = {
        "kubespawners": {"app.kubernetes.io/instance": "jupyter", **KUBESPAWNER},
        "another-hubs": {**Identity("other", "goes").server_labels, LIFECYCLE: "server-stopped"},
    }
    for name, labels in foreign.items():
        kube.create(secret_of(space, name, labels))
    async with signed_in(hub, "stays") as stays:
        await stays.run_server()
        for _ in faults("a user is deleted from the database by hand"):
            async with signed_in(hub, "goes") as goes:
                await goes.run_server()
            labels = {**mine.server_labels, "hub.jupyter.org/servername": "left"}
            kube.create(secret_of(space, "leftover", {**labels, LIFECYCLE: "server-stopped"}))
            before = uids(kube, space)
            mark = len(hub.log.read_text())
            await change_database(
                hub,
                "DELETE FROM spawners WHERE user_id = (SELECT id FROM users WHERE name = 'goes')",
                "DELETE FROM users WHERE name = 'goes'",
            )
            for name in everything("goes"):
                kind, _, rest = name.partition("/")
                await hub.wait_for_log(f"Orphan: {kind}/{space}/{rest}, made for user", start=mark)
            await hub.wait_for_log("Orphan: Secret/[^ ]*/leftover.*no such server", start=mark)
            await hub.wait_for_log("4 objects of instance 'jupyter'", start=mark)
            await hub.wait_for_log("\norphans: 4 found, 4 left", start=mark)  # the service
            expected = sorted([*everything("goes"), "Secret/leftover"])
            status, found, _ = await orphans(hub, kube, space)
            assert (status, sorted(found)) == (1, expected)
            assert uids(kube, space) == before
            status, found, _ = await orphans(hub, kube, space, "--delete")
            assert (status, sorted(found)) == (1, expected)
            kept = {"PersistentVolumeClaim/claim-goes"}
            gone = set(expected) - kept
            assert uids(kube, space) == {k: v for k, v in before.items() if k not in gone}
            status, found, _ = await orphans(hub, kube, space, "--delete", "--retained")
            assert (status, set(found)) == (0, kept)
            after = {k: v for k, v in before.items() if k not in expected}
            assert uids(kube, space) == after
            assert {"Secret/kubespawners", "Secret/another-hubs"} < set(after)
        assert (await stays.page("/user/stays/")).status_code == 404  # it answers: it still runs
        await stays.stop_server()
    assert (await orphans(hub, kube, space))[:2] == (0, [])


KUBESPAWNER = {"app": "jupyterhub", "component": "singleuser-server", "heritage": "jupyterhub"}


async def test_a_lost_database_costs_no_volume(
    hub: Hub, kube: Kube, space: str, faults: Faults
) -> None:
    async with signed_in(hub, "returns") as user:
        await user.run_server()
    for _ in faults("the hub's database is lost"):
        before = uids(kube, space)
        mark = len(hub.log.read_text())
        await change_database(hub)
        await hub.wait_for_log(f"Orphan: Pod/{space}/jupyter-returns", start=mark)
        status, found, error = await orphans(hub, kube, space, "--delete", "--retained")
        assert (status, set(everything("returns")) <= set(found)) == (1, True)
        assert "no server of instance 'jupyter' on record" in error
        assert uids(kube, space) == before
        async with signed_in(hub, "returns") as user:
            await user.run_server()
            after = uids(kube, space)
            volume, pod, secret = everything("returns")
            assert after[volume] == before[volume]
            assert after[pod] != before[pod]
            assert after[secret] != before[secret]
            _, found, _ = await orphans(hub, kube, space)
            assert not set(everything("returns")) & set(found)


async def test_nothing_is_deleted_on_doubt(
    hub: Hub, kube: Kube, space: str, faults: Faults
) -> None:
    labels = {**Identity("jupyter", "nobody").server_labels, LIFECYCLE: "server-stopped"}
    kube.create(secret_of(space, "doubtful", labels))
    little = await hub.api("POST", "users/admin/tokens", {"scopes": ["list:users"]})
    doubts = {
        "no answer from the hub": {"JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api"},
        "the hub answered 403": {"JUPYTERHUB_API_TOKEN": "wrong"},
        "the token lacks admin:server_state, read:servers": {
            "JUPYTERHUB_API_TOKEN": little["token"]
        },
    }
    for _ in faults("the hub cannot be asked, or does not tell all"):
        for message, environment in doubts.items():
            status, found, error = await orphans(
                hub, kube, space, "--delete", "--wait", "1s", **environment
            )
            assert (status, found) == (2, [])
            assert message in error
        assert "Secret/doubtful" in uids(kube, space)
    assert (await orphans(hub, kube, space, "--delete"))[0] in (0, 1)
    assert "Secret/doubtful" not in uids(kube, space)
