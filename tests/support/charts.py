"""A chart in a folder, for tests that render one."""

from __future__ import annotations

from pathlib import Path

ABOUT = "apiVersion: v2\nname: demo\nversion: 0.1.0\n"


def write_chart(folder: Path, template: str, **files: str) -> Path:
    """Write a chart with one template and whatever other files; returns its folder."""
    for name, text in {"Chart.yaml": ABOUT, "templates/a.yaml": template, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
