"""What each field of a profile takes: a table of checks, each of which gives plain, valid data.

The fields of the library singleuser-profiles mean what they mean there. A check accepts its own
result, so that a merged profile can be checked like one that somebody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from lightkube_template_spawner.profiles import checks
from lightkube_template_spawner.profiles.checks import Place
from lightkube_template_spawner.templates.plain import shown

_VARIABLE = re.compile(r"[ -<>-~]+")  # printable ASCII but `=`, as the API server has it
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9-]")
_VALUE_SOURCES: Final = (
    "secretKeyRef", "configMapKeyRef", "fieldRef", "resourceFieldRef", "fileKeyRef",
)  # fmt: skip
_VOLUME_SOURCES: Final = (
    "persistentVolumeClaim", "configMap", "secret", "projected", "downwardAPI", "emptyDir",
    "ephemeral", "csi", "nfs", "hostPath", "image", "iscsi", "cephfs", "fc", "glusterfs", "rbd",
    "azureDisk", "azureFile", "awsElasticBlockStore", "gcePersistentDisk", "cinder", "flexVolume",
    "flocker", "photonPersistentDisk", "portworxVolume", "quobyte", "scaleIO", "storageos",
    "vsphereVolume", "gitRepo",
)  # fmt: skip
#: What belongs to the mount, not to the volume.
MOUNT_KEYS: Final = (
    "mountPath", "subPath", "subPathExpr", "mountPropagation", "readOnly", "recursiveReadOnly",
)  # fmt: skip
#: Keys of a pod's spec and of its container, and the field that is there for them.
_FIELD_OF_THE_POD: Final[Mapping[str, str]] = {
    "containers": "extra_container_config",
    "volumes": "volumes",
    "tolerations": "node_tolerations",
    "nodeSelector": "node_selector",
    "activeDeadlineSeconds": "max_age",
}
_FIELD_OF_THE_CONTAINER: Final[Mapping[str, str]] = {
    "env": "env",
    "ports": "ports",
    "resources": "resources",
    "volumeMounts": "volumes",
}
GPU: Final = "nvidia.com/gpu"


def volume_name(name: str) -> str:
    """``name`` as Kubernetes takes it for a volume: small letters, digits and hyphens."""
    return _NOT_IN_A_NAME.sub("-", name.lower()).strip("-")[:63].rstrip("-")


def _env(value: Any, place: Place) -> list[dict[str, Any]]:
    """A mapping of names to values, or an EnvVar list; a list of EnvVars."""
    if isinstance(value, dict):
        entries = [(_entry(name, item), place.key(name)) for name, item in value.items()]
    else:
        entries = [
            (checks.mapping(item, place.item(n)), place.item(n))
            for n, item in enumerate(checks.listing(value, place))
        ]
    return [_variable(entry, entry_place) for entry, entry_place in entries]


def _entry(name: str, value: Any) -> dict[str, Any]:
    """In a mapping, ``valueFrom`` or what stands below it, as KubeSpawner has it."""
    if isinstance(value, dict):
        return {"name": name, "valueFrom": value.get("valueFrom", value)}
    return {"name": name, "value": value}


def _variable(entry: dict[str, Any], place: Place) -> dict[str, Any]:
    checks.known(entry, ("name", "value", "valueFrom"), place)
    name = checks.text(entry.get("name"), place.key("name"))
    if not _VARIABLE.fullmatch(name):
        place.key("name").refuse("must be printable ASCII characters without `=`")
    value = entry.get("value")
    if isinstance(value, dict | list):
        place.key("value").refuse(f"must be text, not {checks.kind(value)}")
    if entry.get("valueFrom") is None:
        return {"name": name, "value": value}
    if value not in (None, ""):
        place.refuse("has both `value` and `valueFrom`: remove one")
    source = checks.mapping(entry["valueFrom"], place.key("valueFrom"))
    _one_source(source, _VALUE_SOURCES, place.key("valueFrom"))
    return {"name": name, "valueFrom": source}


def _one_source(source: dict[str, Any], allowed: tuple[str, ...], place: Place) -> None:
    checks.known(source, allowed, place)
    if len(source) != 1:
        few = ", ".join(allowed[:4])
        place.refuse(f"must have exactly one source, such as {few}; it has {len(source)}")
    (name,) = source
    if not isinstance(source[name], dict):
        place.key(name).refuse(f"must be a mapping, not {checks.kind(source[name])}")


def _resources(value: Any, place: Place) -> dict[str, Any]:
    """``requests`` and ``limits``, and the older ``mem_limit`` and ``cpu_limit`` for both."""
    entries = checks.mapping(value, place)
    checks.known(entries, ("requests", "limits", "mem_limit", "cpu_limit"), place)
    checked: dict[str, Any] = {}
    for side in ("requests", "limits"):
        if side in entries:
            amounts = checks.mapping(entries[side], place.key(side))
            checked[side] = {
                name: checks.quantity(amount, place.key(side).key(name))
                for name, amount in amounts.items()
            }
    for name in ("mem_limit", "cpu_limit"):
        if name in entries:  # empty text is none, too
            amount = None if entries[name] == "" else entries[name]
            checked[name] = checks.quantity(amount, place.key(name))
    return checked


def _volumes(value: Any, place: Place) -> list[dict[str, Any]]:
    return [_volume(item, place.item(n)) for n, item in enumerate(checks.listing(value, place))]


def _volume(value: Any, place: Place) -> dict[str, Any]:
    """A volume of a pod together with its mount."""
    volume = checks.mapping(value, place)
    name = checks.text(volume.get("name"), place.key("name"))
    if not volume_name(name):
        place.key("name").refuse("must have a letter or digit")
    path = volume.get("mountPath")
    if not isinstance(path, str | None):
        place.key("mountPath").refuse(f"must be text, not {checks.kind(path)}")
    rest = {key: item for key, item in volume.items() if key not in ("name", *MOUNT_KEYS)}
    checks.known(rest, ("name", *MOUNT_KEYS, *_VOLUME_SOURCES), place)
    _one_source(rest, _VOLUME_SOURCES, place)
    return volume


def _ports(value: Any, place: Place) -> list[dict[str, Any]]:
    return [_port(item, place.item(n)) for n, item in enumerate(checks.listing(value, place))]


def _port(value: Any, place: Place) -> dict[str, Any]:
    """A number, or a container's port as Kubernetes has it."""
    port = {"containerPort": value} if isinstance(value, int) else checks.mapping(value, place)
    checks.known(port, ("name", "containerPort", "protocol", "hostPort", "hostIP"), place)
    number = checks.count(port.get("containerPort"), place.key("containerPort"), top=65_535)
    protocol = checks.one_of(
        port.get("protocol") or "TCP", ("TCP", "UDP", "SCTP"), place.key("protocol")
    )
    name = port.get("name")
    if name is not None and not (
        isinstance(name, str) and len(name) <= 15 and _PORT_NAME.fullmatch(name)
    ):
        place.key("name").refuse("must be up to 15 small letters, digits and single hyphens")
    if number == 0:
        place.key("containerPort").refuse("must be a whole number from 1 to 65535")
    return {**port, "containerPort": number, "protocol": protocol}


def _tolerations(value: Any, place: Place) -> list[dict[str, Any]]:
    allowed = ("key", "operator", "value", "effect", "tolerationSeconds")
    tolerations = checks.listing(value, place)
    for n, item in enumerate(tolerations):
        toleration = checks.mapping(item, place.item(n))
        checks.known(toleration, allowed, place.item(n))
        for key in ("key", "operator", "value", "effect"):
            if not isinstance(toleration.get(key), str | None):
                place.item(n).key(key).refuse(
                    f"must be text, not {checks.kind(toleration[key])}: put it in quotes"
                )
    return [item or {} for item in tolerations]


def _gpus(value: Any, place: Place) -> dict[str, Any]:
    """A count, or ``count`` and the ``resource`` that the cluster calls its GPUs."""
    entries = value if isinstance(value, dict) else {"count": value}
    checks.known(entries, ("count", "resource"), place)
    checked: dict[str, Any] = {}
    if entries.get("resource") is not None:
        checked["resource"] = checks.text(entries["resource"], place.key("resource"))
        if not re.fullmatch(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", checked["resource"]):
            place.key("resource").refuse(f"must be a name such as {GPU}")
    if entries.get("count") is not None:
        checked["count"] = checks.count(entries["count"], place.key("count"), top=1_024)
    return checked


def _free(value: Any, place: Place) -> dict[str, Any]:
    return checks.mapping(value, place)


def _services(value: Any, place: Place) -> dict[str, Any]:
    services = checks.mapping(value, place)
    return {name: checks.mapping(item, place.key(name)) for name, item in services.items()}


def _extra_pod(value: Any, place: Place) -> dict[str, Any]:
    return _extra(value, _FIELD_OF_THE_POD, place)


def _extra_container(value: Any, place: Place) -> dict[str, Any]:
    return _extra(value, _FIELD_OF_THE_CONTAINER, place)


def _extra(value: Any, fields: Mapping[str, str], place: Place) -> dict[str, Any]:
    extra = checks.mapping(value, place)
    for key in extra:
        if key in fields:
            place.key(shown(key)).refuse(f"is set by the profile's field `{fields[key]}`")
    return extra


#: Every field that a profile can set, with its check.
FIELDS: Final[Mapping[str, Callable[[Any, Place], Any]]] = {
    "env": _env,
    "resources": _resources,
    "volumes": _volumes,
    "node_tolerations": _tolerations,
    "node_affinity": _free,
    "services": _services,
    "gpus": _gpus,
    "node_selector": checks.label_texts,
    "labels": checks.label_texts,
    "annotations": checks.annotation_texts,
    "ports": _ports,
    "values": _free,
    "extra_pod_config": _extra_pod,
    "extra_container_config": _extra_container,
    # How long after its start a server ends, and how long without activity: seconds, once checked.
    "max_age": checks.duration,
    "idle": checks.duration,
}


def check_fields(data: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Those fields of ``data`` that are set, each checked; ``null`` sets none."""
    return {
        name: check(data[name], place.key(name))
        for name, check in FIELDS.items()
        if data.get(name) is not None
    }
