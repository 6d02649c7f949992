import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from event_house import OpenInstance, begin_run

from automagik.errors import ConfigurationError
from automagik.events.redis_channel import RedisConnections, RedisSignals
from automagik.store.signals import LocalSignals, Signals
from automagik.testing.valkey import ValkeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
async def channel(valkey: ValkeyServer, anyio_backend: str) -> AsyncIterator[Callable[[Signals], RedisSignals]]:
    """Makes signals by Valkey, over those that it falls back on."""
    made: list[RedisConnections] = []

    def make(fallback: Signals) -> RedisSignals:
        made.append(RedisConnections(valkey.url))
        return RedisSignals(made[-1], fallback)

    yield make
    for connections in made:
        await connections.close()


async def until(holds: Callable[[], object], seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def test_messages_go_by_redis_and_not_by_the_database(channel: Callable[[Signals], RedisSignals]) -> None:
    one, other = channel(LocalSignals()), channel(LocalSignals())
    heard: list[str] = []
    other.listen("work", heard.append)
    await one.open()
    await other.open()
    other.listen("later", heard.append)
    await one.send("work", "ü 1")
    await until(lambda: heard == ["ü 1"])
    await asyncio.sleep(0.1)
    await one.send("later", "2")
    await until(lambda: heard == ["ü 1", "2"])
    await one.close()
    await other.close()


async def test_while_redis_is_away_messages_go_by_the_database_and_its_return_is_told_as_a_gap(
    channel: Callable[[Signals], RedisSignals], valkey: ValkeyServer
) -> None:
    signals = channel(LocalSignals())
    heard: list[str] = []
    gaps: list[str] = []
    signals.listen("work", heard.append)
    await signals.open()
    await signals.send("work", "by redis")
    await until(lambda: heard == ["by redis"])
    signals.on_gap(lambda: gaps.append("gap"))
    valkey.kill()
    await signals.send("work", "by the database")
    await until(lambda: heard == ["by redis", "by the database"])
    valkey.start()
    await until(lambda: gaps)
    await signals.send("work", "by redis again")
    await until(lambda: heard[2:] == ["by redis again"])
    await signals.close()


async def test_a_server_starts_without_its_redis_and_takes_it_up_when_it_comes(
    channel: Callable[[Signals], RedisSignals], valkey: ValkeyServer
) -> None:
    valkey.kill()
    signals = channel(LocalSignals())
    heard: list[str] = []
    gaps: list[str] = []
    signals.listen("work", heard.append)
    signals.on_gap(lambda: gaps.append("gap"))
    await signals.open()
    await signals.send("work", "without")
    await until(lambda: heard == ["without"])
    valkey.start()
    await until(lambda: gaps)
    await signals.close()


async def test_a_url_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="AUTOMAGIK_REDIS_URL"):
        RedisConnections("http://example.test")


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_a_reader_elsewhere_misses_nothing_when_redis_is_killed_in_the_middle_and_comes_back(
    open_one: OpenInstance, channel: Callable[[Signals], RedisSignals], valkey: ValkeyServer
) -> None:
    here, there = await open_one(channel), await open_one(channel)
    run = await begin_run(here)
    reader = there.read(run.run_id)
    written = ""
    for place in range(60):
        if place == 20:
            valkey.kill()
        if place == 40:
            valkey.start()
        word = f"word{place} "
        written += word
        run.say(word)
        if place % 10 == 9:
            await run.happen("tool_call")
        await asyncio.sleep(0.01)
    await reader.until(lambda it: it.text == written)
    await run.finish()
    assert await reader.end() == list(range(1, 9))
