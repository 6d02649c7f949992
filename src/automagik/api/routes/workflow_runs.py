"""Runs of workflows: give one a task, speak to it while it works, and get what it made."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.responses import StreamingResponse

from automagik.api.admission import caller_of, require
from automagik.api.answers import answer
from automagik.api.bodies import read_json
from automagik.api.platform import PlatformOf, platform_of
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.routes.runs import Key
from automagik.api.schemas.runs import RunResource
from automagik.api.schemas.workflow_runs import BundleResource, RunWords
from automagik.api.work import workflow_request
from automagik.runs import run_document
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["workflows"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("runs:read"))]
Writer = Annotated[Caller, Depends(require("runs:write"))]

_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BUNDLE = "application/x-git-bundle"
_DIFF = "text/x-diff"
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"model": RunResource, "description": "The run, accepted and stored"}
}


@router.post(
    "/workflows/{name}/run",
    summary="Give a workflow a task",
    status_code=202,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/WorkflowRunRequest"}}},
        }
    },
    responses={**_ACCEPTED, **problems(404, 409, 413)},
)
async def run_workflow(name: str, request: Request, idempotency_key: Key = None) -> Response:
    """The run as soon as it is stored; follow it at its `Location`."""
    platform = platform_of(request)
    asked = workflow_request(name, await read_json(request), platform)
    row = await platform.runs.submit(asked, caller_of(request), idempotency_key=idempotency_key)
    return answer(run_document(row), 202, headers={"Location": f"/api/v1/runs/{row.run_id}"})


@router.post(
    "/repositories",
    summary="Upload a repository as a git bundle",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": _BYTES}}},
    responses={201: {"model": BundleResource, "description": "The bundle, stored"}, **problems(413)},
)
async def upload_bundle(request: Request, platform: PlatformOf, _: Writer) -> Response:
    """The bytes that `git bundle create - HEAD` writes. A run names the answer's `bundle` as its `repository.bundle`."""
    stored = await platform.workspaces.receive(request.stream())
    return answer({"bundle": stored.digest, "commit": stored.commit, "size": stored.size}, 201)


@router.post(
    "/runs/{run_id}/messages",
    summary="Say something to a running workflow",
    status_code=202,
    responses={202: {"model": RunResource, "description": "The run, which is told"}, **problems(404, 409)},
)
async def say(run_id: str, words: RunWords, platform: PlatformOf, caller: Writer) -> Response:
    """The model reads it with the next result of a tool, or as its next turn."""
    row = await platform.runs.say(run_id, caller, words.message_content)
    return answer(run_document(row), 202)


@router.post(
    "/runs/{run_id}/interrupt",
    summary="Stop the turn under way",
    status_code=202,
    responses={202: {"model": RunResource, "description": "The run, which is told"}, **problems(404, 409)},
)
async def interrupt(run_id: str, platform: PlatformOf, caller: Writer) -> Response:
    """If no message follows, the run ends as `interrupted`."""
    return answer(run_document(await platform.runs.interrupt(run_id, caller)), 202)


@router.get(
    "/runs/{run_id}/diff",
    summary="What a workflow's run changed",
    response_class=Response,
    responses={
        200: {"description": "A unified diff", "content": {_DIFF: {"schema": {"type": "string"}}}},
        **problems(404, 409),
    },
)
async def get_diff(
    run_id: str, platform: PlatformOf, caller: Reader, wip: Annotated[bool, Query()] = False
) -> Response:
    """From the base commit to the run's last commit; with `wip` to the tree that was not committed, where there is one."""
    return Response(await platform.workspaces.diff(run_id, caller, wip=wip), media_type=_DIFF)


@router.get(
    "/runs/{run_id}/bundle",
    summary="The commits of a workflow's run, as a git bundle",
    response_class=Response,
    responses={200: {"description": "A git bundle", "content": {_BUNDLE: _BYTES}}, **problems(404, 409)},
)
async def get_bundle(run_id: str, platform: PlatformOf, caller: Reader) -> Response:
    """It needs the base commit in the repository that fetches it. `automagik runs apply` does that."""
    chunks = await platform.workspaces.bundle(run_id, caller)
    return StreamingResponse(_all(chunks), media_type=_BUNDLE)


async def _all(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async for chunk in chunks:
        yield chunk
