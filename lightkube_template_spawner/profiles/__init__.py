"""Who gets what: profiles of images, users and groups, merged for each start.

``Profiles`` reads them and says what they set for one server. ``apply_pod_profile`` puts that on a
pod. ``SingleuserProfiles`` has the old library's names for both.
"""

from lightkube_template_spawner.profiles.collection import Profiles
from lightkube_template_spawner.profiles.files import from_file
from lightkube_template_spawner.profiles.merge import MERGE, SEMANTICS, SINGLEUSER_PROFILES
from lightkube_template_spawner.profiles.model import Profile
from lightkube_template_spawner.profiles.pods import apply_pod_profile, volumes_and_mounts
from lightkube_template_spawner.profiles.singleuser import SingleuserProfiles

__all__ = [
    "MERGE",
    "SEMANTICS",
    "SINGLEUSER_PROFILES",
    "Profile",
    "Profiles",
    "SingleuserProfiles",
    "apply_pod_profile",
    "from_file",
    "volumes_and_mounts",
]
