"""A ledger over a real store, with a clock that can be turned, and runs as they are stored."""

import secrets
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Self

from automagik.budget import Budgets, Ledger, Party
from automagik.store import BeginRun, FinishRun, Store, Transaction
from automagik.store.budgets import BudgetRow
from automagik.store.reservations import Period, Scope
from automagik.types import SYSTEM, Usage, new_id

__all__ = ["CENT", "USD", "LedgerHouse", "TurnedClock", "counters", "party", "reservations", "run"]

USD = 10**9
CENT = USD // 100


class TurnedClock:
    """The machine's clock, moved on by hand."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self._fixed: datetime | None = None

    def now(self) -> datetime:
        return (self._fixed or datetime.now(UTC)) + self.ahead

    def stand(self, moment: datetime) -> None:
        """Stand still at this moment; `turn` moves it on."""
        self._fixed, self.ahead = moment, timedelta()

    def turn(self, by: timedelta) -> None:
        self.ahead += by

    def monotonic(self) -> float:
        return self.now().timestamp()


class LedgerHouse:
    """The ledger of one process."""

    def __init__(self, store: Store, clock: TurnedClock, executor_id: str = "exec_here") -> None:
        self.store = store
        self.clock = clock
        self.ledger = Ledger(store, clock, executor_id=lambda: executor_id)
        self.budgets = Budgets(store, self.ledger)

    async def __aenter__(self) -> Self:
        await self.ledger.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ledger.close()

    async def limit(
        self, scope: Scope, scope_id: str | None, limit: int, *, period: Period = "total", soft: int | None = None
    ) -> BudgetRow:
        """The budget, set by the platform itself; where it names a key, a user or a run, these need not be there."""
        row, _ = await self.store.write(
            lambda tx: tx.budgets.set(scope, scope_id or "", period, limit, soft_limit_nano=soft)
        )
        await self.ledger.refresh()
        return row

    async def standing(self, budget: BudgetRow) -> tuple[int, int]:
        """What is spent and reserved."""
        row = await self.budgets.get(budget.budget_id, SYSTEM)
        return row.spent_nano, row.reserved_nano


def party(
    key: str | None = None,
    *,
    user: uuid.UUID | None = None,
    agent: str | None = None,
    run_id: str | None = None,
    epic: str | None = None,
) -> Party:
    """Whom a call belongs to."""
    return Party(key_id=key, user_id=user, agents=(agent,) if agent else (), run_id=run_id, epic_id=epic)


def counters(tx: Transaction) -> list[tuple[str, int, int]]:
    """All counters: the budget, what is spent and what is reserved."""
    rows = tx.connection.exec_driver_sql("SELECT budget_id, spent_nano, reserved_nano FROM budget_counters").all()
    return [(str(row[0]), int(row[1]), int(row[2])) for row in rows]


def reservations(tx: Transaction) -> int:
    """How many are open."""
    return int(tx.connection.exec_driver_sql("SELECT count(*) FROM reservations").scalar_one())


def run_id_of(moment: datetime) -> str:
    """An identifier that a run had that was accepted then."""
    value = (int(moment.timestamp() * 1000) << 80) | secrets.randbits(80)
    digits = "0123456789abcdefghjkmnpqrstvwxyz"
    return f"run_{''.join(digits[(value >> shift) & 31] for shift in range(125, -1, -5))}"


async def run(
    store: Store,
    cost: str | None = "0.5",
    *,
    name: str = "simple",
    kind: str = "agent",
    key: str | None = None,
    user: uuid.UUID | None = None,
    at: datetime | None = None,
    parent: str | None = None,
    ends: bool = True,
    tokens: int = 100,
) -> str:
    """A run that was carried out, or (`ends` false) is under way."""
    now = at or datetime.now(UTC)
    run_id = new_id("run") if at is None else run_id_of(at)
    begin = BeginRun(
        run_id=run_id,
        kind=kind,
        name=name,
        created_at=now,
        key_id=key,
        user_id=user,
        owner="exec_here",
        parent_id=parent,
    )
    await store.begin_run(begin)
    if ends:
        used = Usage(
            requests=1,
            tool_calls=3,
            input_tokens=tokens,
            output_tokens=tokens // 2,
            cost_usd=Decimal(cost) if cost is not None else None,
        )
        await store.finish_run(
            FinishRun(
                run_id=run_id, owner="exec_here", status="completed", outcome="completed", finished_at=now, usage=used
            )
        )
    return run_id
