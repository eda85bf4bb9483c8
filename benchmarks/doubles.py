"""As much of a hub as a spawner's `start` looks at, the same for both spawners."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jupyterhub import orm
from traitlets.config import Config

CHART = Path(__file__).parent / "charts" / "pod"
HUB = SimpleNamespace(
    public_host="", url="http://hub/hub/", base_url="/hub/", api_url="http://hub/hub/api"
)


class User(SimpleNamespace):
    """A user; unlike a bare namespace it can be a key, as the hub's can."""

    __hash__ = object.__hash__


def spawner(cls: type[Any], number: int, namespace: str, name: str) -> Any:
    """A spawner of `cls` for a user of its own, with settings that give the same pod and claim."""
    user = User(
        name=f"{name}{number}",
        escaped_name=f"{name}{number}",
        id=number,
        url=f"/user/{name}{number}/",
        admin=False,
        groups=[],
        orm_user=SimpleNamespace(orm_spawners={}),
        settings={},
    )
    made = cls(
        user=user,
        hub=HUB,
        orm_spawner=orm.Spawner(name=""),
        api_token="0" * 32,
        oauth_client_id=f"jupyterhub-user-{name}{number}",
        config=_config(namespace),
        start_timeout=300,
    )
    made.log = logging.getLogger("benchmark")
    return made


def _config(namespace: str) -> Config:
    config = Config()
    config.LightkubeTemplateSpawner.update(
        namespace=namespace, template_path=str(CHART), instance_name="benchmark"
    )
    config.KubeSpawner.update(
        namespace=namespace,
        image="benchmark:none",
        storage_pvc_ensure=True,
        storage_class="",
        storage_capacity="1Mi",
        node_selector={"type": "kwok"},
        tolerations=[{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        enable_user_namespaces=False,
    )
    return config
