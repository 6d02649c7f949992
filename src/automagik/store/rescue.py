"""rescue_runs: what becomes of the open runs of an executor that is gone, in a few statements whatever their number."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, bindparam, case, exists, func, insert, select, text, update

from automagik.store import schema
from automagik.store.delivery_sql import queue_deliveries
from automagik.store.hot import NextTurn
from automagik.store.rows import RunRow
from automagik.store.runs import run_of
from automagik.store.turns import give_turns, hold_sessions, notify
from automagik.types import OUTCOME_STATUS, JsonObject, RunOutcome, RunStatus

__all__ = ["EndedRun", "Rescued", "add_events", "rescue_runs"]

_runs = schema.runs
_events = schema.run_events
_webhooks = schema.webhooks

_ADD_EVENTS = insert(_events).values(
    run_id=bindparam("run", type_=_events.c.run_id.type),
    seq=select(func.coalesce(func.max(_events.c.seq), 0) + 1)
    .where(_events.c.run_id == bindparam("run", type_=_events.c.run_id.type))
    .scalar_subquery(),
    type=bindparam("kind", type_=_events.c.type.type),
    at=bindparam("moment", type_=_events.c.at.type),
    data=bindparam("body", type_=_events.c.data.type),
)


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run that was ended from outside, as it is now, and whose turn has come by that."""

    row: RunRow
    next_turn: NextTurn | None


@dataclass(frozen=True, slots=True)
class Rescued:
    """What became of the open runs of an executor that is gone."""

    failed: list[EndedRun] = field(default_factory=list[EndedRun])
    """Those that ended: a caller waited for them, or they were to be stopped."""
    queued: list[str] = field(default_factory=list[str])
    """Those that any worker may take now."""


def rescue_runs(
    connection: Connection,
    now: datetime,
    owner: str,
    *,
    lost: JsonObject,
    cancelled: JsonObject | None,
    run_ids: Collection[str] | None,
) -> Rescued:
    """As `Queue.rescue`."""
    left = select(_runs.c.run_id, _runs.c.session_id, _runs.c.turn).where(
        _runs.c.owner == owner, text(schema.OPEN_RUNS)
    )
    if run_ids is not None:
        left = left.where(_runs.c.run_id.in_(run_ids))
    seen = connection.execute(left).all()
    if not seen:
        return Rescued()
    hold_sessions(connection, {record.session_id for record in seen if record.turn is not None})
    # Only those that were seen: of no others is the session held, which comes before any run of it.
    held = connection.execute(
        select(
            _runs.c.run_id,
            _runs.c.status,
            _runs.c.background,
            _runs.c.attempt,
            # One that is bound to a host is stopped there: what works for it may live.
            (_runs.c.cancel_requested & _runs.c.host.is_(None)).label("is_stopped"),
            _runs.c.host,
        )
        .where(_runs.c.run_id.in_([record.run_id for record in seen]), _runs.c.owner == owner, text(schema.OPEN_RUNS))
        .order_by(_runs.c.run_id)
        .with_for_update()
    ).all()
    stopped = [run.run_id for run in held if run.is_stopped]
    waited_for = [run.run_id for run in held if not run.is_stopped and not run.background]
    _end(connection, now, stopped, RunOutcome.CANCELLED, cancelled)
    _end(connection, now, waited_for, RunOutcome.WORKER_LOST, lost)
    others = [run for run in held if run.background and not run.is_stopped]
    claimed = [run.run_id for run in others if run.status == RunStatus.QUEUED.value]
    if claimed:
        connection.execute(update(_runs).where(_runs.c.run_id.in_(claimed)).values(owner=None))
    under_way = [run for run in others if run.status == RunStatus.RUNNING.value]
    # What works for one that is bound to a host goes on there: it is found again, in the same attempt.
    _put_back(connection, now, {run.run_id: run.attempt + (run.host is None) for run in under_way})
    queued = sorted([*claimed, *(run.run_id for run in under_way)])
    if queued:
        notify(connection, "work")
    return Rescued(_ended(connection, [*stopped, *waited_for]), queued)


def add_events(connection: Connection, now: datetime, kind: str, bodies: Mapping[str, JsonObject]) -> None:
    """Give each of the runs one more event, with its data."""
    if bodies:
        events = [{"run": run_id, "kind": kind, "moment": now, "body": body} for run_id, body in bodies.items()]
        connection.execute(_ADD_EVENTS, events)


def _end(
    connection: Connection, now: datetime, run_ids: Sequence[str], outcome: RunOutcome, error: JsonObject | None
) -> None:
    if not run_ids:
        return
    connection.execute(
        update(_runs)
        .where(_runs.c.run_id.in_(run_ids))
        .values(
            status=OUTCOME_STATUS[outcome].value,
            outcome=outcome.value,
            error=error,
            finished_at=now,
            waiting_for=None,
        )
    )
    add_events(connection, now, "run_finished", {run_id: {} for run_id in run_ids})
    if connection.scalar(select(exists(select(_webhooks.c.webhook_id).where(_webhooks.c.active)))):
        for run_id in run_ids:
            queue_deliveries(connection, run_id)
    notify(connection, *(f"ended {run_id}" for run_id in run_ids))


def _put_back(connection: Connection, now: datetime, attempts: Mapping[str, int]) -> None:
    """Queue the runs again, each for the attempt that is given."""
    if not attempts:
        return
    connection.execute(
        update(_runs)
        .where(_runs.c.run_id.in_(list(attempts)))
        .values(
            status=RunStatus.QUEUED.value,
            owner=None,
            attempt=case((_runs.c.host.is_(None), _runs.c.attempt + 1), else_=_runs.c.attempt),
            available_at=None,
            queue_until=None,
            started_at=None,
        )
    )
    why = RunOutcome.WORKER_LOST.value
    bodies: dict[str, JsonObject] = {
        run_id: {"background": True, "attempt": attempt, "reason": why} for run_id, attempt in attempts.items()
    }
    add_events(connection, now, "run_queued", bodies)


def _ended(connection: Connection, run_ids: Sequence[str]) -> list[EndedRun]:
    """The runs that ended, in the order of their acceptance; the last of each session with whose turn has come by that."""
    if not run_ids:
        return []
    records = connection.execute(select(_runs).where(_runs.c.run_id.in_(run_ids)).order_by(_runs.c.run_id)).all()
    in_line = {record.session_id: record.run_id for record in records if record.turn is not None}
    turns = give_turns(connection, in_line.keys())
    following = {in_line[session_id]: turn for session_id, turn in turns.items()}
    return [EndedRun(run_of(record), following.get(record.run_id)) for record in records]
