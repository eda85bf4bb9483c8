"""What is kept of an object: little, and that as the API server wrote it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec

from lightkube_template_spawner.cluster.live import Live
from tests.support.objects import POD


def pod(**more: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "hub", "labels": {"l": "v"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **more}


def test_the_store_is_small() -> None:
    """A whole pod of 8 KB, managedFields and all, keeps to its spec and status."""
    env = [{"name": f"VARIABLE_{n}", "value": "x" * 20} for n in range(40)]
    managed = [{"manager": "m", "fieldsV1": {f"f:{n}": {} for n in range(300)}}]
    item = pod(spec={"containers": [{"name": "main", "env": env}]}, status={"phase": "Running"})
    item["metadata"] |= {"managedFields": managed, "uid": "u" * 36}
    raw = msgspec.json.encode(item)
    assert len(raw) > 5000

    def size(*, full: bool) -> tuple[float, list[Live]]:
        def read() -> Live:
            return Live(POD, msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), full=full)

        before = tracemalloc.get_traced_memory()[0]
        kept = [read() for _ in range(200)]
        return (tracemalloc.get_traced_memory()[0] - before) / 200, kept

    tracemalloc.start()
    try:
        whole_size, kept = size(full=True)
        slim_size, _ = size(full=False)
    finally:
        tracemalloc.stop()
    written = sum(len(part) for part in kept[0].parts.values())
    assert "managedFields" not in kept[0].as_dict()["metadata"]
    assert kept[0].as_dict()["spec"] == {"containers": [{"name": "main"}]}
    assert whole_size < written + 2500
    assert slim_size < 2200


def test_an_object_reads_as_the_server_wrote_it() -> None:
    owners = [{"kind": "ReplicaSet", "name": "r", "uid": "1", "controller": True}]
    item = pod(status={"phase": "é\x85"}, data=None)
    item["metadata"] |= {"uid": "1", "resourceVersion": "7", "deletionTimestamp": "t",
                         "ownerReferences": owners, "finalizers": ["f"]}  # fmt: skip
    raw = msgspec.json.encode(item)
    live = Live(POD, msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), full=True)
    read = live.as_dict()
    assert read["metadata"].items() >= item["metadata"].items()
    assert {k: read[k] for k in item if k != "metadata"} == {
        k: v for k, v in item.items() if k != "metadata"
    }
    assert (live.reference, live.meta.controlled) == ("Pod/hub/p", True)
