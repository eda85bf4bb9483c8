"""The local cluster: real components on this machine, without Docker."""

from __future__ import annotations

import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from e2e.cluster import build, components, images, network, processes
from e2e.cluster.commands import attempt
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.local import control_plane, credentials, node, runtime
from e2e.cluster.local.layout import HIDDEN, Layout
from e2e.cluster.local.teardown import down
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
from e2e.cluster.packages import PROGRAMS, packages
from e2e.cluster.record import Record, remove_files
from e2e.cluster.starter import Starter
from e2e.cluster.user_image import build_image


def possible() -> str:
    """Why no local cluster can run here, or nothing."""
    if sys.platform != "linux":
        return "a local cluster needs Linux"
    if os.geteuid() != 0:
        return "a local cluster needs root"
    return ""


def ground(log: Log) -> Layout:
    """What it takes to remove a cluster: nothing has to be built for that."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    return Layout(
        data=cache / "cluster",
        run=run_folder(),
        built=cache / "built",
        images=cache / "containerd",
        programs=packages(cache, PROGRAMS, log),
    )


def layout(log: Log) -> Layout:
    """Build and fetch what is missing: compiling and downloading at the same time."""
    with ThreadPoolExecutor() as pool:
        fetched = pool.submit(ground, log)
        pictured = pool.submit(build_image, cache_folder(), log)
        cache_folder().mkdir(parents=True, exist_ok=True)
        built = build.build(cache_folder(), "local", log)
        pictured.result()
        return replace(fetched.result(), built=built)


def up(record: Record | None, name: str, log: Log) -> Cluster:
    """Return the running cluster if it is well, else start one on clean ground."""
    at = layout(log)
    if record is not None:
        running = record.described()
        if running is not None and running.kubectl != Path(at.program("kubectl")):
            log("the running cluster was built from another recipe: starting anew")
        elif running is not None and record.healthy(running):
            load_images(at, log)
            return running
        else:
            log("the last cluster is not complete: removing what is left of it")
    fresh = Record(name, "local", str(at.data))
    if record is not None or processes.marked():
        down(record or fresh, at, log)
    elif _routes_services(at):
        raise ClusterError("this machine is a Kubernetes node already (its kube-proxy uses nft)")
    remove_files(fresh)  # of a cluster that ended with the machine
    try:
        return start(at, fresh, log)
    except BaseException:
        down(fresh, at, log)
        log(f"not started, and removed again; the logs are in {at.data.parent / 'last-logs'}")
        raise


def start(at: Layout, record: Record, log: Log) -> Cluster:
    """Start all components; each is waited for where the next one needs it."""
    begun = time.monotonic()
    record.save()
    for folder in (at.data, at.logs, at.volumes, at.images):
        folder.mkdir(parents=True, exist_ok=True)
    for hidden in HIDDEN:
        _make_folders(Path(hidden), record)
    credentials.create(at.keys, at.programs.program("openssl"))
    network.up(at.programs, record)
    runtime.make_cgroups()
    call = Kubectl(Path(at.program("kubectl")), Path(at.kubeconfig("admin")))

    run = Starter(record, at.logs, at.programs.environment)
    run("etcd", control_plane.etcd(at))
    run("containerd", node.containerd(at))
    run("kube-apiserver", control_plane.api_server(at))
    run.wait("containerd", lambda: runtime.answers(at))
    if runtime.remove_containers(at):
        # The runtime read them when it started, and forgets them only with a new start.
        log("removed containers of a killed cluster")
        run.end("containerd")
        for folder in (at.run / "containerd", at.data / "hidden", at.data / "cni"):
            shutil.rmtree(folder)
        run("containerd", node.containerd(at))
        run.wait("containerd", lambda: runtime.answers(at))
    load_images(at, log)
    run.wait("kube-apiserver", lambda: call.succeeds("get", "--raw=/readyz"))
    log(f"the API server is ready after {time.monotonic() - begun:.1f} s")
    run("kubelet", node.kubelet(at, run.pid("containerd")))
    run("kube-controller-manager", control_plane.controllers(at))
    run("kube-scheduler", control_plane.scheduler(at))
    run("kube-proxy", control_plane.proxy(at))
    run("coredns", control_plane.dns(at))
    call.apply(fake_node(), *storage_classes())
    run("kwok", components.kwok(at.built, at.kubeconfig("kwok"), network.PRIVATE))
    run("provisioner", components.provisioner(at.kubeconfig("provisioner"), str(at.volumes), NODE))
    ready = ("wait", "--for=condition=Ready", "--timeout=1s")
    run.wait("kubelet", lambda: call.succeeds(*ready, f"node/{NODE}"))
    run.wait("kwok", lambda: call.succeeds(*ready, f"node/{FAKE_NODE}"))
    run.wait("kube-controller-manager", lambda: call.succeeds("get", "serviceaccount/default"))
    run.wait("kube-proxy", lambda: _routes_services(at))
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
    for archive in images.archives(cache_folder(), log):
        note = at.images / "imported.json"
        images.load(archive, note, lambda path: runtime.import_image(at, path), log)


def _make_folders(wanted: Path, record: Record) -> None:
    """Make a folder and those above it, noting each that was not there."""
    for folder in reversed([wanted, *wanted.parents]):
        if not folder.exists():
            record.created.append(str(folder))
            record.save()
            folder.mkdir()


def _routes_services(at: Layout) -> bool:
    family, table = network.PROXY_TABLES[0]
    nft = at.programs.program("nft")
    listed = attempt(nft, "list", "chains", family, environment=at.programs.environment)
    return f"table {family} {table}" in listed.stdout


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
