"""MessagesWire: Anthropic's Messages API, which the Claude CLI speaks."""

from collections.abc import Iterator

import orjson

from automagik.gateway.connection import Answer
from automagik.gateway.metering import MessagesMeter, Meter
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

__all__ = ["MessagesWire"]

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
# Tools that the client carries out, or that only look through the request itself. Every other kind (web search, web fetch,
# code execution, remote MCP, and whatever comes next) is carried out by the provider, out of the sandbox's reach.
_SEARCHES_TOOLS = "tool_search_tool_"
_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_", _SEARCHES_TOOLS)
_IMAGE_TOKENS = 5_000
# What a PDF costs depends on its pages, of which a few bytes can hold hundreds: it may fill the largest window.
_DOCUMENT_TOKENS = 1_000_000
_TIERS = (None, "auto", "standard_only")  # a tuple: what is looked up in it may be of any type
# Not among them: what has another conversation read than the one in the request (`thread`), or has it summed up
# (`compaction`), and who pays (`billing_policy`, `fallback_credit_token`).
_FIELDS = frozenset(
    {
        *("betas", "cache_control", "context_management", "diagnostics", "inference_geo", "max_tokens", "messages"),
        *("metadata", "model", "output_config", "output_format", "service_tier", "speed", "stop_sequences", "stream"),
        *("system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p", "user_profile_id"),
        *("workspace_id", "container", "mcp_servers"),
    }
)
_LEAST_OUTPUT = 1_024
_LEAST_THINKING = 1_024
"""The API takes no smaller budget for thinking."""


class MessagesWire:
    """`POST /v1/messages`."""

    vendor: Vendor = "anthropic"
    path = "/v1/messages"
    turns = "messages"
    least_output = _LEAST_OUTPUT
    fields = _FIELDS

    def ask(self, document: JsonObject) -> Ask:
        most = count(document, "max_tokens")
        if most is None:
            raise Refusal(400, "max_tokens: a whole number of at least 1 is needed.")
        return Ask(document, model_of(document), flag(document, "stream"), most)

    def reaches_out(self, document: JsonObject) -> str | None:
        for name in ("mcp_servers", "container", *ELSEWHERE):
            if document.get(name):
                return f"`{name}`"
        for tool in as_list(document.get("tools")):
            kind = as_object(tool).get("type", "custom")
            if not isinstance(kind, str) or not kind.startswith(_CLIENT_TOOLS):
                return f"the tool `{shown(kind)}`"
        elsewhere = any(
            medium.is_elsewhere for turn in as_list(document.get(self.turns)) for medium in self.media(turn, "")
        )
        return "an image or document by its address" if elsewhere else None

    def costs_extra(self, document: JsonObject) -> str | None:
        if document.get("speed") not in (None, "standard"):
            return "`speed`"
        if document.get("service_tier") not in _TIERS:
            return "`service_tier`"
        return "`inference_geo`" if document.get("inference_geo") not in (None, "global") else None

    def repeats(self, document: JsonObject) -> str | None:
        for edit in as_list(as_object(document.get("context_management")).get("edits")):
            kind = as_object(edit).get("type")
            if not isinstance(kind, str) or not kind.startswith("clear_"):
                return f"`context_management` with `{shown(kind)}`"
        for tool in as_list(document.get("tools")):
            kind = as_object(tool).get("type")
            if isinstance(kind, str) and kind.startswith(_SEARCHES_TOOLS):
                return f"the tool `{shown(kind)}`"
        return None

    def media(self, turn: Json, model: str) -> Iterator[Medium]:
        del model
        for block in as_list(as_object(turn).get("content")):
            found = as_object(block)
            if found.get("type") == "tool_result":
                for inner in as_list(found.get("content")):
                    yield from _medium(as_object(inner))
            else:
                yield from _medium(found)

    def least(self, ask: Ask) -> int:
        assert ask.max_output is not None
        thinks = "budget_tokens" in as_object(ask.document.get("thinking"))
        return min(ask.max_output, _LEAST_OUTPUT + (_LEAST_THINKING if thinks else 0))

    def with_max_output(self, ask: Ask, tokens: int) -> JsonObject:
        changed: JsonObject = {**ask.document, "max_tokens": tokens}
        thinking = as_object(ask.document.get("thinking"))
        budget = thinking.get("budget_tokens")
        if isinstance(budget, int) and budget >= tokens:  # the API takes none that leaves nothing for the answer
            changed["thinking"] = {**thinking, "budget_tokens": max(_LEAST_THINKING, tokens - _LEAST_OUTPUT)}
        return changed

    def prepared(self, ask: Ask) -> JsonObject | None:
        del ask
        return None

    def meter(self, content_type: bytes) -> Meter:
        return MessagesMeter(streams=content_type.startswith(b"text/event-stream"))

    def refused(self, refusal: Refusal) -> Answer:
        kind = _KINDS.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": refusal.text}}
        return Answer(refusal.status, orjson.dumps(body), hints(refusal))

    def broken(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: %b\n\n" % self.refused(refusal).body


def _medium(block: JsonObject) -> Iterator[Medium]:
    kind = block.get("type")
    if kind not in ("image", "document"):
        return
    source = as_object(block.get("source"))
    data = source.get("data")
    size = len(data) if isinstance(data, str) else 0
    form = source.get("type")
    elsewhere = form not in ("base64", "text", "content")
    if kind == "image":
        yield Medium(size, _IMAGE_TOKENS, elsewhere)
    elif form == "content":  # blocks in it, images too
        for inner in as_list(source.get("content")):
            yield from _medium(as_object(inner))
    elif form != "text":
        yield Medium(size, _DOCUMENT_TOKENS, elsewhere)
