"""A server that an earlier release started, on a real cluster: adopted, stopped, removed.

Its objects and the hub's state are those on record in ``tests/data/server_before_folders.json``,
which ``tests/test_upgrade.py`` describes; a small web server takes the place of the notebook's.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from e2e.cluster.model import TINY_IMAGE
from e2e.conftest import MakeHub, signed_in
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube

LEFT = Path(__file__).parents[2] / "tests" / "data" / "server_before_folders.json"
ADA, PORT = "ada@example.org", 8888
POD, CLAIM = (f"{kind}-i--ada-example-org---cfe00dde" for kind in ("jupyter", "claim"))
FOLDER = f"/tmp/www/user/{ADA}"
SERVE = f"mkdir -p {FOLDER}; echo old > {FOLDER}/api; exec httpd -f -p {PORT} -h /tmp/www"
FROM_THE_CLUSTER = ("uid", "creationTimestamp", "managedFields", "resourceVersion", "generation")


def left(space: str, userid: int) -> dict[str, Any]:
    """State and objects of the earlier release, for this namespace and this user's number."""
    text = LEFT.read_text().replace('"hub"', f'"{space}"').replace("65432", str(PORT))
    text = text.replace('userid": "1"', f'userid": "{userid}"')
    record: dict[str, Any] = json.loads(text)
    record["state"]["lightkube_template_spawner"]["identity"]["userid"] = userid
    return record


def recreate(kube: Kube, item: dict[str, Any]) -> None:
    """Apply an object as the earlier release did, by the same field manager."""
    metadata = item["metadata"]
    manager = metadata["managedFields"][0]["manager"]
    kept = {key: value for key, value in metadata.items() if key not in FROM_THE_CLUSTER}
    manifest = {**item, "metadata": kept}
    manifest.pop("status", None)
    if item["kind"] == "Pod":
        item["spec"].pop("nodeName")
        item["spec"]["containers"][0].update(image=TINY_IMAGE, command=["sh", "-c"], args=[SERVE])
    kube("apply", "--server-side", f"--field-manager={manager}", "-f", "-", given=manifest)


def versions(kube: Kube, space: str) -> dict[str, tuple[str, str]]:
    """Every object's UID and resource version: any write changes the latter."""
    items = kube.list("pods,secrets,persistentvolumeclaims", space, "app=jupyterhub")
    metadata = {f"{item['kind']}/{item['metadata']['name']}": item["metadata"] for item in items}
    return {name: (one["uid"], one["resourceVersion"]) for name, one in metadata.items()}


async def leave_server(hub: Hub, kube: Kube, space: str) -> None:
    """Bring cluster and database to where the earlier release left them, while no hub runs."""
    await hub.stop()
    with sqlite3.connect(hub.folder / "jupyterhub.sqlite") as database:
        (userid,) = database.execute("SELECT id FROM users WHERE name = ?", [ADA]).fetchone()
        record = left(space, userid)
        for item in sorted(record["objects"], key=lambda item: str(item["kind"]), reverse=True):
            recreate(kube, item)
        kube("wait", f"pod/{POD}", "-n", space, "--for=condition=Ready", "--timeout=60s")
        pod = kube.get("pod", space, POD)
        assert pod
        state, address = record["state"], pod["status"]["podIP"]
        state["lightkube_template_spawner"]["url"] = f"http://{address}:{PORT}"
        state["lightkube_template_spawner"]["connection"]["uid"] = pod["metadata"]["uid"]
        server = database.execute(
            "INSERT INTO servers (proto, ip, port, base_url, cookie_name) VALUES (?, ?, ?, ?, ?)",
            ["http", address, PORT, f"/user/{ADA}/", "cookie"],
        )
        database.execute(
            "UPDATE spawners SET server_id = ?, state = ? WHERE user_id = ? AND name = ''",
            [server.lastrowid, json.dumps(state), userid],
        )


async def test_a_server_of_an_earlier_release(make_hub: MakeHub, kube: Kube, space: str) -> None:
    async with make_hub(instance_name="i") as hub, signed_in(hub, ADA) as user:
        await leave_server(hub, kube, space)
        before = versions(kube, space)
        assert len(before) == 3
        await hub.start()
        assert (await hub.users())[ADA][""]["ready"]
        await user.page("/hub/home")  # polls
        assert (await user.servers())[""]["ready"]
        assert (await user.page(f"/user/{ADA}/api")).text == "old\n"
        assert versions(kube, space) == before

        await user.stop_server()
        volume = f"PersistentVolumeClaim/{CLAIM}"
        assert kube.owned(space) == [volume]
        await user.run_server()
        await user.lab()
        after = versions(kube, space)
        assert after.keys() == before.keys()
        assert after[volume][0] == before[volume][0]
        assert after[f"Pod/{POD}"] != before[f"Pod/{POD}"]

        await hub.delete_user(ADA)
        assert kube.owned(space) == []
