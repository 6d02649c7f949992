"""ScriptedAnswer: a scripted turn as the Messages API sends it, whole or as server-sent events."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from automagik.providers.scripted_conversation import Conversation
from automagik.types import Json, JsonObject

__all__ = ["ScriptedAnswer", "ScriptedError", "ScriptedFault", "ScriptedToolUse", "ScriptedTurn", "answer_of"]

FaultKind = Literal["cut", "error", "garbage", "hang", "refuse"]

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
_PLACEHOLDER = re.compile(r"\{(cwd|last_tool_result|prompt|first_prompt|model|turn)\}")
_PIECE = re.compile(r"\s*\S+\s*$|\s*\S+")
_JSON_PIECE = 40
_CHARS_PER_TOKEN = 4
_SIGNATURE = "c2NyaXB0ZWQ="
_UNCACHED_TOKENS = 3
"""What stays uncached of a prompt that is cached: the end of the newest message."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScriptedToolUse(_Part):
    """A tool that the script asks for."""

    name: str
    input: dict[str, Any] = {}
    id: str | None = None
    """Unset: made of the conversation, so that it is the same when the same is asked again."""


class ScriptedError(_Part):
    """An error instead of an answer."""

    status: int = Field(ge=400, le=599)
    type: str | None = None
    """Unset: the API's own for the status."""
    message: str = "This error is scripted."
    headers: dict[str, str] = {}
    retry_after: float | None = Field(default=None, ge=0)
    """Seconds, for the header `retry-after`."""
    times: int | None = Field(default=None, ge=1)
    """How many times the same request gets it before the turn is answered; unset: always."""


class ScriptedFault(_Part):
    """Something that goes wrong on the way. Only a server can have it happen: `automagik.testing.ScriptedMessages`."""

    kind: FaultKind
    """`cut`: the connection breaks; `error`: the stream says that the API is overloaded, and ends; `garbage`: what comes is no
    JSON; `hang`: nothing more comes; `refuse`: the connection breaks before anything is sent."""
    after: int = Field(default=0, ge=0)
    """How many chunks of a stream are sent before; an answer that is not streamed has none."""
    times: int | None = Field(default=None, ge=1)
    """How many times the same request meets it; unset: always."""


class ScriptedTurn(_Part):
    """One answer of the model: thinking, then text, then tools; or an error. See `automagik.providers.scripted_messages`."""

    thinking: str = ""
    text: str = ""
    tool_use: tuple[ScriptedToolUse, ...] = ()
    stop_reason: str | None = None
    error: ScriptedError | None = None
    fault: ScriptedFault | None = None
    delay: float = Field(default=0, ge=0)
    chunk_delay: float = Field(default=0, ge=0)
    usage: dict[str, int] = {}

    @model_validator(mode="after")
    def _says_something(self) -> "ScriptedTurn":
        if not (self.thinking or self.text or self.tool_use or self.error or self.fault or self.stop_reason):
            raise ValueError("needs one of text, thinking, tool_use, error, fault, stop_reason")
        return self


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """What is answered to one request."""

    status: int
    headers: Mapping[str, str]
    """Those beside the content's type and length."""
    body: bytes
    """The whole answer as JSON: what is sent where no stream was asked for, and for every error."""
    delay: float = 0
    """Seconds before anything is sent."""
    chunk_delay: float = 0
    """Seconds between two chunks of a stream."""
    fault: ScriptedFault | None = None
    rule: str = ""
    """The rule's name."""
    turn: int = 0
    _events: tuple[tuple[str, JsonObject], ...] = field(default=(), repr=False)

    @property
    def is_streamed(self) -> bool:
        """Whether `stream` is what was asked for: never for an error."""
        return bool(self._events)

    def stream(self) -> Iterator[bytes]:
        """The answer as server-sent events, one a chunk, in the API's own order. Nothing where no stream was asked for."""
        for kind, data in self._events:
            yield b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def answer_of(turn: ScriptedTurn, conversation: Conversation, *, rule: str, attempt: int = 0) -> ScriptedAnswer:
    """`turn` as the answer to `conversation`. `attempt` counts how often the same was asked before."""
    error, fault = turn.error, turn.fault
    if error is not None and error.times is not None and attempt >= error.times:
        error = None
    if fault is not None and fault.times is not None and attempt >= fault.times:
        fault = None
    if error is not None:
        return _failed(error, turn, conversation, rule, attempt)
    message = _message(turn, conversation)
    return ScriptedAnswer(
        200,
        {"request-id": _request_id(conversation, attempt)},
        orjson.dumps(message),
        delay=turn.delay,
        chunk_delay=turn.chunk_delay,
        fault=fault,
        rule=rule,
        turn=conversation.turn,
        _events=tuple(_events(message)) if conversation.stream else (),
    )


def _failed(
    error: ScriptedError, turn: ScriptedTurn, conversation: Conversation, rule: str, attempt: int
) -> ScriptedAnswer:
    headers = {"request-id": _request_id(conversation, attempt), **error.headers}
    if error.retry_after is not None:
        headers["retry-after"] = f"{error.retry_after:g}"
    kind = error.type or _ERROR_TYPES.get(error.status, "api_error")
    body: JsonObject = {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": headers["request-id"],
    }
    return ScriptedAnswer(
        error.status, headers, orjson.dumps(body), delay=turn.delay, rule=rule, turn=conversation.turn
    )


def _message(turn: ScriptedTurn, conversation: Conversation) -> JsonObject:
    content, cut = _content(turn, conversation)
    spent = sum(len(orjson.dumps(block)) for block in content) // _CHARS_PER_TOKEN + 1
    if conversation.max_tokens is not None:
        spent = min(spent, max(conversation.max_tokens, 1))
    asked = any(isinstance(block, dict) and block.get("type") == "tool_use" for block in content)
    reason = "max_tokens" if cut else turn.stop_reason or ("tool_use" if asked else "end_turn")
    return {
        "id": f"msg_{conversation.digest[:24]}",
        "type": "message",
        "role": "assistant",
        "model": conversation.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {**_usage(conversation, spent), **turn.usage},
    }


def _content(turn: ScriptedTurn, conversation: Conversation) -> tuple[list[Json], bool]:
    """The blocks of an answer, and whether the request's `max_tokens` cut them."""
    blocks: list[Json] = []
    room = conversation.max_tokens * _CHARS_PER_TOKEN if conversation.max_tokens is not None else None
    wanted: list[JsonObject] = []
    if turn.thinking:
        wanted.append({"type": "thinking", "thinking": _filled(turn.thinking, conversation), "signature": _SIGNATURE})
    if turn.text:
        wanted.append({"type": "text", "text": _filled(turn.text, conversation)})
    for index, use in enumerate(turn.tool_use):
        name = use.id or f"toolu_{conversation.digest[24:46]}{index:02d}"
        filled = _filled(use.input, conversation)
        wanted.append({"type": "tool_use", "id": name, "name": use.name, "input": filled})
    for block in wanted:
        size = len(orjson.dumps(block))
        if room is not None and size > room:
            if block["type"] == "text":
                blocks.append({**block, "text": str(block["text"])[: max(room - len(b'{"type":"text","text":""}'), 1)]})
            return blocks, True
        blocks.append(block)
        room = room - size if room is not None else None
    return blocks, False


def _usage(conversation: Conversation, output: int) -> JsonObject:
    """Estimates: four characters a token. What an earlier request had too is read from the cache, where one is asked for."""
    total = conversation.old_tokens + conversation.new_tokens
    plain = total if not conversation.is_cached else min(_UNCACHED_TOKENS, conversation.new_tokens)
    return {
        "input_tokens": plain,
        "cache_creation_input_tokens": conversation.new_tokens - plain if conversation.is_cached else 0,
        "cache_read_input_tokens": conversation.old_tokens if conversation.is_cached else 0,
        "output_tokens": output,
        "service_tier": "standard",
    }


def _filled(value: Any, conversation: Conversation) -> Any:
    """`value` with its placeholders filled, in one pass: what they are filled with is not read again."""
    if isinstance(value, str):
        known = {
            "cwd": conversation.folder,
            "last_tool_result": conversation.last_result,
            "prompt": conversation.prompt,
            "first_prompt": conversation.first_prompt,
            "model": conversation.model,
            "turn": str(conversation.turn),
        }
        return _PLACEHOLDER.sub(lambda match: known[match[1]], value)
    if isinstance(value, list):
        return [_filled(item, conversation) for item in value]  # pyright: ignore[reportUnknownVariableType] - JSON
    if isinstance(value, dict):
        return {key: _filled(item, conversation) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType] - JSON
    return value


def _request_id(conversation: Conversation, attempt: int) -> str:
    return f"req_{conversation.digest[40:60]}{attempt:02d}"


def _events(message: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    usage = message["usage"]
    assert isinstance(usage, dict)
    begun: JsonObject = {**usage, "output_tokens": 1}
    opening: JsonObject = {**message, "content": [], "stop_reason": None, "usage": begun}
    yield "message_start", {"type": "message_start", "message": opening}
    content = message["content"]
    assert isinstance(content, list)
    for index, block in enumerate(content):
        assert isinstance(block, dict)
        start, deltas = _pieces(block)
        yield "content_block_start", {"type": "content_block_start", "index": index, "content_block": start}
        if index == 0:
            yield "ping", {"type": "ping"}
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": index}
    delta: JsonObject = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    counts: JsonObject = {key: value for key, value in usage.items() if key.endswith("_tokens")}
    yield "message_delta", {"type": "message_delta", "delta": delta, "usage": counts}
    yield "message_stop", {"type": "message_stop"}


def _pieces(block: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    """A block as it begins, and what it grows by."""
    match block["type"]:
        case "thinking":
            texts = _PIECE.findall(str(block["thinking"]))
            deltas: list[JsonObject] = [{"type": "thinking_delta", "thinking": text} for text in texts]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case "text":
            texts = _PIECE.findall(str(block["text"])) or [str(block["text"])]
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": text} for text in texts]
        case _:
            packed = orjson.dumps(block["input"]).decode()
            parts = ["", *(packed[at : at + _JSON_PIECE] for at in range(0, len(packed), _JSON_PIECE))]
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]
