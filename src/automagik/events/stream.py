"""EventStream: the events of one run that is alive in this process, and its subscribers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from automagik.errors import ServiceUnavailable
from automagik.events.event import RunEvent
from automagik.types import Clock, JsonObject

__all__ = ["EventStream", "Reader", "Subscription"]

EventSink = Callable[[str, Sequence[RunEvent]], Awaitable[bool]]
"""Stores events of a run; when it gives True they are durable, when False the run is another process's by now."""

_LAZY = frozenset({"message_completed", "usage"})
"""Types whose storing may wait a little for the next event or for the run's end, which carries them in its own transaction."""
_LAZY_SECONDS = 0.04
"""How long: what a run says is to be seen within 100 ms, also where nothing follows for long."""


class Reader(Protocol):
    """Who looks on at a live run."""

    def push(self, event: RunEvent) -> None:
        """Take a stored event."""
        ...

    def push_delta(self, kind: str, text: str) -> None:
        """Take a piece of text."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


class Subscription:
    """One reader of a live run: an async iterator of batches, each all that came since the last one was taken.

    Deltas of one kind that come while the reader is busy are joined into one, so a slow reader costs one text, not one
    event a token. The iterator ends when the stream closes.
    """

    __slots__ = ("_closed", "_parts", "_parts_type", "_pending", "_stream", "_waiter")

    def __init__(self, stream: "EventStream") -> None:
        self._stream = stream
        self._pending: list[RunEvent] = []
        self._parts: list[str] = []
        self._parts_type = ""
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> AsyncIterator[list[RunEvent]]:
        return self

    async def __anext__(self) -> list[RunEvent]:
        if not self._pending and not self._parts:
            if not self._closed:
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if not self._pending and not self._parts:
                raise StopAsyncIteration
        self._join_parts()
        batch, self._pending = self._pending, []
        return batch

    async def aclose(self) -> None:
        """Stop reading; the run goes on."""
        self._stream.unsubscribe(self)
        self.end()

    def push(self, event: RunEvent) -> None:
        """Add an event to what is pending."""
        self._join_parts()
        self._pending.append(event)
        self._wake()

    def push_delta(self, kind: str, text: str) -> None:
        """Add a piece of text to what is pending."""
        if kind != self._parts_type:
            self._join_parts()
            self._parts_type = kind
        self._parts.append(text)
        self._wake()

    def end(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._wake()

    def _join_parts(self) -> None:
        if self._parts:
            text = self._parts[0] if len(self._parts) == 1 else "".join(self._parts)
            self._pending.append(self._stream.transient(self._parts_type, text))
            self._parts.clear()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EventStream:
    """The events of one live run. An event is stored before anybody sees it; deltas only go to those who look on. It closes
    where the store takes no more of them, because the run is another process's.

    What comes after an event that is still being stored waits behind it, so that every reader sees one order.
    """

    def __init__(self, run_id: str, clock: Clock, sink: EventSink, *, last_seq: int = 0) -> None:
        self.run_id = run_id
        self._clock = clock
        self._sink = sink
        self._seq = last_seq
        self._before = last_seq
        self._shown = last_seq
        self._base = last_seq
        self._log: list[RunEvent] = []
        self._held: list[RunEvent | tuple[str, str]] = []
        self._unstored: list[RunEvent] = []
        self._flush: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._text: list[str] = []
        self._subscribers: list[Reader] = []
        self._closed = False

    @property
    def first_logged(self) -> int:
        """The lowest `seq` that this stream can show; earlier ones are in the store."""
        return self._log[0].seq or 1 if self._log else self._seq + 1

    @property
    def closed(self) -> bool:
        """Whether nothing more comes."""
        return self._closed

    @property
    def attempt(self) -> int:
        """What tells the streams of one run apart: the `seq` after which this one began, more with each attempt."""
        return self._before

    def transient(self, kind: str, text: str) -> RunEvent:
        """An event without a `seq`."""
        return RunEvent(self.run_id, None, kind, self._clock.now(), {"text": text})

    def next(self, kind: str, data: JsonObject) -> RunEvent:
        """Give the next `seq` to an event that the caller itself stores and then hands to `show`."""
        self._seq += 1
        return RunEvent(self.run_id, self._seq, kind, self._clock.now(), data)

    def show(self, events: Sequence[RunEvent]) -> None:
        """Show stored events, in their order, to those who look on."""
        for event in events:
            self._log.append(event)
            self._shown = event.seq or self._shown
            if event.type == "message_completed":
                self._text.clear()
                self._base = self._shown
            for subscriber in self._subscribers:
                subscriber.push(event)

    def publish(self, kind: str, data: JsonObject) -> None:
        """Store an event in the background, then show it."""
        event = self.next(kind, data)
        self._held.append(event)
        self._unstored.append(event)
        if kind not in _LAZY:
            self._store_now()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(_LAZY_SECONDS, self._store_now)

    def delta(self, kind: str, text: str) -> None:
        """Show a piece of text (`text_delta` or `thinking_delta`) to those who look on."""
        if self._held:
            self._held.append((kind, text))
            return
        if kind == "text_delta":
            self._text.append(text)
        for subscriber in self._subscribers:
            subscriber.push_delta(kind, text)

    async def settle(self) -> list[RunEvent]:
        """Wait for what is being stored; the events that are left for the caller to store with the run's end.

        Events whose storing failed because the store was away are among them; any other failure is raised.
        """
        self._stop_waiting()
        if self._flush is not None:
            await asyncio.wait([self._flush])
            error = self._flush.exception()
            if error is not None and not isinstance(error, ServiceUnavailable):
                raise error
        return self._unstored

    def release(self) -> None:
        """Show all that is held back; the caller has stored what `settle` returned."""
        self._unstored = []
        self._release(self._seq)

    def forget_unstored(self) -> None:
        """Drop what could not be stored: the next event follows the last one that was shown."""
        self._stop_waiting()
        self._unstored, self._held, self._flush = [], [], None
        self._seq = self._shown

    def subscribe(self, *, after: int = 0) -> Subscription:
        """Read on after `seq`: logged events first, then the text under way as one `text_snapshot`, then what comes."""
        subscription = Subscription(self)
        for event in self._log:
            if event.seq is not None and event.seq > after:
                subscription.push(event)
        if self._text:
            subscription.push(self.transient("text_snapshot", "".join(self._text)))
        if self._closed:
            subscription.end()
        else:
            self._subscribers.append(subscription)
        return subscription

    def attach(self, reader: Reader) -> tuple[str, int, int]:
        """Tell a reader what comes; the text under way, the `seq` after which its message began, and the last shown."""
        if self._closed:
            reader.end()
        else:
            self._subscribers.append(reader)
        return "".join(self._text), self._base, self._shown

    def unsubscribe(self, reader: Reader) -> None:
        """Forget a reader; unknown ones are fine."""
        if reader in self._subscribers:
            self._subscribers.remove(reader)

    def close(self) -> None:
        """No more events: subscribers get what is pending and end."""
        self._closed = True
        self._stop_waiting()
        for subscriber in self._subscribers:
            subscriber.end()
        self._subscribers.clear()

    def _store_now(self) -> None:
        self._stop_waiting()
        if self._unstored and (self._flush is None or self._flush.done()):
            self._flush = asyncio.get_running_loop().create_task(self._store())

    def _stop_waiting(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    async def _store(self) -> None:
        while self._unstored:
            batch, self._unstored = self._unstored, []
            stored = False
            try:
                is_ours = await self._sink(self.run_id, batch)
                stored = True
            finally:
                if not stored:
                    self._unstored[:0] = batch
            if not is_ours:
                self._held, self._unstored = [], []
                self.close()
                return
            self._release(batch[-1].seq or 0)

    def _release(self, through: int) -> None:
        held, self._held = self._held, []
        for index, item in enumerate(held):
            if isinstance(item, tuple):
                self.delta(*item)
            elif item.seq is not None and item.seq <= through:
                self.show([item])
            else:
                self._held = held[index:]
                return
