"""Heart and Watch: how a process shows that it lives, and how it finds out, without ever being wrong, that another does not."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from automagik.errors import AutomagikError, ConfigurationError, ServiceUnavailable
from automagik.types import Clock

__all__ = ["Heart", "LivenessTimes", "Pulse", "PulseLine", "Watch"]

_log = structlog.stdlib.get_logger(__name__)

_FIRST_WAIT_SECONDS = 0.05
"""How long after its first failure the line is tried again; doubled each time, up to the time between beats."""
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LivenessTimes:
    """When who is dead. With these figures a process that was killed is declared dead 3 to 3.5 s later."""

    beat_seconds: float = 0.5
    """Between two beats, each of which is a look at the others too."""
    dead_after_seconds: float = 2.75
    """How long another's beat must have stood still: more than a beat and 2 s, for which a living one may get no processor."""
    late_seconds: float = 1.5
    """A look that comes later than this after its time proves nothing about what came before: counting begins anew."""
    sweep_seconds: float = 2.0
    """Between two looks for runs whose owner is no living executor."""
    ask_seconds: float = 5.0
    """Between two questions to the main event loop whether it still answers."""
    stuck_seconds: float = 60.0
    """A main event loop that has not answered for so long is as good as dead: the heart stops beating."""


class Pulse(Protocol):
    """What one beat found, as `automagik.store.heart` says it."""

    @property
    def alive(self) -> bool:
        """Whether this process's own row has not ended."""
        ...

    @property
    def beats(self) -> Mapping[str, datetime]:
        """The last beat of each living executor."""
        ...


class PulseLine(Protocol):
    """The way to the executors' rows (`HeartLine`). Each call ends in bounded time, with ServiceUnavailable if need be."""

    async def beat(self) -> Pulse:
        """Beat, and look at all: a process that can't write sees nobody stand still."""
        ...

    async def left_behind(self) -> Collection[str]:
        """The owners of open runs that are no living executor."""
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """A beat (None: no living row), and when it was first seen for certain, by this process's own clock."""

    beat_at: datetime | None
    since: float


class _Looks:
    """Who stood still, through looks at a set of executors that are `interval` seconds apart."""

    def __init__(self, interval: float, times: LivenessTimes) -> None:
        self._longest = interval + times.late_seconds
        self._dead_after = times.dead_after_seconds
        self._known: dict[str, _Seen] = {}
        self._answered: float | None = None

    def look(self, sent: float, answered: float, beats: Mapping[str, datetime | None]) -> list[str]:
        """Those that have not moved for long enough."""
        if self._answered is not None and answered - self._answered > self._longest:
            self._known.clear()
        self._answered = answered
        before, self._known = self._known, {}
        for executor, beat in beats.items():
            seen = before.get(executor)
            self._known[executor] = seen if seen is not None and seen.beat_at == beat else _Seen(beat, answered)
        return [name for name, seen in self._known.items() if sent - seen.since >= self._dead_after]


class Watch:
    """Who of the others has stood still for too long, judged by this process's own looks and clock alone.

    A look is counted from when it was sent to when it was answered, always so that the other gets the benefit. Two looks too
    far apart say nothing about the time between: this process, or the database, stood still itself.
    """

    def __init__(self, executor_id: str, times: LivenessTimes | None = None) -> None:
        times = times or LivenessTimes()
        self._own = executor_id
        self._living = _Looks(times.beat_seconds, times)
        self._left = _Looks(times.sweep_seconds, times)

    def look(self, sent: float, answered: float, beats: Mapping[str, datetime]) -> list[tuple[str, datetime]]:
        """Those whose beat has not moved for long enough, each with that beat; again at each look until it moves or ends.

        `sent` and `answered` are this process's monotonic clock, `beats` the last beat of each living executor.
        """
        others = {executor: beat for executor, beat in beats.items() if executor != self._own}
        return [(executor, others[executor]) for executor in self._living.look(sent, answered, others)]

    def sweep(self, sent: float, answered: float, owners: Collection[str]) -> list[str]:
        """Those of `owners`, who have open runs and no living row, that were so for long enough; again at each sweep."""
        return self._left.look(sent, answered, dict.fromkeys(owner for owner in owners if owner != self._own))


class Heart:
    """A thread that beats for this process over a line of its own, and watches the others at the same time.

    The row of `executor_id` must be there before. Both callbacks are called in the event loop that opened the heart:
    `on_dead` with the executor and the beat that stood still (None: it owns open runs and has no living row), to declare it
    lost and to take what it left; while it fails, or finds nothing to do, it is called again with the next looks. `on_lost`
    once, when this process itself was declared dead: its heart has stopped, and it goes on under a fresh id with another one.
    """

    def __init__(
        self,
        line: PulseLine,
        executor_id: str,
        *,
        clock: Clock,
        on_lost: Callable[[], None],
        on_dead: Callable[[str, datetime | None], Awaitable[None]],
        times: LivenessTimes | None = None,
    ) -> None:
        self._line = line
        self._executor_id = executor_id
        self._clock = clock
        self._on_lost = on_lost
        self._on_dead = on_dead
        self._times = times or LivenessTimes()
        self._watch = Watch(executor_id, self._times)
        self._main: asyncio.AbstractEventLoop | None = None
        self._own: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._first: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closing = False
        self._reports: dict[str, asyncio.Task[None]] = {}
        self._asked_at: float | None = None
        self._answered = True
        self._told = False
        self._swept_at = clock.monotonic()

    async def open(self) -> None:
        """Begin to beat; returns after the first beat.

        Raises:
            ServiceUnavailable: the database has not answered for as long as a living process may be silent.
            ConfigurationError: the executor has no living row.
        """
        self._main = asyncio.get_running_loop()
        self._first, self._ended = self._main.create_future(), self._main.create_future()
        threading.Thread(target=self._run, name="automagik-heart", daemon=True).start()
        try:
            await self._first
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop beating and watching. Only then let the row end, or the heart takes it for a death."""
        self._closing = True
        if self._ended is None:
            return
        if self._own is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended by itself
                self._own.call_soon_threadsafe(self._stop.set)
        await asyncio.wait([self._ended], timeout=_CLOSE_SECONDS)
        for report in list(self._reports.values()):
            report.cancel()
        if self._reports:
            await asyncio.wait(list(self._reports.values()))

    # -- in the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        finally:
            self._in_main(self._has_ended)

    async def _live(self) -> None:
        self._own = asyncio.get_running_loop()
        if self._closing:
            return
        try:
            if await self._begin():
                await self._beat_on()
        finally:
            await self._line.close()

    async def _begin(self) -> bool:
        """Whether the first beat found a living row; who opens the heart is told.

        A connection that takes its time is tried again for as long as others can't have taken this process for dead.
        """
        wait, until = _FIRST_WAIT_SECONDS, self._clock.monotonic() + self._times.dead_after_seconds
        while True:
            try:
                alive = (await self._line.beat()).alive
                break
            except ServiceUnavailable as error:
                if self._clock.monotonic() + wait > until or await self._stopped_within(wait):
                    self._in_main(self._begun, error)
                    return False
            wait = min(2 * wait, self._times.beat_seconds)
        missing = ConfigurationError(
            f"The executor '{self._executor_id}' has no living row.", hint="Register it before its heart is opened."
        )
        self._in_main(self._begun, None if alive else missing)
        return alive

    async def _beat_on(self) -> None:
        """Beat until the heart is closed or this process was declared dead."""
        wait, retry = self._times.beat_seconds, _FIRST_WAIT_SECONDS
        while not await self._stopped_within(wait):
            wait = self._times.beat_seconds
            if self._is_stuck():
                continue
            sent = self._clock.monotonic()
            try:
                alive = await self._pulse(sent)
            except ServiceUnavailable as error:
                if retry == _FIRST_WAIT_SECONDS:
                    _log.warning("heart_line_lost", executor_id=self._executor_id, cause=repr(error.__cause__))
                wait, retry = retry, min(2 * retry, self._times.beat_seconds)
                continue
            if retry != _FIRST_WAIT_SECONDS:
                _log.info("heart_line_back", executor_id=self._executor_id)
                retry = _FIRST_WAIT_SECONDS
            if not alive:
                _log.error("executor_lost", executor_id=self._executor_id, hint="Another took this process for dead.")
                self._in_main(self._was_lost)  # before the line is closed, which may take its time
                return
            wait = max(0.0, self._times.beat_seconds - (self._clock.monotonic() - sent))

    async def _pulse(self, sent: float) -> bool:
        """Beat once and report who stood still. Whether this process has not been declared dead."""
        pulse = await self._line.beat()
        answered = self._clock.monotonic()
        if not pulse.alive:
            return False
        dead: list[tuple[str, datetime | None]] = [*self._watch.look(sent, answered, pulse.beats)]
        if answered - self._swept_at >= self._times.sweep_seconds:
            self._swept_at = answered
            owners = await self._line.left_behind()
            dead += [(owner, None) for owner in self._watch.sweep(answered, self._clock.monotonic(), owners)]
        for executor, beat in dead:
            self._in_main(self._report, executor, beat)
        return True

    def _is_stuck(self) -> bool:
        """Whether the main event loop has left a question unanswered for too long."""
        now = self._clock.monotonic()
        if self._answered and (self._asked_at is None or now - self._asked_at >= self._times.ask_seconds):
            self._answered, self._asked_at, self._told = False, now, False
            self._in_main(self._answer)
        if self._answered or self._asked_at is None or now - self._asked_at < self._times.stuck_seconds:
            return False
        if not self._told:
            self._told = True
            _log.error("heart_stopped", executor_id=self._executor_id, hint="The event loop does not answer any more.")
        return True

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stop.wait()
        except TimeoutError:
            return False

    def _in_main(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody is left to be told
            if self._main is not None:
                self._main.call_soon_threadsafe(call, *arguments)

    # -- in the main event loop

    def _begun(self, error: AutomagikError | None) -> None:
        if self._first is None or self._first.done():
            return
        if error is None:
            self._first.set_result(None)
        else:
            self._closing = True
            self._first.set_exception(error)

    def _has_ended(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self._was_lost()

    def _was_lost(self) -> None:
        if not self._closing:
            self._closing = True
            self._on_lost()

    def _answer(self) -> None:
        self._answered = True

    def _report(self, executor: str, beat: datetime | None) -> None:
        if self._closing or executor in self._reports:
            return
        task = asyncio.get_running_loop().create_task(self._tell(executor, beat), name=f"dead {executor}")
        self._reports[executor] = task
        task.add_done_callback(lambda done: self._told_of(executor, done))

    async def _tell(self, executor: str, beat: datetime | None) -> None:
        try:
            await self._on_dead(executor, beat)
        except AutomagikError as error:
            _log.warning("executor_not_taken_over", executor_id=executor, cause=error.detail)

    def _told_of(self, executor: str, task: asyncio.Task[None]) -> None:
        self._reports.pop(executor, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("executor_not_taken_over", executor_id=executor, exc_info=error)
