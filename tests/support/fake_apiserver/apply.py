"""Server-side apply: who claims which fields, and conflicts about them."""

from __future__ import annotations

import base64
from copy import deepcopy

from tests.support.fake_apiserver import paths
from tests.support.fake_apiserver.authorization import Authorization
from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.kinds import Served
from tests.support.fake_apiserver.messages import Obj, Refusal, Seen
from tests.support.fake_apiserver.paths import Path
from tests.support.fake_apiserver.storage import Key, Storage

UNDECLARED = ("spec", "bogus")  # the one field that no schema has


class Applying:
    def __init__(
        self, storage: Storage, authorization: Authorization, behaviour: Behaviour
    ) -> None:
        self._storage = storage
        self._authorization = authorization
        self._behaviour = behaviour

    def apply(self, served: Served, key: Key, seen: Seen) -> Obj:
        """Create the object, or merge what is applied into it."""
        body, manager = deepcopy(seen.body), seen.query["fieldManager"]
        version = body["metadata"].pop("resourceVersion", "")
        uid = body["metadata"].pop("uid", "")
        claims = set(paths.leaves(body))
        _check_body(served, key, body, claims)
        live = self._storage.get(served, key)
        if live is None:
            return self._create(served, key, body, manager, uid)
        if seen.query.get("force") == "true":
            for theirs in self._storage.claims[live["metadata"]["uid"]].values():
                theirs.difference_update(claims)
        self._check_conflicts(live, body, manager, claims)
        _check_state(served, key, live, uid, version)
        return self._merge(served, key, body, manager, claims)

    def _create(self, served: Served, key: Key, body: Obj, manager: str, uid: str) -> Obj:
        if uid:
            raise Refusal(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {served.qualified} "{key[1]}": uid mismatch: '
                f"the provided object specified uid {uid}, and no existing object was found",
            )
        self._authorization.need("create", served, *key)
        self._need_account(served, key)
        return self._storage.create(served, key, body, manager, "Apply")

    def _need_account(self, served: Served, key: Key) -> None:
        accounts = self._storage.of(("", "serviceaccounts"))
        made = not self._behaviour.controllers or (key[0], "default") in accounts
        if served.kind == "Pod" and not made:
            raise Refusal(
                403,
                "Forbidden",
                f'pods "{key[1]}" is forbidden: error looking up service account {key[0]}/default: '
                'serviceaccount "default" not found',
            )

    def _check_conflicts(self, live: Obj, body: Obj, manager: str, claims: set[Path]) -> None:
        causes = [
            {"reason": "FieldManagerConflict", "message": f'conflict with "{other}"',
             "field": paths.dotted(path)}
            for other, theirs in self._storage.claims[live["metadata"]["uid"]].items()
            if other != manager
            for path in sorted(claims & theirs)
            if paths.get(live, path) != paths.get(body, path)
        ]  # fmt: skip
        if causes:
            told = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
            many = "s" if len(causes) > 1 else ""
            message = f"Apply failed with {len(causes)} conflict{many}: {told}"
            raise Refusal(409, "Conflict", message, causes=causes)

    def _merge(self, served: Served, key: Key, body: Obj, manager: str, claims: set[Path]) -> Obj:
        live = self._storage.of(served.resource)[key]
        managers = self._storage.claims[live["metadata"]["uid"]]
        new = deepcopy(live)
        others = set().union(*(theirs for other, theirs in managers.items() if other != manager))
        for path in managers.get(manager, set()) - claims - others:
            paths.cut(new, path)
        for path in claims:
            value = paths.get(body, path)
            if value != {} or not isinstance(paths.get(new, path), dict):
                paths.put(new, path, value)
        if manager not in managers:
            entry = {"manager": manager, "operation": "Apply"}
            new["metadata"]["managedFields"].append(entry)
        if new == live:
            return new
        managers[manager] = claims
        return self._storage.commit(served, key, new)


def _check_body(served: Served, key: Key, body: Obj, claims: set[Path]) -> None:
    if UNDECLARED in claims:
        raise Refusal(
            500,
            "",
            f"failed to create typed patch object ({key[0]}/{key[1]}; {served.api_version}, "
            f"Kind={served.kind}): {paths.dotted(UNDECLARED)}: field not declared in schema",
        )
    if served.kind == "Secret":
        try:
            for value in (body.get("data") or {}).values():
                base64.b64decode(value, validate=True)
        except ValueError:
            raise Refusal(
                500,
                "",
                f"failed to convert new object ({key[0]}/{key[1]}; /v1, Kind=Secret) to proper "
                "version: unable to convert unstructured object to /v1, Kind=Secret: error "
                "decoding from json: illegal base64 data at input byte 0",
            ) from None


def _check_state(served: Served, key: Key, live: Obj, uid: str, version: str) -> None:
    if uid and uid != live["metadata"]["uid"]:
        raise Refusal(
            422,
            "Invalid",
            f'{served.kind} "{key[1]}" is invalid: metadata.uid: Invalid value: "{uid}": field is '
            "immutable",
        )
    if version and version != live["metadata"]["resourceVersion"]:
        raise Refusal(
            409,
            "Conflict",
            f'Operation cannot be fulfilled on {served.qualified} "{key[1]}": the object has been '
            "modified; please apply your changes to the latest version and try again",
        )
