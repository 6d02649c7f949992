"""What the statements of every run cost: the same in a large database as in a small one."""

import json
import uuid
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text
from store_samples import begin, finish, make_agent, message

from automagik.store import BeginRun, Store, Transaction
from automagik.store import postgres_columns as columns
from automagik.store import postgres_sql as sql
from automagik.store.postgres import connect_postgres
from automagik.store.sqlite import SqliteHandle, connect_sqlite, wrap_sqlite
from automagik.store.sqlite_hot import begin_in
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings, open_store
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio

LONG, SHORT = uuid.uuid4(), uuid.uuid4()


async def fill(store: Store) -> int:
    """A session of 10,000 messages and one of 40, and memories of many others."""
    agent = await make_agent(store)
    for session_id, turns in ((LONG, 5000), (SHORT, 20)):
        begun = await store.begin_run(begin(session_id=session_id, agent_id=agent.id))
        messages = [message("user" if n % 2 == 0 else "assistant", f"{n}") for n in range(2 * turns)]
        await store.finish_run(finish(begun.run_id, begun.session_key, messages))

    def others(tx: Transaction) -> None:
        for n in range(500):
            user = tx.users.create()
            tx.memories.create("tone", f"{n}", user_id=user.user_id)
            tx.memories.create("tone", f"{n}", user_id=user.user_id, agent_id=agent.id)
        tx.memories.create("tone", "kind", agent_id=agent.id)

    await store.write(others)
    return agent.id


def asked(session_id: uuid.UUID, agent_id: int) -> BeginRun:
    return begin(session_id=session_id, agent_id=agent_id, message_limit=20, variable_names=["tone"])


async def test_sqlite_does_as_much_work_for_a_session_of_10000_messages_as_for_one_of_40(tmp_path: Path) -> None:
    async with open_store("sqlite", tmp_path) as store:
        agent_id = await fill(store)
    raw = connect_sqlite(tmp_path / "automagik.db")
    handle = SqliteHandle(raw, wrap_sqlite(raw))
    steps: dict[uuid.UUID, int] = {}
    for session_id in (SHORT, LONG, SHORT, LONG):
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        raw.set_progress_handler(step, 1)
        begun = begin_in(asked(session_id, agent_id), handle)
        raw.set_progress_handler(None, 1)
        assert (len(begun.history), begun.variables) == (20, {"tone": "kind"})
        steps[session_id] = count
    handle.connection.close()
    raw.close()
    assert steps[LONG] <= steps[SHORT] * 1.02
    assert steps[LONG] < 1500  # of the database's own machine: about 15 for a row that is read


async def test_postgresql_reads_as_many_pages_for_a_session_of_10000_messages_as_for_one_of_40(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as settings:
        assert settings.database_url is not None
        store = Store.from_settings(settings, SystemClock())
        await store.open()
        agent_id = await fill(store)
        await store.write(lambda tx: tx.connection.execute(text("ANALYZE")))
        lane = await connect_postgres(settings.database_url.get_secret_value(), lane=True)
        explained = await lane.prepare(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql.BEGIN}")
        pages: dict[uuid.UUID, int] = {}
        plan = ""
        for session_id in (SHORT, LONG, SHORT, LONG):
            rows = await explained.fetch(*columns.of_begin([asked(session_id, agent_id)]))
            plan = cast("str", rows[0]["QUERY PLAN"])
            top: dict[str, Any] = json.loads(plan)[0]["Plan"]
            pages[session_id] = top["Shared Hit Blocks"] + top["Shared Read Blocks"]
        await lane.close()
        await store.close()
    assert "Seq Scan" not in plan
    assert pages[LONG] <= pages[SHORT] + 8  # another level of an index
    assert pages[LONG] < 150


FILTERS: list[dict[str, Any]] = [
    *({"status": "failed"}, {"outcome": "timed_out"}, {"name": "simple"}, {"key_id": "k"}, {"parent_id": "p"}),
    *({"session_id": SHORT}, {"user_id": SHORT}),
]


async def test_a_filtered_list_of_runs_uses_its_index(tmp_path: Path) -> None:
    async with open_store("sqlite", tmp_path) as store:

        def plan(tx: Transaction, filters: dict[str, Any]) -> list[str]:
            seen: list[str] = []
            raw = cast("Any", tx.connection.connection.driver_connection)
            raw.set_trace_callback(seen.append)
            tx.runs.list(**filters)
            raw.set_trace_callback(None)
            return [row[3] for row in tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {seen[-1]}")]

        for filters in FILTERS:
            steps = await store.read(lambda tx, f=filters: plan(tx, f))
            assert any("USING INDEX ix_runs_" in step for step in steps), (filters, steps)
            assert not any("TEMP B-TREE" in step for step in steps), (filters, steps)
