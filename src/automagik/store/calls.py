"""ModelCalls: each request to a model that went through the gateway or was made under a budget."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, delete, func, select

from automagik.store import schema
from automagik.store.columns import clean
from automagik.store.repository import Repository
from automagik.types import JsonObject, Usage, utc_text

__all__ = ["ModelCall", "ModelCalls"]

_calls = schema.model_calls


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request to a model. Amounts are nano-dollars."""

    call_id: str
    run_id: str | None
    key_id: str | None
    user_id: uuid.UUID | None
    wire: str
    """By what it was asked: `anthropic` or `openai` through the gateway, `agent` by an agent of this process; `unknown` where an
    earlier version lost it."""
    model: str
    status: int | None
    """HTTP, as the caller got it; None: there was none, or it was cut before."""
    outcome: str
    """`completed`, `failed`, `refused`, `cut`, or `lost`: its process died, and what was reserved for it counts in full."""
    created_at: datetime
    duration_ms: int
    input_tokens: int = 0
    """Without those of the cache."""
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_nano: int | None = 0
    """None: no price is known."""
    reserved_nano: int = 0
    first_byte_ms: int | None = None
    agent: str | None = None
    """The agent's or workflow's name."""

    @property
    def over_reservation(self) -> bool:
        """Whether it cost more than was reserved for it: its provider did not keep to the limit of its output, say."""
        return self.cost_nano is not None and 0 < self.reserved_nano < self.cost_nano

    def to_row(self) -> JsonObject:
        """The row of `model_calls`, as both databases take it."""
        return {
            "call_id": self.call_id,
            "run_id": self.run_id,
            "key_id": self.key_id,
            "user_id": str(self.user_id) if self.user_id is not None else None,
            "wire": self.wire,
            "model": clean(self.model),
            "status": self.status,
            "outcome": self.outcome,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "cost_nano": self.cost_nano,
            "reserved_nano": self.reserved_nano,
            "first_byte_ms": self.first_byte_ms,
            "duration_ms": self.duration_ms,
            "created_at": utc_text(self.created_at),
            "agent": self.agent,
            "over_reservation": self.over_reservation,
        }


class ModelCalls(Repository):
    """The model_calls table. Rows are written with the end of their reservation (`Store.settle`)."""

    __slots__ = ()

    def of_run(self, run_id: str, *, limit: int = 1000) -> list[ModelCall]:
        """The calls of a run, in their order."""
        wanted = select(_calls).where(_calls.c.run_id == run_id).order_by(_calls.c.call_id).limit(limit)
        return [_call(record) for record in self._connection.execute(wanted)]

    def usage_of(self, run_id: str) -> Usage:
        """What the calls of a run used together, in the words of a run's usage: input tokens with those of the cache.

        The cost is what is known of it; None where nothing is.
        """
        sums = (
            _calls.c.input_tokens,
            _calls.c.output_tokens,
            _calls.c.cache_read_tokens,
            _calls.c.cache_write_tokens,
            _calls.c.cost_nano,
        )
        wanted = select(
            func.count().label("requests"), *(func.sum(column).label(column.name) for column in sums)
        ).where(_calls.c.run_id == run_id, _calls.c.outcome != "refused")
        record = self._connection.execute(wanted).one()
        read, written = int(record.cache_read_tokens or 0), int(record.cache_write_tokens or 0)
        return Usage(
            requests=record.requests,
            input_tokens=int(record.input_tokens or 0) + read + written,
            output_tokens=int(record.output_tokens or 0),
            cache_read_tokens=read,
            cache_write_tokens=written,
            cost_usd=None if record.cost_nano is None else Decimal(int(record.cost_nano)).scaleb(-9),
        )

    def forget_runs(self, run_ids: Sequence[str]) -> int:
        """How many calls of these runs were deleted."""
        return self._connection.execute(delete(_calls).where(_calls.c.run_id.in_(run_ids))).rowcount


def _call(record: Row[Any]) -> ModelCall:
    return ModelCall(
        call_id=record.call_id,
        run_id=record.run_id,
        key_id=record.key_id,
        user_id=record.user_id,
        wire=record.wire,
        model=record.model,
        status=record.status,
        outcome=record.outcome,
        created_at=record.created_at,
        duration_ms=record.duration_ms,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        cache_read_tokens=record.cache_read_tokens,
        cache_write_tokens=record.cache_write_tokens,
        cost_nano=record.cost_nano,
        reserved_nano=record.reserved_nano,
        first_byte_ms=record.first_byte_ms,
        agent=record.agent,
    )
