"""Label selectors: ``a=b,c,d in (e, f)``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.support.fake_apiserver.messages import Obj

_TERM = re.compile(
    r"(?P<key>[^=!\s(),]+)(?:\s*(?P<op>=|in)\s*(?P<value>\([^)]*\)|[^,()]*))?(?:,|$)"
)


def selects(selector: str, item: Obj) -> bool:
    """Whether the object's labels match; the empty selector selects everything."""
    labels = item["metadata"].get("labels") or {}
    return all(_holds(term, labels) for term in _TERM.finditer(selector) if term["key"])


def _holds(term: re.Match[str], labels: Mapping[str, str]) -> bool:
    if term["op"] is None:
        return term["key"] in labels
    value = term["value"].strip("()")
    allowed = [part.strip() for part in value.split(",")] if term["op"] == "in" else [value]
    return term["key"] in labels and labels[term["key"]] in allowed
