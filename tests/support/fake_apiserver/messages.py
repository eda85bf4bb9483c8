"""A request that arrived, and the answers of kind Status that refuse one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

Obj = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Obj
    quoted_path: str
    accept: str
    read_timeout: float | None  # how long the client waits for the next bytes

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def partial(self) -> bool:
        """Whether the client wants metadata only."""
        return "as=PartialObjectMetadata" in self.accept

    def __str__(self) -> str:
        return f"{'WATCH' if self.watch else self.method} {self.path}"


class Refusal(Exception):
    """An answer of kind Status."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details, "code": code,
        }  # fmt: skip

    @property
    def answer(self) -> httpx2.Response:
        return httpx2.Response(self.code, json=self.status)


def unknown_resource() -> Refusal:
    return Refusal(404, "NotFound", "the server could not find the requested resource")


def not_found(resource: str, name: str) -> Refusal:
    return Refusal(404, "NotFound", f'{resource} "{name}" not found')


def not_allowed() -> Refusal:
    message = "the server does not allow this method on the requested resource"
    return Refusal(405, "MethodNotAllowed", message)


def expired(message: str) -> Refusal:
    return Refusal(410, "Expired", message)
