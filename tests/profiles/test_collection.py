"""Where profiles are read from, and what of each place is read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightkube_template_spawner.errors import ProfileError
from lightkube_template_spawner.profiles import SINGLEUSER_PROFILES, Profiles, from_file

MAIN = "jupyter-singleuser-profiles"
KEY = "jupyterhub-singleuser-profiles.yaml"
OURS = {"jupyterhub": "singleuser-profiles"}
SECRET = "hunter2-and-more"


def configmap(text: str, labels: dict[str, str] | None = None, key: str = KEY) -> dict[str, Any]:
    return {"labels": labels or {}, "data": {key: text}}


def own(text: str) -> dict[str, Any]:
    return {"data": {"profile": text}}


def names(profiles: Profiles) -> str:
    return str(profiles.merged(user="bob")["name"])


class TestText:
    @pytest.mark.parametrize(
        "text",
        [
            "profiles: [{name: a}, {name: b}]\nsizes: [{name: L}]",
            "- name: a\n- name: b",
            "data:\n  " + KEY + ": |\n    profiles: [{name: a}, {name: b}]",
            "a: &a {name: a}\n".replace("a: ", "profiles:\n- ", 1) + "- {<<: *a, name: b}",
        ],
        ids=["profiles and sizes", "a list", "a ConfigMap", "with an alias"],
    )
    def test_shapes(self, text: str) -> None:
        assert names(Profiles.from_text(text)) == "a, b"

    @pytest.mark.parametrize("text", ["", "# nothing", "profiles:", "null", "---\n"])
    def test_nothing(self, text: str) -> None:
        assert Profiles.from_text(text).profiles == ()

    def test_sizes_of_a_configmap(self) -> None:
        text = f"data: {{{KEY}: '{{sizes: [{{name: L}}]}}'}}"
        assert [size.name for size in Profiles.from_text(text).sizes] == ["L"]

    def test_yaml_is_read_as_kubernetes_reads_it(self) -> None:
        profiles = Profiles.from_text("- env: {A: 0o17, B: y, C: 1e3, D: 12:30}")
        values = [variable["value"] for variable in profiles.merged()["env"]]
        assert values == ["15", "true", "1000", "12:30"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "profiles: [",
                "file.yaml, line 2, column 1: did not find expected node content. Look",
            ),
            (
                "profile: []",
                "file.yaml: unknown key `profile`; did you mean `profiles`? Allowed: pr",
            ),
            ("profiles: {}", "file.yaml: profiles: must be a list, not a mapping"),
            ("just text", "file.yaml: must be a mapping, not text"),
            ("a: 1\n---\nb: 2", "file.yaml: must be one YAML document, not 2"),
            ("data: {x: ''}", f"file.yaml: has no key `{KEY}` in its data; keys there: x"),
            ("data:", f"file.yaml: has no key `{KEY}` in its data; keys there: none"),
            (f"data: {{{KEY}: [1]}}", f"file.yaml, {KEY}: must be text"),
            (f"data: {{{KEY}: 'profiles: 1'}}", f"file.yaml, {KEY}: profiles: must be a list"),
            ("- env: !!binary eA==", "file.yaml, line 1, column 8: a tag"),
            ("- env: {A: 1, A: 2}", "the key 'A' a second time in one mapping"),
            ("- a: *b", "an alias (`*name`) without an anchor"),
            ("- values: &a [*a]", "an alias inside the value that it stands for"),
            ("- values: " + "[" * 5_000, "nested more than 100 levels deep"),
            ("- values: " + "{a: " * 70 + "1" + "}" * 70, "lies more than 60 levels deep"),
            ("- values: 'a\0b'", "file.yaml: a character that YAML does not allow. Look at the in"),
        ],
    )
    def test_faults(self, text: str, message: str) -> None:
        with pytest.raises(ProfileError) as error:
            Profiles.from_text(text, "file.yaml")
        assert message in str(error.value)
        assert "toYaml" not in str(error.value)  # that is for templates

    def test_a_billion_laughs(self) -> None:
        lines = ["- values:", "    a0: &a0 [x, x]"]
        lines += [f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        with pytest.raises(ProfileError, match="more than 200000 values, aliases expanded"):
            Profiles.from_text("\n".join(lines))

    def test_aliases_are_values_of_their_own(self) -> None:
        text = "- values: {a: &a {b: 1}, c: *a}\n- values: {a: {b: 2}}"
        assert Profiles.from_text(text).merged()["values"] == {"a": {"b": 2}, "c": {"b": 1}}

    @given(st.text(max_size=40) | st.text("-[]{}:,&*!|>'\"%@`ab \n\t", max_size=40))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        with suppress(ProfileError):
            Profiles.from_text(text).merged()

    def test_no_value_is_repeated(self) -> None:
        with pytest.raises(ProfileError) as error:
            Profiles.from_text(f"- env: {{A: '{SECRET}'\n- env: {{A: '{SECRET}'}}")
        assert SECRET not in str(error.value)


class TestConfigMaps:
    def test_the_main_one_comes_first_and_the_labelled_follow_by_name(self) -> None:
        configmaps = {
            "z": configmap("profiles: [{name: z}]\nsizes: [{name: L, labels: {a: z}}]", OURS),
            "other": configmap("profiles: [{name: other}]", {"jupyterhub": "no"}),
            "a": configmap("profiles: [{name: a}]\nsizes: [{name: L, labels: {a: a}}]", OURS),
            MAIN: configmap("profiles: [{name: main}]"),
        }
        profiles = Profiles.from_configmaps(configmaps)
        assert names(profiles) == "main, a, z"
        assert profiles.merged(size="L")["labels"] == {"a": "z"}

    def test_one_that_is_not_there_has_none(self) -> None:
        assert Profiles.from_configmaps({}, "bob").profiles == ()
        assert names(Profiles.from_configmaps({"a": configmap("- name: a", OURS)})) == "a"

    def test_a_main_one_with_the_label_counts_twice_only_for_the_old_semantics(self) -> None:
        configmaps = {
            MAIN: configmap("- {name: main, env: {X: main}}", OURS),
            "a": configmap("- {name: a, env: {X: a}}", OURS),
        }
        profiles = Profiles.from_configmaps(configmaps)
        assert profiles.merged()["name"] == "main, a"
        assert profiles.merged()["env"] == [{"name": "X", "value": "a"}]
        twice = profiles.merged(semantics=SINGLEUSER_PROFILES)
        assert twice["name"] == "main, a, main"
        assert [variable["value"] for variable in twice["env"]] == ["main", "a", "main"]

    def test_names_key_and_label_can_be_others(self) -> None:
        configmaps = {
            "mine": configmap("- name: mine", key="p.yaml"),
            "more": configmap("- name: more", {"x.y/profiles": "yes"}, key="p.yaml"),
            MAIN: configmap("- name: main"),
        }
        profiles = Profiles.from_configmaps(
            configmaps, main="mine", key="p.yaml", label="x.y/profiles=yes"
        )
        assert names(profiles) == "mine, more"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                configmap("profiles: [{name: p, users: 1}]"),
                f", {KEY}: profiles[0] (p).users: must be",
            ),
            (configmap("a", key="x"), f": has no key `{KEY}` in its data; keys there: x"),
            ({"labels": {}}, f": has no key `{KEY}` in its data; keys there: none"),
            ({"data": {KEY: 5}}, f", {KEY}: must be text"),
            (None, f": has no key `{KEY}` in its data; keys there: none"),
        ],
    )
    def test_faults(self, content: Any, message: str) -> None:
        with pytest.raises(ProfileError) as error:
            Profiles.from_configmaps({MAIN: content})
        assert str(error.value).startswith(f"ConfigMap {MAIN}{message}")


class TestOwn:
    def test_it_comes_last_and_is_the_user_s_alone(self) -> None:
        configmaps = {
            MAIN: configmap("- {name: main, env: {X: main}}"),
            "jupyterhub-singleuser-profile-bob": own("env: {X: mine}\ngpu: 1"),
        }
        profiles = Profiles.from_configmaps(configmaps, "bob")
        assert profiles.merged(user="bob")["name"] == "main, @singleuser@"
        assert profiles.merged(user="bob")["env"] == [{"name": "X", "value": "mine"}]
        assert profiles.merged(user="amy")["name"] == "main"
        assert Profiles.from_configmaps(configmaps, "amy").merged(user="amy")["name"] == "main"
        assert Profiles.from_configmaps(configmaps).merged(user="bob")["name"] == "main"

    def test_user_names_are_escaped(self) -> None:
        configmaps = {"jupyterhub-singleuser-profile--42ob-40x-2ey": own("name: mine")}
        assert Profiles.from_configmaps(configmaps, "Bob@x.y").profiles[0].name == "mine"

    @pytest.mark.parametrize("key", ["volumes", "services", "resources", "users", "values", "gpus"])
    def test_it_cannot_set_what_is_the_administrator_s(self, key: str) -> None:
        configmaps = {"jupyterhub-singleuser-profile-bob": own(f"{key}: {{}}")}
        with pytest.raises(ProfileError) as error:
            Profiles.from_configmaps(configmaps, "bob")
        assert f"-bob, profile: unknown key `{key}`" in str(error.value)
        assert "Allowed: env, gpu, last_selected_image, last_selected_size, name" in str(
            error.value
        )

    def test_it_cannot_name_a_secret(self) -> None:
        text = "env: {A: {valueFrom: {secretKeyRef: {name: hub, key: token}}}}"
        configmaps = {"jupyterhub-singleuser-profile-bob": own(text)}
        with pytest.raises(ProfileError, match=r"env\[0\]: a user's own profile takes text"):
            Profiles.from_configmaps(configmaps, "bob")

    def test_a_fault_is_named(self) -> None:
        configmaps = {"jupyterhub-singleuser-profile-bob": own("{name: mine, env: [5]}")}
        with pytest.raises(ProfileError) as error:
            Profiles.from_configmaps(configmaps, "bob")
        assert str(error.value) == (
            "ConfigMap jupyterhub-singleuser-profile-bob, profile: env[0]: must be a mapping, "
            "not a number without quotes"
        )

    def test_an_empty_one_is_none(self) -> None:
        configmaps = {"jupyterhub-singleuser-profile-bob": own("")}
        assert Profiles.from_configmaps(configmaps, "bob").profiles == ()


class TestFile:
    def test_it_is_read_as_text_is(self, tmp_path: Path) -> None:
        path = tmp_path / "profiles.yaml"
        path.write_text("profiles: [{name: ä}]\nsizes: [{name: L}]")
        assert names(from_file(path)) == "ä"
        assert [size.name for size in from_file(str(path)).sizes] == ["L"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, ": cannot be read: No such file or directory"),
            (b"\xff\xfe\xff", ": cannot be read: it is not text in UTF-8"),
            (b"- users: 1", ": profiles[0].users: must be a list"),
            (b"#" * (17 << 20), ": more than 16 MiB: write fewer profiles"),
        ],
    )
    def test_faults(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "profiles.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ProfileError) as error:
            from_file(path)
        assert str(error.value).startswith(f"{path}{message}")


def test_profiles_of_several_places_are_joined_in_order() -> None:
    joined = Profiles.from_list([{"name": "a"}], [{"name": "S"}]) + Profiles.from_text("- name: b")
    assert names(joined) == "a, b"
    assert [size.name for size in joined.sizes] == ["S"]
