"""Whatever calls come at once, and however they end, no limit is ever passed and no money is lost."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, cast

import pytest
from ledger_house import CENT, USD, LedgerHouse, TurnedClock, counters, party, reservations

from automagik.budget import ModelCall, Party, Reservation
from automagik.errors import BudgetBusy, BudgetExceeded
from automagik.store import Store, Transaction
from automagik.store.budgets import BudgetRow
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import new_uuid

pytestmark = pytest.mark.anyio

WORKERS = 24
USERS = tuple(new_uuid() for _ in range(2))


@dataclass
class Book:
    """What must come out: what each scope has spent, by what was done."""

    spent: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    done: Counter[str] = field(default_factory=Counter[str])

    def count(self, who: Party, nano: int) -> None:
        for scope in who.scopes:
            self.spent[scope] += nano


@asynccontextmanager
async def processes(
    dialect: Literal["sqlite", "postgresql"], folder: Path, server: PostgresServer | None
) -> AsyncGenerator[list[LedgerHouse]]:
    """Two processes over one database (on SQLite there is one), each with a store and a ledger of its own."""
    clock = TurnedClock()
    clock.stand(datetime(2026, 11, 15, 12, tzinfo=UTC))  # no period ends meanwhile
    async with fresh_settings(dialect, folder, server=server) as settings:
        stores = [Store.from_settings(settings, clock) for _ in range(1 if server is None else 2)]
        for store in stores:
            await store.open()
        houses = [LedgerHouse(store, clock, f"exec_{number}") for number, store in enumerate(stores)]
        try:
            yield houses
        finally:
            for house in houses:
                await house.ledger.close()
            for store in stores:
                await store.close()


async def set_limits(house: LedgerHouse) -> list[BudgetRow]:
    budgets = [
        await house.limit("organisation", None, 40 * USD),
        await house.limit("organisation", None, 30 * USD, period="month"),
        await house.limit("key", "key_0", 9 * USD, period="month"),
        await house.limit("key", "key_1", 3 * USD),
        await house.limit("user", str(USERS[0]), 14 * USD, period="month"),
        await house.limit("agent", "agent_0", 8 * USD),
        await house.limit("agent", "agent_2", 50 * CENT),
        await house.limit("epic", "epic_0", 20 * USD),
    ]
    for number in range(4):
        await house.ledger.limit_run(f"run_{number}", 6 * USD)
    return budgets


def some_party(dice: random.Random) -> Party:
    return party(
        f"key_{dice.randrange(3)}",
        user=dice.choice([*USERS, None]),
        agent=f"agent_{dice.randrange(4)}",
        run_id=f"run_{dice.randrange(6)}",
        epic=dice.choice(["epic_0", None]),
    )


async def make_calls(houses: Sequence[LedgerHouse], count: int, dice: random.Random, book: Book) -> None:
    for _ in range(count):
        ledger, who = dice.choice(houses).ledger, some_party(dice)
        amount = dice.randrange(1, 40 * CENT)
        least = dice.choice([None, 0, amount // 3])
        try:
            reservation = await ledger.reserve(who, amount, at_least_nano=least)
        except (BudgetBusy, BudgetExceeded) as refused:
            book.done[type(refused).__name__] += 1
            continue
        granted = reservation.granted_nano
        assert granted == amount or (least is not None and least <= granted < amount)
        book.done["granted" if granted == amount else "granted less"] += 1
        await asyncio.sleep(dice.random() * 0.002)
        how = dice.choices(["settle", "twice", "release", "crash", "later"], [70, 5, 10, 5, 10])[0]
        book.done[how] += 1
        await end(houses, reservation, who, how, dice.randrange(granted + 1), book)


async def end(
    houses: Sequence[LedgerHouse], reservation: Reservation, who: Party, how: str, cost: int, book: Book
) -> None:
    ledger = houses[-1].ledger  # whoever settles: the rows are the truth
    row = call_row(reservation, cost)
    match how:
        case "settle":
            await ledger.settle(reservation, cost, call=row)
        case "twice":
            await asyncio.gather(*(ledger.settle(reservation, cost, call=row) for _ in range(2)))
        case "release":
            await ledger.release(reservation)
            return
        case "later":
            ledger.settle_later(reservation, cost, call=row)
        case _:
            cost = reservation.granted_nano  # nobody settles it: it will have been spent in full
    book.count(who, cost)


def call_row(reservation: Reservation, cost: int) -> ModelCall:
    return ModelCall(
        call_id=reservation.call_id,
        run_id=None,
        key_id=None,
        user_id=None,
        wire="anthropic",
        model="m",
        status=200,
        outcome="completed",
        created_at=datetime(2026, 11, 15, 12, tzinfo=UTC),
        duration_ms=1,
        cost_nano=cost,
        reserved_nano=reservation.granted_nano,
    )


def told_by_calls(tx: Transaction) -> tuple[int, int]:
    """What the rows of the calls say that was spent, and how many of them tell of one that was lost."""
    found = "SELECT sum(cost_nano), sum(CASE outcome WHEN 'lost' THEN 1 ELSE 0 END) FROM model_calls"
    spent, lost = tx.connection.exec_driver_sql(found).one()
    return int(spent), int(lost)


def over(tx: Transaction) -> list[object]:
    """Counters whose limit is passed."""
    found = tx.connection.exec_driver_sql(
        "SELECT b.scope, b.scope_id, b.limit_nano, c.spent_nano, c.reserved_nano FROM budget_counters c"
        " JOIN budgets b ON b.budget_id = c.budget_id WHERE c.spent_nano + c.reserved_nano > b.limit_nano"
        " OR c.spent_nano < 0 OR c.reserved_nano < 0"
    )
    return [*found.all()]


async def watch(store: Store, looks: Counter[str]) -> None:
    while True:
        assert await store.read(over) == []
        looks["looks"] += 1
        await asyncio.sleep(0.005)


async def check(
    dialect: Literal["sqlite", "postgresql"], folder: Path, server: PostgresServer | None, calls: int, seed: int
) -> None:
    async with processes(dialect, folder, server) as houses:
        first = houses[0]
        budgets = await set_limits(first)
        for house in houses:
            await house.ledger.open()
        book, looks = Book(), Counter[str]()
        watching = asyncio.create_task(watch(first.store, looks))
        dice = [random.Random(f"{seed}-{number}") for number in range(WORKERS)]
        await asyncio.gather(*(make_calls(houses, calls // WORKERS + 1, own, book) for own in dice))
        for house in houses:
            await house.ledger.close()  # settles what waits
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled() and looks["looks"] > 3
        assert await first.store.read(over) == []
        first.clock.turn(timedelta(seconds=901))  # what crashed has expired
        await first.ledger.open()
        await until_nothing_is_left(first)
        assert await first.store.read(over) == []
        rows = await first.store.read(lambda tx: [tx.budgets.get(budget.budget_id) for budget in budgets])
        expected = [book.spent[row.scope, row.scope_id] for row in rows]
        assert [row.spent_nano for row in rows] == expected
        assert await first.store.read(told_by_calls) == (rows[0].spent_nano, book.done["crash"])
        assert {reserved for _, _, reserved in await first.store.read(counters)} == {0}
        for kind in ("BudgetBusy", "granted", "release", "crash", "twice", "later"):
            assert book.done[kind], book.done


async def until_nothing_is_left(house: LedgerHouse) -> None:
    for _ in range(200):
        await house.store.signals.send("changed", "budgets")
        if await house.store.read(reservations) == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("reservations of the dead stay")


def server_for(dialect: str, request: pytest.FixtureRequest) -> PostgresServer | None:
    return cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None


async def test_a_thousand_calls_at_once_pass_no_limit(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    await check(dialect, tmp_path, server_for(dialect, request), calls=1000, seed=random.randrange(10**9))


@pytest.mark.long
async def test_ten_thousand_calls_at_once_pass_no_limit(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    await check(dialect, tmp_path, server_for(dialect, request), calls=10_000, seed=random.randrange(10**9))
