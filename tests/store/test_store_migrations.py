"""Migrations: they make exactly the tables of the code, whoever comes at once, and a newer database is refused."""

import asyncio
import contextlib
import re
import sqlite3
import subprocess
import sys
import uuid
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from automagik.errors import ConfigurationError
from automagik.settings import Settings
from automagik.store import BeginRun, FinishRun, NextTurn, StartRun, Store, Transaction, schema
from automagik.store.migrator import MIGRATIONS
from automagik.store.queue import ClaimLimits
from automagik.store.sqlite import connect_sqlite, sqlite_transaction
from automagik.testing.postgres import PostgresServer
from automagik.types import SystemClock, utc_text

pytestmark = pytest.mark.anyio


@pytest.fixture
async def empty(
    dialect: str, tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[Settings]:
    """Settings that name a database without any table."""
    if dialect == "sqlite":
        yield Settings(data_dir=tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.create_empty_database()
    yield Settings(data_dir=tmp_path, database_url=SecretStr(url))
    server.drop_database(url)


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[Store]:
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def plain_engine(url: SecretStr) -> AsyncGenerator[AsyncEngine]:
    """SQLAlchemy as it is, without the store's settings."""
    engine = create_async_engine(url.get_secret_value().replace("postgresql://", "postgresql+asyncpg://"))
    yield engine
    await engine.dispose()


def test_the_codes_revision_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


async def test_migrated_tables_are_the_tables_of_the_code(empty: Settings) -> None:
    def differences(connection: Connection) -> list[Any]:
        with warnings.catch_warnings():
            # SQLite's expression index can't be reflected; it is compared by its text below.
            warnings.filterwarnings("ignore", message=".*expression-based index.*")
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            return compare_metadata(context, schema.metadata)

    async with opened(empty) as store:
        if store.dialect == "sqlite":
            assert await store.read(lambda tx: differences(tx.connection)) == []
    if empty.database_url is not None:
        async with plain_engine(empty.database_url) as engine, engine.connect() as connection:
            assert await connection.run_sync(differences) == []


def test_sqlites_indexes_and_tables_are_written_as_the_code_would_write_them(tmp_path: Path) -> None:
    async def migrate() -> None:
        async with opened(Settings(data_dir=tmp_path)):
            pass

    asyncio.run(migrate())
    with contextlib.closing(sqlite3.connect(tmp_path / "automagik.db")) as migrated:
        found = _definitions(migrated)
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        from automagik.store.sqlite import wrap_sqlite

        with wrap_sqlite(raw) as connection:
            schema.metadata.create_all(connection)
            wanted = _definitions(raw)
    found.pop("alembic_version")
    assert found.keys() == wanted.keys()
    for name, definition in wanted.items():
        assert sorted(found[name]) == sorted(definition), name


def _definitions(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Each table's and index's definition, as its parts in any order of columns and constraints."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    return {
        name: [part.strip(" ()\t") for part in re.split(r"[,\n]", sql) if part.strip(" ()\t")] for name, sql in rows
    }


RACER = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock
async def main():
    url = sys.argv[2]
    store = Store.from_settings(
        Settings(data_dir=Path(sys.argv[1]), database_url=SecretStr(url) if url else None), SystemClock()
    )
    sys.stdin.read()
    await store.open()
    await store.write(lambda tx: tx.agents.create(sys.argv[3], type="t", source="api"))
    await store.close()
asyncio.run(main())
"""


async def test_processes_that_migrate_at_once_all_succeed(empty: Settings) -> None:
    url = empty.database_url.get_secret_value() if empty.database_url else ""
    racers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RACER, str(empty.data_dir), url, f"agent {n}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    for racer in racers:
        _, problems = await asyncio.to_thread(racer.communicate)
        assert (racer.returncode, problems) == (0, b"")
    async with opened(empty) as store:
        assert len(await store.read(lambda tx: tx.agents.all())) == 4


async def test_a_database_of_a_newer_automagik_is_refused_with_the_way_out(empty: Settings) -> None:
    async with opened(empty) as store:
        await store.write(lambda tx: tx.connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(ConfigurationError, match="9999") as refused:
        async with opened(empty):
            pass
    assert "backup" in (refused.value.hint or "")


async def test_a_migration_that_fails_leaves_nothing(empty: Settings) -> None:
    await _execute(empty, "CREATE TABLE messages (x integer)")  # the last table that is made: it is in the way
    with pytest.raises(ConfigurationError, match="messages"):
        async with opened(empty):
            pass
    names = (
        "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        if empty.database_url is None
        else "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    )
    assert await _execute(empty, names) == [("messages",)]
    await _execute(empty, "DROP TABLE messages")
    async with opened(empty) as store:
        await store.check()


async def _execute(settings: Settings, statement: str) -> list[tuple[Any, ...]]:
    if settings.database_url is None:
        with contextlib.closing(sqlite3.connect(settings.data_dir / "automagik.db", isolation_level=None)) as raw:
            return raw.execute(statement).fetchall()
    async with plain_engine(settings.database_url) as engine, engine.begin() as connection:
        result = await connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


# -- work that an earlier version left

ALONE, SHARED, GONE = (uuid.UUID(int=n) for n in (1, 2, 3))

_SESSIONS = (
    "INSERT INTO sessions (id, session_id, status, session_origin, metadata, message_count, created_at, updated_at)"
    " VALUES ({id}, '{session_id}', 'active', 'cli', '{{}}', 0, '{at}', '{at}')"
)
_RUNS = (
    "INSERT INTO runs (run_id, kind, name, session_id, labels, status, attempt, priority, input, requests, tool_calls,"
    " input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, owner, created_at)"
    " VALUES ('{run_id}', 'agent', 'simple', {session}, '{{}}', '{status}', 1, 0, '{{\"message_content\":\"hello\"}}',"
    " 0, 0, 0, 0, 0, 0, {owner}, '{at}')"
)
_EVENTS = "INSERT INTO run_events (run_id, seq, type, at, data) VALUES ('{run_id}', 1, '{type}', '{at}', '{data}')"


def _pending_work() -> list[str]:
    """What the version before turns and the queue wrote: run_1 … run_9 in the order of their acceptance."""
    at = utc_text(datetime(2026, 11, 1, tzinfo=UTC))
    background, waiting = '{"background":true}', '{"background": false}'  # with a space or without: both were written
    left: list[tuple[uuid.UUID | None, str, str, str, str | None]] = [
        (None, "queued", "run_queued", background, "host:proc_1"),
        (None, "running", "run_started", "{}", "host:proc_1"),
        (ALONE, "running", "run_queued", background, "host:proc_1"),
        (SHARED, "completed", "run_started", "{}", "host:proc_1"),
        (SHARED, "queued", "run_queued", background, "host:proc_1"),
        (SHARED, "running", "run_started", "{}", "host:proc_1"),
        (SHARED, "queued", "run_queued", waiting, "host:proc_1"),
        (SHARED, "queued", "run_queued", background.replace(":", ": "), "host:proc_1"),
        (GONE, "queued", "run_queued", background, None),
        (GONE, "running", "run_started", "{}", None),
    ]
    statements = [
        _SESSIONS.format(id=place, session_id=session_id, at=at) for place, session_id in enumerate((ALONE, SHARED), 1)
    ]
    for place, (session_id, status, kind, data, owner) in enumerate(left):
        run_id = f"run_{place}"
        session = "NULL" if session_id is None else f"'{session_id}'"
        owned = "NULL" if owner is None else f"'{owner}'"
        statements.append(_RUNS.format(run_id=run_id, session=session, status=status, owner=owned, at=at))
        statements.append(_EVENTS.format(run_id=run_id, type=kind, data=data, at=at))
    return statements


async def _make_earlier(settings: Settings) -> None:
    """The database as revision 0001 has it, with pending work."""

    def make(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in _pending_work():
            connection.exec_driver_sql(statement)

    if settings.database_url is not None:
        async with plain_engine(settings.database_url) as engine, engine.begin() as connection:
            await connection.run_sync(make)
        return
    raw = connect_sqlite(settings.data_dir / "automagik.db")
    with contextlib.closing(raw), sqlite_transaction(raw) as connection:
        make(connection)


async def test_the_work_that_an_earlier_version_left_goes_on(empty: Settings) -> None:
    await _make_earlier(empty)
    async with opened(empty) as store:
        rows = await store.read(lambda tx: {n: tx.runs.get(f"run_{n}") for n in range(10)})
        assert [n for n, row in rows.items() if row.background] == [0, 4, 7, 8]
        assert [n for n, row in rows.items() if not row.ready] == [4, 6, 7], "behind the one that is under way"
        counts = text("SELECT turns, open_runs FROM sessions ORDER BY id")
        assert await store.read(lambda tx: [tuple(row) for row in tx.connection.execute(counts)]) == [(1, 1), (4, 4)]
        assert await store.read(lambda tx: tx.queue.stuck_sessions()) == []

        def claim(tx: Transaction) -> list[str]:
            taken = tx.queue.claim("me", "here", 10, limits=ClaimLimits(), host_lease_seconds=300)
            return [claimed.row.run_id for claimed in taken]

        assert await store.write(claim) == ["run_0", "run_8"]
        owners = await store.read(lambda tx: tx.queue.owners())
        assert sorted(owners) == ["host:proc_1", "me", "unknown"]
        rescued = [
            await store.write(lambda tx, owner=owner: tx.queue.rescue(owner, lost={"code": "worker_lost"}))
            for owner in ("host:proc_1", "unknown")
        ]
        failed = [ended.row for some in rescued for ended in some.failed]
        assert [row.run_id for row in failed] == ["run_1", "run_2", "run_5", "run_6", "run_9"]
        assert {row.outcome for row in failed} == {"worker_lost"}
        assert await store.read(lambda tx: tx.events.last_seq("run_5")) == 2
        assert await store.write(claim) == ["run_4"]
        begun = await store.start_run(StartRun("run_4", SystemClock().now(), "me"))
        ended = await store.finish_run(
            FinishRun("run_4", "me", "completed", "completed", SystemClock().now(), session_key=begun.session_key)
        )
        assert ended is not None
        assert ended.next_turn == NextTurn("run_7", background=True, owner=None)
        accepted = await store.begin_run(
            BeginRun("run_x", "agent", "simple", SystemClock().now(), session_id=ALONE, owner="me")
        )
        assert accepted.is_ready


OPENER = """
import asyncio, sys
from pathlib import Path
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock
async def main():
    store = Store.from_settings(Settings(data_dir=Path(sys.argv[1])), SystemClock())
    await store.open()
    await store.close()
asyncio.run(main())
print([name for name in ("alembic", "asyncpg", "sqlalchemy.ext.asyncio") if name in sys.modules])
"""


def test_a_start_at_head_on_sqlite_loads_neither_alembic_nor_the_driver_of_postgresql(tmp_path: Path) -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", OPENER, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert outputs == ["['alembic']", "[]"]
