"""Transactions: all or nothing, one moment, shared commits, and what happens when the database is away."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from store_samples import begin, make_agent

from automagik.errors import ConfigurationError, Conflict, Internal, ServiceUnavailable
from automagik.settings import Settings
from automagik.store import BegunRun, Store, Transaction
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import open_store
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio


async def test_a_write_that_raises_leaves_nothing(store: Store) -> None:
    def fail(tx: Transaction) -> None:
        tx.agents.create("a", type="t", source="api")
        tx.audit.append("agent.create", "a")
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        await store.write(fail)
    assert await store.read(lambda tx: tx.agents.all()) == []
    assert (await store.read(lambda tx: tx.audit.list())).data == []


async def test_writes_at_once_each_succeed_or_fail_for_themselves(store: Store) -> None:
    await make_agent(store)

    def work(tx: Transaction, place: int) -> int:
        tx.agents.create(f"agent {place}", type="t", source="api")
        if place % 3 == 0:
            tx.agents.create("simple", type="t", source="api")
        return place

    results = await asyncio.gather(
        *(store.write(lambda tx, n=n: work(tx, n)) for n in range(40)), return_exceptions=True
    )
    assert [isinstance(result, Conflict) for result in results] == [n % 3 == 0 for n in range(40)]
    names = {row.name for row in await store.read(lambda tx: tx.agents.all())}
    assert names == {"simple", *(f"agent {n}" for n in range(40) if n % 3)}


async def test_a_read_sees_one_moment(store: Store) -> None:
    await make_agent(store)
    loop = asyncio.get_running_loop()
    looked, written = asyncio.Event(), asyncio.Event()

    def look_twice(tx: Transaction) -> tuple[int, int]:
        first = len(tx.agents.all())
        loop.call_soon_threadsafe(looked.set)
        if store.dialect == "sqlite":  # in a reader thread, where waiting blocks nobody else
            asyncio.run_coroutine_threadsafe(written.wait(), loop).result(20)
        else:
            tx.connection.execute(text("SELECT pg_sleep(0.3)"))
        return first, len(tx.agents.all())

    reading = asyncio.create_task(store.read(look_twice))
    await looked.wait()
    await make_agent(store, "other")
    written.set()
    assert await reading == (1, 1)
    assert len(await store.read(lambda tx: tx.agents.all())) == 2


async def test_a_read_writes_nothing(store: Store) -> None:
    with pytest.raises((Internal, ServiceUnavailable)):
        await store.read(lambda tx: tx.agents.create("a", type="t", source="api"))
    assert await store.read(lambda tx: tx.agents.all()) == []


async def test_a_cancelled_write_is_completed(store: Store) -> None:
    def slow(tx: Transaction) -> None:
        tx.agents.create("a", type="t", source="api")
        if store.dialect == "sqlite":
            time.sleep(0.1)
        else:
            tx.connection.execute(text("SELECT pg_sleep(0.1)"))

    writing = asyncio.create_task(store.write(slow))
    await asyncio.sleep(0.05)
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    for _ in range(1000):
        if await store.read(lambda tx: tx.agents.find("a")) is not None:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the write was lost")


async def test_the_loop_goes_on_while_the_database_works(store: Store) -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    def slow(tx: Transaction) -> None:
        for _ in range(400):  # each of which blocks whoever waits for it
            if store.dialect == "sqlite":
                time.sleep(0.02)
            else:
                tx.connection.execute(text("SELECT pg_sleep(0.02)"))
            if beats > 10:
                return

    beating = asyncio.create_task(beat())
    await store.write(slow)
    beating.cancel()
    assert beats > 10


async def test_a_closed_store_says_so_and_opens_again(store: Store) -> None:
    await store.check()
    await make_agent(store)
    await store.close()
    for use in (store.check(), store.begin_run(begin()), store.write(lambda tx: tx.agents.all())):
        with pytest.raises(ServiceUnavailable):
            await use
    await store.open()
    assert [row.name for row in await store.read(lambda tx: tx.agents.all())] == ["simple"]


async def test_an_error_of_the_database_is_told_without_its_words(store: Store) -> None:
    with pytest.raises(Internal) as refused:
        await store.read(lambda tx: tx.connection.execute(text("SELECT secret FROM nothing")))
    assert "secret" not in refused.value.detail
    assert refused.value.__cause__ is not None


async def test_writes_that_wait_share_a_commit(tmp_path: Path) -> None:
    async with open_store("sqlite", tmp_path) as store:
        await make_agent(store)
        loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        slow = asyncio.create_task(store.write(lambda tx: (loop.call_soon_threadsafe(begun.set), go_on.wait(20))))
        await begun.wait()
        before = _transactions(tmp_path)
        many = [asyncio.create_task(store.begin_run(begin())) for _ in range(50)]
        await asyncio.sleep(0.1)  # all wait for the writer
        go_on.set()
        await asyncio.gather(slow, *many)
        assert _transactions(tmp_path) - before <= 2
        assert len((await store.read(lambda tx: tx.runs.list(limit=100))).data) == 50


async def test_what_was_committed_is_brought_into_the_file_beside_the_writer(tmp_path: Path) -> None:
    async with open_store("sqlite", tmp_path) as store:
        for number in range(150):
            await store.write(lambda tx, number=number: tx.audit.append("agent.create", str(number)))
        pages = await store.write(lambda tx: tx.connection.scalar(text("PRAGMA wal_autocheckpoint")))
        assert pages is not None
        assert pages > 4000, "a commit would do it, and wait for the disk"
        async with asyncio.timeout(40):
            while _audited_in_the_file_alone(tmp_path) < 128:
                await asyncio.sleep(0.05)


def _audited_in_the_file_alone(folder: Path) -> int:
    """How many entries are in the database file without its log."""
    alone = folder / "alone.db"
    shutil.copy(folder / "automagik.db", alone)
    with contextlib.closing(sqlite3.connect(f"file:{alone}?immutable=1", uri=True)) as reader:
        try:
            return reader.execute("SELECT count(*) FROM audit").fetchone()[0]
        except sqlite3.Error:  # copied while it was being written
            return 0


def _transactions(folder: Path) -> int:
    """How many commits the write-ahead log holds: frames that end a transaction say the size of the database."""
    log = (folder / "automagik.db-wal").read_bytes()
    page = int.from_bytes(log[8:12], "big")
    frames = range(32, len(log) - 23, 24 + page)
    return sum(1 for start in frames if int.from_bytes(log[start + 4 : start + 8], "big"))


async def test_a_write_waits_for_another_process_that_writes(tmp_path: Path) -> None:
    async with open_store("sqlite", tmp_path) as store:
        other = sqlite3.connect(tmp_path / "automagik.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(make_agent(store))
        await asyncio.sleep(0.2)
        assert not writing.done()
        assert await store.read(lambda tx: tx.agents.all()) == []
        other.execute("COMMIT")
        other.close()
        assert (await writing).name == "simple"


HOLDER = """
import asyncio, sys
from pathlib import Path
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock
async def main():
    store = Store.from_settings(Settings(data_dir=Path(sys.argv[1])), SystemClock())
    await store.open()
    await store.acquire_ownership("host:proc_1")
    print("held", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_data_folder_has_one_server_at_a_time(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        async with open_store("sqlite", tmp_path) as store:
            with pytest.raises(ConfigurationError, match="host:proc_1") as refused:
                await store.acquire_ownership("host:proc_2")
            assert "AUTOMAGIK_DATA_DIR" in (refused.value.hint or "")
            await make_agent(store)
            holder.kill()
            await asyncio.to_thread(holder.wait)
            await store.acquire_ownership("host:proc_2")
            second = Store.from_settings(Settings(data_dir=tmp_path), SystemClock())
            with pytest.raises(ConfigurationError, match="host:proc_2"):
                await second.acquire_ownership("host:proc_3")
        await second.acquire_ownership("host:proc_3")
        await second.close()


async def test_a_folder_that_can_not_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "automagik.db").write_text("this is no database, but it is long enough to look at" * 30)
    for folder in (tmp_path / "file", tmp_path / "data"):
        store = Store.from_settings(Settings(data_dir=folder), SystemClock())
        with pytest.raises(ConfigurationError) as refused:
            await store.open()
        assert "AUTOMAGIK_DATA_DIR" in (refused.value.hint or "")


async def test_a_data_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    async with open_store("sqlite", tmp_path / "new" / "data"):
        assert (tmp_path / "new" / "data").stat().st_mode & 0o077 == 0
        assert (tmp_path / "new" / "data" / "automagik.db").stat().st_mode & 0o077 == 0


async def test_a_full_disk_is_unavailable_loses_nothing_and_passes(tmp_path: Path) -> None:
    async with open_store("sqlite", tmp_path) as store:
        await make_agent(store)
        pages = await store.read(lambda tx: tx.connection.scalar(text("PRAGMA page_count")))
        await store.write(lambda tx: tx.connection.execute(text(f"PRAGMA max_page_count={pages + 8}")).all())
        big = "x" * 100_000
        works = [store.begin_run(begin(input_json=f'{{"m":"{big}"}}' if n == 5 else "{}")) for n in range(10)]
        results: list[object] = [*await asyncio.gather(*works, return_exceptions=True)]
        assert isinstance(results[5], ServiceUnavailable)
        assert all(isinstance(result, ServiceUnavailable | BegunRun) for result in results)
        told = {result.run_id for result in results if isinstance(result, BegunRun)}
        assert {row.run_id for row in (await store.read(lambda tx: tx.runs.list())).data} == told
        await store.write(lambda tx: tx.connection.execute(text("PRAGMA max_page_count=1000000")).all())
        await store.begin_run(begin())


# -- PostgreSQL alone


async def test_a_server_that_goes_is_unavailable_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    with PostgresServer() as server:
        async with open_store("postgresql", tmp_path, server=server) as store:
            await make_agent(store)
            await store.begin_run(begin())
            server.break_connections()
            results = [
                await _outcome(store.write(lambda tx: tx.agents.all())),
                await _outcome(store.begin_run(begin())),
                await _outcome(store.check()),
            ]
            assert set(results) <= {"done", "unavailable"}
            await store.begin_run(begin())
            await make_agent(store, "other")
            await store.check()


async def test_no_write_meets_a_connection_that_was_cut_while_it_rested(tmp_path: Path) -> None:
    def pid(tx: Transaction) -> int:
        return tx.connection.scalar(text("SELECT pg_backend_pid() FROM pg_sleep(0.05)")) or 0

    async def at_once() -> set[int]:
        return set(await asyncio.gather(*(store.write(pid) for _ in range(3))))

    with PostgresServer() as server:
        async with open_store("postgresql", tmp_path, server=server) as store:
            known = await at_once()
            assert len(known) == 3
            for seconds in (0.1, 1.2):  # used just now; and so long ago that the server is asked
                assert await at_once() == known
                server.break_connections()
                await asyncio.sleep(seconds)
                anew = await at_once()
                assert anew.isdisjoint(known)
                known = anew
            await asyncio.sleep(1.2)
            assert await at_once() == known, "nothing was wrong with them"


async def test_a_read_whose_connection_is_cut_begins_again_once(tmp_path: Path) -> None:
    with PostgresServer() as server:
        async with open_store("postgresql", tmp_path, server=server) as store:
            begun: list[int] = []

            def wait(tx: Transaction, cuts: int) -> int:
                begun.append(tx.connection.scalar(text("SELECT pg_backend_pid()")) or 0)
                if len(begun) <= cuts:
                    server.break_connections()
                return tx.connection.scalar(text("SELECT 7")) or 0

            assert await store.read(lambda tx: wait(tx, 1)) == 7
            assert len(set(begun)) == 2, "on a connection of its own"
            begun.clear()
            with pytest.raises(ServiceUnavailable):
                await store.read(lambda tx: wait(tx, 2))
            assert len(begun) == 2


async def _outcome(use: object) -> str:
    try:
        await cast("asyncio.Future[object]", use)
    except ServiceUnavailable:
        return "unavailable"
    return "done"


@pytest.mark.parametrize(
    "url", ["postgresql://127.0.0.1:1/none", "postgresql://h:x/y", "none", "mysql://127.0.0.1:1/x"]
)
async def test_a_database_url_that_leads_nowhere_is_a_configuration_error(url: str) -> None:
    store = Store.from_settings(Settings(database_url=SecretStr(url)), SystemClock())
    with pytest.raises(ConfigurationError) as refused:
        await store.open()
    assert "AUTOMAGIK_DATABASE_URL" in refused.value.detail


def _connections(tx: Transaction) -> int:
    count = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    return tx.connection.scalar(count) or 0


async def test_connections_stay_within_the_pool(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url = postgres_server.create_database()
    for size in (2, 3, 8):
        settings = Settings(data_dir=tmp_path, database_url=SecretStr(url), database_pool_size=size)
        store = Store.from_settings(settings, SystemClock())
        await store.open()
        works = [store.read(lambda tx: tx.connection.execute(text("SELECT pg_sleep(0.02)"))) for _ in range(20)]
        await asyncio.gather(*works, *(store.begin_run(begin()) for _ in range(40)))
        assert await store.read(_connections) <= size
        await store.close()
    postgres_server.drop_database(url)


async def test_stores_that_start_at_once_register_the_same_agents_and_users(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.create_database()
    settings = Settings(data_dir=tmp_path, database_url=SecretStr(url), database_pool_size=20)
    store = Store.from_settings(settings, SystemClock())
    await store.open()

    def work(tx: Transaction) -> tuple[int, int]:
        agent = tx.agents.register("simple", type="t", source="code", config={"a": 1})
        tx.users.ensure(uuid.UUID(int=1))
        tx.connection.execute(text("SELECT pg_sleep(0.02)"))
        return agent.id, agent.revision

    assert len(set(await asyncio.gather(*(store.write(work) for _ in range(15))))) == 1
    agent = await store.read(lambda tx: tx.agents.get("simple"))
    puts = [store.write(lambda tx, n=n: tx.memories.put("tone", f"{n}", agent_id=agent.id)) for n in range(15)]
    assert len({memory.memory_id for memory in await asyncio.gather(*puts)}) == 1
    await store.close()
    postgres_server.drop_database(url)


async def test_stores_of_two_processes_that_make_one_session_agree(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.create_database()
    settings = Settings(data_dir=tmp_path, database_url=SecretStr(url))
    stores = [Store.from_settings(settings, SystemClock()) for _ in range(3)]
    for store in stores:
        await store.open()

    for name in ("a", "b", "c"):
        begun = await asyncio.gather(
            *(
                store.begin_run(begin(session_id=uuid.uuid4(), session_name=name, user_id=uuid.UUID(int=7)))
                for store in stores * 10
            )
        )
        assert len({run.session_id for run in begun}) == 1
    for store in stores:
        await store.close()
    postgres_server.drop_database(url)
