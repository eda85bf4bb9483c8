"""What the how-to pages tell administrators to write is run as they write it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from lightkube_template_spawner.choices import Choices
from lightkube_template_spawner.hub.settings import default_chart
from tests.support.fake_apiserver import FakeApiServer
from tests.support.hub import FakeHub, running_hub

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((HOW_TO / page).read_text())


class TestChoices:
    @pytest.fixture
    async def hub(self, fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[FakeHub]:
        config = Config()
        exec(blocks("choices.md")[0], {"c": config})
        traits: dict[str, Any] = dict(config.LightkubeTemplateSpawner)
        async with running_hub(fake, tmp_path, default_chart(), **traits) as made:
            yield made

    async def test_the_list(self, hub: FakeHub) -> None:
        user = hub.user()
        form = await user.spawner.get_options_form()
        assert "Python with SciPy" in form
        assert "With a GPU" not in form
        await hub.spawn(user, options={"profile": "small", "image": "scipy"})
        (container,) = hub.pods()[0]["spec"]["containers"]
        assert container["image"] == "quay.io/jupyter/scipy-notebook"
        assert container["resources"]["limits"]["memory"] == str(1 << 30)
        await hub.stop(user)
        options = {"profile": "small", "image--unlisted-choice": "quay.io/jupyter/r-notebook:4"}
        await hub.spawn(user, options=options)
        (container,) = hub.pods()[0]["spec"]["containers"]
        assert container["image"] == "quay.io/jupyter/r-notebook:4"

    def test_values(self) -> None:
        profile = eval(blocks("choices.md")[1])
        chosen = Choices.load([profile]).select({}, "ada")
        assert chosen.overrides.layers[0].values == {"course": {"database": True}}

    def test_each_key_of_the_table_is_known(self) -> None:
        of_profiles: dict[str, Any] = {
            "users": ["ada"], "groups": ["g"], "values": {}, "hidden": True, "deprecated": "Soon.",
            "redirect": {"to": "b", "message": "m"},
        }  # fmt: skip
        of_options: dict[str, Any] = {
            "mutable": False, "monotonic": "increasing", "ephemeral": True,
            "number": {"min": 1, "max": 4, "step": 1},
        }  # fmt: skip
        second = {"display_name": "B"}
        for key, value in of_profiles.items():
            assert Choices.load([{"display_name": "A", key: value}, second])
        for key, value in of_options.items():
            choices: dict[str, Any] = {} if key == "number" else {"choices": {"1": {}, "2": {}}}
            options = {"size": {**choices, key: value}}
            assert Choices.load([{"display_name": "A", "profile_options": options}])
        table = (HOW_TO / "choices.md").read_text().partition("## Beyond KubeSpawner")[2]
        keys = {
            name.partition(":")[0]
            for line in table.splitlines()
            if line.startswith("| `")
            for name in re.findall(r"`([^`]+)`", line.split("|")[1])
        }
        assert keys == {*of_profiles, *of_options}
