"""Budgets on the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from automagik.api.schemas.common import Body, Resource, Word
from automagik.budget import limit_document
from automagik.store.budgets import BudgetRow
from automagik.types import JsonObject, utc_text

__all__ = ["BudgetResource", "BudgetScope", "BudgetSet", "budget_resource"]

BudgetScope = Literal["organisation", "key", "user", "agent", "epic", "run"]
BudgetPeriod = Literal["day", "month", "total"]

Usd = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$",
        description="US dollars as a decimal string, as `25` or `0.50`: up to nine digits before the point and nine behind.",
    ),
]


class BudgetSet(Body):
    """A budget as it shall be. There is one for each scope, whom it names, and period: it is made, or changed as a whole."""

    scope: BudgetScope
    """Whom it limits."""
    scope_id: Word | None = None
    """The key's, user's, epic's or run's id, or the agent's or workflow's name; the organisation has none."""
    period: BudgetPeriod
    """What was spent counts until the day or the month is over (UTC), or in all."""
    limit_usd: Usd
    """Calls that could cost more than what is left are refused."""
    soft_limit_usd: Usd | None = None
    """When so much is spent, the run that did it is told by an event, once in each period. Unset: nobody is."""


class BudgetResource(Resource):
    """A budget as it stands."""

    budget_id: str
    scope: BudgetScope
    scope_id: str | None
    period: BudgetPeriod
    period_start: str | None
    """The day (`2026-11-28`) or month (`2026-11`) under way; null where all time counts."""
    limit_usd: str
    soft_limit_usd: str | None
    spent_usd: str
    """What was spent in the period under way."""
    reserved_usd: str
    """What is reserved for calls under way: the most that they can cost."""
    key_id: str | None
    """The key that set it."""
    revision: int
    created_at: datetime
    updated_at: datetime


def budget_resource(row: BudgetRow) -> JsonObject:
    """The budget as on the wire."""
    return {
        **limit_document(row.as_limit()),
        "key_id": row.key_id,
        "revision": row.revision,
        "created_at": utc_text(row.created_at),
        "updated_at": utc_text(row.updated_at),
    }
