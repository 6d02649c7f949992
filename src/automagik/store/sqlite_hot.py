"""SqliteHot: the statements of every run on SQLite, one hop to the writer thread each, through the driver itself."""

import sqlite3
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from automagik.errors import NotFound
from automagik.store.columns import clean
from automagik.store.delivery_sql import QUEUE_ONE
from automagik.store.hot import (
    DEFAULT_ORIGIN,
    AcceptedRun,
    BeginRun,
    BegunRun,
    FinishedRun,
    FinishRun,
    FoundSession,
    NewEvent,
    NextTurn,
    StartRun,
    check_session,
    cut_at_turn,
    key_taken,
    not_queued,
)
from automagik.store.reservations import Reserve, Reserved, Settle, Settled
from automagik.store.rows import ClaimedRun
from automagik.store.runs import claimed_by
from automagik.store.sqlite import SqliteDatabase, SqliteHandle
from automagik.store.sqlite_ledger import reserve_in, settle_in
from automagik.types import RunStatus, utc_text

__all__ = ["SqliteHot", "begin_in"]

_FIND_SESSION = "SELECT id, session_id, user_id, message_count FROM sessions WHERE session_id = ?"
_FIND_NAMED_SESSION = (
    "SELECT id, session_id, user_id, message_count FROM sessions WHERE session_name = ? AND user_id IS ?"
)
_MAKE_USER = (
    "INSERT INTO users (id, user_data, created_at, updated_at) VALUES (?1, '{}', ?2, ?2) ON CONFLICT (id) DO NOTHING"
)
_MAKE_SESSION = (
    "INSERT INTO sessions (session_id, agent_id, user_id, session_name, status, session_origin, metadata,"
    " message_count, turns, open_runs, created_at, updated_at)"
    " VALUES (?1, ?2, ?3, ?4, 'active', ?5, '{}', 0, 0, 0, ?6, ?6)"
)
_TAKE_TURN = "UPDATE sessions SET turns = turns + 1, open_runs = open_runs + 1 WHERE id = ? RETURNING turns, open_runs"
_MAKE_RUN = (
    "INSERT INTO runs (run_id, kind, name, agent_id, session_id, user_id, key_id, parent_id, requeue_of, labels,"
    " status, attempt, priority, input, owner, background, ready, turn, queue_until, host, created_at, started_at,"
    " deadline_at, requests, tool_calls, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, 0)"
)
_KEEP_KEY = (
    "INSERT INTO idempotency_keys (key_id, idempotency_key, body_hash, run_id, created_at) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING"
)
_START_RUN = (
    "UPDATE runs SET status = 'running', started_at = ?1 WHERE run_id = ?2 AND ready AND owner = ?3"
    " AND (status = 'queued' OR status = 'running' AND started_at = ?1)"
    " RETURNING agent_id, session_id, turn, user_id"
)
_END_RUN = (
    "UPDATE runs SET status = ?, outcome = ?, output = ?, error = ?, requests = ?, tool_calls = ?, input_tokens = ?,"
    " output_tokens = ?, cache_read_tokens = ?, cache_write_tokens = ?, cost_usd = ?, instructions = ?, model = ?,"
    " finished_at = ?, waiting_for = NULL WHERE run_id = ? AND status IN ('queued', 'running', 'waiting') AND owner = ?"
    " RETURNING session_id, turn, ready, background, name, key_id"
)
_LEAVE_SESSION = (
    "UPDATE sessions SET open_runs = open_runs - 1, message_count = message_count + ?1,"
    " updated_at = CASE WHEN ?1 THEN ?2 ELSE updated_at END WHERE session_id = ?3 RETURNING open_runs"
)
_NEXT_TURN = (
    "UPDATE runs SET ready = 1, owner = CASE WHEN background AND ?2 AND name = ?3 AND key_id IS ?4 AND host IS NULL"
    " AND available_at IS NULL AND (queue_until IS NULL OR queue_until > ?6) THEN ?5 ELSE owner END"
    " WHERE run_id = (SELECT run_id FROM runs WHERE session_id = ?1 AND status IN ('queued', 'running', 'waiting')"
    " AND NOT ready ORDER BY turn LIMIT 1) RETURNING run_id, background, owner"
)
_IS_OPEN = "SELECT 1 FROM runs WHERE run_id = ? AND status IN ('queued', 'running', 'waiting') AND owner = ?"
_ADD_MESSAGE = (
    "INSERT INTO messages (message_id, session_id, run_id, role, content, raw_payload, created_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_ADD_EVENT = (
    "INSERT INTO run_events (run_id, seq, type, at, data) VALUES (?, ?, ?, ?, ?) ON CONFLICT (run_id, seq) DO NOTHING"
)
_QUEUED = {True: '{"background":true}', False: '{"background":false}'}
_HISTORY = "SELECT role, raw_payload FROM messages WHERE session_id = ? ORDER BY id DESC LIMIT ?"
_LAST_TURN = (
    "SELECT raw_payload FROM messages WHERE session_id = ?1 AND id >= (SELECT id FROM messages"
    " WHERE session_id = ?1 AND role = 'user' ORDER BY id DESC LIMIT 1) ORDER BY id"
)
# The nearest scope comes last, so that it wins: agent, user, agent and user, session.
_VARIABLES = (
    "SELECT name, content, (session_id IS NOT NULL) * 4 + (user_id IS NOT NULL) * 2 + (agent_id IS NOT NULL) AS near"
    " FROM memories WHERE session_id = ?1 AND active AND (agent_id IS NULL OR agent_id = ?3)"
    " AND (user_id IS NULL OR user_id = ?2){names}"
    " UNION ALL SELECT name, content, 2 + (agent_id IS NOT NULL) FROM memories WHERE user_id = ?2"
    " AND session_id IS NULL AND active AND (agent_id IS NULL OR agent_id = ?3){names}"
    " UNION ALL SELECT name, content, 1 FROM memories WHERE agent_id = ?3 AND user_id IS NULL AND session_id IS NULL"
    " AND active{names} ORDER BY near"
)
_ALL_VARIABLES = _VARIABLES.format(names="")
_NAMED_VARIABLES = [
    _VARIABLES.format(names=f" AND name IN ({', '.join(f'?{4 + index}' for index in range(count))})")
    for count in range(1, 33)
]
"""By the number of names; for more than 32, all are read."""


class SqliteHot:
    """The hot path over a SqliteDatabase."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def begin_run(self, begin: BeginRun) -> BegunRun:
        return await self._database.write(partial(begin_in, begin))

    async def accept_run(self, begin: BeginRun) -> AcceptedRun:
        return await self._database.write(partial(_accept, begin))

    async def start_run(self, start: StartRun) -> BegunRun:
        return await self._database.write(partial(_start, start))

    async def finish_run(self, finish: FinishRun) -> FinishedRun | None:
        return await self._database.write(partial(_finish, finish))

    async def append_events(self, run_id: str, owner: str, events: Sequence[NewEvent]) -> bool:
        return await self._database.write(partial(_append, run_id, owner, events))

    async def claimed_run(self, run_id: str, owner: str) -> ClaimedRun | None:
        return await self._database.read(lambda handle: claimed_by(handle.connection, run_id, owner))

    async def reserve(self, asked: Reserve) -> Reserved:
        return await self._database.write(lambda handle: reserve_in(handle.raw, asked))

    async def settle(self, ends: Sequence[Settle]) -> Sequence[Settled]:
        return await self._database.write(lambda handle: [settle_in(handle.raw, end) for end in ends])


def begin_in(begin: BeginRun, handle: SqliteHandle) -> BegunRun:
    """Begin a run in the transaction that `handle` is in."""
    raw = handle.raw
    session, count = _settle_session(raw, begin)
    accepted = _store_run(raw, begin, session)
    if not accepted.is_ready:
        return BegunRun(begin.run_id, accepted.session_id, accepted.session_key, accepted.user_id, is_ready=False)
    return BegunRun(
        begin.run_id,
        accepted.session_id,
        accepted.session_key,
        accepted.user_id,
        True,
        _history(raw, accepted.session_key, begin.message_limit) if count else [],
        _variables(raw, begin.variable_names, accepted.session_key, accepted.user_id, begin.agent_id),
    )


def _accept(begin: BeginRun, handle: SqliteHandle) -> AcceptedRun:
    session, _ = _settle_session(handle.raw, begin)
    return _store_run(handle.raw, begin, session)


def _settle_session(raw: sqlite3.Connection, begin: BeginRun) -> tuple[FoundSession | None, int]:
    """The run's session and how many messages it has; made, with its user, where it is not there."""
    row: Any = None
    if begin.session_id is not None:
        row = raw.execute(_FIND_SESSION, (str(begin.session_id),)).fetchone()
    if row is None and begin.session_name is not None:
        owner = str(begin.user_id) if begin.user_id is not None else None
        row = raw.execute(_FIND_NAMED_SESSION, (begin.session_name, owner)).fetchone()
    if row is not None:
        found = FoundSession(row[0], uuid.UUID(row[1]), uuid.UUID(row[2]) if row[2] is not None else None)
        check_session(begin, found)
        if begin.user_id is not None and found.user_id is None:
            _settle_user(raw, begin, begin.user_id)
        return found, row[3]
    if begin.user_id is not None:
        _settle_user(raw, begin, begin.user_id)
    if not begin.has_session:
        return None, 0
    if not begin.create_session or begin.session_id is None:
        raise NotFound("session", str(begin.session_id or begin.session_name))
    values = (
        str(begin.session_id),
        begin.agent_id,
        str(begin.user_id) if begin.user_id is not None else None,
        begin.session_name,
        begin.session_origin or DEFAULT_ORIGIN,
        utc_text(begin.created_at),
    )
    key = raw.execute(_MAKE_SESSION, values).lastrowid
    if key is None:
        raise RuntimeError("SQLite gives an inserted row its id")
    return FoundSession(key, begin.session_id, begin.user_id), 0


def _settle_user(raw: sqlite3.Connection, begin: BeginRun, user_id: uuid.UUID) -> None:
    if begin.create_user:
        raw.execute(_MAKE_USER, (str(user_id), utc_text(begin.created_at)))
    elif raw.execute("SELECT 1 FROM users WHERE id = ?", (str(user_id),)).fetchone() is None:
        raise NotFound("user", str(user_id))


def _store_run(raw: sqlite3.Connection, begin: BeginRun, session: FoundSession | None) -> AcceptedRun:
    user_id = begin.user_id if session is None or begin.user_id is not None else session.user_id
    created = utc_text(begin.created_at)
    turn, ready = None, True
    if session is not None:
        turn, opened = raw.execute(_TAKE_TURN, (session.key,)).fetchone()
        ready = opened == 1
    starts = ready and not begin.background
    values = (
        begin.run_id,
        begin.kind,
        begin.name,
        begin.agent_id,
        str(session.session_id) if session is not None else None,
        str(user_id) if user_id is not None else None,
        begin.key_id,
        begin.parent_id,
        begin.requeue_of,
        begin.labels_json,
        RunStatus.RUNNING.value if starts else RunStatus.QUEUED.value,
        begin.priority,
        begin.input_json,
        begin.owner,
        begin.background,
        ready,
        turn,
        utc_text(begin.queue_until) if begin.queue_until is not None else None,
        begin.host,
        created,
        created if starts else None,
        utc_text(begin.deadline_at) if begin.deadline_at is not None else None,
    )
    raw.execute(_MAKE_RUN, values)
    if begin.idempotency is not None:
        key = begin.idempotency
        if not raw.execute(_KEEP_KEY, (key.key_id, key.key, key.body_hash, begin.run_id, created)).rowcount:
            raise key_taken()
    kind, data = ("run_started", "{}") if starts else ("run_queued", _QUEUED[begin.background])
    raw.execute(_ADD_EVENT, (begin.run_id, 1, kind, created, data))
    return AcceptedRun(
        begin.run_id,
        session.session_id if session is not None else None,
        session.key if session is not None else None,
        user_id,
        ready,
    )


def _start(start: StartRun, handle: SqliteHandle) -> BegunRun:
    raw = handle.raw
    row = raw.execute(_START_RUN, (utc_text(start.started_at), start.run_id, start.owner)).fetchone()
    if row is None:
        raise not_queued(start.run_id)
    _add_events(raw, start.run_id, start.events)
    agent_id, session_text, turn, user_text = row
    user_id = uuid.UUID(user_text) if user_text is not None else None
    session = raw.execute(_FIND_SESSION, (session_text,)).fetchone() if turn is not None else None
    key = session[0] if session is not None else None
    return BegunRun(
        start.run_id,
        uuid.UUID(session_text) if session_text is not None else None,
        key,
        user_id,
        True,
        _history(raw, key, start.message_limit),
        _variables(raw, start.variable_names, key, user_id, agent_id),
    )


def _finish(finish: FinishRun, handle: SqliteHandle) -> FinishedRun | None:
    raw = handle.raw
    usage = finish.usage
    finished = utc_text(finish.finished_at)
    values = (
        finish.status,
        finish.outcome,
        finish.output_json,
        finish.error_json,
        usage.requests,
        usage.tool_calls,
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        f"{usage.cost_usd:f}" if usage.cost_usd is not None else None,
        clean(finish.instructions) if finish.instructions is not None else None,
        finish.model,
        finished,
        finish.run_id,
        finish.owner,
    )
    ended = raw.execute(_END_RUN, values).fetchone()
    if ended is None:
        return None
    session_id, turn, ready, background, name, key_id = ended
    left = None
    if turn is not None:  # else it has no session, or the session was deleted meanwhile and its messages with it
        added = len(finish.messages) if finish.session_key is not None else 0
        left = raw.execute(_LEAVE_SESSION, (added, finished, session_id)).fetchone()
        if left is not None and added:
            _add_messages(raw, finish, finished)
    _add_events(raw, finish.run_id, finish.events)
    wakes = raw.execute(QUEUE_ONE, (finish.run_id,)).rowcount > 0
    if left is None or not left[0] or not ready:
        return FinishedRun(finish.run_id, None, wakes)
    claims = finish.claims_next and bool(background)
    following = raw.execute(_NEXT_TURN, (session_id, claims, name, key_id, finish.owner, finished)).fetchone()
    if following is None:
        return FinishedRun(finish.run_id, None, wakes)
    return FinishedRun(finish.run_id, NextTurn(following[0], bool(following[1]), following[2]), wakes)


def _add_messages(raw: sqlite3.Connection, finish: FinishRun, finished: str) -> None:
    rows = [
        (str(m.message_id), finish.session_key, finish.run_id, m.role, clean(m.content), m.raw_payload, finished)
        for m in finish.messages
    ]
    raw.executemany(_ADD_MESSAGE, rows)


def _append(run_id: str, owner: str, events: Sequence[NewEvent], handle: SqliteHandle) -> bool:
    if handle.raw.execute(_IS_OPEN, (run_id, owner)).fetchone() is None:
        return False
    _add_events(handle.raw, run_id, events)
    return True


def _add_events(raw: sqlite3.Connection, run_id: str, events: Sequence[NewEvent]) -> None:
    for event in events:
        raw.execute(_ADD_EVENT, (run_id, event.seq, event.type, utc_text(event.at), event.data_json))


def _history(raw: sqlite3.Connection, session_key: int | None, limit: int | None) -> list[str]:
    if session_key is None or limit == 0:
        return []
    newest = raw.execute(_HISTORY, (session_key, -1 if limit is None else limit)).fetchall()
    newest.reverse()
    cut = cut_at_turn([role for role, _ in newest], [payload for _, payload in newest])
    if cut is not None or not newest or limit is None:
        return cut or []
    return [payload for (payload,) in raw.execute(_LAST_TURN, (session_key,))]


def _variables(
    raw: sqlite3.Connection,
    names: Sequence[str] | None,
    session_key: int | None,
    user_id: uuid.UUID | None,
    agent_id: int | None,
) -> dict[str, str]:
    if names is not None and not names:
        return {}
    scope = (session_key, str(user_id) if user_id is not None else None, agent_id)
    if names is not None and len(names) <= len(_NAMED_VARIABLES):
        found = raw.execute(_NAMED_VARIABLES[len(names) - 1], (*scope, *names))
        return {name: content for name, content, _ in found}
    wanted = None if names is None else set(names)
    found = raw.execute(_ALL_VARIABLES, scope)
    return {name: content for name, content, _ in found if wanted is None or name in wanted}
