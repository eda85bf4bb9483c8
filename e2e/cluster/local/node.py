"""The node of the local cluster: containerd, its network plugins and the kubelet."""

from __future__ import annotations

import json
import shlex
from typing import Any

from e2e.cluster import network
from e2e.cluster.local.layout import CGROUP, HIDDEN, Layout, write_settings
from e2e.cluster.model import DNS_DOMAIN, LOST_NODE_SECONDS, NODE, PAUSE_IMAGE


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
    path = write_settings(at.data / "kubelet.json", settings)
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
    write_settings(at.data / "cni" / "10-bridge.conflist", network_list)


def toml(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> str:
    """Write nested tables as TOML, whose simple values look like JSON's."""
    own = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(json.dumps(part) for part in prefix)}]"] if prefix and own else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in own.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines.append(toml(value, (*prefix, key)))
    return "\n".join(lines)
