"""A server that an earlier release started is adopted, stopped and removed by this one.

``data/server_before_folders.json`` is what commit 283ce78, the last before the modules moved into
folders, left behind of the packaged chart: the spawner's state and the objects, as the API server
had them. Port 65432 stands for the one that the server answers on; the Secret's data was replaced.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lightkube_template_spawner.hub.settings import default_chart
from lightkube_template_spawner.templates.helm.library import library_folder
from tests.support.fake_apiserver import FakeApiServer
from tests.support.hub import FakeHub, running_hub

pytestmark = [
    pytest.mark.skipif(library_folder() is None, reason="helm-python-sdk is missing"),
]

LEFT = Path(__file__).parent / "data" / "server_before_folders.json"
POD, CLAIM = (f"{kind}-i--ada-example-org---cfe00dde" for kind in ("jupyter", "claim"))


@pytest.fixture
async def hub(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[FakeHub]:
    """A new hub on the database and the cluster that the earlier release left."""
    async with running_hub(fake, tmp_path, default_chart()) as hub:
        left = json.loads(LEFT.read_text().replace("65432", str(hub.port)))
        for item in left["objects"]:
            for _ in range(2):  # the second time with the UID that is on record
                fake.put(item)
        user = hub.user()
        spawner = hub.prepared(user)
        spawner.orm_spawner.state = left["state"]
        spawner.server.ip, spawner.server.port = "127.0.0.1", hub.port
        hub.db.commit()
        hub.boot()
        yield hub


def recorded(hub: FakeHub) -> dict[str, Any]:
    state: dict[str, Any] = hub.user().spawners[""].get_state()
    return state


async def test_it_is_adopted_with_the_same_pod(hub: FakeHub, fake: FakeApiServer) -> None:
    left = hub.left()
    (pod,) = hub.pods()
    assert await hub.check(hub.user()) is None
    assert hub.left() == left
    assert hub.pods() == [pod]
    assert not [seen for seen in fake.requests if seen.method in ("PATCH", "DELETE")]
    assert hub.user().spawners[""].server.port == hub.port
    assert (recorded(hub)["pod_name"], recorded(hub)["pvc_name"]) == (POD, CLAIM)


async def test_it_is_stopped_and_its_volume_is_used_again(hub: FakeHub) -> None:
    assert await hub.check(hub.user()) is None
    claim = hub.fake.find("PersistentVolumeClaim", "hub", CLAIM)
    await hub.stop(hub.user())
    assert hub.left() == {f"PersistentVolumeClaim/{CLAIM}"}
    await hub.spawn(hub.user())
    again = hub.fake.find("PersistentVolumeClaim", "hub", CLAIM)
    assert claim
    assert again
    assert again["metadata"]["uid"] == claim["metadata"]["uid"]
    assert f"Pod/{POD}" in hub.left()


async def test_it_goes_with_its_user(hub: FakeHub) -> None:
    assert await hub.check(hub.user()) is None
    await hub.stop(hub.user())
    await hub.user().spawners[""].delete_forever()
    assert hub.left() == set()


async def test_it_is_known_to_have_died_while_no_hub_ran(hub: FakeHub, fake: FakeApiServer) -> None:
    fake.remove("Pod", "hub", POD)
    assert await hub.check(hub.user()) is not None
    assert hub.left() == {f"PersistentVolumeClaim/{CLAIM}"}
