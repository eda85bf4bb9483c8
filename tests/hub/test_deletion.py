"""Which starts a removal for good keeps away, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from lightkube_template_spawner.errors import RemovalIncomplete, StartFailed
from lightkube_template_spawner.hub import deletion


@dataclass(eq=False)
class User:
    spawners: dict[str, Any] = field(default_factory=dict)


@dataclass
class Server:
    user: User
    name: str
    active: bool = False

    def __post_init__(self) -> None:
        self.user.spawners[self.name] = self

    @property
    def _log_name(self) -> str:
        return f"ada:{self.name}"


@pytest.fixture
def servers() -> tuple[Server, Server, Server]:
    user = User()
    return Server(user, ""), Server(user, "work"), Server(user, "play")


def refused(*servers: Server) -> list[bool]:
    found = []
    for server in servers:
        try:
            deletion.check_start(server)
        except StartFailed:
            found.append(True)
        else:
            found.append(False)
    return found


def test_the_removal_of_a_named_server_keeps_no_other_from_starting(
    servers: tuple[Server, Server, Server],
) -> None:
    default, work, play = servers
    default.active = True
    with deletion.removal(work):
        assert refused(default, work, play) == [False, True, False]
    assert refused(default, work, play) == [False, False, False]


def test_the_removal_of_all_keeps_every_server_from_starting(
    servers: tuple[Server, Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_PAUSE", 60)
    default, work, play = servers
    with deletion.removal(default):
        assert refused(default, work, play) == [True, True, True]
    assert refused(default, work, play) == [True, True, True]  # until the hub removes the user
    with deletion.removal(work):  # as the hub goes on to
        assert refused(play) == [True]
    assert refused(default, work, play) == [True, True, True]


def test_a_user_who_stays_may_start_again(
    servers: tuple[Server, Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_PAUSE", -1)
    with pytest.raises(RuntimeError), deletion.removal(servers[0]):
        raise RuntimeError("the API server is away")
    assert refused(*servers) == [False, False, False]


def test_nothing_is_removed_from_under_a_server_that_runs(
    servers: tuple[Server, Server, Server],
) -> None:
    default, work, play = servers
    play.active = True
    with pytest.raises(RemovalIncomplete, match="ada:play is active"), deletion.removal(default):
        raise AssertionError
    assert refused(default, work, play) == [False, False, False]
    with deletion.removal(work):
        assert refused(work) == [True]
