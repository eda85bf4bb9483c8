"""What KubeSpawner makes of profile lists and options: JSON in, JSON out, in a process of its own.

Its answers are compared with ours. Each case is a new spawner; ``refused`` is the error's class.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from types import SimpleNamespace
from typing import Any


async def answers(cases: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    from kubespawner import KubeSpawner

    user = SimpleNamespace(name="eve", id=1, url="/user/eve")
    results: list[dict[str, Any]] = []
    for case in cases:
        spawner = KubeSpawner(_mock=True, user=user, log=logging.getLogger("quiet"))
        spawner.environment = {"BASE": "0", "OLD": "0"}
        spawner.profile_list = case["profile_list"]
        spawner.user_options = case["options"]
        if "form" in case:
            spawner.user_options = spawner.options_from_form(case["form"])
        try:
            await spawner.load_user_options()
        except Exception as error:  # noqa: BLE001 - each is an answer
            results.append({"refused": type(error).__name__})
        else:
            results.append(
                {
                    "traits": {name: getattr(spawner, name) for name in names},
                    "options": spawner.user_options,
                }
            )
    return results


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    given = json.load(sys.stdin)
    json.dump(asyncio.run(answers(given["cases"], given["names"])), sys.stdout)
