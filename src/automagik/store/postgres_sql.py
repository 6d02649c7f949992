"""The hot path's statements on PostgreSQL: each takes arrays, one element a run, so that runs that come together go together."""

from automagik.store import schema
from automagik.store.delivery_sql import QUEUED_CTE, QUEUED_SIGNAL

__all__ = ["ACCEPT", "APPEND", "BEGIN", "CLAIMED", "FINISH", "START"]

# The runs that have not ended are few, and have indexes of their own. A plan that is made once, while the tables are small, must
# not take one of these for a run that it finds by its id, and read all of them: so it is asked here whether the run has an
# outcome, which no index knows of.
#
# Which sessions are there, which runs may use them, what is made. A run whose session was made by somebody else at the
# same moment gets no row here (ON CONFLICT waits for them and then does nothing): the caller asks again and finds it.
# Rows go in by an order of their keys, so that two statements that make the same ones can't wait for each other.
# `held` takes the sessions' rows, always before any row of a run and in the order of their keys; `entered` then counts on
# what the row is now, not on what this statement's snapshot saw of it. Where the two differ, the run waited for the end of
# another one, which the snapshot does not show: its context is `outdated`, the caller reads it again.
# One session may be meant by its id and by its name in one batch, so each run has its place among those of its session.
_ACCEPT_WITH = """
WITH asked AS (
  SELECT * FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::boolean[], $9::uuid[],
    $10::uuid[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::smallint[],
    $17::timestamptz[], $18::timestamptz[], $19::text[], $20::boolean[], $21::text[], $22::timestamptz[],
    $23::text[], $24::text[], $25::bytea[], $26::integer[], $27::text[]
  ) AS a(
    run_id, kind, name, agent_id, session_id, session_name, session_origin, may_make, user_id,
    visible_to, key_id, parent_id, requeue_of, labels, input, priority,
    deadline_at, queue_until, host, background, owner, created_at,
    key_owner, idempotency_key, body_hash, message_limit, names
  )
), found AS (
  SELECT a.run_id, s.*
  FROM asked a CROSS JOIN LATERAL (
    SELECT s.id, s.session_id, s.user_id, s.message_count, s.turns, s.open_runs FROM sessions s
    WHERE s.session_id = a.session_id
    UNION ALL
    SELECT s.id, s.session_id, s.user_id, s.message_count, s.turns, s.open_runs FROM sessions s
    WHERE s.session_name = a.session_name AND s.user_id = a.user_id
    UNION ALL
    SELECT s.id, s.session_id, s.user_id, s.message_count, s.turns, s.open_runs FROM sessions s
    WHERE s.session_name = a.session_name AND s.user_id IS NULL AND a.user_id IS NULL
    LIMIT 1
  ) s
), allowed AS (
  SELECT a.*, f.id AS found_key, coalesce(f.session_id, a.session_id) AS settled_id,
    coalesce(a.user_id, f.user_id) AS settled_user
  FROM asked a LEFT JOIN found f ON f.run_id = a.run_id
  WHERE CASE WHEN f.id IS NULL
    THEN a.may_make
    ELSE (a.visible_to IS NULL OR f.user_id = a.visible_to)
      AND (a.user_id IS NULL OR f.user_id IS NULL OR f.user_id = a.user_id)
    END
), new_users AS (
  INSERT INTO users (id, user_data, created_at, updated_at)
  SELECT user_id, '{}', min(created_at), min(created_at) FROM allowed WHERE user_id IS NOT NULL GROUP BY user_id
  ORDER BY user_id
  ON CONFLICT (id) DO NOTHING
), made AS (
  INSERT INTO sessions (session_id, agent_id, user_id, session_name, status, session_origin, metadata, message_count,
    turns, open_runs, created_at, updated_at)
  SELECT session_id, agent_id, user_id, session_name, 'active', session_origin, '{}', 0, 1, 1, created_at, created_at
  FROM allowed WHERE found_key IS NULL AND session_id IS NOT NULL
  ORDER BY session_id
  ON CONFLICT DO NOTHING
  RETURNING id, session_id
), held AS MATERIALIZED (
  SELECT s.id FROM sessions s WHERE s.id IN (SELECT found_key FROM allowed WHERE found_key IS NOT NULL)
  ORDER BY s.id FOR NO KEY UPDATE
), entered AS (
  UPDATE sessions s SET turns = s.turns + h.runs, open_runs = s.open_runs + h.runs
  FROM held CROSS JOIN LATERAL (SELECT count(*)::integer AS runs FROM allowed a WHERE a.found_key = held.id) h
  WHERE s.id = held.id
  RETURNING s.id, s.turns - h.runs AS turns, s.open_runs - h.runs AS open_runs
), placed AS (
  SELECT a.*, coalesce(e.turns + p.place, CASE WHEN a.settled_id IS NOT NULL THEN 1 END) AS turn,
    coalesce(e.open_runs + p.place, 1) = 1 AS ready, coalesce(e.open_runs + p.place, 1) = 1 AND NOT a.background AS starts
  FROM allowed a CROSS JOIN LATERAL (
    SELECT count(*)::integer AS place FROM allowed b WHERE b.found_key = a.found_key AND b.run_id <= a.run_id
  ) p LEFT JOIN made m ON m.session_id = a.settled_id LEFT JOIN entered e ON e.id = a.found_key
  WHERE a.settled_id IS NULL OR e.id IS NOT NULL OR m.id IS NOT NULL
), stored AS (
  INSERT INTO runs (run_id, kind, name, agent_id, session_id, user_id, key_id, parent_id, requeue_of, labels, status,
    attempt, priority, input, owner, background, ready, turn, queue_until, host, created_at, started_at, deadline_at,
    requests, tool_calls, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens)
  SELECT run_id, kind, name, agent_id, settled_id, settled_user, key_id, parent_id, requeue_of, labels::json,
    CASE WHEN starts THEN 'running' ELSE 'queued' END, 1, priority, input::json, owner, background, ready, turn,
    queue_until, host, created_at, CASE WHEN starts THEN created_at END, deadline_at, 0, 0, 0, 0, 0, 0
  FROM placed
  RETURNING run_id, session_id, user_id, status, background, ready, created_at
), new_keys AS (
  INSERT INTO idempotency_keys (key_id, idempotency_key, body_hash, run_id, created_at)
  SELECT a.key_owner, a.idempotency_key, a.body_hash, a.run_id, a.created_at
  FROM asked a JOIN stored ON stored.run_id = a.run_id WHERE a.idempotency_key IS NOT NULL
  ORDER BY a.key_owner, a.idempotency_key
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT run_id, 1, CASE WHEN status = 'running' THEN 'run_started' ELSE 'run_queued' END, created_at,
    CASE WHEN status = 'running' THEN '{}' WHEN background THEN '{"background":true}' ELSE '{"background":false}' END::json
  FROM stored
), told AS (
  SELECT pg_notify('automagik', 'work') FROM stored WHERE background AND ready LIMIT 1
)
SELECT a.run_id, stored.run_id IS NOT NULL AS is_stored, coalesce(f.id, m.id) AS session_key,
  coalesce(f.session_id, m.session_id) AS session_id, f.id IS NOT NULL AS is_found, f.user_id AS session_user,
  stored.ready AS is_ready, (e.turns, e.open_runs) IS DISTINCT FROM (f.turns, f.open_runs) AS is_outdated"""

_ACCEPT_FROM = """
FROM asked a LEFT JOIN found f ON f.run_id = a.run_id LEFT JOIN stored ON stored.run_id = a.run_id
  LEFT JOIN made m ON m.session_id = a.session_id LEFT JOIN entered e ON e.id = f.id"""

_CONTEXT_COLUMNS = ", h.roles, h.payloads, v.names, v.contents"

# The newest messages, and the memory variables from the farthest to the nearest scope: agent, user, agent and user, session.
_CONTEXT = """
LEFT JOIN LATERAL (
  SELECT array_agg(w.role ORDER BY w.id) AS roles, array_agg(w.raw_payload::text ORDER BY w.id) AS payloads FROM (
    SELECT m.id, m.role, m.raw_payload FROM messages m WHERE m.session_id = %(session_key)s
    ORDER BY m.id DESC LIMIT %(limit)s
  ) w
) h ON %(has_messages)s
LEFT JOIN LATERAL (
  SELECT array_agg(w.name ORDER BY w.near) AS names, array_agg(w.content ORDER BY w.near) AS contents FROM (
    SELECT y.name, y.content,
      4 + (y.user_id IS NOT NULL)::integer * 2 + (y.agent_id IS NOT NULL)::integer AS near
    FROM memories y WHERE y.session_id = %(session_key)s AND y.active
      AND (y.agent_id IS NULL OR y.agent_id = %(agent_id)s) AND (y.user_id IS NULL OR y.user_id = %(user_id)s)
    UNION ALL
    SELECT y.name, y.content, 2 + (y.agent_id IS NOT NULL)::integer
    FROM memories y WHERE y.user_id = %(user_id)s AND y.session_id IS NULL AND y.active
      AND (y.agent_id IS NULL OR y.agent_id = %(agent_id)s)
    UNION ALL
    SELECT y.name, y.content, 1
    FROM memories y WHERE y.agent_id = %(agent_id)s AND y.user_id IS NULL AND y.session_id IS NULL AND y.active
  ) w WHERE %(names)s IS NULL OR w.name = ANY (string_to_array(%(names)s, E'\\x1f'))
) v ON %(names)s IS DISTINCT FROM ''"""

BEGIN = (
    _ACCEPT_WITH
    + _CONTEXT_COLUMNS
    + _ACCEPT_FROM
    + _CONTEXT
    % {
        "session_key": "f.id",
        "limit": "a.message_limit",
        "has_messages": "f.message_count > 0 AND stored.ready",
        "agent_id": "a.agent_id",
        "user_id": "coalesce(a.user_id, f.user_id)",
        "names": "a.names",
    }
)
"""Store runs of this process; those whose turn has come start at once, with what their agents need."""

ACCEPT = "".join((_ACCEPT_WITH, ", (SELECT count(*) FROM told) AS told", _ACCEPT_FROM))
"""Store runs of the background, and wake a worker for those whose turn has come."""

START = (
    """
WITH started AS (
  UPDATE runs r SET status = 'running', started_at = s.started_at
  FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::integer[], $5::text[])
    AS s(run_id, started_at, owner, message_limit, names)
  WHERE r.run_id = s.run_id AND r.ready AND r.owner = s.owner
    AND CASE r.status WHEN 'queued' THEN true WHEN 'running' THEN r.started_at = s.started_at ELSE false END
  RETURNING r.run_id, r.agent_id, r.session_id, r.turn, r.user_id, s.message_limit, s.names
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT e.run_id, e.seq, e.type, e.at, e.data::json
  FROM unnest($6::text[], $7::integer[], $8::text[], $9::timestamptz[], $10::text[]) AS e(run_id, seq, type, at, data)
    JOIN started ON started.run_id = e.run_id
  ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT a.run_id, z.id AS session_key, a.session_id, a.user_id, a.message_limit, h.roles, h.payloads, v.names, v.contents
FROM started a LEFT JOIN sessions z ON z.session_id = a.session_id AND a.turn IS NOT NULL"""
    + _CONTEXT
    % {
        "session_key": "z.id",
        "limit": "a.message_limit",
        "has_messages": "z.message_count > 0",
        "agent_id": "a.agent_id",
        "user_id": "a.user_id",
        "names": "a.names",
    }
)
"""Start queued runs whose turn has come; those that are not queued any more, or not their owner's, are left out.

A start that is repeated because the answer to the first was lost is the same start."""

FINISH = "".join(
    (
        """
WITH held AS MATERIALIZED (
  SELECT s.id FROM sessions s
  WHERE s.session_id IN (SELECT r.session_id FROM runs r WHERE r.run_id = ANY ($1::text[]))
  ORDER BY s.id FOR NO KEY UPDATE
), ended AS (
  UPDATE runs r SET status = f.status, outcome = f.outcome, output = f.output::json, error = f.error::json,
    requests = f.requests, tool_calls = f.tool_calls, input_tokens = f.input_tokens, output_tokens = f.output_tokens,
    cache_read_tokens = f.cache_read_tokens, cache_write_tokens = f.cache_write_tokens, cost_usd = f.cost_usd,
    instructions = f.instructions, model = f.model, finished_at = f.finished_at, waiting_for = NULL
  FROM unnest(
    $1::text[], $2::text[], $3::boolean[], $4::text[], $5::text[], $6::text[], $7::text[], $8::integer[],
    $9::integer[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::numeric[], $15::text[],
    $16::text[], $17::timestamptz[], $18::bigint[], $19::integer[]
  ) AS f(
    run_id, owner, claims_next, status, outcome, output, error, requests,
    tool_calls, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_usd, instructions,
    model, finished_at, session_key, new_messages
  ), (SELECT count(*) AS sessions FROM held) h
  WHERE r.run_id = f.run_id AND r.outcome IS NULL AND r.owner = f.owner AND h.sessions >= 0
  RETURNING r.run_id, r.session_id, r.user_id, r.status, r.turn, r.ready, r.background, r.name, r.key_id, r.owner, f.claims_next,
    f.session_key, f.new_messages, f.finished_at
), bumped AS (
  UPDATE sessions s SET message_count = s.message_count + e.new_messages, open_runs = s.open_runs - e.runs,
    updated_at = CASE WHEN e.new_messages > 0 THEN e.finished_at ELSE s.updated_at END
  FROM (
    SELECT session_id, count(*) AS runs, sum(new_messages) AS new_messages, max(finished_at) AS finished_at,
      max(run_id) FILTER (WHERE ready) AS run_id
    FROM ended WHERE turn IS NOT NULL GROUP BY session_id
  ) e
  WHERE s.session_id = e.session_id
  RETURNING s.id, s.session_id, s.open_runs, e.run_id
), following AS (
  UPDATE runs r SET ready = true,
    owner = CASE WHEN r.background AND c.claims_next AND r.name = c.name AND r.key_id IS NOT DISTINCT FROM c.key_id
        AND r.host IS NULL AND r.available_at IS NULL AND (r.queue_until IS NULL OR r.queue_until > c.finished_at)
        AND r.started_at IS NULL
      THEN c.owner ELSE r.owner END
  FROM (
    SELECT e.run_id AS after, e.background AND e.claims_next AS claims_next, e.name, e.key_id, e.owner, e.finished_at, f.run_id
    FROM bumped b JOIN ended e ON e.run_id = b.run_id CROSS JOIN LATERAL (
      SELECT n.run_id FROM runs n
      WHERE n.session_id = b.session_id AND n.status IN ('queued', 'running', 'waiting') AND NOT n.ready
        AND n.run_id <> ALL (ARRAY(SELECT x.run_id FROM ended x))
      ORDER BY n.turn LIMIT 1
    ) f
    WHERE b.open_runs > 0
  ) c
  WHERE r.run_id = c.run_id AND r.outcome IS NULL
  RETURNING c.after, (SELECT max(e.seq) FROM run_events e WHERE e.run_id = r.run_id) AS last_seq, r.*
), new_messages AS (
  INSERT INTO messages (message_id, session_id, run_id, role, content, raw_payload, created_at)
  SELECT m.message_id, e.session_key, m.run_id, m.role, m.content, m.raw_payload::json, e.finished_at
  FROM unnest($20::uuid[], $21::text[], $22::text[], $23::text[], $24::text[])
      WITH ORDINALITY AS m(message_id, run_id, role, content, raw_payload, place)
    JOIN ended e ON e.run_id = m.run_id AND e.turn IS NOT NULL JOIN bumped ON bumped.id = e.session_key
  ORDER BY m.place
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT e.run_id, e.seq, e.type, e.at, e.data::json
  FROM unnest($25::text[], $26::integer[], $27::text[], $28::timestamptz[], $29::text[]) AS e(run_id, seq, type, at, data)
    JOIN ended ON ended.run_id = e.run_id
  ON CONFLICT (run_id, seq) DO NOTHING
), """,
        QUEUED_CTE,
        "\nSELECT ",
        QUEUED_SIGNAL,
        """, e.run_id, b.id AS session_key, b.session_id, """,
        ", ".join(f"n.{name} AS next_{name}" for name in ("last_seq", *schema.runs.c.keys())),
        """,
  e.ready AND coalesce(b.open_runs, 0) > 0 AND n.run_id IS NULL AS next_missed,
  CASE WHEN n.run_id IS NOT NULL AND (NOT n.background OR n.owner IS NULL)
    THEN pg_notify('automagik', CASE WHEN n.background THEN 'work' ELSE 'ready ' || n.run_id END)::text END AS told
FROM ended e LEFT JOIN bumped b ON b.run_id = e.run_id LEFT JOIN following n ON n.after = e.run_id""",
    )
)
"""End runs, and give the turn to the next of their sessions, which is read whole: it may have become the same owner's. Those that
had ended, or are another's, are left out."""

APPEND = """
WITH open AS (
  SELECT r.run_id FROM (
    SELECT run_id, owner FROM unnest($1::text[], $2::text[]) AS a(run_id, owner) GROUP BY run_id, owner
  ) a JOIN runs r ON r.run_id = a.run_id
  WHERE r.outcome IS NULL AND r.owner = a.owner
  ORDER BY r.run_id
  FOR SHARE OF r
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT e.run_id, e.seq, e.type, e.at, e.data::json
  FROM unnest($3::text[], $4::integer[], $5::text[], $6::timestamptz[], $7::text[]) AS e(run_id, seq, type, at, data)
    JOIN open ON open.run_id = e.run_id
  ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT run_id FROM open"""
"""Add events to runs that have not ended and are their owner's."""

CLAIMED = """
SELECT r.*, (SELECT max(e.seq) FROM run_events e WHERE e.run_id = r.run_id) AS last_seq
FROM unnest($1::text[], $2::text[]) AS a(run_id, owner) JOIN runs r ON r.run_id = a.run_id AND r.owner = a.owner"""
"""Read runs, whole, that belong to an owner."""
