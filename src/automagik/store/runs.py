"""Runs: the record of all work. They are written by the hot path; here they are found and listed."""

import uuid
from typing import Any

from sqlalchemy import Row, Select, func, insert, null, select, text, update

from automagik.errors import NotFound
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository
from automagik.store.rows import Page, RunRow
from automagik.types import OUTCOME_STATUS, RunOutcome, RunStatus, Usage

__all__ = ["Runs"]

_runs = schema.runs
_events = schema.run_events

_BIG = frozenset({"input", "output", "instructions"})
_listed = [null().label(column.name) if column.name in _BIG else column for column in _runs.c]

_STATUS_OF = {outcome.value: status.value for outcome, status in OUTCOME_STATUS.items()}

_LOST = {
    "code": RunOutcome.WORKER_LOST.value,
    "detail": "The server stopped before the run ended.",
    "hint": "Send the request again.",
    "retryable": True,
}


class Runs(Repository):
    """The runs table."""

    __slots__ = ()

    def find(self, run_id: str) -> RunRow | None:
        """The run, whole, or None."""
        record = self._connection.execute(select(_runs).where(_runs.c.run_id == run_id)).one_or_none()
        return None if record is None else _row(record)

    def get(self, run_id: str) -> RunRow:
        """The run, whole. Raises NotFound."""
        found = self.find(run_id)
        if found is None:
            raise NotFound("run", run_id)
        return found

    def owners(self, status: RunStatus) -> list[str]:
        """Who owns runs of this status."""
        statement = select(_runs.c.owner).where(_runs.c.status == status.value, text(schema.ACTIVE_RUNS)).distinct()
        return [owner for owner in self._connection.scalars(statement) if owner is not None]

    def fail_lost(self, alive: set[str]) -> list[RunRow]:
        """Running runs whose owner is not among `alive`, now failed as `worker_lost`, each with its last event."""
        statement = select(_runs).where(_runs.c.status == RunStatus.RUNNING.value, text(schema.ACTIVE_RUNS))
        lost = [record for record in self._connection.execute(statement) if record.owner not in alive]
        return [self._fail_lost(record.run_id) for record in lost]

    def take_queued(self, owner: str | None, alive: set[str]) -> list[RunRow]:
        """Queued runs whose owner is not among `alive`, oldest first, now owned by `owner`."""
        statement = select(_runs).where(_runs.c.status == RunStatus.QUEUED.value, text(schema.ACTIVE_RUNS))
        records = [
            record
            for record in self._connection.execute(statement.order_by(_runs.c.run_id))
            if record.owner is None or record.owner not in alive
        ]
        for record in records:
            self._connection.execute(update(_runs).where(_runs.c.run_id == record.run_id).values(owner=owner))
        return [self.get(record.run_id) for record in records]

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
        return fetch_page(self._connection, statement, (_runs.c.run_id,), _row, limit=limit, cursor=cursor)

    def _fail_lost(self, run_id: str) -> RunRow:
        self._connection.execute(
            update(_runs)
            .where(_runs.c.run_id == run_id)
            .values(
                status=RunStatus.FAILED.value,
                outcome=RunOutcome.WORKER_LOST.value,
                error=_LOST,
                finished_at=self._now,
            )
        )
        following = select(func.coalesce(func.max(_events.c.seq), 0) + 1).where(_events.c.run_id == run_id)
        self._connection.execute(
            insert(_events).values(
                run_id=run_id, seq=following.scalar_subquery(), type="run_finished", at=self._now, data={}
            )
        )
        return self.get(run_id)


def _row(record: Row[Any]) -> RunRow:
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
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        deadline_at=record.deadline_at,
    )
