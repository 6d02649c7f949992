"""What is old goes, in batches; what is open, young or used stays."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from artifact_house import ArtifactHouse

from automagik.artifacts import ArtifactStore, Pruned, keep_pruned, prune_platform
from automagik.store import BeginRun, FinishRun, NewEvent, NewMessage, Transaction, schema
from automagik.types import SYSTEM, new_id, new_uuid

pytestmark = pytest.mark.anyio

MONTH = timedelta(days=30)
WEEK = timedelta(days=7)


@pytest.fixture
def kind() -> str:
    return "folder"


async def prune(house: ArtifactHouse, older_than: timedelta | None = MONTH, **options: Any) -> dict[str, int]:
    pruned = await prune_platform(
        house.store, house.artifacts, house.clock, older_than=older_than, unused_for=WEEK, **options
    )
    assert pruned is not None
    return {name: count for name, count in pruned.counts.items() if count}


async def begin(house: ArtifactHouse, session_id: uuid.UUID | None = None) -> tuple[str, int | None]:
    """A running run with one event."""
    now = house.clock.now()
    run_id = new_id("run")
    begun = await house.store.begin_run(
        BeginRun(
            run_id=run_id,
            kind="agent",
            name="echo",
            created_at=now,
            owner="me",
            session_id=session_id,
        )
    )
    return run_id, begun.session_key


async def finish(house: ArtifactHouse, run_id: str, session_key: int | None = None) -> str:
    """The run, ended now; it says something where it has a session."""
    now = house.clock.now()
    await house.store.finish_run(
        FinishRun(
            run_id=run_id,
            owner="me",
            status="completed",
            outcome="completed",
            finished_at=now,
            session_key=session_key,
            messages=[NewMessage(new_uuid(), "user", "hello", "{}")] if session_key is not None else [],
            events=[NewEvent(2, "run_finished", now, "{}")],
        )
    )
    return run_id


async def run(house: ArtifactHouse, session_id: uuid.UUID | None = None) -> str:
    return await finish(house, *await begin(house, session_id))


async def insert(house: ArtifactHouse, table: str, *rows: dict[str, Any]) -> None:
    await house.store.write(lambda tx: tx.connection.execute(schema.metadata.tables[table].insert(), list(rows)))


async def count(house: ArtifactHouse, table: str) -> int:
    def rows(tx: Transaction) -> int:
        return len(tx.connection.execute(schema.metadata.tables[table].select()).all())

    return await house.store.read(rows)


async def test_old_finished_runs_go_with_their_events_and_open_and_young_ones_stay(house: ArtifactHouse) -> None:
    old = [await run(house) for _ in range(5)]
    still_open, _ = await begin(house)
    house.clock.turn(days=31)
    young = await run(house)
    ended_late, _ = await begin(house)
    await finish(house, ended_late)
    assert await prune(house, dry_run=True) == {"runs": 5, "run_events": 10}
    assert await prune(house) == {"runs": 5, "run_events": 10}
    assert await prune(house) == {}
    left = await house.store.read(lambda tx: [row.run_id for row in tx.runs.list().data])
    assert set(left) == {still_open, young, ended_late}
    assert not set(left) & set(old)
    assert await count(house, "run_events") == 1 + 2 + 2


async def test_more_runs_than_a_batch_go_all(house: ArtifactHouse) -> None:
    for _ in range(450):
        await run(house)
    still_open, _ = await begin(house)
    house.clock.turn(days=31)
    assert (await prune(house))["runs"] == 450
    assert [row.run_id for row in await house.store.read(lambda tx: tx.runs.list().data)] == [still_open]


async def test_messages_stay_unless_sessions_are_asked_for(house: ArtifactHouse) -> None:
    quiet, busy, waiting = new_uuid(), new_uuid(), new_uuid()
    for session_id in (quiet, busy):
        await run(house, session_id)
    await begin(house, waiting)
    picture = await house.artifacts.put(b"picture", media_type="image/png", used_by=f"session:{quiet}")
    house.clock.turn(days=31)
    await run(house, busy)
    assert await prune(house) == {"runs": 2, "run_events": 4}
    assert await count(house, "messages") == 3
    assert await prune(house, dry_run=True, sessions=True) == {"sessions": 1, "messages": 1}
    assert await prune(house, sessions=True) == {"sessions": 1, "messages": 1}
    assert await house.store.read(lambda tx: tx.sessions.find(quiet)) is None
    for session_id in (busy, waiting):
        assert await house.store.read(lambda tx, kept=session_id: tx.sessions.find(kept)) is not None
    assert await house.store.read(lambda tx: tx.artifacts.holders(picture.digest)) == []
    house.clock.turn(days=8)
    assert await prune(house) == {"artifacts": 1, "artifact_bytes": 7}
    assert house.place.names() == []


async def test_a_run_that_goes_lets_go_of_its_media(house: ArtifactHouse) -> None:
    run_id = await run(house)
    picture = await house.artifacts.put(b"picture", media_type="image/png", used_by=f"run:{run_id}")
    house.clock.turn(days=31)
    await prune(house)
    assert await house.store.read(lambda tx: tx.artifacts.holders(picture.digest)) == []
    assert await house.artifacts.exists(picture.digest), "its own retention has only begun"


async def test_what_expires_goes_whatever_retention_says(house: ArtifactHouse) -> None:
    now = house.clock.now()
    key = {"body_hash": b"h", "run_id": "run_1"}
    await insert(
        house,
        "idempotency_keys",
        {"key_id": "", "idempotency_key": "old", "created_at": now - timedelta(hours=25), **key},
        {"key_id": "key_1", "idempotency_key": "old", "created_at": now - timedelta(hours=23), **key},
    )
    counter = {"name": "k", "hits": 1}
    await insert(
        house,
        "rate_counters",
        {"window_start": 1, "expires_at": now - timedelta(seconds=1), **counter},
        {"window_start": 2, "expires_at": now + timedelta(seconds=1), **counter},
    )
    executor = {"host": "h", "role": "worker", "version": "1", "started_at": now, "beat_at": now}
    await insert(
        house,
        "executors",
        {"executor_id": "exec_1", "lost_at": now - timedelta(days=2), **executor},
        {"executor_id": "exec_2", "lost_at": now - timedelta(hours=1), **executor},
        {"executor_id": "exec_3", "lost_at": None, **executor},
    )
    expected = {"idempotency_keys": 1, "rate_counters": 1, "executors": 1}
    assert await prune(house, None, dry_run=True) == expected
    assert await prune(house, None) == expected
    assert await prune(house, None) == {}


async def test_deliveries_that_are_done_go_and_pending_ones_stay(house: ArtifactHouse) -> None:
    now = house.clock.now()
    await insert(
        house,
        "webhooks",
        {
            "webhook_id": "hook_1",
            "url": "https://example.org",
            "events": [],
            "names": [],
            "active": True,
            "revision": 1,
            "created_at": now,
            "updated_at": now,
        },
    )
    await insert(
        house,
        "deliveries",
        *(
            {
                "delivery_id": f"dlv_{status}",
                "webhook_id": "hook_1",
                "run_id": f"run_{status}",
                "event": "run.completed",
                "status": status,
                "attempts": 1,
                "created_at": now,
            }
            for status in ("delivered", "failed", "pending")
        ),
    )
    attempt = {"attempt": 1, "at": now, "milliseconds": 5}
    await insert(house, "delivery_attempts", {"delivery_id": "dlv_delivered", **attempt})
    house.clock.turn(days=31)
    assert await prune(house) == {"deliveries": 2}
    assert await count(house, "deliveries") == 1
    assert await count(house, "delivery_attempts") == 0


async def test_one_process_prunes_in_an_hour_and_the_audit_log_says_what(house: ArtifactHouse) -> None:
    await run(house)
    house.clock.turn(days=31)

    async def hourly() -> Pruned | None:
        other = ArtifactStore(house.settings, house.store, house.clock)
        await other.open()
        try:
            return await prune_platform(
                house.store,
                other,
                house.clock,
                older_than=MONTH,
                unused_for=WEEK,
                every=timedelta(hours=1),
            )
        finally:
            await other.close()

    done = await asyncio.gather(*(hourly() for _ in range(4)))
    assert [pruned.counts["runs"] for pruned in done if pruned is not None] == [1]
    assert await hourly() is None
    house.clock.turn(hours=1)
    again = await hourly()
    assert again is not None
    assert again.total == 0
    audit = await house.store.read(lambda tx: tx.audit.list(action="db.prune").data)
    assert [row.details["older_than_days"] for row in audit] == [30.0], "nothing that went is no event"
    await prune(house, caller=SYSTEM)
    audit = await house.store.read(lambda tx: tx.audit.list(action="db.prune").data)
    assert len(audit) == 2


async def test_runs_that_are_accepted_meanwhile_are_left_alone(house: ArtifactHouse) -> None:
    session_id = new_uuid()
    for _ in range(30):
        await run(house, session_id)
    house.clock.turn(days=31)

    async def accepts() -> list[str]:
        return [await run(house, session_id) for _ in range(20)]

    pruned, kept = await asyncio.gather(prune(house, sessions=True), accepts())
    assert pruned["runs"] == 30
    rows = await house.store.read(lambda tx: tx.runs.list(limit=100).data)
    assert {row.run_id for row in rows} == set(kept)
    session = await house.store.read(lambda tx: tx.sessions.get(session_id))
    assert session.message_count in {20, 50}


async def test_a_server_prunes_by_its_settings(house: ArtifactHouse) -> None:
    await run(house)
    house.clock.turn(days=31)
    settings = house.settings.model_copy(update={"retention_days": 30})
    task = asyncio.create_task(keep_pruned(house.store, house.artifacts, settings, house.clock, look_seconds=0.01))
    deadline = asyncio.get_running_loop().time() + 10
    while await count(house, "runs") and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    assert await count(house, "runs") == 0
