"""Queue: the runs that wait for a worker, and what becomes of those whose worker is gone. All of it outside the hot path."""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Boolean, Select, bindparam, case, delete, exists, func, or_, select, text, true, update
from sqlalchemy.sql.dml import ReturningUpdate

from automagik.store import schema
from automagik.store.delivery_sql import queue_deliveries
from automagik.store.hot import NextTurn
from automagik.store.repository import Repository
from automagik.store.rescue import EndedRun, Rescued, add_events, rescue_runs
from automagik.store.rows import ClaimedRun, RunRow
from automagik.store.runs import claimed_of, last_seq, run_of
from automagik.store.turns import give_turn, hold_sessions, notify
from automagik.types import OUTCOME_STATUS, JsonObject, RunOutcome, RunStatus, Usage

__all__ = ["ClaimLimits", "EndedRun", "Queue", "QueueLook", "Rescued"]

_runs = schema.runs
_events = schema.run_events
_executors = schema.executors
_keys = schema.api_keys
_idempotency = schema.idempotency_keys

_OPEN = text(schema.OPEN_RUNS)
_WAITING = text(schema.WAITING_RUNS)
_ACTIVE = text(schema.ACTIVE_RUNS)

_others = _executors.alias()
# One that only answers requests carries out nothing of its host's.
_of_its_host = (_others.c.host == _runs.c.host) & (_others.c.role != "api")
_host_lives = exists(select(_others.c.executor_id).where(_of_its_host, _others.c.beat_at > bindparam("since")))
# One that was declared lost, and does not know it yet, would get back what was taken from it.
_is_lost = exists(
    select(_others.c.executor_id).where(_others.c.executor_id == bindparam("me"), _others.c.lost_at.is_not(None))
)
_is_worked_on = exists(
    select(_others.c.executor_id).where(
        _of_its_host, or_(_others.c.lost_at.is_(None), _others.c.beat_at > bindparam("since"))
    )
)
# Made once: to put such a statement together takes longer than to run it.
_CLAIMABLE = (
    select(_runs.c.run_id)
    .where(
        _WAITING,
        _runs.c.owner.is_(None),
        or_(_runs.c.available_at.is_(None), _runs.c.available_at <= bindparam("moment")),
        or_(_runs.c.queue_until.is_(None), _runs.c.queue_until > bindparam("moment")),
        or_(_runs.c.host.is_(None), _runs.c.host == bindparam("here"), ~_host_lives),
        or_(_runs.c.kind != "workflow", _runs.c.host == bindparam("here"), bindparam("admits", type_=Boolean)),
        ~_is_lost,
    )
    .order_by(_runs.c.priority, _runs.c.run_id)
)


def _taking(wanted: Select[tuple[str]]) -> ReturningUpdate[Any]:
    """Give the runs that `wanted` finds to an owner, but for those that somebody else is taking right now."""
    free = wanted.limit(bindparam("most")).with_for_update(skip_locked=True).cte("free")
    taken = update(_runs).where(_runs.c.run_id.in_(select(free.c.run_id))).values(owner=bindparam("me"))
    return taken.returning(*_runs.c, last_seq)


_UNCLAIMED = select(_runs.c.run_id).where(_WAITING, _runs.c.owner.is_(None))
# Whatever binds claims else: one that only ends takes nothing from the others.
_TO_BE_STOPPED = _UNCLAIMED.where(_runs.c.cancel_requested, _runs.c.host == bindparam("here"))
_CLAIM = _taking(_CLAIMABLE)
_CLAIM_STOPPED = _taking(_TO_BE_STOPPED.where(~_is_lost).order_by(_runs.c.run_id))
_LIMITED_KEYS = select(_keys.c.key_id).where(_keys.c.max_concurrent_runs.is_not(None), _keys.c.revoked_at.is_(None))
_LOOK = select(
    exists(_LIMITED_KEYS).label("has_key_limits"),
    exists(_UNCLAIMED.where(_runs.c.kind == "workflow")).label("has_workflows"),
    exists(_TO_BE_STOPPED).label("has_stops"),
)
_CLAIM_CHOSEN = _taking(_CLAIMABLE.where(_runs.c.run_id.in_(bindparam("chosen", expanding=True))))

_CLAIM_LOCK = 0x71756575
"""The key of the advisory lock under which claims that limits bind are made one after the other."""
_LOOKED_AT = 500
"""How many waiting runs a claim with limits looks at."""
_SWEPT = 200
"""How many rows one sweep changes at the most."""


@dataclass(frozen=True, slots=True)
class ClaimLimits:
    """How many background runs may be under way at once on all hosts: in all, and of each agent. Keys carry their own."""

    total: int | None = None
    by_agent: Mapping[str, int] = field(default_factory=dict[str, int])
    has_key_limits: bool = False

    @property
    def bind(self) -> bool:
        """Whether there is any limit."""
        return self.total is not None or bool(self.by_agent) or self.has_key_limits


@dataclass(frozen=True, slots=True)
class QueueLook:
    """What there is besides runs that wait."""

    has_key_limits: bool = False
    """Whether any key limits its concurrent runs."""
    has_workflows: bool = False
    """Whether a run of a workflow waits for a worker."""
    has_stops: bool = False
    """Whether a run that is to be stopped waits for a worker of the host."""


class _Room:
    """How many more runs may be under way."""

    def __init__(
        self,
        limits: ClaimLimits,
        by_key: Mapping[str, int],
        counted: Mapping[str, Sequence[str]],
        under_way: Iterable[tuple[str, str | None, int]],
    ) -> None:
        """`counted`: of which keys the limits count for a key's runs: its own, and those of the keys that it descends from."""
        self._total = limits.total
        self._agents = dict(limits.by_agent)
        self._keys = dict(by_key)
        self._counted = counted
        for name, key, runs in under_way:
            self._count(name, key, runs)

    def is_left(self) -> bool:
        return self._total is None or self._total > 0

    def full_agents(self) -> list[str]:
        return [name for name, left in self._agents.items() if left <= 0]

    def full_keys(self) -> list[str]:
        return [key for key in self._counted if self._is_full(key)]

    def take(self, name: str, key: str | None) -> bool:
        """Whether there was room for one more."""
        if not self.is_left() or self._agents.get(name, 1) <= 0 or self._is_full(key):
            return False
        self._count(name, key, 1)
        return True

    def _is_full(self, key: str | None) -> bool:
        return any(self._keys[limited] <= 0 for limited in self._counted.get(key or "", ()))

    def _count(self, name: str, key: str | None, runs: int) -> None:
        if self._total is not None:
            self._total -= runs
        if name in self._agents:
            self._agents[name] -= runs
        for limited in self._counted.get(key or "", ()):
            self._keys[limited] -= runs


class Queue(Repository):
    """The runs that have not ended, as the queue sees them."""

    __slots__ = ()

    # -- claims

    def claim(
        self,
        owner: str,
        host: str,
        count: int,
        *,
        limits: ClaimLimits,
        host_lease_seconds: float,
        admits_workflows: bool = True,
    ) -> list[ClaimedRun]:
        """At most `count` waiting runs, which belong to `owner` now: by priority (smaller first), then by age.

        A run that is bound to a host is left to that host's workers, until none of them has shown life for the lease. A host
        without room for another workflow takes only those that are its own already.
        """
        if limits.bind:
            self._serialize_claims()
        asked: dict[str, object] = {
            "moment": self._now,
            "since": self._now - timedelta(seconds=host_lease_seconds),
            "here": host,
            "admits": admits_workflows,
            "me": owner,
            "most": count,
        }
        statement = _CLAIM
        if limits.bind:
            chosen = self._within(limits, asked, count)
            if not chosen:
                return []
            statement, asked["chosen"] = _CLAIM_CHOSEN, chosen
        records = self._connection.execute(statement, asked).all()
        return [claimed_of(record) for record in sorted(records, key=lambda record: (record.priority, record.run_id))]

    def claim_stopped(self, owner: str, host: str, count: int) -> list[ClaimedRun]:
        """At most `count` of the runs that are to be stopped and wait for a worker of `host`, the oldest first, which belong to
        `owner` now, within no limit: whoever claims them stops what works for them, and carries them out no further."""
        asked = {"me": owner, "here": host, "most": count}
        records = self._connection.execute(_CLAIM_STOPPED, asked).all()
        return [claimed_of(record) for record in sorted(records, key=lambda record: record.run_id)]

    def depth(self, most: int) -> int:
        """How many background runs wait, counted up to `most`."""
        waiting = select(_runs.c.run_id).where(_runs.c.status == RunStatus.QUEUED.value, _runs.c.background, _ACTIVE)
        return self._connection.scalar(select(func.count()).select_from(waiting.limit(most).subquery())) or 0

    def look(self, host: str) -> QueueLook:
        """What a worker of `host` has to know before it claims."""
        return QueueLook(*self._connection.execute(_LOOK, {"here": host}).one())

    def idempotent(self, key_id: str, key: str) -> tuple[str, bytes] | None:
        """The run that a key was used for and its body's hash, or None."""
        known = select(_idempotency.c.run_id, _idempotency.c.body_hash).where(
            _idempotency.c.key_id == key_id, _idempotency.c.idempotency_key == key
        )
        record = self._connection.execute(known).one_or_none()
        return None if record is None else (record.run_id, bytes(record.body_hash))

    # -- ends and returns from outside

    def end(
        self,
        run_id: str,
        outcome: RunOutcome,
        error: JsonObject | None,
        *,
        statuses: Iterable[RunStatus],
        owner: str | None = None,
        unclaimed: bool = False,
        usage: Usage | None = None,
    ) -> EndedRun | None:
        """End a run whose status is among `statuses`, with its last event; None where it has another one, or where `owner`
        is given and it is not that one's, or `unclaimed` and it is somebody's. `usage` is what it used, where it began."""
        in_line = select(_runs.c.session_id).where(_runs.c.run_id == run_id, _runs.c.turn.is_not(None))
        session_id = self._connection.scalar(in_line)
        if session_id is not None:
            hold_sessions(self._connection, [session_id])
        ended = self._connection.execute(
            update(_runs)
            .returning(_runs.c.turn)
            .where(
                _runs.c.run_id == run_id,
                _runs.c.status.in_([status.value for status in statuses]),
                true() if owner is None else _runs.c.owner == owner,
                _runs.c.owner.is_(None) if unclaimed else true(),
            )
            .values(
                status=OUTCOME_STATUS[outcome].value,
                outcome=outcome.value,
                error=error,
                finished_at=self._now,
                waiting_for=None,
                **({} if usage is None else asdict(usage)),
            )
        ).one_or_none()
        if ended is None:
            return None
        add_events(self._connection, self._now, "run_finished", {run_id: {}})
        queue_deliveries(self._connection, run_id)
        following: NextTurn | None = None
        if session_id is not None and ended.turn is not None:
            following = give_turn(self._connection, session_id)
        notify(self._connection, f"ended {run_id}")
        return EndedRun(self._get(run_id), following)

    def put_back(
        self, run_id: str, owner: str, *, attempt: int, available_at: datetime | None, data: JsonObject
    ) -> bool:
        """Whether the running run went back to the queue, for `attempt` from `available_at` on; only its owner may do that, and
        not where the run is to be stopped."""
        changed = self._connection.execute(
            update(_runs)
            .where(
                _runs.c.run_id == run_id,
                _runs.c.status == RunStatus.RUNNING.value,
                _runs.c.owner == owner,
                ~_runs.c.cancel_requested,
            )
            .values(**self._waiting_again(attempt, available_at))
        )
        if not changed.rowcount:
            return False
        add_events(self._connection, self._now, "run_queued", {run_id: data})
        notify(self._connection, "work")
        return True

    def let_go(self, run_id: str, owner: str) -> bool:
        """Whether a claimed run that has not begun went back to the queue."""
        changed = self._connection.execute(
            update(_runs)
            .where(
                _runs.c.run_id == run_id,
                _runs.c.status == RunStatus.QUEUED.value,
                _runs.c.owner == owner,
                _runs.c.background,
            )
            .values(owner=None)
        )
        if changed.rowcount:
            notify(self._connection, "work")
        return bool(changed.rowcount)

    def request_cancel(self, run_id: str) -> bool:
        """Ask the owner of a run that is under way to stop it; whether it was under way."""
        asked = self._connection.execute(
            update(_runs).where(_runs.c.run_id == run_id, _OPEN).values(cancel_requested=True)
        )
        notify(self._connection, f"cancel {run_id}")
        return bool(asked.rowcount)

    def cancels(self, owner: str) -> list[str]:
        """Which of the owner's runs are to be stopped: those whose signal may have been lost."""
        asked = select(_runs.c.run_id).where(_runs.c.owner == owner, _OPEN, _runs.c.cancel_requested)
        return list(self._connection.scalars(asked))

    def owned(self, owner: str) -> list[str]:
        """The open runs of an owner."""
        return list(self._connection.scalars(select(_runs.c.run_id).where(_runs.c.owner == owner, _OPEN)))

    def ready(self, run_ids: Sequence[str]) -> list[str]:
        """Which of the runs have their turn, or have ended: those whose signal may have been lost."""
        come = select(_runs.c.run_id).where(
            _runs.c.run_id.in_(run_ids), or_(_runs.c.ready, _runs.c.outcome.is_not(None))
        )
        return list(self._connection.scalars(come))

    # -- what the dead left

    def owners(self) -> list[str]:
        """Who owns runs that have not ended."""
        owning = select(_runs.c.owner).where(_OPEN, _runs.c.owner.is_not(None)).distinct()
        return [owner for owner in self._connection.scalars(owning) if owner is not None]

    def rescue(
        self,
        owner: str,
        *,
        lost: JsonObject,
        cancelled: JsonObject | None = None,
        run_ids: Collection[str] | None = None,
    ) -> Rescued:
        """Take all open runs, or those of `run_ids`, from an executor that will never write of them again.

        Those that were to be stopped are cancelled, with the error `cancelled`; those that a caller waited for fail as
        `worker_lost`, with the error `lost`; the others wait for another worker, those under way with their next attempt.
        """
        return rescue_runs(self._connection, self._now, owner, lost=lost, cancelled=cancelled, run_ids=run_ids)

    def expired(self) -> list[str]:
        """Queued runs that waited longer than they may."""
        late = select(_runs.c.run_id).where(
            _runs.c.status == RunStatus.QUEUED.value, _ACTIVE, _runs.c.queue_until <= self._now
        )
        return list(self._connection.scalars(late.limit(_SWEPT)))

    def cancelled_away(self, unseen_seconds: float) -> list[str]:
        """Runs that are to be stopped and belong to a host on which no worker has shown life for so long: nobody is there to
        stop them."""
        asked = select(_runs.c.run_id).where(
            _WAITING, _runs.c.owner.is_(None), _runs.c.cancel_requested, _runs.c.host.is_not(None)
        )
        if not self._connection.scalar(select(exists(asked))):
            return []
        now = self._now
        if self._connection.dialect.name == "postgresql":  # beats are told by the database's clock
            now = self._connection.scalars(select(func.clock_timestamp())).one()
        left = asked.where(~_is_worked_on).limit(_SWEPT)
        return list(self._connection.scalars(left, {"since": now - timedelta(seconds=unseen_seconds)}))

    def stuck_sessions(self) -> list[uuid.UUID]:
        """Sessions with open runs of which none has the turn: what a process left that died between an end and the next turn."""
        waiting = select(_runs.c.session_id, func.max(case((_runs.c.ready, 1), else_=0)).label("has_turn"))
        grouped = waiting.where(_OPEN, _runs.c.turn.is_not(None)).group_by(_runs.c.session_id).subquery()
        stuck = select(grouped.c.session_id).where(grouped.c.has_turn == 0).limit(_SWEPT)
        return list(self._connection.scalars(stuck))

    def give_turn(self, session_id: uuid.UUID) -> NextTurn | None:
        """Give the turn to the session's first open run where none has it."""
        return give_turn(self._connection, session_id)

    def forget_keys(self, before: datetime) -> int:
        """Delete idempotency keys that are older; how many there were."""
        return self._connection.execute(delete(_idempotency).where(_idempotency.c.created_at < before)).rowcount

    # -- inside

    def _serialize_claims(self) -> None:
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIM_LOCK})

    def _within(self, limits: ClaimLimits, asked: Mapping[str, object], count: int) -> list[str]:
        """The first that may be claimed and break no limit, together with what is under way."""
        by_key, counted = self._key_limits() if limits.has_key_limits else ({}, {})
        room = _Room(limits, by_key, counted, self._under_way())
        chosen: list[str] = []
        while len(chosen) < count and room.is_left():
            free = _CLAIMABLE.where(_runs.c.run_id.not_in(chosen), _runs.c.name.not_in(room.full_agents()))
            free = free.where(or_(_runs.c.key_id.is_(None), _runs.c.key_id.not_in(room.full_keys())))
            free = free.with_only_columns(_runs.c.run_id, _runs.c.name, _runs.c.key_id).limit(_LOOKED_AT)
            records = self._connection.execute(free, asked).all()
            found = [run.run_id for run in records if room.take(run.name, run.key_id)]
            chosen += found
            if len(records) < _LOOKED_AT or not found:  # else agents or keys are full now, with others behind them
                break
        return chosen[:count]

    def _under_way(self) -> list[tuple[str, str | None, int]]:
        under_way = select(_runs.c.name, _runs.c.key_id, func.count().label("runs")).where(
            _OPEN, _runs.c.background, _runs.c.owner.is_not(None)
        )
        grouped = self._connection.execute(under_way.group_by(_runs.c.name, _runs.c.key_id))
        return [(record.name, record.key_id, record.runs) for record in grouped]

    def _key_limits(self) -> tuple[dict[str, int], dict[str, list[str]]]:
        """The limits of keys, and which of them count for a key's runs: its own, and those of the keys that it descends from."""
        some = select(_keys.c.key_id, _keys.c.made_by, _keys.c.max_concurrent_runs)
        some = some.where(or_(_keys.c.max_concurrent_runs.is_not(None), _keys.c.made_by.is_not(None)))
        records = self._connection.execute(some).all()
        makers: dict[str, str | None] = {record.key_id: record.made_by for record in records}
        limits = {
            record.key_id: record.max_concurrent_runs for record in records if record.max_concurrent_runs is not None
        }
        counted: dict[str, list[str]] = {}
        for key_id in makers:
            lineage: list[str] = []
            of: str | None = key_id
            while of is not None:
                lineage.append(of)
                of = makers.get(of)
            counted[key_id] = [of for of in lineage if of in limits]
        return limits, counted

    def _waiting_again(self, attempt: int, available_at: datetime | None) -> dict[str, object]:
        return {
            "status": RunStatus.QUEUED.value,
            "owner": None,
            "attempt": attempt,
            "available_at": available_at,
            "queue_until": None,
            "started_at": None,
        }

    def _get(self, run_id: str) -> RunRow:
        return run_of(self._connection.execute(select(_runs).where(_runs.c.run_id == run_id)).one())
