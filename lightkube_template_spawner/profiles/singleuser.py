"""The class of the singleuser-profiles library, under its names.

Hub configurations that use it go on with KubeSpawner's ``modify_pod_hook`` until they can change;
``Profiles`` is what is new. What wrote to the cluster there, or asked it for images, is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles import pods
from lightkube_template_spawner.profiles.checks import Place, plain_data
from lightkube_template_spawner.profiles.collection import CONFIGMAP, CONFIGMAP_KEY, Profiles
from lightkube_template_spawner.profiles.files import from_file
from lightkube_template_spawner.profiles.match import Matcher
from lightkube_template_spawner.profiles.merge import SINGLEUSER_PROFILES, copied, merge
from lightkube_template_spawner.profiles.model import Profile, read_profile

ConfigMaps = Mapping[str, Mapping[str, Any]]


class SingleuserProfiles:
    """Profiles with the answers of singleuser-profiles 0.1.1.

    ``configmaps`` gives the ConfigMaps of the hub's namespace by name, each with ``labels`` and
    ``data``; without it profiles come from a file. ``namespace``, ``verify_ssl`` and
    ``service_account_path`` are taken for the old signature's sake: nothing here opens a
    connection.
    """

    GPU_MODE_SELINUX = pods.GPU_MODE_SELINUX
    GPU_MODE_PRIVILEGED = pods.GPU_MODE_PRIVILEGED

    def __init__(
        self,
        namespace: str | None = None,
        verify_ssl: bool = True,
        gpu_mode: str | None = None,
        service_account_path: str | None = None,
        *,
        configmaps: Callable[[], ConfigMaps] | None = None,
    ) -> None:
        del verify_ssl, service_account_path
        self.namespace = namespace
        self.gpu_mode = gpu_mode
        self._configmaps = configmaps
        self._loaded = Profiles()

    @property
    def gpu_mode(self) -> str | None:
        """None, ``selinux`` or ``privileged``: what a pod with GPUs is given beside them."""
        return self._gpu_mode

    @gpu_mode.setter
    def gpu_mode(self, mode: str | None) -> None:
        modes = (self.GPU_MODE_SELINUX, self.GPU_MODE_PRIVILEGED)
        self._gpu_mode = mode if mode in modes else None

    def load_profiles(
        self,
        secret_name: str = CONFIGMAP,
        filename: str | None = None,
        key_name: str = CONFIGMAP_KEY,
        username: str | None = None,
    ) -> None:
        """Read all profiles again: of the ConfigMaps, else of a file, whose sizes are not read.

        Raises:
            ProfileError: neither is given, or what stands there cannot be used. What was read
                before stays.
        """
        if self._configmaps is not None:
            self._loaded = Profiles.from_configmaps(
                self._configmaps(), username, main=secret_name, key=key_name
            )
        elif filename is not None:
            self._loaded = Profiles(from_file(filename, key=key_name).profiles)
        else:
            raise ProfileError(
                "load_profiles: give `filename`, or SingleuserProfiles a function `configmaps`"
            )

    @property
    def profiles(self) -> list[dict[str, Any]]:
        """What was read, profile by profile."""
        return [_as_data(profile) for profile in self._loaded.profiles]

    def filter_by_username(self, profile: Mapping[str, Any], user: str | None) -> dict[str, Any]:
        """The profile if it is for ``user``, else an empty mapping."""
        one = _from_data(profile, "the profile given to filter_by_username")
        return copied(dict(profile)) if Matcher.of(one).for_user(user, ()) else {}

    def get_profile_by_image(self, image: str, user: str | None = None) -> list[dict[str, Any]]:
        """The profiles for an image and a user, in their order."""
        matching = self._loaded.matching(image, user, semantics=SINGLEUSER_PROFILES)
        return [_as_data(profile) for profile in matching]

    def get_merged_profile(
        self, image: str, user: str | None = None, size: str | None = None
    ) -> dict[str, Any]:
        """All that is set for an image, a user and a size."""
        return self._loaded.merged(image, user, size=size, semantics=SINGLEUSER_PROFILES)

    def get_profile_by_name(self, name: str) -> dict[str, Any]:
        """The first profile of that name, else an empty mapping."""
        named = (profile for profile in self._loaded.profiles if profile.name == name)
        return next((_as_data(profile) for profile in named), {})

    def get_size(self, size: str) -> dict[str, Any]:
        """The size of that name, else an empty mapping."""
        chosen = self._loaded.size(size)
        return _as_data(chosen) if chosen else {}

    def get_sizes(self) -> list[dict[str, Any]]:
        """All sizes, in their order."""
        return [_as_data(size) for size in self._loaded.sizes]

    @classmethod
    def empty_profile(cls) -> dict[str, Any]:
        """What no profile at all sets."""
        return merge((), SINGLEUSER_PROFILES)

    @classmethod
    def env_dict_to_list(cls, env_data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A mapping of names to values as a list of EnvVars."""
        return [{"name": name, "value": value} for name, value in env_data.items()]

    @classmethod
    def merge_profiles(
        cls, profile1: Mapping[str, Any], profile2: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Both, the second over the first; neither is changed."""
        both = (_from_data(profile1, "the first profile"), _from_data(profile2, "the second one"))
        return merge(both, SINGLEUSER_PROFILES)

    @classmethod
    def apply_gpu_config(cls, gpu_mode: str | None, gpu_count: int | str, pod: Any) -> Any:
        """Give the pod's first container so many GPUs."""
        return pods.set_gpus(pod, pods.gpu_count(gpu_count), mode=gpu_mode)

    @classmethod
    def generate_volume_path(
        cls,
        mountPath: str | None,  # noqa: N803 - as it was
        default_mount_path: str,
        volume_name: str,
    ) -> str:
        """Where a volume is mounted: the path, below the default if it is relative."""
        return pods.mount_path(mountPath, default_mount_path, volume_name)

    @classmethod
    def apply_pod_profile(
        cls,
        spawner: Any,
        pod: Any,
        profile: Mapping[str, Any],
        default_mount_path: str = pods.DEFAULT_MOUNT_PATH,
    ) -> Any:
        """Put a merged profile on a pod, for ``modify_pod_hook``; see ``pods``."""
        return pods.apply_pod_profile(spawner, pod, profile, default_mount_path)


def _as_data(profile: Profile) -> dict[str, Any]:
    """A profile as it could be written."""
    whom = {"images": profile.images, "users": profile.users, "groups": profile.groups}
    return {
        **({"name": profile.name} if profile.name else {}),
        **{key: list(texts) for key, texts in whom.items() if texts},
        **{name: copied(value) for name, value in profile.fields.items()},
    }


def _from_data(data: Mapping[str, Any], source: str) -> Profile:
    """A profile as it was written, or as it came out of merging."""
    written = {key: value for key, value in data.items() if key != "semantics"}
    return read_profile(plain_data(written, Place(source)), Place(source))
