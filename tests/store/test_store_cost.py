"""What the statements of every run cost: the same in a large database as in a small one."""

import json
import uuid
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text
from store_samples import accept, begin, event, finish, make_agent, message, start

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

        raw.execute("BEGIN")
        raw.set_progress_handler(step, 1)
        begun = begin_in(asked(session_id, agent_id), handle)
        raw.set_progress_handler(None, 1)
        raw.execute("ROLLBACK")
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
            await lane.execute("BEGIN")
            rows = await explained.fetch(*columns.of_begin([asked(session_id, agent_id)]))
            await lane.execute("ROLLBACK")
            plan = cast("str", rows[0]["QUERY PLAN"])
            top: dict[str, Any] = json.loads(plan)[0]["Plan"]
            pages[session_id] = top["Shared Hit Blocks"] + top["Shared Read Blocks"]
        await lane.close()
        await store.close()
    assert "Seq Scan" not in plan
    assert pages[LONG] <= pages[SHORT] + 8  # another level of an index
    assert pages[LONG] < 150


# Runs that wait in the queue, four to a session; made behind the store's back, without statistics.
_CROWD = (
    "INSERT INTO sessions (session_id, status, session_origin, metadata, message_count, turns, open_runs, created_at,"
    " updated_at) SELECT gen_random_uuid(), 'active', 'x', '{}', 0, 4, 4, now(), now() FROM generate_series(1, 500)",
    "INSERT INTO runs (run_id, kind, name, session_id, labels, status, attempt, priority, requests, tool_calls,"
    " input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, background, ready, turn, created_at)"
    " SELECT 'run_' || s.id || '_' || n, 'agent', 'simple', s.session_id, '{}', 'queued', 1, 0, 0, 0, 0, 0, 0, 0, true,"
    " n = 1, n, now() FROM sessions s, generate_series(1, 4) n WHERE s.open_runs = 4",
)
_READ = """SELECT sum(pg_stat_get_xact_tuples_fetched(c.oid) + pg_stat_get_xact_tuples_returned(c.oid))::integer AS rows
  FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
  WHERE coalesce(i.indrelid, c.oid) IN ('runs'::regclass, 'sessions'::regclass)"""


async def test_postgresql_finds_a_run_among_2000_open_ones_by_a_plan_that_was_made_without_any(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as settings:
        assert settings.database_url is not None
        lane = await connect_postgres(settings.database_url.get_secret_value(), lane=True)
        texts = {
            "begin": sql.BEGIN,
            "accept": sql.ACCEPT,
            "start": sql.START,
            "finish": sql.FINISH,
            "append": sql.APPEND,
        }
        prepared = {name: await lane.prepare(text) for name, text in texts.items()}
        counted = await lane.prepare(_READ)
        read: dict[str, int] = {}

        async def do(name: str, parameters: list[list[Any]]) -> None:
            await lane.execute("BEGIN")
            (before,) = await counted.fetch()
            assert len(await prepared[name].fetch(*parameters)) == 1, name
            (after,) = await counted.fetch()
            await lane.execute("COMMIT")
            read[name] = after["rows"] - before["rows"]

        async def turn() -> None:
            session_id = uuid.uuid4()
            first, second = begin(session_id=session_id), begin(session_id=session_id)
            await do("begin", columns.of_begin([first]))
            await do("begin", columns.of_begin([second]))
            await do("accept", columns.of_begin_without_context([accept(session_id=session_id)]))
            await do("append", columns.of_append([(first.run_id, "me", [event(2)])]))
            await do("finish", columns.of_finish([finish(first.run_id)]))
            await do("start", columns.of_start([start(second.run_id)]))

        await turn()
        for statement in _CROWD:
            await lane.execute(statement)
        await turn()
        await lane.close()
    assert min(read.values()) > 0, read
    assert max(read.values()) < 30, read


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
