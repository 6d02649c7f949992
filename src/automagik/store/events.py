"""Events: what happened in runs, in order and without a gap."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, Text, cast, func, select

from automagik.store import schema
from automagik.store.repository import Repository
from automagik.store.rows import EventRow

__all__ = ["Events"]

_events = schema.run_events
_runs = schema.runs


class Events(Repository):
    """The run_events table. Events are written with their run by the hot path."""

    __slots__ = ()

    def last_seq(self, run_id: str) -> int:
        """The highest `seq` of the run, 0 where it has no event."""
        return self._connection.scalar(select(func.max(_events.c.seq)).where(_events.c.run_id == run_id)) or 0

    def last_seqs(self, run_ids: Collection[str]) -> dict[str, int]:
        """The highest `seq` of each of the runs that has any event."""
        last = select(func.max(_events.c.seq)).where(_events.c.run_id == _runs.c.run_id).scalar_subquery()
        newest = select(_runs.c.run_id, last.label("seq")).where(_runs.c.run_id.in_(run_ids))
        return {record.run_id: record.seq for record in self._connection.execute(newest) if record.seq is not None}

    def tool_calls(self, run_id: str) -> int:
        """How many calls of tools ran in the run, as far as it is told: those with a result that does not say otherwise (`ran`)."""
        # By its text: in a string the quotes would be escaped, and the databases' own functions read no NUL.
        ran = cast(_events.c.data, Text).not_like('%"ran":false%')
        wanted = select(func.count()).where(_events.c.run_id == run_id, _events.c.type == "tool_result", ran)
        return self._connection.scalar(wanted) or 0

    def list(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Sequence[EventRow]:
        """The run's events after `after`, in order."""
        statement = select(_events).where(_events.c.run_id == run_id, _events.c.seq > after).order_by(_events.c.seq)
        return [_row(record) for record in self._connection.execute(statement.limit(limit))]


def _row(record: Row[Any]) -> EventRow:
    return EventRow(run_id=record.run_id, seq=record.seq, type=record.type, at=record.at, data=record.data)
