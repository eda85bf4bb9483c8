"""The harness itself, against JupyterHub's own local-process spawner: no cluster is needed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import anyio
import pytest

from e2e.cluster.model import cache_folder
from e2e.harness.hub import ADMIN, Hub
from e2e.harness.proxy import install_proxy
from e2e.harness.user import CodeFailedError, HubUser, ServerFailedError

LOCAL = """
import os, sys
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = os.getcwd() + "/homes/{username}"
c.LocalProcessSpawner.interrupt_timeout = 1
c.Spawner.args = ["--allow-root"]
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
"""
BROKEN = LOCAL + 'c.Spawner.cmd = ["/does/not/exist"]\n'
NAMES = ["Ünï çødé+@x.org", "x" * 60, 'a"b: {c}']


def report(text: str) -> None:
    print(text, flush=True)


@pytest.fixture(scope="session")
def proxy_command() -> list[str]:
    return install_proxy(cache_folder(), report)


@pytest.fixture
async def hub(proxy_command: list[str]) -> AsyncGenerator[Hub]:
    async with Hub(LOCAL, proxy_command=proxy_command) as hub:
        report(f"hub ready in {hub.ready_seconds:.1f} s")
        yield hub
        await hub.delete_users()  # a failed test leaves servers, and they outlive their hub


async def test_a_user_works_while_the_hub_dies(hub: Hub) -> None:
    async with HubUser(hub.url) as user:
        await user.login(NAMES[0], hub.user_password)
        begun = time.monotonic()
        await user.start_server()
        events = await user.wait_ready()
        report(f"server ready in {time.monotonic() - begun:.1f} s, {len(events)} events")
        assert "JupyterLab" in (await user.lab()).text
        assert await user.run_code("6*7") == "42"
        assert await user.run_code("print('a'); print('b')") == "a\nb"
        with pytest.raises(CodeFailedError, match="ZeroDivisionError"):
            await user.run_code("1/0")
        await hub.kill()
        assert await user.run_code("6*7") == "42"
        await hub.start()
        report(f"hub back in {hub.ready_seconds:.1f} s")
        assert await user.run_code("6*7") == "42"
        await user.stop_server()
        assert (await hub.users())[user.name][""]["stopped"]
        name = user.name
    await hub.delete_user(name)
    assert name not in await hub.users()


@pytest.mark.parametrize("name", NAMES[1:])
async def test_odd_names_and_named_servers(hub: Hub, name: str) -> None:
    await hub.create_user(name)
    async with HubUser(hub.url) as user:
        await user.login(name, hub.user_password)
        await user.start_server("second")
        await user.wait_ready("second")
        assert await user.run_code("print(6*7)", "second") == "42"
        await hub.restart()
        assert await user.run_code("6*7", "second") == "42"
        await user.stop_server("second")
        await user.delete_server("second")
        assert "second" not in (await hub.users())[name]
        await hub.delete_user(name)


async def test_the_admin_starts_for_another_and_a_wrong_password_is_refused(hub: Hub) -> None:
    async with HubUser(hub.url) as admin, HubUser(hub.url) as stranger:
        with pytest.raises(RuntimeError, match="403"):
            await stranger.login("eve", "wrong password")
        await admin.login(ADMIN, hub.admin_password)
        assert (await admin.api("GET", "user")).json()["admin"]
        answer = await admin.submit_spawn_form()
        assert "/hub/spawn-pending/" in answer.url.path
        await admin.wait_ready()
        await admin.stop_server()


async def test_a_failed_start_tells_why(proxy_command: list[str]) -> None:
    async with Hub(BROKEN, proxy_command=proxy_command) as hub, HubUser(hub.url) as user:
        await user.login("anna", hub.user_password)
        await user.start_server()
        with pytest.raises(ServerFailedError, match="No such file"):
            await user.wait_ready()
        await hub.wait_for_log("anna", timeout=5)


async def test_a_hub_that_cannot_start_shows_its_log(proxy_command: list[str]) -> None:
    with pytest.raises(RuntimeError, match="no-such-spawner"):
        async with Hub(
            {"JupyterHub": {"spawner_class": "no-such-spawner"}}, proxy_command=proxy_command
        ):
            raise AssertionError("it started")
    with anyio.move_on_after(5) as scope:
        async with Hub("import time; time.sleep(60)", proxy_command=proxy_command):
            raise AssertionError("it started")
    assert scope.cancelled_caught
