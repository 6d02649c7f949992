"""Usage on the wire."""

import uuid
from datetime import date

from pydantic import ConfigDict, Field

from automagik.api.schemas.common import Resource
from automagik.budget import usd_text
from automagik.store.usage import DIMENSIONS, Dimension, UsageRow
from automagik.types import JsonObject

__all__ = ["UsageGroup", "UsageResource", "UsageTotal", "group_document", "total_document"]


class UsageTotal(Resource):
    """Tokens and money."""

    runs: int
    requests: int
    """Requests to models."""
    tool_calls: int
    """Calls of tools that ran, of runs that have ended."""
    input_tokens: int
    """With those that were read from a cache or written to it."""
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: str
    """What is known of the cost."""
    unpriced_runs: int
    """Runs whose cost is not known."""


class UsageGroup(UsageTotal):
    """Tokens and money of one group. What it is not told apart by is null, and so is what its runs have none of."""

    day: date | None
    key_id: str | None
    user_id: uuid.UUID | None
    agent: str | None
    workflow: str | None


class UsageResource(Resource):
    """What was used."""

    model_config = ConfigDict(populate_by_name=True)

    since: date = Field(alias="from")
    to: date
    group_by: list[Dimension]
    total: UsageTotal
    data: list[UsageGroup]
    next_cursor: str | None


_FIELDS: dict[Dimension, str] = {"key": "key_id", "user": "user_id"}


def group_document(row: UsageRow) -> JsonObject:
    """One group as on the wire."""
    return {**{_FIELDS.get(name, name): row.by.get(name) for name in DIMENSIONS}, **total_document(row)}


def total_document(row: UsageRow) -> JsonObject:
    """Tokens and money as on the wire."""
    return {
        "runs": row.runs,
        "requests": row.requests,
        "tool_calls": row.tool_calls,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cache_read_tokens": row.cache_read_tokens,
        "cache_write_tokens": row.cache_write_tokens,
        "cost_usd": usd_text(row.cost_nano),
        "unpriced_runs": row.unpriced_runs,
    }
