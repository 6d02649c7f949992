"""What the end of a run leaves for the webhooks, as the statements that end runs contain it.

Every statement that ends a run queues the run's deliveries in the same transaction, so there is none without the other.
A delivery's id is made of the run's and the webhook's: who asks twice finds it there.
"""

from typing import Any

from sqlalchemy import Connection, text

from automagik.store.turns import notify

__all__ = ["DELIVERY_TOPIC", "QUEUED_CTE", "QUEUED_SIGNAL", "QUEUE_ONE", "queue_deliveries"]

DELIVERY_TOPIC = "delivery"
"""The topic of the signal that wakes senders."""

QUEUED_CTE = """queued_deliveries AS (
  INSERT INTO deliveries (delivery_id, webhook_id, run_id, event, status, attempts, next_at, created_at)
  SELECT 'dlv_' || substr(e.run_id, 5) || '_' || substr(w.webhook_id, 5), w.webhook_id, e.run_id, 'run.' || e.status,
    'pending', 0, e.finished_at, e.finished_at
  FROM webhooks w JOIN ended e ON (w.user_id IS NULL OR w.user_id = e.user_id)
    AND w.events::jsonb @> to_jsonb('run.' || e.status)
    AND (w.names::jsonb = '[]' OR w.names::jsonb @> to_jsonb(e.name))
  WHERE w.active
  ON CONFLICT DO NOTHING
  RETURNING delivery_id
)"""
"""PostgreSQL: a part of a WITH after `ended`, the runs that ended (run_id, status, name, user_id, finished_at)."""

QUEUED_SIGNAL = (
    "CASE WHEN EXISTS (SELECT FROM queued_deliveries)"
    f" THEN pg_notify('automagik', '{DELIVERY_TOPIC}')::text END AS told_senders"
)
"""PostgreSQL: a column of the SELECT below `QUEUED_CTE`, which wakes the senders when the transaction commits."""

QUEUE_ONE = """
INSERT INTO deliveries (delivery_id, webhook_id, run_id, event, status, attempts, next_at, created_at)
SELECT 'dlv_' || substr(r.run_id, 5) || '_' || substr(w.webhook_id, 5), w.webhook_id, r.run_id, 'run.' || r.status,
  'pending', 0, r.finished_at, r.finished_at
FROM webhooks w CROSS JOIN runs r
WHERE w.active AND r.run_id = ?1 AND r.finished_at IS NOT NULL
  AND (w.user_id IS NULL OR w.user_id = r.user_id)
  AND EXISTS (SELECT 1 FROM json_each(w.events) e WHERE e.value = 'run.' || r.status)
  AND (json_array_length(w.names) = 0 OR EXISTS (SELECT 1 FROM json_each(w.names) n WHERE n.value = r.name))
ON CONFLICT DO NOTHING"""
"""SQLite: for one run (its id) that this transaction has ended; `rowcount` says how many. The caller signals after the commit.

CROSS JOIN makes SQLite look at the webhooks first: where there are none, that is all.
"""

_QUEUE_ENDED = text(
    f"""
WITH ended AS (
  SELECT run_id, status, name, user_id, finished_at FROM runs WHERE run_id = :run_id AND finished_at IS NOT NULL
), {QUEUED_CTE}
SELECT count(*) FROM queued_deliveries"""  # noqa: S608 - a constant
)


def queue_deliveries(connection: Connection, run_id: str) -> int:
    """How many deliveries the end of this run left: for ends outside the hot path, in the transaction that made them.

    On PostgreSQL the commit wakes the senders; on SQLite the caller does, by the signal `delivery`.
    """
    if connection.dialect.name == "postgresql":
        queued: Any = connection.scalar(_QUEUE_ENDED, {"run_id": run_id})
    else:
        queued = connection.exec_driver_sql(QUEUE_ONE, (run_id,)).rowcount
    if queued:
        notify(connection, DELIVERY_TOPIC)
    return int(queued)
