"""The cluster's corner of the machine's network: one bridge, three routes, one kernel setting.

All of the cluster listens on the bridge's address, so nothing of it can be reached from other
machines, and it does not matter which networks this machine is in.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from pathlib import Path

from e2e.cluster.commands import attempt, run
from e2e.cluster.model import ClusterError
from e2e.cluster.packages import Packages
from e2e.cluster.record import Record

BRIDGE = "lts-e2e0"
HOST = "10.244.0.1"
"""The bridge's address: API server, DNS and node, and where pods find the hub."""
PODS = "10.244.0.0/24"
FAKE_PODS = "10.244.128.1/17"
ALL_PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
PRIVATE = "127.0.244.1"
"""For ports that pods have no business with; a loopback address of our own has all of them free."""
PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
SETTINGS = {
    "net/ipv4/ip_forward": "1",
    # The kubelet insists on these and writes them itself; they are here to be put back.
    "vm/overcommit_memory": None,
    "vm/panic_on_oom": None,
    "kernel/panic": None,
    "kernel/panic_on_oops": None,
    "kernel/keys/root_maxkeys": None,
    "kernel/keys/root_maxbytes": None,
    "net/netfilter/nf_conntrack_max": None,
    "net/netfilter/nf_conntrack_tcp_timeout_established": None,
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": None,
    "net/netfilter/nf_conntrack_tcp_be_liberal": None,
}


def up(programs: Packages, record: Record) -> None:
    """Make the bridge and the routes; refuse when the machine uses these addresses already."""
    ip = programs.program("ip")
    refuse_overlap(ip)
    for name, value in SETTINGS.items():
        path = Path("/proc/sys", name)
        if path.exists():
            record.settings.setdefault(name, path.read_text().strip())
            record.save()
            if value is not None:
                path.write_text(value)
    width = PODS.partition("/")[2]
    for command in (
        ["link", "add", BRIDGE, "type", "bridge"],
        ["address", "add", f"{HOST}/{width}", "dev", BRIDGE],
        ["link", "set", BRIDGE, "up"],
        # Without these a call to a fake pod or to a Service that is gone leaves this machine.
        ["route", "add", "unreachable", ALL_PODS],
        ["route", "add", SERVICES, "dev", BRIDGE, "src", HOST],
    ):
        run(ip, *command)


def down(programs: Packages, record: Record) -> None:
    """Take everything back; each part may be gone already."""
    ip = programs.program("ip")
    for link in json.loads(run(ip, "-j", "link", "show") or "[]"):
        if link.get("master") == BRIDGE:
            attempt(ip, "link", "delete", link["ifname"])
    attempt(ip, "link", "delete", BRIDGE)
    attempt(ip, "route", "delete", "unreachable", ALL_PODS)
    nft, libraries = programs.program("nft"), programs.environment
    for family, table in PROXY_TABLES:
        attempt(nft, "delete", "table", family, table, environment=libraries)
    for name, value in record.settings.items():
        Path("/proc/sys", name).write_text(value)


def refuse_overlap(ip: str) -> None:
    ours = [ipaddress.ip_network(network) for network in (ALL_PODS, SERVICES)]
    for network, where in _routes(json.loads(run(ip, "-j", "-4", "route", "show") or "[]")):
        if any(network.overlaps(mine) for mine in ours):
            raise ClusterError(
                f"this machine has a route to {network} ({where}), which the local cluster needs"
                f" ({ALL_PODS} and {SERVICES}): leave that network, or use kind"
            )


def _routes(listed: Iterable[dict[str, str]]) -> Iterable[tuple[ipaddress.IPv4Network, str]]:
    for route in listed:
        if route["dst"] != "default":
            yield ipaddress.IPv4Network(route["dst"]), route.get("dev", route.get("type", "?"))
