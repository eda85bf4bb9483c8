"""The hub's own idea of where a server is, and the proxy's."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit


async def follow(spawner: Any, url: str) -> None:
    """Send the server's users to ``url`` from now on; the database is not committed."""
    parts, server = urlsplit(url), spawner.server
    server.proto, server.ip = parts.scheme, str(parts.hostname)
    server.port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = spawner.user.settings.get("proxy")
    if proxy is not None:
        await proxy.add_user(spawner.user, spawner.name)
