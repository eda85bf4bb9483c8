"""A hub with internal_ssl: it, its proxy and its users' servers speak TLS to each other only.

The hub connects to servers by name. It runs on this host, where names of the cluster are unknown;
so it and its proxy get a mount namespace in which /etc/resolv.conf names the cluster's DNS.
"""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread

from e2e.harness.hub import Hub

CONFIG = """
c.JupyterHub.internal_ssl = True
c.JupyterHub.trusted_alt_names = ["IP:{address}"]
"""
CERTIFICATES = "internal-ssl"
IN_NAMESPACE = 'mount --bind resolv.conf /etc/resolv.conf && exec "$@"'


class SecureHub(Hub):
    """`nameserver` is the cluster's DNS, as this host reaches it."""

    _scheme = "https"

    def __init__(
        self, config: str | Mapping[str, Mapping[str, object]], *, nameserver: str, **rest: Any
    ) -> None:
        super().__init__(config, **rest)
        self._config += CONFIG.format(address=self._connect_address)
        self._nameserver = nameserver

    def authority(self, name: str) -> Path:
        """Whom a part trusts: `hub-ca`, `notebooks-ca`."""
        return self.folder / CERTIFICATES / f"{name}_trust.crt"

    def pair(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a part: `hub-internal`, `proxy-client`."""
        folder = self.folder / CERTIFICATES / name
        return folder / f"{name}.crt", folder / f"{name}.key"

    async def _start_proxy(self) -> None:
        """The hub makes the proxy's certificates, so it is asked for them first."""
        (self.folder / "resolv.conf").write_text(f"nameserver {self._nameserver}\n")
        maker = self._run_hub("certificates.log", "--generate-certs")
        if await anyio.to_thread.run_sync(maker.wait, 60):
            raise RuntimeError((self.folder / "certificates.log").read_text())
        await super()._start_proxy()

    def _proxy_options(self) -> list[str]:
        """What JupyterHub gives a proxy that it starts itself."""
        options = []
        for side in ("api", "client"):
            certificate, key = self.pair(f"proxy-{side}")
            files = {"key": key, "cert": certificate, "ca": self.authority(f"proxy-{side}-ca")}
            for what, path in files.items():
                options += [f"--{side}-ssl-{what}", str(path)]
            options += [f"--{side}-ssl-request-cert", f"--{side}-ssl-reject-unauthorized"]
        return options

    def _popen(
        self, command: list[str], environment: dict[str, str], log: str
    ) -> subprocess.Popen[bytes]:
        space = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        shell = ["sh", "-c", IN_NAMESPACE, "sh"]
        return super()._popen([*space, *shell, *command], environment, log)


def client(authority: Path, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client that trusts `authority` and shows the certificate `pair`, or none."""
    context = ssl.create_default_context(cafile=str(authority))
    if pair is not None:
        context.load_cert_chain(*map(str, pair))
    return context
