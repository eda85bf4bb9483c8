"""The page: without script, small, for keyboards and screen readers, everything escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateNotFound

from lightkube_template_spawner.choices import Choices, ChoicesRefused, Offer
from tests.choices.pages import Page
from tests.choices.samples import documented, ours

FIELD = "profile-option-small--"


@pytest.fixture(scope="module")
def offer() -> Offer:
    return Choices.load(ours()).for_user("eve", ["gpu-users"])


def ten_by_three() -> list[dict[str, Any]]:
    image = documented()[0]["profile_options"]["image"]
    image["choices"] |= {key: {"display_name": f"jupyter/{key}-notebook:latest"} for key in "xy"}
    memory = {"choices": {f"{n}G": {"display_name": f"{n} GB"} for n in (1, 2, 4, 8)}}
    cpu = {"display_name": "CPUs", "number": {"min": 1, "max": 8}}
    return [
        {
            "display_name": f"Profile {n}",
            "description": "Demo description for a profile.",
            "profile_options": {"image": image, "memory": memory, "cpu": cpu},
        }
        for n in range(10)
    ]


def test_it_is_small_and_needs_no_script_and_no_network() -> None:
    text = Choices.load(ten_by_three()).for_user("eve").form()
    assert len(text.encode()) < 15_000
    page = Page(text)
    assert sum(tag == "fieldset" for tag, _ in page.elements) == 10
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "form"}
    assert not {name for _, attributes in page.elements for name in attributes} & {"src", "style"}
    assert not re.search(r"url\(|@import|https?:|\bon[a-z]+=", text)


@pytest.mark.parametrize("saved", [None, [], ["x"], "x", 7, {"profile": ["small"], 3: {}}])
def test_whatever_was_saved_the_page_is_there(offer: Offer, saved: Any) -> None:
    assert offer.form(saved) == offer.form()


def test_an_empty_list_has_no_form() -> None:
    assert Choices.load([]).for_user("eve").form() == ""


def test_one_fieldset_with_legend_a_profile_and_native_inputs(offer: Offer) -> None:
    page = Page(offer.form())
    assert [tag for tag, _ in page.elements if tag in ("fieldset", "legend")] == [
        "fieldset",
        "legend",
    ] * 2
    radios = [each for each in page.controls if each.kind == "radio"]
    assert [(each.name, each.value, each.label) for each in radios] == [
        ("profile", "small", "Small"),
        ("profile", "gpu", "GPU"),
    ]
    assert all(each.label for each in page.controls)
    assert {each.kind for each in page.controls} == {"radio", "select", "number", "text"}
    assert {each.fieldset for each in page.controls} == {"Small", "GPU"}


def test_inputs_are_called_as_in_kubespawners_form() -> None:
    page = Page(Choices.load(documented()).for_user("eve").form())
    image = page.control("profile-option-demo-1--image")
    assert [value for value, _, _ in image.options] == ["base", "minimal", "unlisted-choice"]
    assert image.value == "minimal"
    typed = page.control("profile-option-demo-1--image--unlisted-choice")
    assert typed.attributes["pattern"] == r"^jupyter/.+:.+$"
    hint = typed.attributes["aria-describedby"] or ""
    assert page.texts[hint] == "Must be an image matching ^jupyter/<name>:<tag>$"
    assert page.control("profile", "demo-1").attributes.keys() >= {"checked"}


def test_only_what_is_open_and_offered_is_shown(offer: Offer) -> None:
    page = Page(offer.form())
    assert [value for value, _, _ in page.control(FIELD + "image").options] == ["base", "aged"]
    assert "aged – Take base from May on." in [  # noqa: RUF001
        text for _, text, _ in page.control(FIELD + "image").options
    ]
    eve = Page(Choices.load(ours()).for_user("eve").form())
    assert [each.value for each in eve.controls if each.kind == "radio"] == ["small"]
    root = Page(Choices.load(ours()).for_user("root", ["staff"]).form())
    assert [value for value, _, _ in root.control(FIELD + "image").options] == [
        "base",
        "secret",
        "aged",
        "unlisted-choice",
    ]


def test_only_the_chosen_profiles_options_are_shown_where_css_can_do_that(offer: Offer) -> None:
    style = re.search(r"<style>(.*)</style>", offer.form(), re.DOTALL)
    assert style
    plain, supported = style[1].split("@supports selector(:has(a))")
    assert "display:none" not in plain
    assert "fieldset:not(:has(legend :checked))" in supported
    assert supported.count(":invalid") == supported.count(":checked")  # those are never hidden


def test_numbers_have_their_bounds(offer: Offer) -> None:
    memory = Page(offer.form()).control(FIELD + "memory")
    bounds = {name: memory.attributes[name] for name in ("min", "max", "step", "value")}
    assert bounds == {"min": "0.5", "max": "8", "step": "0.5", "value": "2"}


def test_the_last_choice_is_filled_in() -> None:
    choices = Choices.load(ours())
    saved = choices.select({"image": "shy", "memory": 4, "repo": "https://x", "zone": "b"}, "eve")
    page = Page(choices.for_user("eve").form(saved.stored))
    assert page.control(FIELD + "image").value == "shy"
    assert page.control(FIELD + "memory").value == "4"
    assert page.control(FIELD + "repo--unlisted-choice").value == "https://x"
    assert page.control(FIELD + "zone").value == "b"


def test_a_saved_choice_that_moved_is_filled_in_with_the_reason(offer: Offer) -> None:
    page = Page(offer.form({"profile": "was", "image": "old"}))
    assert "checked" in page.control("profile", "small").attributes
    assert page.control(FIELD + "image").value == "base"
    assert "Was is replaced by Small. Big is Small now." in page.text
    assert "old is replaced by older. It had its day." in page.text
    statuses = [attributes for _, attributes in page.elements if attributes.get("role") == "status"]
    assert len(statuses) == 3


def test_a_hidden_profile_is_shown_to_those_who_have_it(offer: Offer) -> None:
    page = Page(offer.form({"profile": "attic"}))
    assert "checked" in page.control("profile", "attic").attributes
    assert "It goes in June." in page.text


@pytest.mark.parametrize(
    "query",
    [
        {"profile": ["small"], "opt-image": ["aged"], "opt-memory": ["3.5"]},
        {"opt-profile": ["small"], "opt-image": ["aged"], "opt-memory": ["3.5"]},
        {"profile": ["small"], FIELD + "image": ["aged"], FIELD + "memory": ["3.5"]},
        {"image": ["aged"], "memory": ["3.5"], "next": ["/x"]},
    ],
)
def test_a_link_fills_the_form(query: dict[str, list[str]]) -> None:
    choices = Choices.load(ours())
    prefill = choices.from_query(query)
    page = Page(choices.for_user("eve").form({"profile": "attic", "zone": "b"}, prefill=prefill))
    if "profile" in prefill:
        assert page.control(FIELD + "image").value == "aged"
        assert page.control(FIELD + "memory").value == "3.5"
        assert page.control(FIELD + "zone").value == "a"
    assert prefill.keys() - {"profile"} == {"image", "memory"}


def test_what_the_hub_means_by_a_name_is_no_choice_unless_it_is_marked_as_one() -> None:
    names: dict[str, Any] = {"choices": {"a": {}, "b": {}}}
    choices = Choices.load([{"display_name": "A", "profile_options": {"display_name": names}}])
    assert choices.from_query({"display_name": ["My server"], "next": ["/"]}) == {}
    link = {"opt-display_name": ["b"], "display_name": ["My server"]}
    assert choices.from_query(link) == {"display_name": "b"}
    assert choices.from_query(dict(reversed(link.items()))) == {"display_name": "b"}


def test_a_link_without_a_profile_is_about_the_one_that_is_saved() -> None:
    choices = Choices.load(ours())
    prefill = choices.from_query({"opt-repo": ["https://x"]})
    form = choices.for_user("eve").form({"profile": "small", "zone": "b"}, prefill=prefill)
    page = Page(form)
    assert page.control(FIELD + "repo--unlisted-choice").value == "https://x"
    assert page.control(FIELD + "zone").value == "b"


def test_problems_are_summed_up_with_focus_and_tied_to_their_fields(offer: Offer) -> None:
    sent = {"profile": "small", "image": "no", "memory": "99", "repo--unlisted-choice": "ftp://x"}
    with pytest.raises(ChoicesRefused) as caught:
        offer.select(sent)
    page = Page(offer.form(prefill=sent, errors=caught.value.problems))
    tag, alert = next(each for each in page.elements if each[1].get("role") == "alert")
    assert (tag, alert["tabindex"]) == ("div", "-1")
    assert "autofocus" in alert
    assert "There are 3 problems" in page.texts[alert["id"] or ""]
    links = [attributes["href"] or "" for tag, attributes in page.elements if tag == "a"]
    for name, link in zip(("image", "memory", "repo--unlisted-choice"), links, strict=True):
        control = page.control(FIELD + name)
        assert link == f"#{control.attributes['id']}"
        assert control.attributes["aria-invalid"] == "true"
        described = (control.attributes["aria-describedby"] or "").split()
        texts = " ".join(page.texts[each] for each in described)
        [problem] = [one for one in caught.value.problems if name.startswith(one.option)]
        assert problem.message in texts
    # What was typed is still there to be mended.
    assert page.control(FIELD + "memory").value == "99"
    assert page.control(FIELD + "repo--unlisted-choice").value == "ftp://x"


def test_a_problem_with_another_text_leads_to_the_text() -> None:
    offer = Choices.load(documented()).for_user("eve")
    sent = {"profile": "demo-1", "image--unlisted-choice": "evil"}
    with pytest.raises(ChoicesRefused) as caught:
        offer.select(sent)
    page = Page(offer.form(prefill=sent, errors=caught.value.problems))
    assert page.control("profile-option-demo-1--image").value == "unlisted-choice"
    typed = page.control("profile-option-demo-1--image--unlisted-choice")
    assert (typed.value, typed.attributes["aria-invalid"]) == ("evil", "true")
    assert f'href="#{typed.attributes["id"]}"' in offer.form(
        prefill=sent, errors=caught.value.problems
    )


def test_a_problem_with_the_profile_leads_to_the_first_one(offer: Offer) -> None:
    with pytest.raises(ChoicesRefused) as caught:
        offer.select({"profile": "no"})
    page = Page(offer.form(errors=caught.value.problems))
    assert "There is a problem" in page.text
    [link] = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert link == f"#{page.controls[0].attributes['id']}"


def test_every_id_that_is_referred_to_exists(offer: Offer) -> None:
    page = Page(offer.form({"profile": "was"}))
    ids = {attributes.get("id") for _, attributes in page.elements}
    for _, attributes in page.elements:
        assert set((attributes.get("aria-describedby") or "").split()) <= ids


def test_where_nothing_is_open_the_page_says_who_can_help() -> None:
    page = Page(Choices.load([{"display_name": "A", "groups": ["gpu"]}]).for_user("eve").form())
    assert "Members of 'gpu' have some" in page.text
    assert page.controls == []


def test_what_cannot_be_changed_is_not_offered_for_change(offer: Offer) -> None:
    page = Page(offer.form(fixed={"zone": "b", "disk": 50}))
    zone = page.control(FIELD + "zone")
    assert [value for value, _, _ in zone.options] == ["b"]
    assert "cannot be changed" in page.texts[zone.attributes["aria-describedby"] or ""]
    disk = page.control(FIELD + "disk")
    assert (disk.attributes["min"], disk.attributes["max"], disk.value) == ("50", "100", "50")


def test_a_fixed_text_and_number_are_for_reading() -> None:
    choices = Choices.load(
        [
            {
                "display_name": "A",
                "profile_options": {
                    "t": {"unlisted_choice": {"enabled": True}, "mutable": False},
                    "n": {"number": {"min": 1}, "mutable": False},
                    "down": {
                        "choices": {"x": {}, "y": {}, "z": {}},
                        "monotonic": "decreasing",
                    },
                },
            }
        ]
    )
    fixed = {"t--unlisted-choice": "text", "n": 5, "down": "y"}
    page = Page(choices.for_user("eve").form(fixed=fixed))
    for name, value in (("t--unlisted-choice", "text"), ("n", "5")):
        control = page.control(f"profile-option-a--{name}")
        assert (control.value, "readonly" in control.attributes) == (value, True)
    down = page.control("profile-option-a--down")
    assert [value for value, _, _ in down.options] == ["x", "y"]
    assert choices.select(choices.from_form(page.sent()), "eve", fixed=fixed).fixed == fixed


# From the form to the options.


def test_a_form_without_script_sends_all_and_only_what_is_meant_counts() -> None:
    choices = Choices.load(documented())
    page = Page(choices.for_user("eve").form())
    image = "profile-option-demo-1--image"
    assert choices.from_form(page.sent()) == {"profile": "demo-1", "image": "minimal"}
    typed = {image: "unlisted-choice", image + "--unlisted-choice": " jupyter/a:b "}
    assert choices.from_form(page.sent(**typed)) == {
        "profile": "demo-1",
        "image--unlisted-choice": "jupyter/a:b",
    }
    left_over = {image: "base", image + "--unlisted-choice": "typed before"}
    assert choices.from_form(page.sent(**left_over)) == {"profile": "demo-1", "image": "base"}
    assert choices.from_form(page.sent(profile="demo-2")) == {"profile": "demo-2"}


@pytest.mark.parametrize(
    ("formdata", "options"),
    [
        ({}, {}),
        ({"profile": []}, {}),
        ({"profile": [{"filename": "x", "body": b""}]}, {}),
        ({"profile": ["no"], "profile-option-no--image": ["x"]}, {"profile": "no"}),
        ({"profile": ["demo-1", "demo-2"]}, {"profile": "demo-1"}),
        (  # KubeSpawner's script sends one of the two
            {
                "profile": ["demo-1"],
                "profile-option-demo-1--image--unlisted-choice": ["jupyter/a:b"],
            },
            {"profile": "demo-1", "image--unlisted-choice": "jupyter/a:b"},
        ),
        (  # fancy-profiles' word for another one, and that for an image which it built
            {
                "profile": ["demo-1"],
                "profile-option-demo-1--image": ["unlisted_choice"],
                "profile-option-demo-1--image--unlisted-choice": ["jupyter/a:b"],
            },
            {"profile": "demo-1", "image--unlisted-choice": "jupyter/a:b"},
        ),
        (
            {
                "profile": ["demo-1"],
                "profile-option-demo-1--image": ["base"],
                "x": ["y"],
                "_xsrf": [],
            },
            {"profile": "demo-1", "image": "base"},
        ),
        (
            {"profile": ["demo-1"], "profile-option-demo-1--image": ["unlisted-choice"]},
            {"profile": "demo-1", "image": "unlisted-choice"},
        ),
    ],
)
def test_forms_are_read_as_they_are_sent(formdata: Any, options: dict[str, Any]) -> None:
    assert Choices.load(documented()).from_form(formdata) == options


def test_an_empty_text_of_ones_own_is_asked_for() -> None:
    choices = Choices.load(documented())
    with pytest.raises(ChoicesRefused, match=r"choose a text of your own"):
        choices.select({"profile": "demo-1", "image": "unlisted-choice"}, "eve")


# Templates that were written for KubeSpawner.


def test_fancy_profiles_template_gets_the_variables_that_it_knows(tmp_path: Path) -> None:
    profile_list = documented()
    profile_list[0]["profile_options"]["image"]["dynamic_image_building"] = {"enabled": True}
    profile_list[1]["kubespawner_override"]["image"] = lambda spawner: "x"
    profile_list.append({"display_name": "</script>", "groups": ["x"]})
    (tmp_path / "form.html").write_text(
        "<script>window.profileList = {{ profile_list|tojson }};</script>{{ user_options.profile }}"
    )
    offer = Choices.load(profile_list).for_user("eve", ["x"])
    text = offer.their_form({"profile": "<b>"}, paths=[tmp_path])
    assert text.endswith(";</script>&lt;b&gt;")
    assert text.count("</script>") == 1
    sent = json.loads(text.partition("= ")[2].partition(";</script>")[0])
    assert [profile["slug"] for profile in sent] == ["demo-1", "demo-2", "script"]
    assert [profile["default"] for profile in sent] == [True, False, False]
    image = sent[0]["profile_options"]["image"]
    assert list(image["choices"]) == ["base", "minimal"]
    assert image["choices"]["minimal"]["default"] is True
    assert image["unlisted_choice"]["display_name_in_choices"] == "Enter image manually"
    assert image["dynamic_image_building"] == {"enabled": True}
    assert sent[1]["kubespawner_override"] == {"extra_resource_guarantees": {"nvidia.com/gpu": "1"}}


def test_their_templates_see_only_what_is_open_to_the_user() -> None:
    text = "{{ profile_list|map(attribute='slug')|join(' ') }}"
    choices = Choices.load(ours())
    assert choices.for_user("eve").their_form(text=text) == "small"
    assert choices.for_user("ada").their_form(text=text) == "small gpu"


def test_a_missing_template_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(TemplateNotFound, match=r"form\.html"):
        Choices.load(ours()).for_user("eve").their_form(paths=[tmp_path])
