"""A JupyterHub spawner that runs each user's server from a template on Kubernetes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightkube_template_spawner.spawner import LightkubeTemplateSpawner

__all__ = ["LightkubeTemplateSpawner", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the spawner when asked for: the Helm worker imports this package without JupyterHub."""
    if name == "LightkubeTemplateSpawner":
        from lightkube_template_spawner.hub.startup import when_hub_has_started
        from lightkube_template_spawner.spawner import LightkubeTemplateSpawner

        when_hub_has_started(LightkubeTemplateSpawner)
        return LightkubeTemplateSpawner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
