"""HTTP, error mapping, path safety, credentials; and what we rely on in lightkube."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import lightkube
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightkube import generic_resource
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User
from lightkube.core.resource_registry import resource_registry

from lightkube_template_spawner.cluster import api as module
from lightkube_template_spawner.cluster.api import Api, Kind, error_from, segment
from lightkube_template_spawner.errors import (
    ClusterError,
    ConfigurationError,
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    ManifestError,
    NotFound,
    Unavailable,
)
from tests.support.connect import TOKEN, connect, kubeconfig
from tests.support.fake_apiserver import FakeApiServer, Fault, text
from tests.support.loopback import HEAD, chunk, loopback, whole

CONFIG = Kind("", "v1", "ConfigMap", "configmaps", namespaced=True)
CLUSTER = Kind("example.org", "v1", "Thing", "things", namespaced=False)
MANIFEST = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "c", "namespace": "hub"},
    "data": {"k": "v"},
}
log = logging.getLogger("test")


def status(code: int, message: str = "no", **extra: Any) -> str:
    body = {"kind": "Status", "message": message, "reason": "Why", "code": code, **extra}
    return json.dumps(body)


ANSWERS: dict[str, tuple[Fault, type[ClusterError], int | None]] = {
    "status 401": (text(401, status(401), "application/json"), Forbidden, 401),
    "status 403": (text(403, status(403), "application/json"), Forbidden, 403),
    "status 404": (text(404, status(404), "application/json"), NotFound, 404),
    "status 405": (text(405, status(405), "application/json"), Invalid, 405),
    "status 409": (text(409, status(409), "application/json"), Conflict, 409),
    "status 410": (text(410, status(410), "application/json"), Expired, 410),
    "status 413": (text(413, status(413), "application/json"), Invalid, 413),
    "status 415": (text(415, status(415), "application/json"), Invalid, 415),
    "status 422": (text(422, status(422), "application/json"), Invalid, 422),
    "status 500": (text(500, status(500), "application/json"), Unavailable, 500),
    "status 503": (text(503, status(503), "application/json"), Unavailable, 503),
    "typed 500": (
        text(500, status(500, "failed to create typed patch object (a)"), "application/json"),
        Invalid,
        500,
    ),
    "unread 500": (
        text(500, status(500, "failed to convert new object (a)"), "application/json"),
        Invalid,
        500,
    ),
    "with charset": (text(409, status(409), "application/json; charset=utf-8"), Conflict, 409),
    "plain 429": (text(429, "Too many requests", Retry_After="7"), Unavailable, 429),
    "proxy's 502": (text(502, "<html>Bad Gateway</html>", "text/html"), Unavailable, 502),
    "proxy's 403": (text(403, "<html>Go away</html>", "text/html"), Forbidden, 403),
    "no content type": (text(503, "down", ""), Unavailable, 503),
    "empty": (text(504, "", "application/json"), Unavailable, 504),
    "list": (text(500, "[1]", "application/json"), Unavailable, 500),
    "no status": (text(500, '{"a": 1}', "application/json"), Unavailable, 500),
    "wrong types": (
        text(409, '{"code": "x", "details": 3, "message": 5}', "application/json"), Conflict, 409,
    ),
    "broken JSON of 200": (text(200, '{"metadata": {"na', "application/json"), Unavailable, None),
    "broken JSON of 500": (text(500, '{"metadata"', "application/json"), Unavailable, 500),
    "redirect": (text(302, "", Location="http://elsewhere.example.org"), Unavailable, 302),
    "refused": (Fault(error=lambda: httpx2.ConnectError("refused")), Unavailable, None),
    "reset": (Fault(error=lambda: httpx2.ReadError("reset")), Unavailable, None),
    "lost": (Fault(error=lambda: httpx2.ReadError("reset"), lost=True), Unavailable, None),
    "no protocol": (Fault(error=lambda: httpx2.RemoteProtocolError("x")), Unavailable, None),
}  # fmt: skip


async def ask(api: Api, way: str) -> None:
    if way == "call":
        await api.call("GET", CONFIG.path("hub", "c"))
    elif way == "apply":
        await api.apply(CONFIG, MANIFEST, manager="m")
    else:
        async with api.stream(CONFIG.path("hub"), params={}, accept="*/*", idle=1):
            pass


# lightkube's apply stumbles over these before anybody can read the code.
LOST_IN_LIGHTKUBE = {
    "no content type", "empty", "list", "wrong types", "broken JSON of 500",
}  # fmt: skip


def _ways() -> list[tuple[str, str]]:
    """Every answer by every way; the lines of a good stream are read by who asked for them."""
    good = {
        name for name, (fault, *_) in ANSWERS.items() if fault.answer and fault.answer().is_success
    }
    ways = [(name, way) for name in ANSWERS for way in ("call", "apply", "stream")]
    return [(name, way) for name, way in ways if way != "stream" or name not in good]


@pytest.mark.parametrize(("name", "way"), _ways())
async def test_every_answer_becomes_one_of_our_errors(
    fake: FakeApiServer, api: Api, name: str, way: str
) -> None:
    fault, error, code = ANSWERS[name]
    fault.met = 0
    fake.faults.append(fault)
    if way == "apply" and name in LOST_IN_LIGHTKUBE:
        error, code = Unavailable, None
    with pytest.raises(error) as caught:
        await ask(api, way)
    assert type(caught.value) is error
    assert caught.value.code == code
    assert TOKEN not in repr(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize("way", ["call", "apply"])
@pytest.mark.parametrize("answer", [
    text(429, "Too many requests", Retry_After="7"),
    text(503, status(503, details={"retryAfterSeconds": 7}), "application/json", Retry_After="7"),
])  # fmt: skip
async def test_the_time_to_wait_is_known(
    fake: FakeApiServer, api: Api, way: str, answer: Fault
) -> None:
    answer.met = 0
    fake.faults.append(answer)
    with pytest.raises(Unavailable) as caught:
        await ask(api, way)
    assert caught.value.retry_after == 7


async def test_a_refusal_keeps_message_reason_and_causes() -> None:
    causes = [{"reason": "FieldManagerConflict", "field": ".a"}]
    body = json.loads(status(409, "it is so", details={"causes": causes}))
    error = error_from(body, 409)
    assert (str(error), error.reason, error.causes) == ("it is so", "Why", tuple(causes))
    assert str(error_from(None, 502, "Bad Gateway")) == "Bad Gateway"
    assert str(error_from({}, 502)) == "HTTP 502"


def test_a_refused_value_is_not_repeated_whole() -> None:
    """The API server prints all of a pod spec that it refuses, tokens in variables included."""
    spec = '{"Env":[{"Name":"T","Value":"hush: {]}"}],"Volumes":null}'
    for value, shown in (
        (spec, "…"), (f"core.PodSpec{spec}", "…"), (f"[{spec}]", "…"), ('"a}b"', '"a}b"'),
        ("-1", "-1"),
    ):  # fmt: skip
        text = f"[spec.x: Invalid value: {value}: is immutable, spec.y: Invalid value: 5: too much]"
        expected = text.replace(value, shown)
        assert str(error_from({"message": text}, 422)) == expected


# Time


async def test_silence_ends(fake: FakeApiServer, tmp_path: Path) -> None:
    fake.faults.append(Fault())
    quick = connect(tmp_path, timeout=0.05, transport=fake)
    with pytest.raises(Unavailable, match="ReadTimeout"):
        await quick.call("GET", "/version")
    await quick.aclose()


# Path safety

BAD = ["a/../../secrets", "..", "a/b", "a?x=y&z", "a#f", "", "-a", "a-", ".a", "a.", "a b", "a\n",
       "a%2fb", "é", "a" * 254, None, 5, ["a"]]  # fmt: skip


@pytest.mark.parametrize("name", BAD, ids=repr)
async def test_no_name_leaves_its_place_in_the_path(
    fake: FakeApiServer, api: Api, name: object
) -> None:
    with pytest.raises(ManifestError):
        segment(name)
    if name is not None:
        with pytest.raises(ManifestError):
            CONFIG.path("hub", name)  # type: ignore[arg-type]
    if name:
        with pytest.raises(ManifestError):
            CONFIG.path(name, "c")  # type: ignore[arg-type]
    for metadata in ({"name": name, "namespace": "hub"}, {"name": "c", "namespace": name}):
        with pytest.raises(ManifestError):
            await api.apply(CONFIG, {**MANIFEST, "metadata": metadata}, manager="m")
    assert not fake.requests


@given(st.text(alphabet=st.sampled_from("aZ0-_.:/%?#\\ \n\x85é"), max_size=12))
def test_a_segment_is_one_segment(name: str) -> None:
    try:
        assert segment(name) == name
    except ManifestError:
        return
    assert not {*name} & {*"/%?#\\ \n\x85é"}
    assert name.strip(".")
    url = httpx2.URL("http://h/a/").join(f"./{name}" if ":" in name else name)
    assert url.raw_path.decode() == f"/a/{name}"


def test_paths() -> None:
    assert CONFIG.path() == "/api/v1/configmaps"
    assert CONFIG.path("hub") == "/api/v1/namespaces/hub/configmaps"
    assert CONFIG.path("hub", "c") == "/api/v1/namespaces/hub/configmaps/c"
    assert CLUSTER.path("ignored", "system:x") == "/apis/example.org/v1/things/system:x"
    assert str(CONFIG) == "v1/ConfigMap"
    assert (CLUSTER.api_version, str(CLUSTER)) == ("example.org/v1", "example.org/v1/Thing")


# Credentials and configuration


async def test_the_token_is_sent_and_never_told(
    fake: FakeApiServer, api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers: list[str] = []
    async with loopback(_answer(whole(b"nonsense", "418 Teapot"))) as url:
        real = connect(tmp_path, url)
        real._http.event_hooks["request"].append(_collect(headers))
        for attempt in (
            lambda: real.call("GET", "/version"),
            lambda: real.apply(CONFIG, MANIFEST, manager="m"),
        ):
            with pytest.raises(Unavailable) as caught:
                await attempt()
            told = [str(caught.value), repr(caught.value), str(caught.value.__cause__)]
            assert not any(TOKEN in line for line in told)
        await real.aclose()
    assert headers == [f"Bearer {TOKEN}"]
    assert TOKEN not in caplog.text


def _collect(headers: list[str]) -> Callable[[httpx2.Request], Any]:
    async def hook(request: httpx2.Request) -> None:
        headers.append(request.headers["Authorization"])

    return hook


def _answer(data: bytes) -> Callable[[str, asyncio.StreamWriter], Any]:
    async def answer(first: str, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


async def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    seen: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["Authorization"])
        if seen[-1] == "Bearer old":
            token.write_text("new")
            return httpx2.Response(401, json=json.loads(status(401)))
        return httpx2.Response(200, json={"gitVersion": "v1"})

    file = kubeconfig(tmp_path, tokenFile=str(token))
    api = Api(str(file), transport=httpx2.MockTransport(handle))
    assert await api.call("GET", "/version") == {"gitVersion": "v1"}
    assert seen == ["Bearer old", "Bearer new"]
    token.unlink()
    await api.aclose()
    api = Api(str(file), transport=httpx2.MockTransport(handle))
    with pytest.raises(Unavailable, match="not found"):
        await api.call("GET", "/version")
    await api.aclose()


@pytest.mark.parametrize("content", [
    "", "[]", "clusters: {", f"token: {TOKEN}\n  broken: [", "clusters: []\ncontexts: []",
    "clusters: []\ncontexts: []\ncurrent-context: c",
    json.dumps({"current-context": "c", "clusters": [],
                "contexts": [{"name": "c", "context": {"cluster": "c"}}]}),
    json.dumps({"current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": "https://h",
                                                       "certificate-authority": "/no"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c"}}]}),
], ids=repr)  # fmt: skip
async def test_a_bad_kubeconfig_is_told_plainly(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config"
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        Api(str(file))
    assert TOKEN not in str(caught.value)
    with pytest.raises(ConfigurationError):
        Api(str(tmp_path / "absent"))


async def test_no_cluster_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=r"(?i)kubeconfig|cluster"):
        Api()
    with pytest.raises(ConfigurationError, match="Context 'another'"):
        Api(str(kubeconfig(tmp_path)), "another")


# Streams, on a real connection


async def test_a_stream_gives_lines_whatever_the_chunks(tmp_path: Path) -> None:
    lines = ['{"a": "x\x85y\u2028z"}', '{"b": 1}', "", '{"c": "' + "é" * 5000 + '"}']
    data = "\n".join(lines).encode()

    async def answer(first: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for start in range(0, len(data), 999):
            writer.write(chunk(data[start : start + 999]))
            await writer.drain()
        writer.write(chunk(b""))

    async with loopback(answer) as url:
        api = connect(tmp_path, url)
        async with api.stream("/w", params={}, accept="*/*", idle=1) as stream:
            assert [line.decode() async for line in stream] == lines
        await api.aclose()


@pytest.mark.parametrize("end", ["silence", "reset", "truncation"])
async def test_a_stream_that_breaks_says_so(tmp_path: Path, end: str) -> None:
    async def answer(first: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b'{"a": 1}\n'))
        await writer.drain()
        if end == "reset":
            await asyncio.sleep(0.02)
            writer.transport.abort()
        if end == "truncation":
            writer.write(b"ff\r\nhalf")
            await writer.drain()
            writer.close()
        await asyncio.sleep(5)

    async with loopback(answer) as url:
        api = connect(tmp_path, url)
        got: list[bytes] = []

        async def read() -> None:
            async with api.stream("/w", params={}, accept="*/*", idle=0.1) as stream:
                async for line in stream:
                    got.append(line)  # noqa: PERF401

        with pytest.raises(Unavailable):
            await read()
        assert got == [b'{"a": 1}']
        await api.aclose()


async def test_watches_do_not_use_up_the_connections(tmp_path: Path) -> None:
    async def answer(first: str, writer: asyncio.StreamWriter) -> None:
        if "/watch" in first:
            writer.write(HEAD + chunk(b"{}\n"))
            await writer.drain()
            await asyncio.sleep(5)
        writer.write(whole(b'{"fine": true}'))

    async with loopback(answer) as url:
        api = connect(tmp_path, url, timeout=2)

        async def watch() -> None:
            async with api.stream("/watch", params={}, accept="*/*", idle=3) as stream:
                async for _ in stream:
                    pass

        watches = [asyncio.create_task(watch()) for _ in range(120)]
        await asyncio.sleep(0.1)
        assert await api.call("GET", "/x") == {"fine": True}
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await api.aclose()


# What we rely on in lightkube beyond its documentation


def test_lightkube_is_as_we_know_it() -> None:
    adapter = inspect.signature(client_adapter.AsyncClient)
    assert list(adapter.parameters) == ["config", "conn_parameters"]
    parameters = inspect.signature(client_adapter.ConnectionParams).parameters
    assert {"timeout", "trust_env", "transport", "proxy", "http2"} <= {*parameters}
    verify = inspect.signature(client_adapter.verify_cluster).parameters
    assert list(verify)[:3] == ["cluster", "user", "abs_file"]
    info = inspect.signature(generic_resource.create_api_info)
    assert list(info.parameters)[:4] == ["group", "version", "kind", "plural"]
    for base in (
        generic_resource.GenericNamespacedResource,
        generic_resource.GenericGlobalResource,
    ):
        assert issubclass(base, dict)
    assert {"cluster", "user", "fname"} <= {*SingleConfig._fields}
    assert {"token", "token_file"} <= {*inspect.signature(User).parameters}
    apply = inspect.signature(lightkube.AsyncClient.apply).parameters
    assert list(apply) == ["self", "obj", "name", "namespace", "field_manager", "force", "dry_run"]
    assert apply["force"].default is False
    client = inspect.signature(lightkube.AsyncClient).parameters
    assert {"config", "timeout", "transport"} <= {*client}


async def test_apply_sends_everything_it_is_given(fake: FakeApiServer, api: Api) -> None:
    """Fields that no schema knows, nulls and Unicode travel; nothing is added, nothing forced."""
    manifest = {
        **MANIFEST,
        "x-foo": None,
        "data": {"k": "é\u2028", "n": None},
        "deep": [{"a": [1]}],
    }
    before = json.dumps(manifest)
    await api.apply(CONFIG, manifest, manager="lts:é")
    (seen,) = fake.requests
    assert (seen.method, seen.path) == ("PATCH", "/api/v1/namespaces/hub/configmaps/c")
    assert seen.body == manifest
    assert json.dumps(manifest) == before
    assert seen.query["fieldManager"] == "lts:é"
    assert seen.query.get("force", "false") == "false"
    assert "dryRun" not in seen.query


async def test_a_generic_class_is_made_once_and_not_registered() -> None:
    assert module._resource(CONFIG) is module._resource(CONFIG)
    known = dict(resource_registry._registry)
    module._resource(Kind("apps", "v1", "Deployment", "deployments", namespaced=True))
    assert resource_registry._registry == known
