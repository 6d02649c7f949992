"""What is only looked at: tools, and the audit log."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from automagik.api.admission import require
from automagik.api.answers import page_of
from automagik.api.paging import Cursor, Limit, slice_page
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.records import AuditResource, ToolResource, audit_resource, tool_resource
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", route_class=ApiRoute)

ToolReader = Annotated[Caller, Depends(require("tools:read"))]
AuditReader = Annotated[Caller, Depends(require("audit:read"))]


@router.get(
    "/tools",
    tags=["tools"],
    summary="List tools",
    responses={200: {"model": PageOf[ToolResource], "description": "By name"}, **problems()},
)
async def list_tools(platform: PlatformOf, caller: ToolReader, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """What agents may be given in their config's `tools`."""
    page = slice_page(platform.tools.list(), lambda info: info.name, limit=limit, cursor=cursor)
    return page_of(page, tool_resource)


@router.get(
    "/audit",
    tags=["audit"],
    summary="Who changed what",
    responses={200: {"model": PageOf[AuditResource], "description": "Newest first"}, **problems()},
)
async def list_audit(
    platform: PlatformOf,
    caller: AuditReader,
    action: Annotated[str | None, Query(max_length=64)] = None,
    target: Annotated[str | None, Query(max_length=200)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Changes made through the platform: by which key, and in which request. All; with a key bound to a user, that user's."""
    page = await platform.store.browse(
        lambda tx: tx.audit.list(action=action, target=target, user_id=caller.user_id, limit=limit, cursor=cursor)
    )
    return page_of(page, audit_resource)
