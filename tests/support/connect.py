"""An ``Api`` on a kubeconfig written for one test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2

from lightkube_template_spawner.cluster.api import Api

TOKEN = "very-secret-token"


def kubeconfig(folder: Path, server: str = "http://fake.example.org", **user: Any) -> Path:
    """A kubeconfig with one context; JSON is YAML."""
    file = folder / "kubeconfig"
    cluster = {"server": server, "insecure-skip-tls-verify": True}  # reading the CAs takes 0.5 s
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": user or {"token": TOKEN}}],
    }
    file.write_text(json.dumps(config))
    return file


def connect(
    folder: Path,
    server: str = "http://fake.example.org",
    *,
    timeout: float = 2.0,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Api:
    return Api(str(kubeconfig(folder, server)), timeout=timeout, transport=transport)
