"""Turns: whose run of a session is next, outside the hot path."""

import uuid
from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, func, select, text, update

from automagik.store import schema
from automagik.store.hot import NextTurn

__all__ = ["dissolve", "hold_session", "hold_sessions", "leave_turn", "next_turn", "notify", "recount"]

_runs = schema.runs
_sessions = schema.sessions

_OPEN = text(schema.OPEN_RUNS)

CHANNEL = "automagik"
"""The channel of PostgreSQL that wakes other processes."""


def notify(connection: Connection, signal: str) -> None:
    """Send a signal with the transaction's commit. On SQLite there is nobody else to hear it."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_notify(:channel, :signal)"), {"channel": CHANNEL, "signal": signal})


def hold_session(connection: Connection, session_id: uuid.UUID) -> None:
    """Hold the session's row, so that nobody else enters or leaves; to be done before any run of it is changed."""
    hold_sessions(connection, [session_id])


def hold_sessions(connection: Connection, session_ids: Collection[uuid.UUID]) -> None:
    """Hold the sessions' rows, in the order in which everybody does, so that none who hold some wait for each other."""
    held = select(_sessions.c.id).where(_sessions.c.session_id.in_(session_ids)).order_by(_sessions.c.id)
    connection.execute(held.with_for_update(key_share=True))


def dissolve(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Hold the sessions that go, and let their open runs wait for each other no more; to be done before they are deleted."""
    going = select(_sessions.c.session_id).where(*which)
    connection.execute(going.order_by(_sessions.c.id).with_for_update())
    in_line = (_runs.c.session_id.in_(going), _OPEN, _runs.c.turn.is_not(None))
    opened = select(_runs.c.run_id, _runs.c.ready, _runs.c.background).where(*in_line).order_by(_runs.c.run_id)
    for run in connection.execute(opened.with_for_update()).all():
        connection.execute(update(_runs).where(_runs.c.run_id == run.run_id).values(ready=True, turn=None))
        if not run.ready:
            _tell(connection, run.run_id, background=run.background)


def recount(connection: Connection, session_id: uuid.UUID) -> None:
    """Hold the session, and set right how many open runs it has."""
    hold_session(connection, session_id)
    in_line = select(func.count()).where(_runs.c.session_id == session_id, _OPEN, _runs.c.turn.is_not(None))
    connection.execute(
        update(_sessions).where(_sessions.c.session_id == session_id).values(open_runs=in_line.scalar_subquery())
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
    opened = select(_runs).where(_runs.c.session_id == session_id, _OPEN, _runs.c.turn.is_not(None))
    first = connection.execute(opened.order_by(_runs.c.ready.desc(), _runs.c.turn).limit(1)).one_or_none()
    if first is None or first.ready:
        return None
    connection.execute(update(_runs).where(_runs.c.run_id == first.run_id).values(ready=True))
    _tell(connection, first.run_id, background=first.background)
    return NextTurn(first.run_id, first.background, first.owner)


def _tell(connection: Connection, run_id: str, *, background: bool) -> None:
    notify(connection, "work" if background else f"ready {run_id}")
