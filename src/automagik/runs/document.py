"""A run as on the wire: the one rendering that the API, the events and the command line share."""

from decimal import Decimal
from typing import cast

from automagik.store.rows import RunRow
from automagik.types import Json, JsonObject, Usage, utc_text

__all__ = ["run_document", "usage_document", "usage_of_document"]


def usage_document(usage: Usage) -> JsonObject:
    """Tokens as counts, the cost as a decimal string in US dollars, or null where the price is unknown."""
    return {
        "requests": usage.requests,
        "tool_calls": usage.tool_calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cost_usd": None if usage.cost_usd is None else f"{usage.cost_usd:.6f}",
    }


def usage_of_document(document: JsonObject) -> Usage:
    """The usage that `usage_document` gave."""
    counts = {name: cast("int", value) for name, value in document.items() if name != "cost_usd"}
    cost = document.get("cost_usd")
    return Usage(**counts, cost_usd=Decimal(str(cost)) if cost is not None else None)


def run_document(row: RunRow, *, whole: bool = True) -> JsonObject:
    """The run resource; without `input` and `output` in lists (`whole=False`)."""
    document: dict[str, Json] = {
        "run_id": row.run_id,
        "kind": row.kind,
        "name": row.name,
        "status": row.status,
        "outcome": row.outcome,
        "session_id": str(row.session_id) if row.session_id else None,
        "user_id": str(row.user_id) if row.user_id else None,
        "key_id": row.key_id,
        "parent_id": row.parent_id,
        "requeue_of": row.requeue_of,
        "labels": row.labels,
        "created_at": utc_text(row.created_at),
        "started_at": utc_text(row.started_at) if row.started_at else None,
        "finished_at": utc_text(row.finished_at) if row.finished_at else None,
        "attempt": row.attempt,
        "deadline_at": utc_text(row.deadline_at) if row.deadline_at else None,
        "priority": row.priority,
        "model": row.model,
        "error": row.error,
        "waiting_for": row.waiting_for,
        "usage": usage_document(row.usage),
    }
    if row.kind == "workflow":
        details = row.details or {}
        document |= {name: details.get(name) for name in ("workspace", "turns", "max_turns", "executor", "published")}
    if whole:
        document["input"] = row.input
        document["output"] = row.output
    return document
