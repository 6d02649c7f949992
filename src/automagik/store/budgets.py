"""Budgets: limits of money, what counts against them, and what is reserved."""

import builtins
import uuid
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    case,
    delete,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)

from automagik.errors import NotFound, PreconditionFailed
from automagik.store import schema
from automagik.store.calls import ModelCall
from automagik.store.columns import clean
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts, insert_new
from automagik.store.reservations import Limit, Period, Reserve, Scope, Settle, call_of, period_start
from automagik.store.rows import Page
from automagik.store.turns import notify
from automagik.store.usage import spent_since
from automagik.types import new_id

__all__ = ["BUDGETS_CHANGED", "BudgetRow", "Budgets", "Owners"]

BUDGETS_CHANGED = ("changed", "budgets")
"""Topic and text of the signal that budgets are not what they were."""

_budgets = schema.budgets
_counters = schema.budget_counters
_reservations = schema.reservations
_executors = schema.executors
_runs = schema.runs
_keys = schema.api_keys


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """A budget, with what counts against it in the period under way. Amounts are nano-dollars."""

    budget_id: str
    scope: Scope
    scope_id: str
    """Whom it limits: a key's, user's or run's id, an agent's or workflow's name; empty for the organisation."""
    period: Period
    limit_nano: int
    soft_limit_nano: int | None
    key_id: str | None
    """The key that set it; None: the platform itself."""
    revision: int
    created_at: datetime
    updated_at: datetime
    period_start: str
    spent_nano: int
    reserved_nano: int

    def as_limit(self) -> Limit:
        """The same, as the ledger sees it."""
        return Limit(
            self.budget_id,
            self.scope,
            self.scope_id,
            self.period,
            self.period_start,
            self.limit_nano,
            self.soft_limit_nano,
            self.spent_nano,
            self.reserved_nano,
        )


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose budgets are meant: those of a user, of that user's keys and of that user's runs."""

    user_id: uuid.UUID


class Budgets(Repository):
    """The budgets table with its counters. There is one budget for each scope, whom it names, and period."""

    __slots__ = ()

    def set(
        self,
        scope: Scope,
        scope_id: str,
        period: Period,
        limit_nano: int,
        *,
        soft_limit_nano: int | None = None,
        key_id: str | None = None,
        if_revision: int | None = None,
    ) -> tuple[BudgetRow, bool]:
        """The budget, and whether it is new: then what runs have used in the period under way is spent already.

        Raises:
            PreconditionFailed: it is not at `if_revision` any more, or is not there.
            Conflict: somebody else makes it right now.
        """
        which = and_(_budgets.c.scope == scope, _budgets.c.scope_id == scope_id, _budgets.c.period == period)
        held = self._connection.execute(select(_budgets).where(which).with_for_update()).one_or_none()
        if if_revision is not None and (held is None or held.revision != if_revision):
            raise _changed()
        if held is None:
            budget_id = self._create(scope, scope_id, period, limit_nano, soft_limit_nano, key_id)
        else:
            budget_id = held.budget_id
            changes = {"limit_nano": limit_nano, "soft_limit_nano": soft_limit_nano, "key_id": key_id}
            statement = update(_budgets).where(_budgets.c.budget_id == budget_id)
            self._connection.execute(
                statement.values(revision=_budgets.c.revision + 1, updated_at=self._now, **changes)
            )
            if soft_limit_nano != held.soft_limit_nano:  # it may be passed again
                mine = update(_counters).where(_counters.c.budget_id == budget_id)
                self._connection.execute(mine.values(warned=False))
        notify(self._connection, " ".join(BUDGETS_CHANGED))
        return self.get(budget_id), held is None

    def add_for_run(self, run_id: str, limit_nano: int) -> bool:
        """Whether the run has a budget in all by this call; one that it has already stays as it is."""
        values = _new("run", run_id, "total", limit_nano, None, None, self._now)
        which = and_(_budgets.c.scope == "run", _budgets.c.scope_id == run_id, _budgets.c.period == "total")
        if self._connection.scalar(select(_budgets.c.budget_id).where(which)) is not None:
            return False
        insert_new(self._connection, _budgets, values)
        return True

    def get(self, budget_id: str, *, of: Owners | None = None) -> BudgetRow:
        """The budget of this id. Raises NotFound, with `of` also for one that is not that user's."""
        statement = self._standing().where(_budgets.c.budget_id == budget_id, *_owned(of))
        record = self._connection.execute(statement).one_or_none()
        if record is None:
            raise NotFound("budget", budget_id)
        return _row(record)

    def delete(self, budget_id: str, *, of: Owners | None = None, if_revision: int | None = None) -> BudgetRow:
        """The budget that was deleted. Raises NotFound, or PreconditionFailed where it is not at `if_revision` any more."""
        row = self.get(budget_id, of=of)
        statement = delete(_budgets).where(_budgets.c.budget_id == budget_id)
        if if_revision is not None:
            statement = statement.where(_budgets.c.revision == if_revision)
        if not self._connection.execute(statement).rowcount:
            raise _changed()
        notify(self._connection, " ".join(BUDGETS_CHANGED))
        return row

    def list(
        self,
        *,
        of: Owners | None = None,
        scope: Scope | None = None,
        scope_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[BudgetRow]:
        """Budgets as they stand, newest first. Those of runs only where they are asked for by `scope`."""
        statement = self._standing().where(*_owned(of))
        statement = statement.where(_budgets.c.scope != "run" if scope is None else _budgets.c.scope == scope)
        if scope_id is not None:
            statement = statement.where(_budgets.c.scope_id == scope_id)
        return fetch_page(self._connection, statement, (_budgets.c.budget_id,), _row, limit=limit, cursor=cursor)

    # -- what the ledger needs

    def limited(self, runs: Collection[str] = ()) -> Collection[tuple[str, str]]:
        """Who is limited, as pairs of scope and whom it names; of runs those that have not ended, and those of `runs`."""
        named = select(_budgets.c.scope, _budgets.c.scope_id).where(_budgets.c.scope != "run")
        opened = select(_runs.c.run_id).where(text(schema.OPEN_RUNS))
        meant = or_(_budgets.c.scope_id.in_(opened), _budgets.c.scope_id.in_(runs))
        of_runs = select(_budgets.c.scope, _budgets.c.scope_id).where(_budgets.c.scope == "run", meant)
        return {(record.scope, record.scope_id) for record in self._connection.execute(named.union_all(of_runs))}

    def ended(self, runs: Collection[str]) -> Collection[str]:
        """Those of `runs` that have ended; one that was never stored has not."""
        if not runs:
            return ()
        over = select(_runs.c.run_id).where(_runs.c.run_id.in_(runs), text(f"NOT ({schema.OPEN_RUNS})"))
        return [*self._connection.scalars(over)]

    def open_counters(self, scopes: Sequence[tuple[str, str]]) -> None:
        """Make the counters that the budgets of these scopes have now, where they are not there yet."""
        which = or_(false(), *(and_(_budgets.c.scope == scope, _budgets.c.scope_id == name) for scope, name in scopes))
        found = select(_budgets.c.budget_id, _budgets.c.period).where(which).order_by(_budgets.c.budget_id)
        for record in self._connection.execute(found).all():
            self._add_counter(record.budget_id, period_start(record.period, self._now), 0)

    def left_behind(self, limit: int) -> builtins.list[Settle]:
        """The ends of reservations that nobody will settle any more: they have expired, or their owner is lost.

        Each counts in full, for what was called may have been paid for, and has the row of a call that was lost, so that the
        run's usage says the same as the budgets.
        """
        expired = select(_reservations.c.reservation_id).where(_reservations.c.expires_at < self._now)
        lost = select(_reservations.c.reservation_id).join(
            _executors, and_(_executors.c.executor_id == _reservations.c.owner, _executors.c.lost_at.is_not(None))
        )
        left = expired.union(lost).limit(limit).subquery()
        found = (
            select(_reservations, _runs.c.key_id.label("run_key"), _runs.c.user_id.label("run_user"))
            .join(left, left.c.reservation_id == _reservations.c.reservation_id)
            .outerjoin(_runs, _runs.c.run_id == _reservations.c.run_id)
        )
        return [
            Settle(
                record.reservation_id,
                None,
                self._lost_call(record).to_row(),
                scopes=[(scope, name) for scope, name in record.scopes or ()],
                at=record.created_at,
            )
            for record in self._connection.execute(found)
        ]

    def _lost_call(self, record: Row[Any]) -> ModelCall:
        """What is known of a call whose process died: when it began, and what it can have cost."""
        return ModelCall(
            call_id=call_of(record.reservation_id),
            run_id=record.run_id,
            key_id=record.key_id or record.run_key,
            user_id=record.user_id or record.run_user,
            wire=record.wire or "unknown",
            model=record.model or "unknown",
            agent=record.agent,
            status=None,
            outcome="lost",
            created_at=record.created_at,
            duration_ms=max(0, round((self._now - record.created_at).total_seconds() * 1000)),
            cost_nano=None if record.priced is False else record.amount_nano,
            reserved_nano=record.amount_nano if record.counters else 0,
        )

    def note(self, begun: Sequence[Reserve]) -> None:
        """Keep what calls are under way that no budget applies to, so that those of a process that dies leave a row. What has
        ended meanwhile is left out."""
        called = {call_of(one.reservation_id): one for one in begun}
        calls = schema.model_calls
        ended = select(calls.c.call_id).where(calls.c.call_id.in_([*called]))
        for call_id in self._connection.scalars(ended):
            del called[call_id]
        for one in called.values():
            head = one.head
            values = {
                "reservation_id": one.reservation_id,
                "run_id": one.run_id,
                "owner": one.owner,
                "amount_nano": one.amount_nano,
                "counters": [],
                "created_at": one.created_at,
                "expires_at": one.expires_at,
                "key_id": head.key_id,
                "user_id": head.user_id,
                "wire": head.wire,
                "model": clean(head.model),
                "agent": head.agent,
                "scopes": [*one.scopes],
                "priced": one.is_priced,
            }
            insert_new(self._connection, _reservations, values)

    def forget_runs(self, run_ids: Sequence[str]) -> int:
        """How many budgets of these runs were deleted."""
        gone = delete(_budgets).where(_budgets.c.scope == "run", _budgets.c.scope_id.in_(run_ids))
        return self._connection.execute(gone).rowcount

    # -- parts

    def _create(
        self,
        scope: Scope,
        scope_id: str,
        period: Period,
        limit_nano: int,
        soft_limit_nano: int | None,
        key_id: str | None,
    ) -> str:
        values = _new(scope, scope_id, period, limit_nano, soft_limit_nano, key_id, self._now)
        if self._connection.dialect.name == "postgresql":
            # A call that is settled now is either in what is spent already, or finds the new budget.
            self._connection.exec_driver_sql("LOCK TABLE model_calls IN SHARE ROW EXCLUSIVE MODE")
        with _made_once():
            self._connection.execute(insert(_budgets).values(**values))
        start = period_start(period, self._now)
        spent = spent_since(self._connection, scope, scope_id, start)
        self._add_counter(values["budget_id"], start, spent)
        return str(values["budget_id"])

    def _add_counter(self, budget_id: str, start: str, spent: int) -> None:
        values: dict[str, Any] = {"budget_id": budget_id, "period_start": start, "spent_nano": spent}
        insert_new(self._connection, _counters, {**values, "reserved_nano": 0, "warned": False})

    def _standing(self) -> Select[Any]:
        start = case(
            *((_budgets.c.period == period, period_start(period, self._now)) for period in ("day", "month")),
            else_=literal(""),
        )
        return select(
            _budgets,
            start.label("period_start"),
            func.coalesce(_counters.c.spent_nano, 0).label("spent_nano"),
            func.coalesce(_counters.c.reserved_nano, 0).label("reserved_nano"),
        ).outerjoin(_counters, and_(_counters.c.budget_id == _budgets.c.budget_id, _counters.c.period_start == start))


def _new(
    scope: str,
    scope_id: str,
    period: str,
    limit_nano: int,
    soft_limit_nano: int | None,
    key_id: str | None,
    now: datetime,
) -> dict[str, Any]:
    return {
        "budget_id": new_id("budget"),
        "scope": scope,
        "scope_id": scope_id,
        "period": period,
        "limit_nano": limit_nano,
        "soft_limit_nano": soft_limit_nano,
        "key_id": key_id,
        "revision": 1,
        "created_at": now,
        "updated_at": now,
    }


def _owned(of: Owners | None) -> list[ColumnElement[bool]]:
    if of is None:
        return []
    keys = select(_keys.c.key_id).where(_keys.c.user_id == of.user_id)
    runs = select(_runs.c.run_id).where(_runs.c.user_id == of.user_id)
    return [
        or_(
            and_(_budgets.c.scope == "user", _budgets.c.scope_id == str(of.user_id)),
            and_(_budgets.c.scope == "key", _budgets.c.scope_id.in_(keys)),
            and_(_budgets.c.scope == "run", _budgets.c.scope_id.in_(runs)),
        )
    ]


def _changed() -> PreconditionFailed:
    return PreconditionFailed(
        "The budget has changed since you read it, or is gone.", hint="Read it again, then repeat your change."
    )


def _made_once() -> AbstractContextManager[None]:
    return conflicts("Somebody else sets this budget at the same moment.", hint="Look at it, then set it again.")


def _row(record: Row[Any]) -> BudgetRow:
    return BudgetRow(
        budget_id=record.budget_id,
        scope=record.scope,
        scope_id=record.scope_id,
        period=record.period,
        limit_nano=record.limit_nano,
        soft_limit_nano=record.soft_limit_nano,
        key_id=record.key_id,
        revision=record.revision,
        created_at=record.created_at,
        updated_at=record.updated_at,
        period_start=record.period_start,
        spent_nano=int(record.spent_nano),
        reserved_nano=int(record.reserved_nano),
    )
