"""Reads the form as a browser without script does: inputs, texts, and what would be sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"input", "br", "hr", "img", "meta", "link"}
Attributes = dict[str, str | None]


@dataclass
class Control:
    kind: str  # radio, select, text, number
    attributes: Attributes
    label: str = ""
    fieldset: str = ""  # its legend
    options: list[tuple[str, str, bool]] = field(default_factory=list)  # value, text, selected

    @property
    def name(self) -> str:
        return self.attributes["name"] or ""

    @property
    def value(self) -> str:
        """What it sends."""
        if self.kind == "select":
            selected = [value for value, _, is_selected in self.options if is_selected]
            return selected[-1] if selected else self.options[0][0]
        return self.attributes.get("value") or ""


class Page(HTMLParser):
    """A part of a page; whatever is not well-formed is an assertion."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.controls: list[Control] = []
        self.elements: list[tuple[str, Attributes]] = []
        self.texts: dict[str, str] = {}  # of the elements that have an id
        self.text = ""
        self._open: list[tuple[str, Attributes]] = []
        self._labels: list[tuple[int, str]] = []
        self._legend = ""
        self.feed(text)
        self.close()
        assert self._open == [], self._open
        ids = [each["id"] for _, each in self.elements if "id" in each]
        assert len(set(ids)) == len(ids), ids

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), attrs
        self.elements.append((tag, attributes))
        if tag == "label":
            self._labels.append((len(self.controls), ""))
        if tag == "fieldset":
            self._legend = ""
        if tag in ("input", "select"):
            kind = "select" if tag == "select" else attributes.get("type") or "text"
            self.controls.append(Control(kind, attributes, fieldset=self._legend.strip()))
        if tag == "option":
            value = attributes["value"] or ""
            self.controls[-1].options.append((value, "", "selected" in attributes))
        if tag not in VOID:
            self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop()[0] == tag, tag
        if tag == "label":
            at, text = self._labels.pop()
            assert at < len(self.controls), "a label without an input"
            self.controls[at].label = text.strip()

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if "style" in inside:
            return
        self.text += data
        for _, attributes in self._open:
            if attributes.get("id"):
                name = attributes["id"] or ""
                self.texts[name] = self.texts.get(name, "") + data
        if "legend" in inside:
            self._legend += data
            if self.controls and self.controls[-1].kind == "radio":
                self.controls[-1].fieldset = self._legend.strip()
        if "option" in inside:
            value, text, selected = self.controls[-1].options[-1]
            self.controls[-1].options[-1] = (value, text + data, selected)
        elif self._labels:
            at, text = self._labels[-1]
            self._labels[-1] = (at, text + data)

    def control(self, name: str, value: str | None = None) -> Control:
        [control] = [
            each for each in self.controls if each.name == name and value in (None, each.value)
        ]
        return control

    def sent(self, **typed: str) -> dict[str, list[str]]:
        """What a browser sends, with some values changed."""
        data: dict[str, list[str]] = {}
        for control in self.controls:
            if control.kind != "radio" or "checked" in control.attributes:
                data[control.name] = [control.value]
        return data | {name: [value] for name, value in typed.items()}
