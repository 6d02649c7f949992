"""Runs: ask an agent (at once, as a stream, in the background), and look at what was asked."""

import uuid
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import ValidationError

from automagik.api.admission import caller_of, require
from automagik.api.answers import answer, page_of
from automagik.api.bodies import read_json
from automagik.api.media import MediaReader
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf, platform_of
from automagik.api.problems import invalid_fields, problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.runs import (
    AgentRunRequest,
    EventList,
    RunAnswer,
    RunResource,
    RunSummary,
)
from automagik.api.sse import EVENT_STREAM, STREAM_CONTENT, EventResponse, event_document, run_chunks
from automagik.api.work import workflow_request
from automagik.app import Platform
from automagik.errors import InvalidInput, MissingScope
from automagik.memory import DEFAULT_STATUS_KEY, check_text
from automagik.runs import RunRequest, run_document, usage_document
from automagik.runs.request import WORKFLOW_AGENT
from automagik.store.rows import RunRow
from automagik.types import Caller, Json, JsonObject, RunOutcome, RunStatus

__all__ = ["Key", "router", "run_request"]

router = APIRouter(prefix="/api/v1", tags=["runs"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("runs:read"))]
Writer = Annotated[Caller, Depends(require("runs:write"))]

_WORKFLOW_SCOPE = f"agents:{WORKFLOW_AGENT}:run"
_KEPT = ("message_type", "channel_payload", "agent_id", "parameters", "messages", "user")
_ASK: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AgentRunRequest"}}},
    }
}
_ASK_PROBLEMS = problems(404, 409, 413, 500, 502, 504)
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", description="A word of yours: the same one with the same request gives the same run"
    ),
]
_WORK: dict[int | str, dict[str, Any]] = {
    202: {"model": RunResource, "description": "Of the agent `claude_code`: the run, accepted and stored"}
}
_STREAM: dict[str, Any] = {
    "description": "The run's events as they come; the last is `run_finished` with the whole run",
    "content": STREAM_CONTENT,
}


@router.post(
    "/agent/{name}/run",
    summary="Ask an agent and wait for its answer",
    openapi_extra=_ASK,
    responses={200: {"model": RunAnswer, "description": "The answer"}, **_WORK, **_ASK_PROBLEMS},
)
async def run_agent(name: str, request: Request, idempotency_key: Key = None) -> Response:
    """A run that fails is a Problem that carries its `run_id`, never a 200. A caller that leaves ends nothing."""
    if name == WORKFLOW_AGENT:
        return await _submit_work(request, idempotency_key)
    platform = platform_of(request)
    asked = await _asked(name, request, platform)
    row = await platform.runs.run(asked, caller_of(request), idempotency_key=idempotency_key)
    return answer(_answer_document(row))


@router.post(
    "/agent/{name}/run/stream",
    summary="Ask an agent and get its answer as it comes",
    openapi_extra=_ASK,
    status_code=200,
    responses={200: _STREAM, **_WORK, **_ASK_PROBLEMS},
    response_class=EventResponse,
)
async def stream_agent(name: str, request: Request, idempotency_key: Key = None) -> Response:
    """Server-sent events: `run_started`, `text_delta`, `tool_call`, `tool_result`, ..., `run_finished`."""
    if name == WORKFLOW_AGENT:
        return await _submit_work(request, idempotency_key)
    platform = platform_of(request)
    asked = await _asked(name, request, platform)
    stream = await platform.runs.stream(asked, caller_of(request), idempotency_key=idempotency_key)
    return EventResponse(run_chunks(stream), gauge=platform.metrics.active_streams)


@router.post(
    "/agent/{name}/run/async",
    summary="Give an agent something to do in the background",
    openapi_extra=_ASK,
    status_code=202,
    responses={202: {"model": RunResource, "description": "The run, accepted and stored"}, **_ASK_PROBLEMS},
)
async def submit_agent(name: str, request: Request, idempotency_key: Key = None) -> Response:
    """The run as soon as it is stored; follow it at its `Location`."""
    if name == WORKFLOW_AGENT:
        return await _submit_work(request, idempotency_key)
    platform = platform_of(request)
    asked = await _asked(name, request, platform)
    row = await platform.runs.submit(asked, caller_of(request), idempotency_key=idempotency_key)
    return answer(run_document(row), 202, headers={"Location": f"/api/v1/runs/{row.run_id}"})


@router.get(
    "/runs",
    summary="List runs",
    responses={200: {"model": PageOf[RunSummary], "description": "Newest first"}, **problems(404)},
)
async def list_runs(
    platform: PlatformOf,
    caller: Reader,
    status: RunStatus | None = None,
    outcome: RunOutcome | None = None,
    kind: Annotated[str | None, Query(max_length=32)] = None,
    name: Annotated[str | None, Query(max_length=128)] = None,
    session_id: uuid.UUID | None = None,
    user_id: uuid.UUID | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The runs that the key may see, without `input` and `output`."""
    page = await platform.runs.list(
        caller,
        status=status,
        outcome=outcome,
        kind=kind,
        name=name,
        session_id=session_id,
        user_id=user_id,
        limit=limit,
        cursor=cursor,
    )
    return page_of(page, lambda row: run_document(row, whole=False))


@router.get(
    "/runs/{run_id}",
    summary="Show a run",
    responses={200: {"model": RunResource, "description": "The run"}, **problems(404)},
)
async def get_run(run_id: str, platform: PlatformOf, caller: Reader) -> Response:
    """The run, whole."""
    return answer(run_document(await platform.runs.get(run_id, caller)))


@router.get(
    "/runs/{run_id}/events",
    summary="What happened in a run",
    responses={
        200: {
            "description": "Stored events; with `Accept: text/event-stream` a stream that goes on until the run ends",
            "model": EventList,
            "content": STREAM_CONTENT,
        },
        **problems(404),
    },
)
async def get_events(
    run_id: str,
    platform: PlatformOf,
    caller: Reader,
    after: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Events after `Last-Event-ID` or `after`: as a list, or as server-sent events that resume where you left off."""
    seen = _last_seen(last_event_id) if last_event_id is not None else after or 0
    if EVENT_STREAM in (accept or ""):
        stream = await platform.runs.watch(run_id, caller, after=seen)
        return EventResponse(run_chunks(stream), gauge=platform.metrics.active_streams)
    events = await platform.runs.events(run_id, caller, after=seen)
    return answer({"data": [event_document(event) for event in events], "next_cursor": None})


@router.post(
    "/runs/{run_id}/cancel",
    summary="Stop a run",
    responses={200: {"model": RunResource, "description": "The run, as it ended"}, **problems(404)},
)
async def cancel_run(run_id: str, platform: PlatformOf, caller: Writer) -> Response:
    """Stops a queued or running run; one that has ended is answered as it ended. A workflow whose host is away ends ten seconds after
    that was heard of last, without what it had made since it was taken out last; the host ends what is at work when it is back."""
    return answer(run_document(await platform.runs.cancel(run_id, caller)))


@router.post(
    "/runs/{run_id}/requeue",
    summary="Do a run again",
    status_code=202,
    responses={202: {"model": RunResource, "description": "The new run, accepted and stored"}, **problems(404, 409)},
)
async def requeue_run(run_id: str, platform: PlatformOf, caller: Writer, idempotency_key: Key = None) -> Response:
    """A new background run that asks what a run that has ended asked. Its `requeue_of` is the old one, which stays as it is."""
    row = await platform.runs.requeue(run_id, caller, idempotency_key=idempotency_key)
    return answer(run_document(row), 202, headers={"Location": f"/api/v1/runs/{row.run_id}"})


async def _submit_work(request: Request, idempotency_key: str | None) -> Response:
    """Runs of workflows take long: whoever asks for one by its agent is answered as by POST /workflows/NAME/run."""
    platform, caller = platform_of(request), caller_of(request)
    if not caller.allows(_WORKFLOW_SCOPE):
        raise MissingScope(_WORKFLOW_SCOPE)
    asked = workflow_request(None, await read_json(request), platform)
    row = await platform.runs.submit(asked, caller, idempotency_key=idempotency_key)
    return answer(run_document(row), 202, headers={"Location": f"/api/v1/runs/{row.run_id}"})


async def _asked(name: str, request: Request, platform: Platform) -> RunRequest:
    """The question in the request's body, its texts and media checked."""
    body = await read_json(request)
    try:
        asked = AgentRunRequest.model_validate(body)
    except ValidationError as wrong:
        raise invalid_fields(wrong) from None
    return await run_request(name, asked, platform)


async def run_request(name: str, asked: AgentRunRequest, platform: Platform) -> RunRequest:
    """The question to the agent `name`, its texts and media checked; media given by URL are fetched."""
    limit = platform.settings.max_text_chars
    for field in ("message_content", "system_prompt"):
        text = cast("str | None", getattr(asked, field))
        if text is not None and len(text) > limit:
            check_text(text, field=("body", field), max_chars=limit)
    if not asked.message_content and not asked.media_contents:
        raise InvalidInput("The message is empty.", field=("body", "message_content"), hint="Say something.")
    media = await _media(asked, platform) if asked.media_contents else ()
    return RunRequest(
        agent_name=name,
        text=asked.message_content,
        media=media,
        session_id=asked.session_id,
        session_name=asked.session_name,
        user_id=asked.user_id,
        message_limit=asked.message_limit,
        context=asked.context or {},
        system_prompt=asked.system_prompt,
        model=asked.model,
        prompt_status_key=asked.prompt_status_key or DEFAULT_STATUS_KEY,
        prompt_variables=asked.prompt_variables or {},
        labels=asked.labels or {},
        timeout_seconds=asked.timeout_seconds,
        priority=asked.priority or 0,
        queue_timeout_seconds=asked.queue_timeout_seconds,
        metadata=_metadata(asked),
        session_origin=asked.session_origin,
    )


async def _media(asked: AgentRunRequest, platform: Platform) -> tuple[Any, ...]:
    """Media by base64 and by URL; all are there before the run is accepted."""
    reader = MediaReader(platform.settings, platform.outbound)
    found: list[Any] = []
    size = 0
    for index, item in enumerate(asked.media_contents or ()):
        at = ("body", "media_contents", index)
        type_field = (*at, "mime_type")
        if (item.data is None) == (item.media_url is None):
            raise InvalidInput("Give `data` or `media_url`.", field=(*at, "data"), hint="One of them, not both.")
        if item.data is not None:
            content = reader.decode(item.data, item.mime_type, field=(*at, "data"), type_field=type_field)
        else:
            url_field = (*at, "media_url")
            content = await reader.fetch(
                cast("str", item.media_url), item.mime_type, field=url_field, type_field=type_field
            )
        found.append(content)
        size += len(content.data)
        reader.check_sum(size, field=at)
    return tuple(found)


def _metadata(asked: AgentRunRequest) -> JsonObject:
    """What has no effect: kept and shown."""
    kept: dict[str, Json] = {name: value for name, value in (asked.model_extra or {}).items() if value is not None}
    for name in asked.model_fields_set.intersection(_KEPT):
        value = getattr(asked, name)
        if value is not None:
            kept[name] = value
    return kept


def _answer_document(row: RunRow) -> dict[str, object]:
    output = row.output or {}
    return {
        "run_id": row.run_id,
        "session_id": str(row.session_id) if row.session_id else None,
        "message": output.get("message"),
        "success": True,
        "tool_calls": output.get("tool_calls"),
        "tool_outputs": output.get("tool_outputs"),
        "usage": usage_document(row.usage),
    }


def _last_seen(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise InvalidInput(
        "This is no id of an event.",
        field=("header", "last-event-id"),
        hint="Send the `id` of the last event that you saw: a number.",
    )
