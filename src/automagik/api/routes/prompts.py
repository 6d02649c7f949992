"""Prompts: the versions of agents' prompt templates."""

import uuid
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from automagik.api.admission import request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.etags import IfMatch, etag, moment_of
from automagik.api.lookups import check_agent
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.prompts import PromptChange, PromptCreate, PromptResource, prompt_resource
from automagik.app import Platform
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["prompts"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("prompts:read"))]
Writer = Annotated[Caller, Depends(require("prompts:write"))]

_ONE: dict[str, Any] = {
    "model": PromptResource,
    "description": "The version",
    "headers": {"ETag": {"description": "What `If-Match` compares", "schema": {"type": "string"}}},
}


@router.get(
    "/prompts",
    summary="List prompt templates",
    responses={200: {"model": PageOf[PromptResource], "description": "Newest first"}, **problems(404)},
)
async def list_prompts(
    platform: PlatformOf,
    caller: Reader,
    agent_name: Annotated[str | None, Query(max_length=128)] = None,
    status_key: Annotated[str | None, Query(max_length=128)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Every version of every agent, or of one."""
    agent_id = None if agent_name is None else await _agent_id(platform, caller, agent_name)
    page = await platform.prompts.list(agent_id=agent_id, status_key=status_key, limit=limit, cursor=cursor)
    return page_of(page, prompt_resource)


@router.post(
    "/prompts",
    summary="Create a version of a prompt template",
    status_code=201,
    responses={201: _ONE, **problems(404, 409, 413)},
)
async def create_prompt(body: PromptCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """A name in the template that nothing could fill is refused, with the nearest that is known."""
    row = await platform.prompts.create(
        await _agent_id(platform, caller, body.agent_name),
        body.prompt_text,
        known=_known_variables(platform, body.agent_name),
        caller=caller,
        status_key=body.status_key or "default",
        name=body.name,
        is_active=bool(body.is_active),
        request_id=request_id_of(request),
    )
    headers = {"ETag": etag(row.updated_at)}
    return created(prompt_resource(row), f"/api/v1/prompts/{row.prompt_id}", headers=headers)


@router.get("/prompts/{prompt_id}", summary="Show a prompt template", responses={200: _ONE, **problems(404)})
async def get_prompt(prompt_id: uuid.UUID, platform: PlatformOf, caller: Reader) -> Response:
    """The version, with its `ETag`."""
    row = await platform.prompts.get(prompt_id)
    return answer(prompt_resource(row), headers={"ETag": etag(row.updated_at)})


@router.patch(
    "/prompts/{prompt_id}",
    summary="Change a prompt template",
    responses={200: _ONE, **problems(404, 409, 412, 413)},
)
async def change_prompt(
    prompt_id: uuid.UUID,
    body: PromptChange,
    request: Request,
    platform: PlatformOf,
    caller: Writer,
    if_match: IfMatch = None,
) -> Response:
    """The text of a version that was defined in code stays. With `If-Match` somebody else's edit in between is a 412."""
    before = await platform.prompts.get(prompt_id)
    row = await platform.prompts.update(
        prompt_id,
        known=_known_variables(platform, before.agent_name),
        caller=caller,
        template=body.prompt_text,
        name=body.name,
        if_updated_at=moment_of(if_match),
        request_id=request_id_of(request),
    )
    return answer(prompt_resource(row), headers={"ETag": etag(row.updated_at)})


@router.post(
    "/prompts/{prompt_id}/activate", summary="Use a prompt template", responses={200: _ONE, **problems(404, 409)}
)
async def activate_prompt(prompt_id: uuid.UUID, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """It takes the place of the version that was active for its agent and status key."""
    row = await platform.prompts.activate(prompt_id, caller=caller, request_id=request_id_of(request))
    return answer(prompt_resource(row), headers={"ETag": etag(row.updated_at)})


@router.post(
    "/prompts/{prompt_id}/deactivate",
    summary="Stop using a prompt template",
    responses={200: _ONE, **problems(404, 409)},
)
async def deactivate_prompt(prompt_id: uuid.UUID, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """The agent then uses the prompt from its code."""
    row = await platform.prompts.deactivate(prompt_id, caller=caller, request_id=request_id_of(request))
    return answer(prompt_resource(row), headers={"ETag": etag(row.updated_at)})


@router.delete(
    "/prompts/{prompt_id}",
    summary="Delete a prompt template",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404, 409)},
)
async def delete_prompt(prompt_id: uuid.UUID, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """Only a version that is not active."""
    await platform.prompts.delete(prompt_id, caller=caller, request_id=request_id_of(request))
    return no_content()


async def _agent_id(platform: Platform, caller: Caller, name: str) -> int:
    await check_agent(platform, caller, name)
    return (await platform.store.read(lambda tx: tx.agents.get(name))).id


def _known_variables(platform: Platform, agent_name: str) -> Collection[str]:
    """The names that the agent lets its prompt use; of a broken agent only those that every prompt may use."""
    agent = platform.agents.agents_registry.get(agent_name)
    return agent.known_variables if agent is not None else ()
