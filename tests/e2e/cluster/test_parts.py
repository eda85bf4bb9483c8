"""The parts of the test cluster that can be tried without one."""

from __future__ import annotations

import json
import os
import tarfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e import cluster as clusters
from e2e.cluster import build, images, network, processes, record
from e2e.cluster.__main__ import main
from e2e.cluster.local import node
from e2e.cluster.local.layout import Layout
from e2e.cluster.model import NODE, PAUSE_IMAGE, ClusterError, cache_folder, run_folder
from e2e.cluster.packages import Packages
from e2e.cluster.user_image import IMAGE


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own: a running cluster is neither seen nor touched."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("LTS_CACHE_DIR", str(cache))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("E2E_KUBECONFIG", raising=False)
    return cache


def program(folder: Path, name: str, text: str) -> Path:
    """A stand-in for a program."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_cache_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LTS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lightkube-template-spawner"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lightkube-template-spawner"


def test_processes_are_found_by_their_mark_and_ended(tmp_path: Path) -> None:
    started = processes.start("one", ["sleep", "100"], tmp_path / "log")
    assert started.alive()
    assert started.pid in processes.marked()
    assert not processes.Process("one", started.pid, started.started + 1).alive()
    processes.stop([started.pid], grace=5)
    assert not started.alive()
    assert not Path(f"/proc/{started.pid}").exists()
    processes.stop([started.pid])


def test_a_process_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    command = ["sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.1; done"]
    started = processes.start("deaf", command, tmp_path / "log")
    while "on" not in processes.tail(tmp_path / "log"):
        time.sleep(0.01)
    processes.stop([started.pid], grace=0.2)
    assert not started.alive()


def test_the_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    assert record.load() is None
    saved = record.Record("c", "local", str(tmp_path), processes=[processes.Process("x", 1, 2)])
    saved.save()
    assert record.load() == saved
    cluster = clusters.Cluster(
        provider="local",
        name="c",
        kubeconfig=tmp_path / "config",
        kubectl=tmp_path / "kubectl",
        host_address="10.0.0.1",
        node="n",
        fake_node="f",
        storage_classes=clusters.StorageClasses("a", "b"),
    )
    saved.finish(cluster)
    assert clusters.status() == cluster


def test_another_name_is_refused_in_one_sentence() -> None:
    record.Record("one", "local", "/nowhere").save()
    with pytest.raises(ClusterError, match="the cluster 'one' runs on this machine") as caught:
        clusters.up("two", lambda _: None)
    assert "\n" not in str(caught.value)


def test_the_lock_lets_the_second_wait_and_leaves_no_file() -> None:
    said: list[str] = []
    order = []

    def second() -> None:
        with record.locked(said.append):
            order.append("second")

    with ThreadPoolExecutor() as pool:
        with record.locked(said.append):
            waiting = pool.submit(second)
            while not said:
                time.sleep(0.01)
            order.append("first")
        waiting.result()
    assert order == ["first", "second"]
    assert "waiting for it" in said[0]
    assert not run_folder().with_suffix(".lock").exists()


def test_no_engine_and_no_root_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.kind, "engine", lambda: "")
    with pytest.raises(ClusterError, match=r"no Docker or Podman answers.* needs root") as caught:
        clusters.up(log=lambda _: None)
    assert "\n" not in str(caught.value)


def test_the_command_line_shows_no_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusters.kind, "engine", lambda: "")
    for arguments, message in (
        (["up"], "no cluster can run here"),
        (["status"], "no cluster runs here"),
        (["env"], "no cluster runs here"),
    ):
        monkeypatch.setattr("sys.argv", ["e2e.cluster", *arguments])
        assert main() == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert message in said.err
        assert "Traceback" not in said.err
    monkeypatch.setattr("sys.argv", ["e2e.cluster", "down"])
    assert main() == 0


def test_a_given_cluster_is_described_and_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tainted = {"metadata": {"name": "a"}, "spec": {"taints": [{}]}}
    nodes = {"items": [tainted, {"metadata": {"name": "b"}, "spec": {}}]}
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    classes = {"items": [{"metadata": {"name": "fast", "annotations": default}}]}
    view = {"clusters": [{"cluster": {"server": "https://127.0.0.1:6443"}}]}
    script = f"""case "$*" in
  *"get nodes"*) echo '{json.dumps(nodes)}';;
  *"get storageclasses"*) echo '{json.dumps(classes)}';;
  *"config view"*) echo '{json.dumps(view)}';;
  *) exit 1;;
esac"""
    program(tmp_path / "bin", "kubectl", script)
    (tmp_path / "config").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("E2E_KUBECONFIG", str(tmp_path / "config"))
    for name in ("NODE", "FAKE_NODE", "STORAGE_CLASSES", "HOST_ADDRESS", "IMAGE"):
        monkeypatch.delenv(f"E2E_{name}", raising=False)
    found = clusters.up(log=lambda _: None)
    assert (found.provider, found.node, found.host_address) == ("given", "b", "127.0.0.1")
    assert found.storage_classes == ("fast", "fast")
    clusters.down(log=lambda _: None)


def test_toml_is_what_a_reader_of_toml_understands() -> None:
    document = {
        "version": 2,
        "off": False,
        "list": ["a", "b"],
        "plugins": {"io.x.y": {"deep": {"text": 'quoted "so"'}}, "flat": 1},
    }
    assert tomllib.loads(node.toml(document)) == document


def test_settings_of_the_components_are_well_formed(tmp_path: Path) -> None:
    programs = Packages(tmp_path / "packages")
    for name in ("containerd", "runc"):
        program(tmp_path / "packages/bin", name, "exit 0")
    at = Layout(data=tmp_path, run=tmp_path, built=tmp_path, images=tmp_path, programs=programs)
    (tmp_path / "volumes").mkdir()
    assert "unshare" in node.containerd(at)
    settings = tomllib.loads((tmp_path / "containerd.toml").read_text())
    assert settings["plugins"]["io.containerd.grpc.v1.cri"]["restrict_oom_score_adj"] is True
    assert json.loads((tmp_path / "cni/10-bridge.conflist").read_text())["plugins"]
    kubelet = node.kubelet(at, 42)
    assert kubelet[:4] == ["nsenter", "--target", "42", "--mount"]
    assert json.loads((tmp_path / "kubelet.json").read_text())["failCgroupV1"] is False
    assert f"--hostname-override={NODE}" in kubelet


def test_a_machine_that_uses_our_addresses_is_refused(tmp_path: Path) -> None:
    routes = [{"dst": "default"}, {"dst": "10.244.3.0/24", "dev": "vpn0"}]
    program(tmp_path / "bin", "ip", f"echo '{json.dumps(routes)}'")
    with pytest.raises(ClusterError, match=r"10\.244\.3\.0/24 \(vpn0\)"):
        network.refuse_overlap(str(tmp_path / "bin/ip"))


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that notes each call and writes two small files."""
    build_call = 'echo "$@" >> "$CALLS"; echo pkg >&2; [ -z "$BROKEN" ] || exit 1'
    script = f"""
case $1 in
  env) echo go1.99.0;;
  list) echo {tmp_path}/kwok;;
  build) {build_call}
    while [ "$1" != -o ]; do shift; done; echo x > "$2/server"; echo y > "$2/kwok";;
esac"""
    program(tmp_path / "bin", "go", script)
    for name in build.KWOK_STAGES:
        path = tmp_path / "kwok/kustomize/stage" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kind: Stage\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def test_programs_are_built_once_and_again_when_the_recipe_changes(
    go: Path, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.build(apart, "local", lambda _: None)
    assert {path.name for path in first.iterdir()} == {"etcd", "kwok", "kwok-stages.yaml"}
    assert build.build(apart, "local", lambda _: None) == first
    assert len(go.read_text().splitlines()) == 1
    monkeypatch.setattr(build, "RECIPE", -1)
    second = build.build(apart, "local", lambda _: None)
    assert [*second.parent.iterdir()] == [second]
    assert second != first


def test_a_broken_build_leaves_nothing_and_says_why(
    go: Path, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(ClusterError, match=r"go build of components failed:\npkg"):
        build.build(apart, "local", lambda _: None)
    assert not any((apart / "built").iterdir())


def test_no_registry_is_named_in_the_module_files() -> None:
    for path in build.MODULES.rglob("go.*"):
        assert "://" not in path.read_text()


def test_the_tiny_archive_holds_two_images_of_one_layer(tmp_path: Path, apart: Path) -> None:
    busybox = program(tmp_path / "bin", "busybox", "echo sh sleep busybox")
    archive = images.tiny_archive(apart, busybox)
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        names = {name for one in manifest for name in one["RepoTags"]}
        assert names == {clusters.TINY_IMAGE, PAUSE_IMAGE}
        with tarfile.open(fileobj=tar.extractfile("layer.tar")) as layer:
            assert layer.getmember("bin/sleep").linkname == "busybox"
            assert layer.getmember("tmp").mode == 0o1777
    before = archive.stat().st_ino
    assert images.tiny_archive(apart, busybox).stat().st_ino == before


def test_an_archive_is_loaded_again_only_when_it_changed(tmp_path: Path) -> None:
    archive, note = tmp_path / "a.tar", tmp_path / "note.json"
    loaded: list[Path] = []
    archive.write_text("one")
    for _ in range(2):
        images.load(archive, note, loaded.append, lambda _: None)
    assert loaded == [archive]
    archive.write_text("other")
    images.load(archive, note, loaded.append, lambda _: None)
    assert len(loaded) == 2


def test_the_user_image_has_one_name() -> None:
    assert IMAGE == "localhost/user-server:e2e"
