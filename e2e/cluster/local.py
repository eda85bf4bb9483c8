"""The local cluster: real components on this machine, without Docker."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.cluster import build, components, credentials, images, network, processes, runtime
from e2e.cluster.components import Layout
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.model import (
    FAKE_NODE,
    NODE,
    STORAGE_CLASSES,
    Cluster,
    ClusterError,
    Log,
    cache_folder,
    run_folder,
)
from e2e.cluster.objects import fake_node, storage_classes
from e2e.cluster.packages import packages
from e2e.cluster.record import Record

START_SECONDS = 60.0
"""How long one component may take before it counts as failed; on two busy cores."""


def possible() -> str:
    """Why no local cluster can run here, or nothing."""
    if sys.platform != "linux":
        return "a local cluster needs Linux"
    if os.geteuid() != 0:
        return "a local cluster needs root"
    return ""


def layout(log: Log) -> Layout:
    """Build and fetch what is missing: compiling and downloading at the same time."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        fetched = pool.submit(packages, cache, log)
        built = build.build(cache, "components", build.LOCAL, log)
        return Layout(
            data=cache / "cluster",
            run=run_folder(),
            built=built,
            images=cache / "containerd",
            programs=fetched.result(),
        )


def up(record: Record | None, name: str, log: Log) -> Cluster:
    """Return the running cluster if it is well, else start one on clean ground."""
    at = layout(log)
    if record is not None:
        running = record.described()
        if running is not None and healthy(record, running):
            if running.kubectl == Path(at.program("kubectl")):
                load_images(at, log)
                return running
            log("the running cluster was built from another recipe: starting anew")
        else:
            log("the last cluster is not complete: removing what is left of it")
    down(record or Record(name, "local", str(at.data)), at, log)
    record = Record(name, "local", str(at.data))
    try:
        return start(at, record, log)
    except BaseException:
        log(f"not started; logs are in {at.logs}")
        raise


def healthy(record: Record, cluster: Cluster) -> bool:
    """Whether every process lives and the node is ready."""
    if not all(process.alive() for process in record.processes):
        return False
    call = Kubectl(cluster.kubectl, cluster.kubeconfig)
    return call.succeeds("wait", "--for=condition=Ready", f"node/{cluster.node}", "--timeout=5s")


def start(at: Layout, record: Record, log: Log) -> Cluster:
    """Start all components, each waited for where the next one needs it."""
    begun = time.monotonic()
    record.save()
    for folder in (at.data, at.logs, at.volumes, at.images):
        folder.mkdir(parents=True, exist_ok=True)
    for hidden in components.HIDDEN:
        _make_folders(Path(hidden), record)
    credentials.create(at.keys, at.programs.program("openssl"))
    network.up(at.programs, record)
    runtime.make_cgroups()
    call = Kubectl(Path(at.program("kubectl")), Path(at.kubeconfig("admin")))

    run = _Starter(at, record)
    run("etcd", components.etcd(at))
    run("containerd", components.containerd(at))
    run("kube-apiserver", components.api_server(at))
    run.wait("containerd", lambda: bool(runtime.ctr(at, "version", may_fail=True)))
    if runtime.remove_containers(at):
        # The runtime read them when it started, and forgets them only with a new start.
        log("removed containers of a killed cluster")
        run.end("containerd")
        runtime.remove_folders([at.run / "containerd", at.data / "hidden", at.data / "cni"])
        run("containerd", components.containerd(at))
        run.wait("containerd", lambda: bool(runtime.ctr(at, "version", may_fail=True)))
    load_images(at, log)
    run.wait("kube-apiserver", lambda: call.succeeds("get", "--raw=/readyz"))
    log(f"the API server is ready after {time.monotonic() - begun:.1f} s")
    run("kubelet", components.kubelet(at, run.pid("containerd")))
    run("kube-controller-manager", components.controllers(at))
    run("kube-scheduler", components.scheduler(at))
    run("kube-proxy", components.proxy(at))
    run("coredns", components.dns(at))
    call.apply(fake_node(), *storage_classes())
    run("kwok", components.kwok(at))
    run("provisioner", components.provisioner(at))
    ready = ("wait", "--for=condition=Ready", "--timeout=1s")
    run.wait("kubelet", lambda: call.succeeds(*ready, f"node/{NODE}"))
    run.wait("kwok", lambda: call.succeeds(*ready, f"node/{FAKE_NODE}"))
    run.wait("kube-controller-manager", lambda: call.succeeds("get", "serviceaccount/default"))
    run.wait("kube-proxy", lambda: _has_table(at))
    run.wait("coredns", lambda: _answers(f"http://{network.PRIVATE}:8181/ready"))
    run.check_all()
    cluster = Cluster(
        provider="local",
        name=record.name,
        kubeconfig=Path(at.kubeconfig("admin")),
        kubectl=Path(at.program("kubectl")),
        host_address=network.HOST,
        node=NODE,
        fake_node=FAKE_NODE,
        storage_classes=STORAGE_CLASSES,
    )
    record.finish(cluster)
    log(f"the cluster is ready after {time.monotonic() - begun:.1f} s")
    return cluster


def load_images(at: Layout, log: Log) -> None:
    """Put the test images into the runtime's store, if they changed."""
    archives = [images.tiny_archive(cache_folder(), at.programs.file("bin/busybox"))]
    if importlib.util.find_spec("e2e.image") is not None:
        archives.append(importlib.import_module("e2e.image").build_image(cache_folder(), log))
    for archive in archives:
        note = at.images / "imported.json"
        images.load(archive, note, lambda path: runtime.import_image(at, path), log)


def down(record: Record, at: Layout, log: Log) -> None:
    """Remove every trace, whatever state the cluster is in; a second call finds nothing to do."""
    alive = {process.pid for process in record.processes if process.alive()}
    by_name = {process.name: process.pid for process in record.processes if process.alive()}
    runtime_pid = by_name.get("containerd")
    others = (alive | processes.marked()) - {runtime_pid}
    if others:
        log(f"stopping {len(others)} processes")
    # The kubelet goes first: it would start again what is ended below.
    if "kubelet" in by_name:
        processes.stop([by_name["kubelet"]])
    runtime.end_containers()
    if runtime_pid is not None:
        deadline = time.monotonic() + 10
        while runtime.remove_containers(at) and time.monotonic() < deadline:
            time.sleep(0.1)
    processes.stop(alive | processes.marked())
    runtime.end_containers()
    network.down(at.programs, record)
    data = Path(record.data)
    keep_logs(data / "logs", cache_folder() / "last-logs")
    runtime.remove_folders([data, at.run])
    for folder in reversed(record.created):
        try:
            Path(folder).rmdir()
        except OSError:  # somebody else uses it by now
            log(f"{folder} was made for the cluster and is in use: left alone")


def keep_logs(logs: Path, kept: Path) -> None:
    """The logs outlive the cluster, in the cache, until the next one's."""
    if logs.is_dir():
        runtime.remove_folders([kept])
        logs.rename(kept)


class _Starter:
    """Starts components and waits for them; one that fails shows the end of its log."""

    def __init__(self, at: Layout, record: Record) -> None:
        self.at = at
        self.record = record
        source = str(Path(__file__).parents[2])
        self.environment = at.programs.environment | {"PYTHONPATH": source}

    def __call__(self, name: str, command: list[str]) -> None:
        found = processes.start(name, command, self.log(name), self.environment)
        self.record.processes.append(found)
        self.record.save()

    def log(self, name: str) -> Path:
        """The log file of a component."""
        return self.at.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process number of a component that was started."""
        return next(one.pid for one in reversed(self.record.processes) if one.name == name)

    def end(self, name: str) -> None:
        """Stop one component again."""
        processes.stop([self.pid(name)], grace=5)
        self.record.processes = [one for one in self.record.processes if one.name != name]
        self.record.save()

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a component works."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            self.check_all()
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{name} is not ready after {START_SECONDS:.0f} s; the end of its log:\n"
                    + processes.tail(self.log(name))
                )
            time.sleep(0.1)

    def check_all(self) -> None:
        """Fail as soon as any component has ended."""
        for process in self.record.processes:
            if not process.alive():
                raise ClusterError(
                    f"{process.name} ended; the end of its log:\n"
                    + processes.tail(self.log(process.name))
                )


def _make_folders(wanted: Path, record: Record) -> None:
    """Make a folder and those above it, noting each that was not there."""
    for folder in reversed([wanted, *wanted.parents]):
        if not folder.exists():
            record.created.append(str(folder))
            record.save()
            folder.mkdir()


def _has_table(at: Layout) -> bool:
    family, table = network.PROXY_TABLES[0]
    command = [at.programs.program("nft"), "list", "chains", family]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | at.programs.environment
    )
    return f"table {family} {table}" in done.stdout


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
