"""The parts of the end-to-end harness that need no hub, no registry and no cluster."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from e2e.cluster import user_image as image
from e2e.harness import hub, proxy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("tmp", image.HOME, "bin"):
        (root / folder).mkdir(parents=True)
    tool = root / "bin/tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o700)
    (root / "bin/same").hardlink_to(tool)
    (root / "bin/link").symlink_to("tool")
    return root


def layer_of(archive: Path) -> tuple[dict[str, tarfile.TarInfo], dict[str, object], str]:
    with tarfile.open(archive) as tar:
        (manifest,) = json.load(_member(tar, "manifest.json"))
        config = json.load(_member(tar, manifest["Config"]))
        assert manifest["RepoTags"] == [image.IMAGE]
        content = _member(tar, manifest["Layers"][0]).read()
        with tarfile.open(fileobj=_member(tar, manifest["Layers"][0])) as layer:
            entries = {info.name: info for info in layer}
    return entries, config, f"sha256:{hashlib.sha256(content).hexdigest()}"


def _member(tar: tarfile.TarFile, name: str) -> tarfile.ExFileObject:
    file = tar.extractfile(name)
    assert isinstance(file, tarfile.ExFileObject)
    return file


def test_the_archive_is_what_importers_expect(root: Path, tmp_path: Path) -> None:
    image._write_archive(root, tmp_path / "image.tar")
    entries, config, digest = layer_of(tmp_path / "image.tar")
    assert config["rootfs"] == {"type": "layers", "diff_ids": [digest]}
    assert (entries[image.HOME].uid, entries[image.HOME].gid) == (1000, 100)
    assert entries["tmp"].mode == 0o1777
    assert entries["bin/tool"].mode == 0o755
    assert entries["bin/link"].linkname == "tool"


def test_hard_links_are_written_as_files(root: Path, tmp_path: Path) -> None:
    image._write_archive(root, tmp_path / "image.tar")
    entries, _, _ = layer_of(tmp_path / "image.tar")
    assert entries["bin/same"].isreg()
    assert entries["bin/tool"].isreg()


def test_the_same_files_make_the_same_archive(root: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first/image.tar", tmp_path / "second/image.tar"
    for archive in (first, second):
        archive.parent.mkdir()
        image._write_archive(root, archive)
        os.utime(root / "bin/tool", (1, 1))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("folder", "name", "skipped"),
    [
        ("lib/site-packages", "rfc3987_syntax", True),
        ("lib/site-packages", "jupyterhub", False),
        ("lib/site-packages/x", "tests", True),
        ("lib/site-packages", "pip-26.0.dist-info", True),
        ("lib/python3.11", "config-3.11-x86_64-linux-gnu", True),
        ("share/jupyter/lab/static", "main.js", False),
        ("share/jupyter/lab/static", "main.js.map", True),
    ],
)
def test_what_no_server_reads_stays_out(folder: str, name: str, skipped: bool) -> None:
    assert image._ignored(folder, [name]) == ({name} if skipped else set())


@pytest.mark.parametrize(("version", "found"), [("v18.20.0", False), ("v20.1.0", True)])
def test_an_old_node_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, found: bool
) -> None:
    for name in ("node", "npm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (proxy._node_on_path() is not None) == found


def test_an_installed_proxy_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"configurable-http-proxy-{proxy.VERSION}"
    folder.mkdir()
    monkeypatch.setattr(proxy, "_node_on_path", lambda: (Path("/node"), ["/npm"]))
    command = proxy.install_proxy(tmp_path, pytest.fail)
    assert command[0] == "/node"
    assert command[1].startswith(str(folder))


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("Ünï@x.org", "users/%C3%9Cn%C3%AF%40x.org"),
        ('a"b: {c}', "users/a%22b%3A%20%7Bc%7D"),
        ("a+b", "users/a%2Bb"),
    ],
)
def test_names_are_quoted_in_paths(name: str, quoted: str) -> None:
    assert hub.user_path(name) == quoted


def test_the_default_server_has_an_empty_last_part() -> None:
    assert hub.user_path("a", "servers", "") == "users/a/servers/"


def test_settings_become_configuration_text() -> None:
    text = hub._config_text({"Spawner": {"cmd": ["x"], "debug": True}})
    assert text == "c.Spawner.cmd = ['x']\nc.Spawner.debug = True\n"


def test_no_secret_is_in_the_configuration_file() -> None:
    one = hub.Hub("", proxy_command=["proxy"])
    for secret in (one.user_password, one.admin_password, one.api_token):
        assert secret not in one._config
