"""Instances that share a database, runs that are alive on one of them, and readers on any."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import orjson

from automagik.errors import ServiceUnavailable
from automagik.events import EventBus, EventStream, Looked, RunEvent
from automagik.settings import Settings
from automagik.store import BeginRun, FinishRun, NewEvent, Store
from automagik.store.signals import Signals
from automagik.types import JsonObject, SystemClock, new_id

__all__ = ["Instance", "LiveRun", "OpenInstance", "Reader", "SentSignals", "begin_run", "open_instance"]

CLOCK = SystemClock()

T = TypeVar("T")


@dataclass
class Instance:
    """One process's part of the house: its store, its signals and its bus."""

    store: Store
    bus: EventBus

    async def look(self, run_id: str, after: int) -> Looked:
        """What the store has of a run."""
        rows = await self.store.read(lambda tx: tx.events.list(run_id, after=after))
        events = [RunEvent(row.run_id, row.seq, row.type, row.at, row.data) for row in rows]
        return Looked(events, bool(events) and events[-1].type == "run_finished")

    def read(self, run_id: str, *, after: int = 0) -> "Reader":
        """A reader of a run on this instance."""
        return Reader(self, run_id, after)


OpenInstance = Callable[..., Awaitable[Instance]]
"""Opens instances on one database; it may be given what makes their signals of the store's."""


@asynccontextmanager
async def open_instance(
    settings: Settings, channel: Callable[[Signals], Signals] | None = None
) -> AsyncGenerator[Instance]:
    """An instance; `channel` makes its signals of the store's."""
    async with AsyncExitStack() as stack:
        store = Store.from_settings(settings, CLOCK)
        await store.open()
        stack.push_async_callback(store.close)
        await store.signals.open()
        signals = store.signals if channel is None else channel(store.signals)
        if channel is not None:
            await signals.open()
            stack.push_async_callback(signals.close)
        bus = EventBus(store, signals=signals, clock=CLOCK)
        await bus.open()
        stack.push_async_callback(bus.close)
        yield Instance(store, bus)


@dataclass
class LiveRun:
    """A run that is alive on an instance."""

    instance: Instance
    run_id: str
    stream: EventStream = field(init=False)
    last_seq: int = 1

    def __post_init__(self) -> None:
        self.stream = EventStream(self.run_id, CLOCK, self._store, last_seq=self.last_seq)
        self.instance.bus.add(self.stream)

    async def _store(self, run_id: str, events: Sequence[RunEvent]) -> bool:
        stored = [
            NewEvent(seq=event.seq or 0, type=event.type, at=event.at, data_json=orjson.dumps(event.data).decode())
            for event in events
        ]
        return await _persist(lambda: self.instance.store.append_events(run_id, "me", stored))

    async def happen(self, kind: str, data: JsonObject | None = None) -> None:
        """Store an event, and show it."""
        event = self.stream.next(kind, data or {})
        await self._store(self.run_id, [event])
        self.stream.show([event])

    def say(self, text: str) -> None:
        """Write on at the message under way."""
        self.stream.delta("text_delta", text)

    async def finish(self) -> None:
        """End the run."""
        event = self.stream.next("run_finished", {})
        ending = NewEvent(seq=event.seq or 0, type=event.type, at=event.at, data_json="{}")
        finish = FinishRun(
            run_id=self.run_id,
            owner="me",
            status="completed",
            outcome="completed",
            finished_at=event.at,
            events=[ending],
        )
        await _persist(lambda: self.instance.store.finish_run(finish))
        self.stream.show([event])
        self.leave()

    def leave(self) -> None:
        """Let the run go, finished or not."""
        self.stream.close()
        self.instance.bus.remove(self.run_id)


async def _persist(write: Callable[[], Awaitable[T]]) -> T:
    """What `write` gives, however often the database goes away."""
    while True:
        try:
            return await write()
        except ServiceUnavailable:
            await asyncio.sleep(0.05)


class SentSignals:
    """Signals that remember to which topics they sent."""

    def __init__(self, signals: Signals) -> None:
        self.sent: list[str] = []
        self.largest = signals.largest
        self._signals = signals

    async def open(self) -> None:
        """They are open."""

    async def close(self) -> None:
        """Whoever opened them closes them."""

    def listen(self, topic: str, heard: Callable[[str], None]) -> Callable[[], None]:
        return self._signals.listen(topic, heard)

    def on_gap(self, missed: Callable[[], None]) -> Callable[[], None]:
        return self._signals.on_gap(missed)

    async def send(self, topic: str, text: str = "") -> None:
        self.sent.append(topic)
        await self._signals.send(topic, text)


async def begin_run(instance: Instance) -> LiveRun:
    """A run that has begun on `instance`; its first event is stored."""
    run_id = new_id("run")
    await instance.store.begin_run(
        BeginRun(run_id=run_id, kind="agent", name="simple", created_at=datetime.now(UTC), owner="me")
    )
    return LiveRun(instance, run_id)


class Reader:
    """Reads in the background; `seen` is all that came, `text` what a person has before their eyes of the message under way."""

    def __init__(self, instance: Instance, run_id: str, after: int) -> None:
        self.seen: list[RunEvent] = []
        self.text = ""
        self._batches = instance.bus.watch(run_id, after, instance.look)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for batch in self._batches:
            for event in batch:
                self.seen.append(event)
                if event.type == "message_completed":
                    self.text = ""
                elif event.type == "text_snapshot":
                    self.text = str(event.data["text"])
                elif event.type == "text_delta":
                    self.text += str(event.data["text"])

    @property
    def seqs(self) -> list[int]:
        """The stored events that came, by their `seq`."""
        return [event.seq for event in self.seen if event.seq is not None]

    @property
    def kinds(self) -> list[str]:
        """The types of all that came."""
        return [event.type for event in self.seen]

    async def until(self, holds: Callable[["Reader"], bool], seconds: float = 40) -> None:
        """Wait until something holds of what came."""
        async with asyncio.timeout(seconds):
            while not holds(self):
                await asyncio.sleep(0.002)

    async def end(self) -> list[int]:
        """Wait until the reading has ended by itself; the `seq`s that came."""
        async with asyncio.timeout(40):
            await self.task
        return self.seqs

    async def aclose(self) -> None:
        """Stop reading."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self._batches.aclose()
