"""Runs: the record of all work. They are written by the hot path; here they are found and listed."""

import uuid
from typing import Any

from sqlalchemy import Connection, Integer, Row, Select, literal_column, null, select, text

from automagik.errors import NotFound
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository
from automagik.store.rows import ClaimedRun, Page, RunRow
from automagik.types import OUTCOME_STATUS, RunStatus, Usage

__all__ = ["Runs", "claimed_by", "claimed_of", "last_seq", "run_of"]

_runs = schema.runs

_BIG = frozenset({"input", "output", "instructions"})
_listed = [null().label(column.name) if column.name in _BIG else column for column in _runs.c]

_STATUS_OF = {outcome.value: status.value for outcome, status in OUTCOME_STATUS.items()}


class Runs(Repository):
    """The runs table."""

    __slots__ = ()

    def find(self, run_id: str) -> RunRow | None:
        """The run, whole, or None."""
        record = self._connection.execute(select(_runs).where(_runs.c.run_id == run_id)).one_or_none()
        return None if record is None else run_of(record)

    def get(self, run_id: str) -> RunRow:
        """The run, whole. Raises NotFound."""
        found = self.find(run_id)
        if found is None:
            raise NotFound("run", run_id)
        return found

    def list(
        self,
        *,
        status: str | None = None,
        outcome: str | None = None,
        name: str | None = None,
        kind: str | None = None,
        session_id: uuid.UUID | None = None,
        user_id: uuid.UUID | None = None,
        key_id: str | None = None,
        parent_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[RunRow]:
        """Runs, newest first, without their input, output and instructions."""
        statement: Select[Any] = select(*_listed).select_from(_runs)
        if status is None and outcome is not None:
            status = _STATUS_OF.get(outcome)  # which has an index
        filters = {
            "status": status,
            "outcome": outcome,
            "name": name,
            "kind": kind,
            "session_id": session_id,
            "user_id": user_id,
            "key_id": key_id,
            "parent_id": parent_id,
        }
        for column, value in filters.items():
            if value is not None:
                statement = statement.where(_runs.c[column] == value)
        if status is not None and status != RunStatus.COMPLETED.value:
            statement = statement.where(text(schema.ACTIVE_RUNS))
        return fetch_page(self._connection, statement, (_runs.c.run_id,), run_of, limit=limit, cursor=cursor)


last_seq = literal_column("(SELECT max(e.seq) FROM run_events e WHERE e.run_id = runs.run_id)", Integer()).label(
    "last_seq"
)
"""The highest `seq` among the run's events, as a column beside those of the run. Written out, because SQLAlchemy leaves the
table's name off in SQLite's RETURNING, where `run_id = run_id` would be every run's."""


def claimed_by(connection: Connection, run_id: str, owner: str) -> ClaimedRun | None:
    """A run that belongs to `owner`, or None."""
    given = select(_runs, last_seq).where(_runs.c.run_id == run_id, _runs.c.owner == owner)
    record = connection.execute(given).one_or_none()
    return None if record is None else claimed_of(record)


def claimed_of(record: Row[Any]) -> ClaimedRun:
    """A record of the runs table with `last_seq` as a claimed run."""
    return ClaimedRun(run_of(record), record.last_seq or 0)


def run_of(record: Row[Any]) -> RunRow:
    """A record of the runs table as a row."""
    return RunRow(
        run_id=record.run_id,
        kind=record.kind,
        name=record.name,
        agent_id=record.agent_id,
        session_id=record.session_id,
        user_id=record.user_id,
        key_id=record.key_id,
        parent_id=record.parent_id,
        requeue_of=record.requeue_of,
        labels=record.labels,
        status=record.status,
        outcome=record.outcome,
        attempt=record.attempt,
        priority=record.priority,
        input=record.input,
        output=record.output,
        error=record.error,
        waiting_for=record.waiting_for,
        details=record.details,
        usage=Usage(
            requests=record.requests,
            tool_calls=record.tool_calls,
            input_tokens=record.input_tokens,
            output_tokens=record.output_tokens,
            cache_read_tokens=record.cache_read_tokens,
            cache_write_tokens=record.cache_write_tokens,
            cost_usd=record.cost_usd,
        ),
        instructions=record.instructions,
        model=record.model,
        owner=record.owner,
        background=record.background,
        ready=record.ready,
        available_at=record.available_at,
        queue_until=record.queue_until,
        host=record.host,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        deadline_at=record.deadline_at,
    )
