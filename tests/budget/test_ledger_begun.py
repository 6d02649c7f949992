"""Calls that began before a budget applied to them, and what is told of calls whose process died."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from ledger_house import CENT, USD, LedgerHouse, counters, party, reservations, run

from automagik.budget import ModelCall, Party, Reservation
from automagik.store import Store, Transaction
from automagik.store.budgets import BudgetRow
from automagik.types import new_id, new_uuid

pytestmark = pytest.mark.anyio

ASKS = ("anthropic", "claude-test")


def call(held: Reservation, cost: int | None, who: Party, at: datetime | None = None) -> ModelCall:
    return ModelCall(
        call_id=held.call_id,
        run_id=who.run_id,
        key_id=who.key_id,
        user_id=who.user_id,
        wire="anthropic",
        model="claude-test",
        status=200,
        outcome="completed",
        created_at=at or datetime.now(UTC),
        duration_ms=12,
        cost_nano=cost,
        reserved_nano=held.granted_nano,
        agent=who.agent,
    )


async def until_noted(store: Store, count: int = 1) -> None:
    async with asyncio.timeout(40):
        while await store.read(reservations) != count:
            await asyncio.sleep(0.02)


async def test_a_call_counts_once_in_each_budget_that_was_set_while_it_ran(house: LedgerHouse) -> None:
    who = party("key_a", agent="coder", run_id="run_1")
    held = house.ledger.begin(who, ASKS, lambda: USD)
    assert not held.is_counted and held.granted_nano == 0
    organisation = await house.limit("organisation", None, USD, period="day", soft=10 * CENT)
    agent = await house.limit("agent", "coder", USD)
    other = await house.limit("key", "key_b", USD)
    told = await house.ledger.settle(held, 20 * CENT, call=call(held, 20 * CENT, who))
    assert [warned["scope"] for warned in told.warnings] == ["organisation"]
    await house.ledger.settle(held, 20 * CENT, call=call(held, 20 * CENT, who))
    await house.ledger.release(held)
    assert await house.standing(organisation) == await house.standing(agent) == (20 * CENT, 0)
    assert await house.standing(other) == (0, 0)


async def test_a_call_that_was_reserved_for_counts_in_budgets_set_meanwhile_too(house: LedgerHouse) -> None:
    who = party("key_a", agent="coder")
    key = await house.limit("key", "key_a", USD)
    gone = await house.limit("agent", "coder", USD)
    held = await house.ledger.reserve(who, 50 * CENT, asks=ASKS)
    await house.store.write(lambda tx: tx.budgets.delete(gone.budget_id))
    again = await house.limit("agent", "coder", USD)  # a budget of its own, in which nothing is reserved
    whole = await house.limit("organisation", None, USD, period="month")
    assert await house.standing(again) == (0, 0)
    await house.ledger.settle(held, 20 * CENT, call=call(held, 20 * CENT, who))
    assert [await house.standing(one) for one in (key, again, whole)] == [(20 * CENT, 0)] * 3


async def test_a_call_that_ends_as_a_budget_is_set_counts_in_it_once(house: LedgerHouse) -> None:
    run_id = await run(house.store, ends=False, key="key_a")
    who, loop, is_set = party("key_a", run_id=run_id), asyncio.get_running_loop(), asyncio.Event()
    before, meanwhile = (house.ledger.begin(who, ASKS, lambda: USD) for _ in range(2))
    await house.ledger.settle(before, CENT, call=call(before, CENT, who))

    def set_slowly(tx: Transaction) -> BudgetRow:
        row, _ = tx.budgets.set("organisation", "", "total", USD)
        loop.call_soon_threadsafe(is_set.set)
        # What it begins with is counted, and nobody sees it yet.
        if house.store.dialect == "sqlite":
            time.sleep(0.3)
        else:
            tx.connection.exec_driver_sql("SELECT pg_sleep(0.3)")
        return row

    setting = asyncio.create_task(house.store.write(set_slowly))
    await is_set.wait()
    await house.ledger.settle(meanwhile, 2 * CENT, call=call(meanwhile, 2 * CENT, who))
    assert await house.standing(await setting) == (3 * CENT, 0)


async def test_a_call_that_ends_on_the_next_day_counts_in_that_day(house: LedgerHouse) -> None:
    house.clock.stand(datetime(2026, 12, 31, 23, 59, tzinfo=UTC))
    who = party("key_a")
    held = house.ledger.begin(who, ASKS, lambda: USD)
    day = await house.limit("organisation", None, USD, period="day", soft=CENT)
    month = await house.limit("key", "key_a", USD, period="month")
    house.clock.turn(timedelta(minutes=2))
    told = await house.ledger.settle(held, 5 * CENT, call=call(held, 5 * CENT, who, house.clock.now()))
    assert [warned["period_start"] for warned in told.warnings] == ["2027-01-01"]
    assert await house.standing(day) == await house.standing(month) == (5 * CENT, 0)
    spent = sorted(spent for _, spent, _ in await house.store.read(counters))
    assert spent == [0, 0, 5 * CENT, 5 * CENT]  # the days and months before and after


async def test_a_call_under_no_budget_whose_process_died_leaves_a_row_and_counts_in_budgets_set_meanwhile(
    house: LedgerHouse,
) -> None:
    store, user = house.store, new_uuid()
    run_id = await run(store, ends=False, key="key_a", user=user)
    who = party("key_a", user=user, agent="coder", run_id=run_id)
    await store.write(lambda tx: tx.executors.register("exec_dead", host="h", role="all", version="1"))
    async with LedgerHouse(store, house.clock, "exec_dead") as dead:
        held = dead.ledger.begin(who, ASKS, lambda: 30 * CENT)
        unpriced = dead.ledger.begin(who, ("openai", "unheard-of"), lambda: None)
        await until_noted(store, 2)
        budget = await house.limit("organisation", None, USD)
        await store.write(lambda tx: tx.executors.retire("exec_dead"))
        await house.ledger.refresh()
        # It was only thought dead: what it says now counts nothing more.
        await dead.ledger.settle(held, CENT, call=call(held, CENT, who))
    first, second = await store.read(lambda tx: tx.calls.of_run(run_id))
    assert (first.call_id, first.outcome, first.cost_nano, first.reserved_nano) == (held.call_id, "lost", 30 * CENT, 0)
    assert (first.wire, first.model, first.agent) == (*ASKS, "coder")
    assert (first.key_id, first.user_id) == ("key_a", user)
    assert (second.call_id, second.model, second.cost_nano) == (unpriced.call_id, "unheard-of", None)
    assert await house.standing(budget) == (30 * CENT, 0)
    assert await store.read(reservations) == 0


async def test_the_row_of_a_call_that_was_reserved_for_says_what_it_was_though_its_process_died(
    house: LedgerHouse,
) -> None:
    await house.limit("organisation", None, USD)
    who = Party(key_id="key_a", user_id=new_uuid(), agents=("claude_code", "implement"), run_id=new_id("run"))
    await house.ledger.reserve(who, 10 * CENT, asks=("openai", "gpt-\x00test"), seconds=1)
    house.clock.turn(timedelta(seconds=2))
    await house.ledger.refresh()
    (row,) = await house.store.read(lambda tx: tx.calls.of_run(str(who.run_id)))
    assert (row.wire, row.model, row.agent, row.outcome) == (
        "openai",
        "gpt-\N{REPLACEMENT CHARACTER}test",
        "implement",
        "lost",
    )
    assert (row.key_id, row.user_id, row.cost_nano) == ("key_a", who.user_id, 10 * CENT)


async def test_a_call_that_was_noted_leaves_nothing_when_it_has_ended(house: LedgerHouse) -> None:
    who = party("key_a", run_id=new_id("run"))
    held = house.ledger.begin(who, ASKS, lambda: USD)
    await until_noted(house.store)
    await house.ledger.settle(held, CENT, call=call(held, CENT, who))
    assert await house.store.read(reservations) == 0
    (row,) = await house.store.read(lambda tx: tx.calls.of_run(str(who.run_id)))
    assert (row.outcome, row.cost_nano) == ("completed", CENT)


async def test_a_call_that_ends_while_it_is_noted_leaves_nothing(house: LedgerHouse) -> None:
    who = party("key_a", run_id=new_id("run"))
    held = [house.ledger.begin(who, ASKS, lambda: USD) for _ in range(40)]
    await asyncio.sleep(0.09)

    async def end(one: Reservation, place: int) -> None:
        await asyncio.sleep(place / 1000)
        await house.ledger.settle(one, CENT, call=call(one, CENT, who))

    await asyncio.gather(*(end(one, place) for place, one in enumerate(held)))
    budget = await house.limit("organisation", None, USD)
    await until_noted(house.store, 0)
    assert len(await house.store.read(lambda tx: tx.calls.of_run(str(who.run_id)))) == 40
    assert await house.standing(budget) == (0, 0)  # of a run that is not there: nothing that counted it again


async def test_a_short_call_is_not_noted_and_one_that_is_not_recorded_only_under_a_budget(house: LedgerHouse) -> None:
    asked: list[int] = []

    def most() -> int:
        asked.append(1)
        return 10 * CENT

    who = party("key_a", run_id=new_id("run"))
    short = house.ledger.begin(who, ASKS, most)
    await house.ledger.settle(short, 0, call=call(short, 0, who))
    quiet = house.ledger.begin(who, ASKS, most, is_recorded=False)
    dropped = house.ledger.begin(who, ASKS, most, is_recorded=False)
    await asyncio.sleep(0.2)
    assert await house.store.read(reservations) == 0 and not asked
    budget = await house.limit("organisation", None, USD)
    await until_noted(house.store, 2)
    await house.ledger.settle(dropped, 0)
    await house.ledger.settle(quiet, 2 * CENT, call=call(quiet, 2 * CENT, who))
    assert await house.store.read(reservations) == 0 and len(asked) == 2
    assert await house.standing(budget) == (2 * CENT, 0)
