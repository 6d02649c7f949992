from datetime import UTC, date, datetime, timedelta

import orjson
import pytest
from ledger_house import CENT, USD, LedgerHouse, party, run

from automagik.budget import ModelCall, UsageReport
from automagik.store import NewEvent, Store
from automagik.store.reservations import Period, Scope
from automagik.store.usage import Dimension, UsageFilter
from automagik.types import SYSTEM, Usage, new_id, new_uuid

pytestmark = pytest.mark.anyio


def today() -> date:
    """The day as it is now: these tests may run over midnight."""
    return datetime.now(UTC).date()


def week() -> UsageFilter:
    return UsageFilter(since=today() - timedelta(days=7), until=today())


def model_call(run_id: str, cost: int | None = CENT, outcome: str = "completed") -> ModelCall:
    return ModelCall(
        call_id=new_id("call"),
        run_id=run_id,
        key_id=None,
        user_id=None,
        wire="anthropic",
        model="m",
        status=200,
        outcome=outcome,
        created_at=datetime.now(UTC),
        duration_ms=1,
        input_tokens=7,
        output_tokens=5,
        cache_read_tokens=2,
        cache_write_tokens=1,
        cost_nano=cost,
    )


async def record(house: LedgerHouse, call: ModelCall) -> None:
    reservation = await house.ledger.reserve(party(), 0)
    await house.ledger.settle(reservation, 0, call=call)


async def groups(
    store: Store, *by: Dimension, which: UsageFilter | None = None
) -> dict[tuple[str | None, ...], tuple[int, int, int]]:
    """Runs, input tokens and cost of each group."""
    used = await UsageReport(store).used(which or week(), by, limit=100)
    assert sum(row.cost_nano for row in used.groups.data) == used.total.cost_nano
    return {tuple(row.by[name] for name in by): (row.runs, row.input_tokens, row.cost_nano) for row in used.groups.data}


async def test_usage_is_told_apart_by_key_user_agent_workflow_and_day(store: Store) -> None:
    ana, ben = new_uuid(), new_uuid()
    await run(store, "0.25", key="key_a", user=ana)
    await run(store, "0.5", key="key_a", user=ben, name="other")
    await run(store, "1.000000001", key="key_b", name="implement", kind="workflow", tokens=1000)
    await run(store, None)
    assert await groups(store, "key") == {
        ("key_a",): (2, 200, 75 * CENT),
        ("key_b",): (1, 1000, USD + 1),
        (None,): (1, 100, 0),
    }
    assert await groups(store, "user") == {
        (str(ana),): (1, 100, 25 * CENT),
        (str(ben),): (1, 100, 50 * CENT),
        (None,): (2, 1100, USD + 1),
    }
    assert await groups(store, "agent", "workflow") == {
        ("simple", None): (2, 200, 25 * CENT),
        ("other", None): (1, 100, 50 * CENT),
        ("claude_code", "implement"): (1, 1000, USD + 1),
    }
    assert await groups(store, "day") == {(today().isoformat(),): (4, 1300, USD + 75 * CENT + 1)}
    total = (await UsageReport(store).used(week(), ("day",))).total
    assert (total.requests, total.tool_calls, total.output_tokens, total.unpriced_runs) == (4, 12, 650, 1)


async def test_usage_is_filtered(store: Store) -> None:
    ana = new_uuid()
    await run(store, "0.25", key="key_a", user=ana)
    await run(store, "0.5", name="implement", kind="workflow")

    async def spent(**changes: object) -> int:
        which = UsageFilter(**{"since": week().since, "until": week().until, **changes})  # pyright: ignore[reportArgumentType] - its fields
        return (await UsageReport(store).used(which, ("day",))).total.cost_nano

    assert await spent(key_id="key_a") == await spent(user_id=ana) == await spent(agent="simple") == 25 * CENT
    assert await spent(workflow="implement") == await spent(agent="claude_code") == 50 * CENT
    assert await spent(workflow="simple") == await spent(agent="implement") == await spent(user_id=new_uuid()) == 0
    assert await spent(since=today() - timedelta(days=9), until=today() - timedelta(days=1)) == 0


async def test_a_run_under_way_counts_by_its_calls_and_one_that_ended_by_its_row(house: LedgerHouse) -> None:
    store = house.store
    running = await run(store, ends=False, key="key_a")
    ended = await run(store, "0.5")
    for call in (model_call(running), model_call(running), model_call(running, None, "refused"), model_call(ended)):
        await record(house, call)
    assert await groups(store, "key") == {("key_a",): (1, 20, 2 * CENT), (None,): (1, 100, 50 * CENT)}


async def test_pages_of_usage_follow_one_another(store: Store) -> None:
    for number in range(5):
        await run(store, "0.1", key=f"key_{number}")
    first = await UsageReport(store).used(week(), ("day", "key"), limit=3)
    rest = await UsageReport(store).used(week(), ("day", "key"), limit=3, cursor=first.groups.next_cursor)
    keys = [row.by["key"] for row in (*first.groups.data, *rest.groups.data)]
    assert keys == ["key_4", "key_3", "key_2", "key_1", "key_0"] and rest.groups.next_cursor is None
    assert first.total == rest.total


async def test_what_retention_deletes_stays_in_the_usage(house: LedgerHouse) -> None:
    store = house.store
    old = datetime.now(UTC) - timedelta(days=3)
    gone = [
        await run(store, cost, key="key_a", user=new_uuid(), name="old", at=old + timedelta(seconds=number))
        for number, cost in enumerate(("0.5", "0.25", None))
    ]
    await run(store, "1")
    await record(house, model_call(gone[0]))
    await house.ledger.limit_run(gone[0], USD)
    before = await groups(store, "day", "key", "user", "agent")
    total = (await UsageReport(store).used(week(), ("day",))).total
    deleted = await store.write(lambda tx: tx.retention.delete_runs(old + timedelta(days=2), after="", limit=2))
    assert deleted.rows["runs"] == 2 and deleted.rows["model_calls"] == 1
    await store.write(lambda tx: tx.retention.delete_runs(old + timedelta(days=2), after=deleted.after or "", limit=2))
    assert await store.read(lambda tx: [tx.runs.find(run_id) for run_id in gone]) == [None] * 3
    assert await groups(store, "day", "key", "user", "agent") == before
    assert (await UsageReport(store).used(week(), ("day",))).total == total
    assert total.unpriced_runs == 1
    assert (await house.budgets.list(SYSTEM, scope="run")).data == []


async def test_days_that_are_noted_twice_add_up(store: Store) -> None:
    for _ in range(2):
        run_id = await run(store, "0.5", key="key_a")
        await store.write(lambda tx: tx.retention.delete_runs(tx.now + timedelta(seconds=1), after="", limit=9))
        assert await store.read(lambda tx, run_id=run_id: tx.runs.find(run_id)) is None
    assert await groups(store, "key") == {("key_a",): (2, 200, USD)}


SEEDED: list[tuple[Scope, str, Period, int]] = [
    ("organisation", "", "total", 775),
    ("organisation", "", "day", 175),
    ("key", "key_a", "total", 150),
    ("key", "key_a", "day", 50),
    ("agent", "simple", "total", 150),
    ("agent", "claude_code", "total", 625),
    ("agent", "implement", "total", 625),
    ("epic", "epic_1", "total", 25),
    ("key", "key_none", "month", 0),
]


async def test_a_new_budget_begins_with_what_runs_have_used(house: LedgerHouse) -> None:
    store = house.store
    yesterday = datetime.now(UTC) - timedelta(days=1)
    await run(store, "1", key="key_a", at=yesterday)
    await run(store, "0.5", key="key_a")
    await run(store, "0.25", name="implement", kind="workflow", parent="epic_1")
    open_run = await run(store, name="implement", kind="workflow", key="key_b", ends=False)
    for _ in range(100):
        await record(house, model_call(open_run))
    long_gone = await run(store, "5", name="implement", kind="workflow", at=yesterday + timedelta(seconds=9))
    await store.write(lambda tx: tx.retention.delete_runs(tx.now - timedelta(hours=1), after=long_gone[:-1], limit=9))
    for scope, name, period, cents in SEEDED:
        row = await house.limit(scope, name, 100 * USD, period=period)
        assert row.spent_nano == cents * CENT, (scope, name, period)


async def test_a_budget_of_a_user_or_run_begins_with_theirs(house: LedgerHouse) -> None:
    ana = new_uuid()
    first = await run(house.store, "0.5", user=ana)
    await run(house.store, "0.25", user=ana)
    assert (await house.limit("user", str(ana), USD, period="month")).spent_nano == 75 * CENT
    assert (await house.limit("run", first, USD)).spent_nano == 50 * CENT


async def test_a_month_is_that_of_the_calendar(house: LedgerHouse) -> None:
    begins = datetime.combine(today().replace(day=1), datetime.min.time(), UTC)
    await run(house.store, "1", at=begins - timedelta(minutes=1))
    await run(house.store, "0.5", at=begins + timedelta(minutes=1))
    assert (await house.limit("organisation", None, USD, period="month")).spent_nano == 50 * CENT


async def test_a_run_s_usage_is_that_of_its_calls_and_of_the_tools_whose_results_are_told(house: LedgerHouse) -> None:
    run_id = await run(house.store, ends=False)
    assert await house.store.read(lambda tx: tx.calls.usage_of(run_id)) == Usage()
    await record(house, model_call(run_id))
    await record(house, model_call(run_id, None))
    used = await house.store.read(lambda tx: tx.calls.usage_of(run_id))
    assert (used.requests, used.input_tokens, used.output_tokens, used.cache_read_tokens) == (2, 20, 10, 4)
    assert used.cost_usd is not None and used.cost_usd * 100 == 1
    said = ({"content": '{"ran":false}\u0000'}, {"content": "no", "ran": False}, {"content": "", "is_error": True})
    told = [
        NewEvent(seq, "tool_result", datetime.now(UTC), orjson.dumps(data).decode()) for seq, data in enumerate(said, 2)
    ]
    told.append(NewEvent(5, "tool_call", datetime.now(UTC), "{}"))
    assert await house.store.append_events(run_id, "exec_here", told)
    assert await house.store.read(lambda tx: tx.events.tool_calls(run_id)) == 2, "all but the one that was refused"
