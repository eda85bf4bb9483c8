"""internal_ssl: https by name, both sides show a certificate, and neither takes a wrong one."""

from __future__ import annotations

import base64
import re
import socket
import sqlite3
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from certipy import Certipy

from e2e.cluster import Cluster
from e2e.conftest import OWNED, Kube, MakeHub, signed_in
from e2e.harness import light
from e2e.harness.faults import REPEAT, Faults
from e2e.harness.hub import Hub
from e2e.harness.search import Search
from e2e.harness.secure import SecureHub, client
from e2e.harness.user import HubUser, ServerFailedError

pytestmark = pytest.mark.timeout(REPEAT * 300)

PORT = 8888
ID = re.compile(r"-[0-9a-f]{8}\.")  # at the end of the Service's name, new at each start
FILES = ("ssl.key", "ssl.crt", "notebooks-ca_trust.crt")
# Any web server, with whatever certificate it is given, that asks nobody for theirs.
SERVER = """
import http.server, os, signal, ssl
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
web = http.server.ThreadingHTTPServer(("", 8888), http.server.SimpleHTTPRequestHandler)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(os.environ["JUPYTERHUB_SSL_CERTFILE"], os.environ["JUPYTERHUB_SSL_KEYFILE"])
web.socket = tls.wrap_socket(web.socket, server_side=True)
web.serve_forever()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's own folder for temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
async def hub(
    make_hub: MakeHub, cluster: Cluster, kube: Kube, folder: Path
) -> AsyncGenerator[SecureHub]:
    if cluster.provider == "given":
        pytest.skip("names of a given cluster do not resolve on this host, where the hub runs")
    nameserver = cluster.host_address
    if cluster.provider == "kind":
        service = kube.get("service", "kube-system", "kube-dns") or {}
        nameserver = service["spec"]["clusterIP"]
    secure = partial(SecureHub, nameserver=nameserver)
    hub = make_hub(
        f'{light.OPTIONS_ARE_TRAITS}c.JupyterHub.log_level = "DEBUG"',
        environment={"TMPDIR": str(folder)},
        kind=secure,
        cluster_domain=cluster.dns_domain,
    )
    assert isinstance(hub, SecureHub)
    async with hub:
        yield hub
        await hub.delete_users()


def bare(cluster: Cluster) -> dict[str, Any]:
    """Values of a server without a volume."""
    return {"image": cluster.image, "storage": {"enabled": False}}


async def started(
    hub: Hub, user: HubUser, server: str = "", options: Mapping[str, object] | None = None
) -> str:
    """Start a server; the host by which the hub connects to it."""
    position = len(hub.log.read_text(errors="replace"))
    await user.run_server(server, options)
    found = await hub.wait_for_log(r"is ready at https://(\S+):8888", start=position)
    return found[1]


def certificate(kube: Kube, space: str, user: str, server: str = "") -> dict[str, str]:
    """The files of a server, from its Secret."""
    selector = f"hub.jupyter.org/username={user},hub.jupyter.org/servername={server}"
    for secret in kube.list("secrets", space, selector):
        if "ssl.key" in secret["data"]:
            return {n: base64.b64decode(text).decode() for n, text in secret["data"].items()}
    raise LookupError(f"no certificate of {user!r}, {server!r}")


def written(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Certificate and key as files."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / "ssl.crt", folder / "ssl.key"


def forged(folder: Path, host: str) -> dict[str, str]:
    """A server's files by an authority of the same name as the hub's."""
    certipy = Certipy(store_dir=str(folder))
    trust = certipy.trust_from_graph({"notebooks-ca": ["hub-ca"], "hub-ca": ["notebooks-ca"]})
    made = certipy.create_signed_pair("user-x", "notebooks-ca", alt_names=[f"DNS:{host}"])["files"]
    paths = (made["key"], made["cert"], trust["notebooks-ca"])
    return {name: Path(path).read_text() for name, path in zip(FILES, paths, strict=True)}


def ask(address: str, host: str, path: str, context: ssl.SSLContext | None) -> str:
    """The status line of an answer; raises what TLS does."""
    with socket.create_connection((address, PORT), timeout=20) as plain:
        wire = context.wrap_socket(plain, server_hostname=host) if context else plain
        with wire:
            wire.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            return wire.recv(100).decode().partition("\r\n")[0]


def protocols(hub: Hub) -> set[str]:
    with sqlite3.connect(hub.folder / "jupyterhub.sqlite") as database:
        rows = database.execute(
            "select proto from servers join spawners on servers.id = spawners.server_id"
        )
        return {str(row[0]) for row in rows}


async def test_a_server_speaks_tls_to_the_hub_its_proxy_and_its_user(
    hub: SecureHub, kube: Kube, space: str, cluster: Cluster, folder: Path, faults: Faults
) -> None:
    """Started, used, adopted by the next hub, and stopped."""
    async with signed_in(hub, "anna") as user:
        for _ in faults("a hub restart while a server runs over TLS"):
            began = time.monotonic()
            host = await started(hub, user)
            faults.saw("from click to ready, s", time.monotonic() - began)
            assert host.endswith(f".{space}.svc.{cluster.dns_domain}")
            code = "import os; print(os.environ['JUPYTERHUB_API_URL'], os.getpid())"
            assert (await user.run_code(code)).startswith(f"https://{cluster.host_address}:")
            (pod,) = kube.list("pods", space)
            await hub.restart()
            assert protocols(hub) == {"https"}
            assert await user.run_code("6 * 7") == "42"
            (same,) = kube.list("pods", space)
            assert same["metadata"]["uid"] == pod["metadata"]["uid"]
            search = Search(key=certificate(kube, space, user.name)["ssl.key"])
            assert search.leaks(hub, kube, space, folder) == []
            await user.stop_server()
            left = kube.owned(space, f"{OWNED},hub.jupyter.org/username=anna")
            assert [name.partition("/")[0] for name in left] == ["PersistentVolumeClaim"]


async def test_a_server_that_is_started_again_at_once_is_found_at_its_new_address(
    hub: SecureHub, cluster: Cluster, faults: Faults
) -> None:
    """The hub remembers a name's former address, and waits for it longer than for the server."""
    cmd = ["python3", "-c", SERVER]
    options = {"cmd": cmd, "http_timeout": 20, "extra_vars": bare(cluster)}
    async with signed_in(hub, "dora") as user:
        hosts = [await started(hub, user, options=options)]
        for _ in faults("a stop, and a start at once"):
            await user.stop_server()
            began = time.monotonic()
            hosts.append(await started(hub, user, options=options))
            faults.saw("from click to ready, s", time.monotonic() - began)
        assert len(set(hosts)) == len(hosts)
        await user.stop_server()


async def test_a_server_lets_in_the_hub_and_its_proxy_only(
    hub: SecureHub, kube: Kube, cluster: Cluster, space: str, faults: Faults, tmp_path: Path
) -> None:
    async with signed_in(hub, "ben") as user:
        host = await started(hub, user)
        other = {"cmd": ["python3", "-c", SERVER], "extra_vars": bare(cluster)}
        neighbour = await started(hub, user, "other", other)
        service = kube.get("service", space, host.partition(".")[0]) or {}
        address = service["spec"]["clusterIP"]
        path = f"{await user.server_url()}api"
        trusted = hub.authority("hub-ca")
        forgery = written(tmp_path / "forged", forged(tmp_path / "ca", host))
        others = written(tmp_path / "others", certificate(kube, space, user.name, "other"))
        own = written(tmp_path / "own", certificate(kube, space, user.name))

        def attempt(context: ssl.SSLContext | None) -> str:
            return ask(address, host, path, context)

        for part in ("hub-internal", "proxy-client"):
            assert " 200 " in attempt(client(trusted, hub.pair(part)))

        strangers: dict[str, ssl.SSLContext | None] = {
            "plain HTTP": None,
            "a client without a certificate": client(trusted),
            "a client with a certificate of another authority": client(trusted, forgery),
            "a client with another server's certificate": client(trusted, others),
            "a client with the server's own certificate": client(trusted, own),
        }
        for who, context in strangers.items():
            for _ in faults(who):
                try:
                    answer = await anyio.to_thread.run_sync(attempt, context)
                except (ssl.SSLError, ConnectionError):
                    answer = ""
                assert answer == ""
        # The server's own side: only its authority and its name will do.
        for _ in faults("a server by another name, or of an unknown authority"):
            with pytest.raises(ssl.SSLCertVerificationError, match="match"):
                ask(address, neighbour, path, client(trusted, hub.pair("hub-internal")))
            with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
                ask(address, host, path, client(tmp_path / "forged" / FILES[2]))
        # It was there all the time.
        assert " 200 " in attempt(client(trusted, hub.pair("hub-internal")))
        await user.stop_server("other")
        await user.stop_server()


async def test_the_hub_refuses_a_server_with_a_wrong_certificate(
    hub: SecureHub, kube: Kube, cluster: Cluster, space: str, faults: Faults, tmp_path: Path
) -> None:
    values = bare(cluster)
    options = {"cmd": ["python3", "-c", SERVER], "http_timeout": 4, "extra_vars": values}

    async def refused(files: dict[str, str], made_up: str) -> str:
        """What the hub says of a server with these files, and this at the end of its name."""
        values["internal_ssl"] = {"path": "/etc/jupyterhub/ssl", "files": files, "id": made_up}
        position = len(hub.log.read_text(errors="replace"))
        await user.start_server("", options)
        with pytest.raises(ServerFailedError):
            await user.wait_ready()
        assert kube.owned(space, f"{OWNED},hub.jupyter.org/username=carl") == []
        return (await hub.wait_for_log("CERTIFICATE_VERIFY_FAILED.*", start=position))[0]

    async with signed_in(hub, "carl") as user:
        host = await started(hub, user, options=options)  # with its own certificate
        own = certificate(kube, space, user.name)
        await user.stop_server()
        for turn in faults("a server with a certificate of another authority"):
            files = forged(tmp_path / str(turn), ID.sub(f"-bad{turn:05}.", host))
            assert "Hostname mismatch" not in await refused(files, f"bad{turn:05}")
        for turn in faults("a server with the certificate of another server"):
            assert "Hostname mismatch" in await refused(own, f"fad{turn:05}")
