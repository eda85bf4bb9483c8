"""The values a template gets: KubeTemplateSpawner's names, ours beside them; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightkube_template_spawner.objects.identity import Identity

_USE = re.compile(r"\$(?:\$|\(([^)]*)\))")  # `$$` is a plain dollar sign


def build(
    identity: Identity,
    *,
    unescaped_username: str,
    unescaped_servername: str,
    namespace: str,
    ip: str,
    port: int,
    env: Mapping[str, Any],
    ours: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The values mapping, in order of precedence: ``extra``, the seed's names, ``ours``.

    ``env`` values are strings, or ``valueFrom`` mappings as KubeSpawner allows; the latter appear
    in ``env_list`` only, because charts print ``env`` as text.
    """
    return {
        **ours,
        "env_list": env_list(env),
        "userid": identity.userid,
        "unescaped_username": unescaped_username,
        "unescaped_servername": unescaped_servername,
        "escaped_username": identity.user_slug,
        "escaped_servername": identity.server_slug,
        "escaped_user_server": identity.user_server_slug,
        "instance": identity.instance,
        "namespace": namespace,
        "ip": ip,
        "port": port,
        "env": {name: str(value) for name, value in env.items() if not isinstance(value, Mapping)},
        **extra,
    }


def env_list(env: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``env`` as a Kubernetes EnvVar list: by name, each after those it uses as ``$(NAME)``.

    Of a circle of uses, which Kubernetes leaves as text, the first by name comes last.
    """
    order: dict[str, None] = {}
    stack: list[str] = []
    for start in sorted(env):
        stack.append(start)
        open_names: set[str] = set()
        while stack:
            name = stack[-1]
            text = env[name] if isinstance(env[name], str) else ""
            references = {use for use in _USE.findall(text) if use in env and use != name}
            uses = sorted(use for use in references if use not in order and use not in open_names)
            if uses:
                open_names.add(name)
                stack += reversed(uses)
            else:
                order.setdefault(stack.pop())
    return [_variable(name, env[name]) for name in order]


def _variable(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        plain = dict(value)
        return {"name": name, **(plain if "valueFrom" in plain else {"valueFrom": plain})}
    return {"name": name, "value": str(value)}
