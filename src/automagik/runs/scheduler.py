"""Scheduler: fires the schedules that are due, on as many hosts as there are, each time once."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from automagik.errors import AutomagikError, InvalidInput, NotFound, RateLimited, ServiceUnavailable
from automagik.runs.cron import CronTimes
from automagik.runs.schedules import CHANGED, labelled
from automagik.runs.service import RunService
from automagik.security import KeyRing
from automagik.security.rate_limits import RateLimits
from automagik.store import Store
from automagik.store.rows import RunRow, ScheduleRow
from automagik.store.schedules import USER_GONE
from automagik.types import Clock, utc_text

__all__ = ["Scheduler"]

_log = structlog.stdlib.get_logger(__name__)

_LATE = timedelta(seconds=60)
"""How late a time may be fired as if it were on time: what a takeover or a restart takes. Later it was missed."""
_MOST_MISSED = 100
"""How many missed times a schedule makes up for at the most, the latest ones."""
_AT_ONCE = 8
"""How many schedules are fired at once, so that a full hour does not take all connections."""
_LOOK_AHEAD = 200
_HOLD_SECONDS = 5.0
"""How long a schedule is left alone that could not be fired for a passing reason."""
_FAULT_SECONDS = 60.0
"""The same for a fault of the platform's own."""
_INSTANT = timedelta(microseconds=1)
_TURN_SECONDS = 3
"""How long one host may take to fire a time before another one tries it."""
_NOTED_SECONDS = 599
"""How long it is noted at least who has a turn: no divisor of any interval that a cron expression can say."""


class Scheduler:
    """Submits the runs of due schedules, in the name of their keys.

    A firing is known by its schedule and its time, which is the idempotency key of its run; only when the run is stored does
    the schedule move on to its next time, and only if nobody else moved it. So a process that dies between the two, and
    hosts that come at once, give the same run. Times are taken from the row, never counted anew: a clock that goes back
    fires nothing again.

    A firing counts for the rate limit of its key, as a request does, and once, however many hosts come to it. One that has
    to wait so long that its time is late is a missed one. Keys whose schedules are due take turns, so that none waits for
    another's thousand.
    """

    def __init__(
        self,
        *,
        store: Store,
        runs: RunService,
        keys: KeyRing,
        limits: RateLimits,
        clock: Clock,
        poll_seconds: float = 5.0,
    ) -> None:
        """`limits`: each firing counts for its key. `poll_seconds`: how often the schedules are looked at when no signal comes."""
        self._store = store
        self._runs = runs
        self._keys = keys
        self._limits = limits
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._held: dict[str, float] = {}
        self._turns: dict[str, str] = {}
        self._tidied_at = clock.monotonic()
        self._wake = asyncio.Event()
        self._closing = False
        self._ended = asyncio.Event()
        self._ended.set()

    async def run(self) -> None:
        """Fire what is due, whenever it is due, until `close`."""
        self._ended.clear()
        leave = [self._store.signals.listen(CHANGED[0], self._heard), self._store.signals.on_gap(self._wake.set)]
        try:
            while not self._closing:
                self._wake.clear()
                wait = await self._turn()
                if wait > 0 and not self._closing:
                    await self._sleep(wait)
        finally:
            for way_out in leave:
                way_out()
            self._ended.set()

    async def close(self) -> None:
        """Fire no more, and let what is being fired be stored."""
        self._closing = True
        self._wake.set()
        await self._ended.wait()

    async def fire_due(self) -> int:
        """Take each due schedule one time further: fire that time, or pass over those it missed. How many were due."""
        return await self._fire(await self._upcoming())

    # -- waiting

    async def _turn(self) -> float:
        """Take what is due one time further; then the seconds until there may be more to do."""
        try:
            upcoming = await self._upcoming()
            if await self._fire(upcoming):
                return 0.0
        except AutomagikError as error:  # the database is away
            _log.warning("schedules_not_seen", error=error.detail)
            return self._poll_seconds
        now, monotonic = self._clock.now(), self._clock.monotonic()
        waits = [max((due - now).total_seconds(), self._held.get(of, 0.0) - monotonic) for of, due in upcoming]
        return max(0.001, min([self._poll_seconds, *waits]))

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _heard(self, text: str) -> None:
        if text == CHANGED[1]:
            self._wake.set()

    async def _upcoming(self) -> Sequence[tuple[str, datetime]]:
        monotonic = self._clock.monotonic()
        self._held = {of: until for of, until in self._held.items() if until > monotonic}
        now, limit = self._clock.now(), _LOOK_AHEAD + len(self._held)
        return await self._store.read(lambda tx: tx.schedules.upcoming(now, limit))

    def _hold(self, schedule_id: str, seconds: float = _HOLD_SECONDS) -> None:
        self._held[schedule_id] = self._clock.monotonic() + seconds

    # -- firing

    async def _fire(self, upcoming: Sequence[tuple[str, datetime]]) -> int:
        now = self._clock.now()
        due = [of for of, at in upcoming if at <= now and of not in self._held]
        random.shuffle(due)  # hosts that come at once begin at different ends
        results = await asyncio.gather(*(self._fire_one(of) for of in due), return_exceptions=True)
        for schedule_id, result in zip(due, results, strict=True):
            if isinstance(result, BaseException):  # one that can't be fired must not keep the others waiting
                await self._set_aside(schedule_id, result)
        return len(due)

    async def _fire_one(self, schedule_id: str) -> None:
        async with self._slots:
            row = await self._store.read(lambda tx: tx.schedules.find(schedule_id))
            now = self._clock.now()
            if row is None or not row.active or row.next_at is None or row.next_at > now:
                return  # another host was faster, or a person
            try:
                times = CronTimes(row.cron, row.time_zone)
            except InvalidInput as wrong:  # its time zone was known when it was made
                await self._failed(row, None, wrong)
                return
            due = row.next_at
            target = _target(row, due, times, now)
            if target != due:
                await self._store.write(lambda tx: tx.schedules.advance(row, target))
                _log.warning("schedule_times_missed", schedule=row.name, since=utc_text(due), missed=row.missed)
                return
            await self._fire_time(row, due, times.after(due))

    async def _fire_time(self, row: ScheduleRow, due: datetime, following: datetime | None) -> None:
        try:
            run = await self._submit(row, due)
        except (RateLimited, ServiceUnavailable) as busy:  # it passes: the same time is tried again
            longest = _LATE.total_seconds() if type(busy) is RateLimited else _HOLD_SECONDS
            self._hold(row.schedule_id, min(busy.retry_after_seconds, longest))
            await self._failed(row, due, busy)
        except AutomagikError as error:
            if isinstance(error, NotFound) and error.kind == "user" and row.user_id is not None:
                await self._store.write(lambda tx: tx.schedules.stop(row, USER_GONE))
                _log.warning("schedule_stopped", schedule=row.name, schedule_id=row.schedule_id, error=error.detail)
                return
            await self._failed(row, following, error)
        else:
            if run is None:
                self._hold(row.schedule_id, _TURN_SECONDS)
                return
            self._turns.pop(row.schedule_id, None)
            await self._store.write(lambda tx: tx.schedules.fired(row, following, run.run_id))
            _log.info("schedule_fired", schedule=row.name, at=utc_text(due), run_id=run.run_id)

    async def _submit(self, row: ScheduleRow, due: datetime) -> RunRow | None:
        """The run of this time; None where another host is at it right now."""
        request = labelled(row)
        request = replace(request, labels={**request.labels, "scheduled_at": utc_text(due)})
        caller = await self._keys.caller_of(row.key_id or "")
        key = f"schedule:{row.schedule_id}:{utc_text(due)}"
        if await self._store.read(lambda tx: tx.queue.idempotent(caller.key_id or "", key)) is None:
            if not await self._has_turn(row, due):
                return None
            await self._limits.count(caller)
        return await self._runs.submit(request, caller, idempotency_key=key)

    async def _has_turn(self, row: ScheduleRow, due: datetime) -> bool:
        """Whether this host is the first that comes to fire the time: the others leave it alone for some seconds, in which it either
        is fired or the first one is gone, or was refused by the limit."""
        turn = max(0, int((self._clock.now() - due).total_seconds() // _TURN_SECONDS))
        name = f"firing:{row.schedule_id}:{utc_text(due)}:{turn}"
        if self._turns.get(row.schedule_id) != name:
            window = await self._store.write(lambda tx: tx.rates.hit(name, _NOTED_SECONDS))
            await self._tidy()
            if window.hits > 1:
                return False
            self._turns[row.schedule_id] = name
        return True

    async def _tidy(self) -> None:
        now = self._clock.monotonic()
        if now - self._tidied_at > _NOTED_SECONDS:
            self._tidied_at = now
            await self._store.write(lambda tx: tx.rates.forget_expired())

    async def _set_aside(self, schedule_id: str, error: BaseException) -> None:
        if isinstance(error, AutomagikError):  # the database went away in between
            self._hold(schedule_id)
            _log.warning("schedule_not_fired", schedule_id=schedule_id, error=error.detail)
            return
        self._hold(schedule_id, _FAULT_SECONDS)
        _log.error("schedule_not_fired", schedule_id=schedule_id, exc_info=error)
        text = "The platform failed for an internal reason; the server's log has the cause."
        await self._store.write(lambda tx: tx.schedules.note_error(schedule_id, text))

    async def _failed(self, row: ScheduleRow, following: datetime | None, error: AutomagikError) -> None:
        text = f"{error.detail} {error.hint}" if error.hint else error.detail
        await self._store.write(lambda tx: tx.schedules.failed(row, following, text))
        _log.warning("schedule_not_fired", schedule=row.name, schedule_id=row.schedule_id, error=error.detail)


def _target(row: ScheduleRow, due: datetime, times: CronTimes, now: datetime) -> datetime | None:
    """The time to fire now: `due` itself, or one that comes later where those before it are passed over."""
    on_time = now - _LATE
    if due >= on_time:
        return due
    if row.missed == "skip":
        return times.after(on_time - _INSTANT)
    wanted = 1 if row.missed == "once" else _MOST_MISSED
    latest = on_time
    for _ in range(wanted):
        earlier = times.until(latest - _INSTANT)
        if earlier is None or earlier <= due:
            return due
        latest = earlier
    return latest
