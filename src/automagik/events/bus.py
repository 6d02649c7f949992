"""EventBus: who looks on at which run, here and on other instances."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence

from automagik.errors import AutomagikError
from automagik.events.event import RunEvent
from automagik.events.outlet import Outlet
from automagik.events.stream import EventStream
from automagik.events.watcher import Look, Watcher
from automagik.events.wire import decode_piece
from automagik.store import Store
from automagik.store.signals import LocalSignals, Signals
from automagik.types import Clock, SystemClock, new_id

__all__ = ["EventBus"]

_TICK_SECONDS = 2.0
"""How often interest is made known again, and how often the store is looked at for what no signal told of."""
_LEASE_SECONDS = 7.0
"""How long another instance's interest lasts when it is not made known again."""
_POLLED_TOGETHER = 500


class EventBus:
    """The live streams of this process by run, and the readers of runs that live elsewhere.

    The store is the truth: a reader of a run that another instance carries out is woken by signals, or by a slow look at
    the store, and reads what is new there. Text under way is asked of the owner, which sends it only while somebody looks on.
    """

    def __init__(
        self, store: Store | None = None, *, signals: Signals | None = None, clock: Clock | None = None
    ) -> None:
        """`signals`: by which instances speak with each other; without it there is only this one."""
        self._store = store
        self._signals = signals or LocalSignals()
        self._clock = clock or SystemClock()
        self._instance = new_id("bus")
        self._streams: dict[str, EventStream] = {}
        self._watchers: dict[str, set[Watcher]] = {}
        self._outlets: dict[str, Outlet] = {}
        self._interest: dict[str, dict[str, float]] = {}
        self._leave: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._stopping = False

    # -- the process's life

    async def open(self) -> None:
        """Begin to hear other instances."""
        topics = {
            "watch": self._hear_watch,
            "watching": self._hear_watching,
            "unwatch": self._hear_unwatch,
            "event": self.wake,
            "ended": self.wake,
            self._instance: self._hear_piece,
        }
        self._leave = [self._signals.listen(topic, heard) for topic, heard in topics.items()]
        self._leave.append(self._signals.on_gap(self._recover))
        self._ticking = asyncio.get_running_loop().create_task(self._tick(), name="event bus")

    async def close(self) -> None:
        """Let all readers go and hear no more."""
        self.stop_watching()
        for leave in self._leave:
            leave()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        for outlet in self._outlets.values():
            outlet.end()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop_watching(self) -> None:
        """Let those readers go whose run lives elsewhere: the server is stopping, another instance goes on with them."""
        self._stopping = True
        for watcher in self._all_watchers():
            watcher.stop()

    # -- runs that are alive here

    def add(self, stream: EventStream) -> None:
        """Show a stream to its readers here, and to those instances that look on already."""
        self._streams[stream.run_id] = stream
        for watcher in self._watchers.get(stream.run_id, ()):
            watcher.stop()  # they go on with the stream
        for instance in self._interested(stream.run_id):
            self._tell(stream.run_id, instance)

    def find(self, run_id: str) -> EventStream | None:
        """The live stream of a run, or None."""
        return self._streams.get(run_id)

    def remove(self, run_id: str) -> None:
        """Forget a stream that has closed."""
        self._streams.pop(run_id, None)

    def __len__(self) -> int:
        return len(self._streams)

    # -- reading

    def wake(self, run_id: str) -> None:
        """Have the readers of a run look into the store: somebody wrote there."""
        for watcher in self._watchers.get(run_id, ()):
            watcher.wake()

    async def watch(self, run_id: str, after: int, look: Look) -> AsyncGenerator[Sequence[RunEvent]]:
        """The events of a run after `seq`, wherever it lives, as they come: every stored one once and in order, and between
        them the text under way. It ends with the run, or when this process stops."""
        while True:
            stream = self._readable(run_id, after)
            if stream is not None:
                async with contextlib.aclosing(_read(stream, after)) as batches:
                    async for batch in batches:
                        after = _last_seq(batch, after)
                        yield batch
                        if batch[-1].type == "run_finished":
                            return
                continue
            watcher = Watcher(run_id, after, look, clock=self._clock, ask=self._ask)
            with self._joined(watcher):
                async with contextlib.aclosing(watcher.batches()) as batches:
                    async for batch in batches:
                        yield batch
                        if self._readable(run_id, watcher.after) is not None:
                            break
            after = watcher.after
            if watcher.is_finished or self._stopping:
                return

    def _readable(self, run_id: str, after: int) -> EventStream | None:
        """The run's stream, where it is alive here and can show what follows `after`."""
        stream = self._streams.get(run_id)
        return stream if stream is not None and not stream.closed and stream.first_logged <= after + 1 else None

    @contextlib.contextmanager
    def _joined(self, watcher: Watcher) -> Generator[None]:
        run_id = watcher.run_id
        watchers = self._watchers.setdefault(run_id, set())
        watchers.add(watcher)
        if self._stopping:
            watcher.stop()
        try:
            yield
        finally:
            watchers.discard(watcher)
            if not watchers and self._watchers.get(run_id) is watchers:
                del self._watchers[run_id]
                if watcher.has_asked:
                    self._send("unwatch", f"{self._instance} {run_id}")

    def _ask(self, run_id: str) -> None:
        """Make known that somebody here looks on at a run, and wants its text under way."""
        self._send("watch", f"{self._instance} {run_id}")

    # -- what other instances say

    def _hear_watch(self, text: str) -> None:
        instance, *run_ids = text.split(" ")
        self._note_interest(instance, run_ids)
        for run_id in run_ids:
            self._tell(run_id, instance)

    def _hear_watching(self, text: str) -> None:
        instance, *run_ids = text.split(" ")
        self._note_interest(instance, run_ids)
        for run_id in run_ids:
            outlet = self._outlets.get(run_id)
            if outlet is None or instance not in outlet.instances:
                self._tell(run_id, instance)

    def _hear_unwatch(self, text: str) -> None:
        instance, _, run_id = text.partition(" ")
        self._interest.get(run_id, {}).pop(instance, None)
        if run_id in self._outlets:
            self._outlets[run_id].leave(instance)

    def _hear_piece(self, text: str) -> None:
        piece = decode_piece(text)
        if piece is not None:
            for watcher in self._watchers.get(piece.run_id, ()):
                watcher.hear(piece)

    def _note_interest(self, instance: str, run_ids: Iterable[str]) -> None:
        if instance != self._instance:
            until = self._clock.monotonic() + _LEASE_SECONDS
            for run_id in run_ids:
                self._interest.setdefault(run_id, {})[instance] = until

    def _interested(self, run_id: str) -> list[str]:
        now = self._clock.monotonic()
        return [instance for instance, until in self._interest.get(run_id, {}).items() if until > now]

    def _tell(self, run_id: str, instance: str) -> None:
        """Tell another instance what happens in a run, where it is alive here."""
        stream = self._streams.get(run_id)
        if stream is None or stream.closed or instance == self._instance:
            return
        outlet = self._outlets.get(run_id)
        if outlet is None or outlet.has_ended:
            outlet = self._outlets[run_id] = Outlet(stream, self._signals)
            self._tasks.add(outlet.task)
            outlet.task.add_done_callback(lambda task: self._forget_outlet(run_id, task))
        outlet.tell(instance)

    def _forget_outlet(self, run_id: str, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        outlet = self._outlets.get(run_id)
        if outlet is not None and outlet.task is task:
            del self._outlets[run_id]

    def _recover(self) -> None:
        """Signals may have been lost: look at the store, and ask for the text under way."""
        for watcher in self._all_watchers():
            watcher.wake()
        self._announce("watch")

    # -- now and then

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._announce("watching")
            self._forget_interest()
            with contextlib.suppress(AutomagikError):
                await self._poll()

    def _announce(self, topic: str) -> None:
        together = (self._signals.largest - 100) // 40
        run_ids = list(self._watchers)
        for start in range(0, len(run_ids), together):
            self._send(topic, " ".join((self._instance, *run_ids[start : start + together])))

    def _forget_interest(self) -> None:
        for run_id, instances in list(self._interest.items()):
            living = self._interested(run_id)
            for instance in instances.keys() - set(living):
                del instances[instance]
                if run_id in self._outlets:
                    self._outlets[run_id].leave(instance)
            if not instances:
                del self._interest[run_id]

    async def _poll(self) -> None:
        """Wake those readers for whom the store has more than they were given."""
        run_ids = list(self._watchers)
        if self._store is None:
            return
        for start in range(0, len(run_ids), _POLLED_TOGETHER):
            some = run_ids[start : start + _POLLED_TOGETHER]
            newest = await self._store.read(lambda tx, some=some: tx.events.last_seqs(some))
            for run_id in some:  # one that is not there any more is looked at, and its readers are let go
                for watcher in self._watchers.get(run_id, ()):
                    watcher.wake(through=newest.get(run_id))

    def _send(self, topic: str, text: str) -> None:
        task = asyncio.get_running_loop().create_task(self._signals.send(topic, text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _all_watchers(self) -> Iterator[Watcher]:
        return (watcher for watchers in list(self._watchers.values()) for watcher in list(watchers))


async def _read(stream: EventStream, after: int) -> AsyncGenerator[Sequence[RunEvent]]:
    subscription = stream.subscribe(after=after)
    try:
        async for batch in subscription:
            yield batch
    finally:
        await subscription.aclose()


def _last_seq(batch: Sequence[RunEvent], after: int) -> int:
    for event in reversed(batch):
        if event.seq is not None:
            return event.seq
    return after
