"""`/v1/responses`: one turn with an agent, in a conversation that the platform keeps (`store`), or that the client keeps."""

import uuid
from collections.abc import AsyncGenerator
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from automagik.api.admission import CallerOf
from automagik.api.answers import answer
from automagik.api.media import MediaReader
from automagik.api.openai.conversation import Conversation, ConversationReader
from automagik.api.openai.envelope import OpenAiRoute, envelopes, run_error
from automagik.api.openai.events import RunText
from automagik.api.openai.parameters import OpenAiBody, kept_parameters, refuse_unsupported
from automagik.api.platform import PlatformOf
from automagik.api.schemas.common import Flag, ObjectMap
from automagik.api.sse import STREAM_CONTENT, EventResponse
from automagik.app import Platform
from automagik.errors import InvalidInput, NotFound
from automagik.runs import RunRequest, RunStream, usage_document
from automagik.store.rows import RunRow
from automagik.types import Caller, Json, JsonObject, RunStatus

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAiRoute)


class ResponsesRequest(OpenAiBody):
    """A turn with an agent; OpenAI's other parameters are accepted and have no effect."""

    model: Annotated[str, Field(max_length=200)]
    """The agent's name."""
    input: str | Annotated[list[ObjectMap], Field(min_length=1, max_length=2000)]
    instructions: str | None = None
    """A prompt instead of the agent's, where its config allows that."""
    previous_response_id: Annotated[str, Field(max_length=200)] | None = None
    """The response whose conversation goes on."""
    store: Flag | None = None
    """False: nothing is kept in a session."""
    stream: Flag | None = None
    metadata: ObjectMap | None = None


_DESCRIBED: dict[str, Any] = {
    "description": "A response; with `stream` its events as server-sent events",
    "content": {"application/json": {"schema": {"type": "object"}}, **STREAM_CONTENT},
}


@router.post(
    "/responses",
    summary="Ask an agent as OpenAI's responses API",
    responses={200: _DESCRIBED, **envelopes(409, 413, 500, 502, 504)},
)
async def create_response(body: ResponsesRequest, request: Request, platform: PlatformOf, caller: CallerOf) -> Response:
    """The turn is kept in a session, which `previous_response_id` continues; with `store: false` nothing is kept."""
    refuse_unsupported(body)
    asked = await _asked(body, platform, caller)
    if body.stream:
        stream = await platform.runs.stream(asked, caller)
        return EventResponse(_events(stream, body), gauge=platform.metrics.active_streams)
    row = await platform.runs.run(asked, caller)
    return answer(_completed(row, _echo(body)))


@router.get(
    "/responses/{response_id}",
    summary="Show a response",
    responses={
        200: {"description": "The response", "content": {"application/json": {"schema": {"type": "object"}}}},
        **envelopes(),
    },
)
async def get_response(response_id: str, platform: PlatformOf, caller: CallerOf) -> Response:
    """A response that this key asked for; with `runs:read` any."""
    row = await _earlier(response_id, platform, caller)
    stored = row.input or {}
    echo = {"model": row.name, "instructions": stored.get("system_prompt"), "metadata": {}, "store": True}
    status = RunStatus(row.status)
    if status is RunStatus.COMPLETED:
        return answer(_completed(row, echo))
    word = {RunStatus.FAILED: "failed", RunStatus.CANCELLED: "cancelled", RunStatus.QUEUED: "queued"}
    document = _response(row, echo, word.get(status, "in_progress"))
    if row.error is not None:
        document["error"] = {"code": "server_error", "message": row.error.get("detail")}
    return answer(document)


async def _asked(body: ResponsesRequest, platform: Platform, caller: Caller) -> RunRequest:
    talk = await _conversation(body, platform)
    session: tuple[uuid.UUID, uuid.UUID | None] | None = None
    if body.previous_response_id is not None:
        session = await _session_before(body, body.previous_response_id, talk, platform, caller)
    # A conversation that the client tells in full is the client's to keep; so is one that it wants not to be stored.
    keeps = body.store is not False and not talk.history
    return RunRequest(
        agent_name=body.model,
        text=talk.text,
        media=talk.media,
        session_id=session[0] if session is not None else None,
        user_id=session[1] if session is not None else None,
        system_prompt=body.instructions if body.instructions is not None else talk.system,
        metadata=kept_parameters(body),
        session_origin="openai",
        history=None if keeps else talk.history,
    )


async def _conversation(body: ResponsesRequest, platform: Platform) -> Conversation:
    limit = platform.settings.max_text_chars
    reader = ConversationReader(MediaReader(platform.settings, platform.outbound), max_text_chars=limit)
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    return await reader.read(cast("list[JsonObject]", items), at=("body", "input"))


async def _session_before(
    body: ResponsesRequest, previous: str, talk: Conversation, platform: Platform, caller: Caller
) -> tuple[uuid.UUID, uuid.UUID | None]:
    """The session of an earlier response, and its user.

    Raises: NotFound; InvalidInput where there is none, or the request does not go on with it.
    """
    before = await _earlier(previous, platform, caller)
    if before.session_id is None:
        raise InvalidInput(
            f"The response '{previous}' was not stored.",
            field=("body", "previous_response_id"),
            hint="Send the whole conversation as `input`.",
        )
    if body.store is False or talk.history:
        raise InvalidInput(
            "A conversation that is kept here goes on here, by one message.",
            field=("body", "store" if body.store is False else "input"),
            hint="Leave `store` out and send the new message only; or leave `previous_response_id` out.",
        )
    return before.session_id, before.user_id


async def _earlier(response_id: str, platform: Platform, caller: Caller) -> RunRow:
    """The run of a response, where the caller may see it. Raises NotFound."""
    missing = NotFound("response", response_id, hint="A response is seen by the key that asked for it.")
    if not response_id.startswith("resp_"):
        raise missing
    try:
        row = await platform.runs.get(f"run_{response_id.removeprefix('resp_')}", caller)
    except NotFound:
        raise missing from None
    if row.key_id != caller.key_id and not caller.allows("runs:read"):
        raise missing
    return row


async def _events(stream: RunStream, body: ResponsesRequest) -> AsyncGenerator[bytes]:
    echo = _echo(body)
    begun = _response(stream.row, echo, "in_progress")
    sender = _Sender()
    item_id = f"msg_{stream.row.run_id.removeprefix('run_')}"
    place: dict[str, Any] = {"item_id": item_id, "output_index": 0, "content_index": 0}
    item = _message(item_id, "in_progress", [])
    try:
        yield sender.event("response.created", response=begun) + sender.event("response.in_progress", response=begun)
        yield sender.event("response.output_item.added", output_index=0, item=item) + sender.event(
            "response.content_part.added", **place, part=_part("")
        )
        said = RunText(stream)
        async for piece in said:
            yield sender.event("response.output_text.delta", **place, delta=piece, logprobs=[])
        if said.run.get("status") != "completed":
            failed = run_error(said.run)
            error = {"code": "server_error", "message": failed.detail}
            yield sender.event("response.failed", response={**begun, "status": "failed", "error": error})
            return
        text = "".join(said.text)
        done = _message(item_id, "completed", [_part(text)])
        yield b"".join(
            [
                sender.event("response.output_text.done", **place, text=text, logprobs=[]),
                sender.event("response.content_part.done", **place, part=_part(text)),
                sender.event("response.output_item.done", output_index=0, item=done),
                sender.event(
                    "response.completed",
                    response={
                        **begun,
                        "status": "completed",
                        "output": [done],
                        "usage": _usage(cast("JsonObject", said.run["usage"])),
                    },
                ),
            ]
        )
    finally:
        await stream.aclose()


class _Sender:
    """Numbers the events of one stream."""

    def __init__(self) -> None:
        self._number = 0

    def event(self, kind: str, **data: object) -> bytes:
        document = {"type": kind, "sequence_number": self._number, **data}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(document))


def _completed(row: RunRow, echo: JsonObject) -> JsonObject:
    output = row.output or {}
    text = cast("str", output.get("message") or "")
    message = _message(f"msg_{row.run_id.removeprefix('run_')}", "completed", [_part(text)])
    return {**_response(row, echo, "completed"), "output": [message], "usage": _usage(usage_document(row.usage))}


def _response(row: RunRow, echo: JsonObject, status: str) -> JsonObject:
    return {
        "id": f"resp_{row.run_id.removeprefix('run_')}",
        "object": "response",
        "created_at": int(row.created_at.timestamp()),
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "max_output_tokens": None,
        "output": [],
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "previous_response_id": None,
        **echo,
    }


def _echo(body: ResponsesRequest) -> JsonObject:
    """What of the request stands in its response."""
    return {
        "model": body.model,
        "instructions": body.instructions,
        "metadata": cast("JsonObject", body.metadata or {}),
        "previous_response_id": body.previous_response_id,
        "store": body.store is not False,
    }


def _message(item_id: str, status: str, content: list[JsonObject]) -> JsonObject:
    parts: list[Json] = [*content]
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": parts}


def _part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: JsonObject) -> JsonObject:
    given, made = cast("int", usage["input_tokens"]), cast("int", usage["output_tokens"])
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": usage["cache_read_tokens"]},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + made,
    }
