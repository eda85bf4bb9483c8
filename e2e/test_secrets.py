"""A server's API token is in its Secret and in its own process, and nowhere else."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from e2e import light
from e2e.conftest import MakeHub
from e2e.hub import Hub
from e2e.kube import Kube
from e2e.user import HubUser, ServerFailedError

pytestmark = pytest.mark.anyio

# Hooks know the token before anything can fail; the file is the test's own.
CONFIG = """
c.JupyterHub.log_level = "DEBUG"
def tell_the_test(spawner):
    for name, value in spawner.user_options.items():
        setattr(spawner, name, value)
    with open({path!r}, "w") as file:
        file.write(spawner.api_token)
c.LightkubeTemplateSpawner.pre_spawn_hook = tell_the_test
"""
TOKEN = '{{ index .Values.env "JUPYTERHUB_API_TOKEN" }}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's own folder for temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told") / "token"


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub, folder: Path, told: Path) -> AsyncGenerator[Hub]:
    config = CONFIG.format(path=str(told))
    async with make_hub(config, environment={"TMPDIR": str(folder)}) as hub:
        yield hub
        for name in await hub.users():
            await hub.delete_user(name)


@pytest.fixture(scope="module")
async def user(hub: Hub) -> AsyncGenerator[HubUser]:
    async with HubUser(hub.url) as user:
        await user.login("anna", hub.user_password)
        yield user
        if await user.servers():
            await user.stop_server()


class Search:
    """For one token, as it is and as Kubernetes writes it in a Secret."""

    def __init__(self, token: str) -> None:
        assert len(token) > 20
        self.forms = [token.encode(), base64.b64encode(token.encode()).rstrip(b"=")]

    def found_in(self, content: bytes | str) -> bool:
        data = content.encode() if isinstance(content, str) else content
        return any(form in data for form in self.forms)

    def files(self, *folders: Path) -> list[Path]:
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return [path for path in found if self.found_in(path.read_bytes())]

    def command_lines(self) -> list[str]:
        """What `ps` shows to everybody on this machine."""
        lines = ((process, _read(process / "cmdline")) for process in Path("/proc").glob("[0-9]*"))
        return [process.name for process, line in lines if self.found_in(line)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


def children(folder: Path) -> Iterator[Path]:
    """The processes that were started by the one that runs in `folder`."""
    processes = list(Path("/proc").glob("[0-9]*"))
    parents = {process.name for process in processes if _runs_in(process, folder)}
    for process in processes:
        words = _read(process / "stat").rpartition(b")")[2].split()
        if words and words[1].decode() in parents:
            yield process


def _runs_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False


def dump(database: Path) -> str:
    with sqlite3.connect(database) as connection:
        return "\n".join(connection.iterdump())


async def test_the_token_is_in_its_secret_only(
    hub: Hub, user: HubUser, kube: Kube, space: str, folder: Path, told: Path
) -> None:
    """With the default chart, while the server runs."""
    await user.start_server()
    await user.wait_ready()
    (secret,) = kube.list("secrets", space)
    token = base64.b64decode(secret["data"]["JUPYTERHUB_API_TOKEN"]).decode()
    search = Search(token)
    # The search finds it where it may be, so it would find it elsewhere.
    assert token == told.read_text()
    assert search.found_in(json.dumps(secret))
    assert search.files(told.parent) == [told]
    assert token in await user.run_code("import os; os.environ['JUPYTERHUB_API_TOKEN']")

    objects = kube.list("pods,pvc,configmaps,events", space)
    assert {"Pod", "PersistentVolumeClaim", "Event"} <= {item["kind"] for item in objects}
    for item in objects:
        assert not search.found_in(json.dumps(item)), item["metadata"]["name"]
    text = dump(hub.folder / "jupyterhub.sqlite")
    assert '"lightkube_template_spawner"' in text
    assert not search.found_in(text)
    assert "\n[D " in hub.log.read_text()
    assert search.files(hub.folder, folder) == []
    assert search.command_lines() == []
    workers = [process for process in children(hub.folder) if b"helm" in _read(process / "cmdline")]
    assert workers
    for worker in workers:
        environment = _read(worker / "environ")
        assert environment
        assert not search.found_in(environment)
    await user.stop_server()
    assert search.files(hub.folder, folder) == []


@pytest.mark.parametrize(
    ("templates", "reason"),
    [
        ({"pod": light.pod(), "other": "{{ fail (toJson .Values.env) }}"}, "JUPYTERHUB_API_TOKEN"),
        ({"pod": light.pod(name=f"a_{TOKEN}")}, "its name may hold"),
        (
            {"pod": light.pod().replace("containers:", f"hostname: _{TOKEN}\n  containers:")},
            "was refused",
        ),
    ],
    ids=["the template", "the contract", "the API server"],
)
async def test_what_refuses_a_start_does_not_tell_the_token(
    hub: Hub,
    user: HubUser,
    folder: Path,
    told: Path,
    tmp_path: Path,
    templates: dict[str, str],
    reason: str,
) -> None:
    """Templates that put the token where the error message repeats it."""
    await user.start_server(options={"template_path": light.chart(tmp_path, **templates)})
    with pytest.raises(ServerFailedError, match=reason) as failed:
        await user.wait_ready()
    search = Search(told.read_text())
    assert not search.found_in(str(failed.value))
    assert not search.found_in(json.dumps(failed.value.events))
    page = await user.page(f"/hub/spawn-pending/{user.name}")
    assert reason in page.text
    assert not search.found_in(page.text)
    assert search.files(hub.folder, folder) == []
