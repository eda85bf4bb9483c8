"""Whatever is configured and whatever is sent: the page is sound, and nothing else is stored."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightkube_template_spawner.choices import Choices, ChoicesRefused, Selection
from lightkube_template_spawner.choices.model import UNLISTED, by_slug
from lightkube_template_spawner.errors import ConfigurationError
from tests.choices.pages import Page
from tests.choices.samples import ours

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onfocus=alert(1) autofocus x='",
    "</style></select></fieldset>",
    "{{ 7 * 7 }}{% raw %}",
    "]]>&lt;&#x27;",
    "__proto__",
    "unlisted_choice",
]
TEXT = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
)
GROUPS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2)


def fields(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


CHOICE = fields(
    display_name=TEXT,
    description=TEXT,
    default=st.booleans(),
    deprecated=TEXT,
    hidden=st.booleans(),
    groups=GROUPS,
    kubespawner_override=st.fixed_dictionaries({"image": TEXT}),
)
UNLISTED_CHOICE = fields(
    display_name=TEXT,
    display_name_in_choices=TEXT,
    validation_regex=st.sampled_from([".*", "[a-z]+", r"\w+", '["<]*']),
    validation_message=TEXT,
    groups=GROUPS,
    values=st.dictionaries(TEXT, st.just("{value}"), max_size=1),
).map(lambda unlisted: unlisted | {"enabled": True})
NUMBER = fields(
    min=st.integers(-5, 5), max=st.integers(6, 99), step=st.sampled_from([1, 0.1, 2])
).map(lambda number: number | {"default": number.get("min", 0)})
OPTION = st.one_of(
    fields(display_name=TEXT, number=NUMBER, monotonic=st.booleans()),
    fields(
        display_name=TEXT,
        description=TEXT,
        choices=st.dictionaries(TEXT, CHOICE, min_size=1, max_size=3),
        mutable=st.booleans(),
        unlisted_choice=UNLISTED_CHOICE,
    ),
    fields(display_name=TEXT, ephemeral=st.booleans(), groups=GROUPS).map(
        lambda option: option | {"unlisted_choice": {"enabled": True, "default": ""}}
    ),
)
PROFILE = fields(
    slug=TEXT,
    description=TEXT,
    default=st.booleans(),
    deprecated=TEXT,
    groups=GROUPS,
    profile_options=st.dictionaries(TEXT, OPTION, max_size=3),
)
LISTS = st.lists(
    st.builds(lambda name, rest: rest | {"display_name": name}, TEXT, PROFILE), max_size=3
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "profile",
    *(key + suffix for key in ours()[0]["profile_options"] for suffix in ("", UNLISTED)),
]
BODIES = JSON | st.dictionaries(st.sampled_from([*KEYS, "garbage", "token"]), JSON, max_size=6)
FORMS = st.dictionaries(
    st.sampled_from(["profile", *(f"profile-option-small--{key}" for key in KEYS)]) | TEXT,
    st.lists(TEXT | st.sampled_from(["small", "gpu", "base"]), max_size=2),
)


def loaded(profile_list: list[dict[str, Any]]) -> Choices:
    try:
        return Choices.load(profile_list)
    except ConfigurationError:  # two slugs the same, nothing offered, and so on
        assume(False)
        raise


def check_declared(choices: Choices, selection: Selection) -> None:
    """What is stored is declared, and its values are such as the list has, or texts, or numbers."""
    profile = by_slug(choices.profiles, selection.profile)
    assert profile
    assert selection.stored.items() <= selection.options.items()
    json.dumps(selection.options, allow_nan=False)
    declared = {option.key: option for option in profile.options}
    for key, value in selection.options.items():
        option = declared.get(key.removesuffix(UNLISTED))
        if key == "profile":
            assert value == profile.slug
        elif option is None:
            raise AssertionError(key)
        elif key.endswith(UNLISTED):
            assert option.unlisted
            assert isinstance(value, str)
            assert value.isprintable()
        elif option.number:
            assert option.number.allows(value)
        else:
            assert option.choice(value)


@settings(max_examples=500, deadline=None)
@given(body=BODIES, fixed=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_a_hostile_body_is_refused_or_comes_to_what_is_declared(
    body: Any, fixed: dict[str, Any]
) -> None:
    choices = Choices.load(ours())
    try:
        selection = choices.select(body, "eve", (), fixed)
    except ChoicesRefused as caught:
        refusal = caught
    else:
        check_declared(choices, selection)
        assert choices.select(selection.stored, "eve").stored == selection.stored
        return
    assert refusal.problems
    assert str(refusal).isprintable()


@settings(max_examples=300, deadline=None)
@given(formdata=FORMS)
def test_a_hostile_form_means_nothing_undeclared(formdata: dict[str, list[str]]) -> None:
    choices = Choices.load(ours())
    for sent in (choices.from_form(formdata), choices.from_query(formdata)):
        assert sent.keys() <= set(KEYS)
        try:
            check_declared(choices, choices.select(sent, "eve"))
        except ChoicesRefused:
            continue


@settings(max_examples=300, deadline=None)
@given(profile_list=LISTS, saved=BODIES, prefill=BODIES, groups=GROUPS, data=st.data())
def test_the_page_is_well_formed_and_everything_is_escaped(
    profile_list: list[dict[str, Any]], saved: Any, prefill: Any, groups: Any, data: st.DataObject
) -> None:
    choices = loaded(profile_list)
    offer = choices.for_user("eve", groups)
    keys = [
        key
        for profile in choices.profiles
        for option in profile.options
        for key in (option.key, option.key + UNLISTED)
    ]
    saved = saved if isinstance(saved, dict) else {}
    if choices.profiles:
        chosen = data.draw(st.sampled_from([profile.slug for profile in choices.profiles]))
        saved |= {"profile": chosen} | dict.fromkeys(keys, data.draw(TEXT))
    try:
        offer.select(prefill)
        problems: Any = ()
    except ChoicesRefused as refusal:
        problems = refusal.problems
    prefill = prefill if isinstance(prefill, dict) else {}
    for text in (offer.form(saved), offer.form(saved, problems, prefill)):
        page = Page(text)
        tags = {tag for tag, _ in page.elements}
        assert tags <= {
            *("div", "style", "fieldset", "legend", "label", "input", "select", "option", "p"),
            *("h2", "ul", "li", "a"),
        }
        names = {name for _, attributes in page.elements for name in attributes}
        assert not [name for name in names if name.startswith("on")]
        assert not re.search(r"&(?!amp;|lt;|gt;|#34;|#39;)", text)


@settings(max_examples=300, deadline=None)
@given(profile_list=LISTS, groups=GROUPS, data=st.data())
def test_what_was_chosen_comes_back_from_the_form(
    profile_list: list[dict[str, Any]], groups: Any, data: st.DataObject
) -> None:
    choices = loaded(profile_list)
    offer = choices.for_user("eve", groups)
    assume(offer.profiles)
    profile = data.draw(st.sampled_from(offer.profiles))
    body: dict[str, Any] = {"profile": profile.slug}
    for option in profile.options:
        if option.choices:
            body[option.key] = data.draw(st.sampled_from([one.key for one in option.choices]))
        if option.number:
            body[option.key] = data.draw(st.integers(-9, 99))
        if option.unlisted and data.draw(st.booleans()):
            body[option.key + UNLISTED] = data.draw(TEXT.map(str.strip))
    try:
        selection = offer.select(body)
    except ChoicesRefused:
        assume(False)
        raise
    page = Page(offer.form(selection.options, fixed=selection.fixed))
    again = offer.select(choices.from_form(page.sent()), fixed=selection.fixed)
    assert again.options == selection.options
    assert again.overrides == selection.overrides
