"""Usage: tokens and money over time."""

import uuid
from datetime import date
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Response

from automagik.api.admission import require, visible_user
from automagik.api.answers import answer
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.usage import UsageResource, group_document, total_document
from automagik.errors import InvalidInput, nearest
from automagik.store.usage import DIMENSIONS, Dimension, UsageFilter
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["usage"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("budgets:read"))]

_FIRST_DAY = date(2000, 1, 1)
_LAST_DAY = date(9000, 1, 1)


@router.get(
    "/usage",
    summary="Show what was used",
    responses={200: {"model": UsageResource, "description": "In descending order of `group_by`"}, **problems(404)},
)
async def get_usage(
    platform: PlatformOf,
    caller: Reader,
    since: Annotated[
        date | None, Query(alias="from", description="The first day (UTC); unset: the first of this month.")
    ] = None,
    to: Annotated[date | None, Query(description="The last day, which is included; unset: today.")] = None,
    group_by: Annotated[
        str, Query(max_length=100, description=f"One or several of {', '.join(DIMENSIONS)}, separated by commas.")
    ] = "day",
    key_id: Annotated[str | None, Query(max_length=128)] = None,
    user_id: uuid.UUID | None = None,
    agent: Annotated[str | None, Query(max_length=128, description="`claude_code` stands for all workflows.")] = None,
    workflow: Annotated[str | None, Query(max_length=128)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Tokens and money by day, key, user, agent or workflow; a run counts on the day on which it was accepted."""
    today = platform.clock.now().date()
    which = UsageFilter(
        since=_day(since or today.replace(day=1), "from"),
        until=_day(to or today, "to"),
        key_id=key_id,
        user_id=visible_user(caller, user_id),
        agent=agent,
        workflow=workflow,
    )
    if which.until < which.since:
        raise InvalidInput(f"The last day ({which.until}) is before the first ({which.since}).", field=("query", "to"))
    by = _dimensions(group_by)
    used = await platform.usage.used(which, by, limit=limit, cursor=cursor)
    return answer(
        {
            "from": which.since.isoformat(),
            "to": which.until.isoformat(),
            "group_by": by,
            "total": total_document(used.total),
            "data": [group_document(row) for row in used.groups.data],
            "next_cursor": used.groups.next_cursor,
        }
    )


def _day(day: date, name: str) -> date:
    if not _FIRST_DAY <= day <= _LAST_DAY:
        raise InvalidInput(f"There is no usage around {day}.", field=("query", name))
    return day


def _dimensions(text: str) -> list[Dimension]:
    """What to tell usage apart by: each once, in the given order."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in DIMENSIONS:
            close = nearest(name, DIMENSIONS)
            raise InvalidInput(
                f"Usage can't be told apart by '{name[:50]}'.",
                field=("query", "group_by"),
                hint=f"Did you mean '{close}'?" if close else f"One or several of: {', '.join(DIMENSIONS)}.",
            )
    return cast("list[Dimension]", [*dict.fromkeys(names)])
