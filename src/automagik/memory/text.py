"""What a text may hold before it is stored, and how a text that came from outside is made storable."""

from collections.abc import Sequence

from pydantic_core import to_jsonable_python

from automagik.errors import InvalidInput
from automagik.types import Json

__all__ = ["check_text", "clean_json", "clean_text", "to_clean_json"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_DEEPEST = 100
"""How deep what a model or a tool made may be nested: with what is put around it, it must pass every parser and serialiser, of
which some end at 250."""


def check_text(text: str, *, field: Sequence[str | int], max_chars: int | None = None) -> str:
    """`text` itself, where a database and the wire can carry it: no NUL, no lone surrogate, not over `max_chars`.

    Raises: InvalidInput naming `field`; it is the caller's text, so it is refused, never repaired.
    """
    if max_chars is not None and len(text) > max_chars:
        raise InvalidInput(
            f"The text has {len(text)} characters; the limit is {max_chars}.",
            field=field,
            code="text_too_long",
            hint="Shorten it, or raise AUTOMAGIK_MAX_TEXT_CHARS.",
        )
    if "\x00" in text:
        raise InvalidInput(
            f"The text has a NUL character at position {text.index(chr(0))}.", field=field, hint="Remove it."
        )
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        raise InvalidInput(
            f"The text has a lone surrogate (U+{ord(text[wrong.start]):04X}) at position {wrong.start}.",
            field=field,
            hint="Send well-formed Unicode: a surrogate stands only in a pair.",
        ) from None
    return text


def clean_text(text: str) -> str:
    """`text` with U+FFFD for each NUL and lone surrogate, which neither JSON in UTF-8 nor a database can carry.

    For what a model or a tool wrote: it must be kept, and nobody is there to be told.
    """
    if "\x00" in text:
        text = text.replace("\x00", _REPLACEMENT)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_json(value: Json, *, depth: int = -1) -> Json:
    """`value` with all its texts cleaned, and whole numbers of more than 64 bits as texts, which JSON parsers lose.

    A list or object that is deeper than `depth` becomes a text that says so; a negative `depth` is none.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list | dict) and not depth:
        return "[nested too deep to be shown]"
    if isinstance(value, list):
        return [clean_json(item, depth=depth - 1) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): clean_json(item, depth=depth - 1) for key, item in value.items()}
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    return value


def to_clean_json(value: object) -> Json:
    """Whatever a model or a tool made, as JSON that can be sent and stored; bytes become base64, and what is nested more than 100
    deep a text that says so."""
    if isinstance(value, str):
        return clean_text(value)
    return clean_json(to_jsonable_python(value, serialize_unknown=True, bytes_mode="base64"), depth=_DEEPEST)
