"""Users choose by form, link and REST: what they get inside the container, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from e2e.conftest import OWNED, Kube, hub_fixture, signed_in
from e2e.harness.hub import Hub, user_path
from e2e.harness.user import HubUser

PROFILES: list[dict[str, Any]] = [
    {
        "display_name": "Small",
        "slug": "small",
        "default": True,
        "kubespawner_override": {"mem_limit": "512M", "environment": {"FLAVOUR": "small"}},
        "profile_options": {
            "colour": {
                "display_name": "Colour",
                "choices": {
                    "red": {"kubespawner_override": {"environment": {"COLOUR": "red"}}},
                    "blue": {"kubespawner_override": {"environment": {"COLOUR": "blue"}}},
                    "gold": {"groups": ["staff"]},
                },
                "unlisted_choice": {
                    "enabled": True,
                    "validation_regex": "[a-z ]{3,20}",
                    "validation_message": "A colour has 3 to 20 small letters.",
                    "kubespawner_override": {"environment": {"COLOUR": "{value}"}},
                },
            }
        },
    },
    {
        "display_name": "Large",
        "slug": "large",
        "groups": ["staff"],
        "kubespawner_override": {"mem_limit": "768M", "environment": {"FLAVOUR": "large"}},
    },
]
ENVIRONMENT = "import os; print(os.environ['FLAVOUR'], os.environ.get('COLOUR', ''))"
COLOUR = "profile-option-small--colour"
NO_PROFILES: list[Any] = ["huge", "SMALL", "large", 3, True, 0.5, [], ["small"], {}, "../small"]
NO_PROFILES += ["small\u0000", "small\u2028"]
NO_COLOURS: list[Any] = ["green", "Red", " red", "gold", "red\n", 3, True, -1, [], ["red"], {}]
NO_COLOURS += [{"red": 1}, "{{ .Values }}", "${HOME}", "red: x", "null", "0", "true", 1e300, 2**70]
NO_COLOURS += ["re\u0301d", "\U0001f600", ["red"] * 3_000]
NO_TEXTS: list[Any] = ["ab", "RED", "x" * 21, "red;", "re\nd", "r\u00e9d", 3, True, [], {}, ["red"]]
TOO_MUCH: list[Any] = [
    {"y": "z" * 200_000},
    [[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]],
    "x" * 140_000,
]
BAD = [
    *({"profile": value} for value in NO_PROFILES),
    *({"profile": "small", "colour": value} for value in NO_COLOURS),
    *({"profile": "small", "colour--unlisted-choice": value} for value in NO_TEXTS),
    *({"profile": "small", "x": value} for value in TOO_MUCH),
    {"profile": "large", "colour": "red"},
]

hub = hub_fixture("c.JupyterHub.consecutive_failure_limit = 1", profile_list=PROFILES)


def memory_limit(kube: Kube, space: str) -> list[str]:
    path = "{.items[*].spec.containers[0].resources.limits.memory}"
    return str(kube("get", "pods", "-n", space, "-l", OWNED, f"-o=jsonpath={path}")).split()


async def test_a_choice_is_seen_inside_and_remembered(hub: Hub, kube: Kube, space: str) -> None:
    async with signed_in(hub, "ada") as ada:
        form = await ada.page("/hub/spawn/ada")
        assert "Small" in form.text
        assert "Large" not in form.text
        fields = {"profile": "small", COLOUR: "blue"}
        await ada.submit_spawn_form(fields=fields)
        await ada.wait_ready()
        assert await ada.run_code(ENVIRONMENT) == "small blue"
        assert memory_limit(kube, space) == [str(512 << 20)]
        labels = json.loads(kube("get", "pods", "-n", space, "-l", OWNED, "-o=json"))["items"][0]
        assert labels["metadata"]["labels"]["lightkube-template-spawner/profile"] == "small"
        await ada.stop_server()
        await ada.run_server()  # without options, as the home page's button does
        assert await ada.run_code(ENVIRONMENT) == "small blue"
        await ada.stop_server()
        form = await ada.page("/hub/spawn/ada")
        assert selected(form.text) == "blue"


async def test_what_a_user_types_arrives_as_it_is(hub: Hub) -> None:
    async with signed_in(hub, "bea") as bea:
        options = {"profile": "small", "colour--unlisted-choice": "off white"}
        await bea.run_server(options=options)
        assert await bea.run_code(ENVIRONMENT) == "small off white"
        await bea.stop_server()


async def test_a_group_opens_a_profile(hub: Hub, kube: Kube, space: str) -> None:
    async with signed_in(hub, "cy") as cy:
        await hub.api("POST", "groups/staff")
        await hub.api("POST", "groups/staff/users", {"users": ["cy"]})
        assert "Large" in (await cy.page("/hub/spawn/cy")).text
        await cy.run_server(options={"profile": "large"})
        assert await cy.run_code(ENVIRONMENT) == "large"
        assert memory_limit(kube, space) == [str(768 << 20)]
        await cy.stop_server()


async def test_a_form_that_does_not_fit_says_so_on_its_page(hub: Hub) -> None:
    async with signed_in(hub, "dan") as dan:
        fields = {"profile": "small", f"{COLOUR}--unlisted-choice": "<RED>"}
        page = await dan.submit_spawn_form(fields=fields)
        assert page.status_code == 400
        assert "A colour has 3 to 20 small letters." in page.text
        assert "&lt;RED&gt;" in page.text
        assert "<RED>" not in page.text
        assert not await dan.servers()


async def test_a_link_fills_the_form_and_starts_nothing(hub: Hub) -> None:
    async with signed_in(hub, "eve") as eve:
        page = await eve.page("/hub/spawn/eve?profile=small&opt-colour=blue")
        assert page.status_code == 200
        assert selected(page.text) == "blue"
        assert not await eve.servers()


@pytest.fixture
async def fay(hub: Hub) -> Any:
    async with signed_in(hub, "fay") as user:
        yield user


async def test_bodies_that_do_not_fit_cost_a_400_and_nothing_else(
    hub: Hub, fay: HubUser, kube: Kube, space: str
) -> None:
    assert len(BAD) >= 50
    for body in BAD:
        answer = await fay.try_api("POST", user_path("fay", "servers", ""), body)
        assert answer.status_code == 400, (body, answer.text[:300])
    assert not await fay.servers()
    assert kube("get", "pods,secrets", "-n", space, "-l", f"{OWNED}", "-o=name") == ""
    await fay.run_server()  # the hub counts none of them, and none is what it starts with now
    assert await fay.run_code(ENVIRONMENT) == "small red"
    await fay.stop_server()


def selected(page: str) -> str:
    """The option that is selected in the page's list."""
    before = page.split(" selected", 1)[0]
    return before.rsplit('value="', 1)[1].split('"')[0]
