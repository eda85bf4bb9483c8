"""The command for administrators: what it asks the hub, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from lightkube_template_spawner.cli import orphans as command
from lightkube_template_spawner.cluster import cluster as clusters
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import ConfigurationError, HubError
from lightkube_template_spawner.hub import rest as hubapi
from lightkube_template_spawner.hub.rest import SCOPES, HubApi
from lightkube_template_spawner.hub.settings import Settings
from lightkube_template_spawner.lifecycle.orphans import Roster
from lightkube_template_spawner.lifecycle.record import STATE, Record
from lightkube_template_spawner.objects.identity import Identity, Policy
from tests.support.connect import connect
from tests.support.fake_apiserver import FakeApiServer
from tests.support.objects import LIFECYCLE, ME, YOU, manifest
from tests.support.timing import QUICK

TOKEN = "hub-token"


@dataclass
class StubHub:
    """The part of a hub's REST API that the command asks, page by page."""

    url: str = ""
    scopes: list[str] = field(default_factory=lambda: [*SCOPES, "read:users:name"])
    users: list[dict[str, Any]] = field(default_factory=list)
    denied: int = 0  # so many times, first
    page: int = 2
    asked: list[str] = field(default_factory=list)
    before: Callable[[int], None] = lambda number: None
    redirect: str = ""

    def answer(self, path: str, query: dict[str, list[str]]) -> Any:
        if path.endswith("/user"):
            self.denied -= 1
            return {"name": "sweeper", "scopes": self.scopes if self.denied < 0 else []}
        self.before(len(self.asked))
        self.asked.append(path)
        offset = int(query["offset"][0])
        limit = min(self.page, int(query["limit"][0]))
        pagination = {"offset": offset, "limit": limit, "total": len(self.users), "next": None}
        return {"items": self.users[offset : offset + limit], "_pagination": pagination}


@pytest.fixture
def hub() -> Iterator[StubHub]:
    stub = StubHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            split = urlsplit(self.path)
            if stub.redirect:
                self.send_response(302)
                self.send_header("Location", stub.redirect)
                self.end_headers()
                return
            allowed = self.headers.get("Authorization") == f"token {TOKEN}"
            body = stub.answer(split.path, parse_qs(split.query)) if allowed else {}
            self.send_response(200 if allowed else 403)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/hub/api"
    yield stub
    server.shutdown()
    thread.join()
    server.server_close()


def user(name: str, *, pinned: str = "", stopped: bool = False) -> dict[str, Any]:
    record = Record(Identity("i", pinned or name), "hub", live=True)
    server = {"name": "", "stopped": stopped, "state": {STATE: record.to_state()}}
    return {"name": name, "servers": {"": server}}


def read(hub: StubHub, **environment: str) -> Roster:
    given = {"JUPYTERHUB_API_URL": hub.url, "JUPYTERHUB_API_TOKEN": TOKEN, **environment}
    return HubApi(given, patience=0).read(Roster("i", LIFECYCLE))


def owns(known: Roster, *names: str) -> list[bool]:
    found = (known.why_orphan(Identity("i", name).user_labels) for name in names)
    return [not why for why in found]


# The hub


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 7])
def test_all_pages_are_read(hub: StubHub, number: int) -> None:
    names = [f"u{n}" for n in range(number)]
    hub.users = [user(name) for name in names]
    assert owns(read(hub), *names, "nobody") == [True] * number + [False]


def test_a_renamed_user_is_known_by_both_names(hub: StubHub) -> None:
    hub.users = [user("alicia", pinned="alice")]
    assert owns(read(hub), "alice", "alicia") == [True, True]


@pytest.mark.parametrize("also_created", [False, True])
def test_a_user_removed_while_the_pages_are_read_hides_nobody(
    hub: StubHub, also_created: bool
) -> None:
    names = [f"u{n}" for n in range(6)]
    hub.users = [user(name) for name in names]

    def remove(asked: int) -> None:
        if asked == 2:
            hub.users.pop(0)
            if also_created:
                hub.users.append(user("new"))

    hub.before = remove
    assert owns(read(hub), *names[1:]) == [True] * 5


def test_users_who_go_all_the_time_are_an_error(hub: StubHub) -> None:
    hub.users = [user(f"u{n}") for n in range(60)]

    def remove(asked: int) -> None:
        hub.users.pop(0)

    hub.before = remove
    with pytest.raises(HubError, match="try again later"):
        read(hub)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_token_that_shows_less_than_all_is_refused(hub: StubHub, scope: str) -> None:
    hub.scopes = [s if s != scope else f"{s}!group=few" for s in hub.scopes]
    with pytest.raises(HubError, match=f"the token lacks {scope}, for all users"):
        read(hub)
    assert not hub.asked


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"name": "u"}, "does not show the servers of 'u'"),
        ({"name": "u", "servers": {"": {"name": "", "stopped": True}}}, "does not show the state"),
    ],
)
def test_a_user_who_is_half_shown_is_an_error(
    hub: StubHub, broken: dict[str, Any], message: str
) -> None:
    hub.users = [user("a"), broken]
    with pytest.raises(HubError, match=message):
        read(hub)


def test_pages_of_one_user_are_an_error(hub: StubHub) -> None:
    hub.users, hub.page = [user("a"), user("b")], 1
    with pytest.raises(HubError, match="api_page_max_limit"):
        read(hub)


def test_a_hub_that_refuses_or_is_not_there_is_an_error(hub: StubHub) -> None:
    with pytest.raises(HubError, match="the hub answered 403 to GET user"):
        read(hub, JUPYTERHUB_API_TOKEN="wrong")
    with pytest.raises(HubError, match="no answer from the hub at http"):
        read(hub, JUPYTERHUB_API_URL="http://127.0.0.1:1")


def test_the_token_does_not_follow_a_redirect(hub: StubHub) -> None:
    """The target is asked without it, so a hub behind another address is refused."""
    seen: list[str | None] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(403)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.redirect = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        with pytest.raises(HubError, match="403"):
            read(hub)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen == [None]


def test_what_the_environment_lacks_is_named() -> None:
    with pytest.raises(ConfigurationError, match="set JUPYTERHUB_API_URL"):
        HubApi({"JUPYTERHUB_API_TOKEN": "t"}, patience=0)


# The command


@pytest.fixture
def run(
    hub: StubHub, fake: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    monkeypatch.setenv("JUPYTERHUB_API_URL", hub.url)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
    monkeypatch.setattr(hubapi, "_PAGE", 2)

    async def once(*words: str) -> int:
        api = connect(tmp_path, transport=fake)
        key = (asyncio.get_running_loop(), "", "", "i")
        clusters._shared[key] = Cluster(api, "i", logging.getLogger("test"), QUICK)
        try:
            words = ("orphans", "--instance", "i", "-n", "hub", "--min-age", "0s", *words)
            return await command._orphans(command._parser().parse_args(words))
        finally:
            del clusters._shared[key]

    return once


def server(fake: FakeApiServer, identity: Identity, name: str) -> None:
    fake.put(manifest("Pod", name, identity))
    fake.put(manifest("PersistentVolumeClaim", name, identity, Policy.USER_DELETED))


MINE = {"Pod/mine", "PersistentVolumeClaim/mine"}


async def test_orphans_are_reported_and_nothing_else_happens(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.users = [user(ME.username)]
    server(fake, ME, "mine")
    assert await run() == command.NONE_LEFT
    assert "orphans: 0 found, 0 left" in capsys.readouterr().out
    server(fake, YOU, "yours")
    assert await run() == command.LEFT
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == [
        "PersistentVolumeClaim/hub/yours",
        "Pod/hub/yours",
    ]
    assert lines[2].startswith("orphans: 2 found, 2 left")
    assert len(fake.left()) == 4


async def test_delete_keeps_volumes_unless_told_otherwise(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.users = [user(ME.username)]
    server(fake, ME, "mine")
    server(fake, YOU, "yours")
    assert await run("--delete") == command.LEFT
    assert fake.left() == {*MINE, "PersistentVolumeClaim/yours"}
    assert "orphans: 2 found, 1 left" in capsys.readouterr().out
    assert await run("--delete", "--retained") == command.NONE_LEFT
    assert fake.left() == MINE
    assert "deleted: PersistentVolumeClaim/hub/yours" in capsys.readouterr().out


async def test_a_report_for_programs(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.users = [user(ME.username)]
    server(fake, YOU, "yours")
    fake.rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "delete"]}]
    assert await run("-o", "json") == command.LEFT
    written = capsys.readouterr()
    report = json.loads(written.out)
    [orphan] = report["orphans"]
    assert (orphan["kind"], orphan["name"], orphan["deleted"]) == ("Pod", "yours", False)
    assert orphan["lifecycle"] == "server-stopped"
    assert "v1/Secret in hub" in report["notAllowed"]
    assert report["failed"] == []


async def test_a_namespace_that_does_not_exist_is_no_all_clear(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.users = [user(ME.username)]
    assert await run("-n", "nowhere") == command.INCOMPLETE
    written = capsys.readouterr()
    assert "error: the namespace 'nowhere' does not exist" in written.err
    assert "instance 'i', namespaces: hub, nowhere;" in written.out
    fake.forbidden.add(("get", "namespaces"))  # as with a Role in one namespace
    assert await run() == command.NONE_LEFT


@pytest.mark.parametrize("known_to", ["the cluster", "the hub"])
async def test_an_instance_that_nobody_knows_is_no_all_clear(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str], known_to: str
) -> None:
    record = Record(Identity("newcomer", "zoe"), "hub", live=True)
    if known_to == "the hub":
        server_model = {"name": "", "stopped": True, "state": {STATE: record.to_state()}}
        hub.users = [{"name": "zoe", "servers": {"": server_model}}]
    else:
        fake.put(manifest("Secret", "theirs", record.identity))
    assert await run() == command.INCOMPLETE
    error = capsys.readouterr().err
    assert "neither the hub nor the cluster knows the instance 'i', but 'newcomer'" in error
    assert "-f" in error
    hub.users.append(user("ada"))
    assert await run() == command.NONE_LEFT  # it is known: the other one is another hub's


async def test_a_hub_without_any_server_has_no_orphans(
    run: Any, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run() == command.NONE_LEFT
    assert capsys.readouterr().err == ""


async def test_what_was_left_out_as_too_young_is_counted(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.users = [user(ME.username)]
    server(fake, YOU, "yours")
    for item in fake.everything():
        item["metadata"]["creationTimestamp"] = datetime.now(UTC).isoformat()
        fake.put(item)
    assert await run("--min-age", "1h") == command.NONE_LEFT
    assert "0 found, 0 left" in (said := capsys.readouterr().out)
    assert "younger than --min-age and left out: 2" in said


async def test_the_way_to_delete_volumes_is_named(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.users = [user(ME.username)]
    server(fake, YOU, "yours")
    assert await run("--delete") == command.LEFT
    assert "goes with --retained only" in capsys.readouterr().out
    assert await run("--delete", "--retained") == command.NONE_LEFT
    assert "--retained only" not in capsys.readouterr().out


CONFIGURED = """
c = get_config()
c.Spawner.mem_limit = "1G"
c.LightkubeTemplateSpawner.instance_name = "i"
c.LightkubeTemplateSpawner.namespace = "hub"
c.LightkubeTemplateSpawner.extra_namespaces = ["more", "user-*"]
c.LightkubeTemplateSpawner.lifecycle_annotation_key = "example.org/goes"
c.LightkubeTemplateSpawner.cluster_kinds = ["v1/Namespace"]
c.LightkubeTemplateSpawner.port = 9999
"""


def configured(folder: Path, *words: str, text: str = CONFIGURED) -> Settings:
    file = folder / "jupyterhub_config.py"
    file.write_text(text)
    options = command._parser().parse_args(["orphans", "-f", str(file), *words])
    return command._settings(options)


def test_the_hubs_configuration_says_what_to_look_for(tmp_path: Path) -> None:
    settings = configured(tmp_path)
    assert settings.instance_name == "i"
    assert settings.named_namespaces == ["hub", "more"]
    assert settings.lifecycle_annotation_key == "example.org/goes"
    assert settings.cluster_kinds == ["v1/Namespace"]
    assert configured(tmp_path, "--instance", "j").instance_name == "j"


def test_a_spawner_of_ones_own_has_a_section_of_its_own(tmp_path: Path) -> None:
    own = """
from lightkube_template_spawner import LightkubeTemplateSpawner
class Mine(LightkubeTemplateSpawner): pass
c.JupyterHub.spawner_class = Mine
c.Mine.instance_name = "mine"
"""
    assert configured(tmp_path, text=CONFIGURED + own).instance_name == "mine"


def test_a_configuration_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match=r"jupyterhub_config.py failed: NameError: name"):
        configured(tmp_path, text="c.JupyterHub.port = nonsense")
    absent = str(tmp_path / "absent.py")
    assert command.main(["orphans", "-f", absent]) == command.INCOMPLETE
    assert f"error: there is no configuration file {absent}" in capsys.readouterr().err


async def test_again_and_again_ends_where_another_time_would_not_help(run: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name"):
        await asyncio.wait_for(run("-n", "a/../b", "--every", "0s"), 5)


async def test_what_the_account_may_not_list_is_noted(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.users = [user(ME.username)]
    fake.rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    assert await run() == command.NONE_LEFT
    assert "note: not looked at" in capsys.readouterr().err
    fake.rules = []
    assert await run() == command.INCOMPLETE
    assert "may list nothing there" in capsys.readouterr().err


async def test_nothing_is_deleted_when_the_hub_has_no_record_or_does_not_answer(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server(fake, YOU, "yours")
    assert await run("--delete", "--retained") == command.LEFT
    assert "no server of instance 'i' on record" in capsys.readouterr().err
    hub.users = [user("zoe"), {"name": "half"}]
    with pytest.raises(HubError):
        await run("--delete", "--retained")
    assert len(fake.left()) == 2


async def test_again_and_again_survives_a_hub_that_is_away(
    run: Any, hub: StubHub, fake: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server(fake, YOU, "yours")
    hub.denied = 2
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def after(asked: int) -> None:
        if asked == 9:  # three questions a look
            loop.call_soon_threadsafe(enough.set)

    hub.before = after
    task = asyncio.create_task(run("--every", "0s"))
    await asyncio.wait_for(enough.wait(), 30)
    task.cancel()
    await asyncio.wait([task])
    written = capsys.readouterr()
    assert "lacks" in written.err
    assert written.out.count("orphans: 2 found") >= 2


def test_errors_are_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JUPYTERHUB_API_URL", raising=False)
    assert command.main(["orphans"]) == command.INCOMPLETE
    assert capsys.readouterr().err.startswith("error: set JUPYTERHUB_API_URL")
    monkeypatch.setenv("JUPYTERHUB_API_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
    assert (
        command.main(["orphans", "--wait", "0s", "--instance", "not a label"]) == command.INCOMPLETE
    )
    assert "instance_name 'not a label'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400)]
)
def test_times(text: str, seconds: float) -> None:
    options = command._parser().parse_args(["orphans", "--min-age", text])
    assert options.min_age == seconds


@pytest.mark.parametrize("words", [[], ["orphans", "--min-age", "5"], ["orphans", "-o", "xml"]])
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == command.INCOMPLETE
    assert "usage:" in capsys.readouterr().err


def test_both_ways_to_call_it() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["scripts"].items()
    assert EntryPoint(name, value, "console_scripts").load() is command.main
    words = [sys.executable, "-m", "lightkube_template_spawner", "orphans", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {name} orphans")
    assert "--retained" in done.stdout
