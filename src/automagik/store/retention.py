"""Retention: what is old enough to go, a batch at a time, so that no transaction is long."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, delete, exists, func, not_, select, text, tuple_, update

from automagik.store import schema
from automagik.store.artifacts import Artifacts, run_holder, session_holder
from automagik.store.budgets import Budgets
from automagik.store.calls import ModelCalls
from automagik.store.repository import Repository, insert_new
from automagik.store.usage import note_runs
from automagik.types import TERMINAL

__all__ = ["EXECUTORS_KEPT", "KEYS_KEPT", "Deleted", "Retention"]

KEYS_KEPT = timedelta(hours=24)
"""How long an idempotency key is good for."""
EXECUTORS_KEPT = timedelta(days=1)
"""How long an executor that has ended, or was lost, is still listed."""

_runs = schema.runs
_events = schema.run_events
_calls = schema.model_calls
_sessions = schema.sessions
_messages = schema.messages
_deliveries = schema.deliveries
_executors = schema.executors
_keys = schema.idempotency_keys
_counters = schema.rate_counters
_platform = schema.platform

_TERMINAL = sorted(status.value for status in TERMINAL)
_LAST_PRUNED = "last_pruned"
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class Deleted:
    """One batch: how many rows of each table went. `after` is where the next batch begins, None: there is none."""

    rows: dict[str, int]
    after: str | None


class Retention(Repository):
    """What is old, counted or deleted. Rows that somebody else holds are left for the next time."""

    __slots__ = ()

    def claim(self, every: timedelta) -> bool:
        """Whether nobody has pruned for `every`; then the caller is who does it now."""
        values: dict[str, Any] = {"name": _LAST_PRUNED, "value": {}, "updated_at": _LONG_AGO}
        insert_new(self._connection, _platform, values)
        due = _platform.c.updated_at <= self._now - every
        claimed = update(_platform).where(_platform.c.name == _LAST_PRUNED, due).values(updated_at=self._now)
        return bool(self._connection.execute(claimed).rowcount)

    def delete_runs(self, before: datetime, *, after: str, limit: int) -> Deleted:
        """Runs that ended before `before`, of the `limit` oldest behind `after`, with their events and their hold on artefacts.

        What they used is noted by day, so that usage and budgets are as before. Open runs stay, however old.
        """
        run_ids = self._ids(_runs, _runs.c.run_id, _ended(before), after=after, limit=limit)
        if not run_ids:
            return Deleted({}, None)
        Artifacts(self._connection, self._now).release([run_holder(run_id) for run_id in run_ids])
        note_runs(self._connection, run_ids)
        calls = ModelCalls(self._connection, self._now).forget_runs(run_ids)
        Budgets(self._connection, self._now).forget_runs(run_ids)
        for table in (schema.executions, schema.run_words):
            self._connection.execute(delete(table).where(table.c.run_id.in_(run_ids)))
        events = self._connection.execute(delete(_events).where(_events.c.run_id.in_(run_ids))).rowcount
        runs = self._connection.execute(delete(_runs).where(_runs.c.run_id.in_(run_ids))).rowcount
        return Deleted({"runs": runs, "run_events": events, "model_calls": calls}, run_ids[-1])

    def delete_sessions(self, before: datetime, *, limit: int) -> Deleted:
        """Sessions that nothing was said in since `before` and that have no open run, with messages, memories and artefacts."""
        found = self._connection.execute(
            select(_sessions.c.id, _sessions.c.session_id)
            .where(*_quiet(before))
            .order_by(_sessions.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        if not found:
            return Deleted({}, None)
        keys = [record.id for record in found]
        Artifacts(self._connection, self._now).release([session_holder(record.session_id) for record in found])
        messages = self._connection.execute(delete(_messages).where(_messages.c.session_id.in_(keys))).rowcount
        sessions = self._connection.execute(delete(_sessions).where(_sessions.c.id.in_(keys))).rowcount
        return Deleted({"sessions": sessions, "messages": messages}, str(keys[-1]))

    def delete_deliveries(self, before: datetime, *, after: str, limit: int) -> Deleted:
        """Deliveries of webhooks made before `before` that are not tried any more, with their attempts."""
        ids = self._ids(_deliveries, _deliveries.c.delivery_id, _settled(before), after=after, limit=limit)
        if not ids:
            return Deleted({}, None)
        gone = self._connection.execute(delete(_deliveries).where(_deliveries.c.delivery_id.in_(ids))).rowcount
        return Deleted({"deliveries": gone}, ids[-1])

    def delete_expired(self, *, limit: int) -> dict[str, int]:
        """What is of no use any more whatever retention says: idempotency keys, counters of rate limits, executors long gone."""
        gone: dict[str, int] = {}
        for table, condition in self._expired():
            key = list(table.primary_key.columns)
            records = self._connection.execute(
                select(*key).where(condition).order_by(*key).limit(limit).with_for_update(skip_locked=True)
            ).all()
            if records:
                wanted = tuple_(*key).in_([tuple(record) for record in records])
                self._connection.execute(delete(table).where(wanted))
            gone[table.name] = len(records)
        return gone

    def count(self, before: datetime | None, *, sessions: bool) -> dict[str, int]:
        """How many rows of each table a pruning would delete now."""
        wanted: list[tuple[Table, Sequence[ColumnElement[bool]]]] = []
        if before is not None:
            wanted += [(_runs, _ended(before)), (_deliveries, _settled(before))]
            if sessions:
                wanted.append((_sessions, _quiet(before)))
        wanted += [(table, [condition]) for table, condition in self._expired()]
        counts = {table.name: self._count(table, conditions) for table, conditions in wanted}
        if before is not None:
            ended = select(_runs.c.run_id).where(*_ended(before))
            counts["run_events"] = self._count(_events, [_events.c.run_id.in_(ended)])
            counts["model_calls"] = self._count(_calls, [_calls.c.run_id.in_(ended)])
            if sessions:
                old = select(_sessions.c.id).where(*_quiet(before))
                counts["messages"] = self._count(_messages, [_messages.c.session_id.in_(old)])
        return counts

    def _expired(self) -> list[tuple[Table, ColumnElement[bool]]]:
        owned = select(_runs.c.run_id).where(text(schema.OPEN_RUNS), _runs.c.owner == _executors.c.executor_id)
        return [
            (_keys, _keys.c.created_at < self._now - KEYS_KEPT),
            (_counters, _counters.c.expires_at < self._now),
            (_executors, and_(_executors.c.lost_at < self._now - EXECUTORS_KEPT, not_(exists(owned)))),
        ]

    def _ids(
        self, table: Table, key: Any, conditions: Sequence[ColumnElement[bool]], *, after: str, limit: int
    ) -> list[str]:
        wanted = select(key).select_from(table).where(key > after, *conditions)
        return [*self._connection.scalars(wanted.order_by(key).limit(limit).with_for_update(skip_locked=True))]

    def _count(self, table: Table, conditions: Sequence[ColumnElement[bool]]) -> int:
        return self._connection.scalar(select(func.count()).select_from(table).where(*conditions)) or 0


def _ended(before: datetime) -> list[ColumnElement[bool]]:
    return [_runs.c.status.in_(_TERMINAL), _runs.c.finished_at < before, _runs.c.run_id < _first_id("run", before)]


def _quiet(before: datetime) -> list[ColumnElement[bool]]:
    return [_sessions.c.updated_at < before, _sessions.c.open_runs == 0]


def _settled(before: datetime) -> list[ColumnElement[bool]]:
    return [_deliveries.c.status != "pending", _deliveries.c.created_at < before]


def _first_id(kind: str, moment: datetime) -> str:
    """The least identifier that `new_id` gives from `moment` on: the key, which sorts by time, narrows what is looked at."""
    value = int(moment.timestamp() * 1000) << 80
    return f"{kind}_{''.join(_DIGITS[(value >> shift) & 31] for shift in range(125, -1, -5))}"
