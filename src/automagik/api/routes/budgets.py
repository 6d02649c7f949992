"""Budgets: limits of money, what was spent, and what is reserved."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from automagik.api.admission import request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.etags import IfMatch, etag, revision_of
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.budgets import BudgetResource, BudgetScope, BudgetSet, budget_resource
from automagik.api.schemas.common import PageOf
from automagik.app import Platform
from automagik.budget import parse_usd
from automagik.store.budgets import BudgetRow
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["budgets"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("budgets:read"))]
Writer = Annotated[Caller, Depends(require("budgets:write"))]

_HEADERS = {"ETag": {"description": "What `If-Match` compares", "schema": {"type": "string"}}}
_ONE: dict[str, Any] = {"model": BudgetResource, "description": "The budget as it stands", "headers": _HEADERS}
_MADE: dict[str, Any] = {"model": BudgetResource, "description": "The new budget", "headers": _HEADERS}


@router.get(
    "/budgets",
    summary="List budgets",
    responses={200: {"model": PageOf[BudgetResource], "description": "Newest first"}, **problems()},
)
async def list_budgets(
    platform: PlatformOf,
    caller: Reader,
    scope: BudgetScope | None = None,
    scope_id: Annotated[str | None, Query(max_length=128)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Those that the key may see, each with what is spent and reserved; those of runs only where `scope` is `run`."""
    page = await platform.budgets.list(caller, scope=scope, scope_id=scope_id, limit=limit, cursor=cursor)
    return page_of(page, budget_resource)


@router.post(
    "/budgets",
    summary="Set a budget",
    responses={200: {**_ONE, "description": "The changed budget"}, 201: _MADE, **problems(404, 409, 412, 413)},
)
async def set_budget(
    body: BudgetSet, request: Request, platform: PlatformOf, caller: Writer, if_match: IfMatch = None
) -> Response:
    """Make the budget of this scope and period, or change it as a whole. What runs used before in the period counts as spent."""
    soft = parse_usd(body.soft_limit_usd) if body.soft_limit_usd is not None else None
    row, is_new = await platform.budgets.set(
        body.scope,
        body.scope_id,
        body.period,
        parse_usd(body.limit_usd) or 0,
        soft_limit_nano=soft,
        caller=caller,
        known_agents=await _names(platform) if body.scope == "agent" else None,
        if_revision=revision_of(if_match),
        request_id=request_id_of(request),
    )
    if is_new:
        return created(budget_resource(row), f"/api/v1/budgets/{row.budget_id}", headers=_tag(row))
    return answer(budget_resource(row), headers=_tag(row))


@router.get("/budgets/{budget_id}", summary="Show a budget", responses={200: _ONE, **problems(404)})
async def get_budget(budget_id: str, platform: PlatformOf, caller: Reader) -> Response:
    """What is spent and reserved now, with its `ETag`."""
    row = await platform.budgets.get(budget_id, caller)
    return answer(budget_resource(row), headers=_tag(row))


@router.delete(
    "/budgets/{budget_id}",
    summary="Delete a budget",
    status_code=204,
    responses={204: {"description": "It limits nothing any more"}, **problems(404, 412)},
)
async def delete_budget(
    budget_id: str, request: Request, platform: PlatformOf, caller: Writer, if_match: IfMatch = None
) -> Response:
    """What was spent stays in the usage."""
    revision = revision_of(if_match)
    await platform.budgets.delete(budget_id, caller=caller, if_revision=revision, request_id=request_id_of(request))
    return no_content()


async def _names(platform: Platform) -> set[str]:
    """What a budget of the scope `agent` can name: agents and workflows."""
    await platform.agents.refresh()
    agents = {info.name for info in platform.agents.list_available_agents()}
    await platform.workflows.refresh()
    return agents | {info.name for info in platform.workflows.infos()}


def _tag(row: BudgetRow) -> dict[str, str]:
    return {"ETag": etag(row.revision)}
