"""`/v1/chat/completions`: one turn with an agent, in a conversation that the client keeps."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from automagik.api.admission import CallerOf
from automagik.api.answers import answer
from automagik.api.media import MediaReader
from automagik.api.openai.conversation import ConversationReader
from automagik.api.openai.envelope import OpenAiRoute, envelope_of, envelopes, run_error
from automagik.api.openai.events import RunText
from automagik.api.openai.parameters import OpenAiBody, kept_parameters, refuse_unsupported
from automagik.api.platform import PlatformOf
from automagik.api.problems import problem_of
from automagik.api.schemas.common import Flag, ObjectMap
from automagik.api.sse import STREAM_CONTENT, EventResponse
from automagik.app import Platform
from automagik.runs import RunRequest, RunStream, usage_document
from automagik.store.rows import RunRow
from automagik.types import JsonObject

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAiRoute)


class StreamOptions(OpenAiBody):
    """How a stream is wanted."""

    include_usage: Flag | None = None


class ChatRequest(OpenAiBody):
    """A conversation for an agent; OpenAI's other parameters are accepted and have no effect."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    model: Annotated[str, Field(max_length=200)]
    """The agent's name."""
    messages: Annotated[list[ObjectMap], Field(min_length=1, max_length=2000)]
    stream: Flag | None = None
    stream_options: StreamOptions | None = None


@router.post(
    "/chat/completions",
    summary="Ask an agent as OpenAI's chat API",
    responses={
        200: {
            "description": "A chat completion; with `stream` its chunks as server-sent events",
            "content": {"application/json": {"schema": {"type": "object"}}, **STREAM_CONTENT},
        },
        **envelopes(409, 413, 500, 502, 504),
    },
)
async def complete_chat(body: ChatRequest, request: Request, platform: PlatformOf, caller: CallerOf) -> Response:
    """The conversation is the client's: nothing of it is kept in a session. The run is kept, as every run."""
    refuse_unsupported(body)
    asked = await _asked(body, platform)
    if body.stream:
        stream = await platform.runs.stream(asked, caller)
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        chunks = _chunks(stream, body.model, request.scope.get("automagik.request_id"), with_usage=with_usage)
        return EventResponse(chunks, gauge=platform.metrics.active_streams)
    row = await platform.runs.run(asked, caller)
    output = row.output or {}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": output.get("message"), "refusal": None, "annotations": []},
        "logprobs": None,
        "finish_reason": "stop",
    }
    head = _head(row, body.model, "chat.completion")
    return answer({**head, "choices": [choice], "usage": _usage(usage_document(row.usage))})


async def _asked(body: ChatRequest, platform: Platform) -> RunRequest:
    limit = platform.settings.max_text_chars
    reader = ConversationReader(MediaReader(platform.settings, platform.outbound), max_text_chars=limit)
    talk = await reader.read(body.messages, at=("body", "messages"))
    return RunRequest(
        agent_name=body.model,
        text=talk.text,
        media=talk.media,
        history=talk.history,
        system_prompt=talk.system,
        metadata=kept_parameters(body),
        session_origin="openai",
    )


async def _chunks(stream: RunStream, model: str, request_id: str | None, *, with_usage: bool) -> AsyncGenerator[bytes]:
    head = _head(stream.row, model, "chat.completion.chunk")
    if with_usage:
        head["usage"] = None
    try:
        yield _chunk(head, {"role": "assistant", "content": "", "refusal": None})
        said = RunText(stream)
        # All but the text is the same in every chunk, so it is rendered once.
        before, after = _chunk(head, {"content": "\x00"}).split(b'"\\u0000"')
        async for piece in said:
            yield before + orjson.dumps(piece) + after
        if said.run.get("status") == "completed":
            yield _chunk(head, {}, finish_reason="stop")
            if with_usage:
                yield b"data: %b\n\n" % orjson.dumps(
                    {**head, "choices": [], "usage": _usage(cast("JsonObject", said.run["usage"]))}
                )
        else:
            error = envelope_of(problem_of(run_error(said.run), request_id=request_id))
            yield b"data: %b\n\n" % orjson.dumps(error)
        yield b"data: [DONE]\n\n"
    finally:
        await stream.aclose()


def _chunk(head: dict[str, Any], delta: JsonObject, *, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return b"data: %b\n\n" % orjson.dumps({**head, "choices": [choice]})


def _head(row: RunRow, model: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{row.run_id}",
        "object": kind,
        "created": int(row.created_at.timestamp()),
        "model": model,
        "service_tier": None,
        "system_fingerprint": None,
    }


def _usage(usage: JsonObject) -> JsonObject:
    given, made = cast("int", usage["input_tokens"]), cast("int", usage["output_tokens"])
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": usage["cache_read_tokens"]},
    }
