"""Certificates of internal_ssl: by the rendered name, in the values, and nowhere else."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from certipy import Certipy
from cryptography import x509
from jupyterhub import spawner as hub_spawner

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.hub import internal_ssl as certificates
from lightkube_template_spawner.objects import connection
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from lightkube_template_spawner.templates.helm.library import library_folder
from tests.support.charts import write_chart
from tests.support.fake_apiserver import FakeApiServer
from tests.support.hub import FakeHub, running_hub

needs_helm = pytest.mark.skipif(library_folder() is None, reason="helm-python-sdk is missing")

KEY = "kubetemplatespawner/connection"
BY_NAME = Route(service_address="dns", scheme="https")
CHART = """\
apiVersion: v1
kind: Secret
metadata: {name: "{{ .Values.escaped_user_server }}"}
stringData: {{ toJson .Values.internal_ssl.files }}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: "{{ .Values.escaped_user_server }}"}
data: {path: "{{ .Values.internal_ssl.path }}", env: {{ toJson .Values.env | quote }}}
---
apiVersion: v1
kind: {{ .Values.kind | default "Service" }}
metadata:
  name: "{{ .Values.escaped_user_server }}-{{ .Values.random | ternary (randAlpha 5 | lower) .Values.internal_ssl.id }}"
  annotations: {kubetemplatespawner/connection: "true"}
spec: {ports: [{port: 8888}]}
"""  # noqa: E501


def service(address: str = "", **spec: Any) -> dict[str, Any]:
    annotations = {KEY: "true", **({f"{KEY}-address": address} if address else {})}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "annotations": annotations},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("manifest", "by", "host"),
    [
        (service(), "dns", "s.ns.svc.cluster.local"),
        (service(clusterIP="None"), "ip", "s.ns.svc.cluster.local"),
        (service(), "ip", None),
        (service(clusterIP="10.0.0.9"), "ip", "10.0.0.9"),
        (service(clusterIP="10.0.0.9"), "dns", "s.ns.svc.cluster.local"),
        (service(type="ExternalName", externalName="x.org"), "ip", "x.org"),
        (service(address="{.status.host}"), "dns", None),
        ({**service(), "kind": "Pod"}, "dns", None),
        ({**service(), "spec": None}, "dns", None),
    ],
)
def test_the_name_before_there_is_a_service(
    manifest: dict[str, Any], by: str, host: str | None
) -> None:
    assert connection.foreseen_host(manifest, Route(service_address=by), "ns") == host


def test_names_of_a_certificate() -> None:
    found = certificates.foreseen({"a": [service()]}, BY_NAME, "ns")
    assert found == ("DNS:s.ns.svc.cluster.local",)
    fixed = certificates.foreseen({"a": [service(clusterIP="10.0.0.9")]}, Route(), "ns")
    assert fixed == ("IP:10.0.0.9",)
    assert certificates.names(found, []) == found
    assert certificates.names(found, ["DNS:x", *found]) == ("DNS:x", *found)
    assert certificates.names((), ["DNS:x"], local=True) == (
        "DNS:localhost",
        "IP:127.0.0.1",
        "DNS:x",
    )
    with pytest.raises(ManifestError, match=r"put the connection annotation on a Service"):
        certificates.names((), [], local=True)


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    return write_chart(tmp_path / "chart", CHART, **{"values.yaml": "random: false\n"})


@pytest.fixture
async def hub(fake: FakeApiServer, tmp_path: Path, chart: Path) -> AsyncIterator[FakeHub]:
    async with running_hub(fake, tmp_path, chart) as made:
        store = tmp_path / "internal-ssl"
        trust = Certipy(store_dir=str(store)).trust_from_graph({"notebooks-ca": ["hub-ca"]})
        made.settings |= {
            "internal_ssl": True,
            "internal_certs_location": str(store),
            "internal_trust_bundles": trust,
            "trusted_alt_names": ["IP:10.0.0.1"],  # the hub's own
        }
        made.boot()
        yield made


async def started(spawner: LightkubeTemplateSpawner) -> str:
    """As ``User.spawn`` does it."""
    spawner.cert_paths = await spawner.move_certs(await spawner.create_certs())
    return await spawner.start()


def names(secret: dict[str, Any]) -> list[str]:
    pem = base64.b64decode(secret["data"]["ssl.crt"])
    found = x509.load_pem_x509_certificate(pem).extensions
    alternatives = found.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(one.value) for one in alternatives]


@needs_helm
async def test_a_certificate_by_the_name_of_the_service(hub: FakeHub, fake: FakeApiServer) -> None:
    spawner = hub.prepared(hub.user())
    url = await started(spawner)
    slug = spawner.identity.user_server_slug
    secret, config = fake.find("Secret", "hub", slug), fake.find("ConfigMap", "hub", slug)
    assert secret is not None
    assert config is not None
    (host,) = names(secret)
    assert url == f"https://{host}:8888"
    assert host.startswith(f"{slug}-")
    assert sorted(secret["data"]) == ["notebooks-ca_trust.crt", "ssl.crt", "ssl.key"]
    key = base64.b64decode(secret["data"]["ssl.key"]).decode()
    assert key.startswith("-----BEGIN")
    env = json.loads(config["data"]["env"])
    assert env["JUPYTERHUB_SSL_KEYFILE"] == "/etc/jupyterhub/ssl/ssl.key"
    assert env["JUPYTERHUB_SSL_CERTFILE"] == "/etc/jupyterhub/ssl/ssl.crt"
    assert env["JUPYTERHUB_SSL_CLIENT_CA"] == "/etc/jupyterhub/ssl/notebooks-ca_trust.crt"
    assert env["JUPYTERHUB_SERVICE_URL"].startswith("https://")
    assert config["data"]["path"] == "/etc/jupyterhub/ssl"
    # It was needed for the start alone.
    assert "BEGIN" not in json.dumps(spawner.get_state())
    assert spawner._certificate is None


@needs_helm
async def test_servers_have_certificates_of_their_own(hub: FakeHub, fake: FakeApiServer) -> None:
    """Also when both are started at once, and when a name is as long as names may be."""
    user = hub.user("x" * 60)
    first, second = hub.prepared(user), hub.prepared(user, "other")
    paths = [await one.create_certs() for one in (first, second)]
    for spawner, path in zip((first, second), paths, strict=True):
        spawner.cert_paths = await spawner.move_certs(path)
        url = await spawner.start()
        secret = fake.find("Secret", "hub", spawner.identity.user_server_slug)
        assert secret is not None
        assert [f"https://{name}:8888" for name in names(secret)] == [url]


@needs_helm
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"kind": "Pod"}, "must be known before the server starts"),
        ({"random": True}, "must not be random"),
    ],
)
async def test_a_name_that_nobody_can_know(
    hub: FakeHub, fake: FakeApiServer, extra: dict[str, Any], words: str
) -> None:
    spawner = hub.prepared(hub.user())
    spawner.extra_vars = extra
    with pytest.raises(hub_spawner.SpawnException, match=words) as caught:
        await started(spawner)
    assert words in vars(caught.value)["jupyterhub_message"]
    assert hub.left() == set()


@needs_helm
@pytest.mark.parametrize("given", ["list", "function", "coroutine"])
async def test_more_names(hub: FakeHub, fake: FakeApiServer, given: str) -> None:
    spawner = hub.prepared(hub.user())

    async def answer(_: Any) -> list[str]:
        return ["DNS:more.example.org"]

    ways: dict[str, Any] = {
        "list": ["DNS:more.example.org"],
        "function": lambda _: ["DNS:more.example.org"],
        "coroutine": answer,
    }
    spawner.ssl_alt_names = ways[given]
    spawner.ssl_alt_names_include_local = True
    await started(spawner)
    secret = fake.find("Secret", "hub", spawner.identity.user_server_slug)
    assert secret is not None
    assert names(secret)[:3] == ["localhost", "127.0.0.1", "more.example.org"]
    assert len(names(secret)) == 4
