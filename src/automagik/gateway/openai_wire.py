"""ChatWire and ResponsesWire: OpenAI's two APIs for conversations, which other agents and compatible servers speak."""

from collections.abc import Iterator

import orjson

from automagik.gateway.connection import Answer
from automagik.gateway.metering import ChatMeter, Meter, ResponsesMeter
from automagik.gateway.wire import (
    ELSEWHERE,
    Ask,
    Medium,
    Refusal,
    Vendor,
    as_list,
    as_object,
    count,
    flag,
    hints,
    model_of,
    shown,
)
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
_LARGEST_IMAGE_TOKENS = 20_000  # where it is asked to be seen in its own size
_TIERS = (None, "auto", "default", "flex")  # a tuple: what is looked up in it may be of any type
# Of both APIs, with what compatible servers take to steer how a model speaks. Not among them: what has it speak more often than
# is answered (`best_of`, `use_beam_search`), and what other services look at (`moderation`).
_FIELDS = frozenset(
    {
        *("frequency_penalty", "logit_bias", "logprobs", "max_tokens", "metadata", "min_p", "model"),
        *(
            "parallel_tool_calls",
            "presence_penalty",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
        ),
        *("reasoning", "reasoning_effort", "repetition_penalty", "response_format", "safety_identifier", "seed"),
        *("service_tier", "stop", "store", "stream", "stream_options", "temperature", "tool_choice", "tools", "top_k"),
        *("top_logprobs", "top_p", "user", "verbosity", "context_management"),
    }
)
_CHAT_FIELDS = _FIELDS | {
    *(
        "audio",
        "chat_template_kwargs",
        "function_call",
        "functions",
        "max_completion_tokens",
        "messages",
        "modalities",
        "n",
    ),
    *("prediction", "thinking", "web_search_options"),
}
_RESPONSES_FIELDS = _FIELDS | {
    *("background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls"),
    *("previous_response_id", "prompt", "text", "truncation"),
}
_DEAR_PARTS = ("input_audio", "input_video", "audio_url", "video_url")
_MODES = (None, "standard")  # of reasoning: another may have several models reason
_MAX_ANSWERS = 128
_SEARCHING_MODELS = ("-search", "deep-research")
"""Models that search the web at every call, and are paid for it by the call."""


class _OpenAIWire:
    """What both have in common."""

    vendor: Vendor = "openai"
    path = ""
    turns = ""
    least_output = _LEAST_OUTPUT
    fields = _FIELDS
    _limits: tuple[str, ...] = ()
    """The fields that limit the output, the usual one first."""

    def _most(self, document: JsonObject) -> int | None:
        told = [most for name in self._limits if (most := count(document, name)) is not None]
        # A server may know but one of them.
        return max(told) if told else None

    def reaches_out(self, document: JsonObject) -> str | None:
        model = document.get("model")
        if isinstance(model, str) and any(part in model.lower() for part in _SEARCHING_MODELS):
            return f"the model `{shown(model)}`"
        return next((f"`{name}`" for name in ELSEWHERE if document.get(name)), None)

    def costs_extra(self, document: JsonObject) -> str | None:
        for turn in as_list(document.get(self.turns)):
            for part in as_list(as_object(turn).get("content")):
                if (
                    as_object(part).get("type") in _DEAR_PARTS
                ):  # counted as tokens of their own, which are dearer than text
                    return f"spoken or filmed input (`{shown(as_object(part).get('type'))}`)"
        return None if document.get("service_tier") in _TIERS else "`service_tier`"

    def repeats(self, document: JsonObject) -> str | None:
        return "`context_management`" if document.get("context_management") else None

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

    def broken(self, refusal: Refusal) -> bytes:
        return b"data: %b\n\n" % self.refused(refusal).body


class ChatWire(_OpenAIWire):
    """`POST /v1/chat/completions`."""

    path = "/chat/completions"
    turns = "messages"
    fields = _CHAT_FIELDS
    _limits = ("max_completion_tokens", "max_tokens")

    def ask(self, document: JsonObject) -> Ask:
        answers = count(document, "n") or 1
        if answers > _MAX_ANSWERS:
            raise Refusal(400, f"n: at most {_MAX_ANSWERS} answers can be asked for.")
        return Ask(document, model_of(document), flag(document, "stream"), self._most(document), answers)

    def reaches_out(self, document: JsonObject) -> str | None:
        if document.get("web_search_options") is not None:
            return "`web_search_options`"
        if (outward := super().reaches_out(document)) is not None:
            return outward
        for tool in as_list(document.get("tools")):
            kind = as_object(tool).get("type", "function")
            if kind not in ("function", "custom"):
                return f"the tool `{shown(kind)}`"
        elsewhere = any(
            medium.is_elsewhere for turn in as_list(document.get(self.turns)) for medium in self.media(turn, "")
        )
        return "an image or file by its address" if elsewhere else None

    def costs_extra(self, document: JsonObject) -> str | None:
        if document.get("audio") is not None or "audio" in as_list(document.get("modalities")):
            return "spoken answers (`audio`)"
        if document.get("prediction") is not None:  # what of it was wrong is paid for as output
            return "`prediction`"
        if any(as_object(turn).get("audio") is not None for turn in as_list(document.get(self.turns))):
            return "an earlier spoken answer (`audio`)"
        return super().costs_extra(document)

    def media(self, turn: Json, model: str) -> Iterator[Medium]:
        for part in as_list(as_object(turn).get("content")):
            found = as_object(part)
            match found.get("type"):
                case "image_url":
                    yield _image(as_object(found.get("image_url")), "url", model)
                case "file":
                    file = as_object(found.get("file"))
                    yield _file(file.get("file_data"), elsewhere=file.get("file_id") is not None)
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
    fields = _RESPONSES_FIELDS
    _limits = ("max_output_tokens",)

    def ask(self, document: JsonObject) -> Ask:
        return Ask(document, model_of(document), flag(document, "stream"), self._most(document))

    def reaches_out(self, document: JsonObject) -> str | None:
        if document.get("prompt") is not None:  # what the provider keeps may name tools of its own
            return "`prompt`"
        if (outward := super().reaches_out(document)) is not None:
            return outward
        for tool in as_list(document.get("tools")):
            kind = as_object(tool).get("type")
            if kind not in ("function", "custom", "apply_patch") and not _is_local_shell(as_object(tool)):
                return f"the tool `{shown(kind)}`"
        elsewhere = any(
            medium.is_elsewhere for turn in as_list(document.get(self.turns)) for medium in self.media(turn, "")
        )
        return "an image or file by its address" if elsewhere else None

    def costs_extra(self, document: JsonObject) -> str | None:
        if document.get("background"):
            return "`background`"
        if as_object(document.get("reasoning")).get("mode") not in _MODES:
            return "`reasoning` with a `mode`"
        for name in ("previous_response_id", "conversation"):  # what the provider keeps, of any length
            if document.get(name) is not None:
                return f"`{name}`"
        for turn in as_list(document.get(self.turns)):
            item = as_object(turn)
            if item.get("type") == "item_reference" or ("id" in item and item.keys() <= {"id", "type"}):
                return "`item_reference`"
        return super().costs_extra(document)

    def media(self, turn: Json, model: str) -> Iterator[Medium]:
        found = as_object(turn)
        output = found.get("output")
        shots = [output] if isinstance(output, dict) else as_list(output)
        for part in (*as_list(found.get("content")), *shots):
            inner = as_object(part)
            match inner.get("type"):
                case "input_image" | "computer_screenshot":
                    yield _image(inner, "image_url", model)
                case "input_file":
                    elsewhere = any(inner.get(name) is not None for name in ("file_url", "file_id"))
                    yield _file(inner.get("file_data"), elsewhere=elsewhere)
                case _:
                    continue

    def broken(self, refusal: Refusal) -> bytes:
        told = {"type": "error", "code": refusal.code, "message": refusal.text, "param": None}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(told)

    def meter(self, content_type: bytes) -> Meter:
        return ResponsesMeter(streams=content_type.startswith(b"text/event-stream"))


def _image(image: JsonObject, where: str, model: str) -> Medium:
    url = image.get(where)
    text = url if isinstance(url, str) else ""
    tokens = _LARGEST_IMAGE_TOKENS if image.get("detail") == "original" else _IMAGE_TOKENS
    if model.startswith(_DEAR_IMAGE_MODELS):
        tokens = _DEAR_IMAGE_TOKENS
    elsewhere = bool(text) and not text.startswith("data:")
    return Medium(len(text), tokens, elsewhere or image.get("file_id") is not None)


def _file(data: Json, *, elsewhere: bool) -> Medium:
    return Medium(len(data) if isinstance(data, str) else 0, _FILE_TOKENS, elsewhere)


def _is_local_shell(tool: JsonObject) -> bool:
    """A shell that the client runs, and not the provider in a container of its own."""
    if tool.get("type") == "local_shell":
        return True
    return tool.get("type") == "shell" and as_object(tool.get("environment")).get("type") == "local"
