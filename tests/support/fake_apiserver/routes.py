"""Which part of the server answers a request."""

from __future__ import annotations

import re
from copy import deepcopy

import httpx2

from tests.support.fake_apiserver import listing
from tests.support.fake_apiserver.apply import Applying
from tests.support.fake_apiserver.authorization import Authorization
from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.controllers import Controllers
from tests.support.fake_apiserver.deletion import Deletion
from tests.support.fake_apiserver.discovery import discovery
from tests.support.fake_apiserver.kinds import Served
from tests.support.fake_apiserver.messages import Obj, Refusal, Seen, not_allowed, not_found
from tests.support.fake_apiserver.storage import Key, Storage
from tests.support.fake_apiserver.watches import Watches

_URL = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)
_OF_ONE = {"GET": "get", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_OF_MANY = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


class Routes:
    def __init__(
        self, storage: Storage, controllers: Controllers, watches: Watches, behaviour: Behaviour
    ) -> None:
        self._storage = storage
        self._behaviour = behaviour
        self._watches = watches
        self._authorization = Authorization(storage, behaviour)
        self._applying = Applying(storage, self._authorization, behaviour)
        self._deletion = Deletion(storage, controllers, behaviour)

    def respond(self, seen: Seen) -> Obj | httpx2.Response:
        if seen.path == "/version":
            return {"major": "1", "minor": "36", "gitVersion": self._behaviour.git_version}
        review = self._authorization.review(seen)
        if review is not None:
            return review
        match = _URL.fullmatch(seen.quoted_path)
        if match is None:
            return discovery(seen, self._behaviour)
        served = self._behaviour.kinds.at((match["group"] or "", match["plural"]), match["version"])
        key = (match["namespace"] or "", match["name"] or "")
        verb = "watch" if seen.watch else (_OF_ONE if key[1] else _OF_MANY)[seen.method]
        self._authorization.need(verb, served, *key)
        if verb not in served.verbs:
            raise not_allowed()
        if key[1]:
            return self._of_one(verb, served, key, seen)
        return self._of_many(verb, served, key[0], seen)

    def _of_many(
        self, verb: str, served: Served, namespace: str, seen: Seen
    ) -> Obj | httpx2.Response:
        if verb == "watch":
            return self._watches.start(served, namespace, seen)
        if verb == "list":
            return listing.page(self._storage, served, namespace, seen)
        if verb == "deletecollection":
            return self._deletion.delete_collection(served, namespace, seen)
        key = (namespace, seen.body["metadata"]["name"])
        if self._storage.get(served, key) is not None:
            raise Refusal(409, "AlreadyExists", f'{served.qualified} "{key[1]}" already exists')
        manager = seen.query["fieldManager"]
        return deepcopy(self._storage.create(served, key, seen.body, manager, "Update"))

    def _of_one(self, verb: str, served: Served, key: Key, seen: Seen) -> Obj:
        if verb == "patch":
            return deepcopy(self._applying.apply(served, key, seen))
        item = self._storage.get(served, key)
        if item is None:
            raise not_found(served.qualified, key[1])
        if verb == "delete":
            return self._deletion.delete(served, key, item, seen.body)
        if verb == "update":
            return deepcopy(self._storage.update(served, key, item, seen.body))
        return listing.shown(item, partial=seen.partial)
