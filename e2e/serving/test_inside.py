"""What a hub inside the cluster needs: addresses by name, which pods can look up and reach."""

from __future__ import annotations

import json

from e2e.cluster import Cluster
from e2e.conftest import Kube, MakeHub, signed_in


async def test_a_service_is_reached_by_its_dns_name_from_a_pod(
    cluster: Cluster, kube: Kube, space: str, make_hub: MakeHub
) -> None:
    """The hub runs outside here and cannot look the name up; a pod can, and gets the server."""
    kube("run", "beside", "-n", space, f"--image={cluster.tiny_image}", "--", "sleep", "600")
    values = {"image": cluster.image, "connection": "service"}
    hub = make_hub(
        "c.Spawner.http_timeout = 120",
        service_address="dns",
        cluster_domain=cluster.dns_domain,
        extra_vars=values,
    )
    async with hub, signed_in(hub, "inside") as user:
        await user.start_server()
        said = await hub.wait_for_log(r"is ready at (http://\S+)", timeout=60)
        address = said.group(1)
        assert address.endswith(f".{space}.svc.{cluster.dns_domain}:8888")
        kube("wait", "-n", space, "--for=condition=Ready", "pod/beside", "--timeout=30s")
        answer = kube(
            "exec", "-n", space, "beside", "--", "wget", "-qO-", f"{address}/user/inside/api"
        )
        assert "version" in json.loads(answer)
