"""The user-server image, made from a virtual environment: there may be no registry and no engine.

The archive is a plain docker-archive, so `ctr images import` and `kind load image-archive` both
take it. Its one layer holds the base Python at its own path, the environment at `/opt/env`, and
every shared library that they load.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

IMAGE = "localhost/user-server:e2e"
ENV = "opt/env"
HOME = "home/jovyan"
UID, GID = 1000, 100
TOOLS = ["sh", "cat", "cp", "date", "df", "env", "head", "id", "ls", "mkdir", "mv", "ps", "rm"]
TOOLS += ["sleep", "stat", "tail", "touch", "true"]
TEXTS = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\njovyan:x:1000:100::/home/jovyan:/bin/sh\n",
    "etc/group": "root:x:0:\nusers:x:100:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
# Left out: what only a developer of the package, or a browser's debugger, reads.
SKIPPED_DIRS = frozenset({"__pycache__", "test", "tests", "site-packages", "dist-packages"})
SKIPPED_NAMES = re.compile(
    r"config-3\..*|idlelib|tkinter|turtledemo|ensurepip|pydoc_data"
    r"|pip|pip-.*\.dist-info|.*\.(map|a|pyi|h|md)|yarn\.js"
)
SKIPPED_PATHS = (
    "rfc3987_syntax",  # optional to jsonschema; its grammar costs 2.2 s of every server's start
    "share/jupyterhub/static/components",  # browsers get these from the hub
    "jupyterlab/static",  # the copy for --core-mode
    "jupyterlab/galata",
)
BABEL_KEPT = re.compile(r"(root|en)(_.*)?\.dat")


def build_image(cache: Path, log: Callable[[str], None]) -> Path:
    """Return the archive that holds `IMAGE`, building it unless the cache has it.

    The name in the cache stands for this Python, the packages asked for and this recipe.
    """
    packages = ["jupyterlab", "ipykernel", _jupyterhub()]
    key = hashlib.sha256()
    for part in (sys.version, platform.machine(), platform.libc_ver(), packages):
        key.update(repr(part).encode())
    key.update(Path(__file__).read_bytes())
    archive = cache / f"user-server-{key.hexdigest()[:16]}.tar"
    if archive.exists():
        log(f"user image: {archive.name} is in the cache")
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache, prefix="user-server-") as work:
        environment, root = Path(work, "env"), Path(work, "root")
        log(f"user image: installing {', '.join(packages)} (up to a minute)")
        _install(environment, packages)
        log("user image: copying Python, the environment and their libraries")
        _stage(environment, root)
        log("user image: compiling")
        _compile(root)
        log("user image: writing the archive")
        finished = Path(work, "image.tar")
        _write_archive(root, finished)
        finished.replace(archive)
    megabytes = archive.stat().st_size / 1e6
    log(f"user image: {archive.name}, {megabytes:.0f} MB, {time.monotonic() - begun:.0f} s")
    return archive


def _jupyterhub() -> str:
    """The hub's version, read beside the tests: the two ends check that they agree."""
    try:
        return f"jupyterhub=={importlib.metadata.version('jupyterhub')}"
    except importlib.metadata.PackageNotFoundError:
        return "jupyterhub>=6,<7"


def _install(environment: Path, packages: list[str]) -> None:
    python = environment / "bin/python"
    _run([sys.executable, "-m", "venv", str(environment)])
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    _run([*install, "--upgrade", "pip"])
    _run([*install, *packages])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def _stage(environment: Path, root: Path) -> None:
    """Lay the image's files out under `root`; imports refuse hard links, and copying ends them."""
    for top in ("bin", "sbin", "lib", "lib64"):
        if Path("/", top).is_symlink():
            (root / "usr" / top).mkdir(parents=True, exist_ok=True)
            (root / top).symlink_to(f"usr/{top}")
    python = (environment / "bin/python").resolve()
    _copy(python, root / python.relative_to("/"))
    for stdlib in {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}:
        _copy_tree(stdlib, root / stdlib.relative_to("/"))
    _stage_environment(environment, root / ENV, python)
    for tool in TOOLS:
        if found := shutil.which(tool):
            _copy(Path(found), root / "bin" / tool)
    _copy_libraries(root)
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    bundle = ssl.get_default_verify_paths()
    if bundle.cafile:
        _copy(Path(bundle.cafile), root / bundle.openssl_cafile.lstrip("/"))
    for empty in ("tmp", HOME, "etc", "root", "var/tmp"):
        (root / empty).mkdir(parents=True, exist_ok=True)


def _stage_environment(environment: Path, target: Path, python: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = f"lib/{version}/site-packages"
    _copy_tree(environment / site_packages, target / site_packages)
    for folder in ("etc", "share"):
        _copy_tree(environment / folder, target / folder)
    bin_folder = target / "bin"
    bin_folder.mkdir()
    for script in (environment / "bin").iterdir():
        text = b"" if script.is_symlink() else script.read_bytes()
        if text.startswith(b"#!" + os.fsencode(environment)):
            copied = bin_folder / script.name
            copied.write_bytes(text.replace(os.fsencode(environment), b"/" + ENV.encode()))
            copied.chmod(0o755)
    for name in ("python", "python3", version):
        (bin_folder / name).symlink_to(python)
    config = f"home = {python.parent}\ninclude-system-site-packages = false\n"
    (target / "pyvenv.cfg").write_text(config)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _copy_tree(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(
            source, target, ignore=_ignored, copy_function=shutil.copy, dirs_exist_ok=True
        )


def _ignored(folder: str, names: list[str]) -> set[str]:
    if folder.endswith("babel/locale-data"):
        return {name for name in names if not BABEL_KEPT.fullmatch(name)}
    return {name for name in names if _skipped(folder, name)}


def _skipped(folder: str, name: str) -> bool:
    return (
        name in SKIPPED_DIRS
        or bool(SKIPPED_NAMES.fullmatch(name))
        or f"{folder}/{name}".endswith(SKIPPED_PATHS)
    )


def _copy_libraries(root: Path) -> None:
    """Add the `ldd` closure of everything staged; what resolved inside `root` is there already."""
    binaries = [str(path) for path in _files(root) if _is_elf(path)]
    ldd = subprocess.run(["ldd", *binaries], check=False, capture_output=True, text=True)
    listed = ldd.stdout  # the exit status only says that some binary was static
    for name in sorted(set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", listed, re.MULTILINE))):
        if not name.startswith(f"{root}/"):
            _copy(Path(name), root / name.lstrip("/"))
    libc = next(name for name in re.findall(r"=> (/\S+) \(0x", listed) if "/libc.so" in name)
    unlisted = Path(libc).with_name("libgcc_s.so.1")  # glibc opens it by name to end a thread
    if unlisted.exists():
        _copy(unlisted, root / str(unlisted).lstrip("/"))
    if Path("/etc/ld.so.cache").exists():  # finds libraries that are in no default folder
        _copy(Path("/etc/ld.so.cache"), root / "etc/ld.so.cache")


def _files(root: Path) -> Iterator[Path]:
    return (Path(folder, name) for folder, _, names in os.walk(root) for name in names)


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not (".so" in path.name or path.stat().st_mode & 0o100):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _compile(root: Path) -> None:
    """Compile, checked by nobody later: without `.pyc` every start takes 2.5 s more.

    The exit status is of no use: packages carry templates named `.py` that no Python compiles.
    """
    command = [sys.executable, "-m", "compileall", "-qq", "-j0", "-s", str(root), "-p", "/"]
    command += ["--invalidation-mode", "unchecked-hash", str(root)]
    subprocess.run(command, check=False, capture_output=True)


def _write_archive(root: Path, archive: Path) -> None:
    layer = archive.with_name("layer.tar")
    with tarfile.open(layer, "w") as tar:
        for path in sorted(root.rglob("*")):
            _add_to_layer(tar, root, path)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = json.dumps(_image_config(digest)).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [IMAGE], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for name, content in (
            (config_name, config),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo(f"{digest}/layer.tar")
        info.size = layer.stat().st_size
        with layer.open("rb") as file:
            tar.addfile(info, file)


def _add_to_layer(tar: tarfile.TarFile, root: Path, path: Path) -> None:
    """Add one file with nothing of this machine in its entry: no owner, no time, no odd mode."""
    name = path.relative_to(root).as_posix()
    info = tarfile.TarInfo(name)
    if path.is_symlink():
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(info)
    elif path.is_dir():
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        if name in ("tmp", "var/tmp"):
            info.mode = 0o1777
        elif name == HOME:
            info.uid, info.gid = UID, GID
        tar.addfile(info)
    else:
        info.size = path.stat().st_size
        info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        with path.open("rb") as file:
            tar.addfile(info, file)


def _image_config(layer_digest: str) -> dict[str, object]:
    environment = {
        "PATH": f"/{ENV}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": f"/{HOME}",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
    }
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
            platform.machine(), platform.machine()
        ),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": str(UID),
            "WorkingDir": f"/{HOME}",
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Cmd": ["jupyterhub-singleuser"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created_by": "e2e/cluster/user_image.py"}],
    }
