"""Workflows: all that there are, and those that are made through the API."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from automagik.api.admission import CallerOf, request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.etags import IfMatch, etag, revision_of
from automagik.api.paging import Cursor, Limit, slice_page
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.workflows import (
    CheckedWorkflowResource,
    WorkflowChange,
    WorkflowCreate,
    WorkflowResource,
    WorkflowSummary,
    checked_workflow,
    workflow_resource,
    workflow_summary,
)
from automagik.app import Platform
from automagik.claude_code.workflow_files import WorkflowInfo
from automagik.errors import NotFound
from automagik.types import Caller

__all__ = ["router", "visible_workflows"]

router = APIRouter(prefix="/api/v1", tags=["workflows"], route_class=ApiRoute)

Writer = Annotated[Caller, Depends(require("workflows:write"))]

_ETAG: dict[str, Any] = {"ETag": {"description": "What `If-Match` compares", "schema": {"type": "string"}}}
_ONE: dict[str, Any] = {"model": WorkflowResource, "description": "The workflow", "headers": _ETAG}


@router.get(
    "/workflows",
    summary="List workflows",
    responses={200: {"model": PageOf[WorkflowSummary], "description": "By name"}, **problems()},
)
async def list_workflows(platform: PlatformOf, caller: CallerOf, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """Those that the key may see: with `workflows:read` all, broken ones with the reason; else those that it may run."""
    infos = await visible_workflows(platform, caller)
    whole = _sees_all(caller)
    page = slice_page(infos, _key, limit=limit, cursor=cursor)
    return page_of(page, lambda info: workflow_summary(info, whole=whole))


@router.post(
    "/workflows",
    summary="Create a workflow",
    status_code=201,
    responses={201: _ONE, **problems(409, 413)},
)
async def create_workflow(body: WorkflowCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """It is stored and can be run at once. A name of the platform's own, or of the server's folder, can't be taken."""
    info = await platform.workflows.create(body.name, body.files, caller=caller, request_id=request_id_of(request))
    return created(workflow_resource(info, whole=True), f"/api/v1/workflows/{info.name}", headers=_tag(info))


@router.post(
    "/workflows/validate",
    summary="Check a workflow",
    responses={
        200: {"model": CheckedWorkflowResource, "description": "What the files would be, with warnings"},
        **problems(413),
    },
)
async def validate_workflow(body: WorkflowCreate, platform: PlatformOf, caller: Writer) -> Response:
    """Nothing is stored. A workflow that is broken is a 422 that names file and key."""
    return answer(checked_workflow(await platform.workflows.validate(body.name, body.files, caller=caller)))


@router.get("/workflows/{name}", summary="Show a workflow", responses={200: _ONE, **problems(404)})
async def get_workflow(name: str, platform: PlatformOf, caller: CallerOf) -> Response:
    """The workflow, with its `ETag`."""
    infos = await visible_workflows(platform, caller)
    for info in infos:
        if info.name == name:
            return answer(workflow_resource(info, whole=_sees_all(caller)), headers=_tag(info))
    raise NotFound("workflow", name, known=[info.name for info in infos])


@router.patch("/workflows/{name}", summary="Change a workflow", responses={200: _ONE, **problems(404, 409, 412, 413)})
async def change_workflow(
    name: str,
    body: WorkflowChange,
    request: Request,
    platform: PlatformOf,
    caller: Writer,
    if_match: IfMatch = None,
) -> Response:
    """Only one that was made through the API. New `files` take the place of all old ones. With `If-Match` somebody else's edit
    in between is a 412."""
    info = await platform.workflows.update(
        name,
        files=body.files,
        active=body.active,
        caller=caller,
        if_revision=revision_of(if_match),
        request_id=request_id_of(request),
    )
    return answer(workflow_resource(info, whole=True), headers=_tag(info))


@router.delete(
    "/workflows/{name}",
    summary="Delete a workflow",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404, 409, 412)},
)
async def delete_workflow(
    name: str, request: Request, platform: PlatformOf, caller: Writer, if_match: IfMatch = None
) -> Response:
    """Only one that was made through the API. Its runs stay."""
    await platform.workflows.delete(
        name, caller=caller, if_revision=revision_of(if_match), request_id=request_id_of(request)
    )
    return no_content()


async def visible_workflows(platform: Platform, caller: Caller) -> list[WorkflowInfo]:
    """The workflows that the caller may see, by name: all, or those that they may run."""
    await platform.workflows.refresh()
    infos = platform.workflows.infos()
    if _sees_all(caller):
        return infos
    return [info for info in infos if info.error is None and caller.allows(f"workflows:{info.name}:run")]


def _sees_all(caller: Caller) -> bool:
    return caller.allows("workflows:read") or caller.allows("workflows:write")


def _key(info: WorkflowInfo) -> str:
    return f"{info.name}\n{int(info.error is not None)}"


def _tag(info: WorkflowInfo) -> dict[str, str]:
    return {"ETag": etag(info.revision)}
