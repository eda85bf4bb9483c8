"""Objects in an answer: whole or metadata only, one or a page of them."""

from __future__ import annotations

import base64
import json
from copy import deepcopy

from tests.support.fake_apiserver.kinds import Served
from tests.support.fake_apiserver.messages import Obj, Seen, expired
from tests.support.fake_apiserver.storage import Storage, key_of


def shown(item: Obj, *, partial: bool) -> Obj:
    if not partial:
        return deepcopy(item)
    head = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    return {**head, "metadata": deepcopy(item["metadata"])}


def listing(served: Served, items: list[Obj], metadata: Obj, *, partial: bool) -> Obj:
    answers = [shown(item, partial=partial) for item in items]
    if partial:
        head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
        return {**head, "metadata": metadata, "items": answers}
    for answer in answers:  # items of built-in lists do not say their kind
        del answer["apiVersion"], answer["kind"]
    head = {"kind": f"{served.kind}List", "apiVersion": served.api_version}
    return {**head, "metadata": metadata, "items": answers}


def page(storage: Storage, served: Served, namespace: str, seen: Seen) -> Obj:
    """A list, or as much of it as ``limit`` says, from ``continue`` on."""
    items = storage.matching(served, namespace, seen.query.get("labelSelector", ""))
    if seen.query.get("continue"):
        version, *after = json.loads(base64.b64decode(seen.query["continue"]))
        if version < storage.compacted:
            raise expired("The provided continue parameter is too old")
        items = [item for item in items if key_of(item) > tuple(after)]
    limit = int(seen.query.get("limit", "0")) or len(items)
    metadata = {"resourceVersion": str(storage.version)}
    if len(items) > limit:
        token = json.dumps([storage.version, *key_of(items[limit - 1])])
        metadata["continue"] = base64.b64encode(token.encode()).decode()
    return listing(served, items[:limit], metadata, partial=seen.partial)
