import asyncio
from collections.abc import Sequence

import pytest

from automagik.errors import ServiceUnavailable
from automagik.events import EventStream, RunEvent, Subscription
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio


class Sink:
    """Stores events when the gate is open; fails while `away`, takes none where the run is not `is_ours`."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.gate = asyncio.Event()
        self.away = False
        self.is_ours = True

    async def __call__(self, run_id: str, events: Sequence[RunEvent]) -> bool:
        await self.gate.wait()
        if self.away:
            raise ServiceUnavailable("The store is away.")
        if self.is_ours:
            self.stored += [event.seq or 0 for event in events]
        return self.is_ours


def short(events: Sequence[RunEvent]) -> list[object]:
    return [(event.seq, event.type) if event.seq else event.data["text"] for event in events]


async def pending(subscription: Subscription) -> list[object]:
    async with asyncio.timeout(10):
        return short(await anext(subscription))


async def nothing_comes(subscription: Subscription) -> bool:
    try:
        async with asyncio.timeout(0.05):
            await anext(subscription)
    except TimeoutError:
        return True
    return False


async def test_deltas_that_come_together_leave_together_as_one() -> None:
    stream = EventStream("run_1", SystemClock(), Sink())
    reader = stream.subscribe()
    for piece in ("Hel", "lo", "!"):
        stream.delta("text_delta", piece)
    stream.delta("thinking_delta", "hm")
    assert await pending(reader) == ["Hello!", "hm"]


async def test_an_event_is_shown_only_when_it_is_stored_and_what_comes_later_waits_behind_it() -> None:
    sink = Sink()
    stream = EventStream("run_1", SystemClock(), sink)
    reader = stream.subscribe()
    stream.publish("tool_call", {})
    stream.delta("text_delta", "later")
    assert await nothing_comes(reader)
    sink.gate.set()
    assert await pending(reader) == [(1, "tool_call"), "later"]
    assert sink.stored == [1]


async def test_a_completed_message_is_left_for_the_end_of_the_run_to_store() -> None:
    sink = Sink()
    sink.gate.set()
    stream = EventStream("run_1", SystemClock(), sink)
    reader = stream.subscribe()
    stream.publish("message_completed", {"text": "Hello"})
    left = await stream.settle()
    assert [event.type for event in left] == ["message_completed"]
    assert sink.stored == []
    stream.release()
    assert await pending(reader) == [(1, "message_completed")]


async def test_a_completed_message_that_nothing_follows_is_seen_soon_all_the_same() -> None:
    sink = Sink()
    sink.gate.set()
    stream = EventStream("run_1", SystemClock(), sink)
    reader = stream.subscribe()
    stream.publish("message_completed", {"text": "Hello"})
    assert await pending(reader) == [(1, "message_completed")]
    assert await stream.settle() == []
    stream.publish("usage", {})
    stream.close()
    await asyncio.sleep(0.1)
    assert sink.stored == [1]


async def test_events_that_a_store_that_is_away_refuses_are_kept_for_the_end_of_the_run() -> None:
    sink = Sink()
    sink.gate.set()
    sink.away = True
    stream = EventStream("run_1", SystemClock(), sink)
    stream.publish("tool_call", {})
    stream.publish("tool_result", {})
    await asyncio.sleep(0)
    assert [event.seq for event in await stream.settle()] == [1, 2]


async def test_a_late_reader_gets_what_is_stored_then_the_text_so_far_then_what_comes() -> None:
    sink = Sink()
    sink.gate.set()
    stream = EventStream("run_1", SystemClock(), sink)
    stream.show([stream.next("run_started", {})])
    stream.delta("text_delta", "Hel")
    stream.delta("text_delta", "lo")
    late = stream.subscribe(after=0)
    later = stream.subscribe(after=1)
    stream.delta("text_delta", " you")
    assert await pending(late) == [(1, "run_started"), "Hello", " you"]
    assert await pending(later) == ["Hello", " you"]


async def test_readers_end_when_the_stream_closes_and_leaving_early_harms_nobody() -> None:
    stream = EventStream("run_1", SystemClock(), Sink())
    stays, leaves = stream.subscribe(), stream.subscribe()
    await leaves.aclose()
    stream.delta("text_delta", "bye")
    stream.close()
    assert [short(batch) async for batch in stays] == [["bye"]]
    assert [batch async for batch in leaves] == []


async def test_nothing_is_shown_that_the_store_did_not_take_because_the_run_is_anothers_by_now() -> None:
    sink = Sink()
    sink.is_ours = False
    sink.gate.set()
    stream = EventStream("run_1", SystemClock(), sink)
    reader = stream.subscribe()
    stream.publish("tool_call", {})
    stream.delta("text_delta", "late")
    assert [batch async for batch in reader] == []
    assert stream.closed
