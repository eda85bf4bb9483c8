"""Lets tox find the interpreters that pyenv has installed, not only the one it has switched on."""

from __future__ import annotations

import os
from pathlib import Path

_PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
_FOUND = sorted(str(python) for python in _PYENV.glob("versions/3.1[1-4].*/bin/python3"))
os.environ.setdefault("TOX_DISCOVER", os.pathsep.join(_FOUND))
