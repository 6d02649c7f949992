"""ChatWire and ResponsesWire: OpenAI's two APIs for conversations, which other agents and compatible servers speak."""

from collections.abc import Iterator

import orjson

from automagik.gateway.connection import Answer
from automagik.gateway.metering import ChatMeter, Meter, ResponsesMeter
from automagik.gateway.wire import Ask, Medium, Refusal, Vendor, as_list, as_object, count, flag, hints, model_of, shown
from automagik.types import Json, JsonObject

__all__ = ["ChatWire", "ResponsesWire"]

_KINDS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
_IMAGE_TOKENS = 5_000
# Of these an image counts a multiple, so that it costs what it costs elsewhere.
_DEAR_IMAGE_MODELS = "gpt-4o-mini"
_DEAR_IMAGE_TOKENS = 50_000
_FILE_TOKENS = 500_000
_LEAST_OUTPUT = 1_024
_DEAR_TIERS = frozenset({"priority", "fast"})


class _OpenAIWire:
    """What both have in common."""

    vendor: Vendor = "openai"
    path = ""
    turns = ""
    least_output = _LEAST_OUTPUT
    _limits: tuple[str, ...] = ()
    """The fields that limit the output, the usual one first."""

    def _most(self, document: JsonObject) -> int | None:
        told = [most for name in self._limits if (most := count(document, name)) is not None]
        return min(told) if told else None

    def costs_extra(self, document: JsonObject) -> str | None:
        return "`service_tier`" if document.get("service_tier") in _DEAR_TIERS else None

    def least(self, ask: Ask) -> int:
        return min(ask.max_output or _LEAST_OUTPUT, _LEAST_OUTPUT)

    def with_max_output(self, ask: Ask, tokens: int) -> JsonObject:
        document = self.prepared(ask) or ask.document
        told = [name for name in self._limits if document.get(name) is not None] or [self._limits[0]]
        return {**document, **dict.fromkeys(told, tokens)}

    def prepared(self, ask: Ask) -> JsonObject | None:
        del ask
        return None

    def refused(self, refusal: Refusal) -> Answer:
        kind, code = _KINDS.get(
            refusal.status, ("server_error" if refusal.status >= 500 else "invalid_request_error", None)
        )
        body = {"error": {"message": refusal.text, "type": kind, "param": None, "code": refusal.code or code}}
        return Answer(refusal.status, orjson.dumps(body), hints(refusal))


class ChatWire(_OpenAIWire):
    """`POST /v1/chat/completions`."""

    path = "/chat/completions"
    turns = "messages"
    _limits = ("max_completion_tokens", "max_tokens")

    def ask(self, document: JsonObject) -> Ask:
        answers = count(document, "n") or 1
        return Ask(document, model_of(document), flag(document, "stream"), self._most(document), answers)

    def reaches_out(self, document: JsonObject) -> str | None:
        if document.get("web_search_options") is not None:
            return "`web_search_options`"
        for tool in as_list(document.get("tools")):
            kind = as_object(tool).get("type", "function")
            if kind not in {"function", "custom"}:
                return f"the tool `{shown(kind)}`"
        elsewhere = any(
            medium.is_elsewhere for turn in as_list(document.get(self.turns)) for medium in self.media(turn, "")
        )
        return "an image or file by its address" if elsewhere else None

    def costs_extra(self, document: JsonObject) -> str | None:
        if document.get("audio") is not None or "audio" in as_list(document.get("modalities")):
            return "spoken answers (`audio`)"
        return super().costs_extra(document)

    def media(self, turn: Json, model: str) -> Iterator[Medium]:
        for part in as_list(as_object(turn).get("content")):
            found = as_object(part)
            match found.get("type"):
                case "image_url":
                    yield _image(as_object(found.get("image_url")).get("url"), model)
                case "file":
                    file = as_object(found.get("file"))
                    yield _file(file.get("file_data"), elsewhere=False)
                case _:
                    continue

    def prepared(self, ask: Ask) -> JsonObject | None:
        options = as_object(ask.document.get("stream_options"))
        if not ask.streams or options.get("include_usage") is True:
            return None
        return {**ask.document, "stream_options": {**options, "include_usage": True}}

    def meter(self, content_type: bytes) -> Meter:
        return ChatMeter(streams=content_type.startswith(b"text/event-stream"))


class ResponsesWire(_OpenAIWire):
    """`POST /v1/responses`."""

    path = "/responses"
    turns = "input"
    _limits = ("max_output_tokens",)

    def ask(self, document: JsonObject) -> Ask:
        return Ask(document, model_of(document), flag(document, "stream"), self._most(document))

    def reaches_out(self, document: JsonObject) -> str | None:
        for tool in as_list(document.get("tools")):
            kind = as_object(tool).get("type")
            if kind not in {"function", "custom", "apply_patch"} and not _is_local_shell(as_object(tool)):
                return f"the tool `{shown(kind)}`"
        elsewhere = any(
            medium.is_elsewhere for turn in as_list(document.get(self.turns)) for medium in self.media(turn, "")
        )
        return "an image or file by its address" if elsewhere else None

    def costs_extra(self, document: JsonObject) -> str | None:
        if document.get("background"):
            return "`background`"
        for name in ("previous_response_id", "conversation", "prompt"):  # what the provider keeps, of any length
            if document.get(name) is not None:
                return f"`{name}`"
        return super().costs_extra(document)

    def media(self, turn: Json, model: str) -> Iterator[Medium]:
        found = as_object(turn)
        for part in (*as_list(found.get("content")), *as_list(found.get("output"))):
            inner = as_object(part)
            match inner.get("type"):
                case "input_image":
                    yield _image(inner.get("image_url"), model)
                case "input_file":
                    yield _file(inner.get("file_data"), elsewhere=inner.get("file_url") is not None)
                case _:
                    continue

    def meter(self, content_type: bytes) -> Meter:
        return ResponsesMeter(streams=content_type.startswith(b"text/event-stream"))


def _image(url: Json, model: str) -> Medium:
    text = url if isinstance(url, str) else ""
    tokens = _DEAR_IMAGE_TOKENS if model.startswith(_DEAR_IMAGE_MODELS) else _IMAGE_TOKENS
    return Medium(len(text), tokens, is_elsewhere=bool(text) and not text.startswith("data:"))


def _file(data: Json, *, elsewhere: bool) -> Medium:
    return Medium(len(data) if isinstance(data, str) else 0, _FILE_TOKENS, elsewhere)


def _is_local_shell(tool: JsonObject) -> bool:
    """A shell that the client runs, and not the provider in a container of its own."""
    if tool.get("type") == "local_shell":
        return True
    return tool.get("type") == "shell" and as_object(tool.get("environment")).get("type") == "local"
