"""The ledger's statements on SQLite, within the one writer's transaction, through the driver itself."""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from automagik.store.columns import clean
from automagik.store.reservations import Limit, Reserve, Reserved, Settle, Settled, granted_of, period_start
from automagik.types import JsonObject, utc_text

__all__ = ["reserve_in", "settle_in"]

# CROSS JOIN keeps the order: the few scopes first, each found by the index over scopes.
_LIMITS = """
SELECT b.budget_id, b.scope, b.scope_id, b.period,
  CASE b.period WHEN 'day' THEN ?2 WHEN 'month' THEN ?3 ELSE '' END AS start,
  b.limit_nano, b.soft_limit_nano, coalesce(c.spent_nano, 0), coalesce(c.reserved_nano, 0)
FROM json_each(?1) AS asked CROSS JOIN budgets b
  ON b.scope = json_extract(asked.value, '$[0]') AND b.scope_id = json_extract(asked.value, '$[1]')
LEFT JOIN budget_counters c
  ON c.budget_id = b.budget_id AND c.period_start = CASE b.period WHEN 'day' THEN ?2 WHEN 'month' THEN ?3 ELSE '' END
"""
_COUNT = (
    "INSERT INTO budget_counters (budget_id, period_start, spent_nano, reserved_nano, warned) VALUES (?, ?, 0, ?, 0)"
    " ON CONFLICT (budget_id, period_start) DO UPDATE SET reserved_nano = reserved_nano + excluded.reserved_nano"
)
_KEEP = (
    "INSERT INTO reservations (reservation_id, run_id, owner, amount_nano, counters, created_at, expires_at,"
    " key_id, user_id, wire, model, agent, scopes, priced) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)"
)
_TAKE = "DELETE FROM reservations WHERE reservation_id = ? RETURNING amount_nano, counters"
_SPEND = (
    "UPDATE budget_counters SET spent_nano = spent_nano + ?1, reserved_nano = max(0, reserved_nano - ?2)"
    " WHERE budget_id = ?3 AND period_start = ?4 RETURNING spent_nano, reserved_nano, warned"
)
_SPEND_MORE = (
    "INSERT INTO budget_counters (budget_id, period_start, spent_nano, reserved_nano, warned) VALUES (?, ?, ?, 0, 0)"
    " ON CONFLICT (budget_id, period_start) DO UPDATE SET spent_nano = spent_nano + excluded.spent_nano"
    " RETURNING spent_nano, reserved_nano, warned"
)
_FIND = "SELECT scope, scope_id, period, limit_nano, soft_limit_nano FROM budgets WHERE budget_id = ?"
_WARN = "UPDATE budget_counters SET warned = 1 WHERE budget_id = ? AND period_start = ?"


def reserve_in(connection: sqlite3.Connection, asked: Reserve) -> Reserved:
    """What is reserved, in all limits or in none; nothing is written where no limit applies."""
    day, month = period_start("day", asked.created_at), period_start("month", asked.created_at)
    scopes = orjson.dumps(asked.scopes).decode()
    limits = [Limit(*record) for record in connection.execute(_LIMITS, (scopes, day, month))]
    granted = granted_of(asked.amount_nano, asked.at_least_nano, limits)
    if granted is not None and limits:
        counters = [[limit.budget_id, limit.period_start] for limit in limits]
        connection.executemany(_COUNT, [(*counter, granted) for counter in counters])
        kept = (asked.reservation_id, asked.run_id, asked.owner, granted, orjson.dumps(counters).decode())
        head = asked.head
        user = str(head.user_id) if head.user_id is not None else None
        about = (head.key_id, user, head.wire, clean(head.model), head.agent, scopes)
        connection.execute(_KEEP, (*kept, utc_text(asked.created_at), utc_text(asked.expires_at), *about))
    return Reserved(granted, limits)


def settle_in(connection: sqlite3.Connection, settle: Settle) -> Settled:
    """What came of the end of a reservation."""
    is_new = settle.call is None or _keep_call(connection, settle.call)
    taken = connection.execute(_TAKE, (settle.reservation_id,)).fetchone()
    if taken is not None:
        amount, counters = taken[0], orjson.loads(taken[1])
        cost = amount if settle.cost_nano is None else settle.cost_nano
    elif settle.counters is None or settle.call is None:
        return Settled(was_open=False)
    else:
        amount, counters = 0, settle.counters
        cost = settle.amount_nano if settle.cost_nano is None else settle.cost_nano
    if not is_new:
        cost = 0
    passed = _spend(connection, counters, cost, amount)
    if cost and settle.scopes:
        passed += _spend_more(connection, settle, {budget_id for budget_id, _ in counters}, cost)
    return Settled(was_open=taken is not None, passed=passed)


def _spend(connection: sqlite3.Connection, counters: Sequence[tuple[str, str]], cost: int, amount: int) -> list[Limit]:
    """Count in what was reserved in; the budgets whose soft limit was passed by it."""
    passed: list[Limit] = []
    for budget_id, start in counters:
        counted = connection.execute(_SPEND, (cost, amount, budget_id, start)).fetchone()
        if counted is None:  # the budget was deleted meanwhile
            continue
        spent, reserved, warned = counted
        scope, scope_id, period, limit, soft = connection.execute(_FIND, (budget_id,)).fetchone()
        if soft is not None and spent >= soft and not warned:
            connection.execute(_WARN, (budget_id, start))
            passed.append(Limit(budget_id, scope, scope_id, period, start, limit, soft, spent, reserved))
    return passed


def _spend_more(connection: sqlite3.Connection, settle: Settle, counted: set[str], cost: int) -> list[Limit]:
    """Count in the budgets that were set since the call began; those whose soft limit was passed by it."""
    assert settle.at is not None
    scopes = orjson.dumps(settle.scopes).decode()
    days = (period_start("day", settle.at), period_start("month", settle.at))
    passed: list[Limit] = []
    for limit in [Limit(*record) for record in connection.execute(_LIMITS, (scopes, *days))]:
        if limit.budget_id in counted:
            continue
        which = (limit.budget_id, limit.period_start)
        spent, reserved, warned = connection.execute(_SPEND_MORE, (*which, cost)).fetchone()
        if limit.soft_limit_nano is not None and spent >= limit.soft_limit_nano and not warned:
            connection.execute(_WARN, which)
            passed.append(replace(limit, spent_nano=spent, reserved_nano=reserved))
    return passed


def _keep_call(connection: sqlite3.Connection, call: JsonObject) -> bool:
    """Whether the row is kept, and was not there already. Columns are named by the platform's own code, never by what came from outside."""
    names, places = ", ".join(call), ", ".join("?" * len(call))
    values: list[Any] = list(call.values())
    insert = f"INSERT INTO model_calls ({names}) VALUES ({places}) ON CONFLICT DO NOTHING"  # noqa: S608
    return connection.execute(insert, values).rowcount > 0
