"""The view of a recorded server, also of one that an earlier version started."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.lifecycle import liveness
from lightkube_template_spawner.lifecycle.launcher import Launcher
from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.lifecycle.server import Server
from lightkube_template_spawner.objects.connection import Address, Route
from lightkube_template_spawner.objects.plan import Contract
from tests.support.fake_apiserver import FakeApiServer
from tests.support.objects import ME, manifest

# As the launcher of commit 283ce78 saved them: a pod with its port and scheme in annotations, a
# Service, a Service with an address of its own, and another kind; two before they were ready.
SAVED = json.loads((Path(__file__).parents[1] / "data" / "state-283ce78.json").read_text())
KEY = Route().annotation_key
FORGED = {
    "x": "169.254.169.254", f"{KEY}-address": "{.metadata.annotations.x}",
    f"{KEY}-port": "80", f"{KEY}-scheme": "http",
}  # fmt: skip


def recorded(case: str) -> Record:
    record = Record.from_state(SAVED[case])
    assert record is not None
    return record


def put(fake: FakeApiServer, record: Record, **parts: Any) -> None:
    """The connection object, which its user has patched."""
    assert record.connection is not None
    item = manifest(record.connection.kind.kind, "s", **parts)
    item["metadata"]["annotations"] = dict(FORGED)
    fake.put(item)


def pod(ip: str) -> dict[str, Any]:
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "podIP": ip}
    return {"spec": {"containers": [{"name": "main"}]}, "status": {"phase": "Running", **ready}}


def service(**spec: Any) -> dict[str, Any]:
    return {"spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 8888}], **spec}}


async def adopted(cluster: Cluster, record: Record) -> Record:
    log = logging.getLogger("test")
    launcher = Launcher(cluster, ME, Contract("hub"), Route(), log, lambda text, _: None)
    return await launcher.adopt(record, timeout=1)


@pytest.mark.parametrize("case", SAVED)
def test_an_earlier_versions_state_is_read(case: str) -> None:
    record = recorded(case)
    assert record.live
    assert record.ready != case.endswith("starting")
    assert record.connection is not None
    assert record.connection.uid
    assert record.address is None


@pytest.mark.parametrize("case", SAVED)
def test_a_state_has_what_an_earlier_version_reads(case: str) -> None:
    state = json.loads(json.dumps(recorded(case).to_state()))
    assert SAVED[case].items() <= state.items()


async def test_a_pod_of_an_earlier_version_keeps_its_port_and_scheme(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    put(fake, recorded("pod"), **pod("10.1.0.1"))
    record = await adopted(cluster, recorded("pod"))
    assert record.url == "https://10.1.0.1:9000"
    assert record.address == Address(port="9000", scheme="https")
    put(fake, record, **pod("10.1.0.7"))
    assert (await adopted(cluster, record)).url == "https://10.1.0.7:9000"


async def test_a_pod_that_an_earlier_version_was_starting_has_the_hubs_port(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    put(fake, recorded("pod, starting"), **pod("10.1.0.1"))
    assert (await adopted(cluster, recorded("pod, starting"))).url == "http://10.1.0.1:8888"


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("service", service()),
        ("service", service(type="ExternalName", externalName="169.254.169.254")),
        ("balanced", service(externalIPs=["192.0.2.7"])),
        ("other", {"data": {"url": "http://169.254.169.254"}}),
    ],
)
async def test_what_an_earlier_version_started_stays_where_it_is(
    fake: FakeApiServer, cluster: Cluster, case: str, parts: dict[str, Any]
) -> None:
    record = recorded(case)
    put(fake, record, **parts)
    server = Server(cluster, record)
    await liveness.watch(server)
    assert server.url(Route()) == record.url


async def test_an_address_that_nobody_recorded_is_refused(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    put(fake, recorded("other, starting"), data={"url": "http://169.254.169.254"})
    with pytest.raises(ManifestError, match="ConfigMap/hub/s: an earlier version started this"):
        await adopted(cluster, recorded("other, starting"))
