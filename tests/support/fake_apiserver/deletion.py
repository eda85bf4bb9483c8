"""Deletion of one object or of a collection: preconditions, finalizers, grace."""

from __future__ import annotations

from copy import deepcopy

from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.controllers import Controllers
from tests.support.fake_apiserver.kinds import Served
from tests.support.fake_apiserver.listing import listing
from tests.support.fake_apiserver.messages import Obj, Refusal, Seen, not_allowed
from tests.support.fake_apiserver.storage import LATER, Key, Storage, key_of


class Deletion:
    def __init__(self, storage: Storage, controllers: Controllers, behaviour: Behaviour) -> None:
        self._storage = storage
        self._controllers = controllers
        self._behaviour = behaviour

    def delete_collection(self, served: Served, namespace: str, seen: Seen) -> Obj:
        """Delete all that match; the answer lists them as they were."""
        if served.namespaced and not namespace:
            raise not_allowed()
        selector = seen.query.get("labelSelector", "")
        items = deepcopy(self._storage.matching(served, namespace, selector))
        for item in items:
            self.delete(served, key_of(item), item, seen.body)
        metadata = {"resourceVersion": str(self._storage.version)}
        answer = listing(served, items, metadata, partial=seen.partial)
        return {**answer, "items": answer["items"] or None}

    def delete(self, served: Served, key: Key, item: Obj, options: Obj) -> Obj:
        """Delete at once, or mark the object if something has to let it go first."""
        metadata = item["metadata"]
        self._check(served, key, metadata["uid"], options)
        if metadata.get("deletionTimestamp"):
            return deepcopy(item)
        new = deepcopy(item)
        if options.get("propagationPolicy") == "Foreground":
            new["metadata"].setdefault("finalizers", []).append("foregroundDeletion")
        graceful = served.kind == "Pod" and bool(item.get("spec", {}).get("nodeName"))
        if new["metadata"].get("finalizers") or graceful or served.kind == "Namespace":
            new["metadata"]["deletionTimestamp"] = LATER
            new["metadata"]["deletionGracePeriodSeconds"] = options.get("gracePeriodSeconds", 0)
            self._storage.commit(served, key, new)
            self._controllers.end(served, key)
            return deepcopy(new)
        self._storage.remove(served, key)
        details = {"name": key[1], "kind": served.plural, "uid": metadata["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": details}

    def _check(self, served: Served, key: Key, uid: str, options: Obj) -> None:
        if key[1] in self._behaviour.protected:
            raise self._behaviour.protected[key[1]]
        expected = (options.get("preconditions") or {}).get("uid")
        if expected and expected != uid:
            raise Refusal(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {served.kind} "{key[1]}": the UID in the '
                f"precondition ({expected}) does not match the UID in record ({uid})",
            )
