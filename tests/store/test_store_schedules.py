"""The table of schedules: made, changed and fired by compare-and-set, on both databases."""

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from automagik.errors import Conflict, NotFound, PreconditionFailed
from automagik.store import Store
from automagik.store.rows import ScheduleRow

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def make(store: Store, name: str = "report", **changes: Any) -> ScheduleRow:
    values: dict[str, Any] = {
        "agent_name": "simple",
        "cron": "0 * * * *",
        "time_zone": "Europe/Berlin",
        "request": {"message_content": "h\u00e4\x00", "context": {"n": [1, None]}},
        "missed": "skip",
        "active": True,
        "key_id": "key_1",
        "user_id": None,
        "next_at": NOON,
    }
    return await store.write(lambda tx: tx.schedules.create(name, **{**values, **changes}))


async def found(store: Store, schedule: str) -> ScheduleRow:
    row = await store.read(lambda tx: tx.schedules.find(schedule))
    assert row is not None
    return row


async def test_a_schedule_is_found_by_its_id_and_by_its_name(store: Store) -> None:
    made = await make(store)
    assert (made.revision, made.last_at, made.last_run_id, made.last_error) == (1, None, None, None)
    assert made.schedule_id.startswith("sched_")
    assert await found(store, made.schedule_id) == made
    assert await found(store, "report") == made
    assert await store.read(lambda tx: tx.schedules.find("other")) is None
    with pytest.raises(Conflict, match="already a schedule 'report'"):
        await make(store)


async def test_a_change_is_of_what_was_read(store: Store) -> None:
    made = await make(store)
    await make(store, "other")
    changed = await store.write(
        lambda tx: tx.schedules.update(made.schedule_id, if_revision=1, name="weekly", active=False, next_at=None)
    )
    assert (changed.name, changed.active, changed.next_at, changed.revision) == ("weekly", False, None, 2)
    assert changed.request == made.request
    with pytest.raises(PreconditionFailed, match="at revision 2"):
        await store.write(lambda tx: tx.schedules.update(made.schedule_id, if_revision=1, active=True))
    with pytest.raises(Conflict, match="'other'"):
        await store.write(lambda tx: tx.schedules.update(made.schedule_id, if_revision=2, name="other"))
    with pytest.raises(PreconditionFailed):
        await store.write(lambda tx: tx.schedules.delete(made.schedule_id, if_revision=1))
    assert await store.write(lambda tx: tx.schedules.delete(made.schedule_id, if_revision=2)) == changed
    with pytest.raises(NotFound) as missing:
        await store.write(lambda tx: tx.schedules.update(made.schedule_id, if_revision=2, active=True))
    assert missing.value.code == "schedule_not_found"
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.schedules.delete(made.schedule_id))


async def test_lists_are_filtered_and_paged(store: Store) -> None:
    user = uuid.uuid4()
    for number in range(5):
        await make(store, f"s{number}", user_id=user if number % 2 else None, agent_name="a" if number < 2 else "b")
    await store.write(
        lambda tx: tx.schedules.update(tx.schedules.list().data[0].schedule_id, if_revision=1, active=False)
    )

    async def names(**filters: Any) -> list[str]:
        return [row.name for row in (await store.read(lambda tx: tx.schedules.list(**filters))).data]

    assert await names() == ["s4", "s3", "s2", "s1", "s0"]
    assert await names(user_id=user) == ["s3", "s1"]
    assert await names(agent_name="a") == ["s1", "s0"]
    assert await names(active=False) == ["s4"]
    assert await store.read(lambda tx: tx.schedules.names(user_id=user)) == ["s3", "s1"]
    first = await store.read(lambda tx: tx.schedules.list(limit=3))
    rest = await store.read(lambda tx: tx.schedules.list(limit=3, cursor=first.next_cursor))
    assert [row.name for row in first.data + rest.data] == await names()


async def test_the_earliest_active_schedules_come_first(store: Store) -> None:
    late = await make(store, "late", next_at=NOON + HOUR)
    soon = await make(store, "soon", next_at=NOON)
    await make(store, "paused", active=False, next_at=None)
    await make(store, "over", next_at=None)
    upcoming = await store.read(lambda tx: tx.schedules.upcoming(NOON - HOUR, 10))
    assert upcoming == [(soon.schedule_id, NOON), (late.schedule_id, NOON + HOUR)]
    assert await store.read(lambda tx: tx.schedules.upcoming(NOON, 1)) == upcoming[:1]


async def test_keys_whose_schedules_are_due_take_turns(store: Store) -> None:
    for index in range(3):
        await make(store, f"a{index}", key_id="key_a", next_at=NOON + timedelta(seconds=index))
    await make(store, "b", key_id="key_b", next_at=NOON + timedelta(minutes=5))
    await make(store, "c", key_id=None, next_at=NOON + timedelta(minutes=4))
    await make(store, "later", key_id="key_c", next_at=NOON + HOUR)

    async def names(now: datetime, limit: int) -> list[str]:
        upcoming = await store.read(lambda tx: tx.schedules.upcoming(now, limit))
        return [(await found(store, schedule_id)).name for schedule_id, _ in upcoming]

    now = NOON + timedelta(minutes=10)
    assert await names(now, 10) == ["a0", "c", "b", "a1", "a2", "later"]
    assert await names(now, 3) == ["a0", "c", "b"]


async def test_a_firing_is_noted_once_and_is_no_change_of_the_schedule(store: Store) -> None:
    made = await make(store)
    assert await store.write(lambda tx: tx.schedules.failed(made, NOON + HOUR, "no agent\x00"))
    failed = await found(store, "report")
    assert failed == replace(made, next_at=NOON + HOUR, last_error="no agent\N{REPLACEMENT CHARACTER}")
    assert not await store.write(lambda tx: tx.schedules.fired(made, NOON + HOUR, "run_1")), "somebody was faster"
    assert await store.write(lambda tx: tx.schedules.fired(failed, NOON + 2 * HOUR, "run_1"))
    fired = await found(store, "report")
    assert fired == replace(made, next_at=NOON + 2 * HOUR, last_at=NOON + HOUR, last_run_id="run_1")
    assert await store.write(lambda tx: tx.schedules.advance(fired, None))
    assert (await found(store, "report")).next_at is None


async def test_what_was_changed_or_paused_is_not_moved_on(store: Store) -> None:
    made = await make(store)
    await store.write(lambda tx: tx.schedules.update(made.schedule_id, if_revision=1, cron="5 * * * *"))
    assert not await store.write(lambda tx: tx.schedules.advance(made, NOON + HOUR))
    changed = await found(store, "report")
    await store.write(lambda tx: tx.schedules.update(made.schedule_id, if_revision=2, active=False))
    assert not await store.write(lambda tx: tx.schedules.fired(changed, NOON + HOUR, "run_1"))
    assert (await found(store, "report")).next_at == NOON


async def test_of_many_who_move_it_on_one_does(store: Store) -> None:
    made = await make(store)
    moved = await asyncio.gather(
        *(store.write(lambda tx, n=n: tx.schedules.fired(made, NOON + HOUR, f"run_{n}")) for n in range(20))
    )
    assert sorted(moved) == [False] * 19 + [True]
    assert (await found(store, "report")).last_run_id == f"run_{moved.index(True)}"


async def test_a_run_by_hand_and_a_fault_are_noted_whatever_it_waits_for(store: Store) -> None:
    made = await make(store)
    await store.write(lambda tx: tx.schedules.note_error(made.schedule_id, "a fault"))
    await store.write(lambda tx: tx.schedules.fired_by_hand(made.schedule_id, "run_9"))
    noted = await found(store, "report")
    assert (noted.last_run_id, noted.last_error, noted.next_at, noted.revision) == ("run_9", "a fault", NOON, 1)
    assert noted.last_at is not None
