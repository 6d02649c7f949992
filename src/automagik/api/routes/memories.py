"""Memories: variables of agents, users and sessions, which fill the places of prompts."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from automagik.api.admission import request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.lookups import check_agent
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute, only
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.memories import MemoryChange, MemoryCreate, MemoryResource, memory_resource
from automagik.errors import InvalidInput, NotFound
from automagik.memory import MemoryChanges
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["memories"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("memory:read"))]
Writer = Annotated[Caller, Depends(require("memory:write"))]
Batch = Annotated[list[MemoryCreate], Body(min_length=1, max_length=1000)]

_ONE: dict[str, Any] = {"model": MemoryResource, "description": "The memory"}


@router.get(
    "/memories",
    summary="List memories",
    responses={200: {"model": PageOf[MemoryResource], "description": "Newest first"}, **problems(404)},
)
async def list_memories(
    platform: PlatformOf,
    caller: Reader,
    name: Annotated[str | None, Query(max_length=128)] = None,
    agent_name: Annotated[str | None, Query(max_length=128)] = None,
    user_id: uuid.UUID | None = None,
    session_id: uuid.UUID | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The memories that the key may see."""
    await check_agent(platform, caller, agent_name)
    page = await platform.memories.list(
        caller,
        agent=agent_name,
        user_id=user_id,
        session_id=session_id,
        name=name,
        limit=limit,
        cursor=cursor,
    )
    return page_of(page, memory_resource)


@router.post(
    "/memories",
    summary="Store a memory",
    status_code=201,
    responses={
        201: _ONE,
        200: {"model": MemoryResource, "description": "The memory of this name in this scope, replaced"},
        **problems(404, 409, 413),
    },
)
async def create_memory(body: MemoryCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """It belongs to an agent, a user, a session, or several of them."""
    await check_agent(platform, caller, body.agent_name)
    _check_scope(body, caller, ("body",))
    row = await platform.memories.create(body.to_input(), caller, request_id=request_id_of(request))
    if row.created_at != row.updated_at:
        return answer(memory_resource(row))
    return created(memory_resource(row), f"/api/v1/memories/{row.memory_id}")


@router.post(
    "/memories/batch",
    summary="Store several memories",
    responses={
        200: {"model": PageOf[MemoryResource], "description": "The memories, in the order given"},
        **problems(413),
    },
)
async def create_memories(body: Batch, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """All or none; an error names the index of the one that can't be stored."""
    for index, memory in enumerate(body):
        _check_scope(memory, caller, ("body", index))
        try:
            await check_agent(platform, caller, memory.agent_name)
        except NotFound as missing:
            raise InvalidInput(
                missing.detail, field=("body", index, "agent_name"), hint=missing.hint, code=missing.code
            ) from None
    inputs = [memory.to_input() for memory in body]
    rows = await platform.memories.create_batch(inputs, caller, request_id=request_id_of(request))
    return answer({"data": [memory_resource(row) for row in rows], "next_cursor": None})


router.add_api_route("/memories/batch", only("POST"), methods=["GET", "PATCH", "DELETE"], include_in_schema=False)


@router.get("/memories/{memory_id}", summary="Show a memory", responses={200: _ONE, **problems(404)})
async def get_memory(memory_id: uuid.UUID, platform: PlatformOf, caller: Reader) -> Response:
    """The memory."""
    return answer(memory_resource(await platform.memories.get(memory_id, caller)))


@router.patch("/memories/{memory_id}", summary="Change a memory", responses={200: _ONE, **problems(404, 409, 413)})
async def change_memory(
    memory_id: uuid.UUID, body: MemoryChange, request: Request, platform: PlatformOf, caller: Writer
) -> Response:
    """What is given takes the place of what is there; the scope stays."""
    row = await platform.memories.update(
        memory_id, caller, request_id=request_id_of(request), **MemoryChanges(**body.given())
    )
    return answer(memory_resource(row))


@router.delete(
    "/memories/{memory_id}",
    summary="Delete a memory",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404)},
)
async def delete_memory(memory_id: uuid.UUID, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """The memory is gone for good."""
    await platform.memories.delete(memory_id, caller, request_id=request_id_of(request))
    return no_content()


def _check_scope(memory: MemoryCreate, caller: Caller, at: tuple[str | int, ...]) -> None:
    scope = (memory.agent_name, memory.user_id, memory.session_id, caller.user_id)
    if all(part is None for part in scope):
        raise InvalidInput(
            "A memory belongs to an agent, a user or a session.",
            field=(*at, "agent_name"),
            hint="Give at least one of `agent_name`, `user_id` and `session_id`.",
        )
