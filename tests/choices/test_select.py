"""What users send is judged before anything exists; what comes of it is what is stored."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lightkube_template_spawner.choices import Choices, ChoicesRefused
from lightkube_template_spawner.choices.options import MAX_TYPED
from lightkube_template_spawner.errors import OptionsRefused
from tests.choices.samples import applied, documented, ours

DEFAULTS = {
    "profile": "small",
    "image": "base",
    "memory": 2,
    "disk": 10,
    "zone": "a",
    "reset": "no",
    "branch--unlisted-choice": "main",
}


@pytest.fixture(scope="module")
def choices() -> Choices:
    return Choices.load(ours())


def refusal(choices: Choices, sent: Any, *groups: str, **fixed: Any) -> str:
    with pytest.raises(ChoicesRefused) as caught:
        choices.select(sent, "eve", groups, fixed)
    assert isinstance(caught.value, OptionsRefused)
    assert str(caught.value) == " ".join(problem.message for problem in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("sent", [None, {}, {"profile": ""}, {"profile": None, "image": ""}])
def test_defaults_are_filled_in(choices: Choices, sent: Any) -> None:
    selection = choices.select(sent, "eve")
    assert selection.options == DEFAULTS
    assert selection.display_name == "Small"
    assert (selection.notices, selection.ignored) == ((), ())


@pytest.mark.parametrize(
    ("sent", "options"),
    [
        ({"profile": "demo-1"}, {"profile": "demo-1", "image": "minimal"}),
        ({"profile": "demo-1", "image": "base"}, {"profile": "demo-1", "image": "base"}),
        ({"image": "base"}, {"profile": "demo-1", "image": "base"}),
        (
            {"profile": "demo-1", "image--unlisted-choice": "jupyter/a:b"},
            {"profile": "demo-1", "image--unlisted-choice": "jupyter/a:b"},
        ),
        (  # as fancy-profiles sends it
            {
                "profile": "demo-1",
                "image": "unlisted_choice",
                "image--unlisted-choice": "jupyter/a:b",
            },
            {"profile": "demo-1", "image--unlisted-choice": "jupyter/a:b"},
        ),
        ({"profile": "demo-2", "image": "base"}, {"profile": "demo-2"}),
    ],
)
def test_kubespawners_own_bodies_are_understood(sent: Any, options: Any) -> None:
    assert Choices.load(documented()).select(sent, "eve").options == options


def test_nothing_undeclared_is_kept_and_its_names_are_told(choices: Choices) -> None:
    selection = choices.select(
        {"profile": "small", "garbage": {"a": 1}, "token": "x", 7: 8, "user_options": []}, "eve"
    )
    assert selection.options == {**selection.stored, "reset": "no"} == DEFAULTS
    assert selection.ignored == ("garbage", "token", "7", "user_options")


BAD_TYPES: list[Any] = [[], ["base"], {}, {"a": 1}, 0, 7, 1.5, True, False]
BAD_NUMBERS: list[Any] = [
    *([], {}, True, "two", "1e0", "0x1", "٢", 0, 0.4, 8.5, 2.1, -1, "9", 10**400),
    *(float("nan"), float("inf")),
]
BAD: list[tuple[Any, str]] = [
    *(([], "The options are a list: send a JSON object"), ("x", "are text"), (5, "are a number")),
    *(({"profile": value}, "`profile` is ") for value in BAD_TYPES),
    *(({"image": value}, r"Image \(image\) is ") for value in BAD_TYPES),
    *(
        ({"repo--unlisted-choice": value}, r"Repository \(repo--unlisted-choice\) is ")
        for value in BAD_TYPES
    ),
    *(
        (
            {"memory": value},
            r"Memory \(memory\) is .*: choose a number from 0.5 to 8 in steps of 0.5",
        )
        for value in BAD_NUMBERS
    ),
    ({"disk": 10.5}, "a whole number from 10 to 100"),
    ({"profile": "smal"}, "no profile 'smal'. Did you mean 'small'. Choose 'small'"),
    ({"profile": "Small"}, "no profile 'Small'"),
    ({"profile": "gpu"}, r"'gpu' is not for you \(members of 'gpu-users' have it\): 'small'"),
    ({"image": "bas"}, "is 'bas', which is not there for you. Did you mean 'base'"),
    ({"image": "secret"}, "is 'secret', which is not there for you. Choose 'base' or 'aged'"),
    ({"image": "unlisted-choice"}, "is 'unlisted-choice'"),
    ({"image--unlisted-choice": "x"}, "not open to you: choose 'base' or 'aged'"),
    ({"memory--unlisted-choice": "x", "memory": "x"}, "Memory"),
    ({"zone--unlisted-choice": "c"}, r"zone \(zone--unlisted-choice\) is not open"),
    ({"repo--unlisted-choice": "http://x"}, "is 'http://x': It begins with https://"),
    ({"repo--unlisted-choice": "https://x\nprivileged: true"}, "line breaks"),
    ({"repo--unlisted-choice": "https://x\x00"}, "characters that cannot be shown"),
    ({"repo--unlisted-choice": "https://\ud800"}, "characters that cannot be shown"),
    ({"repo--unlisted-choice": "https://" + "x" * 2000}, f"at most {MAX_TYPED}"),
    ({"repo": "x" * 500}, r"is 'x{80}…'"),
    ({"repo": "\x1b[2J"}, "cannot be shown"),
]


def test_there_are_enough_bad_bodies() -> None:
    assert len(BAD) >= 50


@pytest.mark.parametrize(("sent", "words"), BAD)
def test_a_bad_body_is_refused_by_field_with_what_is_allowed(
    choices: Choices, sent: Any, words: str
) -> None:
    message = refusal(choices, sent)
    assert re.search(words, message), message
    assert message.isprintable()
    assert len(message) < 500


def test_every_problem_is_told_at_once(choices: Choices) -> None:
    with pytest.raises(ChoicesRefused) as caught:
        choices.select({"image": "x", "memory": 99, "zone": "c"}, "eve")
    assert [(one.profile, one.option) for one in caught.value.problems] == [
        ("small", "image"),
        ("small", "memory"),
        ("small", "zone"),
    ]


def test_a_text_must_match_whole() -> None:
    profile_list = documented()
    option = profile_list[0]["profile_options"]["image"]["unlisted_choice"]
    option["validation_regex"] = "pangeo/"
    option.pop("validation_message")
    choices = Choices.load(profile_list)
    message = refusal(choices, {"image--unlisted-choice": "pangeo/x@evil ; rm"})
    assert message.endswith("is 'pangeo/x@evil ; rm': it must match pangeo/.")


@pytest.mark.parametrize(
    ("user", "groups"),
    [("ada", ()), ("eve", ("gpu-users",)), ("eve", ["x", "gpu-users"])],
)
def test_a_profile_is_for_its_users_and_its_groups(
    choices: Choices, user: str, groups: Any
) -> None:
    assert choices.select({"profile": "gpu"}, user, groups).profile == "gpu"


async def test_a_choice_and_a_text_are_for_their_groups_and_users(choices: Choices) -> None:
    staff = choices.select({"image": "secret"}, "eve", ["staff"])
    assert (await applied(staff)).values["image"] == "secret"
    root = choices.select({"image--unlisted-choice": "any"}, "root")
    assert (await applied(root)).values["image"] == "any"


def test_everyone_can_be_written_as_a_star() -> None:
    choices = Choices.load([{"display_name": "A", "users": ["*"], "groups": ["x"]}])
    assert choices.select({}, "eve").profile == "a"


def test_where_no_profile_is_left_the_groups_that_help_are_named() -> None:
    choices = Choices.load(
        [{"display_name": "A", "groups": ["b", "a"]}, {"display_name": "B", "users": ["bob"]}]
    )
    assert refusal(choices, {}) == (
        "No profile is open to you. Members of 'a' or 'b' have some: ask to become one."
    )
    assert "ask the administrator" in refusal(
        Choices.load([{"display_name": "B", "users": ["bob"]}]), {}
    )


def test_an_option_for_others_is_not_there_and_changes_nothing() -> None:
    choices = Choices.load(
        [
            {
                "display_name": "A",
                "profile_options": {
                    "debug": {"groups": ["staff"], "choices": {"on": {"values": {"debug": True}}}}
                },
            }
        ]
    )
    selection = choices.select({"debug": "on"}, "eve")
    assert (selection.options, selection.ignored) == ({"profile": "a"}, ("debug",))
    assert choices.select({}, "eve", ["staff"]).options == {"profile": "a", "debug": "on"}


def test_a_profile_is_not_for_those_who_could_choose_nothing_in_it() -> None:
    choices = Choices.load(
        [
            {"display_name": "A", "profile_options": {"o": {"choices": {"x": {"groups": ["g"]}}}}},
            {"display_name": "B"},
        ]
    )
    assert choices.select({}, "eve").profile == "b"
    assert choices.select({}, "eve", ["g"]).profile == "a"
    assert "'a' is not for you (members of 'g' have it)" in refusal(choices, {"profile": "a"})


def test_the_default_is_the_first_marked_one_that_is_open() -> None:
    choices = Choices.load(
        [
            {"display_name": "A"},
            {"display_name": "B", "default": True, "groups": ["b"]},
            {"display_name": "C", "default": True},
        ]
    )
    assert choices.select({}, "eve").profile == "c"
    assert choices.select({}, "eve", ["b"]).profile == "b"


# Choices that age.


def test_a_redirected_choice_follows_the_chain_and_the_user_reads_why(choices: Choices) -> None:
    selection = choices.select({"image": "old"}, "eve")
    assert selection.options["image"] == "base"
    assert selection.notices == (
        "old is replaced by older. It had its day.",
        "older is replaced by base.",
    )


def test_a_redirected_profile_keeps_what_fits_and_tells_what_does_not(choices: Choices) -> None:
    selection = choices.select({"profile": "was", "memory": 4, "zone": "moon"}, "eve")
    assert selection.options == DEFAULTS | {"memory": 4}
    assert selection.notices[0] == "Was is replaced by Small. Big is Small now."
    assert selection.notices[1].startswith("zone (zone) is 'moon'")
    assert selection.notices[1].endswith("The default is used.")


def test_a_redirect_opens_nothing_that_is_closed() -> None:
    choices = Choices.load(
        [
            {"display_name": "Old", "redirect": {"to": "new"}},
            {"display_name": "New", "groups": ["staff"]},
            {
                "display_name": "Other",
                "profile_options": {
                    "o": {
                        "choices": {"x": {"redirect": {"to": "y"}}, "y": {"groups": ["g"]}, "z": {}}
                    }
                },
            },
        ]
    )
    assert "'new' is not for you" in refusal(choices, {"profile": "old"})
    assert choices.select({"profile": "old"}, "eve", ["staff"]).profile == "new"
    assert "not there for you" in refusal(choices, {"profile": "other", "o": "x"})
    assert choices.select({"profile": "other", "o": "x"}, "eve", ["g"]).options["o"] == "y"


def test_hidden_ones_still_start_and_deprecated_ones_say_so(choices: Choices) -> None:
    assert choices.select({"image": "shy"}, "eve").options["image"] == "shy"
    selection = choices.select({"profile": "attic"}, "eve")
    assert (selection.profile, selection.notices) == ("attic", ("Attic: It goes in June.",))
    notices = choices.select({"image": "aged"}, "eve").notices
    assert notices == ("Image, aged: Take base from May on.",)


# From one start to the next.


def test_an_ephemeral_option_is_for_one_start(choices: Choices) -> None:
    selection = choices.select({"reset": "yes"}, "eve")
    assert selection.options["reset"] == "yes"
    assert "reset" not in selection.stored
    assert choices.select(selection.stored, "eve").options["reset"] == "no"


def test_what_is_not_mutable_stays_as_it_was_first(choices: Choices) -> None:
    first = choices.select({"zone": "b"}, "eve")
    assert first.fixed == {"zone": "b", "disk": 10}
    second = choices.select({}, "eve", fixed=first.fixed)
    assert second.options["zone"] == "b"
    message = refusal(choices, {"zone": "a"}, **first.fixed)
    assert message == "zone (zone) was set at the first start and cannot be changed: choose b."


def test_what_was_fixed_stays_so_through_a_profile_without_it(choices: Choices) -> None:
    fixed = choices.select({"zone": "b", "disk": 50}, "eve").fixed
    fixed = choices.select({"profile": "attic"}, "eve", fixed=fixed).fixed
    assert fixed == {"zone": "b", "disk": 50}
    assert "can only grow: choose 50 or more" in refusal(choices, {"disk": 49}, **fixed)


def test_what_only_grows_may_grow(choices: Choices) -> None:
    fixed = choices.select({"disk": 50}, "eve").fixed
    assert choices.select({}, "eve", fixed=fixed).options["disk"] == 50
    assert choices.select({"disk": "60"}, "eve", fixed=fixed).fixed["disk"] == 60


def test_choices_grow_and_shrink_in_the_order_of_their_list() -> None:
    def ordered(direction: str) -> Choices:
        sizes = {"choices": {"s": {}, "m": {}, "l": {}}, "monotonic": direction}
        return Choices.load([{"display_name": "A", "profile_options": {"size": sizes}}])

    assert ordered("increasing").select({"size": "l"}, "eve", fixed={"size": "m"}).fixed == {
        "size": "l"
    }
    assert "can only grow: choose m" in refusal(ordered("increasing"), {"size": "s"}, size="m")
    assert ordered("decreasing").select({"size": "s"}, "eve", fixed={"size": "m"}).fixed == {
        "size": "s"
    }
    assert "can only shrink: choose m" in refusal(ordered("decreasing"), {"size": "l"}, size="m")


@pytest.mark.parametrize("fixed", [{"zone": "gone"}, {"zone": ["a"]}, {"disk": 10**9}, {"x": 1}])
def test_what_is_no_longer_there_binds_nobody(choices: Choices, fixed: dict[str, Any]) -> None:
    assert choices.select({"zone": "b", "disk": 20}, "eve", fixed=fixed).options["zone"] == "b"


def test_a_text_that_must_be_given_is_asked_for() -> None:
    choices = Choices.load(
        [
            {
                "display_name": "A",
                "profile_options": {
                    "repo": {"unlisted_choice": {"enabled": True}},
                    "hours": {"display_name": "Hours", "number": {"max": 8}},
                },
            }
        ]
    )
    assert refusal(choices, {}) == (
        "repo (repo) is needed: choose a text of your own (`repo--unlisted-choice`). "
        "Hours (hours) is needed: choose a whole number up to 8."
    )
    assert choices.select({"repo": "x", "hours": -3.0}, "eve").options == {
        "profile": "a",
        "repo--unlisted-choice": "x",
        "hours": -3,
    }
