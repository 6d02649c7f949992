import asyncio
import random
from collections.abc import Iterator

import pytest
from event_house import Instance, LiveRun, OpenInstance, Reader, SentSignals, begin_run

from automagik.events import Looked
from automagik.store.signals import Signals
from automagik.testing.postgres import PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of these tests' own, for they break its connections."""
    with PostgresServer() as server:
        yield server


elsewhere = pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
"""Instances are several only on PostgreSQL."""


async def test_a_reader_of_a_run_that_is_alive_here_gets_its_events_its_text_and_its_end(
    open_one: OpenInstance,
) -> None:
    here = await open_one()
    run = await begin_run(here)
    reader = here.read(run.run_id)
    run.say("Hel")
    run.say("lo")
    await reader.until(lambda it: it.text == "Hello")
    await run.happen("message_completed", {"text": "Hello"})
    await run.finish()
    assert await reader.end() == [1, 2, 3]


async def test_a_reader_of_a_run_that_has_ended_gets_what_is_stored_from_anywhere(open_one: OpenInstance) -> None:
    here = await open_one()
    run = await begin_run(here)
    await run.happen("tool_call")
    await run.finish()
    for after, seqs in ((0, [1, 2, 3]), (1, [2, 3]), (2, [3])):
        assert await here.read(run.run_id, after=after).end() == seqs


async def test_a_reader_waits_for_a_run_that_nobody_carries_out_yet(open_one: OpenInstance) -> None:
    here = await open_one()
    run = await begin_run(here)
    run.leave()
    reader = here.read(run.run_id)
    await reader.until(lambda it: it.seqs == [1])
    again = LiveRun(here, run.run_id)
    again.say("now")
    await reader.until(lambda it: it.text == "now", 1)
    await again.finish()
    assert await reader.end() == [1, 2]


@elsewhere
async def test_a_reader_elsewhere_gets_every_stored_event_once_in_order_then_the_text_so_far_then_what_comes(
    open_one: OpenInstance,
) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    await run.happen("tool_call")
    run.say("It was ")
    run.say("a dark ")
    reader = there.read(run.run_id)
    await reader.until(lambda it: it.text == "It was a dark ")
    assert reader.kinds == ["run_started", "tool_call", "text_snapshot"]
    for word in ("and ", "stormy ", "night."):
        run.say(word)
        await asyncio.sleep(0.01)
    await reader.until(lambda it: it.text == "It was a dark and stormy night.")
    assert set(reader.kinds[3:]) == {"text_delta"}
    await run.happen("message_completed", {"text": "It was a dark and stormy night."})
    run.say("The end")
    await reader.until(lambda it: it.text == "The end")
    await run.finish()
    assert await reader.end() == [1, 2, 3, 4]
    assert reader.kinds.count("text_snapshot") == 1


@elsewhere
async def test_a_reader_elsewhere_goes_on_from_any_place(open_one: OpenInstance) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    for _ in range(3):
        await run.happen("tool_call")
    readers = [there.read(run.run_id, after=after) for after in range(5)]
    await asyncio.sleep(0.1)
    await run.happen("tool_result")
    await run.finish()
    for after, reader in enumerate(readers):
        assert await reader.end() == list(range(after + 1, 7))


@elsewhere
async def test_text_with_any_character_and_of_any_length_arrives_as_it_is(open_one: OpenInstance) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    before = '\x01"\\ü€😀\n' * 4_000
    run.say(before)
    reader = there.read(run.run_id)
    await reader.until(lambda it: it.text == before)
    more = "😀" * 9_000
    run.say(more)
    await reader.until(lambda it: it.text == before + more)
    assert reader.kinds.count("text_snapshot") == 1


@elsewhere
async def test_many_readers_that_come_at_any_moment_see_the_same_text_and_the_same_events(
    open_one: OpenInstance,
) -> None:
    here, there, elsewhere = await open_one(), await open_one(), await open_one()
    run = await begin_run(here)
    chance = random.Random(7)
    readers: list[Reader] = []
    written = ""
    for place in range(200):
        word = f"word{place} "
        written += word
        run.say(word)
        if place % 40 == 39:
            for reader in readers:
                await reader.until(lambda it, written=written: it.text == written)
            await run.happen("message_completed", {"text": written})
            written = ""
        if place % 10 == 0:
            readers.append(chance.choice((there, elsewhere)).read(run.run_id))
        await asyncio.sleep(chance.random() / 100)
    await run.finish()
    for reader in readers:
        assert await reader.end() == list(range(1, 8))


@elsewhere
async def test_nothing_is_missed_when_every_connection_is_broken_again_and_again(
    open_one: OpenInstance, postgres_server: PostgresServer
) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    reader = there.read(run.run_id)
    await reader.until(lambda it: it.seqs == [1])
    for place in range(1, 13):
        run.say("a")
        if place % 3 == 0:
            postgres_server.break_connections()
        await run.happen("tool_call")
    run.say("b")
    await reader.until(lambda it: it.text == "a" * 12 + "b", 20)
    await run.finish()
    assert await reader.end() == list(range(1, 15))


@elsewhere
async def test_another_attempt_at_a_run_replaces_the_text_that_the_first_left_unfinished(
    open_one: OpenInstance,
) -> None:
    here, there, later = await open_one(), await open_one(), await open_one()
    run = await begin_run(here)
    reader = there.read(run.run_id)
    run.say("First try")
    await reader.until(lambda it: it.text == "First try")
    run.leave()
    await run.happen("run_queued")
    second = LiveRun(later, run.run_id, last_seq=2)
    second.say("Second ")
    await reader.until(lambda it: it.text == "Second ")
    second.say("try")
    await reader.until(lambda it: it.text == "Second try")
    run.say(" that comes too late")
    await second.finish()
    assert await reader.end() == [1, 2, 3]


@elsewhere
async def test_a_run_that_comes_to_life_where_it_is_read_goes_on_there(open_one: OpenInstance) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    reader = there.read(run.run_id)
    await reader.until(lambda it: it.seqs == [1])
    run.leave()
    second = LiveRun(there, run.run_id)
    await second.happen("tool_call")
    second.say("here")
    await reader.until(lambda it: it.text == "here")
    await second.finish()
    assert await reader.end() == [1, 2, 3]


@elsewhere
async def test_a_run_that_nobody_watches_from_elsewhere_sends_nothing(open_one: OpenInstance) -> None:
    channels: list[SentSignals] = []

    def recorded(signals: Signals) -> SentSignals:
        channels.append(SentSignals(signals))
        return channels[-1]

    here, there = await open_one(recorded), await open_one()
    run = await begin_run(here)
    local = here.read(run.run_id)
    await local.until(lambda it: it.seqs == [1])  # from the store: until then it asks, where signals may have been lost
    channels[0].sent.clear()
    run.say("quiet")
    await run.happen("tool_call")
    await asyncio.sleep(0.1)
    assert channels[0].sent == []
    reader = there.read(run.run_id)
    await reader.until(lambda it: it.text == "quiet")
    await reader.aclose()
    await asyncio.sleep(0.2)
    before = len(channels[0].sent)
    for _ in range(5):
        run.say("loud")
        await run.happen("tool_call")
    await asyncio.sleep(0.2)
    assert before > 0
    assert len(channels[0].sent) == before
    await local.aclose()


@elsewhere
async def test_a_reader_whose_signals_are_all_lost_finds_the_events_by_looking(open_one: OpenInstance) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    await _mute(here)
    reader = there.read(run.run_id)
    await run.happen("tool_call")
    await reader.until(lambda it: it.seqs == [1, 2], 5)
    await run.finish()
    assert await reader.end() == [1, 2, 3]


async def _mute(instance: Instance) -> None:
    await instance.bus.close()


@elsewhere
async def test_readers_are_let_go_when_their_server_stops_and_can_go_on_elsewhere(open_one: OpenInstance) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    reader = there.read(run.run_id)
    await reader.until(lambda it: it.seqs == [1])
    there.bus.stop_watching()
    assert await reader.end() == [1]
    await run.happen("tool_call")
    going_on = here.read(run.run_id, after=1)
    await run.finish()
    assert await going_on.end() == [2, 3]


@elsewhere
async def test_a_reader_elsewhere_looks_into_the_store_only_for_what_it_was_not_sent(open_one: OpenInstance) -> None:
    here, there = await open_one(), await open_one()
    run = await begin_run(here)
    looks: list[int] = []

    async def look(run_id: str, after: int) -> Looked:
        looks.append(after)
        return await there.look(run_id, after)

    seqs: list[int] = []

    async def read() -> None:
        async for batch in there.bus.watch(run.run_id, 0, look):
            seqs.extend(event.seq for event in batch if event.seq is not None)

    reading = asyncio.create_task(read())
    while seqs != [1]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    for _ in range(5):
        await run.happen("tool_call", {"args": "short"})
    while seqs[-1] != 6:
        await asyncio.sleep(0.01)
    assert looks == [0]
    await run.happen("tool_result", {"content": "x" * 20_000})
    await run.finish()
    async with asyncio.timeout(20):
        await reading
    assert seqs == list(range(1, 9))
    assert looks == [0, 6]
