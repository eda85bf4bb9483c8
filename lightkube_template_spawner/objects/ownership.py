"""Whose a live object is: this user's, a former spawner's of this user, or a stranger's; pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from lightkube_template_spawner.objects.identity import (
    INSTANCE,
    OWNER,
    SERVERNAME,
    USERNAME,
    Identity,
    slugs,
)


class Relation(StrEnum):
    """What a live object of a wanted name is to us."""

    OURS = "ours"
    FORMER = "former"  # KubeSpawner's or KubeTemplateSpawner's, for this very user
    FOREIGN = "foreign"


def relation(
    metadata: Mapping[str, Any], identity: Identity, *, remembered: bool = False
) -> Relation:
    """Judge by labels. No label can be forged into OURS without the user's full name.

    ``remembered``: the hub's database names this object as what KubeSpawner made for this server.
    Then its instance label need not be ours: KubeSpawner sets none, Zero to JupyterHub the release.
    """
    labels = metadata.get("labels") or {}
    if identity.owns(labels):
        return Relation.OURS
    # KubeSpawner notes the raw name: another one with the same slug is another user.
    username = (metadata.get("annotations") or {}).get(USERNAME, identity.username)
    # Its label slug keeps characters that its name slug does not.
    label_slug = slugs().safe_slug(identity.username, is_valid=slugs().is_valid_label)
    if (
        OWNER not in labels
        and username == identity.username
        and (remembered or labels.get(INSTANCE) == identity.instance)
        and labels.get(USERNAME) in (identity.user_slug, label_slug)
    ):
        return Relation.FORMER
    return Relation.FOREIGN


def describe(metadata: Mapping[str, Any]) -> str:
    """Who has the object, as far as its labels and field managers tell."""
    labels = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    if OWNER in labels:
        user = annotations.get(USERNAME) or labels.get(USERNAME, "unknown")
        text = f"it belongs to user {user!r} of hub instance {labels.get(INSTANCE)!r}"
        server = annotations.get(SERVERNAME) or labels.get(SERVERNAME)
        return f"{text}, server {server!r}" if server else text
    fields = metadata.get("managedFields") or ()
    # Who writes the status has not made the object.
    managers = sorted({str(f.get("manager")) for f in fields if not f.get("subresource")})
    return f"it was made by {', '.join(managers) or 'somebody else'} and carries no owner label"


def same_start(live: Mapping[str, Any], manager: str, digest: str, digest_key: str) -> bool:
    """Whether an object that is already there is the one our own lost request created."""
    metadata = live["metadata"]
    managers = {f.get("manager") for f in metadata.get("managedFields") or ()}
    return (metadata.get("annotations") or {}).get(digest_key) == digest and manager in managers
