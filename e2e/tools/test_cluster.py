"""The cluster that all other end-to-end tests stand on: what it can do, and that it goes away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2e import cluster as clusters
from e2e.cluster import Cluster, ClusterError, record
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.model import FAKE_NODE_TAINT, cache_folder
from e2e.cluster.packages import PROGRAMS, packages

pytestmark = pytest.mark.timeout(1800)  # the first start builds Kubernetes
REPOSITORY = Path(__file__).parents[2]
UP = [sys.executable, "-m", "e2e.cluster", "up"]
FOUND_RUNNING = clusters.status() is not None
"""Read when tests are collected, before any of them starts a cluster."""

Apply = Callable[..., None]


@pytest.fixture(scope="module")
def running() -> Cluster:
    return clusters.up()


@pytest.fixture
def call(running: Cluster) -> Kubectl:
    return Kubectl(running.kubectl, running.kubeconfig)


@pytest.fixture
def space(call: Kubectl) -> Iterator[str]:
    """A namespace of the test's own, going away after it (which takes Kubernetes 5 seconds)."""
    name = f"cluster-{uuid.uuid4().hex[:8]}"
    call("create", "namespace", name)
    yield name
    call("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def owned() -> Iterator[None]:
    """The cluster may be stopped: it is of this kind, and nobody used it before these tests.

    The tests of other modules find it running again.
    """
    if os.environ.get("E2E_KUBECONFIG"):
        pytest.skip("the cluster was given, so it is not ours to stop")
    if FOUND_RUNNING and not os.environ.get("E2E_OWN_CLUSTER"):
        pytest.skip("a cluster was running before the tests: E2E_OWN_CLUSTER=1 lets them stop it")
    yield
    clusters.up()


def pod(name: str, *command: str, **spec: Any) -> dict[str, Any]:
    """A pod as strict as the charts' own."""
    volumes = spec.pop("claims", {})
    container = {
        "name": "main",
        "image": clusters.TINY_IMAGE,
        "command": [*command],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in volumes.items()],
        **spec.pop("container", {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsUser": 1000,
                "runAsNonRoot": True,
                "fsGroup": 100,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in volumes
            ],
            **spec,
        },
    }


def claim(name: str, storage_class: str, size: str = "10Mi") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
        },
    }


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def create(call: Kubectl, space: str, *objects: dict[str, Any]) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    call("create", "--namespace", space, "-f", "-", stdin=text)


def ready(call: Kubectl, space: str, *names: str) -> None:
    pods = [f"pod/{name}" for name in names]
    call("wait", "--namespace", space, "--for=condition=Ready", "--timeout=60s", *pods)


def eventually(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


def fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return str(answer.read().decode())


def web(name: str = "web") -> list[dict[str, Any]]:
    serve = "echo hello >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    probe = {"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
    return [pod(name, "sh", "-c", serve, container=probe), service(name)]


def test_both_storage_classes_bind_grow_and_release_volumes_that_user_1000_writes(
    running: Cluster, call: Kubectl, space: str
) -> None:
    names = ("now", "later")
    for name, storage_class in zip(names, running.storage_classes, strict=True):
        create(call, space, claim(name, storage_class))
    write = "echo written >/now/file && echo written >/later/file && exec sleep 1000"
    create(call, space, pod("writer", "sh", "-c", write, claims={n: f"/{n}" for n in names}))
    ready(call, space, "writer")
    said = call("exec", "-n", space, "writer", "--", "sh", "-c", "cat /*/file; id -u")
    assert said.split() == ["written", "written", "1000"]

    for name in names:
        grown = {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}
        call("patch", "-n", space, "pvc", name, "--type=merge", "-p", json.dumps(grown))
    for name in names:
        sized = "--for=jsonpath={.status.capacity.storage}=1Gi"
        call("wait", "-n", space, sized, "--timeout=20s", f"pvc/{name}")

    volumes = {
        item["metadata"]["name"]
        for item in call.get("pv")["items"]
        if item["spec"]["claimRef"]["namespace"] == space
    }
    assert len(volumes) == len(names)
    call("delete", "-n", space, "pod/writer", *(f"pvc/{name}" for name in names))
    eventually(lambda: not volumes & {one["metadata"]["name"] for one in call.get("pv")["items"]})


def test_a_claim_of_the_default_class_needs_no_name(call: Kubectl, space: str) -> None:
    wanted = claim("plain", "")
    del wanted["spec"]["storageClassName"]
    create(call, space, wanted)
    call("wait", "-n", space, "--for=jsonpath={.status.phase}=Bound", "pvc/plain")


def test_services_route_from_the_host_and_from_pods_by_name(call: Kubectl, space: str) -> None:
    create(call, space, *web(), pod("client", "sleep", "1000"))
    ready(call, space, "web", "client")
    addresses = [
        call.get("-n", space, "svc/web")["spec"]["clusterIP"],
        call.get("-n", space, "pod/web")["status"]["podIP"] + ":8080",
    ]
    eventually(lambda: _works(lambda: fetch(f"http://{addresses[0]}/")))
    assert [fetch(f"http://{address}/") for address in addresses] == ["hello\n"] * 2

    def says_hello(name: str) -> bool:
        """Asked again, for a lookup may be lost with its datagrams, as in any cluster."""
        read = ("exec", "-n", space, "client", "--", "wget", "-qO-", f"http://{name}/")
        try:
            return bool(call(*read) == "hello\n")
        except ClusterError:
            return False

    for name in ("web", f"web.{space}", f"web.{space}.svc.cluster.local"):
        eventually(partial(says_hello, name), seconds=60)
    # A pod that calls itself through its own Service: the bridge has to send it back.
    itself = f"http://web.{space}.svc.cluster.local/"
    assert call("exec", "-n", space, "web", "--", "wget", "-qO-", itself) == "hello\n"


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def test_pods_reach_the_host_and_the_api_server(
    running: Cluster, call: Kubectl, space: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("from the host")
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", running.host_address],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        create(call, space, pod("client", "sleep", "1000"))
        ready(call, space, "client")
        url = f"http://{running.host_address}:{port}/file"
        assert call("exec", "-n", space, "client", "--", "wget", "-qO-", url) == "from the host"
    finally:
        server.kill()
        server.communicate()
    reach = 'nc -w 5 "$KUBERNETES_SERVICE_HOST" "$KUBERNETES_SERVICE_PORT" </dev/null && echo yes'
    assert call("exec", "-n", space, "client", "--", "sh", "-c", reach) == "yes\n"
    unknown = call.run("exec", "-n", space, "client", "--", "nslookup", "no-such-service")
    assert "NXDOMAIN" in unknown.stdout


def test_logs_and_exec_work(call: Kubectl, space: str) -> None:
    create(call, space, pod("talker", "sh", "-c", "echo said; exec sleep 1000"))
    ready(call, space, "talker")
    assert call("logs", "-n", space, "talker") == "said\n"
    assert call("exec", "-n", space, "talker", "--", "id", "-u") == "1000\n"


def test_the_fake_node_runs_only_pods_that_ask_for_it(
    running: Cluster, call: Kubectl, space: str
) -> None:
    asked = {
        "nodeName": None,
        "nodeSelector": {"kubernetes.io/hostname": running.fake_node},
        "tolerations": [{"key": FAKE_NODE_TAINT, "operator": "Exists"}],
    }
    create(call, space, *(pod(f"fake-{number}", "none", **asked) for number in range(20)))
    create(call, space, pod("real", "sleep", "1000"))
    ready(call, space, "real", *(f"fake-{number}" for number in range(20)))
    places = {
        item["metadata"]["name"]: item["spec"]["nodeName"]
        for item in call.get("-n", space, "pods")["items"]
    }
    assert places.pop("real") == running.node
    assert set(places.values()) == {running.fake_node}
    assert len(places) == 20


def test_the_user_image_is_there(running: Cluster, call: Kubectl, space: str) -> None:
    create(call, space, pod("user", "sleep", "1000", container={"image": running.image}))
    ready(call, space, "user")


def test_a_second_up_returns_the_running_cluster_at_once(running: Cluster) -> None:
    begun = time.monotonic()
    assert clusters.up() == running
    assert time.monotonic() - begun < 5


def test_a_second_cluster_under_another_name_is_refused(running: Cluster, owned: None) -> None:
    with pytest.raises(ClusterError, match=f"cluster '{running.name}' runs on this machine"):
        clusters.up("another")


def test_a_killed_component_is_repaired_by_the_next_up(owned: None) -> None:
    clusters.up()
    found = record.load()
    assert found is not None
    for process in found.processes[:2]:
        os.kill(process.pid, signal.SIGKILL)
    again = clusters.up()
    use(again)
    assert clusters.up() == again


def test_an_up_that_is_killed_half_way_is_repaired_by_the_next(owned: None) -> None:
    for seconds in (1.0, 4.0):
        clusters.down()
        child = subprocess.Popen(UP, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        child.kill()
        child.wait()
    use(clusters.up())


def test_a_component_that_fails_shows_its_log_and_leaves_nothing(owned: None) -> None:
    clusters.down()
    before = traces()
    with (
        socket.create_server(("0.0.0.0", 6443)),
        pytest.raises(ClusterError, match=r"kube-apiserver ended(.|\n)*address already in use"),
    ):
        clusters.up()
    assert_same(before, traces())
    assert "address already in use" in (cache_folder() / "last-logs/kube-apiserver.log").read_text()


def test_two_ups_at_once_share_one_cluster(owned: None) -> None:
    clusters.down()
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(subprocess.check_output, UP, cwd=REPOSITORY, text=True) for _ in range(2)
        ]
        first, second = (run.result() for run in runs)
    assert first == second


def test_down_leaves_nothing_on_the_machine(owned: None) -> None:
    clusters.down()
    before = traces()
    use(clusters.up())
    # Left as they are, for `down` to deal with: a pod, its volume and its Service.
    clusters.down()
    assert_same(before, traces())
    clusters.up()
    found = record.load()
    assert found is not None
    for process in found.processes:
        os.kill(process.pid, signal.SIGKILL)
    clusters.down()
    assert_same(before, traces())


def use(cluster: Cluster) -> None:
    """Run something real, and leave it running."""
    call = Kubectl(cluster.kubectl, cluster.kubeconfig)
    create(call, "default", claim("left", cluster.storage_classes.immediate))
    create(call, "default", pod("left", "sleep", "1000", claims={"left": "/left"}), *web())
    ready(call, "default", "left", "web")


def assert_same(before: dict[str, set[str]], after: dict[str, set[str]]) -> None:
    more = {what: sorted(after[what] - before[what]) for what in after}
    less = {what: sorted(before[what] - after[what]) for what in after}
    assert {k: v for k, v in more.items() if v} == {}
    assert {k: v for k, v in less.items() if v} == {}


def traces() -> dict[str, set[str]]:
    """What a cluster could leave on a machine, by kind."""
    return {
        "links": _lines("ip", "-o", "link"),
        "addresses": _lines("ip", "-o", "address"),
        "routes": _lines("ip", "route", "show", "table", "all"),
        "network namespaces": _names(Path("/run/netns")),
        "packet filter": _packet_filter(),
        "mounts": {
            line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        },
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("*/*lts*")}
        | _names(Path("/sys/fs/cgroup")),
        "processes": _processes(),
        "sockets": {
            line.split()[-1]
            for line in Path("/proc/net/unix").read_text().splitlines()
            if "containerd" in line or "lts-e2e" in line or "kubelet" in line
        },
        "settings": {
            f"{name}={Path('/proc/sys', name).read_text().strip()}"
            for name in ("net/ipv4/ip_forward", "vm/overcommit_memory", "kernel/panic")
        },
        "folders": {
            str(path)
            for folder in ("/run", "/var/lib", "/var/log", "/etc", "/opt", "/usr/libexec", "/mnt")
            for path in Path(folder).glob("*")
        }
        | {str(cache_folder() / "cluster")} & {str(path) for path in cache_folder().glob("*")},
    }


def _lines(*command: str) -> set[str]:
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Counters of an address's lifetime differ from one moment to the next.
    return {line.partition(" valid_lft")[0].strip() for line in said.splitlines()}


def _names(folder: Path) -> set[str]:
    return {str(path) for path in folder.iterdir()} if folder.is_dir() else set()


def _packet_filter() -> set[str]:
    programs = packages(cache_folder(), PROGRAMS, lambda _: None)
    command = [programs.program("nft"), "list", "tables"]
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | programs.environment
    )
    return set(said.stdout.splitlines())


def _processes() -> set[str]:
    """Processes that run a program of the cluster, or in a container's file system."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            program = str((entry / "exe").readlink())
            root = str((entry / "root").readlink())
            arguments = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile, or a thread of the kernel
            continue
        ours = program.startswith(str(cache_folder())) or "containerd" in program
        if ours or "e2e.cluster.provisioner" in arguments or program == "/bin/busybox":
            found.add(f"{entry.name} {program} {root} {arguments}")
    return found
