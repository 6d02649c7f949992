"""The hot path's statements on PostgreSQL: each takes arrays, one element a run, so that runs that come together go together."""

__all__ = ["ACCEPT", "APPEND", "BEGIN", "FINISH", "START"]

# Which sessions are there, which runs may use them, what is made. A run whose session was made by somebody else at the
# same moment gets no row here (ON CONFLICT waits for them and then does nothing): the caller asks again and finds it.
# Rows go in by an order of their keys, so that two statements that make the same ones can't wait for each other.
_ACCEPT_WITH = """
WITH asked AS (
  SELECT * FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::boolean[], $9::uuid[],
    $10::uuid[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::smallint[], $17::smallint[],
    $18::timestamptz[], $19::text[], $20::timestamptz[], $21::integer[], $22::text[]
  ) AS a(
    run_id, kind, name, agent_id, session_id, session_name, session_origin, may_make, user_id,
    visible_to, key_id, parent_id, requeue_of, labels, input, attempt, priority,
    deadline_at, owner, created_at, message_limit, names
  )
), found AS (
  SELECT a.run_id, s.*
  FROM asked a CROSS JOIN LATERAL (
    SELECT s.id, s.session_id, s.user_id, s.message_count FROM sessions s WHERE s.session_id = a.session_id
    UNION ALL
    SELECT s.id, s.session_id, s.user_id, s.message_count FROM sessions s
    WHERE s.session_name = a.session_name AND s.user_id = a.user_id
    UNION ALL
    SELECT s.id, s.session_id, s.user_id, s.message_count FROM sessions s
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
    created_at, updated_at)
  SELECT session_id, agent_id, user_id, session_name, 'active', session_origin, '{}', 0, created_at, created_at
  FROM allowed WHERE found_key IS NULL AND session_id IS NOT NULL
  ORDER BY session_id
  ON CONFLICT DO NOTHING
  RETURNING id, session_id
), stored AS (
  INSERT INTO runs (run_id, kind, name, agent_id, session_id, user_id, key_id, parent_id, requeue_of, labels, status,
    attempt, priority, input, owner, created_at, started_at, deadline_at, requests, tool_calls, input_tokens,
    output_tokens, cache_read_tokens, cache_write_tokens)
  SELECT a.run_id, a.kind, a.name, a.agent_id, a.settled_id, a.settled_user, a.key_id, a.parent_id, a.requeue_of,
    a.labels::json, %(status)s, a.attempt, a.priority, a.input::json, a.owner, a.created_at, %(started)s,
    a.deadline_at, 0, 0, 0, 0, 0, 0
  FROM allowed a LEFT JOIN made m ON m.session_id = a.settled_id
  WHERE a.settled_id IS NULL OR a.found_key IS NOT NULL OR m.id IS NOT NULL
  RETURNING run_id, session_id, user_id
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT e.run_id, e.seq, e.type, e.at, e.data::json
  FROM unnest($23::text[], $24::integer[], $25::text[], $26::timestamptz[], $27::text[]) AS e(run_id, seq, type, at, data)
    JOIN stored ON stored.run_id = e.run_id
  ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT a.run_id, stored.run_id IS NOT NULL AS is_stored, coalesce(f.id, m.id) AS session_key,
  coalesce(f.session_id, m.session_id) AS session_id, f.id IS NOT NULL AS is_found, f.user_id AS session_user"""

_ACCEPT_FROM = """
FROM asked a LEFT JOIN found f ON f.run_id = a.run_id LEFT JOIN stored ON stored.run_id = a.run_id
  LEFT JOIN made m ON m.session_id = a.session_id"""

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
    _ACCEPT_WITH % {"status": "'running'", "started": "a.created_at"}
    + _CONTEXT_COLUMNS
    + _ACCEPT_FROM
    + _CONTEXT
    % {
        "session_key": "f.id",
        "limit": "a.message_limit",
        "has_messages": "f.message_count > 0",
        "agent_id": "a.agent_id",
        "user_id": "coalesce(a.user_id, f.user_id)",
        "names": "a.names",
    }
)
"""Store runs that start at once, with what their agents need."""

ACCEPT = _ACCEPT_WITH % {"status": "'queued'", "started": "NULL"} + _ACCEPT_FROM
"""Store queued runs."""

START = (
    """
WITH started AS (
  UPDATE runs r SET status = 'running', started_at = s.started_at, owner = s.owner
  FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::integer[], $5::text[])
    AS s(run_id, started_at, owner, message_limit, names)
  WHERE r.run_id = s.run_id AND r.status = 'queued'
  RETURNING r.run_id, r.agent_id, r.session_id, r.user_id, s.message_limit, s.names
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT e.run_id, e.seq, e.type, e.at, e.data::json
  FROM unnest($6::text[], $7::integer[], $8::text[], $9::timestamptz[], $10::text[]) AS e(run_id, seq, type, at, data)
    JOIN started ON started.run_id = e.run_id
  ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT a.run_id, z.id AS session_key, a.session_id, a.user_id, a.message_limit, h.roles, h.payloads, v.names, v.contents
FROM started a LEFT JOIN sessions z ON z.session_id = a.session_id"""
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
"""Start queued runs; those that are not queued any more are left out of the answer."""

FINISH = """
WITH ended AS (
  UPDATE runs r SET status = f.status, outcome = f.outcome, output = f.output::json, error = f.error::json,
    requests = f.requests, tool_calls = f.tool_calls, input_tokens = f.input_tokens, output_tokens = f.output_tokens,
    cache_read_tokens = f.cache_read_tokens, cache_write_tokens = f.cache_write_tokens, cost_usd = f.cost_usd,
    instructions = f.instructions, model = f.model, finished_at = f.finished_at, waiting_for = NULL
  FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::integer[], $8::bigint[],
    $9::bigint[], $10::bigint[], $11::bigint[], $12::numeric[], $13::text[], $14::text[], $15::timestamptz[],
    $16::bigint[], $17::integer[]
  ) AS f(
    run_id, status, outcome, output, error, requests, tool_calls, input_tokens,
    output_tokens, cache_read_tokens, cache_write_tokens, cost_usd, instructions, model, finished_at,
    session_key, new_messages
  )
  WHERE r.run_id = f.run_id AND r.status NOT IN ('completed', 'failed', 'cancelled')
  RETURNING r.run_id, f.session_key, f.new_messages, f.finished_at
), bumped AS (
  UPDATE sessions s SET message_count = s.message_count + e.new_messages, updated_at = e.finished_at
  FROM (
    SELECT session_key, sum(new_messages) AS new_messages, max(finished_at) AS finished_at
    FROM ended WHERE new_messages > 0 GROUP BY session_key
  ) e
  WHERE s.id = e.session_key
  RETURNING s.id
), new_messages AS (
  INSERT INTO messages (message_id, session_id, run_id, role, content, raw_payload, created_at)
  SELECT m.message_id, e.session_key, m.run_id, m.role, m.content, m.raw_payload::json, e.finished_at
  FROM unnest($18::uuid[], $19::text[], $20::text[], $21::text[], $22::text[])
      WITH ORDINALITY AS m(message_id, run_id, role, content, raw_payload, place)
    JOIN ended e ON e.run_id = m.run_id JOIN bumped ON bumped.id = e.session_key
  ORDER BY m.place
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT e.run_id, e.seq, e.type, e.at, e.data::json
  FROM unnest($23::text[], $24::integer[], $25::text[], $26::timestamptz[], $27::text[]) AS e(run_id, seq, type, at, data)
    JOIN ended ON ended.run_id = e.run_id
  ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT run_id FROM ended"""
"""End runs; those that had ended are left out of the answer, and nothing of theirs is written."""

APPEND = """
WITH open AS (
  SELECT r.run_id FROM (SELECT DISTINCT run_id FROM unnest($1::text[]) AS a(run_id)) a JOIN runs r ON r.run_id = a.run_id
  WHERE r.status NOT IN ('completed', 'failed', 'cancelled')
), new_events AS (
  INSERT INTO run_events (run_id, seq, type, at, data)
  SELECT e.run_id, e.seq, e.type, e.at, e.data::json
  FROM unnest($2::text[], $3::integer[], $4::text[], $5::timestamptz[], $6::text[]) AS e(run_id, seq, type, at, data)
    JOIN open ON open.run_id = e.run_id
  ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT run_id FROM open"""
"""Add events to runs that have not ended."""
