"""The end of a reservation counts once and exactly, whatever happens to it and its budgets meanwhile."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ledger_house import CENT, USD, LedgerHouse, counters, party, reservations

from automagik.budget import ModelCall, Reservation
from automagik.errors import BudgetExceeded
from automagik.store import Transaction
from automagik.store.postgres_ledger import SETTLE, settle_parameters
from automagik.store.reservations import Settle
from automagik.types import new_id

pytestmark = pytest.mark.anyio


def call(held: Reservation, cost: int, run_id: str | None = None) -> ModelCall:
    return ModelCall(
        call_id=held.call_id,
        run_id=run_id,
        key_id=None,
        user_id=None,
        wire="anthropic",
        model="claude-test",
        status=200,
        outcome="completed",
        created_at=datetime.now(UTC),
        duration_ms=1,
        cost_nano=cost,
        reserved_nano=held.granted_nano,
    )


async def test_what_expires_while_it_is_settled_counts_once_and_as_its_row_says(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, 100 * USD)
    who = party("key_a", run_id=new_id("run"))
    held = [await house.ledger.reserve(who, 50 * CENT, seconds=1) for _ in range(20)]
    house.clock.turn(timedelta(seconds=2))
    settled = (house.ledger.settle(one, 10 * CENT, call=call(one, 10 * CENT, who.run_id)) for one in held)
    await asyncio.gather(house.ledger.refresh(), *settled, house.ledger.refresh())
    await asyncio.gather(*(house.ledger.release(one) for one in held))
    rows = await house.store.read(lambda tx: tx.calls.of_run(str(who.run_id)))
    assert len(rows) == 20 and {row.outcome for row in rows} <= {"completed", "lost"}
    assert await house.standing(budget) == (sum(row.cost_nano or 0 for row in rows), 0)
    assert await house.store.read(reservations) == 0


async def test_a_budget_that_is_changed_while_something_is_reserved_keeps_what_it_knows(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    held = await house.ledger.reserve(party(), 80 * CENT)
    assert (await house.limit("organisation", None, 10 * CENT)).budget_id == budget.budget_id
    assert await house.standing(budget) == (0, 80 * CENT)
    with pytest.raises(BudgetExceeded):
        await house.ledger.reserve(party(), 20 * CENT)
    await house.limit("organisation", None, 2 * USD, soft=30 * CENT)
    assert (await house.ledger.reserve(party(), 20 * CENT)).granted_nano == 20 * CENT
    told = await house.ledger.settle(held, 40 * CENT, call=call(held, 40 * CENT))
    assert [warned["soft_limit_usd"] for warned in told.warnings] == ["0.300000"]
    assert await house.standing(budget) == (40 * CENT, 20 * CENT)


@pytest.mark.parametrize(
    ("at", "minutes", "period"),
    [
        (datetime(2026, 12, 31, 23, 59, tzinfo=UTC), 2, "day"),
        (datetime(2028, 2, 29, 23, 59, tzinfo=UTC), 2, "month"),
        (datetime(2026, 10, 24, 23, 59, tzinfo=UTC), 70, "day"),  # Europe's clocks go back an hour later
        (datetime(2026, 3, 8, 6, 59, tzinfo=UTC), 2, "day"),  # New York's go on: no day begins there for UTC
    ],
)
async def test_what_is_reserved_over_the_end_of_a_period_counts_where_it_was_reserved(
    house: LedgerHouse, at: datetime, minutes: int, period: Any
) -> None:
    house.clock.stand(at)
    budget = await house.limit("organisation", None, USD, period=period)
    held = await house.ledger.reserve(party(), USD)
    house.clock.turn(timedelta(minutes=minutes))
    is_over = house.clock.now().day != at.day
    if is_over:
        assert await house.standing(budget) == (0, 0)
        await house.ledger.settle(await house.ledger.reserve(party(), USD), 10 * CENT)
    await house.ledger.settle(held, 30 * CENT, call=call(held, 30 * CENT))
    assert await house.standing(budget) == ((10 if is_over else 30) * CENT, 0)
    known = sorted((spent, reserved) for _, spent, reserved in await house.store.read(counters))
    assert known == ([(10 * CENT, 0), (30 * CENT, 0)] if is_over else [(30 * CENT, 0)])


async def test_very_small_amounts_add_up_exactly(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, 999_999_999 * USD + 999_999_999)
    await house.ledger.settle(await house.ledger.reserve(party(), 999_999_998 * USD), 999_999_998 * USD)
    scopes, now = party().scopes, house.clock.now()
    for _ in range(4):
        ends = [Settle(new_id("resv"), 1, None, (), 0, scopes, now) for _ in range(500)]
        rows = [call(Reservation(one.reservation_id, 0), 1).to_row() for one in ends]
        await house.store.settle(
            [Settle(one.reservation_id, 1, row, (), 0, scopes, now) for one, row in zip(ends, rows, strict=True)]
        )
    assert await house.standing(budget) == (999_999_998 * USD + 2000, 0)


async def test_the_end_of_a_call_does_not_look_at_all_calls_there_are(house: LedgerHouse) -> None:
    if house.store.dialect == "sqlite":
        return  # there the row itself is inserted, or is there
    rows = [call(Reservation(new_id("resv"), 0), 1).to_row() for _ in range(2000)]
    await house.store.settle([Settle(f"resv_{str(row['call_id'])[5:]}", 1, row) for row in rows])
    asked = settle_parameters([Settle(new_id("resv"), 1, rows[0], (), 0, party().scopes, house.clock.now())])

    def plan(tx: Transaction) -> str:
        tx.connection.exec_driver_sql("ANALYZE model_calls")
        found = tx.connection.exec_driver_sql(f"EXPLAIN {SETTLE}", tuple(asked)).scalars()
        return "\n".join(str(line) for line in found)

    text = await house.store.write(plan)
    assert "model_calls" in text and "Seq Scan on model_calls" not in text
