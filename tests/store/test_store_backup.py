"""Backup, restore and copy: every row, either way between the databases, all or nothing."""

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Boolean, Column, Date, Integer, func, insert, select, text
from store_samples import begin, event, finish, message, take_turn

from automagik.errors import ConfigurationError, Conflict, InvalidInput
from automagik.settings import Settings
from automagik.store import Store, Transaction, schema
from automagik.store.backup import backup, copy, restore, server_of
from automagik.store.columns import Bytes, CleanText, JsonValue, SafeText, Uid, UtcTime
from automagik.testing.postgres import PostgresServer
from automagik.types import SystemClock, Usage

pytestmark = pytest.mark.anyio

SESSION = uuid.uuid4()


class Places(dict[str, Settings]):
    """Fresh databases by name, made when they are asked for; the name's first word is the kind."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        super().__init__()
        self._folder = folder
        self._server = server

    def __missing__(self, name: str) -> Settings:
        url = SecretStr(self._server.create_database()) if name.startswith("postgresql") else None
        self[name] = Settings(data_dir=self._folder / name, database_url=url)
        return self[name]

    def close(self) -> None:
        for settings in self.values():
            if settings.database_url is not None:
                self._server.drop_database(settings.database_url.get_secret_value())


@pytest.fixture
def places(tmp_path: Path, postgres_server: PostgresServer, anyio_backend: str) -> Iterator[Places]:
    made = Places(tmp_path, postgres_server)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[Store]:
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def fill(store: Store) -> None:
    """A row or more in every table, with all that is hard to carry."""
    user_id = uuid.uuid4()

    def first(tx: Transaction) -> int:
        agent = tx.agents.create("a", type="t", source="api", config={"n": [1, None, 2.5], "\u00e4": "\x00"})
        tx.agents.create("gone", type="t", source="api")
        tx.agents.delete("gone")
        tx.users.create(user_id=user_id, email="anna@example.org", user_data={"a": "\ud800"})
        tx.prompts.create(agent.id, "Hello {{name}}", is_active=True)
        tx.keys.create("k", prefix="amk_1", key_hash=bytes(range(32)), scopes=["admin"], user_id=user_id)
        tx.audit.append("agent.create", "a", details={"x": 1})
        return agent.id

    agent_id = await store.write(first)
    for n in range(3):
        await take_turn(store, SESSION, "ua" * (1 + n), agent_id=agent_id, user_id=user_id, session_name="plans")
    begun = await store.begin_run(begin(session_id=SESSION))
    await store.append_events(begun.run_id, "me", [event(2, data='{"a":"\\u0000"}')])
    usage = Usage(1, 2, 3, 4, 5, 6, Decimal("0.0000000001"))
    await store.finish_run(finish(begun.run_id, begun.session_key, [message("user", "x")] * 1, usage=usage))
    await store.write(
        lambda tx: (
            tx.memories.create("a", "b", session_id=begun.session_key),
            tx.memories.create("a", "c", agent_id=agent_id, user_id=user_id),
        )
    )
    await store.write(fill_what_is_empty)


PASSING = {"executors", "rate_counters"}
"""What is true of a moment only, and so in no backup."""

KEPT = [table for table in schema.metadata.sorted_tables if table.name not in PASSING]


def fill_what_is_empty(tx: Transaction) -> None:
    """A row in each table that has none; all texts are the same, so that rows find those they belong to."""
    for table in schema.metadata.sorted_tables:
        if not tx.connection.scalar(select(func.count()).select_from(table)):
            tx.connection.execute(insert(table).values({column.name: sample_of(column) for column in table.columns}))


def sample_of(column: Column[Any]) -> Any:
    samples: list[tuple[type[Any] | tuple[type[Any], ...], Any]] = [
        ((SafeText, CleanText), "x\u00e4"),
        (UtcTime, datetime(2026, 11, 24, 9, 30, 0, 123456, tzinfo=UTC)),
        (Date, date(2026, 11, 24)),
        (JsonValue, {"a": "\x00"}),
        (Bytes, b"\x00\xff"),
        (Uid, uuid.UUID(int=7)),
        (Boolean, True),
        (Integer, 7),
    ]
    return next(sample for kinds, sample in samples if isinstance(column.type, kinds))


def everything(tx: Transaction) -> dict[str, list[Any]]:
    return {
        table.name: [
            tuple(row) for row in tx.connection.execute(select(table).order_by(*table.primary_key.columns)).all()
        ]
        for table in KEPT
    }


WAYS = [(a, b) for a in ("sqlite", "postgresql") for b in ("sqlite 2", "postgresql 2")]


@pytest.mark.parametrize(("origin", "target"), WAYS)
async def test_what_was_backed_up_is_restored_to_the_last_row(
    places: Places, tmp_path: Path, origin: str, target: str
) -> None:
    archive = tmp_path / "archives" / "monday.db"
    async with opened(places[origin]) as store:
        await fill(store)
        saved = await backup(places[origin], archive)
        before = await store.read(everything)
    assert saved.rows == {name: len(rows) for name, rows in before.items()}
    assert all(saved.rows.values())
    assert [path.name for path in archive.parent.iterdir()] == ["monday.db"]
    assert archive.stat().st_mode & 0o077 == 0
    content = archive.read_bytes()
    restored = await restore(places[target], archive)
    assert restored == saved
    assert archive.read_bytes() == content
    async with opened(places[target]) as store:
        assert await store.read(everything) == before
        agent = await store.write(lambda tx: tx.agents.create("next", type="t", source="api"))
        assert agent.id > max(row[0] for row in before["agents"])
        begun = await take_turn(store, SESSION, "ua")
        assert len(begun.history) == saved.rows["messages"]
        history = await store.read(lambda tx: tx.messages.history(begun.session_key or 0))
        assert len(history) == saved.rows["messages"] + 2


async def test_a_data_folder_grows_into_postgresql(places: Places) -> None:
    target = places["postgresql"].database_url
    assert target is not None
    async with opened(places["sqlite"]) as store:
        await fill(store)
        copied = await copy(places["sqlite"], target.get_secret_value())
        before = await store.read(everything)
    async with opened(places["postgresql"]) as grown:
        assert await grown.read(everything) == before
    assert copied.total == sum(len(rows) for rows in before.values())


@pytest.mark.parametrize("target", ["sqlite 2", "postgresql 2"])
async def test_rows_that_are_there_are_replaced_only_when_asked(places: Places, tmp_path: Path, target: str) -> None:
    archive = tmp_path / "a.db"
    async with opened(places["sqlite"]) as store:
        await fill(store)
        before = await store.read(everything)
    await backup(places["sqlite"], archive)
    async with opened(places[target]) as store:
        await store.write(lambda tx: tx.agents.create("mine", type="t", source="api"))
    with pytest.raises(Conflict, match="agents"):
        await restore(places[target], archive)
    async with opened(places[target]) as store:
        assert [row.name for row in await store.read(lambda tx: tx.agents.all())] == ["mine"]
    await restore(places[target], archive, replace=True)
    async with opened(places[target]) as store:
        assert await store.read(everything) == before


@pytest.mark.parametrize("target", ["sqlite 2", "postgresql 2"])
async def test_a_restore_that_fails_half_way_changes_nothing(places: Places, tmp_path: Path, target: str) -> None:
    archive = tmp_path / "a.db"
    async with opened(places["sqlite"]) as store:
        await fill(store)
    await backup(places["sqlite"], archive)
    with contextlib.closing(sqlite3.connect(archive, isolation_level=None)) as damaged:
        damaged.execute("UPDATE messages SET session_id = 999 WHERE id = 3")
    async with opened(places[target]) as store:
        await store.write(lambda tx: tx.agents.create("mine", type="t", source="api"))
        before = await store.read(everything)
    with pytest.raises(Conflict):
        await restore(places[target], archive, replace=True)
    async with opened(places[target]) as store:
        assert await store.read(everything) == before


@pytest.mark.parametrize("origin", ["sqlite", "postgresql"])
async def test_a_backup_while_runs_are_written_is_one_moment(places: Places, tmp_path: Path, origin: str) -> None:
    async with opened(places[origin]) as store:
        done = False

        async def work() -> None:
            while not done:
                await take_turn(store, uuid.uuid4(), "ua")

        working = [asyncio.create_task(work()) for _ in range(4)]
        await asyncio.sleep(0.1)
        await backup(places[origin], tmp_path / "a.db")
        done = True
        await asyncio.gather(*working)
    await restore(places["sqlite 2"], tmp_path / "a.db")
    async with opened(places["sqlite 2"]) as store:
        counts = text(
            "SELECT count(*) FROM sessions s WHERE s.message_count <>"
            " (SELECT count(*) FROM messages m WHERE m.session_id = s.id)"
        )
        assert await store.read(lambda tx: tx.connection.scalar(counts)) == 0
        assert await store.read(lambda tx: tx.connection.scalar(text("SELECT count(*) FROM messages"))) > 0


@pytest.mark.parametrize(("origin", "target"), WAYS)
async def test_what_is_true_of_a_moment_only_is_neither_carried_over_nor_in_the_way(
    places: Places, tmp_path: Path, origin: str, target: str
) -> None:
    async with opened(places[origin]) as store:
        await fill(store)
        saved = await backup(places[origin], tmp_path / "a.db")
    assert not PASSING & set(saved.rows)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as archive:
        for name in PASSING:
            assert archive.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,)
    living = insert(schema.executors).values(
        executor_id="exec_1", host="h", role="all", version="1", started_at=datetime.now(UTC), beat_at=datetime.now(UTC)
    )
    async with opened(places[target]) as store:
        await store.write(lambda tx: tx.connection.execute(living) and None)
    await restore(places[target], tmp_path / "a.db")
    async with opened(places[target]) as store:
        names = await store.read(lambda tx: list(tx.connection.scalars(select(schema.executors.c.executor_id))))
    assert names == ["exec_1"]


async def test_a_copy_can_tell_that_a_server_runs(places: Places) -> None:
    settings = places["sqlite"]
    assert server_of(settings) is None
    async with opened(settings) as store:
        assert server_of(settings) is None
        await store.acquire_ownership("host:exec_1")
        assert server_of(settings) == "host:exec_1"
        assert server_of(settings) == "host:exec_1", "to look takes nothing away"
    assert server_of(settings) is None


async def test_a_backup_never_overwrites(places: Places, tmp_path: Path) -> None:
    async with opened(places["sqlite"]):
        (tmp_path / "a.db").write_text("mine")
        with pytest.raises(Conflict, match=r"a\.db"):
            await backup(places["sqlite"], tmp_path / "a.db")
    assert (tmp_path / "a.db").read_text() == "mine"


async def test_what_is_no_archive_is_refused(places: Places, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, whatever its name may say. " * 40)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    for name in ("text.db", "other.db", "missing.db"):
        with pytest.raises(InvalidInput, match=name):
            await restore(places["sqlite"], tmp_path / name)
    assert not (tmp_path / "sqlite" / "automagik.db").exists()


async def test_a_data_folder_that_a_server_uses_is_not_restored(places: Places, tmp_path: Path) -> None:
    async with opened(places["sqlite"]) as store:
        await backup(places["sqlite"], tmp_path / "a.db")
        await store.acquire_ownership("host:proc_1")
        with pytest.raises(ConfigurationError, match="host:proc_1"):
            await restore(places["sqlite"], tmp_path / "a.db")


async def test_there_must_be_a_database_to_back_up(tmp_path: Path, postgres_server: PostgresServer) -> None:
    with pytest.raises(ConfigurationError, match=r"automagik\.db"):
        await backup(Settings(data_dir=tmp_path / "none"), tmp_path / "a.db")
    url = postgres_server.create_empty_database()
    with pytest.raises(ConfigurationError, match="revision"):
        await backup(Settings(data_dir=tmp_path, database_url=SecretStr(url)), tmp_path / "a.db")
    assert list(tmp_path.glob("a.db*")) == []
    postgres_server.drop_database(url)
