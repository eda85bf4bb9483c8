"""What a message must not repeat: the values that a template gets and nobody else may read; pure.

Helm quotes values in its errors, the API server whole objects in its refusals.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from lightkube_template_spawner.templates.plain import MAX_DEPTH

_SECRET_NAME: Final = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL", re.IGNORECASE)
# Of other values only the text itself: `secretName` and `imagePullSecrets` are what errors name.
_SECRET_VALUE: Final = re.compile(
    r"(token|secret|password|passwd|credentials?|(private|api|access)_?key)$", re.IGNORECASE
)
_SHORTEST_SECRET: Final = 3
_SHORTEST_VALUE: Final = 8
_SHORTEST_LINE: Final = 16


@dataclass(frozen=True)
class Redactor:
    """Replaces, in any text, the secrets among a template's values by their names."""

    values: Mapping[str, Any]

    def __call__(self, message: str) -> str:
        """``message`` without them, in whatever form Helm or the API server quotes them."""
        for form, name in self._forms:
            message = message.replace(form, name)
        return message

    @cached_property
    def _forms(self) -> list[tuple[str, str]]:
        """Each form with its name, long ones first: one secret may hold another."""
        forms: dict[str, str] = {}
        for text, name in self._secrets():
            if len(text) >= _SHORTEST_SECRET:
                forms.update({form: name for form in _forms(text) if form not in forms})
        return sorted(forms.items(), key=lambda item: len(item[0]), reverse=True)

    def _secrets(self) -> Iterator[tuple[str, str]]:
        values = {name: value for name, value in self.values.items() if name != "env"}
        yield from _named(values, "value ")
        for name, text in _environment(self.values.get("env")):
            if _is_secret(name, text):
                yield text, f"[env {name}]"
        certificate = self.values.get("internal_ssl")
        if isinstance(certificate, Mapping):
            for name, text in _environment(certificate.get("files")):
                yield text, f"[{name}]"


def masked_log(log: logging.Logger, mask: Callable[[str], str]) -> logging.Logger:
    """A logger that hands on to ``log`` what ``mask`` leaves of each message."""

    def remove(record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), ()
        return True

    logger = logging.Logger(log.name)  # noqa: LOG001 - getLogger would keep one of each start
    logger.parent = log
    logger.addFilter(remove)
    return logger


def _forms(text: str) -> Iterator[str]:
    """A text, as JSON, as Kubernetes keeps it in a Secret, and each line of a long one."""
    yield text
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield base64.b64encode(text.encode(errors="replace")).decode()
    lines = text.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE)


def _is_secret(name: str, text: str) -> bool:
    """Short values of harmless names stay: replacing each `1` makes an error unreadable.

    So do those that the hub itself sets: users' names, which objects are called by, and URLs.
    """
    if name.startswith("JUPYTERHUB_SSL_"):
        return False  # paths
    harmless = len(text) < _SHORTEST_VALUE or name.startswith("JUPYTERHUB_")
    return not harmless or bool(_SECRET_NAME.search(name))


def _environment(env: Any) -> Iterator[tuple[str, str]]:
    if isinstance(env, Mapping):
        for name, value in env.items():
            if isinstance(value, str):
                yield str(name), value
            elif isinstance(value, Mapping):
                yield from ((str(name), text) for _, text in _environment(value))


def _named(values: Mapping[str, Any], place: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Texts that their own names call secret, such as `extra_vars` of a database's password."""
    for name, value in values.items():
        if isinstance(value, Mapping) and depth <= MAX_DEPTH:  # nothing deeper is rendered
            yield from _named(value, f"{place}{name}.", depth + 1)
        elif isinstance(value, str) and _SECRET_VALUE.search(str(name)):
            yield value, f"[{place}{name}]"
