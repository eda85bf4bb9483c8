"""Renamed servers and users, names given to new people, a lost database: the right volume, always.

Through JupyterHub's own REST API; the server renames are JupyterHub 6's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faults import Faults
from e2e.harness.hub import Hub, user_path
from e2e.harness.kube import Kube

# A volume of the user's, mounted, and one of the server's, which goes with a named server.
SERVERS_CLAIM = light.claim("own-{{ .Values.escaped_user_server }}").replace(
    "user-deleted", "server-deleted"
)
MOUNT = light.pod().replace(
    "  containers:",
    "  volumes: [{name: home, persistentVolumeClaim: "
    f"{{claimName: '{light.CLAIM_NAME}'}}}}]\n  containers:",
)

LABELS = ("lightkube-template-spawner/owner", "hub.jupyter.org/servername")


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("chart")
    return light.chart(folder, pod=MOUNT, claim=light.claim(), own=SERVERS_CLAIM)


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub, chart: str) -> AsyncGenerator[Hub]:
    async with make_hub(template_path=chart, poll_interval=3600) as hub:
        yield hub
        await hub.delete_users()


class Person:
    """Somebody's servers, by the name that the hub knows now."""

    def __init__(self, hub: Hub, kube: Kube, space: str, name: str) -> None:
        self.hub, self.kube, self.space, self.name = hub, kube, space, name

    async def start(self, server: str = "") -> dict[str, str]:
        """What the running server's pod mounts and what belongs to it, by name: the UIDs."""
        before = {pod["metadata"]["uid"] for pod in self.kube.list("pods", self.space)}
        async with signed_in(self.hub, self.name) as user:
            await user.run_server(server)
        (pod,) = [
            pod
            for pod in self.kube.list("pods", self.space)
            if pod["metadata"]["uid"] not in before
        ]
        home = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        labels = pod["metadata"]["labels"]
        mine = {
            claim["metadata"]["name"]: claim["metadata"]["uid"]
            for claim in self.kube.list("pvc", self.space)
            if claim["metadata"]["name"] == home
            or labels.items() >= {k: claim["metadata"]["labels"].get(k) for k in LABELS}.items()
        }
        assert home in mine
        return mine

    async def stop(self, server: str = "") -> None:
        async with signed_in(self.hub, self.name) as user:
            await user.stop_server(server)

    async def once(self, server: str = "") -> dict[str, str]:
        found = await self.start(server)
        await self.stop(server)
        return found

    async def rename(self, new: str) -> Person:
        """Rename the user and return the next one to be given the former name."""
        await self.hub.api("PATCH", user_path(self.name), {"name": new})
        namesake = Person(self.hub, self.kube, self.space, self.name)
        self.name = new
        return namesake

    async def rename_server(self, server: str, new: str) -> None:
        await self.hub.api("PATCH", user_path(self.name, "servers", server), {"name": new})

    async def remove_server(self, server: str) -> None:
        async with signed_in(self.hub, self.name) as user:
            await user.delete_server(server)


def claims(kube: Kube, space: str) -> set[str]:
    return {claim["metadata"]["uid"] for claim in kube.list("pvc", space)}


@pytest.mark.parametrize("first", ["", "gpu"], ids=["default", "named"])
async def test_a_renamed_server_keeps_its_volumes(
    hub: Hub, kube: Kube, space: str, faults: Faults, first: str
) -> None:
    for turn in faults(f"a {'named' if first else 'default'} server is renamed"):
        person = Person(hub, kube, space, f"server-{first}{turn}")
        volumes = await person.once(first)
        await person.rename_server(first, "cpu")
        assert await person.once("cpu") == volumes
        again = await person.once(first)  # a new server of the former name: its home, all its own
        assert len(set(volumes.values()) & set(again.values())) == 1
        await person.remove_server("cpu")
        left = claims(kube, space)
        assert set(again.values()) <= left
        assert len(set(volumes.values()) & left) == 1
        await hub.delete_user(person.name)
        assert not claims(kube, space)


async def test_a_renamed_user_keeps_the_volume_and_the_namesake_gets_another(
    hub: Hub, kube: Kube, space: str, faults: Faults
) -> None:
    for turn in faults("a user is renamed, and the name is given to a new person"):
        person = Person(hub, kube, space, f"ada{turn}")
        volumes = await person.once()
        namesake = await person.rename(f"countess{turn}")
        theirs = await namesake.once()
        assert not set(theirs.values()) & set(volumes.values())
        assert await person.once() == volumes
        late = await person.once("late")  # a server that was never started under the old name
        assert set(late.values()) & set(volumes.values())
        assert not set(late.values()) & set(theirs.values())
        await hub.delete_user(namesake.name)
        assert claims(kube, space) == {*volumes.values(), *late.values()}
        assert await person.once() == volumes
        await hub.delete_user(person.name)
        assert not claims(kube, space)


async def test_who_only_had_a_removed_server_keeps_the_volume_through_a_rename(
    hub: Hub, kube: Kube, space: str, faults: Faults
) -> None:
    for turn in faults("the only named server is removed, then the user renamed"):
        person = Person(hub, kube, space, f"named{turn}")
        volumes = await person.once("gpu")
        await person.remove_server("gpu")
        (home,) = claims(kube, space) & set(volumes.values())
        namesake = await person.rename(f"renamed{turn}")
        assert home not in (await namesake.once()).values()
        assert home in (await person.once()).values()
        for one in (namesake, person):
            await hub.delete_user(one.name)
        assert not claims(kube, space)


async def test_a_lost_database(hub: Hub, kube: Kube, space: str, faults: Faults) -> None:
    """All users come back, in another order, so with one another's numbers."""
    names = ["lost-ada", "lost-bob"]
    for _ in faults("the hub's database is lost; users come back in another order"):
        people = [Person(hub, kube, space, name) for name in names]
        volumes = {person.name: await person.once() for person in people}
        await hub.stop()
        (hub.folder / "jupyterhub.sqlite").unlink()
        await hub.start()
        for person in reversed(people):
            assert await person.once() == volumes[person.name]
        for person in people:
            await hub.delete_user(person.name)
        assert not claims(kube, space)


async def test_lost_notes_do_not_give_a_volume_to_a_namesake(
    hub: Hub, kube: Kube, space: str, faults: Faults
) -> None:
    """The objects themselves name the user: the hub's notes on the servers are gone."""
    for turn in faults("a user's saved state is lost, the user renamed, the name given away"):
        person = Person(hub, kube, space, f"noted{turn}")
        volumes = await person.once()
        namesake = await person.rename(f"elsewhere{turn}")
        await hub.stop()
        with sqlite3.connect(hub.folder / "jupyterhub.sqlite") as database:
            database.execute("UPDATE spawners SET state = '{}'")
        await hub.start()
        log = len(hub.log.read_text())
        theirs = await namesake.once()
        await hub.wait_for_log("still goes by the name", start=log)
        assert not set(theirs.values()) & set(volumes.values())
        await hub.delete_user(namesake.name)
        assert claims(kube, space) == set(volumes.values())
        await hub.delete_user(person.name)
        kube("delete", "pvc", "--all", "-n", space)  # nothing knows whose they were
