"""Everybody whom a hub knows, over its REST API; for programs beside the hub."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from lightkube_template_spawner.errors import ConfigurationError, HubError
from lightkube_template_spawner.lifecycle.orphans import KnownServer, Roster

SCOPES = ("admin:server_state", "list:users", "read:servers")
_TRIES = 5
_PAGE = 200
_TIMEOUT = 30.0


class HubApi:
    """A hub's API, by the environment that JupyterHub gives its services.

    Raises:
        ConfigurationError: the environment lacks something.
    """

    def __init__(self, environment: Mapping[str, str], *, patience: float) -> None:
        self._url = environment.get("JUPYTERHUB_API_URL", "").rstrip("/")
        self._token = environment.get("JUPYTERHUB_API_TOKEN", "")
        if not self._url or not self._token:
            raise ConfigurationError(
                "set JUPYTERHUB_API_URL (such as http://hub:8081/hub/api) and JUPYTERHUB_API_TOKEN "
                f"in the environment; the token needs the scopes {', '.join(SCOPES)}"
            )
        self._patience = patience
        self._tls = _tls(environment) if self._url.startswith("https:") else None

    def read(self, roster: Roster) -> Roster:
        """``roster`` with every user and server of the hub.

        Raises:
            HubError: the hub does not answer, or does not show everything.
        """
        self._check_scopes()
        for model in self._users():
            roster.add(model["name"], [_server(model["name"], s) for s in _servers(model)])
        return roster

    def _check_scopes(self) -> None:
        """A token for a part of the users would make orphans of all others."""
        scopes = self._get("user").get("scopes") or ()
        gaps = [scope for scope in SCOPES if scope not in scopes]
        if gaps:
            raise HubError(
                f"the token lacks {', '.join(gaps)}, for all users: without it nobody can tell "
                "who is unknown; add it to the service's role in JupyterHub.load_roles"
            )

    def _users(self) -> list[dict[str, Any]]:
        for _ in range(_TRIES):
            try:
                return list(self._pages())
            except _Shifted:
                continue
        raise HubError("users are being removed faster than they can be listed; try again later")

    def _pages(self) -> Iterator[dict[str, Any]]:
        """All users, oldest first.

        One who is deleted meanwhile shifts those behind, and the one at the border of two pages
        would be missed; so pages overlap by one user.
        """
        count, last = 0, ""
        while True:
            offset = max(0, count - 1)
            query = f"include_stopped_servers=1&offset={offset}&limit={_PAGE}"
            page = self._get(f"users?{query}")
            try:
                items, total = page["items"], page["_pagination"]["total"]
            except (KeyError, TypeError):
                raise HubError("the hub does not give its users in pages") from None
            if count:
                if not items or items[0]["name"] != last:
                    raise _Shifted
                items = items[1:]
            yield from items
            count += len(items)
            if count >= total:
                return
            if not items:
                raise HubError("pages hold one user: raise JupyterHub.api_page_max_limit")
            last = items[-1]["name"]

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the administrator's own URL
            f"{self._url}/{path}", headers={"Accept": "application/jupyterhub-pagination+json"}
        )
        # Not sent on to where a redirect leads.
        request.add_unredirected_header("Authorization", f"token {self._token}")
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with urllib.request.urlopen(  # noqa: S310
                    request, timeout=_TIMEOUT, context=self._tls
                ) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    raise HubError(f"the hub answered {error.code} to GET {path}") from error
            except (OSError, ValueError) as error:
                # A service is started together with its hub.
                if time.monotonic() > deadline:
                    raise HubError(f"no answer from the hub at {self._url}: {error}") from error
            time.sleep(1)


class _Shifted(Exception):
    """Users were removed between two pages."""


def _servers(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "servers" not in model:
        raise HubError(f"the hub does not show the servers of {model['name']!r}")
    return list(model["servers"].values())


def _server(user: str, model: Mapping[str, Any]) -> KnownServer:
    if "state" not in model:
        raise HubError(f"the hub does not show the state of {user!r}'s server {model['name']!r}")
    return KnownServer(model["name"], not model["stopped"], model["state"])


def _tls(environment: Mapping[str, str]) -> ssl.SSLContext:
    """With the certificates that services have under internal_ssl."""
    authority = environment.get("JUPYTERHUB_SSL_CLIENT_CA") or None
    context = ssl.create_default_context(cafile=authority)
    if environment.get("JUPYTERHUB_SSL_CERTFILE"):
        context.load_cert_chain(
            environment["JUPYTERHUB_SSL_CERTFILE"], environment.get("JUPYTERHUB_SSL_KEYFILE")
        )
    return context
