"""The ledger's statements on PostgreSQL: one each for any number of calls, which come as one JSON text; and one for the call that
comes alone, as most do, which takes the database a fifth less.

Rows of counters are always taken in one order (`held`), after the rows of reservations, so that no two statements wait for
each other. `held` gives them as they are now, not as this statement's snapshot saw them.

Neither waits for the disk (`synchronous_commit` off): a call of a model must not. Commits keep their order all the same, so what
the last moment before a crash of the database can lose is the end of a reservation, which then counts in full when it expires;
or one that was just begun, whose settlement brings along what it would have counted in (`lost`). Where the call has its row
already, it was not lost: somebody who took this process for dead has settled it.

Whether a call has its row is looked up in the index (`LIMIT 1`): as EXISTS, it would be planned as a look at all calls there are.
A call counts in budgets, too, that were set while it was under way (`touched`, of its scopes), whose counters of the period may
have to be made (`made`).
"""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from automagik.store.columns import clean
from automagik.store.reservations import Limit, Reserve, Settle, period_start
from automagik.types import utc_text

__all__ = [
    "RESERVE",
    "RESERVE_ALONE",
    "SETTLE",
    "limits_of",
    "reserve_alone_parameters",
    "reserve_parameters",
    "settle_parameters",
]

# Of calls that come together the first is judged exactly. A later one is reserved for only where it fits in full beside all
# that the earlier ones asked; where not, it is not decided, and asked again. A counter that is not there yet (`is_missing`) is
# made by the caller, who then asks again: a row that this statement would insert it could not lock.
RESERVE = """
WITH asked AS (
  SELECT * FROM json_to_recordset($1::json) AS a(
    place integer, id text, run_id text, owner text, amount bigint, at_least bigint, scopes json, day text, month text,
    created_at timestamptz, expires_at timestamptz, key_id text, user_id uuid, wire text, model text, agent text)
), limits AS (
  SELECT a.place, a.amount, a.at_least, b.budget_id, b.scope, b.scope_id, b.period, b.limit_nano, b.soft_limit_nano,
    CASE b.period WHEN 'day' THEN a.day WHEN 'month' THEN a.month ELSE '' END AS period_start
  FROM asked a CROSS JOIN LATERAL json_array_elements(a.scopes) s
  JOIN budgets b ON b.scope = s->>0 AND b.scope_id = s->>1
), held AS (
  SELECT c.budget_id, c.period_start, c.spent_nano, c.reserved_nano FROM budget_counters c
  WHERE (c.budget_id, c.period_start) IN (SELECT l.budget_id, l.period_start FROM limits l)
  ORDER BY c.budget_id, c.period_start FOR UPDATE
), judged AS (
  SELECT l.*, h.budget_id IS NULL AS is_missing, h.spent_nano, h.reserved_nano,
    l.limit_nano - h.spent_nano - h.reserved_nano - coalesce(sum(l.amount) OVER (
      PARTITION BY l.budget_id, l.period_start ORDER BY l.place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS room
  FROM limits l LEFT JOIN held h ON h.budget_id = l.budget_id AND h.period_start = l.period_start
), decided AS (
  SELECT a.place, a.id, coalesce(bool_or(j.is_missing), false) AS is_missing, a.place = 1 AS is_exact,
    (CASE
      WHEN bool_or(j.is_missing) THEN NULL
      WHEN coalesce(bool_and(j.room >= a.amount), true) THEN a.amount
      WHEN a.place > 1 OR bool_or(j.room < a.amount AND j.reserved_nano <> 0) OR min(j.room) < a.at_least THEN NULL
      ELSE min(j.room)
    END)::bigint AS granted,
    json_agg(json_build_array(j.budget_id, j.scope, j.scope_id, j.period, j.period_start, j.limit_nano, j.soft_limit_nano,
      j.spent_nano, j.reserved_nano)) FILTER (WHERE j.budget_id IS NOT NULL) AS limits,
    json_agg(json_build_array(j.budget_id, j.period_start)) FILTER (WHERE j.budget_id IS NOT NULL) AS counters
  FROM asked a LEFT JOIN judged j ON j.place = a.place
  GROUP BY a.place, a.id, a.amount, a.at_least
), counted AS (
  UPDATE budget_counters c SET reserved_nano = c.reserved_nano + g.amount
  FROM (
    SELECT j.budget_id, j.period_start, sum(d.granted)::bigint AS amount
    FROM judged j JOIN decided d ON d.place = j.place WHERE d.granted IS NOT NULL GROUP BY j.budget_id, j.period_start
  ) g
  WHERE c.budget_id = g.budget_id AND c.period_start = g.period_start
), kept AS (
  INSERT INTO reservations (reservation_id, run_id, owner, amount_nano, counters, created_at, expires_at,
    key_id, user_id, wire, model, agent, scopes, priced)
  SELECT a.id, a.run_id, a.owner, d.granted, d.counters, a.created_at, a.expires_at,
    a.key_id, a.user_id, a.wire, a.model, a.agent, a.scopes, true
  FROM asked a JOIN decided d ON d.place = a.place WHERE d.granted IS NOT NULL AND d.counters IS NOT NULL
)
SELECT id AS run_id, granted, is_missing, is_exact, limits::text AS limits,
  set_config('synchronous_commit', 'off', true) AS unsynchronised
FROM decided
"""

# The same for one call. What it is limited by, and whether a counter is missing, is told as above.
RESERVE_ALONE = """
WITH limits AS (
  SELECT b.budget_id, b.scope, b.scope_id, b.period, b.limit_nano, b.soft_limit_nano,
    CASE b.period WHEN 'day' THEN $8::text WHEN 'month' THEN $9::text ELSE '' END AS period_start
  FROM unnest($6::text[], $7::text[]) AS s(scope, scope_id)
  JOIN budgets b ON b.scope = s.scope AND b.scope_id = s.scope_id
), held AS (
  SELECT l.*, c.spent_nano, c.reserved_nano, l.limit_nano - c.spent_nano - c.reserved_nano AS room
  FROM limits l JOIN budget_counters c ON c.budget_id = l.budget_id AND c.period_start = l.period_start
  ORDER BY c.budget_id, c.period_start FOR UPDATE OF c
), decided AS (
  SELECT count(*) < (SELECT count(*) FROM limits) AS is_missing,
    (CASE
      WHEN count(*) < (SELECT count(*) FROM limits) THEN NULL
      WHEN coalesce(bool_and(h.room >= $4), true) THEN $4
      WHEN bool_or(h.room < $4 AND h.reserved_nano <> 0) OR min(h.room) < $5 THEN NULL
      ELSE min(h.room)
    END)::bigint AS granted,
    json_agg(json_build_array(h.budget_id, h.scope, h.scope_id, h.period, h.period_start, h.limit_nano, h.soft_limit_nano,
      h.spent_nano, h.reserved_nano)) AS limits,
    json_agg(json_build_array(h.budget_id, h.period_start)) AS counters
  FROM held h
), counted AS (
  UPDATE budget_counters c SET reserved_nano = c.reserved_nano + d.granted
  FROM decided d, held h
  WHERE d.granted IS NOT NULL AND c.budget_id = h.budget_id AND c.period_start = h.period_start
), kept AS (
  INSERT INTO reservations (reservation_id, run_id, owner, amount_nano, counters, created_at, expires_at,
    key_id, user_id, wire, model, agent, scopes, priced)
  SELECT $1, $2, $3, d.granted, d.counters, $10, $11, $12, $13, $14, $15, $16, $17, true
  FROM decided d WHERE d.granted IS NOT NULL AND d.counters IS NOT NULL
)
SELECT $1 AS run_id, granted, is_missing, true AS is_exact, limits::text AS limits,
  set_config('synchronous_commit', 'off', true) AS unsynchronised
FROM decided
"""

SETTLE = """
WITH asked AS (
  SELECT a.*, (
    SELECT true FROM model_calls m WHERE m.call_id = 'call_' || split_part(a.id, '_', 2) LIMIT 1) IS NOT NULL AS has_row
  FROM json_to_recordset($1::json) AS a(
    place integer, id text, cost bigint, amount bigint, counters json, scopes json, day text, month text)
), gone AS (
  DELETE FROM reservations r USING asked a WHERE r.reservation_id = a.id
  RETURNING a.place, a.id, CASE WHEN a.has_row THEN 0 ELSE coalesce(a.cost, r.amount_nano) END AS cost, r.amount_nano, r.counters
), lost AS (
  SELECT a.place, coalesce(a.cost, a.amount) AS cost, 0::bigint AS amount_nano, a.counters
  FROM asked a WHERE a.counters IS NOT NULL AND NOT a.has_row AND NOT EXISTS (SELECT FROM gone g WHERE g.place = a.place)
), ended AS (
  SELECT place, cost, amount_nano, counters FROM gone UNION ALL SELECT * FROM lost
), touched AS (
  SELECT e.place, e.cost, e.amount_nano, p->>0 AS budget_id, p->>1 AS period_start, false AS is_more
  FROM ended e CROSS JOIN LATERAL json_array_elements(e.counters) p
  UNION ALL
  SELECT e.place, e.cost, 0, b.budget_id, CASE b.period WHEN 'day' THEN a.day WHEN 'month' THEN a.month ELSE '' END, true
  FROM ended e JOIN asked a ON a.place = e.place CROSS JOIN LATERAL json_array_elements(a.scopes) s
  JOIN budgets b ON b.scope = s->>0 AND b.scope_id = s->>1
  WHERE e.cost > 0 AND NOT EXISTS (SELECT FROM json_array_elements(e.counters) k WHERE k->>0 = b.budget_id)
), changes AS (
  SELECT t.budget_id, t.period_start, sum(t.cost)::bigint AS cost, sum(t.amount_nano)::bigint AS amount,
    min(t.place) AS place, bool_or(t.is_more) AS has_more
  FROM touched t GROUP BY t.budget_id, t.period_start
), held AS (
  SELECT c.budget_id, c.period_start, c.warned FROM budget_counters c
  WHERE (c.budget_id, c.period_start) IN (SELECT ch.budget_id, ch.period_start FROM changes ch)
  ORDER BY c.budget_id, c.period_start FOR UPDATE
), changed AS (
  UPDATE budget_counters c SET spent_nano = c.spent_nano + n.cost,
    reserved_nano = greatest(0, c.reserved_nano - n.amount),
    warned = c.warned OR coalesce(c.spent_nano + n.cost >= n.soft_limit_nano, false)
  FROM (
    SELECT h.budget_id, h.period_start, h.warned AS was_warned, ch.cost, ch.amount, ch.place,
      b.scope, b.scope_id, b.period, b.limit_nano, b.soft_limit_nano
    FROM held h JOIN changes ch ON ch.budget_id = h.budget_id AND ch.period_start = h.period_start
    JOIN budgets b ON b.budget_id = h.budget_id
  ) n
  WHERE c.budget_id = n.budget_id AND c.period_start = n.period_start
  RETURNING n.place, c.warned AND NOT n.was_warned AS is_new, json_build_array(c.budget_id, n.scope, n.scope_id, n.period,
    c.period_start, n.limit_nano, n.soft_limit_nano, c.spent_nano, c.reserved_nano) AS passed
), made AS (
  INSERT INTO budget_counters AS c (budget_id, period_start, spent_nano, reserved_nano, warned)
  SELECT ch.budget_id, ch.period_start, ch.cost, 0, coalesce(ch.cost >= b.soft_limit_nano, false)
  FROM changes ch JOIN budgets b ON b.budget_id = ch.budget_id
  WHERE ch.has_more AND NOT EXISTS (
    SELECT FROM held h WHERE h.budget_id = ch.budget_id AND h.period_start = ch.period_start)
  ORDER BY ch.budget_id, ch.period_start
  ON CONFLICT (budget_id, period_start) DO UPDATE
    SET spent_nano = c.spent_nano + excluded.spent_nano, warned = c.warned OR excluded.warned
  RETURNING c.budget_id, c.period_start, c.spent_nano, c.reserved_nano, c.warned
), told AS (
  SELECT place, passed FROM changed WHERE is_new
  UNION ALL
  SELECT ch.place, json_build_array(m.budget_id, b.scope, b.scope_id, b.period, m.period_start, b.limit_nano,
    b.soft_limit_nano, m.spent_nano, m.reserved_nano)
  FROM made m JOIN changes ch ON ch.budget_id = m.budget_id AND ch.period_start = m.period_start
  JOIN budgets b ON b.budget_id = m.budget_id WHERE m.warned
), calls AS (
  INSERT INTO model_calls SELECT * FROM json_populate_recordset(NULL::model_calls, $2::json) ON CONFLICT DO NOTHING
)
SELECT a.id AS run_id, g.place IS NOT NULL AS was_open, set_config('synchronous_commit', 'off', true) AS unsynchronised,
  (SELECT json_agg(t.passed) FROM told t WHERE t.place = a.place)::text AS passed
FROM asked a LEFT JOIN gone g ON g.place = a.place
"""


def reserve_parameters(asked: Sequence[Reserve]) -> list[str]:
    """The parameters of RESERVE for these calls, in their order."""
    rows = [
        {
            "place": place,
            "id": one.reservation_id,
            "run_id": one.run_id,
            "owner": one.owner,
            "amount": one.amount_nano,
            "at_least": one.at_least_nano,
            "scopes": one.scopes,
            "day": period_start("day", one.created_at),
            "month": period_start("month", one.created_at),
            "created_at": utc_text(one.created_at),
            "expires_at": utc_text(one.expires_at),
            "key_id": one.head.key_id,
            "user_id": str(one.head.user_id) if one.head.user_id is not None else None,
            "wire": one.head.wire,
            "model": clean(one.head.model),
            "agent": one.head.agent,
        }
        for place, one in enumerate(asked, start=1)
    ]
    return [json.dumps(rows)]


def reserve_alone_parameters(asked: Reserve) -> list[object]:
    """The parameters of RESERVE_ALONE for this call."""
    head = asked.head
    return [
        asked.reservation_id,
        asked.run_id,
        asked.owner,
        asked.amount_nano,
        asked.at_least_nano,
        [scope for scope, _ in asked.scopes],
        [whom for _, whom in asked.scopes],
        period_start("day", asked.created_at),
        period_start("month", asked.created_at),
        asked.created_at,
        asked.expires_at,
        head.key_id,
        head.user_id,
        head.wire,
        clean(head.model),
        head.agent,
        orjson.dumps(asked.scopes).decode(),
    ]


def settle_parameters(settled: Sequence[Settle]) -> list[str]:
    """The parameters of SETTLE for these ends, in their order."""
    rows = [
        {
            "place": place,
            "id": one.reservation_id,
            "cost": one.cost_nano,
            "amount": one.amount_nano,
            "counters": one.counters,
            "scopes": one.scopes,
            "day": period_start("day", one.at) if one.at is not None else None,
            "month": period_start("month", one.at) if one.at is not None else None,
        }
        for place, one in enumerate(settled, start=1)
    ]
    return [json.dumps(rows), json.dumps([one.call for one in settled if one.call is not None])]


def limits_of(text: str | None) -> list[Limit]:
    """The limits that a statement gave."""
    records: Sequence[Sequence[Any]] = json.loads(text) if text else ()
    return [Limit(*record) for record in records]
