import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from automagik.errors import ConfigurationError, NotFound
from automagik.settings import Settings
from automagik.store import Store, Transaction
from automagik.testing.postgres import PostgresServer
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    with PostgresServer(followed=True) as server:
        yield server


@pytest.fixture(scope="module")
def replica(primary: PostgresServer) -> Iterator[PostgresServer]:
    with PostgresServer(replica_of=primary) as server:
        yield server


@pytest.fixture(scope="module")
def url(primary: PostgresServer) -> Iterator[str]:
    created = primary.create_database()
    yield created
    primary.drop_database(created)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has much to do is no replica that lags."""
    monkeypatch.setattr("automagik.store.replica._CATCH_UP_SECONDS", 10.0)


def on(server: PostgresServer, url: str) -> str:
    """The same database on another server."""
    return server.url(url.rsplit("/@/", maxsplit=1)[-1].rsplit("@/", maxsplit=1)[-1].split("?", maxsplit=1)[0])


@asynccontextmanager
async def open_store(folder: Path, url: str, replica_url: str) -> AsyncGenerator[Store]:
    settings = Settings(data_dir=folder, database_url=SecretStr(url), database_replica_url=SecretStr(replica_url))
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(tmp_path: Path, url: str, replica: PostgresServer, anyio_backend: str) -> AsyncIterator[Store]:
    await caught_up(url, replica)
    async with open_store(tmp_path, url, on(replica, url)) as opened:
        await serves_lists(opened)
        yield opened


async def serves_lists(store: Store) -> None:
    """Wait until the replica does so; one that lagged or was away is left alone for a while."""
    async with asyncio.timeout(20):
        while not await store.browse(is_replica):
            await asyncio.sleep(0.1)


async def caught_up(url: str, replica: PostgresServer) -> None:
    """Wait until the replica has the new database."""
    settings = Settings(database_url=SecretStr(on(replica, url)))
    async with asyncio.timeout(20):
        while True:
            try:
                store = Store.from_settings(settings, SystemClock())
                await store.open()
            except ConfigurationError:
                await asyncio.sleep(0.05)
            else:
                await store.close()
                return


def is_replica(tx: Transaction) -> bool:
    return bool(tx.connection.scalar(text("SELECT pg_is_in_recovery()")))


async def test_lists_are_read_on_the_replica_and_all_else_on_the_primary(store: Store) -> None:
    assert await store.browse(is_replica)
    assert not await store.read(is_replica)
    assert not await store.write(is_replica)


async def test_whoever_wrote_sees_it_in_the_next_list_whichever_instance_took_it(
    store: Store, tmp_path: Path, url: str, replica: PostgresServer
) -> None:
    async with open_store(tmp_path, url, on(replica, url)) as other:
        on_replica = 0
        for _ in range(40):
            user = await store.write(lambda tx: tx.users.create())
            found, there = await other.browse(lambda tx, user=user: (tx.users.find(user.user_id), is_replica(tx)))
            assert found == user
            on_replica += there
        assert on_replica > 20


async def test_while_the_replica_lags_lists_come_from_the_primary_and_miss_nothing(
    store: Store, replica: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automagik.store.replica._CATCH_UP_SECONDS", 0.1)
    replica.pause_replay()
    try:
        user = await store.write(lambda tx: tx.users.create())
        for _ in range(3):
            found, there = await store.browse(lambda tx: (tx.users.find(user.user_id), is_replica(tx)))
            assert found == user
            assert not there
    finally:
        replica.resume_replay()
    await serves_lists(store)


async def test_while_the_replica_is_away_lists_come_from_the_primary(
    store: Store, replica: PostgresServer, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automagik.store.replica._AWAY_SECONDS", 1.0)
    assert await store.browse(is_replica)
    replica.halt()
    try:
        assert not await store.browse(is_replica)
        async with open_store(tmp_path, url, on(replica, url)) as started_meanwhile:
            assert not await started_meanwhile.browse(is_replica)
    finally:
        replica.revive()
    await serves_lists(store)


async def test_what_the_work_itself_raises_is_raised_once(store: Store) -> None:
    calls: list[bool] = []

    def work(tx: Transaction) -> None:
        calls.append(is_replica(tx))
        raise NotFound("user", "nobody")

    with pytest.raises(NotFound):
        await store.browse(work)
    assert calls == [True]


async def test_many_lists_at_once_ask_the_primary_together(store: Store) -> None:
    assert all(await asyncio.gather(*(store.browse(is_replica) for _ in range(50))))


async def test_a_database_that_is_no_replica_of_the_primary_is_refused(
    tmp_path: Path, url: str, primary: PostgresServer
) -> None:
    async with AsyncExitStack() as stack:
        other = primary.create_database()
        stack.callback(primary.drop_database, other)
        with pytest.raises(ConfigurationError, match="no replica"):
            await stack.enter_async_context(open_store(tmp_path, url, other))
