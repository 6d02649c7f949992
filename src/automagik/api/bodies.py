"""Request bodies: JSON that a database and the wire can carry, or an error that names the field."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import NoReturn, cast

import orjson
from starlette.requests import Request

from automagik.errors import InvalidInput, TooLarge
from automagik.memory import check_text
from automagik.types import Json

__all__ = ["decode_json", "read_json"]

_MAX_DEPTH = 64
"""How deep a body may be nested: what every parser and serialiser behind us can take."""

_MAX_VALUES = 250_000
"""How many values a body may have: the event loop stands still while they are made, a third of a second at the most."""

_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A text, also one that is not closed: a pattern that could fail would begin anew at each quote."""
_LARGEST = 2**64 - 1
_LEAST = -(2**63)


async def read_json(request: Request) -> Json:
    """The request's body.

    Raises: InvalidInput for what is no JSON, naming the position; for a NUL or a lone surrogate, naming the field;
    TooLarge for more values than can be served without keeping everybody else waiting.
    """
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            _check_content_type(value.decode("latin-1"))
            break
    return decode_json(await request.body())


def decode_json(body: bytes) -> Json:
    """The value that `body` spells; see `read_json`."""
    if _count(body) > _MAX_VALUES and _count(_TEXT.sub(b"", body)) > _MAX_VALUES:
        raise TooLarge(
            f"The body has more than {_MAX_VALUES} values.", hint="Send fewer; what is large goes as text or base64."
        )
    try:
        value: Json = orjson.loads(body)
    except orjson.JSONDecodeError as wrong:
        value = _decode_slowly(body, wrong)
        _check(value)
    else:
        # Both are rare, and searching bytes is a thousand times faster than walking a value.
        if b"\\u0000" in body or body.count(b"{") + body.count(b"[") > _MAX_DEPTH:
            _check(value)
    return value


def _check_content_type(value: str) -> None:
    kind = value.split(";", 1)[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise InvalidInput(
            f"The body is '{kind[:100]}'; only JSON is read.",
            field=("header", "content-type"),
            hint="Send 'content-type: application/json'.",
        )


def _decode_slowly(body: bytes, wrong: orjson.JSONDecodeError) -> Json:
    """What orjson refuses and the standard library takes: texts with lone surrogates. The rest is an error."""
    if not body:
        raise InvalidInput("The body is empty.", field=("body",), hint="Send a JSON object.") from None
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise _too_deep(["body"]) from None
    except ValueError:
        raise InvalidInput(
            f"The body is no valid JSON: {wrong}.", field=("body", wrong.pos), code="invalid_json"
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _count(body: bytes) -> int:
    """At least the number of values in `body`, and exact but for empty collections where there are no texts."""
    return body.count(b",") + body.count(b"{") + body.count(b"[")


def _whole(text: str) -> int | float:
    """As orjson reads it: what has more than 64 bits becomes a float."""
    value = int(text)
    return value if _LEAST <= value <= _LARGEST else _finite(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return value


def _check(value: Json) -> None:
    """Check every text and the depth; one pass in memory of the depth alone, for the caller chooses the size."""
    if isinstance(value, str):
        check_text(value, field=("body",))
    path: list[str | int] = ["body"]
    stack = [_members(value)]
    while stack:
        for key, member in stack[-1]:
            if isinstance(key, str):
                check_text(key, field=(*path, key))
            if isinstance(member, str):
                check_text(member, field=(*path, key))
            elif isinstance(member, list | dict):
                if len(path) > _MAX_DEPTH:
                    raise _too_deep(path)
                path.append(key)
                stack.append(_members(member))
                break
        else:
            stack.pop()
            path.pop()


def _members(value: Json) -> Iterator[tuple[str | int, Json]]:
    if isinstance(value, dict):
        return iter(cast("dict[str | int, Json]", value).items())
    return iter(enumerate(value)) if isinstance(value, list) else iter(())


def _too_deep(path: Sequence[str | int]) -> InvalidInput:
    return InvalidInput(
        f"The body is nested more than {_MAX_DEPTH} deep.", field=path[:4], hint="Send a flatter document."
    )
