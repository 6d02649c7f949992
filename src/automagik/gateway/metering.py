"""Meters: the usage that a provider reports, read beside the bytes of its answer, which pass untouched."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import orjson

from automagik.budget import OutputCount, Tokens
from automagik.types import Json, JsonObject

__all__ = ["ChatMeter", "MessagesMeter", "Meter", "ResponsesMeter"]

_MAX_LINE_BYTES = 16 * 1024 * 1024
_MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
_MOST_TOKENS = 10**8
_UNDER_WAY_TOKENS = 64  # may have been made, but not arrived, when a stream is cut


class Meter(ABC):
    """Reads an answer as it passes. `streams`: it is one of server-sent events, else a JSON document."""

    def __init__(self, *, streams: bool) -> None:
        self.reported: Tokens | None = None
        """What the provider reported so far."""
        self.complete = False
        """Whether it reported all: nothing of the answer can cost more."""
        self.output = OutputCount()
        """What came of output in events: text, thinking and tools' arguments."""
        self._streams = streams
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._document = bytearray()
        self._lost = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the answer."""
        if not self._streams:
            if not self._lost and len(self._document) + len(data) <= _MAX_DOCUMENT_BYTES:
                self._document += data
            else:
                self._document.clear()
                self._lost = True
            return
        if b"\n" not in data:  # joined only when the line is whole: a line of many pieces must not be copied with each
            self._keep(data)
            return
        lines = b"".join((*self._rest, data)).split(b"\n")
        self._rest, self._rest_bytes = [], 0
        self._keep(lines.pop())
        for line in lines:
            if line.startswith(b"data:"):
                self._line(line[5:])

    def _keep(self, data: bytes) -> None:
        """Keep the begin of a line for when its end comes."""
        if not data:
            return
        self._rest.append(data)
        self._rest_bytes += len(data)
        if self._rest_bytes > _MAX_LINE_BYTES:
            self._rest, self._rest_bytes, self._lost = [], 0, True

    def finish(self) -> None:
        """The answer came to its end."""
        if not self._streams and not self._lost:
            document = _parsed(bytes(self._document))
            self._document.clear()
            if document is not None:
                self._whole(document)

    def at_most(self, max_output: int) -> Tokens | None:
        """The most that an answer can have used which was cut here; None where that can't be known."""
        del max_output
        return self.reported if self.complete else None

    def is_beyond(self, max_output: int) -> bool:
        """Whether certainly more tokens of output came than so many, by what was reported or by the text."""
        return (self.reported is not None and self.reported.output > max_output) or self.output.exceeds(max_output)

    def output_so_far(self) -> int:
        """No more tokens of output than came: as reported, or as few as its text can be."""
        return max(self.reported.output if self.reported is not None else 0, self.output.fewest())

    def usual_output_so_far(self) -> int:
        """About how many tokens of output came: as reported, or as many as its text usually is."""
        return max(self.reported.output if self.reported is not None else 0, self.output.usual())

    def _line(self, data: bytes) -> None:
        event = _parsed(data)
        if event is not None:
            self._event(event)

    @abstractmethod
    def _event(self, event: JsonObject) -> None:
        """Take an event of a stream."""

    @abstractmethod
    def _whole(self, document: JsonObject) -> None:
        """Take the answer that is one document."""


class MessagesMeter(Meter):
    """Of Anthropic's Messages API: `message_start` has the input, `message_delta` the output so far."""

    def __init__(self, *, streams: bool) -> None:
        super().__init__(streams=streams)
        self._usage: JsonObject = {}
        self._begun = False
        self._thinks = False
        self._block_bytes = 0

    def _event(self, event: JsonObject) -> None:
        match event.get("type"):
            case "content_block_delta":
                self._delta(_object(event.get("delta")))
            case "content_block_start":
                block = _object(event.get("content_block"))
                self._begun = True
                self._thinks = self._thinks or block.get("type") in ("redacted_thinking", "thinking")
                self._block_bytes += len(orjson.dumps(block))
                for name in ("name", "text", "thinking"):
                    if isinstance(begin := block.get(name), str):
                        self.output.add(begin)
            case "message_start":
                self._take(_object(_object(event.get("message")).get("usage")))
            case "message_delta":
                self._take(_object(event.get("usage")))
                ends = _object(event.get("delta")).get("stop_reason") is not None
                self.complete = self.complete or (ends and _is_told(self.reported))
            case _:
                return

    def _delta(self, delta: JsonObject) -> None:
        for name in ("text", "partial_json", "thinking"):
            piece = delta.get(name)
            if isinstance(piece, str):
                self._begun, self._thinks = True, self._thinks or name == "thinking"
                self.output.add(piece)

    def _whole(self, document: JsonObject) -> None:
        if document.get("type") == "message" and isinstance(document.get("usage"), dict):
            self._take(_object(document["usage"]))
            self.complete = _is_told(self.reported)

    def _take(self, usage: JsonObject) -> None:
        """Later figures are sums so far, in the place of earlier ones; what is not said again, or said to be less, stands."""
        for name, value in usage.items():
            known = self._usage.get(name)
            if value is None or (isinstance(value, int) and isinstance(known, int) and value < known):
                continue
            self._usage[name] = value
        self.reported = _messages_usage(self._usage)

    def at_most(self, max_output: int) -> Tokens | None:
        so_far = self.reported
        if so_far is None or not _is_told(so_far):
            return None
        if self.complete:
            return so_far
        # Every token has a byte at least. Of thinking nothing can be said: what is shown of it is a summary, and what is paid
        # for is all of it; and before the first block has begun, it may be what is under way.
        is_open = self._thinks or not self._begun
        seen = max_output if is_open else self.output.bytes + self._block_bytes + _UNDER_WAY_TOKENS
        output = max(so_far.output, min(seen, max_output))
        return Tokens(so_far.input, output, so_far.cache_read, so_far.cache_write, so_far.cache_write_1h)


class ChatMeter(Meter):
    """Of OpenAI's Chat Completions: the last chunk has the usage, where the request asked for it."""

    def _event(self, event: JsonObject) -> None:
        for choice in _list(event.get("choices")):
            self._count(_object(_object(choice).get("delta")))
        self._take(event.get("usage"))
        # Some servers tell with every chunk what was used so far: only the one without a piece of an answer tells all.
        self.complete = self.complete or (event.get("choices") == [] and _is_told(self.reported))

    def _count(self, delta: JsonObject) -> None:
        # Some servers say their reasoning under both names.
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        for piece in (delta.get("content"), thought, delta.get("refusal")):
            if isinstance(piece, str):
                self.output.add(piece)
        for call in _list(delta.get("tool_calls")):
            function = _object(_object(call).get("function"))
            for piece in (function.get("name"), function.get("arguments")):
                if isinstance(piece, str):
                    self.output.add(piece)

    def _whole(self, document: JsonObject) -> None:
        self._take(document.get("usage"))

    def finish(self) -> None:
        super().finish()
        self.complete = self.complete or _is_told(self.reported)

    def _take(self, value: Json) -> None:
        if isinstance(value, dict):
            details = _object(value.get("prompt_tokens_details"))
            self.reported = _openai_usage(value, "prompt_tokens", "completion_tokens", details)


class ResponsesMeter(Meter):
    """Of OpenAI's Responses: the document, or the event that ends it, has the usage."""

    def _event(self, event: JsonObject) -> None:
        piece = event.get("delta")
        if isinstance(piece, str):
            if event.get("type") != "response.audio.delta":  # base64
                self.output.add(piece)
        elif event.get("type") in ("response.completed", "response.incomplete", "response.failed"):
            self._whole(_object(event.get("response")))

    def _whole(self, document: JsonObject) -> None:
        usage = document.get("usage")
        if isinstance(usage, dict):
            details = _object(usage.get("input_tokens_details"))
            self.reported = _openai_usage(usage, "input_tokens", "output_tokens", details)
            self.complete = _is_told(self.reported)


def _messages_usage(usage: JsonObject) -> Tokens:
    rounds = usage.get("iterations")
    if isinstance(rounds, list) and rounds:  # where the server compacts: the figures beside it leave those rounds out
        each = [_messages_usage({**_object(one), "iterations": None}) for one in rounds]
        return Tokens(
            sum(one.input for one in each),
            max(sum(one.output for one in each), _number(usage, "output_tokens")),
            sum(one.cache_read for one in each),
            sum(one.cache_write for one in each),
            sum(one.cache_write_1h for one in each),
        )
    written = _object(usage.get("cache_creation"))
    for_1h = _number(written, "ephemeral_1h_input_tokens")
    told = _number(usage, "cache_creation_input_tokens")
    return Tokens(
        _number(usage, "input_tokens"),
        _number(usage, "output_tokens"),
        _number(usage, "cache_read_input_tokens"),
        max(told, for_1h + _number(written, "ephemeral_5m_input_tokens")),
        for_1h,
    )


def _openai_usage(usage: JsonObject, input_name: str, output_name: str, details: JsonObject) -> Tokens:
    whole, cached = _number(usage, input_name), _number(details, "cached_tokens")
    cached = min(cached, whole)
    written = min(_number(details, "cache_write_tokens"), whole - cached)
    return Tokens(whole - cached - written, _number(usage, output_name), cached, written)


def _is_told(tokens: Tokens | None) -> bool:
    """Whether these can be all that an answer used: there is no request without input."""
    return tokens is not None and tokens.input + tokens.cache_read + tokens.cache_write > 0


def _parsed(data: bytes) -> JsonObject | None:
    try:
        value = cast("Json", orjson.loads(data))
    except orjson.JSONDecodeError:  # `[DONE]`, or a server's own idea
        return None
    return value if isinstance(value, dict) else None


def _object(value: Json) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else ()


def _number(usage: JsonObject, name: str) -> int:
    value = usage.get(name)
    return min(value, _MOST_TOKENS) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
