"""No secret passes the redactor: by name, by form, by exact value, however deep it is nested."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from automagik.settings import Settings
from automagik.telemetry import REDACTED, Redactor
from automagik.telemetry.redaction import is_secret_name

KEY = "amk_" + "Zx9-_q" * 7 + "a"


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY} was used",
        f"GET /api/v1/runs?x-api-key={KEY}",
        "sk-proj-abcdefSECRETghijkl",
        "Authorization: Bearer SECRETabcdef",
        "authorization=Basic dXNlcjpTRUNSRVQ=SECRET",
        "{'Authorization': 'Token SECRET with spaces'}",
        "(b'authorization', b'SECRET')",
        "Cookie: session=SECRET; other=SECRET",
        "postgresql://user:SECRET@host/db",
        "postgresql://user:p@SECRET@host/db",
        "https://SECRET@host.example/path",
        "password=SECRET",
        "PGPASSWORD='SECRET with spaces' psql",
        '{"password": "a \\" SECRET"}',
        "password: SECRET",
        "client_secret=SECRET&grant=1",
        "OPENAI_API_KEY=SECRET",
        "refresh_token: SECRET",
        "dsn=SECRET",
        "AIza" + "SECRET" * 6,
        "ghp_" + "SECRET" * 6,
        "xoxb-1234-SECRET-SECRET",
        "AKIASECRETSECRETSECR",
        "eyJhbGciOiJIUzI1NiJ9.eyJTRUNSRVQ.SECRETsig",
        "-----BEGIN RSA PRIVATE KEY-----\nSECRET\nSECRET\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nSECRET cut off",
    ],
)
def test_a_secret_in_a_text_is_replaced(text: str) -> None:
    clean = Redactor().text(text)
    assert "SECRET" not in clean
    assert KEY not in clean
    assert REDACTED in clean


@pytest.mark.parametrize(
    "text",
    [
        "run_started",
        "POST /api/v1/agent/simple/run 200",
        "input_tokens=12 output_tokens=30",
        "the key amk_1a2b was revoked",
        "task-management is no key",
        "http://127.0.0.1:8881/docs",
        "see https://example.com/a and mail me@example.com",
        "a bearer of good news",
    ],
)
def test_a_text_without_a_secret_stays(text: str) -> None:
    expected = text.replace("bearer of", f"bearer {REDACTED}")  # better one word too many
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("authorization", True), ("x-api-key", True), ("X-API-Key", True), ("api_key", True), ("password", True),
        ("db_password", True), ("access_token", True), ("token", True), ("Set-Cookie", True), ("client_secret", True),
        ("database_url", True), ("credentials", True), ("private_key", True), ("secrets", True),
        ("input_tokens", False), ("output_tokens", False), ("key_id", False), ("path", False), ("tokens", False),
        ("first_token_seconds", False), ("author", False),
    ],
)  # fmt: skip
def test_names_tell_whether_a_field_is_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@dataclass
class _Login:
    user: str
    password: str


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("SECRET")


def _cyclic() -> list[Any]:
    ring: list[Any] = ["password=SECRET"]
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    "value",
    [
        {"outer": [{"headers": {"Authorization": "SECRET", "X-Api-Key": b"SECRET"}}]},
        {"headers": [(b"x-api-key", b"SECRET"), ("cookie", "SECRET")]},
        {"password": {"nested": "SECRET"}, "token": ["SECRET"]},
        {"password": 8675309},
        {KEY: 1},
        [SecretStr("SECRET")],
        ("a", ("b", {"set": {f"{KEY}"}})),
        _Login("ann", "SECRET"),
        _Unprintable(),
        ValueError("bad password=SECRET"),
        b"Bearer SECRETSECRET \xff",
        _cyclic(),
        {"url": "https://u:SECRET@h"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_secret_within_a_value_is_replaced(value: object) -> None:
    clean = json.dumps(Redactor().value(value))
    assert "SECRET" not in clean
    assert KEY not in clean
    assert "8675309" not in clean


def test_registered_values_go_in_every_form_they_are_written_in() -> None:
    password = 'p"ä s\\s/1'
    redactor = Redactor([password])
    for form in (password, json.dumps(password), repr(password), "p%22%C3%A4%20s%5Cs%2F1", "cCLDpCBzXHMvMQ=="):
        clean = redactor.text(f"before {form} after")
        assert REDACTED in clean, form
        assert clean.startswith("before ")
        assert clean.endswith(" after")


def test_settings_give_their_secrets_and_the_databases_password() -> None:
    settings = Settings(
        database_url=SecretStr("postgresql://ann:p%40ssw0rd1@db/x"),
        model_api_key=SecretStr("local-llm-key"),
        OPENAI_API_KEY=SecretStr("an unusual openai key"),  # pyright: ignore[reportCallIssue] - the field's alias
    )
    clean = Redactor.from_settings(settings).text("p%40ssw0rd1 p@ssw0rd1 local-llm-key, an unusual openai key")
    assert clean == f"{REDACTED} {REDACTED} {REDACTED}, {REDACTED}"


def test_long_texts_are_cut_without_leaving_half_a_secret() -> None:
    secret = "correct-horse-battery-staple"
    redactor = Redactor([secret])
    for offset in range(15_980, 16_020):
        clean = redactor.text("x" * offset + secret + "y" * 40_000)
        assert "correct" not in clean
        assert len(clean) < 16_100
    assert "correct" not in redactor.text((secret + " ") * 5_000)


def test_long_collections_and_deep_ones_are_cut() -> None:
    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    assert len(json.dumps(Redactor().value(deep))) < 100
    assert len(json.dumps(Redactor().value(list(range(100_000))))) < 2_000
    shown = Redactor().value({str(index): index for index in range(1_000)})
    assert isinstance(shown, dict)
    assert shown["…"] == 800
