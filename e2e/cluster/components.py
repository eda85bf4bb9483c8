"""The command line and the settings of each component of the local cluster."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster import network
from e2e.cluster.model import DNS_DOMAIN, FAKE_NODE, NODE
from e2e.cluster.packages import Packages

CGROUP = "lts-e2e"
"""The cgroup under which all pods are, so that they can be found and ended for certain."""
PAUSE_IMAGE = "localhost/pause:e2e"
HIDDEN = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers")
"""Where kubelet and CNI write whatever they are told; folders of ours lie over them."""
LOST_NODE_SECONDS = 10
"""How long a silent node counts as alive; its pods are given up 5 seconds later."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of one local cluster are."""

    data: Path
    run: Path
    built: Path
    images: Path
    """containerd's store; kept between clusters, because unpacking images takes long."""
    programs: Packages

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def volumes(self) -> Path:
        return self.data / "volumes"

    @property
    def socket(self) -> Path:
        return self.run / "containerd.sock"

    def kubeconfig(self, who: str) -> str:
        """The kubeconfig file of a component."""
        return str(self.keys / f"{who}.kubeconfig")

    def program(self, name: str) -> str:
        """The path of a program that was built."""
        return str(self.built / name)


def etcd(at: Layout) -> list[str]:
    """State is thrown away with the cluster: nothing is worth a flush to the disk."""
    client, peer = f"http://{network.PRIVATE}:2379", f"http://{network.PRIVATE}:2380"
    return [
        at.program("etcd"),
        f"--data-dir={at.data / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    ]


def api_server(at: Layout) -> list[str]:
    """On the bridge's address: on loopback no pod could reach it."""
    return [
        at.program("kube-apiserver"),
        f"--etcd-servers=http://{network.PRIVATE}:2379",
        f"--bind-address={network.HOST}",
        f"--advertise-address={network.HOST}",
        "--secure-port=6443",
        f"--tls-cert-file={at.keys / 'server.crt'}",
        f"--tls-private-key-file={at.keys / 'server.key'}",
        f"--kubelet-client-certificate={at.keys / 'client.crt'}",
        f"--kubelet-client-key={at.keys / 'client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={at.keys / 'accounts.pub'}",
        f"--service-account-signing-key-file={at.keys / 'accounts.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{DNS_DOMAIN}",
        f"--token-auth-file={at.keys / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={network.SERVICES}",
        "--allow-privileged=true",
        "--default-not-ready-toleration-seconds=5",
        "--default-unreachable-toleration-seconds=5",
        "--shutdown-delay-duration=0s",
        "--profiling=false",
    ]


def controllers(at: Layout) -> list[str]:
    """All controllers, each with its own account as in a real cluster."""
    return [
        at.program("kube-controller-manager"),
        *_calls_api(at, "controllers"),
        *_private(10257),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={at.keys / 'accounts.key'}",
        f"--root-ca-file={at.keys / 'ca.crt'}",
        f"--node-monitor-grace-period={LOST_NODE_SECONDS}s",
        "--node-monitor-period=1s",
        f"--flex-volume-plugin-dir={at.data / 'plugins'}",
    ]


def scheduler(at: Layout) -> list[str]:
    """With its defaults."""
    return [at.program("kube-scheduler"), *_calls_api(at, "scheduler"), *_private(10259)]


def containerd(at: Layout) -> list[str]:
    """In a mount namespace of its own, which the kubelet joins.

    All that they mount, network namespaces too, goes when they go, however they end.
    """
    options = {"BinaryName": at.programs.program("runc"), "SystemdCgroup": False}
    runtime = {"runtime_type": "io.containerd.runc.v2", "options": options}
    cri = {
        "sandbox_image": PAUSE_IMAGE,
        "restrict_oom_score_adj": True,
        "netns_mounts_under_state_dir": True,
        "cni": {
            "bin_dir": str(at.programs.file("usr/lib/cni")),
            "conf_dir": str(at.data / "cni"),
        },
        "containerd": {"default_runtime_name": "runc", "runtimes": {"runc": runtime}},
    }
    settings = {
        "version": 2,
        "root": str(at.images),
        "state": str(at.run / "containerd"),
        "disabled_plugins": ["io.containerd.internal.v1.opt"],
        "grpc": {"address": str(at.socket)},
        "plugins": {"io.containerd.grpc.v1.cri": cri},
    }
    path = at.data / "containerd.toml"
    path.write_text(toml(settings))
    _write_cni(at)
    steps = ["set -e"]
    for folder in HIDDEN:
        ours = at.data / "hidden" / folder.strip("/").replace("/", "-")
        ours.mkdir(parents=True)
        steps.append(f"mount --bind {shlex.quote(str(ours))} {folder}")
    steps.append('exec "$@"')
    wrapper = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "\n".join(steps), "sh"]
    return [*wrapper, at.programs.program("containerd"), "--config", str(path)]


def kubelet(at: Layout, containerd_pid: int) -> list[str]:
    """On the bridge's address, with every path and port set."""
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.HOST,
        "port": 10250,
        "healthzBindAddress": network.PRIVATE,
        "healthzPort": 10248,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(at.keys / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{at.socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [network.HOST],
        "clusterDomain": DNS_DOMAIN,
        "resolvConf": "",
        "podLogsDir": str(at.data / "pods"),
        "volumePluginDir": str(at.data / "plugins"),
        "makeIPTablesUtilChains": False,
        "nodeLeaseDurationSeconds": LOST_NODE_SECONDS,
        # A developer's full disk is no reason to lose the images or to refuse pods.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {f"{what}.available": "0%" for what in ("nodefs", "imagefs")}
        | {"nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
    }
    path = _write(at.data / "kubelet.json", settings)
    return [
        *("nsenter", "--target", str(containerd_pid), "--mount"),
        at.program("kubelet"),
        f"--config={path}",
        f"--kubeconfig={at.kubeconfig('kubelet')}",
        f"--hostname-override={NODE}",
        f"--node-ip={network.HOST}",
        f"--root-dir={at.data / 'kubelet'}",
        f"--cert-dir={at.data / 'kubelet-keys'}",
    ]


def proxy(at: Layout) -> list[str]:
    """Routes Services with one nft table.

    Everything is masqueraded: the answer of a pod on the same bridge would else go straight to
    the caller, past the rewriting, where the kernel does not filter bridges.
    """
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": at.kubeconfig("proxy")},
        "hostnameOverride": NODE,
        "clusterCIDR": network.ALL_PODS,
        "healthzBindAddress": f"{network.PRIVATE}:10256",
        "metricsBindAddress": f"{network.PRIVATE}:10249",
        "nodePortAddresses": ["primary"],
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "nftables": {"masqueradeAll": True},
    }
    path = _write(at.data / "proxy.json", settings)
    return [at.program("kube-proxy"), f"--config={path}"]


def dns(at: Layout) -> list[str]:
    """CoreDNS for the cluster's own names; others do not exist, as there is no way out to them."""
    path = at.data / "Corefile"
    path.write_text(
        f""".:53 {{
    bind {network.HOST}
    errors
    ready {network.PRIVATE}:8181
    kubernetes {DNS_DOMAIN} in-addr.arpa {{
        kubeconfig "{at.kubeconfig("dns")}"
        pods insecure
        fallthrough in-addr.arpa
    }}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
    )
    return [at.program("coredns"), "-conf", str(path), "-quiet"]


def kwok(built: Path, kubeconfig: str, node_address: str) -> list[str]:
    """Plays the fake node and the pods on it."""
    return [
        str(built / "kwok"),
        f"--kubeconfig={kubeconfig}",
        f"--config={built / 'kwok-stages.yaml'}",
        f"--manage-single-node={FAKE_NODE}",
        f"--cidr={network.FAKE_PODS}",
        f"--node-ip={node_address}",
        f"--server-address={network.PRIVATE}:10247",
        f"--node-lease-duration-seconds={LOST_NODE_SECONDS}",
    ]


def provisioner(kubeconfig: str, folder: str, node: str, prefix: str = "") -> list[str]:
    """Ours, because the controllers' own makes volumes that only root can write."""
    command = [sys.executable, "-m", "e2e.cluster.provisioner", "--kubeconfig", kubeconfig]
    command += ["--folder", folder, "--prefix", prefix]
    # A fake pod may have a volume too: nothing is ever written to it.
    return [*command, "--node", node, "--node", FAKE_NODE]


def _calls_api(at: Layout, who: str) -> list[str]:
    path = at.kubeconfig(who)
    checks = ["--authentication-kubeconfig", "--authorization-kubeconfig", "--kubeconfig"]
    return [*(f"{flag}={path}" for flag in checks), "--leader-elect=false", "--profiling=false"]


def _private(port: int) -> list[str]:
    return [f"--bind-address={network.PRIVATE}", f"--secure-port={port}"]


def _write_cni(at: Layout) -> None:
    plugin = {
        "type": "bridge",
        "bridge": network.BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": network.PODS, "gateway": network.HOST}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(at.data / "addresses"),
        },
    }
    network_list = {"cniVersion": "0.4.0", "name": CGROUP, "plugins": [plugin]}
    (at.data / "cni").mkdir()
    _write(at.data / "cni" / "10-bridge.conflist", network_list)


def _write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document, indent=1))
    return path


def toml(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> str:
    """Write nested tables as TOML, whose simple values look like JSON's."""
    own = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(json.dumps(part) for part in prefix)}]"] if prefix and own else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in own.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines.append(toml(value, (*prefix, key)))
    return "\n".join(lines)
