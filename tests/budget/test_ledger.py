import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from ledger_house import CENT, USD, LedgerHouse, TurnedClock, counters, party, reservations, run

from automagik.budget import ModelCall, Party, UsageReport
from automagik.errors import BudgetBusy, BudgetExceeded
from automagik.store import BeginRun, FinishRun, Store, Transaction
from automagik.store.reservations import Settle
from automagik.store.usage import UsageFilter
from automagik.types import SYSTEM, new_id, new_uuid

pytestmark = pytest.mark.anyio


def call(run_id: str | None = None, **changes: object) -> ModelCall:
    fields: dict[str, object] = {
        "call_id": new_id("call"),
        "run_id": run_id,
        "key_id": "key_a",
        "user_id": new_uuid(),
        "wire": "anthropic",
        "model": "claude-test",
        "status": 200,
        "outcome": "completed",
        "created_at": datetime.now(UTC),
        "duration_ms": 12,
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_tokens": 30,
        "cost_nano": CENT,
    }
    return ModelCall(**(fields | changes))  # pyright: ignore[reportArgumentType] - the fields of a call


async def test_where_no_budget_applies_nothing_is_written(house: LedgerHouse) -> None:
    await house.limit("key", "key_other", USD)
    who = party("key_a", agent="simple")
    assert not house.ledger.applies(who)
    reservation = await house.ledger.reserve(who, 5 * USD)
    assert reservation.granted_nano == 5 * USD and not reservation.is_counted
    assert await house.store.read(reservations) == 0
    assert (await house.ledger.settle(reservation, USD)).warnings == ()


async def test_what_is_reserved_is_settled_by_what_it_cost(house: LedgerHouse) -> None:
    budget = await house.limit("key", "key_a", USD)
    who = party("key_a")
    assert house.ledger.applies(who)
    reservation = await house.ledger.reserve(who, 40 * CENT)
    assert await house.standing(budget) == (0, 40 * CENT)
    await house.ledger.settle(reservation, 15 * CENT)
    assert await house.standing(budget) == (15 * CENT, 0)
    assert await house.store.read(reservations) == 0


async def test_what_is_released_was_never_spent(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    await house.ledger.release(await house.ledger.reserve(party(), USD))
    assert await house.standing(budget) == (0, 0)


async def test_a_reservation_is_settled_once(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    reservation = await house.ledger.reserve(party(), 50 * CENT)
    await asyncio.gather(*(house.ledger.settle(reservation, 10 * CENT) for _ in range(5)))
    await house.ledger.release(reservation)
    assert await house.standing(budget) == (10 * CENT, 0)


async def test_without_a_cost_all_that_was_reserved_is_spent(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    await house.ledger.settle(await house.ledger.reserve(party(), 70 * CENT), None)
    assert await house.standing(budget) == (70 * CENT, 0)


async def test_a_call_counts_in_every_scope_it_belongs_to(house: LedgerHouse) -> None:
    user = new_uuid()
    who = party("key_a", user=user, agent="simple", run_id="run_1", epic="epic_1")
    budgets = [
        await house.limit("organisation", None, USD),
        await house.limit("key", "key_a", USD, period="month"),
        await house.limit("user", str(user), USD, period="day"),
        await house.limit("agent", "simple", USD),
        await house.limit("epic", "epic_1", USD),
    ]
    await house.ledger.limit_run("run_1", USD)
    others = [await house.limit("key", "key_b", USD), await house.limit("agent", "other", USD)]
    reservation = await house.ledger.reserve(who, 30 * CENT)
    assert [await house.standing(budget) for budget in budgets] == [(0, 30 * CENT)] * 5
    await house.ledger.settle(reservation, 20 * CENT)
    assert [await house.standing(budget) for budget in budgets] == [(20 * CENT, 0)] * 5
    assert [await house.standing(budget) for budget in others] == [(0, 0)] * 2
    runs = await house.budgets.list(SYSTEM, scope="run")
    assert [(row.scope_id, row.spent_nano) for row in runs.data] == [("run_1", 20 * CENT)]


async def test_where_one_scope_has_no_room_nothing_is_reserved_in_any(house: LedgerHouse) -> None:
    wide = await house.limit("organisation", None, 100 * USD)
    await house.limit("key", "key_a", 10 * CENT)
    with pytest.raises(BudgetExceeded, match=r"key 'key_a'.*\$0.00 of \$0.10 is spent in all.*\$0.20"):
        await house.ledger.reserve(party("key_a"), 20 * CENT)
    assert await house.standing(wide) == (0, 0)
    assert await house.store.read(reservations) == 0


async def test_where_less_is_left_that_is_granted_but_not_less_than_is_of_use(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    await house.ledger.settle(await house.ledger.reserve(party(), 70 * CENT), 70 * CENT)
    reservation = await house.ledger.reserve(party(), 50 * CENT, at_least_nano=10 * CENT)
    assert reservation.granted_nano == 30 * CENT
    await house.ledger.settle(reservation, 25 * CENT)
    with pytest.raises(BudgetExceeded, match=r"\$0.95 of \$1.00 is spent") as refused:
        await house.ledger.reserve(party(), 50 * CENT, at_least_nano=10 * CENT)
    assert refused.value.status == 403
    assert "automagik budgets set organisation --period total" in str(refused.value.hint)
    assert await house.standing(budget) == (95 * CENT, 0)


async def test_where_others_have_reserved_what_is_left_the_call_is_to_wait(house: LedgerHouse) -> None:
    await house.limit("organisation", None, USD)
    first = await house.ledger.reserve(party(), 80 * CENT)
    with pytest.raises(BudgetBusy, match="when calls under way are settled") as busy:
        await house.ledger.reserve(party(), 50 * CENT, at_least_nano=10 * CENT)
    assert busy.value.status == 429 and busy.value.retry_after_seconds >= 1
    await house.ledger.settle(first, 30 * CENT)
    assert (await house.ledger.reserve(party(), 50 * CENT)).granted_nano == 50 * CENT


async def test_a_call_that_never_fits_is_refused_whatever_others_have_reserved(house: LedgerHouse) -> None:
    await house.limit("organisation", None, USD)
    await house.ledger.settle(await house.ledger.reserve(party(), 60 * CENT), 60 * CENT)
    await house.ledger.reserve(party(), 30 * CENT)
    with pytest.raises(BudgetExceeded):
        await house.ledger.reserve(party(), 50 * CENT)


async def test_a_soft_limit_warns_once_a_period(house: LedgerHouse) -> None:
    clock = house.clock
    clock.stand(datetime(2026, 11, 28, 12, tzinfo=UTC))
    await house.limit("agent", "simple", USD, period="day", soft=50 * CENT)
    who = party(agent="simple")

    async def spend(cents: int) -> list[object]:
        settled = await house.ledger.settle(await house.ledger.reserve(who, cents * CENT), cents * CENT)
        return [(warning["scope"], warning["spent_usd"], warning["period_start"]) for warning in settled.warnings]

    assert await spend(40) == []
    assert await spend(20) == [("agent", "0.600000", "2026-11-28")]
    assert await spend(20) == []
    clock.turn(timedelta(days=1))
    assert await spend(60) == [("agent", "0.600000", "2026-11-29")]


async def test_when_the_period_is_over_all_is_left_again(house: LedgerHouse) -> None:
    house.clock.stand(datetime(2026, 11, 30, 23, 59, tzinfo=UTC))
    day = await house.limit("key", "key_a", USD, period="day")
    month = await house.limit("key", "key_a", 2 * USD, period="month")
    late = await house.ledger.reserve(party("key_a"), USD)
    with pytest.raises(BudgetBusy):
        await house.ledger.reserve(party("key_a"), USD)
    house.clock.turn(timedelta(minutes=2))
    early = await house.ledger.reserve(party("key_a"), 80 * CENT)
    await house.ledger.settle(late, USD)  # counts where it was reserved
    await house.ledger.settle(early, 30 * CENT)
    rows = await house.store.read(
        lambda tx: tx.connection.exec_driver_sql(
            "SELECT budget_id, period_start, spent_nano FROM budget_counters WHERE spent_nano > 0 ORDER BY 2, 1"
        ).all()
    )
    assert {(row[0], row[1], row[2]) for row in rows} == {
        (day.budget_id, "2026-11-30", USD),
        (month.budget_id, "2026-11", USD),
        (day.budget_id, "2026-12-01", 30 * CENT),
        (month.budget_id, "2026-12", 30 * CENT),
    }


async def test_the_reservations_of_the_dead_are_spent_in_full(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, 10 * USD)
    store = house.store
    await store.write(lambda tx: tx.executors.register("exec_dead", host="h", role="all", version="1"))
    async with LedgerHouse(store, house.clock, "exec_dead") as dead:
        await dead.ledger.reserve(party(), USD)
        held = await dead.ledger.reserve(party(), USD)
    await house.ledger.reserve(party(), 2 * USD, seconds=60)  # expires
    await house.ledger.reserve(party(), 3 * USD)
    await store.write(lambda tx: tx.executors.retire("exec_dead"))
    house.clock.turn(timedelta(seconds=61))
    await settled_left_behind(house)
    assert await house.standing(budget) == (4 * USD, 3 * USD)
    await house.ledger.settle(held, CENT)  # one that was only thought dead
    assert await house.standing(budget) == (4 * USD, 3 * USD)


async def settled_left_behind(house: LedgerHouse) -> None:
    """Another process that starts looks at once, and then now and then."""
    async with LedgerHouse(house.store, house.clock, "exec_next"):
        for _ in range(100):
            if not await house.store.read(lambda tx: tx.budgets.left_behind(10)):
                return
            await house.store.signals.send("changed", "budgets")
            await asyncio.sleep(0.05)
    raise AssertionError("reservations are left behind")


async def test_what_a_call_used_is_recorded_with_its_settlement(house: LedgerHouse) -> None:
    await house.limit("organisation", None, USD)
    run_id = new_id("run")
    reservation = await house.ledger.reserve(party(run_id=run_id), 40 * CENT)
    recorded = call(run_id, reserved_nano=40 * CENT, first_byte_ms=3)
    await house.ledger.settle(reservation, CENT, call=recorded)
    await house.ledger.settle(reservation, CENT, call=recorded)  # a retry whose first answer was lost
    assert await house.store.read(lambda tx: tx.calls.of_run(run_id)) == [recorded]
    used = await house.store.read(lambda tx: tx.calls.usage_of(run_id))
    assert (used.requests, used.input_tokens, used.output_tokens, str(used.cost_usd)) == (1, 40, 20, "0.010000000")


async def test_a_call_under_no_budget_is_recorded_too(house: LedgerHouse) -> None:
    run_id = new_id("run")
    recorded = call(run_id, model="odd \ud800 name", cost_nano=None, status=None, outcome="cut")
    await house.ledger.settle(await house.ledger.reserve(party(run_id=run_id), CENT), 0, call=recorded)
    (found,) = await house.store.read(lambda tx: tx.calls.of_run(run_id))
    assert found.model == "odd \N{REPLACEMENT CHARACTER} name" and found.cost_nano is None


async def test_a_run_keeps_the_budget_that_it_was_given_first(house: LedgerHouse) -> None:
    run_id = await run(house.store, ends=False)
    await house.ledger.limit_run(run_id, USD)
    await house.ledger.limit_run(run_id, 5 * USD)
    (row,) = (await house.budgets.list(SYSTEM, scope="run")).data
    assert (row.limit_nano, row.period) == (USD, "total")
    assert house.ledger.applies(party(run_id=run_id))
    await house.ledger.refresh()
    assert house.ledger.applies(party(run_id=run_id))
    assert (await house.budgets.list(SYSTEM)).data == []


async def test_settled_while_being_cancelled_is_settled_soon(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    house.ledger.settle_later(await house.ledger.reserve(party(), 40 * CENT), None)
    for _ in range(1000):
        if await house.standing(budget) == (40 * CENT, 0):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await house.standing(budget))


async def test_a_settlement_that_is_under_way_when_the_ledger_closes_counts_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LedgerHouse(store, TurnedClock()) as house:
        budget = await house.limit("organisation", None, USD)
        reservation = await house.ledger.reserve(party(), 40 * CENT)
        stored, settle = asyncio.Event(), store.settle

        async def stores_and_never_answers(settled: Sequence[Settle]) -> object:
            monkeypatch.undo()
            await settle(settled)
            stored.set()
            return await asyncio.Event().wait()

        monkeypatch.setattr(store, "settle", stores_and_never_answers)
        house.ledger.settle_later(reservation, 30 * CENT)
        await asyncio.wait_for(stored.wait(), 20)
    assert await house.standing(budget) == (30 * CENT, 0)


async def test_a_reservation_whose_caller_is_cancelled_meanwhile_is_given_back(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    for wait in (0.0, 0.0002, 0.0005, 0.001, 0.002):
        asking = asyncio.create_task(house.ledger.reserve(party(), 10 * CENT))
        await asyncio.sleep(wait)
        if not asking.cancel():
            await house.ledger.release(asking.result())
        await asyncio.wait([asking])
    for _ in range(1000):
        if await house.standing(budget) == (0, 0) and not await house.store.read(reservations):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await house.standing(budget))


async def test_a_reservation_that_is_made_after_its_caller_was_cancelled_is_given_back(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    await house.ledger.release(await house.ledger.reserve(party(), CENT))
    holding = asyncio.create_task(house.store.write(_hold_counters))
    await asyncio.sleep(0.1)
    asking = asyncio.create_task(house.ledger.reserve(party(), 10 * CENT))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.wait([asking, holding])
    await house.ledger.release(await house.ledger.reserve(party(), CENT))  # behind it
    async with asyncio.timeout(20):
        while await house.standing(budget) != (0, 0) or await house.store.read(reservations):
            await asyncio.sleep(0.02)


def _hold_counters(tx: Transaction) -> None:
    """Keep everybody from reserving for a moment."""
    tx.connection.exec_driver_sql("UPDATE budget_counters SET warned = warned")
    if tx.connection.dialect.name == "postgresql":
        tx.connection.exec_driver_sql("SELECT pg_sleep(0.4)")
    else:
        time.sleep(0.4)


async def test_another_process_hears_of_a_budget_at_once(house: LedgerHouse) -> None:
    async with LedgerHouse(house.store, TurnedClock(), "exec_other") as other:
        await house.budgets.set("organisation", None, "month", USD, caller=SYSTEM)
        assert house.ledger.applies(Party())
        for _ in range(1000):
            if other.ledger.applies(Party()):
                return
            await asyncio.sleep(0.02)
    raise AssertionError("it did not hear")


async def test_a_budget_that_is_deleted_limits_nothing_and_takes_no_settlement(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, USD)
    reservation = await house.ledger.reserve(party(), USD)
    await house.budgets.delete(budget.budget_id, caller=SYSTEM)
    assert not house.ledger.applies(party())
    await house.ledger.settle(reservation, CENT)
    assert await house.store.read(counters) == []


async def test_a_limit_that_is_lowered_below_what_is_spent_refuses_everything(house: LedgerHouse) -> None:
    await house.limit("organisation", None, USD)
    await house.ledger.settle(await house.ledger.reserve(party(), USD), USD)
    lowered = await house.limit("organisation", None, 10 * CENT)
    assert lowered.spent_nano == USD
    with pytest.raises(BudgetExceeded, match=r"\$1.00 of \$0.10 is spent"):
        await house.ledger.reserve(party(), 1)


async def test_many_calls_at_once_take_just_what_there_is(store: Store) -> None:
    async with LedgerHouse(store, TurnedClock()) as house:
        budget = await house.limit("organisation", None, 10 * CENT)
        took = await asyncio.gather(*(house.ledger.reserve(party(), CENT) for _ in range(25)), return_exceptions=True)
        assert sum(not isinstance(one, Exception) for one in took) == 10
        assert all(isinstance(one, BudgetBusy) for one in took if isinstance(one, Exception))
        assert await house.standing(budget) == (0, 10 * CENT)


async def test_what_a_crash_of_the_database_took_counts_all_the_same(house: LedgerHouse) -> None:
    if house.store.dialect == "sqlite":
        return  # there the database dies only with the process
    budget = await house.limit("organisation", None, USD)
    lost = [await house.ledger.reserve(party(), 20 * CENT) for _ in range(3)]

    def crash(tx: Transaction) -> None:
        tx.connection.exec_driver_sql("DELETE FROM reservations")
        tx.connection.exec_driver_sql("UPDATE budget_counters SET reserved_nano = 0")

    await house.store.write(crash)
    await house.ledger.settle(lost[0], 5 * CENT)
    await house.ledger.settle(lost[0], 5 * CENT)
    await house.ledger.settle(lost[1], None)
    await house.ledger.release(lost[2])
    assert await house.standing(budget) == (25 * CENT, 0)


async def test_a_call_whose_process_died_has_a_row_at_its_full_reservation(house: LedgerHouse) -> None:
    budget = await house.limit("organisation", None, 10 * USD)
    store, user = house.store, new_uuid()
    run_id = await run(store, ends=False, key="key_a", user=user)
    await store.write(lambda tx: tx.executors.register("exec_dead", host="h", role="all", version="1"))
    async with LedgerHouse(store, house.clock, "exec_dead") as dead:
        held = await dead.ledger.reserve(party("key_a", user=user, run_id=run_id), USD)
        await store.write(lambda tx: tx.executors.retire("exec_dead"))
        await settled_left_behind(house)
        # One that was only thought dead: neither money nor row counts again.
        await dead.ledger.settle(held, CENT, call=call(run_id, call_id=held.call_id, cost_nano=CENT))
    (row,) = await store.read(lambda tx: tx.calls.of_run(run_id))
    assert (row.call_id, row.outcome, row.cost_nano, row.reserved_nano) == (held.call_id, "lost", USD, USD)
    assert (row.key_id, row.user_id, row.status) == ("key_a", user, None)
    assert await house.standing(budget) == (USD, 0)
    used = await UsageReport(store).used(UsageFilter(row.created_at.date(), row.created_at.date()), ("key",))
    assert (used.total.requests, used.total.cost_nano) == (1, USD)


async def test_a_budget_of_a_run_that_is_not_stored_holds_until_it_has_ended(house: LedgerHouse) -> None:
    run_id = new_id("run")
    await house.ledger.limit_run(run_id, USD)
    await house.ledger.refresh()
    assert house.ledger.applies(party(run_id=run_id))
    begun = BeginRun(run_id=run_id, kind="agent", name="x", created_at=house.clock.now(), owner="exec_here")
    await house.store.begin_run(begun)
    await house.ledger.hold(run_id)
    end = FinishRun(
        run_id=run_id, owner="exec_here", status="completed", outcome="completed", finished_at=house.clock.now()
    )
    await house.store.finish_run(end)
    await house.ledger.refresh()
    assert house.ledger.applies(party(run_id=run_id))  # it can still make calls
    house.ledger.let_go(run_id)
    await house.ledger.refresh()
    assert not house.ledger.applies(party(run_id=run_id))


async def test_an_amount_that_no_database_can_count_is_refused_like_any_other(house: LedgerHouse) -> None:
    await house.limit("organisation", None, USD)
    with pytest.raises(BudgetExceeded):
        await house.ledger.reserve(party(), 10**30)
