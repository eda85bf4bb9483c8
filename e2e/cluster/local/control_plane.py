"""The command lines and settings of the control plane, of kube-proxy and of CoreDNS."""

from __future__ import annotations

from e2e.cluster import network
from e2e.cluster.local.layout import Layout, write_settings
from e2e.cluster.model import DNS_DOMAIN, LOST_NODE_SECONDS, NODE


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
    path = write_settings(at.data / "proxy.json", settings)
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


def _calls_api(at: Layout, who: str) -> list[str]:
    path = at.kubeconfig(who)
    checks = ["--authentication-kubeconfig", "--authorization-kubeconfig", "--kubeconfig"]
    return [*(f"{flag}={path}" for flag in checks), "--leader-elect=false", "--profiling=false"]


def _private(port: int) -> list[str]:
    return [f"--bind-address={network.PRIVATE}", f"--secure-port={port}"]
