"""Fields that apply refuses are found in the API server's words and left out, and no others."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lightkube_template_spawner.objects.unknown_fields import undeclared, without

NOT = "field not declared in schema"
REFUSED = "failed to create typed patch object (default/x; /v1, Kind=Service): "


@pytest.mark.parametrize(
    ("message", "paths"),
    [
        (f'.spec.ports[name="http"].target_port: {NOT}', ['.spec.ports[name="http"].target_port']),
        (f"errors:\n  .spec.a: {NOT}\n  .spec.b: {NOT}", [".spec.a", ".spec.b"]),
        (
            f'.spec.ports[port=8888,protocol="TCP"].target_port: {NOT}',
            ['.spec.ports[port=8888,protocol="TCP"].target_port'],
        ),
        (
            f'.spec.template.spec.containers[name="a"].imgae: {NOT}',
            ['.spec.template.spec.containers[name="a"].imgae'],
        ),
        (f'.spec.x[ip="fd00::1"].y: {NOT}', ['.spec.x[ip="fd00::1"].y']),
        (f'.spec.x[name="a b: c"].y[0].z: {NOT}', ['.spec.x[name="a b: c"].y[0].z']),
        (
            f"errors:\n  .spec.replicas: expected numeric, got string\n  .spec.b: {NOT}",
            [".spec.b"],
        ),
        (".spec.replicas: expected numeric (int or float), got string", []),
        ('duplicate entries for key [name="A"]', []),
        ("", []),
    ],
)
def test_paths_are_read_from_the_servers_message(message: str, paths: list[str]) -> None:
    assert undeclared(message) == paths
    assert undeclared(REFUSED + message) == paths


def test_a_name_with_dots_in_the_message_is_no_path() -> None:
    message = f"failed to create typed patch object (ns/a.b.c; apps/v1, Kind=Deployment): .x: {NOT}"
    assert undeclared(message) == [".x"]


SERVICE: dict[str, Any] = {
    "kind": "Service",
    "spec": {
        "ports": [
            {"name": "dns", "port": 53, "x": 1},
            {"name": "dns-udp", "port": 53, "protocol": "UDP", "x": 2},
            {"name": "http", "port": 8888, "target_port": 1},
        ],
        "list": [{"x": 1}, {"x": 2}],
        "foo": {"bar": 1},
        "9p": 1,
        "flag": [{"on": True, "x": 1}],
        "selector": {"app": 1, "app.example.org/tier": 2, "app.example.org": {"tier": 3}},
    },
}


def left_out(path: str) -> Any:
    before = copy.deepcopy(SERVICE)
    after = without(SERVICE, [path])
    assert before == SERVICE, "the manifest itself must not change"
    return after["spec"]


@pytest.mark.parametrize(
    ("path", "index"),
    [
        ('.spec.ports[name="http"].target_port', 2),
        ('.spec.ports[port=8888,protocol="TCP"].target_port', 2),
        ('.spec.ports[port=53,protocol="TCP"].x', 0),
        ('.spec.ports[port=53,protocol="UDP"].x', 1),
    ],
)
def test_a_field_in_a_keyed_list_is_left_out(path: str, index: int) -> None:
    ports = left_out(path)["ports"]
    field = path.rpartition(".")[2]
    assert [field in port for port in ports] == [
        field in port and number != index for number, port in enumerate(SERVICE["spec"]["ports"])
    ]


def test_a_field_in_a_list_by_position_is_left_out() -> None:
    assert left_out(".spec.list[1].x")["list"] == [{"x": 1}, {}]


def test_a_field_of_any_name_is_left_out_and_nothing_in_its_stead() -> None:
    assert "9p" not in left_out(".spec.9p")
    assert left_out(".spec.9p").keys() == SERVICE["spec"].keys() - {"9p"}
    assert left_out(".spec.foo") == {k: v for k, v in SERVICE["spec"].items() if k != "foo"}


def test_a_name_with_dots_is_one_name() -> None:
    selector = SERVICE["spec"]["selector"]
    for path, left in (
        ("app.example.org/tier", {"app": 1, "app.example.org": {"tier": 3}}),
        ("app.example.org.tier", {**selector, "app.example.org": {}}),
        ("app.example.org/tie", selector),
    ):
        assert left_out(f".spec.selector.{path}")["selector"] == left


@pytest.mark.parametrize(
    "path",
    [".spec.none", ".spec.none.more", ".spec.foo/bar", ".spec.list[7].x",
     '.spec.ports[name="no"].x', ".spec.ports.x", ".spec.list", ".status.x", '.spec.list["x"]'],
)  # fmt: skip
def test_a_path_that_leads_nowhere_changes_nothing_else(path: str) -> None:
    expected = {**SERVICE["spec"]}
    if path == ".spec.list":
        expected.pop("list")
    assert left_out(path) == expected


def test_several_fields_are_left_out_at_once() -> None:
    paths = [".spec.foo", ".spec.list[0].x", ".spec.list[1].x"]
    spec = without(SERVICE, paths)["spec"]
    assert spec["list"] == [{}, {}]
    assert "foo" not in spec


def test_the_servers_message_and_the_manifest_fit_together() -> None:
    message = f'{REFUSED}errors:\n  .spec.foo: {NOT}\n  .spec.ports[name="http"].target_port: {NOT}'
    spec = without(SERVICE, undeclared(message))["spec"]
    assert "foo" not in spec
    assert spec["ports"][2] == {"name": "http", "port": 8888}
