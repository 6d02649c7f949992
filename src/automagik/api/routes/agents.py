"""Agents: all that there are, and those that are made through the API."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from automagik.agents import AgentInfo, agent_document
from automagik.api.admission import CallerOf, request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.etags import IfMatch, etag, revision_of
from automagik.api.lookups import check_agent, sees_all_agents, visible_agents
from automagik.api.paging import Cursor, Limit, slice_page
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.agents import AgentChange, AgentCopy, AgentCreate, AgentListed, AgentResource, agent_resource
from automagik.api.schemas.common import PageOf
from automagik.errors import NotFound
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["agents"], route_class=ApiRoute)

Writer = Annotated[Caller, Depends(require("agents:write"))]

_ETAG: dict[str, Any] = {"ETag": {"description": "What `If-Match` compares", "schema": {"type": "string"}}}
_ONE: dict[str, Any] = {"model": AgentResource, "description": "The agent", "headers": _ETAG}


@router.get(
    "/agents",
    summary="List agents",
    responses={200: {"model": PageOf[AgentResource], "description": "By name"}, **problems()},
)
async def list_agents(platform: PlatformOf, caller: CallerOf, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """The agents that the key may see: with `agents:read` all, broken ones with their cause; else those that it may run."""
    infos = await visible_agents(platform, caller)
    page = slice_page(infos, _key, limit=limit, cursor=cursor)
    whole = sees_all_agents(caller)
    return page_of(page, lambda info: agent_resource(info, whole=whole))


@router.get(
    "/agent/list",
    summary="List agents as the earlier API did",
    responses={200: {"model": list[AgentListed], "description": "By name"}, **problems()},
)
async def list_agents_earlier(platform: PlatformOf, caller: CallerOf) -> Response:
    """The agents that can be run."""
    infos = await visible_agents(platform, caller)
    return answer(
        [
            {"id": info.name, "name": info.name, "description": info.config.description}
            for info in infos
            if info.active and info.error is None
        ]
    )


@router.post(
    "/agents",
    summary="Create an agent",
    status_code=201,
    responses={201: _ONE, **problems(409, 413)},
)
async def create_agent(body: AgentCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """The agent is stored and can be run at once."""
    info = await platform.agents.create(
        body.name, body.config or {}, caller=caller, request_id=request_id_of(request), field=("body", "config")
    )
    headers = {"ETag": etag(info.revision)}
    return created(agent_resource(info, whole=True), f"/api/v1/agents/{info.name}", headers=headers)


@router.get("/agents/{name}", summary="Show an agent", responses={200: _ONE, **problems(404)})
async def get_agent(name: str, platform: PlatformOf, caller: CallerOf) -> Response:
    """The agent, with its `ETag`."""
    infos = await visible_agents(platform, caller)
    for info in infos:
        if info.name == name:
            return answer(agent_resource(info, whole=sees_all_agents(caller)), headers={"ETag": etag(info.revision)})
    raise NotFound("agent", name, known=[info.name for info in infos])


@router.patch("/agents/{name}", summary="Change an agent", responses={200: _ONE, **problems(404, 409, 412, 413)})
async def change_agent(
    name: str,
    body: AgentChange,
    request: Request,
    platform: PlatformOf,
    caller: Writer,
    if_match: IfMatch = None,
) -> Response:
    """A new `config` takes the place of the whole old one. With `If-Match` somebody else's edit in between is a 412."""
    await check_agent(platform, caller, name)
    info = platform.agents.info(name)
    data: dict[str, Any] = {}
    if body.config is not None:
        data = {**dict.fromkeys(agent_document(info.config)), **body.config}
    info = await platform.agents.update(
        name,
        data,
        caller=caller,
        active=body.active,
        if_revision=revision_of(if_match),
        request_id=request_id_of(request),
        field=("body", "config"),
    )
    return answer(agent_resource(info, whole=True), headers={"ETag": etag(info.revision)})


@router.post(
    "/agents/{name}/copy",
    summary="Copy an agent",
    status_code=201,
    responses={201: _ONE, **problems(404, 409, 413)},
)
async def copy_agent(name: str, body: AgentCopy, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """A new agent with the other's config and active prompt. One that is written in Python can't be copied."""
    await check_agent(platform, caller, name)
    info = await platform.agents.copy(
        name,
        body.name,
        body.config or {},
        caller=caller,
        request_id=request_id_of(request),
        field=("body", "config"),
    )
    headers = {"ETag": etag(info.revision)}
    return created(agent_resource(info, whole=True), f"/api/v1/agents/{info.name}", headers=headers)


@router.delete(
    "/agents/{name}",
    summary="Delete an agent",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404, 409, 412)},
)
async def delete_agent(
    name: str, request: Request, platform: PlatformOf, caller: Writer, if_match: IfMatch = None
) -> Response:
    """Only one that was made through the API; with its prompts and memories. Its sessions and runs stay."""
    await platform.agents.delete(
        name, caller=caller, if_revision=revision_of(if_match), request_id=request_id_of(request)
    )
    return no_content()


def _key(info: AgentInfo) -> str:
    return f"{info.name}\n{int(info.error is not None)}\n{info.location}"
