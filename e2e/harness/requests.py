"""What a client asks of the API server, in the words of Kubernetes' own authorization."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?"
)
_OF_ONE = {"GET": "get", "PATCH": "patch", "PUT": "update", "DELETE": "delete", "POST": "create"}
_OF_MANY = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


@dataclass(frozen=True)
class Request:
    """One request and when it came, on the monotonic clock."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""
    at: float = field(default_factory=time.monotonic, compare=False)

    @classmethod
    def read(cls, method: str, target: str) -> Request:
        parts = urlsplit(target)
        found = _PATH.fullmatch(parts.path)
        if found is None or found["resource"] == "namespaces":
            return cls(method.lower(), parts.path)
        name = unquote(found["name"] or "")
        verb = (_OF_ONE if name else _OF_MANY)[method]
        if verb == "list" and parse_qs(parts.query).get("watch") == ["true"]:
            verb = "watch"
        return cls(verb, found["resource"], found["namespace"] or "", name)
