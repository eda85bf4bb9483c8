"""kind's part, played through with stand-ins for the engine and its programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from e2e.cluster import build, components, images, kind, record
from e2e.cluster.model import FAKE_NODE

SCRIPT = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
  *Gateway*) echo 172.18.0.1;;
  *IPAddress*) echo 172.18.0.2;;
  *IPPrefixLen*) echo 16;;
  *"get storageclasses"*) echo '{"items": [{"metadata": {"name": "standard"}}]}';;
  "route show"*) echo "10.244.0.0/16 via 172.18.0.2";;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "kind", "ip", "sudo", "kubectl"):
        (programs / name).write_text(SCRIPT)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("LTS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    archive = tmp_path / "image.tar"
    archive.write_text("an image")
    monkeypatch.setattr(images, "archives", lambda cache, log: [archive])
    monkeypatch.setattr(build, "build", lambda cache, which, log: programs)
    for part in ("kwok", "provisioner"):
        monkeypatch.setattr(components, part, lambda *a, **k: ["sleep", "100"])
    return tmp_path / "calls"


def test_up_and_down_on_kind(calls: Path) -> None:
    cluster = kind.up(None, "c", lambda _: None)
    assert cluster.provider == "kind"
    assert cluster.host_address == "172.18.0.1"
    assert (cluster.node, cluster.fake_node) == ("c-control-plane", FAKE_NODE)
    said = calls.read_text()
    assert "kind create cluster --name c --wait 180s --config" in said
    assert "sudo -n ip route replace 10.244.0.0/16 via 172.18.0.2" in said
    assert "sudo -n ip route replace 10.96.0.0/16 via 172.18.0.2" in said
    assert "storageclass/standard storageclass.kubernetes.io/is-default-class=false" in said
    assert said.count("kind load image-archive") == 1

    saved = record.load()
    assert saved is not None
    assert kind.up(saved, "c", lambda _: None) == cluster
    assert calls.read_text().count("kind load image-archive") == 1

    kind.down(saved, lambda _: None)
    assert "kind delete cluster --name c" in calls.read_text()
    assert "sudo -n ip route delete 10.244.0.0/16" in calls.read_text()
    assert not any(process.alive() for process in saved.processes)
    assert record.load() is None


def test_the_settings_fit_both_versions_of_kubeadm() -> None:
    patches = [json.loads(patch) for patch in kind.settings()["kubeadmConfigPatches"]]
    arguments = {
        patch["apiVersion"]: patch["controllerManager"]["extraArgs"]
        for patch in patches
        if patch["kind"] == "ClusterConfiguration"
    }
    name, value = "node-monitor-grace-period", "10s"
    assert arguments == {
        "kubeadm.k8s.io/v1beta3": {name: value},
        "kubeadm.k8s.io/v1beta4": [{"name": name, "value": value}],
    }
