"""A hub whose users choose: form, links and REST, applied to one start and to no other."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.handlers.pages import SpawnHandler
from tornado import web
from traitlets.config import Config

from lightkube_template_spawner.hub import check
from lightkube_template_spawner.hub.settings import default_chart
from lightkube_template_spawner.objects.identity import PROFILE
from lightkube_template_spawner.spawner import LightkubeTemplateSpawner
from tests.support.charts import write_chart
from tests.support.fake_apiserver import FakeApiServer
from tests.support.hub import FakeHub, running_hub

CHART = """
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Values.escaped_user_server }}
  annotations:
    kubetemplatespawner/connection: "true"
    image: {{ .Values.image | quote }}
    memory: {{ .Values.mem_limit | int64 | quote }}
    choice: {{ .Values.choice | default dict | toJson | quote }}
    flavour: {{ .Values.flavour | default "" | quote }}
    url: {{ .Values.default_url | quote }}
    option: {{ .Values.user_options.image | default "" | quote }}
spec:
  containers: [{name: main, image: {{ .Values.image | quote }}}]
"""
IMAGE = {
    "display_name": "Image",
    "choices": {
        "base": {"kubespawner_override": {"image": "base"}, "default": True},
        "lab": {"kubespawner_override": {"image": "lab"}},
        "staff": {"groups": ["staff"], "kubespawner_override": {"image": "staff"}},
    },
    "unlisted_choice": {
        "enabled": True,
        "validation_regex": "quay/.+",
        "kubespawner_override": {"image": "{value}"},
    },
}
PROFILES: list[dict[str, Any]] = [
    {"display_name": "Small", "slug": "small", "profile_options": {"image": IMAGE}},
    {
        "display_name": "Large",
        "slug": "large",
        "kubespawner_override": {"mem_limit": "2G", "default_url": "/tree"},
        "values": {"flavour": "large"},
        "profile_options": {
            "image": IMAGE,
            "disk": {"choices": {"a": {}, "b": {}}, "mutable": False},
        },
    },
    {"display_name": "Staff", "slug": "staff", "groups": ["staff"]},
]


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chart(tmp_path_factory.mktemp("chart"), CHART)


@pytest.fixture
async def hub(fake: FakeApiServer, tmp_path: Path, chart: Path) -> AsyncIterator[FakeHub]:
    config: dict[str, Any] = {"profile_list": PROFILES, "mem_limit": "1G"}
    values = {"image": "none", "flavour": "plain", "mem_limit": "512M"}
    async with running_hub(fake, tmp_path, chart, extra_vars=values, **config) as made:
        yield made


def pod(hub: FakeHub) -> dict[str, Any]:
    (one,) = hub.pods()
    return dict(one["metadata"])


def stored(hub: FakeHub) -> Any:
    hub.db.expire_all()
    return hub.db.query(orm.Spawner).one().user_options


async def refused(hub: FakeHub, options: Any, words: str) -> None:
    with pytest.raises(web.HTTPError, match=words) as caught:
        await hub.spawn(hub.user(), options=options)
    assert caught.value.status_code == 400
    assert not hub.pods()


async def test_a_choice_reaches_the_template_and_is_on_record(hub: FakeHub) -> None:
    spawner = await hub.spawn(hub.user(), options={"profile": "large", "image": "lab", "x": "y"})
    annotations, labels = pod(hub)["annotations"], pod(hub)["labels"]
    assert annotations["image"] == annotations["option"] == "lab"
    assert annotations["memory"] == str(2 << 30)  # of the profile, though `extra_vars` has another
    assert annotations["flavour"] == "large"
    assert annotations["url"] == "/tree"
    assert '"display_name":"Large"' in annotations["choice"]
    assert labels[PROFILE] == "large"
    chosen = {"profile": "large", "image": "lab", "disk": "a"}
    assert stored(hub) == spawner.user_options == chosen
    state = spawner.get_state()["lightkube_choice"]
    assert state == {"profile": "large", "options": chosen, "fixed": {"disk": "a"}}


async def test_a_choice_does_not_stick(hub: FakeHub) -> None:
    user = hub.user()
    await hub.spawn(user, options={"profile": "large"})
    await hub.stop(user)
    await hub.spawn(user, options={"profile": "small"})
    annotations = pod(hub)["annotations"]
    assert annotations["memory"] == str(512 << 20)
    assert (annotations["flavour"], annotations["url"]) == ("plain", "")
    assert pod(hub)["labels"][PROFILE] == "small"


async def test_a_start_without_options_uses_the_last_choice(hub: FakeHub) -> None:
    user = hub.user()
    await hub.spawn(user, options={"profile": "large", "image": "lab"})
    await hub.stop(user)
    await hub.spawn(user)
    assert pod(hub)["annotations"]["image"] == "lab"
    assert pod(hub)["labels"][PROFILE] == "large"


async def test_without_any_options_it_is_the_default_profile(hub: FakeHub) -> None:
    await hub.spawn(hub.user())
    assert pod(hub)["annotations"]["image"] == "base"


async def test_a_restarted_hub_knows_what_runs_and_what_is_fixed(hub: FakeHub) -> None:
    await hub.spawn(hub.user(), options={"profile": "large", "disk": "b"})
    await hub.restart()
    assert await hub.check(hub.user()) is None
    state = hub.user().spawner.get_state()["lightkube_choice"]
    assert (state["profile"], state["fixed"]) == ("large", {"disk": "b"})
    await hub.stop(hub.user())
    await refused(hub, {"profile": "large", "disk": "a"}, "disk")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "huge"}, "no profile 'huge'"),
        ({"profile": 3}, "`profile`"),
        ({"profile": "staff"}, "not for you"),
        ({"profile": "small", "image": "staff"}, "image"),
        ({"profile": "small", "image": {"a": 1}}, "image"),
        ({"profile": "small", "image--unlisted-choice": "docker/x"}, "image"),
    ],
)
async def test_what_does_not_fit_is_a_400_and_not_kept(
    hub: FakeHub, options: dict[str, Any], words: str
) -> None:
    user = hub.user()
    await hub.spawn(user, options={"profile": "small", "image": "lab"})
    await hub.stop(user)
    await refused(hub, options, words)
    assert stored(hub) == {"profile": "small", "image": "lab"}


async def test_options_that_are_too_much_are_not_kept(hub: FakeHub) -> None:
    await refused(hub, {"profile": "small", "x": ["y"] * 3_000}, "more than")
    assert stored(hub) == {}


async def test_what_a_user_types_is_guarded(hub: FakeHub) -> None:
    typed = "quay/x: {y}"
    await hub.spawn(hub.user(), options={"profile": "small", "image--unlisted-choice": typed})
    assert pod(hub)["annotations"]["image"] == typed


async def test_a_group_opens_what_is_for_it(hub: FakeHub) -> None:
    user = hub.user()
    hub.db.add(orm.Group(name="staff", users=[user.orm_user]))
    hub.db.commit()
    await hub.spawn(user, options={"profile": "small", "image": "staff"})
    assert pod(hub)["annotations"]["image"] == "staff"


async def test_the_form_shows_what_is_open_and_the_last_choice(hub: FakeHub) -> None:
    user = hub.user()
    form = await user.spawner.get_options_form()
    assert "Large" in form
    assert "Staff" not in form
    await hub.spawn(user, options={"profile": "large"})
    await hub.stop(user)
    form = await hub.user().spawner.get_options_form()
    assert _checked(form) == "large"


async def test_a_posted_form_is_read_and_shown_again_with_its_errors(hub: FakeHub) -> None:
    user = hub.user()
    spawner = user.spawner
    name = "profile-option-small--image"
    sent = {"profile": ["small"], name: ["unlisted"], f"{name}--unlisted-choice": ["<docker>"]}
    options = await spawner.run_options_from_form(sent)
    await refused(hub, options, "image")
    form = await user.spawner.get_options_form()
    assert 'role="alert"' in form
    assert "&lt;docker&gt;" in form
    assert "<docker>" not in form
    again = await user.spawner.get_options_form()
    assert 'role="alert"' not in again


def link(spawner: Any, query: dict[str, list[bytes]], method: str = "GET") -> Any:
    handler = SpawnHandler.__new__(SpawnHandler)
    handler.request = SimpleNamespace(query_arguments=query, method=method)
    spawner.handler = handler
    return query


async def test_a_link_fills_the_form_and_starts_nothing(hub: FakeHub) -> None:
    spawner = hub.user().spawner
    query = link(spawner, {"profile": [b"large"], "next": [b"/x"], "opt-image": [b"lab"]})
    await spawner.run_auth_state_hook(None)
    assert query == {"next": [b"/x"]}  # nothing is left that the hub would start by
    form = await spawner.get_options_form()
    assert _checked(form) == "large"
    assert _checked(await spawner.get_options_form()) == "small"  # the next page is another


async def test_a_link_starts_where_that_is_wanted(hub: FakeHub) -> None:
    hub.config.LightkubeTemplateSpawner.link_autostart = True
    spawner = hub.user().spawner
    query = link(spawner, {"profile": [b"large"], "opt-image": [b"lab"]})
    await spawner.run_auth_state_hook(None)
    assert set(query) == {"profile", "opt-image"}
    sent = await spawner.options_from_query({"profile": ["large"], "image": ["lab"]})
    assert sent == {"profile": "large", "image": "lab"}


async def test_a_list_may_be_a_function(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    async def profiles(spawner: Any) -> list[dict[str, Any]]:
        return [{"display_name": spawner.user.name, "slug": "own"}]

    hub.config.LightkubeTemplateSpawner.profile_list = profiles
    user = hub.user()
    assert user.name in await user.spawner.get_options_form()
    await hub.spawn(user, options={"profile": "own"})
    assert pod(hub)["labels"][PROFILE] == "own"
    await hub.stop(user)
    hub.config.LightkubeTemplateSpawner.profile_list = lambda _: 1 / 0
    await refused(hub, {}, "`profile_list` raised ZeroDivisionError")


async def test_a_list_that_cannot_be_used_is_named(hub: FakeHub) -> None:
    hub.config.LightkubeTemplateSpawner.profile_list = [{"display_nam": "x"}]
    await refused(hub, {}, "display_nam")
    with pytest.raises(web.HTTPError, match="display_nam") as caught:
        await hub.user().spawner.get_options_form()
    assert caught.value.status_code == 400


async def test_a_trait_that_refuses_its_override_is_named(hub: FakeHub) -> None:
    profile = {"display_name": "Odd", "kubespawner_override": {"mem_limit": "2GB"}}
    hub.config.LightkubeTemplateSpawner.profile_list = [profile]
    await refused(hub, {}, "profile_list, odd: `mem_limit`")


async def test_without_a_list_options_pass_as_they_are(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    async with running_hub(fake, tmp_path, chart, extra_vars={"image": "x"}) as hub:
        spawner = await hub.spawn(hub.user(), options={"image": "anything"})
        assert spawner.user_options == {"image": "anything"}
        assert await spawner.get_options_form() == ""
        assert PROFILE not in pod(hub)["labels"]
        assert "lightkube_choice" not in spawner.get_state()


async def test_kubespawners_list_is_used_where_ours_is_not_set(
    fake: FakeApiServer, tmp_path: Path, chart: Path
) -> None:
    async with running_hub(fake, tmp_path, chart, extra_vars={"image": "x"}) as hub:
        hub.config.KubeSpawner.profile_list = PROFILES
        user = hub.user()
        assert "Large" in await user.spawner.get_options_form()
        await hub.spawn(user, options={"profile": "large"})
        assert pod(hub)["labels"][PROFILE] == "large"


async def test_a_list_that_cannot_be_used_is_named_when_the_hub_starts(tmp_path: Path) -> None:
    section = Config({"profile_list": [{"display_nam": "x"}]})
    lines = await check.problems(
        LightkubeTemplateSpawner,
        Config(
            {"LightkubeTemplateSpawner": {**section, "kubeconfig": str(tmp_path / "none")}},
        ),
        logging.getLogger("test"),
    )
    assert any("c.LightkubeTemplateSpawner.profile_list: " in line for line in lines)


async def test_the_packaged_chart_does_what_a_profile_says(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    override = {
        "image": "quay.io/jupyter/base-notebook:1",
        "mem_limit": "2G",
        "environment": {"FLAVOUR": "large"},
        "node_selector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "extra_resource_limits": {"nvidia.com/gpu": 1},
        "priority_class_name": "high",
    }
    profile = {"display_name": "GPU", "kubespawner_override": override}
    async with running_hub(fake, tmp_path, default_chart(), profile_list=[profile]) as hub:
        await hub.spawn(hub.user())
        spec = hub.pods()[0]["spec"]
        (secret,) = (item for item in fake.everything() if item["kind"] == "Secret")
    assert "FLAVOUR" in secret["data"]
    (container,) = spec["containers"]
    assert container["image"] == override["image"]
    assert container["resources"]["limits"] == {"memory": str(2 << 30), "nvidia.com/gpu": 1}
    assert spec["nodeSelector"] == override["node_selector"]
    assert spec["tolerations"] == override["tolerations"]
    assert spec["priorityClassName"] == "high"


def _checked(form: str) -> str:
    """The profile whose radio button is checked."""
    before = form.split(" checked", 1)[0]
    return before.rsplit('value="', 1)[1].split('"')[0]
