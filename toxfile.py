"""Lets tox find the interpreters that pyenv has installed, not only the one it has switched on."""

from __future__ import annotations

import os
from pathlib import Path

_PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
_FOUND = sorted(str(python.parent) for python in _PYENV.glob("versions/3.1[1-4].*/bin/python3"))
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *_FOUND])
