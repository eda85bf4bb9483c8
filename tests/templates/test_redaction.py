"""Secrets among a template's values do not get into messages, in no form."""

from __future__ import annotations

import base64
import json
import logging

import pytest

from lightkube_template_spawner.templates.redaction import Redactor, masked_log

KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nx\n-----END PRIVATE KEY-----\n"
VALUES = {
    "env": {
        "JUPYTERHUB_API_TOKEN": "0123456789abcdef",
        "JPY_API_TOKEN": "0123456789abcdef",
        "JUPYTERHUB_USER": "hannelore",
        "JUPYTERHUB_SSL_KEYFILE": "/etc/jupyterhub/ssl/ssl.key",
        "S3_PASSWORD": 'p"w\u2028',
        "DEBUG": "1",
        "UPSTREAM": "eyJhbGciOi.J9",
        "NESTED_KEY": {"value": "inside"},
    },
    "internal_ssl": {"path": "/etc/jupyterhub/ssl", "files": {"ssl.key": KEY}},
    "database": {"password": "hunter2", "host": "db.example.org"},
    "token": True,
    "imagePullSecrets": [{"name": "registry"}],
    "tls": {"secretName": "site-certificate"},
}


def as_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def as_secret(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("form", [str, as_json, as_secret])
@pytest.mark.parametrize(
    ("secret", "name"),
    [
        ("0123456789abcdef", "[env JUPYTERHUB_API_TOKEN]"),
        ('p"w\u2028', "[env S3_PASSWORD]"),
        ("eyJhbGciOi.J9", "[env UPSTREAM]"),
        ("inside", "[env NESTED_KEY]"),
        ("hunter2", "[value database.password]"),
        (KEY, "[ssl.key]"),
    ],
)
def test_a_secret_is_replaced_by_its_name(form: type[str], secret: str, name: str) -> None:
    assert Redactor(VALUES)(f"refused: <{form(secret)}>") == f"refused: <{name}>"


def test_each_line_of_a_key_is_a_secret() -> None:
    """A parser quotes the line that it stumbles over."""
    indented = KEY.replace("\n", "\n    ")
    assert "MIIE" not in Redactor(VALUES)(f"line 2: {indented}")
    assert Redactor(VALUES)("x: 1") == "x: 1"


@pytest.mark.parametrize(
    "message",
    [
        "Pod/hub/jupyter-jupyter--hannelore was refused",
        "Secret/registry and Secret/site-certificate do not exist, 1 of True",
        "/etc/jupyterhub/ssl/ssl.key is missing on db.example.org",
    ],
)
def test_what_errors_are_about_stays(message: str) -> None:
    assert Redactor(VALUES)(message) == message


def test_no_values() -> None:
    assert Redactor({})("a message") == "a message"
    assert Redactor({"env": None, "internal_ssl": {}})("a message") == "a message"


def test_a_log_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    log = masked_log(logging.getLogger("hub"), Redactor(VALUES))
    with caplog.at_level(logging.INFO, logger="hub"):
        log.warning("%s is kept: %s", "Job/x", {"value": "hunter2"})
        log.debug("not %s", "shown")
    assert caplog.messages == ["Job/x is kept: {'value': '[value database.password]'}"]
