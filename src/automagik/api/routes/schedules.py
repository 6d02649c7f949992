"""Schedules: what agents are asked again and again, by cron expressions."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from automagik.api.admission import request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.etags import IfMatch, etag, revision_of
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.routes.runs import Key, run_request
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.runs import AgentRunRequest, RunResource
from automagik.api.schemas.schedules import (
    FiringTimes,
    ScheduleChange,
    ScheduleCreate,
    ScheduleResource,
    ScheduleSummary,
    firing_time,
    schedule_resource,
    schedule_summary,
)
from automagik.app import Platform
from automagik.errors import InvalidInput
from automagik.runs import RunRequest, ScheduleEdit, run_document
from automagik.store.rows import ScheduleRow
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["schedules"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("schedules:read"))]
Writer = Annotated[Caller, Depends(require("schedules:write"))]

_ONE: dict[str, Any] = {
    "model": ScheduleResource,
    "description": "The schedule",
    "headers": {"ETag": {"description": "What `If-Match` compares", "schema": {"type": "string"}}},
}


@router.get(
    "/schedules",
    summary="List schedules",
    responses={200: {"model": PageOf[ScheduleSummary], "description": "Newest first"}, **problems()},
)
async def list_schedules(
    platform: PlatformOf,
    caller: Reader,
    agent_name: Annotated[str | None, Query(max_length=128)] = None,
    active: bool | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The schedules that the key may see, without their requests."""
    page = await platform.schedules.list(caller, agent_name=agent_name, active=active, limit=limit, cursor=cursor)
    return page_of(page, schedule_summary)


@router.post(
    "/schedules",
    summary="Create a schedule",
    status_code=201,
    responses={201: _ONE, **problems(404, 409, 413)},
)
async def create_schedule(body: ScheduleCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """It fires in the name of this key, which must be allowed to ask the agent so, now and each time."""
    row = await platform.schedules.create(
        body.name,
        await _asked(body.agent_name, body.request, platform),
        caller,
        cron=body.cron,
        time_zone=body.time_zone or "UTC",
        missed=body.missed or "skip",
        active=body.active is not False,
        request_id=request_id_of(request),
    )
    return created(schedule_resource(row), f"/api/v1/schedules/{row.schedule_id}", headers=_tag(row))


@router.get("/schedules/{schedule}", summary="Show a schedule", responses={200: _ONE, **problems(404)})
async def get_schedule(schedule: str, platform: PlatformOf, caller: Reader) -> Response:
    """By its id or its name, with its `ETag`."""
    row = await platform.schedules.get(schedule, caller)
    return answer(schedule_resource(row), headers=_tag(row))


@router.patch(
    "/schedules/{schedule}",
    summary="Change, pause or resume a schedule",
    responses={200: _ONE, **problems(404, 409, 412, 413)},
)
async def change_schedule(
    schedule: str,
    body: ScheduleChange,
    request: Request,
    platform: PlatformOf,
    caller: Writer,
    if_match: IfMatch = None,
) -> Response:
    """`request` as a whole. From then on it fires in the name of this key, unless `{"active": false}` was all."""
    edit = ScheduleEdit(**{name: value for name, value in body.given().items() if name != "request"})
    if body.request is not None:
        agent_name = body.agent_name or (await platform.schedules.get(schedule, caller)).agent_name
        edit["request"] = await _asked(agent_name, body.request, platform)
    row = await platform.schedules.update(
        schedule, caller, if_revision=revision_of(if_match), request_id=request_id_of(request), **edit
    )
    return answer(schedule_resource(row), headers=_tag(row))


@router.delete(
    "/schedules/{schedule}",
    summary="Delete a schedule",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404, 412)},
)
async def delete_schedule(
    schedule: str, request: Request, platform: PlatformOf, caller: Writer, if_match: IfMatch = None
) -> Response:
    """Its runs stay as a record."""
    revision = revision_of(if_match)
    await platform.schedules.delete(schedule, caller, if_revision=revision, request_id=request_id_of(request))
    return no_content()


@router.post(
    "/schedules/{schedule}/fire",
    summary="Fire a schedule now",
    status_code=202,
    responses={202: {"model": RunResource, "description": "The run, accepted and stored"}, **problems(404, 409, 413)},
)
async def fire_schedule(
    schedule: str, request: Request, platform: PlatformOf, caller: Writer, idempotency_key: Key = None
) -> Response:
    """The run of its request in the name of this key, out of turn; also where it is paused. Its times stay as they are."""
    run = await platform.schedules.fire(
        schedule, caller, idempotency_key=idempotency_key, request_id=request_id_of(request)
    )
    return answer(run_document(run), 202, headers={"Location": f"/api/v1/runs/{run.run_id}"})


@router.get(
    "/schedules/{schedule}/next",
    summary="When a schedule fires next",
    responses={200: {"model": FiringTimes, "description": "The earliest first"}, **problems(404)},
)
async def next_times(
    schedule: str, platform: PlatformOf, caller: Reader, count: Annotated[int, Query(ge=1, le=100)] = 5
) -> Response:
    """In UTC and in local time; of a paused schedule the times that it would have."""
    times = await platform.schedules.next_times(schedule, caller, count)
    return answer({"data": [firing_time(moment, local) for moment, local in times], "next_cursor": None})


async def _asked(agent_name: str, asked: AgentRunRequest, platform: Platform) -> RunRequest:
    """The question that the body's `request` is."""
    try:
        return await run_request(agent_name, asked, platform)
    except InvalidInput as wrong:
        field = ("body", "request", *wrong.field[1:])
        raise InvalidInput(wrong.detail, field=field, hint=wrong.hint, code=wrong.code) from None


def _tag(row: ScheduleRow) -> dict[str, str]:
    return {"ETag": etag(row.revision)}
