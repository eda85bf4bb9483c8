"""Profiles from a file: the only module here that reads one."""

from __future__ import annotations

from pathlib import Path

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles.collection import CONFIGMAP_KEY, Profiles

MAX_BYTES = 16 << 20


def from_file(path: str | Path, *, key: str = CONFIGMAP_KEY) -> Profiles:
    """Read a YAML file: profiles and sizes, a list of profiles, or a ConfigMap that has them.

    Raises:
        ProfileError: the file cannot be read, or what stands in it cannot be used.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ProfileError(f"{path}: cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ProfileError(f"{path}: more than {MAX_BYTES >> 20} MiB: write fewer profiles")
    return Profiles.from_text(text, str(path), key=key)
