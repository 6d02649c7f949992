"""Turns: whose run of a session is next, outside the hot path."""

import uuid

from sqlalchemy import Connection, select, text, update

from automagik.store import schema
from automagik.store.hot import NextTurn

__all__ = ["hold_session", "leave_turn", "next_turn", "notify"]

_runs = schema.runs
_sessions = schema.sessions

CHANNEL = "automagik"
"""The channel of PostgreSQL that wakes other processes."""


def notify(connection: Connection, signal: str) -> None:
    """Send a signal with the transaction's commit. On SQLite there is nobody else to hear it."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_notify(:channel, :signal)"), {"channel": CHANNEL, "signal": signal})


def hold_session(connection: Connection, session_id: uuid.UUID) -> None:
    """Hold the session's row, so that nobody else enters or leaves; to be done before any run of it is changed."""
    connection.execute(
        select(_sessions.c.id).where(_sessions.c.session_id == session_id).with_for_update(key_share=True)
    )


def leave_turn(connection: Connection, session_id: uuid.UUID) -> NextTurn | None:
    """Count a run of the session as ended; the run whose turn has come by that, None where none has."""
    connection.execute(
        update(_sessions)
        .where(_sessions.c.session_id == session_id, _sessions.c.open_runs > 0)
        .values(open_runs=_sessions.c.open_runs - 1)
    )
    return next_turn(connection, session_id)


def next_turn(connection: Connection, session_id: uuid.UUID) -> NextTurn | None:
    """Give the turn to the session's first open run where none has it; that run, or None."""
    hold_session(connection, session_id)
    opened = select(_runs).where(_runs.c.session_id == session_id, text(schema.OPEN_RUNS))
    first = connection.execute(opened.order_by(_runs.c.ready.desc(), _runs.c.turn).limit(1)).one_or_none()
    if first is None or first.ready:
        return None
    connection.execute(update(_runs).where(_runs.c.run_id == first.run_id).values(ready=True))
    notify(connection, "work" if first.background else f"ready {first.run_id}")
    return NextTurn(first.run_id, first.background, first.owner)
