"""Executors: their rows, who may end them, and what they leave in DBOS's tables."""

import asyncio
from collections.abc import Iterator

import pytest
from store_samples import begin

from automagik.errors import Conflict, ServiceUnavailable
from automagik.store import Store
from automagik.store.executors import ExecutorRow
from automagik.store.heart import HeartLine
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import SystemClock, new_id

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of these tests' own, for they break its connections."""
    with PostgresServer() as server:
        yield server


async def register(store: Store, host: str = "here") -> ExecutorRow:
    return await store.write(
        lambda tx: tx.executors.register(new_id("exec"), host=host, role="worker", version="1.2.3")
    )


async def find(store: Store, executor_id: str) -> ExecutorRow:
    found = await store.read(lambda tx: tx.executors.find(executor_id))
    assert found is not None
    return found


async def test_an_executor_that_registers_is_living_until_it_is_lost_or_retires(store: Store) -> None:
    first, second = await register(store), await register(store)
    assert (first.host, first.role, first.version, first.lost_at) == ("here", "worker", "1.2.3", None)
    living = await store.read(lambda tx: tx.executors.living())
    assert living == {first.executor_id: first.beat_at, second.executor_id: second.beat_at}
    assert await store.write(lambda tx: tx.executors.retire(first.executor_id))
    assert not await store.write(lambda tx: tx.executors.retire(first.executor_id)), "it had ended"
    ended = await find(store, first.executor_id)
    assert ended.lost_at is not None
    assert ended.lost_to == first.executor_id
    every = await store.read(lambda tx: tx.executors.find_all())
    assert [row.executor_id for row in every] == [second.executor_id, first.executor_id]
    assert await store.read(lambda tx: tx.executors.find_all(living=True)) == [second]


async def test_who_takes_no_work_is_known_while_it_lives_and_then_until_another_comes_to_its_host(store: Store) -> None:
    async def faulty() -> list[tuple[str, str | None]]:
        return [(row.executor_id, row.fault) for row in await store.read(lambda tx: tx.executors.faulty())]

    first, other = await register(store, "b"), await register(store, "a")
    assert (first.fault, await faulty()) == (None, [])
    for each in (first, other):
        assert await store.write(lambda tx, each=each: tx.executors.tell_fault(each.executor_id, "No Docker."))
    assert await faulty() == [(other.executor_id, "No Docker."), (first.executor_id, "No Docker.")]
    await store.write(lambda tx: tx.executors.tell_fault(other.executor_id, None))
    await store.write(lambda tx: tx.executors.retire(first.executor_id))
    assert not await store.write(lambda tx: tx.executors.tell_fault(first.executor_id, "Never.")), "it has ended"
    front = new_id("exec")
    await store.write(lambda tx: tx.executors.register(front, host="b", role="api", version="1.2.3"))
    assert await faulty() == [(first.executor_id, "No Docker.")], "one that only answers is no worker in its place"
    await register(store, "b")
    assert await faulty() == []


async def test_an_id_is_never_used_twice(store: Store) -> None:
    executor = await register(store)
    await store.write(lambda tx: tx.executors.retire(executor.executor_id))
    with pytest.raises(Conflict, match=executor.executor_id):
        await store.write(
            lambda tx: tx.executors.register(executor.executor_id, host="here", role="api", version="1.2.3")
        )


async def test_a_beat_moves_the_row_on_and_one_that_ended_beats_no_more(store: Store) -> None:
    executor = await register(store)
    assert await store.write(lambda tx: tx.executors.beat(executor.executor_id))
    assert (await find(store, executor.executor_id)).beat_at > executor.beat_at
    await store.write(lambda tx: tx.executors.retire(executor.executor_id))
    assert not await store.write(lambda tx: tx.executors.beat(executor.executor_id))
    assert not await store.write(lambda tx: tx.executors.beat("exec_unknown"))


async def test_only_the_beat_that_was_seen_standing_still_can_be_declared_lost(store: Store) -> None:
    executor = await register(store)
    seen = executor.beat_at
    await store.write(lambda tx: tx.executors.beat(executor.executor_id))
    assert not await store.write(lambda tx: tx.executors.lose(executor.executor_id, seen=seen, to="exec_b"))
    seen = (await find(store, executor.executor_id)).beat_at
    declared = await asyncio.gather(
        *(store.write(lambda tx, to=to: tx.executors.lose(executor.executor_id, seen=seen, to=to)) for to in "bcde")
    )
    assert sorted(declared) == [False, False, False, True], "exactly one of them declares it lost"
    lost = await find(store, executor.executor_id)
    assert lost.lost_to == "bcde"[declared.index(True)]


async def test_one_without_a_living_row_may_be_taken_over_whoever_it_was(store: Store) -> None:
    executor = await register(store)
    assert await store.write(lambda tx: tx.executors.lose("exec_of_another_database", seen=None, to="exec_b"))
    assert not await store.write(lambda tx: tx.executors.lose(executor.executor_id, seen=None, to="exec_b"))
    await store.write(lambda tx: tx.executors.retire(executor.executor_id))
    assert await store.write(lambda tx: tx.executors.lose(executor.executor_id, seen=None, to="exec_b"))


async def test_who_owns_the_data_folder_alone_ends_all_others(store: Store) -> None:
    first, second, third = [await register(store) for _ in range(3)]
    await store.write(lambda tx: tx.executors.retire(first.executor_id))
    ended = await store.write(lambda tx: tx.executors.lose_others(third.executor_id))
    assert ended == [second.executor_id]
    assert list(await store.read(lambda tx: tx.executors.living())) == [third.executor_id]
    assert (await find(store, second.executor_id)).lost_to == third.executor_id


async def test_a_host_is_seen_while_any_of_its_executors_beats(store: Store) -> None:
    await register(store, "there")
    first, second = await register(store), await register(store)
    await store.write(lambda tx: tx.executors.beat(first.executor_id))
    latest = (await find(store, first.executor_id)).beat_at
    assert latest > second.beat_at
    assert await store.read(lambda tx: tx.executors.host_seen_at("here")) == latest
    assert await store.read(lambda tx: tx.executors.host_seen_at("nowhere")) is None


async def test_where_dbos_has_no_tables_there_is_nothing_to_forget(store: Store) -> None:
    assert await store.write(lambda tx: tx.executors.forget_workflows()) == 0


# -- the line of the heart: PostgreSQL only


async def test_a_beat_over_the_line_moves_the_row_and_shows_all_who_live(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with fresh_settings("postgresql", tmp_path_factory.mktemp("data"), server=postgres_server) as settings:
        assert settings.database_url is not None
        url = settings.database_url.get_secret_value()
        store = Store.from_settings(settings, SystemClock())
        await store.open()
        mine, other = await register(store), await register(store)
        line = HeartLine(url, mine.executor_id)
        try:
            first = await line.beat()
            second = await line.beat()
            assert first.alive
            assert second.alive
            assert first.beats.keys() == second.beats.keys() == {mine.executor_id, other.executor_id}
            assert mine.beat_at < first.beats[mine.executor_id] < second.beats[mine.executor_id]
            assert first.beats[other.executor_id] == second.beats[other.executor_id] == other.beat_at
            assert (await find(store, mine.executor_id)).beat_at == second.beats[mine.executor_id]

            ended = await register(store)
            for owner in (mine.executor_id, ended.executor_id, "exec_unknown"):
                await store.begin_run(begin(owner=owner))
            await store.write(lambda tx: tx.executors.retire(ended.executor_id))
            assert await line.left_behind() == sorted([ended.executor_id, "exec_unknown"])

            postgres_server.break_connections()
            with pytest.raises(ServiceUnavailable):
                await line.beat()
            assert (await line.beat()).alive, "the next beat makes a new connection"

            await store.write(lambda tx: tx.executors.lose(mine.executor_id, seen=None, to="exec_b"))
            assert (await line.beat()).alive, "it has a living row"
            seen = (await find(store, mine.executor_id)).beat_at
            assert await store.write(lambda tx: tx.executors.lose(mine.executor_id, seen=seen, to=other.executor_id))
            after = await line.beat()
            assert not after.alive
            assert after.beats.keys() == {other.executor_id}
        finally:
            await line.close()
            await store.close()
