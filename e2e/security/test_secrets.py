"""A server's API token, its environment and its user's auth state are in its Secret only."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from e2e.conftest import MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from e2e.harness.search import Search, children, dump, read
from e2e.harness.user import HubUser, ServerFailedError

pytestmark = pytest.mark.timeout(REPEAT * 300)

# A login leaves a secret in the auth state, a hook puts it into the environment, as sites do. Hooks
# know the token before anything can fail; the file is the test's own.
CONFIG = """
import json
from jupyterhub.authenticators.shared import SharedPasswordAuthenticator

class Upstream(SharedPasswordAuthenticator):
    async def authenticate(self, handler, data):
        user = await super().authenticate(handler, data)
        return user and {{**user, "auth_state": {{"access_token": os.environ["UPSTREAM"]}}}}

c.JupyterHub.authenticator_class = Upstream
c.Authenticator.enable_auth_state = True
c.JupyterHub.log_level = "DEBUG"
def from_upstream(spawner, auth_state):
    spawner.environment = {{"UPSTREAM": auth_state["access_token"]}}
def tell_the_test(spawner):
    for name, value in spawner.user_options.items():
        setattr(spawner, name, value)
    with open({path!r}, "w") as file:
        file.write(spawner.api_token)
c.Spawner.auth_state_hook = from_upstream
c.LightkubeTemplateSpawner.pre_spawn_hook = tell_the_test
"""
TOKEN = '{{ index .Values.env "JUPYTERHUB_API_TOKEN" }}'
UPSTREAM = '{{ index .Values.env "UPSTREAM" }}'
AUTH_STATE = f"auth{secrets.token_hex(16)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's own folder for temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told") / "token"


@pytest.fixture(scope="module")
async def hub(make_hub: MakeHub, folder: Path, told: Path) -> AsyncGenerator[Hub]:
    environment = {"TMPDIR": str(folder), "UPSTREAM": AUTH_STATE}
    async with make_hub(CONFIG.format(path=str(told)), environment=environment) as hub:
        yield hub
        await hub.delete_users()


@pytest.fixture(scope="module")
async def user(hub: Hub) -> AsyncGenerator[HubUser]:
    async with signed_in(hub, "anna") as user:
        yield user
        if await user.servers():
            await user.stop_server()


async def test_secrets_are_in_the_servers_secret_only(
    hub: Hub, user: HubUser, kube: Kube, space: str, folder: Path, told: Path, faults: Faults
) -> None:
    """With the default chart, while the server runs and after it."""
    for _ in faults("a look for the token and the auth state in all places"):
        events = await user.run_server()
        search = Search(token=told.read_text(), auth=AUTH_STATE)
        # The search finds them where they may be, so it would find them elsewhere.
        (secret,) = kube.list("secrets", space)
        token = base64.b64decode(secret["data"]["JUPYTERHUB_API_TOKEN"]).decode()
        assert token == told.read_text()
        assert search.found_in(json.dumps(secret)) == {"token", "auth"}
        assert search.files(told.parent) == [f"{told}: token"]
        assert AUTH_STATE in await user.run_code("import os; os.environ['UPSTREAM']")

        assert search.found_in(json.dumps(events)) == set()
        assert "encrypted_auth_state" in dump(hub)
        assert '"lightkube_template_spawner"' in dump(hub)
        assert "\n[D " in hub.log.read_text()
        workers = [p for p in children(hub.folder) if b"helm" in read(p / "cmdline")]
        assert workers
        assert all(read(worker / "environ") for worker in workers)
        assert search.leaks(hub, kube, space, folder) == []
        await user.stop_server()
        assert search.files(hub.folder, folder) == []
        assert search.found_in(dump(hub)) == set()


@pytest.mark.parametrize(
    ("templates", "reason"),
    [
        ({"pod": light.pod(), "other": "{{ fail (toJson .Values.env) }}"}, "JUPYTERHUB_API_TOKEN"),
        ({"pod": light.pod(name=f"a_{TOKEN}")}, "its name may hold"),
        (
            {"pod": light.pod().replace("containers:", f"hostname: _{TOKEN}\n  containers:")},
            "was refused",
        ),
        (
            {"pod": light.pod().replace("containers:", f"hostname: _{UPSTREAM}\n  containers:")},
            "was refused",
        ),
    ],
    ids=["the template", "the contract", "the API server", "the API server, auth state"],
)
async def test_what_refuses_a_start_does_not_tell_a_secret(
    hub: Hub,
    user: HubUser,
    folder: Path,
    told: Path,
    tmp_path: Path,
    faults: Faults,
    templates: dict[str, str],
    reason: str,
) -> None:
    """Templates that put a secret where the error message repeats it."""
    chart = light.chart(tmp_path, **templates)
    for _ in faults("an error that quotes a secret"):
        await user.start_server(options={"template_path": chart})
        with pytest.raises(ServerFailedError, match=reason) as failed:
            await user.wait_ready()
        search = Search(token=told.read_text(), auth=AUTH_STATE)
        assert search.found_in(str(failed.value)) == set()
        assert search.found_in(json.dumps(failed.value.events)) == set()
        page = await user.page(f"/hub/spawn-pending/{user.name}")
        assert reason in page.text
        assert search.found_in(page.text) == set()
        assert search.files(hub.folder, folder) == []


JOB = f"""
apiVersion: batch/v1
kind: Job
metadata:
  name: {light.NAME}
  annotations: {{kubetemplatespawner/lifecycle: user-deleted}}
spec:
  suspend: true
  template:
    spec:
      restartPolicy: Never
      containers: [{{name: a, image: a, env: [{{name: TOKEN, value: "{TOKEN}"}}]}}]
"""


async def test_what_the_api_server_says_of_a_kept_object_has_no_secret_in_the_log(
    hub: Hub, user: HubUser, told: Path, tmp_path: Path, faults: Faults
) -> None:
    """It refuses another pod template by printing it, and the object is kept with a warning."""
    chart = light.chart(tmp_path, pod=light.pod(), job=JOB)
    for turn in faults("a refusal that prints a whole pod template"):
        position = len(hub.log.read_text())
        await user.run_server(options={"template_path": chart})
        await user.stop_server()
        if turn > 1:
            await hub.wait_for_log(r"Job/\S+.*is immutable", start=position)
        assert Search(token=told.read_text()).found_in(hub.log.read_text()) == set()
