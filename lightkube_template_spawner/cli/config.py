"""The spawner's settings, as the hub's own configuration file has them."""

from __future__ import annotations

from pathlib import Path

from traitlets.config import Config
from traitlets.config.loader import ConfigFileNotFound, PyFileConfigLoader

from lightkube_template_spawner.errors import ConfigurationError
from lightkube_template_spawner.hub.settings import Settings

_SECTION = "LightkubeTemplateSpawner"


def settings(path: str) -> Settings:
    """The settings in the file at ``path``, which is run as the hub runs it; "" for the defaults.

    Raises:
        ConfigurationError: it cannot be read, or fails.
        TraitError: a setting has a value that it refuses.
    """
    config = _loaded(Path(path)) if path else Config()
    spawner_class = config.get("JupyterHub", {}).get("spawner_class")
    classes = spawner_class.__mro__ if isinstance(spawner_class, type) else ()
    sections = Config()
    for name in dict.fromkeys([_SECTION, *(cls.__name__ for cls in reversed(classes))]):
        sections.merge({Settings.__name__: config.get(name, {})})
    traits = Settings.class_trait_names(config=True)
    section = {k: v for k, v in sections.get(Settings.__name__, {}).items() if k in traits}
    return Settings(config=Config({Settings.__name__: section}))


def _loaded(path: Path) -> Config:
    try:
        return PyFileConfigLoader(path.name, str(path.parent.resolve())).load_config()
    except ConfigFileNotFound:
        raise ConfigurationError(f"there is no configuration file {path}") from None
    except Exception as error:
        raise ConfigurationError(
            f"the configuration file {path} failed: {type(error).__name__}: {error}"
        ) from error
