"""Rendering through Helm: what comes out, what stays secret, and what survives a bad template."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import pytest

from lightkube_template_spawner.errors import TemplateError
from lightkube_template_spawner.hub.settings import default_chart
from lightkube_template_spawner.templates import chart as charts
from lightkube_template_spawner.templates import renderer as renderers
from lightkube_template_spawner.templates.helm.engine import Request
from lightkube_template_spawner.templates.helm.library import SharedWorker
from lightkube_template_spawner.templates.renderer import Rendered, check_template, open_renderer
from tests.support.charts import ABOUT, write_chart

LOG = logging.getLogger("test")
REPOSITORY = Path(__file__).parents[2]
HELM = shutil.which("helm")
ECHO = "values: {{ omit .Values `secret` | toJson }}\n"
RUNAWAY = "{{ range until 100000 }}{{ range until 100000 }}{{ end }}{{ end }}"

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "SECONDS_BETWEEN_LOOKS", 0)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A chart with one template and whatever other files."""

    def written(template: str = ECHO, /, **files: str) -> Path:
        return write_chart(tmp_path / "demo", template, **files)

    return written


# e2e/serving/test_helm.py brings a helm command where there is none.
@pytest.fixture(params=["library", *(["command"] if HELM else [])])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "command":
        monkeypatch.setattr(renderers, "library_folder", lambda: None)
    return str(request.param)


async def render(
    path: Path,
    values: Mapping[str, Any] | None = None,
    *,
    kube_version: str | None = None,
    timeout: float = 10,
    strict: bool = False,
    **options: Any,
) -> Rendered:
    renderer = open_renderer(
        path, kube_version=kube_version, log=LOG, timeout=timeout, strict=strict
    )
    try:
        return await renderer.render(values or {}, release="alice", namespace="users", **options)
    finally:
        if not isinstance(renderer._engine, SharedWorker):  # type: ignore[attr-defined]
            await renderer.aclose()


# What comes out


async def test_documents(engine: str, write: Write) -> None:
    path = write(
        "a: {{ .Release.Name }}\nb: {{ .Release.Namespace }}\n",
        **{
            "templates/NOTES.txt": "hello",
            "templates/_helpers.tpl": '{{ define "x" }}y{{ end }}',
            "templates/empty.yaml": "{{ if .Values.no }}a: 1{{ end }}",
            "templates/0.yaml": "kind: B\n---\nkind: A\nx: {{ include `x` . }}\n---\n# nothing\n",
        },
    )
    rendered = await render(path, kube_version="1.31.2")
    assert list(rendered.documents) == ["demo/templates/0.yaml", "demo/templates/a.yaml"]
    assert rendered.objects["demo/templates/a.yaml"] == [{"a": "alice", "b": "users"}]
    kinds = [document["kind"] for document in rendered.objects["demo/templates/0.yaml"]]
    assert sorted(kinds) == ["A", "B"]
    assert len(rendered.digest) == 64


async def test_kube_version(engine: str, write: Write) -> None:
    path = write("v: {{ .Capabilities.KubeVersion.Version }}")
    (only,) = (await render(path, kube_version="v1.29.3")).objects.values()
    assert only == [{"v": "v1.29.3"}]


async def test_values_arrive_exactly(engine: str, write: Write) -> None:
    values = {
        "text": "Ünï 🎉 \"q\" 'q' \\ \n {{ .Values.secret }} $(X) &<>",
        "int": 2**40,
        "float": 0.1,
        "yes": True,
        "list": [1, "y", {"a": []}],
        "none_in_list": [None],
    }
    (only,) = (await render(write(), values)).objects.values()
    assert only == [{"values": values}]


async def test_none_removes_the_charts_default(engine: str, write: Write) -> None:
    path = write(**{"values.yaml": "a: {b: 1, c: 2}\nd: 3\n"})
    (only,) = (await render(path, {"a": {"b": None}, "d": None})).objects.values()
    assert only == [{"values": {"a": {"c": 2}}}]


async def test_a_subchart_that_was_disabled_comes_back(engine: str, write: Write) -> None:
    dependency = "dependencies: [{name: sub, version: 1.0.0, condition: sub.on}]\n"
    path = write(
        **{
            "Chart.yaml": ABOUT + dependency,
            "charts/sub/Chart.yaml": "apiVersion: v2\nname: sub\nversion: 1.0.0\n",
            "charts/sub/templates/s.yaml": "sub: 1\n",
        }
    )
    for on in (True, False, True):
        rendered = await render(path, {"sub": {"on": on}})
        assert ("demo/charts/sub/templates/s.yaml" in rendered.documents) is on


async def test_helmignore(engine: str, write: Write) -> None:
    path = write(**{".helmignore": "*~\n", "templates/a.yaml~": "backup: 1\n"})
    assert list((await render(path)).documents) == ["demo/templates/a.yaml"]


async def test_release_names_are_made_to_fit(engine: str, write: Write) -> None:
    renderer = open_renderer(write("r: {{ .Release.Name }}"), kube_version=None, log=LOG)
    for name, fits in (("a" * 60, "a" * 53), ("User_1.x-", "user-1-x"), ("ü", "release")):
        rendered = await renderer.render({}, release=name, namespace="x")
        assert rendered.objects["demo/templates/a.yaml"] == [{"r": fits}]
    await renderer.aclose()


async def test_strict(write: Write) -> None:
    path = write("a: {{ .Values.missing }}")
    assert (await render(path)).objects["demo/templates/a.yaml"] == [{"a": None}]
    with pytest.raises(TemplateError, match="no entry for key"):
        await render(path, strict=True)


if HELM:

    async def test_engines_agree_on_the_packaged_chart(monkeypatch: pytest.MonkeyPatch) -> None:
        path = default_chart()
        values = json.loads((Path(__file__).parents[1] / "data" / "values.json").read_text())
        by_library = await render(path, values, kube_version="v1.33.0")
        monkeypatch.setattr(renderers, "library_folder", lambda: None)
        by_command = await render(path, values, kube_version="v1.33.0")
        assert by_command.objects == by_library.objects
        assert by_command.digest == by_library.digest


# What is refused


@pytest.mark.parametrize(
    ("template", "values", "words"),
    [
        ("a: {{ .Values.x.y.z }}", {}, "templates/a.yaml:1"),
        ("a: {{ required `name it` .Values.x }}", {}, "name it"),
        ("a: {{ fail `no` }}", {}, "no"),
        ("a: {{ nope }}", {}, 'function "nope" not defined'),
        ("a: {{ env `HOME` }}", {}, 'function "env" not defined'),
        ("a: {{ if }}", {}, "missing value for if"),
        ("a: b: c", {}, "mapping values are not allowed"),
        (ECHO, {"port": "x"}, "/port"),
    ],
)
async def test_errors_say_where(
    engine: str, write: Write, template: str, values: dict[str, Any], words: str
) -> None:
    schema = '{"properties": {"port": {"type": "integer"}}}'
    with pytest.raises(TemplateError) as caught:
        await render(write(template, **{"values.schema.json": schema}), values)
    assert words in str(caught.value)
    assert "demo" in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        '{"properties": {"n": {"type": "integer"}}, "required": ["must"]}',
        '{"allOf": [{"properties": {"n": {"type": "integer"}}, "required": ["must"]}]}',
        '{"properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}',
    ],
)
async def test_values_that_fitted_once_are_judged_by_what_differs(
    engine: str, write: Write, schema: str
) -> None:
    path = write(**{"values.schema.json": schema})
    renderer = open_renderer(path, kube_version=None, log=LOG)

    async def fits(**values: Any) -> bool:
        try:
            await renderer.render(values, release="x", namespace="y")
        except TemplateError:
            return False
        return True

    assert await fits(n=1, must="a")
    assert await fits(n=1, must="b", more=[])
    assert not await fits(n="1", must="a")
    assert "must" not in schema or not await fits(n=1)
    assert await fits(n=2, must="a")
    write(**{"values.schema.json": '{"properties": {"n": {"type": "string"}}}'})
    assert not await fits(n=1, must="a")
    await renderer.aclose()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": {"b": [Path("/x")]}}, r"a\.b\[0\] is a PosixPath"),
        ({"a": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, "a is a datetime"),
        ({"env": {"A": {1}}}, r"env\.A is a set"),
        ({"a": float("nan")}, "a is nan"),
        ({"a": float("-inf")}, "a is -inf"),
        ({"a": {1: 2}}, "a has the key 1"),
        ({"a": "\udce4"}, "a holds bytes"),
        ({"a": b"x"}, "a is a bytes"),
    ],
)
async def test_values_that_are_not_json(write: Write, values: dict[str, Any], words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        await render(write(), values)


class _Broken(Mapping[str, Any]):
    """A mapping of an administrator's own that fails, as a lazy one may."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, key: str) -> Any:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


def _deep(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (_deep(50_000), r"a\.a\.a.* levels deep"),
        ({"user_options": [_deep(50_000)]}, r"user_options\[0\]\.a.* levels deep"),
        (_Broken(LookupError("hush")), "rendered with these values: LookupError"),
        ({"b": _Broken(RecursionError())}, "rendered with these values: RecursionError"),
        ({"b": [_Broken(OSError("hush"))]}, "rendered with these values: OSError"),
        ([("a", 1)], "values are a list, but must be a dictionary"),
        (None, "values are a NoneType, but must be a dictionary"),
        ({object(): 1}, "has the key"),
    ],
)
async def test_whatever_the_values_are_the_error_is_ours(
    write: Write, values: Any, words: str
) -> None:
    renderer = open_renderer(write(), kube_version=None, log=LOG)
    with pytest.raises(TemplateError, match=words) as error:
        await renderer.render(values, release="alice", namespace="users")
    assert "hush" not in str(error.value)


class _Size(str, Enum):  # noqa: UP042 - `str` of a StrEnum gives the value
    SMALL = "small"


class _Level(IntEnum):
    LOW = 1


async def test_of_an_enum_the_value_is_rendered(write: Write) -> None:
    rendered = await render(write(), {"a": _Size.SMALL, "b": {_Size.SMALL: _Level.LOW}})
    assert rendered.objects["demo/templates/a.yaml"] == [
        {"values": {"a": "small", "b": {"small": 1}}}
    ]


@pytest.mark.parametrize("schema", ['{"properties": null}', "[" * 100_000, "5", "\x00"])
async def test_a_schema_that_is_none_is_helms_to_refuse(write: Write, schema: str) -> None:
    path = write(**{"values.schema.json": schema})
    with pytest.raises(TemplateError, match=r"not valid against metaschema|invalid JSON in values"):
        await render(path, {"a": 1})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"Chart.yaml": "name: demo\nversion: 1.0.0\n"}, "needs `apiVersion`"),
        ({"Chart.yaml": ABOUT + "type: library\n"}, "library chart"),
        ({"Chart.yaml": "a: b: c"}, "Chart.yaml, line 1"),
        ({"Chart.yaml": "- a"}, "one YAML mapping"),
        ({"Chart.yaml": ABOUT + "dependencies: [{name: db, version: 1.0.0}]\n"}, "depends on 'db'"),
        (
            {"requirements.yaml": "dependencies: [{name: db, version: 1.0.0}]\n"},
            "helm dependency build",
        ),
        ({"Chart.yaml": ABOUT + "dependencies: 5\n"}, "Chart.yaml needs `dependencies` as a list"),
        ({"requirements.yaml": "dependencies: {name: db}\n"}, "requirements.yaml needs `depend"),
        ({"templates/\udcff.yaml": "v: 1\n"}, r"file 'templates/\\udcff.yaml', whose name is not"),
    ],
)
def test_charts_that_cannot_render(write: Write, files: dict[str, str], words: str) -> None:
    path = write(**files)
    with pytest.raises(TemplateError, match=words):
        check_template(path)


def test_a_dependency_may_be_packed(write: Write) -> None:
    about = ABOUT + "dependencies: [{name: db, version: 1.0.0}]\n"
    check_template(write(**{"Chart.yaml": about, "charts/db-1.0.0.tgz": "x"}))
    check_template(write(**{"Chart.yaml": about, "charts/db/Chart.yaml": "x"}))


def test_paths_that_hold_no_chart(tmp_path: Path, write: Write) -> None:
    with pytest.raises(TemplateError, match=r"no template at .*Chart\.yaml"):
        check_template(tmp_path / "nowhere")
    with pytest.raises(TemplateError, match=r"name that one"):
        check_template(write().parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TemplateError, match=r"templates__pod\.yaml"):
        check_template(tmp_path / "empty")
    with pytest.raises(TemplateError, match="neither a folder"):
        check_template(write() / "Chart.yaml")
    (tmp_path / "bad.tgz").write_text("no archive")
    with pytest.raises(TemplateError, match="cannot be unpacked"):
        check_template(tmp_path / "bad.tgz")
    lines = b"".join(b"%d\n" % number for number in range(100_000))
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as packed:
        part = tarfile.TarInfo("demo/values.yaml")
        part.size = len(lines)
        packed.addfile(part, io.BytesIO(lines))
    damaged = bytearray(whole.getvalue())
    half = len(damaged) // 2
    damaged[half : half + 500] = b"\xff" * 500
    (tmp_path / "bad.tgz").write_bytes(damaged)
    with pytest.raises(TemplateError, match=r"cannot be unpacked: .*invalid"):
        check_template(tmp_path / "bad.tgz")
    loop = write()
    (loop / "templates" / "again").symlink_to(loop)
    with pytest.raises(TemplateError, match="circular"):
        check_template(loop)


# Where charts come from


async def test_archives_and_folders_are_one_chart(engine: str, write: Write) -> None:
    folder = write()
    archive = folder.parent / "demo-0.1.0.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, "demo")
    check_template(archive)
    from_folder, from_archive = await render(folder), await render(archive)
    assert from_archive == from_folder


async def test_an_archive_cannot_write_elsewhere(tmp_path: Path, write: Write) -> None:
    archive = tmp_path / "demo.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(write() / "Chart.yaml", "demo/../../Chart.yaml")
    with pytest.raises(TemplateError, match="not a chart"):
        check_template(archive)


@pytest.mark.parametrize("key", ["a__..__..__x", "__tmp__x", "..__x"])
def test_a_flat_chart_cannot_write_elsewhere(tmp_path: Path, key: str) -> None:
    for name, text in {"Chart.yaml": ABOUT, "templates__a.yaml": "v: 1\n", key: "x"}.items():
        (tmp_path / name).write_text(text)
    if key.startswith(".."):  # the kubelet's own, which no chart's file is called by
        check_template(tmp_path)
    else:
        with pytest.raises(TemplateError, match=r"outside of it.*rename that key"):
            check_template(tmp_path)


@pytest.mark.parametrize("name", ["a/../../x", "{folder}/x", "../x"])
async def test_the_worker_writes_in_its_own_folder_only(tmp_path: Path, name: str) -> None:
    name = name.format(folder=tmp_path)
    files = {"Chart.yaml": ABOUT.encode(), "templates/a.yaml": b"v: 1\n", name: b"x"}
    worker = SharedWorker(LOG)
    request = Request(charts.Chart("demo", files), "{}", "a", "b", None, strict=False)
    with pytest.raises(TemplateError, match="lies outside the chart"):
        await worker.render(request, 10)
    assert not (tmp_path / "x").exists()
    await worker.aclose()


def mount(folder: Path, version: str, files: Mapping[str, str]) -> None:
    """What the kubelet does for a ConfigMap: a new folder, then one link replaced."""
    data = folder / f"..{version}"
    data.mkdir(parents=True)
    for name, text in files.items():
        (data / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").replace(folder / "..data")


async def test_a_config_map_that_is_replaced(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    files = {"Chart.yaml": ABOUT, "templates__a.yaml": "v: 1\n"}
    mount(folder, "1", files)
    check_template(folder)
    first = await render(folder)
    mount(folder, "2", files | {"templates__a.yaml": "v: 2\n"})
    second = await render(folder)
    assert first.objects == {"demo/templates/a.yaml": [{"v": 1}]}
    assert second.objects == {"demo/templates/a.yaml": [{"v": 2}]}
    assert first.digest != second.digest


async def test_a_broken_edit_leaves_the_chart_as_it_was(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("v: 1\n")
    first = await render(path)
    (path / "Chart.yaml").write_text("name: [")
    assert await render(path) == first
    assert "new version is broken" in caplog.text
    write("v: 2\n")
    assert (await render(path)).objects == {"demo/templates/a.yaml": [{"v": 2}]}


# Bad templates and lost processes


def worker_id() -> int:
    """The one worker of this event loop, seen from outside."""
    listing = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    (one,) = (
        int(child)
        for child in listing
        if b"helm/process.py" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    return one


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
async def test_a_template_that_never_ends_is_killed(write: Write) -> None:
    path = write("{{ if .Values.bad }}" + RUNAWAY + "{{ end }}a: 1\n")
    await render(path, timeout=1)
    worker = worker_id()
    with pytest.raises(TemplateError, match="within 1 seconds"):
        await render(path, {"bad": True}, timeout=1)
    assert (await render(path, timeout=1)).objects == {"demo/templates/a.yaml": [{"a": 1}]}
    assert not is_running(worker)


@pytest.mark.parametrize(
    "template",
    ["{{ $d := dict }}{{ $_ := set $d `a` $d }}{{ $d }}", "a: {{ repeat 1000000000 `x` | len }}"],
    ids=["endless", "huge"],
)
async def test_a_template_that_ends_helm(write: Write, template: str) -> None:
    """Go ends the whole process in both cases, which must not be the hub."""
    path = write("{{ if .Values.bad }}" + template + "{{ end }}a: 1\n")
    with pytest.raises(TemplateError, match=r"Helm ended|MiB|cannot be rendered"):
        await render(path, {"bad": True})
    assert (await render(path)).objects == {"demo/templates/a.yaml": [{"a": 1}]}


async def test_too_much_output(write: Write) -> None:
    with pytest.raises(TemplateError, match="more than 16 MiB"):
        await render(write("a: {{ repeat 17000000 `x` }}"))


@linux
async def test_a_lost_worker_is_replaced(write: Write) -> None:
    path = write("a: 1\n")
    await render(path)
    os.kill(worker_id(), signal.SIGKILL)
    assert (await render(path)).objects == {"demo/templates/a.yaml": [{"a": 1}]}


async def test_replies_never_reach_another_request(write: Write) -> None:
    """Cancelled ones among them: a late reply would hold another user's token."""
    path = write("who: {{ .Values.who }}\n{{ if .Values.slow }}" + RUNAWAY + "{{ end }}")

    async def one(number: int) -> None:
        values = {"who": f"user{number}", "slow": number % 10 == 3}
        task = asyncio.create_task(render(path, values))
        if values["slow"]:
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert (await task).objects["demo/templates/a.yaml"] == [{"who": f"user{number}"}]

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(one(number))


@linux
async def test_the_worker_has_limits_and_nothing_of_the_hub(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_CRYPT_KEY", "s3cret")
    await renderers.close_renderers()
    await render(write())
    worker = Path(f"/proc/{worker_id()}")
    names = {line.split(b"=")[0] for line in (worker / "environ").read_bytes().split(b"\0") if line}
    assert names <= {b"LANG", b"GOGC", b"LC_CTYPE", b"TMPDIR", b"HELM_C_LIB", b"LD_LIBRARY_PATH"}
    limits = (worker / "limits").read_text()
    assert f"Max address space         {2 << 30}" in limits
    assert "Max core file size        0" in limits
    assert os.getsid(int(worker.name)) == int(worker.name)


@linux
@pytest.mark.parametrize("busy", [False, True])
def test_the_worker_ends_with_its_hub(write: Write, busy: bool) -> None:
    """Also when the hub is killed and the worker is in the middle of a render."""
    path = write("{{ if .Values.busy }}" + RUNAWAY + "{{ end }}a: 1\n")
    program = f"""
import asyncio, logging, os, pathlib
from lightkube_template_spawner.templates.renderer import open_renderer

async def main():
    renderer = open_renderer(pathlib.Path({str(path)!r}), kube_version=None, log=logging.root)
    await renderer.render({{}}, release="a", namespace="b")
    print(open(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read().strip(), flush=True)
    await renderer.render({{"busy": {busy}}}, release="a", namespace="b")
    await asyncio.sleep(60)

asyncio.run(main())
"""
    hub = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert hub.stdout is not None
    worker = int(hub.stdout.readline())
    time.sleep(0.2)
    assert is_running(worker)
    hub.kill()
    hub.wait()
    hub.stdout.close()
    deadline = time.monotonic() + 5
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(worker)


@linux
async def test_closing_leaves_no_process(write: Write) -> None:
    path = write()
    renderer = open_renderer(path, kube_version=None, log=LOG)
    assert open_renderer(path, kube_version=None, log=LOG) is renderer
    await render(path)
    worker = worker_id()
    await renderers.close_renderers()
    assert not is_running(worker)
    assert open_renderer(path, kube_version=None, log=LOG) is not renderer


# Secrets


async def test_errors_do_not_quote_the_environment(engine: str, write: Write) -> None:
    schema = '{"properties": {"env": {"properties": {"PASS": {"pattern": "^$"}}}}}'
    env = {"JUPYTERHUB_API_TOKEN": 'to"ken{{', "PASS": "pwd", "N": "1", "LONG": "long enough"}
    shown: tuple[tuple[str, dict[str, str], str], ...] = (
        ("{{ tpl .Values.env.JUPYTERHUB_API_TOKEN . }}", {}, "[env JUPYTERHUB_API_TOKEN]"),
        ("{{ fail .Values.env.LONG }}", {}, "[env LONG]"),
        (ECHO, {"values.schema.json": schema}, "[env PASS]"),
    )
    for template, files, words in shown:
        with pytest.raises(TemplateError) as caught:
            await render(write(template, **files), {"env": env})
        message = str(caught.value)
        assert words in message
        assert not any(secret in message for secret in ('to"ken', 'to\\"ken', "pwd", "long en"))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


# The command


STAND_IN = """#!{python}
import json, os, pathlib, sys, time
text = sys.stdin.read()
chart = pathlib.Path(sys.argv[3])
seen = dict(argv=sys.argv[1:], env=dict(os.environ), values=json.loads(text), text=text,
            chart=sorted(str(p.relative_to(chart)) for p in chart.rglob("*") if p.is_file()))
pathlib.Path({seen!r}).write_text(json.dumps(seen))
if seen["values"].get("slow"):
    time.sleep(60)
if seen["values"].get("bad"):
    sys.exit("Error: template: demo/templates/a.yaml:1:2: " + seen["values"]["bad"])
print('''---
# Source: demo/templates/b.yaml
kind: Secret
---
# Source: demo/templates/a.yaml
kind: Pod
---
# Source: demo/templates/b.yaml
kind: Service
---
# Source: demo/templates/NOTES.txt
hello''')
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `helm` that writes down how it was called; the real one is tested when it is there."""
    program = tmp_path / "bin" / "helm"
    program.parent.mkdir()
    seen = tmp_path / "seen.json"
    program.write_text(STAND_IN.format(python=sys.executable, seen=str(seen)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(renderers, "library_folder", lambda: None)
    return seen


async def test_the_command_gets_values_on_its_input_only(
    stand_in: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_CRYPT_KEY", "s3cret")
    values = {"env": {"JUPYTERHUB_API_TOKEN": "tok3n"}, "unescaped_username": "🎉"}
    rendered = await render(write(), values, kube_version="1.33.0", tainted=())
    seen = json.loads(stand_in.read_text())  # noqa: ASYNC240 - a test may wait for a disk
    assert seen["values"] == values
    assert "🎉" in seen["text"]
    command, release, chart, *options = seen["argv"]
    assert (command, release) == ("template", "alice")
    assert options == ["--namespace", "users", "--values", "-", "--kube-version", "1.33.0"]
    assert "tok3n" not in " ".join(seen["argv"])
    assert set(seen["env"]) - {"LC_CTYPE"} == {"PATH", "HOME", "HELM_NO_PLUGINS"}
    assert seen["chart"] == ["Chart.yaml", "templates/a.yaml"]
    assert rendered.objects == {
        "demo/templates/a.yaml": [{"kind": "Pod"}],
        "demo/templates/b.yaml": [{"kind": "Secret"}, {"kind": "Service"}],
    }
    assert not os.path.exists(chart)  # noqa: PTH110, ASYNC240 - went with the renderer


async def test_the_command_fails(stand_in: Path, write: Write) -> None:
    values = {"bad": "has tok3n inside", "env": {"T_TOKEN": "tok3n"}}
    with pytest.raises(TemplateError, match=r"a\.yaml:1:2: has \[env T_TOKEN\] inside"):
        await render(write(), values, tainted=())


async def test_the_command_is_removed_while_the_hub_runs(stand_in: Path, write: Write) -> None:
    renderer = open_renderer(write(), kube_version=None, log=LOG)
    (stand_in.parent / "bin" / "helm").unlink()
    with pytest.raises(TemplateError, match=r"Helm cannot be run: .*No such file.*bin/helm"):
        await renderer.render({}, release="alice", namespace="users")
    await renderer.aclose()


async def test_the_command_is_killed(stand_in: Path, write: Write) -> None:
    with pytest.raises(TemplateError, match=r"within 0\.5 seconds"):
        await render(write(), {"slow": True}, timeout=0.5)


async def test_no_helm_at_all(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderers, "library_folder", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TemplateError, match=r"pip install .*\[helm\].*PATH"):
        open_renderer(write(), kube_version=None, log=LOG)


async def test_a_library_that_does_not_load(
    stand_in: Path, write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on Alpine: the wheel is there, its library is of no use."""
    monkeypatch.undo()
    junk = stand_in.parent / "libhelm_c.so"
    junk.write_text("not a library")
    monkeypatch.setenv("HELM_C_LIB", str(junk))
    await renderers.close_renderers()
    if HELM is None:
        with pytest.raises(TemplateError, match=r"\[helm\].*could not load it"):
            await render(write())
    monkeypatch.setenv("PATH", f"{stand_in.parent / 'bin'}:{os.environ['PATH']}")
    assert "demo/templates/b.yaml" in (await render(write())).objects
    assert "Using the helm command" in caplog.text
    await renderers.close_renderers()
