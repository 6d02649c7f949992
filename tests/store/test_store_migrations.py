"""Migrations: they make exactly the tables of the code, whoever comes at once, and a newer database is refused."""

import asyncio
import contextlib
import re
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from automagik.errors import ConfigurationError
from automagik.settings import Settings
from automagik.store import Store, schema
from automagik.store.migrator import MIGRATIONS
from automagik.testing.postgres import PostgresServer
from automagik.types import SystemClock

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
