"""What the statements of the ledger take and give: a reservation in all limits at once, and its end."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from automagik.types import JsonObject

__all__ = [
    "CallHead",
    "Limit",
    "Period",
    "Reserve",
    "Reserved",
    "Scope",
    "Settle",
    "Settled",
    "call_of",
    "granted_of",
    "period_start",
]

Scope = Literal["organisation", "key", "user", "agent", "epic", "run"]
"""Whom a budget limits."""
Period = Literal["day", "month", "total"]
"""How long what was spent counts: until the day or the month is over (UTC), or for ever."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One budget in one period, as it stands. Amounts are nano-dollars."""

    budget_id: str
    scope: Scope
    scope_id: str
    period: Period
    period_start: str
    limit_nano: int
    soft_limit_nano: int | None
    spent_nano: int
    reserved_nano: int

    @property
    def room_nano(self) -> int:
        """What may still be reserved; below zero where the limit was lowered, or a call cost more than it was thought to."""
        return self.limit_nano - self.spent_nano - self.reserved_nano


@dataclass(frozen=True, slots=True)
class CallHead:
    """What is known of a call before it is made, so that its row can say it also where its process dies."""

    wire: str = "unknown"
    model: str = "unknown"
    agent: str | None = None
    """The agent's or workflow's name."""
    key_id: str | None = None
    user_id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class Reserve:
    """A call that is to be reserved for in every budget of `scopes` (pairs of scope and whom it names)."""

    reservation_id: str
    owner: str
    amount_nano: int
    at_least_nano: int
    scopes: Sequence[tuple[str, str]]
    created_at: datetime
    expires_at: datetime
    run_id: str | None = None
    head: CallHead = CallHead()
    is_priced: bool = True
    """Whether `amount_nano` is known to be the most that it can cost."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What came of it: `granted_nano` in all of `limits`, or None and nothing is reserved. `limits` stand as before it."""

    granted_nano: int | None
    limits: Sequence[Limit]


@dataclass(frozen=True, slots=True)
class Settle:
    """The end of a reservation: what the call cost (None: all that was reserved), and the row of `model_calls` that tells of it.

    `counters` (pairs of a budget and the start of its period) and `amount_nano` are given where the reservation must still be
    there: where it isn't, because the database crashed and lost it, the cost counts all the same. Where nothing was reserved, as
    no budget applied, `counters` are none.

    The cost counts in budgets of `scopes`, too, that are not among the reservation's: they were set meanwhile. `at` says in which
    period. What has its row already counts nothing again.
    """

    reservation_id: str
    cost_nano: int | None
    call: JsonObject | None = None
    counters: Sequence[tuple[str, str]] | None = None
    amount_nano: int = 0
    scopes: Sequence[tuple[str, str]] = ()
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of it. `was_open` false: it had been settled before, so nothing was counted again."""

    was_open: bool
    passed: Sequence[Limit] = ()
    """The budgets whose soft limit was passed by it, for the first time in the period."""


def call_of(reservation_id: str) -> str:
    """The id of the row that tells of the call which is reserved for: whoever settles it, there is one."""
    return f"call_{reservation_id.partition('_')[2]}"


def granted_of(amount_nano: int, at_least_nano: int, limits: Sequence[Limit]) -> int | None:
    """What is reserved where these limits apply: all, or less where that is what is left and nothing else is reserved there.

    Where a limit is full of what others have reserved, nothing is: when they are settled there may be room for all.
    """
    full = [limit for limit in limits if limit.room_nano < amount_nano]
    if not full:
        return amount_nano
    room = min(limit.room_nano for limit in full)
    return room if room >= at_least_nano and not any(limit.reserved_nano for limit in full) else None


def period_start(period: str, moment: datetime) -> str:
    """The name of the period that `moment` (UTC) lies in, which sorts by time: `2026-11-28`, `2026-11`, or empty."""
    if period not in ("day", "month"):
        return ""
    day = moment.date().isoformat()  # many times as fast as by a format
    return day if period == "day" else day[:7]
