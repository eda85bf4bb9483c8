"""Reads YAML as Kubernetes does.

An ordinary YAML library disagrees with ``kubectl`` and Helm about what ``y``, ``0777``, ``1e3`` or
``1:30`` is, so a manifest that looks right here would be refused, or mean something else, in the
cluster. The scalar rules below are those of ``sigs.k8s.io/yaml``; the tests compare the two.

The text is read event by event instead of through PyYAML's composer: that one recurses in C, and
a deeply nested text would take the whole process down. For the same reason (rendered text can
hold what a user typed) documents, nodes and depth are capped, aliases are copied under the same
cap, and tags and duplicate keys are refused. Error messages give places and keys, never values,
which can be secrets.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, NoReturn

import yaml

from lightkube_template_spawner.errors import TemplateError

MAX_DOCUMENTS: Final = 1_000
MAX_NODES: Final = 200_000
MAX_DEPTH: Final = 100

_MEND: Final = (
    "Look at the indentation there, and pipe values through `quote`, `toJson` or "
    "`toYaml | nindent`."
)

_Parser: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|[0-9]+)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_POINT_FIRST = re.compile(r"\.[0-9]+(_[0-9]+)*([eE][-+]?[0-9]+(_[0-9]+)*)?\Z")
_NUMBER_STARTS: Final = frozenset("+-.0123456789")
_NOT_JSON: Final = frozenset(
    (".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF")
) | {".nan", ".NaN", ".NAN"}
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE"), True),
    **dict.fromkeys(("on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE"), False),
    **dict.fromkeys(("off", "Off", "OFF"), False),
}


def load_all(text: str, source: str = "", *, mend: str = _MEND) -> list[Any]:
    """Every document of ``text`` that is not empty; ``source`` names it in errors.

    ``mend`` says what to do about a text that is not YAML.
    """
    return _Reader(source or "the rendered text", mend).read(text)


def plain_scalar(text: str) -> str | int | float | bool | None:
    """What Kubernetes makes of ``text`` written without quotes; ValueError for infinity."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_STARTS:
        return text
    if text in _NOT_JSON:
        raise ValueError("infinity and not-a-number do not exist in Kubernetes")
    number = _number(text)
    return text if number is None else number


def _number(text: str) -> int | float | None:
    digits = text.replace("_", "")
    if text[0] == ".":
        return _float(digits) if _POINT_FIRST.match(text) else None
    if _INTEGER.match(digits):
        integer = _integer(digits)
        if integer is not None:
            return integer
    return _float(digits) if _FLOAT.match(digits) else None


def _integer(digits: str) -> int | None:
    """An integer of 64 bits, octal after a leading zero; what is none may still be a float."""
    magnitude = digits.lstrip("+-")
    try:
        if magnitude[:2].lower() in ("0x", "0b", "0o"):
            value = int(magnitude, 0)
        else:
            value = int(magnitude, 8 if magnitude[0] == "0" and len(magnitude) > 1 else 10)
    except ValueError:
        return None
    value = -value if digits[0] == "-" else value
    return value if -(2**63) <= value < 2**64 else None


def _float(digits: str) -> int | float | None:
    """A number with a point or exponent; an integral one is an integer, too big a one is text."""
    value = float(digits)
    if math.isinf(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


class _Mark(Enum):
    """What stands in a place where there is no value yet."""

    NO_KEY = auto()
    MERGE_KEY = auto()
    OPEN_ANCHOR = auto()


@dataclass(slots=True)
class _Frame:
    """A mapping or list that has begun and not ended."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    first_node: int
    depth: int = 1
    key: str | _Mark = _Mark.NO_KEY
    merged_keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Anchored:
    value: Any
    nodes: int
    depth: int


class _Reader:
    """Builds plain data from parser events, with one stack instead of recursion."""

    def __init__(self, source: str, mend: str) -> None:
        self._source = source
        self._mend = mend
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchored | _Mark] = {}
        self._documents: list[Any] = []
        self._count = 0
        self._nodes = 0

    def read(self, text: str) -> list[Any]:
        try:
            parser = _Parser(text)
        except (yaml.YAMLError, UnicodeError) as error:
            self._refuse_text(error)
        try:
            while (event := parser.get_event()) is not None:
                self._take(event)
        except (yaml.YAMLError, UnicodeError) as error:
            self._refuse_text(error)
        finally:
            parser.dispose()
        return self._documents

    def _take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent:
            self._begin({}, event)
        elif kind is yaml.SequenceStartEvent:
            self._begin([], event)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._end(event)
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self._anchors.clear()
            self._count += 1
            if self._count > MAX_DOCUMENTS:
                self._refuse(event, f"more than {MAX_DOCUMENTS} documents")

    def _scalar(self, event: Any) -> None:
        self._nodes += 1
        if event.tag is not None or self._nodes > MAX_NODES:
            self._refuse_node(event)
        plain = event.implicit[0]
        if plain and event.value == "<<" and self._at_key():
            self._frames[-1].key = _Mark.MERGE_KEY
            return
        try:
            value = plain_scalar(event.value) if plain else event.value
        except ValueError as error:
            self._refuse(event, f"{error}; put it in quotes")
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, 1, 0)
        self._add(value, 0, event)

    def _begin(self, value: dict[str, Any] | list[Any], event: Any) -> None:
        self._nodes += 1
        if event.tag is not None or self._nodes > MAX_NODES:
            self._refuse_node(event)
        if self._at_key():
            self._refuse(event, "a mapping's key must be text; a `{{` without quotes reads so too")
        if len(self._frames) >= MAX_DEPTH:
            self._refuse(event, f"nested more than {MAX_DEPTH} levels deep")
        if event.anchor is not None:
            self._anchors[event.anchor] = _Mark.OPEN_ANCHOR
        self._frames.append(_Frame(value, event.anchor, self._nodes))

    def _end(self, event: Any) -> None:
        frame = self._frames.pop()
        if frame.anchor is not None:
            nodes = self._nodes - frame.first_node + 1
            self._anchors[frame.anchor] = _Anchored(frame.value, nodes, frame.depth)
        self._add(frame.value, frame.depth, event)

    def _alias(self, event: Any) -> None:
        anchor = self._anchors.get(event.anchor)
        if anchor is None:
            self._refuse(event, "an alias (`*name`) without an anchor (`&name`) before it")
        if not isinstance(anchor, _Anchored):
            self._refuse(event, "an alias inside the value that it stands for")
        if len(self._frames) + anchor.depth > MAX_DEPTH:
            self._refuse(event, f"nested more than {MAX_DEPTH} levels deep")
        self._nodes += anchor.nodes
        if self._nodes > MAX_NODES:
            self._refuse_node(event)
        self._add(_copy(anchor.value), anchor.depth, event)

    def _add(self, value: Any, depth: int, event: Any) -> None:
        """Puts a complete value where it belongs: a document, a list's item, a key or its value."""
        if not self._frames:
            if value is not None:
                self._documents.append(value)
            return
        frame = self._frames[-1]
        if frame.depth <= depth:
            frame.depth = depth + 1
        if isinstance(frame.value, list):
            frame.value.append(value)
        elif frame.key is _Mark.NO_KEY:
            frame.key = self._key(value, event)
        else:
            if isinstance(frame.key, str):
                frame.value[frame.key] = value
            else:
                self._merge(frame.value, frame.merged_keys, value, event)
            frame.key = _Mark.NO_KEY

    def _key(self, value: Any, event: Any) -> str:
        if isinstance(value, str):
            key = value
        elif isinstance(value, bool):
            key = "true" if value else "false"
        elif isinstance(value, int):
            key = str(value)
        else:
            self._refuse(event, "a key that is null, a fraction or not text; put it in quotes")
        frame = self._frames[-1]
        if key in frame.value and key not in frame.merged_keys:
            self._refuse(event, f"the key {key[:60]!r} a second time in one mapping; remove one")
        frame.merged_keys.discard(key)
        return key

    def _merge(self, target: dict[str, Any], merged_keys: set[str], value: Any, event: Any) -> None:
        """``<<`` as Kubernetes' library does it: the later wins, in a list the earlier."""
        for source in reversed(value) if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                self._refuse(event, "`<<` takes a mapping or a list of mappings")
            merged_keys.update(source.keys() - target.keys())
            target.update(source)

    def _at_key(self) -> bool:
        if not self._frames:
            return False
        frame = self._frames[-1]
        return frame.key is _Mark.NO_KEY and isinstance(frame.value, dict)

    def _refuse_node(self, event: Any) -> NoReturn:
        if self._nodes > MAX_NODES:
            self._refuse(event, f"more than {MAX_NODES} values, aliases expanded")
        self._refuse(event, "a tag (`!…`); Kubernetes objects need none: remove or quote it")

    def _refuse(self, event: Any, problem: str) -> NoReturn:
        mark = event.start_mark
        raise TemplateError(f"{self._place(mark.line, mark.column)}: {problem}.")

    def _refuse_text(self, error: yaml.YAMLError | UnicodeError) -> NoReturn:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is None:
            raise TemplateError(
                f"{self._source}: a character that YAML does not allow. {self._mend}"
            ) from None
        problem = getattr(error, "problem", None) or "not YAML"
        if "nesting depth" in problem:  # a newer libyaml has a limit too, and reads ahead of us
            problem = f"nested more than {MAX_DEPTH} levels deep"
        raise TemplateError(
            f"{self._place(mark.line, mark.column)}: {problem}. {self._mend}"
        ) from None

    def _place(self, line: int, column: int) -> str:
        return f"{self._source}, line {line + 1}, column {column + 1}"


def _copy(value: Any) -> Any:
    """An own copy for each alias, so that changing one object later changes no other."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
