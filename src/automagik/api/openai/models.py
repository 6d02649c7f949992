"""`/v1/models`: the agents that the key may run."""

from typing import Literal

from fastapi import APIRouter, Response

from automagik.agents import AgentInfo
from automagik.api.admission import CallerOf
from automagik.api.answers import answer
from automagik.api.lookups import visible_agents
from automagik.api.openai.envelope import OpenAiRoute, envelopes
from automagik.api.platform import PlatformOf
from automagik.api.schemas.common import Resource
from automagik.app import Platform
from automagik.errors import NotFound
from automagik.types import Caller, JsonObject

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAiRoute)


class ModelResource(Resource):
    """An agent as a model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Resource):
    """The agents as models."""

    object: Literal["list"]
    data: list[ModelResource]


@router.get(
    "/models",
    summary="List agents as models",
    responses={200: {"model": ModelList, "description": "By name"}, **envelopes()},
)
async def list_models(platform: PlatformOf, caller: CallerOf) -> Response:
    """The agents that the key may run."""
    models = [_document(info) for info in await _runnable(platform, caller)]
    return answer({"object": "list", "data": models})


@router.get(
    "/models/{model}",
    summary="Show an agent as a model",
    responses={200: {"model": ModelResource, "description": "The agent"}, **envelopes()},
)
async def get_model(model: str, platform: PlatformOf, caller: CallerOf) -> Response:
    """One agent."""
    infos = await _runnable(platform, caller)
    for info in infos:
        if info.name == model:
            return answer(_document(info))
    raise NotFound("agent", model, known=[info.name for info in infos])


async def _runnable(platform: Platform, caller: Caller) -> list[AgentInfo]:
    infos = await visible_agents(platform, caller)
    return [info for info in infos if info.active and info.error is None and caller.allows(f"agents:{info.name}:run")]


def _document(info: AgentInfo) -> JsonObject:
    created = int(info.created_at.timestamp()) if info.created_at is not None else 0
    return {"id": info.name, "object": "model", "created": created, "owned_by": "automagik"}
