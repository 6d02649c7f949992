"""Turns: whose run of a session is next, outside the hot path."""

import uuid
from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, and_, case, func, select, text, update

from automagik.store import schema
from automagik.store.hot import NextTurn

__all__ = ["dissolve", "give_turn", "give_turns", "hold_sessions", "notify"]

_runs = schema.runs
_sessions = schema.sessions

_OPEN = text(schema.OPEN_RUNS)

CHANNEL = "automagik"
"""The channel of PostgreSQL that wakes other processes."""


_NOTIFY = text("SELECT pg_notify(:channel, signal) FROM unnest(CAST(:signals AS text[])) AS sent(signal)")


def notify(connection: Connection, *signals: str) -> None:
    """Send signals with the transaction's commit. On SQLite there is nobody else to hear them."""
    if signals and connection.dialect.name == "postgresql":
        connection.execute(_NOTIFY, {"channel": CHANNEL, "signals": list(signals)})


def hold_sessions(connection: Connection, session_ids: Collection[uuid.UUID]) -> None:
    """Hold the sessions' rows, so that nobody else enters or leaves; to be done before any run of theirs is changed.

    All take them in one order, so that none who hold some wait for each other.
    """
    held = select(_sessions.c.id).where(_sessions.c.session_id.in_(session_ids)).order_by(_sessions.c.id)
    connection.execute(held.with_for_update(key_share=True))


def dissolve(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Hold the sessions that go, and let their open runs wait for each other no more; to be done before they are deleted."""
    going = select(_sessions.c.session_id).where(*which)
    connection.execute(going.order_by(_sessions.c.id).with_for_update())
    in_line = (_runs.c.session_id.in_(going), _OPEN, _runs.c.turn.is_not(None))
    opened = select(_runs.c.run_id, _runs.c.ready, _runs.c.background).where(*in_line).order_by(_runs.c.run_id)
    runs = connection.execute(opened.with_for_update()).all()
    connection.execute(
        update(_runs).where(_runs.c.run_id.in_([run.run_id for run in runs])).values(ready=True, turn=None)
    )
    notify(connection, *(_signal(run.run_id, background=run.background) for run in runs if not run.ready))


def give_turn(connection: Connection, session_id: uuid.UUID) -> NextTurn | None:
    """Give the turn to the session's first open run where none has it; that run, or None."""
    return give_turns(connection, [session_id]).get(session_id)


def give_turns(connection: Connection, session_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, NextTurn]:
    """Hold the sessions, count their open runs anew, and give the turn to the first of each where none has it; those runs."""
    if not session_ids:
        return {}
    hold_sessions(connection, session_ids)
    counted = select(func.count()).where(_runs.c.session_id == _sessions.c.session_id, _OPEN, _runs.c.turn.is_not(None))
    connection.execute(
        update(_sessions).where(_sessions.c.session_id.in_(session_ids)).values(open_runs=counted.scalar_subquery())
    )
    lines = select(_runs.c.session_id, func.min(_runs.c.turn).label("turn")).group_by(_runs.c.session_id)
    lines = lines.where(_runs.c.session_id.in_(session_ids), _OPEN, _runs.c.turn.is_not(None))
    unserved = lines.having(func.max(case((_runs.c.ready, 1), else_=0)) == 0).subquery()
    first = and_(_runs.c.session_id == unserved.c.session_id, _runs.c.turn == unserved.c.turn)
    chosen = select(_runs.c.run_id, _runs.c.session_id, _runs.c.background, _runs.c.owner).join(unserved, first)
    firsts = connection.execute(chosen.where(_OPEN)).all()
    if not firsts:
        return {}
    connection.execute(update(_runs).where(_runs.c.run_id.in_([run.run_id for run in firsts])).values(ready=True))
    notify(connection, *(_signal(run.run_id, background=run.background) for run in firsts))
    return {run.session_id: NextTurn(run.run_id, run.background, run.owner) for run in firsts}


def _signal(run_id: str, *, background: bool) -> str:
    return "work" if background else f"ready {run_id}"
