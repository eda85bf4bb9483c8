"""What tests set about the server; it counts from the next request on."""

from __future__ import annotations

from collections.abc import Iterable

from tests.support.fake_apiserver.kinds import Kinds, Served
from tests.support.fake_apiserver.messages import Obj, Refusal


class Behaviour:
    """The settings, which every part of the server looks at when it acts."""

    def __init__(self, kinds: Iterable[Served]) -> None:
        self.kinds = Kinds(kinds)
        self.git_version = "v1.36.3"
        # Discovery
        self.legacy = False  # as before Kubernetes 1.26
        self.stale: set[str] = set()  # API versions whose own server is down
        # Watches
        self.expired_over_http = False  # 410 as an HTTP status instead of in the stream
        self.muted = False  # they stay open and say nothing
        # Controllers
        self.controllers = True  # kubelet and garbage collector; False: nothing finishes going
        self.delay = 0.005  # seconds that those take
        # Authorization: what our account may do everywhere, and, by name, what a RoleBinding gives.
        self.rules: list[Obj] = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
        self.roles: dict[str, list[Obj]] = {}
        self.forbidden: set[tuple[str, str]] = set()  # (verb, plural), whatever the rules say
        self.incomplete = False  # the review of rules tells none of them
        # Admission
        self.protected: dict[str, Refusal] = {}  # by name, what a policy keeps from deletion
