"""Wire: what the gateway must know of a model API: how requests are read and refused, and where usage stands in answers."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol, cast

import orjson

from automagik.gateway.connection import Answer, Header
from automagik.gateway.metering import Meter
from automagik.types import Json, JsonObject

__all__ = [
    "ELSEWHERE",
    "Ask",
    "Medium",
    "Refusal",
    "Vendor",
    "Wire",
    "as_list",
    "as_object",
    "count",
    "flag",
    "hints",
    "model_of",
    "read_document",
    "shown",
]

Vendor = Literal["anthropic", "openai"]

ELSEWHERE = (
    "api_base",
    "api_key",
    "base_url",
    "extra_body",
    "extra_headers",
    "fallbacks",
    "models",
    "plugins",
    "route",
    "search_parameters",
)
"""Fields by which servers that stand before several providers (LiteLLM, OpenRouter and the like) are told to ask another model or
address than the one that was checked, or to search."""

_MAX_MODEL_CHARS = 256
_MAX_OUTPUT_TOKENS = 100_000_000
_MAX_CONTAINERS = 100_000
_MAX_VALUES = 500_000
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_MAX_SHOWN_CHARS = 60


class Refusal(Exception):
    """The gateway's own answer to a request, in place of a provider's. `code` is what the run ends with, where it says so."""

    def __init__(
        self,
        status: int,
        text: str,
        *,
        retry_after: int | None = None,
        may_retry: bool | None = None,
        code: Literal["budget_exceeded", "policy"] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_after = retry_after
        self.may_retry = may_retry
        """What the client is told of retries; None: what its status says."""
        self.code: Literal["budget_exceeded", "policy"] | None = code


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for, as far as the gateway must know."""

    document: JsonObject
    model: str
    streams: bool
    max_output: int | None
    """The most tokens that one answer may have; None: it doesn't say."""
    answers: int = 1


@dataclass(frozen=True, slots=True)
class Medium:
    """A part of a request whose tokens its bytes say nothing about. `size` are its bytes in the request."""

    size: int
    tokens: int
    is_elsewhere: bool = False
    """Whether the provider would fetch it from an address."""


class Wire(Protocol):
    """One kind of request of one vendor's API."""

    vendor: Vendor
    path: str
    """Behind the vendor's base URL."""
    turns: str
    """The field that the conversation stands in."""
    least_output: int
    """The fewest tokens of output that an answer is worth asking for."""
    fields: frozenset[str]
    """The fields that a request may have where a limit applies: none has it cost more than is reserved for it, or that is looked
    at by `reaches_out`, `costs_extra` and `repeats`. Of any other nothing is known."""

    def ask(self, document: JsonObject) -> Ask:
        """What the request asks for. Raises Refusal (400) where it can't be told."""
        ...

    def reaches_out(self, document: JsonObject) -> str | None:
        """What of the request would have the provider reach other systems; None: nothing."""
        ...

    def costs_extra(self, document: JsonObject) -> str | None:
        """What of the request makes the call cost what can't be told beforehand; None: nothing."""
        ...

    def repeats(self, document: JsonObject) -> str | None:
        """What of the request may have the provider read it more than once, so that its cost is told only after; None: nothing."""
        ...

    def media(self, turn: Json, model: str) -> Iterator[Medium]:
        """The media of one turn, as this model counts them."""
        ...

    def least(self, ask: Ask) -> int:
        """The fewest tokens of output that this request may be lowered to."""
        ...

    def with_max_output(self, ask: Ask, tokens: int) -> JsonObject:
        """The request with that many tokens of output at the most."""
        ...

    def prepared(self, ask: Ask) -> JsonObject | None:
        """The request as it must be changed so that its usage is told; None: it is well as it is."""
        ...

    def meter(self, content_type: bytes) -> Meter:
        """What reads the usage from an answer of this type."""
        ...

    def refused(self, refusal: Refusal) -> Answer:
        """The refusal in the API's own shape."""
        ...

    def broken(self, refusal: Refusal) -> bytes:
        """The refusal as the event that ends a stream."""
        ...


def read_document(body: bytes) -> JsonObject:
    """The request's JSON object, which every reader must understand alike.

    What some readers take otherwise than others is refused: a name that stands twice, names of the API in capitals, NaN, bytes
    that are no UTF-8. Else a provider could see another model than the one that was allowed.

    Raises: Refusal (400).
    """
    _check_shape(body)
    found = _read_alike(body)
    if found is None:
        found = _read_with_care(body)
    for name in found:
        if not name.isascii() or name != name.lower():
            raise Refusal(400, "The names of a request's fields are in lower case.")
    return found


def _read_alike(body: bytes) -> JsonObject | None:
    """The object, where there is no other way to read the body: written anew it is the same, byte for byte. So the CLI's requests
    are, and it is several times as fast; None: it must be looked at with care."""
    try:
        document = cast("Json", orjson.loads(body))
        return document if isinstance(document, dict) and orjson.dumps(document) == body else None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None


def _read_with_care(body: bytes) -> JsonObject:
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Refusal(400, "The request's body is not UTF-8.") from None
    except RecursionError:
        raise Refusal(400, "The request's body is nested too deeply.") from None
    except ValueError as error:
        raise Refusal(400, f"The request's body is not JSON: {error}"[:300]) from None
    if not isinstance(document, dict):
        raise Refusal(400, "The request's body must be a JSON object.")
    return cast("JsonObject", document)


def _check_shape(body: bytes) -> None:
    """Refuse what would hold up everybody while it is read: a body may be large, but not of millions of parts."""
    if len(body) <= _MAX_CONTAINERS:  # it can't have more parts than bytes
        return
    # Texts may have any number of brackets; they are left out only where that decides.
    if _is_of_too_many(body) and _is_of_too_many(_STRING.sub(b"", body)):
        raise Refusal(400, "The request's body has too many parts.")


def _is_of_too_many(body: bytes) -> bool:
    return body.count(b"{") + body.count(b"[") > _MAX_CONTAINERS or body.count(b",") > _MAX_VALUES


def _once(pairs: list[tuple[str, Json]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a value of JSON")


def as_list(value: Json) -> Sequence[Json]:
    """The value where it is a list, else nothing."""
    return value if isinstance(value, list) else ()


def as_object(value: Json) -> JsonObject:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def shown(value: Json) -> str:
    """What a request says, as short and plain as it may stand in an error or an event."""
    text = value if isinstance(value, str) else type(value).__name__
    return "".join(char if char.isprintable() else "�" for char in text[:_MAX_SHOWN_CHARS])


def model_of(document: JsonObject) -> str:
    """The model that a request names. Raises Refusal (400)."""
    model = document.get("model")
    if not isinstance(model, str) or not model or len(model) > _MAX_MODEL_CHARS or not model.isprintable():
        raise Refusal(400, "model: a model's name is needed.")
    return model


def flag(document: JsonObject, name: str) -> bool:
    """A field that is true or false (false where it isn't there). Raises Refusal (400)."""
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, f"{name}: true or false is needed.")
    return value is True


def count(document: JsonObject, name: str) -> int | None:
    """A field that is a positive number. Raises Refusal (400)."""
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_OUTPUT_TOKENS:
        raise Refusal(400, f"{name}: a whole number of at least 1 is needed.")
    return value


def hints(refusal: Refusal) -> tuple[Header, ...]:
    """What both vendors' clients read besides the status: when to try again, and whether at all."""
    headers: list[Header] = [(b"content-type", b"application/json")]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after))
    if refusal.may_retry is not None:
        headers.append((b"x-should-retry", b"true" if refusal.may_retry else b"false"))
    return tuple(headers)
