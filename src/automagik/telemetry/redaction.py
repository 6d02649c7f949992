"""Redactor: takes every secret out of what is about to be written down."""

import base64
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import cast
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretBytes, SecretStr

from automagik.settings import Settings
from automagik.types import Json

__all__ = ["REDACTED", "Redactor", "is_secret_name"]

REDACTED = "[redacted]"
"""What stands in a secret's place."""

_MAX_CHARS = 16_000
"""The longest text that is kept of one value."""
_MAX_ITEMS = 200
"""The most entries that are kept of one collection."""
_MAX_DEPTH = 8
"""How deep nested collections are followed."""
_MIN_EXACT = 4
"""Registered secrets shorter than this would blank ordinary words, so only names and patterns protect them."""

_SECRET_NAME = re.compile(
    r"authorization|passw|passphrase|secret|credential|cookie|api_?key|access_?key|private_?key|database_url|(?:^|_)(?:pwd|dsn|token|bearer|jwt)$"
)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a field or header of this name holds a secret: `x-api-key`, `password`, `access_token`, not `input_tokens`."""
    return _SECRET_NAME.search(name.lower().replace("-", "_")) is not None


_NAMED = (
    r"(?i)(?<![A-Za-z0-9])([\w-]{0,40}?(?:passwo?r?d|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
    r"|(?<![A-Za-z])token|database[_-]?url|(?<![A-Za-z])dsn)[\"']?\s*[:=]\s*)"
    r"(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^\s\"',;&)}\]]+)"
)

_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("amk_",), re.compile(r"(?i)amk_[A-Za-z0-9_-]{5,}"), REDACTED),
    (("sk-",), re.compile(r"(?i)(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{6,}"), REDACTED),
    (("authorization", "cookie"), re.compile(r"(?i)((?:authorization|cookie)[\"']?\s*[:=,]\s*b?[\"']?)[^\r\n\"']+"), rf"\1{REDACTED}"),
    (("bearer",), re.compile(r"(?i)\b(bearer[\s:=]+)[^\s\"',;)}\]]+"), rf"\1{REDACTED}"),
    (("://",), re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/\"'<>]+@"), rf"\1{REDACTED}@"),
    (("aiza",), re.compile(r"AIza[0-9A-Za-z_-]{20,}"), REDACTED),
    (("gsk_", "xai-"), re.compile(r"(?<![A-Za-z0-9])(?:gsk_|xai-)[A-Za-z0-9]{16,}"), REDACTED),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), re.compile(r"(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{16,}"), REDACTED),
    (("xox",), re.compile(r"xox[a-z]-[A-Za-z0-9-]{8,}"), REDACTED),
    (("akia", "asia"), re.compile(r"(?:AKIA|ASIA)[A-Z0-9]{16}"), REDACTED),
    (("eyj",), re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"), REDACTED),
    (("private key-",), re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), REDACTED),
    (("passw", "passphrase", "secret", "credential", "token", "dsn",
      "apikey", "api_key", "api-key", "accesskey", "access_key", "access-key", "privatekey", "private_key", "private-key",
      "databaseurl", "database_url", "database-url"), re.compile(_NAMED), rf"\1{REDACTED}"),
)  # fmt: skip
"""Each pattern with the lower-case texts of which one must be there before the pattern is tried: a search by `in` costs 40 ns."""


class Redactor:
    """Takes secrets out of texts and of nested values: by the field's name, by their form, and by the exact values it is given."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= _MIN_EXACT for form in _written_forms(secret)}
        self._exact = tuple(sorted(forms, key=len, reverse=True))
        self._overlap = max((512, *(len(form) for form in self._exact)))

    @classmethod
    def from_settings(cls, settings: Settings) -> "Redactor":
        """A redactor that knows every secret among the settings, and the password within the database's URL."""
        secrets: list[str] = []
        for name in type(settings).model_fields:
            value: object = getattr(settings, name)
            if isinstance(value, SecretStr):
                secrets.append(value.get_secret_value())
        if settings.database_url is not None:
            password = urlsplit(settings.database_url.get_secret_value()).password
            if password:
                secrets += [password, unquote(password)]
        return cls(secrets)

    def text(self, text: str) -> str:
        """The text without secrets, cut to 16,000 characters."""
        cut = len(text) > _MAX_CHARS
        if cut:
            text = text[: _MAX_CHARS + self._overlap]
        for secret in self._exact:
            if secret in text:
                text = text.replace(secret, REDACTED)
        lowered = text.lower()
        for triggers, pattern, replacement in _PATTERNS:
            for trigger in triggers:
                if trigger in lowered:
                    text = pattern.sub(replacement, text)
                    break
        # The end may hold the front part of a registered secret, so it goes.
        return f"{text[: -self._overlap][:_MAX_CHARS]}… (cut)" if cut else text

    def value(self, value: object, *, _depth: int = 0) -> Json:
        """The value as JSON without secrets. What is no JSON becomes its text; deep or long collections are cut."""
        if isinstance(value, str):
            return self.text(str(value))
        if value is None or value is True or value is False or type(value) in {int, float}:
            return cast("int | float | bool | None", value)
        if isinstance(value, SecretStr | SecretBytes):
            return REDACTED
        if isinstance(value, bytes | bytearray):
            return self.text(bytes(value[: _MAX_CHARS + self._overlap]).decode("utf-8", "backslashreplace"))
        if isinstance(value, Mapping | list | tuple | AbstractSet):
            if _depth >= _MAX_DEPTH:
                return "…"
            return self._collection(
                cast("Mapping[object, object] | list[object] | tuple[object, ...] | AbstractSet[object]", value),
                _depth + 1,
            )
        if isinstance(value, BaseException):
            return self.text(f"{type(value).__name__}: {value}")
        return self.text(_described(value))

    def named(self, name: str, value: object) -> Json:
        """The value of the field `name` without secrets: nothing at all of it where the name says that it is one."""
        if is_secret_name(name) and value is not None and not isinstance(value, bool):
            return REDACTED
        return self.value(value)

    def _collection(
        self, value: Mapping[object, object] | list[object] | tuple[object, ...] | AbstractSet[object], depth: int
    ) -> Json:
        if isinstance(value, Mapping):
            shown: dict[str, Json] = {}
            for key, item in value.items():
                if len(shown) >= _MAX_ITEMS:
                    shown["…"] = len(value) - _MAX_ITEMS
                    break
                name = _name_of(key)
                hidden = is_secret_name(name) and item is not None and not isinstance(item, bool)
                shown[self.text(name)] = REDACTED if hidden else self.value(item, _depth=depth)
            return shown
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
            name = _name_of(value[0])  # a header, or an item of a mapping
            if is_secret_name(name):
                return [self.text(name), REDACTED]
        items: list[Json] = []
        for item in value:
            if len(items) >= _MAX_ITEMS:
                items.append("…")
                break
            items.append(self.value(item, _depth=depth))
        return items


_shown = reprlib.Repr()
_shown.maxother = _MAX_CHARS


def _described(value: object) -> str:
    """The value's `repr`, also where that raises (`reprlib` answers for it). Plain values by their text."""
    kind = type(value)
    if kind.__module__ in {"datetime", "uuid", "decimal", "pathlib"}:
        return str(value)
    return _shown.repr_instance(value, 1)


def _name_of(key: object) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key.decode("latin-1")
    return _described(key)


def _written_forms(secret: str) -> set[str]:
    """How a secret may stand in a text: as it is, percent-encoded, escaped in JSON or `repr`, in base64."""
    forms = {
        secret,
        quote(secret, safe=""),
        quote(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
    }
    encoded = base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode()
    if len(encoded) >= 8:
        forms |= {encoded, encoded.rstrip("=")}
    return forms
