import asyncio
from datetime import timedelta

import pytest

from automagik.store import Store, schema

pytestmark = pytest.mark.anyio


async def test_hits_are_counted_together_however_many_come_at_once(store: Store) -> None:
    windows = await asyncio.gather(*(store.write(lambda tx: tx.rates.hit("key_1:86400", 86_400)) for _ in range(20)))
    assert sorted(window.hits for window in windows) == list(range(1, 21))
    assert all(0 < window.seconds_left <= 86_400 for window in windows)
    assert (await store.write(lambda tx: tx.rates.hit("key_1:86400", 86_400, 5))).hits == 25
    assert (await store.write(lambda tx: tx.rates.hit("key_2:86400", 86_400))).hits == 1


async def test_a_window_ends_and_another_begins_with_nothing_counted(store: Store) -> None:
    first = await store.write(lambda tx: tx.rates.hit("key_1:1", 1))
    await asyncio.sleep(first.seconds_left + 0.01)
    assert (await store.write(lambda tx: tx.rates.hit("key_1:1", 1))).hits == 1


async def test_counters_are_forgotten_when_their_window_is_long_over(store: Store) -> None:
    await store.write(lambda tx: tx.rates.hit("key_1:60", 60))
    await store.write(lambda tx: tx.rates.hit("key_2:60", 60))
    assert await store.write(lambda tx: tx.rates.forget_expired()) == 0
    ended = schema.rate_counters.update().where(schema.rate_counters.c.name == "key_1:60")
    await store.write(lambda tx: tx.connection.execute(ended.values(expires_at=tx.now - timedelta(seconds=1))))
    assert await store.write(lambda tx: tx.rates.forget_expired()) == 1
    assert (await store.write(lambda tx: tx.rates.hit("key_2:60", 60))).hits == 2
