"""A merged profile on a pod, as KubeSpawner's ``modify_pod_hook`` has it or as a template wrote it.

A profile merged by key is merged into the pod by key too. One of the semantics of
singleuser-profiles changes the pod as that library did: resources and tolerations take the place
of the pod's, and lists are joined, duplicates included, which server-side apply refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from posixpath import join, normpath
from typing import Any, Final, TypeVar, cast

from lightkube_template_spawner.objects.identity import slugs
from lightkube_template_spawner.profiles import checks, client_models
from lightkube_template_spawner.profiles.checks import Place
from lightkube_template_spawner.profiles.fields import GPU, MOUNT_KEYS, check_fields, volume_name
from lightkube_template_spawner.profiles.merge import (
    MERGE,
    SINGLEUSER_PROFILES,
    deep_merge,
    last_wins,
    merge,
    unique_env,
    unique_ports,
    unique_tolerations,
)
from lightkube_template_spawner.profiles.model import Profile
from lightkube_template_spawner.templates.values import env_list

DEFAULT_MOUNT_PATH: Final = "/opt/app-root/src"
USER_LABEL: Final = "jupyterhub.opendatahub.io/user"
USER_VARIABLE: Final = "JUPYTERHUB_USER_NAME"
GPU_MODE_SELINUX: Final = "selinux"
GPU_MODE_PRIVILEGED: Final = "privileged"

_POD: Final = Place("the pod given to apply_pod_profile")
_TOLD_APART_BY: Final[Mapping[str, str]] = {
    "env": "name",
    "ports": "containerPort",
    "volumes": "name",
    "volumeMounts": "mountPath",
}

P = TypeVar("P")
Object = dict[str, Any]


def apply_pod_profile(
    spawner: Any, pod: P, profile: Mapping[str, Any], default_mount_path: str = DEFAULT_MOUNT_PATH
) -> P:
    """Put what a merged profile sets on ``pod``, for the user of ``spawner``; give the pod.

    A client object is changed in place; of a mapping (a Pod, or a pod template) the result is a new
    one. The first container is the user's server. ``gpu_count`` and ``gpu_mode`` of the spawner,
    where it has them, are its GPUs. Volumes without an absolute path are mounted below
    ``default_mount_path``.

    Raises:
        ProfileError: the profile has a fault, or the pod no container.
    """
    return _changed(pod, lambda plain: plain.apply(profile, spawner, default_mount_path))


def mount_path(path: str | None, default_mount_path: str, name: str) -> str:
    """An absolute path as it is, a relative one below the default, none: the volume's name."""
    return join(default_mount_path, path or name)


def volumes_and_mounts(
    volumes: list[Object], default_mount_path: str
) -> tuple[list[Object], list[Object]]:
    """What a profile's ``volumes`` are in a pod's spec, and in its container."""
    specs: list[Object] = []
    mounts: list[Object] = []
    for volume in volumes:
        name = volume_name(volume["name"])
        path = mount_path(volume.get("mountPath"), default_mount_path, name)
        specs.append({**_part(volume, mount=False), "name": name})
        mounts.append({**_part(volume, mount=True), "name": name, "mountPath": path})
    return specs, mounts


def set_gpus(pod: P, count: int, resource: str = GPU, mode: str | None = None) -> P:
    """Give the first container ``count`` GPUs, as limit and request; 0 changes nothing.

    The mode ``selinux`` runs it without capabilities under the type of NVIDIA's containers, and
    ``privileged`` as its name says.
    """
    return _changed(pod, lambda plain: plain.set_gpus(count, resource, mode))


def _changed(pod: P, change: Callable[[_Pod], None]) -> P:
    before = client_models.to_plain(pod)
    after: Any = client_models.to_plain(before)
    change(_Pod(after))
    if isinstance(pod, Mapping):
        return cast("P", after)
    client_models.update(pod, before, after)
    return pod


def gpu_count(given: Any) -> int:
    """A number of GPUs as a spawner has it; nothing, or what is no number at all, is none."""
    if not given or not isinstance(given, int | str):
        return 0
    return checks.count(given, Place("the spawner's gpu_count"), top=1_024)


def _part(volume: Object, *, mount: bool) -> Object:
    return {key: value for key, value in volume.items() if (key in MOUNT_KEYS) is mount}


class _Pod:
    """A pod as plain data, that is changed."""

    def __init__(self, pod: Any) -> None:
        if not isinstance(pod, dict) or not isinstance(pod.get("spec"), dict):
            _POD.refuse("has no spec: give a V1Pod, or a mapping with `metadata` and `spec`")
        self._metadata = pod["metadata"] = checks.mapping(pod.get("metadata"), _POD)
        self._spec = pod["spec"]
        self._containers = _items(self._spec, "containers")
        if not self._containers:
            _POD.key("containers").refuse("must have a container: the user's server")
        self._main = self._containers[0]

    def apply(self, given: Mapping[str, Any], spawner: Any, default_mount_path: str) -> None:
        profile, legacy = _checked(given)
        if legacy:
            self._join(profile, set_resources=bool(given.get("resources")))
        else:
            self._merge(profile)
        self._add_volumes(profile["volumes"], default_mount_path, unique=not legacy)
        self._add_ours(profile)
        self._add_user(str(spawner.user.name), unique=not legacy)
        gpus = profile["gpus"]
        count = gpu_count(getattr(spawner, "gpu_count", None)) or gpus.get("count", 0)
        self.set_gpus(count, gpus.get("resource", GPU), getattr(spawner, "gpu_mode", None))

    def _join(self, profile: Object, *, set_resources: bool) -> None:
        """As singleuser-profiles does it."""
        _extend(self._main, "env", [_as_python(variable) for variable in profile["env"]])
        if set_resources:
            self._main["resources"] = {
                side: _amounts(amounts or {})
                for side, amounts in profile["resources"].items()
                if side in ("requests", "limits")
            }
        if profile["node_tolerations"]:
            self._spec["tolerations"] = profile["node_tolerations"]
        if profile["node_affinity"]:
            affinity = checks.mapping(self._spec.get("affinity"), _POD.key("affinity"))
            self._spec["affinity"] = {**affinity, "nodeAffinity": profile["node_affinity"]}

    def _merge(self, profile: Object) -> None:
        env = unique_env([*_items(self._main, "env"), *profile["env"]])
        _set(self._main, "env", _resolvable(env))
        resources = {side: _amounts(profile["resources"][side]) for side in ("limits", "requests")}
        _put(self._main, {"resources": resources})
        tolerations = [*_items(self._spec, "tolerations"), *profile["node_tolerations"]]
        _set(self._spec, "tolerations", unique_tolerations(tolerations))
        _put(self._spec, {"affinity": {"nodeAffinity": profile["node_affinity"]}})

    def _add_ours(self, profile: Object) -> None:
        """What singleuser-profiles does not know."""
        _set(self._main, "ports", unique_ports([*_items(self._main, "ports"), *profile["ports"]]))
        _put(self._spec, {"nodeSelector": profile["node_selector"]})
        _put(self._metadata, {key: profile[key] for key in ("labels", "annotations")})
        deep_merge(self._spec, profile["extra_pod_config"])
        deep_merge(self._main, profile["extra_container_config"])
        if profile["max_age"]:
            self._spec["activeDeadlineSeconds"] = profile["max_age"]

    def _add_volumes(self, volumes: list[Object], default: str, *, unique: bool) -> None:
        specs, mounts = volumes_and_mounts(volumes, default)
        _extend(self._spec, "volumes", specs)
        _extend(self._main, "volumeMounts", mounts)
        if unique and volumes:
            self._spec["volumes"] = last_wins(self._spec["volumes"], _name)
            self._main["volumeMounts"] = last_wins(self._main["volumeMounts"], _path)

    def _add_user(self, user: str, *, unique: bool) -> None:
        escaped = slugs().escape_slug(user)
        valid = slugs().is_valid_label(escaped)
        label = escaped if valid else slugs().safe_slug(user, is_valid=slugs().is_valid_label)
        _put(self._metadata, {"labels": {USER_LABEL: label}})
        variable = {"name": USER_VARIABLE, "value": user}
        for container in self._containers:
            env = _items(container, "env")
            if unique:  # first, where others can use it
                others = [one for one in env if one["name"] != USER_VARIABLE]
                container["env"] = [variable, *others]
            else:
                container["env"] = [*env, variable]

    def set_gpus(self, count: int, resource: str, mode: str | None) -> None:
        if not count:
            return
        amount = {resource: str(count)}
        _put(self._main, {"resources": {"limits": amount, "requests": amount}})
        if mode == GPU_MODE_SELINUX:
            options = {"seLinuxOptions": {"type": "nvidia_container_t"}}
            _put(self._spec, {"securityContext": options})
            _put(self._main, {"securityContext": {"capabilities": {"drop": ["ALL"]}}})
        elif mode == GPU_MODE_PRIVILEGED:
            _put(self._main, {"securityContext": {"privileged": True}})


def _items(into: Object, key: str) -> list[Object]:
    """The pod's own items under ``key``, each a mapping with what tells it from the others."""
    place = _POD.key(key)
    items = [
        checks.mapping(item, place.item(n))
        for n, item in enumerate(checks.listing(into.get(key), place))
    ]
    must_have = _TOLD_APART_BY.get(key)
    for n, item in enumerate(items):
        if must_have and not isinstance(item.get(must_have), str | int):
            place.item(n).refuse(f"has no `{must_have}`")
    return items


def _extend(into: Object, key: str, items: list[Object]) -> None:
    _set(into, key, [*_items(into, key), *items])


def _set(into: Object, key: str, items: list[Object]) -> None:
    if items:
        into[key] = items


def _checked(given: Mapping[str, Any]) -> tuple[Object, bool]:
    """The profile with every field, valid and without duplicates; whether it is of the old kind."""
    place = Place("the profile given to apply_pod_profile")
    if not isinstance(given, Mapping):
        place.refuse("must be what `merged` or `get_merged_profile` gives")
    legacy = given.get("semantics") == SINGLEUSER_PROFILES
    fields = check_fields(checks.plain_data(given, place), place)
    return merge([Profile(fields=fields)], SINGLEUSER_PROFILES if legacy else MERGE), legacy


def _put(into: Object, more: Object) -> None:
    """Merge what is not empty; ``null`` in the pod is nothing."""
    for key, value in more.items():
        if isinstance(value, dict):
            if value:
                if not isinstance(into.get(key), dict):
                    into[key] = {}
                _put(into[key], value)
                if not into[key]:
                    del into[key]
        else:
            into[key] = value


def _amounts(amounts: Object) -> Object:
    """Amounts as text, as the client's objects have them."""
    return {name: str(amount) for name, amount in amounts.items() if amount is not None}


def _as_python(variable: Object) -> Object:
    """The value as text, as singleuser-profiles writes it."""
    if "valueFrom" in variable or variable["value"] is None:
        return variable
    return {"name": variable["name"], "value": str(variable["value"])}


def _resolvable(variables: list[Object]) -> list[Object]:
    """Each after those that it uses as ``$(NAME)``, where any does."""
    if not any("$(" in variable.get("value", "") for variable in variables):
        return variables
    return env_list({one["name"]: one if "valueFrom" in one else one["value"] for one in variables})


def _name(item: Object) -> Any:
    return item.get("name")


def _path(mount: Object) -> Any:
    return normpath(str(mount["mountPath"]))
