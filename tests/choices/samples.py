"""Profile lists that several tests use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lightkube_template_spawner.choices import Applied, Selection

REGEX = r"^jupyter/.+:.+$"


def documented() -> list[dict[str, Any]]:
    """The example of KubeSpawner's own documentation."""
    return [
        {
            "display_name": "Demo - profile_list entry 1",
            "description": "Demo description for profile_list entry 1.",
            "slug": "demo-1",
            "default": True,
            "profile_options": {
                "image": {
                    "display_name": "Image",
                    "choices": {
                        "base": {
                            "display_name": "jupyter/base-notebook:latest",
                            "kubespawner_override": {"image": "jupyter/base-notebook:latest"},
                        },
                        "minimal": {
                            "display_name": "jupyter/minimal-notebook:latest",
                            "default": True,
                            "kubespawner_override": {"image": "jupyter/minimal-notebook:latest"},
                        },
                    },
                    "unlisted_choice": {
                        "enabled": True,
                        "display_name": "Other image",
                        "display_name_in_choices": "Enter image manually",
                        "validation_regex": REGEX,
                        "validation_message": "Must be an image matching ^jupyter/<name>:<tag>$",
                        "kubespawner_override": {"image": "{value}"},
                    },
                },
            },
            "kubespawner_override": {"default_url": "/lab"},
        },
        {
            "display_name": "Demo - profile_list entry 2",
            "slug": "demo-2",
            "kubespawner_override": {"extra_resource_guarantees": {"nvidia.com/gpu": "1"}},
        },
    ]


def ours() -> list[dict[str, Any]]:
    """Everything that we add to it."""
    return [
        {
            "display_name": "Small",
            "values": {"sidecar": {"enabled": True}},
            "profile_options": {
                "image": {
                    "display_name": "Image",
                    "choices": {
                        "base": {"kubespawner_override": {"image": "base"}},
                        "secret": {
                            "groups": ["staff"],
                            "kubespawner_override": {"image": "secret"},
                        },
                        "old": {"redirect": {"to": "older", "message": "It had its day."}},
                        "older": {"redirect": {"to": "base"}},
                        "shy": {"hidden": True, "kubespawner_override": {"image": "shy"}},
                        "aged": {"deprecated": "Take base from May on."},
                    },
                    "unlisted_choice": {
                        "enabled": True,
                        "users": ["root"],
                        "kubespawner_override": {"image": "{value}"},
                    },
                },
                "memory": {
                    "display_name": "Memory",
                    "description": "In GiB.",
                    "number": {
                        "min": 0.5,
                        "max": 8,
                        "step": 0.5,
                        "default": 2,
                        "kubespawner_override": {"mem_limit": "{value}G"},
                        "values": {"memory": {"gib": "{value}"}},
                    },
                },
                "disk": {
                    "display_name": "Disk",
                    "number": {"min": 10, "max": 100},
                    "monotonic": "increasing",
                },
                "zone": {"choices": {"a": {}, "b": {}}, "mutable": False},
                "reset": {"choices": {"no": {}, "yes": {}}, "ephemeral": True},
                "repo": {
                    "display_name": "Repository",
                    "unlisted_choice": {
                        "enabled": True,
                        "default": "",
                        "validation_regex": "https://.*",
                        "validation_message": "It begins with https://.",
                        "values": {"repo": "{value}"},
                    },
                },
                "branch": {
                    "unlisted_choice": {
                        "enabled": True,
                        "default": "main",
                        "values": {"branch": "{value}"},
                    },
                },
            },
        },
        {"display_name": "GPU", "slug": "gpu", "groups": ["gpu-users"], "users": ["ada"]},
        {"display_name": "Was", "redirect": {"to": "small", "message": "Big is Small now."}},
        {"display_name": "Attic", "hidden": True, "deprecated": "It goes in June."},
    ]


def spawner(**settings: Any) -> SimpleNamespace:
    """A spawner's settings, as far as choices change them."""
    return SimpleNamespace(
        **{
            "environment": {},
            "args": [],
            "cmd": ["jupyterhub-singleuser"],
            "cpu_limit": None,
            "mem_limit": None,
            "default_url": "",
            **settings,
        }
    )


async def applied(selection: Selection, **settings: Any) -> Applied:
    return await selection.overrides.applied(spawner(**settings))
