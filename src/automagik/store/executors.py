"""Executors: the processes that carry out runs, what shows that they live, and what a dead one leaves in DBOS's tables."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, exists, func, insert, not_, select, text, update
from sqlalchemy.types import DateTime

from automagik.store import schema
from automagik.store.repository import Repository, conflicts

__all__ = [
    "CARRY_OUT",
    "FORGET",
    "ExecutorRow",
    "Executors",
]

_executors = schema.executors

_FAULT_HOURS = 1
"""How long the fault of a worker that has ended is of interest, where its host has no other: it may never begin again."""
_RESCUE_IDLE_MS = 3000
"""How long the transaction that declares an executor lost may stand still: a rescuer that is frozen in it lets go then."""

CARRY_OUT = "carry_out"
"""The DBOS workflow that carries a run out; it is started anew, under another id, when its process dies."""

FORGET = text("""
UPDATE dbos.workflow_status SET status = 'CANCELLED', owner_xid = NULL, queue_name = NULL, deduplication_id = NULL,
  started_at_epoch_ms = NULL, updated_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
  completed_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint
WHERE workflow_uuid IN (
  SELECT workflow_uuid FROM dbos.workflow_status WHERE status = 'PENDING' AND name = :name
  AND NOT EXISTS (SELECT FROM executors e WHERE e.executor_id = workflow_status.executor_id AND e.lost_at IS NULL)
  FOR UPDATE OF workflow_status SKIP LOCKED)
""")
"""Ends in DBOS, as it ends a cancelled workflow, what executors that don't live were carrying out: nobody runs it again.

A row that a frozen transaction of a dead one holds is left out; the next call ends it.
"""


@dataclass(frozen=True, slots=True)
class ExecutorRow:
    """A process that carries out runs, from one start to its end. `beat_at` is its last sign of life, by the database's clock.

    `lost_at` is when it was declared dead or ended; `lost_to` is who said so: itself, where it ended in peace. `fault` is why it
    takes no queued work, in its own words; None where it does, or answers requests only.
    """

    executor_id: str
    host: str
    role: str
    version: str
    started_at: datetime
    beat_at: datetime
    lost_at: datetime | None
    lost_to: str | None
    fault: str | None


class Executors(Repository):
    """The executors table, and on PostgreSQL DBOS's workflows as far as they belong to an executor.

    A row is written once for each start of a process. It ends (`lost_at`) and never begins again: whoever goes on does so
    under another id.
    """

    __slots__ = ()

    def register(self, executor_id: str, *, host: str, role: str, version: str) -> ExecutorRow:
        """The row of a process that begins now. Raises Conflict where the id was used before."""
        now = self._database_now()
        values = {
            "executor_id": executor_id,
            "host": host,
            "role": role,
            "version": version,
            "started_at": now,
            "beat_at": now,
        }
        with conflicts(f"There was an executor '{executor_id}' before.", hint="Make a fresh id at each start."):
            return _row(self._connection.execute(insert(_executors).values(values).returning(_executors)).one())

    def find(self, executor_id: str) -> ExecutorRow | None:
        """The executor, or None."""
        record = self._connection.execute(
            select(_executors).where(_executors.c.executor_id == executor_id)
        ).one_or_none()
        return None if record is None else _row(record)

    def find_all(self, *, living: bool = False) -> list[ExecutorRow]:
        """All executors, or those that have not ended, newest first."""
        statement = select(_executors).order_by(_executors.c.executor_id.desc())
        if living:
            statement = statement.where(_executors.c.lost_at.is_(None))
        return [_row(record) for record in self._connection.execute(statement)]

    def living(self) -> dict[str, datetime]:
        """The executors that have not ended, each with its last beat."""
        statement = select(_executors.c.executor_id, _executors.c.beat_at).where(_executors.c.lost_at.is_(None))
        return {record.executor_id: record.beat_at for record in self._connection.execute(statement)}

    def beat(self, executor_id: str) -> bool:
        """Whether the executor has not ended; its `beat_at` is moved on then."""
        statement = update(_executors).where(_executors.c.executor_id == executor_id, _executors.c.lost_at.is_(None))
        return bool(self._connection.execute(statement.values(beat_at=self._database_now())).rowcount)

    def lose(self, executor_id: str, *, seen: datetime | None, to: str) -> bool:
        """Whether `executor_id` is declared dead, by `to`, by this call: only where its last beat is the `seen` one.

        With None for `seen`: whether it has no row that lives, so that what it left may be taken. False also where somebody
        else is at it right now. Take what it left in this same transaction.
        """
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(
                select(func.set_config("idle_in_transaction_session_timeout", str(_RESCUE_IDLE_MS), True))
            )
        if seen is None:
            return self._connection.scalar(select(not_(exists(_living(executor_id))))) or False
        unmoved = _living(executor_id).where(_executors.c.beat_at == seen).with_for_update(skip_locked=True)
        statement = update(_executors).where(_executors.c.executor_id == unmoved.scalar_subquery())
        return bool(self._connection.execute(statement.values(lost_at=self._database_now(), lost_to=to)).rowcount)

    def lose_others(self, executor_id: str) -> list[str]:
        """All executors but this one, declared dead: for one who owns the data folder alone."""
        statement = update(_executors).where(_executors.c.executor_id != executor_id, _executors.c.lost_at.is_(None))
        ended = statement.values(lost_at=self._database_now(), lost_to=executor_id).returning(_executors.c.executor_id)
        return sorted(self._connection.scalars(ended))

    def retire(self, executor_id: str) -> bool:
        """Whether the executor ended by this call, in peace: it has left nothing behind."""
        statement = update(_executors).where(_executors.c.executor_id == executor_id, _executors.c.lost_at.is_(None))
        now = self._database_now()
        return bool(self._connection.execute(statement.values(lost_at=now, lost_to=executor_id)).rowcount)

    def host_seen_at(self, host: str) -> datetime | None:
        """When an executor of the host that carries out queued work was last known to live, by the database's clock; None: there
        never was one."""
        worker = (_executors.c.host == host) & (_executors.c.role != "api")
        return self._connection.scalar(select(func.max(_executors.c.beat_at)).where(worker))

    def tell_fault(self, executor_id: str, fault: str | None) -> bool:
        """Whether the executor has not ended; its `fault` is this one then."""
        statement = update(_executors).where(_executors.c.executor_id == executor_id, _executors.c.lost_at.is_(None))
        return bool(self._connection.execute(statement.values(fault=fault)).rowcount)

    def faulty(self) -> list[ExecutorRow]:
        """The executors that take no queued work though they should, by host: those that live, and of each host the last one where
        it has ended within the hour and no other came."""
        later = _executors.alias("later")
        replaced = exists().where(
            later.c.host == _executors.c.host, later.c.role != "api", later.c.executor_id > _executors.c.executor_id
        )
        lately = _executors.c.beat_at > self._database_now() - timedelta(hours=_FAULT_HOURS)
        shown = _executors.c.lost_at.is_(None) | (lately & not_(replaced))
        statement = select(_executors).where(_executors.c.fault.is_not(None), shown)
        ordered = statement.order_by(_executors.c.host, _executors.c.executor_id)
        return [_row(record) for record in self._connection.execute(ordered)]

    # -- DBOS's rows: on SQLite they are in a file of their own, which only the engine opens

    def forget_workflows(self) -> int:
        """How many workflows of executors that don't live will now be run by nobody (PostgreSQL; see FORGET)."""
        return self._connection.execute(FORGET, {"name": CARRY_OUT}).rowcount if self.has_workflows() else 0

    def has_workflows(self) -> bool:
        """Whether DBOS has its tables in this database."""
        if self._connection.dialect.name != "postgresql":
            return False
        return bool(self._connection.scalar(select(func.to_regclass("dbos.workflow_status").is_not(None))))

    def _database_now(self) -> ColumnElement[datetime] | datetime:
        """The moment by the database's clock, which all processes share; on SQLite there is one process, with its own."""
        if self._connection.dialect.name == "postgresql":
            return func.clock_timestamp(type_=DateTime(timezone=True))
        return self._now


def _living(executor_id: str) -> Select[tuple[str]]:
    return select(_executors.c.executor_id).where(
        _executors.c.executor_id == executor_id, _executors.c.lost_at.is_(None)
    )


def _row(record: Row[Any]) -> ExecutorRow:
    return ExecutorRow(
        executor_id=record.executor_id,
        host=record.host,
        role=record.role,
        version=record.version,
        started_at=record.started_at,
        beat_at=record.beat_at,
        lost_at=record.lost_at,
        lost_to=record.lost_to,
        fault=record.fault,
    )
