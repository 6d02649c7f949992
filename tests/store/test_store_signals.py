import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, cast

import pytest

from automagik.settings import Settings
from automagik.store import Store
from automagik.store.signals import Signals
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of these tests' own, for they break its connections."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def settings(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[Settings]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        yield settings


@pytest.fixture
async def signals(settings: Settings) -> AsyncIterator[Signals]:
    """The signals of one process that hears others."""
    async with AsyncExitStack() as stack:
        yield await _open(settings, stack)


async def _open(settings: Settings, stack: AsyncExitStack) -> Signals:
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    stack.push_async_callback(store.close)
    await store.signals.open()
    return store.signals


class Heard(list[str]):
    """What was heard, and a way to wait for it."""

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(40):
            while len(self) < count:
                await asyncio.sleep(0.005)
        return list(self)


async def test_who_listens_to_a_topic_hears_its_texts_in_the_order_in_which_they_were_sent(signals: Signals) -> None:
    heard, others = Heard(), Heard()
    signals.listen("work", heard.append)
    signals.listen("other", others.append)
    await signals.send("work")
    await asyncio.gather(*(signals.send("work", f"number {number}") for number in range(250)))
    assert await heard.until(251) == ["", *(f"number {number}" for number in range(250))]
    assert others == []


async def test_who_has_left_hears_nothing_more(signals: Signals) -> None:
    heard, stays = Heard(), Heard()
    leave = signals.listen("work", heard.append)
    signals.listen("work", stays.append)
    await signals.send("work", "first")
    await stays.until(1)
    leave()
    leave()
    await signals.send("work", "second")
    assert await stays.until(2) == ["first", "second"]
    assert heard == ["first"]


async def test_what_is_too_long_or_no_topic_is_refused_before_it_is_sent(signals: Signals) -> None:
    with pytest.raises(ValueError, match="bytes"):
        await signals.send("work", "ü" * (signals.largest // 2))
    with pytest.raises(ValueError, match="one word"):
        await signals.send("two words", "text")
    heard = Heard()
    signals.listen("work", heard.append)
    longest = "ü" * ((signals.largest - 6) // 2)
    await signals.send("work", longest)
    assert await heard.until(1) == [longest]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_processes_on_one_database_hear_each_other(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        one, other = await _open(settings, stack), await _open(settings, stack)
        heard, own = Heard(), Heard()
        other.listen("work", heard.append)
        one.listen("work", own.append)
        await one.send("work", "from one")
        assert await heard.until(1) == await own.until(1) == ["from one"]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_after_its_connection_was_broken_a_process_is_told_of_the_gap_and_hears_again(
    settings: Settings, postgres_server: PostgresServer
) -> None:
    async with AsyncExitStack() as stack:
        signals, other = await _open(settings, stack), await _open(settings, stack)
        heard, gaps = Heard(), Heard()
        signals.listen("work", heard.append)
        signals.on_gap(lambda: gaps.append("gap"))
        postgres_server.break_connections()
        assert await gaps.until(1) == ["gap"]
        await other.send("work", "after")
        assert await heard.until(1) == ["after"]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_a_process_that_hears_nobody_sends_all_the_same(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        signals = await _open(settings, stack)
        heard = Heard()
        signals.listen("work", heard.append)
        deaf = Store.from_settings(settings, SystemClock())
        await deaf.open()
        stack.push_async_callback(deaf.close)
        await deaf.signals.send("work", "from a deaf one")
        assert await heard.until(1) == ["from a deaf one"]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_a_signal_that_cannot_be_sent_is_not_its_senders_failure(settings: Settings) -> None:
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    await store.close()
    async with asyncio.timeout(20):
        await store.signals.send("work")
